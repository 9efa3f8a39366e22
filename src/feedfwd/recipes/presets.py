"""What an effort means for the data at hand: the settings beneath those the user gives.

Each was chosen on held-back training data, never on a test part; LOG.md says what was tried.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Facts:
    """What a preset may know of the data."""

    examples: int
    image: bool
    classes: int  # 0: regression


def preset(effort: str, facts: Facts) -> dict[str, Any]:
    """Settings by dotted key for an effort."""
    match effort:
        case "quick":
            return quick(facts)
        case "best":
            return best(facts)
        case _:
            return standard(facts)


def epochs_for(examples: int, shown: int, most: int) -> float:
    """As many epochs as show `shown` examples in all, at least 4 and at most `most`.

    >>> epochs_for(60_000, shown=360_000, most=60), epochs_for(150, shown=360_000, most=60)
    (6.0, 60.0)
    """
    return float(min(most, max(4, round(shown / examples))))


def batch_for(examples: int, largest: int) -> int:
    """A power of two that leaves about 50 updates an epoch, within 16 … largest.

    >>> batch_for(1437, 256), batch_for(60_000, 256)
    (16, 256)
    """
    size = 16
    while size * 2 <= largest and size * 2 * 50 <= examples:
        size *= 2
    return size


def quick(facts: Facts) -> dict[str, Any]:
    """A good model in seconds: the article's structure, one cycle of the rate, every training example used."""
    return {
        "data.validation": 0.0,
        "model.hidden": [128, 128],
        "optimizer.name": "adam",
        "optimizer.lr": 0.003,
        "schedule.name": "one_cycle",
        "train.batch_size": batch_for(facts.examples, 256),
        "train.epochs": epochs_for(facts.examples, shown=360_000, most=60),
    }


def standard(facts: Facts) -> dict[str, Any]:
    """A larger network, regularised, watched on validation data, the rate found by a range test."""
    return {
        "data.validation": 0.1,
        "model.hidden": [256, 256],
        "ffn.dropout": 0.1,
        "optimizer.name": "adamw",
        "optimizer.weight_decay": 0.01,
        "schedule.name": "one_cycle",
        "train.batch_size": batch_for(facts.examples, 256),
        "train.epochs": epochs_for(facts.examples, shown=1_200_000, most=100),
        "train.ema": 0.99,
    }


def best(facts: Facts) -> dict[str, Any]:
    """As good as a plain network gets within minutes."""
    return standard(facts)
