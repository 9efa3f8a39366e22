"""Tables as data sets: rows with a target, every column in its type; nothing is scaled or fitted here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from feedfwd.data.columns import (
    ABSENT,
    BOOLEANS,
    MISSING,
    Kind,
    Typed,
    as_names,
    check_names,
    clean,
    convert,
    share,
    typed,
)
from feedfwd.data.dataset import Dataset, Task
from feedfwd.data.table_files import as_rows
from feedfwd.errors import DataError

if TYPE_CHECKING:
    import polars

TARGET_NAMES = ("target", "label", "class", "y")
FEW_VALUES = 20  # whole numbers of so few values are classes
SKEWED = 10.0  # commonest to rarest class, from which on it is said
YES = ("true", "yes", "t", "y", "1")  # of two names that stand for no and yes
IDENTIFIERS = 20  # rows from which on names that never repeat are taken for identifiers

Wanted = Literal["auto", "classify", "regress"]
NoYes = tuple[str, str]  # a label's two values, as the table has them


def asked(task: Task) -> Wanted:
    """What to ask of another table of the same task."""
    return "regress" if task == "regress" else "classify"


@dataclass(frozen=True, eq=False)
class TableData(Dataset):
    """Rows with named columns.

    `frame` has the columns to predict from, cleaned and typed: Float64 without NaN, String, or Datetime, null where a
    cell is missing; `kinds` says which is which. `answers` are the two values of each target, where these are several
    labels. `forms` says how numbers and dates were written, where that could be misread. `by` is the column that a
    split goes by, where one was named. `inputs`
    are the same cells as numbers, (N, C) float64: not what a network sees (see `TablePreprocessor`) but what tells
    equal rows and equal files.
    """

    frame: Any = None  # polars.DataFrame; typed loosely so that importing this module costs nothing
    kinds: dict[str, Kind] = field(default_factory=dict)
    answers: tuple[NoYes, ...] | None = None
    forms: Mapping[str, str] = field(default_factory=dict)
    by: Any = None  # polars.Series | None

    def subset(self, indices: Tensor) -> "TableData":
        base = super().subset(indices)
        assert isinstance(base, TableData)
        rows = indices.numpy()
        return replace(base, frame=self.frame[rows], by=None if self.by is None else self.by[rows])

    def check_trainable(self, numbers: str = "set data.task=regress; names that hardly repeat can't be learnt") -> None:
        super().check_trainable(numbers)

    def describe(self) -> str:
        counts = {kind: sum(k == kind for k in self.kinds.values()) for kind in ("number", "category", "date", "text")}
        plural = {"number": "numbers", "category": "categories", "date": "dates", "text": "texts"}
        said = ", ".join(f"{n} {plural[kind] if n > 1 else kind}" for kind, n in counts.items() if n)
        columns = "1 column" if len(self.kinds) == 1 else f"{len(self.kinds):,} columns"
        goal = super().describe().rsplit(", ", 1)[1]
        names = ", ".join(self.target_names or ())
        return f"{self.name}: {len(self):,} rows of {columns} ({said}), {goal}: {names}"


def load_table(
    source: Any,
    target: Sequence[str] = (),
    *,
    task: Wanted = "auto",
    drop: Sequence[str] = (),
    by: str | None = None,
    kinds: dict[str, Kind] | None = None,
    forms: Mapping[str, str] | None = None,
    answers: Sequence[NoYes] | None = None,
    name: str | None = None,
) -> TableData:
    """A labelled table from a file or a frame. `by` names the column of a split by time or group: no input then.

    `kinds` and `forms` are those of the training table, where there is one: its columns are read in its types and no
    other is kept; and `answers` those of its labels.
    DataError for what can't be used: a column that isn't there, a table without targets.
    """
    where = name or (Path(source).name if isinstance(source, str | Path) else "the table")
    rows = as_rows(source, where)
    notes = list(rows.notes)
    target = [name.strip() for name in target] or [_guessed(rows.frame.columns, where, notes)]
    strict = dict.fromkeys(target, ABSENT)  # `none` may be a class, but tells nothing where it is looked at
    frame = rows.frame.select(clean(column, strict.get(column.name, MISSING)) for column in rows.frame.get_columns())
    if len(set(target)) < len(target):
        raise DataError(f"--target names {target[0]!r} twice", hint="name each column once")
    check_names(dict.fromkeys(target, "--target"), frame.columns, where)
    if nested := next((name for name in target if frame[name].dtype.is_nested()), None):
        raise DataError(f"{where}: target {nested!r} holds lists, not single values", hint="name another column")
    check_names(dict.fromkeys(drop, "data.drop"), frame.columns, where)
    if by is not None:
        check_names({by: "--split"}, frame.columns, where)
        if by in target:
            raise DataError(f"--split goes by {by!r}, which is the target", hint="split by another column")
    frame, places = _with_target(frame, target, where, notes)
    goal: Task
    if len(target) > 1:
        values, goal, answers = _several(frame, target, task, answers, where, notes)
        classes = None
    else:
        values, goal, classes = _target(frame, target[0], task, where, notes)
    kept = [n for n in frame.columns if n not in {*target, *drop, by}]
    order = None if by is None else _order(frame[by], where)
    if kinds is None:
        if len(frame) == 1:
            raise DataError(f"{where} has one example", hint="training needs at least two rows with a target")
        inputs, kinds, forms = read_columns(frame.select(kept), notes, where)
    else:
        inputs = fitted(frame, kinds, where, forms=forms)
    return TableData(
        name=Path(where).stem,
        inputs=_as_numbers(inputs),
        targets=values,
        task=goal,
        classes=classes,
        feature_names=tuple(inputs.columns),
        target_names=tuple(target),
        rows=torch.from_numpy(places),
        notes=tuple(notes),
        frame=inputs,
        kinds=kinds,
        answers=None if answers is None else tuple(answers),
        forms=forms or {},
        by=order,
    )


def fitted(
    frame: "polars.DataFrame",
    kinds: dict[str, Kind],
    where: str,
    notes: list[str] | None = None,
    *,
    forms: Mapping[str, str] | None = None,
) -> "polars.DataFrame":
    """The columns that `kinds` names, in those types; DataError for one that is missing or of another type altogether.

    Numbers and dates are read in their `forms`. What does not fit counts as missing, and is said in `notes`.
    """
    notes = [] if notes is None else notes
    forms = forms or {}
    check_names(dict.fromkeys(kinds, "the model"), frame.columns, where)
    columns = []
    for name, kind in kinds.items():
        cleaned = clean(frame[name])
        column, said = convert(cleaned, kind, forms.get(name, ""))
        notes += [said] if said else []
        lost = column.null_count() - cleaned.null_count()
        if lost and lost == len(cleaned) - cleaned.null_count() and len(cleaned) > 1:
            example = cleaned.drop_nulls()[0]
            raise DataError(
                f"{where}: column {name!r} held {kind}s in training and holds none here (such as {str(example)!r})",
                hint="give it in the form of the training table",
            )
        if lost:
            notes.append(f"{name}: {lost:,} cells ({share(lost, len(column))}) are no {kind}s and count as missing")
        columns.append(column)
    return frame.select(columns)


def read_columns(
    frame: "polars.DataFrame", notes: list[str], where: str = "the table"
) -> tuple["polars.DataFrame", dict[str, Kind], dict[str, str]]:
    """The columns of a frame that tell something, typed, their kinds and forms; DataError where there are none."""
    found, kinds, forms = typed_columns(frame.select(clean(column) for column in frame.get_columns()), notes)
    if not kinds:
        why = f" ({'; '.join(notes)})" if notes else " beside the target"
        raise DataError(f"{where} has no column to predict from{why}", hint="add one that tells")
    return found, kinds, forms


def read_inputs(
    data: Any, kinds: dict[str, Kind], where: str, forms: Mapping[str, str] | None = None
) -> tuple["polars.DataFrame", list[str]]:
    """Raw rows to predict for, typed as in training, and what there is to say of how they were read."""
    rows = as_rows(data, where)
    notes = list(rows.notes)
    return fitted(rows.frame, kinds, where, notes, forms=forms), notes


# --- the target -------------------------------------------------------------------------------------------------------


def _guessed(names: list[str], where: str, notes: list[str]) -> str:
    for known in TARGET_NAMES:
        for name in names:
            if name.lower() == known:
                notes.append(f"the target is column {name!r}: --target names another")
                return name
    shown = ", ".join(names[:30]) + (", …" if len(names) > 30 else "")
    raise DataError(f"nothing says which column of {where} to predict", hint=f"give --target COLUMN; columns: {shown}")


def _with_target(
    frame: "polars.DataFrame", target: list[str], where: str, notes: list[str]
) -> tuple["polars.DataFrame", np.ndarray]:
    """The rows that have a target, and their places in the file, counted from 0 below the header."""
    import polars

    full = frame.with_row_index("\u200brow")
    blank = frame.select(polars.all_horizontal(polars.all().is_null()).alias("b"))["b"]
    lacking = frame.select(polars.any_horizontal(polars.col(target).is_null()).alias("b"))["b"] & ~blank
    kept = full.filter(~(blank | lacking))
    for count, what in ((int(blank.sum()), "blank"), (int(lacking.sum()), "without a target")):
        if count:
            notes.append(f"{count:,} {what} row{'s' if count > 1 else ''} left out")
    if not len(kept):
        raise DataError(f"{where}: no row has a value in {', '.join(target)}", hint="name another column with --target")
    return kept.drop("\u200brow"), kept["\u200brow"].to_numpy().astype(np.int64)


def _several(
    frame: "polars.DataFrame",
    target: list[str],
    task: Wanted,
    known: Sequence[NoYes] | None,
    where: str,
    notes: list[str],
) -> tuple[Tensor, Task, Sequence[NoYes] | None]:
    """Several targets (N, T): all yes or no, as 0 and 1 with what says so, or all numbers. `known` is from training."""
    found = [typed(frame[name]) for name in target]
    names = [_names(frame[name], column) for name, column in zip(target, found, strict=True)]
    pairs: Sequence[NoYes | None] = known or [
        _no_yes(column, words) for column, words in zip(found, names, strict=True)
    ]
    labels = [pair for pair in pairs if pair is not None]
    if task != "regress" and len(labels) == len(target):
        if known is None:
            _say_labels(target, labels, names, notes)
        columns = [_as_label(words, pair, where) for words, pair in zip(names, labels, strict=True)]
        return torch.from_numpy(np.stack(columns, 1)), "labels", labels
    if task == "classify" or any(column.kind != "number" for column in found):
        holds = [_holds(column, pair) for column, pair in zip(found, pairs, strict=True)]
        odd = next((t for t in range(1, len(target)) if holds[t] != holds[0]), 0)
        shown = "; ".join(f"{target[t]!r} holds {holds[t]}" for t in sorted({0, odd}))
        wanted = {"auto": "all numbers or all yes or no", "classify": "yes or no each", "regress": "all numbers"}[task]
        raise DataError(
            f"{where}: several targets have to be {wanted}: {shown}", hint="predict the others by themselves"
        )
    return _values(np.stack([c.values.to_numpy() for c in found], 1), target, where), "regress", None


def _names(column: "polars.Series", found: Typed) -> "polars.Series":
    """A target's cells as names; Yes, yes and YES are one."""
    import polars

    if found.kind == "number":
        return as_names(found.values)
    text = column.cast(polars.String)
    lower = text.str.to_lowercase()
    return lower if any(set(lower.drop_nulls().unique().to_list()) <= pair for pair in BOOLEANS) else text


def _no_yes(column: Typed, names: "polars.Series") -> NoYes | None:
    """What says no and what says yes in a target of two values, the later one where nothing tells; None: no label."""
    if names.null_count():
        return None
    found = set(names.unique().to_list())
    if column.kind == "number":
        return ("0", "1") if found <= {"0", "1"} else None
    if column.kind != "category" or len(found) != 2:
        return None
    no, yes = sorted(found, key=lambda name: (name in YES, name))
    return no, yes


def _as_label(names: "polars.Series", pair: NoYes, where: str) -> np.ndarray:
    no, yes = pair
    strange = names.filter(names.is_null() | ~names.is_in([no, yes]))
    if len(strange):
        raise DataError(
            f"{where}: target {names.name!r} has {strange[0]!r}, which is neither {no!r} nor {yes!r}",
            hint="give it in the form of the training table",
        )
    return (names == yes).to_numpy().astype(np.float32)


def _holds(column: Typed, pair: NoYes | None) -> str:
    if pair is not None:
        return "yes or no"
    if column.kind == "category":
        n = column.values.n_unique()
        return f"{n:,} names" if n > 1 else "one name only"
    return f"{column.kind}s"


def _say_labels(target: list[str], pairs: list[NoYes], names: list["polars.Series"], notes: list[str]) -> None:
    """Which of two names counts as yes, where that was but guessed, and which labels are rare."""
    told = [f"{name}={yes}" for name, (_, yes) in zip(target, pairs, strict=True) if yes not in YES]
    if told:
        notes.append(f"what counts as yes: {', '.join(told)}")
    counts = [int((words == yes).sum()) for words, (_, yes) in zip(names, pairs, strict=True)]
    n = len(names[0])
    uneven = [t for t, count in enumerate(counts) if max(count, n - count) >= SKEWED * min(count, n - count)]
    if uneven:
        shown = ", ".join(f"{target[t]} is yes in {share(counts[t], n)}" for t in uneven[:5])
        more = f" and {len(uneven) - 5} more" if len(uneven) > 5 else ""
        notes.append(f"labels are uneven: {shown} of the rows{more}: see macro F1")


def _target(
    frame: "polars.DataFrame", name: str, task: Wanted, where: str, notes: list[str]
) -> tuple[Tensor, Task, tuple[str, ...] | None]:
    import polars

    target, column = [name], typed(frame[name])
    if column.kind == "number" and column.values.null_count():  # infinite, or no number after all
        raise DataError(
            f"{where}: target {name!r} has {column.values.null_count():,} cells that are no finite numbers "
            f"({column.note})",
            hint="mend or remove those rows",
        )
    distinct = column.values.n_unique()
    if column.kind == "number":
        values = column.values.to_numpy()
        whole = bool((values == np.round(values)).all())
        classes = task == "classify" or (task == "auto" and whole and distinct <= FEW_VALUES and len(values) > distinct)
        if not classes:
            return _values(values, target, where), "regress", None
        if task == "auto" and distinct > 2:
            notes.append(f"{name} has {distinct} whole values, taken as classes: data.task=regress predicts numbers")
    elif column.kind == "date":
        raise DataError(
            f"{where}: target {name!r} holds dates, which are not predicted", hint="make numbers of them, such as days"
        )
    elif task == "regress":
        raise DataError(f"{where}: target {name!r} holds names, not numbers", hint="leave out data.task=regress")
    names = as_names(column.values if column.kind == "number" else frame[name].cast(polars.String))
    classes_found = sorted(names.unique().to_list(), key=_in_order)
    place = {c: i for i, c in enumerate(classes_found)}
    codes = names.replace_strict(place, return_dtype=polars.Int64).to_numpy()
    _say_skew(np.bincount(codes), classes_found, notes)
    return torch.from_numpy(codes.astype(np.int64)), "classify", tuple(classes_found)


def _values(values: np.ndarray, target: list[str], where: str) -> Tensor:
    found = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    if not bool(found.isfinite().all()):
        raise DataError(
            f"{where}: {' or '.join(target)} holds numbers that are not finite in float32", hint="mend those rows"
        )
    return found


def _in_order(name: str) -> tuple[int, float, str]:
    """Numbers by value, then names."""
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)


def _say_skew(counts: np.ndarray, names: list[str], notes: list[str]) -> None:
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] >= SKEWED * counts[least]:
        notes.append(
            f"classes are uneven: {names[most]!r} has {counts[most]:,} rows, {names[least]!r} {counts[least]:,}; "
            f"always answering {names[most]!r} is right for {100 * counts[most] / counts.sum():.1f} %: see macro F1 "
            "(loss.class_weights=balanced counts all classes alike)"
        )


def _order(column: "polars.Series", where: str) -> "polars.Series":
    if column.null_count():
        raise DataError(
            f"{where}: {column.null_count():,} rows have no {column.name!r}, which --split goes by",
            hint="fill it, or remove those rows",
        )
    return typed(column).values


# --- the columns ------------------------------------------------------------------------------------------------------


def typed_columns(
    frame: "polars.DataFrame", notes: list[str]
) -> tuple["polars.DataFrame", dict[str, Kind], dict[str, str]]:
    """Each column in its type, with its form; those that can tell nothing are left out and named."""
    columns, kinds, forms = [], {}, {}
    left: dict[str, list[str]] = {}
    for raw in frame.get_columns():
        if raw.dtype.is_nested():
            left.setdefault("lists, which no network takes", []).append(raw.name)
            continue
        column = typed(raw)
        if column.values.null_count() == len(raw):
            left.setdefault("empty", []).append(raw.name)
        elif column.values.drop_nulls().n_unique() == 1 and not column.values.null_count():
            left.setdefault("constant", []).append(raw.name)
        elif _counts_rows(column.values, column.kind):
            left.setdefault("an identifier", []).append(raw.name)
        else:
            columns.append(column.values)
            kinds[raw.name] = column.kind
            if column.form:
                forms[raw.name] = column.form
            if column.note:
                notes.append(column.note)
    for why, names in left.items():
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        notes.append(f"left out as {why}: {shown}")
    return frame.clear().select() if not columns else frame.select(columns), kinds, forms


def _counts_rows(column: "polars.Series", kind: Kind) -> bool:
    """Whether a column names or numbers the rows: all different names, or 0, 1, 2 …"""
    n = len(column)
    if n < IDENTIFIERS or column.null_count() or column.n_unique() < n:
        return False
    if kind == "category":
        return True
    if kind != "number":
        return False
    return column[0] in (0, 1) and bool((column.diff().drop_nulls() == 1).all())


def _as_numbers(frame: "polars.DataFrame") -> Tensor:
    """(N, C): numbers as they are, names and times as whole numbers of their own, NaN for missing."""
    import polars

    columns = []
    for column in frame.get_columns():
        if column.dtype == polars.String:
            column = (column.hash(seed=0) % 2**52).cast(polars.Float64)
        columns.append(column.cast(polars.Float64).to_numpy())
    if not columns:
        return torch.zeros(len(frame), 0, dtype=torch.float64)
    return torch.from_numpy(np.stack(columns, 1).astype(np.float64)).nan_to_num(nan=float("nan"))
