"""Whole feed-forward layers with adapters: the fast path beside the plain formula."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from feedfwd.ffn import ACTIVATIONS, DenseFFN, GatedFFN, plain
from feedfwd.ffn.adapted import AdaptedDense, AdaptedGated
from feedfwd.ffn.lora import activate, adapt, adapter_state, merge

D, H, N = 12, 20, 30
KINDS = {"dense": DenseFFN, "gated": GatedFFN}


def layer_of(
    kind: str,
    activation: str = "silu",
    targets: tuple[str, ...] = ("*",),
    method: str = "lora",
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> AdaptedDense | AdaptedGated:
    torch.manual_seed(0)
    layer = KINDS[kind](D, H, activation, bias=True, dropout=dropout, norm="rms").to(dtype)
    adapt(layer, targets, rank=3, alpha=6, dropout=dropout, method=method, bias=method != "dora")
    for tensor in adapter_state(layer).values():
        tensor += 0.2 * torch.randn(tensor.shape, dtype=tensor.dtype)
    assert isinstance(layer, AdaptedDense | AdaptedGated)
    return layer


def gradients(layer: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    leaves = {name: p for name, p in layer.named_parameters() if p.requires_grad} | (
        {"x": x} if x.requires_grad else {}
    )
    dy = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy), strict=True))


FIRST = {"dense": "up", "gated": "gate_up"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_as_its_formula(kind: str, activation: str) -> None:
    layer, x = layer_of(kind, activation), torch.randn(2, N, D, dtype=torch.float64, requires_grad=True)
    with plain():
        twin = layer(x)
    y = layer(x)
    torch.testing.assert_close(y, twin)
    torch.testing.assert_close(gradients(layer, x, y), gradients(layer, x, twin))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("which", "method", "needs_x"), list(itertools.product(["both", "first", "down"], ["lora", "dora"], [True, False]))
)
def test_every_part_adapted_or_not(kind: str, which: str, method: str, needs_x: bool) -> None:
    targets = {"both": ("*",), "first": (FIRST[kind],), "down": ("down",)}[which]
    layer = layer_of(kind, targets=targets, method=method)
    assert layer.explain(torch.zeros(1, D, dtype=torch.float64)).fast
    x = torch.randn(N, D, dtype=torch.float64, requires_grad=needs_x)
    with plain():
        twin = layer(x)
    y = layer(x)
    torch.testing.assert_close(y, twin)
    torch.testing.assert_close(gradients(layer, x, y), gradients(layer, x, twin))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_dropout_s_masks_have_their_part_in_the_gradient(kind: str, method: str) -> None:
    """Slope along a random direction, by differences with the seed held."""
    layer = layer_of(kind, "gelu", method=method, dropout=0.3)
    x = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    if method == "dora":  # its norm counts as a constant in the gradient, so hold it
        for m in (layer.down, layer.up if kind == "dense" else layer.gate_up):
            norms = m._norms("default")
            m._norms = lambda name, norms=norms: norms

    def loss() -> Tensor:
        torch.manual_seed(7)
        return layer(x).sin().sum()

    leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
    found = torch.autograd.grad(loss(), leaves)
    for leaf, gradient in zip(leaves, found, strict=True):
        direction, step = torch.randn_like(leaf), 1e-6
        with torch.no_grad():
            above = loss_at(loss, leaf, step * direction)
            below = loss_at(loss, leaf, -step * direction)
        assert (above - below) / (2 * step) == pytest.approx((gradient * direction).sum().item(), rel=1e-5, abs=1e-7)


def loss_at(loss: object, leaf: Tensor, move: Tensor) -> float:
    leaf += move
    value = loss().item()
    leaf -= move
    return value


def kept(layer: nn.Module, x: Tensor) -> int:
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.numel() > 1:
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    return sum(size for at, size in sizes.items() if at not in own)


@pytest.mark.parametrize(("kind", "parts"), [("dense", 1), ("gated", 2)])
def test_x_the_first_product_and_narrow_ones_are_kept(kind: str, parts: int) -> None:
    layer = layer_of(kind, "gelu", dropout=0.1, dtype=torch.bfloat16).to(torch.bfloat16)
    layer.norm = nn.Identity()
    x = torch.randn(N, D, dtype=torch.bfloat16, requires_grad=True)
    biases = 2 * (parts * H + D)  # the adapter's and the base's, added
    assert kept(layer, x) <= 2 * N * (D + parts * H + 3 * parts + 3) + biases


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_backward_raises(kind: str) -> None:
    layer, x = layer_of(kind), torch.randn(N, D, dtype=torch.float64)
    y = layer(x).sum()
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        y.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_and_checkpointing(kind: str) -> None:
    def run(recompute: bool) -> dict[str, Tensor]:
        layer = layer_of(kind, dropout=0.2)
        x = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
        torch.manual_seed(3)
        for part in x.split(N // 2):
            y = checkpoint(layer, part, use_reentrant=False) if recompute else layer(part)
            y.square().sum().backward()
        return {name: p.grad for name, p in layer.named_parameters() if p.grad is not None} | {"x": x.grad}

    torch.testing.assert_close(run(True), run(False), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind: str) -> None:
    layer = layer_of(kind, dtype=torch.float32)
    x = torch.randn(N, D, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        with plain():
            twin = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, twin, atol=0.1, rtol=0.05)
    ours, theirs = gradients(layer, x, y), gradients(layer, x, twin)
    for name, gradient in ours.items():
        assert gradient.dtype == torch.float32
        assert (gradient - theirs[name]).norm() < 0.02 * theirs[name].norm(), name


@pytest.mark.parametrize("kind", KINDS)
def test_inactive_merged_and_copied(kind: str) -> None:
    layer = layer_of(kind, dropout=0.5).eval()
    x = torch.randn(N, D, dtype=torch.float64)
    adapted = layer(x)
    torch.testing.assert_close(copy.deepcopy(layer)(x), adapted)
    torch.testing.assert_close(merge(copy.deepcopy(layer))(x), adapted)
    activate(layer, None)
    torch.manual_seed(0)
    torch.testing.assert_close(layer(x), KINDS[kind](D, H, "silu", bias=True, norm="rms").double().eval()(x))


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_when_and_why_it_is_plain(kind: str) -> None:
    layer, x = layer_of(kind), torch.zeros(1, D, dtype=torch.float64)
    assert "x, the first product" in str(layer.explain(x))
    with plain():
        assert "under feedfwd.ffn.plain()" in str(layer.explain(x))
    handle = layer.activation.register_forward_hook(lambda *_: None)
    assert "a hook sits on its SiLU" in str(layer.explain(x))
    handle.remove()
    layer.down.base.weight.requires_grad_()
    assert "being trained too" in str(layer.explain(x))
    with plain():
        twin = layer(x)
    torch.testing.assert_close(layer(x), twin)
    assert "no kernel is written for XIELU" in str(layer_of(kind, "xielu").explain(x))


def test_a_trained_weight_gets_its_gradient() -> None:
    layer, x = layer_of("gated"), torch.randn(N, D, dtype=torch.float64)
    layer.down.base.weight.requires_grad_()
    layer(x).sum().backward()
    assert layer.down.base.weight.grad is not None and layer.down.base.weight.grad.any()
