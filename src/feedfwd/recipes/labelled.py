"""`feedfwd evaluate` and `feedfwd predict` for a classifier of texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feedfwd.checkpoint import Run
from feedfwd.config import parse
from feedfwd.config_finetune import FinetuneConfig
from feedfwd.data.text_files import FORMS
from feedfwd.data.text_tables import read_table
from feedfwd.errors import DataError
from feedfwd.recipes.classifier import TextClassifier
from feedfwd.recipes.console import Listener
from feedfwd.recipes.judge import Answers, promises
from feedfwd.recipes.labelled_parts import parts, read_like, untested
from feedfwd.recipes.outside import outside_scores
from feedfwd.report.words import interval, score, word


def evaluate_labelled(
    path: Path, source: str | None, listener: Listener, outside: str | None = None, false_reject: float | None = None
) -> dict[str, float]:
    """Scores of a run on a file of labelled texts, or on the run's own test part; and how well it tells these from the
    texts of the file `outside`, which belong to no class.
    """
    classifier = TextClassifier.load(path)
    config = parse(FinetuneConfig, Run.open(path).settings())
    goal = classifier.goal
    if source is None:
        texts, data = parts(config)[2]
        name = f"the test part of {config.test or config.source}"
    else:
        table = read_like(source, goal, config.text, config.target)
        texts, data, name = table.texts, goal.targets(table), source
        for note in (*table.notes, *untested(goal, data)):
            listener.say(f"note: {note}")
    read = classifier.read(classifier.rows(texts))
    answers = classifier.answered(read[1])
    scores = goal.scores(answers, data.targets)
    found = goal.details(answers, data.targets)["intervals"]
    listener.say(f"{path} on {name}, n={len(texts):,}")
    for key, value in scores.items():
        around = f"  (95 %: {interval(key, found[key], len(texts))})" if key in found else ""
        listener.say(f"  {word(key).label:<24}{score(key, value, len(texts))}{around}")
    if (verdict := classifier.verdict) is not None:
        features, outputs = read
        answered = Answers(outputs.double().numpy(), data.targets.numpy(), classifier.near(features))
        for line in promises(verdict, answered):
            listener.say(f"  {line}")
    if outside is not None:
        scores |= outside_scores(classifier, read, name, outside, listener, false_reject)
    return scores


def predict_labelled(path: Path, source: str) -> tuple[list[dict[str, Any]], Sequence[str]]:
    """A row for each text of a source, or for the one text that is none's name; and what to know of the source."""
    classifier = TextClassifier.load(path)
    texts, places, notes = texts_of(source, classifier.config.text, classifier.config.target)
    features, outputs = classifier.read(classifier.rows(texts))
    found = [
        {"example": place} | classifier.goal.row(answer)
        for place, answer in zip(places, classifier.answered(outputs), strict=True)
    ]
    if classifier.verdict is None:
        return found, notes
    marks = classifier.marks(features, outputs)
    return [row | {"doubt": mark or ""} for row, mark in zip(found, marks, strict=True)], notes


def texts_of(
    source: str, text: str | None, target: str | None = None
) -> tuple[Sequence[str], Sequence[int], Sequence[str]]:
    """A source's texts, by the training columns where it has them, with their places and what to know of them.

    A source that is no file's name is the one text itself.
    """
    if not source.strip():
        raise DataError("the text is empty", hint="give a text, or a file of texts")
    longest = 255  # bytes of a file's name; a longer one is no path, and asking for it raises
    short = len(Path(source).name.encode("utf-8", "surrogatepass")) <= longest
    if short and (Path(source).suffix.lower() in FORMS or Path(source).exists()):
        table = read_table(source, text=text, target=target, other=True, labelled=False)
        return table.texts, table.rows, table.notes
    return (source,), (0,), ()
