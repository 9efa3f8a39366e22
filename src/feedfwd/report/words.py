"""How a report writes numbers, and what it calls the scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any


@dataclass(frozen=True, slots=True)
class Word:
    """A score's name for people, whether it reads as a percentage, and what it says in one line."""

    label: str
    percent: bool
    meaning: str


SCORES: dict[str, Word] = {
    "accuracy": Word("accuracy", True, "share of right answers; higher is better"),
    "macro_f1": Word("macro F1", True, "precision and recall in one, every class counting the same; higher is better"),
    "f1": Word("F1", True, "precision and recall in one; higher is better"),
    "micro_f1": Word("micro F1", True, "precision and recall of all labels together; higher is better"),
    "exact": Word("all labels right", True, "share of examples without a wrong label; higher is better"),
    "auroc": Word("AUROC", False, "chance that a positive example ranks above a negative one; higher is better"),
    "log_loss": Word("log loss", False, "nats of surprise at the true class; lower is better"),
    "ece": Word("calibration error", True, "mean gap between confidence and share of right answers; lower is better"),
    "brier": Word("Brier score", False, "squared error of the probabilities; lower is better"),
    "rmse": Word("RMSE", False, "typical error in the target's units, large ones weighing more; lower is better"),
    "mae": Word("MAE", False, "mean error in the target's units; lower is better"),
    "r2": Word("R²", False, "share of the target's variance explained; higher is better"),
    "bits_per_byte": Word("bits per byte", False, "what the text's next byte still tells; lower is better"),
    "perplexity": Word("perplexity", False, "tokens that the model wavers between, on average; lower is better"),
    **{f"recall@{k}": Word(f"Recall@{k}", True, f"a query's answers among the first {k}") for k in (1, 5, 10)},
    **{f"hit@{k}": Word(f"hit@{k}", True, f"queries with an answer among the first {k}") for k in (1, 5, 10)},
    "mrr": Word("MRR", False, "mean of 1 / place of a query's first answer; higher is better"),
    "ndcg@10": Word("NDCG@10", False, "answers weighed by relevance and place, of the best order; higher is better"),
    "spearman": Word("rank correlation", False, "of scores with relevances (Spearman); higher is better"),
    "token_accuracy": Word("tokens foretold", True, "share of the answers' tokens that were held likeliest"),
    "exact_answers": Word("exact answers", True, "share of the answers that are the wanted ones word for word"),
    "loss": Word("loss", False, "nats of surprise at the token to be predicted; lower is better"),
}
HEADLINES = (
    "accuracy",
    "rmse",
    "macro_f1",
    "mae",
    "r2",
    "log_loss",
    "bits_per_byte",
    "hit@1",
    "recall@1",
)  # the first that a run has stands on top


def word(name: str) -> Word:
    """What to call a score; a name that isn't known stands for itself."""
    return SCORES.get(name, Word(name.replace("_", " "), False, ""))


def score(name: str, value: float | None, n: int = 0) -> str:
    """A score with as many digits as its `n` examples can bear.

    >>> score("accuracy", 0.98241, 10_000), score("accuracy", 0.97222, 360), score("rmse", 53.218)
    ('98.24%', '97.2%', '53.22')
    """
    if value is None or not isfinite(value):
        return "–"
    if word(name).percent:
        return f"{100 * value:.{2 if n >= 1000 else 1}f}%"
    return number(value)


def interval(name: str, ends: Sequence[float], n: int = 0) -> str:
    """Both ends, the unit once; a share ends at 100 %, whatever its error would allow.

    >>> interval("accuracy", [0.9796, 0.9848], 10_000), interval("accuracy", [0.9, 1.05])
    ('97.96 – 98.48%', '90.0 – 100.0%')
    """
    low, high = ends
    if word(name).percent:
        low, high = max(low, 0.0), min(high, 1.0)
    return f"{score(name, low, n).removesuffix('%')} – {score(name, high, n)}"


def number(value: Any) -> str:
    """A number as people write it: four digits, commas, a real minus; other things as text.

    >>> number(0.069431), number(2), number(1234567), number(12345.6), number(-54.7), number("cpu")
    ('0.06943', '2', '1,234,567', '12,346', '−54.70', 'cpu')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 9999.5:
        written = f"{value:,.0f}"
    else:
        written = f"{value:#.4g}".removesuffix(".")  # '#' keeps the zeros at the end: a column of them lines up
    return "−" + written[1:] if written.startswith("-") else written


def count(value: float) -> str:
    """A large count in short: 118.3 k, 2.1 M, 3.4 G.

    >>> count(950), count(118_282), count(2_100_000_000_000)
    ('950', '118.3 k', '2.1 T')
    """
    for unit in ("", " k", " M", " G", " T", " P"):
        if abs(value) < 999.95 or unit == " P":
            break
        value /= 1000
    return f"{value:.0f}" if not unit else f"{value:.1f}{unit}"


def duration(seconds: float) -> str:
    """
    >>> duration(0.42), duration(12.34), duration(245), duration(3725)
    ('0.42 s', '12.3 s', '4 min 05 s', '1 h 02 min')
    """
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
