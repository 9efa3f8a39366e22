"""What a user who fine-tunes a pretrained model gets for what can't work: one line, exit status 2, nothing changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from command import call
from feedfwd.config import overrides, parse
from feedfwd.config_finetune import FinetuneConfig
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.recipes import finetune as recipe
from feedfwd.recipes.pretrain import pretrain_config

TINY = [
    "model.width=16", "model.depth=1", "model.heads=2", "ffn.hidden=32", "data.tokenizer=bytes", "data.row=32",
    "train.batch_size=4", "train.threads=1", "train.precision=fp32", "train.steps=1",
]  # fmt: skip
Make = Callable[[], list[str]]


def rows(*labels: object, n: int = 12, key: str = "label") -> str:
    return "".join(json.dumps({"text": f"text {i} of it", key: labels[i % len(labels)]}) + "\n" for i in range(n))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled texts, a pretrained run, one without its weights, and a run that was fine-tuned."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FEEDFWD_CACHE", str(folder / "cache"))
        Path("text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(200)))
        pretrain_config(
            parse(PretrainConfig, {"sources": ["text.txt"], **overrides(TINY, PretrainConfig)}), Path("base")
        )
        Path("t.jsonl").write_text(rows("x", "y"))
        shutil.copytree("base", "unfinished")
        for name in ("model.safetensors", "result.json"):
            Path("unfinished", name).unlink()
        config = FinetuneConfig(source="t.jsonl", pretrained="base").with_("train.steps", 1)
        recipe.finetune_config(config, Path("tuned"))
        Path("empty").mkdir()
    return folder


def given(*argv: str, file: str | None = None, text: str = "") -> Make:
    """The command, with a file written first."""

    def make() -> list[str]:
        if file is not None:
            Path(file).write_text(text)
        return ["finetune", *argv]

    return make


def spoilt(change: Callable[[], object], *argv: str) -> Make:
    def make() -> list[str]:
        change()
        return list(argv)

    return make


def not_finite() -> None:
    tensors = load_file("base/model.safetensors")
    next(iter(tensors.values())).view(-1)[3] = torch.nan
    save_file(tensors, "base/model.safetensors")


def chats() -> None:
    Path("c.jsonl").write_text("".join(f'{{"prompt": "{i}?", "completion": "{i}"}}\n' for i in range(6)))


def pickled() -> None:
    Path("hf").mkdir()
    Path("hf/config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 9}))
    Path("hf/pytorch_model.bin").write_bytes(b"x")


FROM = ("t.jsonl", "--from", "base")
CASES: list[tuple[str, Make, str]] = [
    # what to start from
    ("no such model", given("t.jsonl", "--from", "nowhere"), "neither a run"),
    ("a folder without a model", given("t.jsonl", "--from", "empty"), "config.json"),
    ("an unfinished run", given("t.jsonl", "--from", "unfinished"), "unfinished"),
    ("a file", given("t.jsonl", "--from", "text.txt"), "text.txt"),
    ("weights that are no numbers", spoilt(not_finite, "finetune", *FROM), "not finite"),
    ("only pickled weights", spoilt(pickled, "finetune", "t.jsonl", "--from", "hf"), "hf"),
    ("weights that are no numbers, to answer with", spoilt(
        lambda: (not_finite(), chats()), "finetune", "c.jsonl", "--from", "base"
    ), "not finite"),
    ("a template that ends no answer", spoilt(
        lambda: (chats(), Path("t.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")),
        "finetune", "c.jsonl", "--from", "base", "--set", "chat.template=t.jinja",
    ), "generation would never stop"),
    ("a model of no family", spoilt(
        lambda: (Path("hf").mkdir(), Path("hf/config.json").write_text("{}")), "finetune", "t.jsonl", "--from", "hf"
    ), "names no model_type"),
    ("a model of an unknown family", spoilt(
        lambda: (Path("hf").mkdir(), Path("hf/config.json").write_text('{"model_type": "bart"}')),
        "finetune", "t.jsonl", "--from", "hf",
    ), "family 'bart' is not read here: did you mean 'bert'"),
    ("no tokenizer", spoilt(lambda: Path("base/tokenizer.json").unlink(), "finetune", *FROM), "tokenizer.json"),
    ("resume and start", given("--resume", "tuned", "--from", "base"), "starts a new one"),
    # methods
    ("a method with nothing to adapt", given("t.jsonl", "--method", "lora"), "--from"),
    ("an unknown method", given(*FROM, "--method", "lorra"), "method='lorra'"),
    ("a target that matches nothing", given(*FROM, "--method", "lora", "--set", 'adapt.targets=["attn.q"]'), "attn.q"),
    ("no targets", given(*FROM, "--method", "lora", "--set", "adapt.targets=[]"), "adapt.targets"),
    ("adapters without their method", given(*FROM, "--set", "adapt.rank=4"), "lora and dora"),
    ("a rank of 0", given(*FROM, "--method", "lora", "--set", "adapt.rank=0"), "adapt.rank"),
    ("frozen embeddings and adapters", given(
        *FROM, "--method", "lora", "--set", "encoder.frozen_embeddings=true"
    ), "leave it out"),
    ("an unknown pooling", given(*FROM, "--set", "encoder.pooling=max"), "encoder.pooling"),
    ("hidden tokens without a mask token", given(*FROM, "--set", "encoder.masked=0.1"), "has no mask token"),
    ("hidden tokens of a frozen model", given(
        *FROM, "--method", "head", "--set", "encoder.masked=0.1"
    ), "a pretrained model that learns"),
    ("hidden tokens of a bag", given("t.jsonl", "--set", "encoder.masked=0.1"), "a pretrained model that learns"),
    ("a comparison of a bag's texts", given("t.jsonl", "--set", "loss.contrast=1"), "a pretrained model that learns"),
    ("a comparison that counts less than nothing", given(*FROM, "--set", "loss.contrast=-1"), "loss.contrast"),
    ("vectors of a frozen model that may not move", given(
        *FROM, "--method", "head", "--set", "loss.keep=1"
    ), "a pretrained model that learns"),
    ("all tokens hidden", given(*FROM, "--set", "encoder.masked=1"), "encoder.masked"),
    ("rows too short", given(*FROM, "--set", "encoder.longest=2"), "encoder.longest"),
    ("a layer decay of 0", given(*FROM, "--set", "optimizer.layer_decay=0"), "layer_decay"),
    # texts and targets
    ("text absent", given(*FROM, "--text", "txt"), "did you mean 'text'"),
    ("one class", given("o.jsonl", "--from", "base", file="o.jsonl", text=rows("x")), "one class only"),
    ("unseen labels in the test file", given(
        *FROM, "--test", "u.jsonl", file="u.jsonl", text=rows("x", "z")
    ), "'z', which the training data don't have"),
    ("an unseen label among several", given(
        "s.jsonl", "--test", "u.jsonl", file="u.jsonl", text=rows(["x"], ["q"])
    ), "there is no file or folder s.jsonl"),
    ("the same text everywhere", given(
        "a.jsonl", file="a.jsonl", text='{"text": "a b", "label": 1}\n{"text": "A  b", "label": 0}\n' * 9
    ), "all 14 texts of a.jsonl are "),
    ("a test file without texts", given(
        *FROM, "--test", "u.jsonl", file="u.jsonl", text='{"txt": 3, "label": "x"}\n' * 4
    ), "no column 'text', from which texts were read in training, and no other of text: did you mean 'txt'"),
    ("more shots than there are", given(*FROM, "--shots", "9"), "no class has more than 5 training texts"),
    ("a teacher that writes", given("t.jsonl", "--teacher", "base"), "base is a run of `feedfwd pretrain`"),
    ("no shots", given(*FROM, "--shots", "0"), "data.shots"),
    ("shots of numbers", given(*FROM, "--task", "regress", "--target", "text"), "text"),
    ("numbers of words", given(*FROM, "--task", "regress"), "which is no number"),
    ("several and a number", given(*FROM, "--task", "regress", "--set", "data.several=true"), "leave one out"),
    ("the same number everywhere", given(
        "n.jsonl", "--task", "regress", file="n.jsonl", text=rows(1.5)
    ), "same number"),
    ("no label at all", given("e.jsonl", file="e.jsonl", text=rows([], [])), "no text has a label"),
    ("a column that is no 0 and 1", given(
        "f.jsonl", "--target", "label,other", file="f.jsonl",
        text='{"text": "a b", "label": 1, "other": 2}\n{"text": "c d", "label": 0, "other": 1}\n',
    ), "0 and 1"),
    # a run
    ("predict without the tokenizer", spoilt(
        lambda: Path("tuned/tokenizer.json").unlink(), "predict", "tuned", "a text"
    ), "tokenizer.json"),
    ("predict with no model's settings", spoilt(
        lambda: Path("tuned/preprocess.json").write_text('{"classes": ["x", "y"]}'), "predict", "tuned", "a text"
    ), "preprocess.json"),
    ("predict an empty text", lambda: ["predict", "tuned", ""], "the text is empty"),
    ("no folder to write to", lambda: ["predict", "tuned", "a", "--out", "no/o.csv"], "make its folder first"),
    ("predict a file without texts", spoilt(
        lambda: Path("u.jsonl").write_text('{"txt": 3}\n' * 4), "predict", "tuned", "u.jsonl"
    ), "no column 'text', from which texts were read in training"),
    ("foreign texts from nowhere", lambda: ["evaluate", "tuned", "--outside", "nowhere.txt"], "nowhere.txt"),
    ("foreign texts for what writes", lambda: ["evaluate", "base", "--outside", "t.jsonl"], "classifiers of texts"),
    ("predict by what writes", lambda: ["predict", "base", "a"], "it is for `feedfwd generate`"),
    ("explain into a file", lambda: ["predict", "tuned", "a", "--explain", "--out", "o.csv"], "leave one out"),
    ("predict for nothing", given(), "no DATA"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "says"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_gets_one_clear_line(
    make: Make,
    says: str,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
    argv = make()
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert call(*argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert says in lines[0], lines[0]
    assert ": " in lines[0].removeprefix("error: "), "what next is missing"
    assert len(lines[0]) < 400, lines[0]
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before, "files changed"


def test_a_dry_run_shows_what_the_model_sees_and_writes_nothing(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(prepared)
    argv = ["t.jsonl", "--from", "base", "--method", "lora", "--dry-run", "--set", "encoder.longest=8"]
    argv += ["--set", "adapt.targets=attention.*"]
    before = sorted(prepared.rglob("*"))
    assert call("finetune", *argv) == 0
    said = capsys.readouterr().out
    for part in (
        "the model sees 8 tokens",
        "longer than 8 tokens and cut there",
        "attention.* matches 4",
        "MB of memory",
    ):
        assert part in said, part
    assert sorted(prepared.rglob("*")) == before
