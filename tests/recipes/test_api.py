"""The recipes from Python: what the command does, by a call."""

import json
from pathlib import Path

import polars
import pytest

import feedfwd as ff
from feedfwd.errors import ConfigError
from feedfwd.recipes.chatter import Chatter
from feedfwd.recipes.classifier import TextClassifier
from feedfwd.recipes.searcher import TextEncoder
from feedfwd.recipes.writer import Writer

QUICK = {"train.steps": 3, "train.precision": "fp32"}
WORDS = {"card": "my card is lost", "money": "where is my money", "hello": "good morning to you"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, labelled ones and pairs, and a language model of the text."""
    folder = tmp_path_factory.mktemp("api")
    text = " ".join(f"{i} {words}." for i in range(300) for words in WORDS.values())
    (folder / "text.txt").write_text(text)
    (folder / "other.txt").write_text(text.upper())
    rows = [{"text": f"{words} {i}", "label": name} for i in range(12) for name, words in WORDS.items()]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"question": f"{name} {i}", "answer": f"{words} {i}"} for i in range(20) for name, words in WORDS.items()]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    turns = [[{"role": "user", "content": row["question"]}, {"role": "assistant", "content": "yes"}] for row in pairs]
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    small = {"model.width": 16, "model.depth": 1, "model.heads": 2, "data.tokenizer": "bytes", "data.row": 32}
    found = ff.pretrain(
        folder / "text.txt", folder / "other.txt", run=folder / "lm", settings=QUICK | small | {"train.batch_size": 4}
    )
    assert isinstance(found, Writer) and found.model.width == 16
    return folder


def test_a_classifier_of_texts(place: Path, tmp_path: Path) -> None:
    found = ff.finetune(place / "labels.jsonl", run=tmp_path / "run", seed=3, shots=5, settings={"train.epochs": 20})
    assert isinstance(found, TextClassifier) and found.predict(["my card is lost 3"]) == ["card"]
    assert found.result["seed"] == 3 and found.result["sizes"]["train"] == 15
    assert isinstance(ff.load(tmp_path / "run"), TextClassifier)


def test_the_task_is_told_by_the_columns_or_by_name(place: Path, tmp_path: Path) -> None:
    embedded = ff.finetune(place / "pairs.jsonl", task="embed", run=tmp_path / "embed", settings=QUICK)
    assert isinstance(embedded, TextEncoder)
    further = ff.finetune(
        place / "other.txt", task="continue", pretrained=place / "lm", run=tmp_path / "further", settings=QUICK
    )
    assert isinstance(further, Writer)
    answering = ff.finetune(place / "chats.jsonl", pretrained=place / "lm", run=tmp_path / "chat", settings=QUICK)
    assert isinstance(answering, Chatter)


def test_a_bag_may_be_taught(place: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    ff.finetune(place / "labels.jsonl", pretrained=place / "lm", run=teacher, settings=QUICK)
    found = ff.finetune(place / "labels.jsonl", teacher=teacher, run=tmp_path / "bag", settings={"train.epochs": 1})
    assert isinstance(found, TextClassifier) and found.config.distil.teacher == str(teacher)


def test_what_cannot_be_is_refused_as_by_the_command(place: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'classify'"):
        ff.finetune(place / "labels.jsonl", task="clasify")
    with pytest.raises(ConfigError, match="for labelled texts, not for --task embed"):
        ff.finetune(place / "pairs.jsonl", task="embed", shots=3)
    with pytest.raises(ConfigError, match="needs a model that reads already"):
        ff.finetune(place / "pairs.jsonl", task="rank")
    with pytest.raises(ConfigError, match=r"model\.widht"):
        ff.pretrain(place / "text.txt", settings={"model.widht": 16})
    with pytest.raises(ConfigError, match=r"^source=<DataFrame> can't be used"):
        ff.finetune(polars.DataFrame({"text": ["a", "b"], "label": [0, 1]}))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^loss\.keep is for a pretrained model that learns: --from"):
        ff.finetune(place / "labels.jsonl", settings={"loss.keep": 1.0})
