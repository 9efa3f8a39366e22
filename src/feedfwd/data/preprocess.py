"""From a data set's own units to what a network likes, and back: standardised inputs and targets."""

# N examples, D = numbers in one example, T targets

import json
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from feedfwd.data.arrays import as_inputs
from feedfwd.data.dataset import Dataset, Task
from feedfwd.errors import DataError

CHUNK = 2**19  # numbers handled at once: 2 MB, which stay in the cache


class Goal:
    """How the targets of a data set become what the loss compares with, and predictions the targets' units again."""

    task: Task
    classes: tuple[str, ...] | None
    target_names: tuple[str, ...] | None
    target_mean: Tensor | None  # () or (T,), for regression
    target_std: Tensor | None

    @property
    def outputs(self) -> int:
        """How many numbers the network gives for an example: classes, labels, or targets."""
        if self.classes is not None:
            return len(self.classes)
        if self.task == "labels":
            return len(self.target_names or ())
        return 1 if self.target_mean is None or self.target_mean.dim() == 0 else len(self.target_mean)

    def targets(self, data: Dataset) -> Tensor:
        """What the loss compares with: (N,) class numbers by the training classes, (N, T) labels as 0 and 1, or
        standardised numbers.
        """
        if data.task != self.task:
            kinds = {"classify": "classes", "labels": "several labels", "regress": "real numbers"}
            raise DataError(
                f"{data.name} has {kinds[data.task]} as targets, but the model was trained on {kinds[self.task]}",
                hint="store y as whole numbers or names for classes, as floats for real numbers",
            )
        if self.classes is not None:
            return data.recode(self.classes).targets
        if self.task == "labels":
            return data.targets
        assert self.target_mean is not None and self.target_std is not None
        if data.targets.shape[1:] != self.target_mean.shape:
            raise DataError(
                f"{data.name} has targets of shape {tuple(data.targets.shape)}, but the model predicts {self.outputs}",
                hint="give the columns that the model was trained on",
            )
        return (data.targets - self.target_mean) / self.target_std

    def restore(self, outputs: Tensor) -> Tensor:
        """Predictions in the target's units; class scores as they are."""
        if self.target_mean is None or self.target_std is None:
            return outputs
        return outputs * self.target_std.to(outputs.device) + self.target_mean.to(outputs.device)


@dataclass(frozen=True, eq=False)
class Preprocessor(Goal):
    """What was learnt of the training data's scale, and all that is needed to read new data the same way.

    Inputs become (x - mean) / std: images by one mean and std over all pixels, features each by its own; a constant
    feature becomes 0. Real-valued targets are standardised likewise, and `restore` takes predictions back to the
    target's units. Class targets stay numbers, by `classes`.

    >>> data = Dataset("d", torch.tensor([[1.0, 5], [3, 5]]), torch.tensor([10.0, 30]), "regress")
    >>> prepared = Preprocessor.fit(data)
    >>> prepared.inputs(data.inputs).tolist(), prepared.targets(data).tolist()
    ([[-1.0, 0.0], [1.0, 0.0]], [-1.0, 1.0])
    >>> prepared.restore(torch.tensor([0.5])).tolist()
    [25.0]
    """

    shape: tuple[int, ...]
    mean: Tensor  # () for images, (D,) for features
    std: Tensor
    largest: float  # of the training inputs: to notice pixels in another unit
    task: Task
    classes: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    target_names: tuple[str, ...] | None = None
    target_mean: Tensor | None = None  # () or (T,), for regression
    target_std: Tensor | None = None

    @classmethod
    def fit(cls, train: Dataset) -> "Preprocessor":
        """Learns the scales from training data; DataError where there is nothing to learn from."""
        train.check_trainable()
        x, y = train.inputs, train.targets
        mean, std = _pixel_moments(x) if train.is_image else moments(x)
        target_mean, target_std = moments(y) if train.task == "regress" else (None, None)
        return cls(
            tuple(x.shape[1:]),
            mean,
            std,
            float(x.max()),
            train.task,
            train.classes,
            train.feature_names,
            train.target_names,
            target_mean,
            target_std,
        )

    @property
    def width(self) -> int:
        """D: how many numbers the network takes for an example."""
        return math.prod(self.shape)

    def examples(self, data: Dataset) -> Tensor:
        """(N, D) of a data set's examples."""
        return self.inputs(data.inputs, data.name)

    def inputs(self, x: Tensor | np.ndarray, where: str = "the input") -> Tensor:
        """(N, D) float32, standardised. `x` has the training data's shape or is flattened, else DataError."""
        x = self._checked(x, where).reshape(len(x), self.width)
        if self.mean.dim() > 0:
            return x.sub(self.mean).div_(self.std)
        out = torch.empty(x.shape)
        rows = max(1, CHUNK // self.width)
        for part, result in zip(
            torch.split(x, rows), torch.split(out, rows), strict=True
        ):  # two passes over what stays in the cache
            torch.sub(part, float(self.mean), out=result).mul_(1 / float(self.std))
        return out

    def to_json(self) -> str:
        """All of it as text; float32 values come back exactly."""
        plain = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        return json.dumps(plain, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Preprocessor":
        try:
            plain = json.loads(text)
            for name in ("mean", "std", "target_mean", "target_std"):
                plain[name] = None if plain[name] is None else torch.tensor(plain[name], dtype=torch.float32)
            for name in ("shape", "classes", "feature_names", "target_names"):
                plain[name] = None if plain[name] is None else tuple(plain[name])
            return cls(**plain)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"preprocess.json is damaged ({error})", hint="restore the run directory") from None

    def _checked(self, x: Tensor | np.ndarray, where: str) -> Tensor:
        x = as_inputs(x, where)
        if tuple(x.shape[1:]) not in (self.shape, (self.width,)):
            raise DataError(
                f"{where} has examples of {_times(x.shape[1:])} numbers, but the model takes {_times(self.shape)}",
                hint="give examples of the shape it was trained on, in the same order of columns",
            )
        if self.mean.dim() == 0 and self._in_another_unit(x):
            raise DataError(
                f"{where} has pixels up to {float(x.max()):g}, but the model was trained on up to {self.largest:g}",
                hint="give them in that range: the model scales for itself",
            )
        return x

    def _in_another_unit(self, pixels: Tensor) -> bool:
        """Whether pixels come in 0-1 where the training data's were 0-255, or the other way round."""
        if self.largest > 1.5:
            return pixels.is_floating_point() and float(pixels.max()) <= 1.0
        return float(pixels.max()) > 2.0


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the examples, float32; the deviation of what is constant is 1."""
    mean = x.mean(0, dtype=torch.float64)
    std = (x - mean).square_().mean(0).sqrt_()
    constant = std <= 1e-7 * mean.abs()  # float32 can't tell such values apart
    return mean.float(), torch.where(constant, 1.0, std).float()


def _pixel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all pixels; of whole-number pixels exactly, whatever the number of threads."""
    total, square, flat = 0.0, 0.0, x.reshape(-1)
    for part in torch.split(flat, CHUNK):
        part = part.to(torch.int32 if x.dtype == torch.uint8 else torch.float64)
        total, square = total + part.sum().item(), square + (part * part).sum().item()
    mean = total / len(flat)
    std = math.sqrt(max(square / len(flat) - mean**2, 0.0))
    return torch.tensor(mean), torch.tensor(std if std > 1e-7 * abs(mean) else 1.0)


def _times(shape: tuple[int, ...] | torch.Size) -> str:
    return "×".join(str(n) for n in shape)
