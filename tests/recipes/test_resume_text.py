"""Killed at random moments, a pretraining still ends in the bits of an unbroken one."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feedfwd.checkpoint import Run

SETTINGS = [
    "model.width=32",
    "model.depth=2",
    "model.heads=2",
    "model.dropout=0.1",
    "ffn.hidden=64",
    "data.tokenizer=bytes",
    "data.row=32",
    "train.batch_size=4",
    "train.steps=250",
    "train.evaluate_every=90",
    "train.save_every=7",
    "train.threads=1",
    "train.precision=fp32",
]
COMMAND = [sys.executable, "-m", "feedfwd.cli", "pretrain"]


def run(folder: Path, *argv: str) -> None:
    subprocess.run([*COMMAND, *argv], check=True, cwd=folder, capture_output=True)


@pytest.mark.slow
@pytest.mark.timeout(900)  # starts eleven processes
@pytest.mark.parametrize(
    "more",
    [
        ["optimizer.name=muon", "train.ema=0.9"],
        ["train.objective=masked", "train.ema=0.9", "optimizer.name=adamw"],
        ["train.accumulate=2", "model.recompute=true", "data.separate=true", "data.weights=[1,3]"],
    ],
    ids=lambda more: more[0],
)
def test_killed_at_random_moments_it_ends_in_the_same_bits(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
    for name, times in (("a", 7), ("b", 9)):
        lines = "".join(f"{i} times {i % times} is {i * (i % times)}.\n" for i in range(400))
        (tmp_path / f"{name}.txt").write_text(lines)
    sources = ["a.txt", "b.txt", *(word for pair in [*SETTINGS, *more] for word in ("--set", pair))]
    run(tmp_path, *sources, "--run", "whole")
    parts, draw, steps = Run(tmp_path / "parts"), random.Random(), []
    argv = [*sources, "--run", "parts"]
    for _ in range(5):
        process = subprocess.Popen([*COMMAND, *argv], cwd=tmp_path, stdout=subprocess.DEVNULL)
        seen = parts.saved_step()
        while process.poll() is None and parts.saved_step() == seen:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.3)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        steps.append(parts.saved_step() or 0)
        argv = ["--resume", "parts"]
    assert len(steps) >= 3 and steps == sorted(steps), steps
    if not parts.finished:
        run(tmp_path, "--resume", "parts")
    whole = Run(tmp_path / "whole")
    assert parts.model_file.read_bytes() == whole.model_file.read_bytes()
    assert parts.read_json(parts.result_file)["validation"] == whole.read_json(whole.result_file)["validation"]
    logged = [[line for line in r.log_file.read_text().splitlines() if '"sample"' in line] for r in (parts, whole)]
    assert logged[0] == logged[1], "samples come at the same steps and say the same"
