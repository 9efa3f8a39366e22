"""Tables of texts with a label each: CSV, JSON lines, Parquet, and lines of `text@label`."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from feedfwd.errors import DataError, nearest

TEXT_NAMES = ("text", "sentence", "review", "content", "question", "query", "utterance", "message", "comment",
              "tweet", "document", "body", "description", "title", "prompt")  # fmt: skip
TARGET_NAMES = ("label", "labels", "category", "target", "class", "intent", "sentiment", "topic", "tag", "y")
FORMS = ".csv, .tsv, .jsonl, .parquet, or .txt of text@label"
LABELLED_LINE = re.compile(r"(.*)@([\w-]{1,60})\s*")
NUMBER = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?")
MANY = 20  # distinct numbers with a fraction, from which on a column holds amounts and not classes
SKEWED = 10.0  # commonest to rarest class, from which on it is said


@dataclass(frozen=True)
class TextTable:
    """Texts, a label for each where they are labelled, and what the user should know of how they were read.

    `rows` are the texts' places in the file, counted from 0 below the header: blank ones are dropped.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    rows: tuple[int, ...]
    text: str
    target: str | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)


def read_table(source: str, *, text: str | None = None, target: str | None = None, labelled: bool = True) -> TextTable:
    """The texts of a file and their labels; which columns hold them is guessed unless said, and the notes say it.

    Without `labelled` a table needs no target column, and a .txt is a text a line. DataError for what can't be used.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        raise DataError(f"{path} is a folder", hint=f"give one file: {FORMS}")
    if not path.exists():
        raise DataError(f"there is no file {source}", hint=f"check the path; texts are read from {FORMS}")
    columns = _columns(path, labelled)
    names = list(columns)
    text_from = _text_column(path, columns, text, target)
    target_from = _target_column(path, columns, text_from, target) if labelled else None
    told = [f"text from column {text_from!r}"]
    if target_from is not None:
        told.append(f"labels from {target_from!r}")
    notes = [", ".join(told)] if len(names) > (2 if labelled else 1) or text_from not in TEXT_NAMES else []
    kept, blank = [], 0
    labels = _labels(path, target_from, columns[target_from]) if target_from is not None else None
    for row, value in enumerate(columns[text_from]):
        if value is None or not str(value).strip() or (labels is not None and not labels[row]):
            blank += 1
        else:
            kept.append(row)
    if not kept:
        raise DataError(f"{path} has no row with text{' and label' if labelled else ''}", hint="check its columns")
    if blank:
        what = "without text or label" if labelled else "without text"
        notes.append(f"{blank:,} row{'s' if blank > 1 else ''} {what} left out")
    texts = tuple(str(columns[text_from][row]) for row in kept)
    chosen = None if labels is None else tuple(labels[row] for row in kept)
    if chosen is not None:
        notes += _about_labels(texts, chosen)
    return TextTable(path.name, texts, chosen, tuple(kept), text_from, target_from, tuple(notes))


def shared_texts(train: Sequence[str], test: Sequence[str]) -> list[int]:
    """The test texts, by place, that stand in the training part too, but for case and spaces.

    >>> shared_texts(["Where is my card?"], ["where is  my card?", "Hello"])
    [0]
    """
    known = {_folded(text) for text in train}
    return [i for i, text in enumerate(test) if _folded(text) in known]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


# --- reading ----------------------------------------------------------------------------------------------------------


def _columns(path: Path, labelled: bool) -> dict[str, list[Any]]:
    import polars

    form = path.suffix.lower()
    if form == ".txt":
        return _lines(path, labelled)
    try:
        match form:
            case ".csv" | ".tsv":
                data = _text(path)
                header = data.split("\n", 1)[0]
                separator = "\t" if form == ".tsv" else max(",;\t", key=header.count)
                table = polars.read_csv(BytesIO(data.encode()), infer_schema=False, separator=separator)
            case ".jsonl" | ".ndjson":
                table = polars.read_ndjson(BytesIO(_text(path).encode()), infer_schema_length=None)
            case ".parquet":
                table = polars.read_parquet(path)
            case _:
                raise DataError(f"{path} is not of a form that labelled texts are read from", hint=f"give {FORMS}")
    except (polars.exceptions.PolarsError, OSError) as error:
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} can't be read ({problem})", hint="check it, or write it again") from None
    if not len(table):
        raise DataError(f"{path} has no rows", hint="give a file with at least two")
    return {name.strip(): table[name].to_list() for name in table.columns}


def _text(path: Path) -> str:
    """The file's text, UTF-8 or, where it is not, Windows' Latin-1."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror})", hint="check its permissions") from None
    if not raw.strip():
        raise DataError(f"{path} is empty", hint="check where it came from")
    if b"\0" in raw[:8192]:
        raise DataError(f"{path} is not text", hint=f"give {FORMS}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def _lines(path: Path, labelled: bool) -> dict[str, list[Any]]:
    lines = [line for line in _text(path).splitlines() if line.strip()]
    if not labelled:
        return {"text": lines}
    found = [LABELLED_LINE.fullmatch(line) for line in lines]
    bad = next((i for i, match in enumerate(found) if match is None), None)
    if bad is not None:
        raise DataError(
            f"{path}, line {bad + 1} does not end in @label",
            hint="a .txt holds a text@label a line; give .csv with two columns otherwise",
        )
    return {"text": [m[1] for m in found if m], "label": [m[2] for m in found if m]}


# --- choosing ---------------------------------------------------------------------------------------------------------


def _text_column(path: Path, columns: dict[str, list[Any]], said: str | None, target: str | None) -> str:
    if said is not None:
        return _known(path, columns, said, "--text")
    wordy = [name for name, values in columns.items() if name != target and _wordy(values)]
    if not wordy:
        raise DataError(f"{path} has no column of text", hint=f"its columns: {', '.join(columns)}")
    for known in TEXT_NAMES:
        for name in wordy:
            if name.lower() == known:
                return name
    return max(wordy, key=lambda name: sum(len(str(v)) for v in islice(columns[name], 1000) if v is not None))


def _target_column(path: Path, columns: dict[str, list[Any]], text: str, said: str | None) -> str:
    if said is not None:
        if (found := _known(path, columns, said, "--target")) == text:
            raise DataError(f"--text and --target are both {found!r}", hint="name two columns")
        return found
    others = [name for name in columns if name != text]
    for known in TARGET_NAMES:
        for name in others:
            if name.lower() == known:
                return name
    if not others:
        raise DataError(f"{path} has one column only, {text!r}: labels are missing", hint="add a column of labels")
    distinct = {name: len({str(v) for v in columns[name] if v is not None}) for name in others}
    repeated = [name for name in others if 2 <= distinct[name] <= max(2, len(columns[name]) // 2)]
    if not repeated:
        raise DataError(
            f"{path} has no column that looks like labels beside {text!r} (columns: {', '.join(others)})",
            hint="say which with --target COLUMN",
        )
    return min(repeated, key=lambda name: distinct[name])


def _known(path: Path, columns: dict[str, list[Any]], name: str, flag: str) -> str:
    if name not in columns:
        raise DataError(f"{path} has no column {name!r}, which {flag} names", hint=nearest(name, columns))
    return name


def _wordy(values: list[Any]) -> bool:
    """Whether most values of the column are text and not numbers."""
    seen = [v for v in islice(values, 1000) if v is not None and str(v).strip()]
    words = [v for v in seen if isinstance(v, str) and not NUMBER.fullmatch(v.strip())]
    return 2 * len(words) > len(seen) > 0


def _labels(path: Path, column: str, values: list[Any]) -> list[str]:
    """Class names; "" where there is none."""
    if any(isinstance(value, list | dict) for value in values):
        raise DataError(
            f"{path}: column {column!r} holds several labels a text, and one is needed", hint="give a row a label"
        )
    names = ["" if value is None else _name(value) for value in values]
    given = {name for name in names if name}
    fractions = [name for name in given if NUMBER.fullmatch(name) and not name.lstrip("+-").isdigit()]
    if len(fractions) > MANY and 2 * len(fractions) > len(given):
        raise DataError(
            f"{path}: column {column!r} holds numbers with fractions such as {min(fractions)}, not classes",
            hint="name the column of labels with --target",
        )
    return names


def _name(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _about_labels(texts: Sequence[str], labels: Sequence[str]) -> list[str]:
    notes = []
    counts = Counter(labels).most_common()
    (common, most), (rare, fewest) = counts[0], counts[-1]
    if most >= SKEWED * fewest:
        notes.append(
            f"classes are uneven: {common!r} has {most:,} texts, {rare!r} {fewest:,}; macro F1 counts all alike"
        )
    said: dict[str, set[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        said.setdefault(_folded(text), set()).add(label)
    if repeated := len(texts) - len(said):
        notes.append(f"{repeated:,} text{'s repeat' if repeated > 1 else ' repeats'} an earlier one")
    if (unsure := sum(len(found) > 1 for found in said.values())) > 0:
        notes.append(f"{unsure:,} text{'s have' if unsure > 1 else ' has'} more than one label in different rows")
    return notes
