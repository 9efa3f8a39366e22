"""Texts as sets of hashed n-grams: of words, and of characters, which needs no segmenter for Chinese or Japanese.

The hash is arithmetic on code points, the same in every process and on every machine, and done for all texts at once.
"""

# K code points of all texts together, R runs of them

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from feedfwd.data.ragged import Ragged

Hashes = npt.NDArray[np.uint64]
Runs = tuple[np.ndarray, np.ndarray, Hashes]  # (R,) each: where a run begins, where it ends, its hash

BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
INVERSE = pow(BASE, -1, 2**64)
WORDS, PAIR = 1 << 56, 0xD6E8FEB86659FD93
DIGIT = re.compile(r"\d")
AT_ONCE = 4096  # texts hashed together, which bounds the memory

# Scripts that don't separate words: each character counts as one.
UNSPACED = ((0x0E00, 0x0E7F), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


def ngrams(
    texts: Sequence[str], buckets: int, *, words: int = 2, chars: tuple[int, int] = (2, 5), digits: bool = True
) -> Ragged:
    """The buckets that each text's n-grams fall into, each once, in rising order.

    `words`: the longest run of words, 0 for none. `chars`: the shortest and the longest run of characters, (0, 0) for
    none; a run may span words, which a space separates and another surrounds the text. Case and compatibility
    forms are folded (NFKC), and without `digits` each of these reads as 0.

    >>> rows = ngrams(["Lost card", "lost  CARD!", "a lost card"], 1 << 20, chars=(0, 0))
    >>> a, b, c = (set(row.tolist()) for row in rows)
    >>> a <= b, a <= c, len(a), len(c)
    (True, True, 3, 5)
    """
    parts = [_some(texts[i : i + AT_ONCE], buckets, words, chars, digits) for i in range(0, len(texts), AT_ONCE)]
    return Ragged.concatenated(parts)


def placed_ngrams(
    text: str, buckets: int, *, words: int = 2, chars: tuple[int, int] = (2, 5), digits: bool = True
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """The folded text, and where each of its n-grams begins and ends in it, with its bucket (R,); repeated ones too.

    The text keeps its digits, however they are read.

    >>> folded, starts, ends, _ = placed_ngrams("Lost card", 1 << 20, words=1, chars=(0, 0))
    >>> [folded[a:b] for a, b in zip(starts, ends)]
    ['lost', 'card']
    """
    folded = _folded(text, digits=True)
    runs = _runs([_folded(text, digits)], words, chars)[1]
    starts, ends, hashes = (np.concatenate([run[i] for run in runs]) for i in range(3))
    return folded, starts, ends, (_mixed(hashes) % np.uint64(buckets)).astype(np.int64)


def is_unspaced(character: str) -> bool:
    """Whether it is of a script that doesn't separate words."""
    return any(low <= ord(character) <= high for low, high in UNSPACED)


def _folded(text: str, digits: bool) -> str:
    plain = " " + " ".join(unicodedata.normalize("NFKC", text).casefold().split()) + " "
    return plain if digits else DIGIT.sub("0", plain)


def _some(texts: Sequence[str], buckets: int, words: int, chars: tuple[int, int], digits: bool) -> Ragged:
    folded = [_folded(text, digits) for text in texts]
    text_K, runs = _runs(folded, words, chars)
    owner = np.concatenate([text_K[starts] for starts, _, _ in runs]) if runs else np.zeros(0, np.int64)
    bucket = np.concatenate([_mixed(hashes) % np.uint64(buckets) for _, _, hashes in runs]) if runs else owner
    pairs = np.sort(owner.astype(np.int64) * buckets + bucket.astype(np.int64))  # np.unique is 20 times slower here
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    lengths = np.bincount(pairs // buckets, minlength=len(folded))
    return Ragged(torch.from_numpy((pairs % buckets).astype(np.int32)), torch.from_numpy(lengths))


def _runs(folded: Sequence[str], words: int, chars: tuple[int, int]) -> tuple[np.ndarray, list[Runs]]:
    """Which text each code point belongs to (K,), and the runs of each length."""
    points = np.frombuffer("".join(folded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    text_K = np.repeat(np.arange(len(folded)), [len(text) for text in folded])
    with np.errstate(over="ignore"):
        prefix = np.zeros(len(points) + 1, np.uint64)
        powers = np.full(len(points) + 1, BASE, np.uint64)
        powers[0] = 1
        powers = np.cumprod(powers)
        prefix[1:] = np.cumsum((points + 1).astype(np.uint64) * powers[:-1])
        back = np.full(len(points) + 1, INVERSE, np.uint64)
        back[0] = 1
        back = np.cumprod(back)
        return text_K, [*_of_words(points, text_K, prefix, back, words), *_of_chars(text_K, prefix, back, chars)]


def _of_chars(text_K: np.ndarray, prefix: Hashes, back: Hashes, chars: tuple[int, int]) -> list[Runs]:
    """Every run of so many characters that stays in its text."""
    found = []
    for n in range(max(1, chars[0]), chars[1] + 1):
        starts = np.flatnonzero(text_K[: max(0, len(text_K) - n + 1)] == text_K[n - 1 :])
        found.append((starts, starts + n, (prefix[starts + n] - prefix[starts]) * back[starts] + np.uint64(n)))
    return found


def _of_words(points: np.ndarray, text_K: np.ndarray, prefix: Hashes, back: Hashes, words: int) -> list[Runs]:
    """Every run of 1 to `words` words."""
    kinds, place = np.unique(points, return_inverse=True)
    inside_K = np.array([chr(k).isalnum() or chr(k) == "'" for k in kinds.tolist()], bool)[place]
    alone_K = np.array([any(low <= k <= high for low, high in UNSPACED) for k in kinds.tolist()], bool)[place]
    before = np.concatenate([[False], inside_K[:-1] & ~alone_K[:-1]])
    after = np.concatenate([inside_K[1:] & ~alone_K[1:], [False]])
    starts = np.flatnonzero(inside_K & (alone_K | ~before))
    ends = np.flatnonzero(inside_K & (alone_K | ~after)) + 1
    owner, hashes = text_K[starts], _mixed((prefix[ends] - prefix[starts]) * back[starts] + np.uint64(WORDS))
    found, run = [], hashes
    for n in range(1, words + 1):
        if n > 1:
            run = run[: max(0, len(owner) - n + 1)] * np.uint64(PAIR) + hashes[n - 1 :]
        first, last = starts[: len(run)], ends[n - 1 :]
        same = owner[: len(run)] == owner[n - 1 :]
        found.append((first[same], last[same], run[same]))
    return found


def _mixed(h: Hashes) -> Hashes:
    """Every bit of the hash into every bit: the finaliser of SplitMix64 (Steele, Lea & Flood 2014)."""
    with np.errstate(over="ignore"):
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return h ^ (h >> np.uint64(31))
