"""What an effort means for the data at hand: the settings beneath those the user gives.

Each was chosen on held-back training data, never on a test part; LOG.md says what was tried.
"""

from dataclasses import dataclass
from typing import Any

from feedfwd.config import FitConfig
from feedfwd.ffn.spec import is_gated

FEW = 20_000  # examples below which a data set is small


@dataclass(frozen=True)
class Facts:
    """What a preset may know of the data."""

    examples: int
    image: int | None  # the shorter side in pixels, where the examples are images
    augment: bool = True  # whether images may be deformed
    table: bool = False  # rows with named columns
    regress: bool = False  # numbers to predict


def over_preset(config: FitConfig, facts: Facts) -> FitConfig:
    """The settings over what their effort means, and over what only all of them together ask for.

    A gate multiplies what a layer gets by itself: without a norm between them, sizes are squared from one gated layer
    to the next, and grow out of bounds or fade. A table's numbers are bounded, and two layers do. A residual network is
    normalised anyway.
    """
    config = config.over(preset(config.effort, facts))
    m = config.model
    gated = is_gated(config.ffn.kind, config.ffn.activation) and not m.residual
    return config.over({"model.norm": "layer"}) if gated and len(m.hidden) > 1 + facts.table else config


def preset(effort: str, facts: Facts) -> dict[str, Any]:
    """Settings by dotted key for an effort."""
    if facts.table:
        return table(effort, facts)
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
    found = {
        "data.validation": 0.0,
        "model.hidden": [128, 128],
        "optimizer.name": "adamw",
        "optimizer.lr": 0.003,
        "optimizer.weight_decay": 0.05,
        "schedule.name": "one_cycle",
        "train.batch_size": batch_for(facts.examples, 256),
        "train.epochs": epochs_for(facts.examples, shown=300_000, most=60),
        "train.save_every": 10_000,  # fewer updates are sooner done again than saved
    }
    if facts.examples < FEW:
        return found | few(facts)
    if facts.image is None or not facts.augment:
        return found
    return found | {
        "data.shift": max(1, facts.image // 28),
        "ffn.init": "lecun_normal",
        "loss.label_smoothing": 0.05,
        "optimizer.lr": 0.006,
        "optimizer.weight_decay": 0.0,
        "schedule.warmup": 0.2,
    }


def few(facts: Facts) -> dict[str, Any]:
    """Small data sets are learnt by heart in no time: vary the examples instead."""
    if facts.image is None or not facts.augment:
        return {"ffn.dropout": 0.2, "data.noise": 0.1}
    return {"data.noise": 0.2, **deformed(facts.image, rotation=8.0)}


def deformed(size: int, rotation: float) -> dict[str, Any]:
    """Deformations for images of `size` pixels a side: what is a small shift grows with them."""
    return {
        "data.deform.rotation": rotation,
        "data.deform.scale": rotation / 100,
        "data.deform.shear": 0.6 * rotation,
        "data.deform.shift": 0.05 * size,
    }


def standard(facts: Facts) -> dict[str, Any]:
    """A larger network, regularised, watched on validation data, the rate found by a range test."""
    return {
        "data.validation": 0.1,
        "model.hidden": [256, 256],
        "ffn.dropout": 0.2,
        "optimizer.name": "adamw",
        "optimizer.weight_decay": 0.05,
        "schedule.name": "one_cycle",
        "train.batch_size": batch_for(facts.examples, 256),
        "train.epochs": epochs_for(facts.examples, shown=1_200_000, most=100),
        "train.ema": 0.99,
    } | (few(facts) if facts.examples < FEW else {})


def best(facts: Facts) -> dict[str, Any]:
    """As good as a plain network gets within minutes: wide, batch-normalised, long, on all training examples.

    Images are deformed (rotation, scale, shear, shift, elastic: Cireşan et al. 2010, arXiv 1003.0358). Without
    deformations two others take their place: Gaussian noise on every layer's input (Rasmus et al. 2015, arXiv
    1507.02672) and the worst small change of each image (Goodfellow et al. 2015, arXiv 1412.6572).
    """
    if facts.image is None:
        return standard(facts) | {
            "model.hidden": [512, 512],
            "train.epochs": epochs_for(facts.examples, shown=4_000_000, most=200),
        }
    common = {
        "data.validation": 0.0,
        "model.norm": "batch",
        "optimizer.name": "adamw",
        "optimizer.lr": 0.002,
        "schedule.name": "cosine",
        "schedule.warmup": 0.1,
        "train.batch_size": batch_for(facts.examples, 512),
    }
    if facts.augment:
        return common | {
            "model.hidden": [1500, 1000, 500],
            "train.epochs": epochs_for(facts.examples, shown=10_000_000, most=300),
            **deformed(facts.image, rotation=15.0),
            "data.deform.elastic": facts.image / 28,
            "data.deform.smoothness": facts.image / 7,
        }
    return common | {
        "model.hidden": [1024, 1024],
        "model.noise": 0.3,
        "data.noise": 0.6,
        "train.adversarial": 0.3,
        "train.batch_size": batch_for(facts.examples, 256),
        "train.epochs": epochs_for(facts.examples, shown=4_200_000, most=300),
    }


def table(effort: str, facts: Facts) -> dict[str, Any]:
    """Tables: embedded columns; the best effort is a small ensemble in one network."""
    common = {
        "data.validation": 0.1,
        "model.hidden": [256, 256],
        "model.members": 1,
        "ffn.dropout": 0.1,
        "optimizer.name": "adamw",
        "optimizer.lr": 0.002,
        "optimizer.weight_decay": 0.02,
        "schedule.name": "one_cycle",
        "train.batch_size": batch_for(facts.examples, 256),
        "train.epochs": epochs_for(facts.examples, shown=800_000, most=60),
        "train.patience": 100,  # to the end: the weights of the best evaluation are kept
    }
    match effort:
        case "quick":
            return common | {
                "model.hidden": [128, 128],
                "train.epochs": epochs_for(facts.examples, shown=200_000, most=20),
            }
        case "best":
            return common | {
                "model.members": 16,
                "optimizer.lr": 0.004,
                "train.epochs": epochs_for(facts.examples, shown=1_240_000 if facts.regress else 650_000, most=60),
            }
        case _:
            regress = {"ffn.dropout": 0.2, "train.epochs": epochs_for(facts.examples, shown=1_240_000, most=60)}
            return common | (regress if facts.regress else {})
