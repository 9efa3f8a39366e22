"""The feed-forward layers with adapted maps inside.

They keep x, the first product and the narrow products of the adapters for the backward, 2d + 4h bytes a token in bf16
where gated, with dropout and biases or without: the second map takes the first product itself and makes the activations
of it again. `explain` tells where the plain formula runs instead.
"""

# N tokens, D model width, H hidden width, M = 2H where gated and H where dense

import torch.nn.functional as F
from torch import Tensor, nn

from feedfwd.ffn.dense import DenseFFN
from feedfwd.ffn.gated import GatedFFN, GatedLinear
from feedfwd.ffn.kernels.function import choose
from feedfwd.ffn.kernels.plan import DTYPES, Path, report, sigma_of
from feedfwd.ffn.lora_linear import LoRALinear
from feedfwd.ffn.low_rank import Hidden, low_rank_linear, product_dtype, runs_plain
from feedfwd.ffn.parts import Linear, watched


class AdaptedDense(DenseFFN):
    """A DenseFFN of which `up`, `down` or both are adapted."""

    def forward(self, x: Tensor) -> Tensor:  # (..., D) -> (..., D)
        z = self.up(self.norm(x))
        if (y := _second(self, z, gated=False)) is not None:
            return y  # the same as below, with less kept for the backward
        return self.down(self.dropout(self.activation(z)))

    def explain(self, x: Tensor) -> Path:
        """What `ffn.explain` says of it."""
        return _explain(self, x)


class AdaptedGatedLinear(GatedLinear):
    """A GatedLinear whose `gate_up` has become a LoRALinear."""

    def forward(self, x: Tensor) -> Tensor:  # (..., inputs) -> (..., outputs)
        gate, up = _gate_up(self, x).chunk(2, dim=-1)
        return self.activation(gate) * up

    def extra_repr(self) -> str:
        return f"init={self.init}"


class AdaptedGated(GatedFFN):
    """A GatedFFN of which `gate_up`, `down` or both are adapted."""

    def forward(self, x: Tensor) -> Tensor:  # (..., D) -> (..., D)
        z = _gate_up(self, self.norm(x))
        if (y := _second(self, z, gated=True)) is not None:
            return y  # the same as below, with less kept for the backward
        gate, up = z.chunk(2, dim=-1)
        return self.down(self.dropout(self.activation(gate) * up))

    def explain(self, x: Tensor) -> Path:
        """What `ffn.explain` says of it."""
        return _explain(self, x)

    def extra_repr(self) -> str:
        return f"init={self.init}"


AdaptedFFN = AdaptedDense | AdaptedGated

# A layer reads its weights where it is fast; once one of them is adapted, it asks the adapted map instead.
ADAPTED: dict[type[nn.Module], type[nn.Module]] = {
    DenseFFN: AdaptedDense,
    GatedLinear: AdaptedGatedLinear,
    GatedFFN: AdaptedGated,
}
PLAIN = {adapted: plain for plain, adapted in ADAPTED.items()}


def _gate_up(layer: GatedLinear, x: Tensor) -> Tensor:  # (..., D) -> (..., 2H)
    """Gate and up side by side, of a map that may be adapted."""
    if isinstance(layer.gate_up, nn.Module):
        return layer.gate_up(x)
    return F.linear(x, layer.gate_up, layer.gate_up_bias)


def _second(layer: AdaptedFFN, z: Tensor, gated: bool) -> Tensor | None:
    """The layer's output from its first product, or None where the plain formula must run."""
    if reason := _why_plain(layer, z):
        report(type(layer).__name__, reason)
        return None
    sigma, down = sigma_of(layer.activation), layer.down
    assert sigma is not None
    hidden = Hidden.of(sigma, gated, layer.dropout, z)
    if isinstance(down, LoRALinear):
        return down(z, hidden)
    return low_rank_linear(z, down.weight, down.bias, None, None, hidden=hidden)


def _why_plain(layer: AdaptedFFN, z: Tensor) -> str:
    """Why the layer takes its plain formula, or ""."""
    down, activation, dropout = layer.down, layer.activation, layer.dropout
    if type(down) not in (LoRALinear, Linear, nn.Linear):
        return f"{type(down).__name__} in place of a plain linear map"
    if reason := runs_plain(down.base.weight if isinstance(down, LoRALinear) else down.weight):
        return reason
    if sigma_of(activation) is None:
        return f"no kernel is written for {activation}"
    for part in (down, activation, dropout):
        if watched(part):
            return f"a hook sits on its {type(part).__name__}, and must see what passes there"
    if z.dtype not in DTYPES:
        return f"no kernel is written for {str(z.dtype).removeprefix('torch.')}"
    return ""


def _explain(layer: AdaptedFFN, x: Tensor) -> Path:
    if reason := _why_plain(layer, x):
        return Path(False, "", reason, "what autograd keeps")
    sigma = sigma_of(layer.activation)
    assert sigma is not None
    passes, reason = choose(sigma, product_dtype(x), x.device.type)
    return Path(True, passes.name, reason, "x, the first product, and the adapters' narrow ones")
