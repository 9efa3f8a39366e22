"""What `advise` found: how much each change was worth, what was proven, and both as words and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from feedfwd.report.words import interval, number, score, word
from feedfwd.study.plan import Plan
from feedfwd.study.results import finite
from feedfwd.study.shared import Row
from feedfwd.study.statistics import ALPHA, Estimate, estimate, paired


@dataclass
class Worth:
    """One change to the defaults: how much better it was than they on the same seeds and splits."""

    row: Row
    choice: str
    gain: Estimate | None  # positive where better; None: it never got as far as a score
    p: float = 1.0  # corrected for what was judged beside it

    @property
    def label(self) -> str:
        return self.row.label

    @property
    def changes(self) -> dict[str, Any]:
        return self.row.changes

    @property
    def mean(self) -> float:
        return self.gain.mean if self.gain else -float("inf")

    @property
    def tried(self) -> bool:
        return self.row.state not in ("waiting", "running")

    @property
    def found(self) -> bool:
        """Better than the defaults beyond chance."""
        return self.mean > 0 and self.p < ALPHA


@dataclass(frozen=True)
class Advice:
    plan: Plan  # of the search
    path: Path  # of advice.toml
    advised: Worth | None  # None: the defaults
    defaults: Row  # in the search
    worths: list[Worth]  # of the search
    check: Plan | None  # None: nothing looked promising
    checked: list[Worth]
    tests: dict[str, dict[str, Any]]  # results of the runs that opened the test part: of "defaults", of "advised"
    test_gain: Estimate | None  # advised over defaults on the test part, where examples can be paired
    seconds: float  # of this process

    @property
    def label(self) -> str:
        return self.advised.label if self.advised else "the defaults"

    @property
    def changes(self) -> dict[str, Any]:
        return self.advised.changes if self.advised else {}


def worth(plan: Plan, row: Row, reference: Row, overlap: float, choice: str) -> Worth:
    """`row` against `reference` over the seeds that both have; splits overlap, and the interval allows for it."""
    a, b = (r.scores(plan.score, plan.seeds) for r in (row, reference))
    gain = paired(a, b, overlap=overlap) if plan.higher else paired(b, a, overlap=overlap)
    return Worth(row, choice, gain if gain.n else None)


# --- in words ---------------------------------------------------------------------------------------------------------


def said(a: Advice) -> list[str]:
    """What to use, how sure that is, what each choice was worth, and how to train it."""
    name = a.plan.score
    label = word(name).label
    lines = [f"use: {a.label}"]
    if a.advised is not None and a.advised.gain is not None and a.check is not None:
        seeds = f"on {a.advised.gain.n} seeds and splits that the search never used"
        lines.append(f"how sure: better than the defaults by {gained(name, a.advised)} of {label} {seeds}")
    elif a.checked:
        tried = "; ".join(f"{w.label}: {gained(name, w)}" for w in a.checked if w.gain)
        lines.append(f"how sure: nothing was proven better than the defaults; on fresh seeds and splits {tried}")
    else:
        lines.append(f"how sure: none of {sum(w.tried for w in a.worths)} changes looked better than the defaults")
    lines.append(f"what each choice was worth beside the defaults, in {unit(name)} of {label}:")
    measured = [w for w in a.worths if w.tried]
    for choice in dict.fromkeys(w.choice for w in measured):
        of = sorted((w for w in measured if w.choice == choice), key=lambda w: -w.mean)
        lines.append(f"  {choice}: " + "; ".join(_short(name, w) for w in of))
    if left := [w.label for w in a.worths if not w.tried]:
        lines.append(f"not tried, the time was over: {', '.join(left)}")
    lines.append(tested(a))
    lines.append(f"train it with: feedfwd fit --config {a.path}")
    return lines


def unit(name: str) -> str:
    return "points" if word(name).percent else "units"


def amount(name: str, value: float) -> str:
    """A difference with its sign.

    >>> amount("accuracy", 0.0123), amount("rmse", -0.5)
    ('+1.23', '−0.5000')
    """
    shown = f"{100 * value:.2f}".replace("-", "−") if word(name).percent else number(value)
    return f"+{shown}" if value > 0 else shown


def gained(name: str, w: Worth) -> str:
    """A gain with its unit, interval and p."""
    assert w.gain is not None
    points = " points" if word(name).percent else ""
    ends = f"{amount(name, w.gain.low)} … {amount(name, w.gain.high)}" if isfinite(w.gain.low) else "one seed"
    return f"{amount(name, w.gain.mean)}{points} (95 %: {ends}; p = {w.p:.2g})"


def _short(name: str, w: Worth) -> str:
    if w.row.state == "failed":
        return f"{w.label} failed ({w.row.reason})"
    if w.gain is None:
        return f"{w.label} dropped early"
    if w.gain.n < 2 or not isfinite(w.gain.low):
        return f"{w.label} {amount(name, w.gain.mean)} in one training"
    return f"{w.label} {amount(name, w.gain.mean)} ({amount(name, w.gain.low)} … {amount(name, w.gain.high)})"


def tested(a: Advice) -> str:
    """Scores on the test part, and how far apart."""
    name, defaults = a.plan.score, a.tests["defaults"]
    n, of = defaults["sizes"]["test"], defaults["test"]
    ends = defaults["test_details"].get("intervals", {}).get(name)
    around = f" (95 %: {interval(name, ends, n)})" if ends else ""
    both = "for both " if a.advised else ""
    line = f"test part, opened once {both}(n={n:,}): the defaults {score(name, of[name], n)}{around}"
    if a.advised:
        line += f", what is advised {score(name, a.tests['advised']['test'][name], n)}"
        if a.test_gain is not None:
            g = a.test_gain
            line += f": {amount(name, g.mean)} ({amount(name, g.low)} … {amount(name, g.high)})"
    return line


# --- as JSON ----------------------------------------------------------------------------------------------------------


def to_json(a: Advice) -> dict[str, Any]:
    """Everything that the page shows."""
    name = a.plan.score
    found: dict[str, Any] = {
        "format": 1,
        "study": "advise",
        "verb": "fit",
        "source": a.plan.base["source"],
        "score": name,
        "higher": a.plan.higher,
        "seeds": list(a.plan.seeds),
        "seconds": a.seconds,
        "best": a.label,
        "winner": a.changes,
        "gain": None if a.advised is None else _worth(a.advised, name),
        "variants": [_row(a.defaults, name), *(_worth(w, name) for w in a.worths)],
        "checked_on": list(a.check.seeds) if a.check else [],
        "checked": [_worth(w, name) for w in a.checked],
        "verdict": said(a),
        "test": {which: result["test"] for which, result in a.tests.items()},
        "test_n": a.tests["defaults"]["sizes"]["test"],
        "test_gain": None if a.test_gain is None else asdict(a.test_gain),
    }
    clean: dict[str, Any] = finite(found)
    return clean


def _row(row: Row, name: str) -> dict[str, Any]:
    outcomes = row.outcomes.values()
    values = [o["scores"][name] for o in outcomes]
    return {
        "label": row.label,
        "settings": row.changes,
        "state": row.state,
        "reason": row.reason,
        "seeds": list(row.outcomes),
        "scores": {name: values},
        "mean": asdict(estimate(values)) if values else None,
        "seconds": _mean([o["seconds"] for o in outcomes]),
        "parameters": _mean([o["parameters"] for o in outcomes]),
    }


def _worth(w: Worth, name: str) -> dict[str, Any]:
    return {**_row(w.row, name), "choice": w.choice, "gain": asdict(w.gain) if w.gain else None, "p": w.p}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
