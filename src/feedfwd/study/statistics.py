"""What may be said of differences between variants that saw the same seeds and splits; pure functions of their scores.

A difference is judged by the paired t-test ("Student" 1908), all calls of a study together by Holm's correction (1979,
"A simple sequentially rejective multiple test procedure"): where nothing differs, at most 5 % of studies say otherwise.
"""

# V variants, S seeds; higher scores are better throughout: turn a loss round before it comes here

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf, isfinite, nan, sqrt

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its interval at 95 %; `p` is of the mean being zero, before any correction."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def estimate(values: Sequence[float] | Scores, *, overlap: float = 0.0) -> Estimate:
    """Mean, t interval and t-test of independent values; what isn't finite is left out.

    `overlap` widens the interval for scores of splits redrawn from the same examples, which are alike because their
    training parts are: the ratio of scored to trained-on examples (Nadeau & Bengio 2003, "Inference for the
    generalization error"). With 0 the answer holds for seeds and splits of these data, with it for new data.
    Values that don't vary at all, as shares of a small part may, give the t-test nothing to go by: there `p` is that
    of flipping their signs.

    >>> found = estimate([0.02, 0.01, 0.03, 0.02])
    >>> round(found.low, 4), round(found.high, 4), round(found.p, 4)
    (0.007, 0.033, 0.0163)
    """
    from scipy.stats import t

    x = np.asarray(values, np.float64)
    x = x[np.isfinite(x)]
    n = len(x)
    if n == 0:
        return Estimate(nan, -inf, inf, 1.0, 0)
    mean = float(x.mean())
    if n == 1:
        return Estimate(mean, -inf, inf, 1.0, 1)
    error = float(x.std(ddof=1)) * sqrt(1 / n + overlap)
    if error <= 1e-12 * max(1.0, abs(mean)):
        return Estimate(mean, mean, mean, sign_flip(x), n)
    half = float(t.ppf(1 - ALPHA / 2, n - 1)) * error
    return Estimate(mean, mean - half, mean + half, float(2 * t.sf(abs(mean) / error, n - 1)), n)


def paired(a: Scores, b: Scores, *, overlap: float = 0.0) -> Estimate:
    """The difference a − b over the seeds that both have."""
    return estimate(np.asarray(a, np.float64) - np.asarray(b, np.float64), overlap=overlap)


def sign_flip(differences: Sequence[float] | Scores, *, draws: int = 20_000) -> float:
    """How often random signs make the mean at least as far from zero: exact up to 14 differences, else by chance.

    Fisher 1935, "The design of experiments". Five differences can't fall below 2/32.

    >>> sign_flip([1.0, 2.0, 1.5, 0.5, 1.0])
    0.0625
    """
    x = np.asarray(differences, np.float64)
    n = len(x)
    if n <= 14:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (draws, n))
    sums = np.abs(signs @ x)
    return float((sums >= abs(x.sum()) * (1 - 1e-12)).mean())


def holm(ps: Sequence[float]) -> list[float]:
    """Corrected p-values: calling those below 0.05 errs in at most 5 % of families in which nothing differs.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    out, last = [1.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        last = max(last, min(1.0, (len(ps) - rank) * ps[i]))
        out[i] = last
    return out


def power(effect: float, n: int) -> float:
    """How often a two-sided paired t-test at 5 % finds a true difference of so many standard errors with n pairs.

    >>> round(power(2.0, 5), 3), round(power(0.0, 5), 3)
    (0.336, 0.05)
    """
    from scipy.stats import nct, t

    limit = t.ppf(1 - ALPHA / 2, n - 1)
    return float(nct.sf(limit, n - 1, effect) + nct.cdf(-limit, n - 1, effect))


@dataclass(frozen=True, slots=True)
class Comparison:
    """`first` − `second`, names of variants or of levels; `p` is corrected for all that the study compares."""

    first: str
    second: str
    difference: Estimate
    p: float

    @property
    def found(self) -> bool:
        return self.p < ALPHA


@dataclass(frozen=True, slots=True)
class Effect:
    """What one choice was worth: the mean score of each of its levels, and their differences."""

    name: str
    levels: dict[str, Estimate]
    comparisons: list[Comparison]

    @property
    def worth(self) -> float:
        """From the worst level to the best."""
        means = [level.mean for level in self.levels.values() if isfinite(level.mean)]
        return max(means) - min(means) if means else nan


@dataclass(frozen=True, slots=True)
class Findings:
    best: str | None  # the variant with the highest mean, of those that have every seed
    pairs: list[Comparison]
    effects: list[Effect]

    def between(self, first: str, second: str) -> Comparison:
        """Their comparison, `first` − `second`."""
        for c in self.pairs:
            if (c.first, c.second) == (first, second):
                return c
            if (c.second, c.first) == (first, second):
                d = c.difference
                return Comparison(first, second, Estimate(-d.mean, -d.high, -d.low, d.p, d.n), c.p)
        raise KeyError((first, second))

    @property
    def calls(self) -> int:
        """How many differences are said to be there."""
        return sum(c.found for c in self.pairs) + sum(c.found for e in self.effects for c in e.comparisons)


def findings(
    scores: Mapping[str, Scores], levels: Mapping[str, Mapping[str, str]] | None = None, *, overlap: float = 0.0
) -> Findings:
    """Every pair of variants, and every pair of levels of each choice, judged together.

    `scores` has for each variant a score a seed, nan where there is none; `levels` which level of each choice it took.
    Where more than one thing was varied, half of the 5 % goes to the variants and half to the choices; with one, the
    variants are its levels and nothing is compared twice.

    >>> rng = np.random.default_rng(0)
    >>> luck = rng.normal(size=5)
    >>> found = findings({"a": luck + 1 + 0.1 * rng.normal(size=5), "b": luck + 0.1 * rng.normal(size=5)})
    >>> found.best, found.pairs[0].found
    ('a', True)
    """
    whole = {name: x for name, x in scores.items() if np.isfinite(x).all()}
    best = max(whole, key=lambda name: whole[name].mean()) if whole else None
    names = list(next(iter(levels.values()))) if levels else []
    varied = [name for name in names if len({chosen[name] for chosen in (levels or {}).values()}) > 1]
    share = 1 if len(varied) < 2 else 2
    pairs = _judged([(a, b, paired(whole[a], whole[b], overlap=overlap)) for a, b in combinations(whole, 2)], share)
    effects = _effects(whole, levels, varied, share, overlap) if levels and len(varied) > 1 else []
    return Findings(best, pairs, effects)


def _judged(rows: list[tuple[str, str, Estimate]], share: int) -> list[Comparison]:
    corrected = holm([difference.p for _, _, difference in rows])
    return [Comparison(a, b, d, min(1.0, share * p)) for (a, b, d), p in zip(rows, corrected, strict=True)]


def _effects(
    whole: Mapping[str, Scores],
    levels: Mapping[str, Mapping[str, str]],
    varied: list[str],
    share: int,
    overlap: float,
) -> list[Effect]:
    """Means of each level over all else, by seed; compared only where every combination was tried."""
    by_level = {
        name: {
            level: np.mean([x for v, x in whole.items() if levels[v][name] == level], axis=0)
            for level in dict.fromkeys(levels[v][name] for v in whole)
        }
        for name in varied
    }
    sizes = [len(of) for of in by_level.values()]
    crossed = len(whole) == int(np.prod(sizes)) and min(sizes, default=0) > 0
    if not crossed:
        by_level = _additive(whole, levels, varied)
    rows = [
        (name, a, b, paired(of[a], of[b], overlap=overlap))
        for name, of in by_level.items()
        for a, b in combinations(of, 2)
        if crossed
    ]
    corrected = holm([difference.p for *_, difference in rows])
    calls: dict[str, list[Comparison]] = {name: [] for name in varied}
    for (name, a, b, difference), p in zip(rows, corrected, strict=True):
        calls[name].append(Comparison(a, b, difference, min(1.0, share * p)))
    effects = [
        Effect(name, {level: estimate(x) for level, x in of.items()}, calls[name]) for name, of in by_level.items()
    ]
    return sorted(effects, key=lambda effect: -effect.worth)


def _additive(
    whole: Mapping[str, Scores], levels: Mapping[str, Mapping[str, str]], varied: list[str]
) -> dict[str, dict[str, Scores]]:
    """Where not every combination was tried: least squares of score = mean + one term a level, a little shrunk."""
    if not whole:
        return {name: {} for name in varied}
    columns = [(name, level) for name in varied for level in dict.fromkeys(levels[v][name] for v in whole)]
    design = np.array([[float(levels[v][name] == level) for name, level in columns] for v in whole])
    y = np.array([x.mean() for x in whole.values()])
    centred = y - y.mean()
    terms = np.linalg.solve(design.T @ design + 0.5 * np.eye(len(columns)), design.T @ centred)
    return {
        name: {level: np.array([y.mean() + term]) for (n, level), term in zip(columns, terms, strict=True) if n == name}
        for name in varied
    }
