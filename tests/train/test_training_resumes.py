"""Going on is exact: interrupted training, through files without pickle, ends in the same bits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from feedfwd.data.batches import TensorBatches
from feedfwd.errors import RunError
from feedfwd.train.averaging import EMA
from feedfwd.train.loop import train
from feedfwd.train.losses import build_loss
from feedfwd.train.optimizers import OPTIMIZERS, build_optimizer
from feedfwd.train.resume import flatten_state, generator_states, restore_generators, restore_state
from feedfwd.train.schedules import build_schedule


class Training:
    """All that moves in a small training with dropout, weight decay, schedule and averaging."""

    def __init__(self, name: str, seed: int) -> None:
        torch.manual_seed(seed)
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(50, 6, generator=g), torch.randint(3, (50,), generator=g)
        self.model = nn.Sequential(
            nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
        )
        self.optimizer = build_optimizer(self.model, name, 0.01, weight_decay=0.01)
        self.batches, self.ema, self.done = TensorBatches(x, y, 8, seed=4), EMA(self.model, 0.99), 0

    def go(self, updates: int) -> list[float]:
        losses = []
        for step in train(
            self.model,
            self.batches,
            build_loss("cross_entropy"),
            self.optimizer,
            steps=40,
            start=self.done,
            schedule=build_schedule("one_cycle", 40),
            accumulate=2,
            clip=1.0,
            ema=self.ema,
        ):
            losses.append(step.loss.item())
            self.done = step.n
            if len(losses) == updates:
                break
        return losses

    def save(self, folder: Path) -> None:
        tensors, numbers = flatten_state(self.optimizer)
        sections = {
            "model": self.model.state_dict(),
            "optimizer": tensors,
            "ema": self.ema.state_dict(),
            "generators": generator_states(),
        }
        save_file({f"{s}.{k}": t for s, part in sections.items() for k, t in part.items()}, folder / "state")
        counters = {"optimizer": numbers, "batches": self.batches.state_dict(), "done": self.done}
        (folder / "counters").write_text(json.dumps(counters))

    def restore(self, folder: Path) -> None:
        tensors, counters = load_file(folder / "state"), json.loads((folder / "counters").read_text())

        def section(name: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}

        self.model.load_state_dict(section("model"))
        restore_state(self.optimizer, section("optimizer"), counters["optimizer"])
        self.ema.load_state_dict(section("ema"))
        restore_generators(section("generators"))
        self.batches.load_state_dict(counters["batches"])
        self.done = counters["done"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_17_updates_and_23_after_a_restart_are_40(name: str, tmp_path: Path) -> None:
    whole = Training(name, seed=1)
    losses = whole.go(40)

    first = Training(name, seed=1)
    begun = first.go(17)
    first.save(tmp_path)
    first.go(3)  # goes on past the saved state, then is killed
    torch.manual_seed(99)
    second = Training(name, seed=2)  # another start: everything that matters must come from the files
    second.restore(tmp_path)
    assert begun + second.go(23) == losses

    for (key, a), b in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    for a, b in zip(whole.ema.averages, second.ema.averages, strict=True):
        assert torch.equal(a, b)
    one, other = flatten_state(whole.optimizer), flatten_state(second.optimizer)
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys() and all(torch.equal(t, other[0][key]) for key, t in one[0].items())


def test_names_are_the_parameters() -> None:
    training = Training("muon", seed=0)
    training.go(1)
    keys = set(flatten_state(training.optimizer)[0])
    assert "0.weight/momentum_buffer" in keys and "0.bias/exp_avg" in keys and "5.weight/exp_avg_sq" in keys


def test_state_of_another_optimizer_or_model_is_refused() -> None:
    training = Training("adam", seed=0)
    training.go(1)
    tensors, numbers = flatten_state(training.optimizer)
    with pytest.raises(RunError, match="that of Adam, not of SGD"):
        restore_state(Training("sgd", seed=0).optimizer, tensors, numbers)
    with pytest.raises(RunError, match="another model's"):
        restore_state(build_optimizer(nn.Linear(2, 2), "adam", 0.1), tensors, numbers)


def test_restored_state_is_a_copy() -> None:
    training, other = Training("adam", seed=0), Training("adam", seed=0)
    training.go(1)
    tensors, numbers = flatten_state(training.optimizer)
    restore_state(other.optimizer, tensors, numbers)
    mine = flatten_state(other.optimizer)[0]
    assert all(t.data_ptr() != mine[key].data_ptr() for key, t in tensors.items())


def test_optimizers_without_names_go_by_number() -> None:
    layer = nn.Linear(2, 1)
    adam = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    adam.step()
    tensors, numbers = flatten_state(adam)
    assert "0/exp_avg" in tensors
    fresh = torch.optim.Adam(layer.parameters(), lr=1.0)
    restore_state(fresh, tensors, json.loads(json.dumps(numbers)))
    assert fresh.param_groups[0]["lr"] == 1e-3 and fresh.param_groups[0]["betas"] == (0.9, 0.999)
