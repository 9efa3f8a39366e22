"""`report.html`: one self-contained page about a run, from `log.jsonl` and `result.json` alone."""

import json
import os
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from feedfwd.errors import RunError
from feedfwd.report import figures, words

HERE = Path(__file__).parent
Event = dict[str, Any]


def write_report(run_dir: Path) -> Path:
    """Write the page of a finished run into its directory and return its path.

    Reads `result.json`, `log.jsonl` and, only to show it, the text of `config.toml`. The page needs no network and no
    other file. Without matplotlib it has tables where the curves would be. It appears whole or not at all. RunError
    when the run has no result yet, or what it holds can't be read.
    """
    run_dir = Path(run_dir)
    page = _page(_result(run_dir), _events(run_dir), _text(run_dir / "config.toml"))
    unfinished = run_dir / f".report-{os.getpid()}.html"
    try:
        try:
            unfinished.write_text(page, encoding="utf-8")
            unfinished.replace(run_dir / "report.html")
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as e:
        raise RunError(f"can't write {run_dir / 'report.html'}", hint=f"{e.strerror}") from e
    return run_dir / "report.html"


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _result(run_dir: Path) -> dict[str, Any]:
    text = _text(run_dir / "result.json")
    if text is None:
        raise RunError(f"{run_dir} has no result.json", hint="finish it first, with --resume")
    try:
        result = json.loads(text)
    except json.JSONDecodeError as e:
        raise RunError(f"{run_dir / 'result.json'} is damaged at line {e.lineno}", hint="run the training again") from e
    if not isinstance(result, dict) or result.get("format") != 1:
        raise RunError(f"{run_dir / 'result.json'} is of a format this version can't show", hint="upgrade feedfwd")
    return result


def _events(run_dir: Path) -> list[Event]:
    """The log's lines. A line that isn't JSON is one that a kill cut short; the run went on below it."""
    events = []
    for line in (_text(run_dir / "log.jsonl") or "").split("\n"):  # nothing else ends one
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def _by_step(events: list[Event], kind: str) -> list[Event]:
    """Events of one kind by step. A resumed run repeats the steps since its last save: the later line counts."""
    found = {e["step"]: e for e in events if e.get("event") == kind}
    return [found[step] for step in sorted(found)]


def _page(result: dict[str, Any], events: list[Event], config: str | None) -> str:
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "count": words.count,
        "duration": words.duration,
        "number": words.number,
    }
    environment.globals |= {"score": words.score, "interval": words.interval, "word": words.word, "Markup": Markup}
    details = result.get("test_details") or {}
    return environment.get_template("report.html").render(
        css=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        result=result,
        details=details,
        headline=_headline(result, details),
        facts=_facts(result),
        began=_began(events),
        validations=_by_step(events, "validation"),
        findings=[e for e in events if e.get("event") == "finding"],
        health=next((e for e in reversed(events) if e.get("event") == "health"), None),
        curves=_curves(events) if figures.available() else None,
        figures=_detail_figures(details) if figures.available() else [],
        judgement=result.get("judgement"),
        judgement_figures=_judgement_figures(result.get("judgement")) if figures.available() else [],
        dependence=_dependence(result.get("table") or {}) if figures.available() else {},
        scores=_score_rows(result, details),
        matrix=_matrix(details),
        config=config,
    )


def _headline(result: dict[str, Any], details: dict[str, Any]) -> dict[str, Any] | None:
    """The one number on top: from the test part, or from validation where there was no test part."""
    part = "test" if result.get("test") else "validation"
    scores = result.get(part) or {}
    name = next((n for n in (*words.HEADLINES, *scores) if n in scores), None)
    if name is None:
        return None
    n = details.get("n", 0) if part == "test" else 0
    n = n or result.get("sizes", {}).get(part) or 0
    found = {"name": name, "value": words.score(name, scores[name], n), "part": part, "n": n}
    if part == "test":
        if ends := details.get("intervals", {}).get(name):
            found["interval"] = words.interval(name, ends, n)
        if name in details.get("baseline", {}):
            found["baseline"] = words.score(name, details["baseline"][name], n)
    return found


def _facts(result: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What stands under the headline, in four groups of (name, value)."""
    sizes, seconds, where = (result.get(key) or {} for key in ("sizes", "seconds", "environment"))
    groups: list[tuple[str, list[tuple[str, Any]]]] = [
        ("Data", [(part, words.number(sizes[part])) for part in ("train", "validation", "test") if sizes.get(part)]),
        (
            "Model",
            [(key, words.number(result[key])) for key in ("parameters", "steps", "seed") if result.get(key) is not None]
            + [(name, words.count(result[key])) for name, key in FLOPS if result.get(key)],
        ),
        (
            "Time",
            [(name, words.duration(seconds[key])) for name, key in TIMES if seconds.get(key) is not None]
            + [(name, words.count(result[key])) for name, key in SPEEDS if result.get(key)]
            + ([("of the matrix rate", f"{result['mfu']:.0%}")] if result.get("mfu") else []),
        ),
        ("Machine", [(name, where.get(name)) for name in ("device", "precision", "threads")]),
    ]
    return [(title, [(k, str(v)) for k, v in rows if v is not None]) for title, rows in groups]


TIMES = (("training", "train"), ("in all", "total"))
FLOPS = (("FLOPs", "flops"), ("FLOPs a token", "flops_per_token"))
SPEEDS = (("examples/s", "examples_per_second"), ("tokens/s", "tokens_per_second"))


def _began(events: list[Event]) -> str | None:
    """When the run began, from the first `start` event: seconds since 1970, or an ISO date."""
    time = next((e["time"] for e in events if e.get("event") == "start" and "time" in e), None)
    if time is None:
        return None
    began = datetime.fromtimestamp(time) if isinstance(time, int | float) else datetime.fromisoformat(time)
    return f"{began.day} {began:%B %Y, %H:%M}"


def _score_rows(result: dict[str, Any], details: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each score, with columns only for what the run has."""
    parts = {part: scores for part in ("test", "validation") if (scores := result.get(part))}
    sizes, ends = result.get("sizes") or {}, details.get("intervals") or {}
    known = {name for scores in parts.values() for name in scores}
    rows = []
    for name in [*(n for n in words.SCORES if n in known), *sorted(known - words.SCORES.keys())]:
        columns = {}
        for part, scores in parts.items():
            n = sizes.get(part) or 0
            columns[part] = words.score(name, scores.get(name), n)
            if part == "test" and ends:
                columns["95% interval"] = words.interval(name, ends[name], n) if name in ends else ""
        for other, scores in (result.get("compared") or {}).items():  # on the same test part
            columns[other] = words.score(name, scores.get(name), sizes.get("test") or 0)
        rows.append({"label": words.word(name).label, "meaning": words.word(name).meaning, "columns": columns})
    return rows


def _matrix(details: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Rows of the confusion matrix; each cell with the strength of its colour, 0 to 1.

    Right answers are coloured by their share of the class, mistakes by their share of the worst mistake: on one
    scale, a good model's mistakes would all be white.
    """
    counts = details.get("confusion")
    if not counts:
        return None
    worst = max((n for i, row in enumerate(counts) for j, n in enumerate(row) if i != j), default=0)
    return [
        {
            "name": details["classes"][i],
            "n": sum(row),
            "cells": [
                {"n": n, "right": i == j, "heat": round(n / (max(sum(row), 1) if i == j else max(worst, 1)), 3)}
                for j, n in enumerate(row)
            ],
        }
        for i, row in enumerate(counts)
    ]


def _curves(events: list[Event]) -> list[figures.Figure]:
    steps = _by_step(events, "step")
    scores = [{"step": e["step"], **e["scores"]} for e in _by_step(events, "validation")]
    found = []
    if training := _points(steps, "loss"):
        # only a loss of the same kind belongs on the same axis
        key = "loss" if _points(scores, "loss") else "log_loss"
        found.append(figures.loss_figure(training, _points(scores, key)))
    if name := next((n for n in words.HEADLINES if _points(scores, n)), None):
        points = _points(scores, name)
        found.append(figures.score_figure(name, words.word(name).label, points, words.word(name).percent))
    if rates := _points(steps, "lr"):
        found.append(figures.step_figure("rate", "Learning rate", rates))
    if norms := _points(steps, "grad_norm"):
        found.append(figures.step_figure("gradient", "Length of the gradient", norms, logarithmic=True))
    for event in [e for e in events if e.get("event") == "range_test"][-1:]:
        tried = [(x, y) for x, y in zip(event["lrs"], event["losses"], strict=False) if y is not None and isfinite(y)]
        if len(tried) > 1:
            found.append(figures.range_test_figure(tried, event["suggested"]))
    return found


def _points(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, number) of the rows that have a finite number under the key."""
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None and isfinite(row[key])]


def _detail_figures(details: dict[str, Any]) -> list[figures.Figure]:
    """The calibration diagram of a classifier, the predicted-against-true scatter of a regression."""
    if details.get("kind") == "classification":
        return [figures.calibration_figure(details["reliability"]["bins"])]
    return [figures.prediction_figure(t["name"], t["points"]) for t in details.get("targets", [])[:4]]


def _dependence(table: dict[str, Any]) -> dict[str, figures.Figure]:
    """A curve for each column of numbers; what depends on names stays a table."""
    found = {}
    for place, column in enumerate(table.get("dependence") or []):
        name, points = column["column"], column["points"]
        if len(points) > 2 and all(isinstance(value, int | float) for value, _ in points):
            found[name] = figures.dependence_figure(name, column["of"], points, place)
    return found


def _judgement_figures(judgement: dict[str, Any] | None) -> list[figures.Figure]:
    """Reliability without the temperature, and error by coverage; with it, it stands under "Calibration", for which
    there is no place where an example may have several labels."""
    if judgement is None:
        return []
    before = figures.calibration_figure(judgement["calibration"]["before"]["bins"], "Before the temperature", "before")
    after = figures.calibration_figure(judgement["calibration"]["after"]["bins"], "After it", "after")
    risk = figures.risk_figure(judgement["risk_coverage"], judgement["abstain"]["error"])
    return [before, *([after] if judgement.get("several") else []), risk]
