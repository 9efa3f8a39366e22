"""Llama (arXiv 2302.13971), Mistral (2310.06825), Qwen2 (2407.10671), Qwen3 (2505.09388) and GPT-2."""

from collections.abc import Iterator, Sequence
from typing import Any

from feedfwd.errors import ConfigError
from feedfwd.ffn.spec import is_gated
from feedfwd.interop.family import (
    ACTIVATIONS,
    GATES,
    SCALINGS,
    Config,
    Family,
    Head,
    Objection,
    Pair,
    activation,
    dense_shape,
    linear,
    wrong,
)
from feedfwd.models.transformer import Transformer

# --- Llama, Mistral, Qwen -------------------------------------------------------------------------------------------

GATE_AND_UP = ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj")
LLAMA_BODY = [
    Pair(("embedding.weight",), ("model.embed_tokens.weight",)),
    *linear("blocks.{}.attention.q", "model.layers.{}.self_attn.q_proj"),
    *linear("blocks.{}.attention.k", "model.layers.{}.self_attn.k_proj"),
    *linear("blocks.{}.attention.v", "model.layers.{}.self_attn.v_proj"),
    *linear("blocks.{}.attention.out", "model.layers.{}.self_attn.o_proj"),
    Pair(("blocks.{}.attention.q_norm.weight",), ("model.layers.{}.self_attn.q_norm.weight",)),
    Pair(("blocks.{}.attention.k_norm.weight",), ("model.layers.{}.self_attn.k_norm.weight",)),
    Pair(("blocks.{}.attention_norm.weight",), ("model.layers.{}.input_layernorm.weight",)),
    Pair(("blocks.{}.ffn_norm.weight",), ("model.layers.{}.post_attention_layernorm.weight",)),
    Pair(("blocks.{}.ffn.gate_up",), tuple(f"{name}.weight" for name in GATE_AND_UP)),
    Pair(("blocks.{}.ffn.gate_up_bias",), tuple(f"{name}.bias" for name in GATE_AND_UP)),
    *linear("blocks.{}.ffn.down", "model.layers.{}.mlp.down_proj"),
    Pair(("norm.weight",), ("model.norm.weight",)),
]
TOKENS = [Pair(("head.weight",), ("lm_head.weight",))]
CLASSES = [Pair(("head.weight",), ("score.weight",))]
LLAMA_NAMES = [*LLAMA_BODY, *TOKENS]


def _decoder_heads(name: str, tokens: str = "ForCausalLM") -> dict[str, Head]:
    return {
        "tokens": Head(f"{name}{tokens}", TOKENS),
        "classes": Head(f"{name}ForSequenceClassification", CLASSES),
        "none": Head(f"{name}Model", []),
    }


def _llama_shape(model: Transformer, *, biases: Sequence[str], qk_norm: bool, window: bool) -> Iterator[Objection]:
    """What the families of Llama's shape can't express, but for the last three that tell them apart."""
    wanted = {"causal": True, "norm_kind": "rms", "norm_place": "pre", "positions": "rope", "types": 0}
    yield from wrong(model, wanted)
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
        if scaling["kind"] == "llama3":
            scaling = {"low": 1.0, "high": 4.0} | scaling
        rope |= {theirs: scaling[ours] for ours, theirs in SCALINGS.items() if scaling.get(ours) is not None}
    return {
        "vocab_size": model.vocabulary,
        "hidden_size": model.width,
        "intermediate_size": model.hidden_width,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_width,
        "hidden_act": ACTIVATIONS[GATES.get(model.ffn_spec.activation, model.ffn_spec.activation)][0],
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_base,
        "rope_parameters": rope,
        **({"rope_scaling": {key: value for key, value in rope.items() if key != "rope_theta"}} if scaling else {}),
        "tie_word_embeddings": model.tied,
        "attention_dropout": 0.0,
    }


def _llama_settings(c: Config) -> dict[str, Any]:
    sigma, heads, width = activation(c.get("hidden_act", "silu")), c["num_attention_heads"], c["hidden_size"]
    named = {inner: gated for gated, inner in GATES.items()}
    return {
        "vocabulary": c["vocab_size"],
        "width": width,
        "depth": c["num_hidden_layers"],
        "heads": heads,
        "kv_heads": c.get("num_key_value_heads") or heads,
        "head_width": c.get("head_dim") or width // heads,
        "hidden": c["intermediate_size"],
        "ffn": {"kind": "gated", "activation": named.get(sigma, sigma), "bias": bool(c.get("mlp_bias", False))},
        "norm_kind": "rms",
        "norm_place": "pre",
        "norm_eps": c.get("rms_norm_eps", 1e-6),
        "positions": "rope",
        "context": c["max_position_embeddings"],
        **_rope(c),
        "bias": "all" if c.get("attention_bias") else "none",
        "causal": True,
        "tied": bool(c.get("tie_word_embeddings", False)),
    }


def _rope(c: Config) -> dict[str, Any]:
    """Base and scaling, as transformers 5 writes them (rope_parameters) and as those before did."""
    rope = dict(c.get("rope_parameters") or c.get("rope_scaling") or {})
    base = float(rope.pop("rope_theta", None) or c.get("rope_theta") or 10_000.0)
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    if kind == "default":
        return {"rope_base": base, "rope_scaling": None}
    if kind not in ("linear", "yarn", "llama3"):
        raise ConfigError(
            f"config.json: rotary positions of kind {kind!r} are not here", hint="known: default, linear, llama3, yarn"
        )
    scaling = {"kind": kind, "factor": rope.pop("factor", 1.0)}
    scaling |= {ours: rope.pop(theirs) for ours, theirs in SCALINGS.items() if rope.get(theirs) is not None}
    if kind != "linear":
        scaling.setdefault("original", c["max_position_embeddings"])
    if more := {key: value for key, value in rope.items() if value not in (None, True) and key != "type"}:
        raise ConfigError(f"config.json: rotary setting {min(more)!r} is not here", hint="take a model without it")
    return {"rope_base": base, "rope_scaling": scaling}


def _qwen_settings(c: Config) -> dict[str, Any]:
    depth, window = c["num_hidden_layers"], c.get("sliding_window") if c.get("use_sliding_window") else None
    first = c.get("max_window_layers", depth)
    kinds = c.get("layer_types") or ["sliding" if window and i >= first else "full" for i in range(depth)]
    sliding = ["sliding" in kind for kind in kinds]
    if any(sliding) and not all(sliding):
        what = f"config.json: {sum(sliding)} of {depth} layers have a window; here all layers are alike"
        raise ConfigError(what, hint="take a model with max_window_layers=0, or without a window")
    return _llama_settings(c) | {"window": window if any(sliding) else None}


def _llama_objections(model: Transformer) -> Iterator[Objection]:
    yield from _llama_shape(model, biases=("none", "qkv", "all"), qk_norm=False, window=False)


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
    yield from _llama_shape(model, biases=("none", "qkv", "all"), qk_norm=True, window=True)
    yield from _without_ffn_bias(model)


def _qwen_window(model: Transformer) -> dict[str, Any]:
    if model.window is None:
        return {"use_sliding_window": False}
    kinds = ["sliding_attention"] * len(model.blocks)
    return {"use_sliding_window": True, "sliding_window": model.window, "max_window_layers": 0, "layer_types": kinds}


# --- GPT-2 ----------------------------------------------------------------------------------------------------------

GPT2_BODY = [
    Pair(("embedding.weight",), ("transformer.wte.weight",)),
    Pair(("position_embedding.weight",), ("transformer.wpe.weight",)),
    *linear("blocks.{}.attention_norm", "transformer.h.{}.ln_1"),
    *linear("blocks.{}.ffn_norm", "transformer.h.{}.ln_2"),
    *(
        Pair(tuple(f"blocks.{{}}.attention.{x}.{kind}" for x in "qkv"), (f"transformer.h.{{}}.attn.c_attn.{kind}",), t)
        for kind, t in (("weight", True), ("bias", False))
    ),
    *(
        Pair((f"blocks.{{}}.{ours}.{kind}",), (f"transformer.h.{{}}.{theirs}.{kind}",), t)
        for ours, theirs in (("attention.out", "attn.c_proj"), ("ffn.up", "mlp.c_fc"), ("ffn.down", "mlp.c_proj"))
        for kind, t in (("weight", True), ("bias", False))
    ),
    *linear("norm", "transformer.ln_f"),
]


def _gpt2_settings(c: Config) -> dict[str, Any]:
    width = c["n_embd"]
    sigma = activation(c.get("activation_function", "gelu_new"))
    return {
        "vocabulary": c["vocab_size"],
        "width": width,
        "depth": c["n_layer"],
        "heads": c["n_head"],
        "hidden": c.get("n_inner") or 4 * width,
        "ffn": {"kind": "dense", "activation": sigma, "bias": True},
        "norm_kind": "layer",
        "norm_place": "pre",
        "norm_eps": c.get("layer_norm_epsilon", 1e-5),
        "positions": "learned",
        "context": c["n_positions"],
        "bias": "all",
        "causal": True,
        "tied": bool(c.get("tie_word_embeddings", True)),
        "dropout": c.get("resid_pdrop", 0.1),
    }


def _gpt2_config(model: Transformer) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary,
        "n_embd": model.width,
        "n_layer": len(model.blocks),
        "n_head": model.heads,
        "n_inner": model.hidden_width,
        "n_positions": model.context,
        "activation_function": ACTIVATIONS[model.ffn_spec.activation][0],
        "layer_norm_epsilon": model.norm_eps,
        "tie_word_embeddings": model.tied,
        "embd_pdrop": model.dropout.p,
        "resid_pdrop": model.dropout.p,
        "attn_pdrop": 0.0,
    }


def _gpt2_objections(model: Transformer) -> Iterator[Objection]:
    yield from wrong(model, {"causal": True, "norm_place": "pre", "types": 0})
    yield from dense_shape(model)


ROTARY: dict[str, Sequence[object]] = {"partial_rotary_factor": (1, 1.0)}
DECODERS = [
    Family(
        "llama", "model.", LLAMA_BODY, _decoder_heads("Llama"), _llama_objections,
        lambda m: _llama_config(m) | {"attention_bias": m.bias != "none", "mlp_bias": m.ffn_spec.bias},
        _llama_settings, ROTARY, (r".*rotary_emb\.inv_freq",),
    ),
    Family(
        "mistral", "model.", LLAMA_BODY, _decoder_heads("Mistral"), _mistral_objections,
        lambda m: _llama_config(m) | {"sliding_window": m.window},
        lambda c: _llama_settings(c) | {"window": c.get("sliding_window")}, ROTARY, (r".*rotary_emb\.inv_freq",),
    ),
    Family(
        "qwen2", "model.", LLAMA_BODY, _decoder_heads("Qwen2"), _qwen2_objections,
        lambda m: _llama_config(m) | _qwen_window(m),
        lambda c: _qwen_settings(c) | {"bias": "qkv"}, ROTARY, (r".*rotary_emb\.inv_freq",),
    ),
    Family(
        "qwen3", "model.", LLAMA_BODY, _decoder_heads("Qwen3"), _qwen3_objections,
        lambda m: _llama_config(m) | _qwen_window(m) | {"attention_bias": m.bias != "none"},
        lambda c: _qwen_settings(c) | {"qk_norm": True}, ROTARY, (r".*rotary_emb\.inv_freq",),
    ),
    Family(
        "gpt2", "transformer.", GPT2_BODY, _decoder_heads("GPT2", "LMHeadModel"), _gpt2_objections,
        _gpt2_config, _gpt2_settings,
        {"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)},
        (r".*\.attn\.(bias|masked_bias)",),
    ),
]  # fmt: skip
