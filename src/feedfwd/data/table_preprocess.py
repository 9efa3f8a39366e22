"""From typed columns to what a network takes, learnt of the training part alone.

A row becomes one vector: first the numbers that the network embeds, then plain ones (what was missing, seasons, words),
then the places of categories in their vocabularies. Numbers are scaled robustly and clipped smoothly, as in RealMLP
(Holzmüller et al. 2024, arXiv 2407.04491): x = (x - median) / interquartile range, then x / √(1 + (x/3)²).
"""

# N rows, F numbers, B bins

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from feedfwd.data.columns import WRITTEN_SOLID, Kind, share
from feedfwd.data.dataset import Dataset, Task
from feedfwd.data.preprocess import Goal, moments
from feedfwd.data.tables import NoYes, TableData, fitted, read_inputs
from feedfwd.errors import DataError

if TYPE_CHECKING:
    import polars

CLIP = 3.0  # interquartile ranges: no number gets further from 0
BINS = 48  # of the piecewise-linear embedding
UNKNOWN, ABSENT = 0, 1  # places of a category that training hasn't, and of a missing one
RARE = 3  # rows: a category with fewer is taken as unknown, so that "unknown" is learnt
MOST_NAMES = 2000  # of a column's vocabulary
WORDS = 64  # of a text column
WORD = rf"{WRITTEN_SOLID}|[\w--{WRITTEN_SOLID}]+"  # single characters where words are not set apart
DRIFTED = 0.2  # population stability index, from which on a column has drifted
ENOUGH = 100  # rows to judge drift by
FORMAT = 1


@dataclass(frozen=True)
class Layout:
    """What stands where in a row's vector: F numbers, then plain ones, then categories with vocabularies so large."""

    numbers: int
    plain: int
    categories: tuple[int, ...]

    @property
    def width(self) -> int:
        return self.numbers + self.plain + len(self.categories)


@dataclass(frozen=True)
class Column:
    """What was learnt of one column of the training part. Each kind has its own of the fields below the first three."""

    name: str
    kind: Kind
    missing: float  # share of the training rows
    middle: float = 0.0  # number, date (days since 1970): what is subtracted, and stands for missing
    scale: float = 1.0  # what is multiplied by
    cuts: list[float] = field(default_factory=list)  # between tenths of the training rows, to notice drift by
    edges: list[float] = field(default_factory=list)  # of the bins, on scaled numbers
    names: list[str] = field(default_factory=list)  # category: the vocabulary, the commonest first; text: its words
    shares: list[float] = field(default_factory=list)  # of the training rows, for each name, or between the cuts
    parts: list[str] = field(default_factory=list)  # date: which cycles vary
    form: str = ""  # number, date: how it was written, where other rows might be read otherwise

    @property
    def flagged(self) -> bool:
        """Whether a 0/1 says that a cell is missing; categories have a place for it instead."""
        return self.kind != "category" and self.missing > 0


CYCLES = {"year": 365.2425, "week": 7.0, "day": 1.0}  # in days


@dataclass(frozen=True, eq=False)
class TablePreprocessor(Goal):
    """Learnt of the training part, kept as preprocess.json: raw rows in, the network's vectors out."""

    columns: tuple[Column, ...]
    task: Task
    classes: tuple[str, ...] | None = None
    target_names: tuple[str, ...] | None = None
    target_mean: Tensor | None = None
    target_std: Tensor | None = None
    answers: tuple[NoYes, ...] | None = None  # of several labels

    @classmethod
    def fit(cls, train: TableData) -> "TablePreprocessor":
        train.check_trainable()
        mean, std = moments(train.targets) if train.task == "regress" else (None, None)
        names = {"classes": train.classes, "target_names": train.target_names, "answers": train.answers}
        goal: dict[str, Any] = {"task": train.task, "target_mean": mean, "target_std": std, **names}
        return cls.learn(train.frame, train.kinds, train.forms, **goal)

    @classmethod
    def learn(
        cls, frame: "polars.DataFrame", kinds: dict[str, Kind], forms: Mapping[str, str], **goal: Any
    ) -> "TablePreprocessor":
        """What typed columns teach; `goal` is what is known of the targets."""
        columns = (_learn(frame[name], kind) for name, kind in kinds.items())
        return cls(tuple(replace(column, form=forms.get(column.name, "")) for column in columns), **goal)

    @property
    def kinds(self) -> dict[str, Kind]:
        return {column.name: column.kind for column in self.columns}

    @property
    def forms(self) -> dict[str, str]:
        return {column.name: column.form for column in self.columns if column.form}

    @property
    def layout(self) -> Layout:
        numbers = [c for c in self.columns if c.kind in ("number", "date")]
        plain = sum(c.flagged for c in self.columns)
        plain += sum(2 * len(c.parts) for c in self.columns if c.kind == "date")
        plain += sum(len(c.names) + 1 for c in self.columns if c.kind == "text")
        return Layout(len(numbers), plain, tuple(len(c.names) + 2 for c in self.columns if c.kind == "category"))

    @property
    def places(self) -> dict[str, list[int]]:
        """Where each column's numbers stand in a row's vector."""
        layout, found = self.layout, {}
        number, plain, category = 0, layout.numbers, layout.numbers + layout.plain
        for column in self.columns:
            at: list[int] = []
            if column.kind in ("number", "date"):
                at.append(number)
                number += 1
            elif column.kind == "category":
                at.append(category)
                category += 1
            words = len(column.names) + 1 if column.kind == "text" else 0
            count = column.flagged + 2 * len(column.parts) + words
            at += range(plain, plain + count)
            plain += count
            found[column.name] = at
        return found

    @property
    def edges(self) -> list[list[float]]:
        """For each embedded number the ends of its bins."""
        return [c.edges for c in self.columns if c.kind in ("number", "date")]

    @property
    def width(self) -> int:
        return self.layout.width

    def examples(self, data: Dataset) -> Tensor:
        """(N, D) float32 of a table's rows."""
        assert isinstance(data, TableData)
        return self.encode(data.frame)

    def inputs(self, x: Any, where: str = "the input") -> Tensor:
        """(N, D) float32 of raw rows: a file, a frame, dictionaries, or a labelled table."""
        if isinstance(x, TableData):
            return self.encode(fitted(x.frame, self.kinds, where))
        return self.encode(read_inputs(x, self.kinds, where, self.forms)[0])

    def read(self, x: Any, where: str) -> tuple[Tensor, list[str]]:
        """(N, D) of raw rows, and what their user should know: other columns, cells that don't fit, drift."""
        if isinstance(x, TableData):
            return self.encode(x.frame), drift(self.columns, x.frame)
        frame, notes = read_inputs(x, self.kinds, where, self.forms)
        return self.encode(frame), [*notes, *drift(self.columns, frame)]

    def encode(self, frame: "polars.DataFrame") -> Tensor:
        """(N, D) float32 of typed columns."""
        numbers: list[np.ndarray] = []
        plain: list[np.ndarray] = []
        places: list[np.ndarray] = []
        for column in self.columns:
            series = frame[column.name]
            if column.flagged:
                plain.append(series.is_null().to_numpy())
            match column.kind:
                case "number":
                    numbers.append(_scaled(series.to_numpy(), column))
                case "date":
                    days = _days(series)
                    numbers.append(_scaled(days, column))
                    for part in column.parts:
                        turn = np.nan_to_num(2 * np.pi * days / CYCLES[part])
                        plain += [np.sin(turn), np.cos(turn)]
                case "category":
                    places.append(_places(series, column.names))
                case "text":
                    plain += _words(series, column.names)
        found = [*numbers, *plain, *places]
        if not found:
            return torch.zeros(len(frame), 0)
        return torch.from_numpy(np.stack([a.astype(np.float32) for a in found], 1))

    def to_json(self) -> str:
        plain = {
            "table": FORMAT,
            "columns": [{k: v for k, v in asdict(c).items() if v not in ([], None, "")} for c in self.columns],
            "task": self.task,
            "classes": self.classes,
            "target_names": self.target_names,
            "target_mean": None if self.target_mean is None else self.target_mean.tolist(),
            "target_std": None if self.target_std is None else self.target_std.tolist(),
            "answers": self.answers,
        }
        return json.dumps(plain, indent=1, ensure_ascii=False)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "TablePreprocessor":
        """What `to_json` wrote, parsed."""

        def tensor(name: str) -> Tensor | None:
            return None if plain[name] is None else torch.tensor(plain[name], dtype=torch.float32)

        def names(name: str) -> tuple[str, ...] | None:
            return None if plain[name] is None else tuple(plain[name])

        return cls(
            tuple(Column(**column) for column in plain["columns"]),
            plain["task"],
            names("classes"),
            names("target_names"),
            tensor("target_mean"),
            tensor("target_std"),
            None if plain.get("answers") is None else tuple((no, yes) for no, yes in plain["answers"]),
        )


# --- learning ---------------------------------------------------------------------------------------------------------


def _learn(series: "polars.Series", kind: Kind) -> Column:
    n = max(1, len(series))
    missing = series.null_count() / n
    match kind:
        case "number":
            return Column(series.name, kind, missing, **_spread(series.to_numpy()))
        case "date":
            days = _days(series)
            return Column(series.name, kind, missing, parts=_varying(days), **_spread(days))
        case "category":
            counts = series.drop_nulls().value_counts(sort=True)
            rows = sorted(counts.iter_rows(), key=lambda row: (-row[1], row[0]))[:MOST_NAMES]
            if len(rows) > 2 and n >= 20 * RARE:  # two names, or a tiny table, can't spare one
                rows = [row for row in rows if row[1] >= RARE] or rows
            return Column(series.name, kind, missing, names=[r[0] for r in rows], shares=[r[1] / n for r in rows])
        case "text":
            found = series.drop_nulls().str.to_lowercase().str.extract_all(WORD).list.unique()
            counts = found.explode().drop_nulls().value_counts(sort=True)
            rows = sorted(counts.iter_rows(), key=lambda row: (-row[1], row[0]))
            rows = [row for row in rows if row[1] < 0.9 * n][:WORDS]
            return Column(series.name, kind, missing, names=[r[0] for r in rows], shares=[r[1] / n for r in rows])


def _spread(values: np.ndarray) -> dict[str, Any]:
    """Median, scale, deciles and bins of numbers with NaN; where the quartiles meet, the range gives the scale."""
    given = values[~np.isnan(values)].astype(np.float64)
    if not len(given):
        return {"edges": [0.0, 1.0]}
    low, first, middle, third, high = (float(q) for q in np.quantile(given, [0, 0.25, 0.5, 0.75, 1]))
    reach = third - first or (high - low) / 2 or 1.0
    scale = 1.0 / reach if math.isfinite(1.0 / reach) else 1.0
    cuts = np.unique(np.quantile(given, np.linspace(0.1, 0.9, 9)))
    learnt = {"middle": middle, "scale": scale, "cuts": cuts.tolist(), "shares": _between(cuts, given).tolist()}
    ends = np.unique(np.quantile(given, np.linspace(0, 1, BINS + 1)))
    if len(ends) <= BINS:  # many rows share a value: bins by distinct values for the rest
        ends = np.unique([*ends, *np.quantile(np.unique(given), np.linspace(0, 1, BINS + 1 - len(ends)))])
    edges = np.unique(_squashed((ends - middle) * scale))
    return {**learnt, "edges": edges.tolist() if len(edges) > 1 else [float(edges[0]), float(edges[0]) + 1]}


def _between(cuts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The shares of the values between the cuts, a value on a cut counting above it."""
    return np.bincount(np.searchsorted(cuts, values, side="right"), minlength=len(cuts) + 1) / len(values)


def _varying(days: np.ndarray) -> list[str]:
    """The cycles that the training dates go through, in part at least: hours only where there are any."""
    given = days[~np.isnan(days)]
    reach = float(given.max() - given.min()) if len(given) else 0.0
    varies = {
        "year": reach > 60,
        "week": reach > 3 and len(np.unique(np.floor(given) % 7)) > 1,
        "day": len(np.unique(given % 1.0)) > 1,
    }
    return [name for name, holds in varies.items() if holds]


# --- applying ---------------------------------------------------------------------------------------------------------


def _days(series: "polars.Series") -> np.ndarray:
    """Days since 1970, NaN where missing."""
    import polars

    micros = series.cast(polars.Datetime("us")).to_physical().cast(polars.Float64).to_numpy()
    return micros / 86_400e6


def _squashed(x: np.ndarray) -> np.ndarray:
    return (x / np.sqrt(1 + (x / CLIP) ** 2)).astype(np.float32)


def _scaled(values: np.ndarray, column: Column) -> np.ndarray:
    values = np.where(np.isnan(values), column.middle, values)
    return _squashed(np.clip((values - column.middle) * column.scale, -1e6, 1e6))


def _places(series: "polars.Series", names: list[str]) -> np.ndarray:
    """The place of each name in the vocabulary, behind those of the unknown and the missing."""
    import polars

    place = {name: i + 2 for i, name in enumerate(names)}
    if not place:
        return np.where(series.is_null().to_numpy(), ABSENT, UNKNOWN)
    found = series.replace_strict(place, default=UNKNOWN, return_dtype=polars.Int64)
    return np.where(series.is_null().to_numpy(), ABSENT, found.fill_null(UNKNOWN).to_numpy())


def _words(series: "polars.Series", words: list[str]) -> list[np.ndarray]:
    """How long a text is, and which of the words it has."""
    text = series.fill_null("").str.to_lowercase()
    found = text.str.extract_all(WORD)
    length = found.list.len().to_numpy().astype(np.float64)
    return [np.log1p(length) / 3, *(found.list.contains(word).to_numpy() for word in words)]


# --- drift ------------------------------------------------------------------------------------------------------------


def drift(columns: tuple[Column, ...], frame: "polars.DataFrame") -> list[str]:
    """Where new rows are spread otherwise than the training rows: by the population stability index of each column.

    Σ (p - q) ln(p / q) over deciles or names, less what chance alone gives so few rows.
    """
    n = len(frame)
    if n < ENOUGH:
        return []
    notes = []
    for column in columns:
        series = frame[column.name]
        absent = series.null_count() / n
        if abs(absent - column.missing) > 0.1:
            notes.append(f"{column.name}: {share(absent, 1)} missing, in training {share(column.missing, 1)}")
        if column.kind in ("number", "date"):
            values = _days(series) if column.kind == "date" else series.to_numpy()
            given = values[~np.isnan(values)]
            if not len(given) or not column.cuts:
                continue
            index = _stability(np.array(column.shares), _between(np.array(column.cuts), given), len(given))
            if index > DRIFTED:
                middle = float(np.median(given))
                notes.append(
                    f"{column.name} has drifted: its median is {middle:.4g}, in training it was {column.middle:.4g} "
                    f"(stability index {index:.2f})"
                )
        elif column.kind == "category":
            places = np.bincount(_places(series, column.names), minlength=len(column.names) + 2) / n
            unknown = 1 - column.missing - sum(column.shares)
            if places[UNKNOWN] > max(0.02, 2 * unknown):
                given_names = series.drop_nulls()
                new = given_names.filter(~given_names.is_in(column.names)).unique().sort().to_list()
                shown = ", ".join(map(repr, new[:3])) + (", …" if len(new) > 3 else "")
                notes.append(f"{column.name}: {share(places[UNKNOWN], 1)} of the rows have names new to it ({shown})")
            elif _stability(np.array(column.shares), places[2:], n) > DRIFTED:
                notes.append(f"{column.name} has drifted: its names come in other shares than in training")
    return notes


def _stability(known: np.ndarray, seen: np.ndarray, n: int) -> float:
    """The population stability index of shares, less its mean under no drift, (cells - 1) / n."""
    p, q = np.maximum(seen, 1e-3), np.maximum(known, 1e-3)
    return float(((p - q) * np.log(p / q)).sum()) - max(0, len(p) - 1) / max(1, n)


def from_json(text: str) -> "TablePreprocessor | None":
    """The preprocessor that a table's preprocess.json holds; None where it is one of arrays or images."""
    try:
        plain = json.loads(text)
        if not isinstance(plain, dict) or "table" not in plain:
            return None
        return TablePreprocessor.from_plain(plain)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"preprocess.json is damaged ({error})", hint="restore the run directory") from None
