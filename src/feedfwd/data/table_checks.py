"""What makes a table's score too good: columns that tell the target, and rows that stand on both sides of a split."""

# N rows

import numpy as np

from feedfwd.data.columns import share
from feedfwd.data.tables import TableData

TELLS_ALL = 0.98  # of what is not known without it, from which on a column alone tells the target
CELLS = 200  # into which a column is cut to see what it tells
MOST_ROWS = 50_000


def leaks(train: TableData) -> list[str]:
    """Columns each of which alone predicts the target almost perfectly, on rows that were not looked at to learn it."""
    n = min(len(train), MOST_ROWS)
    if n < 50:
        return []
    y_NT = train.targets[:n].reshape(n, -1).numpy()
    if train.task == "regress":
        y_NT = y_NT[:, :1]
    known = np.random.default_rng(0).permutation(n) < n // 2
    notes = []
    for name, values in zip(train.frame.columns, train.inputs[:n].numpy().T, strict=True):
        cells = _cells(values)
        for t, y_N in enumerate(y_NT.T):
            told = _told(cells, y_N if train.task == "regress" else y_N.astype(np.int64), known)
            if told < TELLS_ALL:
                continue
            which = "the target" if y_NT.shape[1] == 1 else repr((train.target_names or ())[t])
            notes.append(
                f"column {name!r} alone tells {100 * told:.1f} % of {which}: will it be known when you predict? "
                f"(else: --set data.drop={name!r})"
            )
    return notes


def _told(cell_N: np.ndarray, y_N: np.ndarray, known_N: np.ndarray) -> float:
    """The share of a constant answer's errors (squared, but for whole numbers) that a column's cells take away."""
    size = int(cell_N.max()) + 1
    here, there = cell_N[known_N], cell_N[~known_N]
    y_here, y_there = y_N[known_N], y_N[~known_N]
    counts = np.bincount(here, minlength=size)
    if np.issubdtype(y_N.dtype, np.integer):
        classes = int(y_N.max()) + 1
        if size * classes > 50_000_000:
            return 0.0
        table = np.bincount(here * classes + y_here, minlength=size * classes).reshape(size, classes)
        common = np.bincount(y_here, minlength=classes).argmax()
        answer = np.where(counts > 0, table.argmax(1), common)[there]
        wrong, base = float((answer != y_there).mean()), float((y_there != common).mean())
    else:
        y_here, y_there = y_here.astype(np.float64), y_there.astype(np.float64)
        mean = y_here.mean()
        sums = np.bincount(here, weights=y_here, minlength=size)
        answer = np.where(counts > 0, sums / np.maximum(counts, 1), mean)[there]
        wrong, base = float(((answer - y_there) ** 2).mean()), float(((y_there - mean) ** 2).mean())
    return 1 - wrong / base if base > 0 else 0.0


def _cells(values_N: np.ndarray) -> np.ndarray:
    """Each value's cell: one a value where they are few, else quantiles; missing ones have a cell of their own."""
    absent = np.isnan(values_N)
    distinct, place = np.unique(np.where(absent, 0.0, values_N), return_inverse=True)
    cells = min(CELLS, max(2, len(values_N) // 10))
    if len(distinct) > cells:
        cuts = np.unique(np.quantile(values_N[~absent], np.linspace(0, 1, cells + 1)[1:-1]))
        place = np.searchsorted(cuts, np.where(absent, 0.0, values_N), side="right")
    return np.where(absent, 0, place + 1).astype(np.int64)


def shared_rows(train: TableData, test: TableData) -> list[str]:
    """Test rows whose cells all stand in a training row too."""
    known = _hashes(train)
    found = np.isin(_hashes(test), known)
    count = int(found.sum())
    if not count or train.frame.width < 2:
        return []
    noun, verb = ("row", "stands") if count == 1 else ("rows", "stand")
    return [
        f"{count:,} test {noun} ({share(count, len(test))}) {verb} in the training part too, cell for cell: "
        "where they are copies, the test score is too good (--split group:COLUMN keeps them together)"
    ]


def _hashes(data: TableData) -> np.ndarray:
    found: np.ndarray = data.frame.hash_rows(seed=0).to_numpy()
    return found
