"""What `finetune` may learn: for each task its settings, its recipe, and what doesn't go with it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from feedfwd.config import merge, parse
from feedfwd.errors import ConfigError, nearest

UNFIT = {  # what is asked for labelled texts alone
    "continue": ("test", "target", "shots", "teacher", "unlabelled"),
    "instruct": ("text", "target", "shots", "teacher", "unlabelled"),
    "embed": ("shots", "teacher", "unlabelled"),
    "rank": ("shots", "teacher", "unlabelled"),
}
NEEDED = {  # the model that it can't do without
    "continue": "a model to train further",
    "instruct": "a model that writes already",
    "rank": "a model that reads already",
}
EXAMPLES = {
    "continue": "texts.txt --task continue --from RUN",
    "instruct": "chats.jsonl --task instruct --from RUN",
    "embed": "pairs.csv --task embed",
    "rank": "pairs.csv --task rank",
}


class Task(NamedTuple):
    """What its settings are and what is done with them."""

    settings: type[Any]
    train: Callable[..., Any]  # (settings, run folder, listener) -> what was trained
    dry_run: Callable[..., Any]  # (settings, listener)
    resume: Callable[..., Any]  # (run folder, listener) -> what was trained


def task(name: str | None) -> Task:
    """By its name, or its run's verb; any other one learns labels or numbers. Imported here, where it is asked for."""
    match name:
        case "continue":
            from feedfwd.config_pretrain import PretrainConfig
            from feedfwd.recipes import pretrain

            return Task(PretrainConfig, pretrain.pretrain_config, pretrain.dry_run, pretrain.resume)
        case "instruct":
            from feedfwd.config_instruct import InstructConfig
            from feedfwd.recipes import instruct

            return Task(InstructConfig, instruct.instruct_config, instruct.dry_run, instruct.resume)
        case "embed":
            from feedfwd.config_retrieval import EmbedConfig
            from feedfwd.recipes import embed

            return Task(EmbedConfig, embed.embed_config, embed.dry_run, embed.resume)
        case "rank":
            from feedfwd.config_retrieval import RankConfig
            from feedfwd.recipes import rank

            return Task(RankConfig, rank.rank_config, rank.dry_run, rank.resume)
    from feedfwd.config_finetune import FinetuneConfig
    from feedfwd.recipes import finetune

    return Task(FinetuneConfig, finetune.finetune_config, finetune.dry_run, finetune.resume)


def found(name: object, source: object, target: Any = None, *, labelled: bool = False) -> tuple[str | None, str]:
    """The task that was said, or what the columns tell where that is "auto", unless they are `labelled`; and a word
    about it. None: labels or numbers, by what the target is.
    """
    from feedfwd.data import tasks

    if name not in (*tasks.TASKS, "auto"):
        raise ConfigError(f"there is no task {name!r}", hint=nearest(str(name), tasks.TASKS))
    if name != "auto" or labelled or not isinstance(source, str):
        return (None if name == "auto" else str(name)), ""
    if (by_columns := tasks.task_of(source, target)) is None:
        return None, ""
    return by_columns[0], f"taken as --task {by_columns[0]}: {by_columns[1]}; --task says otherwise"


def settings_of(name: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, as that task's settings call it; ConfigError for what is not for it."""
    given = {key: value for key, value in flags.items() if value is not None}
    for flag in UNFIT.get(str(name), ()):
        if flag in given:
            raise ConfigError(f"--{flag} is for labelled texts, not for --task {name}", hint="leave it out")
    if name == "continue":  # it is `pretrain --from`
        given.pop("task", None)
        if "source" in given:
            given["sources"] = [given.pop("source")]
        return merge(given, {"data": {"column": given.pop("text")}}) if "text" in given else given
    for flag, room, key in (("shots", "data", "shots"), ("teacher", "distil", "teacher"),
                            ("unlabelled", "distil", "unlabelled")):  # fmt: skip
        if flag in given:
            given = merge(given, {room: {key: given.pop(flag)}})
    return given


def settled(name: str | None, settings: Mapping[str, Any]) -> Any:
    """The validated settings of that task; ConfigError where the data or the model that it needs are not named."""
    given = dict(settings)
    if name == "continue":
        given.pop("task", None)
    if not given.keys() & {"source", "sources"}:
        raise ConfigError("no DATA to train on", hint=f"try: feedfwd finetune {EXAMPLES.get(str(name), 'train.csv')}")
    if name in NEEDED and "pretrained" not in given:
        raise ConfigError(f"--task {name} needs {NEEDED[name]}", hint="name one with --from")
    return parse(task(name).settings, given)
