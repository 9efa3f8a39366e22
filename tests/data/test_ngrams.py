"""Hashed n-grams, and rows of different lengths in batches."""

import subprocess
import sys

import pytest
import torch

from feedfwd.data.ngrams import ngrams, placed_ngrams
from feedfwd.data.ragged import ALIKE, PAD, Ragged, RaggedBatches


def plain(text: str, chars: tuple[int, int]) -> int:
    """How many different character n-grams a text has, written out."""
    padded = f" {' '.join(text.casefold().split())} "
    return len({padded[i : i + n] for n in range(chars[0], chars[1] + 1) for i in range(len(padded) - n + 1)})


def test_character_ngrams_are_those_of_the_definition() -> None:
    texts = ["How do I locate my card?", "I", "", "酒店很好,早餐不错", "🙂 straße"]
    rows = ngrams(texts, 1 << 30, words=0, chars=(2, 5))
    assert rows.lengths.tolist() == [plain(text, (2, 5)) for text in texts]


@pytest.mark.parametrize("text", ["", "I", "hi", "a b"])
def test_a_text_shorter_than_the_longest_run_stands_alone(text: str) -> None:
    assert ngrams([text], 1 << 30, words=0).lengths.tolist() == [plain(text, (2, 5))]
    assert len(ngrams([text], 1 << 30, words=5, chars=(0, 0))) == 1


@pytest.mark.parametrize("text", ["How do I locate my card?", "酒店很好,早餐不错", "", "no no NO"])
def test_names_and_buckets_are_those_of_the_text(text: str) -> None:
    folded, starts, ends, buckets = placed_ngrams(text, 1 << 20, words=3)
    assert sorted(set(buckets.tolist())) == next(iter(ngrams([text], 1 << 20, words=3))).tolist()
    assert folded == " ".join(text.casefold().split()).join("  ")
    assert len(starts) == len(ends) == len(buckets) and all(starts < ends) and all(ends <= len(folded))


def test_words_and_pairs_of_words_are_found_wherever_they_stand() -> None:
    one, two = (set(row.tolist()) for row in ngrams(["lost my card", "Oh: I lost my card!"], 1 << 30, chars=(0, 0)))
    assert len(one) == 5 and one < two
    apart, joined = ngrams(["a bc", "ab c"], 1 << 30, words=1, chars=(0, 0))
    assert not set(apart.tolist()) & set(joined.tolist())


def test_a_text_has_the_same_ngrams_in_any_company() -> None:
    texts = [f"text number {i} of many" for i in range(5000)]  # more than are hashed together
    rows, alone = list(ngrams(texts, 1 << 20)), next(iter(ngrams([texts[4321]], 1 << 20)))
    assert torch.equal(rows[4321], alone)


def test_another_process_hashes_alike() -> None:
    code = "from feedfwd.data.ngrams import ngrams; print(ngrams(['lost card'], 1 << 20).values.tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(ngrams(["lost card"], 1 << 20).values.tolist())


def rows_of(n: int) -> Ragged:
    lengths = torch.randint(1, 30, (n,), generator=torch.Generator().manual_seed(0))
    return Ragged(torch.arange(int(lengths.sum())), lengths)


def test_every_example_comes_once_an_epoch_and_alike_ones_pad_little() -> None:
    rows, targets = rows_of(200), torch.arange(200)
    padding = {}
    for alike in (1, ALIKE):
        stream = RaggedBatches(rows, targets, 8, seed=3, alike=alike)
        batches = [next(stream) for _ in range(stream.batches_per_epoch)]
        assert sorted(torch.cat([b.targets for b in batches]).tolist()) == list(range(200))
        for batch in batches[:3]:
            for row, target in zip(batch.inputs, batch.targets.tolist(), strict=True):
                assert torch.equal(row[row != PAD], list(rows)[target])
        padding[alike] = sum(int((b.inputs == PAD).sum()) for b in batches)
    assert padding[ALIKE] < padding[1] / 5


def test_batches_go_on_where_they_stopped() -> None:
    stream = RaggedBatches(rows_of(50), torch.arange(50), 8, seed=1, alike=3)
    for _ in range(9):
        next(stream)
    again = RaggedBatches(rows_of(50), torch.arange(50), 8, alike=3)
    again.load_state_dict(stream.state_dict())
    assert all(torch.equal(next(stream).targets, next(again).targets) for _ in range(9))


def test_digits_read_alike_where_they_are_not_told_apart() -> None:
    one, two = ["up 12.5 %", "up ３４.９ %"], ["up 00.0 %"] * 2
    assert [row.tolist() for row in ngrams(one, 1 << 20, digits=False)] == [
        row.tolist() for row in ngrams(two, 1 << 20)
    ]
    folded, starts, ends, buckets = placed_ngrams("in 2024", 1 << 20, words=1, chars=(0, 0), digits=False)
    assert [folded[a:b] for a, b in zip(starts, ends, strict=True)] == [" in 2024 "[a:b] for a, b in ((1, 3), (4, 8))]
    assert buckets[1] == placed_ngrams("0000", 1 << 20, words=1, chars=(0, 0))[3][0]
