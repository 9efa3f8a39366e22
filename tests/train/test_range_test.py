"""The range test suggests a rate that trains about as well as the best of a grid, and leaves everything as it was."""

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor

from feedfwd.data.batches import TensorBatches
from feedfwd.models.mlp import MLP
from feedfwd.train.loop import train
from feedfwd.train.losses import build_loss
from feedfwd.train.optimizers import build_optimizer
from feedfwd.train.range_test import suggest_lr
from feedfwd.train.schedules import build_schedule


def problem(name: str) -> tuple[Tensor, Tensor, str, int]:
    load = {"digits": load_digits, "breast_cancer": load_breast_cancer, "diabetes": load_diabetes}[name]
    x, y = (torch.tensor(a, dtype=torch.float32) for a in load(return_X_y=True))
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    if name == "diabetes":
        return x, (y - y.mean()) / y.std(), "mse", 1
    return x, y.long(), "cross_entropy", int(y.max()) + 1


def network(x: Tensor, outputs: int) -> MLP:
    torch.manual_seed(0)
    return MLP([x.shape[1], 32, outputs])


def trained(name: str, optimizer: str, lr: float) -> float:
    """The loss over all data after a short training at this peak rate."""
    x, y, loss_name, outputs = problem(name)
    model, loss = network(x, outputs), build_loss(loss_name)
    schedule = build_schedule("one_cycle", 200)
    for _ in train(
        model, TensorBatches(x, y, 64), loss, build_optimizer(model, optimizer, lr), steps=200, schedule=schedule
    ):
        pass
    with torch.no_grad():
        return float(loss(model.eval()(x), y).mean())


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "muon"])
@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes"])
def test_suggestion_is_near_the_best_of_a_grid(name: str, optimizer: str) -> None:
    x, y, loss_name, outputs = problem(name)
    model = network(x, outputs)
    found = suggest_lr(
        model,
        TensorBatches(x, y, 64),
        build_loss(loss_name),
        lambda m, lr: build_optimizer(m, optimizer, lr),
    )
    start = build_loss(loss_name)(model(x), y).mean().item()
    best = min(trained(name, optimizer, 10.0**e) for e in (-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5))
    reached = trained(name, optimizer, found.lr)
    assert start - reached > 0.85 * (start - best), f"{found.lr} leads to {reached}, the best of the grid to {best}"


def test_it_leaves_everything_as_it_was_and_repeats() -> None:
    x, y, loss_name, outputs = problem("digits")
    model = network(x, outputs)
    before, generator = [p.clone() for p in model.parameters()], torch.get_rng_state()
    tests = [
        suggest_lr(
            model,
            TensorBatches(x, y, 64),
            build_loss(loss_name),
            lambda m, lr: build_optimizer(m, "adam", lr),
        )
        for _ in range(2)
    ]
    assert tests[0] == tests[1]
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    assert torch.equal(generator, torch.get_rng_state())
    assert tests[0].lrs == sorted(tests[0].lrs) and len(tests[0].lrs) == len(tests[0].losses)
