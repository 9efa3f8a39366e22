"""Widths at which variants cost the same, so that a comparison is of structures and not of sizes."""

from collections.abc import Callable
from typing import Any, Literal

import torch

from feedfwd.config import FitConfig, Recipe
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.errors import ConfigError
from feedfwd.ffn.accounting import equal_hidden
from feedfwd.recipes.predictor import build_model
from feedfwd.recipes.prepare import parts, prepare
from feedfwd.recipes.text import shape

FORM = ("model.", "bag.", "size", "ffn.hidden", "effort", "minutes")  # what a reference takes over from its variant


def matched(config: Recipe, reference: Recipe, by: str) -> dict[str, Any]:
    """The widths, by dotted key, at which `config` costs what `reference` does: as near as whole numbers come."""
    if isinstance(config, FitConfig) and isinstance(reference, FitConfig):
        return {"model.hidden": _hidden_sizes(config, reference, by)}
    if isinstance(config, PretrainConfig) and isinstance(reference, PretrainConfig):
        own, other = config.over(shape(config)), reference.over(shape(reference))
        kind: Literal["flops", "parameters"] = "flops" if by == "flops" else "parameters"
        width = equal_hidden(own.ffn.spec(), other.ffn.spec(), own.model.width, other.ffn.hidden, kind)
        return {"ffn.hidden": width}
    raise ConfigError(f"--match {by} can't be used with finetune", hint="--match seconds gives every variant as long")


def _hidden_sizes(config: FitConfig, reference: FitConfig, by: str) -> list[int]:
    with torch.random.fork_rng():
        prepared = prepare(reference)
        preprocess, sizes = prepared.predictor.preprocess, list(prepared.config.model.hidden)
        target = prepared.model.flops if by == "flops" else prepared.model.parameter_count

        settled = parts(config).config  # with the norm and the members that its effort means

        def cost(hidden: list[int]) -> int:
            # what a start costs to draw has no part in it
            model = build_model(settled.with_("model.hidden", hidden).with_("ffn.init", "zero"), preprocess)
            return model.flops if by == "flops" else model.parameter_count

        return nearest_sizes(sizes, target, cost)


def nearest_sizes(sizes: list[int], target: int, cost: Callable[[list[int]], int]) -> list[int]:
    """`sizes`, all scaled alike and then one by one, so that `cost`, which grows with each, comes nearest to `target`.

    >>> nearest_sizes([128, 128], 64 * 128 + 128 * 128, lambda h: 2 * (64 * h[0] + h[0] * h[1]))
    [83, 84]
    """

    def scaled(by: float) -> list[int]:
        return [max(1, round(size * by)) for size in sizes]

    low, high = 0.0, 1.0
    while cost(scaled(high)) < target and high < 1024:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        if scaled(low) == scaled(middle) == scaled(high):
            break
        low, high = (middle, high) if cost(scaled(middle)) < target else (low, middle)
    best = min((scaled(low), scaled(high)), key=lambda h: abs(cost(h) - target))
    improved = True
    while improved:  # one layer a step wider or narrower, as long as that comes nearer
        near = [[*best[:i], best[i] + d, *best[i + 1 :]] for i in range(len(best)) for d in (-1, 1) if best[i] + d > 0]
        better = min(near, key=lambda h: abs(cost(h) - target))
        improved = abs(cost(better) - target) < abs(cost(best) - target)
        best = better if improved else best
    return best
