"""Scores of being inside the scope, and the threshold that falsely rejects a chosen share."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from feedfwd.errors import ConfigError, DataError
from feedfwd.evaluate.scope import combined, energy, max_probability, nearest, neighbours, scope_threshold

RNG = np.random.default_rng(0)


def test_probability_and_energy_are_the_formulas_and_bear_large_logits():
    z = RNG.normal(size=(50, 6)) * 3
    assert max_probability(z, 2.0) == pytest.approx(torch.softmax(torch.tensor(z) / 2, 1).amax(1).numpy())
    assert energy(z, 1.5) == pytest.approx(1.5 * logsumexp(z / 1.5, axis=1))
    assert np.isfinite(energy(z * 1e4)).all() and max_probability(z * 1e4) == pytest.approx(np.ones(50))


@pytest.mark.parametrize("k", [1, 4, 99])
def test_neighbours_are_the_nearest_by_cosine(k: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("feedfwd.evaluate.scope.AT_ONCE", 100)  # many blocks
    e, m = RNG.normal(size=(23, 5)), RNG.normal(size=(31, 5))
    cosine = (e / np.linalg.norm(e, axis=1)[:, None]) @ (m / np.linalg.norm(m, axis=1)[:, None]).T
    found, places = nearest(e, m, k)
    assert found == pytest.approx(-np.sort(-cosine, axis=1)[:, :k])
    assert np.take_along_axis(cosine, places, 1) == pytest.approx(found)
    assert neighbours(e, m, k) == pytest.approx(found.mean(1))
    with pytest.raises(DataError, match="width"):
        nearest(e, m[:, :4])


def test_a_text_without_a_vector_is_near_nothing():
    assert neighbours(np.zeros((1, 3)), np.eye(3), 2).tolist() == [0.0]


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_the_threshold_rejects_at_most_the_share_on_average(rate: float):
    shares = [np.mean(RNG.normal(size=2000) < scope_threshold(RNG.normal(size=199), rate)) for _ in range(400)]
    assert np.mean(shares) == pytest.approx(rate, abs=2.5 * np.std(shares) / 20)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        scope_threshold(np.arange(9.0), 1.0)


def test_scores_of_different_kinds_add_up():
    a, b = RNG.normal(3, 2, 1000), RNG.normal(-50, 9, 1000)
    both = combined([a, b], [(a.mean(), a.std()), (b.mean(), b.std())])
    assert both == pytest.approx(((a - a.mean()) / a.std() + (b - b.mean()) / b.std()) / 2)
