"""Random changes to a batch that leave its meaning: noise, mixup, small image deformations.

Each is a `Transform` of `batches`: it gets a whole batch and a generator, and draws from nothing else.
"""

# B batch, H height, W width, C channels, K terms of the displacement's basis

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from feedfwd.data.batches import Batch, Transform
from feedfwd.errors import ConfigError, DataError


def chain(*transforms: Transform) -> Transform:
    """One transform that applies several, in the order given, drawing from one generator."""

    def chained(batch: Batch, generator: torch.Generator) -> Batch:
        for transform in transforms:
            batch = transform(batch, generator)
        return batch

    return chained


@dataclass(frozen=True, slots=True)
class Noise:
    """Adds Gaussian noise of standard deviation `std`, in units of the preprocessed inputs."""

    std: float

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        x = batch.inputs
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return Batch(noise.mul_(self.std).add_(x), batch.targets, batch.weights)


@dataclass(frozen=True, slots=True)
class Mixup:
    """Blends each example with another of its batch, x = λ·xᵢ + (1-λ)·xⱼ, and their targets alike.

    λ ~ Beta(alpha, alpha), one for each example; the partner is the neighbour, the batch being shuffled already.
    Class targets (B,) become probabilities (B, classes); real-valued targets are blended as they are.
    Zhang et al. 2018, arXiv 1710.09412.
    """

    alpha: float
    classes: int | None = None

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        x, y, w = batch.inputs, batch.targets, batch.weights
        # torch has no public Beta that draws from a generator; NumPy has, seeded here from torch's.
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        drawn = np.random.default_rng(seed).beta(self.alpha, self.alpha, len(x))
        mix = torch.from_numpy(drawn).to(x.device, torch.float32)
        if not y.is_floating_point():
            if self.classes is None:
                raise ConfigError("mixup of class targets needs the number of classes", hint="Mixup(alpha, classes)")
            y = F.one_hot(y, self.classes).float()
        return Batch(_blend(x, mix), _blend(y, mix), None if w is None else _blend(w, mix))


def _blend(values: Tensor, mix: Tensor) -> Tensor:
    """mix·v + (1-mix)·v', where v' is the next row's value."""
    return torch.lerp(values.roll(1, 0), values, mix.to(values.dtype).view(-1, *[1] * (values.dim() - 1)))


class Shift:
    """Moves a batch of images by up to ±`pixels` whole pixels along each axis, all of it alike; the border is repeated.

    One copy a batch, so it costs next to nothing where `Deform` would take longer than a small network's update.
    `shape` is (H, W) or (H, W, C); inputs may come flattened, (B, D), and leave as they came.
    """

    def __init__(self, shape: tuple[int, ...], pixels: int) -> None:
        if len(shape) not in (2, 3):
            raise ConfigError(f"a shift needs images, but an example has shape {tuple(shape)}", hint="turn it off")
        self.height, self.width = shape[:2]
        self.pixels = pixels

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        x, reach, height, width = batch.inputs.contiguous(), self.pixels, self.height, self.width
        drawn = torch.randint(-reach, reach + 1, (2,), generator=generator, device=generator.device).tolist()
        down, right = (max(1 - size, min(size - 1, by)) for size, by in zip((height, width), drawn, strict=True))
        moved = torch.empty_like(x)
        by = (down * width + right) * (x[0].numel() // (height * width))  # along memory
        flat, source = moved.view(len(x), -1), x.view(len(x), -1)
        flat[:, max(by, 0) : flat.shape[1] + min(by, 0)] = source[:, max(-by, 0) : flat.shape[1] - max(by, 0)]
        _repeat(moved.view(len(x), height, width, -1), 2, right)
        _repeat(moved.view(len(x), height, width, -1), 1, down)
        return Batch(moved, batch.targets, batch.weights)


def _repeat(images: Tensor, axis: int, by: int) -> None:
    """Fill the lines that a shift has left open with the nearest one that it moved."""
    last = images.shape[axis] - 1
    if by > 0:
        images.narrow(axis, 0, by).copy_(images.narrow(axis, by, 1))
    elif by < 0:
        images.narrow(axis, last + 1 + by, -by).copy_(images.narrow(axis, last + by, 1))


class Deform:
    """Small random deformations of images, each image its own: an affine map and a smooth elastic field on top.

    Pixel p (in pixels from the centre) of the result shows what the image has at A·p + t + e(p), interpolated linearly,
    with the border's colour beyond the border. A rotates by up to ±`rotation` degrees, shears by up to ±`shear` degrees
    and scales each axis by 1 ± `scale`; t shifts by up to ±`shift` pixels; e is a Gaussian random field whose
    displacement along each axis has root mean square `elastic` pixels and correlation length `smoothness` (σ, pixels).

    e is the field of Simard, Steinkraus and Platt 2003 and of Cireşan et al. 2010 (arXiv 1003.0358): noise smoothed by
    a Gaussian of width σ, times α. Their uniform noise of [-1, 1] gives a root mean square of α / (σ·√(12π)) pixels:
    1.07 for α = 36, σ = 5.5. Being so smooth, the field needs few numbers: its covariance exp(-d²/4σ²) is cut to the
    leading eigenvectors, 99 % of its variance. So the deformation of a 28×28 image is 20 coefficients along each axis,
    and a batch of them is one matrix product with the basis [x, y, 1, eigenvectors] and one grid sample.

    `shape` is (H, W) or (H, W, C); inputs may come flattened, (B, D), and leave as they came.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        rotation: float = 10.0,
        shear: float = 10.0,
        scale: float = 0.1,
        shift: float = 1.0,
        elastic: float = 1.0,
        smoothness: float = 5.5,
    ) -> None:
        if len(shape) not in (2, 3):
            raise ConfigError(
                f"deformations need images, but an example has shape {tuple(shape)}", hint="turn them off"
            )
        if not 0 <= scale < 1:
            raise ConfigError(f"scale={scale} of a deformation is not in [0, 1)", hint="try 0.1")
        if smoothness <= 0:
            raise ConfigError(f"smoothness={smoothness} of a deformation is not positive", hint="try 5.5 pixels")
        self.shape = tuple(shape)
        self.rotation, self.shear = math.radians(rotation), math.radians(shear)
        self.scale, self.shift = scale, shift
        height, width = self.shape[:2]
        y_HW, x_HW = torch.meshgrid(_centred(height), _centred(width), indexing="ij")
        affine = torch.stack([x_HW, y_HW, torch.ones_like(x_HW)])
        terms = [affine, elastic * smooth_basis(height, width, smoothness)] if elastic > 0 else [affine]
        self._basis = torch.cat(terms).flatten(1)  # (K, H·W)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        x = batch.inputs
        if x[0].numel() != math.prod(self.shape):
            raise DataError(f"examples of shape {tuple(x.shape[1:])} are not images of {self.shape}")
        images = x.view(-1, *self.shape)
        channels_first = images.unsqueeze(1) if images.dim() == 3 else images.movedim(-1, 1)
        self._basis = self._basis.to(x.device)
        moved = F.grid_sample(
            channels_first.float().contiguous(),
            self.grid(len(x), generator),
            padding_mode="border",
            align_corners=False,
        )
        images = moved.squeeze(1) if images.dim() == 3 else moved.movedim(1, -1)
        dtype = x.dtype if x.is_floating_point() else images.dtype
        return Batch(images.to(dtype).reshape(x.shape), batch.targets, batch.weights)

    def grid(self, n: int, generator: torch.Generator) -> Tensor:
        """Where each pixel of n results looks: (n, H, W, 2), x before y, where the image spans [-1, 1]²."""
        height, width = self.shape[:2]
        device = generator.device
        u_n6 = torch.rand(n, 6, generator=generator, device=device).mul_(2).sub_(1)
        z_n2K = torch.randn(n, 2, len(self._basis), generator=generator, device=device)
        turn, lean = self.rotation * u_n6[:, 0], torch.tan(self.shear * u_n6[:, 1])
        wide, tall = 1 + self.scale * u_n6[:, 2], 1 + self.scale * u_n6[:, 3]
        cos, sin = torch.cos(turn), torch.sin(turn)
        # rotation · horizontal shear · scaling, then the shift, over the first three terms of the basis
        z_n2K[:, 0, 0], z_n2K[:, 0, 1] = cos * wide, (cos * lean - sin) * tall
        z_n2K[:, 1, 0], z_n2K[:, 1, 1] = sin * wide, (sin * lean + cos) * tall
        z_n2K[:, :, 2] = self.shift * u_n6[:, 4:]
        z_n2K *= torch.tensor([2 / width, 2 / height], device=device)[:, None]
        return (z_n2K @ self._basis).view(n, 2, height, width).permute(0, 2, 3, 1)


def smooth_basis(height: int, width: int, smoothness: float) -> Tensor:
    """Fields φₖ (K, H, W) such that Σ zₖ·φₖ with standard normal z is Gaussian noise smoothed to unit variance.

    The leading eigenvectors, scaled by the root of their eigenvalues, of the covariance exp(-d²/4σ²) that white noise
    has after a Gaussian filter of width σ = `smoothness`; the covariance is a product over the axes, so they are too.
    """

    def axis(n: int) -> tuple[Tensor, Tensor]:
        at = _centred(n).double()
        values, vectors = torch.linalg.eigh(torch.exp(-((at[:, None] - at) ** 2) / (4 * smoothness**2)))
        return values.clamp(min=0), vectors

    (rows, u_H), (columns, v_W) = axis(height), axis(width)
    variance, order = torch.outer(rows, columns).flatten().sort(descending=True)
    kept = int((variance.cumsum(0) < 0.99 * height * width).sum()) + 1
    i, j = order[:kept] // width, order[:kept] % width
    fields = torch.einsum("hk,wk,k->khw", u_H[:, i], v_W[:, j], variance[:kept].sqrt())
    return (fields / fields.square().sum(0).mean().sqrt()).float()


def _centred(n: int) -> Tensor:
    """Positions of n pixels counted from their middle: -1, 0, 1 for three."""
    return torch.arange(n) - (n - 1) / 2
