"""A pretrained model by its place: a run of ours, a folder of Hugging Face's, or a name on the hub."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedfwd.checkpoint import Run
from feedfwd.data.hub import fetch_model
from feedfwd.data.model_tokenizer import ModelTokenizer
from feedfwd.errors import ConfigError, DataError, RunError
from feedfwd.interop.huggingface import read
from feedfwd.interop.weights import read_json
from feedfwd.models.transformer import Transformer, build
from feedfwd.recipes.verbs import verb_of
from feedfwd.recipes.writer import TOKENIZER, Writer

__all__ = ["Pretrained", "build", "load_pretrained"]


@dataclass(frozen=True)
class Pretrained:
    """A model in evaluation, and all that using it or making it anew asks for.

    `settings` are plain JSON values: `build(settings)` makes the same network, empty of what was learnt, and
    `ModelTokenizer(tokenizer.text, …)` the tokenizer, so that a run can carry both. Rows are filled up on the right by
    `tokenizer.pad`, and `model.hidden(ids, lengths=[…])` gives the last states (B, T, W); what it gives for the filling
    means nothing. `pooling` makes one vector of a row's own states: their "mean", the first one ("cls": for an encoder
    `model.summary(h)` sends it through its trained pooler) or the "last". `normalize`: the model was trained with
    vectors of length 1. `longest` is how many positions the model has.
    """

    name: str
    model: Transformer
    settings: dict[str, Any]
    tokenizer: ModelTokenizer
    longest: int
    pooling: str  # "mean", "cls" or "last"
    normalize: bool = False
    family: str = ""  # the row of `interop.families` it was read by; none for a run of ours
    labels: tuple[str, ...] = ()  # names of its classes, where it has a classifying head
    folder: Path | None = None  # where its files are, a chat template among them if it has one


def load_pretrained(source: str, *, dropout: float | None = None) -> Pretrained:
    """The model at `source`: a run of `pretrain`, or of `finetune` whatever its task, a folder with a config.json, or
    owner/name.

    `dropout` takes the place of what the model was trained with. Raises DataError for what isn't there, is damaged or
    holds weights that are no numbers,
    RunError for a run that is incomplete, ConfigError for a family or a setting that isn't here.
    """
    found = _loaded(source, dropout)
    for name, tensor in found.model.state_dict().items():
        if not tensor.isfinite().all():
            what = f"{found.name}: {name} holds values that are not finite"
            raise DataError(what, hint="fetch the model again, or take an earlier state of it")
    return found


def _loaded(source: str, dropout: float | None) -> Pretrained:
    path = Path(source).expanduser()
    if (path / "config.toml").is_file():
        match verb_of(path):
            case "finetune" | "embed" | "rank":
                return _of_encoder(path, dropout)
            case "instruct":
                return _of_chatter(path, dropout)
        return _of_run(path, dropout)
    if path.is_dir():
        return _of_folder(path, source, dropout)
    if source.count("/") == 1 and not path.exists() and not source.startswith((".", "~", "/")):
        return _of_folder(fetch_model(source), source, dropout)
    what = f"{source} is neither a run, nor a model's folder, nor a name on the hub"
    raise DataError(what, hint="check the path, or give a name such as sentence-transformers/all-MiniLM-L6-v2")


def _of_run(path: Path, dropout: float | None) -> Pretrained:
    writer = Writer.load(path)
    model = writer.model
    if dropout is not None:
        settings = model.settings | {"dropout": dropout}
        fresh = build(settings)
        fresh.load_state_dict(model.state_dict())
        model = fresh.eval()
    if (said := writer.about) is not None:  # it went on with a model that says itself how it reads
        tokenizer = ModelTokenizer(
            Run(path).read_text(path / TOKENIZER), said["special"], before=said["before"], after=said["after"]
        )
        of = said["pooling"], said["normalize"], said["family"]
        return Pretrained(str(path), model, model.settings, tokenizer, model.context, *of)
    tokenizer = ModelTokenizer.of(writer.tokenizer, both=not model.causal)
    return Pretrained(str(path), model, model.settings, tokenizer, model.context, "mean")


def _of_encoder(path: Path, dropout: float | None) -> Pretrained:
    """What a fine-tuned encoder has become, without its head."""
    run = Run.open(path)
    said = run.read_json(run.preprocess_file).get("pretrained")
    if said is None:
        what = f"{path} is a bag of n-grams, which nothing can start from"
        raise ConfigError(what, hint="give a run that itself was started with --from, or a model")
    model = build(said["settings"] | ({} if dropout is None else {"dropout": dropout}))
    own = {name.removeprefix("backbone."): t for name, t in run.load_model().items() if name.startswith("backbone.")}
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise run.misfit(error) from None
    tokenizer = ModelTokenizer(
        run.read_text(path / TOKENIZER), said["special"], before=said["before"], after=said["after"]
    )
    pooling, family = said["pooling"], said["family"]
    return Pretrained(str(path), model.eval(), model.settings, tokenizer, model.context, pooling, family=family)


def _of_chatter(path: Path, dropout: float | None) -> Pretrained:
    """What a model that learnt to answer has become; its chat template stays its own."""
    run = Run.open(path)
    said, weights = run.read_json(run.preprocess_file), run.load_model()
    if not (path / TOKENIZER).is_file():
        raise RunError(f"{path} is incomplete: {TOKENIZER} is missing", hint="restore it from a copy of the run")
    try:
        model = build(said["settings"] | ({} if dropout is None else {"dropout": dropout}))
        text, around = run.read_text(path / TOKENIZER), {"before": said["before"], "after": said["after"]}
        tokenizer = ModelTokenizer(text, said["special"], **around)
    except (KeyError, TypeError) as error:
        what = f"{run.preprocess_file} doesn't tell of the model ({type(error).__name__}: {error})"
        raise RunError(what, hint="restore it from a copy, or train again") from None
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise run.misfit(error) from None
    family = str(said.get("family") or "")
    return Pretrained(
        str(path), model.eval(), model.settings, tokenizer, model.context, "last", family=family, folder=path
    )


def _of_folder(folder: Path, name: str, dropout: float | None) -> Pretrained:
    loaded = read(folder, dropout=dropout)
    model = loaded.model
    tokenizer = ModelTokenizer.load(folder, _special_tokens(folder))
    if tokenizer.vocabulary > model.vocabulary:
        what = f"{folder}: tokenizer.json has {tokenizer.vocabulary:,} tokens, and the model {model.vocabulary:,}"
        raise DataError(what, hint="they are of different models")
    pooling, normalize = _pooling(folder, model)
    names = loaded.config.get("id2label") or {}
    labels = tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(model.classes or 0))
    return Pretrained(
        name, model, model.settings, tokenizer, model.context, pooling, normalize, loaded.family.name, labels, folder
    )


def _special_tokens(folder: Path) -> dict[str, str]:
    """Special tokens by role, from the two files that may say them."""
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            for role, token in read_json(folder / file).items():
                token = token.get("content") if isinstance(token, Mapping) else token
                if role.endswith("_token") and isinstance(token, str):
                    found[role] = token
    return found


def _pooling(folder: Path, model: Transformer) -> tuple[str, bool]:
    """What sentence-transformers' files say; else an encoder's trained pooler, its mean, or a decoder's last token."""
    own = "last" if model.causal else "cls" if model.pooler is not None else "mean"
    if not (folder / "modules.json").is_file():
        return own, False
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in modules}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / 'modules.json'} is damaged: {error}", hint="fetch or copy it again") from None
    if more := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise ConfigError(f"{folder}: modules.json has a {more[0]} layer, which is not here", hint="take another model")
    if "Pooling" not in kinds:
        return own, "Normalize" in kinds
    said = read_json(folder / kinds["Pooling"] / "config.json")
    modes = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last"}
    chosen = [
        mode.removeprefix("pooling_mode_") for mode, on in said.items() if mode.startswith("pooling_mode_") and on
    ]
    if isinstance(said.get("pooling_mode"), str):
        chosen = [{"mean": "mean_tokens", "cls": "cls_token"}.get(said["pooling_mode"], said["pooling_mode"])]
    if len(chosen) != 1 or chosen[0] not in modes:
        what = f"{folder}: pooling {' and '.join(chosen) or 'of no kind'} is not here"
        raise ConfigError(what, hint=f"known: {', '.join(modes)}")
    return modes[chosen[0]], "Normalize" in kinds
