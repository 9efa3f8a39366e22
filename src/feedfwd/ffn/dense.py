"""The dense feed-forward layer."""

from torch import Generator, Tensor, nn

from feedfwd.ffn import activations, kernels, parts
from feedfwd.ffn.init import inner
from feedfwd.ffn.parts import Linear, normalization, size


class DenseFFN(nn.Module):
    """down(σ(up(x))): widen, bend, narrow, for each token by itself; Vaswani et al. 2017, arXiv 1706.03762, eq. 2.

    x is (..., width) with any leading dimensions. `norm` ("layer", "rms") normalises the input, `dropout` acts on the
    hidden activations. `init` is a scheme of `ffn.init` for both matrices; "zero" and "depth_scaled" concern `down`
    alone, where `depth` counts the branches of the residual stream. `layer.up.init` tells what "auto" took. With
    `recompute` the backward keeps x alone and takes the first product again; `ffn.explain` tells what is kept.

    >>> import torch
    >>> layer = DenseFFN(8, 32, activation="gelu")
    >>> layer(torch.zeros(2, 5, 8)).shape, layer.up.init, layer.down.init
    (torch.Size([2, 5, 8]), 'he_normal', 'lecun_normal')
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str = "relu",
        bias: bool = True,
        dropout: float = 0.0,
        init: str = "auto",
        norm: str | None = None,
        *,
        depth: int = 1,
        recompute: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        width, hidden = size(width, "width"), size(hidden, "hidden")
        self.norm = normalization(norm, width)
        self.activation = activations.activation(activation)
        self.up = Linear(width, hidden, bias, init=inner(init), activation=activation, generator=generator)
        self.dropout = parts.dropout(dropout)
        self.down = Linear(hidden, width, bias, init=init, depth=depth, generator=generator)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:  # (..., D) -> (..., D)
        x = self.norm(x)
        if (y := kernels.feed_forward(self, x)) is not None:
            return y  # the same as below, with less kept for the backward
        return self.down(self.dropout(self.activation(self.up(x))))
