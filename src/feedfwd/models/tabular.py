"""A multilayer perceptron over the columns of a table: embedded numbers and categories, and small ensembles in one.

N rows, F embedded numbers, P plain ones, C categories, B bins or frequencies, E embedding width, K members, H hidden
width, O outputs
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from feedfwd.errors import ConfigError
from feedfwd.ffn.init import Growth
from feedfwd.models.mlp import MLP, LayerRow

Loss = Callable[[Tensor, Tensor], Tensor]
Numbers = Literal["plain", "periodic", "piecewise"]


class Piecewise(nn.Module):
    """x w + v · ple(x), a vector for each number; ple is piecewise linear over the quantiles of its training values.

    ple(x)_b is how far x has come through bin b: 0 below it, 1 above (Gorishniy et al. 2022, arXiv 2203.05556); the
    first bin goes on below and the last above. v starts at 0, so that the network starts from plain numbers.
    """

    def __init__(self, edges: Sequence[Sequence[float]], width: int) -> None:
        super().__init__()
        numbers, bins = len(edges), max((len(e) - 1 for e in edges), default=1)
        slope, offset = torch.zeros(numbers, bins), torch.zeros(numbers, bins)
        low, high = torch.zeros(numbers, bins), torch.ones(numbers, bins)
        for f, ends in enumerate(edges):
            e = torch.tensor(list(ends), dtype=torch.float64)
            used, spans = len(e) - 1, e.diff()
            slope[f, :used], offset[f, :used] = (1 / spans).float(), (-e[:-1] / spans).float()
            low[f, 0], high[f, used - 1] = -math.inf, math.inf
        for name, value in (("slope", slope), ("offset", offset), ("low", low), ("high", high)):
            self.register_buffer(name, value)
        self.slope: Tensor
        self.offset: Tensor
        self.low: Tensor
        self.high: Tensor
        self.line = nn.Parameter(torch.empty(numbers, width).uniform_(-1, 1))
        self.bias = nn.Parameter(torch.empty(numbers, width).uniform_(-1, 1))
        self.steps = nn.Parameter(torch.zeros(numbers, bins, width))

    def forward(self, x_NF: Tensor) -> Tensor:  # (N, F) -> (N, F, E)
        line_NFE = x_NF[..., None] * self.line + self.bias
        ple_NFB = torch.addcmul(self.offset, x_NF[..., None], self.slope).clamp(self.low, self.high)
        steps_FNE = torch.bmm(ple_NFB.transpose(0, 1), self.steps)
        return line_NFE + steps_FNE.transpose(0, 1)


class Periodic(nn.Module):
    """[x, W cos(2π c x + b) + d], a vector for each number, with c ~ N(0, σ²): RealMLP's form, arXiv 2407.04491."""

    FREQUENCIES, SPREAD = 16, 0.1

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        b = self.FREQUENCIES
        self.frequency = nn.Parameter(torch.randn(numbers, b) * self.SPREAD)
        self.phase = nn.Parameter(torch.empty(numbers, b).uniform_(-math.pi, math.pi))
        self.mix = nn.Parameter(torch.empty(numbers, b, width - 1).uniform_(-1, 1) / math.sqrt(b))
        self.bias = nn.Parameter(torch.zeros(numbers, width - 1))

    def forward(self, x_NF: Tensor) -> Tensor:  # (N, F) -> (N, F, E)
        waves_NFB = torch.cos(2 * math.pi * x_NF[..., None] * self.frequency + self.phase)
        mixed_FNE = torch.bmm(waves_NFB.transpose(0, 1), self.mix) + self.bias[:, None]
        return torch.cat([x_NF[..., None], mixed_FNE.transpose(0, 1)], -1)


class MemberHead(nn.Module):
    """A linear head for each member: (N·K, H) -> (N, K, O)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        reach = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-reach, reach))
        self.bias = nn.Parameter(torch.zeros(members, outputs))

    def forward(self, h: Tensor) -> Tensor:
        h_NKH = h.view(-1, len(self.weight), h.shape[1])
        return torch.bmm(h_NKH.transpose(0, 1), self.weight).transpose(0, 1) + self.bias


def per_member(loss: Loss) -> Loss:
    """The loss of a network that gives each member's outputs while training: (N, K, O) -> (N,), the members' mean.

    Each member learns by itself; the loss of their mean would let them lean on each other.
    """

    def losses(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.ndim < 3:
            return loss(outputs, targets)
        members = outputs.shape[1]
        each = loss(outputs.flatten(0, 1), targets.repeat_interleave(members, 0))
        return each.view(-1, members).mean(1)

    return losses


class Tabular(nn.Module):
    """Rows (N, F + P + C), as `TablePreprocessor` gives them, through embeddings and an MLP to (N, O).

    `edges` are the bins' ends of each number, `categories` the sizes of the vocabularies. With `members` > 1 it is a
    small ensemble in one network (TabM-mini, Gorishniy et al. 2024, arXiv 2410.24210): each member multiplies the
    embedded row by a vector of its own and has a head of its own, the layers between are shared. In training such a
    network gives every member's outputs, (N, K, O), each to be trained by itself; in evaluation their mean: of values,
    or of probabilities as logits where `classify`, each output by itself where `several` labels are learnt.

    >>> model = Tabular([[0.0, 1.0]] * 2, plain=1, categories=[5], hidden=[8], outputs=3, members=4)
    >>> rows = torch.tensor([[0.2, 0.9, 1.0, 4.0]])
    >>> model(rows).shape, model.eval()(rows).shape
    (torch.Size([1, 4, 3]), torch.Size([1, 3]))
    """

    def __init__(
        self,
        edges: Sequence[Sequence[float]],
        plain: int,
        categories: Sequence[int],
        hidden: Sequence[int],
        outputs: int,
        *,
        numbers: Numbers = "piecewise",
        width: int = 16,
        members: int = 1,
        classify: bool = True,
        several: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if options.get("init") == "mup":
            raise ConfigError("ffn.init=mup is for arrays and images, and this is a table", hint="leave it out")
        self.counts = len(edges), plain, len(categories)
        self.members, self.classify, self.several = members, classify, several
        self.numbers: nn.Module
        match numbers if edges else "plain":
            case "piecewise":
                self.numbers = Piecewise(edges, width)
            case "periodic":
                self.numbers = Periodic(len(edges), width)
            case _:
                self.numbers, width = nn.Identity(), 1
        self.names = nn.Embedding(sum(categories), 8) if categories else None
        if self.names is not None:
            nn.init.normal_(self.names.weight, std=0.5)
        starts = torch.tensor([0, *categories[:-1]], dtype=torch.int64).cumsum(0)
        self.register_buffer("starts", starts, persistent=False)
        self.starts: Tensor
        inside = len(edges) * width + plain + 8 * len(categories)
        self.mlp = MLP([inside, *hidden, outputs], **options)
        if members > 1:
            if not hidden:
                raise ConfigError("model.members needs a hidden layer", hint="give model.hidden one")
            signs = torch.randint(0, 2, (members, len(edges) + plain + len(categories))).float() * 2 - 1
            spans = torch.tensor([width] * len(edges) + [1] * plain + [8] * len(categories))
            spread = torch.randn_like(signs) if numbers != "plain" else signs
            self.scale = nn.Parameter(spread.repeat_interleave(spans, 1))
            self.mlp.head = MemberHead(members, self.mlp.sizes[-2], outputs)  # type: ignore[assignment]

    def embed(self, x: Tensor) -> Tensor:  # (N, F + P + C) -> (N, D)
        x_NF, x_NP, x_NC = torch.split(x, list(self.counts), 1)
        parts = [self.numbers(x_NF).flatten(1), x_NP]
        if self.names is not None:
            parts.append(self.names(x_NC.long() + self.starts).flatten(1))
        return torch.cat(parts, 1)

    def forward(self, x: Tensor) -> Tensor:
        h_ND = self.embed(x)
        if self.members == 1:
            return self.mlp(h_ND)
        out_NKO: Tensor = self.mlp((h_ND[:, None] * self.scale).flatten(0, 1))
        return out_NKO if self.training else self.mean(out_NKO)

    def mean(self, out_NKO: Tensor) -> Tensor:
        """The ensemble's answer (N, O): the mean of values, or of probabilities, as logits."""
        out_NKO = out_NKO.float()
        if not self.classify:
            return out_NKO.mean(1)
        if self.several or out_NKO.shape[2] == 1:
            return out_NKO.sigmoid().mean(1).logit(eps=1e-7)
        return out_NKO.log_softmax(2).logsumexp(1) - math.log(self.members)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Columns, hidden sizes, outputs."""
        return (sum(self.counts), *self.mlp.sizes[1:])

    @property
    def growth(self) -> dict[str, Growth]:
        return {}

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def flops(self) -> int:
        """Of one row's forward pass, products only; each member passes through the shared layers."""
        return sum(row.flops for row in self.layers())

    def layers(self) -> list[LayerRow]:
        embedded = sum(p.numel() for p in self.numbers.parameters())
        rows = [LayerRow("numbers", embedded, 2 * embedded, "")] if embedded else []
        if self.names is not None:
            rows.append(LayerRow("names", self.names.weight.numel(), 0, ""))
        if self.members == 1:
            return rows + self.mlp.layers()
        shared = [row._replace(flops=self.members * row.flops) for row in self.mlp.layers() if row.name != "head"]
        head = sum(p.numel() for p in self.mlp.head.parameters())
        scale = LayerRow("members", self.scale.numel(), self.scale.numel(), "")
        return [*rows, scale, *shared, LayerRow("head", head, 2 * head, "")]
