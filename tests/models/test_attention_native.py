from typing import Any

import pytest
import torch
from torch import Tensor

from feedfwd.ffn.kernels import native
from feedfwd.ffn.kernels.compiler import toolchain
from feedfwd.models import attention_native
from feedfwd.models.attention import Sight, attend, documents_of
from feedfwd.models.attention_native import attend_at_once, lacks, plain
from feedfwd.models.positions import rotate, tables
from feedfwd.models.transformer import Transformer

pytestmark = pytest.mark.skipif(bool(toolchain()[1]), reason=toolchain()[1])
NUMBERS = [torch.float32] + [torch.bfloat16] * (lacks([torch.zeros(1, 1, 1, 2, dtype=torch.bfloat16)]) is None)

SIGHTS = [
    Sight(),
    Sight(window=100),
    Sight(causal=False),
    Sight(causal=False, window=70),
    Sight(documents=torch.arange(2000).div(37, rounding_mode="floor").expand(2, -1)),
    Sight(causal=False, window=30, documents=documents_of(torch.randint(0, 40, (2, 2000)), end=0)),
]
SIZES = [
    (300, 4, 2, 16),
    (64, 4, 4, 32),
    (129, 2, 1, 48),
    (1100, 2, 2, 64),
    (77, 3, 3, 80),
    (1, 2, 2, 30),
    (5, 1, 1, 128),
]


def of_error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_formula(size: tuple[int, int, int, int], sight: Sight, dtype: torch.dtype) -> None:
    T, H, K, D = size
    if sight.documents is not None:
        sight = Sight(sight.causal, sight.window, sight.documents[:, :T])
    for turn in (None, tables(torch.arange(T), D, 10_000.0)):
        qkv, dy = torch.randn(2, T, H + 2 * K, D).to(dtype).requires_grad_(), torch.randn(2, T, H * D).to(dtype)
        exact = qkv.detach().double().requires_grad_()
        wanted = plain([exact], H, K, None if turn is None else (turn[0].double(), turn[1].double()), sight)
        found = attend_at_once([qkv], H, K, turn, sight)
        parts = [x.detach().requires_grad_() for x in qkv.split([H, K, K], 2)]
        again = attend_at_once(parts, H, K, turn, sight)
        limit = 3e-6 if dtype == torch.float32 else 8e-3
        assert of_error(found, wanted) < limit
        (gradient,), (right,) = torch.autograd.grad(found, qkv, dy), torch.autograd.grad(wanted, exact, dy.double())
        assert of_error(gradient, right) < limit
        assert torch.equal(again, found)
        assert torch.equal(torch.cat(torch.autograd.grad(again, parts, dy), 2), gradient)


@pytest.mark.skipif(not native.tiles(torch.bfloat16), reason="this CPU multiplies no tiles here")
@pytest.mark.parametrize("size", [(2, 150, 2, 64), (1, 77, 3, 48), (3, 33, 2, 32), (2, 20, 2, 20)])
def test_tiles_and_vectors_agree(size: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    B, T, H, D = size
    x, dy = torch.randn(B, T, 3 * H, D).bfloat16().requires_grad_(), torch.randn(B, T, H * D).bfloat16()
    assert "-DAMX" in native.tiles(torch.bfloat16) and not native.tiles(torch.float32)
    found = []
    for tiles in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        attention_native._compiled.cache_clear()
        y = attend_at_once([x], H, H, None, Sight(causal=True))
        found.append((y, *torch.autograd.grad(y, x, dy)))
    attention_native._compiled.cache_clear()
    for ours, theirs in zip(*found, strict=True):
        assert of_error(ours, theirs) < 5e-3


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_it_is_as_near_as_torchs_operations_and_threads_change_no_bit(dtype: torch.dtype) -> None:
    T, H, D = 512, 6, 64
    qkv, dy, turn = torch.randn(2, T, 3 * H, D), torch.randn(2, T, H * D), tables(torch.arange(T), D, 10_000.0)
    exact = qkv.double().requires_grad_()
    wanted = plain([exact], H, H, (turn[0].double(), turn[1].double()), Sight())
    (right,) = torch.autograd.grad(wanted, exact, dy.double())

    def by_operations(x: Tensor) -> Tensor:
        q, k, v = x.chunk(3, 2)
        return attend(rotate(q, *turn), rotate(k, *turn), v.transpose(1, 2), Sight()).transpose(1, 2).flatten(2)

    def results(way: Any) -> list[Tensor]:
        x = qkv.to(dtype).requires_grad_()
        y = way(x)
        return [y, *torch.autograd.grad(y, x, dy.to(dtype))]

    ours, theirs = results(lambda x: attend_at_once([x], H, H, turn, Sight())), results(by_operations)
    for our, their, exactly in zip(ours, theirs, (wanted, right), strict=True):
        assert of_error(our, exactly) < (2 if dtype == torch.float32 else 1.2) * of_error(their, exactly)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert all(map(torch.equal, ours, results(lambda x: attend_at_once([x], H, H, turn, Sight()))))
    finally:
        torch.set_num_threads(before)


def test_nothing_is_seen_that_is_hidden_and_nan_is_not_lost() -> None:
    qkv = torch.randn(1, 200, 3, 16)
    changed = qkv.clone()
    changed[:, 150:] = torch.randn(1, 50, 3, 16)
    found, other = (attend_at_once([x], 1, 1, None, Sight()) for x in (qkv, changed))
    assert torch.equal(found[:, :150], other[:, :150])
    qkv[0, 100, 1, 3] = torch.nan
    found = attend_at_once([qkv], 1, 1, None, Sight())
    assert found[:, :100].isfinite().all() and found[:, 100:].isnan().all()


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "kv_heads": 2}, {"bias": "qkv", "positions": "learned"}])
def test_the_transformer_takes_it(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(50, width=32, depth=2, heads=4, hidden=48, context=70, **options)
    ids, calls = torch.randint(0, 50, (2, 70)), []

    def gradients() -> list[Tensor]:
        loss = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        return list(torch.autograd.grad(loss, list(model.parameters())))

    def counted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return attend_at_once(*arguments)

    monkeypatch.setattr(attention_native, "attend_at_once", counted)
    found = gradients()
    assert len(calls) == 2
    monkeypatch.setattr(attention_native, "lacks", lambda parts: "not now")
    torch.testing.assert_close(found, gradients(), atol=1e-6, rtol=1e-4)
    assert len(calls) == 2


def test_what_is_not_served_is_named_and_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.zeros(1, 2, 3, 4)
    assert lacks([numbers]) is None
    assert lacks([torch.zeros(1, 2, 3, 5)]) == "head width 5 is odd"
    assert lacks([numbers, numbers.bfloat16(), numbers]) == "queries, keys and values differ in precision"
    assert lacks([numbers.to("meta")]) == "attention in C is for CPUs, not meta"
    assert lacks([numbers.half()]) == "float16 is not written in C"
    model = Transformer(50, width=30, depth=1, heads=6, hidden=48, positions="learned", context=9)
    attention, x = next(model.each_block()).attention, torch.randn(2, 9, 30)
    assert attention.explain(x).name == "blocks" and "head width 5 is odd" in attention.explain(x).reason
    assert model(torch.zeros(2, 9, dtype=torch.long)).isfinite().all()
    model = Transformer(50, width=32, depth=1, heads=4, hidden=48)
    attention, x = next(model.each_block()).attention, torch.randn(2, 9, 32)
    assert attention.explain(x).name == "compiled C"
    assert model.double()(torch.zeros(2, 9, dtype=torch.long)).isfinite().all()
    monkeypatch.setattr(attention_native, "_compiled", lambda dtype: (None, "there is no C compiler"))
    path = attention.float().explain(x)
    assert path.name == "blocks" and path.reason.endswith("; not in C: there is no C compiler")
    assert model.float()(torch.zeros(2, 9, dtype=torch.long)).isfinite().all()


def test_it_serves_in_a_training_with_autocast_and_recomputing() -> None:
    if torch.bfloat16 not in NUMBERS:
        pytest.skip("no bf16 products here")
    ids = torch.randint(0, 50, (2, 70))

    def gradients(recompute: bool) -> list[Tensor]:
        model = Transformer(
            50, width=32, depth=2, heads=4, kv_heads=2, hidden=48, context=70, qk_norm=True, recompute=recompute,
            window=33, end=7, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(ids).float().flatten(0, 1), ids.flatten())
        return list(torch.autograd.grad(loss, list(model.parameters())))

    found = gradients(False)
    assert all(map(torch.equal, found, gradients(True))) and all(map(torch.equal, found, gradients(False)))
    assert all(g.isfinite().all() for g in found)
