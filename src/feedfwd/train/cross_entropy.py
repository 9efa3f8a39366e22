"""The cross-entropy of a linear output layer, without ever holding all logits.

A vocabulary of 8,192 makes the logits of 4,096 tokens and their gradient the largest tensors of a training step, in
fp32 268 MB. Here a few hundred tokens at a time go through product, softmax and gradient in one buffer. The gradients
are taken in the forward pass already, so that no product is done twice: that needs each token's share of the mean
beforehand, which `gradients` has.
"""

# N tokens, D width, V vocabulary

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from feedfwd.data.batches import Batch
from feedfwd.ffn.kernels import maps, pages
from feedfwd.train import softmax_native
from feedfwd.train.loop import shares_of
from feedfwd.train.losses import Loss

LOGITS = 2**23  # held at a time
APART = 32  # numbers between rows of logits: at a power of two apart, they would share the lines of a CPU's caches
MOST = 0.9  # of the tokens: if more of them count, the others are kept too


class HasHead(Protocol):
    """A model whose outputs are `hidden(inputs) @ head_weight.T`."""

    @property
    def head_weight(self) -> Tensor: ...

    def hidden(self, inputs: Tensor) -> Tensor: ...


def plain(h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, shares_N: Tensor, z_loss: float = 0.0) -> Tensor:
    """Σ_n s_n (lse_n - logit_n[target_n] + z · lse_n²), lse = log Σ_v exp logit_v: the formula, all logits at once.

    The z-loss keeps the logits from drifting; Chowdhery et al. 2022 (PaLM), arXiv 2204.02311, with z = 1e-4.
    """
    logits_NV = (h_ND @ weight_VD.T).float()
    lse_N = logits_NV.logsumexp(-1)
    losses_N = F.cross_entropy(logits_NV, targets_N, reduction="none") + z_loss * lse_N.square()
    return (shares_N * losses_N).sum()


def linear_cross_entropy(
    h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, shares_N: Tensor, z_loss: float = 0.0
) -> Tensor:
    """`plain` in little memory. Shares get no gradient.

    >>> h, w = torch.ones(2, 3), torch.zeros(5, 3)
    >>> round(float(linear_cross_entropy(h, w, torch.tensor([0, 4]), torch.tensor([0.5, 0.5])).exp()), 3)
    5.0
    """
    if torch.is_autocast_enabled(h_ND.device.type):
        h_ND = h_ND.to(torch.get_autocast_dtype(h_ND.device.type))
    total: Tensor = Chunked.apply(h_ND, weight_VD, targets_N.long(), shares_N.float(), z_loss)  # type: ignore[no-untyped-call]
    return total


class Chunked(torch.autograd.Function):
    """Per chunk of tokens, with p the softmax of its logits and t the targets, one-hot:

        lse = logit_t - log p_t,  c = 1 + 2 z lse,  ∂logits = s (c p - t),  ∂h = ∂logits W,  ∂W = ∂logitsᵀ h

    The factor s c goes over h and ∂h, which are narrow, instead of over p. In 16 bits p_t carries a rounding of 2⁻⁹,
    which the mean over many tokens takes out of the loss again.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, targets: Tensor, shares: Tensor, z_loss: float) -> Tensor:
        needs_h, needs_w = ctx.needs_input_grad[:2]
        ctx.dtype = weight.dtype
        ours, weight = weight, weight.to(h.dtype)
        dh = pages.empty(h.shape, like=h) if needs_h else None
        dw = torch.empty(weight.shape, dtype=torch.float32, device=h.device) if needs_w else None
        total = torch.zeros((), dtype=torch.float32, device=h.device)
        many = max(1, min(len(h), LOGITS // len(weight)))
        # torch's products read beyond a row that fills no vectors, and what stands there must be numbers.
        apart = APART if len(weight) % APART == 0 and softmax_native.lacks(h) is None else 0
        buffer = pages.empty((many, len(weight) + apart), like=h)[:, : len(weight)]
        if dw is not None and not len(h):
            dw.zero_()
        for start in range(0, len(h), many):
            part = slice(start, start + many)
            h_ND, s_N = h[part], shares[part]
            p_NV = torch.mm(h_ND, weight.t(), out=buffer[: len(h_ND)])
            lse_N, log_p_N = _softmax(p_NV, h_ND, weight, targets[part], z_loss)
            total += (s_N * (z_loss * lse_N.square() - log_p_N)).sum()
            factor_N1 = (s_N * (1 + 2 * z_loss * lse_N)).unsqueeze(1)
            if dh is not None:
                if maps.lacks_linear(p_NV, [ours.t()]) is None:
                    maps.linear(p_NV, [ours.t()], [None], dh[part])
                else:
                    torch.mm(p_NV, weight, out=dh[part])
                dh[part].mul_(factor_N1)
            if dw is not None:
                scaled_ND = (h_ND * factor_N1).to(h.dtype)
                if maps.lacks(p_NV, scaled_ND) is None:
                    maps.outer(p_NV, scaled_ND, dw, add=start > 0)
                elif start:
                    dw += p_NV.t() @ scaled_ND
                else:
                    dw.copy_(p_NV.t() @ scaled_ND)
        ctx.gradients = dh, dw
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("a second backward through the same cross-entropy: run the forward again")
        dh, dw = ctx.gradients
        ctx.gradients = None  # handed on as they are: a copy would cost as much as making them
        if dtotal.device.type != "cpu" or float(dtotal) != 1:
            dh = None if dh is None else dh.mul_(dtotal)
            dw = None if dw is None else dw.mul_(dtotal)
        return dh, None if dw is None else dw.to(ctx.dtype), None, None, None


def _softmax(p_NV: Tensor, h_ND: Tensor, weight: Tensor, targets_N: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """Turns logits into p - t / c (see `Chunked`), in place; gives lse and log p_t."""
    if softmax_native.lacks(p_NV) is None:
        return softmax_native.softmax(p_NV, targets_N, z_loss)
    t_N1 = targets_N[:, None]
    own_N = p_NV.gather(1, t_N1).squeeze(1).float()
    torch.softmax(p_NV, -1, out=p_NV)
    p_N = p_NV.gather(1, t_N1).squeeze(1).float()
    log_p_N = p_N.log()
    lost = p_N < torch.finfo(torch.float32).tiny  # too improbable for the number format, or for its precision
    if lost.any():
        log_p_N[lost] = F.log_softmax((h_ND[lost] @ weight.t()).float(), -1).gather(1, t_N1[lost]).squeeze(1)
    lse_N = own_N - log_p_N
    c_N = 1 + 2 * z_loss * lse_N
    first_N = torch.arange(0, p_NV.numel(), p_NV.shape[1], device=p_NV.device)  # where a token's logits begin
    p_NV.view(-1).index_copy_(0, first_N + targets_N, (p_N - 1 / c_N).to(p_NV.dtype))  # scatter_ is slow
    return lse_N, log_p_N


@torch.no_grad()
def token_losses(h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """(N,): the cross-entropy of each token in nats, in fp32 from the product on; for evaluation.

    >>> token_losses(torch.ones(2, 3), torch.zeros(5, 3), torch.tensor([0, 4])).exp()
    tensor([5., 5.])
    """
    many = max(1, LOGITS // len(weight_VD))
    logits = (F.linear(h, weight_VD).float() for h in h_ND.split(many))  # type: ignore[no-untyped-call]
    pairs = zip(logits, targets_N.long().split(many), strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([F.cross_entropy(z, t, reduction="none") for z, t in pairs])


def counted(h: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """h (..., D), targets and weights (...) as (N, D), (N,) and (N,): of the tokens whose weight isn't 0.

    Where tokens are masked these are few, and the output layer's products and memory are those of them alone. Where
    most of them have weight all stay, since gathering would cost more than it saves.

    >>> h, targets, weights = counted(torch.ones(1, 4, 2), torch.arange(4)[None], torch.tensor([[0.0, 0, 2, 0]]))
    >>> h.shape, targets, weights
    (torch.Size([1, 2]), tensor([2]), tensor([2.]))
    """
    h, targets, weights = h.flatten(0, -2), targets.flatten(), weights.flatten()
    places = weights.nonzero().squeeze(1)
    if len(places) > MOST * len(weights):
        return h, targets, weights
    return h.index_select(0, places), targets[places], weights[places]


class Gradients:
    """For `loop.train(gradients=…)`: the gradients of a model that has `hidden` and `head_weight`.

    The batch is (rows, tokens): next-token and masked-token training alike; tokens of weight 0 do not count, and where
    they are many, no logits are taken of them.
    """

    def __init__(self, z_loss: float = 0.0) -> None:
        self.z_loss = z_loss

    def __call__(self, model: nn.Module, batch: Batch, loss: Loss, total_weight: Tensor | float) -> Tensor:
        whole: HasHead = model  # type: ignore[assignment]
        h = whole.hidden(batch.inputs)
        shares = shares_of(torch.zeros(batch.targets.shape, device=h.device), batch.weights, total_weight)
        h_ND, targets_N, shares_N = counted(h, batch.targets, shares)
        share = linear_cross_entropy(h_ND, whole.head_weight, targets_N, shares_N, self.z_loss)
        if torch.is_autocast_enabled(h_ND.device.type):
            with torch.autocast(h_ND.device.type, enabled=False):
                share.backward()  # type: ignore[no-untyped-call]
        else:
            share.backward()  # type: ignore[no-untyped-call]
        return share.detach()
