"""From the settings of `finetune` to all that the training needs; the same settings make the same things."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from feedfwd.config_finetune import FinetuneConfig, preset
from feedfwd.data.batches import Batch, TensorBatches
from feedfwd.data.dataset import Dataset
from feedfwd.data.ragged import ALIKE, HideTokens, Ragged, RaggedBatches
from feedfwd.errors import ConfigError
from feedfwd.models.adapt import layer_rates
from feedfwd.models.bag import Bag
from feedfwd.models.encoder import Encoder
from feedfwd.models.tabular import per_member
from feedfwd.recipes.adapters import adapted
from feedfwd.recipes.class_names import names_read, with_names
from feedfwd.recipes.classifier import (
    BagReader,
    Network,
    Reader,
    TextClassifier,
    TokenReader,
    build_bag,
    build_encoder,
    token_reader,
)
from feedfwd.recipes.distil import Taught, distillation, taught
from feedfwd.recipes.few_texts import STARTS, few_texts, hiding, start_of
from feedfwd.recipes.goals import Goal, Number, SeveralLabels
from feedfwd.recipes.labelled_parts import parts, short
from feedfwd.recipes.prepare import usable_device, use_threads
from feedfwd.recipes.pretrained import Pretrained, load_pretrained
from feedfwd.report.words import duration
from feedfwd.train.contrastive import beside
from feedfwd.train.losses import Loss
from feedfwd.train.precision import Precision, choose, products
from feedfwd.train.rows import RowAdam

READ = 1024  # texts that are read at once before training
NGRAM_RATE = 0.01  # of what stands beside a pretrained model, as of a bag by itself
COMPARED = 4  # batches of texts about as long as each other where a loss compares them: others are to meet each time


class Batches(Iterator[Batch], Protocol):
    """An endless stream of batches whose place can be kept."""

    def state_dict(self) -> dict[str, int]: ...
    def load_state_dict(self, state: dict[str, int]) -> None: ...


@dataclass
class TextPart:
    """Texts of one part, their targets, and as the network reads them."""

    data: Dataset  # its `rows` name the texts' places in the file; its inputs stand for nothing
    texts: tuple[str, ...]
    rows: Ragged
    features: Tensor | None = None  # (N, W) what the head sees, where nothing below it is trained: read once

    def __len__(self) -> int:
        return len(self.data)

    def select(self, chosen: Tensor) -> "TextPart":
        """The texts at these places alone."""
        texts = tuple(self.texts[i] for i in chosen.tolist())
        features = None if self.features is None else self.features[chosen.to(self.features.device)]
        return TextPart(self.data.subset(chosen), texts, self.rows.select(chosen), features)


@dataclass
class PreparedTexts:
    config: FinetuneConfig  # with the preset beneath
    train: TextPart
    validation: TextPart | None
    test: TextPart
    classifier: TextClassifier
    loss: Loss
    precision: Precision
    device: torch.device
    fingerprint: str
    columns: dict[str, str]  # that text and target were read from
    pretrained: Pretrained | None = None
    adapted: str = ""  # in words, which weights of a pretrained model are trained
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0  # that they took
    named: bool = False  # whether the classes' names are training texts
    few: bool = False  # whether the classes have few texts each
    taught: Taught | None = None  # what a teacher says to the training texts, and to others
    before: Tensor | None = None  # (N, W) the training texts' vectors before training, which they are to stay near

    @property
    def model(self) -> Network:
        return self.classifier.model

    @property
    def goal(self) -> Goal:
        return self.classifier.goal

    @property
    def features(self) -> Tensor | None:
        """Of the training texts, where nothing below the head is trained."""
        return self.train.features

    def read(self, part: TextPart) -> tuple[Tensor, Tensor]:
        """Features (N, W) and outputs (N, O) of a part; of a frozen model the texts are not read again."""
        if self.train.features is None:
            return self.classifier.read(part.rows)
        if part.features is None:
            part.features = self.classifier.features(part.rows).to(self.device)
        outputs = self.classifier.headed(part.features)
        return part.features.cpu(), self.classifier.outputs(part.rows) if outputs is None else outputs

    @property
    def trained(self) -> nn.Module:
        """What an update runs: the whole network, or its head alone over features that are there already."""
        return self.model if self.features is None else self.model.mlp

    @property
    def parts(self) -> dict[str, TextPart]:
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in found.items() if part is not None}

    def batches(self) -> Batches:
        c, targets = self.config, self.train.data.targets
        if self.features is not None:
            return TensorBatches(
                self.features, targets.to(self.device), c.train.batch_size, seed=c.seed, drop_last=False
            )
        rows = self.train.rows
        if self.taught is not None:
            rows, targets = self.taught.examples(rows, self.train.data)
        if c.loss.keep:  # an update is tried out before the vectors are there
            before = torch.zeros(1, self.model.width) if self.before is None else self.before
            targets = torch.cat([targets[:, None].float(), before.expand(len(targets), -1)], 1)
        alike = 1
        if isinstance(self.model, Encoder):  # where a place filled up costs as much as a token
            alike = COMPARED if c.loss.contrast else ALIKE
        return RaggedBatches(
            rows, targets, c.train.batch_size, seed=c.seed, alike=alike, transform=self.hides, device=self.device
        )

    def read_before(self, say: Callable[[str], None]) -> None:
        """Take the vectors that the training texts are to stay near, of the model as it came."""
        begun, found, parts = time.perf_counter(), [], torch.split(torch.arange(len(self.train)), READ)
        for part in parts:
            found.append(self.classifier.features(self.train.rows.select(part)).float().cpu())
            left = (len(parts) - 1) * (time.perf_counter() - begun)
            if len(found) == 1 and left > 5:
                say(f"reads the training texts once by the model as it came: about {duration(left)}")
        self.before = torch.cat(found)
        self.seconds += time.perf_counter() - begun

    @property
    def hides(self) -> HideTokens | None:
        """What hides tokens of the training texts."""
        return hiding(self.config, self.pretrained, self.few)

    @property
    def start(self) -> str:
        """Where the head above a pretrained model begins."""
        return start_of(self.config, self.goal, self.pretrained, self.few)

    def begin(self, model: Encoder, features: Tensor, targets: Tensor) -> None:
        """Put the head there, by what the training texts (N, W) and their targets say."""
        match self.start:
            case "means":
                model.begin_at_means(features.to(self.device), targets.to(self.device))
            case "regression":
                model.begin_at_regression(features.to(self.device), targets.to(self.device))

    def optimizer(self, model: nn.Module) -> RowAdam:
        o = self.config.optimizer
        alone = self.features is not None or isinstance(self.model, Bag)
        of_layer = None if alone else layer_rates(self.model, o.layer_decay)

        def rate(name: str) -> float:
            """How many times the rate a parameter learns at."""
            if of_layer is None:
                return 1.0
            part = name.partition(".")[0]
            return of_layer(name) if part == "backbone" else NGRAM_RATE / o.lr if part == "bag" else o.head

        def of_ngrams(name: str) -> bool:
            return name == ("embedding.weight" if isinstance(self.model, Bag) else "bag.embedding.weight")

        return RowAdam(
            model.named_parameters(),
            o.lr,
            betas=(o.beta1, o.beta2),
            eps=o.eps,
            weight_decay=o.weight_decay,
            rate=lambda name: rate(name) * (o.ngrams if of_ngrams(name) else 1.0),
            alike=of_ngrams,
        )

    @property
    def examples(self) -> int:
        """Texts that an epoch goes over."""
        return len(self.train) + (0 if self.taught is None else len(self.taught))

    @property
    def examples_per_update(self) -> int:
        return min(self.config.train.batch_size, self.examples) * self.config.train.accumulate

    @property
    def updates_per_epoch(self) -> float:
        return math.ceil(self.examples / self.config.train.batch_size) / self.config.train.accumulate

    @property
    def steps(self) -> int:
        c = self.config.train
        return c.steps or max(1, round(c.epochs * self.updates_per_epoch))

    @property
    def trained_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    @property
    def flops(self) -> int:
        """Of a text's forward pass, products only."""
        if isinstance(self.model, Bag):
            return self.model.flops
        return self.model.flops(float(self.lengths(self.train).float().mean()))

    def lengths(self, part: TextPart) -> Tensor:  # (N,)
        """Tokens, or n-grams, of each text."""
        reader = self.classifier.reader
        return reader.lengths(part.rows) if isinstance(reader, TokenReader) else part.rows.lengths

    def about(self) -> dict[str, Any]:
        """For preprocess.json: all that answering takes beside the settings, the weights and the tokenizer."""
        found = self.goal.about()
        reader = self.classifier.reader
        if self.pretrained is not None and isinstance(reader, TokenReader) and isinstance(self.model, Encoder):
            of = {"name": self.pretrained.name, "family": self.pretrained.family, "pooling": self.pretrained.pooling}
            found["pretrained"] = of | {"settings": self.model.backbone.settings} | reader.about()
        return found

    def frozen(self) -> FinetuneConfig:
        """The settings with what this machine and the data decided, so that resuming decides nothing anew."""
        decided: dict[str, Any] = self.columns | {
            "task": "regress" if isinstance(self.goal, Number) else "classify",
            "data.several": isinstance(self.goal, SeveralLabels),
            "data.names": self.named,
            "train.threads": torch.get_num_threads(),
            "train.device": str(self.device),
            "train.precision": self.precision.name,
        }
        config = self.config
        for name, value in decided.items():
            config = config.with_(name, value)
        return config


def prepare_texts(config: FinetuneConfig, *, resolved: bool = False) -> PreparedTexts:
    """Read, split, encode, build. `resolved` settings come from a run and already carry their preset."""
    use_threads(config.train.threads)
    train, validation, test, goal, columns, notes = parts(config)
    if not resolved:
        classes = len(goal.classes) if goal.kind == "label" else None
        config = config.over(preset(config, len(train[1]), classes))
    device = usable_device(config.train.device)
    torch.manual_seed(config.seed)
    pretrained = None
    reader: Reader
    if config.pretrained is None:
        model: Network = _built(config, goal.outputs).to(device)
        reader = BagReader(config)
    else:
        pretrained = load_pretrained(config.pretrained, dropout=config.encoder.dropout)
        longest = min(config.encoder.longest, pretrained.longest)
        model = build_encoder(config, pretrained.model, pretrained.pooling, goal.outputs, longest).to(device)
        reader = token_reader(config, pretrained.tokenizer, longest, pretrained.model.vocabulary)
    classifier = TextClassifier(model, config, goal, reader)

    def part(texts: tuple[str, ...], data: Dataset) -> TextPart:
        return TextPart(data, texts, classifier.rows(texts))

    few = few_texts(config, goal, pretrained, len(train[1]))
    names = names_read(config.data.names, goal, few)
    if names:
        train = with_names(*train, names)
        notes.append(
            f"the names of the {len(names):,} classes are read as a text each, for example {short(names[0])!r}"
        )
    training, loss = part(*train), goal.loss(config.loss, train[1].targets)
    tokens = config.train.batch_size
    if isinstance(model, Bag):
        model.weigh(training.rows.values.to(device), len(training))
    else:
        assert isinstance(reader, TokenReader)
        if model.bag is not None:
            model.bag.weigh(reader.buckets(training.rows).to(device), len(training))
            loss = per_member(loss)
        contrast, keep = config.loss.contrast, config.loss.keep
        if contrast or keep:
            if goal.kind != "label":
                name = "contrast" if contrast else "keep"
                raise ConfigError(f"loss.{name} is for texts of one label each", hint="leave it out")
            model.shows_vectors, loss = True, beside(loss, goal.outputs, contrast=contrast, keep=keep)
        tokens = round(tokens * float(reader.lengths(training.rows).float().mean()))
    prepared = PreparedTexts(
        config=config,
        train=training,
        validation=None if validation is None else part(*validation),
        test=part(*test),
        classifier=classifier,
        loss=loss,
        precision=choose(config.train.precision, device, products(model, tokens)),
        device=device,
        fingerprint=_fingerprint(*train),
        columns=columns,
        pretrained=pretrained,
        notes=notes,
        named=bool(names),
        few=few,
    )
    if isinstance(model, Encoder):
        _start(prepared, model)
    elif config.distil.teacher is not None:
        _ask(prepared, model)
    return prepared


def _ask(p: PreparedTexts, model: Bag) -> None:
    """Let the teacher answer, and the bag learn that."""
    c, begun = p.config, time.perf_counter()
    text, reader = p.columns["text"], p.classifier.reader
    p.taught = taught(c.distil, p.goal, reader, p.train.texts, p.train.data, p.test.texts, text)
    p.seconds = time.perf_counter() - begun
    p.loss = distillation(c.distil, p.goal, p.loss)
    p.notes += p.taught.notes
    p.fingerprint += p.taught.fingerprint
    values = torch.cat([p.train.rows.values, p.taught.rows.values])
    model.weigh(values.to(p.device), p.examples)


def _start(p: PreparedTexts, model: Encoder) -> None:
    """Say which weights are trained; where it is the head alone, take what it sees of the texts once and for all."""
    c = p.config
    reader = p.classifier.reader
    assert isinstance(reader, TokenReader)
    for name, part in p.parts.items():
        long, cut = int((p.lengths(part) > reader.longest).sum()), reader.cut(part.texts, part.rows)
        if long:
            what = f"are longer than {reader.longest} tokens and read in up to {reader.windows} windows"
            p.notes.append(f"{long / len(part):.1%} of the {name} texts {what}")
        if cut:
            where = "and cut there" if reader.windows == 1 else f"in {reader.windows} windows, and cut after them"
            p.notes.append(f"{cut / len(part):.1%} of the {name} texts are longer than {reader.longest} tokens {where}")
    assert p.pretrained is not None
    frozen = c.encoder.frozen_embeddings
    p.adapted = str(adapted(model, c.method, c.adapt, p.pretrained, frozen_embeddings=frozen))
    if (hides := p.hides) is not None:
        p.adapted += f"; {hides.share:.0%} of the tokens read as the mask token"
    if c.loss.contrast:
        p.adapted += "; a batch's texts of one label are drawn together"
    if c.loss.keep:
        p.adapted += "; texts' vectors are kept near what they were"
    # so that an update touches the tokens of its batch alone
    model.backbone.embedding.sparse = model.backbone.embedding.weight.requires_grad
    if c.method == "head":
        begun = time.perf_counter()
        p.train.features = p.classifier.features(p.train.rows).to(p.device)
        p.seconds = time.perf_counter() - begun
    if p.start != "random":
        begun = time.perf_counter()
        features = p.classifier.features(p.train.rows) if p.features is None else p.features
        p.begin(model, features, p.train.data.targets)
        p.adapted += f"; the head begins at {STARTS[p.start]}"
        p.seconds += time.perf_counter() - begun


def _built(config: FinetuneConfig, outputs: int) -> Bag:
    try:
        return build_bag(config, outputs)
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error):
            raise
        b = config.bag
        size = 12 * b.buckets * (b.width or outputs)
        needs = f"bag.buckets={b.buckets:,} and bag.width={b.width:,} need {size / 1e9:,.0f} GB"
        raise ConfigError(f"{needs} of memory", hint="take smaller ones") from None


def _fingerprint(texts: tuple[str, ...], data: Dataset) -> str:
    digest = hashlib.blake2b(data.fingerprint.encode(), digest_size=16)
    digest.update("\0".join(texts).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
