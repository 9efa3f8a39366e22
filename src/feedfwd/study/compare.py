"""`feedfwd compare`: variants of one training on equal seeds and splits, and which of them is better for sure."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from feedfwd.checkpoint import Run, write_json, write_text
from feedfwd.config import Recipe, parse
from feedfwd.errors import ConfigError, RunError
from feedfwd.recipes.console import Listener, Silent
from feedfwd.recipes.interrupt import AGAIN, Interrupted, going_on, graceful, told
from feedfwd.report.words import count, duration, word
from feedfwd.study import results
from feedfwd.study.plan import Plan
from feedfwd.study.report import write_study_report
from feedfwd.study.results import Result
from feedfwd.study.shared import Shared, optuna_module
from feedfwd.study.space import parse_vary
from feedfwd.study.table import Board
from feedfwd.study.trainings import Known, training

FILE, RESULT, WINNER = "study.json", "result.json", "winner.toml"
FLAGS = {"pretrained": "from"}  # settings whose flag has another name
POLL = 0.5  # seconds between looks at what the workers have found


def planned(
    base: dict[str, Any],
    vary: Sequence[str],
    *,
    verb: str = "fit",
    seeds: int = 5,
    minutes: float | None = None,
    match: str | None = None,
    search: str = "grid",
    trials: int | None = None,
    score: str | None = None,
) -> Plan:
    """The question as a plan; ConfigError for what can't be asked. `base` holds the settings of all, nested."""
    kind = training(verb).kind
    axes = parse_vary(vary, kind)
    if minutes is not None:
        base = {**base, "minutes": minutes}
    first = parse(kind, base)
    for axis in axes:  # a bad value is found before anything is read
        for of in getattr(axis, "levels", {}).values():
            config: Recipe = first
            for key, value in of.items():
                config = config.with_(key, value)
    if seeds < 2:
        raise ConfigError(f"--seeds {seeds} shows no spread", hint="take at least 2; 5 tell more")
    return Plan(
        verb, first.said(), tuple(axes), tuple(first.seed + i for i in range(seeds)), search, trials, score or "", match
    )


def compare(
    plan: Plan,
    listener: Listener | None = None,
    run: Path | None = None,
    *,
    storage: str | None = None,
    workers: int | None = None,
) -> Result:
    """Train every variant on every seed, say what differs, train the winner and open its test part.

    Everything is left in a directory: `result.json`, `report.html`, `winner.toml`, and the study's storage. Raises
    ConfigError or DataError before the first training, TrainingError where every variant fails.
    """
    listener = listener or Silent()
    optuna_module()
    with told(lambda: AGAIN, instead=True):
        plan, known = plan.checked()
        plan = _in_equal_time(plan, listener)
        folder = Run.create(run, f"compare-{source_name(plan)}").path
        url = storage or f"sqlite:///{(folder / 'study.db').resolve()}"
        said = {"format": 1, "storage": url, "name": plan.name, "workers": workers, "plan": plan.to_json()}
        write_json(folder / FILE, said)
    with told(lambda: going_on("compare", folder)):
        shared = Shared.begin(plan, url, folder)
        for line in overview(plan, known, workers or at_a_time(plan)):
            listener.say(line)
        return _carried_out(shared, url, listener, workers)


def resume(folder: Path, listener: Listener | None = None, *, workers: int | None = None) -> Result:
    """Go on with a study, after a kill or from another process: what is finished isn't trained again."""
    file = folder / FILE
    if not file.is_file():
        raise RunError(f"no study at {folder}", hint="`feedfwd compare SOURCE --vary …` begins one")
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if said.get("study") == "advise":
            raise RunError(f"{folder} is advice", hint=f"go on with: feedfwd advise --resume {folder}")
        url, name, before = said["storage"], said["name"], said["workers"]
        plan = Plan.from_json(said["plan"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RunError(f"{file} is damaged: {error}", hint="restore it from a copy, or begin anew") from None
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        url = f"sqlite:///{(folder / 'study.db').resolve()}"  # the directory was moved
    with told(lambda: going_on("compare", folder)):
        shared = Shared.begin(plan, url, folder, name=name)  # to the end, where it was stopped in beginning
        shared.bury()
        return _carried_out(shared, url, listener or Silent(), workers or before)


def dry_run(plan: Plan, listener: Listener, *, workers: int | None = None) -> float:
    """The variants and about how long they take, from one short trial; nothing is written. Returns the seconds."""
    plan, known = plan.checked()
    plan = _in_equal_time(plan, listener)
    many = workers or at_a_time(plan)
    for line in overview(plan, known, many):
        listener.say(line)
    for number, variant in enumerate(plan.queue, 1):
        if variant is None:
            listener.say(f"  {number}–{len(plan.queue)}  chosen by --search {plan.search}")
            break
        name = plan.label(variant)
        found = known.get(name)
        solved = plan.changes(variant) if plan.match in ("parameters", "flops") else {}
        widths = "".join(f", {key}={solved[key]}" for key in ("model.hidden", "ffn.hidden") if key in solved)
        cost = f"  {found.parameters:,} parameters, {count(found.flops)} FLOPs forward" if found else ""
        listener.say(f"  {number}  {name}{cost}{widths}")
    each = plan.training.seconds(plan.trial_config(next(v for v in plan.queue if v is not None), plan.seeds[0]))
    seconds = each * len(plan.queue) * len(plan.seeds) / many
    listener.say(f"about {duration(each)} a training, {duration(seconds)} in all with {many} at a time")
    return seconds


def overview(plan: Plan, known: dict[str, Known], workers: int) -> list[str]:
    first = next(iter(known.values()))
    seeds = len(plan.seeds)
    how = "" if plan.search == "grid" else f", chosen by {plan.search}"
    match = {"parameters": ", equal parameters", "flops": ", equal FLOPs", "seconds": ", equal seconds", None: ""}
    least = plan.score not in ("bits_per_byte", "loss", "perplexity")
    return [
        f"{source_name(plan)}: {len(plan.queue)} variants × {seeds} seeds{how}{match[plan.match]}; {workers} at a time",
        f"decided by {word(plan.score).label} on {first.validation:,} {'examples' if least else 'tokens'} held back "
        f"from the training part, the same for every variant"
        + ("; the test part stays closed until there is a winner" if plan.verb != "pretrain" else ""),
    ]


# --- the work ---------------------------------------------------------------------------------------------------------


def _carried_out(shared: Shared, url: str, listener: Listener, workers: int | None) -> Result:
    began = time.perf_counter()
    trained(shared, url, listener, workers, going_on("compare", shared.folder))
    return finished(shared, listener, time.perf_counter() - began)


def trained(shared: Shared, url: str, listener: Listener, workers: int | None, go_on: str) -> None:
    """Do all that waits, here or by processes of this machine; Interrupted says how to `go_on`."""
    plan = shared.plan
    many = min(workers or at_a_time(plan), len(plan.queue))
    with Board(plan, listener) as board:
        try:
            if many == 1:
                shared.work(lambda: board.show(shared.rows()))
            else:
                _with_workers(shared, url, many, board)
        except KeyboardInterrupt as stop:
            rows = shared.rows()
            done = sum(row.state in ("done", "dropped", "failed") for row in rows)
            number = stop.code - 128 if isinstance(stop, Interrupted) else signal.SIGINT
            raise Interrupted(f"stopped with {done} of {len(rows)} variants done; {go_on}", number) from None
        board.show(shared.rows())


def finished(shared: Shared, listener: Listener, seconds: float) -> Result:
    """What was found, in words and files; the winner is trained once more and its test part opened."""
    plan, folder = shared.plan, shared.folder
    result = results.found(plan, shared.rows(), seconds)
    assert result.winner.variant is not None
    winner = plan.winner_config(result.winner.variant)
    write_text(folder / WINNER, tomli_w.dumps(whole(winner.said())))
    result = replace(result, command=command(plan))
    write_json(folder / RESULT, result.to_json())
    for line in results.verdict(result):
        listener.say(line)
    if plan.verb != "pretrain":  # a language model has no test part: the winner's runs are in trials/
        with told(lambda: going_on("compare", folder), instead=True):
            test = shared.opened(lambda heard: plan.training.final(winner, folder / "winner", heard))
        result = replace(result, test=test.scores, test_n=test.n, details=test.details)
        write_json(folder / RESULT, result.to_json())
        listener.say(results.tested(result, test.path))
    report = write_study_report(folder)
    listener.say(f"train it with: feedfwd {plan.verb} --config {folder / WINNER}")
    listener.say(f"report: {report}")
    return result


def _with_workers(shared: Shared, url: str, many: int, board: Board) -> None:
    """Processes of one thread each do the trials; this one looks on."""
    environment = os.environ | {"FEEDFWD_STUDY_WORKER": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "feedfwd.study.worker", url, shared.study.study_name, str(shared.folder)]
    log = shared.folder / "workers.log"
    with graceful() as stop, log.open("a") as errors:
        processes = [
            subprocess.Popen(
                [*arguments, str(n)], env=environment, start_new_session=True, stdout=errors, stderr=errors
            )
            for n in range(many)
        ]
        try:
            while any(process.poll() is None for process in processes):
                if stop.number is not None:
                    raise Interrupted("stopped", stop.number)
                board.show(shared.rows())
                time.sleep(POLL)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            for process in processes:
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
            shared.bury()
    if not any(row.state in ("done", "failed") for row in shared.rows()):
        raise RunError(f"the study's workers could not work; {log} says why", hint="--workers 1 works in this process")
    if not log.stat().st_size:
        log.unlink()


def at_a_time(plan: Plan) -> int:
    """Small networks leave cores idle, so that as many are trained at a time; larger ones take the whole machine."""
    if plan.verb != "fit" or plan.config.train.device not in ("auto", "cpu"):
        return 1
    import torch

    if torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, 8, len(plan.queue)))


def _in_equal_time(plan: Plan, listener: Listener) -> Plan:
    """--match seconds: the minutes given, or as long as the first variant takes by itself."""
    if plan.match != "seconds" or plan.base.get("minutes") is not None:
        return plan
    first = next(v for v in plan.queue if v is not None)
    seconds = plan.training.seconds(plan.trial_config(first, plan.seeds[0]))
    listener.say(f"every variant trains for {duration(seconds)}, as long as {plan.label(first)} takes")
    base = {k: v for k, v in plan.base.items() if k != "minutes"}
    return replace(plan, base={**base, "minutes": seconds / 60})


def source_name(plan: Plan) -> str:
    config = plan.base
    return Path(str(config.get("source") or "+".join(config.get("sources", ["stdlib"])))).stem[:40]


def command(plan: Plan) -> str:
    """The command that asks the same again."""
    words = ["feedfwd", "compare", *positional(plan.base)]
    if plan.verb != "fit":
        words += ["--verb", plan.verb]
    for axis in plan.axes:
        levels = getattr(axis, "levels", None)
        if levels is None:
            words += ["--vary", f"{axis.name}={axis.low}..{axis.high}"]  # type: ignore[union-attr]
        else:
            values = [next(iter(of.values())) for of in levels.values()]
            words += ["--vary", f"{axis.name}=" + ",".join(v if isinstance(v, str) else json.dumps(v) for v in values)]
    words += ["--seeds", str(len(plan.seeds))]
    for name, value, usual in (
        ("search", plan.search, "grid"),
        ("match", plan.match, None),
        ("trials", plan.trials, None),
    ):
        if value != usual:
            words += [f"--{name}", str(value)]
    return shlex.join(words + options(plan.base))


def positional(base: dict[str, Any]) -> list[str]:
    """What is trained on."""
    return [base["source"]] if "source" in base else list(base.get("sources", []))


def options(base: dict[str, Any]) -> list[str]:
    """Settings as they are said on the command line.

    >>> options({"source": "a.csv", "target": ["y"], "effort": "quick", "ffn": {"dropout": 0.1}})
    ['--target', 'y', '--effort', 'quick', '--set', 'ffn.dropout=0.1']
    """
    words = []
    for key, value in base.items():
        if isinstance(value, dict):
            words += _sets(key, value)
        elif key not in ("source", "sources") and value is not None:
            for one in value if isinstance(value, list) else [value]:
                words += [f"--{FLAGS.get(key, key).replace('_', '-')}", str(one)]
    return words


def _sets(prefix: str, values: dict[str, Any]) -> list[str]:
    words = []
    for name, value in values.items():
        if isinstance(value, dict):
            words += _sets(f"{prefix}.{name}", value)
        elif value is not None:
            words += ["--set", f"{prefix}.{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return words


def whole(tree: dict[str, Any]) -> dict[str, Any]:
    """Without what is None, for which TOML has no word."""
    return {k: whole(v) if isinstance(v, dict) else v for k, v in tree.items() if v is not None}
