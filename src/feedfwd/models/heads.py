"""What stands above the last states and gives tokens."""

# W width, V vocabulary

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from feedfwd.ffn.activations import activation
from feedfwd.ffn.parts import Linear

HEADS = ("tokens", "masked", "classes", "none")


class TiedHead(nn.Module):
    """The output layer that shares the embedding's matrix, which is saved there once."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight

    def forward(self, h: Tensor) -> Tensor:  # (..., W) -> (..., V)
        return F.linear(h, self.weight)

    def _save_to_state_dict(self, *_: Any) -> None:
        pass

    def _load_from_state_dict(self, *_: Any) -> None:
        pass


class MaskedHead(nn.Module):
    """matrix(norm(σ(dense(h)))) + b: BERT's head for hidden tokens; Devlin et al. 2018, arXiv 1810.04805."""

    def __init__(self, matrix: nn.Module, sigma: str, norm: nn.Module, generator: Generator | None = None) -> None:
        super().__init__()
        weight: Any = matrix.weight
        vocabulary, width = weight.shape
        self.dense = Linear(width, width, generator=generator)
        self.activation, self.norm, self.matrix = activation(sigma), norm, matrix
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, h: Tensor) -> Tensor:  # (..., W) -> (..., V)
        y: Tensor = self.matrix(self.norm(self.activation(self.dense(h))))
        return y + self.bias
