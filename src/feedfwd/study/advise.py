"""`feedfwd advise`: structure, activation and training for these data, by measuring; else the defaults.

1. Each change alone beside the defaults, on the same seeds and splits, those far behind dropped early.
2. What looked promising, together and by itself, against the defaults on seeds and splits that were not used before.
   Only what is better there beyond chance is advised.
3. The test part is opened once, for what is advised and for the defaults.
"""

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch

from feedfwd.checkpoint import Run, write_json, write_text
from feedfwd.config import FitConfig, parse
from feedfwd.errors import ConfigError, RunError, TrainingError
from feedfwd.recipes.console import Listener, Silent
from feedfwd.recipes.interrupt import AGAIN, going_on, told
from feedfwd.report.words import duration, word
from feedfwd.study.advice import Advice, Worth, said, to_json, worth
from feedfwd.study.choices import choices, combined, in_turn, with_all
from feedfwd.study.compare import FILE, RESULT, at_a_time, options, positional, source_name, trained, whole
from feedfwd.study.plan import Plan
from feedfwd.study.report import write_study_report
from feedfwd.study.shared import Row, Shared, optuna_module
from feedfwd.study.space import Choice
from feedfwd.study.statistics import holm
from feedfwd.study.trainings import Fit, beside

DEFAULTS = "defaults"
CONFIG = "advice.toml"
SEARCH, CHECK = 0.5, 0.35  # shares of the minutes; the rest is for the test part, starting and reading
LOOK = 0.35  # of a training is what a variant takes on average where those behind are dropped early
SEEDS = 3, 8  # of the search: where some are dropped, and at most
FEWEST, MOST = 4, 10  # seeds of the check
PROMISING = 0.4  # p below which a gain is worth checking: the check decides, not this
LEAST = 4  # changes to try


@dataclass(frozen=True)
class Question:
    """All that is settled before the first training; kept, so that a kill costs only what was in work."""

    search: Plan
    kinds: dict[str, str]  # the choice that each change belongs to
    minutes: float
    workers: int
    overlap: float  # scored to trained-on examples
    check: Plan | None = None
    checking: bool = False  # whether the search is over

    @property
    def seconds(self) -> float:
        return 60 * self.minutes


def planned(
    base: dict[str, Any], minutes: float, *, score: str | None = None, workers: int | None = None
) -> tuple[Question, str]:
    """What is tried in the time, and that in words; ConfigError where it can't be asked or the time is too short."""
    if not 0 < minutes < float("inf"):
        raise ConfigError(f"--minutes {minutes:g} leaves no time to measure", hint="take at least 1")
    only = Plan("fit", base, (Choice("change", {DEFAULTS: {}}),), (0,), score=score or "")
    only, known = only.checked()
    facts = known[DEFAULTS]
    training = only.training
    assert isinstance(training, Fit) and isinstance(only.config, FitConfig)
    defaults, table = training.resolved(only.config)
    axes = choices(base, defaults, table=table)
    levels = in_turn(axes)
    if not levels:
        raise ConfigError("every choice is settled already", hint="leave some of the --set out")
    many = workers or at_a_time(replace(only, axes=(Choice("change", {DEFAULTS: {}, **levels}),)))
    began = time.perf_counter()
    with _threads(1 if many > 1 else torch.get_num_threads()):
        each = training.seconds(only.config)
        _long_enough(minutes, each, many)
        each = _taken(training, only.config)
    spent = time.perf_counter() - began
    _long_enough(minutes, each, many)
    spend = max(60 * minutes - spent, LEAST * each) * many  # seconds of training that can be had
    seeds = int(SEARCH * spend / (each * (1 + len(levels))))
    grid = seeds >= SEEDS[0]
    if not grid:
        tried = max(LEAST, min(len(levels), int((SEARCH * spend / each - SEEDS[0]) / LOOK)))
        levels = dict(list(levels.items())[:tried])
    first = only.config.seed
    search = replace(
        only,
        axes=(Choice("change", {DEFAULTS: {}, **levels}),),
        seeds=tuple(range(first, first + (min(SEEDS[1], seeds) if grid else SEEDS[0]))),
        search="grid" if grid else "halving",
        trials=None if grid else 1 + len(levels),
    )
    kinds = {level: axis.name for axis in axes for level in axis.levels if level in levels}
    seeds_said = f"{'' if grid else 'up to '}{len(search.seeds)} seeds and splits"
    lines = (
        f"{source_name(search)}: {len(levels)} changes to the defaults, each alone on {seeds_said}; "
        f"{many} at a time, about {duration(each)} each\n"
        f"decided by {word(search.score).label} on {facts.validation:,} examples held back from the training part; the "
        "test part stays closed"
    )
    return Question(search, kinds, minutes, many, facts.validation / facts.training), lines


def _long_enough(minutes: float, each: float, many: int) -> None:
    """ConfigError where the search, the check and the test can't be done within the time."""
    least = each * (1 + LOOK * LEAST + 2 * FEWEST + 2) / many
    if least > 60 * minutes:
        needed = f"one training takes about {duration(each)}, and advice at least {duration(least)}"
        raise ConfigError(f"--minutes {minutes:g} is too short: {needed}", hint="give it longer, or try --effort quick")


def _taken(training: Fit, config: FitConfig) -> float:
    """Seconds that one training takes, all that belongs to it included: by doing it."""
    began = time.perf_counter()
    training.run(config, Path(), lambda share, scores: None)
    return time.perf_counter() - began


def advise(
    base: dict[str, Any],
    minutes: float,
    listener: Listener | None = None,
    run: Path | None = None,
    *,
    score: str | None = None,
    workers: int | None = None,
) -> Advice:
    """Search, check and test; leaves `advice.toml`, `report.html`, `result.json` and what resuming needs.

    Raises ConfigError or DataError before the first training, TrainingError where the defaults can't be trained.
    """
    listener = listener or Silent()
    optuna_module()
    with told(lambda: AGAIN, instead=True):
        question, lines = planned(base, minutes, score=score, workers=workers)
        folder = Run.create(run, f"advise-{source_name(question.search)}").path
        _keep(question, folder)
    for line in lines.splitlines():
        listener.say(line)
    return _carried_out(question, folder, listener)


def resume(folder: Path, listener: Listener | None = None, *, workers: int | None = None) -> Advice:
    """Go on after a kill: what was trained isn't trained again, and the minutes that it took are counted."""
    file = folder / FILE
    if not file.is_file():
        raise RunError(f"nothing to go on with at {folder}", hint="`feedfwd advise SOURCE` begins")
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
        if row.pop("study") != "advise":
            raise RunError(f"{folder} is a comparison", hint=f"go on with: feedfwd compare --resume {folder}")
        row["search"] = Plan.from_json(row["search"])
        row["check"] = None if row["check"] is None else Plan.from_json(row["check"])
        question = Question(**{key: value for key, value in row.items() if key != "format"})
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise RunError(f"{file} is damaged: {error}", hint="restore it from a copy, or begin anew") from None
    if workers is not None:
        question = replace(question, workers=workers)
    return _carried_out(question, folder, listener or Silent())


def _keep(q: Question, folder: Path) -> None:
    row = {**q.__dict__, "search": q.search.to_json(), "check": q.check and q.check.to_json()}
    write_json(folder / FILE, {"format": 1, "study": "advise", **row})


def _carried_out(q: Question, folder: Path, listener: Listener) -> Advice:
    with told(lambda: going_on("advise", folder)):
        return _advised(q, folder, listener)


def _advised(q: Question, folder: Path, listener: Listener) -> Advice:
    began = time.perf_counter()
    rows = _rows(q, q.search, folder, listener, None if q.checking else SEARCH * q.seconds)
    if rows[0].state != "done":
        reason = rows[0].reason or "not even one training of them was finished"
        raise TrainingError(f"the defaults can't be trained: {reason}", hint="try them by `feedfwd fit`")
    worths = [worth(q.search, row, rows[0], q.overlap, q.kinds[row.label]) for row in rows[1:]]
    if not q.checking:
        q = replace(q, check=check_plan(q, rows[0], worths), checking=True)
        _keep(q, folder)
        if q.check is not None:
            names = " and ".join(q.check.label(v) for v in q.check.queue[1:] if v is not None)
            listener.say(f"promising: {names}; checked against the defaults on {len(q.check.seeds)} fresh seeds")
    checked: list[Worth] = []
    advised: Worth | None = None
    if q.check is not None:
        reference, *others = _rows(q, q.check, folder, listener, None)
        checked = [worth(q.check, row, reference, q.overlap, "checked") for row in others]
        advised = proven(checked)
    changes = advised.changes if advised else {}
    settings = whole(with_all(q.search.base, changes))
    write_text(folder / CONFIG, tomli_w.dumps(settings))
    gain = None
    with told(lambda: going_on("advise", folder), instead=True):
        tests = {"defaults": _tested(q.search.base, folder / "defaults")}
        if advised:
            tests["advised"] = _tested(settings, folder / "advised")
    if advised:
        gain = beside(folder / "advised", folder / "defaults", q.search.score)
    advice = Advice(
        q.search, folder / CONFIG, advised, rows[0], worths, q.check, checked, tests, gain, time.perf_counter() - began
    )
    result = to_json(advice) | {"command": _command(q), "minutes": q.minutes, "config": tomli_w.dumps(settings)}
    write_json(folder / RESULT, result)
    for line in said(advice):
        listener.say(line)
    listener.say(f"report: {write_study_report(folder)}")
    return advice


def _rows(q: Question, plan: Plan, folder: Path, listener: Listener, seconds: float | None) -> list[Row]:
    """The variants of one stage, in the order of the queue; with `seconds` none is begun after them."""
    url = f"sqlite:///{(folder / 'study.db').resolve()}"
    shared = Shared.begin(plan, url, folder)
    shared.bury()
    rows = shared.rows()
    if seconds is not None and shared.unfinished:
        spent = sum(o["seconds"] for row in rows for o in row.outcomes.values()) / q.workers
        shared.end_at(time.time() + seconds - spent)
    if shared.unfinished:
        trained(shared, url, listener, q.workers, going_on("advise", folder))
        rows = shared.rows()
    return rows


def check_plan(q: Question, reference: Row, worths: list[Worth]) -> Plan | None:
    """The best level of every choice that looks promising, together, and the best by itself; None: nothing does."""
    ranked = promising(worths)
    if not ranked:
        return None
    spend = CHECK * q.seconds * q.workers
    each = max(o["seconds"] for w in [reference, *(w.row for w in ranked)] for o in w.outcomes.values())
    together = {", ".join(w.label for w in ranked): combined([w.changes for w in ranked])}
    alone = {ranked[0].label: ranked[0].changes}
    candidates = together | alone if spend >= 3 * FEWEST * each else together
    n = int(max(FEWEST, min(MOST, spend / (each * (1 + len(candidates))))))
    first = 1000 + q.search.seeds[0]
    axis = Choice("settings", {DEFAULTS: {}, **candidates})
    return replace(q.search, axes=(axis,), seeds=tuple(range(first, first + n)), search="grid", trials=None)


def promising(worths: list[Worth]) -> list[Worth]:
    """The best level of every choice that gained by more than a little luck, the best first; else the best of all."""
    gained = sorted((w for w in worths if w.row.state != "failed" and w.mean > 0), key=lambda w: -w.mean)
    likely: dict[str, Worth] = {}
    for w in gained:
        if w.gain is not None and w.gain.p < PROMISING:
            likely.setdefault(w.choice, w)
    return list(likely.values()) or gained[:1]


def proven(checked: list[Worth]) -> Worth | None:
    """The best of those that are better than the defaults beyond chance; corrects the p of all by Holm."""
    for w, p in zip(checked, holm([w.gain.p if w.gain else 1.0 for w in checked]), strict=True):
        w.p = p
    return max((w for w in checked if w.found), key=lambda w: w.mean, default=None)


def _tested(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """The run's result, trained unless it is there already."""
    return Fit().final(parse(FitConfig, settings), path, Silent())


def _command(q: Question) -> str:
    base = q.search.base
    return shlex.join(["feedfwd", "advise", *positional(base), "--minutes", f"{q.minutes:g}", *options(base)])


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
