"""A Transformer as a folder that Hugging Face's AutoModelForCausalLM and AutoTokenizer load, with the same logits.

A family is a row: which settings it can express, what its config.json says of them, and what it calls each tensor.
Nothing of transformers is imported.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from feedfwd.errors import ConfigError, nearest
from feedfwd.ffn.spec import is_gated
from feedfwd.models.transformer import Transformer

# σ by their names for it.
ACTIVATIONS = {
    "silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "relu2": "relu2", "mish": "mish",
    "sigmoid": "sigmoid", "tanh": "tanh", "identity": "linear",
}  # fmt: skip
GATES = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu", "glu": "sigmoid", "bilinear": "identity"}


class Pair(NamedTuple):
    """The same numbers here and there, {} standing for the block: `ours` one below the other are `theirs` so."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transposed: bool = False


class Objection(NamedTuple):
    """A setting that a family can't express."""

    setting: str
    value: object


def _linear(ours: str, theirs: Sequence[str] | str) -> list[Pair]:
    names = (theirs,) if isinstance(theirs, str) else tuple(theirs)
    return [Pair((f"{ours}.{kind}",), tuple(f"{name}.{kind}" for name in names)) for kind in ("weight", "bias")]


GATE_AND_UP = ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj")
LLAMA_NAMES = [
    Pair(("embedding.weight",), ("model.embed_tokens.weight",)),
    *_linear("blocks.{}.attention.q", "model.layers.{}.self_attn.q_proj"),
    *_linear("blocks.{}.attention.k", "model.layers.{}.self_attn.k_proj"),
    *_linear("blocks.{}.attention.v", "model.layers.{}.self_attn.v_proj"),
    *_linear("blocks.{}.attention.out", "model.layers.{}.self_attn.o_proj"),
    Pair(("blocks.{}.attention.q_norm.weight",), ("model.layers.{}.self_attn.q_norm.weight",)),
    Pair(("blocks.{}.attention.k_norm.weight",), ("model.layers.{}.self_attn.k_norm.weight",)),
    Pair(("blocks.{}.attention_norm.weight",), ("model.layers.{}.input_layernorm.weight",)),
    Pair(("blocks.{}.ffn_norm.weight",), ("model.layers.{}.post_attention_layernorm.weight",)),
    Pair(("blocks.{}.ffn.gate_up",), tuple(f"{name}.weight" for name in GATE_AND_UP)),
    Pair(("blocks.{}.ffn.gate_up_bias",), tuple(f"{name}.bias" for name in GATE_AND_UP)),
    *_linear("blocks.{}.ffn.down", "model.layers.{}.mlp.down_proj"),
    Pair(("norm.weight",), ("model.norm.weight",)),
    Pair(("head.weight",), ("lm_head.weight",)),
]


@dataclass(frozen=True)
class Family:
    """A row: `objections` to a model, its `config`, the `names` of its tensors."""

    name: str
    architecture: str
    names: list[Pair]
    objections: Callable[[Transformer], Iterator[Objection]]
    config: Callable[[Transformer], dict[str, Any]]


def _llama_shape(model: Transformer, *, biases: Sequence[str], qk_norm: bool, window: bool) -> Iterator[Objection]:
    """What the families of Llama's shape can't express, but for the last three that tell them apart."""
    for setting, value, wanted in (
        ("model.causal", model.causal, True),
        ("model.norm_kind", model.norm_kind, "rms"),
        ("model.norm_place", model.norm_place, "pre"),
        ("model.positions", model.positions, "rope"),
    ):
        if value != wanted:
            yield Objection(setting, value)
    spec = model.ffn_spec
    if not is_gated(spec.kind, spec.activation):
        yield Objection("ffn.kind", spec.kind)
    elif GATES.get(spec.activation, spec.activation) not in ACTIVATIONS:
        yield Objection("ffn.activation", spec.activation)
    if model.bias not in biases:
        yield Objection("model.bias", model.bias)
    if model.qk_norm != qk_norm:
        yield Objection("model.qk_norm", model.qk_norm)
    if model.window is not None and not window:
        yield Objection("model.window", model.window)


def _llama_config(model: Transformer) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rope_base}
    scaling = model.rope_scaling
    if scaling:
        rope |= {"rope_type": scaling["kind"], "factor": float(scaling.get("factor", 1.0))}
        names = {
            "original": "original_max_position_embeddings", "low": "low_freq_factor", "high": "high_freq_factor",
            "beta_fast": "beta_fast", "beta_slow": "beta_slow", "attention": "attention_factor",
        }  # fmt: skip
        if scaling["kind"] == "llama3":
            scaling = {"low": 1.0, "high": 4.0} | scaling
        rope |= {theirs: scaling[ours] for ours, theirs in names.items() if scaling.get(ours) is not None}
    return {
        "vocab_size": model.vocabulary,
        "hidden_size": model.width,
        "intermediate_size": model.hidden_width,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_width,
        "hidden_act": ACTIVATIONS[GATES.get(model.ffn_spec.activation, model.ffn_spec.activation)],
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_base,
        "rope_parameters": rope,
        **({"rope_scaling": {key: value for key, value in rope.items() if key != "rope_theta"}} if scaling else {}),
        "tie_word_embeddings": model.tied,
        "attention_dropout": 0.0,
    }


def _llama_objections(model: Transformer) -> Iterator[Objection]:
    yield from _llama_shape(model, biases=("none", "all"), qk_norm=False, window=False)


def _without_ffn_bias(model: Transformer) -> Iterator[Objection]:
    if model.ffn_spec.bias:
        yield Objection("ffn.bias", True)


def _mistral_objections(model: Transformer) -> Iterator[Objection]:
    yield from _llama_shape(model, biases=("none",), qk_norm=False, window=True)
    yield from _without_ffn_bias(model)


def _qwen2_objections(model: Transformer) -> Iterator[Objection]:
    yield from _llama_shape(model, biases=("qkv",), qk_norm=False, window=True)
    yield from _without_ffn_bias(model)
    if model.head_width * model.heads != model.width:
        yield Objection("model.head_width", model.head_width)


def _qwen3_objections(model: Transformer) -> Iterator[Objection]:
    yield from _llama_shape(model, biases=("none", "all"), qk_norm=True, window=True)
    yield from _without_ffn_bias(model)


def _qwen_window(model: Transformer) -> dict[str, Any]:
    if model.window is None:
        return {"use_sliding_window": False}
    kinds = ["sliding_attention"] * len(model.blocks)
    return {"use_sliding_window": True, "sliding_window": model.window, "max_window_layers": 0, "layer_types": kinds}


FAMILIES = [
    Family(
        "llama", "LlamaForCausalLM", LLAMA_NAMES, _llama_objections,
        lambda m: _llama_config(m) | {"attention_bias": m.bias == "all", "mlp_bias": m.ffn_spec.bias},
    ),
    Family(
        "mistral", "MistralForCausalLM", LLAMA_NAMES, _mistral_objections,
        lambda m: _llama_config(m) | {"sliding_window": m.window},
    ),
    Family(
        "qwen2", "Qwen2ForCausalLM", LLAMA_NAMES, _qwen2_objections,
        lambda m: _llama_config(m) | _qwen_window(m),
    ),
    Family(
        "qwen3", "Qwen3ForCausalLM", LLAMA_NAMES, _qwen3_objections,
        lambda m: _llama_config(m) | _qwen_window(m) | {"attention_bias": m.bias == "all"},
    ),
]  # fmt: skip


def family_of(model: Transformer) -> Family:
    """The first family that can express this model. Raises ConfigError naming what none of them has."""
    objections = {family.name: list(family.objections(model)) for family in FAMILIES}
    for family in FAMILIES:
        if not objections[family.name]:
            return family
    name, fewest = min(objections.items(), key=lambda item: len(item[1]))
    listed = ", ".join(f"{setting}={value!r}" for setting, value in fewest)
    hint = f"keep the run directory, or train without it; known families: {', '.join(objections)}"
    raise ConfigError(f"this model can't be written for Hugging Face: {listed} (nearest family: {name})", hint=hint)


def export(
    model: Transformer,
    folder: Path | str,
    *,
    tokenizer: str | None = None,
    special_tokens: Mapping[str, str] | None = None,
    end: int | None = None,
    family: str | None = None,
) -> Family:
    """Write config.json, model.safetensors, generation_config.json and the tokenizer's files; the family taken.

    `tokenizer` is the text of a tokenizer.json, `special_tokens` its tokens by role ("eos_token": "<|end|>"), `end` the
    id that ends a text. `family` by name, or the first that can express the model.
    """
    chosen = family_of(model)
    if family is not None and family != chosen.name:
        rows = {row.name: row for row in FAMILIES}
        if family not in rows:
            raise ConfigError(f"unknown family {family!r}", hint=nearest(family, rows))
        for setting, value in rows[family].objections(model):
            raise ConfigError(f"family {family!r} has no {setting}={value!r}", hint=f"take family {chosen.name!r}")
        chosen = rows[family]
    tensors = to_theirs(chosen, model.state_dict())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    about = {"model_type": chosen.name, "architectures": [chosen.architecture], "dtype": "float32"}
    _write(folder / "config.json", about | chosen.config(model) | ids)
    _write(folder / "generation_config.json", ids | {"do_sample": True, "max_length": model.context})
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.context}
        extra = {"clean_up_tokenization_spaces": False, "add_bos_token": False, "add_eos_token": False}
        _write(folder / "tokenizer_config.json", settings | extra | dict(special_tokens or {}))
    return chosen


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def to_theirs(family: Family, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the family's names. Raises ConfigError for one it has no name for."""
    found: dict[str, Tensor] = {}
    left = dict(state)
    for pair, block in _places(family, state):
        ours = [name.format(block) for name in pair.ours]
        if not all(name in left for name in ours):
            continue
        whole = torch.cat([left.pop(name).detach() for name in ours])
        whole = whole.t() if pair.transposed else whole
        for name, part in zip(pair.theirs, whole.chunk(len(pair.theirs)), strict=True):
            found[name.format(block)] = part.float().contiguous().clone()
    if left:
        raise ConfigError(f"family {family.name!r} has no place for {min(left)!r}", hint="merge adapters first")
    return found


def _places(family: Family, state: Mapping[str, Tensor]) -> Iterator[tuple[Pair, int]]:
    """Every pair, those of blocks once for each block."""
    depth = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=-1)
    for pair in family.names:
        for block in range(depth) if "{}" in pair.ours[0] else [0]:
            yield pair, block
