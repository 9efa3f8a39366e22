"""What the columns of a table are: numbers, categories, dates or text, and their cells brought into that type."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from feedfwd.errors import DataError

if TYPE_CHECKING:
    import polars

Kind = Literal["number", "category", "date", "text"]

ABSENT = frozenset(
    ["", "?", "na", "n/a", "#n/a", "nan", "null", "<na>", "nat"]
)  # what stands for no value, in lower case
WORDS_FOR_NONE = """
?? n.a. n.a none nil (null) (none) - -- --- – — . missing unknown
#div/0! #value! #ref! #name? #num! #null!
缺失 缺失值 未知 不详 暂无 空 空值 欠損 欠測 不明 該当なし
"""
MISSING = ABSENT | frozenset(WORDS_FOR_NONE.split())  # in a column to predict from; of a target these may be names
BOOLEANS = ({"true", "false"}, {"yes", "no"}, {"t", "f"}, {"y", "n"})
MOSTLY = 0.95  # of the cells have to be numbers, or dates, for the others to count as missing
WORDY = 3.5  # words a cell, on average, from which on cells are text and not names
WRITTEN_SOLID = r"[\p{Han}\p{Hiragana}\p{Katakana}]"  # without spaces between words, which have about two characters
DATES = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%d.%m.%Y",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%m-%d-%Y",
    "%d-%m-%Y",
    "%Y年%m月%d日",
    "%d %b %Y",
    "%d-%b-%Y",
    "%b %d, %Y",
    "%d %B %Y",
    "%B %d, %Y",
    "%m/%d/%y",
    "%d/%m/%y",
    "%d.%m.%y",
)
YEARS = {"%Y": r"\d{4}", "%y": r"^\d{1,2}/\d{1,2}/\d\d(\D|$)|^\d\d\.\d\d\.\d\d(\D|$)"}  # 10.12.3 is a version
CLOCKS = (" %H:%M:%S%.f", " %H:%M", "T%H:%M:%S%.f", "T%H:%M", " %I:%M %p", " %I:%M:%S %p")
ZONE = "%#z"
ZONED = ("%Y-%m-%dT%H:%M:%S%.f" + ZONE, "%Y-%m-%d %H:%M:%S%.f" + ZONE)
FORMS = (*DATES, *(date + clock for date in DATES[:8] for clock in CLOCKS), *ZONED)
OPEN = ("%m/%d/%Y", "%m-%d-%Y", "%m/%d/%y")  # the day may come first as well
TRIED = 200  # cells by which the forms are found that a column may have
DECIMAL_COMMA = r"^[+-]?\d{1,3}(\.\d{3})+(,\d+)?$|^[+-]?\d+,\d+$|^[+-]?\d+$"
THOUSANDS = r"^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$|^[+-]?\d+(\.\d+)?$"
UNITS = r"[%€$£¥￥元円]"
IN_UNITS = rf"^[+-]?\s*{UNITS}?\s*[+-]?[\d.,]+\s*{UNITS}?$"
SPACED = r"^[+-]?\d{1,3}([ \u00a0\u202f'’]\d{3})*([.,]\d+)?$"


@dataclass(frozen=True)
class Typed:
    """A column in its type, and what to say of how it was read."""

    values: "polars.Series"
    kind: Kind
    note: str = ""
    form: str = ""  # how numbers or dates are written, where other columns might be read otherwise


def clean(column: "polars.Series", missing: Collection[str] = MISSING) -> "polars.Series":
    """Text stripped and what stands for nothing taken as missing; categories and booleans as text, numbers as they are.

    `missing` are the words that stand for nothing, in lower case.

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
    return column.set(column.str.to_lowercase().is_in(list(missing)), None)


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
    if (numbers := _numbers(column, given)) is not None:
        found = _finite(numbers.values)
        return replace(numbers, values=found.values, note="; ".join(n for n in (numbers.note, found.note) if n))
    if (dates := _dates(column, given)) is not None:
        return dates
    words = _words(given.head(2000)).mean()
    repeated = given.n_unique() <= 0.5 * len(given)
    if not repeated and isinstance(words, float) and words >= WORDY:
        return Typed(column, "text")
    return Typed(column, "category")


def convert(column: "polars.Series", kind: Kind, form: str = "") -> tuple["polars.Series", str]:
    """A cleaned column in a type, and a form, that are known from training; and what is read otherwise than there."""
    import polars

    note = ""
    if kind in ("number", "date") and column.dtype == polars.String and (given := column.drop_nulls()).len():
        known = _in_form(column, kind, form) if form else None
        if known is None or known.null_count() == len(column):  # in none: in another, then
            found = _numbers(column, given, mostly=0.5) if kind == "number" else _dates(column, given, mostly=0.5)
            if found is not None and form and found.form != form:
                note = f"{column.name}: {_said(found.form)}, in training {_said(form)}"
            known = None if found is None else found.values
        if known is None:
            known = _in_form(column, "number", "point") if kind == "number" else column.clear(len(column))
        column = known
    match kind:
        case "number":
            if column.dtype == polars.Duration:
                column = column.dt.total_seconds()
            elif column.dtype.is_temporal() or column.dtype.is_nested():
                column = polars.Series(column.name, [None] * len(column), dtype=polars.Float64)
            column = column.cast(polars.Float64)
            column = column.set(column.is_nan() | column.is_infinite(), None)
        case "date":
            if not column.dtype.is_temporal():
                column = polars.Series(column.name, [None] * len(column), dtype=polars.Datetime("us"))
            column = column.cast(polars.Datetime("us"), strict=False)
        case _:
            column = as_names(column)
    return column, note


def as_names(column: "polars.Series") -> "polars.Series":
    """Any column as names; whole numbers without their decimal point, so that 3 and 3.0 are one name."""
    import polars

    if column.dtype == polars.String:
        return column
    if column.dtype.is_nested():
        return polars.Series(column.name, [None] * len(column), dtype=polars.String)
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


def _numbers(column: "polars.Series", given: "polars.Series", mostly: float = MOSTLY) -> Typed | None:
    """The column as numbers where most of its cells are, in the one way of writing them that reads the most."""
    import polars

    name, unit = column.name, ""
    if bool(given.str.contains(IN_UNITS).all()) and bool(given.str.contains(UNITS).any()):
        column, unit = column.str.replace_all(rf"{UNITS}|\s", ""), f"{name}: read without its unit"
        given = column.drop_nulls()
    found = {"point": _in_form(column, "number", "point")}
    if found["point"].null_count() > column.null_count():
        head = given.head(TRIED)
        for form in ("thousands", "comma", "spaces"):
            if 2 * _in_form(head, "number", form).null_count() <= len(head):
                found[form] = _in_form(column, "number", form)
    form = min(found, key=lambda form: found[form].null_count())  # the first of the best
    values = found[form]
    lost = values.null_count() - column.null_count()
    if lost > (1 - mostly) * len(given):
        return None
    notes = [note for note in (unit, f"{name}: {_said(form)}" if form != "point" else "") if note]
    if lost:
        example = given.filter(values.filter(column.is_not_null()).is_null())[0]
        notes.append(f"{lost:,} cells of {name} are no numbers and count as missing, such as {example!r}")
    return Typed(values.cast(polars.Float64), "number", "; ".join(notes), "" if form == "point" else form)


def _dates(column: "polars.Series", given: "polars.Series", mostly: float = MOSTLY) -> Typed | None:
    """The column as points of time where most of its cells are, in the one form that reads the most."""
    head = given.head(TRIED)
    if 2 * int(head.str.contains(r"\d.*\D.*\d").sum()) < len(head):
        return None
    likely = [form for form in FORMS if 2 * _in_form(head, "date", form).null_count() <= len(head)]
    if not likely:
        return None
    found = {form: _in_form(column, "date", form) for form in likely}
    form = min(found, key=lambda form: found[form].null_count())
    values, notes, name = found[form], [], column.name
    lost = values.null_count() - column.null_count()
    if lost > (1 - mostly) * len(given):
        return None
    twin = found.get(form.replace("%m", "\0").replace("%d", "%m").replace("\0", "%d"))
    if form.startswith(OPEN) and twin is not None and twin.null_count() == values.null_count():
        notes.append(f"{name}: {_said(form)}, which its cells leave open")
    if lost:
        example = given.filter(values.filter(column.is_not_null()).is_null())[0]
        notes.append(f"{lost:,} cells of {name} are no dates and count as missing, such as {example!r}")
    return Typed(values, "date", "; ".join(notes), form)


def _in_form(column: "polars.Series", kind: Kind, form: str) -> "polars.Series":
    """Text as numbers or points of time that are written in one form, null where a cell isn't."""
    import polars

    if kind == "date":
        year = next(pattern for part, pattern in YEARS.items() if part in form)
        found = column.set(~column.str.contains(year), None).str.to_datetime(form, strict=False)
        return (found.dt.replace_time_zone(None) if form.endswith(ZONE) else found).cast(polars.Datetime("us"))
    text = column.str.replace_all(rf"{UNITS}|\s", "") if form != "spaces" else column
    match form:
        case "thousands":
            text = text.set(~text.str.contains(THOUSANDS), None).str.replace_all(",", "")
        case "comma":
            text = text.set(~text.str.contains(DECIMAL_COMMA), None)
            text = text.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
        case "spaces":
            text = text.set(~text.str.contains(SPACED), None).str.replace_all(r"[ \u00a0\u202f'’]", "")
            text = text.str.replace(",", ".", literal=True)
        case _:
            text = column
    return text.cast(polars.Float64, strict=False)


def _said(form: str) -> str:
    """A form in words.

    >>> _said("%m/%d/%Y"), _said("comma")
    ('dates as month/day/year', 'decimal commas')
    """
    numbers = {
        "": "decimal points",
        "comma": "decimal commas",
        "thousands": "commas set off thousands",
        "spaces": "spaces set off thousands",
    }
    if form in numbers:
        return numbers[form]
    date = re.split(r"[ T]%[HI]", form)[0]
    for part, word in (
        ("%Y", "year"),
        ("%y", "year"),
        ("%m", "month"),
        ("%d", "day"),
        ("%b", "month"),
        ("%B", "month"),
    ):
        date = date.replace(part, word)
    return f"dates as {date}"


def _words(text: "polars.Series") -> "polars.Series":
    """About how many words each cell has, also where none are set apart by spaces.

    >>> import polars
    >>> _words(polars.Series(["a red house", "房间很干净"])).to_list()
    [3.0, 3.5]
    """
    return text.str.split(" ").list.len() + text.str.count_matches(WRITTEN_SOLID) / 2


def check_names(wanted: Mapping[str, str], known: list[str], where: str) -> None:
    """DataError for the first name, by the flag that says it, that no column has."""
    from feedfwd.errors import nearest

    for name, flag in wanted.items():
        if name not in known:
            if re.fullmatch(r"\d+", name) and 1 <= int(name) <= len(known):
                hint = f"columns go by name: did you mean {known[int(name) - 1]!r}, column {name}?"
                raise DataError(f"{where} has no column {name!r}, which {flag} names", hint=hint)
            same = next((k for k in known if k.lower().split() == name.lower().split()), None)
            if same is not None:
                raise DataError(f"{where} has no column {name!r}, which {flag} names", hint=f"did you mean {same!r}?")
            shown = known if len(known) <= 40 else [*sorted(known, key=lambda k: _distance(k, name))[:40]]
            hint = nearest(name, shown)
            if any(re.fullmatch(r"[+-]?\d+(\.\d+)?", k) for k in known):
                hint += " (the first line has to name the columns)"
            raise DataError(f"{where} has no column {name!r}, which {flag} names", hint=hint)


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
