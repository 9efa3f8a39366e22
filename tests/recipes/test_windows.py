"""Texts longer than a model reads at once, in windows: the answer is the mean of theirs."""

import json
from pathlib import Path

import pytest
import torch
from test_adapters import config, folder

import feedfwd as ff
from feedfwd.data.ragged import PAD
from feedfwd.errors import DataError
from feedfwd.recipes import finetune as recipe
from feedfwd.recipes.texts import prepare_texts


@pytest.fixture
def long_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a text is about stands at its end."""
    monkeypatch.chdir(tmp_path)
    filler = "some words that say nothing of it at all "
    rows = [{"text": f"{i} {filler[: 20 + i % 20]}{w}", "label": w} for i in range(60) for w in ("card", "cash")]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return "long.jsonl"


WINDOWS = {"encoder__longest": 24, "encoder__windows": 4}


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_answer_is_the_mean_over_windows(tmp_path: Path, long_texts: str, family: str) -> None:
    p = prepare_texts(config(long_texts, folder(tmp_path / "base", family), encoder__hidden=[8], **WINDOWS))
    reader, model = p.classifier.reader, p.model.eval()
    texts = ["a b c " * 12, "short", "", "x" * 500]
    rows = reader.rows(texts)
    parts = reader.tokenizer.windows(texts, 24, 4)
    assert [len(row) for row in parts][1:] == [1, 1, 4] and len(parts[0]) > 1
    assert all(len(part) == 24 for row in parts for part in row[:-1])
    if family == "bert":  # special tokens around each
        assert all(part[0] == part[-1] == 256 for row in parts for part in row)
        own = [part[1:-1] for part in parts[0]]
        assert own[1][:5] == own[0][-5:]  # a quarter of the 22 there is room for
        whole = own[0] + [one for part in own[1:] for one in part[5:]]
        assert bytes(whole) == texts[0].encode()
    with torch.no_grad():
        for i, row in enumerate(parts):
            each = [model(torch.tensor([part or [reader.tokenizer.pad]])) for part in row]
            wanted = torch.cat(each).mean(0)
            torch.testing.assert_close(p.classifier.outputs(rows)[i], wanted, atol=1e-5, rtol=1e-4)
    batch = rows.padded(torch.arange(4))
    assert (batch == PAD).any() and model(batch).shape == (4, 2)


def test_windows_see_what_a_cut_hides(tmp_path: Path, long_texts: str) -> None:
    base = folder(tmp_path / "base", "bert")
    settings = {"train__steps": 120, "encoder__longest": 24, "optimizer__lr": 0.01, "encoder__pooling": "mean"}
    cut = recipe.finetune_config(config(long_texts, base, **settings), tmp_path / "cut")
    made = recipe.finetune_config(config(long_texts, base, **settings, encoder__windows=4), tmp_path / "run")
    assert made.result["test"]["accuracy"] > 0.9 > cut.result["test"]["accuracy"]
    assert any("read in up to 4 windows" in note for note in made.result["notes"])
    assert not any("cut" in note for note in made.result["notes"])
    loaded, texts = ff.load("run"), ["one " * 9 + "card"]
    assert loaded.predict(texts) == made.predict(texts)


def test_what_is_longer_still_is_said(tmp_path: Path, long_texts: str) -> None:
    base = folder(tmp_path / "base", "bert")
    p = prepare_texts(config(long_texts, base, encoder__longest=16, encoder__windows=2))
    assert any("in 2 windows, and cut after them" in note for note in p.notes)
    with pytest.raises(DataError, match="leaves no room"):
        p.classifier.reader.tokenizer.windows(["a"], 2, 3)
    head = prepare_texts(config(long_texts, base, method="head", **WINDOWS))
    assert head.features is not None and head.features.shape == (len(head.train), 32)
