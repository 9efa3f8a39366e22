"""The compiled passes against torch's operations and autograd."""

import copy
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedfwd.data.batches import Batch
from feedfwd.models import mlp_native
from feedfwd.models.mlp import MLP
from feedfwd.models.mlp_fast import FastMLP, uncompiled_because
from feedfwd.models.mlp_native import CompiledPasses, lacks
from feedfwd.train.loop import autograd
from feedfwd.train.losses import build_loss
from feedfwd.train.output_gradients import output_gradient


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def a_compiler() -> None:
    if reason := lacks(MLP([2, 2, 2]), 1):
        pytest.skip(reason)


def case(sizes: list[int], n: int, loss: str, activation: str = "relu", bias: bool = True) -> tuple[MLP, Batch]:
    torch.manual_seed(n)
    model = MLP(sizes, activation, bias=bias)
    with torch.no_grad():
        for parameter in model.parameters():  # biases away from zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    targets = torch.randn(n, sizes[-1]) if loss == "mse" else torch.randint(0, sizes[-1], (n,))
    return model, Batch(torch.randn(n, sizes[0]), targets)


def gradients(model: MLP, batch: Batch, loss: str, *, compiled: bool = True) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss and every parameter's gradient, of a copy of the model."""
    twin, function = copy.deepcopy(model), build_loss(loss)
    fast = FastMLP(twin, output_gradient(function), compiled=compiled)
    share = fast.gradients(twin, batch, function, len(batch.targets))
    assert isinstance(next(iter(fast._passes.values())), CompiledPasses) == compiled
    return share, [p.grad for p in twin.parameters() if p.grad is not None]


def agree(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 70), min_size=2, max_size=5),
    n=st.integers(1, 70),
    activation=st.sampled_from(["relu", "leaky_relu", "identity"]),
    bias=st.booleans(),
    loss=st.sampled_from(["cross_entropy", "mse"]),
)
def test_any_shape_has_the_plain_gradients(sizes: list[int], n: int, activation: str, bias: bool, loss: str) -> None:
    model, batch = case(sizes, n, loss, activation, bias)
    share, found = gradients(model, batch, loss)
    by_torch, expected = gradients(model, batch, loss, compiled=False)
    torch.testing.assert_close(share, by_torch, rtol=1e-5, atol=1e-6)
    agree(found, expected)
    assert len(found) == (2 if bias else 1) * (len(sizes) - 1)
    autograd(model, batch, build_loss(loss), n)
    agree(found, [p.grad for p in model.parameters() if p.grad is not None])


def test_the_articles_network_within_rounding_of_fp64() -> None:
    model, batch = case([784, 128, 128, 10], 64, "cross_entropy")
    exact = copy.deepcopy(model).double()
    autograd(exact, Batch(batch.inputs.double(), batch.targets), build_loss("cross_entropy"), 64)
    _, found = gradients(model, batch, "cross_entropy")
    for a, b in zip(found, exact.parameters(), strict=True):
        assert b.grad is not None
        torch.testing.assert_close(a.double(), b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sizes", [[784, 128, 128, 10], [100, 70, 33, 5]])
def test_the_number_of_threads_changes_no_bit(sizes: list[int]) -> None:
    model, batch = case(sizes, 61, "mse")
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(gradients(model, batch, "mse")[1])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_gradients_add_up_and_buffers_are_used_again() -> None:
    model, first = case([20, 17, 3], 9, "cross_entropy")
    _, second = case([20, 17, 3], 9, "cross_entropy")
    second = Batch(second.inputs + 1, second.targets)
    twin, loss = copy.deepcopy(model), build_loss("cross_entropy")
    fast = FastMLP(twin, output_gradient(loss))
    for batch in (first, second):
        autograd(model, batch, loss, 18)
        fast.gradients(twin, batch, loss, 18)
    agree(*([p.grad for p in m.parameters() if p.grad is not None] for m in (twin, model)))


def test_inputs_of_any_layout_and_type() -> None:
    model, batch = case([6, 8, 3], 5, "cross_entropy")
    _, expected = gradients(model, batch, "cross_entropy")
    for inputs in (batch.inputs.t().contiguous().t(), batch.inputs.double(), batch.inputs.view(5, 2, 3)):
        _, found = gradients(model, Batch(inputs, batch.targets), "cross_entropy")
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nan_stays_nan_and_relu_of_minus_infinity_is_zero() -> None:
    model, batch = case([16, 8, 3], 4, "cross_entropy")
    batch.inputs[2, 5] = float("nan")
    share, found = gradients(model, batch, "cross_entropy")
    assert share.isnan() and all(g.isnan().any() for g in found)
    model, batch = case([16, 8, 3], 4, "cross_entropy")
    with torch.no_grad():
        model.blocks[0].linear.bias[3] = float("-inf")  # type: ignore[union-attr, index, operator]
    share, found = gradients(model, batch, "cross_entropy")
    by_torch, expected = gradients(model, batch, "cross_entropy", compiled=False)
    assert share.isfinite()
    torch.testing.assert_close(share, by_torch)
    agree(found, expected)


@pytest.mark.parametrize(
    ("model", "n", "reason"),
    [
        (MLP([4, 5, 3], "gelu"), 8, "GELU"),
        (MLP([4, 5, 3], dropout=0.1), 8, "dropout"),
        (MLP([4, 5, 3]).double(), 8, "float64"),
        (MLP([1024, 1025, 3]), 8, "weights"),
        (MLP([4, 5, 3]), 2000, "batch"),
        (MLP([4, 5, 3], input_dropout=0.1), 8, None),
        (MLP([4, 5, 3], "leaky_relu"), 512, None),
        (MLP([4, 3]), 1, None),
    ],
)
def test_says_why_it_does_not_serve(model: MLP, n: int, reason: str | None) -> None:
    found = lacks(model, n)
    assert found is None if reason is None else found is not None and reason in found


def test_bf16_is_left_to_torch() -> None:
    assert "bfloat16" in (uncompiled_because(MLP([4, 5, 3]), 8, bf16=True) or "")


def test_a_batch_that_is_too_large_takes_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp_native, "MOST", 4)
    model, batch = case([6, 8, 3], 5, "cross_entropy")
    with pytest.raises(AssertionError):  # of `gradients`: no compiled passes were made
        gradients(model, batch, "cross_entropy")


def test_without_a_compiler_torch_does_the_passes_and_it_is_said() -> None:
    program = """
import torch
from feedfwd.models.mlp import MLP
from feedfwd.models.mlp_fast import FastMLP, uncompiled_because
from feedfwd.data.batches import Batch
from feedfwd.train.losses import build_loss
from feedfwd.train.output_gradients import output_gradient
loss = build_loss("mse")
model = MLP([4, 5, 3])
FastMLP(model, output_gradient(loss)).gradients(model, Batch(torch.ones(2, 4), torch.ones(2, 3)), loss, 2)
print(uncompiled_because(model, 2))
"""
    for environment, reason in (({"FEEDFWD_NATIVE": "0"}, "FEEDFWD_NATIVE=0"), ({"CC": "/nowhere/cc"}, "failed")):
        said = subprocess.run(
            [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=True
        ).stdout
        assert reason in said
