"""The kernels against their formula in fp64, against eager's rounding errors, and against all that torch wraps around a
layer. What each promise is for, docs/feed-forward.md tells."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from feedfwd.errors import ConfigError
from feedfwd.ffn import GATED, DenseFFN, GatedFFN, activation, explain, plain
from feedfwd.ffn.kernels import dense, gated, native, pages
from feedfwd.ffn.kernels.formulas import FROM_OUTPUT, SIGMA, Dropout, Passes, TorchPasses

N, D, H = 96, 48, 80
KINDS = {True: gated, False: dense}
TENSORS = ("x", "first", "bias", "down", "down_bias")


def tensors(
    is_gated: bool,
    dtype: torch.dtype = torch.float64,
    bias: bool = True,
    shape: tuple[int, ...] = (N,),
    d: int = D,
    h: int = H,
) -> list[Tensor | None]:
    """x, first, bias, down, down_bias."""
    generator = torch.Generator().manual_seed(1)
    m = 2 * h if is_gated else h

    def make(scale: float, *size: int) -> Tensor:
        return (scale * torch.randn(*size, dtype=torch.float64, generator=generator)).to(dtype).requires_grad_()

    biases = (make(0.5, m), make(0.5, d)) if bias else (None, None)
    return [make(1, *shape, d), make(d**-0.5, m, d), biases[0], make(h**-0.5, d, h), biases[1]]


def formula(
    x: Tensor,
    first: Tensor,
    bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    name: str,
    is_gated: bool,
    mask: Tensor | None = None,
) -> Tensor:
    z, sigma = F.linear(x, first, bias), activation(name).to(x.dtype)
    if is_gated:
        gate, up = z.chunk(2, dim=-1)
        a = sigma(gate) * up
    else:
        a = sigma(z)
    return F.linear(a if mask is None else a * mask.to(a.dtype), down, down_bias)


def run(call: Any, given: list[Tensor | None]) -> list[Tensor]:
    """The output and the gradients of all that is given, for a fixed gradient of the output."""
    leaves = [t for t in given if t is not None]
    y = call(*given)
    dy = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def rms(a: Tensor, exact: Tensor) -> float:
    return (a.double() - exact).square().mean().sqrt().item()


def exact(given: list[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.detach().double().requires_grad_() for t in given]


def mask_of(seed: int, p: float, shape: tuple[int, int]) -> Tensor:
    """Dropout's mask times its scale, as a kernel draws it right after manual_seed(seed)."""
    torch.manual_seed(seed)
    mask = torch.empty(shape, dtype=torch.float64)
    TorchPasses("identity").dense_forward(torch.ones_like(mask), mask, Dropout.draw(p, mask))
    return mask


@pytest.fixture(params=["native", "torch"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each kind of pointwise passes that a CPU has."""
    from feedfwd.ffn.kernels import function

    if request.param == "native" and native.passes("silu", torch.float32)[0] is None:
        pytest.skip(native.passes("silu", torch.float32)[1])
    if request.param == "torch":
        monkeypatch.setattr(function, "choose", lambda sigma, dtype, device: (TorchPasses(sigma), "chosen by the test"))
    yield request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("name", SIGMA)
@pytest.mark.parametrize("is_gated", [True, False], ids=["gated", "dense"])
@pytest.mark.usefixtures("passes")
def test_forward_and_gradients_are_the_formulas(is_gated: bool, name: str, dtype: torch.dtype) -> None:
    allowed = {torch.float64: 0.0, torch.float32: 1.5, torch.bfloat16: 1.1}[dtype]
    for bias in (True, False):
        given = tensors(is_gated, dtype, bias)
        for p in (0.0, 0.3):
            mask = mask_of(5, p, (N, H)) if p else None
            right = run(lambda *t, mask=mask: formula(*t, name, is_gated, mask), exact(given))
            eager = run(lambda *t, mask=mask: formula(*t, name, is_gated, mask), given)
            for recompute in (False, True):
                torch.manual_seed(5)
                ours = run(lambda *t, p=p, r=recompute: KINDS[is_gated](*t, name, p, r), given)
                for part, a, b, c in zip(("y", *TENSORS), ours, eager, right, strict=False):
                    noise = 1 + 2 * c.numel() ** -0.5  # of an error that is a mean over so many numbers
                    worst = allowed * noise * rms(b, c) + 1e-13
                    assert a.dtype == dtype and rms(a, c) <= worst, (part, bias, p, recompute, rms(a, c), rms(b, c))


@pytest.mark.parametrize("name", ["silu", "gelu", "relu", "relu2", "tanh"])
@pytest.mark.parametrize("is_gated", [True, False], ids=["gated", "dense"])
@pytest.mark.usefixtures("passes")
def test_autocast_is_eagers_autocast(is_gated: bool, name: str) -> None:
    given = tensors(is_gated, torch.float32)
    right = run(lambda *t: formula(*t, name, is_gated), exact(given))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eager, ours = (
            run(lambda *t: formula(*t, name, is_gated), given),
            run(lambda *t: KINDS[is_gated](*t, name), given),
        )
    assert ours[0].dtype == eager[0].dtype == torch.bfloat16
    assert all(a.dtype == torch.float32 for a in ours[1:])
    for a, b, c in zip(ours, eager, right, strict=True):
        assert rms(a, c) <= 1.1 * (1 + 2 * c.numel() ** -0.5) * rms(b, c)


@pytest.mark.parametrize("is_gated", [True, False], ids=["gated", "dense"])
@pytest.mark.parametrize("name", ["silu", "gelu_tanh", "relu2", "mish"])
def test_gradients_are_the_slope_of_the_output(is_gated: bool, name: str) -> None:
    """By differences in fp64: gradcheck itself goes back twice through one graph, which the kernels refuse."""
    given = tensors(is_gated, shape=(3,), d=5, h=7)
    grads = run(lambda *t: KINDS[is_gated](*t, name), given)[1:]
    dy = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for t, grad in zip(given, grads, strict=True):
        direction = torch.randn_like(t)
        with torch.no_grad():
            t += 1e-6 * direction
            above = (KINDS[is_gated](*given, name) * dy).sum()
            t -= 2e-6 * direction
            below = (KINDS[is_gated](*given, name) * dy).sum()
            t += 1e-6 * direction
        torch.testing.assert_close((grad * direction).sum(), (above - below) / 2e-6, rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    leading=st.lists(st.integers(0, 4), max_size=3),
    d=st.integers(1, 9),
    h=st.integers(1, 70),
    is_gated=st.booleans(),
    recompute=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    name=st.sampled_from(sorted(SIGMA)),
)
def test_any_shape(
    leading: list[int], d: int, h: int, is_gated: bool, recompute: bool, dtype: torch.dtype, name: str
) -> None:
    given = tensors(is_gated, dtype, shape=tuple(leading), d=d, h=h)
    ours = run(lambda *t: KINDS[is_gated](*t, name, 0.0, recompute), given)
    right = run(lambda *t: formula(*t, name, is_gated), exact(given))
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype]
    for a, b in zip(ours, right, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0, 2)])
@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.usefixtures("passes")
def test_no_tokens_and_one(shape: tuple[int, ...], p: float) -> None:
    for is_gated, call in KINDS.items():
        for name in ("silu", "relu"):
            given = tensors(is_gated, torch.bfloat16, shape=shape)
            ours = run(lambda *t, call=call, name=name: call(*t, name, p), given)
            assert [t.shape for t in ours] == [given[0].shape, *(t.shape for t in given)]
            assert all(t.isfinite().all() for t in ours)
            if 0 in shape:
                assert not any(t.any() for t in ours[2:])


# ---- what is kept ----------------------------------------------------------------------------------------------------


def kept_bytes(call: Any, given: list[Tensor | None]) -> int:
    """What autograd holds between forward and backward, parameters apart."""
    parameters = {t.data_ptr() for t in given[1:] if t is not None}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(*given)
    return sum(kept.values())


@pytest.mark.parametrize("tokens", [1, 64, 4096])
def test_bytes_kept_for_the_backward(tokens: int) -> None:
    pages.release()
    for bias in (True, False):
        given = tensors(True, torch.bfloat16, bias, (tokens,), 64, 172)
        assert kept_bytes(lambda *t: gated(*t), given) == tokens * (2 * 64 + 4 * 172)
        assert kept_bytes(lambda *t: gated(*t, recompute=True), given) == tokens * 2 * 64
        assert kept_bytes(lambda *t: gated(*t, dropout=0.1), given) == tokens * (2 * 64 + 4 * 172) + 8  # its seed
        given = tensors(False, torch.bfloat16, bias, (tokens,), 64, 172)
        for name in ("relu", "relu2", "gelu"):
            assert kept_bytes(lambda *t, name=name: dense(*t, name), given) == tokens * 2 * (64 + 172)
        assert kept_bytes(lambda *t: dense(*t, "gelu", 0.1, recompute=True), given) == tokens * 2 * 64 + 8


def test_a_layer_keeps_no_more_than_its_kernel() -> None:
    layer = GatedFFN(64, 172, dropout=0.0).bfloat16()
    x = torch.randn(2, 8, 64, dtype=torch.bfloat16, requires_grad=True)
    given = [x, *layer.parameters()]
    assert kept_bytes(lambda x, *_: layer(x), given) == 16 * (2 * 64 + 4 * 172)
    with plain():
        assert kept_bytes(lambda x, *_: layer(x), given) == 16 * (2 * 64 + 8 * 172)


def test_a_second_backward_raises() -> None:
    for call, is_gated in ((gated, True), (dense, False)):
        given = tensors(is_gated)
        y = call(*given).sum()
        y.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="second backward"):
            y.backward()
        with pytest.raises(RuntimeError, match=r"plain\(\)"):
            torch.autograd.grad(call(*given).sum(), given[0], create_graph=True)
        y = call(*given).sum()
        y.backward()
        with pytest.raises(RuntimeError):
            y.backward()


def test_a_second_derivative_by_the_plain_formula() -> None:
    layer, x = GatedFFN(6, 9), torch.randn(4, 6, requires_grad=True)
    with plain():
        (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_an_input_changed_in_between_is_noticed() -> None:
    given = tensors(True)
    x = given[0].detach().clone().requires_grad_()
    moved = x * 1
    y = gated(moved, *given[1:])
    moved += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1e-4, 0.1, 0.5, 0.9, 0.99999])
@pytest.mark.usefixtures("passes")
def test_dropout_drops_its_share_and_keeps_the_mean(p: float) -> None:
    h = 1500
    x, first, down = torch.ones(2000, 1), torch.ones(h, 1), torch.eye(h)
    seen = dense(x, first, None, down, None, "identity", p)
    share = (seen == 0).double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / seen.numel()) ** 0.5 + 1 / 65536
    if p < 0.99:
        assert seen.double().mean().item() == pytest.approx(1, abs=5 * (p / (1 - p) / seen.numel()) ** 0.5)
    columns = (seen == 0).double().mean(0)
    assert (columns - p).abs().max() < 6 * (p * (1 - p) / 2000) ** 0.5 + 1e-3  # no column is favoured


def test_dropout_follows_torchs_seed() -> None:
    layer, x = GatedFFN(8, 300, dropout=0.5), torch.randn(40, 8)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(layer(x))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    torch.manual_seed(1)
    assert torch.equal(layer(x), outputs[0]) and not torch.equal(layer(x), outputs[0])  # a new mask at each call
    assert torch.equal(layer.eval()(x), layer(x))


# ---- the passes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", native.DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", native.SIGMA)
def test_compiled_passes_are_the_plain_ones(name: str, dtype: torch.dtype) -> None:
    compiled, reason = native.passes(name, dtype)
    if compiled is None:
        pytest.skip(reason)
    compare_passes(compiled, name, dtype)


def compare_passes(passes: Passes, name: str, dtype: torch.dtype, same_masks: bool = True) -> None:
    """Every pass against fp64 over the whole range of z, and its masks; more rows than one block has."""
    n, h = 700, 1003  # odd, so that vectors have a remainder
    z = torch.cat([torch.linspace(-30, 30, n * h).view(n, h), 2 * torch.randn(n, h)], dim=1).to(dtype)
    da, right = torch.randn(n, h).to(dtype), TorchPasses(name)
    tolerance: dict[str, Any] = {"rtol": 2e-6 if dtype == torch.float32 else 8e-3, "atol": 4e-6}

    def close(a: Tensor, b: Tensor) -> None:
        torch.testing.assert_close(a.double(), b, **tolerance)

    for dropout in (None, Dropout(0.3, torch.tensor(17))) if same_masks else (None,):
        a, exact_a = torch.empty_like(da), torch.empty(n, h, dtype=torch.float64)
        passes.gated_forward(z, a, dropout)
        right.gated_forward(z.double(), exact_a, dropout)
        close(a, exact_a)
        for back, forth in (("gated_backward", z), ("dense_backward", z[:, :h].contiguous())):
            mine, exact_mine = (forth.clone(), da.clone()), (forth.double(), da.double())
            getattr(passes, back)(*mine, dropout)
            getattr(right, back)(*exact_mine, dropout)
            close(mine[0], exact_mine[0])
            close(mine[1], exact_mine[1])
        half = z[:, h:].contiguous()
        exact_half = half.double()
        passes.dense_forward(half, half, dropout)  # in place
        right.dense_forward(exact_half, exact_half, dropout)
        close(half, exact_half)
        if name in FROM_OUTPUT:
            dz, exact_dz = da.clone(), da.double()
            passes.output_backward(half, dz, 1.7)
            right.output_backward(half.double(), exact_dz, 1.7)
            close(dz, exact_dz)


@pytest.mark.usefixtures("passes")
def test_what_is_not_finite_stays_so() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for name in ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "identity"):
            x = torch.randn(6, 20, dtype=dtype)
            x[2, 3] = float("nan")
            x.requires_grad_()
            y = dense(x, torch.eye(20, dtype=dtype), None, torch.eye(20, dtype=dtype), None, name)
            assert y[2].isnan().all() and y[[0, 1, 3, 4, 5]].isfinite().all(), name
            big = gated(
                x.detach(), torch.full((40, 20), 3e38, dtype=dtype), None, torch.eye(20, dtype=dtype), None, name
            )
            assert not big.isfinite().all()


@pytest.mark.slow
def test_triton_passes_in_its_interpreter() -> None:
    pytest.importorskip("triton")
    here = Path(__file__)
    program = f"""
import sys, torch
sys.path.insert(0, {str(here.parent)!r})
from test_kernels import compare_triton
compare_triton()
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=280)


def compare_triton() -> None:
    from feedfwd.ffn.kernels import gpu

    n, h = 3, 1100
    for name in gpu.SIGMA:
        mine, right = gpu.TritonPasses(name), TorchPasses(name)
        z, da = 3 * torch.randn(n, 2 * h), torch.randn(n, h)
        a, exact_a = torch.empty_like(da), torch.empty_like(da).double()
        mine.gated_forward(z, a, None)
        right.gated_forward(z.double(), exact_a, None)
        pairs = [(a, exact_a)]
        for back, kept in (("gated_backward", z), ("dense_backward", z[:, :h].contiguous())):
            ours, theirs = (kept.clone(), da.clone()), (kept.double(), da.double())
            getattr(mine, back)(*ours, None)
            getattr(right, back)(*theirs, None)
            pairs += zip(ours, theirs, strict=True)
        if name in FROM_OUTPUT:
            mine.dense_forward(kept, kept, None)
            ours, theirs = da.clone(), da.double()
            mine.output_backward(kept, ours, 1.7)
            right.output_backward(kept.double(), theirs, 1.7)
            pairs.append((ours, theirs))
        for ours, theirs in pairs:
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    dropout, ones = Dropout(0.25, torch.tensor(2**40 + 3)), torch.ones(n, h)
    a, z, da = torch.empty(n, h), torch.ones(n, h), torch.ones(n, h)
    mine = gpu.TritonPasses("identity")
    mine.dense_forward(ones, a, dropout)
    mine.dense_backward(z, da, dropout)
    assert torch.equal(a, z) and torch.equal(a, da)  # the same mask again
    assert 0.2 < (a == 0).double().mean() < 0.3 and a.max().item() == pytest.approx(4 / 3)


def test_without_a_compiler_the_plain_passes_run_and_say_so() -> None:
    program = """
import torch
from feedfwd.ffn import GatedFFN, explain
layer = GatedFFN(8, 16)
layer(torch.ones(2, 8)).sum().backward()
print(explain(layer, torch.ones(2, 8)))
"""
    for environment, reason in (({"FEEDFWD_NATIVE": "0"}, "FEEDFWD_NATIVE=0"), ({"CC": "/nowhere/cc"}, "failed")):
        said = subprocess.run(
            [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=True
        ).stdout
        assert "pointwise passes by torch's operations" in said and reason in said


# ---- the memory ------------------------------------------------------------------------------------------------------


def test_memory_in_use_is_never_handed_out_again() -> None:
    like = torch.zeros((), dtype=torch.float32)
    held: list[Tensor] = []

    def take() -> None:
        for i in range(20):
            t = pages.empty((1024, 1024 + i % 3), like).fill_(len(held))
            held.append(t)

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({t.data_ptr() for t in held}) == 60
    view = held[0][5:7]  # a view keeps its memory
    value = view[0, 0].item()
    addresses = {t.data_ptr() for t in held}
    held.clear()
    again = [pages.empty((1024, 1024), like).fill_(-1) for _ in range(60)]
    assert len(addresses & {t.data_ptr() for t in again}) >= 50  # warm ones come back
    assert (view == value).all()
    del again
    assert pages.release() > 0


def test_gradients_rest_on_memory_of_their_own() -> None:
    """The next step must not write into gradients that the last one left."""
    layer = GatedFFN(768, 3072)  # its gradients are large enough for the warm pages
    x = torch.randn(8, 768)
    layer(x).sum().backward()
    before = [p.grad.clone() for p in layer.parameters()]
    grads = [p.grad for p in layer.parameters()]
    layer.zero_grad()
    for _ in range(2):
        layer(2 * x).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(grads, before, strict=True))


# ---- what torch wraps around a layer ---------------------------------------------------------------------------------


def grads_of(layer: nn.Module, call: Any, x: Tensor, seed: int = 3) -> list[Tensor]:
    layer.zero_grad()
    x = x.detach().requires_grad_()
    torch.manual_seed(seed)
    call(x).square().sum().backward()
    return [x.grad, *(p.grad.clone() for p in layer.parameters())]


LAYERS: list[Any] = [
    lambda: GatedFFN(16, 24, bias=True, norm="rms"),
    lambda: GatedFFN(16, 24, dropout=0.4, recompute=True),
    lambda: DenseFFN(16, 24, dropout=0.4),
    lambda: DenseFFN(16, 24, activation="gelu", dropout=0.4),
]


@pytest.mark.parametrize("make", LAYERS)
def test_activation_checkpointing(make: Any) -> None:
    layer, x = make(), torch.randn(3, 5, 16)
    expected = grads_of(layer, layer, x)
    for reentrant in (False, True):
        seen = grads_of(layer, lambda x, r=reentrant: checkpoint(layer, x, use_reentrant=r), x)
        assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


@pytest.mark.parametrize("make", LAYERS)
def test_gradients_accumulate(make: Any) -> None:
    layer, x = make(), torch.randn(6, 16)
    layer.eval()  # so that the parts see the same mask, none
    whole = grads_of(layer, layer, x)[1:]
    layer.zero_grad()
    for part in x.split(2):
        layer(part).square().sum().backward()
    for p, g in zip(layer.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad, g)


@pytest.mark.parametrize("make", LAYERS)
def test_whole_graph_compiles(make: Any) -> None:
    layer, x = make(), torch.randn(3, 5, 16)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for a, b in zip(grads_of(layer, compiled, x), grads_of(layer, layer, x), strict=True):
        torch.testing.assert_close(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(1)
        seen = compiled(x)
        torch.manual_seed(1)
        torch.testing.assert_close(seen, layer(x))


@pytest.mark.slow
@pytest.mark.parametrize("make", LAYERS)
def test_inductor(make: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(make(), nn.ReLU(), make())
    x = torch.randn(3, 5, 16)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    for a, b in zip(grads_of(model, compiled, x), grads_of(model, model, x), strict=True):
        # Sums are taken in another order: what rounds is as large as the largest summands, not as the sum.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max())))
    y = compiled(x.requires_grad_()).sum()
    with pytest.raises(RuntimeError):
        y.backward(retain_graph=True)
        y.backward()


def test_operators_keep_torchs_rules() -> None:
    given = [t.detach().float() for t in tensors(True, torch.float32)]
    operator = torch.ops.feedfwd.feed_forward.default
    torch.library.opcheck(operator, (*given, True, "silu", 0.0, False), test_utils=("test_schema", "test_faketensor"))


def test_saved_tensors_may_travel() -> None:
    layer, x = GatedFFN(16, 24, dropout=0.3), torch.randn(5, 16)
    expected = grads_of(layer, layer, x)
    with torch.autograd.graph.save_on_cpu():
        assert all(torch.equal(a, b) for a, b in zip(grads_of(layer, layer, x), expected, strict=True))


def test_strange_strides() -> None:
    layer = GatedFFN(16, 24)
    wide = torch.randn(3, 4, 32)
    for x in (wide[..., ::2], wide[..., :16], wide.transpose(0, 1)[..., 16:], wide[:1, :1, :16].expand(3, 4, 16)):
        expected = grads_of(layer, layer, x.contiguous())
        layer.zero_grad()
        leaf = x.detach().requires_grad_()
        layer(leaf).square().sum().backward()
        torch.testing.assert_close([leaf.grad, *(p.grad for p in layer.parameters())], expected)
    y = layer(wide[..., :16])
    y.sum().backward()  # its gradient is one number, expanded
    y = layer(wide[..., :16])
    y += 1  # the output may be written into, as a residual connection does
    y.sum().backward()
    y = layer(torch.randn(16))
    y *= 2
    assert y.shape == (16,)


def test_only_what_is_asked_for_is_computed() -> None:
    layer, x = DenseFFN(8, 12), torch.randn(4, 8)
    layer.up.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.up.weight.grad is None and layer.down.weight.grad is not None and x.grad is None
    layer.requires_grad_(False)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert not layer(x.detach()).requires_grad
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x.detach()))
    with torch.inference_mode():
        layer(x)


def test_functional_transforms_take_the_plain_formula() -> None:
    layer = GatedFFN(6, 9)
    x = torch.randn(5, 6)
    per_token = torch.func.vmap(torch.func.jacrev(layer))(x)
    assert per_token.shape == (5, 6, 6)
    parameters = dict(layer.named_parameters())
    grads = torch.func.grad(lambda p: torch.func.functional_call(layer, p, (x,)).sum())(parameters)
    layer(x).sum().backward()
    for name, p in parameters.items():
        torch.testing.assert_close(grads[name], p.grad)


FSDP = """
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from feedfwd.ffn import GatedFFN, DenseFFN
from feedfwd.ffn.kernels import function
from torch import nn
calls, apply = [], function.apply
function.apply = lambda *args: (calls.append(type(args[1])), apply(*args))[1]
dist.init_process_group("gloo")
torch.manual_seed(0)
make = lambda: nn.Sequential(GatedFFN(16, 24, bias=True, norm="rms"), DenseFFN(16, 32, "gelu", recompute=True))
model, twin = make(), make()
twin.load_state_dict(model.state_dict())
for layer in model:
    fully_shard(layer)
fully_shard(model)
optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (model, twin)]
for step in range(3):
    x = torch.randn(2, 4, 16)
    model(x[dist.get_rank()]).square().mean().backward()
    twin(x).square().mean().backward()
    for o in optimizers:
        o.step()
        o.zero_grad()
for (name, p), q in zip(model.named_parameters(), twin.parameters()):
    torch.testing.assert_close(p.full_tensor(), q.data, rtol=1e-4, atol=1e-6, msg=name)
assert len(calls) == 12, calls  # both layers of both models, three times: the kernels served
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_fsdp2(tmp_path: Path) -> None:
    """Two processes on gloo, sharded, take the same three steps as one process with the whole batch."""
    script = tmp_path / "shard.py"
    script.write_text(FSDP)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]


# ---- which path ------------------------------------------------------------------------------------------------------


def test_explain_tells_the_path_and_the_layer_takes_it() -> None:
    x = torch.randn(4, 16)
    hooked, swapped, parametrized = GatedFFN(16, 24), GatedFFN(16, 24), DenseFFN(16, 24)
    hooked.down.register_forward_hook(lambda *_: None)
    swapped.activation = nn.LeakyReLU(0.3)
    nn.utils.parametrizations.weight_norm(parametrized.up)
    for layer, x_in, reason in (
        (hooked, x, "hook"),
        (swapped, x, "LeakyReLU"),
        (parametrized, x, "ParametrizedLinear"),
        (DenseFFN(16, 24, "xielu"), x, "XIELU"),
        (nn.Linear(16, 16), x, "a forward of its own"),
    ):
        path = explain(layer, x_in)
        assert not path.fast and reason in str(path)
        assert "FeedForward" not in type(layer(x_in.requires_grad_()).grad_fn).__name__
    for layer, kept in (
        (GatedFFN(16, 24), "x, gate and up"),
        (GatedFFN(16, 24, recompute=True), "x"),
        (DenseFFN(16, 24), "x and a"),
        (DenseFFN(16, 24, "gelu"), "x and z"),
    ):
        path = explain(layer, x)
        assert path.fast and path.kept == kept
        assert "FeedForward" in type(layer(x).grad_fn).__name__
    assert "float64 is not written in C" in str(explain(DenseFFN(16, 24).double(), x.double()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert explain(GatedFFN(16, 24), x).fast
    assert not explain(GatedFFN(16, 24), x.bfloat16()).fast


def test_the_log_says_once_why_the_plain_formula_runs(caplog: pytest.LogCaptureFixture) -> None:
    layer, x = GatedFFN(4, 8), torch.ones(1, 4)
    layer.activation = nn.ELU(0.123)
    layer(x), layer(x)
    with plain():
        GatedFFN(4, 8)(x)
    assert [r.getMessage() for r in caplog.records] == [
        "GatedFFN takes its plain formula: no kernel is written for ELU(alpha=0.123)"
    ]


def test_every_activation_with_a_formula_has_a_kernel() -> None:
    for name in SIGMA:
        assert explain(DenseFFN(4, 8, name), torch.ones(1, 4)).fast, name
    for kind in GATED:
        assert explain(GatedFFN(4, 8, kind), torch.ones(1, 4)).fast, kind
    with pytest.raises(ConfigError, match="did you mean 'silu'"):
        gated(*tensors(True), "sillu")
