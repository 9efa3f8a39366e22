"""What a dry run says of memory is what training then takes."""

import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import sys
from pathlib import Path
from feedfwd.config import overrides, parse
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.recipes.console import Silent
from feedfwd.recipes.memory import memory
from feedfwd.recipes.text import prepare_text
from feedfwd.train.cross_entropy import Gradients
from feedfwd.train.loop import train
from feedfwd.train.losses import build_loss

def used():
    return 1024 * int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")).split()[1])

p = prepare_text(parse(PretrainConfig, {"sources": ["text.txt"], **overrides(sys.argv[2:], PretrainConfig)}), Silent())
weights = 4 * p.model.parameter_count
if sys.argv[1] == "said":
    print(memory(p))
else:
    before = used() - 4 * p.model.parameter_count
    for _ in train(p.model, p.batches(), build_loss("cross_entropy"), p.optimizer(), steps=1, gradients=Gradients()):
        pass
    print(used() - before)
"""  # noqa: E501
SIZED = ["model.width=256", "model.depth=10", "model.heads=4", "ffn.hidden=704", "data.row=256", "train.batch_size=16"]


def found(folder: Path, what: str, *settings: str) -> int:
    (folder / "text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(3000)))
    words = [*SIZED, "data.tokenizer=bytes", "train.precision=fp32", "train.threads=1", "train.steps=3", *settings]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, what, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_the_estimate_is_near_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
    plain, saving = (
        {what: found(tmp_path, what, f"model.recompute={on}") for what in ("said", "measured")}
        for on in ("false", "true")
    )
    assert 0.5 < plain["said"] / plain["measured"] < 1.2
    assert 0.4 < saving["said"] / saving["measured"] < 1.2
    assert saving["measured"] < 0.7 * plain["measured"]
