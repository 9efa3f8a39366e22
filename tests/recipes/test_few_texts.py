"""`feedfwd finetune --from` with few texts a class: where the head begins, and what else is done."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from feedfwd.checkpoint import Run
from feedfwd.config_finetune import FinetuneConfig, preset
from feedfwd.errors import ConfigError
from feedfwd.models.encoder import Encoder, logistic_regression
from feedfwd.recipes import finetune as recipe
from feedfwd.recipes.console import Silent
from feedfwd.recipes.finetune import finetune_config
from feedfwd.recipes.texts import PreparedTexts, prepare_texts

WORDS = {"card": "card lost stolen", "money": "top up cash", "hello": "good morning team"}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random BERT with its tokenizer."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    words = sorted({word for text in WORDS.values() for word in text.split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *map(str, range(10))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    transformers.BertTokenizerFast(vocab=dict(zip(vocabulary, range(100), strict=False))).save_pretrained(folder)
    torch.manual_seed(0)
    transformers.BertModel(
        transformers.BertConfig(
            vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=32,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def prepared(tmp_path: Path, bert: Path, n: int = 30, **settings: object) -> PreparedTexts:
    path = tmp_path / "t.jsonl"
    rows = [(f"{i % 10} {WORDS[label]}", label) for i, label in enumerate(list(WORDS) * n)]
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    config = FinetuneConfig(source=str(path), test=str(path), pretrained=str(bert)).with_("train.precision", "fp32")
    for key, value in settings.items():
        config = config.with_(key.replace("__", "."), value)
    return prepare_texts(config)


def test_few_texts_begin_at_logistic_regression(tmp_path: Path, bert: Path) -> None:
    p = prepared(tmp_path, bert, n=4)
    assert isinstance(p.model, Encoder) and p.start == "regression"
    assert "logistic regression" in p.adapted
    right = p.classifier.outputs(p.train.rows).argmax(1) == p.train.data.targets
    assert right.float().mean() > 0.6  # before any update
    weight, bias = logistic_regression(F.normalize(p.classifier.features(p.train.rows), dim=1), p.train.data.targets, 3)
    scale = p.classifier.features(p.train.rows).norm(dim=1).mean()
    assert torch.allclose(p.model.mlp.head.weight * scale, weight, atol=0.02)
    assert torch.allclose(p.model.mlp.head.bias, bias, atol=0.02)


def test_few_texts_are_compared_and_partly_hidden(tmp_path: Path, bert: Path) -> None:
    p = prepared(tmp_path, bert, n=4)
    assert isinstance(p.model, Encoder) and p.model.shows_vectors and p.hides is not None and p.hides.share == 0.15
    assert p.config.loss.contrast == 1 and p.config.train.epochs == 12 and p.config.train.batch_size == 64
    assert "drawn together" in p.adapted and "15% of the tokens" in p.adapted
    batch = next(p.batches())
    assert p.loss(p.model.train()(batch.inputs), batch.targets).shape == batch.targets.shape[:1]
    many = prepared(tmp_path, bert, n=30)
    assert many.hides is None
    assert many.config.loss.contrast == 0 and many.config.train.batch_size == 32
    plain = prepared(tmp_path, bert, n=4, loss__contrast=0.0, loss__keep=0.0, encoder__masked=0.0)
    assert isinstance(plain.model, Encoder) and not plain.model.shows_vectors and plain.hides is None
    beside = prepared(tmp_path, bert, n=4, encoder__ngrams=True)
    assert beside.config.loss.contrast == beside.config.loss.keep == 0 and beside.config.train.epochs == 6


def test_vectors_are_kept_near_what_they_were(tmp_path: Path, bert: Path) -> None:
    p = prepared(tmp_path, bert, loss__keep=1.0)
    assert "kept near" in p.adapted
    first = p.classifier.features(p.train.rows)
    assert next(p.batches()).targets.shape[1] == 1 + 16  # for an update to be tried, before any are there
    p.read_before(print)
    assert p.before is not None
    torch.testing.assert_close(p.before, first)
    batch = next(p.batches())
    labels, before = batch.targets[:, 0].long(), batch.targets[:, 1:]
    for i in range(len(labels)):  # each text with its own
        same = (p.before == before[i]).all(1)
        assert labels[i] in p.train.data.targets[same]

    def moved(weight: float) -> float:
        chosen = p.config.with_("loss.keep", weight).with_("optimizer.lr", 3e-3)
        after = finetune_config(chosen, tmp_path / f"run{weight}").features(p.train.rows)
        return float((1 - F.cosine_similarity(first, after)).mean())

    free = moved(0.0)
    assert moved(100.0) < free / 3


def test_what_leaves_no_time_to_read_all_texts_first_keeps_none(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Silent, "say", lambda self, line: said.append(line))
    p = prepared(tmp_path, bert, loss__keep=1.0)
    monkeypatch.setattr(recipe, "tried", lambda p: 0.01)
    whole = finetune_config(p.config.with_("minutes", 0.01), tmp_path / "whole")
    assert Run(tmp_path / "whole").settings()["loss"]["keep"] == 1
    assert whole.result["steps"] == int(0.95 * (0.6 - 0.004 * p.updates_per_epoch) / 0.01)
    monkeypatch.setattr(recipe, "tried", lambda p: 0.2)
    short = finetune_config(p.config.with_("minutes", 0.01), tmp_path / "short")
    assert Run(tmp_path / "short").settings()["loss"]["keep"] == 0 and short.result["steps"] == 2
    assert sum("loss.keep left out" in line for line in said) == 1


def test_whose_vectors_are_kept(tmp_path: Path, bert: Path) -> None:
    of = {"source": "t.csv", "pretrained": str(bert)}
    assert preset(FinetuneConfig(**of), 5000, 77)["loss.keep"] == 1
    assert "loss.keep" not in preset(FinetuneConfig(**of, method="lora"), 5000, 77)
    assert "loss.keep" not in preset(FinetuneConfig(**of), 5000, None)
    assert "loss.keep" not in preset(FinetuneConfig(**of), 5000, 9)
    (tmp_path / "config.toml").write_text("")
    assert "loss.keep" not in preset(FinetuneConfig(source="t.csv", pretrained=str(tmp_path)), 5000, 77)


def test_a_comparison_is_of_one_label_each(tmp_path: Path, bert: Path) -> None:
    path = tmp_path / "several.jsonl"
    path.write_text("".join(json.dumps({"text": f"card {i}", "labels": ["a", "b"][: i % 3]}) + "\n" for i in range(30)))
    config = FinetuneConfig(source=str(path), pretrained=str(bert)).with_("loss.contrast", 0.5)
    with pytest.raises(ConfigError, match="one label each"):
        prepare_texts(config)
    with pytest.raises(ConfigError, match=r"loss\.contrast is for a pretrained model that learns"):
        FinetuneConfig(source=str(path)).with_("loss.contrast", 0.5)
    with pytest.raises(ConfigError, match=r"leave encoder\.ngrams out"):
        config.with_("encoder.ngrams", True)
    with pytest.raises(ConfigError, match=r"loss\.keep is for texts of one label each"):
        prepare_texts(config.with_("loss.contrast", 0.0).with_("loss.keep", 0.5))


def test_few_texts_end_as_any_others(tmp_path: Path, bert: Path) -> None:
    p = prepared(tmp_path, bert, n=4)
    found = finetune_config(p.config.with_("train.epochs", 120.0).with_("optimizer.lr", 3e-3), tmp_path / "run")
    assert found.result["test"]["accuracy"] > 0.9 and found.predict_proba(["0 card lost"]).shape == (1, 3)


def test_texts_may_begin_at_the_means_of_their_classes(tmp_path: Path, bert: Path) -> None:
    p = prepared(tmp_path, bert, n=4, data__names=False, encoder__start="means")
    assert isinstance(p.model, Encoder)
    assert "classes' means" in p.adapted
    features, targets = p.classifier.features(p.train.rows), p.train.data.targets
    unit = F.normalize(features, dim=1)
    means = F.normalize(torch.stack([unit[targets == k].mean(0) for k in range(3)]), dim=1)
    wanted = 20 * features @ means.T / features.norm(dim=1).mean()
    assert torch.allclose(p.classifier.outputs(p.train.rows), wanted, atol=1e-4)
    assert (wanted.argmax(1) == targets).float().mean() > 0.8  # before any update


def test_many_texts_or_a_hidden_layer_begin_at_random(tmp_path: Path, bert: Path) -> None:
    assert prepared(tmp_path, bert, n=30).start == "random"
    assert prepared(tmp_path, bert, n=30, data__shots=5).start == "regression"
    assert "means" in prepared(tmp_path, bert, n=30, encoder__start="means").adapted
    assert "begins" not in prepared(tmp_path, bert, n=4, encoder__start="random").adapted
    assert "begins" not in prepared(tmp_path, bert, n=4, encoder__hidden=[8]).adapted
    with pytest.raises(ConfigError, match="without hidden layers"):
        prepared(tmp_path, bert, n=4, encoder__start="means", encoder__hidden=[8])
    with pytest.raises(ConfigError, match="name one with --from"):
        FinetuneConfig(source="t.jsonl").with_("encoder.start", "means")


def test_names_of_classes_are_texts_where_there_are_few(tmp_path: Path, bert: Path) -> None:
    p, names = prepared(tmp_path, bert, n=4), sorted(WORDS)
    assert len(p.train) == len(p.train.rows) == 4 * 3 + 3 and len(p.test) == 4 * 3
    assert p.train.texts[-3:] == tuple(names) and p.train.data.targets[-3:].tolist() == [0, 1, 2]
    assert p.train.data.rows is not None and p.train.data.rows[-3:].tolist() == [-1] * 3
    assert p.config.data.names is None and p.frozen().data.names is True
    assert any("names of the 3 classes" in note for note in p.notes)
    again = prepare_texts(p.frozen(), resolved=True)
    assert again.fingerprint == p.fingerprint and again.adapted == p.adapted
    for settings in ({"n": 30}, {"data__names": False}, {"method": "head"}, {"method": "lora"}):
        found = prepared(tmp_path, bert, **({"n": 4} | settings))  # type: ignore[arg-type]
        assert not found.named and names[0] not in found.train.texts and found.frozen().data.names is False
    assert prepared(tmp_path, bert, n=4, method="head", data__names=True).named


def test_names_that_say_nothing_are_no_texts(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}", "label": f"class {i % 3}"}) + "\n" for i in range(30)))
    config = FinetuneConfig(source=str(path))
    assert not prepare_texts(config).named
    with pytest.raises(ConfigError, match="say nothing, or the same: class 0, class 1"):
        prepare_texts(config.with_("data.names", True))
    path.write_text("".join(json.dumps({"text": f"text {i}", "label": i / 7}) + "\n" for i in range(30)))
    with pytest.raises(ConfigError, match="one label each"):
        prepare_texts(config.with_("data.names", True))
