"""Studies from end to end, on scikit-learn's small data sets."""

import json
import os
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from feedfwd.cli import app
from feedfwd.config import FitConfig, parse
from feedfwd.errors import ConfigError, FeedfwdError, TrainingError
from feedfwd.recipes.console import Silent
from feedfwd.recipes.fit import Fitting
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.recipes.prepare import prepare
from feedfwd.study import compare as study
from feedfwd.study.compare import compare, planned, resume
from feedfwd.study.plan import Plan
from feedfwd.study.trainings import Fit

BASE: dict[str, Any] = {
    "source": "iris",
    "train": {"epochs": 3.0, "batch_size": 32},
    "optimizer": {"lr": 0.01},
    "model": {"hidden": [16]},
}


def iris(vary: list[str], seeds: int = 2, **options: Any) -> Plan:
    return planned(BASE, vary, seeds=seeds, **options)


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_study_leaves_everything(tmp_path: Path) -> None:
    heard = Heard()
    plan = iris(["ffn.activation=relu,tanh", "model.hidden=[8],[16]"])
    found = compare(plan, heard, tmp_path / "s", workers=1)
    result = json.loads((tmp_path / "s/result.json").read_text())
    assert len(result["variants"]) == 4 and all(len(v["seeds"]) == 2 for v in result["variants"])
    assert result["best"] == found.best and result["test_n"] == 30
    winner = tomllib.loads((tmp_path / "s/winner.toml").read_text())
    assert parse(FitConfig, winner).ffn.activation in found.best
    assert "validation" not in winner.get("data", {}), "what only the study needed is no part of the winner"
    assert "digits" not in (page := (tmp_path / "s/report.html").read_text()) and found.best in page
    assert any(line.startswith("best: ") for line in heard.lines)
    assert (tmp_path / "s/winner/model.safetensors").is_file()


def test_variants_see_the_same_splits_and_never_the_test_part() -> None:
    plan = iris(["ffn.activation=relu,tanh"])
    parts = {
        (variant["ffn.activation"], seed): prepare(plan.trial_config(variant, seed))  # type: ignore[arg-type]
        for variant in plan.queue
        if variant is not None
        for seed in plan.seeds
    }
    rows = {
        key: [part.data.rows.tolist() for part in (p.train, p.validation, p.test)]
        for key, p in parts.items()
        if p.validation
    }
    assert rows["relu", 0] == rows["tanh", 0] and rows["relu", 1] == rows["tanh", 1]
    assert rows["relu", 0][1] != rows["relu", 1][1], "each seed holds other examples back"
    tests = {tuple(r[2]) for r in rows.values()}
    assert len(tests) == 1, "one test part for all seeds"


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, int]] = []
    run, stop_at = Fit.run, 3

    def counted(self: Fit, config: Any, folder: Path, watch: Any) -> Any:
        if len(trained) == stop_at:
            raise Interrupted("stopped", 2)
        trained.append((config.ffn.activation, config.seed))
        return run(self, config, folder, watch)

    monkeypatch.setattr(Fit, "run", counted)
    with pytest.raises(Interrupted, match="--resume"):
        compare(iris(["ffn.activation=relu,tanh"]), None, tmp_path / "s", workers=1)
    assert not (tmp_path / "s/result.json").exists()
    stop_at = 99
    resume(tmp_path / "s")
    assert sorted(trained) == [("relu", 0), ("relu", 1), ("tanh", 0), ("tanh", 1)]


def test_the_test_part_is_opened_once_whoever_asks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tested: list[Path] = []
    finish = Fitting._finish

    def counted(self: Fitting) -> Any:
        tested.append(self.run.path)
        return finish(self)

    monkeypatch.setattr(Fitting, "_finish", counted)
    url = f"sqlite:///{tmp_path / 'both.db'}"
    plan = iris(["ffn.activation=relu,tanh"])
    first = compare(plan, None, tmp_path / "a", storage=url, workers=1)
    for again in (resume(tmp_path / "a"), compare(plan, None, tmp_path / "b", storage=url, workers=1)):
        assert again.test == first.test and again.test_n == first.test_n and again.details == first.details
    assert tested == [tmp_path / "a/winner"] and not (tmp_path / "b/winner").exists()


@pytest.mark.parametrize("at", ["training", "scoring"])
def test_a_stop_at_the_winner_tells_of_the_study_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    log = Fitting._log_step

    def stopped(self: Fitting, step: Any, meter: Any) -> None:
        log(self, step, meter)
        if self.run.path.name == "winner" and step.n == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    if at == "training":
        monkeypatch.setattr(Fitting, "_log_step", stopped)
    else:
        monkeypatch.setattr(Fitting, "_finish", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped; go on with: feedfwd compare --resume ") as stop:
        compare(iris(["ffn.activation=relu,tanh"]), None, tmp_path / "s", workers=1)
    assert stop.value.code == 143
    monkeypatch.undo()
    heard = Heard()
    assert resume(tmp_path / "s", heard).test_n == 30
    assert sorted(p.name for p in (tmp_path / "s").glob("winner*")) == ["winner", "winner.toml"]


def test_a_stop_before_the_first_training_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "checked", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="give the command again"):
        compare(iris(["ffn.activation=relu,tanh"]), None, tmp_path / "s", workers=1)
    assert not (tmp_path / "s").exists()


def test_a_study_stopped_while_it_was_queued_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study.Shared, "begin", lambda *a, **k: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="feedfwd compare --resume"):
        compare(iris(["ffn.activation=relu,tanh"]), None, tmp_path / "s", workers=1)
    monkeypatch.undo()
    assert len(resume(tmp_path / "s", workers=1).done) == 2


def test_a_failing_variant_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    heard = Heard()
    found = compare(iris(["optimizer.lr=0.01,1e30", "optimizer.name=sgd"]), heard, tmp_path / "s", workers=1)
    assert found.best == "lr=0.01"
    assert any("failed" in line and "finite" in line for line in heard.lines)


def test_all_failing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="every variant failed"):
        compare(iris(["optimizer.lr=1e30,1e31", "optimizer.name=sgd"]), None, tmp_path / "s", workers=1)


def test_searches_choose_within_the_space(tmp_path: Path) -> None:
    plan = iris(["optimizer.lr=0.001..0.1", "ffn.activation=relu,tanh"], search="halving", trials=6)
    found = compare(plan, None, tmp_path / "s", workers=1)
    assert len(found.rows) == 6
    assert all(0.001 <= row.changes["optimizer.lr"] <= 0.1 for row in found.rows if row.changes)


@pytest.mark.parametrize("by", ["parameters", "flops"])
def test_widths_are_solved_for(by: str) -> None:
    plan = planned(BASE | {"model": {"hidden": [64, 64]}}, ["ffn.activation=relu,swiglu"], seeds=2, match=by)
    cost = [plan.training.check(plan.trial_config(v, 0)) for v in plan.queue if v is not None]
    numbers = [c.parameters if by == "parameters" else c.flops for c in cost]
    assert numbers[1] == pytest.approx(numbers[0], rel=0.01)
    assert plan.changes(plan.queue[1])["model.hidden"][0] < 64  # type: ignore[arg-type]


def test_the_command_asks_the_same_again() -> None:
    plan = iris(["model.hidden=[8],[16, 16]", "ffn.activation=relu,gelu"])
    assert "--vary 'model.hidden=[8],[16, 16]'" in study.command(plan)


@pytest.mark.slow
def test_several_processes_share_the_work(tmp_path: Path) -> None:
    found = compare(iris(["ffn.activation=relu,tanh,gelu"]), None, tmp_path / "s", workers=2)
    assert len(found.done) == 3


BAD = {
    "unknown key": (["ffn.activatio=relu,gelu"], {}, "did you mean 'ffn.activation'"),
    "bad value": (["train.batch_size=16,none"], {}, "train.batch_size"),
    "bad word": (["model.norm=layer,lair"], {}, "model.norm"),
    "one value": (["ffn.activation=relu"], {}, "at least two"),
    "no value": (["ffn.activation="], {}, "names nothing"),
    "no key": (["relu,gelu"], {}, "names nothing"),
    "nothing": ([], {}, "nothing to compare"),
    "twice": (["ffn.activation=relu,relu"], {}, "twice"),
    "key twice": (["ffn.activation=relu,gelu", "ffn.activation=tanh,elu"], {}, "given twice"),
    "the seed": (["seed=1,2"], {}, "can't be varied"),
    "the split": (["data.validation=0.1,0.2"], {}, "can't be varied"),
    "a range in a grid": (["optimizer.lr=0.001..0.1"], {}, "--search"),
    "an empty range": (["optimizer.lr=0.1..0.001"], {"search": "tpe"}, "no range"),
    "one seed": (["ffn.activation=relu,gelu"], {"seeds": 1}, "--seeds"),
    "unknown search": (["ffn.activation=relu,gelu"], {"search": "gird"}, "did you mean 'grid'"),
    "unknown match": (["ffn.activation=relu,gelu"], {"match": "flop"}, "did you mean 'flops'"),
    "unknown verb": (["ffn.activation=relu,gelu"], {"verb": "fitt"}, "did you mean 'fit'"),
    "trials of a grid": (["ffn.activation=relu,gelu"], {"trials": 5}, "--trials"),
    "unknown score": (["ffn.activation=relu,gelu"], {"score": "acuracy"}, "did you mean 'accuracy'"),
    "unknown activation": (["ffn.activation=relu,gellu"], {}, "did you mean 'gelu'"),
    "no validation": (["ffn.activation=relu,gelu"], {"base": {"data": {"validation": 0}}}, "nothing to decide by"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_asked_is_said_before_the_first_trial(case: str) -> None:
    vary, options, says = BAD[case]
    with pytest.raises(FeedfwdError, match=says):
        options = dict(options)
        base = BASE | options.pop("base", {})
        list(planned(base, vary, **{"seeds": 2, **options}).checked()[0].queue)


def test_an_unreadable_storage_and_no_study(tmp_path: Path) -> None:
    with pytest.raises(FeedfwdError, match="storage"):
        compare(iris(["ffn.activation=relu,gelu"]), None, tmp_path / "s", storage="nonsense://x")
    with pytest.raises(FeedfwdError, match="no study"):
        resume(tmp_path)


def test_the_command_line(tmp_path: Path) -> None:
    arguments = ["compare", "iris", "--vary", "ffn.activation=relu,tanh", "--seeds", "2", "--set", "train.epochs=2"]
    done = CliRunner().invoke(app, [*arguments, "--dry-run", "--workers", "1"])
    assert done.exit_code == 0 and "in all with 1 at a time" in done.output, done.output
    with pytest.raises(ConfigError, match="no SOURCE"):
        CliRunner().invoke(app, ["compare", "--vary", "ffn.activation=relu,tanh"], catch_exceptions=False)
