"""Folders of Hugging Face's as one `Transformer`, and a Transformer as such a folder, with the same outputs.

What AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM or AutoModelForSequenceClassification gives for a folder,
`read` gives, and `export` writes what they load. `families` has the rows of settings and names. Nothing of transformers
is imported.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from feedfwd.errors import ConfigError, DataError, nearest
from feedfwd.interop.families import FAMILIES, family_named, family_of
from feedfwd.interop.family import Config, Family, Pair
from feedfwd.interop.weights import read_json, read_tensors
from feedfwd.models.heads import TiedHead
from feedfwd.models.transformer import Transformer, build

OLD = {".gamma": ".weight", ".beta": ".bias"}  # of norms, in models converted from TensorFlow
LAST = {  # what a model's class is called, and what that makes of the last states
    "ForCausalLM": "tokens", "LMHeadModel": "tokens", "ForMaskedLM": "masked", "ForPreTraining": "masked",
    "ForSequenceClassification": "classes",
}  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A model that was read, its family, and its config.json."""

    model: Transformer
    family: Family
    config: Mapping[str, Any]


def read(folder: Path | str, *, dropout: float | None = None) -> Loaded:
    """The model of a folder, in fp32 and in evaluation; `dropout` in place of what its config.json says.

    Raises ConfigError for a family or a setting that isn't here, and DataError for tensors that are missing, too many,
    of another shape or not finite.
    """
    folder = Path(folder)
    config = Config(read_json(folder / "config.json"))
    family = family_named(config.get("model_type"))
    for key, allowed in ({"quantization_config": (None,)} | family.plain).items():
        if key in config and config[key] is not None and config[key] not in allowed:
            what = f"{folder}: config.json says {key}={config[key]!r}, which is not here"
            raise ConfigError(what, hint="take a model without it")
    tensors = _known_names(family, read_tensors(folder))
    settings = family.settings(config) | _head(family, config, tensors)
    if dropout is not None:
        settings["dropout"] = dropout
    model = build(settings, empty=True)
    _fill(model, from_theirs(family, model, tensors, folder))
    return Loaded(model.eval(), family, config)


def _known_names(family: Family, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names that the family's table has: with its prefix, no old or second names."""
    known = {re.sub(r"\d+", "{}", name) for head in family.heads for p in family.pairs(head) for name in p.theirs}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for old, new in OLD.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        for candidate in (name, family.prefix + name):
            if re.sub(r"\d+", "{}", candidate) in known:
                name = candidate
        if not any(re.fullmatch(pattern, name) for pattern in family.ignored):
            found[name] = tensor
    for other, name in family.same.items():
        if other in found:  # where the two differ, this one is used
            found[name] = found.pop(other)
    return found


def _head(family: Family, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings that say what stands above the last states: by the class's name, or by the tensors there are."""
    architecture = next(iter(config.get("architectures") or [""]))
    kind = next((kind for ending, kind in LAST.items() if architecture.endswith(ending)), "none")
    if not architecture:
        kind = next((kind for kind in ("tokens", "masked", "classes") if _has(family, kind, tensors)), "none")
    if kind not in family.heads:
        raise ConfigError(f"family {family.name!r} has no {architecture} here", hint=nearest(kind, family.heads))
    pairs = {name: pair.theirs[0] for pair in family.pairs(kind) for name in pair.ours}
    settings: dict[str, Any] = {"head": kind, "pooler": pairs.get("pooler.weight") in tensors}
    if kind == "classes":
        if (weight := tensors.get(pairs["head.weight"])) is None:
            raise DataError(f"the weights lack {pairs['head.weight']!r}", hint="fetch or copy the model again")
        settings["classes"] = len(weight)
    if kind == "tokens" and config.get("tie_word_embeddings", True):
        matrix, embedding = (tensors.get(pairs[name]) for name in ("head.weight", "embedding.weight"))
        if matrix is not None and embedding is not None and not torch.equal(matrix, embedding):
            settings["tied"] = False  # whatever config.json says, there are two
    return settings


def _has(family: Family, head: str, tensors: Mapping[str, Tensor]) -> bool:
    own = {pair.theirs[0] for pair in family.heads[head].names if pair.ours[0].startswith("head.")}
    return bool(own & set(tensors))


def from_theirs(family: Family, model: Transformer, tensors: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """A family's tensors as the model's, in fp32, checked against what the model needs."""
    state = model.state_dict()
    found: dict[str, Tensor] = {}
    left = dict(tensors)
    for pair, block in _places(family, model.head_kind, state):
        ours, theirs = ([name.format(block) for name in names] for names in (pair.ours, pair.theirs))
        if ours[0] not in state:
            continue
        if lacking := [name for name in theirs if name not in left]:
            hint = "the file is incomplete, or config.json is of another model"
            raise DataError(f"{where}: the weights lack {lacking[0]!r}", hint=hint)
        parts = [_sound(where, name, left.pop(name)) for name in theirs]
        whole = torch.cat([part.t() if pair.transposed else part for part in parts])
        if ours[0] == "position_embedding.weight":
            whole = whole[family.offset :]
        wanted = sum(len(state[name]) for name in ours), *state[ours[0]].shape[1:]
        if whole.shape != wanted:
            what = f"{where}: {' and '.join(theirs)} make {tuple(whole.shape)}, and config.json asks for {wanted}"
            raise DataError(what, hint="the weights and config.json are of different models")
        found |= dict(zip(ours, (part.contiguous() for part in whole.chunk(len(ours))), strict=True))
    if model.tied:  # written beside the embedding's all the same
        for pair in family.pairs(model.head_kind):
            if pair.ours[0] in ("head.weight", "head.matrix.weight") and model.head_kind != "classes":
                left.pop(pair.theirs[0], None)
    if left:
        what = f"{where}: {len(left)} tensors have no place in this model, the first is {min(left)!r}"
        raise DataError(what, hint="config.json is of another model, or of a kind that is not here")
    return found


def _sound(where: object, name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise DataError(f"{where}: {name!r} holds {tensor.dtype}", hint="quantized weights are not read")
    if not bool(tensor.isfinite().all()):
        raise DataError(
            f"{where}: {name!r} holds values that are not finite", hint="the file is damaged: fetch it anew"
        )
    return tensor.float()


def _fill(model: Transformer, state: Mapping[str, Tensor]) -> None:
    """Give an empty model its tensors, and its tied head the embedding's again."""
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        if isinstance(module, TiedHead):
            module.weight = model.embedding.weight


def export(
    model: Transformer,
    folder: Path | str,
    *,
    tokenizer: str | None = None,
    special_tokens: Mapping[str, str] | None = None,
    end: int | None = None,
    pad: int | None = None,
    family: str | None = None,
    labels: Sequence[str] | None = None,
    longest: int | None = None,
    problem: str | None = None,
) -> Family:
    """Write config.json, model.safetensors, generation_config.json and the tokenizer's files; the family taken.

    `tokenizer` is the text of a tokenizer.json, `special_tokens` its tokens by role ("eos_token": "<|end|>"), `end` the
    id that ends a text, `pad` the one that fills up rows (not given: `end`). `family` by name, or the first that can
    express the model. `labels` name the classes, and `problem` is transformers' word for what they are. The tokenizer
    is said to cut at `longest` tokens (not given: as many as the model has positions).
    """
    chosen = family_of(model) if family is None else family_named(family)
    for setting, value in chosen.unable(model):
        raise ConfigError(f"family {family!r} has no {setting}={value!r}", hint=_instead(model))
    tensors = to_theirs(chosen, model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end if pad is None else pad}
    about: dict[str, Any] = {"model_type": chosen.name, "architectures": [chosen.heads[model.head_kind].architecture]}
    if model.classes:
        names = [f"LABEL_{i}" for i in range(model.classes)] if labels is None else labels
        about["id2label"] = {str(i): name for i, name in enumerate(names)}
        about["label2id"] = {name: i for i, name in enumerate(names)}
        about |= {} if problem is None else {"problem_type": problem}
    _write(folder / "config.json", about | {"dtype": "float32"} | ids | chosen.config(model))
    if model.causal:
        _write(folder / "generation_config.json", ids | {"do_sample": True, "max_length": model.context})
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest or model.context}
        settings["model_input_names"] = ["input_ids", "attention_mask"]
        extra = {"clean_up_tokenization_spaces": False, "add_bos_token": False, "add_eos_token": False}
        _write(folder / "tokenizer_config.json", settings | extra | dict(special_tokens or {}))
    return chosen


def _instead(model: Transformer) -> str:
    able = [name for name, family in FAMILIES.items() if not family.unable(model)]
    return f"take family {able[0]!r}" if able else "no family can express this model"


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def to_theirs(family: Family, model: Transformer) -> dict[str, Tensor]:
    """The tensors under the family's names. Raises ConfigError for one it has no name for."""
    state = model.state_dict()
    found: dict[str, Tensor] = {}
    left = dict(state)
    for pair, block in _places(family, model.head_kind, state):
        ours = [name.format(block) for name in pair.ours]
        if not all(name in left for name in ours):
            continue
        whole = torch.cat([left.pop(name).detach() for name in ours])
        if ours[0] == "position_embedding.weight" and family.offset:
            whole = torch.cat([whole.new_zeros(family.offset, whole.shape[1]), whole])
        whole = whole.t() if pair.transposed else whole
        for name, part in zip(pair.theirs, whole.chunk(len(pair.theirs)), strict=True):
            name = name.removeprefix(family.prefix) if model.head_kind == "none" else name
            found[name.format(block)] = part.float().contiguous().clone()
    if family.zero_biases(model):
        for name, weight in list(found.items()):
            if name.endswith("self_attn.o_proj.weight"):
                found[name.removesuffix("weight") + "bias"] = torch.zeros(len(weight))
    if not model.tied:
        found |= {other: found[name].clone() for other, name in family.same.items() if name in found}
    if left:
        raise ConfigError(f"family {family.name!r} has no place for {min(left)!r}", hint="merge adapters first")
    return found


def _places(family: Family, head: str, state: Mapping[str, Tensor]) -> Iterator[tuple[Pair, int]]:
    """Every pair, those of blocks once for each block."""
    depth = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=-1)
    for pair in family.pairs(head):
        for block in range(depth) if "{}" in pair.ours[0] else [0]:
            yield pair, block
