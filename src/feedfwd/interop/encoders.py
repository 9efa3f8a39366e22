"""BERT (arXiv 1810.04805) and RoBERTa (1907.11692)."""

from collections.abc import Iterator, Sequence
from typing import Any

from feedfwd.interop.family import (
    ACTIVATIONS,
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


def _bert_body(body: str) -> list[Pair]:
    embeddings, layer = f"{body}.embeddings", f"{body}.encoder.layer.{{}}"
    return [
        Pair(("embedding.weight",), (f"{embeddings}.word_embeddings.weight",)),
        Pair(("position_embedding.weight",), (f"{embeddings}.position_embeddings.weight",)),
        Pair(("type_embedding.weight",), (f"{embeddings}.token_type_embeddings.weight",)),
        *linear("embedding_norm", f"{embeddings}.LayerNorm"),
        *linear("blocks.{}.attention.q", f"{layer}.attention.self.query"),
        *linear("blocks.{}.attention.k", f"{layer}.attention.self.key"),
        *linear("blocks.{}.attention.v", f"{layer}.attention.self.value"),
        *linear("blocks.{}.attention.out", f"{layer}.attention.output.dense"),
        *linear("blocks.{}.attention_norm", f"{layer}.attention.output.LayerNorm"),
        *linear("blocks.{}.ffn.up", f"{layer}.intermediate.dense"),
        *linear("blocks.{}.ffn.down", f"{layer}.output.dense"),
        *linear("blocks.{}.ffn_norm", f"{layer}.output.LayerNorm"),
    ]


BERT_POOLER, ROBERTA_POOLER = linear("pooler", "bert.pooler.dense"), linear("pooler", "roberta.pooler.dense")


def _bert_settings(c: Config) -> dict[str, Any]:
    return {
        "vocabulary": c["vocab_size"],
        "width": c["hidden_size"],
        "depth": c["num_hidden_layers"],
        "heads": c["num_attention_heads"],
        "hidden": c["intermediate_size"],
        "ffn": {"kind": "dense", "activation": activation(c.get("hidden_act", "gelu")), "bias": True},
        "norm_kind": "layer",
        "norm_place": "post",
        "norm_eps": c.get("layer_norm_eps", 1e-12),
        "positions": "learned",
        "context": c["max_position_embeddings"],
        "bias": "all",
        "causal": False,
        "tied": bool(c.get("tie_word_embeddings", True)),
        "types": c.get("type_vocab_size", 2),
        "dropout": c.get("hidden_dropout_prob", 0.1),
    }


def _bert_config(model: Transformer) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary,
        "hidden_size": model.width,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": model.heads,
        "intermediate_size": model.hidden_width,
        "hidden_act": ACTIVATIONS[model.ffn_spec.activation][0],
        "layer_norm_eps": model.norm_eps,
        "max_position_embeddings": model.context,
        "type_vocab_size": model.types,
        "tie_word_embeddings": model.tied,
        "hidden_dropout_prob": model.dropout.p,
        "attention_probs_dropout_prob": 0.0,
    }


def _bert_objections(model: Transformer) -> Iterator[Objection]:
    yield from wrong(model, {"causal": False, "norm_place": "post"})
    yield from dense_shape(model)
    if not model.types:
        yield Objection("model.types", 0)
    if model.head_kind == "classes" and model.pooler is None:
        yield Objection("model.pooler", False)


def _roberta_objections(model: Transformer) -> Iterator[Objection]:
    yield from _bert_objections(model)
    if model.head_kind == "masked" and model.ffn_spec.activation != "gelu":
        yield Objection("ffn.activation", model.ffn_spec.activation)


NO_DECODER: dict[str, Sequence[object]] = {
    "position_embedding_type": ("absolute",), "is_decoder": (False,), "add_cross_attention": (False,),
}  # fmt: skip

ENCODERS = [
    Family(
        "bert", "bert.", _bert_body("bert"),
        {
            "none": Head("BertModel", BERT_POOLER),
            "masked": Head("BertForMaskedLM", [
                *linear("head.dense", "cls.predictions.transform.dense"),
                *linear("head.norm", "cls.predictions.transform.LayerNorm"),
                Pair(("head.bias",), ("cls.predictions.bias",)),
                Pair(("head.matrix.weight",), ("cls.predictions.decoder.weight",)),
                *BERT_POOLER,
            ]),
            "classes": Head("BertForSequenceClassification", [*linear("head", "classifier"), *BERT_POOLER]),
        },
        _bert_objections, _bert_config, _bert_settings, NO_DECODER,
        (r".*embeddings\.position_ids", r"cls\.seq_relationship\..*"),
        {"cls.predictions.decoder.bias": "cls.predictions.bias"},
    ),
    Family(
        "roberta", "roberta.", _bert_body("roberta"),
        {
            "none": Head("RobertaModel", ROBERTA_POOLER),
            "masked": Head("RobertaForMaskedLM", [
                *linear("head.dense", "lm_head.dense"),
                *linear("head.norm", "lm_head.layer_norm"),
                Pair(("head.bias",), ("lm_head.bias",)),
                Pair(("head.matrix.weight",), ("lm_head.decoder.weight",)),
                *ROBERTA_POOLER,
            ]),
            "classes": Head("RobertaForSequenceClassification", [
                *linear("head", "classifier.out_proj"), *linear("pooler", "classifier.dense"),
            ]),
        },
        _roberta_objections,
        lambda m: _bert_config(m) | {"max_position_embeddings": m.context + 2, "pad_token_id": 1},
        lambda c: _bert_settings(c) | {"context": c["max_position_embeddings"] - 2},
        NO_DECODER | {"pad_token_id": (1,)},
        (r".*embeddings\.position_ids",),
        {"lm_head.decoder.bias": "lm_head.bias"},
        offset=2,
    ),
]  # fmt: skip
