"""Networks built from feed-forward layers."""

from feedfwd.models.generate import Sampling, complete, write
from feedfwd.models.mlp import MLP
from feedfwd.models.sizes import SIZES, Size
from feedfwd.models.transformer import Transformer

__all__ = ["MLP", "SIZES", "Sampling", "Size", "Transformer", "complete", "write"]
