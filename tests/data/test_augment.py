"""Deformations move pixels as they say; every draw comes from the generator given."""

import math

import pytest
import torch

from feedfwd.data.augment import Deform, Mixup, Noise, Shift, chain, smooth_basis
from feedfwd.data.batches import Batch
from feedfwd.errors import ConfigError, DataError

STILL = {"rotation": 0.0, "shear": 0.0, "scale": 0.0, "shift": 0.0, "elastic": 0.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int) -> Batch:
    return Batch(torch.rand(shape, generator=generator()), torch.arange(shape[0]) % 10)


def test_no_deformation_leaves_the_images() -> None:
    batch = images(5, 9, 7)
    assert torch.allclose(Deform((9, 7), **STILL)(batch, generator()).inputs, batch.inputs, atol=1e-5)


def test_the_affine_part_is_the_matrix_it_says() -> None:
    deform = Deform((11, 15), **{**STILL, "rotation": 30, "shear": 20, "scale": 0.3, "shift": 2})
    grid = deform.grid(3, generator(7))
    u = torch.rand(3, 6, generator=generator(7)).double() * 2 - 1
    for turn, lean, wide, tall, dx, dy, seen in zip(*u.T.tolist(), grid, strict=True):
        a, k = math.radians(30) * turn, math.tan(math.radians(20) * lean)
        rotate = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
        matrix = rotate @ torch.tensor([[1, k], [0, 1]]) @ torch.diag(torch.tensor([1 + 0.3 * wide, 1 + 0.3 * tall]))
        for row, column in ((0, 0), (5, 7), (10, 3)):
            at = torch.tensor([column - 7.0, row - 5.0])
            expected = (matrix @ at + 2 * torch.tensor([dx, dy])) * torch.tensor([2 / 15, 2 / 11])
            assert torch.allclose(seen[row, column], expected, atol=1e-5)


def test_a_shift_of_whole_pixels_moves_the_image_and_repeats_the_border() -> None:
    deform = Deform((4, 6), **STILL)
    deform.grid = lambda n, g: Deform((4, 6), **STILL).grid(n, g) + torch.tensor([2 * 2 / 6, 0.0])  # two to the right
    batch = Batch(torch.arange(24.0).view(1, 4, 6), torch.zeros(1))
    moved = deform(batch, generator()).inputs
    assert torch.allclose(moved[0, 1], torch.tensor([8.0, 9, 10, 11, 11, 11]), atol=1e-4)


def test_the_elastic_field_is_smoothed_noise_of_the_amplitude_asked_for() -> None:
    height, width, sigma = 24, 28, 4.0
    deform = Deform((height, width), **{**STILL, "elastic": 1.5}, smoothness=sigma)
    still = Deform((height, width), **STILL)
    shown = deform.grid(20_000, generator()) - still.grid(1, generator())
    field = shown * torch.tensor([width / 2, height / 2])  # pixels
    assert field.square().mean().sqrt().item() == pytest.approx(1.5, rel=0.02)
    assert field.mean(0).abs().max() < 0.06
    middle, apart = field[:, 12, 14, 0], field[:, 12, 14 + 5, 0]
    correlation = (middle * apart).mean() / (middle.std() * apart.std())
    assert correlation.item() == pytest.approx(math.exp(-(5**2) / (4 * sigma**2)), abs=0.03)
    assert (field[..., 0] * field[..., 1]).mean().abs() < 0.05  # the axes are independent


def test_the_basis_has_unit_variance_everywhere() -> None:
    variance = smooth_basis(28, 28, 5.5).square().sum(0)
    assert variance.mean().item() == pytest.approx(1.0, abs=1e-4)
    assert variance.min() > 0.8 and variance.max() < 1.1


@pytest.mark.parametrize("shape", [(28, 28), (8, 10, 3)])
def test_flat_and_shaped_inputs_deform_alike(shape: tuple[int, ...]) -> None:
    batch = images(6, *shape)
    flat = Batch(batch.inputs.flatten(1), batch.targets)
    deform = Deform(shape)
    shaped, flattened = deform(batch, generator(3)).inputs, deform(flat, generator(3)).inputs
    assert shaped.shape == batch.inputs.shape and flattened.shape == flat.inputs.shape
    assert torch.equal(shaped.flatten(1), flattened)
    assert not torch.allclose(shaped, batch.inputs, atol=0.05)


def test_colour_channels_move_together() -> None:
    grey = images(4, 12, 12)
    colour = Batch(torch.stack([grey.inputs, 2 * grey.inputs, grey.inputs], dim=-1), grey.targets)
    moved = Deform((12, 12, 3))(colour, generator(1)).inputs
    assert torch.allclose(moved[..., 0], Deform((12, 12))(grey, generator(1)).inputs, atol=1e-6)
    assert torch.allclose(moved[..., 1], 2 * moved[..., 0], atol=1e-6)


def test_each_transform_repeats_from_its_generator_and_from_nothing_else() -> None:
    batch = images(8, 10, 10)
    for transform in (
        Deform((10, 10)),
        Noise(0.1),
        Mixup(0.4, 10),
        chain(Deform((10, 10)), Noise(0.1), Mixup(0.4, 10)),
    ):
        torch.manual_seed(1)
        first = transform(batch, generator(5))
        torch.manual_seed(2)
        again, other = transform(batch, generator(5)), transform(batch, generator(6))
        assert torch.equal(first.inputs, again.inputs) and torch.equal(first.targets, again.targets)
        assert not torch.equal(first.inputs, other.inputs)


def test_noise_has_the_spread_asked_for() -> None:
    batch = Batch(torch.ones(200, 500), torch.zeros(200))
    noisy = Noise(0.3)(batch, generator()).inputs
    assert noisy.std().item() == pytest.approx(0.3, rel=0.02) and noisy.mean().item() == pytest.approx(1.0, abs=0.01)


def test_mixup_blends_inputs_and_targets_by_the_same_share() -> None:
    n = 2000
    batch = Batch(torch.eye(n), torch.arange(n) % 7, torch.arange(float(n)))
    mixed = Mixup(0.5, 7)(batch, generator())
    share = mixed.inputs.diagonal()
    assert torch.allclose(mixed.inputs.sum(1), torch.ones(n))
    assert torch.allclose(mixed.targets.sum(1), torch.ones(n))
    assert torch.allclose(mixed.targets[torch.arange(n), batch.targets], share)  # neighbours differ in class
    assert mixed.weights is not None and torch.allclose(
        mixed.weights, share * torch.arange(n) + (1 - share) * torch.arange(n).roll(1)
    )
    assert share.mean().item() == pytest.approx(0.5, abs=0.02)
    assert share.var().item() == pytest.approx(1 / (4 * (2 * 0.5 + 1)), rel=0.05)  # of Beta(α, α)


def test_mixup_of_real_targets_needs_no_classes() -> None:
    batch = Batch(torch.rand(6, 3), torch.rand(6, 2))
    assert Mixup(1.0)(batch, generator()).targets.shape == (6, 2)
    with pytest.raises(ConfigError, match="number of classes"):
        Mixup(1.0)(images(6, 3), generator())


def test_examples_that_are_no_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="shape"):
        Deform((13,))
    with pytest.raises(DataError, match="not images"):
        Deform((4, 4))(images(2, 15), generator())


def test_a_shift_moves_all_images_alike_and_repeats_the_border() -> None:
    images = torch.rand(3, 5, 6)
    seen = set()
    for seed in range(40):
        moved = Shift((5, 6), 1)(Batch(images.flatten(1), torch.zeros(3)), torch.Generator().manual_seed(seed)).inputs
        padded = torch.nn.functional.pad(images[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        windows = {(y, x): padded[:, y : y + 5, x : x + 6] for y in range(3) for x in range(3)}
        found = [key for key, window in windows.items() if torch.equal(window.flatten(1), moved)]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 9
    colour = torch.rand(2, 4, 4, 3)
    moved = Shift((4, 4, 3), 1)(Batch(colour, torch.zeros(2)), torch.Generator().manual_seed(1)).inputs
    planes = [
        Shift((4, 4), 1)(Batch(colour[..., c], torch.zeros(2)), torch.Generator().manual_seed(1)).inputs
        for c in range(3)
    ]
    assert torch.equal(moved, torch.stack(planes, -1))
