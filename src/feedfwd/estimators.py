"""scikit-learn's face of the same networks and the same loop: `FeedForwardClassifier` and `FeedForwardRegressor`.

Parameters are stored as given; None leaves one to the effort's preset for tables. Columns are read as `feedfwd fit`
reads a table's: scaled robustly, missing ones flagged, names embedded.
"""

# N rows, C classes, T targets

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_array, check_random_state, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from feedfwd.checkpoint import Run, write_json, write_text
from feedfwd.config import FitConfig, parse
from feedfwd.data.batches import TensorBatches
from feedfwd.data.table_files import as_rows
from feedfwd.data.table_preprocess import TablePreprocessor
from feedfwd.data.tables import read_columns, read_inputs
from feedfwd.errors import RunError
from feedfwd.models.tabular import per_member
from feedfwd.recipes.predictor import Predictor, build_model, read_preprocess
from feedfwd.recipes.prepare import loss_of, optimizer_for, usable_device
from feedfwd.recipes.presets import Facts, over_preset
from feedfwd.train.averaging import EMA
from feedfwd.train.early_stopping import EarlyStopping
from feedfwd.train.loop import train
from feedfwd.train.schedules import build_schedule

How = tuple[dict[str, Any], dict[str, str]]  # kinds and forms of the columns
FILE = "estimator.json"  # beside a run's files: what makes a saved run an estimator again
SETTINGS = {  # parameter: setting
    "hidden": "model.hidden",
    "activation": "ffn.activation",
    "dropout": "ffn.dropout",
    "members": "model.members",
    "numbers": "model.numbers",
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "batch_size": "train.batch_size",
    "epochs": "train.epochs",
}
LEARNT = ("classes_", "n_features_in_", "feature_names_in_", "n_iter_")

# scikit-learn's checks that don't hold, for `parametrize_with_checks(…, expected_failed_checks=lambda _: EXPECTED)`
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": "batches draw a row twice and a row of weight 2 differently",
    "check_sample_weight_equivalence_on_sparse_data": "batches draw a row twice and a row of weight 2 differently",
    "check_methods_subset_invariance": "single precision: the last of seven digits depends on how many rows are asked",
    "check_methods_sample_order_invariance": "single precision: the last of seven digits depends on the rows' order",
}


class _FeedForward(BaseEstimator):
    """What classifier and regressor share."""

    def __init__(
        self,
        effort: str = "standard",
        *,
        hidden: Any = None,
        activation: str | None = None,
        dropout: float | None = None,
        members: int | None = None,
        numbers: str | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        batch_size: int | None = None,
        epochs: float | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        settings: dict[str, Any] | None = None,
        random_state: Any = None,
    ) -> None:
        self.effort = effort
        self.hidden = hidden
        self.activation = activation
        self.dropout = dropout
        self.members = members
        self.numbers = numbers
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.settings = settings
        self.random_state = random_state

    # --- what classifier and regressor differ in ----------------------------------------------------------------------

    def _read_targets(self, y: Any, reset: bool) -> np.ndarray:
        """Class numbers (N,) or values (N,), (N, T), learning the classes where `reset`."""
        raise NotImplementedError

    def _goal(self, y: np.ndarray) -> dict[str, Any]:
        """What the preprocessor has to know of the targets."""
        raise NotImplementedError

    def _row_weights(self, y: np.ndarray, weights: np.ndarray, reset: bool) -> np.ndarray:
        return weights

    # --- fitting ------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train anew on rows X (N, D), an array or a frame of polars or pandas, NaN for what is missing."""
        frame, how, codes, weights = self._read(X, y, sample_weight, reset=True)
        with torch.random.fork_rng(devices=[]):
            config = self._begin(frame, how, codes)
            rows, held = np.flatnonzero(weights), None
            if self.early_stopping:
                stratify = codes[rows] if self._classify else None
                rows, held = train_test_split(
                    rows, test_size=self.validation_fraction, random_state=config.seed, stratify=stratify
                )
            x, t = self.preprocess_.encode(frame), self._standardised(codes)
            w = torch.from_numpy(weights.astype(np.float32))
            device = self._move(usable_device(config.train.device))
            batches = TensorBatches(
                x[rows], t[rows], config.train.batch_size, seed=config.seed, weights=w[rows], device=device
            )
            per_epoch = batches.batches_per_epoch / config.train.accumulate
            steps, per_look = max(1, round(config.train.epochs * per_epoch)), max(1, round(per_epoch))
            schedule = build_schedule(total=steps, **config.schedule.model_dump())
            stopping = EarlyStopping(self.patience)
            best: dict[str, Tensor] = {}
            losses: list[float] = []
            averages = EMA(self.model_, config.train.ema) if config.train.ema else None
            loss = self._loss(t)
            for step in train(
                self.model_, batches, loss, self._optimizer, steps=steps, schedule=schedule,
                accumulate=config.train.accumulate, clip=config.train.clip, ema=averages,
            ):  # fmt: skip
                losses.append(float(step.loss))
                if step.n % per_look and step.n < steps:
                    continue
                if held is not None:
                    with nullcontext() if averages is None else averages.swapped():
                        looked = (part[held].to(device) for part in (x, t, w))
                        if stopping.update(step.n, self._held_loss(loss, *looked)):
                            best = {name: value.clone() for name, value in self.model_.state_dict().items()}
                    if stopping.stop:
                        break
            if averages is not None and not best:
                best = {name: value for name, value in averages.state_dict().items() if name != "updates"}
            if best:
                self.model_.load_state_dict(best, strict=averages is None)
        self._move(torch.device("cpu"))
        self.loss_curve_ = [float(np.mean(losses[i : i + per_look])) for i in range(0, len(losses), per_look)]
        self.n_iter_ = len(self.loss_curve_)
        self.model_.eval()
        return self

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, reset: bool) -> Self:
        """One pass over the rows at a constant rate; the first call's rows say how columns and targets are scaled."""
        frame, how, codes, weights = self._read(X, y, sample_weight, reset=reset)
        with torch.random.fork_rng(devices=[]):
            if reset:
                self._begin(frame, how, codes)
                self.n_iter_, self.loss_curve_ = 0, []
            torch.manual_seed(self.config_.seed + self.n_iter_)
            rows = np.flatnonzero(weights)
            x, t = self.preprocess_.encode(frame)[rows], self._standardised(codes)[rows]
            w = torch.from_numpy(weights.astype(np.float32))[rows]
            if len(rows):
                seed = self.config_.seed + self.n_iter_
                device = self._move(usable_device(self.config_.train.device))
                batches = TensorBatches(x, t, self.config_.train.batch_size, seed=seed, weights=w, device=device)
                steps = batches.batches_per_epoch
                passed = train(self.model_, batches, self._loss(t), self._optimizer, steps=steps)
                self.loss_curve_.append(float(np.mean([float(step.loss) for step in passed])))
                self._move(torch.device("cpu"))
        self.n_iter_ += 1
        self.model_.eval()
        return self

    def _read(
        self, X: Any, y: Any, sample_weight: Any, reset: bool
    ) -> tuple[polars.DataFrame, How, np.ndarray, np.ndarray]:
        """Rows as typed columns, how they are read, targets, and weights (N,)."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        frame, how = self._read_rows(X, reset)
        codes = self._read_targets(y, reset)
        if len(codes) != len(frame):
            raise ValueError(f"Found input variables with inconsistent numbers of samples: {[len(frame), len(codes)]}")
        if reset and len(frame) < 2:
            raise ValueError("Found array with 1 sample(s) while a minimum of 2 is required (n_samples = 1)")
        rows = np.empty((len(frame), 1))
        weights = _check_sample_weight(sample_weight, rows, dtype=np.float64, ensure_non_negative=True)
        if not weights.any():
            raise ValueError("sample_weight is zero for every row")
        return frame, how, codes, self._row_weights(codes, weights, reset)

    def _read_rows(self, X: Any, reset: bool) -> tuple[polars.DataFrame, How]:
        if hasattr(X, "columns") and hasattr(X, "dtypes"):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if not reset:
                kinds, forms = self.preprocess_.kinds, self.preprocess_.forms
                return read_inputs(X, kinds, "X", forms)[0], (kinds, forms)
            frame, kinds, forms = read_columns(as_rows(X, "X").frame, [])
            return frame, (kinds, forms)
        array = validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan")
        names = list(getattr(self, "feature_names_in_", [f"x{i}" for i in range(array.shape[1])]))
        frame = polars.DataFrame({name: array[:, i] for i, name in enumerate(names)}).fill_nan(None)
        if not reset:
            kinds = self.preprocess_.kinds
            if any(kind != "number" for kind in kinds.values()):
                raise ValueError("this model was fitted to a frame with columns that are no numbers: give a frame")
            return frame.select(list(kinds)), (kinds, {})
        return frame, (dict.fromkeys(names, "number"), {})

    def _begin(self, frame: polars.DataFrame, how: How, codes: np.ndarray) -> FitConfig:
        """Settings, preprocessor, network and optimizer for these rows."""
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        config = FitConfig(source="memory", effort=parse(FitConfig, {"source": "", "effort": self.effort}).effort)
        config = config.with_("seed", seed)
        for name, key in SETTINGS.items():
            value = getattr(self, name)
            if value is not None:
                config = config.with_(key, list(value) if name == "hidden" else value)
        for key, value in (self.settings or {}).items():
            config = config.with_(key, value)
        self.config_ = over_preset(config, Facts(len(frame), None, table=True, regress=not self._classify))
        if self.config_.loss.name == "auto":
            self.config_ = self.config_.with_("loss.name", "cross_entropy" if self._classify else "mse")
        self.preprocess_ = TablePreprocessor.learn(frame, *how, **self._goal(codes))
        torch.manual_seed(seed)
        self.model_ = build_model(self.config_, self.preprocess_)
        rate = self.config_.optimizer.lr
        assert rate is not None, "the presets of tables give a rate"
        self._optimizer = optimizer_for(self.model_, self.config_, rate)
        return self.config_

    def _move(self, device: torch.device) -> torch.device:
        """Network and optimizer to where they train, or back: what is fitted lies on the CPU, for anyone to load."""
        if next(self.model_.parameters()).device != device:
            self.model_.to(device)
            self._optimizer.load_state_dict(self._optimizer.state_dict())  # which brings it to its parameters
        return device

    def _standardised(self, codes: np.ndarray) -> Tensor:
        t = torch.tensor(codes)
        mean, std = self.preprocess_.target_mean, self.preprocess_.target_std
        return t if mean is None or std is None else ((t - mean) / std).float()

    def _loss(self, targets: Tensor) -> Any:
        loss = loss_of(self.config_.loss, targets, len(self.classes_) if self._classify else None)
        return per_member(loss) if self.config_.model.members > 1 else loss

    def _held_loss(self, loss: Any, x: Tensor, t: Tensor, w: Tensor) -> float:
        self.model_.eval()
        with torch.no_grad():
            return float((loss(self.model_(x), t) * w).sum() / w.sum())

    @property
    def _classify(self) -> bool:
        return isinstance(self, ClassifierMixin)

    # --- answers ------------------------------------------------------------------------------------------------------

    def _outputs(self, X: Any) -> Tensor:
        """(N, O) float64: what the network gives."""
        check_is_fitted(self, "model_")
        frame, _ = self._read_rows(X, reset=False)
        return Predictor(self.model_, self.preprocess_).outputs(self.preprocess_.encode(frame)).double()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.target_tags.required = True
        return tags

    # --- keeping ------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write a new run directory, without pickle: `ff.load` makes the estimator again, `feedfwd predict` takes it.

        The optimizer's state stays behind: `partial_fit` of what was loaded goes on from the weights alone.
        """
        check_is_fitted(self, "model_")
        try:
            parameters = json.dumps({name: _plain(value) for name, value in self.get_params(deep=False).items()})
        except TypeError as error:
            raise RunError(f"a parameter can't be written ({error})", hint="set_params it to a plain value") from None
        run = Run.create(Path(path), "estimator")
        run.write_settings("fit", self.config_.model_dump(exclude_none=True))
        write_text(run.preprocess_file, self.preprocess_.to_json())
        run.save_model(self.model_.state_dict())
        learnt = {name: _plain(getattr(self, name)) for name in LEARNT if hasattr(self, name)}
        kept = {"kind": type(self).__name__, "parameters": json.loads(parameters), "learnt": learnt}
        write_json(run.path / FILE, kept | {"loss_curve": self.loss_curve_})


class FeedForwardClassifier(ClassifierMixin, _FeedForward):
    """A classifier. `class_weight`: None, "balanced", or a weight for each class.

    >>> from sklearn.datasets import load_iris
    >>> x, y = load_iris(return_X_y=True)
    >>> FeedForwardClassifier(random_state=0).fit(x[::2], y[::2]).score(x[1::2], y[1::2]) > 0.9
    True
    """

    def __init__(
        self,
        effort: str = "standard",
        *,
        hidden: Any = None,
        activation: str | None = None,
        dropout: float | None = None,
        members: int | None = None,
        numbers: str | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        batch_size: int | None = None,
        epochs: float | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        class_weight: Any = None,
        settings: dict[str, Any] | None = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            effort,
            hidden=hidden,
            activation=activation,
            dropout=dropout,
            members=members,
            numbers=numbers,
            lr=lr,
            weight_decay=weight_decay,
            batch_size=batch_size,
            epochs=epochs,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            patience=patience,
            settings=settings,
            random_state=random_state,
        )
        self.class_weight = class_weight

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """One pass more over these rows; the first call names all `classes`."""
        reset = not hasattr(self, "model_")
        if reset:
            if classes is None:
                raise ValueError("classes must be passed on the first call to partial_fit")
            self.classes_ = np.unique(classes)
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes={classes!r} differ from those of the first call, {self.classes_!r}")
        self._known_classes = True
        try:
            return self._partial_fit(X, y, sample_weight, reset)
        finally:
            del self._known_classes

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (N, C), in the order of `classes_`."""
        return self._outputs(X).softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Classes (N,)."""
        places = self.predict_proba(X).argmax(1)
        return self.classes_[places]

    def _read_targets(self, y: Any, reset: bool) -> np.ndarray:
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        if not hasattr(self, "_known_classes"):
            self.classes_, codes = np.unique(y, return_inverse=True)
            if len(self.classes_) < 2:
                raise ValueError(f"y has one class only, {self.classes_[0]!r}: give rows of another class too")
            return codes.astype(np.int64)
        place = {name: i for i, name in enumerate(self.classes_.tolist())}
        for name in np.unique(y).tolist():
            if name not in place:
                raise ValueError(f"y has class {name!r}, which is not in classes={self.classes_!r}")
        return np.array([place[name] for name in y.tolist()], dtype=np.int64)

    def _goal(self, y: np.ndarray) -> dict[str, Any]:
        return {"task": "classify", "classes": tuple(str(name) for name in self.classes_)}

    def _row_weights(self, y: np.ndarray, weights: np.ndarray, reset: bool) -> np.ndarray:
        if self.class_weight is None:
            return weights
        if self.class_weight == "balanced" and hasattr(self, "_known_classes"):
            raise ValueError("class_weight='balanced' is not known in partial_fit: give the weights by class")
        each = compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_[y])
        return weights * each[y]


class FeedForwardRegressor(RegressorMixin, _FeedForward):
    """A regressor, of one target or of several.

    >>> x = np.linspace(-3, 3, 200)[:, None]
    >>> FeedForwardRegressor(random_state=0).fit(x, np.sin(x[:, 0])).score(x, np.sin(x[:, 0])) > 0.95
    True
    """

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """One pass more over these rows; the first call's say how columns and targets are scaled."""
        return self._partial_fit(X, y, sample_weight, reset=not hasattr(self, "model_"))

    def predict(self, X: Any) -> np.ndarray:
        """Values (N,), or (N, T), in the targets' units."""
        outputs = self._outputs(X)
        values: np.ndarray = self.preprocess_.restore(outputs).numpy()
        mean = self.preprocess_.target_mean
        return values[:, 0] if mean is not None and mean.ndim == 0 else values

    def _read_targets(self, y: Any, reset: bool) -> np.ndarray:
        values = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        if values.ndim == 2 and values.shape[1] == 1:
            values = column_or_1d(values, warn=True)
        if values.ndim > 2:
            raise ValueError(f"y of shape {values.shape} is not (N,) or (N, T)")
        return values

    def _goal(self, y: np.ndarray) -> dict[str, Any]:
        mean, std = y.mean(0), y.std(0)
        std = np.where(std <= 1e-12 * np.abs(mean), 1.0, std)
        learnt = {"target_mean": torch.tensor(mean).float(), "target_std": torch.tensor(std).float()}
        names = ("y",) if y.ndim == 1 else tuple(f"y{i}" for i in range(y.shape[1]))
        return {"task": "regress", "target_names": names, **learnt}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def load(path: Path) -> FeedForwardClassifier | FeedForwardRegressor:
    """The estimator that `save` wrote."""
    run = Run.open(path)
    kept = run.read_json(path / FILE)
    kinds = {"FeedForwardClassifier": FeedForwardClassifier, "FeedForwardRegressor": FeedForwardRegressor}
    try:
        parameters = {name: _back(value) for name, value in kept["parameters"].items()}
        estimator = kinds[kept["kind"]](**parameters)
        for name, value in kept["learnt"].items():
            setattr(estimator, name, _back(value))
        estimator.loss_curve_ = kept["loss_curve"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path / FILE} is damaged ({error})", hint="restore it from a copy, or train again") from None
    estimator.config_ = parse(FitConfig, run.settings())
    preprocess = read_preprocess(run)
    if not isinstance(preprocess, TablePreprocessor):
        raise RunError(f"{path} holds no estimator's preprocess.json", hint="was it replaced?")
    estimator.preprocess_ = preprocess
    estimator.model_ = build_model(estimator.config_, preprocess)
    try:
        estimator.model_.load_state_dict(run.load_model())
    except RuntimeError as error:
        raise run.misfit(error) from None
    estimator.model_.eval()
    rate = estimator.config_.optimizer.lr
    estimator._optimizer = optimizer_for(estimator.model_, estimator.config_, math.nan if rate is None else rate)
    return estimator


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: arrays, tuples and dictionaries marked as what they are."""
    match value:
        case np.ndarray():
            return {"array": value.tolist(), "dtype": "O" if value.dtype.hasobject else value.dtype.str}
        case np.generic():
            return value.item()
        case tuple():
            return {"tuple": [_plain(v) for v in value]}
        case list():
            return [_plain(v) for v in value]
        case dict():
            return {"pairs": [[_plain(k), _plain(v)] for k, v in value.items()]}
    return value


def _back(value: Any) -> Any:
    match value:
        case {"array": values, "dtype": dtype}:
            return np.array(values, dtype=object if dtype == "O" else np.dtype(dtype))
        case {"tuple": values}:
            return tuple(_back(v) for v in values)
        case {"pairs": pairs}:
            return {_back(k): _back(v) for k, v in pairs}
        case list():
            return [_back(v) for v in value]
    return value
