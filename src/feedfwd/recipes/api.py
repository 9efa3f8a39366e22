"""The Python face of the recipes: `ff.fit`, `ff.pretrain`, `ff.finetune` and `ff.load`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedfwd.config import FitConfig, merge, parse
from feedfwd.recipes.console import Terminal
from feedfwd.recipes.fit import fit_config
from feedfwd.recipes.predictor import Predictor
from feedfwd.recipes.verbs import verb_of

if TYPE_CHECKING:
    from feedfwd.recipes.writer import Writer


def fit(
    source: str | Path | FitConfig,
    *,
    run: str | Path | None = None,
    test: str | Path | None = None,
    target: str | list[str] | None = None,
    split: str | None = None,
    effort: str | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    data_dir: str | Path | None = None,
    settings: dict[str, Any] | None = None,
) -> Predictor:
    """Train on a source, as the command `feedfwd fit` does, and return the trained predictor.

    `target` is the column of a table to predict, `split` how its test part is found: random, time:COLUMN, group:COLUMN.
    `settings` holds further settings by dotted key, such as {"ffn.activation": "gelu"}; `source` may also be a whole
    FitConfig. Raises FeedfwdError for what can't be trained.
    """
    if not isinstance(source, FitConfig):
        source = parse(FitConfig, {"source": str(source) if isinstance(source, Path) else source})
    flags: dict[str, Any] = {"test": test, "effort": effort, "minutes": minutes, "seed": seed, "data_dir": data_dir}
    given = _given(flags | {"target": [target] if isinstance(target, str) else target})
    if split is not None:
        given["data"] = {"split": split}
    config = _set(parse(FitConfig, merge(source.said(), given)), settings)
    with Terminal() as terminal:
        return fit_config(config, _path(run), terminal)


def pretrain(
    *sources: str | Path,
    run: str | Path | None = None,
    size: str | None = None,
    pretrained: str | Path | None = None,
    method: str | None = None,
    effort: str | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    settings: dict[str, Any] | None = None,
) -> "Writer":
    """Train a language model on raw text, as the command `feedfwd pretrain` does, and return what writes.

    Without a source on the running Python's standard library. `pretrained` is a model to train further; `settings`
    holds more by dotted key, such as {"model.width": 192}. Raises FeedfwdError for what can't be trained.
    """
    from feedfwd.config_pretrain import PretrainConfig
    from feedfwd.recipes.pretrain import pretrain_config

    flags: dict[str, Any] = {
        "sources": [str(source) for source in sources] or None,
        "size": size,
        "pretrained": pretrained,
    }
    flags |= {"method": method, "effort": effort, "minutes": minutes, "seed": seed}
    config = _set(parse(PretrainConfig, _given(flags)), settings)
    with Terminal() as terminal:
        return pretrain_config(config, _path(run), terminal)


def finetune(
    source: str | Path,
    *,
    pretrained: str | Path | None = None,
    task: str | None = None,
    method: str | None = None,
    test: str | Path | None = None,
    text: str | None = None,
    target: str | None = None,
    shots: int | None = None,
    teacher: str | Path | None = None,
    unlabelled: str | Path | None = None,
    run: str | Path | None = None,
    effort: str | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    settings: dict[str, Any] | None = None,
) -> Any:
    """Adapt a model to texts, as the command `feedfwd finetune` does; without `pretrained` from scratch.

    Returns what `ff.load` gives of such a run: a TextClassifier, or by the task a TextEncoder ("embed"), a Ranker
    ("rank"), a Chatter ("instruct") or a Writer ("continue"). `settings` holds further settings by dotted key, such as
    {"train.epochs": 3}. Raises FeedfwdError for what can't be trained.
    """
    from feedfwd.recipes import tasks

    of_labels = {"shots": shots, "teacher": teacher, "unlabelled": unlabelled}
    flags: dict[str, Any] = {
        "source": source,
        "pretrained": pretrained,
        "method": method,
        "test": test,
        "text": text,
        "target": target,
    }
    flags |= {"effort": effort, "minutes": minutes, "seed": seed, **of_labels}
    given = _given(flags)
    labelled = teacher is not None or unlabelled is not None
    with Terminal() as terminal:
        name, said = tasks.found(task or "auto", given["source"], target, labelled=labelled)
        if said:
            terminal.say(said)
        config = _set(tasks.settled(name, tasks.settings_of(name, given | {"task": name})), settings)
        return tasks.task(name).train(config, _path(run), terminal)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """Those that were given, paths as text."""
    said = {key: value for key, value in flags.items() if value is not None}
    return {key: str(value) if isinstance(value, Path) else value for key, value in said.items()}


def _path(run: str | Path | None) -> Path | None:
    return None if run is None else Path(run)


def _set(config: Any, settings: dict[str, Any] | None) -> Any:
    for key, value in (settings or {}).items():
        config = config.with_(key, value)
    return config


def load(run: str | Path) -> Any:
    """What a finished run trained; `feedfwd.loading` says what that is."""
    path = Path(run)
    verb = verb_of(path)
    if verb == "finetune":
        from feedfwd.recipes.classifier import TextClassifier

        return TextClassifier.load(path)
    if verb == "embed":
        from feedfwd.recipes.searcher import TextEncoder

        return TextEncoder.load(path)
    if verb == "rank":
        from feedfwd.recipes.ranker import Ranker

        return Ranker.load(path)
    if verb == "instruct":
        from feedfwd.recipes.chatter import Chatter

        return Chatter.load(path)
    if verb == "pretrain":
        from feedfwd.recipes.writer import Writer

        return Writer.load(path)
    return Predictor.load(path)
