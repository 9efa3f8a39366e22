"""Arrays from outside, brought into the forms of a `Dataset`, or refused with the reason.

`where` names the array in messages: "x of data.npz".
"""

# N examples, D features, H height, W width, C channels, T targets

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from feedfwd.data.dataset import Dataset, Task
from feedfwd.errors import DataError

CHANNELS = (1, 3, 4)  # grey, colour, colour with transparency


class Targets(NamedTuple):
    """Targets as a `Dataset` holds them; `note` says what was decided where that isn't plain."""

    values: Tensor
    task: Task
    classes: tuple[str, ...] | None
    note: str = ""


def as_inputs(array: np.ndarray | Tensor, where: str) -> Tensor:
    """Images, (N, H, W) or (N, H, W, C), uint8 where the values allow, else float32; or features, (N, D) float32.

    Channels-first images, (N, C, H, W), are turned; a single channel is dropped.

    >>> as_inputs(np.zeros((5, 3, 8, 8), np.uint8), "x").shape, as_inputs(np.zeros((5, 8, 8, 1)), "x").shape
    (torch.Size([5, 8, 8, 3]), torch.Size([5, 8, 8]))
    """
    values = _numbers(array, where)
    shape = tuple(values.shape)
    if len(shape) not in (2, 3, 4):
        hint = (
            "reshape to (N, 1), or (1, D) for one example" if len(shape) == 1 else "(N, D), (N, H, W) or (N, H, W, C)"
        )
        raise DataError(f"{where} has shape {shape}", hint=f"inputs are one row an example: {hint}")
    if 0 in shape:
        raise DataError(f"{where} is empty: shape {shape}", hint="give at least one example of one number")
    if len(shape) == 4:
        if shape[-1] not in CHANNELS and shape[1] in CHANNELS:
            values = values.movedim(1, -1)
        if values.shape[-1] not in CHANNELS:
            raise DataError(f"{where} has shape {shape}: no axis of 1, 3 or 4 colours", hint="give (N, H, W, C) images")
        values = values.squeeze(-1)
    if len(shape) > 2 and not values.is_floating_point():
        if values.dtype == torch.uint8:
            return values.contiguous()
        if values.min() >= 0 and values.max() <= 255:
            return values.to(torch.uint8).contiguous()
    return finite(values.to(torch.float32).contiguous(), where)


def as_targets(array: np.ndarray | Tensor, where: str) -> Targets:
    """Whole numbers, booleans and names are classes; so are one-hot rows. Other floats are numbers to predict.

    >>> as_targets(np.array(["cat", "dog", "cat"]), "y")
    Targets(values=tensor([0, 1, 0]), task='classify', classes=('cat', 'dog'), note='')
    >>> as_targets(np.array([[0.5], [2.0]]), "y").values
    tensor([0.5000, 2.0000])
    """
    if isinstance(array, np.ndarray) and array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", errors="replace")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array.reshape(-1)
    if array.ndim not in (1, 2) or 0 in array.shape:
        raise DataError(
            f"{where} has shape {tuple(array.shape)}", hint="targets are (N,), or (N, T) for T real numbers"
        )
    if isinstance(array, np.ndarray) and array.dtype.kind == "U":
        if array.ndim == 2:
            raise DataError(f"{where} holds several names for each example", hint="give one class an example, (N,)")
        return _classes(array)
    values = _numbers(array, where)
    if values.dim() == 2 and _one_hot(values):
        numbers = tuple(str(i) for i in range(values.shape[1]))
        return Targets(values.float().argmax(1), "classify", numbers, f"{where} is one-hot: taken as classes")
    if values.is_floating_point():
        values = finite(values.to(torch.float32), where)
        distinct = len(torch.unique(values))
        whole = values.dim() == 1 and distinct <= 20 and bool((values == values.round()).all())
        note = f"{where} holds floats, so numbers to predict; store whole numbers for classes" if whole else ""
        return Targets(values, "regress", None, note)
    if values.dim() == 2:
        raise DataError(
            f"{where} has shape {tuple(values.shape)}: several classes for each example are not supported",
            hint="give one class an example, (N,), or floats for regression",
        )
    return _classes(values.numpy())


def from_arrays(
    name: str, x: np.ndarray | Tensor, y: np.ndarray | Tensor, *, x_name: str = "x", y_name: str = "y"
) -> Dataset:
    """A data set from an array of inputs and one of targets.

    >>> from_arrays("mine", np.eye(4), np.array([0, 1, 0, 1])).describe()
    'mine: 4 examples of 4 features, 2 classes'
    """
    if len(x) != len(y):
        raise DataError(
            f"{x_name} of {name} has {len(x):,} rows but {y_name} has {len(y):,}", hint="each example needs one of both"
        )
    targets = as_targets(y, f"{y_name} of {name}")
    notes = (targets.note,) if targets.note else ()
    inputs = as_inputs(x, f"{x_name} of {name}")
    return Dataset(name, inputs, targets.values, targets.task, targets.classes, notes=notes)


def finite(values: Tensor, where: str) -> Tensor:
    """`values`, or DataError that counts what is not a finite number and names the first."""
    if bool(values.sum().isfinite()):  # one pass and no mask; a sum of finite numbers may overflow, so look closer then
        return values
    bad = ~values.isfinite()
    count = int(bad.sum())
    if count == 0:
        return values
    first = bad.nonzero()[0].tolist()
    raise DataError(
        f"{where} has {count:,} value{'s' if count > 1 else ''} not finite in float32 "
        f"(the first: {values[tuple(first)].item()} at {first})",
        hint="fill or remove those examples",
    )


def _numbers(array: np.ndarray | Tensor, where: str) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach().cpu()
    if array.dtype.kind not in "buif":
        raise DataError(f"{where} holds {array.dtype.name} values, not numbers", hint="convert it to numbers first")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.float64 if array.max(initial=0) > 2**62 else np.int64)  # torch knows few unsigned types
    if array.dtype == np.float16 or array.dtype.itemsize > 8 or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.float64)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def _one_hot(values: Tensor) -> bool:
    """Whether each row holds a single 1 and zeros, and every column has its turn."""
    if values.shape[1] < 2 or not bool(((values == 0) | (values == 1)).all()):
        return False
    return bool((values.sum(1) == 1).all()) and bool((values.sum(0) > 0).all())


def _classes(values: np.ndarray) -> Targets:
    names, codes = np.unique(values, return_inverse=True)
    return Targets(torch.from_numpy(codes.reshape(-1).astype(np.int64)), "classify", tuple(str(name) for name in names))
