"""Adam that touches of an embedding only the rows that were looked up."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class RowAdam(torch.optim.Optimizer):
    """Adam for sparse gradients, row by row, with AdamW for all other parameters.

    A row's moments move when it is looked up, as in `torch.optim.SparseAdam`, to which a test ties this one; a step
    costs by its rows and not by the table. Weight decay (decoupled, on matrices) is for the others: rows that are not
    looked up would have to be visited for it.

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
    ) -> None:
        named = [(name, p) for name, p in named if p.requires_grad]
        groups: Sequence[dict[str, Any]] = [
            {"params": [(n, p) for n, p in named if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [(n, p) for n, p in named if p.ndim < 2], "weight_decay": 0.0},
        ]
        defaults = {"lr": lr, "initial_lr": lr, "betas": betas, "eps": eps}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
                state["step"] += 1
                if parameter.grad.is_sparse:
                    gradient = parameter.grad.coalesce()
                    rows, g = gradient.indices()[0], gradient.values()
                    m, v = state["mean"][rows], state["square"][rows]
                    change = _adam(g, m, v, state["step"], group)
                    state["mean"][rows], state["square"][rows] = m, v
                    parameter.index_add_(0, rows, change, alpha=-group["lr"])
                else:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    change = _adam(parameter.grad, state["mean"], state["square"], state["step"], group)
                    parameter.add_(change, alpha=-group["lr"])


def _adam(g: Tensor, m: Tensor, v: Tensor, n: int, group: dict[str, Any]) -> Tensor:
    """Moves the moments m and v, and gives what the rate is multiplied by. Kingma & Ba 2014, arXiv 1412.6980."""
    beta1, beta2 = group["betas"]
    m.lerp_(g, 1 - beta1)
    v.lerp_(g * g, 1 - beta2)
    return m / (1 - beta1**n) / ((v / (1 - beta2**n)).sqrt() + group["eps"])


def has_rows(model: nn.Module) -> bool:
    """Whether some embedding of the model gives sparse gradients.

    >>> has_rows(nn.Embedding(3, 2)), has_rows(nn.Embedding(3, 2, sparse=True))
    (False, True)
    """
    return any(getattr(module, "sparse", False) for module in model.modules() if isinstance(module, nn.Embedding))
