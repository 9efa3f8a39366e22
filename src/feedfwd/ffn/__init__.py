"""The feed-forward layer: chosen, measured and made fast here, used by every model above."""

from feedfwd.ffn.activations import ACTIVATIONS, GATED, activation
from feedfwd.ffn.dense import DenseFFN
from feedfwd.ffn.gated import GatedFFN, GatedLinear
from feedfwd.ffn.init import initialize
from feedfwd.ffn.kernels import explain, plain
from feedfwd.ffn.spec import FFNSpec, build_ffn

__all__ = [
    "ACTIVATIONS",
    "GATED",
    "DenseFFN",
    "FFNSpec",
    "GatedFFN",
    "GatedLinear",
    "activation",
    "build_ffn",
    "explain",
    "initialize",
    "plain",
]
