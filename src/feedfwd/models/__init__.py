"""Networks built from feed-forward layers."""

from feedfwd.models.mlp import MLP

__all__ = ["MLP"]
