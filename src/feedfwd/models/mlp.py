"""The multilayer perceptron: any depth, plain or residual, with any feed-forward layer.

N examples, I inputs and O outputs of a layer, D width of a residual stream
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from feedfwd.config import FFNSpec, parse
from feedfwd.errors import ConfigError, DataError
from feedfwd.ffn import activations, parts
from feedfwd.ffn.gated import GatedLinear
from feedfwd.ffn.init import Growth, inner
from feedfwd.ffn.parts import Linear, normalization
from feedfwd.ffn.spec import build_ffn, check_options, is_gated


class Noise(nn.Module):
    """x + ε while training, ε ~ N(0, std²), as in the baseline of Rasmus et al. 2015, arXiv 1507.02672."""

    def __init__(self, std: float) -> None:
        super().__init__()
        if not 0 <= std < float("inf"):
            raise ConfigError(f"noise={std} is no standard deviation", hint="take 0 (off) or a value such as 0.3")
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        return x + self.std * torch.randn_like(x) if self.training and self.std else x

    def extra_repr(self) -> str:
        return f"std={self.std}"


class PlainLayer(nn.Module):
    """dropout(norm(σ(W x + b))), with noise on x; a gated kind brings its own σ: dropout(norm(σ(W_g x) ⊙ W_u x))."""

    def __init__(
        self, inputs: int, outputs: int, spec: FFNSpec, norm: str | None, noise: float, generator: Generator | None
    ) -> None:
        super().__init__()
        self.noise = Noise(noise)
        self.linear: Linear | GatedLinear
        init, gated = inner(spec.init), is_gated(spec.kind, spec.activation)
        self.linear = (GatedLinear if gated else Linear)(
            inputs, outputs, bias=spec.bias, init=init, activation=spec.activation, generator=generator
        )
        self.activation = activations.activation("identity" if gated else spec.activation)
        self.norm = normalization(norm, outputs, batch=True)
        self.dropout = parts.dropout(spec.dropout)

    def forward(self, x: Tensor) -> Tensor:  # (N, I) -> (N, O)
        return self.dropout(self.norm(self.activation(self.linear(self.noise(x)))))


class ResidualLayer(nn.Module):
    """x + ffn(norm(x)), with noise on what the ffn sees; the norm comes first (He et al. 2016, arXiv 1603.05027)."""

    def __init__(
        self,
        inputs: int,
        width: int,
        hidden: int,
        spec: FFNSpec,
        norm: str | None,
        noise: float,
        depth: int,
        generator: Generator | None,
    ) -> None:
        super().__init__()
        self.resize = (
            nn.Identity()
            if inputs == width
            else Linear(inputs, width, spec.bias, init=inner(spec.init), generator=generator)
        )
        self.norm = normalization(norm, width, batch=True)
        self.noise = Noise(noise)
        self.ffn = build_ffn(spec, width, hidden, depth=depth, generator=generator)

    def forward(self, x: Tensor) -> Tensor:  # (N, I) -> (N, D)
        x = self.resize(x)
        return x + self.ffn(self.noise(self.norm(x)))


class LayerRow(NamedTuple):
    """What a layer holds and costs: `flops` of one example's forward pass, products only."""

    name: str
    parameters: int
    flops: int
    init: str


class MLP(nn.Module):
    """Layers of `sizes`: inputs, hidden sizes, outputs; the output layer is linear.

    Plain: h = dropout(norm(σ(W h + b))) for each hidden size. A gated activation such as swiglu, or kind="gated",
    makes each of them σ(W_g h) ⊙ (W_u h) instead. Residual, or with any other kind (kind="package.module:Class",
    a layer of your own, with `options` for its constructor): a linear stem to the first hidden size, then
    h + ffn(norm(h)) for each, the ffn `expansion` times as wide inside, a linear map wherever the size changes, a norm
    and a linear head. A residual network is always normalised: norm=None means "layer" there.

    Input is (N, ...): the first axis counts examples, the others are flattened and must hold sizes[0] values.
    `init` is a scheme of `ffn.init`; "zero" and "depth_scaled" concern the head of a plain network and each ffn's
    output matrix in a residual one. "mup" (Yang et al. 2022, arXiv 2203.03466) is "auto" where the hidden sizes are
    `base_width`; elsewhere the head's start falls with its inputs, and `growth` tells the optimizer each parameter's
    rate, so that the rate that is best at the base width is best here too. While training, `input_dropout` acts on the
    input, `dropout` on every hidden layer (inside each ffn), and Gaussian noise of standard deviation `noise` is added
    to every hidden layer's input. Without a generator the weights are drawn from torch's global one.

    >>> model = MLP([784, 128, 128, 10], activation="relu")
    >>> model(torch.zeros(2, 28, 28)).shape
    torch.Size([2, 10])
    >>> model.parameter_count, model.flops
    (118282, 236032)
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str = "relu",
        *,
        kind: str = "dense",
        init: str = "auto",
        bias: bool = True,
        dropout: float = 0.0,
        norm: str | None = None,
        residual: bool = False,
        expansion: int = 2,
        input_dropout: float = 0.0,
        noise: float = 0.0,
        base_width: int = 128,
        options: Mapping[str, Any] | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ConfigError(f"sizes={list(sizes)} lacks inputs or outputs", hint="give all sizes, such as [4, 16, 3]")
        self.sizes = tuple(parts.size(size, f"sizes[{i}]") for i, size in enumerate(sizes))
        self.base_width = parts.size(base_width, "model.base_width") if init == "mup" else None
        given = {"kind": kind, "activation": activation, "init": init, "bias": bias, "dropout": dropout}
        spec = parse(FFNSpec, given | {"options": dict(options or {})})
        check_options(spec)
        self.input_dropout = parts.dropout(input_dropout, "input_dropout")
        inputs, *hidden, outputs = self.sizes
        if residual or kind not in ("dense", "gated"):
            if not hidden:
                raise ConfigError(f"sizes={list(sizes)} has no hidden layer to be residual", hint="try [4, 16, 3]")
            norm = "layer" if norm in (None, "none") else norm
            wider = parts.size(expansion, "expansion")
            self.stem: nn.Module = Linear(inputs, hidden[0], bias, init=inner(init), generator=generator)
            self.blocks = nn.ModuleList(
                ResidualLayer(before, width, wider * width, spec, norm, noise, len(hidden), generator)
                for before, width in pairwise([hidden[0], *hidden])
            )
            self.norm = normalization(norm, hidden[-1], batch=True)
            init = inner(init)
        else:
            self.stem = nn.Identity()
            self.blocks = nn.ModuleList(
                PlainLayer(before, size, spec, norm, noise, generator) for before, size in pairwise([inputs, *hidden])
            )
            self.norm = nn.Identity()
        self.head = Linear(self.sizes[-2], outputs, bias, init=init, generator=generator)
        if grown := self.growth:  # the output's variance falls with the square of its inputs: Table 3 of the paper
            self.head.weight.detach().mul_(grown["head.weight"].inputs ** -0.5)

    def forward(self, x: Tensor) -> Tensor:  # (N, ...) -> (N, outputs)
        if x.ndim < 2 or x.shape[1:].numel() != self.sizes[0]:
            takes = f"the network takes {self.sizes[0]} values an example"
            hint = f"give (N, {self.sizes[0]}), or (N, ...) with as many values in all"
            raise DataError(f"{takes}, the input has the shape {tuple(x.shape)}", hint=hint)
        h = self.stem(self.input_dropout(x.flatten(1)))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))

    @property
    def growth(self) -> dict[str, Growth]:
        """How far each parameter is from the base width; empty unless it starts by mup.

        >>> MLP([784, 256, 128, 10], init="mup", base_width=64).growth["blocks.1.linear.weight"]
        Growth(inputs=4.0, outputs=2.0)
        """
        if self.base_width is None:
            return {}
        hidden = [size / self.base_width for size in self.sizes[1:-1]] or [1.0]
        spans: list[tuple[str, nn.Module, float, float]]  # name, module, growth of what comes in and of what goes out
        spans = [("stem", self.stem, 1.0, hidden[0])]
        for i, block in enumerate(self.blocks):
            before, after = hidden[max(i - 1, 0)], hidden[i]
            if isinstance(block, ResidualLayer):
                inside = (("norm", block.norm), ("ffn", block.ffn))
                spans.append((f"blocks.{i}.resize", block.resize, before, after))
                spans += [(f"blocks.{i}.{name}", module, after, after) for name, module in inside]
            else:
                spans.append((f"blocks.{i}", block, before if i else 1.0, after))
        spans += [("norm", self.norm, 1.0, hidden[-1]), ("head", self.head, hidden[-1], 1.0)]
        return {
            f"{name}.{key}": Growth(inputs if parameter.ndim > 1 else 1.0, outputs)
            for name, module, inputs, outputs in spans
            for key, parameter in module.named_parameters()
        }

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def flops(self) -> int:
        """Of one example's forward pass, products only: 2 for each multiply-add."""
        return sum(row.flops for row in self.layers())

    def layers(self) -> list[LayerRow]:
        """What each layer holds and costs; an example is taken to meet every weight matrix once."""
        blocks = [(f"blocks.{i}", block) for i, block in enumerate(self.blocks)]
        rows = []
        for name, layer in [("stem", self.stem), *blocks, ("norm", self.norm), ("head", self.head)]:
            parameters = list(layer.parameters())
            flops = sum(2 * parameter.numel() for parameter in parameters if parameter.ndim > 1)
            inits = dict.fromkeys(part.init for part in layer.modules() if isinstance(part, Linear | GatedLinear))
            if parameters:
                rows.append(LayerRow(name, sum(p.numel() for p in parameters), flops, ", ".join(inits)))
        return rows
