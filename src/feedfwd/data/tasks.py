"""What a source is made for, from the names of its columns and its first rows."""

from collections import Counter
from pathlib import Path
from typing import Any

from feedfwd.data.chats import TURNS, recognised
from feedfwd.data.docstrings import DOCSTRINGS
from feedfwd.data.pairs import CANDIDATES, NEGATIVE, QUERIES, RELEVANCES, by_name
from feedfwd.data.text_files import HEAD, read_columns
from feedfwd.data.text_tables import TARGET_NAMES, is_wordy, looks_like_labels
from feedfwd.errors import ConfigError

TASKS = ("classify", "regress", "embed", "rank", "instruct", "continue")
RATINGS = ("relevance", "score", "similarity", "rating", "grade", "is_duplicate")  # a label may be something else


def task_of(source: str, target: str | None = None) -> tuple[str, str] | None:
    """embed, rank or instruct, and the columns that say so; None for texts with labels or numbers.

    `target` is the column that the user named, if any. ConfigError where the columns fit several tasks.
    """
    if source == DOCSTRINGS and not Path(source).exists():
        return None
    columns = read_columns(source, most=HEAD).values
    form = _conversations(columns)
    if form in TURNS:
        return "instruct", f"column {form}"
    queries = QUERIES if by_name(columns, RATINGS) is None else (*QUERIES, "text", "sentence")
    pair = [name for names in (queries, CANDIDATES) if (name := by_name(columns, names)) and _is_text(columns[name])]
    negatives = [name for name in columns if NEGATIVE.fullmatch(name.lower())]
    rest = [name for name in columns if name not in (*pair, *negatives)]
    rating = by_name(rest, RELEVANCES) if target is None else target
    if len(pair) == 2 and rating in columns and _rates(rating, columns[rating]):
        return "rank", f"columns {', '.join([*pair, rating])}"
    if target is not None:
        return None
    label = by_name(rest, (*TARGET_NAMES, *RELEVANCES))
    answers = form.rpartition(" and ")[2]
    ways = {
        "embed": [*pair, *negatives] if len(pair) == 2 else [],
        "instruct": form.split(" and ") if form else [],
        "classify": [label or answers] if label or (form and looks_like_labels(columns[answers])) else [],
    }
    found = [task for task, names in ways.items() if names]
    if found in ([], ["classify"]):
        return None
    if len(found) > 1:
        what = f"{source} (columns: {', '.join(columns)}) can be learnt from as {' or '.join(found)}"
        raise ConfigError(what, hint=f"say which: --task {', --task '.join(found)}")
    return found[0], f"columns {', '.join(ways[found[0]])}"


def _conversations(columns: dict[str, list[Any]]) -> str:
    """The form that most rows have as conversations; "" where they are none."""
    forms: Counter[str] = Counter()
    rows = list(zip(*columns.values(), strict=True))
    for row in rows:
        try:
            forms[recognised(dict(zip(columns, row, strict=True)))[0]] += 1
        except ValueError:
            forms[""] += 1
    form, count = forms.most_common(1)[0]
    return form if 2 * count > len(rows) else ""


def _is_text(values: list[Any]) -> bool:
    return is_wordy(values) or any(isinstance(value, list) for value in values)


def _rates(name: str, values: list[Any]) -> bool:
    """Whether the column says how well a candidate answers."""
    each = {str(one) for value in values for one in (value if isinstance(value, list) else [value])}
    return each <= {"0", "1", "0.0", "1.0"} or (name.lower() in RATINGS and not is_wordy(values))
