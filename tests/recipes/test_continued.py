"""`feedfwd pretrain --from`: the model's own tokenizer and sizes, another text, and a run like any other."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_adapters import folder

import feedfwd as ff
from feedfwd.checkpoint import Run
from feedfwd.cli import main
from feedfwd.config import overrides, parse
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.errors import ConfigError, FeedfwdError
from feedfwd.recipes import pretrain as recipe
from feedfwd.recipes.console import Silent
from feedfwd.recipes.export import export_run
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.recipes.pretrained import load_pretrained
from feedfwd.recipes.text import prepare_text

SMALL = ["data.row=32", "train.batch_size=4", "train.threads=1", "train.precision=fp32"]
SIZES = ["model.width=32", "model.depth=2", "model.heads=2", "ffn.hidden=48", "data.tokenizer=bytes"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that write and that fill in; models of Hugging Face's families; and two texts."""
    place = tmp_path_factory.mktemp("continued")
    (place / "a.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(400)))
    (place / "b.txt").write_text("".join(f"From {i} to {i + 1} goes the lift, {i % 5} at once.\n" for i in range(300)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEEDFWD_CACHE", str(place / "cache"))
        for objective in ("next", "masked"):
            pairs = [*SMALL, *SIZES, "train.steps=40", f"train.objective={objective}"]
            config = parse(PretrainConfig, {"sources": [str(place / "a.txt")], **overrides(pairs, PretrainConfig)})
            recipe.pretrain_config(config, place / objective)
    for family in ("bert", "gpt2", "llama"):
        folder(place / family, family)
    return place


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))


def config(bases: Path, base: str, *pairs: str, **said: Any) -> PretrainConfig:
    tree = overrides([*SMALL, "train.steps=40", *pairs], PretrainConfig)
    return parse(PretrainConfig, {"sources": [str(bases / "b.txt")], "pretrained": str(bases / base), **tree, **said})


@pytest.mark.parametrize("base", ["next", "masked", "bert", "gpt2", "llama"])
def test_a_model_learns_another_text_and_can_be_used_as_before(bases: Path, base: str) -> None:
    said = ["optimizer.lr=0.003"] if base in ("bert", "gpt2", "llama") else []
    made = recipe.pretrain_config(config(bases, base, *said), Path("run"))
    before, after = made.result["compared"]["before"]["loss"], made.result["validation"]["loss"]
    assert after < before - 0.05
    own, there = load_pretrained(str(bases / base)), load_pretrained("run")
    assert there.tokenizer.text == own.tokenizer.text and there.pooling == own.pooling
    assert there.tokenizer.encode(["a lift"], longest=9) == own.tokenizer.encode(["a lift"], longest=9)
    loaded = ff.load("run")
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(loaded.model(ids), made.model(ids)) and torch.equal(there.model(ids), made.model(ids))
    assert loaded.score(str(bases / "b.txt"))["loss"] < before
    if own.model.causal:
        assert loaded.complete(["From 1 to"], most=3)
    again = recipe.pretrain_config(config(bases, base, "train.steps=1").with_("pretrained", "run"), Path("again"))
    near = 0.2 if base in ("masked", "bert") else 1e-4
    assert again.result["compared"]["before"]["loss"] == pytest.approx(after, abs=near)


@pytest.mark.parametrize(("base", "kind"), [("bert", "AutoModelForMaskedLM"), ("gpt2", "AutoModelForCausalLM")])
def test_it_goes_back_to_where_it_came_from(bases: Path, base: str, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    made = recipe.pretrain_config(config(bases, base, "train.steps=3"), Path("run"))
    export_run(Path("run"), "hf", Path("out"), Silent())
    theirs = getattr(transformers, kind).from_pretrained("out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    ids = tokenizer("From 1 to 2", return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == load_pretrained("run").tokenizer.encode(["From 1 to 2"], longest=None)[0]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, made.model(ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters_train_alone_and_are_kept(bases: Path, method: str) -> None:
    made = recipe.pretrain_config(config(bases, "next", "optimizer.lr=0.01", method=method), Path("run"))
    assert made.result["validation"]["loss"] < made.result["compared"]["before"]["loss"] - 0.05
    assert Path("run/adapter.safetensors").is_file()
    before = load_pretrained(str(bases / "next")).model
    assert torch.equal(before.embedding.weight, made.model.embedding.weight)
    assert not [name for name in Run(Path("run")).load_model() if "lora" in name]
    export_run(Path("run"), "peft", Path("adapter"), Silent())
    text = Path("adapter/adapter_config.json").read_text()
    assert str(bases / "next") in text


def test_resuming_gives_the_same_bits(bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = recipe.pretrain_config(config(bases, "bert", "train.steps=6"), Path("whole"))
    original = recipe.Pretraining._log_step

    def killed(self: Any, step: Any, meter: Any) -> None:
        original(self, step, meter)
        if step.n == 4:
            self.save()
            raise Interrupted("killed", 2)

    monkeypatch.setattr(recipe.Pretraining, "_log_step", killed)
    with pytest.raises(Interrupted):
        recipe.pretrain_config(config(bases, "bert", "train.steps=6"), Path("cut"))
    monkeypatch.setattr(recipe.Pretraining, "_log_step", original)
    cut = recipe.resume(Path("cut"))
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert cut.result["compared"]["before"] == whole.result["compared"]["before"]


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ({"model": {"width": 64}}, "model.width=64 contradicts"),
        ({"model": {"depth": 2}, "ffn": {"hidden": 99}}, "ffn.hidden=99 contradicts"),
        ({"size": "nano"}, "--size nano"),
        ({"data": {"tokenizer": "chars"}}, "data.tokenizer=chars"),
        ({"data": {"vocabulary": 300}}, "data.vocabulary=300"),
        ({"train": {"objective": "masked"}}, "train.objective=masked contradicts"),
        ({"method": "lora", "adapt": {"targets": ["nothing"]}}, "nothing"),
    ],
    ids=str,
)
def test_what_contradicts_the_model_is_refused_and_both_are_named(
    bases: Path, pairs: dict[str, Any], named: str
) -> None:
    said = {"sources": [str(bases / "b.txt")], "pretrained": str(bases / "next"), **pairs}
    with pytest.raises(ConfigError) as error:
        prepare_text(parse(PretrainConfig, said), Silent())
    assert named in str(error.value) and ("adapt" in pairs or str(bases / "next") in str(error.value))


def test_positions_that_were_learned_end_somewhere(bases: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.row=128 is longer than the 64 positions"):
        prepare_text(config(bases, "gpt2", "data.row=128"), Silent())
    assert prepare_text(config(bases, "llama", "data.row=128"), Silent()).model.context == 128


def test_a_smaller_rate_risen_to_anew(bases: Path) -> None:
    base = parse(PretrainConfig, Run.open(bases / "next").settings())
    found = prepare_text(config(bases, "next"), Silent()).config
    assert base.optimizer.lr is not None and found.optimizer.lr == pytest.approx(0.5 * base.optimizer.lr)
    assert found.optimizer.name == base.optimizer.name and (found.schedule.warmup or 0) > 0.02
    assert prepare_text(config(bases, "llama"), Silent()).config.optimizer.name == "adamw"


def test_the_commands(bases: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*argv: str) -> int:
        monkeypatch.setattr(sys, "argv", ["feedfwd", *argv])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    sets = [word for pair in [*SMALL, "train.steps=2"] for word in ("--set", pair)]
    source, base = str(bases / "b.txt"), str(bases / "next")
    Path("t.jsonl").write_text("".join(json.dumps({"n": i, "body": f"{i} goes up."}) + "\n" for i in range(200)))
    assert call("pretrain", source, "--from", base, "--run", "one", *sets) == 0
    said = capsys.readouterr().out
    assert "before: held-out" in said and "its own tokenizer" in said and f"from {base}" in said
    assert (
        call("finetune", "t.jsonl", "--task", "continue", "--text", "body", "--from", base, "--run", "two", *sets) == 0
    )
    repeat = ff.load("two").result["command"]
    assert "--from" in repeat and "model." not in repeat.replace("data.tokenizer", "") and "tokenizer" not in repeat
    assert call("generate", "two", "1 goes", "--tokens", "3") == 0
    assert call("info", "two") == 0
    capsys.readouterr()
    for argv, said in (
        (["pretrain", "--resume", "one", "--from", base], "leave one out"),
        (["pretrain", "--resume", "one"], "pretrain SOURCE --from one"),
        (["finetune", source, "--task", "continue"], "--from"),
        (["finetune", "--task", "continue", "--from", base], "no DATA"),
        (["finetune", source, "--task", "continue", "--from", base, "--shots", "2"], "--shots"),
        (["pretrain", source, "--from", "nothing"], "neither a run"),
        (["pretrain", source, "--method", "lora"], "--from"),
    ):
        assert call(*argv) == 2, argv
        error = capsys.readouterr().err.strip()
        assert said in error and "\n" not in error, (argv, error)


def test_a_classifier_is_no_model_of_tokens(bases: Path) -> None:
    from feedfwd.interop.huggingface import export
    from feedfwd.models.transformer import build

    own = load_pretrained(str(bases / "bert"))
    model = build(own.settings | {"head": "classes", "classes": 3, "pooler": True})
    export(model, Path("classes"), tokenizer=own.tokenizer.text, end=256, pad=256)
    with pytest.raises(FeedfwdError, match="classifies texts"):
        prepare_text(config(bases, "bert").with_("pretrained", "classes"), Silent())
