"""What a report is made of: JSON-able, bounded, and true."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from feedfwd.errors import DataError
from feedfwd.evaluate import classification_scores, details, regression_scores
from feedfwd.evaluate.pictures import LONGEST_SIDE, data_uri


def simulated(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, n)
    logits = generator.normal(size=(n, classes))
    logits[np.arange(n), y] += 2
    return torch.softmax(torch.tensor(logits), 1).numpy(), y


def opened(uri: str) -> Image.Image:
    kind, text = uri.split(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_classification_details_agree_with_the_scores():
    p, y = simulated(800, 4)
    found = json.loads(json.dumps(details(p, y, classes=["a", "b", "c", "d"]), allow_nan=False))
    scores = classification_scores(p, y)
    confusion = np.array(found["confusion"])
    assert found["n"] == confusion.sum() == 800
    assert found["right"] / 800 == np.trace(confusion) / 800 == scores["accuracy"]
    assert found["reliability"]["ece"] == scores["ece"]
    assert sum(b["n"] for b in found["reliability"]["bins"]) == 800
    assert np.mean([row["f1"] for row in found["per_class"]]) == pytest.approx(scores["macro_f1"])
    assert found["baseline"]["accuracy"] == np.bincount(y).max() / 800
    assert set(found["intervals"]) == {"accuracy", "macro_f1", "log_loss", "brier", "auroc"}
    for name, (low, high) in found["intervals"].items():
        assert low < scores[name] < high, name
    worst = found["confused"][0]
    off_diagonal = confusion - np.diag(np.diag(confusion))
    assert worst["n"] == off_diagonal.max()
    row = "abcd".index(worst["true"])
    assert off_diagonal[row]["abcd".index(worst["predicted"])] == worst["n"]
    assert worst["share"] == worst["n"] / confusion[row].sum()


def test_the_most_wrong_come_first_with_their_place_in_the_data_and_their_picture():
    p, y = simulated(300, 3)
    images = torch.arange(300, dtype=torch.uint8)[:, None, None].expand(300, 5, 4)
    indices = np.arange(300) * 10 + 7
    found = details(p, y, classes=["x", "y", "z"], images=images, indices=indices)["most_wrong"]
    assert len(found) == 20
    p_true = p[np.arange(300), y]
    wrong = np.flatnonzero(p.argmax(1) != y)
    expected = wrong[np.argsort(p_true[wrong])][:20]
    assert [row["index"] for row in found] == (expected * 10 + 7).tolist()
    for row, i in zip(found, expected, strict=True):
        assert row["true"] == "xyz"[y[i]] != row["predicted"] == "xyz"[p[i].argmax()]
        assert row["probability"] == p[i].max() > row["probability_true"] == p_true[i]
        picture = opened(row["image"])
        assert picture.size == (4, 5)
        assert picture.getpixel((0, 0)) == i % 256


def test_a_binary_task_has_an_interval_for_auroc():
    p, y = simulated(200, 2)
    found = details(p, y, classes=["no", "yes"])
    low, high = found["intervals"]["auroc"]
    assert 0 < low < classification_scores(p, y)["auroc"] < high < 1
    perfect = details(np.eye(2)[y], y, classes=["no", "yes"])
    assert "auroc" not in perfect["intervals"]
    assert perfect["most_wrong"] == perfect["confused"] == []


def test_many_classes_stay_small():
    p, y = simulated(3000, 200)
    found = details(p, y, classes=[f"intent {c}" for c in range(200)])
    assert found["confusion"] is None
    assert len(found["confused"]) == 20
    assert len(found["per_class"]) == 30
    f1 = [row["f1"] for row in found["per_class"]]
    assert f1 == sorted(f1)


def test_the_macro_f1_interval_from_counts_is_the_bootstrap_over_examples():
    p, y = simulated(150, 3, seed=4)
    low, high = details(p, y, classes=["a", "b", "c"])["intervals"]["macro_f1"]
    generator = np.random.default_rng(9)
    drawn = []
    for _ in range(1500):
        i = generator.integers(0, 150, 150)
        drawn.append(classification_scores(p[i], y[i])["macro_f1"])
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.015)


def test_regression_details_agree_with_the_scores():
    generator = np.random.default_rng(0)
    y = generator.normal(size=(700, 2)) * [1, 1000]
    p = y + generator.normal(size=(700, 2)) * [0.3, 300]
    p[13, 0] += 50  # fifty standard deviations in a small unit beats any error in the large one
    found = json.loads(json.dumps(details(p, y, names=["height", "price"], indices=range(100, 800)), allow_nan=False))
    scores = regression_scores(p, y)
    for name, (low, high) in found["intervals"].items():
        assert low < scores[name] < high, name
    assert np.mean([t["rmse"] for t in found["targets"]]) == pytest.approx(scores["rmse"])
    assert [t["name"] for t in found["targets"]] == ["height", "price"]
    assert all(len(t["points"]) == 500 for t in found["targets"])
    pairs = {(a, b) for a, b in zip(y[:, 1], p[:, 1], strict=True)}
    assert {tuple(point) for point in found["targets"][1]["points"]} <= pairs
    first = found["largest_errors"][0]
    assert (first["index"], first["target"]) == (113, "height")
    assert first["error"] == pytest.approx(first["predicted"] - first["true"])
    assert found["baseline"]["rmse"] == pytest.approx(y.std(0).mean())


def test_the_same_seed_gives_the_same_details():
    p, y = simulated(200, 3)
    names = ["a", "b", "c"]
    assert details(p, y, classes=names) == details(p, y, classes=names)
    assert details(p, y, classes=names, seed=1)["intervals"] != details(p, y, classes=names)["intervals"]


def test_what_does_not_fit_says_so():
    p, y = simulated(10, 3)
    with pytest.raises(DataError, match="2 class names for 3 columns"):
        details(p, y, classes=["a", "b"])
    with pytest.raises(DataError, match=r"indices of the shape \(4,\) for 10 examples"):
        details(p, y, classes=["a", "b", "c"], indices=range(4))
    with pytest.raises(DataError, match="1 names for 2 targets"):
        details(np.zeros((3, 2)), np.zeros((3, 2)), names=["a"])


def test_pictures_of_every_layout():
    generator = np.random.default_rng(0)
    grey = generator.integers(0, 256, (6, 9), dtype=np.uint8)
    assert (np.asarray(opened(data_uri(grey))) == grey).all()
    assert (np.asarray(opened(data_uri(grey[..., None]))) == grey).all()
    assert (np.asarray(opened(data_uri(torch.tensor(grey)[None]))) == grey).all()
    colour = generator.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    assert (np.asarray(opened(data_uri(colour))) == colour).all()
    assert (np.asarray(opened(data_uri(np.moveaxis(colour, -1, 0)))) == colour).all()


def test_pictures_of_other_numbers_are_stretched_and_large_ones_reduced():
    standardised = torch.tensor([[-1.0, 0.0], [1.0, 3.0]], dtype=torch.bfloat16)
    assert np.asarray(opened(data_uri(standardised))).tolist() == [[0, 64], [128, 255]]
    assert np.asarray(opened(data_uri(np.full((2, 2), 7.0)))).tolist() == [[0, 0], [0, 0]]
    assert opened(data_uri(np.zeros((400, 200), np.uint8))).size == (LONGEST_SIDE // 2, LONGEST_SIDE)
    with pytest.raises(DataError, match=r"shape \(784,\)"):
        data_uri(np.zeros(784))


def test_many_classes_have_intervals_too():
    p, y = simulated(1500, 40)
    found, scores = details(p, y, classes=[str(c) for c in range(40)]), classification_scores(p, y)
    assert found["intervals"]["macro_f1"][0] < scores["macro_f1"] < found["intervals"]["macro_f1"][1]


def test_the_interval_of_a_mean_auroc_is_that_of_resampling():
    p, y = simulated(400, 4)
    low, high = details(p, y, classes=list("abcd"))["intervals"]["auroc"]
    generator = np.random.default_rng(0)
    draws = [generator.integers(0, 400, 400) for _ in range(300)]
    again = np.quantile([classification_scores(p[d], y[d])["auroc"] for d in draws], [0.025, 0.975])
    assert [low, high] == pytest.approx(again, abs=0.006)
