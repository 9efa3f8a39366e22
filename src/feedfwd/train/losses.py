"""Losses, one number per element, never reduced.

A loss maps outputs and targets to the losses of the elements: (N,) for examples, (N, T) for tokens. The loop multiplies
them by the batch's weights and divides by the total weight of the whole effective batch, so that the result doesn't
depend on how the batch was split.

Class weights enter as `-Σ_c w_c t_c log p_c`, linear in the target t, which is one-hot, smoothed or soft: for a plain
label y the element's loss times w[y], for a mix of two examples the mix of their weighted losses. The mean is still
taken over the examples, not over their class weights (torch's `reduction="mean"` divides by Σ w[y], which changes with
every batch and with every way to split it): the gradient is an unbiased estimate of the weighted sum over all data, and
"balanced" weights (mean 1 over the data) keep the size of the loss and so the learning rate.

Which elements count is said by the batch's weights; no target value is reserved for "ignore".
Low-precision outputs (bfloat16, float16) are widened to fp32 first.
"""

# N examples, T tokens, C classes, K outputs

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from feedfwd.errors import ConfigError, DataError, nearest

Loss = Callable[[Tensor, Tensor], Tensor]

NO_LABEL = torch.iinfo(torch.int64).min  # torch skips targets of -100 in silence unless told another value


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N,): squared error, averaged over the K outputs of an example.

    >>> mse(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0]))
    tensor([0., 4.])
    """
    y_NK, t_NK = _paired(outputs, targets)
    return (y_NK - t_NK).square().mean(1)


def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N,): absolute error, averaged over the K outputs of an example."""
    y_NK, t_NK = _paired(outputs, targets)
    return (y_NK - t_NK).abs().mean(1)


def huber(outputs: Tensor, targets: Tensor, *, delta: float = 1.0) -> Tensor:
    """(N,): e²/2 where |e| <= delta, else delta (|e| - delta/2); averaged over the K outputs. Huber 1964.

    >>> huber(torch.tensor([0.5, 3.0]), torch.zeros(2))
    tensor([0.1250, 2.5000])
    """
    y_NK, t_NK = _paired(outputs, targets)
    return F.huber_loss(y_NK, t_NK, reduction="none", delta=delta).mean(1)


def cross_entropy(
    outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """(N,) or (N, T): -Σ_c w_c t_c log softmax(outputs)_c, in nats.

    outputs: logits (N, C) or (N, T, C). targets: labels of shape (N,) or (N, T), or a distribution over the classes of
    the shape of the outputs. Smoothing by s replaces t by (1 - s) t + s/C (Szegedy et al. 2016, arXiv 1512.00567).

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).exp()
    tensor([4., 4.])
    """
    logits = _wide(outputs)
    soft = targets.is_floating_point()
    _check_classes(logits, targets, soft)
    losses = F.cross_entropy(
        logits.flatten(0, -2),
        targets.to(logits.dtype).flatten(0, -2) if soft else targets.long().flatten(),
        weight=_like(class_weights, logits),
        reduction="none",
        label_smoothing=label_smoothing,
        ignore_index=NO_LABEL,
    )
    return losses if logits.ndim == 2 else losses.view(logits.shape[:-1])


def binary_cross_entropy(
    outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """(N,): -w_1 t log σ(z) - w_0 (1 - t) log(1 - σ(z)), in nats; averaged over the K labels of an example.

    outputs: logits z of shape (N,), (N, 1) or (N, K); targets in [0, 1] of the same shape up to a trailing 1.
    Equal to `cross_entropy` over the two logits (0, z), smoothing and class weights (w_0, w_1) included.

    >>> binary_cross_entropy(torch.zeros(2, 1), torch.tensor([0, 1])).exp()
    tensor([2., 2.])
    """
    z_NK, t_NK = _paired(outputs, targets)
    if label_smoothing:
        t_NK = (1 - label_smoothing) * t_NK + label_smoothing / 2
    if class_weights is None:
        return F.binary_cross_entropy_with_logits(z_NK, t_NK, reduction="none").mean(1)
    w0, w1 = class_weights.to(z_NK).unbind()
    return (w1 * t_NK * F.softplus(-z_NK) + w0 * (1 - t_NK) * F.softplus(z_NK)).mean(1)


def focal(outputs: Tensor, targets: Tensor, *, gamma: float = 2.0, class_weights: Tensor | None = None) -> Tensor:
    """(N,) or (N, T): -Σ_c w_c t_c (1 - p_c)^gamma log p_c, p = softmax(outputs). Lin et al. 2017, arXiv 1708.02002.

    Shapes as in `cross_entropy`, which it equals at gamma = 0; a single logit z of shape (N,) or (N, 1) stands for the
    two logits (0, z), which is the paper's binary form. The class weights are the paper's alpha.

    >>> sure, unsure = focal(torch.tensor([[4.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0]))
    >>> bool(sure < 1e-4 < unsure)
    True
    """
    logits = _wide(outputs)
    if logits.ndim == 1 or logits.shape[-1] == 1:
        z_N, t_N = (v.squeeze(1) for v in _paired(outputs, targets))
        logits, targets = torch.stack((torch.zeros_like(z_N), z_N), -1), torch.stack((1 - t_N, t_N), -1)
    soft = targets.is_floating_point()
    _check_classes(logits, targets, soft)
    log_p = logits.log_softmax(-1)
    # 1 - p, kept above zero: the power's slope is infinite there when gamma < 1
    rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
    losses = -(rest**gamma) * log_p
    if class_weights is not None:
        losses = losses * class_weights.to(losses)
    if soft:
        return (targets.to(losses.dtype) * losses).sum(-1)
    return losses.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": mse,
    "mae": mae,
    "huber": huber,
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "focal": focal,
}


def build_loss(name: str, **options: Any) -> Loss:
    """The loss of that name with its options set: `delta`, `label_smoothing`, `gamma`, `class_weights` (C numbers).

    >>> build_loss("huber", delta=2.0)(torch.tensor([4.0]), torch.tensor([0.0]))
    tensor([6.])
    """
    if name not in LOSSES:
        raise ConfigError(f"unknown loss {name!r}", hint=nearest(name, LOSSES))
    loss = LOSSES[name]
    known = [p.name for p in inspect.signature(loss).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            hint = nearest(option, known) if known else "it has none"
            raise ConfigError(f"loss {name!r} has no option {option!r}", hint=hint)
    weights = options.get("class_weights")
    if weights is not None:
        options["class_weights"] = _class_weights(weights, binary=name == "binary_cross_entropy")
    _check_range("label_smoothing", options.get("label_smoothing", 0.0), "at least 0 and below 1", lambda v: 0 <= v < 1)
    _check_range("delta", options.get("delta", 1.0), "above 0", lambda v: v > 0)
    _check_range("gamma", options.get("gamma", 2.0), "at least 0", lambda v: v >= 0)
    return partial(loss, **options) if options else loss


def _check_range(option: str, value: float, wanted: str, holds: Callable[[float], bool]) -> None:
    if not (math.isfinite(value) and holds(value)):
        raise ConfigError(f"{option}={value} can't be used", hint=f"give a number {wanted}")


def _class_weights(weights: Sequence[float] | Tensor, binary: bool) -> Tensor:
    w = torch.as_tensor(weights, dtype=torch.float64)
    if w.ndim != 1 or not w.isfinite().all() or (w < 0).any() or not w.any():
        raise ConfigError(f"class_weights={w.tolist()} can't be used", hint="give one finite number >= 0 a class")
    if binary and len(w) != 2:
        raise ConfigError(f"class_weights has {len(w)} numbers, a binary loss takes 2", hint="give those of 0 and of 1")
    return w


def _wide(outputs: Tensor) -> Tensor:
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


def _like(weights: Tensor | None, logits: Tensor) -> Tensor | None:
    return None if weights is None else weights.to(logits)


def _paired(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (N, K) of one type. (N,) and (N, 1) are the same thing here; left to broadcast they would make (N, N)."""
    y, t = (v.unsqueeze(1) if v.ndim == 1 else v.flatten(1) for v in (_wide(outputs), targets))
    if y.shape != t.shape:
        raise DataError(
            f"outputs of shape {tuple(outputs.shape)} don't pair with targets of shape {tuple(targets.shape)}",
            hint="each example needs as many targets as the model has outputs",
        )
    return y, t.to(y.dtype)


def _check_classes(logits: Tensor, targets: Tensor, soft: bool) -> None:
    if logits.ndim < 2 or targets.shape != (logits.shape if soft else logits.shape[:-1]):
        raise DataError(
            f"logits of shape {tuple(logits.shape)} don't pair with targets of shape {tuple(targets.shape)}",
            hint="give one label (whole number) an element, or one probability a class",
        )
