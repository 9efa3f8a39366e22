"""What a classifier's probabilities are worth, and when it should not answer: fitted on held-out answers, once a run.

`fit` makes a `Judgement` of answers to examples that were not trained on; `on_test` says how it does on others. What
each figure means and what is promised: docs/evaluation.md.
"""

# N examples, C classes, S scores

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from feedfwd.checkpoint import Run
from feedfwd.config_decide import DecideConfig
from feedfwd.evaluate.abstain import Abstention, Right, abstain_threshold, area_under_risk, risk_coverage
from feedfwd.evaluate.arrays import Floats, Ints
from feedfwd.evaluate.calibration import fit_temperature, reliability, sigmoid, softmax
from feedfwd.evaluate.label_errors import label_errors
from feedfwd.evaluate.scope import combined, energy, joint_energy, max_probability, scope_threshold
from feedfwd.report.words import number

FEWEST = 50  # held-out answers below which nothing is fitted
LISTED = 30  # likely label errors that are kept
CLEAR = 0.5  # by how much another class's probability must lie ahead: below, the doubt is the network's
FLAT = 0.01  # least standard deviation of a score of scope
TIE = 1e-3  # standard deviations below the held-out texts' threshold that are still at it: rounding decides nothing
UNSURE, OUTSIDE = "unsure", "out of scope"


@dataclass(frozen=True)
class Answers:
    """What a network says to N examples whose labels are known.

    Where an example may have several labels, `targets` are columns of 0 and 1.
    `near` is the mean cosine with the nearest training examples, where the network has embeddings. `texts` and
    `places` (in the user's file) let a likely label error be shown.
    """

    logits: Floats  # (N, C)
    targets: Ints | Floats  # (N,); several labels: (N, C)
    near: Floats | None = None  # (N,)
    texts: Sequence[str] | None = None
    places: Sequence[int] | None = None

    @property
    def several(self) -> bool:
        return self.targets.ndim > 1

    @property
    def right(self) -> Right:  # (N,)
        """Whether the answer, of several labels each of them, is the target."""
        if self.several:
            return np.asarray(((self.logits >= 0) == (self.targets > 0.5)).all(1))
        return np.asarray(self.logits.argmax(1) == self.targets)

    @classmethod
    def concatenated(cls, parts: Sequence["Answers"]) -> "Answers":
        """Parts of one kind end to end."""

        def joined(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            if any(value is None for value in values):
                return None
            return np.concatenate(values) if isinstance(values[0], np.ndarray) else [x for v in values for x in v]

        return cls(*(joined(name) for name in ("logits", "targets", "near", "texts", "places")))


@dataclass(frozen=True)
class Judgement:
    """Temperature and thresholds, with where they come from. Plain numbers: it lives in `result.json`."""

    fitted_on: str
    n: int
    temperature: float
    abstain: Abstention
    false_reject: float
    scope_threshold: float | None  # None: too few held-out answers to reject at this rate
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)  # of each score of scope: mean, deviation
    several: bool = False  # labels an example

    def probabilities(self, logits: Floats) -> Floats:  # (N, C) -> (N, C)
        return (sigmoid if self.several else softmax)(logits, self.temperature)

    def confidence(self, logits: Floats) -> Floats:  # (N, C) -> (N,)
        return confidence(self.probabilities(logits), several=self.several)

    def scope_scores(self, logits: Floats, near: Floats | None) -> Floats:  # (N, C), (N,) -> (N,)
        """How much an example looks like those inside the scope: mean of the scores, each in standard deviations."""
        scores = scope_scores(logits, near, self.temperature, several=self.several)
        return combined([scores[name] for name in self.spread], list(self.spread.values()))

    def marks(self, logits: Floats, near: Floats | None) -> list[str | None]:
        """None where the answer may be given, else why it should not: "out of scope" or "unsure"."""
        unsure_N = self.confidence(logits) < self.abstain.threshold
        outside_N = np.zeros(len(unsure_N), bool)
        if self.scope_threshold is not None and (near is not None or "neighbours" not in self.spread):
            outside_N = self.scope_scores(logits, near) < self.scope_threshold
        return [OUTSIDE if o else UNSURE if u else None for o, u in zip(outside_N, unsure_N, strict=True)]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, run: Run) -> "Judgement | None":
        """That of a finished run; None where it was not judged."""
        saved = run.read_json(run.result_file).get("judgement") if run.finished else None
        return None if saved is None else cls.from_json(saved)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Judgement":
        spread = {name: (float(mean), float(std)) for name, (mean, std) in saved["spread"].items()}
        known = {key: saved[key] for key in ("fitted_on", "n", "temperature", "false_reject", "scope_threshold")}
        several = bool(saved.get("several", False))
        return cls(**known, spread=spread, abstain=Abstention(**saved["abstain"]), several=several)


def confidence(p_NC: Floats, *, several: bool = False) -> Floats:  # (N, C) -> (N,)
    """The probability that the answer is right: the largest, or that of all labels together, taken as independent.

    >>> confidence(np.array([[0.9, 0.2], [0.5, 0.5]]), several=True).tolist()
    [0.7200000000000001, 0.25]
    """
    return np.asarray(np.maximum(p_NC, 1 - p_NC).prod(1) if several else p_NC.max(1))


def fit(held: Answers, config: DecideConfig, fitted_on: str) -> Judgement | None:
    """Temperature, abstain threshold and scope threshold from answers to examples that were not trained on.

    None where there are fewer than 50 of them: nothing that is fitted to so few would hold.
    """
    n, several = len(held.targets), held.several
    if n < FEWEST:
        return None
    temperature = _temperature(held)
    p_NC = (sigmoid if several else softmax)(held.logits, temperature)
    abstain = abstain_threshold(confidence(p_NC, several=several), held.right, config.error, config.level)
    scores = together(scope_scores(held.logits, held.near, temperature, several=several), several=several)
    spread = spread_of(scores)
    threshold = scope_threshold(combined(list(scores.values()), list(spread.values())), config.false_reject)
    finite = threshold - TIE if np.isfinite(threshold) else None
    return Judgement(fitted_on, n, temperature, abstain, config.false_reject, finite, spread, several)


def _temperature(held: Answers) -> float:
    """One for all outputs; of several labels each decision is one between the logits 0 and z."""
    if not held.several:
        return fit_temperature(held.logits, held.targets)
    z = held.logits.ravel()
    return fit_temperature(np.stack([np.zeros_like(z), z], 1), held.targets.ravel() > 0.5)


def scope_scores(
    logits: Floats, near: Floats | None, temperature: float, *, several: bool = False
) -> dict[str, Floats]:
    """The scores (N,) by which an example may look as if it belonged to no class, by name; see `evaluate.scope`."""
    if several:
        found = {"probability": sigmoid(logits, temperature).max(1), "energy": joint_energy(logits)}
    else:
        found = {"probability": max_probability(logits, temperature), "energy": energy(logits)}
    return found if near is None else found | {"neighbours": near}


def together(scores: Mapping[str, Floats], *, several: bool = False) -> dict[str, Floats]:
    """Those whose mean decides: of one label a text, the energy says too little beside nearness to count as much."""
    nearness = "neighbours" in scores and not several
    return {name: score for name, score in scores.items() if name != "energy" or not nearness}


def spread_of(scores: Mapping[str, Floats]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each; of one that hardly varies, a deviation that rounding can't pass for."""
    return {name: (float(score.mean()), max(FLAT, float(score.std()))) for name, score in scores.items()}


def kept(verdict: Judgement, test: Answers) -> dict[str, int]:
    """How many of these are answered, how many of those wrongly, and how many count as out of scope."""
    answered_N = verdict.confidence(test.logits) >= verdict.abstain.threshold
    rejected = sum(mark == OUTSIDE for mark in verdict.marks(test.logits, test.near))
    wrong = int((~test.right[answered_N]).sum())
    return {"n": len(answered_N), "answered": int(answered_N.sum()), "wrong": wrong, "rejected": rejected}


def judged(verdict: Judgement, held: Answers, test: Answers, classes: Sequence[str]) -> dict[str, Any]:
    """What `result.json` holds as "judgement": the fitted numbers, how they do on `test`, likely label errors."""
    raw_NC = (sigmoid if test.several else softmax)(test.logits)
    raw_N, scaled_N, right_N = confidence(raw_NC, several=test.several), verdict.confidence(test.logits), test.right
    return {
        **verdict.to_json(),
        "calibration": {"before": reliability(raw_N, right_N), "after": reliability(scaled_N, right_N)},
        "risk_coverage": risk_coverage(scaled_N, right_N),
        "area_under_risk": area_under_risk(scaled_N, right_N),
        "test": kept(verdict, test),
        "label_errors": _label_errors(verdict, held, classes),
    }


def _label_errors(verdict: Judgement, held: Answers, classes: Sequence[str]) -> dict[str, Any] | None:
    """How many of the held-out examples likely bear a wrong label, and the clearest of them with their texts."""
    if held.texts is None:
        return None
    p_NC = verdict.probabilities(held.logits)
    found = _of_each(p_NC, held.targets, classes) if held.several else _of_one(p_NC, held.targets, classes)
    found = sorted((e for e in found if e[3] - e[4] >= CLEAR), key=lambda e: e[4] - e[3])
    rows = [
        {
            "text": held.texts[place],
            "place": None if held.places is None or held.places[place] < 0 else int(held.places[place]),
            "label": given,
            "likelier": likelier,
            "probability": p_likelier,
            "probability_label": p_given,
        }
        for place, given, likelier, p_likelier, p_given in found[:LISTED]
    ]
    return {"n": len(held.targets), "found": len(found), "listed": rows}


Doubt = tuple[int, str, str, float, float]  # place, label, what is likelier, and the probabilities of both, that first


def _of_one(p_NC: Floats, targets: Ints | Floats, classes: Sequence[str]) -> list[Doubt]:
    return [
        (e.place, classes[e.given], classes[e.likelier], e.probability_likelier, e.probability_given)
        for e in label_errors(p_NC, targets)
    ]


def _of_each(p_NC: Floats, targets: Ints | Floats, classes: Sequence[str]) -> list[Doubt]:
    """Of several labels each is a question of yes and no."""
    found = []
    for c, name in enumerate(classes):
        says = f"not {name}", name
        for e in label_errors(np.stack([1 - p_NC[:, c], p_NC[:, c]], 1), targets[:, c].astype(np.int64)):
            found.append((e.place, says[e.given], says[e.likelier], e.probability_likelier, e.probability_given))
    return found


def lines(found: Mapping[str, Any]) -> list[str]:
    """What a person is told of `judged`."""
    abstain, test = found["abstain"], found["test"]
    before, after = (found["calibration"][when]["ece"] for when in ("before", "after"))
    perfect = found["calibration"]["after"]["ece_if_perfect"]
    said = [
        f"judged on {found['n']:,} answers of {found['fitted_on']}",
        f"temperature {found['temperature']:.3g}: calibration error on test {before:.1%} → {after:.1%} "
        f"(exact probabilities would show {perfect:.1%})",
        _promise(abstain, test),
    ]
    if found["scope_threshold"] is not None:
        said.append(_scope(found["false_reject"], test))
    if (errors := found["label_errors"]) and errors["found"]:
        said.append(f"{errors['found']:,} of {errors['n']:,} labels deserve a second look: the report lists them")
    return said


def promises(verdict: Judgement, test: Answers) -> list[str]:
    """What a person is told of the thresholds on other texts than the run's own test part."""
    found = kept(verdict, test)
    said = [_promise(asdict(verdict.abstain), found, "these texts")]
    if verdict.scope_threshold is not None:
        said.append(_scope(verdict.false_reject, found, "these texts"))
    return said


def _scope(false_reject: float, test: Mapping[str, Any], where: str = "test") -> str:
    share = f"{test['rejected'] / test['n']:.1%}"
    return f"out of scope: rejects {false_reject:.0%} of texts like the held-out ones; {share} of {where}"


def _promise(abstain: Mapping[str, Any], test: Mapping[str, Any], where: str = "test") -> str:
    target = f"at most {abstain['error']:.3g} of the answers wrong"
    if not abstain["coverage"]:
        return f"abstain: no threshold keeps {target} with confidence {abstain['level']:.0%}; raise decide.error"
    share = f"{test['wrong'] / test['answered']:.1%} of these wrong" if test["answered"] else "none of these"
    return (
        f"abstain below {number(abstain['threshold'])} for {target} (confidence {abstain['level']:.0%}): "
        f"answers {test['answered'] / test['n']:.1%} of {where}, {share}"
    )
