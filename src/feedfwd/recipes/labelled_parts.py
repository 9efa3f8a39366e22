"""From a file of labelled texts to its parts: what is trained on, held back and tested, and towards which goal."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from feedfwd.config_finetune import FinetuneConfig
from feedfwd.data.batches import derived_seed
from feedfwd.data.dataset import Dataset
from feedfwd.data.split import split
from feedfwd.data.text_tables import KINDS, Kind, TextTable, folded, read_table, shared_texts
from feedfwd.errors import ConfigError, DataError
from feedfwd.recipes.goals import Goal, Number, goal_for

Texts = tuple[tuple[str, ...], Dataset]


def parts(config: FinetuneConfig) -> tuple[Texts, Texts | None, Texts, Goal, dict[str, str], list[str]]:
    """Training, validation and test part, what a text is to be given, the columns, and what the user should know."""
    whole = read_table(config.source, text=config.text, target=config.target, kinds=_kinds(config))
    goal = goal_for(whole)
    data = goal.targets(whole)
    if goal.kind == "label" and 2 < len(whole) == goal.outputs:
        what = f"each of the {len(whole):,} texts has a label of its own in column {whole.target!r}"
        raise DataError(what, hint="name another one with --target; for numbers say --task regress")
    data.check_trainable("say --task regress")
    notes = list(whole.notes)
    assert whole.target is not None
    columns = {"text": whole.text, "target": whole.target}
    if config.test is not None:
        other = read_like(config.test, goal, **columns)
        test = other.texts, goal.targets(other)
        notes += [f"{config.test}: {note}" for note in other.notes]
    else:
        test_seed = config.seed if config.data.test_seed is None else config.data.test_seed
        data, held = split(data, config.data.test, test_seed)
        test = _texts(whole, held), held
    rest, validation = data, None
    if config.data.validation > 0:
        rest, held = split(data, config.data.validation, config.seed)
        validation = _texts(whole, held), held
    else:
        notes.append("trained on all training texts: none is held back for validation")
    notes += [note for note in rest.notes if note not in notes]
    if config.data.shots is not None:
        rest, said = few(rest, config.data.shots, config.seed)
        notes.append(said)
    if isinstance(goal, Number):
        goal = replace(goal, mean=float(rest.targets.mean()), std=float(rest.targets.std()))
    train = _texts(whole, rest), rest
    if len(train[0]) > 1 and len(set(map(folded, train[0]))) == 1:
        what = f"all {len(train[0]):,} texts of {whole.name} are {short(train[0][0])!r}"
        raise DataError(
            what, hint=f"they teach nothing: if {whole.text!r} is another column, name that of texts by --text"
        )
    notes += untested(goal, test[1])
    if twice := shared_texts(train[0], test[0]):
        shown = short(test[0][twice[0]])
        plural = "s stand" if len(twice) > 1 else " stands"
        notes.append(f"{len(twice):,} test text{plural} in the training part too, for example {shown!r}")
    return train, validation, test, goal, columns, notes


def short(text: str, most: int = 60) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= most else text[:most] + "…"


def untested(goal: Goal, test: Dataset) -> list[str]:
    """How many classes have no test text, in words."""
    absent = goal.outputs - len(torch.unique(test.targets)) if goal.kind == "label" else 0
    if not absent:
        return []
    what = f"{absent:,} of {goal.outputs:,} classes {'have' if absent > 1 else 'has'} no test text"
    return [f"{what}: macro F1 is the mean over those that are tested or answered"]


def few(data: Dataset, shots: int, seed: int) -> tuple[Dataset, str]:
    """So many examples of each class, drawn by seed; and in words, what became of the others."""
    if data.task != "classify":
        raise ConfigError(
            "data.shots counts texts of a class, and the targets are no single labels", hint="leave it out"
        )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(derived_seed(seed, 3)))
    labels = data.targets[order]
    chosen = torch.cat([order[labels == label][:shots] for label in torch.unique(labels)]).sort().values
    fewer = int((torch.bincount(data.targets)[torch.unique(labels)] < shots).sum())
    if len(chosen) == len(data) and (largest := int(torch.bincount(labels).max())) < shots:
        what = f"--shots {shots} is more than there are: no class has more than {largest:,} training texts"
        raise ConfigError(what, hint="ask for fewer, or leave it out to train on all")
    said = f"{shots} texts of each class are trained on, {len(data) - len(chosen):,} others are left out"
    if fewer:
        said += f"; {fewer} class{'es have' if fewer > 1 else ' has'} fewer"
    return data.subset(chosen), said


def read_like(source: str, goal: Goal, text: str | None, target: str | None) -> TextTable:
    """Another file with the targets of a goal, by the training file's columns where it has them."""
    return read_table(source, text=text, target=target, other=True, kinds=(goal.kind,), labels=goal.classes)


def _kinds(config: FinetuneConfig) -> Sequence[Kind]:
    """What a target may be, as far as the settings say."""
    several = config.data.several
    if config.task == "regress":
        if several:
            raise ConfigError("data.several is for labels, and task=regress asks for numbers", hint="leave one out")
        return ("number",)
    if several is not None:
        return ("labels",) if several else ("label",)
    return KINDS if config.task == "auto" else ("label", "labels")


def _texts(whole: TextTable, part: Dataset) -> tuple[str, ...]:
    return whole.texts if part.rows is None else tuple(whole.texts[i] for i in part.rows.tolist())
