"""An exponential moving average of the weights: often better to predict with than the last weights, and steadier."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """average ← d · average + (1 - d) · weights after every update, with d = min(decay, (1 + t) / (10 + t)).

    t counts the updates before this one: the rising decay lets early averages forget the initial weights (the formula
    is that of TensorFlow's ExponentialMovingAverage with `num_updates`). Averaged are the trainable parameters and the
    buffers that are saved with the model, such as batch normalisation's statistics; low-precision ones in fp32, where
    the small increments aren't lost.

    >>> model = nn.Linear(1, 1)
    >>> ema = EMA(model, decay=0.99)
    >>> ema.update()
    >>> with ema.swapped():
    ...     pass  # evaluate: the model holds the averages here, and its own weights again afterwards
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        saved = model.state_dict().keys()
        averaged: list[tuple[str, Tensor]] = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        buffers = [(n, b) for n, b in model.named_buffers() if n in saved and b.is_floating_point()]
        averaged += [(n, b) for n, b in buffers if b.isfinite().all()]  # ends of bins are not, and stay
        self.decay = decay
        self.updates = 0
        self.names = [name for name, _ in averaged]
        self.live = [tensor for _, tensor in averaged]
        self.averages = [t.detach().to(torch.promote_types(t.dtype, torch.float32), copy=True) for t in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights of now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        live = [t.to(a.dtype) for t, a in zip(self.live, self.averages, strict=True)]
        torch._foreach_lerp_(self.averages, live, 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model holds the averages inside and gets its own weights back after, also on an error.

        State saved inside would mix the two up: save outside.
        """
        own = [tensor.clone() for tensor in self.live]
        self._write(self.averages)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for tensor, value in zip(self.live, values, strict=True):
            tensor.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name and the number of updates: tensors only, the live ones, no copies."""
        return {"updates": torch.tensor(self.updates), **dict(zip(self.names, self.averages, strict=True))}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        self.updates = int(state["updates"])
        for name, average in zip(self.names, self.averages, strict=True):
            average.copy_(state[name])
