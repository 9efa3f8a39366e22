"""A run's adapters: kept beside the merged weights, started from, and to peft and back with the same outputs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import feedfwd as ff
from feedfwd.config_finetune import FinetuneConfig
from feedfwd.errors import ConfigError, DataError
from feedfwd.interop.huggingface import export
from feedfwd.models.transformer import Transformer
from feedfwd.recipes import finetune as recipe
from feedfwd.recipes.adapters import Kept
from feedfwd.recipes.texts import prepare_texts

WORDS = {"card": "card lost stolen", "money": "top up cash", "hello": "good morning team"}


def tokenizer(encoder: bool) -> str:
    from feedfwd.data.tokenizer import byte_tokenizer

    found = byte_tokenizer(mask=encoder)
    if encoder:
        from tokenizers.processors import TemplateProcessing

        end = "<|endoftext|>"
        found.engine.post_processor = TemplateProcessing(single=f"{end} $A {end}", special_tokens=[(end, 256)])
    return found.to_json()


def model(family: str, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    small: dict[str, Any] = {"width": 32, "depth": 2, "heads": 4, "hidden": 48, "context": 64}
    dense = {"norm_kind": "layer", "positions": "learned", "bias": "all", "ffn": ff.config.FFNSpec(activation="gelu")}
    match family:
        case "bert" | "roberta":
            made = Transformer(258, **small, **dense, norm_place="post", causal=False, types=2, head="none")
        case "gpt2":
            made = Transformer(257, **small, **dense)
        case _:
            made = Transformer(257, **small, kv_heads=2)
    with torch.no_grad():  # as a trained model's, nothing is at its start
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return made.eval()


def folder(place: Path, family: str, seed: int = 0) -> str:
    encoder = family in ("bert", "roberta")
    special = {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    export(
        model(family, seed), place, tokenizer=tokenizer(encoder), special_tokens=special, end=256, pad=256,
        family=None if family == "llama" else family,
    )  # fmt: skip
    return str(place)


def table(place: Path, target: str = "label") -> str:
    rows = []
    for i in range(48):
        label = tuple(WORDS)[i % 3]
        value = {"label": label, "number": i / 7, "labels": [label, "odd"] if i % 2 else [label]}[target]
        rows.append({"text": f"{i} {WORDS[label].split()[i % 2]}", "label": value})
    place.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(place)


def config(source: str, base: str, **settings: object) -> FinetuneConfig:
    found = FinetuneConfig(source=source, pretrained=base)
    for key, value in {"train__steps": 6, "train__batch_size": 8, "optimizer__lr": 3e-3, **settings}.items():
        found = found.with_(key.replace("__", "."), value)
    return found


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_run_starts_from_anothers_adapters(tmp_path: Path, method: str) -> None:
    base, source = folder(tmp_path / "base", "bert"), table(tmp_path / "t.jsonl")
    recipe.finetune_config(config(source, base, method=method, adapt__rank=2), tmp_path / "first")
    kept = Kept.of(tmp_path / "first")
    assert kept is not None and kept.size < 60_000 and {a.rank for a in kept.adapters.values()} == {2}
    first = ff.load(tmp_path / "first")
    again = prepare_texts(config(source, base, method=method, adapt__start=str(tmp_path / "first")))
    texts = ["my card", "good morning"]
    rows = again.classifier.rows(texts)
    torch.testing.assert_close(again.classifier.features(rows), first.features(first.rows(texts)), atol=1e-5, rtol=1e-4)
    assert again.trained_parameters < 0.5 * again.model.parameter_count and str(tmp_path / "first") in again.adapted
    done = recipe.finetune_config(config(source, base, method=method, adapt__start=str(tmp_path / "first")))
    assert done.run is not None and Kept.of(done.run) is not None


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))


def test_adapters_of_another_base_or_method_are_refused(tmp_path: Path) -> None:
    base, other = folder(tmp_path / "base", "bert"), folder(tmp_path / "other", "bert", seed=1)
    source = table(tmp_path / "t.jsonl")
    recipe.finetune_config(config(source, base, method="lora"), tmp_path / "run")
    recipe.finetune_config(config(source, base), tmp_path / "full")
    start = {"adapt__start": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=f"were made for {base}"):
        prepare_texts(config(source, other, method="lora", **start))
    with pytest.raises(ConfigError, match="--method says dora"):
        prepare_texts(config(source, base, method="dora", **start))
    with pytest.raises(DataError, match="holds no adapters"):
        prepare_texts(config(source, base, method="lora", adapt__start=str(tmp_path / "full")))
    with pytest.raises(ConfigError, match="brings its own"):
        config(source, base, method="lora", **start, adapt__rank=3)
