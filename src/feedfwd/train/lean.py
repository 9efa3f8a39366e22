"""Adam without what surrounds it: torch's own kernel and the form of its state, and nothing else.

`torch.optim.Adam.step` spends about 20 µs on hooks, grouping and bookkeeping before the kernel runs; for a network of
784-128-128-10 the kernel itself takes about as long. And the first of torch's optimizers that a process creates imports
torch's compiler, which takes most of a second.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class LeanAdam:
    """Adam, or `decoupled` AdamW, over all parameters of a model: the numbers of torch's fused ones, to the bit.

    Weight decay applies to parameters of two or more axes. `step` takes for granted that each has its gradient.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> before, adam = model.weight.item(), LeanAdam(model, lr=0.5)
    >>> for _ in range(2):
    ...     model.weight.grad = torch.ones(1, 1)
    ...     adam.step()
    >>> round(before - model.weight.item(), 4)
    1.0
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decoupled: bool = False,
    ) -> None:
        self._update = torch._fused_adamw_ if decoupled else torch._fused_adam_
        decays = {True: weight_decay, False: 0.0} if weight_decay else {True: 0.0}
        self.param_groups: list[dict[str, Any]] = []
        self._state: list[tuple[list[Tensor], list[Tensor], list[Tensor]]] = []  # of each group
        for matrices, decay in decays.items():
            params = [p for p in model.parameters() if not weight_decay or (p.ndim >= 2) is matrices]
            if not params:
                continue
            group = {"params": params, "lr": lr, "initial_lr": lr, "betas": betas, "eps": eps, "weight_decay": decay}
            self.param_groups.append(group)
            means, squares = ([torch.zeros_like(p, requires_grad=False) for p in params] for _ in range(2))
            self._state.append((means, squares, [torch.zeros((), device=p.device) for p in params]))

    def step(self) -> None:
        """One update of every parameter."""
        with torch.no_grad():
            for group, (means, squares, steps) in zip(self.param_groups, self._state, strict=True):
                torch._foreach_add_(steps, 1)
                beta1, beta2 = group["betas"]
                self._update(
                    group["params"],
                    [p.grad for p in group["params"]],
                    means,
                    squares,
                    [],
                    steps,
                    lr=group["lr"],
                    beta1=beta1,
                    beta2=beta2,
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=False,
                )

    def state_dict(self) -> dict[str, Any]:
        """In the form of torch's optimizers; the tensors are its own."""
        groups, start = [], 0
        for group in self.param_groups:
            groups.append(group | {"params": list(range(start, start + len(group["params"])))})
            start += len(group["params"])
        return {"state": dict(enumerate(self._by_parameter())), "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for index, own in enumerate(self._by_parameter()):
            for name, value in state_dict["state"][index].items():
                own[name].copy_(value)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})

    def _by_parameter(self) -> list[dict[str, Tensor]]:
        return [
            {"step": step, "exp_avg": mean, "exp_avg_sq": square}
            for means, squares, steps in self._state
            for mean, square, step in zip(means, squares, steps, strict=True)
        ]
