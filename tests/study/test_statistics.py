"""What a study may say, on simulated scores: how often it errs where nothing differs, how often it finds what does."""

import numpy as np
import pytest

from feedfwd.study.statistics import estimate, findings, holm, paired, power, sign_flip


def studies(variants: int, effect: float, many: int, seeds: int = 5) -> float:
    """The share of simulated studies that call a difference; `effect` in standard errors, of the first variant."""
    rng, calls = np.random.default_rng(0), 0
    for _ in range(many):
        luck = rng.normal(size=seeds)  # what a split does to all variants alike
        scores = {str(v): luck + rng.normal(size=seeds) for v in range(variants)}
        scores["0"] = scores["0"] + effect * np.sqrt(2 / seeds)
        calls += findings(scores).calls > 0
    return calls / many


@pytest.mark.parametrize("variants", [2, 4])
def test_nothing_is_called_a_difference_in_five_percent_at_most(variants: int) -> None:
    assert studies(variants, 0.0, 600) <= 0.05 + 0.018  # two standard errors of 600 studies


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_true_effect_is_found_as_often_as_the_t_test_promises(seeds: int) -> None:
    assert abs(studies(2, 2.0, 600, seeds) - power(2.0, seeds)) < 0.05


def test_pairing_takes_the_luck_of_a_split_away() -> None:
    rng = np.random.default_rng(1)
    luck = 10 * rng.normal(size=8)
    a, b = luck + 1 + 0.2 * rng.normal(size=8), luck + 0.2 * rng.normal(size=8)
    assert paired(a, b).p < 0.001
    assert paired(a, rng.permutation(b)).p > 0.05


def test_factors_are_judged_over_all_else() -> None:
    rng = np.random.default_rng(2)
    levels = {f"{a}{w}": {"activation": a, "width": str(w)} for a in ("relu", "tanh") for w in (1, 2)}
    scores = {name: rng.normal(size=6) * 0.1 + (1.0 if name.startswith("relu") else 0.0) for name in levels}
    found = findings(scores, levels)
    first, second = found.effects
    assert first.name == "activation" and first.worth == pytest.approx(1.0, abs=0.15)
    assert first.comparisons[0].found and not second.comparisons[0].found
    assert found.best is not None and found.best.startswith("relu")


def test_scores_that_do_not_vary_prove_nothing_with_few_seeds() -> None:
    same = estimate([0.01, 0.01, 0.01])
    assert same.p == sign_flip([1, 1, 1]) == 0.25
    assert estimate([0.0, 0.0, 0.0]).p == 1.0


def test_one_seed_and_missing_seeds() -> None:
    assert estimate([0.5]).p == 1.0 and not np.isfinite(estimate([0.5]).low)
    assert paired(np.array([1.0, np.nan, 2.0]), np.array([0.0, 1.0, 1.5])).n == 2
    assert findings({"a": np.array([1.0, np.nan]), "b": np.array([0.0, 0.1])}).best == "b"


def test_overlapping_splits_widen_the_interval() -> None:
    x = [0.02, 0.01, 0.03, 0.02]
    assert estimate(x, overlap=0.25).high > estimate(x).high


def test_holm_keeps_order_and_never_falls() -> None:
    assert holm([]) == []
    assert holm([0.04, 0.001, 0.5]) == [0.08, 0.003, 0.5]
