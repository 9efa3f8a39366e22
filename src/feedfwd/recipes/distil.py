"""What a fine-tuned model knows, for a bag of n-grams to learn: `feedfwd finetune DATA --teacher RUN`.

The bag learns the teacher's answers beside the labels, and on texts without labels the answers alone (Hinton et al.
2015, arXiv 1503.02531). The run holds the bag; the teacher isn't needed any more.
"""

# N texts, U of them without labels, O outputs, K numbers of a label

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from feedfwd.config_finetune import DistilConfig
from feedfwd.data.dataset import Dataset
from feedfwd.data.ragged import Ragged
from feedfwd.data.text_tables import folded, read_table
from feedfwd.errors import ConfigError, DataError
from feedfwd.recipes.classifier import Reader, TextClassifier
from feedfwd.recipes.goals import Goal, Number
from feedfwd.train.losses import Loss


@dataclass(frozen=True)
class Taught:
    """What the teacher says to the training texts, in their order, and to others, with these as the student reads them.

    A target of an update is a row of 1 + K + O numbers: whether the text has a label, the label (K = 1; several: one a
    class), and the teacher's outputs.
    """

    places: Tensor  # of the training texts in the user's file, (N - U,)
    known: Tensor  # (N - U, O)
    others: Tensor  # (U, O)
    rows: Ragged  # of the others
    notes: tuple[str, ...]

    def __len__(self) -> int:
        """Texts without labels."""
        return len(self.others)

    @property
    def fingerprint(self) -> str:
        """Of the texts without labels, as the student reads them."""
        return hashlib.blake2b(self.rows.values.numpy().tobytes(), digest_size=16).hexdigest()

    def examples(self, rows: Ragged, data: Dataset) -> tuple[Ragged, Tensor]:
        """Rows and targets to train on: a part of the training texts, and all the others."""
        own = _columns(data.targets)
        found = torch.searchsorted(self.places, _places(data))
        labelled = torch.cat([torch.ones(len(own), 1), own, self.known[found]], 1)
        alone = torch.cat([torch.zeros(len(self), 1 + own.shape[1]), self.others], 1)
        return Ragged.concatenated([rows, self.rows]), torch.cat([labelled, alone])


def _columns(targets: Tensor) -> Tensor:  # (N,) or (N, K) -> (N, K)
    return targets.float() if targets.ndim > 1 else targets.float()[:, None]


def _places(data: Dataset) -> Tensor:
    return torch.arange(len(data)) if data.rows is None else data.rows


def taught(
    config: DistilConfig,
    goal: Goal,
    reader: Reader,
    texts: Sequence[str],
    data: Dataset,
    test: Sequence[str],
    column: str,
) -> Taught:
    """Ask the teacher. Raises ConfigError or DataError for one that answers other questions, or isn't there."""
    assert config.teacher is not None
    teacher = teacher_of(config.teacher, goal)
    order = _places(data).argsort()
    known = outputs(teacher, goal, [texts[i] for i in order.tolist()])
    others: list[str] = []
    notes = []
    if config.unlabelled is not None:
        table = read_table(config.unlabelled, text=column, other=True, labelled=False)
        found = table.texts
        seen = {folded(text) for text in (*texts, *test)}
        others = [text for text in dict.fromkeys(found) if folded(text) not in seen]
        notes = [f"{config.unlabelled}: {note}" for note in table.notes]
        notes.append(f"{len(others):,} texts without labels, which the teacher answers")
        if left := len(found) - len(others):
            notes.append(f"{left:,} others left out: they repeat, or stand in the training or test part")
    said = outputs(teacher, goal, others) if others else known[:0]
    return Taught(_places(data)[order], known, said, reader.rows(others), tuple(notes))


def teacher_of(path: str, goal: Goal) -> TextClassifier:
    """The run that teaches, if it gives what the data ask for."""
    teacher = TextClassifier.load(Path(path).expanduser())
    if type(teacher.goal) is not type(goal):
        raise ConfigError(
            f"{path} learnt {teacher.goal.what}, and the data have {goal.what}", hint="take another teacher"
        )
    if strange := sorted(set(goal.classes) ^ set(teacher.classes)):
        which = "the data" if strange[0] in goal.classes else path
        what = f"{path} and the data differ in {len(strange)} classes: only {which} has {strange[0]!r}"
        raise DataError(what, hint="train the teacher on these classes")
    return teacher


def outputs(teacher: TextClassifier, goal: Goal, texts: Sequence[str]) -> Tensor:  # (N, O)
    """The teacher's logits, in the order of the data's classes; numbers in the data's standard deviations."""
    found = teacher.outputs(teacher.rows(texts))
    if isinstance(goal, Number) and isinstance(teacher.goal, Number):
        return (found * teacher.goal.std + teacher.goal.mean - goal.mean) / goal.std
    return found[:, [teacher.classes.index(name) for name in goal.classes]]


def distillation(config: DistilConfig, goal: Goal, own: Loss) -> Loss:
    """share · T² · soft + (1 - share) · own, per text, with share = 1 where there is no label.

    soft is the cross-entropy between the teacher's probabilities and the student's, both at temperature T, whose
    gradient falls with T²; of several labels the sum over them; of a number the squared difference.
    """
    t = config.temperature

    def soft(outputs: Tensor, wanted: Tensor) -> Tensor:  # (N, O), (N, O) -> (N,)
        match goal.kind:
            case "label":
                return t**2 * F.cross_entropy(outputs / t, (wanted / t).softmax(1), reduction="none")
            case "labels":
                losses = F.binary_cross_entropy_with_logits(outputs / t, (wanted / t).sigmoid(), reduction="none")
                return t**2 * losses.sum(1)
            case "number":
                return (outputs - wanted).square().sum(1)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:  # (N, O), (N, 1 + K + O) -> (N,)
        known, label, wanted = targets[:, 0], targets[:, 1 : -outputs.shape[1]], targets[:, -outputs.shape[1] :]
        match goal.kind:
            case "label":
                hard = own(outputs, label[:, 0].long())
            case "labels":
                hard = own(outputs, label)
            case "number":
                hard = own(outputs, label[:, 0])
        hard = hard.flatten(1).mean(1) if hard.ndim > 1 else hard
        share = torch.where(known > 0, config.share, 1.0)
        return share * soft(outputs.float(), wanted) + (1 - share) * hard

    return loss
