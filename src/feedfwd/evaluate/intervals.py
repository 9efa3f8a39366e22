"""How far a score could be from what more test data would show: 95 % intervals."""

from collections.abc import Callable
from math import exp, log, sqrt
from statistics import NormalDist

import numpy as np

from feedfwd.evaluate.arrays import Floats

DRAWS_AT_ONCE = 2**17  # resampled elements held at a time: larger blocks are slower, for they leave the caches


def _z(level: float) -> float:
    """How many standard deviations to each side hold `level` of a normal distribution."""
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share, such as accuracy; stays inside 0 to 1 and is honest near both ends.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    >>> low, high = wilson_interval(97, 100)
    >>> round(low, 3), round(high, 3)
    (0.915, 0.99)
    """
    z, share = _z(level), successes / n
    middle = share + z * z / (2 * n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def logit_normal_interval(share: float, variance: float, level: float = 0.95) -> tuple[float, float]:
    """Normal on the log-odds scale, so that it stays inside 0 to 1; for a score with a known variance, like AUROC."""
    centre, half = log(share / (1 - share)), _z(level) * sqrt(variance) / (share * (1 - share))
    # 1 / (1 + e^-x), written so that neither end can overflow
    low, high = ((1 / (1 + exp(-x))) if x >= 0 else exp(x) / (1 + exp(x)) for x in (centre - half, centre + half))
    return low, high


def bootstrap_interval(
    statistic: Callable[..., Floats], *arrays: Floats, resamples: int | None = None, level: float = 0.95, seed: int = 0
) -> Floats:
    """Percentile bootstrap (Efron 1979) of any score over examples, vectorised; the same seed gives the same interval.

    `arrays` are (N, ...) and are resampled together, with replacement. `statistic` gets them as (B, N, ...), B
    resamples at a time, and returns (B, ...): one value (or several) for each. The answer is (2, ...): low, high.
    Without `resamples` there are 1000, and fewer (down to 200) above 20,000 examples, where each costs more.

    >>> errors = np.array([1.0, 2.0, 0.5, 1.5, 3.0, 0.1])
    >>> low, high = bootstrap_interval(lambda e: np.sqrt((e**2).mean(1)), errors)
    >>> bool(low < np.sqrt((errors**2).mean()) < high)
    True
    """
    n, generator = len(arrays[0]), np.random.default_rng(seed)
    resamples = resamples or max(200, min(1000, 20_000_000 // n))
    block = max(1, DRAWS_AT_ONCE // n)
    values = []
    for start in range(0, resamples, block):
        chosen = generator.integers(0, n, (min(block, resamples - start), n))
        values.append(statistic(*(a[chosen] for a in arrays)))
    return np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2], axis=0)
