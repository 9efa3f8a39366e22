"""The names of classes as texts of them: where texts are few, a name in words tells as much as one of them."""

import re
from collections.abc import Sequence
from dataclasses import replace

import torch

from feedfwd.data.dataset import Dataset
from feedfwd.data.ngrams import is_unspaced
from feedfwd.errors import ConfigError
from feedfwd.recipes.goals import Goal

LETTERS = 3  # that a word of a name has at least
APART = re.compile(r"[\W_]+")
HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")


def in_words(name: str) -> str | None:
    """A class's name as a text; None where it says nothing: a number, a letter, a code.

    >>> in_words("card_arrival"), in_words("CardArrival"), in_words("退款"), in_words("B-12")
    ('card arrival', 'Card Arrival', '退款', None)
    """
    text = APART.sub(" ", HUMP.sub(" ", name)).strip()
    letters = max((sum(c.isalpha() for c in word) for word in text.split()), default=0)
    return text if letters >= LETTERS or sum(map(is_unspaced, text)) > 1 else None


def names_of(classes: Sequence[str]) -> list[str]:
    """Each class's name as a text; none at all where some say nothing, or the same as another's.

    >>> names_of(["lost_card", "fee"]), names_of(["class 1", "class 2"]), names_of(["fee", "7"])
    (['lost card', 'fee'], [], [])
    """
    found = [in_words(name) for name in classes]
    texts = [text for text in found if text is not None]
    bare = {re.sub(r"\d+", "", text).strip().casefold() for text in texts}
    return texts if len(bare) == len(found) else []


def names_read(asked: bool | None, goal: Goal, few: bool) -> list[str]:
    """Those that are texts: where it is `asked` for, or nothing is said and texts are `few`."""
    if goal.kind != "label":
        if asked:
            raise ConfigError("data.names is for texts of one label each", hint="leave it out")
        return []
    if asked is False or (asked is None and not few):
        return []
    names = names_of(goal.classes)
    if asked and not names:
        what = f"data.names: some of the classes' names say nothing, or the same: {', '.join(goal.classes[:5])}"
        raise ConfigError(what, hint="leave it out, or give the classes names in words")
    return names


def with_names(texts: tuple[str, ...], data: Dataset, names: Sequence[str]) -> tuple[tuple[str, ...], Dataset]:
    """Training texts with a name of each class behind them; these have no place in the file: −1."""
    places = torch.arange(len(data)) if data.rows is None else data.rows
    whole = replace(
        data,
        inputs=torch.cat([data.inputs, data.inputs[:1].expand(len(names), *data.inputs.shape[1:])]),
        targets=torch.cat([data.targets, torch.arange(len(names)).to(data.targets)]),
        rows=torch.cat([places, torch.full((len(names),), -1).to(places)]),
    )
    return (*texts, *names), whole
