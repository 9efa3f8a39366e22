"""A run's adapters: kept beside the merged weights, started from, and to peft and back with the same outputs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import feedfwd as ff
from feedfwd.config import overrides, parse
from feedfwd.config_finetune import FinetuneConfig
from feedfwd.config_instruct import InstructConfig
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.data.chats import Turn
from feedfwd.errors import ConfigError, DataError, RunError
from feedfwd.interop.huggingface import export
from feedfwd.models.transformer import Transformer
from feedfwd.recipes import finetune as recipe
from feedfwd.recipes.adapters import Kept
from feedfwd.recipes.console import Silent, Terminal
from feedfwd.recipes.export import export_run
from feedfwd.recipes.info import info, list_all
from feedfwd.recipes.instruct import instruct_config
from feedfwd.recipes.pretrain import pretrain_config
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
    assert done.result["trained_parameters"] == again.trained_parameters


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


# --- in another project's form ----------------------------------------------------------------------------------------

HEADS = {
    True: {"encoder__pooling": "cls", "encoder__hidden": [32], "ffn__activation": "tanh"},
    False: {"ffn__bias": False},
}
TEXTS = ["my card is gone", "top up", "good morning to all of the team here"]


def theirs(folder: Path, kind: str, adapter: Path | None = None) -> Any:
    """The outputs of what transformers, and peft, load from there, for a batch of texts."""
    transformers = pytest.importorskip("transformers")
    found = getattr(transformers, kind).from_pretrained(folder)
    if adapter is not None:
        found = pytest.importorskip("peft").PeftModel.from_pretrained(found, adapter)
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return found.eval()(**reader(TEXTS, return_tensors="pt", padding=True)), reader(TEXTS, padding=True)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("target", ["label", "labels", "number"])
def test_a_classifier_gives_the_same_in_transformers(tmp_path: Path, family: str, target: str) -> None:
    encoder = family in ("bert", "roberta")
    if target == "number" and not encoder:
        pytest.skip("has no bias")
    source = table(tmp_path / "t.jsonl", target)
    settings = {**HEADS[encoder], "data__validation": 0.0, "method": "full" if target == "label" else "lora"}
    recipe.finetune_config(config(source, folder(tmp_path / "base", family), **settings), tmp_path / "run")
    export_run(tmp_path / "run", "hf", tmp_path / "out", Silent())
    ours, (found, _) = ff.load(tmp_path / "run"), theirs(tmp_path / "out", "AutoModelForSequenceClassification")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["model_type"] == family
    if target == "number":
        assert said["problem_type"] == "regression"
        torch.testing.assert_close(found.logits[:, 0], torch.tensor(ours.predict(TEXTS)), atol=1e-4, rtol=1e-4)
        return
    assert [said["id2label"][str(i)] for i in range(len(ours.classes))] == list(ours.classes)
    probabilities = found.logits.softmax(1) if target == "label" else found.logits.sigmoid()
    torch.testing.assert_close(probabilities, torch.tensor(ours.predict_proba(TEXTS)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "target", "settings"),
    [
        ("bert", "label", {"encoder__start": "means"}),
        ("bert", "number", {"encoder__hidden": [12], "ffn__activation": "gelu"}),
        ("roberta", "labels", {"method": "lora"}),
        ("llama", "label", {}),
    ],
)
def test_as_the_presets_make_it_a_classifier_gives_the_same_in_sentence_transformers(
    tmp_path: Path, family: str, target: str, settings: dict[str, Any]
) -> None:
    source = table(tmp_path / "t.jsonl", target)
    recipe.finetune_config(config(source, folder(tmp_path / "base", family), **settings), tmp_path / "run")
    listener = Lines()
    export_run(tmp_path / "run", "hf", tmp_path / "out", listener)
    assert "to have that" in listener.said[0] and "SentenceTransformer" in listener.said[1]
    ours = ff.load(tmp_path / "run")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["model_type"] == family and list(said.get("id2label", {}).values()) == list(ours.classes)
    found = pytest.importorskip("sentence_transformers").SentenceTransformer(str(tmp_path / "out"), device="cpu")
    z = torch.tensor(found.encode(TEXTS))
    if target == "number":
        torch.testing.assert_close(z[:, 0], torch.tensor(ours.predict(TEXTS)), atol=1e-4, rtol=1e-4)
        return
    probabilities = z.softmax(1) if target == "label" else z.sigmoid()
    torch.testing.assert_close(probabilities, torch.tensor(ours.predict_proba(TEXTS)), atol=1e-5, rtol=1e-4)


def test_its_temperature_and_a_base_of_ours_go_along(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300)))
    pairs = ["model.width=32", "model.depth=1", "model.heads=2", "data.row=64", "train.steps=2", "data.tokenizer=bytes"]
    said = {"sources": [str(tmp_path / "text.txt")], **overrides(pairs, PretrainConfig)}
    pretrain_config(parse(PretrainConfig, said), tmp_path / "base")
    rows = [{"text": f"{i} {WORDS[w].split()[i % 2]}", "label": w} for i in range(100) for w in WORDS]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {**HEADS[False], "data__validation": 0.3, "method": "dora", "encoder__pooling": "last"}
    made = recipe.finetune_config(
        config(str(tmp_path / "t.jsonl"), str(tmp_path / "base"), **settings), tmp_path / "run"
    )
    assert made.verdict is not None and made.verdict.temperature != 1
    export_run(tmp_path / "run", "hf", tmp_path / "out", Silent())
    found, tokens = theirs(tmp_path / "out", "AutoModelForSequenceClassification")
    assert tokens["input_ids"][1][:7] == [256, *b"top up"]
    torch.testing.assert_close(found.logits.softmax(1), torch.tensor(made.predict_proba(TEXTS)), atol=1e-5, rtol=1e-4)
    export_run(tmp_path / "base", "hf", tmp_path / "base-hf", Silent())
    export_run(tmp_path / "run", "peft", tmp_path / "adapter", Silent())
    (tmp_path / "out" / "tokenizer.json").replace(tmp_path / "base-hf" / "tokenizer.json")
    said = json.loads((tmp_path / "base-hf" / "config.json").read_text()) | {"num_labels": 3}
    (tmp_path / "base-hf" / "config.json").write_text(json.dumps(said))
    found, _ = theirs(tmp_path / "base-hf", "AutoModelForSequenceClassification", tmp_path / "adapter")
    torch.testing.assert_close(found.logits.softmax(1), torch.tensor(made.predict_proba(TEXTS)), atol=1e-5, rtol=1e-4)
    settings |= {"adapt__start": str(tmp_path / "adapter")}  # whose head is another's here
    again = prepare_texts(config(str(tmp_path / "t.jsonl"), str(tmp_path / "base"), **settings)).classifier
    features = (m.features(m.rows(TEXTS)) for m in (again, made))
    torch.testing.assert_close(*features, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters_of_a_body_give_the_same_in_peft(tmp_path: Path, family: str, method: str) -> None:
    place = folder(tmp_path / "base", family)
    settings = {"method": method, "adapt__rank": 3}
    made = recipe.finetune_config(config(table(tmp_path / "t.jsonl"), place, **settings), tmp_path / "run")
    lines = Lines()
    export_run(tmp_path / "run", "peft", tmp_path / "adapter", lines)
    assert any("head is not in it" in line for line in lines.said)
    found, tokens = theirs(tmp_path / "base", "AutoModel", tmp_path / "adapter")
    there = torch.tensor(tokens["attention_mask"])[..., None].float()
    h = found.last_hidden_state
    mean = (h * there).sum(1) / there.sum(1)
    last = h[torch.arange(3), there[..., 0].sum(1).long() - 1]
    wanted = {"bert": mean, "roberta": mean, "gpt2": last}[family]
    torch.testing.assert_close(made.features(made.rows(TEXTS)), wanted, atol=1e-4, rtol=1e-3)
    started = prepare_texts(config(table(tmp_path / "t.jsonl"), place, method=method, adapt__start="adapter"))
    rows = started.classifier.rows(TEXTS)
    torch.testing.assert_close(started.classifier.features(rows), wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_model_that_answers_gives_the_same_in_transformers_and_peft(
    tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder(tmp_path / "base", family)
    rows = [{"prompt": f"say {word}", "completion": word} for words in WORDS.values() for word in words.split()]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    said = {"source": str(tmp_path / "chats.jsonl"), "pretrained": place, "method": "lora", "chat": {"longest": 48}}
    said |= {"train": {"steps": 4, "batch_size": 4}, "optimizer": {"lr": 0.01}}
    made = instruct_config(parse(InstructConfig, said), tmp_path / "run")
    export_run(tmp_path / "run", "hf", tmp_path / "out", Silent())
    export_run(tmp_path / "run", "peft", tmp_path / "adapter", Silent())
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = [{"role": "user", "content": "say cash"}]
    ids = reader.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]
    assert ids[0].tolist() == made.template.prompt([Turn("user", "say cash")])
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    base = transformers.AutoModelForCausalLM.from_pretrained(place)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        for found in (whole, adapted):
            torch.testing.assert_close(found(ids).logits, made.model(ids), atol=1e-4, rtol=1e-3)
    capsys.readouterr()
    with Terminal() as terminal:
        info(str(tmp_path / "run"), terminal)
        list_all(tmp_path, terminal)
    shown = capsys.readouterr().out
    assert "--task instruct" in shown and "adapter.safetensors" in shown and "finished" in shown


def test_what_has_no_such_form_says_why(tmp_path: Path) -> None:
    source, place = table(tmp_path / "t.jsonl"), folder(tmp_path / "base", "bert")
    layers = {"encoder__hidden": [8], "ffn__activation": "relu2"}
    recipe.finetune_config(config(source, place, **layers), tmp_path / "run")
    wanted = r"encoder\.pooling=mean.*--set encoder\.pooling=cls --set encoder\.hidden=\[32\]"
    with pytest.raises(ConfigError, match=wanted):
        export_run(tmp_path / "run", "hf", tmp_path / "out", Silent())
    with pytest.raises(RunError, match="has no adapters"):
        export_run(tmp_path / "run", "peft", tmp_path / "out", Silent())
    bag = FinetuneConfig(source=source).with_("train.steps", 2).with_("bag.buckets", 64)
    recipe.finetune_config(bag, tmp_path / "bag")
    with pytest.raises(ConfigError, match="bag of n-grams"):
        export_run(tmp_path / "bag", "hf", tmp_path / "out", Silent())
    beside = config(source, place, encoder__ngrams=True, bag__buckets=64, train__steps=2)
    recipe.finetune_config(beside, tmp_path / "beside")
    with pytest.raises(ConfigError, match=r"encoder\.ngrams=true"):
        export_run(tmp_path / "beside", "hf", tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()


class Lines(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)
