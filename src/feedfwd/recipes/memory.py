"""How much memory a training will take, before it does."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from feedfwd.errors import ConfigError
from feedfwd.models.apart import Apart
from feedfwd.models.transformer import Transformer
from feedfwd.train.cross_entropy import LOGITS
from feedfwd.train.optimizers import MUONS
from feedfwd.train.precision import Precision

if TYPE_CHECKING:
    from feedfwd.recipes.text import PreparedText

MEASURED = 1 << 14  # tokens of a batch that are tried; what a larger one keeps is in proportion
DOUBTED = 0.25  # of the machine's memory: below, a rough count says enough

MOMENTS = {"sgd": 0, "momentum": 1, "nesterov": 1, "rmsprop": 1, "adagrad": 1}  # of a parameter; others keep two


def memory(p: "PreparedText") -> int:
    """Bytes that training holds at once, about, without what torch takes for itself.

    Weights, gradients, the optimizer's moments and the average of the weights; what the backward pass of one batch
    needs of the forward pass, as a forward pass shows, and as much as a block's for what passes through; and the output
    layer's chunk of logits with its gradients.
    """
    c, model = p.config, p.model
    weights = sum(parameter.nbytes for parameter in model.parameters())
    moments = MOMENTS.get(c.optimizer.name, 2) * weights
    if c.optimizer.name in MUONS:  # one moment for a matrix
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


def kept(p: "PreparedText", *, recompute: bool) -> int:
    """Bytes that a batch's forward pass keeps for its backward pass, beside the weights."""
    c = p.config
    rows = max(1, MEASURED // c.data.row)
    if c.train.batch_size > rows:
        fewer = replace(p, config=c.with_("train.batch_size", rows))
        return round(kept(fewer, recompute=recompute) * c.train.batch_size / rows)
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


def check_room(p: "PreparedText") -> None:
    """ConfigError where a batch can't fit into the memory there is, with a size that does."""
    c, there = p.config, room(p.device)
    tokens = c.data.row * c.train.batch_size
    least = (
        4 * tokens * (c.model.depth * (4 * c.model.width + c.ffn.hidden) if not c.model.recompute else c.model.width)
    )
    if there is None or least < DOUBTED * there or (needed := memory(p)) <= there:
        return
    one = memory(replace(p, config=c.with_("train.batch_size", 1)))
    each = max(1.0, (needed - one) / max(1, c.train.batch_size - 1))
    fits = max(1, int(0.8 * (there - one) / each))
    what = f"train.batch_size={c.train.batch_size:,} rows of data.row={c.data.row:,} need about {_gb(needed)} of memory"
    hint = f"set train.batch_size={fits} or fewer, and train.accumulate for larger updates; or a smaller size"
    raise ConfigError(f"{what}, and there are {_gb(there)}", hint=hint)


def room(device: torch.device) -> int | None:
    """Bytes of memory that this process may have at most; None where it can't be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    found: list[int] = []
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # of a container; "max" where there is no limit
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found, default=None)


def _gb(n: int) -> str:
    return f"{n / 1e9:,.0f} GB" if n >= 1e10 else f"{n / 1e9:.1f} GB"
