"""The activations' values and slopes, and the pointwise passes written with torch's own operations.

This is the plain form of the passes: it runs on every device and in every precision, and the other forms (`native` on a
CPU with a C compiler, `triton` on a GPU) are tested against it. It works on blocks of rows that stay in the cache.
"""

# N tokens, H hidden width

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten
BLOCK = 1 << 20  # elements worked on at once: two megabytes in bf16, of which the last cache holds a few
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017, arXiv 1706.02515


class Sigma(NamedTuple):
    """An activation: value(z) = σ(z) and slope(grad, z) = grad · σ'(z), each in the precision of z."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]


SIGMA: dict[str, Sigma] = {
    "identity": Sigma(lambda z: z, lambda grad, z: grad),
    "sigmoid": Sigma(torch.sigmoid, lambda grad, z: aten.sigmoid_backward(grad, torch.sigmoid(z))),
    "tanh": Sigma(torch.tanh, lambda grad, z: aten.tanh_backward(grad, torch.tanh(z))),
    "relu": Sigma(torch.relu, lambda grad, z: aten.threshold_backward(grad, z, 0)),
    "leaky_relu": Sigma(F.leaky_relu, lambda grad, z: aten.leaky_relu_backward(grad, z, 0.01, False)),
    "elu": Sigma(F.elu, lambda grad, z: aten.elu_backward(grad, 1.0, 1.0, 1.0, False, z)),
    "selu": Sigma(F.selu, lambda grad, z: aten.elu_backward(grad, SELU_ALPHA, SELU_SCALE, 1.0, False, z)),
    "gelu": Sigma(F.gelu, lambda grad, z: aten.gelu_backward(grad, z)),
    "gelu_tanh": Sigma(
        lambda z: F.gelu(z, approximate="tanh"), lambda grad, z: aten.gelu_backward(grad, z, approximate="tanh")
    ),
    "silu": Sigma(F.silu, lambda grad, z: aten.silu_backward(grad, z)),
    "mish": Sigma(F.mish, lambda grad, z: aten.mish_backward(grad, z)),
    "softplus": Sigma(F.softplus, lambda grad, z: aten.softplus_backward(grad, z, 1.0, 20.0)),
    "hard_swish": Sigma(F.hardswish, lambda grad, z: aten.hardswish_backward(grad, z)),
    "relu2": Sigma(lambda z: torch.relu(z).square(), lambda grad, z: grad * (2 * torch.relu(z))),
}

# Activations whose slope is known from their own output a: nothing else has to be kept, and where dropout put a zero
# the slope is zero too, so that its mask isn't needed again. `scale` is what dropout multiplied a by.
FROM_OUTPUT: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "relu": lambda grad, a, scale: aten.threshold_backward(grad, a, 0) * scale,
    "relu2": lambda grad, a, scale: _wide(grad) * (2 * (_wide(a) * scale).sqrt()),  # a = scale · relu(z)²
}


def _wide(a: Tensor) -> Tensor:
    """At least fp32, for a formula that takes more steps than the one it replaces."""
    return a.to(torch.promote_types(a.dtype, torch.float32))


class Dropout(NamedTuple):
    """Dropout of a whole (N, H) by a seed: the same mask, whenever it is drawn again.

    Each element has 16 random bits and is dropped where they are below the threshold, so that p holds to 1/131072;
    what stays is multiplied by the exact inverse of the chance to stay. Drawing 16 bits is seven times as fast on a
    CPU as torch's own mask, which is drawn from 32-bit floats one after the other.
    """

    p: float
    seed: Tensor  # (), int64; a tensor so that a GPU needn't wait for it

    @classmethod
    def draw(cls, p: float, x: Tensor) -> Self:
        """A new mask for x, its seed from torch's own generator."""
        return cls(p, torch.empty((), dtype=torch.int64, device=x.device).random_())

    @property
    def dropped(self) -> int:  # of 65536
        return min(round(self.p * 65536), 65535)

    @property
    def scale(self) -> float:
        return 65536 / (65536 - self.dropped)


class Drop(NamedTuple):
    """Dropout of one block of rows: an element stays, times `scale`, where its bits (int16) ≥ threshold."""

    bits: Tensor
    threshold: int
    scale: float

    def __call__(self, a: Tensor) -> Tensor:  # in place
        # The mask as 0 and 1 in a's own dtype: a product with booleans is eight times as slow.
        return a.mul_(torch.ge(self.bits, self.threshold, out=torch.empty_like(a))).mul_(self.scale)


def blocks(a: Tensor, dropout: Dropout | None) -> Iterator[tuple[slice, Drop | None]]:
    """Slices over the rows of a (N, H), small enough to stay in the cache, each with its part of the mask."""
    n, h = a.shape
    rows = max(1, (BLOCK if a.device.type == "cpu" else BLOCK << 6) // max(1, h))
    if dropout is not None:
        generator = torch.Generator(a.device).manual_seed(int(dropout.seed))
        words = torch.empty(-(-min(rows, n) * h // 4), dtype=torch.int64, device=a.device)
    for start in range(0, n, rows):
        drop = None
        if dropout is not None:
            words.random_(-(2**63), None, generator=generator)  # all 64 bits, four elements' worth
            length = min(rows, n - start)
            bits = words.view(torch.int16)[: length * h].view(length, h)
            drop = Drop(bits, dropout.dropped - 32768, dropout.scale)
        yield slice(start, start + rows), drop


class Passes(Protocol):
    """The pointwise passes, whoever runs them. Every tensor is contiguous."""

    name: str

    def gated_forward(self, gu: Tensor, a: Tensor, dropout: Dropout | None) -> None:
        """a (N, H) ← dropout(σ(g) ⊙ u), from gu (N, 2H), which holds the products g and u side by side."""

    def gated_backward(self, gu: Tensor, da: Tensor, dropout: Dropout | None) -> None:
        """In place: gu ← [dg | du] and da ← a, where da came as the gradient of a."""

    def dense_forward(self, z: Tensor, a: Tensor, dropout: Dropout | None) -> None:
        """a (N, H) ← dropout(σ(z)). a may be z itself."""

    def dense_backward(self, z: Tensor, da: Tensor, dropout: Dropout | None) -> None:
        """In place: z ← dz and da ← a, where da came as the gradient of a."""

    def output_backward(self, a: Tensor, da: Tensor, scale: float) -> None:
        """In place: da ← dz, for the activations of FROM_OUTPUT; a is what dropout left, times its scale."""


class TorchPasses:
    """The passes in torch's own operations."""

    name = "torch's operations"

    def __init__(self, sigma: str) -> None:
        self.sigma, self.output = SIGMA[sigma], FROM_OUTPUT.get(sigma)

    def gated_forward(self, gu: Tensor, a: Tensor, dropout: Dropout | None) -> None:
        for rows, drop in blocks(a, dropout):
            g, u = gu[rows].chunk(2, dim=-1)
            torch.mul(self.sigma.value(g), u, out=a[rows])
            if drop:
                drop(a[rows])

    def gated_backward(self, gu: Tensor, da: Tensor, dropout: Dropout | None) -> None:
        for rows, drop in blocks(da, dropout):
            g, u = gu[rows].chunk(2, dim=-1)
            d = drop(da[rows]) if drop else da[rows]
            value = self.sigma.value(g)
            a, du = value * u, value * d
            dg = self.sigma.slope(d.mul_(u), g)
            gu[rows] = torch.cat([dg, du], dim=-1)
            d.copy_(drop(a) if drop else a)

    def dense_forward(self, z: Tensor, a: Tensor, dropout: Dropout | None) -> None:
        for rows, drop in blocks(a, dropout):
            a[rows] = self.sigma.value(z[rows])
            if drop:
                drop(a[rows])

    def dense_backward(self, z: Tensor, da: Tensor, dropout: Dropout | None) -> None:
        for rows, drop in blocks(da, dropout):
            d = drop(da[rows]) if drop else da[rows]
            dz, a = self.sigma.slope(d, z[rows]).clone(), self.sigma.value(z[rows])
            d.copy_(drop(a) if drop else a)
            z[rows] = dz

    def output_backward(self, a: Tensor, da: Tensor, scale: float) -> None:
        assert self.output is not None
        for rows, _ in blocks(da, None):
            da[rows] = self.output(da[rows], a[rows], scale)
