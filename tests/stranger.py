"""A layer as someone else would write it, in one file: it knows nothing of feedfwd."""

import torch
from torch import Tensor, nn


class Maxout(nn.Module):
    """down(max over pieces of W_k x + b_k); Goodfellow et al. 2013, arXiv 1302.4389."""

    def __init__(self, width: int, hidden: int, bias: bool = True, dropout: float = 0.0, pieces: int = 2) -> None:
        super().__init__()
        if pieces < 2:
            raise ValueError(f"pieces={pieces} leaves nothing to choose from")
        self.pieces = pieces
        self.up = nn.Linear(width, pieces * hidden, bias)
        self.drop = nn.Dropout(dropout)
        self.down = nn.Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(self.up(x).unflatten(-1, (self.pieces, -1)).amax(-2)))


class Narrow(nn.Module):
    """Gives one number a token, which a sum x + ffn(x) would spread over all of them in silence."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(x)


def not_a_class(width: int, hidden: int) -> nn.Module:
    return torch.nn.Identity()
