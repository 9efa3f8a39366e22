"""feedfwd's network, losses and optimizers against the specification in oracle.py, in double precision."""

from typing import Any

import numpy as np
import pytest
import torch

import oracle
from feedfwd.ffn import ACTIVATIONS
from feedfwd.models import MLP
from feedfwd.train.losses import LOSSES, build_loss
from feedfwd.train.optimizers import OPTIMIZERS, build_optimizer

N, SIZES = 11, [5, 7, 6, 3]
WEIGHTS = np.array([0.5, 1.0, 2.5])

LOSS_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mse": ("mse", {}),
    "mae": ("mae", {}),
    "huber": ("huber", {"delta": 0.7}),
    "cross_entropy": ("cross_entropy", {}),
    "cross_entropy, smoothed, weighted": ("cross_entropy", {"label_smoothing": 0.1, "class_weights": WEIGHTS}),
    "cross_entropy, shares": ("cross_entropy", {"label_smoothing": 0.1, "class_weights": WEIGHTS, "shares": True}),
    "binary_cross_entropy": ("binary_cross_entropy", {}),
    "binary_cross_entropy, smoothed, weighted": (
        "binary_cross_entropy",
        {"label_smoothing": 0.1, "class_weights": WEIGHTS[1:]},
    ),
    "focal": ("focal", {}),
    "focal, weighted": ("focal", {"gamma": 1.5, "class_weights": WEIGHTS}),
}


def targets_of(loss: str, rng: np.random.Generator, shares: bool = False) -> np.ndarray:
    if shares:
        return rng.dirichlet(np.ones(SIZES[-1]), N)
    match loss:
        case "cross_entropy" | "focal":
            return rng.integers(0, SIZES[-1], N)
        case "binary_cross_entropy":
            return rng.integers(0, 2, (N, SIZES[-1])).astype(float)
    return rng.normal(size=(N, SIZES[-1]))


def as_mlp(layers: list[oracle.Layer], activation: str) -> MLP:
    """The same network as an MLP in double precision."""
    model = MLP(SIZES, activation).double()
    model.load_state_dict({key: torch.from_numpy(value) for key, value in named(layers).items()})
    return model


def named(layers: list[oracle.Layer]) -> dict[str, np.ndarray]:
    """The specification's parameters by the names they have in the MLP's state_dict."""
    names = {"W": "linear.weight", "b": "linear.bias", "alpha_p": "activation.alpha_p", "alpha_n": "activation.alpha_n"}
    *hidden, head = layers
    blocks = {f"blocks.{i}.{names[name]}": value for i, layer in enumerate(hidden) for name, value in layer.items()}
    return blocks | {"head.weight": head["W"], "head.bias": head["b"]}


def start(activation: str, seed: int = 0) -> tuple[list[oracle.Layer], np.random.Generator]:
    """Layers with biases that are not zero, so that they are seen, and the generator to go on with."""
    rng = np.random.default_rng(seed)
    layers = oracle.initialise(SIZES, activation, rng)
    for layer in layers:
        layer["b"] = 0.3 * rng.normal(size=layer["b"].shape)
    return layers, rng


def test_the_specification_covers_all_names() -> None:
    assert set(oracle.ACTIVATIONS) == set(ACTIVATIONS)
    assert set(oracle.LOSSES) == set(LOSSES) == {name for name, _ in LOSS_CASES.values()}
    assert set(oracle.RULES) == set(OPTIMIZERS)


@pytest.mark.parametrize("activation", oracle.ACTIVATIONS)
@pytest.mark.parametrize("case", LOSS_CASES)
def test_forward_loss_and_every_gradient(activation: str, case: str) -> None:
    loss, options = LOSS_CASES[case][0], dict(LOSS_CASES[case][1])
    layers, rng = start(activation)
    x, targets = rng.normal(size=(N, SIZES[0])), targets_of(loss, rng, options.pop("shares", False))

    y, kept = oracle.forward(layers, x, activation)
    losses, slope = oracle.LOSSES[loss](y, targets, **options)
    gradients = oracle.backward(layers, kept, slope, activation)

    model = as_mlp(layers, activation)
    outputs = model(torch.from_numpy(x))
    ours = build_loss(loss, **options)(outputs, torch.from_numpy(targets))
    ours.mean().backward()

    np.testing.assert_allclose(outputs.detach(), y, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(ours.detach(), losses, rtol=1e-10, atol=1e-12)
    expected = named(gradients)
    assert {name for name, _ in model.named_parameters()} == set(expected)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad, expected[name], rtol=1e-8, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", oracle.RULES)
def test_updates(optimizer: str, weight_decay: float) -> None:
    """Three, so that momentum, bias correction and running means are seen."""
    activation = "xielu"  # has parameters of every shape
    layers, rng = start(activation)
    batches = [(rng.normal(size=(N, SIZES[0])), targets_of("cross_entropy", rng)) for _ in range(3)]
    lr = 0.01
    model = as_mlp(layers, activation)
    before = named(layers)

    after, history = oracle.train(layers, batches, activation, "cross_entropy", optimizer, lr, weight_decay)

    rule, loss = build_optimizer(model, optimizer, lr, weight_decay=weight_decay), build_loss("cross_entropy")
    for (x, targets), expected in zip(batches, history, strict=True):
        model.zero_grad()
        value = loss(model(torch.from_numpy(x)), torch.from_numpy(targets)).mean()
        value.backward()
        rule.step()
        assert value.item() == pytest.approx(expected, rel=2e-2 if optimizer in oracle.MUONS else 1e-10)
    for name, expected in named(after).items():
        ours = dict(model.named_parameters())[name].detach().numpy()
        if optimizer in oracle.MUONS:  # whose Newton-Schulz steps run in bfloat16, whose numbers have 8 bits
            distance = np.linalg.norm(ours - expected) / np.linalg.norm(expected - before[name])
            assert distance < 0.06, f"{name}: {distance:.3f} of the way"
        else:
            np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12, err_msg=name)
