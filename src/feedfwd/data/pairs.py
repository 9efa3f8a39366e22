"""Which text answers which: pairs, triplets, judged pairs or labelled texts of a file, and how their queries are split.

Texts that differ in case and spaces alone are one text, so that none is told apart from itself.
"""

# T texts, J judgements

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from feedfwd.data.batches import derived_seed
from feedfwd.data.text_files import read_columns
from feedfwd.data.text_tables import TARGET_NAMES, folded, is_wordy, named_column
from feedfwd.errors import DataError, nearest

QUERIES = ("query", "anchor", "question", "question1", "sentence1", "text1", "premise", "text_a", "sentence_a")
CANDIDATES = ("positive", "positives", "pos", "answer", "answers", "document", "documents", "candidate", "candidates",
              "passage", "passages", "doc", "question2", "sentence2", "text2", "hypothesis", "text_b", "sentence_b",
              "response", "context")  # fmt: skip
NEGATIVE = re.compile(r"(hard_?)?neg(ative)?s?(_?\d+)?")
RELEVANCES = ("relevance", "score", "label", "labels", "similarity", "rating", "grade", "is_duplicate", "target")


class Judgement(NamedTuple):
    """That a text answers a query (relevance above 0, the more the better), or doesn't (0); `row` of the file."""

    row: int
    query: str
    candidate: str
    relevance: float


class Labelled(NamedTuple):
    """A text and its class: texts of one class answer each other."""

    row: int
    text: str
    label: str


@dataclass(frozen=True)
class PairTable:
    """What a file holds: judgements, or labelled texts."""

    name: str
    judgements: tuple[Judgement, ...]
    labelled: tuple[Labelled, ...]
    what: str  # "pairs", "triplets", "judged pairs" or "labelled texts"
    names: "Names"
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.judgements) or len(self.labelled)

    @property
    def queries(self) -> list[str]:
        return [j.query for j in self.judgements] or [one.text for one in self.labelled]


def read_pairs(
    source: str,
    *,
    text: str | None = None,
    candidate: str | None = None,
    negative: Sequence[str] = (),
    target: str | None = None,
    other: bool = False,
    part: str = "",
    labelled: bool = True,
) -> PairTable:
    """The judgements of a source; which columns hold them is seen from their names unless said, and the notes say it.

    For an `other` source than the training one, the columns are those of that one: seen from the names as well where
    this one doesn't have them. `part` names the files that are taken of a folder or the hub, as in `read_columns`.

    A row has a query and a candidate, which answers it (or as much as its relevance says), and maybe texts that don't.
    Candidates, their relevances and negatives may be lists. Without candidates, with `labelled`, a row has a text and a
    label. DataError for what can't be used.
    """
    path, (columns, notes) = Path(source).expanduser(), read_columns(source, part=part)
    if other:
        text, candidate, target = (name if name in columns else None for name in (text, candidate, target))
        negative = [name for name in negative if name in columns]
    names = Names.of(path, columns, text, candidate, list(negative), target)
    if names.candidate is None:
        if not labelled:
            what = f"{path} has no column of candidates (columns: {', '.join(columns)})"
            raise DataError(what, hint="ranking takes queries and candidates: --set data.candidate=COLUMN")
        table = _labelled(path, columns, names)
    else:
        table = _judged(path, columns, names)
    return replace(table, notes=(*notes, *table.notes))


@dataclass(frozen=True)
class Names:
    """The columns of each part."""

    query: str
    candidate: str | None
    negatives: list[str]
    target: str | None
    aside: str | None = None  # a column that could have been the relevance, and holds no numbers

    @classmethod
    def of(
        cls,
        path: Path,
        columns: dict[str, list[Any]],
        text: str | None,
        candidate: str | None,
        negative: list[str],
        target: str | None,
    ) -> "Names":
        flags = {"--text": text, "data.candidate": candidate, "--target": target}
        for flag, name in flags.items():
            if name is not None:
                named_column(path, columns, name, flag)
        negatives = [named_column(path, columns, name, "data.negative") for name in negative]
        negatives = negatives or [name for name in columns if NEGATIVE.fullmatch(name.lower())]
        said = [name for name in (text, candidate, target, *negatives) if name is not None]
        if twice := next((name for name in said if said.count(name) > 1), None):
            raise DataError(f"column {twice!r} is named for two parts of a row", hint="name two columns")
        free = [name for name in columns if name not in said]
        query = text or by_name(free, QUERIES)
        candidate = candidate or by_name([name for name in free if name != query], CANDIDATES)
        free = [name for name in free if name not in (query, candidate)]
        wordy = [name for name in free if is_wordy(columns[name]) or _lists(columns[name])]
        if candidate is None:
            label = target or by_name(free, TARGET_NAMES)
            if label is not None:
                first = query or next((name for name in wordy if name != label), None)
                if first is None:
                    what = f"{path} has no column of text beside {label!r} (columns: {', '.join(columns)})"
                    raise DataError(what, hint="say which with --text COLUMN")
                return cls(first, None, [], label)
            pair = [name for name in (query, *wordy) if name is not None]
            if len(pair) != 2:
                what = f"{path} has no column whose name says that it holds answers (columns: {', '.join(columns)})"
                raise DataError(what, hint="name two: --text QUERIES --set data.candidate=ANSWERS")
            query, candidate = pair
        elif query is None:
            if len(wordy) != 1 and not (wordy := [name for name in wordy if name.lower() in ("text", "sentence")]):
                what = f"{path} has no column whose name says that it holds queries (columns: {', '.join(columns)})"
                raise DataError(what, hint=f"say which with --text COLUMN; {nearest('query', columns)}")
            query = wordy[0]
        aside = None
        if target is None and (found := by_name([n for n in free if n != query], RELEVANCES)) is not None:
            if found.lower() in TARGET_NAMES and is_wordy(columns[found]):
                aside = found
            else:
                target = found
        return cls(query, candidate, negatives, target, aside)


def by_name(columns: Iterable[str], known: Sequence[str]) -> str | None:
    """The column with the first of the known names."""
    lower = {name.lower(): name for name in columns}
    return next((lower[name] for name in known if name in lower), None)


def _lists(values: list[Any]) -> bool:
    return any(isinstance(value, list) for value in values)


def _judged(path: Path, columns: dict[str, list[Any]], names: Names) -> PairTable:
    assert names.candidate is not None
    found: list[Judgement] = []
    blank = 0
    for row, (query, candidate) in enumerate(zip(columns[names.query], columns[names.candidate], strict=True)):
        asked = _text(query)
        candidates = [text for one in _each(candidate) if (text := _text(one))]
        if not asked or not candidates:
            blank += 1
            continue
        given = [1.0] * len(candidates)
        if names.target is not None:
            values = _each(columns[names.target][row])
            if len(values) != len(candidates):
                what = f"{path}, row {row + 1} has {len(candidates)} candidates and {len(values)} values of relevance"
                raise DataError(what, hint="give each candidate one")
            given = [_number(path, row, names.target, value) for value in values]
        found += [Judgement(row, asked, text, value) for text, value in zip(candidates, given, strict=True)]
        wrong = [text for name in names.negatives for one in _each(columns[name][row]) if (text := _text(one))]
        found += [Judgement(row, asked, text, 0.0) for text in wrong]
    if not found:
        raise DataError(f"{path} has no row with {names.query} and {names.candidate}", hint="check its columns")
    parts = [f"queries from column {names.query!r}", f"candidates from {names.candidate!r}"]
    parts += [f"negatives from {', '.join(map(repr, names.negatives))}"] if names.negatives else []
    parts += [f"relevance from {names.target!r}"] if names.target is not None else []
    notes = [", ".join(parts)]
    if names.aside is not None:
        notes.append(f"column {names.aside!r} holds no numbers and is left aside")
    notes += _blank(blank, "without query or candidate")
    what = "judged pairs" if names.target is not None else "triplets" if names.negatives else "pairs"
    return PairTable(path.resolve().name, tuple(found), (), what, names, tuple(notes))


def _labelled(path: Path, columns: dict[str, list[Any]], names: Names) -> PairTable:
    assert names.target is not None
    rows = [
        Labelled(row, _text(text), _text(label))
        for row, (text, label) in enumerate(zip(columns[names.query], columns[names.target], strict=True))
    ]
    kept = tuple(one for one in rows if one.text and one.label)
    if not kept:
        raise DataError(f"{path} has no row with text and label", hint="check its columns")
    note = f"texts from column {names.query!r}, labels from {names.target!r}: texts of one label answer each other"
    notes = (note, *_blank(len(rows) - len(kept), "without text or label"))
    return PairTable(path.resolve().name, (), kept, "labelled texts", names, notes)


def _blank(count: int, what: str) -> list[str]:
    return [f"{count:,} row{'s' if count > 1 else ''} {what} left out"] if count else []


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _number(path: Path, row: int, column: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        shown = "nothing" if value is None or not str(value).strip() else repr(str(value)[:40])
        what = f"{path}, row {row + 1}: {column!r} holds {shown}, which is no number"
        raise DataError(what, hint="a relevance is 0 for no answer, and the larger the better")
    return number


# --- what is known, text by text --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Texts, each once, and what is known of them.

    Either `query_J`, `candidate_J` (places in `texts`) and `relevance_J`, each pair once; or the class of each text,
    `class_T`, −1 where it has none.
    """

    texts: tuple[str, ...]
    query_J: Tensor
    candidate_J: Tensor
    relevance_J: Tensor
    class_T: Tensor | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    place: dict[str, int] = field(default_factory=dict, repr=False)  # of a folded text

    @property
    def queries(self) -> Tensor:
        """Every query once, (Q,)."""
        if self.class_T is not None:
            return (self.class_T >= 0).nonzero()[:, 0]
        return torch.unique(self.query_J)

    @property
    def candidates(self) -> Tensor:
        """Everything that may be an answer, each once: labelled texts are both."""
        return self.queries if self.class_T is not None else torch.unique(self.candidate_J)

    def of(self, queries: Tensor) -> "Judged":
        """What is known of these queries alone; the texts keep their places."""
        if self.class_T is not None:
            inside = torch.zeros(len(self.texts), dtype=torch.bool)
            inside[queries] = True
            kept = torch.where(inside, self.class_T, -1)
            return Judged(self.texts, *self._rows(slice(0, 0)), kept, self.classes, (), self.place)
        return Judged(self.texts, *self._rows(torch.isin(self.query_J, queries)), None, (), (), self.place)

    def _rows(self, which: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        return self.query_J[which], self.candidate_J[which], self.relevance_J[which]

    @property
    def answers(self) -> tuple[Tensor, Tensor]:
        """Queries and their answers, (P,) each: what is at least half as relevant as anything."""
        right = self.relevance_J >= self.relevance_J.max() / 2
        return self.query_J[right], self.candidate_J[right]

    @property
    def wrong(self) -> tuple[Tensor, Tensor]:
        """Queries and what is known to be no answer to them, (W,) each."""
        wrong = self.relevance_J == 0
        return self.query_J[wrong], self.candidate_J[wrong]

    def relevance(self, queries: Tensor, candidates: Tensor) -> Tensor:  # (Q,), (M,) -> (Q, M)
        """How good an answer each candidate is to each query; 0 where nothing is known, and of a text to itself."""
        if self.class_T is not None:
            found = (self.class_T[queries][:, None] == self.class_T[candidates]).float()
        else:
            found = torch.zeros(len(queries), len(candidates))
            row, column = (torch.full((len(self.texts),), -1) for _ in range(2))
            row[queries], column[candidates] = torch.arange(len(queries)), torch.arange(len(candidates))
            at, to = row[self.query_J], column[self.candidate_J]
            there = (at >= 0) & (to >= 0)
            found[at[there], to[there]] = self.relevance_J[there].clamp(min=0)
        return found.masked_fill(queries[:, None] == candidates, 0.0)


def judged(tables: Sequence[PairTable]) -> Judged:
    """What tables of one kind know together. DataError where nothing is left to tell apart."""
    texts: list[str] = []
    place: dict[str, int] = {}

    def at(text: str) -> int:
        found = place.setdefault(folded(text), len(texts))
        if found == len(texts):
            texts.append(text)
        return found

    name, notes = tables[0].name, []
    if tables[0].labelled:
        labels: dict[int, str] = {}
        rows = [one for table in tables for one in table.labelled]
        twice = 0
        for one in rows:
            twice += labels.setdefault(at(one.text), one.label) != one.label
        if repeated := len(rows) - len(labels):
            notes.append(f"{repeated:,} text{'s repeat' if repeated > 1 else ' repeats'} an earlier one")
        if twice:
            notes.append(f"{twice:,} of them under another label, where the first one counts")
        classes = sorted(set(labels.values()))
        number = {label: i for i, label in enumerate(classes)}
        class_T = torch.tensor([number[labels[i]] for i in range(len(texts))])
        none = torch.zeros(0, dtype=torch.int64)
        return Judged(tuple(texts), none, none, torch.zeros(0), class_T, tuple(classes), tuple(notes), place)
    known: dict[tuple[int, int], float] = {}
    repeated = same = 0
    for j in (j for table in tables for j in table.judgements):
        pair = at(j.query), at(j.candidate)
        same += pair[0] == pair[1]
        if pair[0] != pair[1]:
            repeated += pair in known
            known[pair] = max(known.get(pair, -math.inf), j.relevance)
    if same:
        notes.append(f"{same:,} pair{'s' if same > 1 else ''} of a text with itself left out")
    if repeated:
        notes.append(f"{repeated:,} pair{'s repeat' if repeated > 1 else ' repeats'} an earlier one")
    if not known:
        what = f"{name}: every candidate is the same text as its query: there is nothing to learn"
        raise DataError(what, hint="check which columns hold queries and candidates")
    query_J, candidate_J = (torch.tensor(part) for part in zip(*known, strict=True))
    relevance_J = torch.tensor(list(known.values()), dtype=torch.float32)
    low, high = float(relevance_J.min()), float(relevance_J.max())
    if low == high <= 0:
        raise DataError(f"{name}: no candidate is relevant to its query", hint="a relevance above 0 marks an answer")
    if low != 0 and low != high:
        relevance_J = relevance_J - low
        notes.append(f"relevance goes from {low:g} to {high:g}: {low:g} counts as no answer")
    return Judged(tuple(texts), query_J, candidate_J, relevance_J, None, (), tuple(notes), place)


def split_queries(known: Judged, queries: Tensor, share: float, seed: int, number: int) -> tuple[Tensor, Tensor]:
    """(rest, part): a share of the queries, drawn by seed, of labelled texts every class in proportion.

    A query's judgements all go one way. DataError where one side is empty.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, number))
    order = queries[torch.randperm(len(queries), generator=generator)]
    if known.class_T is not None:
        order = order[known.class_T[order].argsort(stable=True)]
    shift = float(torch.rand((), generator=generator))
    places = (
        torch.arange(len(order) + 1, dtype=torch.float64) * (round(share * len(order)) / len(order)) + shift
    ).floor()
    chosen = places[1:] > places[:-1]
    if not 0 < int(chosen.sum()) < len(order):
        what = f"a share of {share:g} of {len(order)} quer{'ies' if len(order) > 1 else 'y'} leaves one part empty"
        raise DataError(what, hint="give more queries, or a test part of its own with --test")
    return order[~chosen].sort().values, order[chosen].sort().values
