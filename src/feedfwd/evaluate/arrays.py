"""What every score asks of its inputs: float64 NumPy arrays that fit each other, with nothing missing."""

# N examples, C classes, T targets

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feedfwd.errors import DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Values = npt.ArrayLike | Tensor


def floats(values: Values) -> Floats:
    """Any array or tensor, on whatever device and of whatever precision, as float64 on the CPU."""
    if isinstance(values, Tensor):
        return values.detach().cpu().to(torch.float64).numpy()
    return np.asarray(values, dtype=np.float64)


def checked_probabilities(probabilities: Values, targets: Values) -> tuple[Floats, Ints]:
    """(N, C) probabilities and (N,) class numbers, or a DataError that says which example is wrong.

    Rows may miss a sum of 1 by a hundredth: a softmax in bfloat16 does.

    >>> checked_probabilities([[2.0, -1.0]], [0])
    Traceback (most recent call last):
        ...
    feedfwd.errors.DataError: example 0 has probabilities outside 0 to 1: pass softmax(logits), not the logits
    """
    p_NC, y_N = floats(probabilities), floats(targets)
    if p_NC.ndim != 2 or p_NC.shape[1] < 2:
        raise DataError(
            f"probabilities have the shape {p_NC.shape}, not (examples, classes)",
            hint="one column for each class; two when the task is binary: [1 - p, p]",
        )
    if y_N.shape != p_NC.shape[:1]:
        raise DataError(f"{len(p_NC)} rows of probabilities, but targets of the shape {y_N.shape}", hint="one each")
    if len(p_NC) == 0:
        raise DataError("there are no examples to score", hint="give a test part with at least one example")
    if (bad := ~np.isfinite(p_NC).all(1)).any():
        raise DataError(f"the probabilities of example {bad.argmax()} are not finite", hint="the model has diverged")
    if (bad := ((p_NC < -1e-6) | (p_NC > 1 + 1e-2)).any(1)).any():
        raise DataError(
            f"example {bad.argmax()} has probabilities outside 0 to 1", hint="pass softmax(logits), not the logits"
        )
    if (bad := np.abs(p_NC.sum(1) - 1) > 1e-2).any():
        raise DataError(
            f"the probabilities of example {bad.argmax()} sum to {p_NC[bad.argmax()].sum():.4g}, not 1",
            hint="pass softmax(logits)",
        )
    classes = p_NC.shape[1]
    if (bad := ~np.isin(y_N, np.arange(classes))).any():
        raise DataError(
            f"the target of example {bad.argmax()} is {y_N[bad.argmax()]:g}, not a class from 0 to {classes - 1}",
            hint="the model has one output for each class it was trained on",
        )
    return p_NC, y_N.astype(np.int64)


def checked_predictions(predictions: Values, targets: Values) -> tuple[Floats, Floats]:
    """(N, T) predictions and targets; (N,) counts as one target. DataError when they don't fit or aren't finite."""
    p_NT, y_NT = (a[:, None] if a.ndim == 1 else a for a in (floats(predictions), floats(targets)))
    if p_NT.ndim != 2 or p_NT.shape != y_NT.shape:
        raise DataError(
            f"predictions of the shape {p_NT.shape} against targets of the shape {y_NT.shape}",
            hint="both are (examples,) or (examples, targets)",
        )
    if p_NT.size == 0:
        raise DataError("there are no examples to score", hint="give a test part with at least one example")
    for name, a_NT in (("prediction", p_NT), ("target", y_NT)):
        if (bad := ~np.isfinite(a_NT).all(1)).any():
            raise DataError(f"the {name} of example {bad.argmax()} is not finite", hint="scores need finite numbers")
    return p_NT, y_NT
