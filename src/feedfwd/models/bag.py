"""Texts as bags of hashed n-grams: one vector a bucket, their weighted sum, feed-forward layers.

N texts, L places of the longest, K n-grams of all texts together, B buckets, D width, C classes, S width of a sketch
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from feedfwd.data.ragged import PAD
from feedfwd.models.mlp import MLP

SKETCH = 1024


class Bias(nn.Module):
    """x + b: all that is left above vectors that are logits already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes, self.flops = [width], 0
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Bag(nn.Module):
    """Buckets of n-grams (N, L), filled up with `PAD`, to logits (N, C).

    h = Σ w_i e_i / √Σ w_i², where w_i is how much n-gram i tells (`weigh`): of unit length whatever the text's, like
    TF-IDF's rows; then an MLP. The embedding's gradient is sparse, so that an update (`train.rows`) touches the rows
    of its own n-grams and no others. Joulin et al. 2016, arXiv 1607.01759, is the mean of all with a linear layer.

    Of width 0 each n-gram has a number for every class in place of a vector, and logits are h + b: a linear model, with
    one best solution, where vectors and a layer above them have many.

    >>> Bag(1 << 10, 16, [32], classes=3)(torch.tensor([[5, 7, 9], [4, PAD, PAD]])).shape
    torch.Size([2, 3])
    """

    weights: Tensor

    def __init__(
        self,
        buckets: int,
        width: int,
        hidden: Sequence[int],
        classes: int,
        *,
        std: float = 0.001,
        generator: Generator | None = None,
        **mlp: Any,
    ) -> None:
        super().__init__()
        self.direct = width == 0
        self.embedding = nn.Embedding(buckets, width or classes, sparse=True)
        nn.init.normal_(self.embedding.weight, std=0.0 if self.direct else std, generator=generator)
        self.register_buffer("weights", torch.ones(buckets))
        self.mlp: MLP | Bias
        self.mlp = Bias(classes) if self.direct else MLP([width, *hidden, classes], generator=generator, **mlp)

    def weigh(self, buckets: Tensor, texts: int) -> None:
        """Let each n-gram weigh log((1 + N) / (1 + n)) + 1, for n of N training texts that hold it; one by one (K,)."""
        holding = torch.bincount(buckets.long(), minlength=len(self.weights))
        self.weights.copy_(((1 + texts) / (1 + holding)).log() + 1)

    def forward(self, x: Tensor) -> Tensor:  # (N, L) -> (N, C)
        return self.mlp(self.bag(x))

    def bag(self, x: Tensor) -> Tensor:  # (N, L) -> (N, D)
        """The weighted sums; of a text without n-grams it is zero."""
        flat, w, counts = self._weighed(x)
        offsets = counts.cumsum(0) - counts
        with torch.autocast(x.device.type, enabled=False):
            return F.embedding_bag(flat, self.embedding.weight, offsets, mode="sum", sparse=True, per_sample_weights=w)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, L) -> (N, D), (N, C)
        """Vectors by which texts compare, and outputs."""
        h = self.bag(x)
        return self.sketch(x) if self.direct else h, self.mlp(h)

    def sketch(self, x: Tensor) -> Tensor:  # (N, L) -> (N, S)
        """Vectors whose products are about the cosines of the texts' weighed n-grams.

        Each n-gram is added to one place or taken from it, by its hash: Weinberger et al. 2009, arXiv 0902.2206.
        """
        flat, w, counts = self._weighed(x)
        owner = torch.repeat_interleave(torch.arange(len(x), device=x.device), counts)
        sign = 1 - 2 * (flat // SKETCH % 2)
        found = torch.zeros(len(x) * SKETCH, device=x.device)
        return found.index_add_(0, owner * SKETCH + flat % SKETCH, w * sign).view(len(x), SKETCH)

    @property
    def width(self) -> int:
        """Of the vectors by which texts compare."""
        return SKETCH if self.direct else self.mlp.sizes[0]

    def _weighed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (N, L) -> (K,), (K,), (N,)
        """All n-grams, text by text, what each counts in its own, and how many each text has."""
        there = x != PAD
        w_NL = torch.where(there, self.weights[x.clamp(min=0).long()], 0.0)
        w_NL = w_NL / w_NL.square().sum(1, keepdim=True).sqrt().clamp(min=1e-6)
        return x[there].long(), w_NL[there], there.sum(1)

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def flops(self) -> int:
        """Of one text's forward pass, products only; the sum has none."""
        return self.mlp.flops
