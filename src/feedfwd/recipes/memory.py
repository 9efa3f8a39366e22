"""How much memory a training will take, before it does."""

import torch
from torch import Tensor

from feedfwd.models.apart import Apart
from feedfwd.models.transformer import Transformer
from feedfwd.recipes.text import PreparedText
from feedfwd.train.cross_entropy import LOGITS
from feedfwd.train.precision import Precision

MOMENTS = {"sgd": 0, "momentum": 1, "nesterov": 1, "rmsprop": 1, "adagrad": 1}  # of a parameter; others keep two


def memory(p: PreparedText) -> int:
    """Bytes that training holds at once, about, without what torch takes for itself.

    Weights, gradients, the optimizer's moments and the average of the weights; what the backward pass of one batch
    needs of the forward pass, as a forward pass shows, and as much as a block's for what passes through; and the output
    layer's chunk of logits with its gradients.
    """
    c, model = p.config, p.model
    weights = sum(parameter.nbytes for parameter in model.parameters())
    moments = MOMENTS.get(c.optimizer.name, 2) * weights
    if c.optimizer.name == "muon":  # one moment for a matrix
        moments -= sum(parameter.nbytes for parameter in model.blocks.parameters() if parameter.ndim > 1)
    size = 2 if p.precision.name == "bf16" else 4
    tokens = c.data.row * c.train.batch_size
    if c.train.objective == "masked":  # the others have no logits
        tokens = round(tokens * c.train.masked)
    logits = min(LOGITS, tokens * model.vocabulary) * size
    head = logits + tokens * model.width * size + 4 * p.predicting.head_weight.numel()
    every = kept(p, recompute=False)
    block = every // len(model.blocks)
    passing = kept(p, recompute=True) + 2 * block if model.recompute else every + block
    return (2 + bool(c.train.ema)) * weights + moments + passing + head


def kept(p: PreparedText, *, recompute: bool) -> int:
    """Bytes that a batch's forward pass keeps for its backward pass, beside the weights."""
    before, p.model.recompute = p.model.recompute, recompute
    found = activations(p.model, next(p.batches()).inputs, p.precision)
    p.model.recompute = before
    return found


def activations(model: Transformer | Apart, inputs: Tensor, precision: Precision) -> int:
    """Bytes that the last states of a batch keep for a backward pass, beside the weights, in training mode."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, an output would hold its own graph for ever

    before = model.training
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), precision.autocast():
        hidden = model.hidden(inputs)
    del hidden
    model.train(before)
    return sum(found.values())
