"""What it takes to go on bit for bit: optimizer state as named tensors and plain numbers, and the random generators.

Nothing here needs pickle: the tensors go into a safetensors file, the numbers into JSON.
"""

from typing import Any

import torch
from torch import Tensor

from feedfwd.errors import RunError
from feedfwd.train.optimizers import Optimizer

# How torch computes an update, not which: decided by the machine that goes on.
IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")


def flatten_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State tensors by `parameter/quantity`, and the rest as JSON values.

    The tensors are the optimizer's own, not copies: write them before the next update.

    >>> model = torch.nn.Linear(2, 1)
    >>> adam = torch.optim.Adam(model.named_parameters())
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> adam.step()
    >>> sorted(flatten_state(adam)[0])
    ['bias/exp_avg', 'bias/exp_avg_sq', 'bias/step', 'weight/exp_avg', 'weight/exp_avg_sq', 'weight/step']
    """
    state = optimizer.state_dict()
    names = _names(state)
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, quantities in state["state"].items():
        for quantity, value in quantities.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{names[index]}/{quantity}"] = value
    skipped = ("params", "param_names", *IMPLEMENTATION)
    return tensors, {
        "optimizer": type(optimizer).__name__,
        "parameters": list(names.values()),
        "groups": [{k: v for k, v in group.items() if k not in skipped} for group in state["param_groups"]],
        "state": numbers,
    }


def restore_state(optimizer: Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Bring an optimizer that was built in the same way to the state that `flatten_state` gave."""
    current = optimizer.state_dict()
    names, groups = _names(current), numbers["groups"]
    if numbers["optimizer"] != type(optimizer).__name__:
        raise RunError(
            f"the saved state is that of {numbers['optimizer']}, not of {type(optimizer).__name__}",
            hint="resume with the settings of the run",
        )
    if numbers["parameters"] != list(names.values()) or len(groups) != len(current["param_groups"]):
        raise RunError("the saved optimizer state is another model's", hint="resume with the settings of the run")
    indices = {name: index for index, name in names.items()}
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers["state"]}.items():
        name, _, quantity = key.rpartition("/")
        # torch keeps tensors as they are given: copies, so that the caller's stay the caller's
        state.setdefault(indices[name], {})[quantity] = value.clone() if isinstance(value, Tensor) else value
    restored = [
        group | {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}
        for group, saved in zip(current["param_groups"], groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": restored})


def _names(state: dict[str, Any]) -> dict[int, str]:
    """Parameter names by torch's index; the index itself where the optimizer was built without names."""
    return {
        index: name
        for group in state["param_groups"]
        for index, name in zip(group["params"], group.get("param_names", map(str, group["params"])), strict=True)
    }


def generator_states() -> dict[str, Tensor]:
    """The state of torch's global random generators: of the CPU and of each GPU.

    >>> saved = generator_states()
    >>> first = torch.rand(3)
    >>> restore_generators(saved)
    >>> torch.equal(torch.rand(3), first)
    True
    """
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_generators(states: dict[str, Tensor]) -> None:
    """Restore what `generator_states` gave, as far as the devices are here."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        elif device == "mps":
            torch.mps.set_rng_state(state)
        elif torch.cuda.is_available() and int(device.removeprefix("cuda:")) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, device)
