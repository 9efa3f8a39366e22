"""Interrupted and resumed, a run ends in the same bits as one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from feedfwd.checkpoint import Run
from feedfwd.cli import app
from feedfwd.config import FitConfig, overrides, parse
from feedfwd.errors import RunError
from feedfwd.models import mlp_native
from feedfwd.models.mlp import MLP
from feedfwd.models.mlp_native import lacks
from feedfwd.recipes import fit as recipe
from feedfwd.recipes import training
from feedfwd.recipes.fit import fit_config, resume
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.recipes.training import Training

# everything that has a state: dropout, noise and mixup draw random numbers, the optimizer has moments, and so on
SETTINGS = [
    "train.epochs=12",
    "train.batch_size=32",
    "train.save_every=20",
    "train.evaluate_every=25",
    "train.patience=50",
    "train.ema=0.9",
    "train.threads=1",
    "optimizer.name=adamw",
    "optimizer.lr=0.003",
    "model.hidden=[32,32]",
    "model.norm=batch",
    "model.noise=0.1",
    "ffn.dropout=0.2",
    "data.mixup=0.2",
    "data.deform.rotation=5",
]


def config() -> FitConfig:
    return parse(FitConfig, {"source": "digits", **overrides(SETTINGS)})


def weights(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


class StopAt:
    """A listener that asks this process to stop, as Ctrl-C would, once training has reached a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def say(self, text: str) -> None: ...

    def progress(self, step: int, total: int, text: str) -> None:
        if step >= self.step:
            self.step = 10**9
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resuming_gives_the_same_bits(tmp_path: Path, number: int) -> None:
    fit_config(config(), tmp_path / "whole")
    with pytest.raises(Interrupted, match="--resume") as stopped:
        fit_config(config(), tmp_path / "parts", StopAt(123, number))
    assert stopped.value.code == 128 + number
    assert (Run.open(tmp_path / "parts").saved_step() or 0) >= 123
    with pytest.raises(Interrupted):
        resume(tmp_path / "parts", StopAt(200, number))
    resume(tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    kept = [(tmp_path / run / "log.jsonl").read_text().count('"step": 300,') for run in ("parts", "whole")]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", ["the last update", "scoring"])
def test_a_stop_when_training_is_done_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, number: int
) -> None:
    fit_config(config(), tmp_path / "whole")
    listener = StopAt(492 if at == "the last update" else 10**9, number)
    if at == "scoring":
        monkeypatch.setattr(Run, "save_model", lambda self, tensors: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=r"go on with: feedfwd fit --resume .*parts") as stopped:
        fit_config(config(), tmp_path / "parts", listener)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert stopped.value.code == 128 + number
    resume(tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_a_stop_before_the_first_update_tells_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(recipe, "plan", stopped)
    with pytest.raises(Interrupted, match="stopped; go on with: feedfwd fit --resume"):
        fit_config(config(), tmp_path / "parts")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    resume(tmp_path / "parts")
    assert Run(tmp_path / "parts").finished


def test_the_updates_of_a_long_training_are_saved_before_they_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LONG", 0.0)
    monkeypatch.setattr(Run, "save_model", lambda self, tensors: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        fit_config(config(), tmp_path / "run")
    assert Run(tmp_path / "run").saved_step() == 492


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_in_one_line_how_to_go_on(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    log = Training._log_step

    def killed(self: Training, step: Any, meter: Any) -> None:
        log(self, step, meter)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(Training, "_log_step", killed)
    done = CliRunner().invoke(app, ["fit", "iris", "--effort", "quick", "--run", "my run"])
    assert done.exit_code == 128 + number
    *_, line = done.stderr.splitlines()
    assert line.startswith("stopped at step ") and line.endswith("; go on with: feedfwd fit --resume 'my run'")


def simple() -> FitConfig:
    """A network whose gradients compiled C finds, where there is a compiler."""
    sets = ["optimizer.lr=0.003", "model.hidden=[32,32]", "train.epochs=12", "train.threads=1", "train.save_every=20"]
    return parse(FitConfig, {"source": "digits", **overrides([*sets, "data.augment=none", "ffn.dropout=0.0"])})


def test_the_compiled_way_resumes_to_the_same_bits_and_another_way_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := lacks(MLP([64, 32, 32, 10]), 64):
        pytest.skip(reason)
    fit_config(simple(), tmp_path / "whole")
    assert "compiled C" in Run.open(tmp_path / "whole").read_json(tmp_path / "whole/result.json")["gradients"]
    for parts in ("parts", "moved"):
        with pytest.raises(Interrupted):
            fit_config(simple(), tmp_path / parts, StopAt(60, signal.SIGINT))
    resume(tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    monkeypatch.setattr(mlp_native, "_compiled", lambda: (None, "there is no C compiler"))
    result = resume(tmp_path / "moved").result
    assert any("compiled C until step" in note and "no C compiler" in note for note in result["notes"])


def test_early_stopping_resumes_too(tmp_path: Path) -> None:
    hasty = parse(FitConfig, {**config().said(), "source": "wine"})
    for key, value in {"train.patience": 3, "train.evaluate_every": 4, "data.deform.rotation": 0.0}.items():
        hasty = hasty.with_(key, value)
    fit_config(hasty, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit_config(hasty, tmp_path / "parts", StopAt(14, signal.SIGINT))
    resume(tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_what_can_not_be_resumed_says_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = tmp_path / "data.npz"
    np.savez(source, x=rng.normal(size=(300, 4)).astype(np.float32), y=rng.integers(0, 2, 300))
    on_file = parse(FitConfig, {**config().said(), "source": str(source)}).with_("data.deform.rotation", 0.0)
    with pytest.raises(Interrupted):
        fit_config(on_file, tmp_path / "run", StopAt(30, signal.SIGINT))
    np.savez(source, x=rng.normal(size=(300, 4)).astype(np.float32), y=rng.integers(0, 2, 300))
    with pytest.raises(RunError, match="have changed"):
        resume(tmp_path / "run")
    done = fit_config(parse(FitConfig, {**config().said(), "train": {"steps": 3}, "optimizer": {"lr": 0.01}}), None)
    assert done.run is not None
    with pytest.raises(RunError, match="finished"):
        resume(done.run)


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_full_disk_leaves_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_config(config(), tmp_path / "whole")
    real, calls = recipe.Run.save_state, []

    def limited(self: Run, *args: object) -> None:
        """From the third save on no file may grow beyond a few bytes: writing itself fails, as on a full disk."""
        import resource

        calls.append(args[0])
        if len(calls) < 3:
            return real(self, *args)  # type: ignore[arg-type]
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            return real(self, *args)  # type: ignore[arg-type]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(recipe.Run, "save_state", limited)
    with pytest.raises(RunError, match="can't be written"):
        fit_config(config(), tmp_path / "run")
    monkeypatch.undo()
    assert Run.open(tmp_path / "run").saved_step() == 40
    assert [p.name for p in (tmp_path / "run/state").iterdir()] == ["step-40"]
    resume(tmp_path / "run")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_random_moments_it_still_ends_in_the_same_bits(tmp_path: Path) -> None:
    sets = [word for pair in [*SETTINGS, "train.epochs=60"] for word in ("--set", pair)]
    command = [sys.executable, "-m", "feedfwd.cli", "fit"]
    subprocess.run([*command, "digits", "--run", "whole", *sets], check=True, cwd=tmp_path, capture_output=True)
    draw, kills, steps = random.Random(), 0, []
    arguments = ["digits", "--run", "parts", *sets]
    while kills < 6:
        process = subprocess.Popen([*command, *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL)
        state = tmp_path / "parts" / "state"
        seen = set(state.glob("step-*"))
        while process.poll() is None and set(state.glob("step-*")) <= seen:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.3)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        steps.append(Run(tmp_path / "parts").saved_step())
        arguments = ["--resume", "parts"]
    assert kills >= 3 and steps == sorted(steps)
    if not Run(tmp_path / "parts").finished:
        subprocess.run([*command, "--resume", "parts"], check=True, cwd=tmp_path, capture_output=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_stopped_while_it_was_planned_it_resumes_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unplanned = parse(FitConfig, {**config().said(), "optimizer": {"name": "adamw"}})
    fit_config(unplanned, tmp_path / "whole")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "plan", stop)
    with pytest.raises(KeyboardInterrupt):
        fit_config(unplanned, tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    resume(tmp_path / "run")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_the_module_is_the_command_and_is_stopped_as_it_is(tmp_path: Path) -> None:
    """A process of its own, killed: one line on stderr, no traceback, 143."""
    command = [sys.executable, "-u", "-m", "feedfwd", "fit", "digits", "--run", "r", "--set", "train.epochs=500"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "step " not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors.strip().startswith("stopped at step ") and errors.strip().endswith("feedfwd fit --resume r")
    assert "Traceback" not in errors and (Run(tmp_path / "r").saved_step() or 0) > 0
