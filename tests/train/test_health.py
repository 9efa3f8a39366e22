"""Each weakness is provoked and named; healthy trainings are left in peace."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import feedfwd as ff
from feedfwd.config import FitConfig, parse
from feedfwd.data.batches import TensorBatches
from feedfwd.models.mlp import MLP
from feedfwd.recipes.console import Silent
from feedfwd.recipes.fit import fit_config, resume
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.train.checkup import Finding, examine
from feedfwd.train.health import Health
from feedfwd.train.loop import Step, train


def learnable(n: int = 512, inputs: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, inputs, generator=generator)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def watched(
    model: nn.Module,
    *,
    lr: float = 3e-3,
    steps: int = 300,
    data: tuple[Tensor, Tensor] | None = None,
    optimizer: Callable[..., Any] = torch.optim.Adam,
) -> dict[str, Finding]:
    x, y = data or learnable()
    batches = TensorBatches(x, y, 64)
    health = Health(model, x)
    for step in train(
        model,
        batches,
        lambda out, target: F.cross_entropy(out, target, reduction="none"),
        optimizer(model.parameters(), lr=lr),
        steps=steps,
    ):
        health.update(step, steps)
    return {finding.kind.split()[0]: finding for finding in health.findings}


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "swiglu", "sigmoid"])
@pytest.mark.parametrize("depth", [1, 4])
def test_a_healthy_network_is_left_in_peace(activation: str, depth: int) -> None:
    torch.manual_seed(0)
    steps = 600 if activation == "sigmoid" else 300
    assert watched(MLP([8, *[64] * depth, 2], activation), steps=steps, lr=5e-3) == {}


def test_a_start_from_zeros_never_learns() -> None:
    model = MLP([8, 64, 64, 2])
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    found = watched(model)
    assert "100% of its 64 relu units never fire" in found["dead"].finding
    assert "ffn.init=auto" in found["dead"].advice


def test_a_huge_start_is_seen_at_once() -> None:
    torch.manual_seed(0)
    model = MLP([8, *[64] * 6, 2])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10)
    found = watched(model)
    assert found["activations"].step == 2 and "grow with depth" in found["activations"].finding
    saturating = MLP([8, 64, 64, 2], "tanh")
    with torch.no_grad():
        for p in saturating.parameters():
            p.mul_(50)
    assert "tanh units are saturated" in watched(saturating)["saturated"].finding


def test_twenty_layers_of_sigmoids_let_the_gradient_vanish() -> None:
    torch.manual_seed(0)
    found = watched(MLP([8, *[32] * 20, 2], "sigmoid"))
    assert "vanishes" in found["vanishing"].finding and "blocks.0" in found["vanishing"].finding
    assert "residual" in found["vanishing"].advice


def test_a_gradient_that_explodes_is_told_from_one_that_vanishes() -> None:
    torch.manual_seed(0)
    model = MLP([8, *[64] * 12, 2], "leaky_relu")
    with torch.no_grad():
        for block in model.blocks[1:]:
            block.linear.weight.mul_(3)
    found = watched(model, lr=1e-7, optimizer=torch.optim.SGD)
    assert "exploding" in found or "activations" in found


def test_inputs_out_of_scale_are_named() -> None:
    x, y = learnable()
    x[:, 2] = 5_000 * x[:, 2] + 20_000
    found = watched(MLP([8, 64, 2]), data=(x, y))
    assert "value 3 of 8 that the first layer sees is about 2" in found["inputs"].finding
    assert "scale the inputs" in found["inputs"].advice
    assert "inputs" in watched(MLP([8, 64, 2]), data=(learnable()[0] * 1e-4, y))


def test_a_rate_too_high_is_called_so() -> None:
    torch.manual_seed(0)
    found = watched(MLP([8, 64, 64, 2]), lr=1.0)
    assert found.keys() & {"rash", "dead", "climbed"}
    assert "optimizer.lr (1 at this step)" in str(next(iter(found.values()))) or "dead" in found


def test_targets_that_mean_nothing() -> None:
    """Too small to learn by heart, the loss stands still; large enough, what is held back gets worse."""
    torch.manual_seed(0)
    x, _ = learnable()
    y = torch.randint(0, 2, (512,), generator=torch.Generator().manual_seed(5))
    assert "targets belong to the inputs" in watched(MLP([8, 2, 2]), data=(x, y), lr=1e-4)["plateau"].advice
    model = MLP([8, 256, 256, 2])
    health = Health(model, x, held_out=200)
    held = torch.randn(200, 8), torch.randint(0, 2, (200,))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    loss = lambda out, target: F.cross_entropy(out, target, reduction="none")  # noqa: E731
    said: list[Finding] = []
    for step in train(model, TensorBatches(x, y, 64), loss, optimizer, steps=400):
        health.update(step, 400)
        if step.n % 40 == 0:
            with torch.no_grad():
                said += health.validated(step.n, {"log_loss": float(loss(model(held[0]), held[1]).mean())})
    assert [finding.kind for finding in said] == ["by heart"]


def test_units_are_counted_one_by_one() -> None:
    """By hand: of three units one fires always, one sometimes, one never."""
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0], [1.0], [0.0]]))
        model[0].bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    x = torch.tensor([[-1.0], [2.0]])
    seen, (layer,) = examine(model, x)
    assert layer.dead == pytest.approx(1 / 3) and layer.saturated == 0
    assert seen == pytest.approx([2.5**0.5])
    assert layer.scale == pytest.approx(((1 + 1 + 0 + 4) / 6) ** 0.5)
    model[1] = nn.Tanh()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0], [9.0], [0.1]]))
        model[0].bias.zero_()
    assert examine(model, x)[1][0].saturated == pytest.approx(1 / 3)


def test_looking_changes_nothing() -> None:
    torch.manual_seed(0)
    model = MLP([8, 16, 2], dropout=0.5, norm="batch")
    model.head.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    examine(model, learnable()[0])
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and not model.head.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


SETTINGS = ["train.steps=120", "optimizer.lr=0.01", "train.save_every=20"]


def config(*extra: str) -> FitConfig:
    from feedfwd.config import overrides

    return parse(FitConfig, {"source": "digits", "effort": "quick", **overrides([*SETTINGS, *extra], FitConfig)})


def weights(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


def events(path: Path, kind: str) -> list[dict[str, Any]]:
    lines = (path / "log.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_a_watched_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    fit_config(config("ffn.dropout=0.2"), tmp_path / "watched")
    fit_config(config("ffn.dropout=0.2", "train.health=false"), tmp_path / "alone")
    assert weights(tmp_path / "watched") == weights(tmp_path / "alone")
    assert [e["step"] for e in events(tmp_path / "watched", "health")] == [2, 4, 12, 36, 72, 120]
    assert events(tmp_path / "alone", "health") == []


def test_what_is_found_is_said_once_logged_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Listening(Silent):
        def say(self, text: str) -> None:
            said.append(text)

        def progress(self, step: int, total: int, text: str) -> None:
            if step == stop_at:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGINT)

    stop_at = 60
    broken = config("optimizer.lr=3.0", "schedule.name=constant")
    with pytest.raises(Interrupted):
        fit_config(broken, tmp_path / "run", Listening())
    stop_at = -1
    resume(tmp_path / "run", Listening())
    (found,) = [e for e in events(tmp_path / "run", "finding") if e["kind"].startswith("dead")]
    assert sum("units never fire" in line for line in said) == 1
    assert found["finding"] in next(line for line in said if "units never fire" in line)
    page = (tmp_path / "run/report.html").read_text()
    assert "units never fire" in page and "<h2>Inside</h2>" in page


HEALTHY = [(source, seed) for source in ("digits", "iris", "wine", "breast_cancer", "diabetes") for seed in range(4)]


@pytest.mark.parametrize(("source", "seed"), HEALTHY)
def test_twenty_healthy_runs_stay_silent(source: str, seed: int, tmp_path: Path) -> None:
    ff.fit(source, seed=seed, effort="quick" if source == "digits" else "standard", run=tmp_path / "run")
    assert events(tmp_path / "run", "finding") == []


def coursed(losses: list[float], scores: dict[int, dict[str, float]], held_out: int = 200) -> list[Finding]:
    """What is found in a training of these losses, and of these scores of what is held back by update."""
    health = Health(MLP([8, 4, 2]), learnable()[0], held_out)
    for n, loss in enumerate(losses, 1):
        health.update(Step(n, torch.tensor(loss), 1e-3, 64, None), len(losses))
        if n in scores:
            health.validated(n, scores[n])
    return health.findings


def test_a_loss_that_fell_by_half_has_fallen_however_noisy_it_is() -> None:
    losses = [1.6 + 2 * (n % 3 == 0) for n in range(20)] + [0.6 + 1.5 * (n % 5 == 0) for n in range(110)]
    assert coursed(losses, {}) == []
    assert [f.kind for f in coursed([2.3 + 0.01 * (n % 3) for n in range(130)], {})] == ["plateau"]


def test_a_few_examples_of_a_small_part_are_not_learning_by_heart() -> None:
    losses = [1.1 * 0.97**n for n in range(400)]
    rising = {n: {"log_loss": 0.08 + 0.0015 * n} for n in range(40, 401, 40)}
    assert coursed(losses, rising, held_out=14) == []
    assert [f.kind for f in coursed(losses, rising, held_out=200)] == ["by heart"]


def test_answers_that_look_at_no_input_are_called_worthless() -> None:
    falling = [1.0 * 0.99**n for n in range(100)]
    assert "worse than the mean" in coursed(falling, {100: {"rmse": 3.0, "r2": -0.2}})[0].finding
    assert "no better than chance" in coursed(falling, {100: {"log_loss": 0.7, "auroc": 0.51}})[0].finding
    assert coursed(falling, {50: {"rmse": 3.0, "r2": -0.2}, 100: {"rmse": 2.0, "r2": 0.1}}) == []
    assert coursed(falling, {100: {"log_loss": 0.7, "auroc": 0.51}}, held_out=20) == []


def test_where_nothing_is_held_back_the_test_part_tells_of_worthless_answers(tmp_path: Path) -> None:
    x, labels = torch.randn(300, 8), torch.arange(300) % 3
    np.savez(tmp_path / "shuffled.npz", inputs=x.numpy(), targets=labels.numpy())
    np.savez(tmp_path / "apt.npz", inputs=(x + 2 * torch.eye(8)[labels]).numpy(), targets=labels.numpy())
    said: list[str] = []
    for name in ("shuffled", "apt"):
        ff.fit(tmp_path / f"{name}.npz", run=tmp_path / name, effort="quick", settings={"train.steps": 100})
        said += [f"{name}: {e['finding']}" for e in events(tmp_path / name, "finding")]
    assert len(said) == 1 and said[0].startswith("shuffled: the answers to the test part are no better than chance")


VARIED = [
    ("digits", "swiglu", 4, "adam"),
    ("digits", "tanh", 3, "adamw"),
    ("iris", "swiglu", 6, "adamw"),
    ("wine", "tanh", 6, "adamw"),
    ("wine", "swiglu", 4, "adamw"),
    ("breast_cancer", "swiglu", 2, "sgd"),
    ("breast_cancer", "gelu", 3, "adam"),
    ("diabetes", "relu", 4, "adam"),
]


@pytest.mark.parametrize(("source", "activation", "depth", "optimizer"), VARIED)
def test_healthy_runs_of_other_forms_stay_silent_and_learn(
    source: str, activation: str, depth: int, optimizer: str, tmp_path: Path
) -> None:
    settings = {"ffn.activation": activation, "model.hidden": [64] * depth, "optimizer.name": optimizer}
    settings |= {"train.epochs": 5 if source in ("digits", "breast_cancer") else 50}
    result = ff.fit(source, run=tmp_path / "run", settings=settings).result["test"]
    assert events(tmp_path / "run", "finding") == []
    assert result.get("accuracy", 1.0) > 0.85 and result.get("r2", 1.0) > 0.2
