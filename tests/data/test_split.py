"""Splits are exact in size, in proportion by class, repeatable, and lose no class from training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedfwd.data.dataset import Dataset
from feedfwd.data.split import fold, split
from feedfwd.errors import DataError


def dataset(targets: torch.Tensor, task: str = "classify") -> Dataset:
    n, classes = len(targets), None
    if task == "classify":
        classes = tuple(str(i) for i in range(int(targets.max()) + 1))
    return Dataset("d", torch.arange(n * 1.0)[:, None], targets, task, classes)  # type: ignore[arg-type]


def rows(data: Dataset) -> list[int]:
    assert data.rows is not None
    assert data.inputs[:, 0].tolist() == data.rows.tolist()  # the row is where the example really is
    return data.rows.tolist()


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    fraction=st.floats(0.05, 0.5),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_any_classes_split_exactly_and_in_proportion(counts: list[int], fraction: float, seed: int) -> None:
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    n, size = len(targets), round(len(targets) * fraction)
    if not 0 < size < n or max(counts) == 1:
        with pytest.raises(DataError):
            split(dataset(targets), fraction, seed)
        return
    rest, part = split(dataset(targets), fraction, seed)
    assert sorted(rows(rest) + rows(part)) == list(range(n))
    pool = n - len(counts)
    assert len(part) == min(size, pool)
    kept, taken = (data.targets.bincount(minlength=len(counts)) for data in (rest, part))
    assert kept.min() >= 1  # no class is lost from training
    for count, got in zip(counts, taken.tolist(), strict=True):
        assert abs(got - (count - 1) * len(part) / max(pool, 1)) < 1


def test_large_classes_give_their_share_within_one() -> None:
    targets = torch.arange(60_000) % 10
    _, part = split(dataset(targets), 0.1, seed=3)
    assert len(part) == 6000 and (part.targets.bincount() - 600).abs().max() <= 1


def test_the_same_seed_gives_the_same_split_and_another_another() -> None:
    data = dataset(torch.arange(200) % 4)
    assert rows(split(data, 0.25, 7)[1]) == rows(split(data, 0.25, 7)[1])
    assert rows(split(data, 0.25, 7)[1]) != rows(split(data, 0.25, 8)[1])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    split(data, 0.25, 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_example_has_the_same_chance() -> None:
    data = dataset(torch.arange(40) % 4)
    times = torch.zeros(40)
    for seed in range(1500):
        times[split(data, 0.25, seed)[1].rows] += 1
    assert abs(times.mean() - 375) < 1e-3 and times.min() > 290 and times.max() < 460  # 375 ± 5σ, σ = 17


def test_a_class_of_one_stays_in_training_and_is_said() -> None:
    targets = torch.tensor([0] * 10 + [1] * 10 + [2])
    rest, part = split(dataset(targets), 0.3, seed=0)
    assert 2 in rest.targets and 2 not in part.targets
    assert rest.notes == ("1 class has one example only (2): it stays in training, so is never tested",)
    assert split(dataset(targets[:20]), 0.3, seed=0)[0].notes == ()


def test_numbers_and_unstratified_classes_are_split_at_random() -> None:
    for data in (dataset(torch.rand(50), task="regress"), dataset(torch.arange(50) % 2)):
        rest, part = split(data, 0.2, seed=1, stratify=False)
        assert len(part) == 10 and sorted(rows(rest) + rows(part)) == list(range(50))


@pytest.mark.parametrize("task", ["classify", "regress"])
def test_folds_cover_all_once_and_hold_each_class_within_one(task: str) -> None:
    targets = torch.repeat_interleave(torch.arange(4), torch.tensor([50, 31, 7, 2]))
    data = dataset(targets if task == "classify" else targets.float(), task)
    parts = [fold(data, 5, k, seed=4) for k in range(5)]
    assert sorted(row for _, part in parts for row in rows(part)) == list(range(90))
    for rest, part in parts:
        assert len(part) == 18 and sorted(rows(rest) + rows(part)) == list(range(90))
        if task == "classify":
            share = part.targets.bincount(minlength=4) - torch.tensor([50, 31, 7, 2]) / 5
            assert share.abs().max() < 1
    assert rows(fold(data, 5, 0, seed=5)[1]) != rows(parts[0][1])
