"""What is not finite stops the training, before it does harm, and is named as near to its origin as can be told."""

import math
from itertools import repeat

import pytest
import torch
from torch import Tensor, nn

from feedfwd.data.batches import Batch
from feedfwd.errors import TrainingError
from feedfwd.train.finite import Watch
from feedfwd.train.loop import train
from feedfwd.train.losses import Loss, mse
from feedfwd.train.optimizers import build_optimizer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


def batch(**changes: Tensor) -> Batch:
    g = torch.Generator().manual_seed(0)
    return Batch(**{"inputs": torch.randn(6, 3, generator=g), "targets": torch.randn(6, 2, generator=g), **changes})


def stop(model: nn.Module, data: Batch, clip: float | None = None, loss: Loss = mse) -> str:
    """The message of the error that ends the training in its first update, which is not done."""
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TrainingError) as caught:
        next(train(model, repeat(data), loss, build_optimizer(model, "sgd", 0.1), steps=40, clip=clip))
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    message = str(caught.value)
    assert "in update 1 of 40" in message and "\n" not in message
    return message


def test_inputs() -> None:
    message = stop(network(), batch(inputs=torch.full((6, 3), math.nan)))
    assert "inputs hold a value" in message and "data" in message


def test_targets() -> None:
    assert "targets hold a value" in stop(network(), batch(targets=torch.full((6, 2), math.inf)))


def test_weights_all_zero() -> None:
    assert "nothing to learn from" in stop(network(), batch(weights=torch.zeros(6)))


def test_parameter() -> None:
    model = network()
    with torch.no_grad():
        model[2].weight[0, 0] = math.inf
    message = stop(model, batch())
    assert "parameter '2.weight' is not finite" in message and "optimizer.lr (now 0.1)" in message


def test_layer_is_the_innermost_where_it_begins() -> None:
    class Overflow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1e38 * 1e38

    model = nn.Sequential(network(), nn.Sequential(nn.Identity(), Overflow()), nn.Identity())
    assert "output of layer '1.1' (Overflow) is not finite" in stop(model, batch())


def test_loss_alone() -> None:
    message = stop(network(), batch(), loss=lambda outputs, targets: (outputs - outputs).sum(1).log() * 0)
    assert "the loss is not finite, though the model's outputs are" in message


@pytest.mark.parametrize("clip", [None, 1.0])
def test_gradient_is_named_from_the_output_back(clip: float | None) -> None:
    """√0 has an infinite slope; the head's gradient, which comes before it on the way back, is fine."""

    class Root(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h + (0 * h).square().sqrt()

    model = nn.Sequential(nn.Linear(3, 8), Root(), nn.Linear(8, 2))
    assert "gradient of '0.bias' is not finite" in stop(model, batch(), clip=clip)


def test_gradient_of_a_large_matrix_alone_is_found_within_16_updates() -> None:
    model = nn.Sequential(nn.Linear(3, 2000, bias=False), nn.Linear(2000, 2, bias=False))
    model[0].weight.register_hook(lambda g: g / 0)
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)  # the update itself does no harm: nothing else shows it
    seen = []
    with pytest.raises(TrainingError, match=r"parameter '0.weight' is not finite"):
        seen += list(train(model, repeat(batch()), mse, sgd, steps=40))
    assert len(seen) <= 16


def test_an_overflowing_sum_of_finite_gradients_is_no_alarm() -> None:
    model = nn.Linear(1, 4, bias=False)
    data = Batch(torch.ones(1, 1), torch.zeros(1, 4))
    model.weight.register_hook(lambda g: torch.full_like(g, 3e38))
    sgd = torch.optim.SGD(model.parameters(), lr=1e-40)
    assert len(list(train(model, repeat(data), mse, sgd, steps=3))) == 3
    with pytest.raises(TrainingError, match="norm of the gradient is too large"):
        list(train(model, repeat(data), mse, sgd, steps=3, clip=1.0))


def test_watch_off_the_cpu_reads_several_at_once_and_names_the_first() -> None:
    parameter = torch.zeros(2)
    watch = Watch([parameter], every=4)
    watch.at_once = False
    fine, bad = torch.tensor(1.0), torch.tensor(math.nan)
    found = [watch.bad(n, bad if n in (5, 6) else fine, [parameter], None, last=False) for n in range(8)]
    assert found == [None] * 7 + [5]
    assert watch.bad(8, bad, [parameter], None, last=True) == 8
    rows = torch.sparse_coo_tensor([[0, 0]], [1.0, math.nan], (2,), check_invariants=True)
    assert watch.bad(9, fine, [rows], None, last=True) == 9
