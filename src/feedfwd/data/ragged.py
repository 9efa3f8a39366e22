"""Rows of different lengths, and batches of them with little padding, exact to the batch on resume."""

# N examples, L places of the longest row of a batch

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from feedfwd.data.batches import Batch, Transform, derived_seed
from feedfwd.errors import DataError

PAD = -1  # fills rows; no id of anything
ALIKE = 32  # batches among which rows may change places so that those of one length meet


@dataclass(frozen=True)
class Ragged:
    """Rows end to end: `values` of all rows, and each row's length (N,).

    >>> rows = Ragged(torch.tensor([5, 6, 7]), torch.tensor([1, 2]))
    >>> rows.padded(torch.tensor([1, 0]))
    tensor([[ 6,  7],
            [ 5, -1]])
    """

    values: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.split(self.values, self.lengths.tolist())

    @property
    def starts(self) -> Tensor:
        return self.lengths.cumsum(0) - self.lengths

    @classmethod
    def concatenated(cls, parts: list["Ragged"]) -> "Ragged":
        if not parts:
            return cls(torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int64))
        return cls(torch.cat([part.values for part in parts]), torch.cat([part.lengths for part in parts]))

    def beside(self, other: "Ragged") -> "Ragged":
        """Each row followed by the other's row in the same place.

        >>> a = Ragged(torch.tensor([1, 2, 3]), torch.tensor([2, 1]))
        >>> b = Ragged(torch.tensor([7, 8]), torch.tensor([0, 2]))
        >>> [row.tolist() for row in a.beside(b)]
        [[1, 2], [3, 7, 8]]
        """
        rows = torch.arange(len(self))
        owner = torch.cat([rows.repeat_interleave(self.lengths), rows.repeat_interleave(other.lengths)])
        order = owner.argsort(stable=True)
        return Ragged(torch.cat([self.values, other.values])[order], self.lengths + other.lengths)

    def padded(self, rows: Tensor) -> Tensor:  # (N,) -> (N, L)
        """These rows side by side, filled up with `PAD`."""
        lengths = self.lengths[rows]
        places = torch.arange(int(lengths.max()) if len(rows) else 0)
        index = self.starts[rows, None] + places
        return self.values[index.clamp(max=max(0, len(self.values) - 1))].masked_fill(places >= lengths[:, None], PAD)

    def select(self, rows: Tensor) -> "Ragged":
        """Not by way of `padded`, which a single long row would make as wide as itself."""
        lengths = self.lengths[rows]
        begin = self.starts[rows] - (lengths.cumsum(0) - lengths)
        places = torch.arange(int(lengths.sum()), device=lengths.device) + begin.repeat_interleave(lengths)
        return Ragged(self.values[places], lengths)


class RaggedBatches(Iterator[Batch]):
    """An endless stream of shuffled batches of padded rows (B, L), each example once an epoch.

    The order of an epoch is drawn from (seed, epoch). With `alike`, rows of about one length share a batch: the
    shuffled rows of so many batches are sorted by length, and the batches are shuffled again. Rows and targets stay on
    the CPU, a batch is brought to `device`. `transform` is seeded as in `TensorBatches`.

    >>> stream = RaggedBatches(Ragged(torch.arange(6), torch.tensor([1, 2, 3])), torch.arange(3), batch_size=2)
    >>> [len(next(stream).targets) for _ in range(3)], stream.state_dict()
    ([2, 1, 2], {'seed': 0, 'epoch': 1, 'position': 1})
    """

    def __init__(
        self,
        rows: Ragged,
        targets: Tensor,
        batch_size: int,
        *,
        seed: int = 0,
        alike: int = 1,
        transform: Transform | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(rows) != len(targets):
            raise DataError(f"{len(rows)} rows but {len(targets)} targets", hint="each example needs one of both")
        if not len(rows):
            raise DataError("no examples to make batches of", hint="check the data source and the split")
        self.rows, self.targets, self.batch_size, self.alike = rows, targets, min(batch_size, len(rows)), alike
        self.batches_per_epoch, self.device = -(-len(rows) // self.batch_size), device
        self.transform, self._generator = transform, torch.Generator(device)
        self.seed, self.epoch, self.position = seed, 0, 0
        self._order: list[Tensor] | None = None

    def __next__(self) -> Batch:
        if self.position == self.batches_per_epoch:
            self.epoch, self.position, self._order = self.epoch + 1, 0, None
        if self._order is None:
            self._order = self._batches()
        chosen = self._order[self.position]
        batch = Batch(self.rows.padded(chosen).to(self.device), self.targets[chosen].to(self.device))
        if self.transform is not None:
            self._generator.manual_seed(derived_seed(self.seed, self.epoch, self.position))
            batch = self.transform(batch, self._generator)
        self.position += 1
        return batch

    def _batches(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.rows), generator=generator)
        if self.alike == 1:
            return list(torch.split(order, self.batch_size))
        sorted_ = [
            part[self.rows.lengths[part].argsort(stable=True)]
            for part in torch.split(order, self.batch_size * self.alike)
        ]
        batches = [batch for part in sorted_ for batch in torch.split(part, self.batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if not 0 <= state["position"] <= self.batches_per_epoch:
            raise DataError(
                f"position {state['position']} in an epoch of {self.batches_per_epoch} batches",
                hint="resume with the data and train.batch_size that the run began with",
            )
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        self._order = None


class HideTokens:
    """A transform that reads a share of the tokens as the mask token, other ones in every batch.

    Word dropout (Iyyer et al. 2015, "Deep unordered composition rivals syntactic methods") with the token that a masked
    model knows for a gap. Left as they are: what fills rows up, the tokens `kept`, and numbers from `vocabulary` on.

    >>> batch = Batch(torch.tensor([[5, 6, 7, 1, PAD]]), torch.tensor([0]))
    >>> HideTokens(0.99, mask=3, kept=[1], vocabulary=9)(batch, torch.Generator().manual_seed(0)).inputs
    tensor([[ 3,  3,  3,  1, -1]])
    """

    def __init__(self, share: float, *, mask: int, kept: Sequence[int], vocabulary: int) -> None:
        self.share, self.mask, self.kept, self.vocabulary = share, mask, list(kept), vocabulary

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        x = batch.inputs
        hidden = torch.rand(x.shape, generator=generator, device=x.device) < self.share
        hidden &= (x >= 0) & (x < self.vocabulary)
        for token in self.kept:
            hidden &= x != token
        return Batch(torch.where(hidden, self.mask, x), batch.targets, batch.weights)
