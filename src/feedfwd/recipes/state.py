"""What moves in any training, as the tensors and numbers of a saved state, and back."""

from typing import Any

from torch import Tensor, nn

from feedfwd.train.averaging import EMA
from feedfwd.train.optimizers import Optimizer
from feedfwd.train.resume import flatten_state, generator_states, restore_generators, restore_state


def moving(model: nn.Module, optimizer: Optimizer, ema: EMA | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, moments, averages and generators, the live tensors by `part.name`; and the optimizer's numbers."""
    moments, numbers = flatten_state(optimizer)
    parts = {"model": model.state_dict(), "optimizer": moments, "rng": generator_states()}
    if ema is not None:
        parts["ema"] = ema.state_dict()
    return {f"{part}.{name}": tensor for part, of in parts.items() for name, tensor in of.items()}, numbers


def restore(
    tensors: dict[str, Tensor], numbers: dict[str, Any], model: nn.Module, optimizer: Optimizer, ema: EMA | None
) -> None:
    """Bring what was built in the same way to the state that `moving` gave."""

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    model.load_state_dict(under("model."))
    restore_state(optimizer, under("optimizer."), numbers)
    if ema is not None:
        ema.load_state_dict(under("ema."))
    restore_generators(under("rng."))
