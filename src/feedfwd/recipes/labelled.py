"""`feedfwd evaluate` and `feedfwd predict` for a classifier of texts."""

from pathlib import Path
from typing import Any

from feedfwd.checkpoint import Run
from feedfwd.config import parse
from feedfwd.config_finetune import FinetuneConfig
from feedfwd.data.text_tables import read_table
from feedfwd.errors import DataError
from feedfwd.evaluate.evaluate import details
from feedfwd.evaluate.metrics import classification_scores
from feedfwd.recipes.classifier import TextClassifier
from feedfwd.recipes.console import Listener
from feedfwd.recipes.texts import as_dataset, parts
from feedfwd.report.words import interval, score, word

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".txt")


def evaluate_labelled(path: Path, source: str | None, listener: Listener) -> dict[str, float]:
    """Scores of a run on a file of labelled texts, or on the run's own test part."""
    classifier = TextClassifier.load(path)
    config = parse(FinetuneConfig, Run.open(path).settings())
    if source is None:
        texts, data = parts(config)[2]
        name = f"the test part of {config.test or config.source}"
    else:
        table = read_table(source, text=config.text, target=config.target)
        texts, data, name = table.texts, as_dataset(table), source
    targets = data.recode(classifier.classes).targets
    answers = classifier.answers(classifier.rows(texts))
    scores = classification_scores(answers, targets)
    found = details(answers, targets, classes=classifier.classes)["intervals"]
    listener.say(f"{path} on {name}, n={len(texts):,}")
    for key, value in scores.items():
        around = f"  (95 %: {interval(key, found[key], len(texts))})" if key in found else ""
        listener.say(f"  {word(key).label:<24}{score(key, value, len(texts))}{around}")
    return scores


def predict_labelled(path: Path, source: str) -> list[dict[str, Any]]:
    """A row for each text of a file, or for the one text that is no file's name."""
    classifier = TextClassifier.load(path)
    longest = 255  # bytes of a file's name; a longer one is no path, and asking for it raises
    short = len(Path(source).name.encode("utf-8", "surrogatepass")) <= longest
    if short and (Path(source).suffix.lower() in TABLES or Path(source).exists()):
        text = classifier.config.text
        if Path(source).suffix.lower() == ".txt":
            text = None
        table = read_table(source, text=text, labelled=False)
        texts, places = table.texts, table.rows
    else:
        texts, places = (source,), (0,)
    if not any(text.strip() for text in texts):
        raise DataError("the text is empty", hint="give a text, or a file of texts")
    answers = classifier.predict_proba(texts)
    return [
        {
            "example": place,
            "prediction": classifier.classes[int(answer.argmax())],
            "probability": round(float(answer.max()), 6),
        }
        for place, answer in zip(places, answers, strict=True)
    ]
