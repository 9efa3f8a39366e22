"""`feedfwd finetune --task …`: which task is meant, and the verbs of those that are not about labels."""

from pathlib import Path
from typing import Any

from feedfwd.cli_settings import STARTED, layered


def task_of(
    terminal: Any, flags: dict[str, Any], set_: list[str] | None, config: Path | None, *, labelled: bool
) -> str | None:
    """The task that was said anywhere, else what the columns tell, unless they are `labelled`; None by their target."""
    from feedfwd.config_finetune import FinetuneConfig
    from feedfwd.data import tasks
    from feedfwd.errors import ConfigError, nearest

    head = [pair for pair in set_ or [] if pair.partition("=")[0].strip() in ("task", "source", "target")]
    settings = layered(FinetuneConfig, config, head, flags)
    task, source = settings.get("task", "auto"), settings.get("source")
    if task not in (*tasks.TASKS, "auto"):
        raise ConfigError(f"there is no task {task!r}", hint=nearest(str(task), tasks.TASKS))
    if task != "auto" or labelled or not isinstance(source, str):
        return None if task == "auto" else str(task)
    if (found := tasks.task_of(source, settings.get("target"))) is None:
        return None
    terminal.say(f"taken as --task {found[0]}: {found[1]}; --task says otherwise")
    return found[0]


def train_further(
    terminal: Any, flags: dict[str, Any], set_: list[str] | None, config: Path | None, run: Path | None, dry_run: bool
) -> None:
    """`feedfwd finetune --task continue`, which is `feedfwd pretrain --from`."""
    from feedfwd.config import parse
    from feedfwd.config_pretrain import PretrainConfig
    from feedfwd.errors import ConfigError
    from feedfwd.recipes import pretrain as recipe

    for name in ("test", "target", "shots"):
        if flags.pop(name) is not None:
            raise ConfigError(f"--{name} is for labelled texts, not for --task continue", hint="leave it out")
    column, source = flags.pop("text"), flags.pop("source")
    set_ = [*(set_ or []), *([f"data.column={column}"] if column is not None else [])]
    flags = flags | {"sources": None if source is None else [source], "task": None}
    settings = layered(PretrainConfig, config, set_, flags)
    settings.pop("task", None)
    if "sources" not in settings:
        raise ConfigError("no text to train on", hint="try: feedfwd finetune texts.txt --task continue --from RUN")
    if "pretrained" not in settings:
        raise ConfigError("--task continue needs a model to train further", hint="name one with --from")
    chosen = parse(PretrainConfig, settings)
    if dry_run:
        recipe.dry_run(chosen, terminal)
    else:
        recipe.pretrain_config(chosen, run, terminal, started=STARTED)


def learn_to_answer(
    terminal: Any, flags: dict[str, Any], set_: list[str] | None, config: Path | None, run: Path | None, dry_run: bool
) -> None:
    """`feedfwd finetune --task instruct`."""
    from feedfwd.config import parse
    from feedfwd.config_instruct import InstructConfig
    from feedfwd.errors import ConfigError
    from feedfwd.recipes import instruct

    for name in ("text", "target", "shots"):
        if flags.pop(name) is not None:
            raise ConfigError(f"--{name} is for labelled texts, not for --task instruct", hint="leave it out")
    settings = layered(InstructConfig, config, set_, flags)
    if "source" not in settings:
        raise ConfigError("no DATA to train on", hint="try: feedfwd finetune chats.jsonl --task instruct --from RUN")
    if "pretrained" not in settings:
        raise ConfigError("--task instruct needs a model that writes already", hint="name one with --from")
    chosen = parse(InstructConfig, settings)
    if dry_run:
        instruct.dry_run(chosen, terminal)
    else:
        instruct.instruct_config(chosen, run, terminal, started=STARTED)


def learn_from_pairs(
    terminal: Any, flags: dict[str, Any], set_: list[str] | None, config: Path | None, run: Path | None, dry_run: bool
) -> None:
    """`feedfwd finetune --task embed` and `--task rank`."""
    from feedfwd.config import parse
    from feedfwd.config_retrieval import EmbedConfig, RankConfig
    from feedfwd.errors import ConfigError
    from feedfwd.recipes import embed, rank

    if flags.pop("shots") is not None:
        raise ConfigError("--shots is for labelled texts to classify", hint="leave it out")
    ranking = flags["task"] == "rank"
    settings = layered(RankConfig if ranking else EmbedConfig, config, set_, flags)
    if "source" not in settings:
        raise ConfigError("no DATA to train on", hint=f"try: feedfwd finetune pairs.csv --task {flags['task']}")
    if not ranking:
        chosen = parse(EmbedConfig, settings)
        if dry_run:
            embed.dry_run(chosen, terminal)
        else:
            embed.embed_config(chosen, run, terminal, started=STARTED)
        return
    if "pretrained" not in settings:
        raise ConfigError("--task rank needs a model that reads already", hint="name one with --from")
    wanted = parse(RankConfig, settings)
    if dry_run:
        rank.dry_run(wanted, terminal)
    else:
        rank.rank_config(wanted, run, terminal, started=STARTED)
