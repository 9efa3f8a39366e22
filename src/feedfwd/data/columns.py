"""What the columns of a table are: numbers, categories, dates or text, and their cells brought into that type."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from feedfwd.errors import DataError

if TYPE_CHECKING:
    import polars

Kind = Literal["number", "category", "date", "text"]

MISSING = ("", "?", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "null", "NULL", "<NA>", "NaT")
BOOLEANS = ({"true", "false"}, {"yes", "no"}, {"t", "f"}, {"y", "n"})
MOSTLY = 0.95  # of the cells have to be numbers for the others to count as missing
WORDY = 3.5  # words a cell, on average, from which on cells are text and not names
DATES = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y%m%d")
TIMES = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%d.%m.%Y %H:%M", "%m/%d/%Y %H:%M")
DECIMAL_COMMA = r"^[+-]?\d{1,3}(\.\d{3})+(,\d+)?$|^[+-]?\d+,\d+$|^[+-]?\d+$"
THOUSANDS = r"^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$|^[+-]?\d+(\.\d+)?$"


@dataclass(frozen=True)
class Typed:
    """A column in its type, and what to say of how it was read."""

    values: "polars.Series"
    kind: Kind
    note: str = ""


def clean(column: "polars.Series") -> "polars.Series":
    """Text stripped and what stands for nothing taken as missing; categories and booleans as text, numbers as they are.

    >>> import polars
    >>> clean(polars.Series(" a", [" x ", "?", ""])).to_list()
    ['x', None, None]
    """
    import polars

    if column.dtype == polars.Boolean:
        return column.cast(polars.String)
    if column.dtype in (polars.Categorical, polars.Enum, polars.Time, polars.Binary):
        column = column.cast(polars.String, strict=False)
    if column.dtype == polars.Null:
        return column.cast(polars.String)
    if column.dtype != polars.String:
        return column
    column = column.str.strip_chars()
    return column.set(column.is_in(list(MISSING)), None)


def typed(column: "polars.Series", separator_note: bool = True) -> Typed:
    """The type of a cleaned column, found out from its cells.

    >>> import polars
    >>> typed(polars.Series("x", ["1", "2.5", None])).kind, typed(polars.Series("y", ["1,5", "2,25"])).values.to_list()
    ('number', [1.5, 2.25])
    >>> typed(polars.Series("d", ["2024-01-31", "2024-02-01"])).kind
    'date'
    """
    import polars

    name = column.name
    if column.dtype in (polars.Datetime, polars.Date):
        return Typed(column.cast(polars.Datetime("us")), "date")
    if column.dtype == polars.Duration:
        return Typed(column.dt.total_seconds().cast(polars.Float64), "number", f"{name} in seconds")
    if column.dtype.is_numeric():
        return _finite(column.cast(polars.Float64))
    given = column.drop_nulls()
    if not len(given):
        return Typed(column, "category")
    if set(given.head(1000).str.to_lowercase().unique().to_list()) in BOOLEANS:
        return Typed(column, "category")
    numbers, note = _numbers(column, given)
    if numbers is not None:
        found = _finite(numbers)
        return Typed(found.values, found.kind, "; ".join(n for n in (note, found.note) if n))
    if (dates := _dates(column, given)) is not None:
        return Typed(dates, "date")
    words = given.head(2000).str.split(" ").list.len().mean()
    repeated = given.n_unique() <= 0.5 * len(given)
    if not repeated and isinstance(words, float) and words >= WORDY:
        return Typed(column, "text")
    return Typed(column, "category")


def convert(column: "polars.Series", kind: Kind) -> tuple["polars.Series", int]:
    """A cleaned column in a type that is known from training, and how many of its cells don't fit it."""
    import polars

    before = column.null_count()
    match kind:
        case "number":
            if column.dtype == polars.String:
                given = column.drop_nulls()
                numbers, _ = _numbers(column, given, mostly=0.5)
                column = numbers if numbers is not None else column.cast(polars.Float64, strict=False)
            elif column.dtype.is_temporal():
                column = polars.Series(column.name, [None] * len(column), dtype=polars.Float64)
            column = column.cast(polars.Float64)
            column = column.set(column.is_nan() | column.is_infinite(), None)
        case "date":
            if column.dtype == polars.String:
                found = _dates(column, column.drop_nulls())
                column = found if found is not None else column.cast(polars.Null, strict=False)
            elif not column.dtype.is_temporal():
                column = polars.Series(column.name, [None] * len(column), dtype=polars.Datetime("us"))
            column = column.cast(polars.Datetime("us"), strict=False)
        case _:
            column = as_names(column)
    return column, column.null_count() - before


def as_names(column: "polars.Series") -> "polars.Series":
    """Any column as names; whole numbers without their decimal point, so that 3 and 3.0 are one name."""
    import polars

    if column.dtype == polars.String:
        return column
    if column.dtype.is_float():
        whole = column.round(0)
        if bool((column.drop_nulls() == whole.drop_nulls()).all()):
            return whole.cast(polars.Int64, strict=False).cast(polars.String)
    return column.cast(polars.String)


def _finite(column: "polars.Series") -> Typed:
    """Infinite numbers and NaN are missing; the infinite ones are said."""
    infinite = int(column.is_infinite().sum())
    column = column.set(column.is_nan() | column.is_infinite(), None)
    return Typed(column, "number", f"{infinite:,} infinite cells of {column.name} count as missing" if infinite else "")


def _numbers(
    column: "polars.Series", given: "polars.Series", mostly: float = MOSTLY
) -> tuple["polars.Series | None", str]:
    """The column as numbers where its cells are, with decimal commas or thousands' separators if need be."""
    import polars

    cast = given.cast(polars.Float64, strict=False)
    right = len(given) - cast.null_count()
    if right == len(given):
        return column.cast(polars.Float64, strict=False), ""
    name = column.name
    if bool(given.str.contains(DECIMAL_COMMA).all()) and bool(given.str.contains(",").any()):
        if bool(given.str.contains(THOUSANDS).all()):
            return column.str.replace_all(",", "").cast(polars.Float64), f"{name}: commas set off thousands"
        text = column.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
        return text.cast(polars.Float64), f"{name}: decimal commas"
    if bool(given.str.contains(THOUSANDS).all()):
        return column.str.replace_all(",", "").cast(polars.Float64), f"{name}: commas set off thousands"
    if bool(given.str.contains(r"^[+-]?[\d.,]+\s*[%€$£]$|^[€$£]\s*[+-]?[\d.,]+$").all()):
        text = column.str.replace_all(r"[%€$£\s,]", "")
        units = text.cast(polars.Float64, strict=False)
        if units.null_count() == column.null_count():
            return units, f"{name}: read without its unit"
    if right >= mostly * len(given):
        others = given.filter(cast.is_null())
        note = f"{len(others):,} cells of {name} are no numbers and count as missing, such as {others[0]!r}"
        return column.cast(polars.Float64, strict=False), note
    return None, ""


def _dates(column: "polars.Series", given: "polars.Series") -> "polars.Series | None":
    """The column as points of time where every cell is one of a single form."""
    import polars

    first = given.head(1)
    if not len(given) or not re.search(r"\d.*\D.*\d", str(first[0])):
        return None
    for form in (*DATES, *TIMES):
        if given.head(100).str.to_datetime(form, strict=False).null_count():
            continue
        found = column.str.to_datetime(form, strict=False)
        if found.null_count() == column.null_count():
            return found.cast(polars.Datetime("us"))
    zoned = given.head(100).str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", strict=False)
    if not zoned.null_count():
        found = column.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", strict=False)
        if found.null_count() == column.null_count():
            return found.dt.replace_time_zone(None).cast(polars.Datetime("us"))
    return None


def check_names(wanted: Mapping[str, str], known: list[str], where: str) -> None:
    """DataError for the first name, by the flag that says it, that no column has."""
    from feedfwd.errors import nearest

    for name, flag in wanted.items():
        if name not in known:
            same = next((k for k in known if k.lower().split() == name.lower().split()), None)
            if same is not None:
                raise DataError(f"{where} has no column {name!r}, which {flag} names", hint=f"did you mean {same!r}?")
            shown = known if len(known) <= 40 else [*sorted(known, key=lambda k: _distance(k, name))[:40]]
            raise DataError(f"{where} has no column {name!r}, which {flag} names", hint=nearest(name, shown))


def _distance(a: str, b: str) -> float:
    import difflib

    return -difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()


def share(part: float, whole: float) -> str:
    """
    >>> share(1, 8), share(1, 100_000)
    ('12 %', 'under 1 %')
    """
    percent = 100 * part / whole
    return "under 1 %" if 0 < percent < 1 else f"{math.floor(percent)} %"
