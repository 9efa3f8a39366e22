"""What is fitted on held-out answers holds on others, travels with the run, and is told."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import feedfwd as ff
from feedfwd.cli import main
from feedfwd.config_decide import DecideConfig
from feedfwd.config_finetune import FinetuneConfig
from feedfwd.data.ngrams import ngrams
from feedfwd.errors import ConfigError, DataError, RunError
from feedfwd.evaluate.calibration import reliability
from feedfwd.recipes import finetune as recipe
from feedfwd.recipes.apply import evaluate_run
from feedfwd.recipes.console import Silent
from feedfwd.recipes.explain import Memory, _left_out, explain, explain_run
from feedfwd.recipes.held_out import folds
from feedfwd.recipes.judge import OUTSIDE, UNSURE, Answers, Judgement, fit, judged, lines, together
from feedfwd.recipes.outside import area_under

CLASSES = ("a", "b", "c", "d")


def drawn(n: int, seed: int, sure: float = 3.0) -> Answers:
    """Logits that are `sure` times too large, and nearness that tells nothing."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 4, n)
    z = generator.normal(size=(n, 4))
    z[np.arange(n), y] += 2.5
    p = torch.softmax(torch.tensor(2.5 * z), 1).numpy()  # the true posterior: equal variances, means 2.5 apart
    return Answers(sure * np.log(p), y, generator.normal(0.8, 0.05, n), [f"text {i}" for i in range(n)], range(n))


def test_the_promises_hold_over_20_splits() -> None:
    broken, eces, rejected = 0, [], []
    for seed in range(20):
        verdict = fit(drawn(1500, seed), DecideConfig(error=0.05), "here")
        assert verdict is not None and verdict.temperature == pytest.approx(3, rel=0.12)
        test = drawn(1500, 1000 + seed)
        found = judged(verdict, drawn(1500, seed), test, CLASSES)["test"]
        noise = (0.05 * 0.95 / found["answered"]) ** 0.5
        broken += found["wrong"] / found["answered"] > 0.05 + 2 * noise
        right, p = test.logits.argmax(1) == test.targets, verdict.probabilities(test.logits)
        shown = reliability(p.max(1), right)
        eces.append(shown["ece"] - shown["ece_if_perfect"])
        rejected.append(found["rejected"] / found["n"])
        assert found["answered"] > 0.5 * found["n"]
    assert broken <= 1 and np.mean(eces) < 0.01
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.01)


def several(n: int, seed: int, sure: float = 3.0) -> Answers:
    """Logits of three labels that come and go by themselves, `sure` times too large."""
    generator = np.random.default_rng(seed)
    z = generator.normal(0, 6, size=(n, 3))
    y = (generator.random((n, 3)) < 1 / (1 + np.exp(-z))).astype(float)
    return Answers(sure * z, y, None, [f"text {i}" for i in range(n)], range(n))


def test_the_promises_hold_where_a_text_has_several_labels() -> None:
    broken, eces, rejected = 0, [], []
    for seed in range(20):
        verdict = fit(several(2000, seed), DecideConfig(error=0.1), "here")
        assert verdict is not None and verdict.temperature == pytest.approx(3, rel=0.12)
        test = several(2000, 1000 + seed)
        found = judged(verdict, several(2000, seed), test, CLASSES[:3])
        answered = found["test"]["answered"]
        broken += found["test"]["wrong"] / answered > 0.1 + 2 * (0.1 * 0.9 / answered) ** 0.5
        eces.append(found["calibration"]["after"]["ece"] - found["calibration"]["after"]["ece_if_perfect"])
        rejected.append(found["test"]["rejected"] / 2000)
        assert answered > 0
        again = Judgement.from_json(json.loads(json.dumps(verdict.to_json())))
        assert again.marks(test.logits, None) == verdict.marks(test.logits, None)
    assert broken <= 2 and np.mean(eces) < 0.01
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.01)


def test_a_label_too_many_or_too_few_is_found() -> None:
    held = several(800, 0, sure=1.0)
    sure = np.flatnonzero(np.abs(held.logits[:, 1]) > 5)[:20]
    held.targets[sure, 1] = held.logits[sure, 1] < 0
    verdict = fit(held, DecideConfig(), "here")
    assert verdict is not None
    listed = judged(verdict, held, several(500, 1), CLASSES[:3])["label_errors"]["listed"]
    assert {row["text"] for row in listed} >= {f"text {i}" for i in sure.tolist()}
    assert {"b", "not b"} <= {row["label"] for row in listed}


def test_a_verdict_travels_as_numbers_and_marks_the_same() -> None:
    verdict = fit(drawn(600, 0), DecideConfig(), "here")
    assert verdict is not None
    again = Judgement.from_json(json.loads(json.dumps(verdict.to_json(), allow_nan=False)))
    test = drawn(300, 1)
    assert again.marks(test.logits, test.near) == verdict.marks(test.logits, test.near)
    far = np.full(300, 0.0)
    assert verdict.marks(test.logits, far).count(OUTSIDE) > 250
    assert UNSURE in verdict.marks(test.logits, test.near)
    assert OUTSIDE not in verdict.marks(test.logits, None)  # a run whose memory is gone still knows when it is unsure


def test_what_is_found_is_json_and_told() -> None:
    held = drawn(800, 0)
    held.targets[:20] = (held.targets[:20] + 1) % 4
    verdict = fit(held, DecideConfig(), "the validation part")
    assert verdict is not None
    found = json.loads(json.dumps(judged(verdict, held, drawn(500, 1), CLASSES), allow_nan=False))
    flipped = {f"text {i}" for i in range(20)}
    assert len({row["text"] for row in found["label_errors"]["listed"][:10]} & flipped) >= 8
    said = "\n".join(lines(found))
    assert "the validation part" in said and "at most 0.05 of the answers wrong" in said and "second look" in said
    hopeless = fit(Answers(np.zeros((60, 2)), np.arange(60) % 2), DecideConfig(), "x")
    assert hopeless is not None
    assert "no threshold keeps" in "\n".join(lines(judged(hopeless, drawn(60, 0), drawn(60, 1), CLASSES)))
    assert fit(drawn(49, 0), DecideConfig(), "too few") is None


def test_folds_hold_every_class_in_proportion_and_differ_by_seed() -> None:
    y = torch.tensor([0] * 53 + [1] * 10 + [2] * 5)
    fold = folds(y, 5, 0)
    counts = torch.stack([fold[y == c].bincount(minlength=5) for c in range(3)])
    assert counts[0].min() >= 10 and counts[1].tolist() == [2] * 5 and counts[2].tolist() == [1] * 5
    assert not torch.equal(fold, folds(y, 5, 1))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    words = {"card": ["my card is lost", "block this card"], "money": ["send money abroad", "transfer my cash"]}
    rows = [f"{words[label][i % 2]} number {i},{label}" for i in range(120) for label in words]
    (folder / "t.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    config = FinetuneConfig(source=str(folder / "t.csv")).with_("bag.buckets", 4096).with_("bag.width", 16)
    recipe.finetune_config(config.with_("train.epochs", 20), folder / "run")
    return folder / "run"


def test_a_run_is_judged_and_predicts_with_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ff.load(run)
    found = model.result["judgement"]
    assert found["n"] == 192 and "5 fifths of the training part" in found["fitted_on"]
    logits = model.outputs(model.rows(["my card is lost"]))
    p = torch.softmax(logits / found["temperature"], 1).numpy()
    assert model.predict_proba(["my card is lost"]) == pytest.approx(p, abs=1e-6)
    answers = model.predict(["my card is lost number 3", "qwertz uiop"], abstain=True)
    assert answers[1] is None
    sys.argv = ["feedfwd", "predict", str(run), "qwertz uiop"]
    main_or_exit()
    assert capsys.readouterr().out.strip().endswith(OUTSIDE)
    assert "<h2>When to answer</h2>" in (run / "report.html").read_text(encoding="utf-8")


def main_or_exit() -> None:
    try:
        main()
    except SystemExit as stop:
        assert not stop.code


def test_the_pieces_of_a_linear_bag_add_up_to_its_logit(run: Path) -> None:
    model = ff.load(run)
    text = "my card is lost"
    found = explain(model, text)
    z = model.outputs(model.rows([text]))[0]
    bias = next(tensor for tensor in model.model.mlp.state_dict().values() if tensor.ndim == 1)
    best = int(z.argmax())
    ahead = float(z[best] - z.mean() - (bias[best] - bias.mean()))
    assert sum(weight for _, weight in found.carried) == pytest.approx(ahead, abs=1e-4)
    assert found.answer == "card" and {piece for piece, _ in found.carried} == set(text.split())
    grams = found.reasons[0].ngrams
    assert sum(weight for _, weight in grams) == pytest.approx(ahead, abs=1e-4)
    assert len(grams) == int(ngrams([text], 4096).lengths[0])
    assert all(label == "card" for _, label, _ in found.similar) and found.similar[0][2] > 0.8


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of several labels and of numbers, in Chinese and English."""
    folder = tmp_path_factory.mktemp("others")
    words = {"酒店": "hotel", "早餐": "breakfast", "干净": "clean"}
    rows = []
    for i in range(160):
        chosen = [word for k, word in enumerate(words) if i >> k & 1]
        row = {"text": "、".join(chosen) + f" 第{i}", "labels": [words[w] for w in chosen]}
        rows.append(row | {"stars": 1.5 + 2 * len(chosen) + 0.01 * i})
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for target in ("labels", "stars"):
        config = FinetuneConfig(source=str(folder / "t.jsonl"), target=target).with_("bag.buckets", 4096)
        recipe.finetune_config(config.with_("bag.width", 16).with_("train.epochs", 40), folder / target)
    return folder


def test_several_labels_and_numbers_are_explained(others: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ff.load(others / "labels")
    found = model.explain("酒店、早餐")
    assert {reason.answer for reason in found.reasons} == {"hotel", "breakfast"} and len(found.similar) == 3
    for reason in found.reasons:
        assert reason.carried[0][0] == {"hotel": "酒店", "breakfast": "早餐"}[reason.answer]
        z = model.outputs(model.rows(["酒店、早餐"]))[0, model.classes.index(reason.answer)]
        bias = model.model.mlp.head.bias.detach()[model.classes.index(reason.answer)]
        assert sum(weight for _, weight in reason.carried) == pytest.approx(float(z - bias), abs=1e-4)
    assert model.predict(["第8"]) == [()]
    (none,) = model.explain("第8").reasons
    assert none.answer.startswith("no label; likeliest is ")
    number = ff.load(others / "stars")
    found = number.explain("酒店、干净")
    (value,) = number.predict(["酒店、干净"])
    assert float(found.answer) == pytest.approx(value, rel=1e-4) and found.probability is None
    start = number.goal.mean + number.goal.std * float(number.model.mlp.head.bias.detach())
    assert sum(weight for _, weight in found.carried) == pytest.approx(value - start, abs=1e-3)
    sys.argv = ["feedfwd", "predict", str(others / "stars"), "酒店、干净", "--explain"]
    main_or_exit()
    said = capsys.readouterr().out
    assert "raised by: " in said and "like " in said and "%" not in said


def test_long_texts_are_explained_in_few_passes(run: Path) -> None:
    model = ff.load(run)
    sizes = []
    model.outputs = lambda rows: (sizes.append(len(rows)), torch.zeros(len(rows), 2))[1]
    pieces, _ = _left_out(model, "word " * 1234, lambda z: z[:, 0])
    assert len(pieces) == 95 and sizes == [96] and pieces[0][0] == " ".join(["word"] * 13)
    assert len(explain(ff.load(run), "card " * 30_000).carried) == 1


def test_explain_is_said_and_refused_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sys.argv = ["feedfwd", "predict", str(run), "my card is lost", "--explain"]
    main_or_exit()
    said = capsys.readouterr().out
    assert said.startswith("card (") and "for it:" in said and "like " in said
    sys.argv[3] = written = str(tmp_path / "t.csv")
    Path(written).write_text("text,label\n" + "the card is lost,x\n" * 7)
    main_or_exit()
    said = capsys.readouterr().out
    assert said.count("'the card is lost':\ncard (") == 5 and "the first 5 of 7 texts" in said
    with pytest.raises(DataError, match="empty"):
        explain_run(run, " ", None, Silent())


def test_evaluate_tells_whether_the_promises_held(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(
        "text,label\nmy card is lost number 3,money\nblock this card number 5,card\nq,card\n"
    )
    sys.argv = ["feedfwd", "evaluate", str(run), str(tmp_path / "t.csv")]
    main_or_exit()
    said = capsys.readouterr().out
    assert "answers 66.7% of these texts, 50.0% of these wrong" in said and "33.3% of these texts" in said


def test_the_energy_decides_only_without_nearness_or_of_several_labels() -> None:
    scores = {name: np.zeros(2) for name in ("probability", "energy", "neighbours")}
    assert list(together(scores)) == ["probability", "neighbours"]
    assert list(together(scores, several=True)) == list(scores)
    assert list(together({name: scores[name] for name in ("probability", "energy")})) == ["probability", "energy"]


def test_texts_of_no_class_are_told_from_others(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = tmp_path / "strange.txt"
    strange.write_text("".join(f"qwertz uiop {i} asdf\n" for i in range(30)) + f"{ff.load(run).memory.texts[0]}\n")
    sys.argv = ["feedfwd", "evaluate", str(run), "--outside", str(strange)]
    main_or_exit()
    said = capsys.readouterr().out
    assert "31 texts of" in said and "the run's own threshold" in said and "stand in the training part" in said
    model = ff.load(run)
    scores = evaluate_run(run, None, Silent(), outside=str(strange))
    score = {k: [v] for k, v in scores.items() if k.startswith("outside_auroc_")}
    assert set(score) == {f"outside_auroc_{name}" for name in ("probability", "energy", "neighbours", "together")}
    assert scores["outside_auroc_neighbours"] > 0.9 and scores["outside_rejected"] > 0.9
    strict, loose = (
        evaluate_run(run, None, Silent(), outside=str(strange), false_reject=rate)["outside_caught_energy"]
        for rate in (0.01, 0.5)  # of 48 texts inside 1 % is none
    )
    assert strict == 0 < scores["outside_caught_energy"] <= loose
    with pytest.raises(ConfigError, match="a share between 0 and 1"):
        evaluate_run(run, None, Silent(), outside=str(strange), false_reject=1.5)
    with pytest.raises(ConfigError, match="--outside"):
        evaluate_run(run, None, Silent(), false_reject=0.1)
    inside = model.read(model.rows(["my card is lost number 3"] * 2 + ["send money abroad"]))
    outside = model.read(model.rows(strange.read_text().splitlines()))
    own, others = model.near(inside[0]), model.near(outside[0])
    wanted = np.mean([(a > b) + (a == b) / 2 for a in own for b in others])
    assert area_under(own, others)[0] == pytest.approx(wanted)
    marks = model.marks(*outside)
    assert scores["outside_rejected"] == pytest.approx(marks.count(OUTSIDE) / 31)


def test_outside_is_asked_of_classifiers_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("text,label\n" + "".join(f"a {i} b,{i}.5\n" for i in range(60)))
    config = FinetuneConfig(source=str(tmp_path / "n.csv")).with_("bag.buckets", 512).with_("train.steps", 1)
    recipe.finetune_config(config, tmp_path / "numbers")
    with pytest.raises(ConfigError, match="answers with a number"):
        evaluate_run(tmp_path / "numbers", None, Silent(), outside=str(tmp_path / "n.csv"))
    with pytest.raises(DataError, match="nowhere"):
        evaluate_run(run, None, Silent(), outside="nowhere.csv")
    with pytest.raises(ConfigError, match="classifiers of texts"):
        evaluate_run(_renamed(run, tmp_path), None, Silent(), outside="x.csv")


def _renamed(run: Path, folder: Path) -> Path:
    """The run as if another verb had made it."""
    shutil.copytree(run, folder / "fit")
    settings = folder / "fit" / "config.toml"
    settings.write_text(settings.read_text().replace('verb = "finetune"', 'verb = "fit"'))
    return folder / "fit"


def test_nothing_is_fitted_where_it_is_not_wanted(run: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(source=str(run.parent / "t.csv")).with_("bag.buckets", 512).with_("bag.width", 4)
    model = recipe.finetune_config(config.with_("decide.held", 0), tmp_path / "run")
    assert model.result["judgement"] is None and model.memory is None
    with pytest.raises(RunError, match="no thresholds"):
        model.predict(["x"], abstain=True)


def test_texts_of_any_kind_are_remembered(tmp_path: Path) -> None:
    from feedfwd.checkpoint import Run

    folder = Run.create(tmp_path / "r", "x")
    memory = Memory(torch.randn(3, 4), torch.tensor([0, 1, 0]), ("", "酒店很好", "a\n🙂"))
    memory.save(folder)
    again = Memory.load(folder)
    assert (
        again is not None and again.texts == memory.texts and torch.allclose(again.vectors, memory.vectors, atol=1e-2)
    )
