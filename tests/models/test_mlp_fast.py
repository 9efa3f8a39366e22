"""The fast path against its plain twin."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from feedfwd.data.batches import Batch, TensorBatches
from feedfwd.ffn import ACTIVATIONS, products
from feedfwd.models import mlp_fast
from feedfwd.models.mlp import MLP
from feedfwd.models.mlp_fast import FastMLP, lacks
from feedfwd.train.lean import LeanAdam
from feedfwd.train.loop import autograd, train
from feedfwd.train.losses import LOSSES, build_loss
from feedfwd.train.optimizers import Optimizer, build_optimizer
from feedfwd.train.output_gradients import output_gradient
from feedfwd.train.precision import Precision
from feedfwd.train.schedules import build_schedule

SERVED = ["identity", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "gelu", "gelu_tanh", "silu", "relu2"]
CLASSES = 3


def twins(**options: Any) -> tuple[MLP, MLP]:
    torch.manual_seed(0)
    plain = MLP([5, 8, 6, CLASSES], options.pop("activation", "tanh"), **options).double()
    with torch.no_grad():
        for parameter in plain.parameters():  # biases away from zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    return plain, copy.deepcopy(plain)


def batch_for(loss: str, n: int = 7) -> Batch:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, CLASSES, (n,), generator=generator)
    if loss in ("mse", "mae", "huber"):
        targets = torch.randn(n, CLASSES, generator=generator, dtype=torch.float64)
    if loss == "binary_cross_entropy":
        targets = torch.randint(0, 2, (n, CLASSES), generator=generator)
    return Batch(torch.randn(n, 5, generator=generator, dtype=torch.float64), targets)


def both(plain: MLP, twin: MLP, batch: Batch, loss: Callable[[Tensor, Tensor], Tensor], total: float) -> FastMLP:
    """Compares loss and gradients, drawing the same random numbers in both."""
    fast = FastMLP(twin, output_gradient(loss))
    torch.manual_seed(3)
    expected = autograd(plain, batch, loss, total)
    torch.manual_seed(3)
    found = fast.gradients(twin, batch, loss, total)
    assert found.shape == () and not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for (name, a), (_, b) in zip(plain.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-10, atol=1e-12, msg=name)
    return fast


@pytest.mark.parametrize("activation", SERVED)
def test_each_activation_has_autograds_gradients(activation: str) -> None:
    plain, twin = twins(activation=activation)
    both(plain, twin, batch_for("mse"), build_loss("mse"), 7)


def test_an_activation_is_served_or_named() -> None:
    for name in ACTIVATIONS:
        reason = lacks(MLP([4, 5, 3], name))
        assert (reason is None) == (name in SERVED), name
        assert reason is None or "slope of" in reason


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        *((name, {}) for name in LOSSES),
        ("cross_entropy", {"label_smoothing": 0.1}),
        ("cross_entropy", {"class_weights": [1.0, 2.0, 0.5]}),
        ("cross_entropy", {"label_smoothing": 0.1, "class_weights": [1.0, 2.0, 0.5]}),
        ("binary_cross_entropy", {"label_smoothing": 0.1}),
        ("binary_cross_entropy", {"class_weights": [1.0, 2.0]}),
    ],
)
def test_each_loss_has_autograds_gradients(loss: str, options: dict[str, Any], weighted: bool) -> None:
    plain, twin = twins()
    batch = batch_for(loss)
    w = torch.rand(7).double() if weighted else None
    both(plain, twin, Batch(batch.inputs, batch.targets, w), build_loss(loss, **options), 5.5)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "class_weights": [1.0, 2.0, 0.5]}])
@pytest.mark.parametrize("weighted", [False, True])
def test_soft_targets(options: dict[str, Any], weighted: bool) -> None:
    plain, twin = twins()
    soft = torch.rand(7, CLASSES, dtype=torch.float64)  # need not sum to one
    w = torch.rand(7).double() if weighted else None
    both(plain, twin, Batch(batch_for("mse").inputs, soft, w), build_loss("cross_entropy", **options), 7)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [[5, 3], [5, 8, 3], [5, 8, 8, 8, 3]])
def test_any_depth_with_and_without_biases(sizes: list[int], bias: bool) -> None:
    plain = MLP(sizes, "silu", bias=bias).double()
    both(plain, copy.deepcopy(plain), batch_for("cross_entropy"), build_loss("cross_entropy"), 7)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_dropout_draws_what_the_plain_network_draws(activation: str) -> None:
    plain, twin = twins(activation=activation, dropout=0.3, input_dropout=0.2)
    fast = both(plain, twin, batch_for("cross_entropy"), build_loss("cross_entropy"), 7)
    plain.zero_grad()
    fast.flat.zero_grad()
    both(plain.eval(), twin.eval(), batch_for("cross_entropy"), build_loss("cross_entropy"), 7)


def test_gradients_add_up_and_batch_sizes_may_differ() -> None:
    plain, twin = twins()
    loss = build_loss("cross_entropy")
    fast = FastMLP(twin, output_gradient(loss))
    for n in (7, 4, 7):
        batch = batch_for("cross_entropy", n)
        autograd(plain, batch, loss, 18)
        fast.gradients(twin, batch, loss, 18)
    for a, b in zip(plain.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-10, atol=1e-12)


def test_images_are_flattened() -> None:
    plain = MLP([6, 4, 3]).double()
    batch = Batch(torch.rand(4, 2, 3).double(), torch.tensor([0, 1, 2, 0]))
    both(plain, copy.deepcopy(plain), batch, build_loss("cross_entropy"), 4)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "rmsprop", "adagrad", "adam", "adamw"])
def test_thirty_updates_end_where_the_plain_ones_do(optimizer: str, accumulate: int) -> None:
    plain, twin = twins(activation="relu")
    loss = build_loss("cross_entropy", label_smoothing=0.1)
    inputs, targets = torch.randn(50, 5, dtype=torch.float64), torch.randint(0, CLASSES, (50,))
    schedule, start = build_schedule("one_cycle", 30), plain.head.weight.detach().clone()
    fast = FastMLP(twin, output_gradient(loss))
    for model, flat, gradients in ((plain, plain, autograd), (twin, fast.flat, fast.gradients)):
        built: Optimizer = build_optimizer(flat, optimizer, 1e-2, weight_decay=0.1)
        if model is twin and optimizer in ("adam", "adamw"):
            built = LeanAdam(flat, 1e-2, weight_decay=0.1, decoupled=optimizer == "adamw")
        options = {"accumulate": accumulate, "clip": 0.5, "schedule": schedule, "gradients": gradients}
        for _ in train(model, TensorBatches(inputs, targets, 16), loss, built, steps=30, **options):  # type: ignore[arg-type]
            pass
        assert not torch.equal(model.head.weight, start)
    for (name, a), (_, b) in zip(plain.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("onednn", [False, True])
def test_fp32_within_rounding_by_either_library(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if onednn and not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        pytest.skip("this torch has no oneDNN")
    for module in (products, mlp_fast):
        monkeypatch.setattr(module, "onednn_is_faster", lambda: onednn)
        monkeypatch.setattr(module, "LARGE", 1)
    torch.manual_seed(0)
    exact = MLP([20, 16, 16, 4], bias=True).double()
    plain = copy.deepcopy(exact).float()
    twin = copy.deepcopy(plain)
    x, y = torch.randn(32, 20), torch.randint(0, 4, (32,))
    loss = build_loss("cross_entropy")
    autograd(exact, Batch(x.double(), y), loss, 32)
    autograd(plain, Batch(x, y), loss, 32)
    FastMLP(twin, output_gradient(loss), compiled=False).gradients(twin, Batch(x, y), loss, 32)

    def error(model: MLP) -> float:
        pairs = zip(exact.parameters(), model.parameters(), strict=True)
        return max(float((b.grad - a.grad).abs().max()) for a, b in pairs)  # type: ignore[operator]

    assert error(twin) < 2e-7 and error(twin) < 4 * error(plain) + 1e-8


def test_bf16_rounds_as_autocast_does() -> None:
    torch.manual_seed(0)
    exact = MLP([64, 32, 32, 5], "relu").double()
    plain = copy.deepcopy(exact).float()
    twin = copy.deepcopy(plain)
    x, y = torch.randn(48, 64), torch.randint(0, 5, (48,))
    loss = build_loss("cross_entropy")
    autograd(exact, Batch(x.double(), y), loss, 48)
    with Precision("bf16", "").autocast():
        autograd(plain, Batch(x, y), loss, 48)
    fast = FastMLP(twin, output_gradient(loss), bf16=True)
    fast.gradients(twin, Batch(x, y), loss, 48)

    def error(model: MLP) -> float:
        pairs = list(zip(exact.parameters(), model.parameters(), strict=True))
        off = sum(float((b.grad - a.grad).square().sum()) for a, b in pairs)  # type: ignore[operator]
        return (off / sum(float(a.grad.square().sum()) for a, _ in pairs)) ** 0.5  # type: ignore[union-attr]

    assert error(twin) < 1.2 * error(plain) and error(plain) < 0.02
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in twin.parameters())  # type: ignore[union-attr]


def run(steps: int, dropout: float, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """So many updates from the beginning, or from where another run stood."""
    torch.manual_seed(0)
    model = MLP([5, 8, 6, CLASSES], dropout=dropout)
    loss = build_loss("cross_entropy")
    fast = FastMLP(model, output_gradient(loss))
    optimizer = LeanAdam(fast.flat, 1e-2, weight_decay=0.1, decoupled=True)
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(50, 5, generator=generator)
    batches = TensorBatches(inputs, torch.arange(50) % CLASSES, 16)
    start = 0
    if state is not None:
        model.load_state_dict(load(state["model"]))
        optimizer.load_state_dict(state["optimizer"])
        batches.load_state_dict(state["batches"])
        torch.set_rng_state(state["generator"])
        start = state["step"]
    for _ in train(model, batches, loss, optimizer, steps=steps, start=start, gradients=fast.gradients):
        pass
    return {
        "model": save(model.state_dict()),  # parameters that share one storage can be saved
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "batches": batches.state_dict(),
        "generator": torch.get_rng_state(),
        "step": steps,
    }


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_resumes_to_the_bit(dropout: float) -> None:
    whole, halved = run(20, dropout), run(20, dropout, run(9, dropout))
    assert whole["model"] == halved["model"]


def test_the_model_keeps_its_parameters_and_sees_the_training() -> None:
    _, model = twins()
    before, own = copy.deepcopy(model.state_dict()), list(model.parameters())
    loss = build_loss("cross_entropy")
    fast = FastMLP(model, output_gradient(loss))
    assert all(a is b for a, b in zip(own, model.parameters(), strict=True))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for parameter in fast.flat.parameters():
        parameter.data.add_(1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] + 1), name
    assert sum(p.numel() for p in fast.flat.parameters()) == model.parameter_count


def test_weight_decay_sees_matrices_and_biases() -> None:
    _, model = twins()
    fast = FastMLP(model, output_gradient(build_loss("mse")))
    groups = build_optimizer(fast.flat, "adamw", 1e-2, weight_decay=0.1).param_groups
    assert [(g["weight_decay"], sum(p.numel() for p in g["params"])) for g in groups] == [
        (0.1, 5 * 8 + 8 * 6 + 6 * 3),
        (0.0, 17),
    ]


@pytest.mark.parametrize(
    ("model", "optimizer", "reason"),
    [
        (nn.Linear(2, 2), "adam", "Linear"),
        (MLP([4, 5, 3]), "muon", "muon"),
        (MLP([4, 5, 3], "swiglu"), "adam", "gated"),
        (MLP([4, 5, 3], residual=True), "adam", "residual"),
        (MLP([4, 5, 3], norm="batch"), "adam", "normalised"),
        (MLP([4, 5, 3], noise=0.1), "adam", "noise"),
        (MLP([4, 5, 3]).to("meta"), "adam", "meta"),
        (MLP([4, 5, 3]).requires_grad_(False), "adam", "frozen"),
    ],
)
def test_says_why_it_does_not_serve(model: nn.Module, optimizer: str, reason: str) -> None:
    found = lacks(model, optimizer)
    assert found is not None and reason in found


def test_a_matrix_within_something_else_is_not_taken() -> None:
    model = MLP([4, 5, 3])
    model.head = nn.Linear(5, 3)  # type: ignore[assignment]
    assert "matrix is within" in (lacks(model) or "")
