"""ffn.init=mup through the recipes: rates reach the optimizer, resuming is exact, the fast path says why not."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from feedfwd.config import FitConfig, Recipe, overrides, parse
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.recipes import fit, pretrain
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.recipes.prepare import optimizer_for, prepare
from feedfwd.recipes.say import overview
from feedfwd.recipes.text import prepare_text

MUP = ["ffn.init=mup", "model.base_width=16", "train.threads=1", "train.save_every=5"]
FIT = [*MUP, "model.hidden=[64,32]", "optimizer.lr=0.01", "optimizer.weight_decay=0.1", "train.steps=30"]
TEXT = [
    *MUP,
    "model.width=32",
    "model.depth=1",
    "model.heads=2",
    "ffn.hidden=64",
    "data.tokenizer=bytes",
    "data.row=16",
    "train.batch_size=4",
    "train.steps=20",
]


class StopAt:
    """A listener that asks this process to stop, as Ctrl-C would, once training has reached a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def say(self, text: str) -> None: ...

    def progress(self, step: int, total: int, text: str) -> None:
        if step >= self.step:
            self.step = 10**9
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
    Path("text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300)))


def settings(verb: str, *more: str) -> Any:
    if verb == "fit":
        return parse(FitConfig, {"source": "digits", **overrides([*FIT, *more])})
    return parse(PretrainConfig, {"sources": ["text.txt"], **overrides([*TEXT, *more], PretrainConfig)})


@pytest.mark.parametrize(("verb", "optimizer"), [("fit", "adamw"), ("fit", "sgd"), ("pretrain", "muon")])
def test_resuming_gives_the_same_bits(verb: str, optimizer: str) -> None:
    config: Recipe = settings(verb, f"optimizer.name={optimizer}")
    recipe: Any = fit if verb == "fit" else pretrain
    start = recipe.fit_config if verb == "fit" else recipe.pretrain_config
    start(config, Path("whole"))
    with pytest.raises(Interrupted):
        start(config, Path("parts"), StopAt(12))
    recipe.resume(Path("parts"))
    assert Path("parts/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    start(config.with_("ffn.init", "auto"), Path("auto"))
    assert Path("auto/model.safetensors").read_bytes() != Path("whole/model.safetensors").read_bytes()


def test_the_rates_of_a_fit_and_why_it_is_not_the_fast_path() -> None:
    prepared = prepare(settings("fit", "optimizer.name=adamw"))
    rates = {g["lr"] for g in optimizer_for(prepared.model, prepared.config, 0.01).param_groups}
    assert rates == {0.01, 0.01 / 4, 0.01 / 2}  # pixels -> 64, 64 -> 32, 32 -> digits
    said = "\n".join(overview(prepared))
    assert "autograd (mup gives each matrix a rate of its own)" in said and "init mup" in said


def test_a_language_model_s_rate_does_not_depend_on_its_width() -> None:
    quiet = StopAt(10**9)
    for width in (32, 1024):
        config = settings("pretrain", f"model.width={width}", "model.base_width=256")
        prepared = prepare_text(config, quiet)
        assert prepared.config.optimizer.lr == pytest.approx(rate := 0.006 * (128 / 256) ** 0.5)
        assert prepared.optimizer().param_groups[-1]["lr"] == pytest.approx(rate * 256 / width)  # the last norm's
    plain = prepare_text(settings("pretrain", "model.width=1024", "ffn.init=auto"), quiet).config
    assert plain.optimizer.lr == pytest.approx(0.006 * (128 / 1024) ** 0.5)
