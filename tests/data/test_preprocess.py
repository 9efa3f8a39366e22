"""Standardising is exact, reversible, written down, and the same for new data."""

import json

import numpy as np
import pytest
import torch

from feedfwd.data.dataset import Dataset
from feedfwd.data.preprocess import CHUNK, Preprocessor
from feedfwd.data.readers import load
from feedfwd.errors import DataError

RNG = np.random.default_rng(0)


def features(n: int = 500) -> Dataset:
    x = torch.from_numpy(RNG.normal(size=(n, 3)) * [1, 1e-3, 1e4] + [0, 5, 1e6]).float()
    x = torch.cat([x, torch.full((n, 1), 0.1), torch.full((n, 1), 1e7)], dim=1)  # two that are constant
    y = torch.stack([x[:, 0] * 200 + 40, -x[:, 2]], dim=1)
    return Dataset("f", x, y, "regress", feature_names=tuple("abcde"), target_names=("u", "v"))


def pixels(*shape: int) -> Dataset:
    values = torch.from_numpy(RNG.integers(0, 256, shape, dtype=np.uint8))
    return Dataset("p", values, torch.arange(shape[0]) % 3, "classify", ("a", "b", "c"))


def test_features_are_standardised_each_by_its_own() -> None:
    data = features()
    out = Preprocessor.fit(data).inputs(data.inputs)
    assert out.dtype == torch.float32 and out.isfinite().all()
    assert torch.allclose(out[:, :3].mean(0), torch.zeros(3), atol=2e-3)
    assert torch.allclose(out[:, :3].std(0, unbiased=False), torch.ones(3), atol=2e-3)
    assert torch.equal(out[:, 3:], torch.zeros(500, 2))


@pytest.mark.parametrize("shape", [(3000, 28, 28), (200, 9, 7, 3)])
def test_images_are_standardised_by_one_mean_and_spread(shape: tuple[int, ...]) -> None:
    assert 4 * CHUNK < 3000 * 28 * 28  # several chunks and a remainder
    data = pixels(*shape)
    prepared = Preprocessor.fit(data)
    out, exact = prepared.inputs(data.inputs), data.inputs.double()
    expected = (exact - exact.mean()) / exact.std(unbiased=False)
    assert out.shape == (shape[0], prepared.width) and out.is_contiguous()
    assert torch.allclose(out, expected.flatten(1).float(), atol=2e-6)


def test_the_form_in_which_new_data_come_does_not_matter() -> None:
    data = pixels(40, 6, 5)
    prepared = Preprocessor.fit(data)
    expected = prepared.inputs(data.inputs)
    x = data.inputs.numpy()
    for same in (
        x,
        x.astype(np.float64),
        x.reshape(40, 30),
        x.reshape(40, 1, 6, 5),
        x.reshape(40, 6, 5, 1),
        data.inputs.float(),
    ):
        assert torch.allclose(prepared.inputs(same), expected, atol=1e-6)
    table = features(20)
    assert torch.equal(
        Preprocessor.fit(table).inputs(table.inputs.numpy().astype(np.float64)),
        Preprocessor.fit(table).inputs(table.inputs),
    )


def test_targets_go_and_come_back_in_their_units() -> None:
    data = features()
    prepared = Preprocessor.fit(data)
    out = prepared.targets(data)
    assert torch.allclose(out.mean(0), torch.zeros(2), atol=2e-3) and torch.allclose(
        out.std(0), torch.ones(2), atol=5e-3
    )
    assert torch.allclose(prepared.restore(out), data.targets, rtol=1e-5) and prepared.outputs == 2
    one = Dataset("f", data.inputs, data.targets[:, 0], "regress")
    prepared = Preprocessor.fit(one)
    assert prepared.outputs == 1 and torch.allclose(
        prepared.restore(prepared.targets(one)), one.targets, rtol=1e-4, atol=1e-3
    )


def test_classes_are_matched_by_name() -> None:
    data = pixels(9, 4, 4)
    prepared = Preprocessor.fit(data)
    other = Dataset("o", data.inputs[:2], torch.tensor([0, 1]), "classify", ("c", "a"))
    assert prepared.targets(other).tolist() == [2, 0] and prepared.outputs == 3
    assert torch.equal(prepared.restore(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    "make", [features, lambda: pixels(9, 4, 4), lambda: load("diabetes")[0], lambda: load("iris")[0]]
)
def test_what_is_written_reads_back_to_the_bit(make) -> None:
    data = make()
    prepared = Preprocessor.fit(data)
    text = prepared.to_json()
    restored = Preprocessor.from_json(text)
    assert restored.to_json() == text and json.loads(text)["task"] == data.task
    assert torch.equal(restored.inputs(data.inputs), prepared.inputs(data.inputs))
    assert torch.equal(restored.targets(data), prepared.targets(data))
    assert (restored.classes, restored.feature_names, restored.shape) == (
        data.classes,
        data.feature_names,
        tuple(data.inputs.shape[1:]),
    )


def test_images_of_one_grey_are_refused_but_a_blank_one_at_predict_is_fine() -> None:
    data = pixels(9, 4, 4)
    assert Preprocessor.fit(data).inputs(np.zeros((1, 4, 4), np.uint8)).isfinite().all()
    with pytest.raises(DataError, match="all inputs are the same"):
        Preprocessor.fit(
            Dataset("p", torch.full((9, 4, 4), 7, dtype=torch.uint8), data.targets, "classify", ("a", "b", "c"))
        )
