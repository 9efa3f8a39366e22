"""Calibration error, what it would be by chance, and temperature scaling."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from feedfwd.errors import DataError
from feedfwd.evaluate import (
    calibration_error,
    expected_calibration_error_if_perfect,
    fit_temperature,
    reliability_bins,
)


def plain_error(confidence, right, bins=15):
    """Guo et al. 2017, equations 2, 3 and 5, word for word."""
    total = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_the_error_is_the_papers(n):
    generator = np.random.default_rng(n)
    confidence = generator.uniform(0.1, 1, n)
    right = generator.random(n) < confidence**2
    assert calibration_error(confidence, right) == pytest.approx(plain_error(confidence, right))


def test_bin_edges_belong_below_and_empty_bins_say_none():
    bins = reliability_bins(np.array([0.2, 0.2, 0.4, 1.0, 0.0]), np.array([1, 0, 1, 1, 0], bool), bins=5)
    assert [b["n"] for b in bins] == [3, 1, 0, 0, 1]  # 0.0 has no bin below the first
    assert bins[2] == {"low": 0.4, "high": 0.6, "n": 0, "confidence": None, "accuracy": None, "interval": None}
    assert bins[0]["accuracy"] == pytest.approx(1 / 3)
    assert bins[0]["confidence"] == pytest.approx(0.4 / 3)
    low, high = bins[0]["interval"]
    assert 0 < low < 1 / 3 < high < 1


def test_a_perfectly_calibrated_model_shows_its_expected_noise():
    generator = np.random.default_rng(0)
    confidence = generator.beta(5, 1.5, 3000)
    mean, high = expected_calibration_error_if_perfect(confidence, simulations=2000)
    measured = np.array([calibration_error(confidence, generator.random(3000) < confidence) for _ in range(400)])
    assert 0 < mean < high < 0.05
    assert measured.mean() == pytest.approx(mean, rel=0.05)
    assert (measured <= high).mean() == pytest.approx(0.95, abs=0.04)
    # and one that is overconfident by a tenth stands out
    assert calibration_error(confidence, generator.random(3000) < confidence - 0.1) > high


def test_the_expected_noise_falls_with_n_and_is_seeded():
    confidence = np.random.default_rng(1).uniform(0.5, 1, 4000)
    few, many = (expected_calibration_error_if_perfect(confidence[:n])[0] for n in (250, 4000))
    assert few / many == pytest.approx(4, rel=0.25)
    assert expected_calibration_error_if_perfect(confidence) == expected_calibration_error_if_perfect(confidence)


def test_temperature_undoes_a_known_overconfidence():
    generator = np.random.default_rng(2)
    z = generator.normal(size=(20_000, 4)) * 2
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    y = (p.cumsum(1) > generator.random((20_000, 1))).argmax(1)  # drawn from the model itself: T is 1
    assert fit_temperature(z, y) == pytest.approx(1, abs=0.03)
    assert fit_temperature(torch.tensor(3 * z), torch.tensor(y)) == pytest.approx(3 * fit_temperature(z, y), rel=1e-7)


def test_temperature_is_the_log_losss_minimum():
    generator = np.random.default_rng(3)
    z, y = torch.tensor(generator.normal(size=(60, 5)) * 3), torch.tensor(generator.integers(0, 5, 60))
    z[torch.arange(60), y] += 3.0

    def loss(log_t):
        return float(torch.nn.functional.cross_entropy(z / np.exp(log_t), y))

    best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    assert fit_temperature(z, y) == pytest.approx(np.exp(best.x), rel=1e-5)


def test_temperature_stays_finite_where_the_best_is_at_an_end():
    assert fit_temperature([[2.0, 0.0], [0.0, 2.0]], [0, 1]) == 0.05
    assert fit_temperature([[2.0, 0.0], [0.0, 2.0]], [1, 0]) == 20.0
    with pytest.raises(DataError, match="logits"):
        fit_temperature([1.0, 2.0], [0, 1])
