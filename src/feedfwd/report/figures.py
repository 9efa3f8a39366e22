"""The curves of a report, as SVG to stand inside its page: matplotlib draws, the page's style sheet colours."""

import io
import re
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

# What is drawn in these stand-ins takes the page's colours, light or dark: each becomes a CSS variable in the SVG.
INK, MUTED, RULE, FIRST, SECOND = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", FIRST: "--first", SECOND: "--second"}

WIDTH, HEIGHT = 4.4, 2.5  # inches at 72 to the inch: narrow, so that a phone shows the labels near their full size
CURVE_POINTS = 240

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "text.parse_math": False,  # a `$` in a name is a `$`
    "font.size": 9,
    "text.color": MUTED,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}

Points = Sequence[tuple[float, float]]  # (x, y), all finite, at least one


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing with its title and its key: (colour variable, what it stands for)."""

    title: str
    svg: str
    key: tuple[tuple[str, str], ...] = ()


def available() -> bool:
    """Whether matplotlib, which the extra `report` brings, is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def loss_figure(training: Points, validation: Points) -> Figure:
    """Training loss (mean of neighbouring steps, with their 10th to 90th percentile) and validation loss by step."""
    step, middle, low, high = _thinned(training)
    values = [*middle, *(y for _, y in validation)]

    def draw(axes: Any) -> None:
        if len(training) > len(step):
            axes.fill_between(step, low, high, color=FIRST, alpha=0.16, linewidth=0)
        axes.plot(step, middle, color=FIRST, **_marks(step))
        if validation:
            axes.plot(*zip(*validation, strict=True), color=SECOND, **_marks(validation))
        if min(values) > 0 and max(values) > 10 * min(values):
            _logarithmic(axes, "y")
            axes.set_ylim(min(values) / 1.3, max(values) * 1.3)
        _step_axis(axes)

    key = (("--first", "training"),) + ((("--second", "validation"),) if validation else ())
    return Figure("Loss", page_svg(draw, "loss", "loss by training step"), key)


def score_figure(name: str, label: str, points: Points, percent: bool) -> Figure:
    """One validation score by step."""

    def draw(axes: Any) -> None:
        axes.plot(*zip(*points, strict=True), color=SECOND, **_marks(points))
        if percent:
            axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.5g}%")
        _step_axis(axes)

    return Figure(f"Validation {label}", page_svg(draw, f"score-{name}", f"validation {label} by training step"))


def step_figure(name: str, title: str, values: Points, *, logarithmic: bool = False) -> Figure:
    """One number of each step, thinned: the learning rate, the length of the gradient."""
    step, middle, low, high = _thinned(values)

    def draw(axes: Any) -> None:
        if logarithmic:
            axes.fill_between(step, low, high, color=FIRST, alpha=0.16, linewidth=0)
        axes.plot(step, middle, color=FIRST, **_marks(step))
        if logarithmic and middle.min() > 0 and middle.max() > 10 * middle.min():
            _logarithmic(axes, "y")
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        _step_axis(axes)

    return Figure(title, page_svg(draw, name, f"{title} by training step"))


def range_test_figure(points: Points, suggested: float) -> Figure:
    """(rate, loss) while the rate grows, with the rate that was chosen. What lies far above the start is cut off."""
    values = [y for _, y in points]

    def draw(axes: Any) -> None:
        axes.axvline(suggested, color=SECOND, linewidth=1.2, linestyle=(0, (3, 2)))
        axes.plot(*zip(*points, strict=True), color=FIRST)
        bottom, start = min(values), values[0]
        room = max(start - bottom, 0.05 * abs(start), 1e-9)
        axes.set_ylim(bottom - 0.1 * room, min(max(values), start + 0.5 * room) + 0.05 * room)
        _logarithmic(axes, "x")
        axes.set_xlabel("learning rate")

    key = (("--first", "loss"), ("--second", f"chosen: {suggested:.2g}"))
    return Figure("Learning-rate range test", page_svg(draw, "range-test", "loss by learning rate"), key)


def risk_figure(points: Points, target: float) -> Figure:
    """(share answered, share of these wrong) as ever less sure answers are given, with the error that was asked for."""

    def draw(axes: Any) -> None:
        axes.axhline(target, color=SECOND, linewidth=1.2, linestyle=(0, (3, 2)))
        axes.plot(*zip(*points, strict=True), color=FIRST)
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g}%")
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.3g}%")
        axes.set_xlabel("answered, the surest first")

    key = (("--first", "wrong among the answered"), ("--second", f"wanted: {100 * target:.3g}%"))
    return Figure("Error by coverage", page_svg(draw, "risk", "share of wrong answers by share answered"), key)


def calibration_figure(
    bins: Sequence[dict[str, Any]], title: str = "Right answers by confidence", name: str = "calibration"
) -> Figure:
    """Share that was right against the stated confidence, with 95% intervals; below, where the answers lie."""
    filled = [b for b in bins if b["n"]]

    def draw(above: Any, below: Any) -> None:
        above.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        for b in filled:
            above.plot([b["confidence"]] * 2, b["interval"], color=FIRST, linewidth=1.4, alpha=0.45)
        above.plot(
            [b["confidence"] for b in filled],
            [b["accuracy"] for b in filled],
            color=FIRST,
            marker="o",
            markersize=4.5,
            markeredgewidth=0,
            linewidth=0,
        )
        above.set_ylim(-0.02, 1.02)
        above.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g}%")
        above.tick_params(labelbottom=False, bottom=False)
        total = sum(b["n"] for b in bins)
        width = bins[0]["high"] - bins[0]["low"]
        below.bar([b["low"] + width / 2 for b in filled], [b["n"] / total for b in filled], 0.86 * width, color=FIRST)
        below.set_yticks([])
        below.set_xlim(-0.02, 1.02)
        below.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g}%")
        below.set_xlabel("confidence")

    svg = page_svg(draw, name, "share of right answers by confidence", height=3.6, rows=(5, 1))
    return Figure(title, svg, (("--first", "measured, 95% interval"), ("--muted", "perfect")))


def dependence_figure(column: str, of: str, points: Points, place: int) -> Figure:
    """The mean answer by the value that every row has in one column; `place` tells the page's figures apart."""

    def draw(axes: Any) -> None:
        axes.plot(*zip(*points, strict=True), color=FIRST, marker="o", markersize=3.6, markeredgewidth=0)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.6g}")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.6g}")
        axes.set_xlabel(column)

    svg = page_svg(draw, f"dependence-{place}", f"{of} by {column}")
    return Figure(column, svg, (("--first", of),))


def prediction_figure(name: str, points: Points) -> Figure:
    """Predicted against true values of one target."""
    true, predicted = zip(*points, strict=True)
    ends = [min(*true, *predicted), max(*true, *predicted)]

    def draw(axes: Any) -> None:
        axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        axes.plot(true, predicted, color=FIRST, marker="o", markersize=3.6, markeredgewidth=0, linewidth=0, alpha=0.5)
        axes.set_xlabel("true")
        axes.set_ylabel("predicted")

    svg = page_svg(draw, f"predicted-{name}", f"predicted against true {name}", height=3.6)
    return Figure(f"Predicted against true: {name}", svg, (("--first", "one example"), ("--muted", "perfect")))


def _thinned(points: Points) -> tuple[npt.NDArray[np.float64], ...]:
    """Means of at most CURVE_POINTS neighbouring groups: x, mean, 10th and 90th percentile."""
    groups = np.array_split(np.asarray(points, np.float64), min(len(points), CURVE_POINTS))
    x, mean = np.stack([g.mean(0) for g in groups]).T
    low, high = np.stack([np.quantile(g[:, 1], [0.1, 0.9]) for g in groups]).T
    return x, mean, low, high


def _marks(points: Sized) -> dict[str, Any]:
    """Dots where there are few enough to tell apart."""
    return {"marker": "o", "markersize": 3.6, "markeredgewidth": 0} if len(points) <= 40 else {}


def _step_axis(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.set_xlabel("step")


def _logarithmic(axes: Any, which: str) -> None:
    """A log axis with plain numbers at 1, 2, 5: matplotlib's own powers of ten leave a short axis nearly unlabelled."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_data_interval()
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=9))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda v, _: f"{v:g}")


def page_svg(
    draw: Callable[..., None], name: str, description: str, *, height: float = HEIGHT, rows: Iterable[float] = (1,)
) -> str:
    """Draw on one axis for each of `rows`, from top to bottom, and give SVG that fits any width and any theme."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    ratios = list(rows)
    style: Any = {**STYLE, "svg.hashsalt": name}  # the salt: the same bytes each time, and ids of each figure's own
    with rc_context(style):
        figure = Canvas(figsize=(WIDTH, height))
        stacked = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)
        draw(*stacked[:, 0])
        figure.subplots_adjust(left=0.125, right=0.985, bottom=0.42 / height, top=1 - 0.1 / height, hspace=0.08)
        text, canvas = io.StringIO(), FigureCanvasSVG(figure)
        canvas.print_svg(text)  # type: ignore[no-untyped-call]
    return _for_page(text.getvalue(), description)


def _for_page(svg: str, description: str) -> str:
    """A stand-alone SVG file made part of a page: no size, style or ids of its own that the page would suffer from."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r" font-family: [^;]*;", "", svg).replace("xlink:href", "href")
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None
    head = f'<svg {size[0]} role="img" aria-label="{escape(description)}">'
    svg = re.sub(r"<svg[^>]*>", head, svg, count=1)
    svg = re.sub(r'<path d="[^"]*" style="fill: #ffffff"/>', "", svg)  # the canvas's own background
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    return re.sub(r"\s*\n\s*", "\n", svg)
