"""The machine's matrix rate is that of its products, whatever their sizes."""

import time

import torch

from feedfwd.train.precision import FP32, Precision
from feedfwd.train.rate import matrix_rate


def test_it_is_the_rate_of_a_product_alone() -> None:
    rate = matrix_rate([(256, 256, 256), (256, 256, 256), (128, 256, 512)], FP32, "cpu")
    x, w, times = torch.ones(256, 256), torch.ones(256, 256), []
    for _ in range(20):
        began = time.perf_counter()
        x @ w.t()
        times.append(time.perf_counter() - began)
    assert 0.2 < rate * min(times) / (2 * 256**3) < 5


def test_it_takes_tenths_of_a_second_and_leaves_the_random_numbers() -> None:
    state, began = torch.get_rng_state(), time.perf_counter()
    assert matrix_rate([(64, 64, 64)] * 50, Precision("bf16", ""), "cpu") > 0
    assert time.perf_counter() - began < 2
    assert torch.equal(state, torch.get_rng_state())
