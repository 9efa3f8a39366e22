"""The pointwise passes as Triton kernels for a GPU, in one sweep over memory each.

Triton's interpreter (TRITON_INTERPRET=1) runs them on a CPU, which is how the tests check them.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
from torch import Tensor

from feedfwd.ffn.kernels.formulas import FROM_OUTPUT, Dropout

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for a CPU comes without it
    triton = None

SIGMA = ("identity", "relu", "relu2", "sigmoid", "tanh", "silu", "gelu", "gelu_tanh")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BLOCK = 1024  # elements of a row that one program works on


def why_not(sigma: str, dtype: torch.dtype) -> str:
    """Why the Triton passes can't serve, or "" where they do."""
    if triton is None:
        return "Triton is not installed"
    if sigma not in SIGMA:
        return f"{sigma} is not written in Triton"
    return "" if dtype in DTYPES else f"{str(dtype).removeprefix('torch.')} is not written in Triton"


if triton is not None:

    @triton.jit
    def _logistic(z):
        return 1 / (1 + tl.exp(-z))

    @triton.jit
    def _sigma(z, NAME: tl.constexpr):
        """The activation's value and slope at z, in fp32."""
        if NAME == "identity":
            value, slope = z, tl.full(z.shape, 1.0, tl.float32)
        elif NAME == "relu":
            value, slope = tl.where(z <= 0, 0.0, z), tl.where(z <= 0, 0.0, 1.0)
        elif NAME == "relu2":
            r = tl.where(z <= 0, 0.0, z)
            value, slope = r * r, 2 * r
        elif NAME == "sigmoid":
            value = _logistic(z)
            slope = value * (1 - value)
        elif NAME == "tanh":
            value = 2 * _logistic(2 * z) - 1
            slope = 1 - value * value
        elif NAME == "silu":
            s = _logistic(z)
            value = z * s
            slope = s + value * (1 - s)
        elif NAME == "gelu_tanh":  # (1 + tanh w) / 2 is logistic(2 w)
            s = _logistic(1.5957691216 * (z + 0.044715 * z * z * z))
            value = z * s
            slope = s + value * (1 - s) * 1.5957691216 * (1 + 0.134145 * z * z)
        else:
            phi = 0.5 * (1 + tl.erf(z * 0.7071067812))
            value = z * phi
            slope = phi + z * tl.exp(-0.5 * z * z) * 0.3989422804
        return value, slope

    @triton.jit
    def _kept(seed, offset, inside, dropped, scale, DROP: tl.constexpr):
        """Dropout's factor at these elements: Philox (Salmon et al. 2011) on the seed and the element's number."""
        if DROP:
            bits = tl.randint(tl.load(seed), offset) & 0xFFFF
            factor = tl.where(bits >= dropped, scale, 0.0)
        else:
            factor = tl.where(inside, 1.0, 0.0)
        return factor

    @triton.jit
    def _forward(
        z, a, seed, h, dropped, scale, NAME: tl.constexpr, GATED: tl.constexpr, DROP: tl.constexpr, B: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * B + tl.arange(0, B)
        inside = column < h
        at = row * h + column
        z_at = row * 2 * h + column if GATED else at
        value, _ = _sigma(tl.load(z + z_at, mask=inside, other=0).to(tl.float32), NAME)
        if GATED:
            value = value * tl.load(z + z_at + h, mask=inside, other=0).to(tl.float32)
        tl.store(a + at, value * _kept(seed, at, inside, dropped, scale, DROP), mask=inside)

    @triton.jit
    def _backward(
        z, da, seed, h, dropped, scale, NAME: tl.constexpr, GATED: tl.constexpr, DROP: tl.constexpr, B: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * B + tl.arange(0, B)
        inside = column < h
        at = row * h + column
        z_at = row * 2 * h + column if GATED else at
        kept = _kept(seed, at, inside, dropped, scale, DROP)
        d = tl.load(da + at, mask=inside, other=0).to(tl.float32) * kept
        value, slope = _sigma(tl.load(z + z_at, mask=inside, other=0).to(tl.float32), NAME)
        if GATED:
            u = tl.load(z + z_at + h, mask=inside, other=0).to(tl.float32)
            tl.store(z + z_at + h, d * value, mask=inside)
            value, slope = value * u, slope * u
        tl.store(da + at, value * kept, mask=inside)
        tl.store(z + z_at, d * slope, mask=inside)

    @triton.jit
    def _output_backward(a, da, n, scale, SQUARED: tl.constexpr, B: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
        inside = at < n
        value = tl.load(a + at, mask=inside, other=0).to(tl.float32)
        slope = 2 * tl.sqrt(scale * value) if SQUARED else tl.where(value > 0, scale, 0.0)
        tl.store(da + at, tl.load(da + at, mask=inside, other=0).to(tl.float32) * slope, mask=inside)


class TritonPasses:
    """The passes of one activation; the precision follows the tensors."""

    name = "Triton"

    def __init__(self, sigma: str) -> None:
        self.sigma = sigma

    def gated_forward(self, gu: Tensor, a: Tensor, dropout: Dropout | None) -> None:
        self._sweep(_forward, gu, a, dropout, gated=True)

    def gated_backward(self, gu: Tensor, da: Tensor, dropout: Dropout | None) -> None:
        self._sweep(_backward, gu, da, dropout, gated=True)

    def dense_forward(self, z: Tensor, a: Tensor, dropout: Dropout | None) -> None:
        self._sweep(_forward, z, a, dropout, gated=False)

    def dense_backward(self, z: Tensor, da: Tensor, dropout: Dropout | None) -> None:
        self._sweep(_backward, z, da, dropout, gated=False)

    def output_backward(self, a: Tensor, da: Tensor, scale: float) -> None:
        assert self.sigma in FROM_OUTPUT
        if a.numel():
            grid = (triton.cdiv(a.numel(), BLOCK),)
            _output_backward[grid](a, da, a.numel(), scale, self.sigma == "relu2", BLOCK)

    def _sweep(self, kernel: "triton.JITFunction", z: Tensor, a: Tensor, dropout: Dropout | None, gated: bool) -> None:
        n, h = a.shape
        if n == 0:
            return
        dropped, scale = (dropout.dropped, dropout.scale) if dropout else (0, 1.0)
        seed = dropout.seed if dropout else z
        kernel[n, triton.cdiv(h, BLOCK)](z, a, seed, h, dropped, scale, self.sigma, gated, dropout is not None, BLOCK)
