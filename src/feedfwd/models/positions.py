"""Where a token stands: rotary positions and the ways to stretch them."""

# B rows, H heads, T tokens, D head width

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from feedfwd.errors import ConfigError, nearest

Scaling = Mapping[str, Any]


def frequencies(width: int, base: float = 10_000.0, scaling: Scaling | None = None) -> tuple[Tensor, float]:
    """Radians per token of each of the width/2 pairs, and a factor for the cosines and sines; in float64.

    Pair i turns by base^(-2i/width) a token; Su et al. 2021, arXiv 2104.09864. `scaling` stretches a model to rows
    longer than it was trained on, and says how: `kind` and its numbers.

    | kind | numbers | |
    |---|---|---|
    | linear | factor | every position divided by factor; Chen et al. 2023, arXiv 2306.15595 |
    | yarn | factor, original; beta_fast 32, beta_slow 1, attention | slow pairs divided, fast ones kept, a ramp between, and sharper attention; Peng et al. 2023, arXiv 2309.00071 |
    | llama3 | factor, original; low 1, high 4 | the same idea by wavelength, as in Llama 3.1 |

    `original` is the length of the rows trained on.

    >>> frequencies(4, base=100.0)
    (tensor([1.0000, 0.1000], dtype=torch.float64), 1.0)
    """  # noqa: E501
    turn_H = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    if scaling is None:
        return turn_H, 1.0
    kind, factor = scaling.get("kind"), float(scaling.get("factor", 1.0))
    original = float(scaling.get("original", 0) or 0)
    if not factor >= 1:
        raise ConfigError(f"rope scaling factor={factor} would shorten the rows", hint="give a number of at least 1")
    if kind in ("yarn", "llama3") and original < 1:
        hint = f"give original=N, the length trained on, beside kind={kind!r}"
        raise ConfigError("rope scaling lacks the length of the rows trained on", hint=hint)
    match kind:
        case "linear":
            return turn_H / factor, 1.0
        case "llama3":
            low, high = float(scaling.get("low", 1.0)), float(scaling.get("high", 4.0))
            turns_H = original * turn_H / (2 * math.pi)  # full turns within the rows trained on
            keep_H = ((turns_H - low) / (high - low)).clamp(0, 1)
            return turn_H * (keep_H + (1 - keep_H) / factor), 1.0
        case "yarn":
            fast, slow = float(scaling.get("beta_fast", 32.0)), float(scaling.get("beta_slow", 1.0))

            def pair(turns: float) -> float:
                """Which pair makes that many turns within the rows trained on."""
                return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

            first, last = max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), width - 1)
            ramp_H = (torch.arange(width // 2, dtype=torch.float64) - first) / max(last - first, 1e-3)
            keep_H = 1 - ramp_H.clamp(0, 1)
            attention = float(scaling.get("attention") or 0.1 * math.log(factor) + 1)
            return turn_H * (keep_H + (1 - keep_H) / factor), attention
    raise ConfigError(f"unknown rope scaling kind={kind!r}", hint=nearest(str(kind), ["linear", "llama3", "yarn"]))


def tables(positions: Tensor, width: int, base: float, scaling: Scaling | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines (..., width/2) of these positions (...), fp32."""
    turn_H, factor = frequencies(width, base, scaling)
    angle = positions.to("cpu", torch.float64).unsqueeze(-1) * turn_H
    cos, sin = (f(angle).mul_(factor).to(positions.device, torch.float32) for f in (torch.cos, torch.sin))
    return cos, sin


def rotate_plain(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (x_i, x_{i+D/2}) turned by its angle, heads first: (B, H, T, D). cos, sin: (T, D/2)."""
    a, b = x_BTHD.transpose(1, 2).chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate_plain` in four sweeps and nothing kept; cos and sin get no gradient."""
    cos, sin = cos.to(x_BTHD.dtype), sin.to(x_BTHD.dtype)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return rotate_plain(x_BTHD, cos, sin)
    result: Tensor = Rotation.apply(x_BTHD, cos, sin)  # type: ignore[no-untyped-call]
    return result


class Rotation(torch.autograd.Function):
    """A rotation; its backward is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        B, T, H, D = x.shape
        return _turn(x.transpose(1, 2), cos, sin, x.new_empty(B, H, T, D))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        B, H, T, D = dy.shape
        dx = dy.new_empty(B, T, H, D)
        _turn(dy, cos, -sin, dx.transpose(1, 2))
        return dx, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    (a, b), (first, second) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=second).addcmul_(a, sin)
    return out
