"""Answers to examples that a network was not trained on, from which `judge` fits temperature and thresholds.

Where a validation part was held back, they are its own. Where all texts were trained on, a bag, which trains in
seconds, is trained again without a fifth of them, and without another, until there are enough answers.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from feedfwd.checkpoint import Run
from feedfwd.evaluate.scope import neighbours
from feedfwd.models.bag import Bag
from feedfwd.recipes.classifier import TextClassifier, build_bag
from feedfwd.recipes.explain import Memory
from feedfwd.recipes.judge import Answers, fit, judged
from feedfwd.recipes.texts import PreparedTexts, TextPart
from feedfwd.train.averaging import EMA
from feedfwd.train.loop import train
from feedfwd.train.schedules import build_schedule

FOLDS = 5


def judge(p: PreparedTexts, run: Run, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Give the trained classifier its verdict; what `result.json` holds of it. None where there is nothing to judge on.

    Only for one label a text: several labels and numbers have no single confidence. The training texts' vectors are
    left in the run, for nearness is a score and an explanation.
    """
    if p.goal.kind != "label" or not p.config.decide.held:
        return None
    if p.validation is None and not isinstance(p.model, Bag):
        say("no thresholds are fitted: that takes texts held back, --set data.validation=0.1")
        return None
    known = memory(p.classifier, p.train)
    Memory(known, p.train.data.targets[: len(known)], p.train.texts[: len(known)]).save(run)
    held, where = _held(p, known, say)
    verdict = fit(held, p.config.decide, where)
    if verdict is None:
        return None
    test = answers_of(p.classifier, p.test, known)
    p.classifier.verdict = verdict
    return judged(verdict, held, test, p.goal.classes)


def answers_of(classifier: TextClassifier, part: TextPart, known: Tensor) -> Answers:
    """A part's logits, targets and nearness to the vectors `known`."""
    near = neighbours(classifier.features(part.rows), known)
    places = None if part.data.rows is None else part.data.rows.tolist()
    logits = classifier.outputs(part.rows).double().numpy()
    return Answers(logits, part.data.targets.numpy(), near, part.texts, places)


def memory(classifier: TextClassifier, part: TextPart, most: int = 20_000) -> Tensor:
    """The vectors (M, W) of the first `most` training texts, whose order in a file tells nothing."""
    rows = part.rows if len(part) <= most else part.rows.select(torch.arange(most))
    return classifier.features(rows)


def _held(p: PreparedTexts, known: Tensor, say: Callable[[str], None]) -> tuple[Answers, str]:
    if p.validation is not None:
        return answers_of(p.classifier, p.validation, known), "the validation part"
    fold_N = folds(p.train.data.targets, FOLDS, p.config.seed)
    wanted = min(p.config.decide.held, len(p.train))
    parts: list[Answers] = []
    while sum(len(part.targets) for part in parts) < wanted and len(parts) < FOLDS:
        say(f"training once more without the {ORDINALS[len(parts)]} fifth of the texts, to judge by answers to it")
        held, kept = ((fold_N == len(parts)) == inside for inside in (True, False))
        rest = _part(p.train, kept.nonzero().flatten())
        classifier = trained_on(p, rest)
        parts.append(answers_of(classifier, _part(p.train, held.nonzero().flatten()), memory(classifier, rest)))
    fifths = f"{len(parts)} fifth{'s' if len(parts) > 1 else ''}"
    return Answers.concatenated(parts), f"{fifths} of the training part, each by a network trained without it"


ORDINALS = ("first", "second", "third", "fourth", "last")


def folds(targets: Tensor, n: int, seed: int) -> Tensor:
    """The fold (N,) of each example, 0 to n − 1, drawn by seed, every class in proportion.

    >>> folds(torch.tensor([0, 0, 0, 0, 1, 1]), 2, seed=0).bincount().tolist()
    [3, 3]
    """
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    order = order[targets[order].argsort(stable=True)]
    fold_N = torch.empty(len(targets), dtype=torch.int64)
    fold_N[order] = torch.arange(len(targets)) % n
    return fold_N


def _part(whole: TextPart, chosen: Tensor) -> TextPart:
    texts = tuple(whole.texts[i] for i in chosen.tolist())
    return TextPart(whole.data.subset(chosen), texts, whole.rows.select(chosen))


def trained_on(p: PreparedTexts, part: TextPart) -> TextClassifier:
    """A network like the run's own, trained for as many epochs on `part` of the training texts alone."""
    c = p.config
    with torch.random.fork_rng():
        torch.manual_seed(c.seed)
        model = build_bag(c, p.goal.outputs).to(p.device)
        model.weigh(part.rows.values.to(p.device), len(part))
        classifier = TextClassifier(model, c, p.goal, p.classifier.reader)
        again = replace(p, train=part, classifier=classifier)
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
    model.eval()
    return classifier
