"""`feedfwd finetune --task …`: which task is meant, and its recipe."""

from pathlib import Path
from typing import Any

from feedfwd.cli_settings import STARTED, layered


def task_of(
    terminal: Any, flags: dict[str, Any], set_: list[str] | None, config: Path | None, *, labelled: bool
) -> str | None:
    """The task that was said anywhere, else what the columns tell, unless they are `labelled`; None by their target."""
    from feedfwd.config_finetune import FinetuneConfig
    from feedfwd.recipes import tasks

    head = [pair for pair in set_ or [] if pair.partition("=")[0].strip() in ("task", "source", "target")]
    settings = layered(FinetuneConfig, config, head, flags)
    task, source = settings.get("task", "auto"), settings.get("source")
    found, said = tasks.found(task, source, settings.get("target"), labelled=labelled)
    if said:
        terminal.say(said)
    return found


def learn(
    terminal: Any,
    task: str | None,
    flags: dict[str, Any],
    set_: list[str] | None,
    config: Path | None,
    run: Path | None,
    dry_run: bool,
) -> None:
    """Train by what was typed, or say what would be trained."""
    from feedfwd.recipes import tasks

    set_ = [pair for pair in set_ or [] if pair.partition("=")[0].strip() != "task"]
    of = tasks.task(task)
    given = tasks.settings_of(task, {**flags, "task": task})
    chosen = tasks.settled(task, layered(of.settings, config, set_, given))
    if dry_run:
        of.dry_run(chosen, terminal)
    else:
        of.train(chosen, run, terminal, started=STARTED)
