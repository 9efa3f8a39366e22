"""Small random models of each family: what transformers computes is computed here, and there again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from feedfwd.errors import ConfigError, DataError
from feedfwd.ffn.lora import adapter_state
from feedfwd.interop.huggingface import export, read
from feedfwd.interop.weights import convert
from feedfwd.models.adapt import merge, prepare
from feedfwd.models.transformer import Transformer

transformers = pytest.importorskip("transformers")

LENGTHS = [11, 4, 7]
IDS = torch.randint(4, 90, (3, 11), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(11) < torch.tensor(LENGTHS)[:, None]
LLAMA = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
BERT = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 40,
}  # fmt: skip
GPT2 = {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "pad_token_id": 0}
WINDOW = {"use_sliding_window": True, "sliding_window": 5}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "rope_theta": 5e5,
}  # fmt: skip

MODELS = {
    "llama": ("LlamaForCausalLM", LLAMA),
    "llama tied, biases": (
        "LlamaForCausalLM", LLAMA | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama yarn": ("LlamaForCausalLM", LLAMA | {"rope_parameters": YARN}),
    "llama 3, wide heads": ("LlamaForCausalLM", LLAMA | {"rope_parameters": LLAMA3, "head_dim": 16}),
    "llama classes": ("LlamaForSequenceClassification", LLAMA | {"num_labels": 3}),
    "llama body": ("LlamaModel", LLAMA),
    "mistral": ("MistralForCausalLM", LLAMA | {"sliding_window": 5}),
    "qwen2": ("Qwen2ForCausalLM", LLAMA | {"rms_norm_eps": 1e-5}),
    "qwen2 window": ("Qwen2ForCausalLM", LLAMA | WINDOW | {"max_window_layers": 0}),
    "qwen3": ("Qwen3ForCausalLM", LLAMA | {"head_dim": 12, "tie_word_embeddings": True}),
    "qwen3 classes": ("Qwen3ForSequenceClassification", LLAMA | {"num_labels": 4}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2 untied": ("GPT2LMHeadModel", GPT2 | {"tie_word_embeddings": False, "n_inner": 40}),
    "gpt2 classes": ("GPT2ForSequenceClassification", GPT2 | {"num_labels": 3}),
    "gpt2 body": ("GPT2Model", GPT2 | {"activation_function": "relu"}),
    "bert body": ("BertModel", BERT),
    "bert masked": ("BertForMaskedLM", BERT),
    "bert pretrained": ("BertForPreTraining", BERT),
    "bert untied": ("BertForMaskedLM", BERT | {"tie_word_embeddings": False, "hidden_act": "relu"}),
    "bert classes": ("BertForSequenceClassification", BERT | {"num_labels": 5}),
    "roberta body": ("RobertaModel", BERT | {"type_vocab_size": 1}),
    "roberta masked": ("RobertaForMaskedLM", BERT),
    "roberta classes": ("RobertaForSequenceClassification", BERT | {"num_labels": 3}),
}  # fmt: skip


def theirs(name: str, config: dict[str, Any]) -> Any:
    torch.manual_seed(1)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**config)).eval()
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))  # so that no norm or bias is what it was at the start
    return model


def outputs(model: Any) -> Tensor:
    """Their logits or last states, at the tokens that are there."""
    with torch.no_grad():
        found = model(input_ids=IDS.masked_fill(~MASK, model.config.pad_token_id), attention_mask=MASK.long())
    y = next(found[key] for key in ("logits", "prediction_logits", "last_hidden_state") if key in found)
    return y[MASK] if y.ndim == 3 else y


def ours(model: Transformer) -> Tensor:
    with torch.no_grad():
        y = model(IDS, lengths=LENGTHS)
    return y[MASK] if y.ndim == 3 else y


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", MODELS)
def test_what_they_compute_is_computed_here_and_there_again(case: str, tmp_path: Path) -> None:
    model = theirs(*MODELS[case])
    model.save_pretrained(tmp_path / "in")
    wanted = outputs(model)
    loaded = read(tmp_path / "in")
    same(ours(loaded.model), wanted)
    assert not loaded.model.training
    assert loaded.model.context == (38 if "roberta" in case else 40 if "bert" in case else 32)
    family = export(loaded.model, tmp_path / "out", family=loaded.family.name, pad=model.config.pad_token_id)
    assert family is loaded.family
    kind = getattr(transformers, "BertForMaskedLM" if case == "bert pretrained" else MODELS[case][0])
    back, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    if case != "bert pretrained":  # whose pooler their class leaves out
        assert not info["unexpected_keys"]
    same(outputs(back.eval()), wanted)


@pytest.mark.parametrize("case", ["gpt2", "llama tied, biases", "bert masked", "qwen3"])
def test_tied_matrices_stay_one(case: str, tmp_path: Path) -> None:
    theirs(*MODELS[case]).save_pretrained(tmp_path)
    model = read(tmp_path).model
    matrices = [p for p in model.parameters() if p.shape == (90, 32)]
    assert len(matrices) == 1 and model.tied
    matrix = next(m.weight for m in model.head.modules() if getattr(m, "weight", None) is model.embedding.weight)
    assert matrix is model.embedding.weight


@pytest.mark.parametrize("case", ["gpt2", "qwen2", "bert classes", "roberta body"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_merged_adapters_go_along(case: str, method: str, tmp_path: Path) -> None:
    model = theirs(*MODELS[case])
    model.save_pretrained(tmp_path / "in")
    loaded = read(tmp_path / "in")
    before = ours(loaded.model)
    prepare(loaded.model, method, rank=3)
    for tensor in adapter_state(loaded.model).values():
        tensor.add_(0.05 * torch.randn_like(tensor))
    with pytest.raises(ConfigError, match="merge adapters first"):
        export(loaded.model, tmp_path / "out", family=loaded.family.name)
    wanted = ours(loaded.model)
    assert (wanted - before).abs().max() > 1e-3
    export(merge(loaded.model), tmp_path / "out", family=loaded.family.name, pad=model.config.pad_token_id)  # type: ignore[arg-type]
    same(outputs(type(model).from_pretrained(tmp_path / "out").eval()), wanted)


def test_pairs_of_texts_have_types(tmp_path: Path) -> None:
    model = theirs("BertModel", BERT)
    model.save_pretrained(tmp_path)
    types = (torch.arange(11) > 3).long().expand(3, 11)
    with torch.no_grad():
        wanted = model(input_ids=IDS, token_type_ids=types).last_hidden_state
        same(read(tmp_path).model.hidden(IDS, types=types), wanted)


def test_the_pooler_is_theirs(tmp_path: Path) -> None:
    model = theirs("BertModel", BERT)
    model.save_pretrained(tmp_path)
    mine = read(tmp_path).model
    with torch.no_grad():
        same(mine.summary(mine.hidden(IDS)), model(input_ids=IDS).pooler_output)


def test_shards_are_one_model(tmp_path: Path) -> None:
    model = theirs(*MODELS["llama"])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    same(ours(read(tmp_path).model), outputs(model))
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(DataError, match=f"lacks the shard {lost.name}"):
        read(tmp_path)


def test_half_precision_is_read_as_fp32(tmp_path: Path) -> None:
    theirs(*MODELS["gpt2"]).bfloat16().save_pretrained(tmp_path)
    model = read(tmp_path).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    same(ours(model), outputs(transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32).eval()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    theirs(*MODELS["bert body"]).save_pretrained(tmp_path)
    return tmp_path


def test_old_names_are_known(folder: Path) -> None:
    wanted = ours(read(folder).model)
    tensors = load_file(folder / "model.safetensors")
    old = {
        f"bert.{k}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"): v
        for k, v in tensors.items()
    }
    save_file(old | {"bert.embeddings.position_ids": torch.arange(40)}, folder / "model.safetensors")
    same(ours(read(folder).model), wanted)


def test_pickles_are_converted_where_they_hold_tensors_alone(folder: Path) -> None:
    wanted = ours(read(folder).model)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"a pickle, which could run code.*convert"):
        read(folder)
    convert(folder)
    same(ours(read(folder).model), wanted)


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return exec, ("raise SystemExit('ran')",)


def test_pickled_code_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(2), "b": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="holds more than tensors"):
        convert(folder)
    assert not (folder / "model.safetensors").exists()


def changed(file: Path, **changes: object) -> None:
    config = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in (config | changes).items() if v != "gone"}))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "bloom"}, ConfigError, "family 'bloom' is not read here"),
        ({"model_type": "distilbert"}, ConfigError, "did you mean 'bert'"),
        ({"model_type": "qwen3_moe"}, ConfigError, "did you mean 'qwen3'"),
        ({"position_embedding_type": "relative_key"}, ConfigError, "position_embedding_type='relative_key'"),
        ({"is_decoder": True}, ConfigError, "is_decoder=True"),
        ({"quantization_config": {"bits": 4}}, ConfigError, "quantization_config"),
        ({"hidden_act": "gelu_neww"}, ConfigError, "did you mean 'gelu_new'"),
        ({"hidden_size": "gone"}, DataError, "config.json has no 'hidden_size'"),
        ({"vocab_size": 91}, DataError, r"word_embeddings.weight make \(90, 32\), and config.json asks for \(91, 32\)"),
        ({"num_hidden_layers": 3}, DataError, r"the weights lack 'bert.encoder.layer.2"),
        ({"num_hidden_layers": 1}, DataError, r"16 tensors have no place .* 'bert.encoder.layer.1"),
        ({"architectures": ["BertForMaskedLM"]}, DataError, "the weights lack 'cls.predictions"),
        ({"architectures": ["BertForSequenceClassification"]}, DataError, "the weights lack 'classifier.weight'"),
    ],
)
def test_a_config_that_does_not_fit_is_an_error(
    folder: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    changed(folder / "config.json", **changes)
    with pytest.raises(error, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t | {"pooler.dense.bias": torch.full((32,), torch.nan)},
            "'bert.pooler.dense.bias' holds values that are",
        ),
        (lambda t: t | {"pooler.dense.bias": torch.tensor([torch.inf] * 32)}, "not finite"),
        (
            lambda t: t | {"more.weight": torch.zeros(2)},
            "1 tensors have no place in this model, the first is 'more.weight'",
        ),
        (lambda t: t | {"pooler.dense.bias": torch.zeros(32, dtype=torch.int8)}, "quantized weights"),
        (lambda t: {k: v for k, v in t.items() if "1.output.dense.bias" not in k}, "lack 'bert.encoder.layer.1.output"),
    ],
)
def test_tensors_that_do_not_fit_are_an_error(folder: Path, change: Callable[[Any], Any], message: str) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    with pytest.raises(DataError, match=message):
        read(folder)


def test_damaged_files_are_an_error(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(DataError, match="is damaged"):
        read(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="has no weights"):
        read(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    with pytest.raises(DataError, match="points outside its folder"):
        read(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        read(folder)
    with pytest.raises(DataError, match="has no config"):
        read(folder / "nothing")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic' are not here"),
        (WINDOW | {"max_window_layers": 1}, "1 of 2 layers have a window"),
    ],
)
def test_settings_that_are_not_here_are_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    theirs("Qwen2ForCausalLM", LLAMA | settings).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path)


def test_a_family_that_can_not_say_it_is_named_with_one_that_can(tmp_path: Path) -> None:
    theirs(*MODELS["gpt2"]).save_pretrained(tmp_path / "in")
    model = read(tmp_path / "in").model
    with pytest.raises(ConfigError, match=r"family 'bert' has no model.causal=True: take family 'gpt2'"):
        export(model, tmp_path / "out", family="bert")
