"""From the settings of `finetune` to all that the training needs; the same settings make the same things."""

import hashlib
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from feedfwd.config_finetune import EFFORTS, FinetuneConfig
from feedfwd.data.dataset import Dataset
from feedfwd.data.ragged import Ragged, RaggedBatches
from feedfwd.data.split import split
from feedfwd.data.text_tables import TextTable, read_table, shared_texts
from feedfwd.errors import ConfigError
from feedfwd.models.bag import Bag
from feedfwd.recipes.classifier import TextClassifier, build_bag
from feedfwd.recipes.prepare import usable_device
from feedfwd.train.losses import Loss, build_loss
from feedfwd.train.precision import Precision, choose, products
from feedfwd.train.rows import RowAdam


@dataclass
class TextPart:
    """Texts of one part, the numbers of their classes, and as the network reads them."""

    data: Dataset  # its `rows` name the texts' places in the file; its inputs stand for nothing
    texts: tuple[str, ...]
    rows: Ragged

    def __len__(self) -> int:
        return len(self.data)


@dataclass
class PreparedTexts:
    config: FinetuneConfig  # with the effort's preset beneath
    train: TextPart
    validation: TextPart | None
    test: TextPart
    classifier: TextClassifier
    loss: Loss
    precision: Precision
    device: torch.device
    fingerprint: str
    notes: list[str] = field(default_factory=list)

    @property
    def model(self) -> Bag:
        return self.classifier.model

    @property
    def parts(self) -> dict[str, TextPart]:
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in found.items() if part is not None}

    def batches(self) -> RaggedBatches:
        c = self.config
        rows = Ragged(self.train.rows.values.to(self.device), self.train.rows.lengths.to(self.device))
        return RaggedBatches(rows, self.train.data.targets.to(self.device), c.train.batch_size, seed=c.seed)

    def optimizer(self, model: Bag) -> RowAdam:
        o = self.config.optimizer
        betas = (o.beta1, o.beta2)
        return RowAdam(model.named_parameters(), o.lr, betas=betas, eps=o.eps, weight_decay=o.weight_decay)

    @property
    def examples_per_update(self) -> int:
        return min(self.config.train.batch_size, len(self.train)) * self.config.train.accumulate

    @property
    def updates_per_epoch(self) -> float:
        return math.ceil(len(self.train) / self.config.train.batch_size) / self.config.train.accumulate

    @property
    def steps(self) -> int:
        c = self.config.train
        return c.steps or max(1, round(c.epochs * self.updates_per_epoch))

    def frozen(self) -> FinetuneConfig:
        """The settings with what this machine decided, so that resuming decides nothing anew."""
        decided = {"threads": torch.get_num_threads(), "device": str(self.device), "precision": self.precision.name}
        config = self.config
        for name, value in decided.items():
            config = config.with_(f"train.{name}", value)
        return config


def prepare_texts(config: FinetuneConfig, *, resolved: bool = False) -> PreparedTexts:
    """Read, split, hash, build. `resolved` settings come from a run and already carry their preset."""
    if not resolved:
        config = config.over(EFFORTS[config.effort])
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    train, validation, test, notes = parts(config)
    classes = train[1].classes
    assert classes is not None
    device = usable_device(config.train.device)
    torch.manual_seed(config.seed)
    model = _built(config, len(classes)).to(device)
    precision = choose(config.train.precision, device, products(model, config.train.batch_size))
    classifier = TextClassifier(model, config, classes)

    def part(texts: tuple[str, ...], data: Dataset) -> TextPart:
        return TextPart(data, texts, classifier.rows(texts))

    training = part(*train)
    model.weigh(training.rows.values.to(device), len(training))
    return PreparedTexts(
        config=config,
        train=training,
        validation=None if validation is None else part(*validation),
        test=part(*test),
        classifier=classifier,
        loss=_loss(config, train[1]),
        precision=precision,
        device=device,
        fingerprint=_fingerprint(*train),
        notes=notes,
    )


Texts = tuple[tuple[str, ...], Dataset]


def parts(config: FinetuneConfig) -> tuple[Texts, Texts | None, Texts, list[str]]:
    """Training, validation and test part, and what the user should know."""
    whole = read_table(config.source, text=config.text, target=config.target)
    data = as_dataset(whole)
    data.check_trainable()
    notes = list(whole.notes)
    if config.test is not None:
        other = read_table(config.test, text=config.text, target=config.target)
        test = other.texts, as_dataset(other).recode(data.classes or ())
        notes += [f"{config.test}: {note}" for note in other.notes]
    else:
        data, held = split(data, config.data.test, config.seed)
        test = _texts(whole, held), held
    rest, validation = data, None
    if config.data.validation > 0:
        rest, held = split(data, config.data.validation, config.seed)
        validation = _texts(whole, held), held
    else:
        notes.append("trained on all training texts: none is held back for validation")
    notes += [note for note in rest.notes if note not in notes]
    train = _texts(whole, rest), rest
    if twice := shared_texts(train[0], test[0]):
        shown = test[0][twice[0]]
        shown = shown if len(shown) <= 60 else shown[:60] + "…"
        plural = "s stand" if len(twice) > 1 else " stands"
        notes.append(f"{len(twice):,} test text{plural} in the training part too, for example {shown!r}")
    return train, validation, test, notes


def as_dataset(table: TextTable) -> Dataset:
    """The labels as class numbers, in the classes' alphabetical order; the inputs are the texts' places."""
    assert table.labels is not None
    classes = sorted(set(table.labels))
    place = {name: i for i, name in enumerate(classes)}
    targets = torch.tensor([place[label] for label in table.labels])
    inputs = torch.arange(len(table), dtype=torch.float32)[:, None]
    return Dataset(table.name, inputs, targets, "classify", tuple(classes))


def _texts(whole: TextTable, part: Dataset) -> tuple[str, ...]:
    return whole.texts if part.rows is None else tuple(whole.texts[i] for i in part.rows.tolist())


def _built(config: FinetuneConfig, classes: int) -> Bag:
    try:
        return build_bag(config, classes)
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error):
            raise
        b = config.bag
        needs = f"bag.buckets={b.buckets:,} and bag.width={b.width:,} need {12 * b.buckets * b.width / 1e9:,.0f} GB"
        raise ConfigError(f"{needs} of memory", hint="take smaller ones") from None


def _loss(config: FinetuneConfig, data: Dataset) -> Loss:
    weights: dict[str, list[float]] = {}
    if config.loss.class_weights == "balanced":
        counts: Tensor = torch.bincount(data.targets, minlength=len(data.classes or ()))
        weights["class_weights"] = (len(data) / (len(counts) * counts)).tolist()
    return build_loss("cross_entropy", label_smoothing=config.loss.label_smoothing, **weights)


def _fingerprint(texts: tuple[str, ...], data: Dataset) -> str:
    digest = hashlib.blake2b(data.fingerprint.encode(), digest_size=16)
    digest.update("\0".join(texts).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
