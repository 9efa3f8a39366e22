"""A study's `report.html`: one self-contained page, from its `result.json` alone, in the style of a run's."""

import json
from math import inf
from pathlib import Path
from typing import Any

from feedfwd import report
from feedfwd.checkpoint import write_text
from feedfwd.errors import RunError
from feedfwd.report import figures as drawn
from feedfwd.report import words
from feedfwd.study import figures
from feedfwd.study.advice import amount

HERE = Path(__file__).parent
STYLE = Path(report.__file__).parent / "report.css"


def write_study_report(folder: Path) -> Path:
    """Write the page of a finished study into its directory and return its path; RunError where it has no result."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} has no result that can be read ({error})", hint="finish the study first") from None
    write_text(folder / "report.html", _page(result))
    return folder / "report.html"


def _page(result: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"count": words.count, "duration": words.duration, "number": words.number}
    environment.globals |= {"score": words.score, "interval": words.interval, "word": words.word, "Markup": Markup}
    if result["study"] == "advise":
        return environment.get_template("advice.html").render(_shown(result), **_advice(result))
    done = [v for v in result["variants"] if v["state"] == "done"]
    done = list({v["label"]: v for v in done}.values())
    done.sort(key=lambda v: v["mean"]["mean"], reverse=result["higher"])
    return environment.get_template("study.html").render(
        _shown(result),
        done=done,
        others=[v for v in result["variants"] if v["state"] != "done"],
        figures=_figures(result, done) if drawn.available() else None,
        amount=_amount,
    )


def _shown(result: dict[str, Any]) -> dict[str, Any]:
    from markupsafe import Markup

    return {"css": Markup(STYLE.read_text(encoding="utf-8")), "result": result}


def _advice(result: dict[str, Any]) -> dict[str, Any]:
    tried = result["variants"][1:]
    ranked = sorted(tried, key=lambda v: -v["gain"]["mean"] if v["gain"] else inf)
    drawings = {
        "Gain over the defaults": [
            figures.gains(of, result["score"], title)
            for title, of in (("Checked on fresh seeds", result["checked"]), ("Each change alone", ranked))
            if any(v["gain"] and v["gain"]["low"] is not None for v in of)
        ]
    }
    tested = next(line for line in result["verdict"] if line.startswith("test part"))
    return {
        "ranked": ranked,
        "tested": tested,
        "signed": amount,
        "figures": drawings if drawn.available() else None,
    }


def _figures(result: dict[str, Any], done: list[dict[str, Any]]) -> dict[str, list[drawn.Figure]]:
    score = result["score"]
    curves = figures.curves(done, score)
    return {
        "Scores": [figures.intervals(done, score), *([curves] if curves else [])],
        "What each choice was worth": [figures.effect(e, score, i) for i, e in enumerate(result["effects"])],
        "Cost": [
            figures.cost(done, score, result["higher"], by)
            for by in ("parameters", "seconds")
            if len({v[by] for v in done}) > 1
        ],
    }


def _amount(name: str, value: float | None) -> str:
    """A difference of scores."""
    if value is None:
        return "–"
    return f"{100 * value:.2f}".replace("-", "−") if words.word(name).percent else words.number(value)
