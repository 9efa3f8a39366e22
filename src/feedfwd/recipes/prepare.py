"""From settings to all that a training needs; the same settings make the same things, so resuming makes them again."""

import math
import os
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from feedfwd.config import FitConfig, LossConfig
from feedfwd.config_finetune import LabelLossConfig
from feedfwd.data.augment import Deform, Mixup, Noise, Shift, chain
from feedfwd.data.batches import TensorBatches, Transform
from feedfwd.data.dataset import Dataset
from feedfwd.data.preprocess import Preprocessor
from feedfwd.data.readers import load
from feedfwd.data.split import fold, split, split_by
from feedfwd.data.table_checks import leaks, shared_rows
from feedfwd.data.table_files import FORMS as TABLES
from feedfwd.data.table_files import is_table
from feedfwd.data.table_preprocess import TablePreprocessor
from feedfwd.data.tables import TableData, asked, load_table
from feedfwd.errors import ConfigError, DataError
from feedfwd.models.mlp import MLP
from feedfwd.models.mlp_fast import lacks, uncompiled_because
from feedfwd.models.tabular import Tabular, per_member
from feedfwd.recipes.goals import SeveralLabels
from feedfwd.recipes.predictor import Predictor, build_model
from feedfwd.recipes.presets import Facts, over_preset
from feedfwd.train.losses import Loss, build_loss
from feedfwd.train.optimizers import Optimizer, build_optimizer
from feedfwd.train.precision import PAYS_FROM, PAYS_FROM_IF_COMPILED, Precision, choose, products

MOST_THREADS = 64  # on a machine of fewer cores, too: a run may come from a larger one


@dataclass
class Part:
    """One part of the data, and as the network sees it."""

    data: Dataset
    inputs: Tensor  # (N, D) on the device
    targets: Tensor  # class numbers (N,), labels (N, T) as 0 and 1, or standardised values (N, T), on the device


@dataclass
class Prepared:
    config: FitConfig  # with the effort's preset beneath
    usual: FitConfig  # what the effort alone gives for these data
    train: Part
    validation: Part | None
    test: Part
    predictor: Predictor
    loss: Loss
    precision: Precision
    device: torch.device
    notes: list[str] = field(default_factory=list)

    @property
    def model(self) -> MLP | Tabular:
        return self.predictor.model

    def batches(self) -> TensorBatches:
        c, n = self.config, len(self.train.inputs)
        lone = c.model.norm == "batch" and n % c.train.batch_size == 1  # one example has no variance to normalise by
        return TensorBatches(
            self.train.inputs,
            self.train.targets,
            c.train.batch_size,
            seed=c.seed,
            transform=_transform(self),
            drop_last=lone,
        )

    @property
    def updates_per_epoch(self) -> float:
        return math.ceil(len(self.train.inputs) / self.config.train.batch_size) / self.config.train.accumulate

    def frozen(self) -> FitConfig:
        """The settings with what this machine decided: what a run keeps, so that resuming decides nothing anew."""
        decided = {"threads": torch.get_num_threads(), "device": str(self.device), "precision": self.precision.name}
        config = self.config
        for name, value in decided.items():
            config = config.with_(f"train.{name}", value)
        return config

    @property
    def examples_per_update(self) -> int:
        c = self.config.train
        return min(c.batch_size, len(self.train.inputs)) * c.accumulate

    @property
    def steps(self) -> int:
        c = self.config.train
        return c.steps or max(1, round(c.epochs * self.updates_per_epoch))


def prepare(config: FitConfig, *, resolved: bool = False) -> Prepared:
    """Load, split, scale, build. `resolved` settings come from a run and already carry their preset."""
    config, usual, training, validation, test, notes = parts(config, resolved=resolved)
    use_threads(config.train.threads)
    device = usable_device(config.train.device)
    table = isinstance(training, TableData)
    preprocess = TablePreprocessor.fit(training) if isinstance(training, TableData) else Preprocessor.fit(training)
    torch.manual_seed(config.seed)
    config = _checked(config, training)
    model = _built(config, preprocess).to(device)
    plain = isinstance(model, Tabular) or plain_because(config, model) is not None
    fast = not plain and isinstance(model, MLP) and uncompiled_because(model, config.train.batch_size) is None
    pays_from = PAYS_FROM_IF_COMPILED if fast else PAYS_FROM
    rows = config.train.batch_size * (config.model.members if table else 1)
    precision = choose(config.train.precision, device, products(model, rows), pays_from)

    def part(data: Dataset) -> Part:
        return Part(data, preprocess.examples(data).to(device), preprocess.targets(data).to(device))

    return Prepared(
        config=config,
        usual=_checked(usual, training),
        train=part(training),
        validation=None if validation is None else part(validation),
        test=part(test),
        predictor=Predictor(model, preprocess),
        loss=_loss(config, training),
        precision=precision,
        device=device,
        notes=notes,
    )


def plain_because(config: FitConfig, model: MLP | Tabular) -> str | None:
    """Why autograd finds the gradients; None where the chain rule written out does."""
    if isinstance(model, Tabular):
        return "the columns are embedded"
    if config.train.adversarial:
        return "adversarial training differentiates the inputs"
    if model.growth:
        return "mup gives each matrix a rate of its own"
    return lacks(model, config.optimizer.name)


class Parts(NamedTuple):
    config: FitConfig
    usual: FitConfig  # what the effort alone gives for these data
    train: Dataset
    validation: Dataset | None
    test: Dataset
    notes: list[str]


def parts(config: FitConfig, *, resolved: bool = False) -> Parts:
    """The settings with their preset, the training, validation and test parts, and what the user should know."""
    whole, own_test = _loaded(config)
    if config.test is not None:
        if isinstance(whole, TableData):
            own_test = _like(_like_table(whole, config.test), whole, config.test)
        else:
            other, others_test = load(config.test, data_dir=config.data_dir)
            own_test = _like(others_test or other, whole, config.test)
    if own_test is not None and config.data.folds is not None:
        raise ConfigError(
            f"data.folds={config.data.folds} would cut up {config.source}, which has a test part of its own",
            hint="leave data.folds out",
        )
    whole.check_trainable()
    facts = Facts(
        examples=len(whole),
        image=min(whole.inputs.shape[1:3]) if whole.is_image else None,
        augment=config.data.augment == "auto",
        table=isinstance(whole, TableData),
        regress=whole.task == "regress",
    )
    usual = over_preset(FitConfig(source=config.source, effort=config.effort), facts)
    if not resolved:
        config = over_preset(config, facts)
    test_seed = config.seed if config.data.test_seed is None else config.data.test_seed
    if own_test is not None:
        rest, test = whole, own_test
    elif config.data.folds is not None:
        if config.data.split != "random":
            raise ConfigError(f"data.folds can't go by --split {config.data.split}", hint="leave one of the two out")
        rest, test = fold(whole, config.data.folds, config.data.fold, test_seed)
    else:
        rest, test = _cut(whole, config.data.test, test_seed, config)
    training, validation = rest, None
    if config.data.validation > 0:
        training, validation = _cut(rest, config.data.validation, config.seed, config)
    notes = list(dict.fromkeys([*whole.notes, *training.notes]))
    if isinstance(rest, TableData) and isinstance(test, TableData):
        notes += [*leaks(rest), *shared_rows(rest, test)]
    if validation is None:
        notes.append("trained on all training examples: none is held back for validation, and nothing chosen by one")
    return Parts(config, usual, training, validation, test, notes)


def _loaded(config: FitConfig) -> tuple[Dataset, Dataset | None]:
    """A table, or whatever else the source is; ConfigError for settings that only tables have."""
    d = config.data
    if is_table(config.source):
        by = d.split.partition(":")[2] or None
        return load_table(config.source, config.target, task=d.task, drop=d.drop, by=by), None
    for name, said in (("--target", config.target), ("--split", d.split != "random"), ("data.drop", d.drop)):
        if said:
            raise ConfigError(f"{name} is for tables, and {config.source} is none", hint=f"tables are {TABLES}")
    return load(config.source, data_dir=config.data_dir)


def _like_table(whole: TableData, source: str) -> TableData:
    """A labelled table with the targets and the columns of another."""
    names, task = list(whole.target_names or ()), asked(whole.task)
    return load_table(source, names, task=task, kinds=whole.kinds, forms=whole.forms, answers=whole.answers)


def _cut(data: Dataset, fraction: float, seed: int, config: FitConfig) -> tuple[Dataset, Dataset]:
    way = config.data.split.partition(":")[0]
    if way != "random" and isinstance(data, TableData):
        return split_by(data, fraction, seed, way)
    return split(data, fraction, seed)


def _like(test: Dataset, whole: Dataset, name: str) -> Dataset:
    """The test part that `--test` names, with the training part's class numbers; DataError where forms differ."""
    shapes = tuple(test.inputs.shape[1:]), tuple(whole.inputs.shape[1:])
    if shapes[0] != shapes[1] or test.task != whole.task:
        raise DataError(
            f"the test part {name} is not of the training part's kind: examples of {shapes[0]} and {shapes[1]}, "
            f"to {test.task} and to {whole.task}",
            hint="both need the same columns or image size, and the same kind of targets",
        )
    return test if whole.classes is None else test.recode(whole.classes)


def _built(config: FitConfig, preprocess: Preprocessor | TablePreprocessor) -> MLP | Tabular:
    """The network; training holds about four copies of its weights, which have to fit into memory."""
    try:
        return build_model(config, preprocess)
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error):
            raise
        sizes = [preprocess.width, *config.model.hidden, preprocess.outputs]
        weights = sum(a * b for a, b in pairwise(sizes))
        raise ConfigError(
            f"model.hidden={config.model.hidden} needs {4 * weights / 1e9:,.0f} GB of memory for its weights alone",
            hint="take smaller layers",
        ) from None


def use_threads(number: int | None) -> None:
    """Let torch compute on so many threads; ConfigError for more than any machine makes use of."""
    if number is None:
        return
    most = max(MOST_THREADS, 4 * (os.cpu_count() or 1))
    if number > most:
        what = f"train.threads={number} would stand in each other's way: this machine has {os.cpu_count()} cores"
        raise ConfigError(what, hint=f"set train.threads={os.cpu_count()} or fewer")
    torch.set_num_threads(number)


def usable_device(name: str) -> torch.device:
    """The device that `train.device` names, tried; ConfigError where it can't be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ConfigError(f"train.device={name!r} can't be used here", hint="try train.device=cpu") from None
    return device


def _checked(config: FitConfig, data: Dataset) -> FitConfig:
    """Resolve what depends on the task, and refuse what doesn't fit it."""
    classes = data.classes
    name = config.loss.name
    if name == "auto":
        name = "mse" if classes is None else "cross_entropy"
        if data.task == "labels":
            name = "binary_cross_entropy"
        config = config.with_("loss.name", name)
    if data.task == "labels":
        if name != "binary_cross_entropy":
            what = f"loss.name={name} can't be used: the targets are several labels"
            raise ConfigError(what, hint="try binary_cross_entropy")
    elif (name in ("mse", "mae", "huber")) != (classes is None):
        task = "values" if classes is None else "classes"
        fitting = "mse, mae or huber" if classes is None else "cross_entropy, binary_cross_entropy or focal"
        raise ConfigError(f"loss.name={name} can't be used: the targets are {task}", hint=f"try {fitting}")
    if name == "binary_cross_entropy" and classes is not None and len(classes) != 2:
        raise ConfigError(
            f"loss.name=binary_cross_entropy can't be used with {len(classes)} classes", hint="try cross_entropy"
        )
    if (config.data.deform.any or config.data.shift) and not data.is_image:
        raise ConfigError(
            "data.deform and data.shift need images, and the inputs are plain numbers", hint="leave them out"
        )
    if isinstance(data, TableData) and (config.data.noise or config.data.mixup or config.train.adversarial):
        raise ConfigError(
            "data.noise, data.mixup and train.adversarial would change the names of categories", hint="leave them out"
        )
    weights = config.loss.class_weights
    if weights != "none" and classes is None:
        task = "several labels" if data.task == "labels" else "values"
        raise ConfigError(f"loss.class_weights can't be used: the targets are {task}", hint="leave it out")
    if isinstance(weights, list) and classes is not None and len(weights) != len(classes):
        raise ConfigError(
            f"loss.class_weights has {len(weights)} numbers for {len(classes)} classes", hint="give one a class"
        )
    return config


def _loss(config: FitConfig, data: Dataset) -> Loss:
    c = config.loss
    if data.task == "labels":
        goal = SeveralLabels(data.target_names or ())
        loss = goal.loss(LabelLossConfig(label_smoothing=c.label_smoothing), data.targets)
        return per_member(loss) if config.model.members > 1 else loss
    loss = loss_of(c, data.targets, None if data.classes is None else len(data.classes))
    return per_member(loss) if isinstance(data, TableData) and config.model.members > 1 else loss


def loss_of(c: LossConfig, targets: Tensor, classes: int | None) -> Loss:
    """The loss that the settings name, of one of so many classes or of numbers; ConfigError for what it can't have.

    `targets` (N,) are those of training, which class weights are balanced by.
    """
    options: dict[str, Any] = {}
    if c.name in ("cross_entropy", "binary_cross_entropy"):
        options["label_smoothing"] = c.label_smoothing
    elif c.label_smoothing:
        raise ConfigError(f"loss.label_smoothing can't be used with loss.name={c.name}", hint="try cross_entropy")
    if c.name == "huber":
        options["delta"] = c.delta
    if c.name == "focal":
        options["gamma"] = c.gamma
    if c.class_weights == "balanced":
        counts = torch.bincount(targets, minlength=classes or 0)
        options["class_weights"] = (len(targets) / (len(counts) * counts)).tolist()
    elif c.class_weights != "none":
        options["class_weights"] = list(c.class_weights)
    return build_loss(c.name, **options)


def optimizer_for(model: nn.Module, config: FitConfig, lr: float) -> Optimizer:
    o = config.optimizer
    return build_optimizer(
        model,
        o.name,
        lr,
        weight_decay=o.weight_decay,
        momentum=o.momentum,
        beta1=o.beta1,
        beta2=o.beta2,
        eps=o.eps,
        growth=model.growth if isinstance(model, MLP) else {},
    )


def _transform(prepared: Prepared) -> Transform | None:
    c, data = prepared.config.data, prepared.train.data
    transforms: list[Transform] = []
    if c.deform.any:
        transforms.append(Deform(tuple(data.inputs.shape[1:]), **c.deform.model_dump()))
    if c.shift:
        transforms.append(Shift(tuple(data.inputs.shape[1:]), c.shift))
    if c.noise:
        transforms.append(Noise(c.noise))
    if c.mixup:
        one_logit = prepared.config.loss.name == "binary_cross_entropy"
        transforms.append(Mixup(c.mixup, None if data.classes is None or one_logit else len(data.classes)))
    return chain(*transforms) if transforms else None
