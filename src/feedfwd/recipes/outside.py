"""`feedfwd evaluate RUN FILE --outside FILE`: how well a classifier tells texts of its classes from texts of none."""

# N texts

import numpy as np
from torch import Tensor

from feedfwd.data.text_tables import read_table, shared_texts
from feedfwd.errors import ConfigError
from feedfwd.evaluate.arrays import Floats
from feedfwd.evaluate.intervals import logit_normal_interval
from feedfwd.evaluate.metrics import auroc, auroc_variance
from feedfwd.evaluate.scope import combined, scope_threshold
from feedfwd.recipes.classifier import TextClassifier
from feedfwd.recipes.console import Listener
from feedfwd.recipes.judge import OUTSIDE, scope_scores, spread_of, together
from feedfwd.report.words import number

WORDS = {"probability": "largest probability", "energy": "energy", "neighbours": "nearness to training texts"}
TOGETHER = "together"


def outside_scores(
    classifier: TextClassifier,
    inside: tuple[Tensor, Tensor],
    where: str,
    source: str,
    listener: Listener,
    false_reject: float | None = None,
) -> dict[str, float]:
    """AUROC of each score and of the mean that decides, and what is rejected below which; names begin with "outside_".

    `inside` is what `read` gave for texts of the scope, those of `where`; `source` holds texts of no class. The
    thresholds are fitted on the texts inside, at `false_reject` (not given: the run's `decide.false_reject`); the run's
    own is applied as well, where it has one.
    """
    if classifier.goal.kind == "number":
        what = "--outside asks whether a text belongs to one of the classes, and this run answers with a number"
        raise ConfigError(what, hint="leave it out")
    config, verdict = classifier.config, classifier.verdict
    table = read_table(source, text=config.text, target=config.target, other=True, labelled=False)
    for note in table.notes:
        listener.say(f"note: {source}: {note}")
    if classifier.memory is None:
        listener.say("note: nearness is left out, for the run keeps no training texts (memory.safetensors)")
    elif twice := shared_texts(classifier.memory.texts, table.texts):
        listener.say(f"note: {len(twice):,} of {source} stand in the training part")
    outside = classifier.read(classifier.rows(table.texts))
    own, others = _scores(classifier, *inside), _scores(classifier, *outside)
    several = classifier.goal.kind == "labels"
    spread = spread_of(together(own, several=several)) if verdict is None else verdict.spread
    spread = {name: at for name, at in spread.items() if name in own}
    own[TOGETHER], others[TOGETHER] = (
        combined([found[name] for name in spread], list(spread.values())) for found in (own, others)
    )
    rate = config.decide.false_reject if false_reject is None else false_reject
    listener.say(f"{len(table):,} texts of {source} against {len(inside[1]):,} of {where}:")
    found: dict[str, float] = {}
    for name, label in (WORDS | {TOGETHER: " + ".join(spread)}).items():
        if name in own:
            area, around = area_under(own[name], others[name])
            threshold = scope_threshold(own[name], rate)
            caught = float((others[name] < threshold).mean())
            found |= {f"outside_auroc_{name}": area, f"outside_caught_{name}": caught}
            below = f"{caught:.1%} lie below {number(threshold)}, as {100 * rate:.3g}% of the others do"
            if not np.isfinite(threshold):
                below = f"the others are too few for a threshold that {100 * rate:.3g}% of them lie below"
            listener.say(f"  {label:<28}AUROC {area:.4f}{around}; {below}")
    if verdict is not None and verdict.scope_threshold is not None:
        wrongly, rightly = (_rejected(classifier, *texts) for texts in (inside, outside))
        found |= {"outside_rejected": rightly, "inside_rejected": wrongly}
        listener.say(
            f"  the run's own threshold, {number(verdict.scope_threshold)} of {' + '.join(spread)}, rejects "
            f"{rightly:.1%}, and {wrongly:.1%} of the others"
        )
    else:
        listener.say("  the run has no threshold of its own: that takes texts held back, --set data.validation=0.1")
    return found


def area_under(inside_N: Floats, outside_N: Floats) -> tuple[float, str]:
    """AUROC, and in words its 95 % interval, where there is one."""
    score_N = np.concatenate([inside_N, outside_N])
    positive_N = np.arange(len(score_N)) < len(inside_N)
    area = auroc(score_N, positive_N)
    if min(len(inside_N), len(outside_N)) < 2 or not 0 < area < 1:
        return area, ""
    if not (variance := auroc_variance(score_N, positive_N)):
        return area, ""
    low, high = logit_normal_interval(area, variance)
    return area, f" (95 %: {low:.4f} – {high:.4f})"


def _scores(classifier: TextClassifier, features: Tensor, outputs: Tensor) -> dict[str, Floats]:
    """Each by itself, (N,)."""
    temperature = 1.0 if classifier.verdict is None else classifier.verdict.temperature
    several = classifier.goal.kind == "labels"
    return scope_scores(outputs.double().numpy(), classifier.near(features), temperature, several=several)


def _rejected(classifier: TextClassifier, features: Tensor, outputs: Tensor) -> float:
    """The share that is called out of scope."""
    return float(np.mean([mark == OUTSIDE for mark in classifier.marks(features, outputs)]))
