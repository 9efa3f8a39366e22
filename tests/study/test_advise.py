"""Advice: what is open and refused, that the defaults stay where nothing is better, and that a kill loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from feedfwd.cli import app
from feedfwd.config import FitConfig, parse
from feedfwd.errors import ConfigError, FeedfwdError, RunError, TrainingError
from feedfwd.recipes.console import Silent
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.study import advise as module
from feedfwd.study import compare
from feedfwd.study.advise import advise, planned, resume
from feedfwd.study.choices import choices, in_turn
from feedfwd.study.shared import Shared
from feedfwd.study.trainings import Fit, Outcome, beside, example_losses

BASE: dict[str, Any] = {"source": "iris", "effort": "quick", "optimizer": {"lr": 0.01}, "model": {"hidden": [8]}}

END_AT = Shared.end_at


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Trainings that take no time: accuracy 0.8, some luck of the split, and what these settings are worth."""
    worth: dict[str, float] = {}

    def run(self: Fit, config: FitConfig, folder: Path, watch: Any) -> Outcome:
        split = np.random.default_rng(config.seed)
        own = np.random.default_rng([config.seed, sum(map(ord, config.to_toml()))])
        gain = sum(by for setting, by in worth.items() if setting in config.to_toml())
        if np.isnan(gain):
            raise TrainingError("the loss is not finite")
        accuracy = 0.8 + 0.05 * split.normal() + 0.005 * own.normal() + gain
        return Outcome({"accuracy": accuracy}, [(1.0, {"accuracy": accuracy})], 0.01, 100, 200, 10)

    monkeypatch.setattr(Fit, "run", run)
    monkeypatch.setattr(Fit, "seconds", lambda self, config: 0.01)
    monkeypatch.setattr(module, "SEEDS", (3, 4))
    monkeypatch.setattr(Shared, "end_at", lambda self, until: None)  # a busy machine changes nothing
    return worth


def test_what_was_said_is_settled() -> None:
    config = FitConfig(source="iris")
    names = {choice.name for choice in choices({"ffn": {"activation": "relu"}, "source": "iris"}, config, table=False)}
    assert "activation" not in names and "structure" in names and "numbers" not in names
    assert "numbers" in {choice.name for choice in choices({}, config, table=True)}


@pytest.mark.parametrize("table", [False, True])
def test_every_change_is_one_and_near_the_defaults(table: bool) -> None:
    config = parse(FitConfig, {"source": "iris", "ffn": {"activation": "gelu"}, "optimizer": {"lr": 0.004}})
    levels = in_turn(choices({}, config, table=table))
    assert "gelu" not in levels and {"rate 0.008", "rate 0.002", "20 epochs"} <= levels.keys()
    for of in levels.values():
        changed = config
        for key, value in of.items():
            changed = changed.with_(key, value)
        assert changed != config
    first = list(levels)[: 8 + table]
    assert len({choice.name for choice in choices({}, config, table=table)}) == len(first)
    kinds = {level: choice.name for choice in choices({}, config, table=table) for level in choice.levels}
    assert len({kinds[level] for level in first}) == len(first), "one of each choice comes first"


def test_images_have_choices_too(pretended: dict[str, float]) -> None:
    question, lines = planned({"source": "digits", "effort": "quick"}, 1.0, workers=1)
    assert {"structure", "activation", "norm", "dropout"} <= set(question.kinds.values())
    assert "numbers" not in question.kinds.values() and "held back from the training part" in lines


def test_nothing_better_keeps_the_defaults(pretended: dict[str, float], tmp_path: Path) -> None:
    heard = Heard()
    found = advise(BASE, 0.1, heard, tmp_path / "a", workers=1)
    assert found.label == "the defaults" and found.changes == {}
    assert parse(FitConfig, tomllib.loads(found.path.read_text())) == parse(FitConfig, BASE)
    assert any(line.startswith("how sure: n") for line in heard.lines)
    assert not (tmp_path / "a/advised").exists(), "the test part is opened for the defaults alone"


def test_what_is_better_is_found_and_checked_on_fresh_seeds(pretended: dict[str, float], tmp_path: Path) -> None:
    pretended['activation = "tanh"'] = 0.06
    pretended["dropout = 0.4"] = 0.04
    found = advise(BASE, 0.3, None, tmp_path / "a", workers=1)
    assert found.changes["ffn.activation"] == "tanh" and found.changes["ffn.dropout"] == 0.4
    assert found.advised is not None and found.advised.p < 0.05
    assert found.check is not None and not set(found.check.seeds) & set(found.plan.seeds)
    worth = {w.label: w.mean for w in found.worths}
    assert worth["tanh"] == pytest.approx(0.06, abs=0.02) and abs(worth["silu"]) < 0.02
    result = json.loads((tmp_path / "a/result.json").read_text())
    assert result["best"] == found.label and result["gain"]["gain"]["low"] > 0
    assert result["test"].keys() == {"defaults", "advised"} and result["test_gain"] is not None
    page = (tmp_path / "a/report.html").read_text()
    assert found.label in page and "Each change alone" in page and 'activation = "tanh"' in page.replace("&#34;", '"')


def test_what_was_not_tried_is_said(
    pretended: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Shared, "end_at", END_AT)
    monkeypatch.setattr(module, "SEARCH", 1e-9)
    heard = Heard()
    question, _ = planned(BASE, 0.05, workers=1)
    monkeypatch.setattr(module, "planned", lambda *args, **options: (question, "late"))
    found = advise(BASE, 0.05, heard, tmp_path / "a", workers=1)
    assert found.label == "the defaults" and found.defaults.state == "done"
    assert any(line.startswith("not tried, the time was over: ") and "gelu" in line for line in heard.lines)
    assert "how sure: none of 0 changes looked better than the defaults" in heard.lines


def test_a_change_that_fails_is_said_and_the_rest_goes_on(pretended: dict[str, float], tmp_path: Path) -> None:
    pretended['activation = "swiglu"'] = np.nan
    heard = Heard()
    found = advise(BASE, 0.3, heard, tmp_path / "a", workers=1)
    assert any("swiglu failed (the loss is not finite)" in line for line in heard.lines)
    assert sum(w.gain is not None for w in found.worths) > 5
    pretended["seed"] = np.nan
    with pytest.raises(TrainingError, match="not finite"):
        advise(BASE, 0.1, None, tmp_path / "b", workers=1)


def test_what_is_done_is_not_done_again(
    pretended: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretended['activation = "tanh"'] = 0.06
    run, done, stop_at = Fit.run, [], 30

    def counted(self: Fit, config: FitConfig, folder: Path, watch: Any) -> Outcome:
        if len(done) == stop_at:
            raise Interrupted("stopped", 2)
        outcome = run(self, config, folder, watch)
        done.append(json.dumps(config.said()))
        return outcome

    monkeypatch.setattr(Fit, "run", counted)
    with pytest.raises(Interrupted, match="feedfwd advise --resume"):
        advise(BASE, 0.3, None, tmp_path / "a", workers=1)
    assert not (tmp_path / "a/result.json").exists()
    with pytest.raises(RunError, match="is advice"):
        compare.resume(tmp_path / "a")
    stop_at = -1
    found = resume(tmp_path / "a")
    assert found.changes["ffn.activation"] == "tanh"
    assert len(done) == len(set(done))
    trained = len(done)
    assert resume(tmp_path / "a").label == found.label and len(done) == trained, "nothing is left to do"


BAD = {
    "no time": ({}, 0.0, "no time"),
    "too short": ({}, 1e-4, "too short"),
    "nothing known": ({"source": "irs"}, 1.0, "irs"),
    "bad setting": ({"ffn": {"activation": "rellu"}}, 1.0, "did you mean 'relu'"),
    "no validation": ({"data": {"validation": 0.0}}, 1.0, "nothing to decide by"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_asked_is_said_before_the_first_training(case: str) -> None:
    base, minutes, says = BAD[case]
    with pytest.raises(FeedfwdError, match=says):
        planned(BASE | base, minutes)


def test_nothing_open() -> None:
    settled: dict[str, dict[str, Any]] = {}
    for of in in_turn(choices({}, parse(FitConfig, BASE), table=True)).values():
        for key, value in of.items():
            section, name = key.split(".")
            settled.setdefault(section, {})[name] = value
    with pytest.raises(ConfigError, match="settled"):
        planned({"source": "iris", **settled}, 1)


def test_nothing_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing to go on with"):
        resume(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        resume(tmp_path)


def test_scores_of_two_runs_are_paired_by_example(tmp_path: Path) -> None:
    from feedfwd.recipes.fit import fit_config

    base = parse(FitConfig, {**BASE, "source": "diabetes", "train": {"epochs": 2.0}})
    results = [fit_config(base.with_("ffn.activation", a), tmp_path / a).result for a in ("relu", "tanh")]
    for score in ("rmse", "mae"):
        found = beside(tmp_path / "relu", tmp_path / "tanh", score)
        assert found is not None
        assert found.mean == pytest.approx(results[1]["test"][score] - results[0]["test"][score], rel=1e-4)
        assert found.low < found.mean < found.high and found.n == 88
    assert example_losses("auroc", np.zeros((2, 2)), np.zeros(2, int)) is None


def test_the_command_line(pretended: dict[str, float], tmp_path: Path) -> None:
    """Advice is a file that `fit --config` takes."""
    arguments = ["advise", "iris", "--effort", "quick", "--minutes", "0.05", "--workers", "1", "--run"]
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "a")])
    assert done.exit_code == 0 and "use: the defaults" in done.output, done.output
    config = str(tmp_path / "a/advice.toml")
    trained = CliRunner().invoke(app, ["fit", "--config", config, "--run", str(tmp_path / "b")])
    assert trained.exit_code == 0 and (tmp_path / "b/model.safetensors").is_file(), trained.output
    with pytest.raises(ConfigError, match="no SOURCE"):
        CliRunner().invoke(app, ["advise"], catch_exceptions=False)


@pytest.mark.slow
@pytest.mark.parametrize("after", [4.0, 9.0])
def test_a_kill_loses_only_what_was_in_work(tmp_path: Path, after: float) -> None:
    command = [sys.executable, "-m", "feedfwd.cli", "advise", "wine", "--effort", "quick", "--minutes", "0.4"]
    began = subprocess.Popen([*command, "--run", str(tmp_path / "a")], start_new_session=True)
    end = time.monotonic() + after
    while time.monotonic() < end or not (tmp_path / "a/study.json").exists():
        time.sleep(0.1)
    os.killpg(began.pid, signal.SIGKILL)
    began.wait()
    found = resume(tmp_path / "a")
    assert found.defaults.state == "done" and found.path.is_file()
    assert (tmp_path / "a/report.html").is_file()


@pytest.mark.slow
def test_a_table_from_end_to_end(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, colour = rng.normal(size=400), rng.choice(["red", "green"], 400)
    y = np.where(x * np.where(colour == "red", 1, -1) + 0.5 * rng.normal(size=400) > 0, "yes", "no")
    rows = "\n".join(f"{a:.4f},{c},{t}" for a, c, t in zip(x, colour, y, strict=True))
    (tmp_path / "t.csv").write_text("x,colour,answer\n" + rows)
    base = {"source": str(tmp_path / "t.csv"), "target": ["answer"], "effort": "quick"}
    found = advise(base, 0.4, None, tmp_path / "a", workers=2)
    assert {"structure", "numbers"} <= {w.choice for w in found.worths}
    assert parse(FitConfig, tomllib.loads(found.path.read_text())).target == ["answer"]
