"""What a study's page draws: intervals, curves, what each choice was worth, cost against score."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from feedfwd.report.figures import FIRST, MUTED, RULE, SECOND, Figure, page_svg
from feedfwd.report.words import count, word

MOST = 16  # variants shown by name
LINES = 5  # curves


def intervals(variants: Sequence[dict[str, Any]], score: str) -> Figure:
    """Mean and interval of each variant, the best on top; one dot a seed."""
    shown = list(variants)[:MOST]

    def draw(axes: Any) -> None:
        for y, v in enumerate(reversed(shown)):
            colour = SECOND if v is shown[0] else FIRST
            mean = v["mean"]
            axes.plot(v["scores"][score], [y] * len(v["seeds"]), "o", color=MUTED, markersize=2.6, alpha=0.55)
            if mean["low"] is not None:
                axes.plot(ends(score, mean), [y, y], color=colour, linewidth=2)
            axes.plot([mean["mean"]], [y], "o", color=colour, markersize=5.5, markeredgewidth=0)
            axes.annotate(
                v["label"], (0, y), (0, 6), xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=8.5
            )
        axes.set_yticks([])
        axes.set_ylim(-0.6, len(shown) - 0.2)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        _scores(axes, score, "x")

    svg = page_svg(draw, "intervals", f"{word(score).label} of each variant", height=0.7 + 0.36 * len(shown))
    key = (("--second", "best"), ("--first", "others: mean and 95% interval"), ("--muted", "a seed"))
    return Figure(f"Validation {word(score).label}", svg, key)


def gains(worths: Sequence[dict[str, Any]], score: str, title: str) -> Figure:
    """Gain of each change over the defaults with its interval; left of the line it is worse."""
    shown = [w for w in worths if w["gain"] and w["gain"]["low"] is not None][:MOST]

    def draw(axes: Any) -> None:
        axes.axvline(0, color=MUTED, linewidth=1)
        for y, w in enumerate(reversed(shown)):
            g = w["gain"]
            colour = SECOND if g["low"] > 0 else FIRST
            axes.plot([g["low"], g["high"]], [y, y], color=colour, linewidth=2)
            axes.plot([g["mean"]], [y], "o", color=colour, markersize=5, markeredgewidth=0)
            axes.annotate(
                w["label"], (0, y), (0, 6), xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=8.5
            )
        axes.set_yticks([])
        axes.set_ylim(-0.6, len(shown) - 0.2)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        _scores(axes, score, "x")

    svg = page_svg(draw, "gains-" + title.split()[0].lower(), title, height=0.7 + 0.36 * len(shown))
    return Figure(title, svg, (("--first", "mean and 95% interval"), ("--second", "above zero")))


def curves(variants: Sequence[dict[str, Any]], score: str) -> Figure | None:
    """Validation score by share of the training: the best in colour, the next ones in grey."""
    lines = []
    for v in list(variants)[:LINES]:
        ends = [c for c in v["curves"] if c]
        if not ends or any(y is None for c in ends for _, y in c):
            return None
        grid = np.linspace(max(c[0][0] for c in ends), 1, 60)
        lines.append((grid, np.mean([np.interp(grid, [x for x, _ in c], [y for _, y in c]) for c in ends], axis=0)))
    if not lines:
        return None

    def draw(axes: Any) -> None:
        for k, (x, y) in reversed(list(enumerate(lines))):
            colour, width = (SECOND, 1.8) if k == 0 else (FIRST, 1.4) if k == 1 else (MUTED, 1.0)
            axes.plot(x, y, color=colour, linewidth=width, alpha=1.0 if k < 2 else 0.6)
        last = [y[len(y) // 4 :] for _, y in lines]  # the first steps would press the rest flat
        low, high = min(y.min() for y in last), max(y.max() for y in last)
        room = 0.15 * max(high - low, 1e-9)
        axes.set_ylim(low - room, high + room)
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g}%")
        axes.set_xlabel("of the training")
        _scores(axes, score, "y")

    key = [("--second", variants[0]["label"])]
    if len(lines) > 1:
        key.append(("--first", variants[1]["label"]))
    if len(lines) > 2:
        key.append(("--muted", "the next"))
    svg = page_svg(draw, "curves", f"validation {word(score).label} while training")
    return Figure("While training", svg, tuple(key))


def effect(found: dict[str, Any], score: str, number: int) -> Figure:
    """Mean of each level over all else, with intervals where every combination was tried."""
    levels = list(found["levels"].items())

    def draw(axes: Any) -> None:
        for x, (_, e) in enumerate(levels):
            if e["low"] is not None and e["n"] > 1:
                axes.plot([x, x], ends(score, e), color=FIRST, linewidth=2, alpha=0.5)
            axes.plot([x], [e["mean"]], "o", color=FIRST, markersize=5.5, markeredgewidth=0)
        few = len(levels) <= 5
        names = [name if len(name) <= (60 // len(levels)) else name[: 60 // len(levels)] + "…" for name, _ in levels]
        axes.set_xticks(range(len(levels)), names, rotation=0 if few else 30, ha="center" if few else "right")
        axes.set_xlim(-0.5, len(levels) - 0.5)
        _scores(axes, score, "y")

    few = len(levels) <= 5
    svg = page_svg(draw, f"effect-{number}", f"{word(score).label} by {found['name']}", height=2.2 if few else 2.6)
    return Figure(found["name"], svg)


def cost(variants: Sequence[dict[str, Any]], score: str, higher: bool, by: str) -> Figure:
    """Score against seconds or parameters; the front joins what nothing cheaper is better than."""
    points = [(v[by], v["mean"]["mean"], v["label"]) for v in variants if v[by]]
    on = front([(x, y) for x, y, _ in points], higher)

    def draw(axes: Any) -> None:
        axes.plot(*zip(*[p[:2] for p in points], strict=True), "o", color=FIRST, markersize=4.5, alpha=0.6)
        axes.plot(*zip(*[points[i][:2] for i in on], strict=True), "o-", color=SECOND, markersize=5.5, linewidth=1.2)
        xs = [p[0] for p in points]
        if max(xs) > 8 * min(xs):
            axes.set_xscale("log")
        for k, i in enumerate(on[:6]):
            x, y, label = points[i]
            side = x < (min(xs) * max(xs)) ** 0.5 if axes.get_xscale() == "log" else x < (min(xs) + max(xs)) / 2
            axes.annotate(
                label, (x, y), (5 if side else -5, -12 if k % 2 else 5), textcoords="offset points", fontsize=8,
                ha="left" if side else "right",
            )  # fmt: skip
        from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

        wide = axes.get_xscale() == "log"
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)) if wide else MaxNLocator(5))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if by == "seconds" else count(x))
        axes.set_xlabel("seconds of training" if by == "seconds" else by)
        axes.margins(y=0.2)
        _scores(axes, score, "y")

    svg = page_svg(draw, f"cost-{by}", f"{word(score).label} against {by}", height=2.9)
    return Figure(f"Against {by}", svg, (("--first", "a variant"), ("--second", "nothing cheaper is better")))


def front(points: Sequence[tuple[float, float]], higher: bool) -> list[int]:
    """The Pareto front of (cost, score), cheapest first.

    >>> front([(1, 0.5), (2, 0.4), (3, 0.9)], higher=True)
    [0, 2]
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1] if higher else points[i][1]))
    found: list[int] = []
    for i in order:
        y = points[i][1]
        if isfinite(y) and (not found or (y > points[found[-1]][1] if higher else y < points[found[-1]][1])):
            found.append(i)
    return found


def ends(score: str, e: dict[str, Any]) -> list[float]:
    """An interval as it is drawn: that of a share ends at 0 and at 100 %.

    >>> ends("accuracy", {"low": 0.9, "high": 1.2}), ends("rmse", {"low": 0.9, "high": 1.2})
    ([0.9, 1.0], [0.9, 1.2])
    """
    low, high = float(e["low"]), float(e["high"])
    return [max(low, 0.0), min(high, 1.0)] if word(score).percent else [low, high]


def _scores(axes: Any, score: str, which: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(5))
    percent = word(score).percent
    axis.set_major_formatter(lambda v, _: f"{100 * v:.4g}%" if percent else f"{v:.4g}")
