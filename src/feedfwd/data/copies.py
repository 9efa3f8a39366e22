"""Which stretches of a text stand in the training text word for word.

The training tokens are read in blocks, so that memory stays flat however many there are. A stretch of n tokens is
looked for by a hash that a running sum gives for every place at once (Karp and Rabin 1987), in arithmetic modulo 2⁶⁴.
"""

# N tokens of a block, n tokens of a stretch

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from feedfwd.data.tokens import Tokens

BLOCK = 1 << 18  # tokens looked at together
VERBATIM = 50  # bytes, about ten words: a shorter match is often a phrase that everybody uses
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2⁶⁴
INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))
SIEVE = 16  # bits of a hash that are looked at first


def copied(texts: Sequence[Sequence[int]], training: Sequence[Tokens], length: int | None = None) -> list[np.ndarray]:
    """For each text a mask (tokens,): True in every stretch of at least `length` tokens that training text has too.

    `length` not given: as many tokens as 50 bytes of the training text have on average. End tokens in `texts` are part
    of what must match.
    """
    length = verbatim_length(training) if length is None else length
    masks = [np.zeros(len(text), dtype=bool) for text in texts]
    own = [_hashes(np.asarray(text, dtype=np.int64), length) for text in texts]
    wanted = np.unique(np.concatenate([np.zeros(0, np.uint64), *own]))
    if not len(wanted):
        return masks
    sieve = np.zeros(1 << SIEVE, dtype=bool)
    sieve[wanted >> np.uint64(64 - SIEVE)] = True
    found = np.zeros(len(wanted), dtype=bool)
    for tokens in training:
        for start in range(0, len(tokens), BLOCK):
            hashes_N = _hashes(tokens.read(start, min(start + BLOCK + length - 1, len(tokens))), length)
            likely = hashes_N[sieve[hashes_N >> np.uint64(64 - SIEVE)]]
            place = np.searchsorted(wanted, likely).clip(max=len(wanted) - 1)
            found[place[wanted[place] == likely]] = True
    for mask, hashes in zip(masks, own, strict=True):
        for at in np.flatnonzero(found[np.searchsorted(wanted, hashes)]):
            mask[at : at + length] = True
    return masks


def verbatim_length(training: Sequence[Tokens]) -> int:
    """Tokens that 50 bytes of these texts have on average, at least 4."""
    n_bytes, n = sum(t.counts.bytes for t in training), sum(map(len, training))
    return max(4, math.ceil(VERBATIM * n / max(1, n_bytes)))


def _hashes(ids_N: np.ndarray, n: int) -> np.ndarray:
    """(N - n + 1,) uint64: Σ_k mixed(id_{i+k}) BASE^k for every place i."""
    if len(ids_N) < n:
        return np.zeros(0, dtype=np.uint64)
    x = ids_N.astype(np.uint64) + np.uint64(1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # splitmix64's finalizer (Steele et al. 2014)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    powers, inverses = _powers(BASE, len(x)), _powers(INVERSE, len(x) - n + 1)
    sums = np.concatenate([np.zeros(1, np.uint64), (x * powers).cumsum()])
    hashes = (sums[n:] - sums[:-n]) * inverses
    return hashes ^ (hashes >> np.uint64(32))


@lru_cache(4)
def _powers(base: np.uint64, count: int) -> np.ndarray:
    """base⁰ … base^(count-1), modulo 2⁶⁴."""
    powers = np.full(count, base, dtype=np.uint64)
    powers[:1] = 1
    return powers.cumprod(dtype=np.uint64)
