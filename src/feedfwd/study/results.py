"""What a study found: as values, as words and as the JSON that its page is made from."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from feedfwd.errors import TrainingError
from feedfwd.report.words import interval, number, score, word
from feedfwd.study.plan import Plan
from feedfwd.study.shared import Row
from feedfwd.study.space import levels
from feedfwd.study.statistics import Comparison, Effect, Estimate, Findings, estimate, findings


@dataclass(frozen=True)
class Result:
    plan: Plan
    rows: list[Row]
    seconds: float  # of this process
    best: str
    findings: Findings  # of scores turned so that higher is better
    command: str = ""
    test: dict[str, float] | None = None  # the winner's
    test_n: int | None = None
    details: dict[str, Any] | None = None

    @property
    def winner(self) -> Row:
        return next(row for row in self.done if row.label == self.best)

    @property
    def done(self) -> list[Row]:
        """Every variant with all its seeds, once each, the best first."""
        rows = {row.label: row for row in self.rows if row.state == "done"}
        sign = -1 if self.plan.higher else 1
        return sorted(rows.values(), key=lambda row: sign * float(self.scores(row).mean()))

    def scores(self, row: Row) -> np.ndarray:
        return row.scores(self.plan.score, self.plan.seeds)

    def mean(self, row: Row) -> Estimate:
        return estimate(self.scores(row))

    def ahead(self, row: Row) -> Comparison:
        """By how much the best is ahead of another, positive where it is, in the score's own units."""
        return self.findings.between(self.best, row.label)

    @property
    def beaten(self) -> list[Row]:
        """Those that the best is better than, beyond chance."""
        return [row for row in self.done if row.label != self.best and self.ahead(row).found]

    @property
    def equals(self) -> list[Row]:
        return [row for row in self.done if row.label != self.best and not self.ahead(row).found]

    def to_json(self) -> dict[str, Any]:
        """Everything that the page shows; numbers that aren't finite are left out as None."""
        plan = self.plan
        rows = []
        for row in self.rows:
            known = {name: [o["scores"].get(name) for o in row.outcomes.values()] for name in _names(row)}
            rows.append(
                {
                    "label": row.label,
                    "state": row.state,
                    "levels": None if row.variant is None else levels(plan.axes, row.variant),
                    "settings": row.changes,
                    "reason": row.reason,
                    "seeds": list(row.outcomes),
                    "scores": known,
                    "mean": asdict(self.mean(row)) if row.outcomes else None,
                    "seconds": _mean(o["seconds"] for o in row.outcomes.values()),
                    "parameters": _mean(o["parameters"] for o in row.outcomes.values()),
                    "flops": _mean(o["flops"] for o in row.outcomes.values()),
                    "curves": [o["curve"] for o in row.outcomes.values()],
                    "behind": asdict(self.ahead(row)) if row in self.done and row.label != self.best else None,
                }
            )
        found: dict[str, Any] = {
            "format": 1,
            "study": "compare",
            "verb": plan.verb,
            "source": plan.base.get("source") or "+".join(plan.base.get("sources", ["stdlib"])),
            "score": plan.score,
            "higher": plan.higher,
            "seeds": list(plan.seeds),
            "search": plan.search,
            "match": plan.match,
            "seconds": self.seconds,
            "best": self.best,
            "winner": self.winner.changes,
            "variants": rows,
            "effects": [self._effect(e) for e in self.findings.effects],
            "comparisons": len(self.findings.pairs) + sum(len(e.comparisons) for e in self.findings.effects),
            "verdict": verdict(self),
            "command": self.command,
            "test": self.test,
            "test_n": self.test_n,
            "test_intervals": (self.details or {}).get("intervals", {}),
        }
        return finite(found)

    def turned(self, e: Estimate) -> Estimate:
        """A mean of turned scores in the score's own direction."""
        return e if self.plan.higher else Estimate(-e.mean, -e.high, -e.low, e.p, e.n)

    def _effect(self, e: Effect) -> dict[str, Any]:
        return {
            "name": e.name,
            "worth": e.worth,
            "levels": {name: asdict(self.turned(level)) for name, level in e.levels.items()},
            "found": [[c.first, c.second] for c in e.comparisons if c.found],
            "judged": bool(e.comparisons),
        }


def _names(row: Row) -> list[str]:
    return list(next(iter(row.outcomes.values()))["scores"]) if row.outcomes else []


def _mean(values: Any) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def finite(value: Any) -> Any:
    """As JSON can hold it: numbers that aren't finite become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value


def found(plan: Plan, rows: list[Row], seconds: float) -> Result:
    """Which variant is best and what differs; TrainingError where none could be trained."""
    done = {row.label: row for row in rows if row.state == "done" and row.variant is not None}
    if not done:
        failed = [row for row in rows if row.state == "failed"]
        if not failed:
            raise TrainingError("no variant was trained on every seed", hint="give it more --trials")
        raise TrainingError(
            f"every variant failed; {failed[0].label}: {failed[0].reason}", hint="try one by itself with `feedfwd fit`"
        )
    sign = 1.0 if plan.higher else -1.0
    scores = {name: sign * row.scores(plan.score, plan.seeds) for name, row in done.items()}
    chosen = {name: levels(plan.axes, row.variant) for name, row in done.items() if row.variant is not None}
    said = findings(scores, chosen)
    assert said.best is not None
    return Result(plan, rows, seconds, said.best, said)


# --- in words ---------------------------------------------------------------------------------------------------------


def verdict(r: Result) -> list[str]:
    """Which is best, what it is better than, what each choice was worth, and what failed."""
    plan, name = r.plan, r.plan.score
    best = r.mean(r.winner)
    label = word(name).label
    lines = [f"best: {r.best}, {label} {_with_interval(name, best)} over {len(plan.seeds)} seeds and splits"]
    if r.beaten:
        listed = "; ".join(f"{row.label} by {_difference(name, r.ahead(row))}" for row in r.beaten[:6])
        more = f" and {len(r.beaten) - 6} more" if len(r.beaten) > 6 else ""
        lines.append(f"better than {listed}{more}")
    if r.equals:
        near = "; ".join(f"{row.label} (behind by {_difference(name, r.ahead(row))})" for row in r.equals[:4])
        more = f"; … {len(r.equals) - 4} more" if len(r.equals) > 4 else ""
        lines.append(f"no difference found to {near}{more}")
        lines += _cheaper(r)
    for effect in r.findings.effects:
        lines.append(effect_line(r, effect))
    failed = [row for row in r.rows if row.state == "failed"]
    lines += [f"failed: {row.label}: {row.reason}" for row in failed]
    return lines


def _cheaper(r: Result) -> list[str]:
    """A variant that isn't known to be worse and costs clearly less is worth a line."""
    own = r.winner.outcomes
    cost = np.mean([o["parameters"] for o in own.values()])
    cheap = min(r.equals, key=lambda row: float(np.mean([o["parameters"] for o in row.outcomes.values()])))
    other = np.mean([o["parameters"] for o in cheap.outcomes.values()])
    if other > 0.7 * cost:
        return []
    return [f"the cheapest of these is {cheap.label}: {other:,.0f} parameters instead of {cost:,.0f}"]


def effect_line(r: Result, effect: Effect) -> str:
    name = r.plan.score
    means = {level: r.turned(e).mean for level, e in effect.levels.items()}
    ranked = sorted(means, key=lambda level: means[level], reverse=r.plan.higher)
    shown = ", ".join(f"{level} {score(name, means[level], 1000)}" for level in ranked)
    sure = [c for c in effect.comparisons if c.found]
    if not effect.comparisons:
        says = "an estimate: not every combination was tried"
    elif not sure:
        says = "no difference found"
    else:
        pairs = [(c.first, c.second) if c.difference.mean > 0 else (c.second, c.first) for c in sure]
        says = "; ".join(f"{a} better than {b}" for a, b in pairs[:4]) + (" …" if len(pairs) > 4 else "")
    return f"{effect.name}: worth {_amount(name, effect.worth)} ({shown}): {says}"


def _with_interval(name: str, e: Estimate) -> str:
    if not math.isfinite(e.low):
        return score(name, e.mean, 1000)
    return f"{score(name, e.mean, 1000)} (95 %: {interval(name, (e.low, e.high), 1000)})"


def _amount(name: str, value: float) -> str:
    return f"{100 * value:.2f} points".replace("-0.00 ", "0.00 ") if word(name).percent else number(value)


def _difference(name: str, c: Comparison) -> str:
    d = c.difference
    if not math.isfinite(d.low):
        return _amount(name, d.mean)
    ends = [f"{100 * x:.2f}" if word(name).percent else number(x) for x in (d.low, d.high)]
    return f"{_amount(name, d.mean)} ({ends[0]} … {ends[1]}, p = {c.p:.2g})".replace("(-", "(−")


def tested(r: Result, path: Path) -> str:
    """The winner's scores on the test part."""
    if not r.test or not r.test_n:
        return f"the winner is in {path}"
    name = r.plan.score if r.plan.score in r.test else next(iter(r.test))
    ends = (r.details or {}).get("intervals", {}).get(name)
    around = f" (95 %: {interval(name, ends, r.test_n)})" if ends else ""
    value = f"{word(name).label} {score(name, r.test[name], r.test_n)}{around}"
    return f"test part, opened once (n={r.test_n:,}): {value}; {path}"
