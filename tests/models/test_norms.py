"""RMSNorm in C: what the formula gives, in either precision, and where it is left to torch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from feedfwd.ffn import plain
from feedfwd.ffn.kernels.compiler import toolchain
from feedfwd.ffn.spec import FFNSpec
from feedfwd.models import norms_native
from feedfwd.models.norms import RMSNorm, added, of_sum
from feedfwd.models.transformer import Transformer

pytestmark = pytest.mark.skipif(bool(toolchain()[1]), reason=toolchain()[1])


def made(shape: tuple[int, ...]) -> tuple[RMSNorm, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = RMSNorm(shape[-1], eps=1e-3, into_products=True)
    layer.weight.data.uniform_(0.5, 2.0)
    return layer, torch.randn(shape).requires_grad_(), torch.randn(shape)


@pytest.mark.parametrize("shape", [(3, 7, 48), (200, 33), (1, 5), (129, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer, x, dy = made(shape)
    dy = dy.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = layer(x)
    assert y.dtype == dtype and y.grad_fn.in_c
    exact, weight = x.detach().double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    wanted = exact * weight / (exact.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    limit = 1e-6 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(y.double(), wanted, rtol=limit, atol=1e-6)
    found, right = torch.autograd.grad(y, [x, layer.weight], dy), torch.autograd.grad(
        wanted, [exact, weight], dy.double()
    )  # fmt: skip
    for one, other in zip(found, right, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sum_and_its_norm_are_what_they_are_one_after_the_other(dtype: torch.dtype) -> None:
    layer, x, dy = made((5, 30, 48))
    branch, dtotal, dy = torch.randn(x.shape).to(dtype).requires_grad_(), torch.randn(x.shape), dy.to(dtype)
    inputs = [x, branch, layer.weight]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = added(layer, x, branch)
        with plain():
            wanted = added(layer, x, branch)
        watched: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _, __, y: watched.append(y))
        added(layer, x, branch)
        handle.remove()
    assert "Added" in str(found[0].grad_fn) and "Added" not in str(wanted[0].grad_fn)
    assert len(watched) == 1
    assert torch.equal(found[0], wanted[0])
    rtol, atol = (1e-5, 1e-4) if dtype == torch.float32 else (8e-3, 2e-3)
    torch.testing.assert_close(found[1], wanted[1].to(dtype), rtol=rtol, atol=atol)
    one = torch.autograd.grad(found, inputs, [dtotal, dy])
    other = torch.autograd.grad(wanted, inputs, [dtotal, dy.to(wanted[1].dtype)])
    for ours, right in zip(one, other, strict=True):
        assert ours.dtype == right.dtype
        torch.testing.assert_close(ours, right, rtol=rtol, atol=atol)


def test_layer_norm_of_a_sum_is_torchs_in_two_precisions() -> None:
    torch.manual_seed(0)
    layer, x = nn.LayerNorm(48), torch.randn(5, 30, 48).requires_grad_()
    layer.weight.data.uniform_(0.5, 2.0)
    layer.bias.data.uniform_(-1.0, 1.0)
    branch, dy, dlow = torch.randn(x.shape).bfloat16().requires_grad_(), torch.randn(x.shape), torch.randn(x.shape)
    inputs = [x, branch, layer.weight, layer.bias]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, low = of_sum(layer, x, branch)
        with plain():
            wanted, same = of_sum(layer, x, branch)
    assert "Added" in str(y.grad_fn) and wanted is same
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(low, y.bfloat16())
    found = torch.autograd.grad([y, low], inputs, [dy, dlow.bfloat16()])
    right = torch.autograd.grad(wanted, inputs, dy + dlow.bfloat16().float())
    for one, other in zip(found, right, strict=True):
        assert one.dtype == other.dtype
        low_is_coarse = one.dtype == torch.bfloat16
        torch.testing.assert_close(
            one, other, rtol=8e-3 if low_is_coarse else 1e-4, atol=1e-3 if low_is_coarse else 1e-4
        )


def test_a_result_that_nobody_takes_has_no_gradient() -> None:
    layer, x = nn.LayerNorm(48), torch.randn(70, 48).requires_grad_()
    branch, dy = torch.randn(x.shape).bfloat16(), torch.randn(x.shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, low = of_sum(layer, x, branch)
    for one, back in ((y, dy), (low, dy.bfloat16())):
        (found,) = torch.autograd.grad(one, x, back, retain_graph=True)
        (wanted,) = torch.autograd.grad(layer(x + branch), x, back.float())
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_an_encoder_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = norms_native.layer_forward
    monkeypatch.setattr(norms_native, "layer_forward", lambda *a: calls.append("") or real(*a))
    settings = {"norm_kind": "layer", "norm_place": "post", "positions": "learned", "causal": False, "bias": "all"}
    model = Transformer(50, width=32, depth=2, heads=4, hidden=64, head="none", **settings)
    ids = torch.randint(0, 50, (2, 9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(ids)
        with plain():
            wanted = model(ids)
    assert len(calls) == 4
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms_native, "ALONE", 1)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        layer, x, dy = made((333, 40))
        y = layer(x)
        found.append([y, *torch.autograd.grad(y, [x, layer.weight], dy)])
    torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_only_what_products_take_is_narrow() -> None:
    model = Transformer(50, width=32, depth=1, heads=4, hidden=48)
    kinds = {}
    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            module.register_forward_hook(lambda _, __, y, name=name: kinds.update({name: y.dtype}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.hidden(torch.zeros(1, 3, dtype=torch.long))
    narrow = torch.bfloat16
    assert kinds == {"blocks.0.attention_norm": narrow, "blocks.0.ffn_norm": narrow, "norm": torch.float32}


def test_a_layer_of_ones_own_sees_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    model = Transformer(50, width=32, depth=1, heads=4, hidden=48, ffn=FFNSpec(kind="stranger:Maxout"))
    seen = []
    for block in model.blocks:
        block.ffn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.hidden(torch.zeros(1, 3, dtype=torch.long))
    assert seen == [torch.float32]


def test_a_second_derivative_is_there_under_plain() -> None:
    layer, x, dy = made((4, 6))
    with plain():
        (first,) = torch.autograd.grad(layer(x), x, dy, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second.abs().sum() > 0


def test_it_says_what_it_does_not_serve() -> None:
    x, weight = torch.zeros(2, 4), torch.ones(4)
    assert norms_native.lacks(x, weight, torch.float32) is None
    assert "fp32" in (norms_native.lacks(x.double(), weight, torch.float32) or "")
    assert "float16" in (norms_native.lacks(x, weight, torch.float16) or "")
    with plain():
        assert "plain" in (norms_native.lacks(x, weight, torch.float32) or "")
