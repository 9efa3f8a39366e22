import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from feedfwd.data.tokenizer import byte_tokenizer
from feedfwd.errors import ConfigError
from feedfwd.ffn import FFNSpec
from feedfwd.interop.huggingface import export
from feedfwd.models.generate import Sampling, tokens
from feedfwd.models.transformer import Transformer

transformers = pytest.importorskip("transformers")

YARN = {"kind": "yarn", "factor": 4.0, "original": 16}
LLAMA3 = {"kind": "llama3", "factor": 8.0, "original": 16, "low": 1.0, "high": 4.0}


def spec(activation: str = "swiglu", bias: bool = False) -> FFNSpec:
    return FFNSpec(activation=activation, bias=bias)


def made(**settings: Any) -> Transformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 32, "depth": 2, "heads": 4, "hidden": 48, "context": 64}
    model = Transformer(257, **(sizes | {"ffn": spec()} | settings)).eval()
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))  # so that no norm or bias is what it was at the start
    return model


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("llama", {"kv_heads": 2, "tied": False, "norm_eps": 1e-5, "rope_base": 5e5, "head_width": 16}),
        ("llama", {"bias": "all", "ffn": spec("geglu", bias=True)}),
        ("llama", {"rope_scaling": {"kind": "linear", "factor": 2.0}}),
        ("llama", {"rope_scaling": YARN}),
        ("llama", {"rope_scaling": LLAMA3}),
        ("mistral", {"window": 7, "kv_heads": 1}),
        ("llama", {"bias": "qkv", "kv_heads": 2, "ffn": spec("reglu")}),
        ("qwen2", {"bias": "qkv", "window": 5}),
        ("qwen3", {"qk_norm": True, "head_width": 12, "tied": False}),
        ("qwen3", {"qk_norm": True, "window": 9}),
        ("qwen3", {"qk_norm": True, "bias": "qkv"}),
    ],
)
def test_their_logits_are_ours(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = made(**settings)
    assert export(model, tmp_path).name == family
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.randint(0, 257, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(ids).logits, model(ids), atol=1e-4, rtol=1e-4)


def test_tied_weights_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    export(made(), tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight


def test_the_tokenizer_and_the_end_token_come_along(tmp_path: Path) -> None:
    tokenizer, model = byte_tokenizer(), made()
    export(model, tmp_path, tokenizer=tokenizer.to_json(), special_tokens=tokenizer.special_tokens(), end=tokenizer.end)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Hello, world", "前馈 ✓", "  two\n lines"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.end
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == tokenizer.end


def test_greedy_generation_gives_the_same_tokens(tmp_path: Path) -> None:
    model, prompt = made(kv_heads=2), [72, 101, 108]
    export(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    written = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0)
    ours = [step[0] for step in tokens(model, [prompt], most=20, sampling=Sampling(temperature=0))]
    assert written[0, len(prompt) :].tolist() == ours


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"positions": "learned"}, "model.positions='learned'"),
        ({"norm_place": "post"}, "model.norm_place='post'"),
        ({"norm_kind": "layer"}, "model.norm_kind='layer'"),
        ({"causal": False}, "model.causal=False"),
        ({"ffn": FFNSpec(activation="gelu")}, "ffn.kind='dense'"),
        ({"ffn": FFNSpec(kind="gated", activation="xielu", bias=False)}, "ffn.activation='xielu'"),
        ({"qk_norm": True, "norm_kind": "layer"}, "model.norm_kind='layer'"),
        ({"window": 4, "ffn": spec(bias=True)}, "model.window=4"),
    ],
)
def test_what_no_family_has_is_named(settings: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        export(made(**settings), tmp_path / "out")
    assert named in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_family_asked_for_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"qwen2.*model\.bias='none'"):
        export(made(), tmp_path, family="qwen2")
    with pytest.raises(ConfigError, match="did you mean 'llama'"):
        export(made(), tmp_path, family="lama")
    assert export(made(), tmp_path, family="mistral").name == "mistral"
    assert export(made(bias="qkv"), tmp_path, family="qwen2").name == "qwen2"
    assert not any("o_proj.bias" in name for name in load_file(tmp_path / "model.safetensors"))
