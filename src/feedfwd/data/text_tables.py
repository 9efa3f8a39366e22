"""Tables of texts with a label, several labels or a number each: CSV, JSON lines, Parquet, lines of `text@label`."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from feedfwd.data.docstrings import DOCSTRINGS, docstrings
from feedfwd.data.text_files import Columns, read_columns
from feedfwd.errors import DataError, nearest

TEXT_NAMES = ("text", "sentence", "review", "content", "question", "query", "utterance", "message", "comment",
              "tweet", "document", "body", "description", "title", "prompt")  # fmt: skip
TARGET_NAMES = ("label", "labels", "category", "target", "class", "intent", "sentiment", "topic", "tag", "y")
NUMBER = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?")
MANY = 20  # distinct numbers with a fraction, from which on a column holds amounts and not classes
MANY_WHOLE = 50  # the same of whole numbers, unless they repeat, ten rows to a number
SKEWED = 10.0  # commonest to rarest class, from which on it is said


Kind = Literal["label", "labels", "number"]
KINDS: tuple[Kind, ...] = ("label", "labels", "number")


@dataclass(frozen=True)
class TextTable:
    """Texts, what each is labelled with, and what the user should know of how they were read.

    Labelled texts have one of `labels`, `sets` (of several labels) and `numbers`. `rows` are the texts' places in the
    file, counted from 0 below the header: blank ones are dropped.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    rows: tuple[int, ...]
    text: str
    target: str | None
    notes: tuple[str, ...] = ()
    sets: tuple[frozenset[str], ...] | None = None
    numbers: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)


def read_table(
    source: str,
    *,
    text: str | None = None,
    target: str | None = None,
    other: bool = False,
    labelled: bool = True,
    kinds: Sequence[Kind] = KINDS,
    labels: Sequence[str] = (),
) -> TextTable:
    """The texts of a source and their targets; which columns hold them is guessed unless said, and the notes say it.

    For an `other` source than the training one, `text` and `target` are columns of that one: guessed as well where this
    one doesn't have them. What a target is, one of `kinds`, is guessed as well: a column of lists or of `a;b` holds
    several labels a text, so do several columns of 0 and 1, which `labels` may name; a column of many numbers holds
    numbers. Without `labelled` a table needs no target, and a .txt is a text a line. "docstrings" are the running
    Python's, with the module each belongs to. DataError for what can't be used.
    """
    path = Path(source).expanduser()
    if source == DOCSTRINGS and not path.exists():
        columns, notes = Columns(dict(zip(("text", "module"), docstrings(), strict=True)), [])
    else:
        part = "" if not labelled else "test" if other else "train"
        columns, notes = read_columns(source, labelled=labelled, part=part)
    bare = path.suffix.lower() == ".txt"  # its columns have no names
    wanted = (text, target) if labelled else (text,)
    absent = [name for name in wanted if other and name is not None and not _has(columns, name)]
    trained, (text, target) = text, (None if name in absent else name for name in (text, target))
    try:
        text_from = _text_column(path, columns, text, target)
    except DataError:
        if trained not in absent:
            raise
        what = f"{path} has no column {trained!r}, from which texts were read in training, and no other of text"
        raise DataError(what, hint=nearest(str(trained), columns)) from None
    found, told = _targets(path, columns, text_from, target, kinds, labels) if labelled else (None, "")
    usual = text_from in TEXT_NAMES and len(columns) <= (2 if labelled else 1)
    guessed = found is not None and found.kind != "label"
    why = f"there is no column {' and no '.join(map(repr, absent))} as in training: " if absent and not bare else ""
    if why or guessed or not usual:
        notes.append(f"{why}text from column {text_from!r}{told}")
    kept, blank = [], 0
    for row, value in enumerate(columns[text_from]):
        if value is None or not str(value).strip() or (found is not None and found.values[row] in (None, "")):
            blank += 1
        else:
            kept.append(row)
    if not kept:
        what = "text and label" if labelled else "text"
        raise DataError(f"{path} has no row with {what}", hint="check its columns")
    if blank:
        what = "without text or label" if labelled else "without text"
        notes.append(f"{blank:,} row{'s' if blank > 1 else ''} {what} left out")
    texts = tuple(str(columns[text_from][row]) for row in kept)
    table = TextTable(path.resolve().name, texts, None, tuple(kept), text_from, None if found is None else found.column)
    if found is None:
        return replace(table, notes=tuple(notes))
    chosen = tuple(found.values[row] for row in kept)
    notes += _about_labels(texts, chosen, found.kind)
    table = replace(table, notes=tuple(notes))
    match found.kind:
        case "label":
            return replace(table, labels=chosen)
        case "labels":
            return replace(table, sets=chosen)
        case "number":
            return replace(table, numbers=chosen)


def shared_texts(train: Sequence[str], test: Sequence[str]) -> list[int]:
    """The test texts, by place, that stand in the training part too, but for case and spaces.

    >>> shared_texts(["Where is my card?"], ["where is  my card?", "Hello"])
    [0]
    """
    known = {folded(text) for text in train}
    return [i for i, text in enumerate(test) if folded(text) in known]


def folded(text: str) -> str:
    """The text but for case and spaces: what repeats it folds to the same."""
    return " ".join(text.casefold().split())


# --- choosing ---------------------------------------------------------------------------------------------------------


def _text_column(path: Path, columns: dict[str, list[Any]], said: str | None, target: str | None) -> str:
    if said is not None:
        return named_column(path, columns, said, "--text")
    wordy = [name for name, values in columns.items() if name != target and is_wordy(values)]
    if not wordy:
        raise DataError(f"{path} has no column of text", hint=f"its columns: {', '.join(columns)}")
    if len(wordy) == 1 < len(columns) and wordy[0].lower() in TARGET_NAMES:
        what = f"{path} has no column of text beside {wordy[0]!r} (columns: {', '.join(columns)})"
        raise DataError(what, hint="if that holds the texts, say so with --text")
    for known in TEXT_NAMES:
        for name in wordy:
            if name.lower() == known:
                return name
    return max(wordy, key=lambda name: sum(len(str(v)) for v in islice(columns[name], 1000) if v is not None))


def _target_column(
    path: Path, columns: dict[str, list[Any]], text: str, said: str | None, kinds: Sequence[Kind]
) -> str:
    if said is not None:
        if (found := named_column(path, columns, said, "--target")) == text:
            raise DataError(f"--text and --target are both {found!r}", hint="name two columns")
        return found
    others = [name for name in columns if name != text]
    numeric = [name for name in others if _is_numeric(columns[name])]
    numbers = kinds == ("number",)
    others = numeric if numbers and numeric else others
    for known in TARGET_NAMES:
        for name in others:
            if name.lower() == known:
                return name
    if not others:
        raise DataError(f"{path} has one column only, {text!r}: labels are missing", hint="add a column of labels")
    if len(others) == 1 and numeric == others:
        return others[0]
    if numbers:
        what = f"{path} has {len(numeric) or 'no'} columns of numbers beside {text!r} (columns: {', '.join(others)})"
        raise DataError(what, hint="say which with --target COLUMN")
    repeated = [name for name in others if looks_like_labels(columns[name])]
    if not repeated:
        raise DataError(
            f"{path} has no column that looks like labels beside {text!r} (columns: {', '.join(others)})",
            hint="say which with --target COLUMN",
        )
    return min(repeated, key=lambda name: len(_distinct(columns[name])))


def _distinct(values: list[Any]) -> set[str]:
    return {str(value) for value in values if value is not None}


def looks_like_labels(values: list[Any]) -> bool:
    """Whether most of the column's values come back."""
    return 2 <= len(_distinct(values)) <= max(2, len(values) // 2)


def _is_numeric(values: list[Any]) -> bool:
    given = _given(values)
    return bool(given) and all(
        isinstance(value, int | float) or NUMBER.fullmatch(str(value).strip()) for value in given
    )


def _given(values: list[Any]) -> list[Any]:
    return [value for value in values if value is not None and str(value).strip()]


def _has(columns: dict[str, list[Any]], said: str) -> bool:
    """Whether there is the column, or all of several with commas between them."""
    return said in columns or all(name.strip() in columns for name in said.split(","))


def named_column(path: Path, columns: dict[str, list[Any]], name: str, flag: str) -> str:
    """The column that a flag names; DataError with the nearest one where there is none."""
    if name not in columns:
        raise DataError(f"{path} has no column {name!r}, which {flag} names", hint=nearest(name, columns))
    return name


def is_wordy(values: list[Any]) -> bool:
    """Whether most values of the column are text and not numbers."""
    seen = [v for v in islice(values, 1000) if v is not None and str(v).strip()]
    words = [v for v in seen if isinstance(v, str) and not NUMBER.fullmatch(v.strip())]
    return 2 * len(words) > len(seen) > 0


@dataclass(frozen=True)
class _Found:
    column: str
    kind: Kind
    values: list[Any]  # a name, a set of names or a number for each row; "" or None where there is none


def _targets(
    path: Path,
    columns: dict[str, list[Any]],
    text: str,
    said: str | None,
    kinds: Sequence[Kind],
    labels: Sequence[str],
) -> tuple[_Found, str]:
    """What is to be learnt of each row, and how it was found out, as the end of a sentence."""
    if (flags := _flag_columns(path, columns, text, said, kinds, labels)) is not None:
        sets = [frozenset(name for name in flags if _is_one(columns[name][row])) for row in range(len(columns[text]))]
        listing = ", ".join(flags[:5]) + (", …" if len(flags) > 5 else "")
        return _Found(
            ",".join(flags), "labels", sets
        ), f", several labels from {len(flags)} columns of 0 and 1: {listing}"
    column = _target_column(path, columns, text, said, kinds)
    values = columns[column]
    guess = _kind(values)
    taken = guess if guess in kinds else kinds[0]
    match taken:
        case "number":
            told = "" if len(kinds) == 1 else "; for classes: --task classify"
            return _Found(column, taken, _numbers(path, column, values)), f", numbers from {column!r}{told}"
        case "labels":
            told = "" if len(kinds) == 1 else "; for one label: --set data.several=false"
            return _Found(column, taken, [_set(value) for value in values]), f", several labels from {column!r}{told}"
    return _Found(column, "label", _labels(path, column, values)), f", labels from {column!r}"


def _flag_columns(
    path: Path, columns: dict[str, list[Any]], text: str, said: str | None, kinds: Sequence[Kind], labels: Sequence[str]
) -> list[str] | None:
    """The columns of 0 and 1 that hold a label each: those named, or all where none has a name of a target's."""
    if "labels" not in kinds:
        return None
    if said is not None and "," in said and said not in columns:
        flags = [named_column(path, columns, name.strip(), "--target") for name in said.split(",")]
        bad = next((name for name in flags if not _are_flags(columns[name])), None)
        if bad is not None:
            what = f"{path}: column {bad!r} does not hold 0 and 1, and --target names several columns"
            raise DataError(what, hint="name columns of 0 and 1, one for each label, or one column of labels")
        return flags
    if said is not None:
        return None
    if labels and all(name in columns and _are_flags(columns[name]) for name in labels):
        return list(labels)
    if any(name.lower() in TARGET_NAMES for name in columns if name != text):
        return None
    flags = [name for name in columns if name != text and _are_flags(columns[name])]
    return flags if len(flags) > 1 else None


def _are_flags(values: list[Any]) -> bool:
    return {str(value).strip().lower() for value in values} <= {"0", "1", "0.0", "1.0", "true", "false"}


def _is_one(value: Any) -> bool:
    return str(value).strip().lower() in ("1", "1.0", "true")


def _kind(values: list[Any]) -> Kind:
    """What a column of targets holds."""
    given = _given(values)
    if any(isinstance(value, list) for value in given):
        return "labels"
    if _is_numeric(values):
        distinct = {float(value) for value in given}
        fractions = sum(not value.is_integer() for value in distinct)
        if fractions > MANY and 2 * fractions > len(distinct):
            return "number"
        if len(distinct) > MANY_WHOLE and 10 * len(distinct) > len(given):
            return "number"
        return "label"
    words = [str(value).strip() for value in given]
    split = [[part.strip() for part in word.split(";")] for word in words]
    joined = sum(len(parts) > 1 for parts in split)
    known = {parts[0] for parts in split if len(parts) == 1}
    parts_of = [part for parts in split if len(parts) > 1 for part in parts]
    # labels that are joined stand alone elsewhere, or come back in other company
    again = sum(part in known for part in parts_of) > len(parts_of) / 2 or len(set(parts_of)) * 2 < len(parts_of)
    return "labels" if joined and again else "label"


def _set(value: Any) -> frozenset[str]:
    """The labels of a text: of a list, or between semicolons; an empty cell is an empty list."""
    parts = value if isinstance(value, list) else str(value or "").split(";")
    return frozenset(name for part in parts if part is not None and (name := _name(part)))


def _numbers(path: Path, column: str, values: list[Any]) -> list[float | None]:
    found: list[float | None] = []
    for row, value in enumerate(values):
        if value is None or not str(value).strip():
            found.append(None)
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            what = f"{path}, row {row + 1}: {column!r} holds {str(value)[:40]!r}, which is no number"
            raise DataError(what, hint="correct it, empty it, or say --task classify")
        found.append(number)
    return found


def _labels(path: Path, column: str, values: list[Any]) -> list[str]:
    """Class names; "" where there is none."""
    if any(isinstance(value, list | dict) for value in values):
        what = f"{path}: column {column!r} holds several labels a text, and one is needed"
        raise DataError(what, hint="give a row a label, or leave data.several out")
    return ["" if value is None else _name(value) for value in values]


def _name(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _about_labels(texts: Sequence[str], targets: Sequence[Any], kind: Kind) -> list[str]:
    notes = []
    if kind != "number":
        counts = Counter(targets if kind == "label" else [name for names in targets for name in names]).most_common()
        if not counts:
            raise DataError("no text has a label", hint="check the column of labels")
        (common, most), (rare, fewest) = counts[0], counts[-1]
        if most >= SKEWED * fewest:
            plural = "texts" if most > 1 else "text"
            notes.append(
                f"classes are uneven: {common!r} has {most:,} {plural}, {rare!r} {fewest:,}; macro F1 counts all alike"
            )
    if kind == "labels" and (bare := sum(not names for names in targets)):
        what = f"{bare:,} text{'s have' if bare > 1 else ' has'} no label"
        notes.append(f"{what}, which is learnt too: leave unknown ones out")
    said: dict[str, set[Any]] = {}
    for text, target in zip(texts, targets, strict=True):
        said.setdefault(folded(text), set()).add(target)
    if repeated := len(texts) - len(said):
        notes.append(f"{repeated:,} text{'s repeat' if repeated > 1 else ' repeats'} an earlier one")
    if (unsure := sum(len(found) > 1 for found in said.values())) > 0:
        what = "number" if kind == "number" else "label"
        notes.append(f"{unsure:,} text{'s have' if unsure > 1 else ' has'} more than one {what} in different rows")
    return notes
