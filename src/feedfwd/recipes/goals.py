"""What a text is to be given: one label, several, or a number. From the targets of a file to a loss, and from the
network's outputs to answers and scores.
"""

# N texts, C classes, O outputs

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from feedfwd.config_finetune import LabelLossConfig
from feedfwd.data.dataset import Dataset
from feedfwd.data.text_tables import Kind, TextTable
from feedfwd.errors import ConfigError, DataError, RunError, nearest
from feedfwd.evaluate.arrays import Floats
from feedfwd.evaluate.evaluate import details
from feedfwd.evaluate.metrics import classification_scores, regression_scores
from feedfwd.evaluate.several import label_details, label_scores
from feedfwd.train.losses import Loss, build_loss


@dataclass(frozen=True)
class Goal:
    """One label of `classes`: probabilities (N, C) by softmax."""

    classes: tuple[str, ...]

    kind: ClassVar[Kind] = "label"

    @property
    def task(self) -> str:
        return "binary" if len(self.classes) == 2 else "multiclass"

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @property
    def what(self) -> str:
        """In the first line of a run."""
        return f"{len(self.classes):,} classes"

    def targets(self, table: TextTable) -> Dataset:
        """A file's targets as this goal's; DataError for what the training data don't have."""
        return as_dataset(table).recode(self.classes)

    def loss(self, config: LabelLossConfig, targets: Tensor) -> Loss:
        if config.class_weights == "none":
            return build_loss("cross_entropy", label_smoothing=config.label_smoothing)
        counts = torch.bincount(targets, minlength=self.outputs)
        balanced = len(targets) / (len(counts) * counts)
        weights = (balanced if config.class_weights == "balanced" else balanced.sqrt()).tolist()
        return build_loss("cross_entropy", label_smoothing=config.label_smoothing, class_weights=weights)

    def answers(self, outputs: Tensor) -> Floats:  # (N, O) -> what the scores take
        return outputs.softmax(1).numpy()

    def predictions(self, answers: Floats) -> Any:
        """What `predict` gives, (N,)."""
        return np.asarray(self.classes)[answers.argmax(1)]

    def row(self, answer: Floats) -> dict[str, Any]:
        """One text's answer as a row of a table."""
        best = int(answer.argmax())
        return {"prediction": self.classes[best], "probability": round(float(answer[best]), 6)}

    def scores(self, answers: Floats, targets: Tensor) -> dict[str, float]:
        return classification_scores(answers, targets)

    def details(self, answers: Floats, targets: Tensor, indices: Any = None) -> dict[str, Any]:
        return details(answers, targets, classes=self.classes, indices=indices)

    def shown(self, target: Tensor) -> str:
        """A target as a reader would say it."""
        return self.classes[int(target)]

    def about(self) -> dict[str, Any]:
        """For preprocess.json; `goal_of` makes the goal of it again."""
        return {"classes": list(self.classes)}


@dataclass(frozen=True)
class SeveralLabels(Goal):
    """Any number of labels of `classes`: a probability for each by itself, (N, C), by sigmoid; a label from ½ on."""

    kind: ClassVar[Kind] = "labels"

    @property
    def task(self) -> str:
        return "labels"

    @property
    def what(self) -> str:
        return f"several of {len(self.classes):,} labels"

    def targets(self, table: TextTable) -> Dataset:
        return sets_dataset(table, self.classes)

    def loss(self, config: LabelLossConfig, targets: Tensor) -> Loss:
        if config.class_weights in ("root", "balanced"):
            raise ConfigError("loss.class_weights is for one label a text", hint="leave it out")
        mean = build_loss("binary_cross_entropy", label_smoothing=config.label_smoothing)
        labels = self.outputs  # their sum and not their mean: a gradient as large as that of one label a text
        return lambda outputs, wanted: labels * mean(outputs, wanted)

    def answers(self, outputs: Tensor) -> Floats:
        return outputs.sigmoid().numpy()

    def predictions(self, answers: Floats) -> Any:
        return [tuple(name for name, p in zip(self.classes, row, strict=True) if p >= 0.5) for row in answers]

    def row(self, answer: Floats) -> dict[str, Any]:
        chosen = {name: float(p) for name, p in zip(self.classes, answer, strict=True) if p >= 0.5}
        found = {"prediction": ";".join(chosen), "probability": ";".join(f"{p:.6g}" for p in chosen.values())}
        best = int(answer.argmax())  # to be seen where none is chosen
        return found | {"likeliest": self.classes[best], "its probability": round(float(answer[best]), 6)}

    def scores(self, answers: Floats, targets: Tensor) -> dict[str, float]:
        return label_scores(answers, targets.numpy())

    def details(self, answers: Floats, targets: Tensor, indices: Any = None) -> dict[str, Any]:
        return label_details(answers, targets.numpy(), self.classes)

    def shown(self, target: Tensor) -> str:
        return ", ".join(self.classes[i] for i in target.nonzero()[:, 0].tolist()) or "no label"

    def about(self) -> dict[str, Any]:
        return {"classes": list(self.classes), "several": True}


@dataclass(frozen=True)
class Number(Goal):
    """A number, which the network gives in standard deviations from the training targets' mean; answers are (N,)."""

    name: str
    mean: float
    std: float

    kind: ClassVar[Kind] = "number"

    @property
    def task(self) -> str:
        return "regression"

    @property
    def outputs(self) -> int:
        return 1

    @property
    def what(self) -> str:
        return f"a number, {self.name} (mean {self.mean:.4g}, standard deviation {self.std:.4g})"

    def targets(self, table: TextTable) -> Dataset:
        return numbers_dataset(table)

    def loss(self, config: LabelLossConfig, targets: Tensor) -> Loss:
        if config.label_smoothing or config.class_weights in ("root", "balanced"):
            raise ConfigError("loss.label_smoothing and loss.class_weights are for labels", hint="leave them out")
        squared = build_loss("mse")
        return lambda outputs, wanted: squared(outputs, (wanted - self.mean) / self.std)

    def answers(self, outputs: Tensor) -> Floats:
        return (outputs[:, 0] * self.std + self.mean).numpy()

    def predictions(self, answers: Floats) -> Any:
        return answers

    def row(self, answer: Floats) -> dict[str, Any]:
        return {"prediction": round(float(answer), 6)}

    def scores(self, answers: Floats, targets: Tensor) -> dict[str, float]:
        return regression_scores(answers, targets.numpy())

    def details(self, answers: Floats, targets: Tensor, indices: Any = None) -> dict[str, Any]:
        return details(answers, targets.numpy(), indices=indices, names=[self.name])

    def shown(self, target: Tensor) -> str:
        return f"{float(target):.6g}"

    def about(self) -> dict[str, Any]:
        return {"classes": [], "number": {"name": self.name, "mean": self.mean, "std": self.std}}


def goal_for(table: TextTable) -> Goal:
    """What the training file asks for."""
    if table.numbers is not None:
        values = torch.tensor(table.numbers, dtype=torch.float64)
        return Number((), table.target or "target", float(values.mean()), float(values.std()))
    if table.sets is not None:
        return SeveralLabels(tuple(sorted({label for labels in table.sets for label in labels})))
    return Goal(tuple(sorted(set(table.labels or ()))))


def goal_of(about: Any, where: Any) -> Goal:
    """The goal that `about` wrote down; RunError where it can't be read."""
    found = about if isinstance(about, dict) else {}
    classes, number = found.get("classes"), found.get("number")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise RunError(f"{where} names no classes", hint="restore it from a copy, or train again")
    if isinstance(number, dict):
        return Number((), str(number["name"]), float(number["mean"]), float(number["std"]))
    return (SeveralLabels if found.get("several") else Goal)(tuple(classes))


def as_dataset(table: TextTable) -> Dataset:
    """The labels as class numbers, in the classes' alphabetical order; the inputs are the texts' places."""
    assert table.labels is not None
    classes = sorted(set(table.labels))
    place = {name: i for i, name in enumerate(classes)}
    targets = torch.tensor([place[label] for label in table.labels])
    return Dataset(table.name, _places(len(table)), targets, "classify", tuple(classes))


def sets_dataset(table: TextTable, classes: Sequence[str]) -> Dataset:
    """A column of 0 and 1 for each class, (N, C)."""
    assert table.sets is not None
    place = {name: i for i, name in enumerate(classes)}
    targets = torch.zeros(len(table), len(classes))
    for row, labels in enumerate(table.sets):
        for label in labels:
            if label not in place:
                what = f"{table.name} has label {label!r}, which the training data don't have"
                raise DataError(what, hint=nearest(label, classes))
            targets[row, place[label]] = 1
    return Dataset(table.name, _places(len(table)), targets, "regress", target_names=tuple(classes))


def numbers_dataset(table: TextTable) -> Dataset:
    """The numbers (N,)."""
    assert table.numbers is not None
    return Dataset(table.name, _places(len(table)), torch.tensor(table.numbers, dtype=torch.float32), "regress")


def _places(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float32)[:, None]
