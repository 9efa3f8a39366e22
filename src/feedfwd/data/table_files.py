"""Files and frames of rows as polars columns: encodings and separators found out, damage named by its line."""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from feedfwd.data.decoding import lines, read_text
from feedfwd.errors import DataError, MissingExtra

if TYPE_CHECKING:
    import polars

FORMS = ".csv, .tsv, .parquet, .jsonl or .xlsx"
SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".xlsx", ".xls", ".xlsb", ".ods")
SEPARATORS = ",;\t|"
LOOKED_AT = 50  # lines from which a separator is guessed
MOST_CELLS = 2e9


class Rows(NamedTuple):
    """Columns as they stand in a file, by stripped name, and what was decided in reading them."""

    frame: "polars.DataFrame"
    notes: list[str]


def is_table(source: str) -> bool:
    """Whether a source is a file of rows and columns, by its name.

    >>> is_table("adult.csv"), is_table("digits")
    (True, False)
    """
    return Path(source).suffix.lower() in SUFFIXES


def read_rows(source: str | Path) -> Rows:
    """The rows of a file; DataError says what is wrong with it, and where."""
    import polars

    path = Path(source).expanduser()
    if path.is_dir():
        raise DataError(f"{path} is a folder", hint=f"give one file: {FORMS}")
    if not path.exists():
        raise DataError(f"there is no file {source}", hint=f"check the path; tables are {FORMS}")
    notes: list[str] = []
    form = path.suffix.lower()
    try:
        match form:
            case ".csv" | ".tsv":
                frame = _separated(read_text(path, notes, FORMS), path, "\t" if form == ".tsv" else None, notes)
            case ".jsonl" | ".ndjson":
                frame = _json_lines(read_text(path, notes, FORMS), path)
            case ".parquet":
                frame = polars.read_parquet(path)
            case ".xlsx" | ".xls" | ".xlsb" | ".ods":
                frame = _sheet(path, notes)
            case _:
                raise DataError(f"{path} is not of a form that tables are read from", hint=f"give {FORMS}")
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error})", hint="check its permissions") from None
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException) as error:
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} can't be read ({problem})", hint="check it, or write it again") from None
    return Rows(_named(frame, str(path), notes), notes)


def as_rows(data: Any, where: str = "the input") -> Rows:
    """Rows of any form: a file's path, a frame of polars or pandas, a dictionary of columns, or a list of dictionaries.

    >>> as_rows([{"a": 1, "b": "x"}, {"a": 2}]).frame.to_dicts()
    [{'a': 1, 'b': 'x'}, {'a': 2, 'b': None}]
    """
    import polars

    if isinstance(data, str | Path):
        return read_rows(data)
    notes: list[str] = []
    try:
        if isinstance(data, polars.DataFrame):
            frame = data
        elif isinstance(data, polars.LazyFrame):
            frame = data.collect()
        elif isinstance(data, Mapping):
            columnar = all(isinstance(v, Sequence) and not isinstance(v, str) for v in data.values())
            frame = polars.DataFrame(dict(data) if columnar else [dict(data)], strict=False)
        elif hasattr(data, "columns") and hasattr(data, "dtypes"):  # pandas, which need not be installed
            frame = polars.DataFrame({str(name): _plain(data[name]) for name in data.columns}, strict=False)
        elif isinstance(data, Sequence) and data and all(isinstance(row, Mapping) for row in data):
            names = list(dict.fromkeys(str(name) for row in data for name in row))
            frame = polars.DataFrame({name: [row.get(name) for row in data] for name in names}, strict=False)
        else:
            raise DataError(
                f"{where} is of type {type(data).__name__}, not rows with named columns",
                hint="give a file, a polars or pandas frame, or a list of dictionaries",
            )
    except (polars.exceptions.PolarsError, TypeError) as error:
        raise DataError(f"{where} can't be read as a table ({error})", hint="give columns of one type each") from None
    return Rows(_named(frame, where, notes), notes)


def _plain(series: Any) -> list[Any]:
    """A pandas column as plain values: its several words for missing become None."""
    return [None if value is None or value != value or str(value) in ("NaT", "<NA>") else value for value in series]


def _named(frame: "polars.DataFrame", where: str, notes: list[str]) -> "polars.DataFrame":
    """Names stripped and all different; columns without name and content left out."""

    if frame.width == 0 or frame.height == 0:
        what = "no columns" if frame.width == 0 else "a header and no rows"
        raise DataError(f"{where} has {what}", hint="give rows with values below it")
    empty = [n for n in frame.columns if not n.strip() and frame[n].null_count() == frame.height]
    frame = frame.drop(empty)
    names = [name.strip() or f"column {i + 1}" for i, name in enumerate(frame.columns)]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{where} has two columns named {repeated[0]!r}", hint="give each column a name of its own")
    return _spread(frame.rename(dict(zip(frame.columns, names, strict=True))))


def _spread(frame: "polars.DataFrame") -> "polars.DataFrame":
    """Records as a column for each of their fields, `record.field`; lists stay as they are.

    >>> as_rows([{"a": {"b": 1, "c": {"d": 2}}}]).frame.to_dicts()
    [{'a.b': 1, 'a.c.d': 2}]
    """
    import polars

    while records := [n for n in frame.columns if isinstance(frame[n].dtype, polars.Struct)]:
        columns = []
        for column in frame.get_columns():
            if column.name in records:
                fields = column.struct.unnest().get_columns()
                columns += [field.alias(f"{column.name}.{field.name}") for field in fields]
            else:
                columns.append(column)
        frame = polars.DataFrame(columns)
    return frame


# --- text -------------------------------------------------------------------------------------------------------------


def _separated(text: str, path: Path, separator: str | None, notes: list[str]) -> "polars.DataFrame":
    import polars

    if "\n" not in text:  # lines end as they did on old Macs
        text = text.replace("\r", "\n")
    if separator is None:
        separator = _separator(text)
        if separator != ",":
            notes.append(f"columns are separated by {'tabs' if separator == chr(9) else separator}")
    start = len(text) - len(text.lstrip("\r\n"))
    header = next(csv.reader(io.StringIO(text[start:]), delimiter=separator), [])
    names = [name.strip() for name in header]
    if repeated := [name for name, count in Counter(names).items() if count > 1 and name]:
        raise DataError(f"{path} has two columns named {repeated[0]!r}", hint="give each column a name of its own")
    try:
        frame = polars.read_csv(
            io.BytesIO(text[start:].encode()),
            infer_schema=False,
            separator=separator,
            has_header=False,
        )[1:]
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException):
        _refuse_ragged(text, path, separator, len(names))
        raise
    if frame.width != len(names):
        _refuse_ragged(text, path, separator, len(names))
    last = frame.get_column(frame.columns[-1])
    if frame.width > 1 and last.null_count() > frame.filter(polars.all_horizontal(polars.all().is_null())).height:
        _refuse_ragged(text, path, separator, len(names))  # polars fills short rows up in silence
    unnamed = [name or f"\u200b{' ' * i}" for i, name in enumerate(names)]
    frame.columns = unnamed
    blank = [n for n in unnamed if n.startswith("\u200b")]
    full = [n for n in blank if frame[n].null_count() < frame.height]
    return frame.drop([n for n in blank if n not in full]).rename({n: f"column {unnamed.index(n) + 1}" for n in full})


def _separator(text: str) -> str:
    """The one that cuts the first lines into as many cells each, and into the most.

    >>> _separator("a;b\\n1,5;2\\n3,5;4\\n"), _separator("name, note\\nx, y\\n")
    (';', ',')
    """
    head = lines(text[:100_000])[:LOOKED_AT]

    def fit(separator: str) -> tuple[float, int]:
        cells = [len(row) for row in csv.reader(head, delimiter=separator) if row]
        width = cells[0] if cells else 1
        return (0.0 if width < 2 else sum(n == width for n in cells) / len(cells), width)

    return max(SEPARATORS, key=fit)


def _refuse_ragged(text: str, path: Path, separator: str, width: int) -> None:
    """DataError with the line of the first row of another length, where there is one."""
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    try:
        for row in reader:
            if len(row) != width and any(cell.strip() for cell in row):
                raise DataError(
                    f"{path}, line {reader.line_num} has {len(row)} cells where the header has {width}",
                    hint='mend that line; a cell that holds the separator needs "quotes"',
                )
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} can't be read ({error})", hint="mend that line") from None
    if re.search(r'"[^"]*\Z', text) and text.count('"') % 2:
        line = text[: text.rindex('"')].count("\n") + 1
        raise DataError(f"{path}: a quote opened on line {line} is never closed", hint="close or remove it")


def _json_lines(text: str, path: Path) -> "polars.DataFrame":
    import json

    import polars

    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON ({error.msg})", hint="mend that line") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is no record", hint='write {"column": value, …} a line')
        rows.append(_flat(row))
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns: dict[str, Any] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if list in kinds:  # to be told of by its type
            columns[name] = polars.Series(name, [[]] * len(values), dtype=polars.List(polars.Null))
            continue
        mixed = len(kinds) > 1 and not kinds <= {int, float}
        columns[name] = [None if v is None else str(v) for v in values] if mixed else values
    return polars.DataFrame(columns, strict=False)


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A record of records as one.

    >>> _flat({"a": 1, "b": {"c": 2, "d": {"e": 3}}})
    {'a': 1, 'b.c': 2, 'b.d.e': 3}
    """
    found: dict[str, Any] = {}
    for name, value in row.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _sheet(path: Path, notes: list[str]) -> "polars.DataFrame":
    """The first sheet that holds a table, of more than one column where there is such a one."""
    try:
        import fastexcel
    except ImportError:
        raise MissingExtra(
            "reading Excel files needs fastexcel", hint='pip install "feedfwd[excel]", or save the sheet as .csv'
        ) from None
    try:
        book = fastexcel.read_excel(path)
        names = book.sheet_names
        tops = {name: book.load_sheet(name, header_row=None, n_rows=LOOKED_AT).to_polars().rows() for name in names}
        tables = [(name, start) for name, top in tops.items() if (start := _header(top)) is not None]
        if not tables:
            raise DataError(f"{path} has no sheet with a line of names and rows below it", hint="save it as .csv")
        name, start = next((table for table in tables if len(tops[table[0]][0]) > 1), tables[0])
        if len(names) > 1:
            others = [other for other in names if other != name]
            said = f"of its {len(names)} sheets {name!r} is read, not {', '.join(map(repr, others[:5]))}"
            notes.append(f"{said}{', ...' if len(others) > 5 else ''}: save another as a file of its own")
        if start:
            notes.append(f"the columns' names stand in row {start + 1} of {name!r}; what is above is left out")
        return book.load_sheet(name, header_row=start).to_polars()
    except fastexcel.FastExcelError as error:
        problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} can't be read as a sheet ({problem})", hint="save it as .csv") from None


def _header(rows: Sequence[tuple[Any, ...]]) -> int | None:
    """The first row of a sheet that fills more than half as many cells as the fullest; None where no row follows it.

    >>> _header([("Customers of 2024", None, None), (None, None, None), ("age", "city", "buys"), (40, "Oslo", 1)])
    2
    """
    filled = [sum(cell is not None for cell in row) for row in rows]
    start = next((i for i, n in enumerate(filled) if 2 * n > max(filled)), None)
    return None if start is None or start + 1 == len(rows) else start
