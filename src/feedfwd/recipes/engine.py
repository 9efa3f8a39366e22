"""How an update is done: by autograd, or by the plain network's own chain rule where that serves and is faster."""

from dataclasses import dataclass

from feedfwd.models.mlp_fast import FastMLP, uncompiled_because
from feedfwd.models.tabular import Tabular
from feedfwd.recipes.prepare import Prepared, optimizer_for, plain_because
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
    if isinstance(p.model, Tabular) or plain_because(p.config, p.model) is not None:
        reach = p.config.train.adversarial
        return Engine(optimizer_for(p.model, p.config, lr), adversarial(reach) if reach else autograd, p.precision)
    fast = FastMLP(p.model, output_gradient(p.loss), bf16=p.precision.name == "bf16")
    o = p.config.optimizer
    if o.name not in ("adam", "adamw"):
        return Engine(optimizer_for(fast.flat, p.config, lr), fast.gradients, FP32)
    betas = o.beta1, 0.999 if o.beta2 is None else o.beta2
    decoupled = o.name == "adamw"
    lean = LeanAdam(fast.flat, lr, weight_decay=o.weight_decay, betas=betas, eps=o.eps, decoupled=decoupled)
    return Engine(lean, fast.gradients, FP32)


def way(p: Prepared) -> str:
    """In words, how the gradients are found, and why not faster. What a run's bits depend on beside its settings."""
    reason = plain_because(p.config, p.model)
    if reason is not None or isinstance(p.model, Tabular):
        return f"autograd ({reason})"
    reason = uncompiled_because(p.model, p.config.train.batch_size, p.precision.name == "bf16")
    return "the chain rule in compiled C" if reason is None else f"the chain rule in torch's operations ({reason})"
