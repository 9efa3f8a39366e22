"""Losses: agreement with torch's reductions, with each other where they must coincide, and errors that name shapes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from feedfwd.errors import ConfigError, DataError
from feedfwd.train.losses import LOSSES, binary_cross_entropy, build_loss, cross_entropy, focal

N, T, C = 6, 3, 4
WEIGHTS = [0.5, 1.0, 2.0, 4.0]


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 1, 0])


def test_cross_entropy_is_torchs_sum_over_elements(logits: Tensor, labels: Tensor) -> None:
    for smoothing in (0.0, 0.1):
        ours = build_loss("cross_entropy", label_smoothing=smoothing, class_weights=WEIGHTS)(logits, labels)
        theirs = F.cross_entropy(
            logits,
            labels,
            weight=torch.tensor(WEIGHTS, dtype=torch.float64),
            label_smoothing=smoothing,
            reduction="sum",
        )
        assert ours.shape == (N,)
        torch.testing.assert_close(ours.sum(), theirs)


def test_class_weight_multiplies_the_elements_loss(logits: Tensor, labels: Tensor) -> None:
    for name in ("cross_entropy", "focal"):
        weighted = build_loss(name, class_weights=WEIGHTS)(logits, labels)
        expected = torch.tensor(WEIGHTS)[labels] * build_loss(name)(logits, labels)
        torch.testing.assert_close(weighted, expected)


def test_a_label_equals_its_one_hot_distribution_and_a_mix_the_mix_of_losses(logits: Tensor, labels: Tensor) -> None:
    other, share = labels.roll(1), 0.3
    mixed = share * F.one_hot(labels, C) + (1 - share) * F.one_hot(other, C)
    for name in ("cross_entropy", "focal"):
        loss = build_loss(name, class_weights=WEIGHTS)
        torch.testing.assert_close(loss(logits, F.one_hot(labels, C).double()), loss(logits, labels))
        expected = share * loss(logits, labels) + (1 - share) * loss(logits, other)
        torch.testing.assert_close(loss(logits, mixed.double()), expected)


def test_tokens_keep_their_axis(logits: Tensor, labels: Tensor) -> None:
    for name in ("cross_entropy", "focal"):
        loss = build_loss(name, class_weights=WEIGHTS)
        by_token = loss(logits.view(N // T, T, C), labels.view(N // T, T))
        torch.testing.assert_close(by_token, loss(logits, labels).view(N // T, T))


def test_one_logit_is_the_two_logits_zero_and_z() -> None:
    z, y = torch.linspace(-3, 3, N, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    two = torch.stack((torch.zeros_like(z), z), 1)
    for options in ({}, {"label_smoothing": 0.2}, {"class_weights": [0.5, 3.0]}):
        expected = build_loss("cross_entropy", **options)(two, y)
        for outputs, targets in ((z, y), (z[:, None], y), (z[:, None], y[:, None].double())):
            torch.testing.assert_close(build_loss("binary_cross_entropy", **options)(outputs, targets), expected)
    torch.testing.assert_close(focal(z[:, None], y), focal(two, y))


def test_several_labels_are_averaged() -> None:
    z, y = torch.randn(N, 3), torch.randint(0, 2, (N, 3))
    expected = F.binary_cross_entropy_with_logits(z, y.float(), reduction="none").mean(1)
    torch.testing.assert_close(binary_cross_entropy(z, y), expected)


def test_focal_is_cross_entropy_at_gamma_zero_and_lowers_sure_answers(logits: Tensor, labels: Tensor) -> None:
    torch.testing.assert_close(focal(logits, labels, gamma=0.0), cross_entropy(logits, labels))
    p = logits.softmax(1)[torch.arange(N), labels]
    torch.testing.assert_close(focal(logits, labels, gamma=2.0), -((1 - p) ** 2) * p.log())


def test_extreme_logits_keep_losses_and_gradients_finite() -> None:
    z = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    losses = [cross_entropy, focal, lambda o, t: focal(o, t, gamma=0.5)]
    losses += [lambda o, t: build_loss("binary_cross_entropy", class_weights=[1, 2])(o[:, 0], t)]
    for loss in losses:
        value = loss(z, torch.tensor([0, 0]))
        (gradient,) = torch.autograd.grad(value.sum(), z)
        assert value.isfinite().all() and gradient.isfinite().all()


def test_low_precision_outputs_are_widened() -> None:
    for name, loss in LOSSES.items():
        outputs = torch.randn(N, 1 if name == "binary_cross_entropy" else C)
        targets = torch.rand(N, C) if name in ("mse", "mae", "huber") else torch.zeros(N, dtype=torch.long)
        low = loss(outputs.bfloat16(), targets)
        assert low.dtype == torch.float32 and low.shape == (N,)
        torch.testing.assert_close(low, loss(outputs.bfloat16().float(), targets))


def test_n_by_1_never_broadcasts_to_n_by_n() -> None:
    y, t = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 2.0])
    assert build_loss("mse")(y, t).tolist() == [0.0, 0.0, 4.0]
    assert build_loss("mae")(y.squeeze(), t[:, None]).tolist() == [0.0, 0.0, 2.0]


def test_shapes_that_dont_pair_are_named() -> None:
    with pytest.raises(DataError, match=r"\(4, 2\).*\(4, 3\)"):
        build_loss("mse")(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(DataError, match=r"\(4, 3\).*\(4, 1\)"):
        build_loss("cross_entropy")(torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.long))
    with pytest.raises(IndexError):  # no target value is silently ignored
        cross_entropy(torch.zeros(1, 3), torch.tensor([-100]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cross_entropi", {}, "did you mean 'cross_entropy'"),
        ("mse", {"delta": 1.0}, "has no option 'delta'"),
        ("huber", {"delta": 0.0}, "delta=0.0"),
        ("focal", {"gamma": float("nan")}, "gamma=nan"),
        ("cross_entropy", {"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ("cross_entropy", {"class_weights": [1.0, -1.0]}, "class_weights"),
        ("binary_cross_entropy", {"class_weights": [1.0, 1.0, 1.0]}, "takes 2"),
    ],
)
def test_bad_settings(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_loss(name, **options)
