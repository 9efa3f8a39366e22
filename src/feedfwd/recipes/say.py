"""What a recipe tells a person, as lines of text; pure functions of what was found."""

import json
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from feedfwd.config import FitConfig, Settings
from feedfwd.recipes.engine import way
from feedfwd.recipes.prepare import Part, Prepared
from feedfwd.report.words import count, duration, interval, number, score, word


def overview(p: Prepared) -> list[str]:
    """What was found, what will be trained and how: the first lines of a run, and of a dry run."""
    c, model = p.config, p.model
    parts = [f"{len(part.data):,} {name}" for name, part in parts_of(p).items()]
    sizes = "-".join(map(str, model.sizes))
    inits = ", ".join(dict.fromkeys(row.init for row in model.layers() if row.init))
    chosen = f" ({c.ffn.init})" if c.ffn.init == "auto" else ""
    rate = f"rate {c.optimizer.lr:.3g}" if c.optimizer.lr is not None else "rate by a range test"
    return [
        p.train.data.describe().replace(f"{len(p.train.data):,} ", "", 1) + f"; {', '.join(parts)}",
        f"network {sizes}, {c.ffn.activation}, init {inits}{chosen}: {model.parameter_count:,} parameters, "
        f"{count(model.flops)} FLOPs an example forward",
        f"{c.optimizer.name}, {rate}, {c.schedule.name}; {p.steps:,} updates of {p.examples_per_update:,} examples "
        f"({p.steps / p.updates_per_epoch:.4g} epochs)",
        f"{p.device}, {p.precision.name} ({p.precision.reason}); gradients by {way(p)}",
        *(f"note: {note}" for note in p.notes),
    ]


def cost(p: Prepared, per_step: float, per_evaluation: float, memory: int) -> list[str]:
    """What training would take, from a short trial; `memory` in bytes, beside torch itself."""
    flops = 3 * p.model.flops * p.examples_per_update * p.steps  # backward takes twice the forward's products
    evaluations = min(p.steps, 40) if p.validation is not None else 0
    minutes = p.config.minutes
    seconds = 60 * minutes if minutes is not None else per_step * p.steps + per_evaluation * evaluations
    return [
        f"about {duration(seconds)} of training ({number(1000 * per_step)} ms an update), {count(flops)} FLOPs in all, "
        f"{memory / 1e6:,.0f} MB of memory beside torch itself"
    ]


def parts_of(p: Prepared) -> dict[str, Part]:
    parts = {"train": p.train, "validation": p.validation, "test": p.test}
    return {name: part for name, part in parts.items() if part is not None}


def summary(result: Mapping[str, Any]) -> list[str]:
    """The last lines of a run: scores with their interval and n, and the time it took."""
    lines = []
    for part in ("validation", "test"):
        scores = result.get(part)
        if not scores:
            continue
        n = result["sizes"][part]
        found = result["test_details"]["intervals"] if part == "test" else {}
        words = [
            f"{word(name).label} {score(name, value, n)}"
            + (f" (95 %: {interval(name, found[name], n)})" if name == next(iter(scores)) and name in found else "")
            for name, value in scores.items()
        ]
        lines.append(f"{part} (n={n:,}): {', '.join(words)}")
    seconds = result["seconds"]
    lines.append(f"trained in {duration(seconds['train'])}, {result['examples_per_second']:,.0f} examples/s")
    return lines


def command(config: FitConfig, usual: FitConfig) -> str:
    """The command that repeats a run: what differs from `usual`, which the effort alone gives for the same data.

    >>> usual = FitConfig(source="digits")
    >>> command(FitConfig(source="digits", seed=3).with_("ffn.dropout", 0.1), usual)
    'feedfwd fit digits --seed 3 --set ffn.dropout=0.1'
    """
    words = ["feedfwd", "fit", config.source]
    for name in config.target:
        words += ["--target", name]
    for flag in ("test", "data_dir", "effort", "minutes", "seed"):
        value = getattr(config, flag)
        if value != type(config).model_fields[flag].default:
            words += [f"--{flag.replace('_', '-')}", str(value)]
    return shlex.join(words + said_sets(config, usual=usual))


def said_sets(config: Settings, always: Collection[str] = (), usual: Settings | None = None) -> list[str]:
    """`--set key=value` for each setting in a section that differs from `usual`, by default from its own default, and
    for those named.
    """
    sections = [(name, values) for name, values in config if isinstance(values, Settings)]
    return [word for name, values in sections for word in _sets(name, values, always, getattr(usual, name, None))]


def _sets(prefix: str, values: Settings, always: Collection[str], usual: Settings | None) -> list[str]:
    words = []
    for name, field in type(values).model_fields.items():
        value = getattr(values, name)
        expected = field.get_default(call_default_factory=True) if usual is None else getattr(usual, name)
        if isinstance(value, Settings):
            words += _sets(f"{prefix}.{name}", value, always, expected)
        elif value is not None and (f"{prefix}.{name}" in always or value != expected):
            text = value if isinstance(value, str) else json.dumps(value)
            words += ["--set", f"{prefix}.{name}={text}"]
    return words
