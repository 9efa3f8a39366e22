"""A bag learns what a fine-tuned model answers: its loss, what it is told of, and that it helps."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_adapters import config, folder, table

import feedfwd as ff
from feedfwd.cli import main
from feedfwd.config_finetune import DistilConfig, FinetuneConfig
from feedfwd.errors import ConfigError, DataError
from feedfwd.recipes import finetune as recipe
from feedfwd.recipes.distil import distillation
from feedfwd.recipes.goals import Goal, Number, SeveralLabels
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.recipes.texts import prepare_texts
from feedfwd.recipes.training import Training


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def bag(source: str, **settings: Any) -> FinetuneConfig:
    found = FinetuneConfig(source=source)
    small = {"bag__buckets": 512, "bag__width": 16, "train__batch_size": 8, "decide__held": 0}
    for key, value in {**small, **settings}.items():
        found = found.with_(key.replace("__", "."), value)
    return found


def test_the_loss_of_one_label_is_the_formula() -> None:
    torch.manual_seed(0)
    config, goal = DistilConfig(teacher="run", temperature=3.0, share=0.6), Goal(("a", "b", "c"))
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    label, known = torch.tensor([2, 0, 0, 1]), torch.tensor([1.0, 1, 0, 0])
    targets = torch.cat([known[:, None], label.float()[:, None], teacher], 1)
    found = distillation(config, goal, lambda y, t: F.cross_entropy(y, t, reduction="none"))(student, targets)
    p, q = (teacher / 3).softmax(1), (student / 3).log_softmax(1)
    soft, hard = -9 * (p * q).sum(1), -student.log_softmax(1)[torch.arange(4), label]
    torch.testing.assert_close(found, torch.where(known > 0, 0.6 * soft + 0.4 * hard, soft))
    at_teacher = teacher.clone().requires_grad_(True)  # where the student says the same, nothing pulls
    distillation(config, goal, lambda y, t: 0 * y.sum(1))(at_teacher, targets)[2:].sum().backward()
    torch.testing.assert_close(at_teacher.grad, torch.zeros(4, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("target", ["label", "labels", "number"])
def test_a_bag_learns_from_every_kind_of_teacher(tmp_path: Path, target: str) -> None:
    source = table(tmp_path / "t.jsonl", target)
    recipe.finetune_config(config(source, folder(tmp_path / "base", "bert"), train__steps=30), tmp_path / "teacher")
    taught = {"distil__teacher": str(tmp_path / "teacher"), "train__epochs": 30.0}
    made = recipe.finetune_config(bag(source, **taught), tmp_path / "student")
    assert set(made.result["compared"]) == {"teacher", "bag without teacher"}
    assert set(made.result["distilled"]) == {"this run", "teacher", "bag without teacher"}
    assert all(one["texts_per_second"] > 0 and one["bytes"] > 0 for one in made.result["distilled"].values())
    teacher, student = ff.load("teacher"), ff.load("student")
    texts = [f"{i} lost" for i in range(40)]
    said = teacher.goal.answers(teacher.outputs(teacher.rows(texts)))
    near = abs(student.answers(student.rows(texts)) - said).mean()
    alone = recipe.finetune_config(bag(source, train__epochs=30.0), tmp_path / "alone")
    assert near < abs(alone.answers(alone.rows(texts)) - said).mean()
    assert len(student.predict(texts)) == 40


def test_texts_without_labels_are_answered_by_the_teacher(tmp_path: Path) -> None:
    """A bag that saw two words of each class knows the others from its teacher alone."""
    words = {"card": "card lost stolen visa plastic", "money": "top up cash euro salary"}
    rows = [{"text": f"{i} {w}", "label": k} for k, all_ in words.items() for i, w in enumerate(all_.split() * 12)]
    Path("all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe.finetune_config(bag("all.jsonl", train__epochs=20.0), tmp_path / "teacher")
    few = [row for row in rows if row["text"].split()[-1] in ("card", "lost", "top", "up")]
    Path("few.jsonl").write_text("\n".join(map(json.dumps, few)))
    Path("test.jsonl").write_text("\n".join(json.dumps(r | {"text": "x " + r["text"]}) for r in rows if r not in few))
    Path("more.txt").write_text("".join(f"{row['text']}\n" for row in rows) + "\n")
    taught = {
        "distil__teacher": "teacher",
        "distil__unlabelled": "more.txt",
        "train__epochs": 10.0,
        "test": "test.jsonl",
    }
    made = recipe.finetune_config(bag("few.jsonl", **taught), tmp_path / "student")
    result = made.result
    assert result["test"]["accuracy"] > 0.95 and result["compared"]["teacher"]["accuracy"] > 0.95
    assert result["compared"]["bag without teacher"]["accuracy"] < 0.8
    assert any("72 texts without labels" in note for note in result["notes"])
    assert any("48 others left out" in note for note in result["notes"])


def test_resuming_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = table(tmp_path / "t.jsonl")
    recipe.finetune_config(bag(source, train__steps=20), tmp_path / "teacher")
    Path("more.txt").write_text("lost again\ncash again\n")
    said = {"distil__teacher": "teacher", "distil__unlabelled": "more.txt", "train__steps": 6, "decide__held": 40}
    whole = recipe.finetune_config(bag(source, **said), tmp_path / "whole")
    original = Training._log_step

    def killed(self: Any, step: Any, meter: Any) -> None:
        original(self, step, meter)
        if step.n == 4:
            self.save()
            raise Interrupted("killed", 2)

    monkeypatch.setattr(Training, "_log_step", killed)
    with pytest.raises(Interrupted):
        recipe.finetune_config(bag(source, **said), tmp_path / "cut")
    monkeypatch.setattr(Training, "_log_step", original)
    cut = recipe.resume(tmp_path / "cut")
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_who_can_not_teach(tmp_path: Path) -> None:
    source, numbers = table(tmp_path / "t.jsonl"), table(tmp_path / "n.jsonl", "number")
    recipe.finetune_config(bag(source, train__steps=2), tmp_path / "teacher")
    with pytest.raises(ConfigError, match="take another teacher"):
        prepare_texts(bag(numbers, distil__teacher="teacher"))
    fewer = [json.loads(line) for line in Path(source).read_text().splitlines()]
    Path("f.jsonl").write_text("\n".join(json.dumps(row) for row in fewer if row["label"] != "hello"))
    with pytest.raises(DataError, match=r"only teacher has 'hello'"):
        prepare_texts(bag("f.jsonl", distil__teacher="teacher"))
    with pytest.raises(ConfigError, match="leave one out"):
        bag(source, distil__teacher="teacher", pretrained="base")
    with pytest.raises(ConfigError, match="needs a teacher"):
        bag(source, distil__unlabelled="more.txt")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    source = table(tmp_path / "t.jsonl")
    recipe.finetune_config(bag(source, train__steps=2), tmp_path / "teacher")

    def call(*argv: str) -> int:
        monkeypatch.setattr(sys, "argv", ["feedfwd", *argv])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    sets = ["--set", "bag.buckets=64", "--set", "train.steps=2", "--set", "decide.held=0"]
    assert call("finetune", source, "--teacher", "teacher", "--run", "student", *sets) == 0
    said = capsys.readouterr().out
    assert "taught by teacher" in said and "bag without teacher: accuracy" in said and "texts/s" in said
    assert "--teacher teacher" in ff.load("student").result["command"]
    assert "distil.teacher" not in ff.load("student").result["command"]
    assert call("finetune", "--resume", "student", "--teacher", "teacher") == 2
    assert call("finetune", source, "--task", "instruct", "--teacher", "teacher") == 2
    assert "--teacher is for labelled texts" in capsys.readouterr().err


def test_a_several_label_loss_and_a_number_loss() -> None:
    several = distillation(
        DistilConfig(teacher="r", temperature=1.0, share=0.5), SeveralLabels(("a", "b")), lambda y, t: y[:, 0]
    )
    y, t = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 9.0, 9.0, 0.0, 2.0]])
    p = torch.tensor([0.0, 2.0]).sigmoid()
    torch.testing.assert_close(several(y, t), -(p * p.log() + (1 - p) * (1 - p).log()).sum()[None])
    number = distillation(
        DistilConfig(teacher="r", share=0.5), Number((), "n", 0.0, 1.0), lambda y, t: (y[:, 0] - t) ** 2
    )
    found = number(torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 2.0]]))
    torch.testing.assert_close(found, torch.tensor([0.5 * 1 + 0.5 * 4, 1.0]))
