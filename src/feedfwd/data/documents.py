"""Text files as a stream of documents, in pieces that fit in memory however long the document.

A .txt, .md or .py file is one document; of .jsonl, .csv and .parquet files each row is one. Text stays as it is, line
ends included; only a leading byte-order mark goes.
"""

import csv
import gzip
import json
import tokenize
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from feedfwd.data.decoding import guess
from feedfwd.errors import DataError

TEXT = (".txt", ".md", ".py")
LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
FORMS = (*TEXT, *(f"{suffix}.gz" for suffix in TEXT), *LINES, ".parquet", ".csv")
PIECE = 1 << 15  # characters: small enough to spread over threads, large enough that seams don't count
BLOCK = 1 << 20  # characters read at once
HEAD = 100  # rows looked at to choose the text column
TOLERATED = 0.05  # share of broken rows that are left out; more of them are an error


class Piece(NamedTuple):
    """A stretch of one document; the document ends with its `last` piece."""

    text: str
    last: bool


class ManyBroken(DataError):
    """A file of rows, too many of them broken: a mistake that is not passed over among many files either."""


@dataclass
class Tally:
    """What reading a file found: rows, those that could not be used, and the column that was taken as text."""

    rows: int = 0
    broken: int = 0
    named: list[str] = field(default_factory=list)
    column: str | None = None
    guessed: bool = False

    def leave_out(self, where: str) -> None:
        self.broken += 1
        if len(self.named) < 3:
            self.named.append(where)

    def summary(self) -> str:
        return ", ".join(self.named) + (", …" if self.broken > len(self.named) else "")

    def check(self, path: Path) -> None:
        if self.broken > TOLERATED * self.rows:
            kind = ManyBroken if self.broken < self.rows else DataError
            raise kind(
                f"{path}: {self.broken:,} of {self.rows:,} rows can't be used ({self.summary()})",
                hint=f"mend or remove them; up to {TOLERATED:.0%} are left out, more are taken as a mistake",
            )


def form_of(path: Path, forms: Sequence[str] = FORMS) -> str | None:
    """The form that a file's name says, None if it is none of `forms`.

    >>> form_of(Path("a.b.JSONL.gz")), form_of(Path("photo.png"))
    ('.jsonl.gz', None)
    """
    name = path.name.lower()
    return next((form for form in forms if name.endswith(form) and name != form), None)


def read_pieces(path: Path, column: str | None, tally: Tally) -> Iterator[Piece]:
    """A file's documents in its order; what is left out is counted in `tally`, and too much of it raises."""
    form = form_of(path)
    try:
        if form in LINES:
            yield from _from_rows(path, _json_lines(path, tally), column, tally)
        elif form == ".csv":
            yield from _from_rows(path, _csv_rows(path, tally), column, tally)
        elif form == ".parquet":
            yield from _parquet(path, column, tally)
        else:
            tally.rows += 1
            yield from cut(_text_blocks(path))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file ({error})", hint="fetch or write it again") from None
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror})", hint="check the path and its permissions") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x} is the first that doesn't fit)",
            hint=f"save it as UTF-8, for example with: iconv -f {guess(error.object).upper()} -t UTF-8",
        ) from None


# --- plain text -------------------------------------------------------------------------------------------------------


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _text_blocks(path: Path) -> Iterator[str]:
    with _open(path) as file:
        _refuse_binary(path, file.read(8192))
        file.seek(0)
        encoding = "utf-8-sig"
        if ".py" in path.suffixes[-2:]:
            try:
                encoding, _ = tokenize.detect_encoding(file.readline)
            except SyntaxError as error:
                raise DataError(f"{path} is not readable as Python source ({error.msg})", hint="leave it out") from None
            file.seek(0)
        with TextIOWrapper(file, encoding, newline="") as text:
            while block := text.read(BLOCK):
                yield block


def _refuse_binary(path: Path, head: bytes) -> None:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is UTF-16, not UTF-8", hint="save it as UTF-8, e.g. with: iconv -f UTF-16 -t UTF-8")
    if b"\0" in head:
        raise DataError(f"{path} is a binary file, not text", hint=f"give text: {', '.join(FORMS)}")


def cut(blocks: Iterable[str]) -> Iterator[Piece]:
    """One document's text in pieces, cut where a word tokenizer would cut anyway."""
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > PIECE:
            seam = _seam(rest, start, start + PIECE)
            yield Piece(rest[start:seam], last=False)
            start = seam
        rest = rest[start:]
    yield Piece(rest, last=True)


def _seam(text: str, start: int, stop: int) -> int:
    """The last place in the half before `stop` between a line end or before a space that stands alone, else `stop`."""
    for separator, offset in (("\n", 1), (" ", 0)):  # a space begins a word, a line end ends one
        at = stop - 1
        while (at := text.rfind(separator, start + PIECE // 2, at)) > 0:
            if not text[at - 1].isspace() and not text[at + 1].isspace():
                return at + offset
    return stop


# --- rows -------------------------------------------------------------------------------------------------------------

Row = tuple[str, Mapping[str, Any]]  # where it stands, and its values by column


def _from_rows(path: Path, rows: Iterator[Row], column: str | None, tally: Tally) -> Iterator[Piece]:
    head = list(islice(rows, HEAD))
    if not head:
        tally.check(path)
        return
    tally.guessed = column is None
    tally.column = column = _text_column(path, [row for _, row in head], column)
    for where, row in chain(head, rows):
        value = row.get(column)
        if isinstance(value, str) and _is_unicode(value):
            yield from _cut_text(value)
        elif value is not None or column not in row:  # null is an empty document, no damage
            tally.leave_out(f"{where}: no text in {column!r}")
    tally.check(path)


def _cut_text(text: str) -> Iterator[Piece]:
    return cut(text[i : i + BLOCK] for i in range(0, len(text), BLOCK))


def _is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8; JSON can spell half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_column(path: Path, rows: Sequence[Mapping[str, Any]], column: str | None) -> str:
    """`column` if it is there; else "text", else the column with the longest texts."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if column is not None:
        if column not in names:
            raise DataError(
                f"{path} has no column {column!r}", hint=f"set data.column to one of: {', '.join(names) or 'none'}"
            )
        return column
    length = {name: sum(len(v) for row in rows if isinstance(v := row.get(name), str)) for name in names}
    if length.get("text"):
        return "text"
    if not any(length.values()):
        raise DataError(f"{path} has no column of text", hint=f"its columns are: {', '.join(names) or 'none'}")
    return max(length, key=length.__getitem__)


def _json_lines(path: Path, tally: Tally) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        tally.rows += 1
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            tally.leave_out(f"line {number}: no JSON")
            continue
        if isinstance(row, dict):
            yield f"line {number}", row
        else:
            tally.leave_out(f"line {number}: no JSON object")


def _lines(path: Path) -> Iterator[bytes | str]:
    if path.suffix.lower() != ".zst":
        with _open(path) as file:
            yield from file
        return
    with path.open("rb") as file:
        if file.read(4) != b"\x28\xb5\x2f\xfd":
            raise DataError(f"{path} is a damaged Zstandard file", hint="fetch or write it again")
    for batch in _batches(path, lambda polars: polars.scan_lines(path)):
        yield from batch


def _csv_rows(path: Path, tally: Tally) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # a cell may hold a book
    with path.open("rb") as raw:
        _refuse_binary(path, raw.read(8192))
        raw.seek(0)
        with TextIOWrapper(raw, "utf-8-sig", newline="") as text:
            header = text.readline()
            text.seek(0)
            reader = csv.reader(text, delimiter=max(",;\t", key=header.count), strict=True)
            try:
                names = next(reader, [])
                for cells in reader:
                    if not cells:
                        continue
                    tally.rows += 1
                    if len(cells) == len(names):
                        yield f"line {reader.line_num}", dict(zip(names, cells, strict=True))
                    else:
                        tally.leave_out(f"line {reader.line_num}: {len(cells)} cells for {len(names)} columns")
            except csv.Error as error:
                raise DataError(f"{path}, line {reader.line_num}: {error}", hint="check the quotes there") from None


def _parquet(path: Path, column: str | None, tally: Tally) -> Iterator[Piece]:
    import polars

    try:
        table = polars.scan_parquet(path)
        names = [name for name, kind in table.collect_schema().items() if kind == polars.String]
        head = table.select(names).head(HEAD).collect().to_dicts()
    except polars.exceptions.PolarsError as error:
        raise _damaged(path, error) from None
    if not names:
        raise DataError(f"{path} has no column of text", hint="give a file that has one")
    if not head:
        return
    tally.guessed = column is None
    tally.column = column = _text_column(path, head, column)
    for batch in _batches(path, lambda polars: polars.scan_parquet(path).select(column)):
        tally.rows += len(batch)
        for value in batch:
            yield from _cut_text(value or "")


def _batches(path: Path, scan: Callable[[Any], Any]) -> Iterator[list[str]]:
    """The one column of a polars scan, streamed."""
    import polars

    try:
        for frame in scan(polars).collect_batches(chunk_size=1024, maintain_order=True):
            yield frame.to_series().to_list()
    except polars.exceptions.PolarsError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    problem = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"{path} can't be read ({problem})", hint="fetch or write it again")
