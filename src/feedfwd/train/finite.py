"""Watching that losses and gradients stay finite, and saying where it began when they don't."""

import math

import torch
from torch import Tensor, nn

from feedfwd.data.batches import Batch
from feedfwd.errors import TrainingError
from feedfwd.ffn import plain
from feedfwd.train.losses import Loss

SMALL = 4096  # entries

LOWER = "lower optimizer.lr (now {lr:g}), or bound the gradient with train.clip=1"


class Watch:
    """Looks at a number an update that is finite only if the loss and the gradients it covers are.

    On a CPU that is the loss and the sums of the gradients of at most `SMALL` entries, at every update, before it is
    done; biases and gains are among them, and what is not finite in a layer's backward pass shows there too. All
    gradients are covered every 16th update (with clipping, every update): to read them all each time would take 6 % of
    the step of 784-128-128-10 at batch 64, in place of 2 %.

    On other devices, where reading a number makes the host wait, all gradients are covered, and the numbers of 16
    updates are read at once; by then a bad update has been done, and a state saved in between holds it.
    """

    def __init__(self, parameters: list[Tensor], every: int = 16) -> None:
        self.every = every
        self.at_once = parameters[0].device.type == "cpu"
        self.small = [p for p in parameters if p.numel() <= SMALL]
        self.unread: list[tuple[int, Tensor]] = []

    def bad(self, n: int, value: Tensor, gradients: list[Tensor], norm: Tensor | None, last: bool) -> int | None:
        """The first update that was found to be not finite, if there is one. `last` leaves nothing unlooked at."""
        due = last or n % self.every == self.every - 1
        if self.at_once:
            signal = value.item()
            if norm is not None:
                signal += norm.item()
            else:
                looked = gradients if due else [p.grad for p in self.small if p.grad is not None]
                signal += sum([g.sum().item() for g in looked])
            return None if math.isfinite(signal) else n
        if norm is None:  # of rows looked up several times each part's: finite where their sum is
            norm = global_norm([g._values() if g.is_sparse else g for g in gradients])
        self.unread.append((n, value + norm))
        if not due:
            return None
        finite = torch.stack([signal for _, signal in self.unread]).isfinite().tolist()
        first = next((m for (m, _), good in zip(self.unread, finite, strict=True) if not good), None)
        self.unread.clear()
        return first


def global_norm(gradients: list[Tensor]) -> Tensor:
    """√ Σ g², over all entries of all gradients."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def clip_norm(gradients: list[Tensor], largest: float) -> Tensor:
    """Scale all gradients by one factor so that their norm is at most `largest`; the norm before. Pascanu et al. 2013.

    >>> g = [torch.tensor([3.0]), torch.tensor([4.0])]
    >>> clip_norm(g, 1.0), g
    (tensor(5.), [tensor([0.6000]), tensor([0.8000])])
    """
    norm = global_norm(gradients)
    if norm.device.type != "cpu" or norm > largest:  # a CPU need not multiply by one
        torch._foreach_mul_(gradients, (largest / norm).clamp(max=1.0))
    return norm


def diagnose(
    model: nn.Module, batches: list[Batch], loss: Loss, total: Tensor | float, norm: Tensor | None, lr: float
) -> tuple[str, str] | None:
    """What is not finite, as near to its origin as can be told, and what to try. None if all is finite after all.

    Looks in the order of cause and effect: weights of the batch, inputs, parameters, the layers' outputs, targets,
    loss, and gradients from the output backwards.
    """
    lower = LOWER.format(lr=lr)
    if float(total) == 0:
        return "all its weights are zero, so there is nothing to learn from", "check what masks the targets"
    for batch in batches:
        if not _finite(batch.inputs):
            return "its inputs hold a value that isn't finite", "replace such values in the data"
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"parameter {name!r} is not finite", lower
    for batch in batches:
        outputs, layer = _first_bad_layer(model, batch.inputs)
        if layer:
            return f"the output of layer {layer} is not finite", f"{lower}; train.precision=fp32 reaches further"
        if not _finite(batch.targets):
            return "its targets hold a value that isn't finite", "replace such values in the data"
        with torch.no_grad():
            if not _finite(loss(outputs, batch.targets)):
                return "the loss is not finite, though the model's outputs are", f"check the targets' range; {lower}"
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not _finite(parameter.grad):
            return f"the gradient of {name!r} is not finite", lower
    if norm is not None and not _finite(norm):
        return "the norm of the gradient is too large for its number format", lower
    return None


def stopped(n: int, steps: int, diagnosis: tuple[str, str]) -> TrainingError:
    """The error for update n (from 0) of so many."""
    what, hint = diagnosis
    return TrainingError(f"training stopped in update {n + 1} of {steps}: {what}", hint=hint)


def _finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


@torch.no_grad()
def _first_bad_layer(model: nn.Module, inputs: Tensor) -> tuple[Tensor, str]:
    """The model's outputs, and the first layer with finite inputs whose output isn't: inner layers finish first."""
    found: list[str] = []

    def look(name: str, module: nn.Module, given: tuple, output: object) -> None:
        finite = all(_finite(x) for x in given if isinstance(x, Tensor))
        if not found and finite and isinstance(output, Tensor) and not _finite(output):
            found.append(f"{name!r} ({type(module).__name__})" if name else type(module).__name__)

    hooks = [
        module.register_forward_hook(lambda m, given, output, name=name: look(name, m, given, output))
        for name, module in model.named_modules()
    ]
    try:
        with plain():  # the kernels would say that hooks keep them from working
            return model(inputs), "".join(found[:1])
    finally:
        for hook in hooks:
            hook.remove()
