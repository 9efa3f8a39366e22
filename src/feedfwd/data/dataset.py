"""A data set in memory: inputs, targets, and what a reader wants to know of them."""

# N examples, D features, H height, W width, C channels, T targets

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from feedfwd.errors import DataError

Task = Literal["classify", "labels", "regress"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples and their targets, as they came: nothing is scaled here (see `Preprocessor`).

    `inputs` are images, (N, H, W) or (N, H, W, C), uint8 or float32; or features, (N, D) float32.
    `targets` are class numbers, (N,) int64, that index `classes`; 0 and 1 for each of several labels, (N, T) float32;
    or numbers to predict, (N,) or (N, T) float32.
    `rows` are the examples' places in the source (None: all of them, in order), so that an example of a split can still
    be named; `files` are the source's file names, where it has one for each example. `notes` say what a reader of the
    source decided and the user should know.

    >>> data = Dataset("xor", torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]), torch.tensor([0, 1, 1, 0]),
    ...                "classify", ("even", "odd"))
    >>> data.describe()
    'xor: 4 examples of 2 features, 2 classes'
    >>> part = data.subset(torch.tensor([3, 1]))
    >>> part.targets.tolist(), part.example_name(0)
    ([0, 1], 'example 3')
    """

    name: str
    inputs: Tensor
    targets: Tensor
    task: Task
    classes: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    target_names: tuple[str, ...] | None = None
    rows: Tensor | None = None
    files: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise DataError(
                f"{self.name} has {len(self.inputs):,} inputs but {len(self.targets):,} targets",
                hint="each example needs one of both",
            )
        if len(self.inputs) == 0:
            raise DataError(f"{self.name} has no examples", hint="check the source")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def is_image(self) -> bool:
        return self.inputs.dim() > 2

    @property
    def strata(self) -> Tensor | None:
        """(N,) int64: what a split keeps in proportion. Classes; of several labels each example's rarest, 0: none."""
        if self.task == "classify":
            return self.targets
        if self.task == "regress":
            return None
        given = self.targets > 0.5
        rarest_first = given.sum(0).argsort(stable=True)
        return torch.where(given.any(1), 1 + given[:, rarest_first].int().argmax(1), 0)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of inputs, targets and class names: equal only for equal data, whatever file it came from."""
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (self.inputs, self.targets):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
        digest.update("\0".join(self.classes or ()).encode())
        return digest.hexdigest()

    def subset(self, indices: Tensor) -> "Dataset":
        """The examples at `indices` of this data set, in that order."""
        return replace(
            self,
            inputs=self.inputs.index_select(0, indices),
            targets=self.targets.index_select(0, indices),
            rows=indices if self.rows is None else self.rows.index_select(0, indices),
        )

    def recode(self, classes: tuple[str, ...]) -> "Dataset":
        """The same examples, with class numbers that index `classes`: those that a model was trained on."""
        if self.task != "classify" or self.classes is None:
            raise DataError(
                f"{self.name} has real-valued targets, not classes", hint="store y as whole numbers or names"
            )
        if self.classes == classes:
            return self
        place = {name: i for i, name in enumerate(classes)}
        for i in torch.unique(self.targets).tolist():
            if self.classes[i] not in place:
                known = ", ".join(classes[:10]) + (", …" if len(classes) > 10 else "")
                raise DataError(
                    f"{self.name} has class {self.classes[i]!r}, which the training data don't have",
                    hint=f"remove its examples, or train with them too; known: {known}",
                )
        table = torch.tensor([place.get(name, -1) for name in self.classes])
        return replace(self, targets=table[self.targets], classes=classes)

    def example_name(self, index: int) -> str:
        """How to find an example again: its file, or its place in the source."""
        row = index if self.rows is None else int(self.rows[index])
        return self.files[row] if self.files is not None else f"example {row}"

    def describe(self) -> str:
        """One line: how many examples, of what, with which targets."""
        if self.is_image:
            height, width, *channels = self.inputs.shape[1:]
            what = f"images of {height}×{width}" + (f" in {channels[0]} channels" if channels else "")
        else:
            what = f"examples of {_count(self.inputs.shape[1], 'feature')}"
        if self.classes is not None:
            goal = _count(len(self.classes), "class")
        elif self.task == "labels":
            goal = _count(self.targets.shape[1], "yes/no label")
        else:
            goal = _count(1 if self.targets.dim() == 1 else self.targets.shape[1], "real-valued target")
        return f"{self.name}: {len(self):,} {what}, {goal}"

    def check_trainable(self, numbers: str = "store the targets as floats") -> None:
        """Raises DataError where there is nothing to learn: one class, constant targets or inputs, too few examples.

        `numbers` says what makes numbers of classes.
        """
        n = len(self)
        if n < 2:
            raise DataError(f"{self.name} has one example", hint="training needs at least two")
        if self.task == "classify":
            present = len(torch.unique(self.targets))
            if present == 1:
                only = (self.classes or ("?",))[int(self.targets[0])]
                raise DataError(
                    f"{self.name} has one class only, {only!r}", hint="give examples of at least one other class"
                )
            if 2 * present > n:
                raise DataError(
                    f"{self.name} has {present:,} classes for {n:,} examples, fewer than two each",
                    hint=f"give more examples; for regression {numbers}",
                )
        elif self.task == "labels":
            same = (self.targets == self.targets[0]).all(0).nonzero()[:, 0].tolist()
            if same:
                raise DataError(
                    f"{self.name}: label {(self.target_names or ())[same[0]]!r} is the same in every row",
                    hint="leave it out, or give rows of both kinds",
                )
        elif (self.targets == self.targets[0]).all():
            raise DataError(f"{self.name}: all targets are the same number", hint="check which array holds the targets")
        if (self.inputs[:9] == self.inputs[0]).all() and (self.inputs == self.inputs[0]).all():
            raise DataError(f"{self.name}: all inputs are the same", hint="check which array holds the inputs")


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "es" if noun.endswith("s") else "s")
