"""The gated feed-forward layer, and the gated linear map inside it."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Generator, Tensor, empty, nn

from feedfwd.ffn import activations, kernels, parts
from feedfwd.ffn.init import initialize, inner
from feedfwd.ffn.parts import Linear, normalization, size


class GatedLinear(nn.Module):
    """σ(W_g x + b_g) ⊙ (W_u x + b_u), both products in one: Dauphin et al. 2017, arXiv 1612.08083.

    `gate_up` (2·outputs, inputs) holds W_g above W_u, `gate_up_bias` (2·outputs) their biases or None. `activation`
    is σ by its own name or by the kind's ("silu" or "swiglu").
    """

    packed: ClassVar[dict[str, int]] = {"gate_up": 2}  # parameters that stack matrices: split them to work on each
    gate_up_bias: nn.Parameter | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: str = "silu",
        bias: bool = False,
        *,
        init: str = "auto",
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        inputs, outputs = size(inputs, "width"), size(outputs, "hidden")
        sigma = activations.gate(activation)
        self.activation = activations.activation(sigma)
        self.gate_up = nn.Parameter(empty(2 * outputs, inputs))
        self.register_parameter("gate_up_bias", nn.Parameter(empty(2 * outputs)) if bias else None)
        matrices = zip(self.gate_up.detach().chunk(2), (sigma, "identity"), strict=True)
        chosen = [initialize(matrix, init, activation=after, generator=generator) for matrix, after in matrices]
        self.init = " + ".join(dict.fromkeys(chosen))  # gate and up differ where "auto" chose
        if self.gate_up_bias is not None:
            nn.init.zeros_(self.gate_up_bias)

    def forward(self, x: Tensor) -> Tensor:  # (..., inputs) -> (..., outputs)
        gate, up = F.linear(x, self.gate_up, self.gate_up_bias).chunk(2, dim=-1)
        return self.activation(gate) * up

    def extra_repr(self) -> str:
        outputs, inputs = self.gate_up.shape
        return f"gate_up=({outputs}, {inputs}), bias={self.gate_up_bias is not None}, init={self.init}"


class GatedFFN(GatedLinear):
    """down(σ(gate) ⊙ up), gate and up from one packed product; Shazeer 2020, arXiv 2002.05202.

    x is (..., width) with any leading dimensions. `activation` is the gate's σ or the kind's name: glu, reglu, geglu,
    swiglu, bilinear. `norm` ("layer", "rms") normalises the input, `dropout` acts on the hidden activations. `init`,
    `depth` and `recompute` as in DenseFFN.

    >>> import torch
    >>> layer = GatedFFN(8, 32, activation="swiglu")
    >>> layer(torch.zeros(2, 5, 8)).shape, layer.gate_up.shape
    (torch.Size([2, 5, 8]), torch.Size([64, 8]))
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str = "silu",
        bias: bool = False,
        dropout: float = 0.0,
        init: str = "auto",
        norm: str | None = None,
        *,
        depth: int = 1,
        recompute: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(width, hidden, activation, bias, init=inner(init), generator=generator)
        self.norm = normalization(norm, width)
        self.dropout = parts.dropout(dropout)
        self.down = Linear(hidden, width, bias, init=init, depth=depth, generator=generator)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:  # (..., D) -> (..., D)
        x = self.norm(x)
        if (y := kernels.feed_forward(self, x)) is not None:
            return y  # the same as below, with less kept for the backward
        gate, up = F.linear(x, self.gate_up, self.gate_up_bias).chunk(2, dim=-1)
        return self.down(self.dropout(self.activation(gate) * up))
