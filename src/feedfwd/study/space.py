"""What is varied: choices with named levels, or ranges of numbers, and the settings that each combination means."""

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import log, prod
from typing import Any

from feedfwd.config import Recipe, keys
from feedfwd.errors import ConfigError

MOST = 1000  # variants of a grid
# What decides which examples are scored, or how often: the study's own business
FIXED = (
    "source",
    "sources",
    "test",
    "target",
    "seed",
    "data_dir",
    "data.split",
    "data.task",
    "data.test",
    "data.folds",
    "data.fold",
    "data.test_seed",
)
SPLIT = ("data.validation", "train.threads", "train.device")


@dataclass(frozen=True, slots=True)
class Choice:
    """Named levels, each with the settings that it means."""

    name: str
    levels: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Range:
    """A number between two ends; where they are of one sign and far apart, evenly on the logarithmic scale."""

    name: str
    low: float
    high: float

    @property
    def logarithmic(self) -> bool:
        return self.low > 0 and self.high >= 10 * self.low

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def third(self, value: float) -> str:
        """Which third of the range: what the worth of a number is told by."""
        low, high, x = (log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        place = min(2, int(3 * (x - low) / (high - low)))
        ends = [low + (high - low) * k / 3 for k in (place, place + 1)]
        shown = [f"{(2.718281828459045**e if self.logarithmic else e):.3g}" for e in ends]
        return f"{shown[0]} – {shown[1]}"


Axis = Choice | Range
Variant = dict[str, str | float]  # by axis: the level's name, or the number


def parse_vary(pairs: Iterable[str], kind: type[Recipe]) -> list[Axis]:
    """`KEY=A,B,C` or `KEY=LOW..HIGH` as axes; ConfigError for what is no setting, offering the nearest.

    >>> from feedfwd.config import FitConfig
    >>> [a] = parse_vary(["model.hidden=[128],[256,256]"], FitConfig)
    >>> list(a.levels.values())
    [{'model.hidden': [128]}, {'model.hidden': [256, 256]}]
    """
    axes: list[Axis] = []
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip()
        if not equals or not name or not text.strip():
            raise ConfigError(
                f"--vary {pair!r} names nothing to vary",
                hint="write --vary key=a,b, as in --vary ffn.activation=relu,gelu",
            )
        _known(name, kind)
        if any(axis.name == name for axis in axes):
            raise ConfigError(f"--vary {name} is given twice", hint=f"name all its values in one: --vary {name}=a,b,c")
        axes.append(_range(name, text) or _choice(name, text))
    if not axes:
        raise ConfigError("nothing to compare", hint="say what to vary, as in --vary ffn.activation=relu,gelu,swiglu")
    if all(isinstance(axis, Choice) and len(axis.levels) == 1 for axis in axes):
        raise ConfigError(f"--vary {axes[0].name} has one value only", hint="a comparison needs at least two")
    return axes


def _known(name: str, kind: type[Recipe]) -> None:
    if name in FIXED:
        raise ConfigError(
            f"{name} can't be varied: every variant sees the same data and splits",
            hint="--seeds says how often each is trained",
        )
    if name in SPLIT:
        raise ConfigError(f"{name} can't be varied: it would change how a variant is scored", hint="use --set for all")
    if name not in keys(kind):
        kind.model_construct().with_(name, None)  # raises, offering the nearest


def _range(name: str, text: str) -> Range | None:
    low, dots, high = text.strip().partition("..")
    if not dots:
        return None
    try:
        ends = [tomllib.loads(f"x = {end.strip()}")["x"] for end in (low, high)]
    except tomllib.TOMLDecodeError:
        return None
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        return None
    if not ends[0] < ends[1]:
        raise ConfigError(
            f"--vary {name}={text.strip()} is no range", hint="write it as LOW..HIGH, the lower end first"
        )
    return Range(name, *ends)


def _choice(name: str, text: str) -> Choice:
    levels: dict[str, dict[str, Any]] = {}
    for word in _split(text):
        value = _value(word)
        label = value if isinstance(value, str) else f"{name.rsplit('.', 1)[-1]}={json.dumps(value)}"
        if label in levels:
            raise ConfigError(f"--vary {name} names {word} twice", hint="every value once")
        levels[label] = {name: value}
    return Choice(name, levels)


def _split(text: str) -> list[str]:
    """At commas outside brackets and quotes.

    >>> _split('[128],[256, 256], "a,b"')
    ['[128]', '[256, 256]', '"a,b"']
    """
    parts, depth, quote, start = [], 0, "", 0
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        elif c in "[{":
            depth += 1
        elif c in "]}":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _value(word: str) -> Any:
    try:
        return tomllib.loads(f"x = {word}")["x"]
    except tomllib.TOMLDecodeError:
        return word


def grid(axes: Sequence[Axis]) -> list[Variant]:
    """Every combination; ranges have none, so they are for the searches."""
    for axis in axes:
        if isinstance(axis, Range):
            raise ConfigError(
                f"--vary {axis.name} is a range, and a grid needs values",
                hint="name the values, or search it: --search random, tpe or halving",
            )
    choices = [list(axis.levels) for axis in axes if isinstance(axis, Choice)]
    if prod(map(len, choices)) > MOST:
        raise ConfigError(
            f"{prod(map(len, choices)):,} combinations are too many to try each",
            hint="let --search random, tpe or halving try some: --trials says how many",
        )
    names = [axis.name for axis in axes]
    return [dict(zip(names, levels, strict=True)) for levels in product(*choices)]


def settings(axes: Sequence[Axis], variant: Variant) -> dict[str, Any]:
    """By dotted key: what a variant means."""
    found: dict[str, Any] = {}
    for axis in axes:
        value = variant[axis.name]
        found |= {axis.name: value} if isinstance(axis, Range) else axis.levels[str(value)]
    return found


def label(axes: Sequence[Axis], variant: Variant) -> str:
    """How a variant is called; what has one level only is left out."""
    words = []
    for axis in axes:
        value = variant[axis.name]
        if isinstance(axis, Range):
            words.append(f"{axis.name.rsplit('.', 1)[-1]}={value:.3g}")
        elif len(axis.levels) > 1 and axis.levels[str(value)]:
            words.append(str(value))
    return ", ".join(words) or "defaults"


def levels(axes: Sequence[Axis], variant: Variant) -> dict[str, str]:
    """Which level of each axis; of a range, which third."""
    return {
        axis.name: axis.third(float(variant[axis.name])) if isinstance(axis, Range) else str(variant[axis.name])
        for axis in axes
    }


def to_json(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    return [asdict(axis) for axis in axes]


def from_json(rows: Iterable[Mapping[str, Any]]) -> list[Axis]:
    return [Choice(**row) if "levels" in row else Range(**row) for row in rows]
