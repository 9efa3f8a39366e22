"""How an update is done: by autograd, or by the plain network's own chain rule where that serves and is faster."""

from dataclasses import dataclass

import torch

from feedfwd.models.mlp_fast import FastMLP, lacks
from feedfwd.recipes.prepare import Prepared, optimizer_for
from feedfwd.train.adversarial import adversarial
from feedfwd.train.lean import LeanAdam
from feedfwd.train.loop import Gradients, autograd
from feedfwd.train.optimizers import Optimizer
from feedfwd.train.output_gradients import output_gradient
from feedfwd.train.precision import FP32, Precision


@dataclass(frozen=True)
class Engine:
    """What the loop needs besides model, batches and loss."""

    optimizer: Optimizer
    gradients: Gradients
    precision: Precision  # what the loop sees: the fast path rounds by itself


def engine(p: Prepared, lr: float) -> Engine:
    """The fast path for `p.model` where it serves; from then on its parameters are views of one flat tensor."""
    if plain_because(p) is not None:
        reach = p.config.train.adversarial
        return Engine(optimizer_for(p.model, p.config, lr), adversarial(reach) if reach else autograd, p.precision)
    fast = FastMLP(p.model, output_gradient(p.loss), bf16=p.precision.name == "bf16")
    optimizer = optimizer_for(fast.flat, p.config, lr)
    lean = LeanAdam(optimizer) if isinstance(optimizer, torch.optim.Adam) else optimizer
    return Engine(lean, fast.gradients, FP32)


def plain_because(p: Prepared) -> str | None:
    """Why autograd finds the gradients; None where the fast path does."""
    if p.config.train.adversarial:
        return "adversarial training differentiates the inputs"
    if p.model.growth:
        return "mup gives each matrix a rate of its own"
    return lacks(p.model, p.config.optimizer.name)
