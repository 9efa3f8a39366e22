"""The Python face of the recipes: `ff.fit` and `ff.load`."""

from pathlib import Path
from typing import Any

from feedfwd.config import FitConfig, merge, parse
from feedfwd.recipes.console import Terminal
from feedfwd.recipes.fit import fit_config
from feedfwd.recipes.predictor import Predictor
from feedfwd.recipes.verbs import verb_of


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
    flags = {
        "test": None if test is None else str(test),
        "target": [target] if isinstance(target, str) else target,
        "effort": effort,
        "minutes": minutes,
        "seed": seed,
        "data_dir": None if data_dir is None else str(data_dir),
    }
    given: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    if split is not None:
        given["data"] = {"split": split}
    config = parse(FitConfig, merge(source.said(), given))
    for key, value in (settings or {}).items():
        config = config.with_(key, value)
    with Terminal() as terminal:
        return fit_config(config, None if run is None else Path(run), terminal)


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
