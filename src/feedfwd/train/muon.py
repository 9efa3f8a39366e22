"""Muon: momentum whose direction is orthogonalised, matrix by matrix (Jordan et al. 2024).

On a CPU a matrix is worked on in C, from its gradient to its step (`muon_native`), and by torch's operations elsewhere.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from feedfwd.ffn.init import Growth
from feedfwd.train import muon_native
from feedfwd.train.precision import lacks_bf16

# x ← a x + b x³ + c x⁵, step by step: of all quintics the one that brings a band of singular values nearest to 1, the
# band being what the step before leaves of 0.003 … 1, with 1 % to spare for rounding (Amsel et al. 2025, Polar Express,
# arXiv 2505.16932). Four end between 0.8 and 1.2, as five of Jordan's do.
QUINTICS = (
    (8.302, -24.0468, 17.474),
    (4.0035, -2.9229, 0.5419),
    (3.4708, -2.5494, 0.5002),
    (2.4653, -1.7803, 0.4156),
)
SMOOTH = 0.9  # of the moving mean by which rows are evened out
LARGE = 2**17  # entries of a matrix from which Muon works on it by itself

Named = list[tuple[str, nn.Parameter]]


def spectral_multiplier(shape: Sequence[int], growth: Growth) -> float:
    """The same for one matrix of Muon's.

    A layer's change keeps its size at every width where the update's largest singular value is proportional to
    √(rows / columns) (Yang, Simon & Bernstein 2023, arXiv 2310.17813); `Muon` makes it proportional to √max(rows,
    columns). This is the ratio of the two, relative to that at the base width.

    >>> spectral_multiplier((512, 512), Growth(inputs=4, outputs=4)), spectral_multiplier((512, 16), Growth(outputs=4))
    (0.5, 1.0)
    """
    rows, columns = shape
    base = max(rows / growth.outputs, columns / growth.inputs)
    return math.sqrt(growth.outputs / growth.inputs * base / max(rows, columns))


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is orthogonalised, matrix by matrix. Jordan et al. 2024; scaled as in arXiv 2502.16982.

        B ← μ B + (1 - μ) G;   θ ← (1 - lr λ) θ - lr · 0.2 √max(rows, columns) · orthogonalized((1 - μ) G + μ B)

    With this scale the entries of an update are of the size of AdamW's, so that one rate serves both. A parameter that
    is a stack of `packed[name]` matrices is split before it is orthogonalised. `growth` scales the step by
    `spectral_multiplier`, the decay not.

    With `evened`, every row of a direction, or every column where these are more, gets the root mean square of the
    others, by a moving mean of its squares, and the whole keeps its size: NorMuon, Li et al. 2025, arXiv 2510.05491.

    `torch.optim.Muon`, to which a test ties this one, works in bfloat16 only: on a processor without bf16 products it
    took 58 ms for an update of 784-128-128-10, where fp32 takes 4.
    """

    def __init__(
        self,
        named: Named,
        packed: dict[str, int],
        lr: float,
        weight_decay: float,
        momentum: float,
        growth: Mapping[str, Growth],
        evened: bool = False,
    ) -> None:
        group = {"params": named, "lr": lr, "initial_lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__([group], {})
        self.stacked: dict[Tensor, int] = {parameter: packed[name] for name, parameter in named}
        self.growth: dict[Tensor, Growth] = {parameter: growth.get(name, Growth()) for name, parameter in named}
        self.evened = evened
        native = all(not lacks_bf16(parameter.device.type) for _, parameter in named)
        self.dtype = torch.bfloat16 if native else torch.float32

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            in_c: list[muon_native.Job] = []
            by_torch: list[nn.Parameter] = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if not (state := self.state[parameter]):
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                    if self.evened:
                        many, (rows, columns) = self.stacked[parameter], parameter.shape
                        state["moment"] = parameter.new_zeros(many, max(rows // many, columns))
                job = muon_native.Job(
                    parameter, parameter.grad, state["momentum_buffer"], self.stacked[parameter], state.get("moment")
                )
                if muon_native.lacks(job, self.dtype) is None:
                    in_c.append(job)
                else:
                    by_torch.append(parameter)
            if in_c:
                steps = [lr * self._size(job.weight) for job in in_c]
                muon_native.update(in_c, steps, momentum, 1 - lr * group["weight_decay"], SMOOTH, QUINTICS, self.dtype)
            for alike in self._alike(by_torch):
                gradients = [parameter.grad for parameter in alike if parameter.grad is not None]
                buffers = [self.state[parameter]["momentum_buffer"] for parameter in alike]
                torch._foreach_lerp_(buffers, gradients, 1 - momentum)
                directions = torch._foreach_lerp(gradients, buffers, momentum)
                torch._foreach_mul_(tuple(alike), 1 - lr * group["weight_decay"])
                count = self.stacked[alike[0]]
                matrices = [matrix for parameter in alike for matrix in parameter.chunk(count)]
                towards = torch.stack([matrix for direction in directions for matrix in direction.chunk(count)])
                found = orthogonalized(towards.to(self.dtype))
                if self.evened:
                    moments = [self.state[parameter]["moment"] for parameter in alike]
                    found = evened(found, moments)
                for matrix, direction in zip(matrices, found, strict=True):
                    matrix.add_(direction, alpha=-lr * self._size(alike[0]))

    def _size(self, parameter: Tensor) -> float:
        rows, columns = parameter.shape
        shape = rows // self.stacked[parameter], columns
        return 0.2 * math.sqrt(max(shape)) * spectral_multiplier(shape, self.growth[parameter])

    def _alike(self, parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
        """Small matrices of one form are orthogonalised together, large ones each by itself, which is faster there."""
        found: dict[Any, list[nn.Parameter]] = {}
        for parameter in parameters:
            form = parameter.shape, self.stacked[parameter], self.growth[parameter]
            found.setdefault(form if parameter.numel() < LARGE * form[1] else parameter, []).append(parameter)
        return list(found.values())


def orthogonalized(matrix: Tensor) -> Tensor:
    """About U V' of the matrix U S V', or of each in a stack of them.

    Newton-Schulz steps by `QUINTICS` bring the singular values near 1, all but tiny ones.

    >>> singular = torch.linalg.svdvals(orthogonalized(torch.diag(torch.tensor([1.0, 5.0, 20.0]))))
    >>> bool((0.6 < singular).all() and (singular < 1.3).all())
    True
    """
    if matrix.ndim == 3 and len(matrix) == 1:
        return orthogonalized(matrix[0]).unsqueeze(0)
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    add = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    for first, third, fifth in QUINTICS:
        gram = x @ x.mT
        x = add(x, add(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return x.mT if tall else x


def evened(directions: Tensor, moments: Sequence[Tensor]) -> Tensor:
    """Directions (K, rows, columns) whose rows, or columns where these are more, were given one root mean square.

    `moments` are the moving means of their squares, K of them in tensors (stacked, longer side), which are updated.
    """
    x = directions.to(moments[0].dtype)
    shorter = -1 if x.shape[1] >= x.shape[2] else -2
    mean = x.square().mean(shorter, keepdim=True)
    moment = torch.cat(list(moments)).lerp_(mean.squeeze(shorter), 1 - SMOOTH)
    for held, new in zip(moments, torch.split(moment, [len(held) for held in moments]), strict=True):
        held.copy_(new)
    factor = moment.clamp(min=1e-10).rsqrt().unsqueeze(shorter)
    after = (mean * factor.square()).sum((1, 2), keepdim=True)
    return x * factor * (mean.sum((1, 2), keepdim=True) / after.clamp(min=1e-30)).sqrt()
