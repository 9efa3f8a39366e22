"""`feedfwd finetune --from`: every method, every goal, in a run that can be moved."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import feedfwd as ff
from feedfwd.checkpoint import Run
from feedfwd.config import overrides, parse
from feedfwd.config_finetune import FinetuneConfig, preset
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.models.encoder import Encoder
from feedfwd.recipes import finetune as recipe
from feedfwd.recipes.held_out import memory
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.recipes.pretrain import pretrain_config
from feedfwd.recipes.texts import prepare_texts

SETTINGS = [
    "model.width=32", "model.depth=2", "model.heads=2", "ffn.hidden=48", "data.row=64", "train.batch_size=4",
    "train.steps=2", "train.threads=1", "train.precision=fp32", "data.tokenizer=bytes",
]  # fmt: skip
WORDS = {"card": "card lost stolen arrive", "money": "top up cash transfer", "hello": "good morning dear team"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two runs of `pretrain`: one that writes, one that fills in."""
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEEDFWD_CACHE", str(folder / "cache"))
        text = folder / "text.txt"
        text.write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300)))
        for name, objective in (("next", "next"), ("masked", "masked")):
            pairs = [*SETTINGS, f"train.objective={objective}"]
            config = parse(PretrainConfig, {"sources": [str(text)], **overrides(pairs, PretrainConfig)})
            pretrain_config(config, folder / name)
        yield folder


def rows(n: int = 60) -> list[tuple[str, str]]:
    found = []
    for i in range(n):
        label = tuple(WORDS)[i % 3]
        words = WORDS[label].split()
        found.append((f"{i} {words[i % len(words)]} {words[(i // 4) % len(words)]}", label))
    return found


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., str]:
    def write(target: Callable[[int, str], object] = lambda i, label: label, n: int = 60) -> str:
        path = tmp_path / "t.jsonl"
        lines = [{"text": text, "label": target(i, label)} for i, (text, label) in enumerate(rows(n))]
        path.write_text("\n".join(map(json.dumps, lines)) + "\n")
        return str(path)

    return write


def config(source: str, base: Path, **settings: object) -> FinetuneConfig:
    found = FinetuneConfig(source=source, pretrained=str(base))
    for key, value in {"train__epochs": 12.0, "train__batch_size": 8, "optimizer__lr": 3e-3, **settings}.items():
        found = found.with_(key.replace("__", "."), value)
    return found


@pytest.mark.parametrize(
    ("method", "which"), [("full", "next"), ("full", "masked"), ("lora", "next"), ("dora", "masked")]
)
def test_a_run_learns_and_can_be_moved(
    tmp_path: Path, base: Path, table: Callable[..., str], method: str, which: str
) -> None:
    found = recipe.finetune_config(config(table(n=120), base / which, method=method), tmp_path / "run")
    assert found.result["test"]["accuracy"] >= 0.7
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"tokenizer.json", "preprocess.json", "model.safetensors"}
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    texts = ["my card was stolen", "", "good morning " * 40]
    loaded = ff.load(tmp_path / "elsewhere")
    assert loaded.predict_proba(texts) == pytest.approx(found.predict_proba(texts), abs=1e-5)
    assert loaded.embed(texts).shape == (3, 32)
    assert not any("lora" in name for name in loaded.model.state_dict())


def test_adapters_train_a_few_parameters_and_leave_the_rest(base: Path, table: Callable[..., str]) -> None:
    p = prepare_texts(config(table(), base / "next", method="lora", adapt__rank=2, adapt__targets=["attention.q"]))
    assert p.trained_parameters == 2 * 2 * (32 + 32) + 3 * 32 + 3
    assert "attention.q matches 2" in p.adapted


def test_the_head_alone_sees_features_that_were_taken_once(
    tmp_path: Path, base: Path, table: Callable[..., str]
) -> None:
    before = ff.load(base / "masked").model.state_dict()["blocks.0.ffn.down.weight"].clone()
    found = recipe.finetune_config(config(table(), base / "masked", method="head"), tmp_path / "run")
    assert torch.equal(found.model.state_dict()["backbone.blocks.0.ffn.down.weight"], before)
    p = prepare_texts(config(table(), base / "masked", method="head"))
    assert p.features is not None and p.features.shape == (len(p.train), 32)
    torch.testing.assert_close(p.trained.eval()(p.features), p.classifier.outputs(p.train.rows))


def test_a_frozen_model_reads_every_text_once_and_its_head_is_judged(
    tmp_path: Path, base: Path, table: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    once = Encoder._features
    monkeypatch.setattr(Encoder, "_features", lambda self, x: (seen.append(len(x)), once(self, x))[1])
    source = config(table(n=120), base / "masked", method="head", train__epochs=30.0, decide__level=0.5)
    found = recipe.finetune_config(source.with_("data.validation", 0.1), tmp_path / "a")
    assert sum(seen) == 120 and found.result["judgement"] is None  # 11 held-out answers are too few
    seen.clear()
    found = recipe.finetune_config(source.with_("encoder.start", "means"), tmp_path / "b")
    judgement = found.result["judgement"]
    assert sum(seen) == 120 and judgement["n"] == 96 and "5 fifths of the training part" in judgement["fitted_on"]
    loaded = ff.load(tmp_path / "b")
    features, outputs = loaded.read(loaded.rows(["my card", "zzzz"]))
    torch.testing.assert_close(outputs, loaded.outputs(loaded.rows(["my card", "zzzz"])))
    torch.testing.assert_close(features, loaded.features(loaded.rows(["my card", "zzzz"])))
    assert loaded.memory is not None and len(loaded.memory.texts) == 96


def test_few_classes_have_a_linear_bag_beside_the_model(base: Path, table: Callable[..., str]) -> None:
    p = prepare_texts(config(table(), base / "masked", encoder__ngrams=True))
    assert isinstance(p.model, Encoder) and p.model.bag is not None and p.model.bag.direct
    assert p.config.optimizer.ngrams == 1.0 and p.config.loss.class_weights == "none"
    vectors = prepare_texts(config(table(), base / "masked", encoder__ngrams=True, bag__width=8)).model
    assert isinstance(vectors, Encoder) and vectors.bag is not None and not vectors.bag.direct


def test_training_texts_are_remembered_where_nothing_is_fitted(
    tmp_path: Path, base: Path, table: Callable[..., str]
) -> None:
    found = recipe.finetune_config(config(table(), base / "next", method="lora"), tmp_path / "run")
    assert found.result["judgement"] is None and len(found.memory.texts) == 48
    assert len(ff.load(tmp_path / "run").explain("my card was stolen").similar) == 3


def test_remembered_texts_are_of_every_class_though_the_file_is_sorted(base: Path, table: Callable[..., str]) -> None:
    p = prepare_texts(config(table(n=120), base / "next"))
    p.train = p.train.select(p.train.data.targets.argsort(stable=True))
    kept, known = memory(p, p.train, most=12)
    assert kept.data.targets.bincount().tolist() == [4, 4, 4] and known.shape == (12, 32)
    torch.testing.assert_close(known, p.classifier.features(p.classifier.rows(kept.texts)))


@pytest.mark.parametrize("windows", [1, 2])
def test_one_pass_gives_features_and_outputs(base: Path, table: Callable[..., str], windows: int) -> None:
    settings = {"encoder__ngrams": True, "encoder__windows": windows, "encoder__longest": 8, "bag__buckets": 64}
    p = prepare_texts(config(table(), base / "next", **settings))
    features, outputs = p.classifier.read(p.train.rows)
    torch.testing.assert_close(features, p.classifier.features(p.train.rows))
    torch.testing.assert_close(outputs, p.classifier.outputs(p.train.rows))


def test_several_labels_are_judged(tmp_path: Path, base: Path, table: Callable[..., str]) -> None:
    source = table(lambda i, label: [label] if i % 4 else [label, "fourth"], n=400)
    chosen = config(source, base / "masked", method="head", train__epochs=20.0, data__validation=0.2, decide__error=0.9)
    found = recipe.finetune_config(chosen, tmp_path / "run").result["judgement"]
    assert found["several"] and found["n"] == 64 and found["test"]["n"] == 80
    loaded = ff.load(tmp_path / "run")
    p = loaded.predict_proba(["my card"])
    z = loaded.outputs(loaded.rows(["my card"]))
    assert p == pytest.approx(torch.sigmoid(z / found["temperature"]).numpy(), abs=1e-6)
    assert all(names is None or isinstance(names, tuple) for names in loaded.predict(["my card", "q"], abstain=True))
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<h2>When to answer</h2>" in page and "all labels are right" in page


def test_several_labels_a_text(tmp_path: Path, base: Path, table: Callable[..., str]) -> None:
    source = table(lambda i, label: [label] if i % 4 else [label, "fourth"], n=120)
    found = recipe.finetune_config(config(source, base / "masked", train__epochs=30.0), tmp_path / "run")
    assert found.classes == ("card", "fourth", "hello", "money") and found.result["task"] == "labels"
    assert found.result["test"]["micro_f1"] > 0.5
    loaded = ff.load(tmp_path / "run")
    assert all(isinstance(names, tuple) for names in loaded.predict(["my card", "good team"]))


def test_numbers(tmp_path: Path, base: Path, table: Callable[..., str]) -> None:
    source = table(lambda i, label: 10.5 * len(label) + (i % 50) / 100, n=120)
    found = recipe.finetune_config(config(source, base / "masked"), tmp_path / "run")
    assert found.result["task"] == "regression" and found.result["test"]["r2"] > -1
    assert ff.load(tmp_path / "run").predict(["my card"]).shape == (1,)


def test_a_bag_learns_numbers_and_several_labels(tmp_path: Path, table: Callable[..., str]) -> None:
    small = {"bag": {"buckets": 4096, "width": 16}}
    source = table(lambda i, label: 10.5 * len(label) + (i % 50) / 100, n=120)
    found = recipe.finetune_config(FinetuneConfig(source=source, **small), tmp_path / "a")  # type: ignore[arg-type]
    assert found.result["test"]["r2"] > 0.5
    source = table(lambda i, label: label if i % 4 else f"{label};fourth")
    assert recipe.finetune_config(
        FinetuneConfig(source=source, **small),
        tmp_path / "b",  # type: ignore[arg-type]
    ).classes == ("card", "fourth", "hello", "money")


def test_shots_are_drawn_by_seed(base: Path, table: Callable[..., str]) -> None:
    source = table(n=90)
    few = [prepare_texts(config(source, base / "masked", data__shots=4, data__names=False, seed=s)) for s in (0, 0, 1)]
    assert [p.train.data.targets.bincount().tolist() for p in few] == [[4, 4, 4]] * 3
    assert few[0].train.texts == few[1].train.texts != few[2].train.texts
    assert any("60 others are left out" in note for note in few[0].notes)


def test_a_share_of_the_tokens_is_read_as_the_mask_token(base: Path, table: Callable[..., str]) -> None:
    chosen = config(table(), base / "masked", encoder__masked=0.4)
    p = prepare_texts(chosen)
    assert p.pretrained is not None and "40% of the tokens read as the mask token" in p.adapted
    mask, ends = p.pretrained.tokenizer.mask, p.pretrained.tokenizer.set_apart
    plain = prepare_texts(chosen.with_("encoder.masked", 0.0)).batches()
    hidden = kept = 0
    for _, (seen, whole) in zip(range(6), zip(p.batches(), plain, strict=False), strict=False):
        changed = seen.inputs != whole.inputs
        assert (seen.inputs[changed] == mask).all() and torch.equal(seen.targets, whole.targets)
        assert not any((whole.inputs[changed] == end).any() for end in [*ends, -1])
        hidden, kept = hidden + int(changed.sum()), kept + int((whole.inputs >= 0).sum())
    assert 0.25 < hidden / kept < 0.5
    assert "mask token" not in prepare_texts(config(table(), base / "next")).adapted


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_head_above_adapters_begins_at_the_classes_means(
    tiny_bert: Path, table: Callable[..., str], method: str
) -> None:
    p = prepare_texts(config(table(n=300), tiny_bert, method=method))  # 80 texts a class: not few
    assert ("begins at the classes' means" in p.adapted) == (method == "lora")
    features, targets = p.classifier.features(p.train.rows), p.train.data.targets
    means = torch.stack([torch.nn.functional.normalize(features[targets == c], dim=1).mean(0) for c in range(3)])
    cosines = torch.nn.functional.cosine_similarity(p.model.mlp.head.weight, means)
    assert (cosines > 0.999).all() == (method == "lora")


def test_few_classes_are_learnt_in_half_the_epochs(tiny_bert: Path) -> None:
    few = preset(FinetuneConfig(source="", pretrained=str(tiny_bert)), 5000, classes=9)
    many = preset(FinetuneConfig(source="", pretrained=str(tiny_bert)), 5000, classes=10)
    assert few["train.epochs"] == many["train.epochs"] / 2


@pytest.mark.parametrize("of", ["next", "masked"])
def test_resuming_gives_the_same_bits(
    tmp_path: Path, base: Path, table: Callable[..., str], monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    chosen = config(table(), base / of, train__save_every=5, train__epochs=3.0, encoder__dropout=0.1)
    if of == "masked":
        chosen = chosen.with_("encoder.masked", 0.2).with_("loss.keep", 1.0)
    whole = recipe.finetune_config(chosen, tmp_path / "whole")
    log, count = Run.log, 0

    def killed(self: Run, event: dict[str, object]) -> None:
        nonlocal count
        count += event["event"] == "step"
        if count == 12:
            raise Interrupted("killed", 9)
        log(self, event)

    monkeypatch.setattr(Run, "log", killed)
    with pytest.raises(KeyboardInterrupt):
        recipe.finetune_config(chosen, tmp_path / "cut")
    monkeypatch.setattr(Run, "log", log)
    resumed = recipe.resume(tmp_path / "cut")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
