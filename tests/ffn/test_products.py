"""The products of a linear map in C (`kernels.maps`), where the processor multiplies tiles, and what takes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from feedfwd.ffn import DenseFFN, GatedFFN, explain, plain
from feedfwd.ffn.kernels import maps
from feedfwd.ffn.parts import Linear
from feedfwd.ffn.products import applied, linear, mapped

LACKING = maps.lacks_linear(torch.zeros(maps.LEAST, 32, dtype=torch.bfloat16), [torch.zeros(32, 32)])
in_c = pytest.mark.skipif(bool(LACKING), reason=str(LACKING))
SIZES = [(64, 32, 32), (79, 96, 160), (257, 64, 32), (300, 416, 96), (700, 544, 64), (1000, 160, 1056)]


def of_error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@in_c
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_map_is_the_product(size: tuple[int, int, int]) -> None:
    T, K, N = size
    x, dy, weight, bias = torch.randn(T, K).bfloat16(), torch.randn(T, N).bfloat16(), torch.randn(N, K), torch.randn(N)
    rounded = weight.bfloat16().double()
    y, dx = torch.empty(T, N).bfloat16(), torch.empty(T, K).bfloat16()
    assert of_error(maps.linear(x, [weight], [bias], y), x.double() @ rounded.t() + bias.double()) < 2e-3
    assert of_error(maps.linear(x, [weight], [None], y), x.double() @ rounded.t()) < 2e-3
    assert of_error(maps.linear(dy, [weight.t()], [None], dx), dy.double() @ rounded) < 2e-3
    wide = torch.randn(T, N + 7).bfloat16()  # a part of a wider matrix
    assert (
        of_error(maps.linear(wide[:, 3 : 3 + N], [weight.t()], [None], dx), wide[:, 3 : 3 + N].double() @ rounded)
        < 2e-3
    )


@pytest.mark.parametrize("rows", [3, 200, 2500])
@pytest.mark.parametrize("biased", [True, False])
def test_several_maps_are_one(rows: int, biased: bool) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(n, 64).requires_grad_() for n in (96, 32, 32)]
    biases = [torch.randn(len(w)).requires_grad_() if biased else None for w in weights]
    x, dy = torch.randn(rows, 64).requires_grad_(), torch.randn(rows, 160).bfloat16()
    inputs = [x, *weights, *(bias for bias in biases if bias is not None)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mapped(x, weights, biases)
        wanted = torch.cat([F.linear(x, *both) for both in zip(weights, biases, strict=True)], 1)
    assert of_error(found, wanted.double()) < 6e-3
    for one, other in zip(torch.autograd.grad(found, inputs, dy), torch.autograd.grad(wanted, inputs, dy), strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert of_error(one, other.double()) < 6e-3


@in_c
@pytest.mark.parametrize("size", [*SIZES, (1100, 33, 70), (1025, 5, 3), (2000, 300, 1100), (1500, 1, 1)], ids=str)
def test_a_weights_gradient_is_the_product(size: tuple[int, int, int]) -> None:
    T, N, K = size
    a, b = (torch.randn(T, n).bfloat16() for n in (N, K))
    wanted = a.double().t() @ b.double()
    found = torch.empty(N, K)
    assert maps.outer(a, b, found) is found
    assert of_error(found, wanted) < 1e-6
    assert of_error(maps.outer(a, b, torch.ones(N, K), add=True), wanted + 1) < 1e-6
    sums = torch.empty(N)
    maps.outer(a, b, found, sums=sums)
    assert of_error(sums, a.double().sum(0)) < 1e-6
    wide = torch.randn(T, N + 7).bfloat16()
    assert of_error(maps.outer(wide[:, 3 : 3 + N], b, found), wide[:, 3 : 3 + N].double().t() @ b.double()) < 1e-6


@in_c
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("sigma", ["gelu", "silu"])
def test_a_product_bends_what_it_adds_up(size: tuple[int, int, int], gated: bool, biased: bool, sigma: str) -> None:
    T, K, H = size
    M = 2 * H if gated else H
    x, dy, down = torch.randn(T, K).bfloat16(), torch.randn(T, K).bfloat16(), torch.randn(K, H)
    weight, bias = torch.randn(M, K) / K**0.5, torch.randn(M) if biased else None
    found_z, found_a = torch.empty(T, M).bfloat16(), torch.empty(T, H).bfloat16()
    assert maps.bends(x, weight, H, sigma)
    maps.bent(x, weight, bias, found_z, found_a, sigma)
    z = maps.linear(x, [weight], [bias], torch.empty(T, M).bfloat16())
    assert torch.equal(found_z, z)
    of_z = z.double().requires_grad_()
    a = F.gelu(of_z[:, :H]) if sigma == "gelu" else F.silu(of_z[:, :H])
    a = a * of_z[:, H:] if gated else a
    assert of_error(found_a, a.detach()) < 3e-3
    (wanted,) = torch.autograd.grad(a, of_z, dy.double() @ down.bfloat16().double())
    again = torch.empty_like(found_a)
    maps.bent_back(dy, down, found_z, again, sigma)
    assert torch.equal(again, found_a)
    assert of_error(found_z, wanted) < 3e-3


@in_c
def test_the_threads_change_nothing() -> None:
    x, dy, weight = torch.randn(700, 96).bfloat16(), torch.randn(700, 320).bfloat16(), torch.randn(320, 96)
    down = torch.randn(96, 160)

    def all_three() -> list[Tensor]:
        y, dx = (torch.empty(700, n, dtype=torch.bfloat16) for n in (320, 96))
        maps.linear(x, [weight], [None], y)
        maps.linear(dy, [weight.t()], [None], dx)
        z, a, again = (torch.empty(700, n, dtype=torch.bfloat16) for n in (320, 160, 160))
        maps.bent(x, weight, None, z, a, "silu")
        maps.bent_back(x, down, z, again, "silu")
        return [y, dx, maps.outer(dy, x, torch.empty(320, 96)), z, a, again]

    before, found = torch.get_num_threads(), all_three()
    for threads in (1, 3, 16, 30):  # more than there are panels, too
        torch.set_num_threads(threads)
        assert all(map(torch.equal, all_three(), found))
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [3, maps.LEAST, 2048])
@pytest.mark.parametrize("biased", [True, False])
def test_it_has_linears_gradients(rows: int, biased: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, rows, 64).requires_grad_(), torch.randn(96, 64).requires_grad_()
    bias = torch.randn(96).requires_grad_() if biased else None
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
    dy = torch.randn(2, rows, 96).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, wanted = mapped(x, [weight], [bias]), F.linear(x, weight, bias)
    assert of_error(found, wanted.double()) < 6e-3
    for one, other in zip(torch.autograd.grad(found, inputs, dy), torch.autograd.grad(wanted, inputs, dy), strict=True):
        assert one.dtype == other.dtype
        assert of_error(one, other.double()) < 6e-3
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mapped(x, [weight], [bias]), found)


@in_c
@pytest.mark.parametrize("activation", ["gelu", "relu", "swiglu"])
def test_a_layers_gradients_are_no_farther_off_than_torchs(activation: str) -> None:
    layer = GatedFFN(64, 96) if activation == "swiglu" else DenseFFN(64, 96, activation)
    x, dy = torch.randn(200, 64), torch.randn(200, 64)
    layer.double()
    torch.autograd.backward(layer(x.double()), dy.double())
    exact = [p.grad for p in layer.parameters() if p.grad is not None]
    layer.float()

    def errors() -> list[float]:
        for p in layer.parameters():
            p.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        torch.autograd.backward(y, dy.to(y.dtype))
        return [of_error(p.grad, e) for p, e in zip(layer.parameters(), exact, strict=True) if p.grad is not None]

    with plain():
        by_torch = errors()
    ours = errors()
    assert len(ours) == len(exact)
    assert max(ours) < 1.2 * max(by_torch) < 0.06


@in_c
@pytest.mark.parametrize("gated", [False, True])
def test_a_layer_bends_within_its_products(gated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = GatedFFN(32, 64) if gated else DenseFFN(32, 64, "gelu")
    seen: list[str] = []
    for name in ("bent", "bent_back"):
        real = getattr(maps, name)
        monkeypatch.setattr(maps, name, lambda *all, name=name, real=real: seen.append(name) or real(*all))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.randn(maps.LEAST, 32)
        assert "within the products" in explain(layer, x).passes
        layer(x).float().sum().backward()
        assert seen == ["bent", "bent_back"]
        for other in (DenseFFN(32, 64, "relu"), DenseFFN(32, 64, "gelu", dropout=0.1), DenseFFN(32, 48, "gelu")):
            assert "within" not in explain(other, x).passes
            other(x)
        assert "within" not in explain(layer, x[1:]).passes
    assert len(seen) == 2


@in_c
def test_what_takes_it() -> None:
    x, layer = torch.randn(maps.LEAST, 32), Linear(32, 64)

    def in_c() -> bool:
        made_by = applied(layer, x).grad_fn
        assert made_by is not None
        return "Mapped" in str(made_by.next_functions)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert in_c()
        with plain():
            assert not in_c()
        seen: list[Tensor] = []
        layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
        assert not in_c()
    assert len(seen) == 1
    frozen = linear(x.bfloat16(), layer.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # of many tokens the weight is cast, and its gradient is not
        many = applied(Linear(32, 64), torch.randn(2500, 32))
    assert "Mapped" in str(many.grad_fn.next_functions if many.grad_fn else "")
    assert torch.equal(frozen, maps.linear(x.bfloat16(), [layer.weight], [None], torch.empty_like(frozen)))


def test_a_weight_is_taken_in_the_inputs_precision() -> None:
    x, weight = torch.randn(3, 5, dtype=torch.float64), torch.randn(2, 5)
    assert torch.equal(linear(x, weight), x @ weight.double().t())


def test_it_says_what_it_does_not_serve() -> None:
    x, weight = torch.zeros(maps.LEAST, 32, dtype=torch.bfloat16), torch.zeros(64, 32)
    assert "fewer" in (maps.lacks_linear(x[1:], [weight]) or "")
    assert "float32" in (maps.lacks_linear(x.float(), [weight]) or "")
    assert "bfloat16" in (maps.lacks_linear(x, [weight.bfloat16()]) or "")
    assert "multiples of 32" in (maps.lacks_linear(x, [torch.zeros(65, 32)]) or "")
    assert "row by row" in (maps.lacks_linear(torch.zeros(32, maps.LEAST, dtype=torch.bfloat16).t(), [weight]) or "")
    assert "tokens" in (maps.lacks(x[1:], x[1:]) or "")

    class Elsewhere(Tensor):
        pass

    assert "Elsewhere" in (maps.lacks_linear(x, [weight.as_subclass(Elsewhere)]) or "")
    assert "Elsewhere" in (maps.lacks(x.as_subclass(Elsewhere), x) or "")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mapped(x, [weight.as_subclass(Elsewhere)], [None])
    assert type(y) is Elsewhere and y.shape == (maps.LEAST, 64)
    assert "float32" in (maps.lacks(x, x.float()) or "")
    assert not maps.bends(x, torch.zeros(96, 32), 48, "silu")  # though its rows are a multiple of 32
    assert "row by row" in (maps.lacks(x, torch.zeros(4, maps.LEAST, dtype=torch.bfloat16).t()) or "")
