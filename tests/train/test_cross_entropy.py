"""The cross-entropy by the compiled softmax and by torch's operations: one result, and what neither takes."""

import math

import pytest
import torch
from torch import Tensor

from feedfwd.ffn import plain as off
from feedfwd.ffn.kernels import maps, pages
from feedfwd.train import softmax_native
from feedfwd.train.cross_entropy import linear_cross_entropy, plain

MISSING = softmax_native.lacks(torch.zeros(1, 2))


@pytest.mark.parametrize("by", ["C", "torch"])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_the_formula(by: str, z_loss: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    if by == "C" and MISSING:
        pytest.skip(MISSING)
    monkeypatch.setattr("feedfwd.train.cross_entropy.LOGITS", 7 * 45)  # seven tokens at a time, the last fewer
    calls: list[int] = []
    real = softmax_native.softmax
    monkeypatch.setattr(softmax_native, "softmax", lambda z, *more: calls.append(len(z)) or real(z, *more))
    if by == "torch":
        monkeypatch.setattr(softmax_native, "lacks", lambda _: "no compiler")
    h, w = (3 * torch.randn(n, 12).to(dtype) for n in (40, 45))
    targets, shares = torch.randint(0, 45, (40,)), torch.rand(40) / 40
    inputs = [h.requires_grad_(), w.requires_grad_()]
    found = linear_cross_entropy(h, w, targets, shares, z_loss)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    wanted = plain(*exact, targets, shares.double(), z_loss)
    limit = 1e-5 if dtype == torch.float32 else 0.02
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=limit)
    for ours, right in zip(torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * wanted, exact), strict=True):
        assert (ours.double() - right).norm() < limit * right.norm()
    assert calls == ([7, 7, 7, 7, 7, 5] if by == "C" else [])


@pytest.mark.parametrize("tokens", [63, 64, 300])
@pytest.mark.parametrize("vocabulary", [64, 65, 96])
def test_it_is_the_formula_where_products_take_weights_as_they_are(
    tokens: int, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = pages.empty
    monkeypatch.setattr(pages, "empty", lambda *size, **like: empty(*size, **like).fill_(math.nan))  # all is written
    torch.manual_seed(0)
    h, w = 2 * torch.randn(tokens, 64), torch.randn(vocabulary, 64)
    targets, shares = torch.randint(0, vocabulary, (tokens,)), torch.rand(tokens) / tokens
    inputs = [h.requires_grad_(), w.requires_grad_()]
    exact = [x.detach().bfloat16().double().requires_grad_() for x in inputs]
    calls: list[int] = []
    real = maps.linear
    monkeypatch.setattr(maps, "linear", lambda p, *more: calls.append(len(p)) or real(p, *more))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_cross_entropy(h, w, targets, shares)
    served = maps.lacks_linear(torch.zeros(tokens, vocabulary).bfloat16(), [w.detach().t()]) is None
    assert calls == ([tokens] if served else [])
    wanted = plain(*exact, targets, shares.double())
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=0.01)
    for ours, right in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(wanted, exact), strict=True):
        assert ours.dtype == torch.float32
        assert (ours.double() - right).norm() < 0.02 * right.norm()


@pytest.mark.skipif(bool(MISSING), reason=str(MISSING))
def test_the_threads_change_nothing_and_no_target_lies_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax_native, "ALONE", 1)
    logits, targets, before = 5 * torch.randn(33, 70), torch.randint(0, 70, (33,)), torch.get_num_threads()

    def on(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        there = logits.clone()
        return [*softmax_native.softmax(there, targets, 0.1), there]

    found = [on(threads) for threads in (1, 2, 3)]
    torch.set_num_threads(before)
    assert all(torch.equal(*pair) for others in found[1:] for pair in zip(found[0], others, strict=True))
    with pytest.raises(IndexError, match="among 70 tokens"):
        softmax_native.softmax(logits, targets + 70, 0.0)


def test_a_second_backward_says_what_to_do() -> None:
    h, w = torch.randn(4, 3).requires_grad_(), torch.randn(5, 3).requires_grad_()
    loss = linear_cross_entropy(h, w, torch.arange(4), torch.ones(4) / 4)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run the forward again"):
        loss.backward()


def test_it_says_what_it_does_not_serve() -> None:
    with off():
        assert "plain" in (softmax_native.lacks(torch.zeros(1, 2)) or "")
    assert "float64" in (softmax_native.lacks(torch.zeros(1, 2).double()) or "")
