"""A text as one vector: a Transformer's hidden states, pooled; and above it the feed-forward head of a task."""

# B rows, T tokens, W width, O outputs of the head

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from feedfwd.data.ragged import PAD
from feedfwd.errors import ConfigError, nearest
from feedfwd.models.bag import Bag
from feedfwd.models.mlp import MLP
from feedfwd.models.transformer import Transformer

POOLINGS = ("mean", "cls", "last")


def pool(h: Tensor, there: Tensor, how: str) -> Tensor:  # (B, T, W), (B, T) -> (B, W)
    """The mean over a row's own tokens, its first token, or its last one; what fills a row up counts for nothing.

    >>> h, there = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])
    >>> [pool(h, there, how).item() for how in POOLINGS]
    [2.0, 1.0, 3.0]
    """
    match how:
        case "mean":
            counts = there.sum(1, keepdim=True).clamp(min=1)
            return (h * there[..., None]).sum(1) / counts
        case "cls":
            return h[:, 0]
        case "last":
            last = (there.sum(1) - 1).clamp(min=0)
            return h[torch.arange(len(h), device=h.device), last]
    raise ConfigError(f"unknown pooling {how!r}", hint=nearest(how, POOLINGS))


def windows(x: Tensor, size: int) -> tuple[Tensor, Tensor]:  # (B, T) -> (N, size), (N,)
    """The rows that a row holds end to end, and whose they are.

    >>> windows(torch.tensor([[1, 2, 3], [4, PAD, PAD]]), 2)
    (tensor([[ 1,  2],
            [ 3, -1],
            [ 4, -1]]), tensor([0, 0, 1]))
    """
    parts = F.pad(x, (0, -x.shape[1] % size), value=PAD).view(len(x), -1, size)
    there = (parts != PAD).any(2)
    there[:, 0] = True  # a text without tokens is a row all the same
    return parts[there], there.nonzero()[:, 0]


def means(values: Tensor, texts: Tensor, count: int) -> Tensor:  # (N, D), (N,) -> (B, D)
    """The mean of each text's rows."""
    total = values.new_zeros(count, values.shape[1]).index_add(0, texts, values)
    return total / torch.bincount(texts, minlength=count)[:, None]


def logistic_regression(
    x_ND: Tensor, labels_N: Tensor, classes: int, *, strength: float = 10.0, steps: int = 60
) -> tuple[Tensor, Tensor]:  # (C, D), (C,)
    """Weights and biases that make the sum of the cross-entropies times `strength`, plus |weights|² / 2, least.

    >>> weight, bias = logistic_regression(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]), 2)
    >>> bool(weight[0] > 1 and weight[1] < -1), bias.abs().max().item() < 1e-3
    (True, True)
    """
    weight, bias = (x_ND.new_zeros(shape, requires_grad=True) for shape in ((classes, x_ND.shape[1]), (classes,)))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    @torch.enable_grad()
    def cost() -> Tensor:
        optimizer.zero_grad()
        losses = F.cross_entropy(F.linear(x_ND, weight, bias), labels_N, reduction="sum")
        found = strength * losses + weight.square().sum() / 2
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimizer.step(cost)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


class Encoder(nn.Module):
    """Token ids (B, T), filled up at the end with `PAD`, to what a task asks for (B, O).

    The backbone's last states are pooled to one vector a text, and an MLP of any kind makes the outputs of it; with no
    hidden layer that is one linear map. Padding is invisible: a row gives the same whatever it shares a batch with. The
    backbone's own head and pooler are taken off. With `window`, a row longer than so many tokens is several rows of
    that many end to end: the text's vector and outputs are the means of theirs.

    A `bag` stands beside it: what n-grams tell, beside what pretraining taught. A row is then the text's tokens, and
    after them its n-grams' buckets, each plus the vocabulary. In training both give their outputs, (B, 2, O), each to
    be trained by itself, for together the quicker one leaves the other nothing to learn; in evaluation their sum with
    the two weights of `mix`, halves until `mix_by` has fitted them to texts held back.

    With `shows_vectors` a text's vector stands behind its outputs in training, (B, O + W), for a loss that compares
    texts.

    >>> model = Encoder(Transformer(50, width=8, depth=1, heads=2, hidden=16, causal=False), 3)
    >>> model(torch.tensor([[5, 7, 9], [4, PAD, PAD]])).shape
    torch.Size([2, 3])
    """

    mix: Tensor

    def __init__(
        self,
        backbone: Transformer,
        outputs: int,
        *,
        pooling: str = "mean",
        hidden: Sequence[int] = (),
        window: int | None = None,
        bag: Bag | None = None,
        generator: Generator | None = None,
        **mlp: Any,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigError(f"unknown pooling {pooling!r}", hint=nearest(pooling, POOLINGS))
        self.backbone, self.pooling, self.window = backbone, pooling, window
        backbone.head, backbone.head_kind, backbone.pooler = nn.Identity(), "none", None
        self.mlp = MLP([backbone.width, *hidden, outputs], generator=generator, **mlp)
        self.bag, self.shows_vectors = bag, False
        if bag is not None:
            self.register_buffer("mix", torch.full((2,), 0.5))

    def forward(self, x: Tensor) -> Tensor:  # (B, T) -> (B, O)
        if self.training and self.shows_vectors:
            features, outputs = self.read(x)
            return torch.cat([outputs, features], 1)
        if self.bag is None:
            return self._deep(x)
        both = self.both(x)
        return both if self.training else self._mixed(both)

    def _mixed(self, both_B2O: Tensor) -> Tensor:  # -> (B, O)
        return torch.einsum("bmo,m->bo", both_B2O, self.mix.to(both_B2O.dtype))

    @torch.no_grad()
    def mix_by(self, both_B2O: Tensor, targets: Tensor) -> None:
        """Weigh the two so that the log loss of their sum is least on examples that neither was trained on.

        A temperature for each (Guo et al. 2017, arXiv 1706.04599), found together: the convex loss has two numbers.
        """
        from scipy.optimize import minimize

        z, t = both_B2O.double().cpu(), targets.long().cpu()

        def loss(weights: Any) -> float:
            mixed = torch.einsum("bmo,m->bo", z, torch.as_tensor(weights, dtype=torch.float64))
            return float(F.cross_entropy(mixed, t))

        found = minimize(loss, [0.5, 0.5], bounds=[(0.0, None)] * 2, method="L-BFGS-B")
        self.mix.copy_(torch.as_tensor(found.x))

    def both(self, x: Tensor) -> Tensor:  # (B, T) -> (B, 2, O)
        """What the pretrained model answers, and what the bag."""
        assert self.bag is not None
        return torch.stack([self._deep(self.tokens(x)), self.bag(self.buckets(x))], 1)

    def buckets(self, x: Tensor) -> Tensor:
        """What stands in the rows for a bag."""
        return torch.where(x < self.backbone.vocabulary, PAD, x - self.backbone.vocabulary)

    def tokens(self, x: Tensor) -> Tensor:
        """Rows without what stands in them for a bag."""
        if self.bag is None:
            return x
        own = (x != PAD) & (x < self.backbone.vocabulary)
        longest = max(1, int(own.sum(1).max())) if len(x) else 1
        return torch.where(own, x, PAD)[:, :longest]

    def _deep(self, x: Tensor) -> Tensor:
        if self.window is None or x.shape[1] <= self.window:
            return self.mlp(self._features(x))
        parts, texts = windows(x, self.window)
        return means(self.mlp(self._features(parts)), texts, len(x))

    def features(self, x: Tensor) -> Tensor:  # (B, T) -> (B, W)
        """One vector a text, before the head."""
        x = self.tokens(x)
        if self.window is None or x.shape[1] <= self.window:
            return self._features(x)
        parts, texts = windows(x, self.window)
        return means(self._features(parts), texts, len(x))

    @property
    def width(self) -> int:
        """Of a text's vector."""
        return self.backbone.width

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (B, T) -> (B, W), (B, O)
        """`features`, and the outputs as evaluation has them, of one pass."""
        own = self.tokens(x)
        if self.window is None or own.shape[1] <= self.window:
            features = self._features(own)
            outputs = self.mlp(features)
        else:
            parts, texts = windows(own, self.window)
            found = self._features(parts)
            features, outputs = means(found, texts, len(x)), means(self.mlp(found), texts, len(x))
        if self.bag is not None:
            outputs = self._mixed(torch.stack([outputs, self.bag(self.buckets(x))], 1))
        return features, outputs

    @torch.no_grad()
    def begin_at_means(self, features: Tensor, targets: Tensor, scale: float = 20.0) -> None:
        """Let a linear head (O, W) begin at the classes' mean vectors.

        Its logits are then about `scale` times the cosines of a text's vector with them. `features` (N, W) are the
        training texts' own, `targets` (N,) their classes.
        """
        head = self.mlp.head
        sums = torch.zeros_like(head.weight).index_add(0, targets, F.normalize(features, dim=1))
        head.weight.copy_(scale * F.normalize(sums, dim=1) / features.norm(dim=1).mean())
        if head.bias is not None:
            head.bias.zero_()

    @torch.no_grad()
    def begin_at_regression(self, features: Tensor, targets: Tensor) -> None:
        """Let a linear head (O, W) begin as logistic regression on the vectors as they are, scaled to length 1.

        `features` (N, W) are the training texts' own, `targets` (N,) their classes.
        """
        head, unit = self.mlp.head, F.normalize(features.double(), dim=1)
        weight, bias = logistic_regression(unit, targets, len(head.weight))
        head.weight.copy_(weight / features.norm(dim=1).mean())
        if head.bias is not None:
            head.bias.copy_(bias)

    def _features(self, x: Tensor) -> Tensor:
        there = x != PAD
        lengths = there.sum(1)
        h = self.backbone.hidden(x.clamp(min=0), lengths=lengths)
        return pool(h, there, self.pooling)

    def embed(self, x: Tensor) -> Tensor:  # (B, T) -> (B, W)
        """The same scaled to length 1, so that a product of two is their cosine."""
        return F.normalize(self.features(x).float(), dim=-1)

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def flops(self, tokens: float) -> int:
        """Of the forward pass of a text of so many tokens, products only."""
        beside = 0 if self.bag is None else self.bag.flops
        return round(tokens * self.backbone.flops(max(1, round(tokens)))) + self.mlp.flops + beside
