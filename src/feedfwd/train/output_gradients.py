"""A loss and its gradient with respect to the outputs alone: where a backward pass of one's own begins.

The losses that small networks mostly train with have a closed form, a few operations on a few numbers; for the others
autograd works it out, from the outputs on. Examples are columns here: biases, softmax and sums over the examples then
work on many numbers at once.
"""

# N examples, C classes, K outputs

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedfwd.data.batches import Batch
from feedfwd.train import losses
from feedfwd.train.loop import autograd
from feedfwd.train.losses import Loss

# (outputs (K, N), batch, total weight, where its gradient (K, N) goes) -> the batch's share of the mean loss
OutputGradient = Callable[[Tensor, Batch, Tensor | float, Tensor], Tensor]


def output_gradient(loss: Loss) -> OutputGradient:
    """The same numbers as `loop.autograd` gives for a network that ends in these outputs.

    >>> outputs, gradient = torch.ones(1, 2), torch.empty(1, 2)
    >>> output_gradient(losses.mse)(outputs, Batch(torch.zeros(2, 1), torch.zeros(2)), 2, gradient), gradient
    (tensor(1.), tensor([[1., 1.]]))
    """
    function, options = (loss.func, loss.keywords) if isinstance(loss, partial) else (loss, {})
    if function is losses.cross_entropy:
        return CrossEntropy(**options)
    if function is losses.mse:
        return mse
    if function is losses.binary_cross_entropy and options.get("class_weights") is None:
        return partial(binary_cross_entropy, label_smoothing=options.get("label_smoothing", 0.0))
    return partial(by_autograd, loss)


def by_autograd(loss: Loss, outputs: Tensor, batch: Batch, total: Tensor | float, out: Tensor) -> Tensor:
    """For any loss."""
    leaf = outputs.t().detach().requires_grad_()
    share = autograd(nn.Identity(), Batch(leaf, batch.targets, batch.weights), loss, total)
    assert leaf.grad is not None
    out.copy_(leaf.grad.t())
    return share


class CrossEntropy:
    """∂/∂z Σ_n s_n Σ_c -t_c log softmax(z)_c = s (p Σ_c t_c - t), where s = weight / total; class weights enter t."""

    def __init__(self, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        self.label_smoothing, self.class_weights = label_smoothing, class_weights
        self._tables: dict[tuple[int, torch.dtype, float], tuple[Tensor, Tensor]] = {}

    def __call__(self, outputs: Tensor, batch: Batch, total: Tensor | float, out: Tensor) -> Tensor:
        log_p_CN = torch.log_softmax(outputs, 0)
        t_CN, mass = (self._soft if batch.targets.is_floating_point() else self._labels)(log_p_CN, batch, total)
        share = torch.dot(t_CN.view(-1), log_p_CN.view(-1))
        torch.addcmul(t_CN, log_p_CN.exp_(), mass, out=out)
        return share

    def _labels(self, log_p_CN: Tensor, batch: Batch, total: Tensor | float) -> tuple[Tensor, Tensor]:
        """-t s and Σ_c t_c s: columns of a table that holds every label's."""
        y_N, weights = batch.targets.long(), batch.weights
        scale = float(total) if weights is None else 1.0
        key = len(log_p_CN), log_p_CN.dtype, scale
        if key not in self._tables:
            t_CC = self._weighted(torch.eye(key[0], dtype=key[1])) / scale
            mass_C = t_CC.sum(0)
            self._tables[key] = -t_CC, mass_C if self.class_weights is not None else mass_C[:1]
        t_CC, mass = self._tables[key]
        t_CN = t_CC.index_select(1, y_N)
        if self.class_weights is not None:
            mass = mass.index_select(0, y_N)
        if weights is None:
            return t_CN, mass
        s_N = (weights / total).to(log_p_CN.dtype)
        return t_CN.mul_(s_N), mass * s_N

    def _soft(self, log_p_CN: Tensor, batch: Batch, total: Tensor | float) -> tuple[Tensor, Tensor]:
        """-t s and Σ_c t_c s."""
        s = 1 / total if batch.weights is None else batch.weights / total
        t_CN = (self._weighted(batch.targets.to(log_p_CN.dtype).t()) * -s).contiguous()
        return t_CN, -t_CN.sum(0)

    def _weighted(self, t_CN: Tensor) -> Tensor:
        smooth = (1 - self.label_smoothing) * t_CN + self.label_smoothing / len(t_CN)
        return smooth if self.class_weights is None else self.class_weights.to(smooth)[:, None] * smooth


def mse(outputs: Tensor, batch: Batch, total: Tensor | float, out: Tensor) -> Tensor:
    """∂/∂y Σ_n s_n mean_k (y - t)² = 2 s (y - t) / K."""
    error_KN = outputs - _targets(outputs, batch)
    torch.mul(error_KN, _each(batch, total, 2 / len(outputs)), out=out)
    return torch.dot(error_KN.view(-1), out.view(-1)).mul_(0.5)


def binary_cross_entropy(
    outputs: Tensor, batch: Batch, total: Tensor | float, out: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """∂/∂z Σ_n s_n mean_k of the cross-entropy of σ(z) = s (σ(z) - t) / K."""
    t_KN = _targets(outputs, batch)
    if label_smoothing:
        t_KN = (1 - label_smoothing) * t_KN + label_smoothing / 2
    each = _each(batch, total, 1 / len(outputs))
    torch.mul(torch.sigmoid(outputs).sub_(t_KN), each, out=out)
    return (F.binary_cross_entropy_with_logits(outputs, t_KN, reduction="none") * each).sum()


def _targets(outputs: Tensor, batch: Batch) -> Tensor:
    """(K, N)."""
    return batch.targets.to(outputs.dtype).reshape(outputs.shape[1], len(outputs)).t()


def _each(batch: Batch, total: Tensor | float, factor: float) -> Tensor | float:
    """factor · s, as a number or (N,)."""
    return factor / total if batch.weights is None else batch.weights * (factor / total)
