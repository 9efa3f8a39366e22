"""Batches of tensors held in memory: one index-select a batch, no per-sample Python, exact to the batch on resume."""

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from feedfwd.errors import DataError


@dataclass(frozen=True, slots=True)
class Batch:
    """What the loop sees of data. N examples.

    `weights` has shape (N,) or the shape of the per-element loss; None stands for all ones.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        weights = None if self.weights is None else self.weights.to(device)
        return Batch(self.inputs.to(device), self.targets.to(device), weights)


Transform = Callable[[Batch, torch.Generator], Batch]


def derived_seed(*numbers: int) -> int:
    """One well-mixed seed from several integers, so that neighbouring (seed, epoch, position) share no random numbers.

    32 bits, because torch's CPU generator uses no more of a seed.

    >>> derived_seed(0, 1, 2) == derived_seed(0, 1, 2), derived_seed(0, 1, 2) == derived_seed(0, 2, 1)
    (True, False)
    """
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=4).digest(), "little")


class TensorBatches(Iterator[Batch]):
    """An endless stream of shuffled batches over tensors, each example once an epoch.

    The order of an epoch is drawn from (seed, epoch).
    `transform` (see `augment`) gets a generator seeded by (seed, epoch, position): a batch depends on its place in the
    stream alone, so three integers restore the stream exactly, and the same three make the same batch on any day.
    The last batch of an epoch is smaller where `batch_size` doesn't divide the examples, unless `drop_last`.

    >>> stream = TensorBatches(torch.arange(5.0)[:, None], torch.arange(5), batch_size=2)
    >>> [len(next(stream).targets) for _ in range(4)], stream.state_dict()
    ([2, 2, 1, 2], {'seed': 0, 'epoch': 1, 'position': 1})
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        seed: int = 0,
        weights: Tensor | None = None,
        transform: Transform | None = None,
        drop_last: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        n = len(inputs)
        for name, tensor in (("targets", targets), ("weights", weights)):
            if tensor is not None and len(tensor) != n:
                raise DataError(f"{n} inputs but {len(tensor)} {name}", hint="each example needs one of both")
        if n == 0:
            raise DataError("no examples to make batches of", hint="check the data source and the split")
        if batch_size < 1:
            raise DataError(f"train.batch_size={batch_size} is not positive", hint="try 64")
        device = inputs.device if device is None else torch.device(device)
        self.inputs, self.targets = inputs.to(device), targets.to(device)
        self.weights = None if weights is None else weights.to(device)
        self.batch_size = min(batch_size, n)
        self.batches_per_epoch = n // self.batch_size if drop_last else -(-n // self.batch_size)
        self.transform = transform
        self.seed, self.epoch, self.position = seed, 0, 0
        self._generator = torch.Generator(device)
        self._order: Tensor | None = None

    def __next__(self) -> Batch:
        if self.position == self.batches_per_epoch:
            self.epoch, self.position, self._order = self.epoch + 1, 0, None
        if self._order is None:
            self._order = self._permutation()
        rows = self._order[self.position * self.batch_size : (self.position + 1) * self.batch_size]
        batch = Batch(
            self.inputs.index_select(0, rows),
            self.targets.index_select(0, rows),
            None if self.weights is None else self.weights.index_select(0, rows),
        )
        if self.transform is not None:
            self._generator.manual_seed(derived_seed(self.seed, self.epoch, self.position))
            batch = self.transform(batch, self._generator)
        self.position += 1
        return batch

    def _permutation(self) -> Tensor:
        """The epoch's order, drawn on the CPU so that every device sees the same one."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        return torch.randperm(len(self.inputs), generator=generator).to(self.inputs.device)

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
