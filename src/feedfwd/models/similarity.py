"""Networks that compare texts: by a vector of each, or by reading two of them as one row."""

# R rows, T tokens, L places of the longest row, W width

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from feedfwd.data.ragged import PAD
from feedfwd.models.bag import Bag
from feedfwd.models.encoder import Encoder, pool
from feedfwd.models.transformer import Transformer

SHARPNESS = 20.0  # by which a cosine is multiplied to make a score: 1 / .05
GROUPS = 4  # passes that a batch is read in at most, its rows sorted by length, so that little is filled up


class TextVectors(Encoder):
    """Token ids (R, T), filled up with `PAD`, to a vector of length 1 for each row, (R, W).

    >>> model = TextVectors(Transformer(50, width=8, depth=1, heads=2, hidden=16, causal=False))
    >>> model(torch.tensor([[5, 7, 9], [4, PAD, PAD]])).shape
    torch.Size([2, 8])
    """

    def __init__(self, backbone: Transformer, *, pooling: str = "mean") -> None:
        super().__init__(backbone, 1, pooling=pooling)
        del self.mlp

    def forward(self, x: Tensor) -> Tensor:  # (R, T) -> (R, W)
        lengths = (x != PAD).sum(1)
        order = lengths.argsort(stable=True)
        parts = [self.embed(x[rows, : int(lengths[rows].max())]) for rows in _groups(order, lengths)]
        return torch.cat(parts)[order.argsort()]

    def flops(self, tokens: float) -> int:
        """Of the forward pass of a text of so many tokens, products only."""
        return round(tokens * self.backbone.flops(max(1, round(tokens))))


def _groups(order: Tensor, lengths: Tensor) -> list[Tensor]:
    """The sorted rows as one pass, or as several where that spares a tenth of the places."""
    parts = [part for part in order.tensor_split(min(GROUPS, len(order))) if len(part)]
    places = sum(len(part) * int(lengths[part].max()) for part in parts)
    return parts if places < 0.9 * len(order) * int(lengths.max()) else [order]


class BagVectors(Bag):
    """Buckets of n-grams (R, L), filled up with `PAD`, to a vector of length 1 for each row, (R, W).

    Before any training two texts' product is about the cosine of their TF-IDF, for vectors drawn at random are about
    orthogonal. A text without n-grams gives zero.
    """

    def __init__(self, buckets: int, width: int, *, generator: Generator | None = None) -> None:
        super().__init__(buckets, width, [], 1, std=0.1, generator=generator)
        del self.mlp

    def forward(self, x: Tensor) -> Tensor:  # (R, L) -> (R, W)
        return F.normalize(self.bag(x), dim=-1)

    @property
    def flops(self) -> int:
        """There are no products."""
        return 0


class PairReader(Encoder):
    """Rows of two texts (R, T), filled up with `PAD`, to a score for each, (R, 1).

        score = s · cos(mean state of the first text, mean state of the second) + linear(pooled states of the row)

    The linear map starts at zero and s at `SHARPNESS`, so that the ranking starts about where the cosine of the two
    texts' vectors has it, and not anywhere. A token of the second text stands as its id plus the vocabulary's size; a
    model with token types is told of it.

    >>> model = PairReader(Transformer(50, width=8, depth=1, heads=2, hidden=16, causal=False))
    >>> model(torch.tensor([[5, 7, 59], [4, 54, PAD]])).shape
    torch.Size([2, 1])
    """

    def __init__(self, backbone: Transformer, *, pooling: str = "mean") -> None:
        super().__init__(backbone, 1, pooling=pooling, init="zero")
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))

    def forward(self, x: Tensor) -> Tensor:  # (R, T) -> (R, 1)
        there = x != PAD
        x = x.clamp(min=0)
        second = there & (x >= self.backbone.vocabulary)
        ids = torch.where(second, x - self.backbone.vocabulary, x)
        types = second.long() if self.backbone.types > 1 else None
        h = self.backbone.hidden(ids, lengths=there.sum(1), types=types)
        cosine = F.cosine_similarity(pool(h, there & ~second, "mean").float(), pool(h, second, "mean").float())
        return self.sharpness * cosine[:, None] + self.mlp(pool(h, there, self.pooling)).float()
