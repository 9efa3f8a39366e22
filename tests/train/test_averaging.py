"""EMA: the formula, swapping, and which tensors take part."""

import pytest
import torch
from torch import nn

from feedfwd.train.averaging import EMA


def test_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    ema, expected = EMA(model, decay=0.5), 0.0
    for t in range(20):
        nn.init.constant_(model.weight, t + 1.0)
        ema.update()
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * (t + 1.0)
        assert ema.averages[0].item() == pytest.approx(expected)


def test_swapped_gives_averages_inside_and_the_own_weights_after_even_on_an_error() -> None:
    model = nn.Linear(3, 2)
    ema = EMA(model, decay=0.9)
    own = [p.detach().clone() + 1 for p in model.parameters()]
    with torch.no_grad():
        for p, value in zip(model.parameters(), own, strict=True):
            p.copy_(value)
    ema.update()
    with pytest.raises(RuntimeError), ema.swapped():
        assert all(torch.equal(p, a) for p, a in zip(model.parameters(), ema.averages, strict=True))
        assert not torch.equal(model.weight, own[0])
        raise RuntimeError
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), own, strict=True))


def test_statistics_take_part_and_frozen_parameters_dont() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].requires_grad_(False)
    assert EMA(model, 0.9).names == ["1.weight", "1.bias", "1.running_mean", "1.running_var"]


def test_low_precision_is_averaged_in_fp32() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.constant_(model.weight, 1.0)
    ema = EMA(model, decay=0.9999)
    ema.updates = 10**9  # past the warm-up of the decay
    nn.init.constant_(model.weight, 2.0)
    for _ in range(100):
        ema.update()
    assert ema.averages[0].item() == pytest.approx(2 - 0.9999**100, rel=1e-4)
    with ema.swapped():
        assert model.weight.dtype == torch.bfloat16


def test_state_is_restored() -> None:
    model = nn.Linear(3, 2)
    ema = EMA(model, 0.9)
    for _ in range(5):
        nn.init.normal_(model.weight)
        ema.update()
    other = EMA(nn.Linear(3, 2), 0.9)
    other.load_state_dict(ema.state_dict())
    assert other.updates == 5
    assert all(torch.equal(a, b) for a, b in zip(ema.averages, other.averages, strict=True))


def test_what_is_infinite_stays_so() -> None:
    """The ends of a table's bins are infinite, and ∞ - ∞ is no number."""
    model = nn.Linear(2, 1)
    model.register_buffer("ends", torch.tensor([-torch.inf, 0.0, torch.inf]))
    ema = EMA(model, 0.9)
    ema.update()
    with ema.swapped():
        assert not any(value.isnan().any() for value in model.state_dict().values())
        assert torch.equal(model.state_dict()["ends"], torch.tensor([-torch.inf, 0.0, torch.inf]))
