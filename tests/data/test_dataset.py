"""A data set knows what it holds, where each example came from, and whether it is the same as another."""

import pytest
import torch

from feedfwd.data.dataset import Dataset
from feedfwd.errors import DataError


def dataset(n: int = 6, **changed) -> Dataset:
    plain = {
        "name": "d",
        "inputs": torch.arange(n * 2.0).view(n, 2),
        "targets": torch.arange(n) % 3,
        "task": "classify",
        "classes": ("a", "b", "c"),
    }
    return Dataset(**{**plain, **changed})


def test_a_subset_of_a_subset_still_names_the_source() -> None:
    part = dataset().subset(torch.tensor([5, 3, 1])).subset(torch.tensor([2, 0]))
    assert part.rows is not None and part.rows.tolist() == [1, 5] and part.targets.tolist() == [1, 2]
    assert part.inputs.tolist() == [[2.0, 3.0], [10.0, 11.0]] and part.example_name(1) == "example 5"
    assert dataset(files=tuple("uvwxyz")).subset(torch.tensor([4])).example_name(0) == "y"


def test_the_fingerprint_is_of_the_content() -> None:
    same = dataset(name="another name", notes=("said",))
    assert dataset().fingerprint == same.fingerprint and len(same.fingerprint) == 32
    others = [
        dataset(inputs=torch.arange(12.0).view(6, 2) + torch.eye(6, 2) * 1e-6),
        dataset(inputs=torch.arange(12.0).view(6, 2).double()),
        dataset(targets=torch.arange(6) % 2),
        dataset(classes=("a", "b", "x")),
        dataset(n=5),
    ]
    assert len({data.fingerprint for data in [dataset(), *others]}) == 6


def test_recode_follows_the_names() -> None:
    recoded = dataset().recode(("c", "x", "b", "a"))
    assert recoded.targets.tolist() == [3, 2, 0, 3, 2, 0] and recoded.classes == ("c", "x", "b", "a")
    with pytest.raises(DataError, match="class 'b', which the training data don't have"):
        dataset().recode(("a", "c"))
    assert (
        dataset(targets=torch.zeros(6, dtype=torch.int64)).recode(("a",)).targets.tolist() == [0] * 6
    )  # b, c are unused


def test_describe_says_what_it_is() -> None:
    assert dataset().describe() == "d: 6 examples of 2 features, 3 classes"
    assert dataset(inputs=torch.zeros(6, 4, 5, 3)).describe() == "d: 6 images of 4×5 in 3 channels, 3 classes"
    numbers = dataset(inputs=torch.zeros(6, 1), targets=torch.rand(6, 2), task="regress", classes=None)
    assert numbers.describe() == "d: 6 examples of 1 feature, 2 real-valued targets"


def test_inputs_and_targets_must_pair_up() -> None:
    with pytest.raises(DataError, match="6 inputs but 5 targets"):
        dataset(targets=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(DataError, match="no examples"):
        dataset(inputs=torch.zeros(0, 2), targets=torch.zeros(0))
