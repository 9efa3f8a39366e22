from typing import Any

import pytest
import torch
from torch import Tensor

from feedfwd.models import attention
from feedfwd.models.attention import Sight, attend, blocks, by_torch, documents_of, explain, formula, plan

SIGHTS = [
    Sight(),
    Sight(window=100),
    Sight(window=1),
    Sight(causal=False),
    Sight(causal=False, window=70),
    Sight(documents=torch.arange(300).div(37, rounding_mode="floor").expand(3, 300)),
    Sight(window=30, documents=documents_of(torch.randint(0, 40, (3, 300)), end=0)),
    Sight(causal=False, documents=documents_of(torch.randint(0, 40, (3, 300)), end=0)),
]


def drawn(kv_heads: int, tokens: int = 300, **kind: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, dy = (torch.randn(3, 4, tokens, 16, **kind) for _ in range(2))
    k, v = (torch.randn(3, kv_heads, tokens, 16, **kind) for _ in range(2))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), dy


@pytest.mark.parametrize("keep_up_to", [1024, 0])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("sight", SIGHTS)
def test_blocks_and_torch_are_the_formula(
    sight: Sight, kv_heads: int, keep_up_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "KEEP_UP_TO", keep_up_to)
    monkeypatch.setattr(attention, "CACHED", 4 * 128 * 300)  # one row at a time, then several
    *qkv, dy = drawn(kv_heads, dtype=torch.float64)
    wanted = formula(*qkv, sight)
    gradients = torch.autograd.grad(wanted, qkv, dy)
    for fast in (blocks, by_torch):
        found = fast(*qkv, sight)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(torch.autograd.grad(found, qkv, dy), gradients)
    with torch.no_grad():
        torch.testing.assert_close(blocks(*qkv, sight), wanted)


@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 1100])
def test_any_length(tokens: int) -> None:
    *qkv, dy = drawn(2, tokens)
    found, wanted = attend(*qkv, Sight()), formula(*qkv, Sight())
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    gradients = torch.autograd.grad(found, qkv, dy), torch.autograd.grad(wanted, qkv, dy)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_half_precision_is_as_near_as_torchs() -> None:
    *qkv, dy = drawn(4)
    wanted = [formula(*qkv, Sight()), *torch.autograd.grad(formula(*qkv, Sight()), qkv, dy)]

    def errors(fast: Any) -> list[float]:
        halves = [x.detach().bfloat16().requires_grad_() for x in qkv]
        y = fast(*halves, Sight())
        found = [y, *torch.autograd.grad(y, halves, dy.bfloat16())]
        return [((a.detach().float() - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]

    for ours, theirs in zip(errors(blocks), errors(by_torch), strict=True):
        assert ours < max(1.5 * theirs, 0.01)


def test_autocast_and_a_second_derivative() -> None:
    *qkv, _ = drawn(4)
    with torch.autocast("cpu", torch.bfloat16):
        y = attend(*qkv, Sight())
    assert y.dtype == torch.bfloat16
    (dq,) = torch.autograd.grad(blocks(*qkv, Sight()).sum(), qkv[0], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(dq.sum(), qkv[0])


def test_it_compiles_as_one_node() -> None:
    *qkv, dy = drawn(2)
    compiled = torch.compile(lambda *qkv: attend(*qkv, Sight()), fullgraph=True, backend="aot_eager")
    found, wanted = compiled(*qkv), formula(*qkv, Sight())
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.autograd.grad(found, qkv, dy), torch.autograd.grad(wanted, qkv, dy))


def test_masked_products_are_skipped() -> None:
    full = 1024 * 1024
    assert sum(block.size for block in plan(1024, causal=True, window=0)) < 0.57 * full
    assert sum(block.size for block in plan(1024, causal=True, window=128)) < 0.24 * full


def test_an_end_token_belongs_to_the_document_that_is_predicted_from_it() -> None:
    documents = documents_of(torch.tensor([[5, 6, 0, 0, 7], [0, 1, 2, 3, 4]]), end=0)
    assert documents.tolist() == [[0, 0, 1, 2, 2], [1] * 5]


def test_explain_says_which_and_why() -> None:
    assert str(explain(torch.zeros(1, 2, 64, 8))).startswith("blocks: 128 queries at a time; probabilities are kept")
    assert explain(torch.zeros(1, 2, 64, 8, device="meta")).name == "torch"
    seen = torch.vmap(lambda q: torch.tensor(explain(q).name == "torch"), randomness="same")(torch.zeros(1, 1, 1, 1, 1))
    assert bool(seen)
