"""`feedfwd evaluate` and `feedfwd predict`: a trained run on other data."""

import csv
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from feedfwd.checkpoint import Run, write_text
from feedfwd.config import FitConfig, parse
from feedfwd.data.dataset import Dataset
from feedfwd.data.readers import load, load_inputs
from feedfwd.data.table_preprocess import TablePreprocessor
from feedfwd.data.tables import TableData, asked, load_table
from feedfwd.errors import ConfigError, RunError
from feedfwd.recipes.console import Listener
from feedfwd.recipes.labelled import evaluate_labelled, predict_labelled
from feedfwd.recipes.predictor import Predictor
from feedfwd.recipes.prepare import parts
from feedfwd.recipes.verbs import COMMAND, USE, verb_of
from feedfwd.recipes.writer import evaluate_text
from feedfwd.report.words import interval, score, word


def evaluate_run(
    path: Path,
    source: str | None,
    listener: Listener,
    *,
    data_dir: Path | None = None,
    outside: str | None = None,
    false_reject: float | None = None,
) -> dict[str, float]:
    """Scores of a run on a labelled source (its test part, where it has one), or on the run's own test part.

    A language model's source is text, and its own part the held-out one. `outside` names texts that belong to none of a
    classifier's classes; thresholds that tell them apart reject a share `false_reject` of the source.
    """
    verb = verb_of(path)
    if outside is not None and verb != "finetune":
        raise ConfigError(f"--outside is for classifiers of texts, and {path} is none", hint="leave it out")
    if false_reject is not None and outside is None:
        raise ConfigError("--false-reject is for texts outside the scope", hint="name a file of them with --outside")
    if verb == "pretrain":
        return evaluate_text(path, source, listener)
    if verb == "finetune":
        return evaluate_labelled(path, source, listener, outside, false_reject)
    if verb == "instruct":
        from feedfwd.recipes.answered import evaluate_chats

        return evaluate_chats(path, source, listener)
    if verb in ("embed", "rank"):
        from feedfwd.recipes.retrieved import evaluate_pairs

        return evaluate_pairs(path, source, listener, verb)
    predictor = Predictor.load(path)
    if source is None:
        config = parse(FitConfig, Run.open(path).settings())
        if data_dir is not None:
            config = config.with_("data_dir", str(data_dir))
        data, name = parts(config, resolved=True).test, f"the test part of {config.source}"
    else:
        data, name = _labelled(predictor, source, data_dir), source
    x, notes = predictor.read(data if isinstance(data, TableData) else data.inputs, name)
    for note in notes if source is not None else ():
        listener.say(f"note: {note}")
    answers = predictor.answers(x)
    scores = predictor.scores(answers, data)
    shown = predictor.details(answers, data)
    found = shown["intervals"]
    listener.say(f"{path} on {name}, n={len(data):,}")
    for key, value in scores.items():
        around = f"  (95 %: {interval(key, found[key], len(data))})" if key in found else ""
        listener.say(f"  {word(key).label:<24}{score(key, value, len(data))}{around}")
    if predictor.labels is not None:
        for row in shown["per_class"]:
            of = ", ".join(f"{word(k).label} {score(k, row[k], len(data))}" for k in ("f1", "accuracy", "auroc"))
            listener.say(f"  {row['class']}: {of}; yes in {row['n']:,}")
    return scores


def _labelled(predictor: Predictor, source: str, data_dir: Path | None) -> Dataset:
    """A labelled source of the kind that the run was trained on."""
    found = predictor.preprocess
    if isinstance(found, TablePreprocessor):
        names, task = found.target_names or (), asked(found.task)
        return load_table(source, names, task=task, kinds=found.kinds, forms=found.forms, answers=found.answers)
    train, test = load(source, data_dir=data_dir)
    return test or train


def predict_run(path: Path, source: str, out: Path | None, listener: Listener, *, data_dir: Path | None = None) -> None:
    """Answers for inputs without labels, as CSV or JSON lines; to the screen where no file is named."""
    verb = verb_of(path)
    if verb in ("pretrain", "instruct"):
        what = f"{path} is a run of {COMMAND.get(verb, f'`feedfwd {verb}`')}, which writes"
        raise RunError(what, hint=f"it is for {USE[verb]}")
    if verb == "embed":
        from feedfwd.recipes.retrieved import embed_file

        embed_file(path, source, out, listener)
        return
    if out is not None and out.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"--out {out} is of no known form", hint="name a .csv or .jsonl file")
    if verb in ("finetune", "rank"):
        from feedfwd.recipes.retrieved import rank_file

        rows, told = (predict_labelled if verb == "finetune" else rank_file)(path, source)
        tell(told)
        write_rows(rows, out, listener)
        return
    predictor = Predictor.load(path)
    if isinstance(predictor.preprocess, TablePreprocessor):
        (x, notes), files = predictor.read(source, source), None
        tell(notes)
    else:
        inputs, files = load_inputs(source, data_dir=data_dir)
        x = predictor.transform(inputs, source)
    answers = predictor.answers(x)
    rows = []
    for i, answer in enumerate(answers):
        row: dict[str, Any] = {"example": files[i] if files is not None else i}
        if predictor.labels is not None:
            for name, given, p in zip(predictor.labels.classes, predictor.named(answer), answer, strict=True):
                row |= {name: str(given), f"{name} probability": round(float(max(p, 1 - p)), 6)}
        elif predictor.classes is None:
            values = answer.tolist() if answer.ndim else [float(answer)]
            names = predictor.preprocess.target_names or tuple(f"target {t}" for t in range(len(values)))
            row |= dict(zip(names if len(values) > 1 else ("prediction",), values, strict=True))
        else:
            best = int(answer.argmax())
            row |= {"prediction": predictor.classes[best], "probability": round(float(answer[best]), 6)}
        rows.append(row)
    write_rows(rows, out, listener)


def tell(notes: Iterable[str]) -> None:
    """Say what to know of a file where the answers have the screen."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def write_rows(rows: list[dict[str, Any]], out: Path | None, listener: Listener) -> None:
    """Answers as CSV or JSON lines, to the screen where no file is named."""
    text = _jsonl(rows) if out is not None and out.suffix == ".jsonl" else _csv(rows)
    if out is None:
        listener.say(text.rstrip("\n"))
    else:
        write_text(out, text)
        listener.say(f"{len(rows):,} predictions in {out}")


def _csv(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
