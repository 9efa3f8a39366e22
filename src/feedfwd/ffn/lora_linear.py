"""A frozen linear map with low-rank adapters, several by name: LoRA, rsLoRA and DoRA.

y = x Wᵀ + b + s · drop(x) Aᵀ Bᵀ with A (R, D), B (H, R) and s = alpha/R: Hu et al. 2021, arXiv 2106.09685.
rsLoRA takes s = alpha/√R, Kalajdzievski 2023, arXiv 2312.03732. DoRA scales the rows of W + s·BA to a learnt magnitude,
y = m/‖W + s·BA‖ ⊙ (x Wᵀ + s · drop(x) Aᵀ Bᵀ) + b, the norm taken as a constant: Liu et al. 2024, arXiv 2402.09353.
"""

# N tokens, D inputs, H outputs, R rank, G matrices stacked in one weight (1, or 2 for gate and up)

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from feedfwd.errors import ConfigError, nearest
from feedfwd.ffn.low_rank import Hidden, low_rank_linear, runs_plain

METHODS = ("lora", "rslora", "dora")
KINDS = ("lora_A", "lora_B", "lora_magnitude", "lora_bias")  # the tensors an adapter may have


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter is, apart from its tensors.

    >>> Adapter(rank=16, alpha=32).scale, Adapter(rank=16, alpha=32, method="rslora").scale
    (2.0, 8.0)
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    method: str = "lora"
    bias: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"unknown method={self.method!r}", hint=nearest(self.method, METHODS))
        if self.rank < 1:
            raise ConfigError(f"rank={self.rank} is not a whole number of at least 1", hint="try 8 or 16")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} is not a probability below 1", hint="try 0.05")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.method == "rslora" else self.rank)


class LoRALinear(nn.Module):
    """A frozen linear map with named low-rank adapters, of which one is active or none.

    `base` is the linear map as it was; its weight may stack `groups` matrices. For each adapter NAME there are
    `lora_A.NAME` (G·R, D), `lora_B.NAME` (H, R), with method "dora" `lora_magnitude.NAME` (H,), and where the adapter
    has a bias `lora_bias.NAME` (H,), added to the base's. Their type is the base's, or fp32 where that is a half.

    It isn't an nn.Linear and has no `weight`, so that code which reads a layer's weight fails loudly instead of
    leaving the adapter out.
    """

    def __init__(self, base: nn.Linear, groups: int = 1) -> None:
        super().__init__()
        self.base, self.groups = base.requires_grad_(False), groups
        self.adapters: dict[str, Adapter] = {}
        self.active: str | None = None
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        self.lora_magnitude, self.lora_bias = nn.ParameterDict(), nn.ParameterDict()
        self._unmerged: tuple[nn.Parameter, nn.Parameter | None] | None = None

    @property
    def merged(self) -> bool:
        return self._unmerged is not None

    def add(self, name: str, adapter: Adapter, generator: Generator | None = None) -> None:
        """A new adapter, which changes nothing yet: B is zero, A uniform in ±1/√D as in the paper's own code."""
        if not name.isidentifier() or hasattr(nn.ParameterDict, name):
            raise ConfigError(f"{name!r} can't name an adapter", hint="take letters, digits and _, such as 'support_2'")
        if name in self.adapters:
            raise ConfigError(f"there is an adapter {name!r} already", hint="take another name")
        weight = self.base.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        (h, d), r = weight.shape, adapter.rank
        a = weight.new_empty(self.groups * r, d, dtype=dtype)
        self.lora_A[name] = nn.Parameter(a.uniform_(-(d**-0.5), d**-0.5, generator=generator))
        self.lora_B[name] = nn.Parameter(weight.new_zeros(h, r, dtype=dtype))
        if adapter.bias:
            self.lora_bias[name] = nn.Parameter(weight.new_zeros(h, dtype=dtype))
        self.adapters[name] = adapter
        if adapter.method == "dora":
            self.lora_magnitude[name] = nn.Parameter(self._norms(name))
        self.activate(self.active)

    def activate(self, name: str | None) -> None:
        """Use adapter `name`, and none for None. It alone can be trained; the others wait."""
        if self.merged:
            raise ConfigError("an adapter is merged into the weights", hint="unmerge it first")
        if name is not None and name not in self.adapters:
            raise ConfigError(f"no adapter {name!r}", hint=nearest(name, self.adapters))
        self.active = name
        for kind in KINDS:
            for key, parameter in getattr(self, kind).items():
                parameter.requires_grad_(key == name)

    def forward(self, x: Tensor, hidden: Hidden | None = None) -> Tensor:  # (..., D) -> (..., H)
        """The adapted map of x, or with `hidden` of what that makes of x."""
        name = self.active
        if name is None or self.merged:
            if hidden is None:
                return self.base(x)
            return low_rank_linear(x, self.base.weight, self.base.bias, None, None, hidden=hidden)
        adapter = self.adapters[name]
        return low_rank_linear(
            x,
            self.base.weight,
            self._bias(name),
            self.lora_A[name],
            self.lora_B[name],
            adapter.scale,
            dropout=adapter.dropout if self.training else 0.0,
            gain=self._gain(name),
            groups=self.groups,
            hidden=hidden,
        )

    def explain(self) -> str:
        """Which path the forward pass takes, and why."""
        if self.active is None or self.merged:
            return f"the base alone: {'the adapter is merged into it' if self.merged else 'no adapter is active'}"
        why = runs_plain(self.base.weight)
        return f"plain: {why}" if why else "low rank: keeps x and drop(x) Aᵀ for backward"

    def merge(self) -> None:
        """Put the active adapter into the weights; they are kept beside until `unmerge` or `unwrap`."""
        name = self.active
        if self.merged or name is None:
            raise ConfigError("nothing to merge", hint="it is merged already" if self.merged else "activate an adapter")
        base: Any = self.base  # whose bias may be None, which torch's annotation leaves out
        kept = base.weight, base.bias
        with torch.no_grad():
            weight, bias, gain = base.weight.to(self.lora_A[name].dtype), self._bias(name), self._gain(name)
            parts = zip(self.lora_A[name].chunk(self.groups), self.lora_B[name].chunk(self.groups), strict=True)
            weight = weight + self.adapters[name].scale * torch.cat([b_HR @ a_RD for a_RD, b_HR in parts])
            if gain is not None:
                weight = weight * gain[:, None]
        # New parameters rather than new values: another layer may share the old ones, an embedding for instance.
        base.weight = nn.Parameter(weight.to(base.weight.dtype), requires_grad=False)
        base.bias = None if bias is None else nn.Parameter(bias.detach().to(base.weight.dtype), requires_grad=False)
        self._unmerged = kept

    def unmerge(self) -> None:
        """Bring back the very weights there were before `merge`."""
        if self._unmerged is None:
            raise ConfigError("nothing to unmerge", hint="no adapter is merged")
        now = self.base.weight
        for name, parameter in zip(("weight", "bias"), self._unmerged, strict=True):
            if parameter is not None and (parameter.device, parameter.dtype) != (now.device, now.dtype):
                parameter = nn.Parameter(parameter.to(now), requires_grad=False)  # the model was moved meanwhile
            setattr(self.base, name, parameter)
        self._unmerged = None

    def _bias(self, name: str) -> Tensor | None:
        """The base's bias and the adapter's."""
        if name not in self.lora_bias:
            return self.base.bias
        added = self.lora_bias[name]
        return added if self.base.bias is None else self.base.bias + added

    def _gain(self, name: str) -> Tensor | None:
        """DoRA's m/‖W + s·BA‖ (H,); the norm is a constant (section 4.3)."""
        if name not in self.lora_magnitude:
            return None
        return self.lora_magnitude[name] / self._norms(name)

    @torch.no_grad()
    def _norms(self, name: str) -> Tensor:
        """‖W + s·BA‖ of each row (H,), from ‖w‖² + 2s·(w Aᵀ)b + s²·b(A Aᵀ)b: the sum itself is never formed."""
        weight, scale = self.base.weight, self.adapters[name].scale
        a, b = self.lora_A[name], self.lora_B[name]
        parts = zip(weight.chunk(self.groups), a.chunk(self.groups), b.chunk(self.groups), strict=True)
        with torch.autocast(weight.device.type, enabled=False):
            squares = torch.linalg.vector_norm(weight, dim=1, dtype=b.dtype).square()
            rest = [((2 * F.linear(w, a.to(w.dtype)) + scale * (b @ (a @ a.t()))) * b).sum(1) for w, a, b in parts]
        return (squares + scale * torch.cat(rest)).clamp(min=torch.finfo(b.dtype).tiny).sqrt()

    def extra_repr(self) -> str:
        return f"adapters={list(self.adapters)}, active={self.active!r}" + (", merged" if self.merged else "")
