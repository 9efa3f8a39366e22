"""The chain that `make demo` runs, small: every stage, and again from what is there already."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from feedfwd.checkpoint import Run
from feedfwd.data import text_tables

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("chain", ROOT / "examples" / "chain.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = {"zipfile": "archive compress zip", "math": "number sine sum", "socket": "network host port"}
    texts = [
        f"{a} {b} of the {name[0]}{i % 5}"
        for name, of in words.items()
        for i, a in enumerate(of.split())
        for b in of.split()
    ]
    modules = [name for name, of in words.items() for _ in of.split() for _ in of.split()]
    monkeypatch.setattr(text_tables, "docstrings", lambda: (texts * 6, modules * 6))
    monkeypatch.setattr(module, "docstrings", lambda: (texts * 6, modules * 6), raising=False)
    (tmp_path / "text.txt").write_text("\n\n".join(texts * 20))
    small = {"size": "pico", "data": {"vocabulary": 300, "row": 32}}
    module.MASKED = {**module.MASKED, **small, "sources": [str(tmp_path / "text.txt")]}
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return module


def test_every_stage_runs_and_is_not_done_again(chain: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    more = {"train": {"steps": 20}, "bag": {"buckets": 512}}
    first = chain.main(Path("demo"), 0.01, **more)
    assert set(first) == {
        "TF-IDF + logistic regression",
        *(
            f"{start}, {what}"
            for start in ("random weights", "pretrained")
            for what in ("network alone", "with n-grams")
        ),
    }
    said = capsys.readouterr().out
    assert "'read a zip archive' → " in said and said.count("points (±") == 3
    before = Run.open(Path("demo/pretrained")).model_file.read_bytes()
    assert "fine-tuned from it" in Path("demo/report.html").read_text()
    assert chain.main(Path("demo"), 0.01, **more) == first
    assert capsys.readouterr().out.count("is there already") == 4
    assert Run.open(Path("demo/pretrained")).model_file.read_bytes() == before


def test_the_verdict_names_the_winner_only_where_there_is_one(chain: Any) -> None:
    import numpy as np

    ours = np.array([True] * 90 + [False] * 10)
    assert "wins against" in chain.verdict("theirs", ours, ~ours | (np.arange(100) < 50))
    assert "not told apart" in chain.verdict("theirs", ours, np.roll(ours, 5))
    assert "loses to" in chain.verdict("theirs", ~ours, ours)


def test_what_answers_is_the_same_from_the_folder(chain: Any) -> None:
    """Saved, loaded and windowed, n-grams and all; and no family of transformers takes it."""
    import feedfwd as ff
    from feedfwd.errors import ConfigError
    from feedfwd.recipes.console import Silent
    from feedfwd.recipes.export import export_run

    chain.main(
        Path("demo"),
        0.01,
        train={"steps": 5},
        bag={"buckets": 512},
        encoder={"ngrams": True, "longest": 8, "windows": 3},
    )
    run = ff.load("demo/pretrained")
    texts = ["archive zip of the z1", "number " * 40]
    rows = run.rows(texts)
    network, bag = run.apart(rows)
    ours, theirs = run.model.mix
    assert run.outputs(rows).allclose(ours * network + theirs * bag, atol=1e-4) and (ours, theirs) != (0.5, 0.5)
    assert run.features(rows).shape == (2, run.model.backbone.width)
    assert run.explain(texts[0]).answer in run.classes
    with pytest.raises(ConfigError, match="bag of n-grams"):
        export_run(Path("demo/pretrained"), "hf", Path("out"), Silent())
