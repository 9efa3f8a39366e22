"""Every score equals scikit-learn's, edge cases included."""

import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from feedfwd.errors import DataError
from feedfwd.evaluate import bootstrap_interval, classification_scores, regression_scores, wilson_interval
from feedfwd.evaluate.intervals import logit_normal_interval
from feedfwd.evaluate.metrics import auroc, auroc_variance, confusion_matrix, macro_f1, per_class


def simulated(n: int, classes: int, seed: int = 0, skill: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, n)
    logits = generator.normal(size=(n, classes))
    logits[np.arange(n), y] += skill
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True), y


@pytest.mark.parametrize("classes", [2, 3, 10, 30])
@pytest.mark.parametrize("n", [300, 997])
def test_classification_scores_equal_scikit_learn(classes, n):
    p, y = simulated(n, classes, seed=n)
    ours = classification_scores(p, y)
    answer, labels = p.argmax(1), range(classes)
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(y, answer))
    assert ours["macro_f1"] == pytest.approx(sk.f1_score(y, answer, average="macro"))
    assert ours["log_loss"] == pytest.approx(sk.log_loss(y, p, labels=labels))
    one_hot = np.eye(classes)[y]
    brier = sk.brier_score_loss(y, p[:, 1]) if classes == 2 else ((p - one_hot) ** 2).sum(1).mean()
    assert ours["brier"] == pytest.approx(brier)
    if classes == 2:
        assert ours["auroc"] == pytest.approx(sk.roc_auc_score(y, p[:, 1]))
    else:
        assert ours["auroc"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr", labels=labels))


def test_auroc_is_left_out_where_it_would_take_long(monkeypatch):
    assert "auroc" in classification_scores(*simulated(300, 21))
    monkeypatch.setattr("feedfwd.evaluate.metrics.RANKED", 300 * 20)
    assert "auroc" not in classification_scores(*simulated(300, 21))
    assert "auroc" in classification_scores(*simulated(300, 20))


def test_a_class_that_is_absent_counts_as_in_scikit_learn():
    p, y = simulated(200, 4)
    y[y == 3] = 2
    p[:, 3] = 0  # neither true nor answered: macro F1 leaves it out
    p /= p.sum(1, keepdims=True)
    ours = classification_scores(p, y)
    assert ours["macro_f1"] == pytest.approx(sk.f1_score(y, p.argmax(1), average="macro"))
    areas = [sk.roc_auc_score(y == c, p[:, c]) for c in range(3)]
    assert ours["auroc"] == pytest.approx(np.mean(areas))
    # answered, but never true: its F1 is 0 and counts
    answers, targets = np.array([0, 1, 2, 2]), np.array([0, 1, 0, 1])
    assert macro_f1(answers, targets, 5) == pytest.approx(sk.f1_score(targets, answers, average="macro"))


def test_one_class_only_has_no_auroc_and_perfect_is_perfect():
    p, _ = simulated(30, 2)
    assert "auroc" not in classification_scores(p, np.zeros(30, int))
    y = np.arange(12) % 3
    perfect = classification_scores(np.eye(3)[y], y)
    assert perfect == {"accuracy": 1, "macro_f1": 1, "log_loss": 0, "ece": 0, "brier": 0, "auroc": 1}


def test_certainty_in_the_wrong_is_finite_and_like_scikit_learn():
    p, y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 1])
    assert classification_scores(p, y)["log_loss"] == pytest.approx(sk.log_loss(y, p, labels=[0, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_of_any_precision_give_the_scores_of_their_values(dtype):
    p, y = simulated(100, 3)
    tensor = torch.tensor(p, dtype=dtype, requires_grad=True)
    expected = classification_scores(tensor.detach().double().numpy(), y)
    assert classification_scores(tensor, torch.tensor(y)) == expected


def test_confusion_and_per_class_equal_scikit_learn():
    p, y = simulated(500, 6)
    answer = p.argmax(1)
    assert (confusion_matrix(answer, y, 7) == sk.confusion_matrix(y, answer, labels=range(7))).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sk.precision_recall_fscore_support(y, answer, labels=range(7), zero_division=0)
    for ours, expected in zip(per_class(answer, y, 7), theirs[:3], strict=True):
        assert ours == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(80,), (80, 1), (80, 3)])
def test_regression_scores_equal_scikit_learn(shape):
    generator = np.random.default_rng(1)
    y = generator.normal(size=shape) * 10 + 3
    p = y + generator.normal(size=shape) * 4
    ours = regression_scores(torch.tensor(p), y)
    assert ours["rmse"] == pytest.approx(sk.root_mean_squared_error(y, p))
    assert ours["mae"] == pytest.approx(sk.mean_absolute_error(y, p))
    assert ours["r2"] == pytest.approx(sk.r2_score(y, p))


@pytest.mark.parametrize("prediction", [5.0, 4.0])
def test_a_constant_target_equals_scikit_learn(prediction):
    y, p = np.full(6, 5.0), np.full(6, prediction)
    assert regression_scores(p, y)["r2"] == sk.r2_score(y, p)


def test_a_single_example_has_no_r2():
    assert regression_scores([1.0], [3.0]) == {"rmse": 2.0, "mae": 2.0}


@pytest.mark.parametrize(
    ("probabilities", "targets", "says"),
    [
        (np.ones((4, 1)), np.zeros(4), r"shape \(4, 1\), not \(examples, classes\)"),
        (np.full(4, 0.5), np.zeros(4), r"shape \(4,\)"),
        (np.full((4, 2), 0.5), np.zeros(3), "4 rows of probabilities"),
        (np.zeros((0, 2)), np.zeros(0), "no examples"),
        (np.array([[0.5, 0.5], [np.nan, 0.5]]), np.zeros(2), "example 1 are not finite"),
        (np.array([[3.0, -1.0]]), np.zeros(1), "example 0 .* outside 0 to 1"),
        (np.array([[0.9, 0.9]]), np.zeros(1), "example 0 sum to 1.8"),
        (np.full((2, 2), 0.5), np.array([0, 2]), "target of example 1 is 2, not a class from 0 to 1"),
        (np.full((2, 2), 0.5), np.array([0.5, 1]), "target of example 0 is 0.5"),
    ],
)
def test_what_cannot_be_scored_says_why(probabilities, targets, says):
    with pytest.raises(DataError, match=says):
        classification_scores(probabilities, targets)


@pytest.mark.parametrize(
    ("predictions", "targets", "says"),
    [
        (np.zeros(3), np.zeros(4), r"shape \(3, 1\) against targets of the shape \(4, 1\)"),
        (np.zeros((3, 2)), np.zeros(3), r"\(3, 2\) against"),
        (np.zeros(0), np.zeros(0), "no examples"),
        (np.array([0, np.inf]), np.zeros(2), "prediction of example 1 is not finite"),
        (np.zeros(2), np.array([np.nan, 0]), "target of example 0 is not finite"),
    ],
)
def test_predictions_that_do_not_fit_say_why(predictions, targets, says):
    with pytest.raises(DataError, match=says):
        regression_scores(predictions, targets)


def test_auroc_counts_ties_half():
    y = np.array([False, True, True, False, True])
    assert auroc(np.zeros(5), y) == 0.5
    score = np.array([0.1, 0.1, 0.5, 0.5, 0.9])
    assert auroc(score, y) == pytest.approx(sk.roc_auc_score(y, score))
    with pytest.raises(DataError, match="both"):
        auroc(score, np.ones(5, bool))


def test_the_wilson_interval_matches_its_published_form_and_covers():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    drawn = np.random.default_rng(0).binomial(50, 0.95, 4000)
    inside = [low <= 0.95 <= high for low, high in (wilson_interval(int(k), 50) for k in drawn)]
    assert 0.93 < np.mean(inside) < 0.98


def test_the_bootstrap_interval_is_seeded_has_the_right_width_and_does_not_depend_on_block_size(monkeypatch):
    values = np.random.default_rng(3).normal(2, 5, 400)
    low, high = bootstrap_interval(lambda v: v.mean(1), values)
    error = values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.2 * error)
    again = bootstrap_interval(lambda v: v.mean(1), values)
    assert (low, high) == tuple(again)
    assert tuple(bootstrap_interval(lambda v: v.mean(1), values, seed=1)) != (low, high)
    monkeypatch.setattr("feedfwd.evaluate.intervals.DRAWS_AT_ONCE", 1000)
    assert tuple(bootstrap_interval(lambda v: v.mean(1), values)) == (low, high)


def test_delong_variance_agrees_with_the_bootstrap():
    generator = np.random.default_rng(5)
    y = generator.random(300) < 0.4
    score = generator.normal(size=300) + 1.2 * y
    low, high = logit_normal_interval(auroc(score, y), auroc_variance(score, y))
    places = (generator.integers(0, 300, 300) for _ in range(800))
    drawn = [auroc(score[i], y[i]) for i in places]
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.012)
