"""Weights' gradients in C (`kernels.outer`), where the processor multiplies tiles, and the map that takes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from feedfwd.ffn import plain
from feedfwd.ffn.kernels import outer
from feedfwd.ffn.products import mapped

LACKING = outer.lacks(*(torch.zeros(outer.LEAST, 2, dtype=torch.bfloat16) for _ in range(2)))
in_c = pytest.mark.skipif(bool(LACKING), reason=str(LACKING))


def of_error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@in_c
@pytest.mark.parametrize(
    "size", [(1024, 64, 64), (1100, 33, 70), (1025, 5, 3), (2000, 300, 1100), (1500, 1, 1)], ids=str
)
def test_it_is_the_product(size: tuple[int, int, int]) -> None:
    T, N, K = size
    a, b = (torch.randn(T, n).bfloat16() for n in (N, K))
    wanted = a.double().t() @ b.double()
    found = outer.outer(a, b)
    assert of_error(found, wanted) < 3e-3
    wide = torch.randn(T, N + 7).bfloat16()  # a part of a wider matrix
    assert of_error(outer.outer(wide[:, 3 : 3 + N], b), wide[:, 3 : 3 + N].double().t() @ b.double()) < 3e-3
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    assert torch.equal(outer.outer(a, b), found)
    torch.set_num_threads(before)
    assert outer.outer(a, b, out := torch.empty_like(found)) is out
    assert torch.equal(out, found)


@pytest.mark.parametrize("rows", [3, outer.LEAST])
@pytest.mark.parametrize("biased", [True, False])
def test_a_map_has_linears_gradients(rows: int, biased: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, rows, 24).requires_grad_(), torch.randn(40, 24).requires_grad_()
    bias = torch.randn(40).requires_grad_() if biased else None
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
    dy = torch.randn(2, rows, 40).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, wanted = mapped(x, weight, bias), F.linear(x, weight, bias)
    assert torch.equal(found, wanted)
    for one, other in zip(torch.autograd.grad(found, inputs, dy), torch.autograd.grad(wanted, inputs, dy), strict=True):
        assert one.dtype == other.dtype
        assert of_error(one, other.double()) < 6e-3
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mapped(x, weight, bias), wanted)


@in_c
def test_a_map_takes_it() -> None:
    x, weight = torch.randn(outer.LEAST, 8), torch.randn(4, 8).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "Mapped" in str(mapped(x, weight, None).grad_fn.next_functions)
        with plain():
            assert "Mapped" not in str(mapped(x, weight, None).grad_fn.next_functions)


def test_it_says_what_it_does_not_serve() -> None:
    a = torch.zeros(outer.LEAST, 4, dtype=torch.bfloat16)
    assert "tokens" in (outer.lacks(a[1:], a[1:]) or "")
    assert "float32" in (outer.lacks(a.float(), a.float()) or "")
    turned = torch.zeros(4, outer.LEAST, dtype=torch.bfloat16).t()
    assert "row by row" in (outer.lacks(turned, a) or "")
