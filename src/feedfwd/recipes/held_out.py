"""Answers to examples that a network was not trained on, from which `judge` fits temperature and thresholds.

Where a validation part was held back, they are its own. Where all texts were trained on, what trains in seconds, a bag
or the head of a frozen model, is trained again without a fifth of them, and without another, until there are enough
answers.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from feedfwd.checkpoint import Run
from feedfwd.evaluate.scope import neighbours
from feedfwd.models.bag import Bag
from feedfwd.recipes.classifier import Network, TextClassifier, TokenReader, build_bag, build_encoder
from feedfwd.recipes.explain import Memory
from feedfwd.recipes.judge import Answers, fit, judged
from feedfwd.recipes.texts import PreparedTexts, TextPart
from feedfwd.train.averaging import EMA
from feedfwd.train.loop import train
from feedfwd.train.schedules import build_schedule

FOLDS = 5
REMEMBERED = 20_000  # training texts


def judge(p: PreparedTexts, run: Run, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Give the trained classifier its verdict; what `result.json` holds of it. None where there is nothing to judge on.

    Only for labels: a number has no confidence. The training texts' vectors are left in the run in any case, for
    nearness is a score and an explanation.
    """
    if not p.config.decide.held:
        return None
    kept, known = memory(p, p.train)
    Memory(known, kept.data.targets, kept.texts).save(run)
    if p.goal.kind == "number":
        return None
    if p.validation is None and not isinstance(p.model, Bag) and p.features is None:
        say("no thresholds are fitted: that takes texts held back, --set data.validation=0.1")
        return None
    held, where = _held(p, known, say)
    verdict = fit(held, p.config.decide, where)
    if verdict is None:
        return None
    test = answers_of(p, p.test, known)
    p.classifier.verdict = verdict
    return judged(verdict, held, test, p.goal.classes)


def answers_of(p: PreparedTexts, part: TextPart, known: Tensor) -> Answers:
    """A part's logits, targets and nearness to the vectors `known`."""
    features, outputs = p.read(part)
    places = None if part.data.rows is None else part.data.rows.tolist()
    near = neighbours(features, known)
    return Answers(outputs.double().numpy(), part.data.targets.numpy(), near, part.texts, places)


def memory(p: PreparedTexts, part: TextPart, most: int = REMEMBERED) -> tuple[TextPart, Tensor]:
    """At most so many training texts, and their vectors (M, W).

    They stand at equal distances, so that of a file that is sorted by class every class is there.
    """
    if len(part) > most:
        part = part.select(torch.linspace(0, len(part) - 1, most, dtype=torch.float64).long())
    return part, p.read(part)[0]


def _held(p: PreparedTexts, known: Tensor, say: Callable[[str], None]) -> tuple[Answers, str]:
    if p.validation is not None:
        return answers_of(p, p.validation, known), "the validation part"
    fold_N = folds(p.train.data.targets, FOLDS, p.config.seed)
    wanted = min(p.config.decide.held, len(p.train))
    parts: list[Answers] = []
    while sum(len(part.targets) for part in parts) < wanted and len(parts) < FOLDS:
        say(f"training once more without the {ORDINALS[len(parts)]} fifth of the texts, to judge by answers to it")
        held, kept = ((fold_N == len(parts)) == inside for inside in (True, False))
        rest = p.train.select(kept.nonzero().flatten())
        again = replace(p, train=rest, classifier=trained_on(p, rest))
        parts.append(answers_of(again, p.train.select(held.nonzero().flatten()), memory(again, rest)[1]))
    fifths = f"{len(parts)} fifth{'s' if len(parts) > 1 else ''}"
    return Answers.concatenated(parts), f"{fifths} of the training part, each by a network trained without it"


ORDINALS = ("first", "second", "third", "fourth", "last")


def folds(targets: Tensor, n: int, seed: int) -> Tensor:  # (N,) or (N, C) -> (N,)
    """The fold of each example, 0 to n − 1, drawn by seed, every class, or set of labels, in proportion.

    >>> folds(torch.tensor([0, 0, 0, 0, 1, 1]), 2, seed=0).bincount().tolist()
    [3, 3]
    """
    if targets.ndim > 1:
        targets = torch.unique(targets, dim=0, return_inverse=True)[1]
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    order = order[targets[order].argsort(stable=True)]
    fold_N = torch.empty(len(targets), dtype=torch.int64)
    fold_N[order] = torch.arange(len(targets)) % n
    return fold_N


def trained_on(p: PreparedTexts, part: TextPart) -> TextClassifier:
    """A network like the run's own, trained for as many epochs on `part` of the training texts alone."""
    c = p.config
    with torch.random.fork_rng():
        torch.manual_seed(c.seed)
        classifier = TextClassifier(_fresh(p, part), c, p.goal, p.classifier.reader)
        again = replace(p, train=part, classifier=classifier)
        model = again.trained
        steps = max(1, round(p.steps * again.updates_per_epoch / p.updates_per_epoch))
        ema = EMA(model, c.train.ema) if c.train.ema else None
        for _ in train(
            model,
            again.batches(),
            p.loss,
            again.optimizer(model),
            steps=steps,
            schedule=build_schedule(total=steps, **c.schedule.model_dump()),
            accumulate=c.train.accumulate,
            precision=p.precision,
            ema=ema,
        ):
            pass
    if ema is not None:
        model.load_state_dict({k: v for k, v in ema.state_dict().items() if k != "updates"}, strict=False)
    classifier.model.eval()
    return classifier


def _fresh(p: PreparedTexts, part: TextPart) -> Network:
    """The run's network before training; of a frozen model with another head."""
    c = p.config
    if isinstance(p.model, Bag):
        bag = build_bag(c, p.goal.outputs).to(p.device)
        bag.weigh(part.rows.values.to(p.device), len(part))
        return bag
    reader = p.classifier.reader
    assert part.features is not None and isinstance(reader, TokenReader)
    model = build_encoder(c, p.model.backbone, p.model.pooling, p.goal.outputs, reader.longest).to(p.device)
    p.begin(model, part.features, part.data.targets)
    return model
