"""The stream of batches: each example once an epoch, and three integers restore it exactly."""

import pytest
import torch

from feedfwd.data.augment import Noise
from feedfwd.data.batches import Batch, TensorBatches
from feedfwd.errors import DataError


def stream(n: int = 23, batch_size: int = 5, **options) -> TensorBatches:
    return TensorBatches(torch.arange(n * 2.0).view(n, 2), torch.arange(n), batch_size, **options)


def test_each_example_comes_once_an_epoch_in_another_order() -> None:
    batches = stream()
    epochs = [torch.cat([next(batches).targets for _ in range(batches.batches_per_epoch)]) for _ in range(3)]
    for order in epochs:
        assert torch.equal(order.sort().values, torch.arange(23))
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])
    assert not torch.equal(epochs[0], torch.cat([next(b).targets for b in [stream(seed=1)] for _ in range(5)]))


def test_inputs_targets_and_weights_stay_together() -> None:
    batches = stream(weights=torch.arange(23) / 23)
    for _ in range(10):
        batch = next(batches)
        assert torch.equal(batch.inputs, torch.stack([2.0 * batch.targets, 2.0 * batch.targets + 1], dim=1))
        assert batch.weights is not None and torch.equal(batch.weights, batch.targets / 23)


def test_the_last_batch_is_smaller_or_dropped() -> None:
    assert [len(next(b).targets) for b in [stream()] for _ in range(6)] == [5, 5, 5, 5, 3, 5]
    assert [len(next(b).targets) for b in [stream(drop_last=True)] for _ in range(6)] == [5, 5, 5, 5, 5, 5]
    assert len(next(stream(n=3, batch_size=64, drop_last=True)).targets) == 3  # never an epoch of nothing


@pytest.mark.parametrize("done", [0, 1, 4, 5, 6, 13])
def test_three_integers_restore_the_stream_transforms_included(done: int) -> None:
    through = stream(transform=Noise(0.5), seed=9)
    for _ in range(done):
        next(through)
    state = through.state_dict()
    assert set(state) == {"seed", "epoch", "position"} and all(type(value) is int for value in state.values())
    resumed = stream(transform=Noise(0.5), seed=123)
    next(resumed)
    resumed.load_state_dict(state)
    for _ in range(12):
        expected, restored = next(through), next(resumed)
        assert torch.equal(expected.inputs, restored.inputs) and torch.equal(expected.targets, restored.targets)


def test_the_transform_draws_anew_for_each_batch_and_epoch() -> None:
    drawn: list[float] = []

    def record(batch: Batch, generator: torch.Generator) -> Batch:
        drawn.append(torch.rand((), generator=generator, dtype=torch.float64).item())
        return batch

    batches = stream(transform=record)
    for _ in range(20):
        next(batches)
    assert len(set(drawn)) == 20


def test_the_order_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    next(stream(transform=Noise(1.0)))
    assert torch.equal(torch.rand(1), expected)


def test_what_cannot_be_batched() -> None:
    with pytest.raises(DataError, match="23 inputs but 22 targets"):
        TensorBatches(torch.zeros(23, 2), torch.zeros(22), 5)
    with pytest.raises(DataError, match="no examples"):
        TensorBatches(torch.zeros(0, 2), torch.zeros(0), 5)
    with pytest.raises(DataError, match="batch_size=0"):
        stream(batch_size=0)
    with pytest.raises(DataError, match="position 9 in an epoch of 5"):
        stream().load_state_dict({"seed": 0, "epoch": 0, "position": 9})
