"""The formulas against what is built and run."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from feedfwd.config import FFNSpec
from feedfwd.errors import ConfigError
from feedfwd.ffn import plain
from feedfwd.ffn.accounting import describe, equal_hidden, flops, intensity, kept, parameters
from feedfwd.ffn.activations import ACTIVATIONS, GATED
from feedfwd.ffn.kernels.formulas import SIGMA
from feedfwd.ffn.spec import build_ffn

D, H, N = 24, 40, 32
KINDS = [("dense", name) for name in ACTIVATIONS] + [("gated", name) for name in ACTIVATIONS]
KINDS += [("dense", name) for name in GATED]


@pytest.mark.parametrize(("kind", "activation"), KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_those_of_the_layer(kind: str, activation: str, bias: bool) -> None:
    spec = FFNSpec(kind=kind, activation=activation, bias=bias)
    assert parameters(spec, D, H) == sum(p.numel() for p in build_ffn(spec, D, H).parameters())


@pytest.mark.parametrize(("kind", "activation"), [("dense", "gelu"), ("gated", "silu"), ("gated", "relu")])
def test_flops_are_those_that_torch_counts(kind: str, activation: str) -> None:
    spec = FFNSpec(kind=kind, activation=activation, bias=False)
    layer, x = build_ffn(spec, D, H), torch.randn(N, D, requires_grad=True)

    def counted(work: str) -> int:
        with plain(), FlopCounterMode(display=False) as counter:
            y = layer(x)
            if work != "forward":
                y.sum().backward()
        return counter.get_total_flops()

    assert counted("forward") == N * flops(spec, D, H, "forward")
    assert counted("training") == N * flops(spec, D, H, "training")
    layer.requires_grad_(False)
    assert counted("frozen") == N * flops(spec, D, H, "frozen")


def measured(layer: nn.Module, x: Tensor) -> int:
    """Bytes of the storages that autograd keeps, parameters and single numbers left out."""
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    held: list[Tensor] = []  # all at once, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if tensor.numel() > 1:
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    assert y.requires_grad
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    return sum(size for at, size in storages.items() if at not in own)


@pytest.mark.parametrize(("kind", "activation"), [k for k in KINDS if k[1] in ACTIVATIONS])
@pytest.mark.parametrize(("dtype", "dropout"), list(itertools.product(["fp32", "bf16"], [0.0, 0.25])))
def test_bytes_are_those_autograd_keeps(kind: str, activation: str, dtype: str, dropout: float) -> None:
    spec = FFNSpec(kind=kind, activation=activation, dropout=dropout)
    layer = build_ffn(spec, D, H).to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    x = torch.randn(N, D, dtype=layer.down.weight.dtype)
    with plain():
        assert measured(layer, x) == N * kept(spec, D, H, "plain", dtype)
    if activation not in SIGMA:
        with pytest.raises(ConfigError, match="no kernel is written"):
            kept(spec, D, H, "kernels", dtype)
        return
    assert measured(layer, x) == N * kept(spec, D, H, "kernels", dtype)
    layer.recompute = True
    assert measured(layer, x) == N * kept(spec, D, H, "recompute", dtype)


@pytest.mark.parametrize("by", ["parameters", "flops"])
@pytest.mark.parametrize("bias", [True, False])
def test_equal_hidden_costs_the_same(by: str, bias: bool) -> None:
    dense, gated = FFNSpec(activation="gelu", bias=bias), FFNSpec(activation="geglu", bias=bias)
    cost = parameters if by == "parameters" else flops
    for spec, like in ((gated, dense), (dense, gated)):
        equal = equal_hidden(spec, like, 256, 1000, by)
        step = cost(spec, 256, equal + 1) - cost(spec, 256, equal)
        assert abs(cost(spec, 256, equal) - cost(like, 256, 1000)) <= step / 2
        assert equal_hidden(spec, like, 256, 1000, by, multiple=64) % 64 == 0
    assert equal_hidden(gated, dense, 256, 960, "flops") == 640
    assert equal_hidden(gated, dense, 256, 3, multiple=8) == 8


def test_intensity_grows_with_the_tokens_to_a_limit() -> None:
    spec = FFNSpec(activation="swiglu")
    found = [intensity(spec, 512, 1408, n) for n in (1, 16, 256, 4096, 10**9)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(1, rel=0.01) and found[1] == pytest.approx(16, rel=0.1)
    assert found[-1] == pytest.approx(6 * 512 * 1408 / (2 * (2 * 512 + 6 * 1408)), rel=1e-3)
    assert intensity(spec, 512, 1408, 64, "fp32") == intensity(spec, 512, 1408, 64) / 2


def test_a_layer_is_described() -> None:
    text = describe(FFNSpec(activation="swiglu", bias=False), 512, 1408)
    assert text.startswith("gated, swiglu: 512 -> 1,408 -> 512\n") and "2,162,688" in text
    assert "hidden 2,112 (a multiple of 64): the same to 0.1%" in text
    assert "by the kernels" in text and "by the kernels" not in describe(FFNSpec(activation="xielu"), 16, 64)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"kind": "package.module:Layer"}, "a layer of your own"),
        ({"kind": "gted"}, "unknown ffn.kind='gted'"),
        ({"activation": "rellu"}, "did you mean 'relu'"),
    ],
)
def test_what_has_no_formula_raises(spec: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        describe(FFNSpec(**spec), 8, 32)
