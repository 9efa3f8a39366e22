"""Adapters of each family to and from peft: the same files, the same outputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_families import MODELS, ours, outputs, same, theirs

from feedfwd.errors import ConfigError, DataError
from feedfwd.ffn.lora import adapter_state, lora_layers
from feedfwd.interop.huggingface import read
from feedfwd.interop.peft import load_peft, save_peft
from feedfwd.models.adapt import merge, prepare

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

TARGETS = {
    "gpt2": ["c_attn", "c_fc", "mlp.c_proj"], "bert": ["query", "value", "intermediate.dense"],
    "roberta": ["key", "attention.output.dense"], "llama": ["q_proj", "o_proj", "up_proj", "down_proj"],
    "qwen2": ["k_proj", "gate_proj"], "qwen3": ["q_proj", "v_proj", "down_proj"], "mistral": ["q_proj", "v_proj"],
}  # fmt: skip
CASES = [
    *("llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt2 classes", "bert body", "bert masked", "bert classes"),
    *("roberta body", "roberta classes", "llama classes"),
]


def stir(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_an_adapter_from_peft(case: str, method: str, tmp_path: Path) -> None:
    model = theirs(*MODELS[case])
    model.save_pretrained(tmp_path / "base")
    before = outputs(model)
    more: dict[str, Any] = (
        {"modules_to_save": ["classifier" if "bert" in case else "score"]} if "classes" in case else {}
    )
    config = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=TARGETS[case.split()[0]],
        use_dora=method == "dora", use_rslora=method == "rslora", **more,
    )  # fmt: skip
    adapted = peft.get_peft_model(model, config).eval()
    stir(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = read(tmp_path / "base")
    load_peft(loaded.model, tmp_path / "adapter", family=loaded.family)
    wanted = outputs(adapted)
    assert (wanted - before).abs().max() > 1e-3
    same(ours(loaded.model), wanted)
    merge(loaded.model)
    same(ours(loaded.model), wanted)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("method", "targets"), [("lora", ["all"]), ("lora", ["attention.q", "attention.v"]), ("dora", ["all"])]
)
def test_an_adapter_for_peft(case: str, method: str, targets: list[str], tmp_path: Path) -> None:
    model = theirs(*MODELS[case])
    model.save_pretrained(tmp_path / "base")
    before = outputs(model)
    loaded = read(tmp_path / "base")
    prepare(loaded.model, method, targets=targets, rank=3, alpha=7)
    stir(loaded.model)
    save_peft(loaded.model, tmp_path / "adapter", family=loaded.family, base="someone/model")
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    wanted = ours(loaded.model)
    assert (wanted - before).abs().max() > 1e-3
    same(outputs(adapted), wanted)
    again = read(tmp_path / "base")
    paths = load_peft(again.model, tmp_path / "adapter", family=again.family)
    assert {path for path, _ in lora_layers(loaded.model)} <= set(paths)
    same(ours(again.model), wanted)


def test_an_adapter_for_a_body_serves_it_under_a_head_too(tmp_path: Path) -> None:
    model = theirs(*MODELS["bert body"])
    model.save_pretrained(tmp_path / "base")
    loaded = read(tmp_path / "base")
    prepare(loaded.model, "lora", rank=2)
    stir(loaded.model)
    save_peft(loaded.model, tmp_path / "adapter", family=loaded.family)
    theirs(*MODELS["bert classes"]).save_pretrained(tmp_path / "headed")
    headed = read(tmp_path / "headed")
    load_peft(headed.model, tmp_path / "adapter", family=headed.family)
    state = adapter_state(loaded.model)
    for key, tensor in adapter_state(headed.model).items():
        torch.testing.assert_close(tensor, state[key])


@pytest.mark.parametrize(
    ("made_for", "given_to"), [("gpt2", "llama"), ("bert body", "roberta body"), ("qwen2", "gpt2")]
)
def test_an_adapter_for_another_base_says_so(made_for: str, given_to: str, tmp_path: Path) -> None:
    theirs(*MODELS[made_for]).save_pretrained(tmp_path / "one")
    one = read(tmp_path / "one")
    prepare(one.model, "lora", rank=2)
    save_peft(one.model, tmp_path / "adapter", family=one.family, base="someone/else")
    name, config = MODELS[given_to]
    wider = {key: 40 for key in ("hidden_size", "n_embd") if key in config}
    theirs(name, config | wider).save_pretrained(tmp_path / "two")
    two = read(tmp_path / "two")
    with pytest.raises(DataError, match=r"made for (someone/else|another model)"):
        load_peft(two.model, tmp_path / "adapter", family=two.family)
    assert not list(lora_layers(two.model))


def test_dora_on_a_part_of_a_packed_map_can_not_be_written(tmp_path: Path) -> None:
    theirs(*MODELS["gpt2"]).save_pretrained(tmp_path)
    loaded = read(tmp_path)
    prepare(loaded.model, "dora", targets=["attention.q"], rank=2)
    with pytest.raises(ConfigError, match="dora on a part"):
        save_peft(loaded.model, tmp_path / "adapter", family=loaded.family)
