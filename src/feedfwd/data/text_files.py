"""Rows of texts by column or as records: from a file, a folder of files or of classes, or a data set of the hub."""

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from feedfwd.data.decoding import lines, read_text
from feedfwd.data.documents import TOLERATED, Tally
from feedfwd.data.sources import find, of_part
from feedfwd.errors import DataError

JSON = (".jsonl", ".ndjson", ".json")
TABLES = (".csv", ".tsv", *JSON, ".parquet")
FORMS = (*TABLES, ".txt")
LABELLED_LINE = re.compile(r"(.*)@([\w-]{1,60})\s*")
HEAD = 100  # rows that a look takes


class Columns(NamedTuple):
    """Values by name, as many of each, and what was decided in reading them."""

    values: dict[str, list[Any]]
    notes: list[str]


def read_columns(source: str, *, labelled: bool = True, part: str = "train", most: int | None = None) -> Columns:
    """The columns of a source, or of its first `most` rows; of a .txt the texts, and `labelled` what follows their @.

    A folder holds files that are alike, of which those named after the `part` are taken where some are; or a folder for
    each class, with a .txt for each text. DataError for what can't be read.
    """
    files, notes = _files(source, FORMS, part)
    if (classes := _classes(source, files)) is not None:
        notes.append(f"labels from {len(set(classes)):,} folders, a text a file")
        return Columns({"text": [read_text(f, notes, ".txt") for f in files[:most]], "label": classes[:most]}, notes)
    values: dict[str, list[Any]] = {}
    for file in files[:1] if most is not None else files:
        told: list[str] = []
        found = _columns(file, labelled, most, told)
        notes += told if len(files) == 1 else [f"{file.name}: {note}" for note in told]
        if values and values.keys() != found.keys() and file.suffix.lower() not in JSON:
            what = f"{file} has the columns {', '.join(found)}, and {files[0]} {', '.join(values)}"
            raise DataError(what, hint="give one of them, or a folder of files that are alike")
        n, more = max(map(len, values.values()), default=0), max(map(len, found.values()), default=0)
        for name in dict.fromkeys((*values, *found)):
            values[name] = values.get(name, [None] * n) + found.get(name, [None] * more)
    if not any(values.values()):
        raise DataError(f"{source} has no rows", hint="give a file with at least two")
    return Columns(values, notes)


def read_records(source: str) -> tuple[list[Any], list[str]]:
    """The rows of a source, as mappings as far as they are some, and what was decided in reading them."""
    files, notes = _files(source, TABLES, "train")
    found: list[Any] = []
    for file in files:
        told: list[str] = []
        if file.suffix.lower() in JSON:
            found += _json(file, None, told)
        else:
            columns = _columns(file, True, None, told)
            found += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        notes += told if len(files) == 1 else [f"{file.name}: {note}" for note in told]
    return found, notes


def _files(source: str, forms: tuple[str, ...], part: str) -> tuple[list[Path], list[str]]:
    found = find(source, forms, part)
    files, root = list(found.files), Path(source).expanduser()
    if not root.is_dir() or _classes(source, files) is not None:
        return files, list(found.notes)
    chosen = of_part(source, [str(file.relative_to(root)) for file in files], part)
    notes = [f"{source}: {', '.join(chosen[:3])}{', …' if len(chosen) > 3 else ''}"]
    if left := len(files) - len(chosen):
        notes[0] += f", without {left:,} that {'are' if left > 1 else 'is'} not named {part}"
        if part == "train" and any("test" in file.name.lower() for file in files):
            notes[0] += f"; --test {source} takes those named test"
    return [root / name for name in chosen], notes


def _classes(source: str, files: list[Path]) -> list[str] | None:
    """The folder of each file, where each is a text of a class."""
    root = Path(source).expanduser()
    folders = {file.parent for file in files}
    if not root.is_dir() or root in folders or len(folders) < 2 or any(f.suffix.lower() != ".txt" for f in files):
        return None
    if any(file.parent.parent != root for file in files):
        what = f"{source}: its .txt files lie more than one folder deep"
        raise DataError(what, hint="give the folder whose own folders are the classes")
    return [file.parent.name for file in files]


def _columns(path: Path, labelled: bool, most: int | None, notes: list[str]) -> dict[str, list[Any]]:
    import polars

    tally, form = Tally(), path.suffix.lower()
    try:
        match form:
            case ".txt":
                found = _lines(path, labelled, tally, notes)
            case ".csv" | ".tsv":
                found = _separated(path, read_text(path, notes, ", ".join(FORMS)), most, tally)
            case ".parquet":
                frame = polars.read_parquet(path, n_rows=most)
                found = {name: frame[name].to_list() for name in frame.columns}
            case _:
                found = _by_name(_json(path, most, notes), tally)
    except (polars.exceptions.PolarsError, OSError) as error:
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} can't be read ({problem})", hint="check it, or write it again") from None
    tally.check(path)
    if tally.broken:
        notes.append(f"{tally.broken:,} of {tally.rows:,} rows left out ({tally.summary()})")
    return {name.strip(): values for name, values in found.items()}


def _lines(path: Path, labelled: bool, tally: Tally, notes: list[str]) -> dict[str, list[Any]]:
    text = read_text(path, notes, ", ".join(FORMS))
    if not labelled:
        return {"text": lines(text)}
    texts, labels = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            tally.rows += 1
            if (match := LABELLED_LINE.fullmatch(line)) is not None:
                texts.append(match[1])
                labels.append(match[2])
            else:
                tally.leave_out(f"line {number} does not end in @label")
    if tally.broken > TOLERATED * tally.rows:
        what = f"{path}, {tally.named[0]}"
        raise DataError(what, hint="a .txt holds a text@label a line; give .csv with two columns otherwise")
    return {"text": texts, "label": labels}


def _separated(path: Path, text: str, most: int | None, tally: Tally) -> dict[str, list[Any]]:
    """Comma-separated values or the like, by polars; where a row is broken, one by one."""
    import polars

    header = text.split("\n", 1)[0]
    separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
    try:
        frame = polars.read_csv(io.BytesIO(text.encode()), infer_schema=False, separator=separator, n_rows=most)
        return {name: frame[name].to_list() for name in frame.columns}
    except polars.exceptions.PolarsError:
        return _row_by_row(path, text, separator, tally)


def _row_by_row(path: Path, text: str, separator: str, tally: Tally) -> dict[str, list[Any]]:
    csv.field_size_limit(2**31 - 1)  # a cell may hold a book
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    rows: list[list[str | None]] = []
    while True:
        line, cells, problem = reader.line_num + 1, [], ""
        try:
            cells = next(reader)
        except StopIteration:
            return {name: [row[i] for row in rows] for i, name in enumerate(names)}
        except csv.Error as error:
            problem = str(error)
            if "end of data" in problem:
                what = f"{path}: a quote opened on line {line} is never closed"
                raise DataError(what, hint="close or remove it") from None
        if not names:
            names = cells
        elif cells and len(cells) == len(names):
            tally.rows += 1
            rows.append([cell or None for cell in cells])
        elif cells or problem:
            tally.rows += (spanned := reader.line_num + 1 - line)
            tally.broken += spanned - 1  # a stray quote takes lines along
            tally.leave_out(f"line {line}: {problem or f'{len(cells)} cells for {len(names)} columns'}")


def _json(path: Path, most: int | None, notes: list[str]) -> list[Any]:
    """The rows of a list, or of a line each; None for a line that is no JSON."""
    text = read_text(path, notes, ", ".join(FORMS))
    if path.suffix.lower() == ".json":
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError) as error:
            if _parsed(lines(text)[0]) is None:  # the hub has files of a record a line by this name too
                raise DataError(f"{path} is no JSON ({error})", hint="check it; .jsonl has one object a line") from None
        else:
            if not isinstance(whole, list):
                raise DataError(f"{path} holds no list", hint="give a list of records, or .jsonl")
            return whole[:most]
    return [_parsed(line) for line in lines(text)[:most]]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _by_name(rows: list[Any], tally: Tally) -> dict[str, list[Any]]:
    kept: list[Mapping[str, Any]] = []
    for number, row in enumerate(rows, 1):
        tally.rows += 1
        if isinstance(row, Mapping):
            kept.append(row)
        else:
            tally.leave_out(f"row {number} is no JSON object")
    return {name: [row.get(name) for row in kept] for name in dict.fromkeys(name for row in kept for name in row)}
