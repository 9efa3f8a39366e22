"""Texts as bags of hashed n-grams: one vector a bucket, their weighted sum, feed-forward layers.

N texts, L places of the longest, K n-grams of all texts together, B buckets, D width
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from feedfwd.data.ragged import PAD
from feedfwd.models.mlp import MLP


class Bag(nn.Module):
    """Buckets of n-grams (N, L), filled up with `PAD`, to logits (N, C).

    h = Σ w_i e_i / √Σ w_i², where w_i is how much n-gram i tells (`weigh`): of unit length whatever the text's, like
    TF-IDF's rows; then an MLP. The embedding's gradient is sparse, so that an update (`train.rows`) touches the rows
    of its own n-grams and no others. Joulin et al. 2016, arXiv 1607.01759, is the mean of all with a linear layer.

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
        self.embedding = nn.Embedding(buckets, width, sparse=True)
        nn.init.normal_(self.embedding.weight, std=std, generator=generator)
        self.register_buffer("weights", torch.ones(buckets))
        self.mlp = MLP([width, *hidden, classes], generator=generator, **mlp)

    def weigh(self, buckets: Tensor, texts: int) -> None:
        """Let each n-gram weigh log((1 + N) / (1 + n)) + 1, for n of N training texts that hold it; one by one (K,)."""
        holding = torch.bincount(buckets.long(), minlength=len(self.weights))
        self.weights.copy_(((1 + texts) / (1 + holding)).log() + 1)

    def forward(self, x: Tensor) -> Tensor:  # (N, L) -> (N, C)
        return self.mlp(self.bag(x))

    def bag(self, x: Tensor) -> Tensor:  # (N, L) -> (N, D)
        """The weighted sums; of a text without n-grams it is zero."""
        there = x != PAD
        flat = x[there].long()
        counts = there.sum(1)
        w_NL = torch.where(there, self.weights[x.clamp(min=0).long()], 0.0)
        w_NL = w_NL / w_NL.square().sum(1, keepdim=True).sqrt().clamp(min=1e-6)
        offsets = counts.cumsum(0) - counts
        table = self.embedding.weight
        with torch.autocast(x.device.type, enabled=False):
            return F.embedding_bag(flat, table, offsets, mode="sum", sparse=True, per_sample_weights=w_NL[there])

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def flops(self) -> int:
        """Of one text's forward pass, products only; the sum has none."""
        return self.mlp.flops
