"""What `advise` tries beside the defaults: one change at a time, each near what the preset gives."""

from collections.abc import Iterator, Mapping
from typing import Any

from feedfwd.config import FitConfig, parse
from feedfwd.study.space import Choice

Levels = dict[str, dict[str, Any]]  # by the level's name: the settings that it means, by dotted key


def choices(said: Mapping[str, Any], defaults: FitConfig, *, table: bool) -> list[Choice]:
    """The choices that are open: `said` is what the user settled, nested; `defaults` all settings, the preset's too.

    >>> found = choices({"ffn": {"activation": "relu"}}, FitConfig(source="iris"), table=False)
    >>> [choice.name for choice in found]
    ['structure', 'norm', 'rate', 'length', 'dropout', 'decay', 'batch']
    """
    settled = {f"{section}.{key}" for section, of in said.items() if isinstance(of, Mapping) for key in of}
    found = []
    for name, levels in _all(defaults, table):
        same = {level for level, of in levels.items() if all(_value(defaults, k) == v for k, v in of.items())}
        kept = {level: of for level, of in levels.items() if level not in same and not settled & of.keys()}
        if kept:
            found.append(Choice(name, kept))
    return found


def in_turn(open_choices: list[Choice]) -> Levels:
    """All levels in the order of trying: the first of every choice, then the second of every choice, and so on."""
    longest = max((len(choice.levels) for choice in open_choices), default=0)
    turns = (list(choice.levels.items())[i : i + 1] for i in range(longest) for choice in open_choices)
    return dict(pair for turn in turns for pair in turn)


def _all(c: FitConfig, table: bool) -> Iterator[tuple[str, Levels]]:
    hidden = list(c.model.hidden)
    wide, narrow = [2 * size for size in hidden], [max(1, size // 2) for size in hidden]
    shapes = {_shape(sizes): {"model.hidden": sizes} for sizes in (wide, narrow, [*hidden, hidden[-1]], hidden[:1])}
    members = {"8 members": {"model.members": 8}} if table else {}  # it has gained the most wherever it was tried
    yield "structure", {**members, **shapes, "residual": {"model.residual": True}}
    yield "activation", {name: {"ffn.activation": name} for name in ("gelu", "swiglu", "silu", "tanh")}
    yield "norm", {f"{norm} norm": {"model.norm": norm} for norm in ("layer", "batch")}
    if table:
        yield "numbers", {f"{form} numbers": {"model.numbers": form} for form in ("periodic", "plain")}
    if c.optimizer.lr is None:
        yield "rate", {f"rate {lr:g}": {"optimizer.lr": lr} for lr in (0.003, 0.001)}
    else:
        lrs = [float(f"{c.optimizer.lr * by:.2g}") for by in (2.0, 0.5)]
        yield "rate", {f"rate {lr:g}": {"optimizer.lr": lr} for lr in lrs}
    if c.train.steps is None and c.minutes is None:
        yield "length", {f"{e:g} epochs": {"train.epochs": e} for e in (2 * c.train.epochs, c.train.epochs / 2)}
    dropouts = (0.4, 0.0) if c.ffn.dropout >= 0.2 else (0.3, 0.0)
    yield "dropout", {f"dropout {p:g}": {"ffn.dropout": p} for p in dropouts}
    yield "decay", {f"weight decay {w:g}": {"optimizer.weight_decay": w} for w in (0.2, 0.0)}
    sizes = (2 * c.train.batch_size, max(1, c.train.batch_size // 2))
    yield "batch", {f"batch {n}": {"train.batch_size": n} for n in sizes}


def _shape(sizes: list[int]) -> str:
    return "hidden " + " × ".join(map(str, sizes))


def _value(config: FitConfig, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def combined(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of several levels of different choices together."""
    return {key: value for of in parts for key, value in of.items()}


def with_all(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with dotted ones over them, validated."""
    config = parse(FitConfig, base)
    for key, value in changes.items():
        config = config.with_(key, value)
    return config.said()
