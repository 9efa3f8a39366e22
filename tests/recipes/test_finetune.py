"""`feedfwd finetune`: labelled texts in, a classifier out, resumable to the bit, and one line for what can't work."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from meanings import Lines

import feedfwd as ff
from command import call
from feedfwd.checkpoint import Run
from feedfwd.config_finetune import FinetuneConfig, LabelLossConfig, preset
from feedfwd.recipes import finetune as recipe
from feedfwd.recipes.apply import evaluate_run
from feedfwd.recipes.goals import Goal, SeveralLabels
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.recipes.labelled_parts import parts

SMALL = ["--set", "bag.buckets=4096", "--set", "bag.width=16"]
WORDS = {"card": "card lost stolen arrive", "money": "top up cash transfer", "hello": "good morning dear team"}


def table(path: Path, n: int = 60, labels: tuple[str, ...] = tuple(WORDS)) -> Path:
    """Texts whose class shows in their words."""
    rows = ["text,label"]
    for i in range(n):
        label = labels[i % len(labels)]
        words = WORDS[label].split()
        rows.append(f"number {i} says {words[i % 4]} and {words[(i // 4) % 4]},{label}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def small(source: Path, **settings: object) -> FinetuneConfig:
    config = FinetuneConfig(source=str(source)).with_("bag.buckets", 4096).with_("bag.width", 16)
    for key, value in settings.items():
        config = config.with_(key.replace("__", "."), value)
    return config


def test_a_run_learns_and_leaves_all_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = table(tmp_path / "t.csv", 120), tmp_path / "run"
    assert call("finetune", str(data), "--run", str(run), "--set", "data.validation=0.2", *SMALL) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["test"]["accuracy"] >= 0.95 and result["sizes"] == {"train": 77, "validation": 19, "test": 24}
    assert {p.name for p in run.iterdir()} == {
        "config.toml", "preprocess.json", "model.safetensors", "memory.safetensors", "log.jsonl", "result.json",
        "report.html",
    }  # fmt: skip
    assert "macro_f1" in result["test_details"]["intervals"]
    model = ff.load(run)
    assert model.predict(["I lost my card", "transfer of cash"]).tolist() == ["card", "money"]
    assert model.predict_proba(["", "good morning"]).sum(1) == pytest.approx([1, 1], abs=1e-5)
    capsys.readouterr()
    assert call("evaluate", str(run)) == 0 and "accuracy" in capsys.readouterr().out
    assert call("predict", str(run), "my card was stolen") == 0
    assert ",card," in capsys.readouterr().out.replace("0,card", ",card")
    assert call("predict", str(run), "my card was stolen " * 300) == 0
    assert call("predict", str(run), str(data), "--out", str(tmp_path / "o.jsonl")) == 0
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 120
    assert call("info", str(run)) == 0 and call("runs", str(tmp_path)) == 0


def test_few_classes_need_no_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = table(tmp_path / "t.csv", 120), tmp_path / "run"
    assert call("finetune", str(data), "--run", str(run), "--set", "bag.buckets=4096") == 0
    model = ff.load(run)
    assert model.config.bag.width == 0 and model.config.optimizer.ngrams == 1.0
    assert model.model.embedding.weight.shape == (4096, 3) and model.result["test"]["accuracy"] >= 0.95
    assert "3 numbers each" in capsys.readouterr().out
    assert model.predict(["I lost my card", "transfer of cash"]).tolist() == ["card", "money"]
    assert np.linalg.norm(model.embed(["a stolen card", "good morning"]), axis=1) == pytest.approx([1, 1])
    reason = model.explain("my card was stolen").reasons[0]
    assert {piece for piece, _ in reason.carried[:2]} == {"card", "stolen"}
    assert "bag.width=0" in recipe.command(model.config)
    again = recipe.finetune_config(small(data, seed=0), tmp_path / "wide").config
    assert again.bag.width == 16 and again.optimizer.ngrams == 0.15
    assert call("finetune", str(data), "--run", str(tmp_path / "no"), "--set", "bag.hidden=[8]", "--dry-run") == 0
    assert call("finetune", str(data), "--set", "bag.width=0", "--set", "bag.hidden=[8]") == 2
    assert "leaves no layers" in capsys.readouterr().err


def test_the_same_command_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    data = table(tmp_path / "t.csv")
    first, again = (recipe.finetune_config(small(data), tmp_path / name) for name in ("a", "b"))
    other = recipe.finetune_config(small(data, seed=1), tmp_path / "c")
    assert torch.equal(first.model.embedding.weight, again.model.embedding.weight)
    assert not torch.equal(first.model.embedding.weight, other.model.embedding.weight)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resuming_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float) -> None:
    config = small(table(tmp_path / "t.csv"), train__batch_size=8, train__save_every=7, train__ema=ema)
    config = config.with_("data.validation", 0.2).with_("bag.hidden", [12]).with_("ffn.dropout", 0.2)
    whole = recipe.finetune_config(config, tmp_path / "whole")
    log, count = Run.log, 0

    def killed(self: Run, event: dict[str, object]) -> None:
        nonlocal count
        count += event["event"] == "step"
        if count == 17:
            raise Interrupted("killed", 9)
        log(self, event)

    monkeypatch.setattr(Run, "log", killed)
    with pytest.raises(KeyboardInterrupt):
        recipe.finetune_config(config, tmp_path / "cut")
    monkeypatch.setattr(Run, "log", log)
    assert Run.open(tmp_path / "cut").saved_step() == 14
    resumed = recipe.resume(tmp_path / "cut")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_dry_run_shows_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = table(tmp_path / "t.csv")
    assert call("finetune", str(data), "--dry-run", "--run", str(tmp_path / "run"), *SMALL) == 0
    said = capsys.readouterr().out
    assert "3 classes" in said and "an example: 'number 0 says card" in said and "MB of memory" in said
    assert not (tmp_path / "run").exists()


def test_minutes_are_planned_and_doubles_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = table(tmp_path / "t.csv"), table(tmp_path / "u.csv", 9)
    argv = ["finetune", str(train), "--test", str(test), "--minutes", "0.005", "--run", str(tmp_path / "run")]
    assert call(*argv, *SMALL) == 0
    said = capsys.readouterr().out
    assert "updates fit into 0.005 minutes" in said and "9 test texts stand in the training part too" in said


def test_a_run_reads_other_files_by_its_own_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = table(tmp_path / "t.csv")
    data.write_text(data.read_text().replace("text,label", "q,cat"), encoding="utf-8")
    rows = data.read_text().splitlines()[1:]
    more = tmp_path / "more.csv"  # whose notes are longer, and whose label is the more usual name
    more.write_text("label,notes,q,cat\n" + "".join(f"x{i % 2},{'long ' * 40},{row}\n" for i, row in enumerate(rows)))
    found = recipe.finetune_config(small(data, test=str(more), train__steps=40, decide__held=0), tmp_path / "run")
    assert (Run(tmp_path / "run").settings()["text"], Run(tmp_path / "run").settings()["target"]) == ("q", "cat")
    accuracy = found.result["test"]["accuracy"]
    assert evaluate_run(tmp_path / "run", str(more), said := Lines())["accuracy"] == accuracy > 0.9
    assert "note: text from column 'q', labels from 'cat'" in said.lines
    assert evaluate_run(tmp_path / "run", str(table(tmp_path / "u.csv")), said)["accuracy"] > 0.9
    assert any("no column 'q' and no 'cat' as in training: text from column 'text'" in s for s in said.lines)
    predicted = []
    for name in (data, more):
        assert call("predict", str(tmp_path / "run"), str(name)) == 0
        out, error = capsys.readouterr()
        predicted.append(out)
    assert predicted[0] == predicted[1] and "text from column 'q'" in error


def test_classes_without_a_test_text_are_told(tmp_path: Path) -> None:
    data, test = table(tmp_path / "t.csv"), table(tmp_path / "u.csv", labels=("card", "money"))
    assert any("1 of 3 classes has no test text: macro F1" in note for note in parts(small(data, test=str(test)))[-1])


def test_the_likeliest_of_several_labels_is_shown() -> None:
    row = SeveralLabels(("x", "y")).row(np.array([0.2, 0.4]))
    assert row == {"prediction": "", "probability": "", "likeliest": "y", "its probability": 0.4}


def test_a_layer_of_any_kind_serves(tmp_path: Path) -> None:
    config = small(table(tmp_path / "t.csv")).with_("bag.hidden", [16, 16]).with_("bag.residual", True)
    found = recipe.finetune_config(config.with_("ffn.activation", "swiglu"), tmp_path / "run")
    assert found.result["test"]["accuracy"] > 0.5


def test_chinese_needs_no_segmenter(tmp_path: Path) -> None:
    path = tmp_path / "z.csv"
    good, bad = ["房间很干净", "服务很好", "早餐不错"], ["房间很脏", "服务太差", "早餐难吃"]
    rows = [f"{i % 2},{(bad, good)[i % 2][i // 2 % 3]}第{i}次" for i in range(60)]
    path.write_text("label,review\n" + "\n".join(rows) + "\n", encoding="utf-8")
    found = recipe.finetune_config(small(path), tmp_path / "run")
    assert found.result["test"]["accuracy"] == 1.0


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    step = recipe.Finetuning._log_step

    def interrupt(self: recipe.Finetuning, *given: object) -> None:
        step(self, *given)  # type: ignore[arg-type]
        if self.step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(recipe.Finetuning, "_log_step", interrupt)
    with pytest.raises(Interrupted, match="feedfwd finetune --resume"):
        recipe.finetune_config(small(table(tmp_path / "t.csv"), train__batch_size=8), tmp_path / "run")
    assert Run.open(tmp_path / "run").saved_step() == 3


Case = tuple[str, Callable[[Path], list[str]], str]


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


CASES: list[Case] = [
    ("no data", lambda d: [], "no DATA to train on"),
    ("no file", lambda d: [str(d / "absent.csv")], "there is no file"),
    ("an empty folder", lambda d: [str(d)], "holds no text files"),
    ("another form", lambda d: [written(d / "t.docx", "x")], "is not of a form that text is read from"),
    ("empty", lambda d: [written(d / "t.csv", "")], "is empty"),
    ("binary", lambda d: [written(d / "t.csv", "a\0b")], "is not text"),
    ("broken JSON", lambda d: [written(d / "t.jsonl", '{"text": "a", "label"')], "row 1 is no JSON object"),
    ("no label column", lambda d: [written(d / "t.csv", "text\na b\nc d\n")], "labels are missing"),
    ("one class", lambda d: [written(d / "t.csv", "text,label\na,x\nb,x\nc,x\n")], "one class only, 'x'"),
    (
        "a class a text",
        lambda d: [written(d / "t.csv", "text,label\na,x\nb,y\nc,z\n")],
        "a label of its own in",
    ),
    (
        "lists for one label",
        lambda d: [written(d / "t.jsonl", '{"text": "a", "label": ["x"]}\n'), "--set", "data.several=false"],
        "several labels a text, and one is needed",
    ),
    ("text absent", lambda d: [str(table(d / "t.csv")), "--text", "txt"], "did you mean 'text'"),
    ("target absent", lambda d: [str(table(d / "t.csv")), "--target", "labl"], "did you mean 'label'"),
    ("both the same", lambda d: [str(table(d / "t.csv")), "--text", "text", "--target", "text"], "two columns"),
    ("no @label", lambda d: [written(d / "t.txt", "good@positive\nbad\n")], "line 2 does not end in @label"),
    (
        "unseen label",
        lambda d: [str(table(d / "t.csv", labels=("card", "money"))), "--test", str(table(d / "u.csv"))],
        "'hello', which the training data don't have",
    ),
    ("another task", lambda d: [str(table(d / "t.csv")), "--task", "rnk"], "no task 'rnk': did you mean 'rank'?"),
    ("another task said otherwise", lambda d: [str(table(d / "t.csv")), "--set", "task=embd"], "did you mean 'embed'?"),
    ("numbers of words", lambda d: [str(table(d / "t.csv")), "--task", "regress"], "row 1: 'label' holds 'card'"),
    ("unknown setting", lambda d: [str(table(d / "t.csv")), "--set", "bag.wdth=3"], "unknown setting 'bag.wdth'"),
    ("clip", lambda d: [str(table(d / "t.csv")), "--set", "train.clip=1"], "leave train.clip out"),
    ("nothing to read", lambda d: [str(table(d / "t.csv")), "--set", "bag.words=0", "--set", "bag.longest=0"], "leave"),
    ("resume no run", lambda d: ["--resume", str(d / "absent")], "no run at"),
]


@pytest.mark.parametrize(("argv", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: Callable[[Path], list[str]], words: str
) -> None:
    given = argv(tmp_path)
    extra = [] if "--resume" in given else ["--run", str(tmp_path / "run")]
    assert call("finetune", *given, *extra) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and words in said, said


def test_verbs_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.finetune_config(small(table(tmp_path / "t.csv")), tmp_path / "run")
    assert call("generate", str(tmp_path / "run"), "x") == 2
    assert "is a run of `feedfwd finetune`" in capsys.readouterr().err
    assert call("finetune", "--resume", str(tmp_path / "run")) == 2
    assert "is finished" in capsys.readouterr().err


def test_rare_classes_weigh_by_the_root_unless_a_pretrained_model_is_trained() -> None:
    outputs, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    goal, trained = Goal(("a", "b")), torch.tensor([0] * 9 + [1])
    expected = {"none": [1.0, 1.0], "root": [(10 / 18) ** 0.5, 5**0.5], "balanced": [10 / 18, 5.0]}
    for name, weights in (expected | {"auto": expected["root"]}).items():
        found = goal.loss(LabelLossConfig(class_weights=name), trained)(outputs, targets)  # type: ignore[arg-type]
        torch.testing.assert_close(
            found,
            torch.nn.functional.cross_entropy(outputs, targets, weight=torch.tensor(weights), reduction="none"),
        )
    given = FinetuneConfig(source="a.csv", pretrained="model")
    assert given.over(preset(given, 100)).loss.class_weights == "none"
