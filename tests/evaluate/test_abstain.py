"""The abstain threshold keeps its promise, and the risk-coverage curve is what it says."""

import numpy as np
import pytest

from feedfwd.errors import ConfigError, DataError
from feedfwd.evaluate import abstain_threshold, risk_coverage
from feedfwd.evaluate.abstain import area_under_risk


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences that are too sure of themselves, and who is right."""
    generator = np.random.default_rng(seed)
    right = generator.beta(9, 1, n)
    return right**0.3, generator.random(n) < right


def test_the_curve_is_the_errors_among_the_surest():
    confidence, right = drawn(500, 0)
    confidence = confidence.round(2)  # ties
    curve = risk_coverage(confidence, right, points=10_000)
    assert len(curve) == len(np.unique(confidence)) and curve[-1] == (1.0, pytest.approx(1 - right.mean()))
    for threshold, (coverage, error) in zip(np.unique(confidence)[::-1], curve, strict=True):
        answered = confidence >= threshold
        assert coverage == answered.mean() and error == pytest.approx(1 - right[answered].mean())
    assert area_under_risk(confidence, right) < 1 - right.mean()
    assert len(risk_coverage(confidence, right, points=7)) == 7


@pytest.mark.parametrize(("error", "n"), [(0.05, 600), (0.1, 300), (0.03, 3000)])
def test_the_promise_holds(error: float, n: int):
    broken, coverage = 0, []
    confidence, right = drawn(200_000, 99)
    for seed in range(100):
        found = abstain_threshold(*drawn(n, seed), error=error, level=0.9)
        answered = confidence >= found.threshold
        broken += answered.any() and (~right[answered]).mean() > error
        coverage.append(answered.mean())
    assert broken <= 16  # 10 expected at most: two standard errors above
    best = max(c for c, e in risk_coverage(confidence, right, points=10_000) if e <= error)
    assert np.mean(coverage) > 0.4 * best, "a threshold that answers almost nothing keeps any promise"


def test_one_mistake_of_the_surest_does_not_end_it():
    confidence = np.linspace(1, 0.5, 2000)
    right = np.ones(2000, bool)
    right[0] = False
    assert abstain_threshold(confidence, right, error=0.05).coverage == 1


def test_mistakes_of_the_surest_and_of_the_doubtful_half_leave_what_lies_between():
    confidence = np.linspace(1, 0.5, 2000)
    right = np.ones(2000, bool)
    right[:3], right[900:] = False, np.arange(1100) % 2 == 0  # 3 of 80 don't pass 5 %, nor do half of the last 1,100
    found = abstain_threshold(confidence, right, error=0.05)
    assert 0.4 < found.coverage < 0.5 and found.wrong < 0.05


def test_nothing_is_answered_where_nothing_can_be_promised():
    found = abstain_threshold(np.full(40, 0.99), np.ones(40, bool), error=0.05)
    assert not found.possible and found.threshold > 1  # 40 right answers don't prove 95 %
    hopeless = abstain_threshold(*(np.linspace(0, 1, 500), np.zeros(500, bool)))
    assert hopeless.coverage == 0 and hopeless.wrong == 0


@pytest.mark.parametrize("bad", [{"error": 0.0}, {"error": 1.0}, {"level": 1.0}])
def test_shares_are_shares(bad: dict[str, float]):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        abstain_threshold(np.array([0.5]), np.array([True]), **bad)
    with pytest.raises(DataError, match="one of each"):
        abstain_threshold(np.array([0.5]), np.array([True, False]))
