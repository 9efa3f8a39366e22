"""The chain, whole, with nothing to download: raw text → language model → fine-tuning → evaluation → an answer.

1. Pretrain a small model on the running Python's standard library: tokens are hidden, and it learns to tell which.
2. Fine-tune it on the library's docstrings: which module does a description belong to? The names of the module and of
   what is described are hidden. A bag of n-grams answers beside it, each as much as it proves worth on texts held back.
3. The same network from random weights, and TF-IDF with logistic regression, on the same texts: which one wins?

What is finished is not done again: stop with Ctrl-C, and go on with the same command.
"""

import html
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import feedfwd as ff
from feedfwd.checkpoint import Run
from feedfwd.config import parse
from feedfwd.config_finetune import FinetuneConfig
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.recipes import finetune, pretrain
from feedfwd.recipes.console import Listener, Silent, Terminal
from feedfwd.recipes.texts import parts

QUESTION = "read a zip archive"
MASKED = {
    "sources": ["stdlib"],
    "size": "nano",
    "data": {"validation": 0.03},  # scored at the end, which takes its time
    "train": {"objective": "masked", "masked": 0.3},
}
LABELLED = {
    "source": "docstrings",
    "data": {"validation": 0.1},  # by which the network and the n-grams are weighed
    "encoder": {"ngrams": True, "longest": 128},
    "loss": {"class_weights": "root"},  # as of a bag by itself
    "train": {"epochs": 4.0},
}


def run_of(path: Path, start, resume):
    """A finished run as it is; one begun in half goes on."""
    if path.exists() and Run.open(path).finished:
        print(f"{path} is there already")
    elif path.exists():
        resume(path)
    else:
        start()
    return ff.load(path)


def pretrained(path: Path, terminal: Listener, **more):
    config = parse(PretrainConfig, MASKED | more)
    return run_of(
        path, lambda: pretrain.pretrain_config(config, path, terminal), lambda path: pretrain.resume(path, terminal)
    )


def finetuned(path: Path, base: Path, terminal: Listener, **more):
    config = parse(FinetuneConfig, LABELLED | {"pretrained": str(base)} | more)
    return run_of(
        path, lambda: finetune.finetune_config(config, path, terminal), lambda path: finetune.resume(path, terminal)
    )


def tf_idf(train, labels, test) -> np.ndarray:
    """The answers of runs of two to five characters, weighed by how rare they are, and a linear map."""
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2)
    return (
        LogisticRegression(C=20, max_iter=100)
        .fit(vectors.fit_transform(train), labels)
        .predict(vectors.transform(test))
    )


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """How many more are right, as a share, and twice its standard error; both answered the same texts."""
    paired = ours.astype(float) - theirs
    return paired.mean(), 2 * paired.std(ddof=1) / len(paired) ** 0.5


def verdict(name: str, ours: np.ndarray, theirs: np.ndarray) -> str:
    gain, error = difference(ours, theirs)
    said = "wins against" if gain > error else "loses to" if -gain > error else "is not told apart from"
    return f"pretrained {said} {name}: {100 * gain:+.1f} points (± {100 * error:.1f})"


def main(folder: Path = Path("runs/chain"), minutes: float = 1.4, **more) -> dict[str, float]:
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with Terminal() as terminal:
        print("\n--- 1. pretrain on the standard library's text")
        pretrained(folder / "language", terminal, minutes=minutes)
        print("\n--- 2. fine-tune on its docstrings")
        ours = finetuned(folder / "pretrained", folder / "language", terminal, **more)
        print("\n--- 3. the same network from random weights")
        pretrained(folder / "untrained", Silent(), train=MASKED["train"] | {"steps": 1, "health": False})
        random = finetuned(folder / "random", folder / "untrained", terminal, **more)
    print("\n--- 4. TF-IDF and logistic regression")
    train, _, test, goal, *_ = parts(ours.config)
    truth = np.asarray(goal.classes)[test[1].targets.numpy()]
    labels = np.asarray(goal.classes)[train[1].targets.numpy()]
    texts = list(test[0])
    linear = tf_idf(train[0], labels, texts) == truth

    def right(outputs) -> np.ndarray:
        return np.asarray(goal.classes)[outputs.argmax(1).numpy()] == truth

    rows = {"TF-IDF + logistic regression": linear}
    for name, run in (("random weights", random), ("pretrained", ours)):
        network, _ = run.apart(run.rows(texts))
        rows[f"{name}, network alone"] = right(network)
        rows[f"{name}, with n-grams"] = run.predict(texts) == truth
    print(f"\nwhich of {len(goal.classes)} modules does a description belong to? {len(texts):,} test texts, right:")
    for name, row in rows.items():
        print(f"  {name:<32}{row.mean():7.1%}")
    best = rows["pretrained, with n-grams"]
    says = [
        verdict("TF-IDF", best, linear),
        verdict("the same network from random weights", best, rows["random weights, with n-grams"]),
        verdict(
            "random weights where both have no n-grams",
            rows["pretrained, network alone"],
            rows["random weights, network alone"],
        ),
    ]
    print(*says, sep="\n")
    probabilities = ours.predict_proba([QUESTION])[0]
    answers = [(goal.classes[i], probabilities[i]) for i in probabilities.argsort()[::-1][:3]]
    print(f"\n{QUESTION!r} → " + ", ".join(f"{module} ({p:.0%})" for module, p in answers))
    page = write_page(folder, rows, says, answers)
    print(f"\nreport: {page}; all in {time.perf_counter() - began:,.0f} s")
    print(f'ask yourself:  .venv/bin/feedfwd predict {folder / "pretrained"} "parse command line options" --explain')
    return {name: float(row.mean()) for name, row in rows.items()}


def write_page(folder: Path, rows, says, answers) -> Path:
    """One page that leads to the reports of the runs."""
    table = "".join(f"<tr><th>{html.escape(n)}</th><td>{r.mean():.1%}</td></tr>" for n, r in rows.items())
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in says)
    told = ", ".join(f"{html.escape(m)} ({p:.0%})" for m, p in answers)
    links = "".join(
        f'<li><a href="{name}/report.html">{text}</a></li>'
        for name, text in (
            ("language", "the language model"),
            ("pretrained", "fine-tuned from it"),
            ("random", "fine-tuned from random weights"),
        )
    )
    page = folder / "report.html"
    page.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>The chain</title>'
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem}"
        "th{text-align:left;font-weight:400;padding:.2rem 2rem .2rem 0}td{text-align:right}</style>"
        "<h1>Which module does a description belong to?</h1>"
        f"<table>{table}</table>{lines}<p>“{html.escape(QUESTION)}” → {told}</p>"
        f"<h2>The runs</h2><ul>{links}</ul></html>",
        encoding="utf-8",
    )
    return page


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt as stop:
        sys.exit(f"{stop or 'stopped'}\nthe same command goes on from here")
