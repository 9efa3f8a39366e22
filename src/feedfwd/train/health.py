"""Watching a training for what feed-forward networks are known to suffer from, and saying what to do about it.

Their weaknesses are the start (units that never fire or are saturated, activations that grow or fade with depth), the
gradient on its way through many layers, and the scale of the inputs; a training itself can stand still, climb, or learn
its examples by heart. A few times in a run `Health` passes a small batch through the network and looks at the gradients
and at what one update changes; in between it only keeps the losses. What it finds it says once, with advice.

Nothing here moves the training: the probe runs in evaluation mode, draws nothing and leaves gradients alone, so a run
with `train.health=false` ends in the same bits.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from feedfwd.train.checkup import Checkup, Finding, Matrix, examine, judge, matrices, sample
from feedfwd.train.loop import Step

CHECKUPS = (0.0, 0.03, 0.1, 0.3, 0.6, 1.0)  # when, as shares of the updates
SETTLED = 0.03  # from here on gradients and updates are judged: a start from zeros needs a moment
PROBE, TOKENS = 128, 1024  # examples of the probe, and tokens where an example is a row of them
LOSSES = ("loss", "log_loss", "rmse")  # of the validation scores, the one that training lowers

CLIMBED = 1.5  # loss by what it began with
STILL = 0.9  # of what it began with: a loss below has fallen, however noisy it is
WORSE = 1.2  # held-out loss by its best
OUTLIERS = 12  # held-out losses as large as the first that a few examples may add up to
JUDGED = 30  # held-out examples from which on the answers to them are judged
PEAK = 0.1  # of the highest rate so far: below it, updates are small on purpose


def fallen(first: Sequence[float], last: Sequence[float]) -> bool:
    """Whether the losses of some updates lie below those of earlier ones by more than twice the standard error.

    >>> fallen([2.3, 2.31, 2.29, 2.3], [2.0, 1.9, 2.1, 1.95]), fallen([2.3, 2.31, 2.29, 2.3], [2.3, 2.29, 2.3, 2.31])
    (True, False)
    """
    error = math.sqrt(sum(statistics.variance(part) / len(part) for part in (first, last)))
    return statistics.fmean(first) - statistics.fmean(last) > 2 * error


@dataclass
class Health:
    """Takes in every `Step` and every validation score, and gives what there is to say about them.

    `probe` is a batch's inputs (N, ...), of which a part is used; `held_out` the number of examples behind a validation
    score. `state_dict` is what a resumed run goes on with.
    """

    model: nn.Module
    probe: Tensor
    held_out: int = 1
    stops_early: bool = False  # then learning by heart is seen to already
    autocast: AbstractContextManager[Any] = field(default_factory=nullcontext)
    findings: list[Finding] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        n = PROBE if self.probe.is_floating_point() else max(1, TOKENS // max(1, self.probe[0].numel()))
        self.probe = self.probe[:n].clone()
        self._matrices = matrices(self.model)
        self._before: dict[str, Tensor] = {}
        self._unread: list[Tensor] = []
        self._losses: list[float] = []  # since this process began
        self._first: list[float] = []
        self._highest = 0.0  # rate
        self._total, self._due, self._awaited = 0, set[int](), set[int]()
        self._validation: list[tuple[int, float]] = []

    def update(self, step: Step, total: int) -> tuple[Checkup | None, list[Finding]]:
        """Take in an update just done, of `total`; a checkup where one is due, and what is new."""
        self._unread.append(step.loss)
        if step.lr > self._highest:
            self._highest = step.lr
        if self._total != total:  # it may change on the way
            self._total, self._due = total, {max(2, round(share * total)) for share in CHECKUPS}
            self._awaited = self._due | {n - 1 for n in self._due}
        if step.n not in self._awaited:
            return None, []
        found: Checkup | None = None
        new: list[Finding] = []
        if step.n in self._due and self._before:
            found = self._look(step.n)
            settled = step.n >= max(5, SETTLED * total)
            decayed = step.lr < PEAK * self._highest
            new = [*judge(found, step.lr, settled=settled, decayed=decayed), *self._course(step, total)]
        self._before = {}
        if step.n + 1 in self._due:
            self._before = {name: sample(p).clone() for name, p in self._matrices.items()}
        return found, self._new(new)

    def validated(self, step: int, scores: Mapping[str, float]) -> list[Finding]:
        """Take in the scores of what is held back."""
        name = next((name for name in LOSSES if name in scores), None)
        if name is None or not math.isfinite(scores[name]):
            return []
        self._validation.append((step, scores[name]))
        worthless = self._worthless(step, scores, "held-out answers", self.held_out)
        return self._new([*worthless, *self._by_heart(step, scores[name])])

    def tested(self, step: int, scores: Mapping[str, float], examples: int) -> list[Finding]:
        """Take in the scores of so many test examples, where nothing was held back; they choose nothing."""
        return self._new([*self._worthless(step, scores, "answers to the test part", examples)])

    def _worthless(self, step: int, scores: Mapping[str, float], which: str, examples: int) -> Iterator[Finding]:
        """Whether, when all is done, an answer that looks at no input would do as well."""
        if step != self._total or step < 40 or examples < JUDGED:
            return
        r2, auroc = scores.get("r2", math.nan), scores.get("auroc", math.nan)
        if r2 < 0:
            what = f"worse than the mean of the targets (R² {r2:.2g})"
        elif auroc < 0.5 + 1 / math.sqrt(examples):  # 1.7 standard errors of balanced classes
            what = f"no better than chance (AUROC {auroc:.2f})"
        else:
            return
        yield Finding(
            "worthless",
            f"the {which} are {what}",
            "see that the targets belong to the inputs and can be told from them; try another optimizer.lr, or more "
            "updates",
            step,
        )

    def _by_heart(self, step: int, loss: float) -> Iterator[Finding]:
        best_step, best = min(self._validation, key=lambda pair: pair[1])
        if self.stops_early or len(self._validation) < 4 or loss < WORSE * best:
            return
        self._read()
        if len(self._losses) < 20:
            return
        began, now = statistics.fmean(self._first), statistics.fmean(self._losses[-10:])
        # a few examples of a small part can do as much
        noise = began * max(2 / math.sqrt(self.held_out), OUTLIERS / self.held_out)
        if loss < max(WORSE * best, best + noise) or now > min(0.5 * began, 0.8 * loss):
            return
        yield Finding(
            "by heart",
            f"it learns its examples by heart: the held-out loss rose from {best:.3g} (step {best_step:,}) to "
            f"{loss:.3g}, that in training fell to {now:.3g}",
            "stop where it was best (train.patience=3), train for less, or take more dropout, weight decay "
            "or data; see that the labels belong to the examples",
            step,
        )

    def _look(self, n: int) -> Checkup:
        with self.autocast:
            inputs, units = examine(self.model, self.probe)
        found = []
        for name, p in self._matrices.items():
            if p.grad is not None and not p.grad.is_sparse and name in self._before:
                before = self._before[name]
                size = float(before.norm())
                change = float((sample(p) - before).norm()) / size if size > 0 else 0.0
                found.append(Matrix(name, float(p.grad.norm()), change))
        return Checkup(n, inputs, units, found)

    def _course(self, step: Step, total: int) -> Iterator[Finding]:
        """Whether the loss falls, by all its values so far."""
        self._read()
        few = max(5, total // 20)
        if step.n < 0.4 * total or step.n < 40 or len(self._losses) < few or len(self._first) < 5:
            return
        recent = self._losses[-few:]
        first, last = statistics.fmean(self._first), statistics.fmean(recent)
        if last > CLIMBED * first and first > 0:
            yield Finding(
                "climbed",
                f"the loss climbed from {first:.3g} to {last:.3g}",
                f"take a third of optimizer.lr ({step.lr:.3g} at this step), a longer schedule.warmup, or train.clip=1",
                step.n,
            )
        elif last > STILL * first and not fallen(self._first, recent):
            yield Finding(
                "plateau",
                f"the loss {'stands still' if last < 1.05 * first else 'does not fall'}: {first:.4g} at first, "
                f"{last:.4g} over the last {few} updates",
                f"try ten times and a tenth of optimizer.lr ({step.lr:.3g} at this step), and see that the targets "
                "belong to the inputs",
                step.n,
            )

    def _read(self) -> None:
        """The losses that have come in since, from the device at once."""
        if self._unread:
            self._losses += torch.stack(self._unread).float().tolist()
            self._unread.clear()
        if len(self._first) < 20:
            self._first = self._losses[:20]

    def _new(self, findings: list[Finding]) -> list[Finding]:
        known = {finding.kind.split()[0] for finding in self.findings}
        new = [finding for finding in findings if finding.kind.split()[0] not in known]
        new = list({finding.kind.split()[0]: finding for finding in reversed(new)}.values())[::-1]
        self.findings += new
        return new

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {
            "first": self._first,
            "highest": self._highest,
            "validation": self._validation,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        self._first, self._highest = list(state["first"]), state["highest"]
        self._validation = [(step, loss) for step, loss in state["validation"]]
        self.findings = [Finding(**finding) for finding in state["findings"]]
        return self
