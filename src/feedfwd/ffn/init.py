"""How a weight matrix starts. Biases start at zero everywhere."""

from typing import NamedTuple

from torch import Generator, Tensor, nn

from feedfwd.errors import ConfigError, nearest

SCHEMES = (
    "auto",
    "xavier_uniform",
    "xavier_normal",
    "he_uniform",
    "he_normal",
    "lecun_uniform",
    "lecun_normal",
    "orthogonal",
    "truncated_normal",
    "depth_scaled",
    "zero",
    "mup",
)

# What `auto` takes by the activation that follows the weight: the variance, He's or LeCun's, that keeps the mean square
# of σ(W x) nearest to that of x. A rectifier drops half of it, which He's factor of two makes up for; a square does
# not. Sigmoid and tanh saturate, and Glorot's compromise between the two directions is made for them.
AUTO: dict[str, str] = {
    "identity": "lecun_normal",
    "sigmoid": "xavier_uniform",
    "tanh": "xavier_uniform",
    "relu": "he_normal",
    "leaky_relu": "he_normal",
    "elu": "he_normal",
    "selu": "lecun_normal",
    "gelu": "he_normal",
    "gelu_tanh": "he_normal",
    "silu": "he_normal",
    "mish": "he_normal",
    "softplus": "lecun_normal",
    "hard_swish": "he_normal",
    "relu2": "lecun_normal",
    "xielu": "lecun_normal",
}

# Standard deviation of N(0, 1) cut at ±2: what is cut off must be made up for.
CUT_AT_2 = 0.8796256610342398


class Growth(NamedTuple):
    """How many times as many inputs and outputs a parameter has as at the base width, where mup equals `auto`.

    Sizes that the data set, such as pixels, classes or a vocabulary, don't grow. A vector has no inputs: a bias or a
    gain grows in its outputs. From this the learning rate of mup follows: `train.optimizers.multiplier`.
    """

    inputs: float = 1.0
    outputs: float = 1.0


def initialize(
    weight: Tensor,
    scheme: str,
    *,
    activation: str = "identity",
    depth: int = 1,
    generator: Generator | None = None,
) -> str:
    """Fill `weight` (outputs, inputs) in place and return the scheme taken, which tells what `auto` chose.

    `activation` is the σ that follows the weight ("identity" for an output layer). `depth` is the number of branches
    that add up in a residual stream; only `depth_scaled` reads it. Without a generator torch's global one is drawn
    from, so that `torch.manual_seed` repeats every weight.

    | scheme | variance of a weight | source |
    |---|---|---|
    | xavier | 2 / (inputs + outputs) | Glorot & Bengio 2010 |
    | he | 2 / inputs | He et al. 2015, arXiv 1502.01852 |
    | lecun | 1 / inputs | LeCun et al. 1998; Klambauer 2017, arXiv 1706.02515 |
    | orthogonal | rows or columns orthonormal, times √2 before a rectifier | Saxe et al. 2013, arXiv 1312.6120 |
    | truncated_normal | as he before a rectifier, else as lecun; nothing beyond ±2 standard deviations | |
    | depth_scaled | 1 / (inputs · depth) | Radford et al. 2019 (GPT-2) |
    | zero | 0: the layer's output starts at 0 | Zhang et al. 2019, arXiv 1901.09321 |
    | mup | auto's, or lecun's where that is Glorot's, which looks at both sides | Yang et al. 2022, arXiv 2203.03466 |

    What else mup asks for, an output that starts smaller and rates that fall with the width, the models see to.

    >>> import torch
    >>> initialize(torch.empty(4, 3), "auto", activation="relu")
    'he_normal'
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"unknown initialisation {scheme!r}", hint=nearest(scheme, SCHEMES))
    if activation not in AUTO:
        raise ConfigError(f"unknown activation {activation!r}", hint=nearest(activation, AUTO))
    by_activation = AUTO[activation]
    gain = 2**0.5 if by_activation == "he_normal" else 1.0
    inputs = weight.shape[1]
    if scheme == "mup":
        drawn = "lecun_normal" if by_activation == "xavier_uniform" else by_activation
    else:
        drawn = by_activation if scheme == "auto" else scheme
    match drawn:
        case "xavier_uniform":
            nn.init.xavier_uniform_(weight, generator=generator)
        case "xavier_normal":
            nn.init.xavier_normal_(weight, generator=generator)
        case "he_uniform":
            nn.init.kaiming_uniform_(weight, nonlinearity="relu", generator=generator)
        case "he_normal":
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        case "lecun_uniform":
            nn.init.kaiming_uniform_(weight, nonlinearity="linear", generator=generator)
        case "lecun_normal":
            nn.init.kaiming_normal_(weight, nonlinearity="linear", generator=generator)
        case "orthogonal":
            nn.init.orthogonal_(weight, gain, generator=generator)
        case "truncated_normal":
            std = gain / inputs**0.5 / CUT_AT_2
            nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
        case "depth_scaled":
            nn.init.normal_(weight, std=(inputs * depth) ** -0.5, generator=generator)
        case "zero":
            nn.init.zeros_(weight)
    return drawn if scheme == "auto" else scheme


def inner(scheme: str) -> str:
    """The scheme of the matrices before the last: `zero` and `depth_scaled` speak of a layer's output matrix alone.

    >>> inner("zero"), inner("orthogonal")
    ('auto', 'orthogonal')
    """
    return "auto" if scheme in ("zero", "depth_scaled") else scheme
