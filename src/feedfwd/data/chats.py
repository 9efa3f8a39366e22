"""Conversations to learn from: JSON lines, JSON, Parquet or CSV, in the forms that the field's data sets come in."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from feedfwd.data.documents import TOLERATED
from feedfwd.data.text_files import read_records
from feedfwd.errors import DataError

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip
TURNS = ("messages", "conversations", "conversation", "chat")
ASKED = ("prompt", "instruction", "question", "query", "input", "user")
ANSWERED = ("completion", "response", "output", "answer", "chosen", "assistant")


class Turn(NamedTuple):
    """What one side said."""

    role: str  # system, user or assistant
    text: str


Chat = tuple[Turn, ...]


@dataclass(frozen=True)
class Chats:
    """Conversations, each with an answer to learn; their places in the file, and what to know of how they were read."""

    name: str
    chats: tuple[Chat, ...]
    rows: tuple[int, ...]
    form: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.chats)


def read_chats(source: str) -> Chats:
    """The conversations of a source, whose form is recognised.

    It is `messages` or `conversations` of turns (ShareGPT), Alpaca's `instruction`, `input` and `output`, or any prompt
    with its completion. DataError for what can't be used.
    """
    path, (rows, notes) = Path(source).expanduser(), read_records(source)
    found: list[Chat] = []
    places: list[int] = []
    broken: list[str] = []
    forms: Counter[str] = Counter()
    for row, value in enumerate(rows):
        try:
            form, chat = recognised(value)
        except ValueError as error:
            broken.append(f"row {row + 1}: {error}")
            continue
        forms[form] += 1
        found.append(chat)
        places.append(row)
    if not rows:
        raise DataError(f"{path} has no rows", hint="give a conversation a row")
    if not found or len(broken) > TOLERATED * len(rows):
        what = f"{path}: {len(broken):,} of {len(rows):,} rows are no conversation ({broken[0]})"
        hint = (
            'a row looks like {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
        )
        raise DataError(what, hint=f'{hint} or {{"prompt": "…", "completion": "…"}}')
    notes += [f"conversations as {form}" for form, _ in forms.most_common()]
    if broken:
        notes.append(f"{len(broken):,} rows left out ({broken[0]})")
    return Chats(path.resolve().name, tuple(found), tuple(places), forms.most_common(1)[0][0], tuple(notes))


def recognised(row: Any) -> tuple[str, Chat]:
    """The form of a row, and its conversation; ValueError saying what is missing.

    >>> recognised({"instruction": "Add", "input": "2 and 3", "output": "5"})
    ('instruction and output', (Turn(role='user', text='Add\\n\\n2 and 3'), Turn(role='assistant', text='5')))
    """
    if not isinstance(row, Mapping):
        raise ValueError("no JSON object")
    for name in TURNS:
        if row.get(name) is not None:
            return name, _turns(row[name], row.get("system"))
    names = {str(name).lower(): name for name in row}
    asked = next((names[name] for name in ASKED if name in names), None)
    answered = next((names[name] for name in ANSWERED if name in names), None)
    if asked is None or answered is None:
        raise ValueError(
            f"neither messages nor a prompt with its answer among {', '.join(map(str, row)) or 'no names'}"
        )
    if isinstance(row[asked], Sequence) and not isinstance(row[asked], str):  # both halves as messages
        return f"{asked} and {answered}", _turns([*row[asked], *(row[answered] or ())], row.get("system"))
    prompt = _text(row[asked], str(asked))
    if asked == names.get("instruction") and "input" in names and (more := row[names["input"]]):
        prompt += "\n\n" + _text(more, "input")
    turns = [Turn("user", prompt), Turn("assistant", _text(row[answered], str(answered)))]
    if row.get("system"):
        turns.insert(0, Turn("system", _text(row["system"], "system")))
    return f"{asked} and {answered}", tuple(turns)


def _turns(value: Any, system: Any) -> Chat:
    if isinstance(value, str):  # tables hold them as JSON
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("its turns are no JSON") from None
    if not isinstance(value, Sequence) or not value:
        raise ValueError("it has no turns")
    turns = [Turn("system", _text(system, "system"))] if system else []
    for turn in value:
        if not isinstance(turn, Mapping):
            raise ValueError("a turn has no role")
        said = turn.get("role", turn.get("from"))
        role = ROLES.get(str(said).lower())
        if role is None:
            raise ValueError(f"a turn's role is {said!r}, which is none of {', '.join(sorted(ROLES))}")
        turns.append(Turn(role, _text(turn.get("content", turn.get("value")), f"{role}'s turn")))
    if not any(turn.role == "assistant" for turn in turns):
        raise ValueError("the assistant says nothing in it")
    while turns[-1].role != "assistant":  # a question without answer teaches nothing
        turns.pop()
    return tuple(turns)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} is empty" if value in (None, "") or isinstance(value, str) else f"{what} is no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is no Unicode text") from None
    return value.strip()
