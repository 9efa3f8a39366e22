"""The activations σ by name: torch's own modules wherever it has one."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedfwd.errors import ConfigError, nearest


class ReLU2(nn.Module):
    """relu(x)²; So et al. 2021, arXiv 2109.08668."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x).square()


class XIELU(nn.Module):
    """The expanded integral of ELU, whose two slopes are learnt; Huang & Schlag 2024, arXiv 2411.13010.

    αₚ x² + β x for x > 0 and αₙ (eˣ - 1 - x) + β x for x ≤ 0, where αₚ = softplus(alpha_p) > 0 and
    αₙ = β + softplus(alpha_n) > β keep the curve's shape whatever the two parameters become. They start at
    αₚ = αₙ = 0.8, and β = 0.5 is fixed, as in the paper; they have the shape (1,), as published checkpoints have.
    """

    beta = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.tensor([math.log(math.expm1(0.8))]))
        self.alpha_n = nn.Parameter(torch.tensor([math.log(math.expm1(0.8 - self.beta))]))

    def forward(self, x: Tensor) -> Tensor:
        alpha_p, alpha_n = F.softplus(self.alpha_p), self.beta + F.softplus(self.alpha_n)
        # Each half is 0 where the other one holds, so that nothing overflows on the side that isn't taken.
        above, below = x.clamp(min=0), x.clamp(max=0)
        return alpha_p * above.square() + alpha_n * (torch.expm1(below) - below) + self.beta * x


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "hard_swish": nn.Hardswish,
    "relu2": ReLU2,
    "xielu": XIELU,
}

# The gated kinds and the σ of their gate; Dauphin 2017, arXiv 1612.08083 and Shazeer 2020, arXiv 2002.05202.
GATED: dict[str, str] = {
    "glu": "sigmoid",
    "reglu": "relu",
    "geglu": "gelu",
    "swiglu": "silu",
    "bilinear": "identity",
}


def activation(name: str) -> nn.Module:
    """The module of an activation's name; ConfigError with the nearest name where there is none.

    >>> activation("relu")(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    if name in GATED:
        raise ConfigError(
            f"{name!r} is a gated kind, not an activation of one input",
            hint=f"take kind='gated', or {GATED[name]!r} for the activation alone",
        )
    if name not in ACTIVATIONS:
        raise ConfigError(f"unknown activation {name!r}", hint=nearest(name, ACTIVATIONS))
    return ACTIVATIONS[name]()


def gate(name: str) -> str:
    """The σ of a gated layer's gate, by the kind's name or by its own.

    >>> gate("swiglu"), gate("gelu_tanh")
    ('silu', 'gelu_tanh')
    """
    return GATED.get(name, name)
