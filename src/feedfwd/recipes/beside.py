"""A distilled bag beside its teacher, and beside the bag that learns from the labels alone."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from feedfwd.evaluate.arrays import Floats
from feedfwd.recipes.classifier import TextClassifier
from feedfwd.recipes.distil import teacher_of
from feedfwd.recipes.held_out import trained_on
from feedfwd.recipes.texts import PreparedTexts
from feedfwd.report.words import number, score, word

TIMED = 500  # test texts that are answered by the clock, from text to answer
LONG_ENOUGH = 0.3  # seconds of it
BAG = "bag without teacher"


def compared(p: PreparedTexts, answers: Floats, say: Callable[[str], None]) -> dict[str, Any]:
    """For `result.json`: the others' scores on the test part, and everyone's texts a second and bytes; else nothing."""
    if p.taught is None:
        return {}
    teacher_path = str(p.config.distil.teacher)
    say("training the bag once more without the teacher, to compare")
    plain = p.goal.loss(p.config.loss, p.train.data.targets)
    alone = trained_on(replace(p, taught=None, loss=plain), p.train)
    others = {"teacher": teacher_of(teacher_path, p.goal), BAG: alone}
    texts, wanted = p.test.texts, p.test.data.targets
    scores = {}
    for name, classifier in others.items():
        order = [classifier.classes.index(c) for c in p.goal.classes]
        found = classifier.answers(classifier.rows(texts))
        scores[name] = p.goal.scores(found[:, order] if order else found, wanted)
    everyone = {"this run": p.classifier} | others
    return {
        "compared": scores,
        "distilled": {
            name: {"texts_per_second": _speed(one, texts[:TIMED]), "bytes": _bytes(one)}
            for name, one in everyone.items()
        },
    }


def _speed(classifier: TextClassifier, texts: tuple[str, ...]) -> float:
    classifier.predict(texts[:8])
    begun, passes = time.perf_counter(), 0
    while passes == 0 or time.perf_counter() - begun < LONG_ENOUGH:
        classifier.predict(texts)
        passes += 1
    return passes * len(texts) / (time.perf_counter() - begun)


def _bytes(classifier: TextClassifier) -> int:
    """Of its weights."""
    return sum(tensor.nbytes for tensor in classifier.model.state_dict().values())


def sizes(result: Mapping[str, Any]) -> list[str]:
    """The comparison in words."""
    found, n = result.get("distilled"), result["sizes"]["test"]
    if not found:
        return []
    scores = {"this run": result["test"], **result["compared"]}
    name = next(iter(result["test"]))
    return [
        f"{who}: {word(name).label} {score(name, scores[who][name], n)}, {number(of['texts_per_second'])} texts/s, "
        f"{of['bytes'] / 1e6:,.0f} MB"
        for who, of in found.items()
    ]
