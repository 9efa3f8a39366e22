"""Dropout by a seed: the share it promises, one mask both ways, and torch's own where it can't serve."""

import pytest
import torch

from feedfwd.ffn import plain
from feedfwd.models.dropout import Dropout, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_gradient_passes_where_the_value_did(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = Dropout(0.3), torch.rand(40, 50, 33, dtype=dtype).add(0.5).requires_grad_()
    y = layer(x)
    assert "Dropped" in str(y.grad_fn) and y.dtype == dtype
    (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(slope == 0, y == 0)
    assert abs(float((y == 0).float().mean()) - 0.3) < 4 * (0.3 * 0.7 / y.numel()) ** 0.5
    torch.testing.assert_close(y, x * slope, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=0)
    assert float(slope.max()) == pytest.approx(1 / 0.7, rel=4e-3)


def test_a_seed_gives_its_mask_and_each_call_a_new_one() -> None:
    layer, x = Dropout(0.5), torch.ones(64, 32)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)


def test_what_does_not_drop_and_what_is_left_to_torch() -> None:
    x = torch.ones(8, 4).requires_grad_()
    assert dropout(0.0)(x) is x
    assert Dropout(0.5).eval()(x) is x
    with plain():
        assert "Dropped" not in str(Dropout(0.5)(x).grad_fn)
    assert isinstance(Dropout(0.5), torch.nn.Dropout)
