"""What stands in the training text is found wherever it stands, and nothing else is."""

from pathlib import Path

import numpy as np
import pytest

from feedfwd.data import copies
from feedfwd.data.copies import copied, verbatim_length
from feedfwd.data.tokens import Counts, Tokens


def on_disk(folder: Path, ids: np.ndarray, shard: int = 1000) -> Tokens:
    files = []
    for i in range(0, len(ids), shard):
        files.append(folder / f"{len(files)}.npy")
        np.save(files[-1], ids[i : i + shard].astype("<u2"), allow_pickle=False)
    return Tokens(files, Counts(tokens=len(ids), bytes=4 * len(ids)), end=0, vocabulary=500)


def plainly(text: list[int], training: list[int], n: int) -> list[bool]:
    """The definition, place by place."""
    grams = {tuple(training[i : i + n]) for i in range(len(training) - n + 1)}
    mask = [False] * len(text)
    for i in range(len(text) - n + 1):
        if tuple(text[i : i + n]) in grams:
            mask[i : i + n] = [True] * n
    return mask


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("block", [7, 64, 1 << 18])
def test_it_is_what_the_definition_says(n: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "BLOCK", block)
    rng = np.random.default_rng(n)
    training = rng.integers(1, 9, 2500)
    texts = [rng.integers(1, 9, 40).tolist(), training[990:1020].tolist(), training[-n:].tolist(), [5], []]
    texts[0][10:25] = training[100:115].tolist()
    found = copied(texts, [on_disk(tmp_path, training)], n)
    assert [mask.tolist() for mask in found] == [plainly(text, training.tolist(), n) for text in texts]
    assert all(found[1]) and all(found[2])


def test_several_sources_and_the_usual_length(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rng = np.random.default_rng(0)
    first, second = rng.integers(1, 500, 300), rng.integers(1, 500, 300)
    training = [on_disk(tmp_path / "a", first), on_disk(tmp_path / "b", second)]
    assert verbatim_length(training) == 13  # 50 bytes at 4 a token
    text = [*first[7:20], *second[:12], *first[50:80]]
    (mask,) = copied([text], training)
    assert mask.tolist() == [True] * 13 + [False] * 12 + [True] * 30
