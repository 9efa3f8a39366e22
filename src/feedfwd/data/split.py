"""Splitting a data set by seed: every class or label in proportion, and no class lost from training."""

from dataclasses import replace

import torch
from torch import Tensor

from feedfwd.data.batches import derived_seed
from feedfwd.data.dataset import Dataset
from feedfwd.data.tables import TableData
from feedfwd.errors import DataError


def split(dataset: Dataset, fraction: float, seed: int, stratify: bool = True) -> tuple[Dataset, Dataset]:
    """(rest, part): `part` holds round(fraction·N) examples; `rows` of both say which.

    With `stratify` each class gives its share, and one example of each class always stays in `rest`; of several labels
    the rarest that an example has stands for its class.

    >>> data = Dataset("d", torch.rand(100, 2), torch.arange(100) % 10, "classify", tuple("0123456789"))
    >>> rest, part = split(data, 0.2, seed=0)
    >>> len(rest), part.targets.bincount().tolist()
    (80, [2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    n = len(dataset)
    size = round(n * fraction)
    if not 0 < size < n:
        raise DataError(
            f"a part of {fraction:g} of {n} examples in {dataset.name} leaves {size} and {n - size}",
            hint="use another fraction, or more data",
        )
    generator = torch.Generator().manual_seed(derived_seed(seed, 1))
    order = torch.randperm(n, generator=generator)
    notes = dataset.notes
    if stratify and (strata := dataset.strata) is not None:
        order, first = _by_class(order, strata)
        pool = order[~first]  # one example of each class stays
        if len(pool) == 0:
            raise DataError(f"every class of {dataset.name} has one example only", hint="give more examples")
        size = min(size, len(pool))
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        part = pool[_every(len(pool), size, float(offset))]
        notes += _rare(dataset)
    else:
        part = order[:size]
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[part] = True
    # Both in the order of the source: what reads them shuffles for itself.
    return replace(dataset.subset((~chosen).nonzero()[:, 0]), notes=notes), dataset.subset(chosen.nonzero()[:, 0])


def fold(dataset: Dataset, folds: int, index: int, seed: int) -> tuple[Dataset, Dataset]:
    """(rest, part) of fold `index` of `folds`: disjoint parts that cover all, each class within one of its share.

    >>> data = Dataset("d", torch.rand(10, 2), torch.arange(10) % 2, "classify", ("even", "odd"))
    >>> sorted(torch.cat([fold(data, 5, k, seed=0)[1].rows for k in range(5)]).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    n = len(dataset)
    if not 2 <= folds <= n or not 0 <= index < folds:
        raise DataError(f"fold {index} of {folds} from {n} examples of {dataset.name}", hint=f"folds are 2 to {n}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(derived_seed(seed, 2)))
    if (strata := dataset.strata) is not None:
        order, _ = _by_class(order, strata)
    number = torch.empty(n, dtype=torch.int64)
    number[order] = torch.arange(n) % folds  # class after class, dealt out like cards
    return dataset.subset((number != index).nonzero()[:, 0]), dataset.subset((number == index).nonzero()[:, 0])


def split_by(dataset: TableData, fraction: float, seed: int, way: str) -> tuple[TableData, TableData]:
    """(rest, part) of a table by its column `by`: the latest rows by time, or whole groups, about `fraction` of all.

    Rows of one time stay together, and so do those of one group: no group stands in both parts.
    """
    n, by = len(dataset), dataset.by
    assert by is not None, "load_table was given the column"
    ranks = torch.from_numpy(by.rank("dense").to_numpy().astype("int64")) - 1
    sizes = ranks.bincount()
    order = torch.arange(len(sizes)).flip(0)
    if way == "group":
        order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(derived_seed(seed, 3)))
    taken = sizes[order].cumsum(0)
    chosen = order[: int((taken <= max(1, round(n * fraction))).sum()) or 1]
    if len(chosen) == len(sizes):
        what = "times" if way == "time" else "groups"
        raise DataError(
            f"{dataset.name} has {len(sizes)} {what} in {by.name!r}: too few to split by",
            hint="use --split random, or another column",
        )
    inside = torch.isin(ranks, chosen)
    return dataset.subset((~inside).nonzero()[:, 0]), dataset.subset(inside.nonzero()[:, 0])


def _by_class(order: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The order sorted by class and shuffled within, and a mask of each class's first."""
    labels, by_class = targets[order].sort(stable=True)
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = labels[1:] != labels[:-1]
    return order[by_class], first


def _every(n: int, size: int, offset: float) -> Tensor:
    """`size` places of n, evenly spaced: over examples sorted by class, each class gives its share within one."""
    return ((torch.arange(size, dtype=torch.float64) + offset) * (n / size)).long().clamp(max=n - 1)


def _rare(dataset: Dataset) -> tuple[str, ...]:
    if dataset.classes is None:
        return ()
    counts = dataset.targets.bincount(minlength=len(dataset.classes)).tolist()
    names = [name for name, count in zip(dataset.classes, counts, strict=True) if count == 1]
    if not names:
        return ()
    listing = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    noun = "classes have" if len(names) > 1 else "class has"
    return (f"{len(names)} {noun} one example only ({listing}): it stays in training, so is never tested",)
