"""Training against the worst small change of the inputs: a regulariser that knows where the network is weak."""

import torch
from torch import Tensor, nn

from feedfwd.data.batches import Batch
from feedfwd.train.loop import Gradients, autograd
from feedfwd.train.losses import Loss


def adversarial(reach: float, gradients: Gradients = autograd) -> Gradients:
    """Gradients at x + reach · sign(∂loss/∂x) in place of x: the fast gradient sign method.

    Goodfellow, Shlens and Szegedy 2015, arXiv 1412.6572, eq. 3, with every example changed. `reach` is in units of the
    preprocessed inputs. Costs a second forward and backward pass.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, -1.0]]))
    >>> batch, seen = Batch(torch.zeros(1, 2), torch.zeros(1)), []
    >>> def gradients(model, batch, loss, total):
    ...     seen.append(batch.inputs)
    ...     return torch.tensor(0.0)
    >>> _ = adversarial(0.5, gradients)(model, batch, lambda y, t: y[:, 0] - t, 1)
    >>> seen[0].tolist()
    [[0.5, -0.5]]
    """

    def at_the_worst(model: nn.Module, batch: Batch, loss: Loss, total_weight: Tensor | float) -> Tensor:
        x = batch.inputs.detach().requires_grad_()
        # Weights and the number of examples scale an example's slope but leave its sign, so a plain sum will do.
        (slope,) = torch.autograd.grad(loss(model(x), batch.targets).sum(), x)
        worst = torch.add(batch.inputs, slope.sign_(), alpha=reach)
        return gradients(model, Batch(worst, batch.targets, batch.weights), loss, total_weight)

    return at_the_worst
