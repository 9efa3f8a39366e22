"""Low-rank adapters in the file format of Hugging Face's peft: adapter_config.json and adapter_model.safetensors.

A folder written here loads there by `PeftModel.from_pretrained`, and the other way round, with the same outputs. Keys
are `base_model.model.PATH.lora_A.weight` and so on. A packed weight is written as the projections it stacks, `gate_up`
as `gate_proj` and `up_proj`; maps that lie apart here and are packed there, as GPT-2's queries, keys and values, get
one adapter there whose rank is the sum of theirs. Nothing of peft is imported.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from feedfwd.errors import ConfigError, DataError, nearest
from feedfwd.ffn.lora import adapter_state, add_adapters, linear_maps, lora_layers
from feedfwd.ffn.lora_linear import KINDS, Adapter, LoRALinear
from feedfwd.interop.family import Family, Pair
from feedfwd.models.transformer import Transformer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
UNPACKED = {"gate_up": ("gate_proj", "up_proj")}
SUFFIXES = dict(zip(KINDS, ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_B.bias"), strict=True))
KEY = re.compile(
    r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector|lora_B\.bias|base_layer\.bias)(?:\.weight)?"
)
HEADS = ("lm_head", "cls.", "classifier", "score")  # what stands above a body
# Settings that change an adapter's outputs in a way that isn't read here.
FOREIGN = [
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config"),
    *("target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config"),
]

Names = Callable[[str], str]
Values = dict[str, Tensor]  # an adapter's tensors at one of their paths, by suffix


def family_names(family: Family, model: Transformer) -> Names:
    """Where a Transformer's modules are in the family's model with the same head."""
    names = names_from(family.pairs(model.head_kind))
    return (lambda path: names(path).removeprefix(family.prefix)) if model.head_kind == "none" else names


def names_from(pairs: Iterable[Pair]) -> Names:
    """The `names` that a family's table of tensors brings, for a model that `huggingface.export` writes as that family.

    Where one map there is several here, `#1/3` says which of its parts.

    >>> from feedfwd.interop.decoders import LLAMA_NAMES
    >>> names = names_from(LLAMA_NAMES)
    >>> names("blocks.3.ffn.up_proj"), names("head")
    ('model.layers.3.mlp.up_proj', 'lm_head')
    """
    table: dict[str, str] = {}
    for ours, theirs, *_ in pairs:
        there = [name.removesuffix(".weight") for name in theirs]
        if len(ours) > 1 and len(theirs) == 1:
            there = [f"{there[0]}#{at}/{len(ours)}" for at in range(len(ours))]
        here = [part for name in ours for part in _unpacked(name.removesuffix(".weight"))]
        table |= dict(zip(here, there, strict=False))

    def names(path: str) -> str:
        block = re.search(r"\d+", path)
        found = table.get(path if block is None else path.replace(block[0], "{}", 1), path)
        return found if block is None else found.replace("{}", block[0])

    return names


def save_peft(
    model: nn.Module,
    folder: Path | str,
    name: str = "default",
    *,
    names: Names = str,
    family: Family | None = None,
    base: str | None = None,
) -> None:
    """Write adapter `name` to a folder.

    For a Transformer that was read as a `family` that is enough. For others `names` turns a module's path here, with
    gate_proj and up_proj for gate_up, into its path in the model that peft will adapt; `base` says where that model
    comes from. Parameters that train beside the adapters, a classifier's head for instance, go along as peft's
    `modules_to_save`.
    """
    adapter_state(model, name)  # raises where there is no such adapter
    if family is not None:
        assert isinstance(model, Transformer)
        names = family_names(family, model)
    values: dict[str, Values] = defaultdict(dict)
    adapters: dict[str, Adapter] = {}
    for path, layer in lora_layers(model):
        if name not in layer.adapters:
            continue
        parts = [names(part) for part in _unpacked(path)]
        adapters |= dict.fromkeys(parts, layer.adapters[name])
        for kind, suffix in SUFFIXES.items():
            if name in getattr(layer, kind):
                whole = getattr(layer, kind)[name].detach()
                if kind == "lora_bias":  # peft scales it together with the rest
                    whole = whole / layer.adapters[name].scale
                pieces = zip(parts, whole.chunk(len(parts)), strict=True)
                for part, piece in pieces:
                    values[part][suffix] = piece.clone()
    if len({(a.method, a.dropout, a.bias) for a in adapters.values()}) > 1:
        what = f"adapter {name!r} differs between layers in method, dropout or bias"
        raise ConfigError(what, hint="peft's format has one of each; adapt all layers alike but for rank and alpha")
    packed = {part.partition("#")[0] for part in adapters if "#" in part}
    for path in packed:
        _join(path, values, adapters)
    tensors = {f"{PREFIX}{part}.{suffix}": t for part, own in values.items() for suffix, t in own.items()}
    others = [names(part) for path, _ in model.named_modules() for part in _unpacked(path)]
    others += [names(part) for path in linear_maps(model) for part in _unpacked(path)]
    if family is not None and isinstance(model, Transformer):  # what it may have that isn't here, as BERT's pooler
        others += [names(pair.ours[0].rpartition(".")[0]) for pair in family.pairs(model.head_kind)]
    others = [other.partition("#")[0] for other in others]
    config = _config(adapters, others) | {"base_model_name_or_path": base, "fan_in_fan_out": bool(packed)}
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad and ".lora_" not in key}
    if trained:
        config["modules_to_save"] = sorted({names(key.rpartition(".")[0]) for key in trained})
        tensors |= {PREFIX + _parameter(key, names): p.detach().clone() for key, p in trained.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def load_peft(
    model: nn.Module, folder: Path | str, name: str = "default", *, names: Names = str, family: Family | None = None
) -> list[str]:
    """Adapt a model with the adapter in a folder, under this name; the paths of the maps that have it now.

    `names` and `family` as in `save_peft`. A file that adapts one half of a packed weight is read with the other half
    at zero, A and B both, where it stays in training too. Whole tensors in the file (`modules_to_save`, biases of other
    layers) replace the model's; those of a head are left out where the model has none. Raises DataError for a folder
    that isn't such an adapter, or one made for another model.
    """
    config, tensors = _read(Path(folder))
    if family is not None:
        assert isinstance(model, Transformer)
        names = family_names(family, model)
        tensors = _prefixed(tensors, family.prefix, "" if model.head_kind == "none" else family.prefix)
        if model.head_kind == "none":
            above = HEADS if model.pooler is not None else (*HEADS, "pooler.")
            tensors = {key: t for key, t in tensors.items() if not key.removeprefix(PREFIX).startswith(above)}
    found: dict[str, Values] = defaultdict(dict)  # by their paths
    whole: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        key = key.removeprefix(PREFIX)
        if match := KEY.fullmatch(key):
            found[match[1]][match[2]] = tensor
        else:
            whole[key] = tensor
    places = {names(part): (path, at) for path in linear_maps(model) for at, part in enumerate(_unpacked(path))}
    _split(found, places)
    adapters: dict[str, Adapter] = {}
    base = config.get("base_model_name_or_path")
    for path, values in found.items():
        if path not in places:
            made = f"it was made for {base or 'another model'}"
            hint = f"{made}, or `names` must say what it is here; {nearest(path, places)}"
            raise DataError(f"{folder}: it adapts {path!r}, which this model hasn't", hint=hint)
        own = places[path][0]
        adapter = _adapter(config, path, values, _base(model, own), len(_unpacked(own)))
        if adapters.setdefault(own, adapter) != adapter:
            raise DataError(f"{folder}: the parts of {own!r} differ in rank or alpha", hint="adapt them alike")
    parameters = _parameters(model, names)
    for key, tensor in whole.items():
        if key not in parameters or parameters[key].shape != tensor.shape:
            hint = "merge it by peft, or build the model it was trained for"
            raise DataError(f"{folder}: it holds {key!r} {tuple(tensor.shape)}, which this model hasn't", hint=hint)
    with torch.no_grad():
        for key, tensor in whole.items():
            parameters[key].copy_(tensor)
        add_adapters(model, name, adapters)
        for own, layer in lora_layers(model):
            if own in adapters:
                parts = {at: found[path] for path, (place, at) in places.items() if place == own and path in found}
                _fill(layer, name, parts)
    return list(adapters)


def _prefixed(tensors: Mapping[str, Tensor], either: str, wanted: str) -> dict[str, Tensor]:
    """The tensors of a body with the prefix that it has under a head, or without, as it was saved or not."""
    found = {}
    for key, tensor in tensors.items():
        path = key.removeprefix(PREFIX).removeprefix(either)
        found[PREFIX + ("" if path.startswith(HEADS) else wanted) + path] = tensor
    return found


def _split(found: dict[str, Values], places: Collection[str]) -> None:
    """What adapts one map there as adapters of the several that it is here: A for each, B's and others' rows shared."""
    several = {place.partition("#")[0]: int(place.rpartition("/")[2]) for place in places if "#" in place}
    for path, count in several.items():
        values = found.pop(path, {})
        for at in range(count if values else 0):
            rows = {s: t if s == "lora_A.weight" else t.chunk(count)[at] for s, t in values.items()}
            found[f"{path}#{at}/{count}"] = rows


def _join(path: str, found: dict[str, Values], adapters: dict[str, Adapter]) -> None:
    """The reverse: A's one below the other, B's as blocks on a diagonal, those that aren't adapted at zero."""
    own = {part: found.pop(part) for part in list(found) if part.partition("#")[0] == path}
    made = [adapters.pop(part) for part in own]
    if len(set(made)) > 1:
        what = f"the maps that {path!r} packs have adapters that differ"
        raise ConfigError(what, hint="adapt them alike, or merge the adapter and save the model")
    first, count = made[0], int(next(iter(own)).rpartition("/")[2])
    if any("lora_magnitude_vector" in v for v in own.values()) and len(own) < count:
        raise ConfigError(f"dora on a part of {path!r} can't be written", hint="adapt q, k and v, or merge the adapter")
    joined: Values = {"lora_A.weight": torch.cat([values["lora_A.weight"] for values in own.values()])}
    rows = len(next(iter(own.values()))["lora_B.weight"])
    b = torch.zeros(rows * count, len(own) * first.rank)
    for order, (part, values) in enumerate(own.items()):
        at = int(part.partition("#")[2].partition("/")[0])
        columns = slice(order * first.rank, (order + 1) * first.rank)
        b[at * rows : (at + 1) * rows, columns] = values["lora_B.weight"]
        for suffix in set(values) - {"lora_A.weight", "lora_B.weight"}:
            whole = joined.setdefault(suffix, torch.zeros(rows * count))
            whole[at * rows : (at + 1) * rows] = values[suffix]
    found[path] = joined | {"lora_B.weight": b}
    grown = math.sqrt(len(own)) if first.method == "rslora" else len(own)  # so that the scale stays
    adapters[path] = replace(first, rank=first.rank * len(own), alpha=first.alpha * grown)


def _unpacked(path: str) -> list[str]:
    """The paths that a path stands for where nothing is packed."""
    parent, dot, leaf = path.rpartition(".")
    return [f"{parent}{dot}{part}" for part in UNPACKED.get(leaf, (leaf,))]


def _parameters(model: nn.Module, names: Names) -> dict[str, Tensor]:
    """All parameters by the names they have there, a packed one as the parts it stacks."""
    found: dict[str, Tensor] = {_parameter(key, names): p.detach() for key, p in model.named_parameters()}
    for path in linear_maps(model):
        parent, _, leaf = path.rpartition(".")
        owner = model.get_submodule(parent)
        for suffix, key in (("weight", leaf), ("bias", f"{leaf}_bias")):
            whole = getattr(owner, key, None)
            if isinstance(whole, Tensor):
                parts = _unpacked(path)
                found |= {
                    f"{names(p)}.{suffix}": t for p, t in zip(parts, whole.detach().chunk(len(parts)), strict=True)
                }
    return found


def _parameter(key: str, names: Names) -> str:
    """The name of a parameter there."""
    module, dot, leaf = key.rpartition(".")
    return f"{names(module)}{dot}{leaf}"


def _config(adapters: Mapping[str, Adapter], others: Collection[str]) -> dict[str, Any]:
    """What adapter_config.json says of adapters by path, in a model that has modules at the `others` too."""
    first = next(iter(adapters.values()))
    if first.method == "dora" and first.bias:
        raise ConfigError("peft's format has no bias for dora", hint="merge the adapter and save the model instead")
    rank = Counter(a.rank for a in adapters.values()).most_common(1)[0][0]
    alpha = Counter(a.alpha for a in adapters.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{path}": a.rank for path, a in adapters.items() if a.rank != rank},
        "alpha_pattern": {f"^{path}": a.alpha for path, a in adapters.items() if a.alpha != alpha},
        "lora_dropout": first.dropout,
        "lora_bias": first.bias,
        "use_rslora": first.method == "rslora",
        "use_dora": first.method == "dora",
        "target_modules": _targets(adapters, others),
        "bias": "none",
        "inference_mode": True,
        "modules_to_save": None,
        "task_type": None,
    }


def _targets(paths: Collection[str], others: Collection[str]) -> list[str] | str:
    """target_modules that match these paths and no other: last names where that will do, else paths, else a pattern."""
    for targets in sorted({path.rpartition(".")[2] for path in paths}), sorted(paths):
        if not any(f".{other}".endswith(tuple(f".{t}" for t in targets)) for other in set(others) - set(paths)):
            return targets
    return "|".join(re.escape(path) for path in sorted(paths))


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The two files of an adapter."""
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        hint = "save it again by peft with safe_serialization=True"
        raise DataError(f"{folder}: the weights are a pickle, which could run code", hint=hint)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        hint = f"an adapter's folder holds {CONFIG} and {WEIGHTS}"
        raise DataError(f"{folder}: there is no {Path(error.filename or WEIGHTS).name}", hint=hint) from None
    except (json.JSONDecodeError, SafetensorError, UnicodeDecodeError) as error:
        raise DataError(f"{folder}: the adapter is damaged", hint=str(error)) from None
    if config.get("peft_type") != "LORA":
        raise DataError(f"{folder}: peft_type={config.get('peft_type')!r}", hint="LORA is read, with rsLoRA and DoRA")
    if foreign := [setting for setting in FOREIGN if config.get(setting)]:
        raise DataError(f"{folder}: {foreign[0]} is not supported", hint="merge the adapter by peft")
    return config, tensors


def _adapter(config: Mapping[str, Any], path: str, values: Mapping[str, Tensor], base: Tensor, parts: int) -> Adapter:
    """The settings of the adapter at one of their paths, its tensors checked against the weight they are for."""
    a, b = values.get("lora_A.weight"), values.get("lora_B.weight")
    if a is None or b is None:
        raise DataError(f"the adapter's tensors for {path!r} are incomplete", hint=f"there are {', '.join(values)}")
    rank, (h, d) = a.shape[0], base.shape
    if a.shape != (rank, d) or b.shape != (h // parts, rank):
        what = f"the adapter of {path!r} is for a weight ({b.shape[0]}, {a.shape[1]}); here it is ({h // parts}, {d})"
        raise DataError(what, hint="it was made for another model")
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path.partition("#")[0]):
            alpha = float(value)
            break
    method = "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"
    if method == "dora" and config.get("use_rslora"):
        alpha *= math.sqrt(rank)  # said by alpha, one method standing for both
    bias = bool(values.keys() & {"lora_B.bias", "base_layer.bias"})
    return Adapter(rank, alpha, float(config.get("lora_dropout") or 0.0), method, bias)


def _base(model: nn.Module, path: str) -> Tensor:
    """The weight at the path of a linear map."""
    parent, _, leaf = path.rpartition(".")
    found: Any = getattr(model.get_submodule(parent), leaf)
    weight: Tensor = found if isinstance(found, Tensor) else getattr(found, "base", found).weight
    return weight


def _fill(layer: LoRALinear, name: str, parts: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Copy the tensors of an adapter's parts, by their place in the weight, into a new adapter."""
    for place in range(layer.groups):
        values = parts.get(place, {})
        own = {
            kind: getattr(layer, kind)[name].chunk(layer.groups)[place]
            for kind in KINDS
            if name in getattr(layer, kind)
        }
        if not values:
            own["lora_A"].zero_()  # B is zero already, and with both at zero neither has a gradient
        for kind, suffix in SUFFIXES.items():
            if suffix in values:
                own[kind].copy_(values[suffix])
        if "lora_B.bias" in values:
            own["lora_bias"].mul_(layer.adapters[name].scale)
        if "base_layer.bias" in values:
            own["lora_bias"].add_(values["base_layer.bias"])
            if layer.base.bias is not None:
                own["lora_bias"].sub_(layer.base.bias.chunk(layer.groups)[place])
