"""The range test suggests a rate that trains about as well as the best of a grid, and leaves everything as it was."""

import math
from dataclasses import dataclass

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor

from feedfwd.data.batches import TensorBatches
from feedfwd.errors import TrainingError
from feedfwd.models.mlp import MLP
from feedfwd.train.loop import train
from feedfwd.train.losses import build_loss
from feedfwd.train.optimizers import build_optimizer
from feedfwd.train.range_test import RangeTest, suggest_lr, suggested
from feedfwd.train.schedules import build_schedule

GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)


@dataclass
class Problem:
    """A real data set, standardised, a quarter of it held out."""

    name: str

    def __post_init__(self) -> None:
        load = {"digits": load_digits, "breast_cancer": load_breast_cancer, "diabetes": load_diabetes}[self.name]
        x, y = (torch.tensor(a, dtype=torch.float32) for a in load(return_X_y=True))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        x, y = ((x - x.mean(0)) / x.std(0).clamp(min=1e-6))[order], y[order]
        self.regression = self.name == "diabetes"
        y = (y - y.mean()) / y.std() if self.regression else y.long()
        held_out = len(x) // 4
        self.x, self.y, self.held_x, self.held_y = x[held_out:], y[held_out:], x[:held_out], y[:held_out]
        self.loss = build_loss("mse" if self.regression else "cross_entropy")

    def network(self) -> MLP:
        torch.manual_seed(0)
        return MLP([self.x.shape[1], 32, 1 if self.regression else int(self.y.max()) + 1])

    def batches(self) -> TensorBatches:
        return TensorBatches(self.x, self.y, 64)

    def suggestion(self, optimizer: str) -> RangeTest:
        return suggest_lr(self.network(), self.batches(), self.loss, lambda m, lr: build_optimizer(m, optimizer, lr))

    def score(self, optimizer: str, lr: float) -> float:
        """Accuracy or r² on the held-out part after a short training at this peak rate."""
        model, schedule = self.network(), build_schedule("one_cycle", 200)
        try:
            for _ in train(
                model, self.batches(), self.loss, build_optimizer(model, optimizer, lr), steps=200, schedule=schedule
            ):
                pass
        except TrainingError:
            return -math.inf
        with torch.no_grad():
            outputs: Tensor = model.eval()(self.held_x)
        if self.regression:
            return 1 - float(self.loss(outputs, self.held_y).mean() / self.held_y.var())
        return float((outputs.argmax(1) == self.held_y).float().mean())


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes"])
def test_suggestion_is_near_the_best_of_a_grid(name: str) -> None:
    problem, short = Problem(name), {}
    for optimizer in ("sgd", "momentum", "adam", "muon"):
        best = max(problem.score(optimizer, lr) for lr in GRID)
        short[optimizer] = best - problem.score(optimizer, problem.suggestion(optimizer).lr)
    assert max(short.values()) < 0.05 and sum(short.values()) / len(short) < 0.025, short


def test_it_leaves_everything_as_it_was_and_repeats() -> None:
    problem = Problem("digits")
    model = problem.network()
    before, generator = [p.clone() for p in model.parameters()], torch.get_rng_state()
    tests = [
        suggest_lr(model, problem.batches(), problem.loss, lambda m, lr: build_optimizer(m, "adam", lr))
        for _ in range(2)
    ]
    assert tests[0] == tests[1]
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    assert torch.equal(generator, torch.get_rng_state())
    assert tests[0].lrs == sorted(tests[0].lrs) and len(tests[0].lrs) == len(tests[0].losses)


def test_it_ends_where_the_loss_diverges() -> None:
    found = Problem("digits").suggestion("sgd")
    assert len(found.lrs) < 100 and found.lrs[-1] < 10.0


def test_the_rule_on_a_drawn_curve() -> None:
    lrs = [10 ** (-6 + n / 10) for n in range(70)]
    losses = [2.0] * 30 + [2.0 - 0.1 * n for n in range(16)] + [0.5] * 10 + [5.0] * 14
    assert suggested(lrs, losses) == pytest.approx(lrs[30 + 9], rel=0.15)  # 60 % of the way down
