"""The plain MLP's gradients on a CPU, without a graph: for networks so small that all but the products is costly.

784-128-128-10 at batch 64 multiplies for 0.1 ms an update; modules, autograd and an optimizer that walks over the
parameters take five times that. Here the chain rule is two calls of compiled C (`mlp_native`) where that serves, else a
list of torch's operations, bound once to the tensors that they read and write. Activations stand as columns, as in the
formula H = σ(W H + b), so that biases, sums over the batch and the softmax run along memory. All parameters lie in one
flat tensor, and so do their gradients: an optimizer has two parameters, matrices and biases, whatever the depth.
"""

# N examples, I inputs and O outputs of a layer

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from feedfwd.data.batches import Batch
from feedfwd.ffn.activations import ReLU2
from feedfwd.ffn.gated import GatedLinear
from feedfwd.ffn.parts import Linear
from feedfwd.ffn.products import LARGE, linear, onednn_is_faster
from feedfwd.models import mlp_native
from feedfwd.models.mlp import MLP, PlainLayer
from feedfwd.models.mlp_native import CompiledPasses

# (outputs (O, N), batch, total weight, where its gradient (O, N) goes) -> the batch's share of the mean loss
OutputGradient = Callable[[Tensor, Batch, Tensor | float, Tensor], Tensor]

Call = Callable[[], object]  # an operation, bound to its tensors

aten = torch.ops.aten


def lacks(model: nn.Module, optimizer: str = "adam") -> str | None:
    """Why `FastMLP` can't find a model's gradients for this optimizer; None where it can.

    >>> lacks(MLP([4, 8, 3])), lacks(MLP([4, 8, 3], "swiglu"))
    (None, 'a layer is gated')
    """
    if type(model) is not MLP:
        return f"the model is {type(model).__name__}, not a plain MLP"
    if optimizer in ("muon", "normuon"):
        return "muon works on one matrix at a time"
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu":
            return f"the model is on {parameter.device}"
        if not parameter.requires_grad:
            return f"{name} is frozen"
    for block in model.blocks:
        if not isinstance(block, PlainLayer):
            return "its layers are residual or of a kind of their own"
        if isinstance(block.linear, GatedLinear):
            return "a layer is gated"
        if not isinstance(block.norm, nn.Identity):
            return "a layer is normalised"
        if block.noise.std:
            return "a layer adds noise to its input"
        if not isinstance(block.activation, CURVES):
            return f"the slope of {type(block.activation).__name__} isn't written out"
    for module in (model.head, *(block.linear for block in model.blocks if isinstance(block, PlainLayer))):
        if type(module) is not Linear:
            return f"a layer's matrix is within {type(module).__name__}"
    return None


def uncompiled_because(model: MLP, n: int, bf16: bool = False) -> str | None:
    """Why torch's operations do the passes over n examples of a model that `FastMLP` serves; None where C does."""
    return "bfloat16 is not written in C" if bf16 else mlp_native.lacks(model, n)


class Curve(NamedTuple):
    """An activation between buffers: `forward` makes `h` of the pre-activations, `backward` takes the slope into d."""

    h: Tensor
    forward: Call
    backward: Call


CURVES = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.SiLU, nn.GELU, ReLU2)


def curve(activation: nn.Module, a: Tensor, d: Tensor) -> Curve:
    """The curve over pre-activations in `a` (which it may overwrite) and ∂/∂h, in the end ∂/∂a, in `d`."""
    h, into_d = torch.empty_like(a), {"grad_input": d}
    match activation:
        case nn.ReLU():
            return Curve(a, partial(torch.relu_, a), partial(aten.threshold_backward.grad_input, d, a, 0, **into_d))
        case nn.LeakyReLU(negative_slope=slope):
            forward = partial(nn.functional.leaky_relu_, a, slope)
            return Curve(a, forward, partial(aten.leaky_relu_backward.grad_input, d, a, slope, True, **into_d))
        case nn.Tanh():
            return Curve(a, partial(torch.tanh_, a), partial(aten.tanh_backward.grad_input, d, a, **into_d))
        case nn.Sigmoid():
            return Curve(a, partial(torch.sigmoid_, a), partial(aten.sigmoid_backward.grad_input, d, a, **into_d))
        case nn.ELU(alpha=alpha):
            forward = partial(nn.functional.elu_, a, alpha)
            return Curve(a, forward, partial(aten.elu_backward.grad_input, d, alpha, 1, 1, True, a, **into_d))
        case nn.SiLU():
            return Curve(h, partial(aten.silu.out, a, out=h), partial(aten.silu_backward.grad_input, d, a, **into_d))
        case nn.GELU(approximate=form):
            forward = partial(aten.gelu.out, a, approximate=form, out=h)
            return Curve(h, forward, partial(aten.gelu_backward.grad_input, d, a, approximate=form, **into_d))
        case ReLU2():
            return Curve(h, lambda: torch.square(torch.relu_(a), out=h), lambda: d.mul_(a).mul_(2))
        case _:
            return Curve(a, lambda: None, lambda: None)


class Layer(NamedTuple):
    """Views of the flat tensors, and what follows the product."""

    weight_OI: Tensor
    bias_O1: Tensor | None
    weight_gradient_OI: Tensor
    bias_gradient_O: Tensor | None
    activation: nn.Module
    dropout: float


def by_onednn(weight_OI: Tensor, n: int) -> bool:
    """Whether `linear` leaves a product to the library that can't write where it is told to."""
    return weight_OI.dtype == torch.float32 and weight_OI.numel() * n >= LARGE and onednn_is_faster()


def affine(layer: Layer, h_IN: Tensor, out_ON: Tensor) -> Call:
    """W h + b."""
    w_OI, b_O1 = layer.weight_OI, layer.bias_O1
    if by_onednn(w_OI, h_IN.shape[1]):
        if b_O1 is None:
            return lambda: out_ON.copy_(linear(w_OI, h_IN.t()))
        return lambda: torch.add(linear(w_OI, h_IN.t()), b_O1, out=out_ON)
    if b_O1 is None:
        return partial(torch.mm, w_OI, h_IN, out=out_ON)
    return partial(torch.addmm, b_O1, w_OI, h_IN, out=out_ON)


def back(layer: Layer, d_ON: Tensor, out_IN: Tensor) -> Call:
    """Wᵀ d."""
    w_IO = layer.weight_OI.t()
    if by_onednn(w_IO, d_ON.shape[1]):
        return lambda: out_IN.copy_(linear(w_IO, d_ON.t()))
    return partial(torch.mm, w_IO, d_ON, out=out_IN)


def outer(layer: Layer, d_ON: Tensor, h_IN: Tensor) -> Call:
    """∂/∂W = d hᵀ, d being the gradient of W h + b."""
    into_OI = layer.weight_gradient_OI
    if by_onednn(into_OI, d_ON.shape[1]):
        return lambda: into_OI.copy_(linear(d_ON, h_IN))
    return partial(torch.mm, d_ON, h_IN.t(), out=into_OI)


@dataclass
class Tape:
    """Both passes for one batch size in torch's operations; the two products that take the inputs are bound later."""

    first: Layer
    first_ON: Tensor  # W h + b of the first layer
    calls: list[Call]
    outputs_ON: Tensor
    d_outputs_ON: Tensor
    calls_back: list[Call]
    d_first_ON: Tensor

    def forward(self, x_NI: Tensor) -> None:
        """From inputs to `outputs_ON`."""
        self.x_IN = x_NI.t()
        affine(self.first, self.x_IN, self.first_ON)()
        for call in self.calls:
            call()

    def backward(self) -> None:
        """From the inputs of the last `forward` and `d_outputs_ON` to the gradients, whatever they held."""
        for call in self.calls_back:
            call()
        outer(self.first, self.d_first_ON, self.x_IN)()
        del self.x_IN


class FastMLP:
    """Finds a plain MLP's gradients faster than autograd does; the numbers are the same up to rounding.

    The model's parameters become views of one flat tensor, and `flat` holds its two parts, `matrices` (1, …) and
    `biases`, as the parameters that an optimizer is to be built for. Moving the model elsewhere afterwards would part
    the two. `gradients` has the form that the training loop asks for; `output_gradient` differentiates the loop's loss.
    With `bf16` the products are rounded as autocast rounds them, after one cast of all weights. The passes run in C
    where `uncompiled_because` gives no reason against it, and never with compiled=False.
    """

    def __init__(
        self, model: MLP, output_gradient: OutputGradient, *, bf16: bool = False, compiled: bool = True
    ) -> None:
        reason = lacks(model)
        assert reason is None, reason
        self._compilable = compiled
        self.model, self.output_gradient = model, output_gradient
        blocks = [block for block in model.blocks if isinstance(block, PlainLayer)]
        parts: list[tuple[nn.Linear, nn.Module, float]] = [
            (block.linear, block.activation, block.dropout.p) for block in blocks if isinstance(block.linear, Linear)
        ]
        parts.append((model.head, nn.Identity(), 0.0))
        matrices = [m.weight for m, _, _ in parts]
        biases: list[nn.Parameter] = [m.bias for m, _, _ in parts if m.bias is not None]
        own, count = [*matrices, *biases], sum(p.numel() for p in matrices)
        self._weights = torch.cat([p.detach().flatten() for p in own])
        self._gradients = torch.zeros_like(self._weights)
        dtype = torch.bfloat16 if bf16 else self._weights.dtype
        self._cast = dtype != self._weights.dtype
        self._products = self._weights.to(dtype), self._gradients.to(dtype)  # the same tensors where nothing is cast
        w, g = (dict(zip(own, _views(flat, own), strict=True)) for flat in self._products)
        self._layers = [
            Layer(
                w[m.weight],
                None if m.bias is None else w[m.bias][:, None],
                g[m.weight],
                None if m.bias is None else g[m.bias],
                activation,
                dropout,
            )
            for m, activation, dropout in parts
        ]
        for parameter, weight, gradient in zip(
            own, _views(self._weights, own), _views(self._gradients, own), strict=True
        ):
            parameter.data, parameter.grad = weight, gradient
        halves = [("matrices", self._weights[None, :count], self._gradients[None, :count])]
        if biases:
            halves.append(("biases", self._weights[count:], self._gradients[count:]))
        self.flat = nn.ParameterDict({name: nn.Parameter(weight) for name, weight, _ in halves})
        self._halves = [(self.flat[name], gradient) for name, _, gradient in halves]
        self._passes: dict[tuple[int, bool], Tape | CompiledPasses] = {}

    def gradients(self, model: nn.Module, batch: Batch, loss: object, total_weight: Tensor | float) -> Tensor:
        """A batch's share of the mean loss; adds its gradients to those of `flat` and of the model."""
        assert model is self.model
        earlier = None
        for parameter, gradient in self._halves:
            if parameter.grad is None:
                parameter.grad = gradient
            elif earlier is None:
                earlier = self._gradients.clone()
        weights, gradients = self._products
        if self._cast:
            weights.copy_(self._weights)
        share = self._chain(batch, total_weight)
        if self._cast:
            self._gradients.copy_(gradients)
        if earlier is not None:
            self._gradients.add_(earlier)
        return share

    def _chain(self, batch: Batch, total_weight: Tensor | float) -> Tensor:
        """To the loss and back: into the gradients, whatever they held."""
        model = self.model
        key = len(batch.targets), model.training
        passes = self._passes.get(key)
        if passes is None:
            compiled = self._compilable and uncompiled_because(model, key[0], self._cast) is None
            passes = self._passes[key] = self._compiled(key[0]) if compiled else self._record(*key)
        x_NI = batch.inputs.flatten(1).to(self._layers[0].weight_OI.dtype)
        if model.training and model.input_dropout.p:
            x_NI = model.input_dropout(x_NI)
        passes.forward(x_NI)
        share = self.output_gradient(passes.outputs_ON, batch, total_weight, passes.d_outputs_ON)
        passes.backward()
        return share

    def _compiled(self, n: int) -> CompiledPasses:
        """The passes in C, with buffers for n examples."""
        layers = self._layers
        return CompiledPasses(
            [layer.weight_OI for layer in layers],
            [layer.bias_O1 for layer in layers],
            [layer.weight_gradient_OI for layer in layers],
            [layer.bias_gradient_O for layer in layers],
            layers[0].activation,
            n,
        )

    def _record(self, n: int, training: bool) -> Tape:
        """Torch's operations, bound to buffers for n examples."""
        a = [layer.weight_OI.new_empty(len(layer.weight_OI), n) for layer in self._layers]
        d = [torch.empty_like(buffer) for buffer in a]
        forward: list[Call] = []
        backward: list[Call] = []  # in the order of the forward pass, to be reversed
        for i, layer in enumerate(self._layers):
            if layer.bias_gradient_O is not None:
                backward.append(partial(torch.sum, d[i], 1, out=layer.bias_gradient_O))
            if layer is self._layers[-1]:
                break
            h, slope_forward, slope_backward = curve(layer.activation, a[i], d[i])
            forward.append(slope_forward)
            backward.append(slope_backward)
            if training and layer.dropout:
                mask_NO, dropped = h.new_empty(n, len(h)), torch.empty_like(h)
                # drawn row by row, as torch's own dropout draws for the plain network
                forward.append(partial(_draw, mask_NO, layer.dropout))
                forward.append(partial(torch.mul, h, mask_NO.t(), out=dropped))
                backward.append(partial(d[i].mul_, mask_NO.t()))
                h = dropped
            after = self._layers[i + 1]
            forward.append(affine(after, h, a[i + 1]))
            backward.append(back(after, d[i + 1], d[i]))
            backward.append(outer(after, d[i + 1], h))
        outputs, d_outputs = a[-1], d[-1]
        if self._cast:  # the loss is a matter of full precision
            outputs, d_outputs = outputs.to(self._weights.dtype), d_outputs.to(self._weights.dtype)
            forward.append(partial(outputs.copy_, a[-1]))
            backward.append(partial(d[-1].copy_, d_outputs))
        return Tape(self._layers[0], a[0], forward, outputs, d_outputs, backward[::-1], d[0])


def _draw(mask_NO: Tensor, p: float) -> None:
    """What torch's own dropout multiplies by, drawn in the order in which it draws for the plain network."""
    mask_NO.bernoulli_(1 - p).div_(1 - p)


def _views(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, [p.numel() for p in like])
    return [part.view(p.shape) for part, p in zip(parts, like, strict=True)]
