"""A trained network together with what turns raw inputs into its inputs and its outputs into answers."""

import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedfwd.checkpoint import Run
from feedfwd.config import FitConfig, parse
from feedfwd.data.dataset import Dataset
from feedfwd.data.preprocess import Preprocessor
from feedfwd.data.table_preprocess import TablePreprocessor, from_json
from feedfwd.errors import DataError, RunError
from feedfwd.evaluate.evaluate import Pictures, details
from feedfwd.evaluate.metrics import classification_scores, regression_scores
from feedfwd.models.mlp import MLP
from feedfwd.models.tabular import Tabular
from feedfwd.recipes.goals import SeveralLabels
from feedfwd.recipes.verbs import opened

CHUNK = 4096  # examples at a time: large enough to be fast, small enough for any memory


def build_model(config: FitConfig, preprocess: Preprocessor | TablePreprocessor) -> MLP | Tabular:
    """The network that the settings describe, for the data that `preprocess` was fitted to."""
    several = preprocess.task == "labels"
    outputs = 1 if config.loss.name == "binary_cross_entropy" and not several else preprocess.outputs
    m, f = config.model, config.ffn
    options: dict[str, Any] = {
        "activation": f.activation,
        "kind": f.kind,
        "init": f.init,
        "bias": f.bias,
        "dropout": f.dropout,
        "norm": None if m.norm == "none" else m.norm,
        "residual": m.residual,
        "input_dropout": m.input_dropout,
        "noise": m.noise,
        "base_width": m.base_width,
        "options": f.options,
    }
    if isinstance(preprocess, Preprocessor):
        return MLP([preprocess.width, *m.hidden, outputs], **options)
    return Tabular(
        preprocess.edges,
        preprocess.layout.plain,
        preprocess.layout.categories,
        m.hidden,
        outputs,
        numbers=m.numbers,
        members=m.members,
        classify=preprocess.task != "regress",
        several=several,
        **options,
    )


def read_preprocess(run: Run) -> Preprocessor | TablePreprocessor:
    """What preprocess.json holds: of a table, or of arrays and images."""
    text = run.read_text(run.preprocess_file)
    return from_json(text) or Preprocessor.from_json(text)


class Predictor:
    """What `ff.load(run)` gives: `predict`, `predict_proba`, `score`, and `model`, a plain nn.Module."""

    def __init__(
        self, model: MLP | Tabular, preprocess: Preprocessor | TablePreprocessor, run: Path | None = None
    ) -> None:
        self.model, self.preprocess, self.run = model, preprocess, run

    @classmethod
    def load(cls, path: Path) -> "Predictor":
        run = opened(path, "fit")
        config = parse(FitConfig, run.settings())
        preprocess = read_preprocess(run)
        model = build_model(config, preprocess)
        try:
            model.load_state_dict(run.load_model())
        except RuntimeError as error:
            raise run.misfit(error) from None
        return cls(model.eval(), preprocess, path)

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.preprocess.classes

    @cached_property
    def labels(self) -> SeveralLabels | None:
        """What is learnt where the targets are several labels."""
        return SeveralLabels(self.preprocess.target_names or ()) if self.preprocess.task == "labels" else None

    @property
    def task(self) -> str:
        """regression, binary, multiclass or labels."""
        if self.labels is not None:
            return self.labels.task
        return "regression" if self.classes is None else "binary" if len(self.classes) == 2 else "multiclass"

    @property
    def result(self) -> dict[str, Any]:
        """Scores, seconds and environment, as in result.json."""
        if self.run is None:
            raise RunError("this predictor was not loaded from a run", hint="use ff.load(run)")
        run = Run(self.run)
        return run.read_json(run.result_file)

    def transform(self, inputs: Any, where: str = "the input") -> Tensor:
        """Raw inputs (N, ...) as the network sees them, (N, D); errors call them `where`.

        Of a table: a file, a polars or pandas frame, or dictionaries. Columns that drifted since training, and cells
        that don't fit, come as warnings.
        """
        x, notes = self.read(inputs, where)
        for note in notes:
            warnings.warn(f"{where}: {note}", stacklevel=3)
        return x

    def read(self, inputs: Any, where: str) -> tuple[Tensor, list[str]]:
        """The same, with what would be warned of."""
        if isinstance(self.preprocess, TablePreprocessor):
            x, notes = self.preprocess.read(inputs, where)
            return x.to(self._device()), notes
        return self.preprocess.inputs(inputs, where).to(self._device()), []

    def outputs(self, x: Tensor) -> Tensor:
        """The network's outputs (N, O) for transformed inputs (N, D), in evaluation mode, chunk by chunk."""
        training, device = self.model.training, self._device()
        self.model.eval()
        try:
            with torch.inference_mode():
                out = [self.model(x[i : i + CHUNK].to(device)) for i in range(0, len(x), CHUNK)]
                return torch.cat(out).float() if out else x.new_zeros(0, self.model.sizes[-1])
        finally:
            self.model.train(training)

    def answers(self, x: Tensor) -> np.ndarray:
        """For transformed inputs: probabilities (N, C), of each of several labels (N, T), or values (N,) or (N, T) in
        the target's units.
        """
        out = self.outputs(x).cpu()
        if self.labels is not None:
            return self.labels.answers(out)
        if self.classes is None:
            values = self.preprocess.restore(out)
            return (values[:, 0] if values.shape[1] == 1 else values).numpy()
        if out.shape[1] == 1:
            p = out.sigmoid()
            return torch.cat([1 - p, p], 1).numpy()
        return out.softmax(1).numpy()

    def predict_proba(self, inputs: Any) -> np.ndarray:
        """Probabilities (N, C), one column per class, in the order of `classes`; of yes for several labels, (N, T)."""
        if self.classes is None and self.labels is None:
            raise DataError("a regression has no class probabilities", hint="use predict")
        return self.answers(self.transform(inputs))

    def predict(self, inputs: Any) -> np.ndarray:
        """Class names (N,), what each of several labels is (N, T), or values (N,) or (N, T) in the target's units, for
        raw inputs (N, ...).
        """
        found = self.answers(self.transform(inputs))
        if self.labels is not None:
            return self.named(found)
        return found if self.classes is None else np.asarray(self.classes)[found.argmax(1)]

    def scores(self, answers: np.ndarray, data: Dataset) -> dict[str, float]:
        """All scores of the task, for what `answers` gave for a data set."""
        if self.labels is not None:
            return self.labels.scores(answers, data.targets)
        if self.classes is None:
            return regression_scores(answers, data.targets.numpy())
        return classification_scores(answers, data.recode(self.classes).targets.numpy())

    def details(self, answers: np.ndarray, data: Dataset, images: Pictures | None = None) -> dict[str, Any]:
        """What a report shows of a data set beside the scores."""
        if self.labels is not None:
            return self.labels.details(answers, data.targets)
        indices = None if data.rows is None else data.rows.numpy()
        if self.classes is None:
            return details(answers, data.targets, indices=indices, names=data.target_names)
        known = data.recode(self.classes).targets
        return details(answers, known, classes=self.classes, images=images, indices=indices)

    def named(self, answers: np.ndarray) -> np.ndarray:
        """Probabilities of yes (N, T) as what the table's own columns say, (N, T)."""
        assert isinstance(self.preprocess, TablePreprocessor) and self.preprocess.answers is not None
        no_T, yes_T = (np.array(words) for words in zip(*self.preprocess.answers, strict=True))
        return np.where(answers >= 0.5, yes_T, no_T)

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def __repr__(self) -> str:
        sizes = "-".join(map(str, self.model.sizes))
        return f"Predictor({sizes}, run={str(self.run)!r})"

    def _repr_html_(self) -> str:
        """In a notebook: the scores as a table."""
        result = self.result if self.run is not None else {}
        rows = "".join(f"<tr><td>{k}</td><td>{v:.4g}</td></tr>" for k, v in (result.get("test") or {}).items())
        return f"<b>{self!r}</b><table><tr><th>test</th><th></th></tr>{rows}</table>"
