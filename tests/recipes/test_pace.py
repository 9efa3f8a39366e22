"""The size and the updates that minutes choose, with made-up speeds, and plans that are kept."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from feedfwd.checkpoint import Run
from feedfwd.config import overrides, parse
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.models.sizes import SIZES
from feedfwd.recipes import pace as module
from feedfwd.recipes import text
from feedfwd.recipes.console import Silent
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.recipes.pace import Pace, again_at, replanned
from feedfwd.recipes.pretrain import Pretraining, pretrain_config, resume
from feedfwd.recipes.say_text import cost
from feedfwd.recipes.text import PreparedText, prepare_text, preset, shape, suited, too_short
from feedfwd.train.schedules import build_schedule

SMALL = ["model.width=16", "model.depth=1", "model.heads=2", "ffn.hidden=32", "data.tokenizer=bytes", "data.row=16"]


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
    Path("text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300)))


def config(*settings: str, **more: object) -> PretrainConfig:
    return parse(PretrainConfig, {"sources": ["text.txt"], **overrides(settings, PretrainConfig), **more})


# --- the size ---------------------------------------------------------------------------------------------------------


class Machine:
    """Does so many FLOPs a second, times what it does of larger networks' (nano's ones are 1), and counts trials."""

    def __init__(self, flops: float, better: float = 1.0) -> None:
        self.flops, self.better, self.tried = flops, better, list[str]()

    def __call__(self, p: PreparedText) -> float:
        self.tried.append(p.config.size or "own")
        rate = self.flops * self.better ** list(SIZES).index(p.config.size or "pico")
        return p.flops_per_token * p.tokens_per_update / rate


def chosen(machine: Machine, monkeypatch: pytest.MonkeyPatch, *settings: str, minutes: float = 10) -> PreparedText:
    monkeypatch.setattr(text, "tried", machine)
    return prepare_text(config("data.tokenizer=bytes", *settings, minutes=minutes), Silent())


def tokens_seen(p: PreparedText, flops: float, minutes: float = 10) -> float:
    return flops * 60 * minutes * (1 - text.RESERVE) / p.flops_per_token


@pytest.mark.parametrize(("flops", "size"), [(1e6, "pico"), (1e11, "nano"), (3e12, "tiny")])
def test_the_minutes_choose_the_largest_size_that_sees_three_tokens_a_parameter(
    flops: float, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = chosen(Machine(flops), monkeypatch)
    assert p.config.size == size and p.suited
    larger = list(SIZES)[list(SIZES).index(size) + 1]
    above = prepare_text(config("data.tokenizer=bytes", size=larger), Silent())
    assert tokens_seen(above, flops) < text.ENOUGH * above.model.parameter_count
    if size != "pico":
        assert tokens_seen(p, flops) >= text.ENOUGH * p.model.parameter_count


def test_sizes_that_could_not_do_it_at_twice_the_rate_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(1e6)
    assert chosen(machine, monkeypatch).config.size == "pico" and machine.tried == ["pico"]
    faster = Machine(1.6e10, better=1.9)  # nano would not do it at pico's rate
    assert chosen(faster, monkeypatch).config.size == "nano" and faster.tried[:2] == ["pico", "nano"]


@pytest.mark.parametrize("own", [["size=tiny"], ["model.width=64"], ["model.depth=3"]])
def test_a_size_of_ones_own_is_kept(own: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(1e6)
    p = chosen(machine, monkeypatch, *own)
    assert len(machine.tried) == 1 and not p.suited
    assert p.config.size == ("tiny" if own == ["size=tiny"] else text.SIZE_OF["standard"])


def test_only_a_size_of_ones_own_is_said_to_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, own = (replace(chosen(Machine(1e11), monkeypatch, *sets), config=fixed) for sets, fixed in (
        ([], config("train.steps=100", "data.tokenizer=bytes")),
        (["size=tiny"], config("train.steps=100", "data.tokenizer=bytes", size="tiny")),
    ))  # fmt: skip
    assert too_short(ours) == []
    assert "--size pico would suit it better" in too_short(own)[0]


def test_minutes_too_few_for_ones_own_size_are_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    own, ours = (chosen(Machine(1e11), monkeypatch, *sets) for sets in (["size=tiny"], []))
    said = cost(own, per_step=1.0, memory=0)
    assert "--size pico would suit it better" in said[1] and "note: " in said[1]
    assert len(cost(own, per_step=1e-4, memory=0)) == len(cost(ours, per_step=1.0, memory=0)) == 1


def test_suited_tells_how_many_tokens_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    c = config("data.tokenizer=bytes", minutes=10)
    monkeypatch.setattr(text, "tried", Machine(1e11))
    p = prepare_text(c.over({"size": "nano"}), Silent())
    name, seen = suited(c, lambda config: replace(p, config=config))
    assert seen == pytest.approx(tokens_seen(p, 1e11)) and name is not None


# --- the preset -------------------------------------------------------------------------------------------------------


def preset_of(tokens: int, seen: float | None, *settings: str, **more: object) -> dict[str, object]:
    c = config(*settings, **more)
    return preset(c, tokens, shape(c), seen)


def test_a_preset_follows_the_tokens_seen() -> None:
    few, many = preset_of(10**6, 5e5, minutes=1), preset_of(10**6, 5e6, minutes=1)
    assert few["data.row"] == 64 and few["train.batch_size"] == 16 and few["optimizer.lr"] == 2 * many["optimizer.lr"]
    assert not {"data.row", "train.batch_size", "train.steps"} & many.keys()
    assert "model.dropout" not in many and preset_of(10**6, 9.5e6, minutes=1)["model.dropout"] == 0.1
    assert "train.batch_size" not in preset_of(10**6, 9.5e6, minutes=1), "of a text seen often batches stay small"
    rows = [preset_of(10**9, seen, minutes=9).get("train.batch_size") for seen in (5e6, 7.9e6, 8.1e6, 5e7, 1e9)]
    assert rows == [None, None, 16, 32, 128], "twice the rows for four times the tokens"
    longer = preset_of(10**9, 5e7, "data.row=512", minutes=9), preset_of(10**9, 5e7, "train.accumulate=4", minutes=9)
    assert longer[0]["train.batch_size"] == 16 and "train.batch_size" not in longer[1], "a batch's tokens count"
    unknown = preset_of(10**6, None, minutes=1)
    assert not {"data.row", "model.dropout", "train.steps"} & unknown.keys()


def test_without_minutes_the_effort_gives_the_updates_and_at_most_ten_epochs() -> None:
    assert preset_of(10**8, None, effort="best")["train.steps"] == text.UPDATES_OF["best"]
    short = preset_of(20_480, None, effort="best")
    assert short["train.steps"] == 100 and short["model.dropout"] == 0.1 and "data.row" not in short
    assert "model.dropout" not in preset_of(20_480, None, "train.steps=10", effort="best"), "one epoch"


def test_wider_networks_learn_more_slowly_unless_their_start_says_how() -> None:
    nano, small = (preset_of(10**6, 5e6, size=size)["optimizer.lr"] for size in ("nano", "small"))
    assert nano == 0.006 and small == pytest.approx(0.006 / 3**0.5)
    assert preset_of(10**6, 5e6, "ffn.init=mup", size="small")["optimizer.lr"] == 0.006


# --- the plan ---------------------------------------------------------------------------------------------------------


def rates(c: PretrainConfig) -> list[float]:
    assert c.train.steps is not None
    schedule = build_schedule(total=c.train.steps, **c.schedule.model_dump())
    return [schedule(n) for n in range(c.train.steps)]


@pytest.mark.parametrize("more", [1, 30, 60, 61, 400])
@pytest.mark.parametrize("name", ["warmup_stable_decay", "constant"])
def test_a_new_plan_changes_no_rate_that_was_and_jumps_nowhere(name: str, more: int) -> None:
    c = config(f"schedule.name={name}", "schedule.warmup=0.02", "schedule.decay=0.5", "train.steps=150")
    at = again_at(c)
    assert at == 60
    anew = replanned(c, at, more)
    assert anew.train.steps == at + more
    before, after = rates(c), rates(anew)
    assert after[:at] == before[:at] and after[at] == 1
    falling = min(more, round((at + more) / 2)) if name == "warmup_stable_decay" else 1
    assert after[-1] == pytest.approx(1 / falling)
    assert all(0 <= a - b < 1 / falling + 1e-9 for a, b in pairwise(after[at:]))


@pytest.mark.parametrize(
    ("settings", "at"),
    [
        (["schedule.name=cosine"], None),
        (["schedule.name=warmup_stable_decay", "schedule.decay=0.8"], 200),
        (["schedule.name=warmup_stable_decay", "schedule.decay=0.2"], 400),
        (["schedule.name=warmup_stable_decay", "schedule.decay=0.3", "schedule.warmup=0.6"], None),
        (["schedule.name=constant", "train.steps=40"], None),
    ],
)
def test_where_the_plan_is_made_again(settings: list[str], at: int | None) -> None:
    assert again_at(config("train.steps=1000", *settings)) == at


def test_the_last_evaluation_takes_a_quarter_at_most() -> None:
    assert Pace(100, 0.1, 0.0, final=1000.0).updates(0, 1, 1) == 750
    assert Pace(100, 0.1, 0.0, final=1.0).updates(200, 1, 1) == 1


class Look(module.Look):
    """Takes a tenth of a second, as it says."""

    @classmethod
    def at(cls, p: PreparedText) -> "Look":
        return cls({"loss": 1.0, "perplexity": 2.0, "bits_per_byte": 1.0}, None, 0.1, 0.2)


class StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def say(self, text: str) -> None: ...

    def progress(self, step: int, total: int, text: str) -> None:
        if step >= self.step:
            self.step = 10**9
            raise Interrupted("stopped", 2)


TIMED = ["train.threads=1", "train.precision=fp32", "train.batch_size=2", "train.save_every=10", "optimizer.lr=0.01"]


def test_a_wrong_trial_is_made_up_for_and_what_was_decided_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial takes an update for five times as slow as it is."""
    monkeypatch.setattr(text, "tried", lambda p: 0.1)
    monkeypatch.setattr(module, "tried", lambda p: 0.1)
    monkeypatch.setattr(module, "Look", Look)
    monkeypatch.setattr("feedfwd.recipes.pretrain.Look", Look)
    monkeypatch.setattr("feedfwd.recipes.pretrain.statistics.fmean", lambda durations: 0.02)
    timed = config(*SMALL, *TIMED, minutes=0.25)
    writer = pretrain_config(timed, Path("whole"))
    settings = Run.open(Path("whole")).settings()
    steps = settings["train"]["steps"]
    assert "minutes" not in settings and steps == writer.result["steps"] and 300 < steps < 760
    events = [json.loads(line) for line in Path("whole/log.jsonl").read_text().splitlines()]
    (plan,) = (e for e in events if e["event"] == "plan")
    assert plan["steps"] == steps and 50 < plan["step"] < 60
    pretrain_config(parse(PretrainConfig, settings), Path("again"))
    assert Path("again/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


@pytest.mark.parametrize("at", [31, 91])
def test_an_interrupted_run_keeps_its_plan(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before or after the plan was made again, which takes place once."""
    monkeypatch.setattr(text, "tried", lambda p: 0.1)
    monkeypatch.setattr(module, "tried", lambda p: 0.1)
    monkeypatch.setattr(module, "Look", Look)
    monkeypatch.setattr("feedfwd.recipes.pretrain.Look", Look)
    asked: list[int] = []
    plan_again = Pretraining._plan_again

    def counted(self: Pretraining, durations: list[float]) -> None:
        asked.append(self.step)
        plan_again(self, [0.05] * 99)

    monkeypatch.setattr(Pretraining, "_plan_again", counted)
    with pytest.raises(Interrupted):
        pretrain_config(config(*SMALL, *TIMED, minutes=0.25), Path("run"), StopAt(at))
    before = Run.open(Path("run")).settings()["train"]["steps"]
    writer = resume(Path("run"))
    assert len(asked) == 1 and (before > 150) == (at == 91)
    if at == 91:
        assert writer.result["steps"] == before
    settings = Run.open(Path("run")).settings()
    pretrain_config(parse(PretrainConfig, settings), Path("again"))
    assert Path("again/model.safetensors").read_bytes() == Path("run/model.safetensors").read_bytes()
