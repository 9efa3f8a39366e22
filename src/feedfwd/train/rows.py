"""Adam that touches of an embedding only the rows that were looked up, and a plainer rule for tables of n-grams."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class RowAdam(torch.optim.Optimizer):
    """Adam for sparse gradients, row by row, with AdamW for all other parameters.

    A row's moments move when it is looked up, as in `torch.optim.SparseAdam`, to which a test ties this one; a step
    costs by its rows and not by the table. All other parameters are updated by torch's fused AdamW. Weight decay
    (decoupled, on matrices) is for them: rows that are not looked up would have to be visited for it. `rate` says by a
    parameter's name how many times `lr` it learns at.

    Where `alike` says so by its name, a table takes gradient steps over one scale for the whole of it, the root of its
    rows' mean squared gradient, without momentum (one second moment a block, as in Adam-mini: Zhang et al. 2024, arXiv
    2406.16793). Adam makes every row's steps equally large, so that an n-gram of two texts is learnt by heart as
    fast as one of a thousand; here it moves by what it was seen to do.

    >>> table = nn.Embedding(1000, 4, sparse=True)
    >>> before, adam = table.weight.detach().clone(), RowAdam(table.named_parameters(), lr=0.1)
    >>> table(torch.tensor([3, 5, 3])).sum().backward()
    >>> adam.step()
    >>> (table.weight != before).any(1).nonzero().flatten().tolist()
    [3, 5]
    """

    def __init__(
        self,
        named: Any,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rate: Callable[[str], float] = lambda name: 1.0,
        alike: Callable[[str], bool] = lambda name: False,
    ) -> None:
        groups: dict[tuple[float, bool, bool], dict[str, Any]] = {}
        for name, parameter in named:
            if parameter.requires_grad:
                key = rate(name), parameter.ndim > 1, alike(name)
                times, matrix, one = key
                decay = weight_decay if matrix else 0.0
                shared = {"params": [], "lr": lr * times, "initial_lr": lr * times, "weight_decay": decay, "alike": one}
                groups.setdefault(key, shared)["params"].append((name, parameter))
        first = sorted(
            groups, key=lambda key: (-key[0], not key[1], key[2])
        )  # the highest rate is the one that is told
        super().__init__([groups[key] for key in first], {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            whole = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), device=parameter.device)
                    if group["alike"]:
                        state["square"] = torch.zeros((), device=parameter.device)
                    else:
                        state |= {"mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
                if parameter.grad.is_sparse:
                    state["step"] += 1
                    (self._move if group["alike"] else self._touch)(parameter, state, group)
                else:
                    whole.append(parameter)
            if whole:
                states = [self.state[parameter] for parameter in whole]
                steps = [state["step"] for state in states]
                torch._foreach_add_(steps, 1)
                beta1, beta2 = group["betas"]
                torch._fused_adamw_(
                    whole,
                    [parameter.grad for parameter in whole],
                    [state["mean"] for state in states],
                    [state["square"] for state in states],
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

    def _touch(self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Adam on the rows that have a gradient. Kingma & Ba 2014, arXiv 1412.6980."""
        assert parameter.grad is not None
        gradient = parameter.grad.coalesce()
        rows, g = gradient.indices()[0], gradient.values()
        (beta1, beta2), n = group["betas"], float(state["step"])
        m, v = state["mean"][rows], state["square"][rows]
        m.lerp_(g, 1 - beta1)
        v.lerp_(g * g, 1 - beta2)
        state["mean"][rows], state["square"][rows] = m, v
        change = m / (1 - beta1**n) / ((v / (1 - beta2**n)).sqrt() + group["eps"])
        parameter.index_add_(0, rows, change, alpha=-group["lr"])

    def _move(self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """A gradient step on the rows that have one, over the table's one scale."""
        assert parameter.grad is not None
        gradient = parameter.grad.coalesce()
        rows, g = gradient.indices()[0], gradient.values()
        if not len(rows):
            return
        beta2 = group["betas"][1]
        v = state["square"].lerp_(g.square().mean(), 1 - beta2)
        scale = (v / (1 - beta2 ** state["step"])).sqrt() + group["eps"]
        parameter.index_add_(0, rows, g / scale, alpha=-group["lr"])


def has_rows(model: nn.Module) -> bool:
    """Whether some embedding of the model gives sparse gradients.

    >>> has_rows(nn.Embedding(3, 2)), has_rows(nn.Embedding(3, 2, sparse=True))
    (False, True)
    """
    return any(getattr(module, "sparse", False) for module in model.modules() if isinstance(module, nn.Embedding))
