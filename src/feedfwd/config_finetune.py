"""The settings of `feedfwd finetune`: labelled texts, the network that reads them, and how it is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from feedfwd.config import (
    Count,
    FFNSpec,
    Names,
    NonNegative,
    Positive,
    Real,
    Recipe,
    ScheduleConfig,
    Settings,
    Share,
    UpdatesConfig,
)
from feedfwd.config_decide import DecideConfig


class LabelledConfig(Settings):
    """What the labels are, and how the texts are split."""

    several: bool | None = Field(None, description="several labels a text; not given: guessed from the column")
    shots: Count | None = Field(None, description="train on so many texts of each class, drawn by seed, alone")

    names: bool | None = Field(
        None,
        description="each class's name is read as a text of it; not given: where texts are few and names say something",
    )
    validation: Share = Field(0.0, description="share of the training part held back for validation; 0 trains on all")
    test: Annotated[Share, Field(gt=0)] = Field(0.2, description="share split off as test part where none is named")
    test_seed: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="seed of the test part's split; not given: `seed`"
    )


class BagConfig(Settings):
    """Hashed n-grams, a vector for each bucket, their weighted sum, and the layers above it."""

    buckets: Count = Field(262144, description="into which n-grams are hashed; each has a vector")
    width: Annotated[int, Field(ge=0)] = Field(
        128, description="of a vector; 0: each n-gram has a number for every class instead, and no layers follow"
    )
    words: Annotated[int, Field(ge=0, le=5)] = Field(2, description="longest run of words; 0: none")
    shortest: Count = Field(2, description="shortest run of characters")
    longest: Annotated[int, Field(ge=0, le=10)] = Field(5, description="longest run of characters; 0: none")
    digits: bool = Field(False, description="tell digits apart; else each reads as 0")
    hidden: list[Count] = Field([], description="width of each hidden layer; none: a linear layer")
    residual: bool = Field(False, description="x + FFN(norm(x)) blocks instead of plain layers")
    norm: Literal["none", "layer", "rms", "batch"] = "none"
    input_dropout: Share = Field(0.3, description="on the sum of the vectors")

    @model_validator(mode="after")
    def _reads_something(self) -> Self:
        if self.longest and self.longest < self.shortest:
            raise ValueError(f"bag.longest={self.longest} is below bag.shortest={self.shortest}")
        if not self.longest and not self.words:
            raise ValueError("bag.words=0 and bag.longest=0 leave nothing of a text to read")
        if not self.width and (self.hidden or self.residual or self.norm != "none"):
            raise ValueError("bag.width=0 leaves no layers: leave bag.hidden, bag.residual and bag.norm out")
        return self


class EncoderConfig(Settings):
    """How a pretrained model reads a text, and the layers above the text's vector."""

    pooling: Literal["auto", "mean", "cls", "last"] = Field("auto", description="auto: as the model was trained")
    longest: Annotated[int, Field(ge=4)] = Field(256, description="tokens of a text; what is longer is cut")
    hidden: list[Count] = Field([], description="width of each hidden layer of the head; none: a linear map")
    input_dropout: Share = Field(0.1, description="on the text's vector")
    dropout: Share | None = Field(None, description="inside the pretrained model; not given: as it says itself")
    frozen_embeddings: bool = Field(False, description="the tokens' vectors stay as they are")


class ReadingConfig(EncoderConfig):
    """A text may also be read in parts."""

    ngrams: bool = Field(
        False, description="a bag of n-grams (bag.*) adds its outputs to those of the pretrained model"
    )
    start: Literal["auto", "random", "means", "regression"] = Field(
        "auto",
        description="of a linear head; means: the classes' mean vectors; regression: logistic regression on the "
        "model's own; auto: regression for few texts, means for lora and dora",
    )
    masked: Share | None = Field(
        None,
        description="share of a training text's tokens read as the mask token, others each time; not given: few texts'",
    )
    windows: Count = Field(1, description="parts of encoder.longest tokens that a longer text is read in; means count")


class AdaptConfig(Settings):
    """method=lora or dora: low-rank maps beside the frozen ones (arXiv 2106.09685, 2402.09353)."""

    rank: Count = 16
    alpha: Positive = Field(32.0, description="the low-rank product counts alpha / rank")
    dropout: Share = 0.0
    targets: Names = Field(
        ["attention.*", "ffn.*"], description="linear maps by path or its end, with wildcards", min_length=1
    )
    start: str | None = Field(None, description="adapters to go on from: a run of lora or dora, or a folder of peft's")

    @model_validator(mode="after")
    def _brings_its_own(self) -> Self:
        if self.start is not None and self.model_copy(update={"start": None}) != type(self)():
            raise ValueError("adapt.start brings its own rank, alpha, dropout and targets: leave these out")
        return self


class DistilConfig(Settings):
    """A bag that learns what a fine-tuned model answers, beside the labels (arXiv 1503.02531)."""

    teacher: str | None = Field(None, description="a run of finetune whose answers are learnt")
    unlabelled: str | None = Field(None, description="a file of texts without labels, which the teacher answers")
    temperature: Positive = Field(2.0, description="divides logits, so that what is less likely counts more")
    share: Annotated[Real, Field(gt=0, le=1)] = Field(
        0.7, description="of the loss, the teacher's; the rest: the label's"
    )


class RowOptimizerConfig(Settings):
    """Adam that touches of the embedding only the rows that a batch looks up."""

    lr: Positive = Field(0.01, description="peak learning rate")
    ngrams: Positive = Field(0.15, description="how many times the rate the n-grams' vectors learn at, by one scale")
    head: Positive = Field(1.0, description="how many times the rate the head of a pretrained model learns at")
    layer_decay: Annotated[Real, Field(gt=0, le=1)] = Field(
        1.0, description="rate of each layer of a pretrained model, relative to the one above it"
    )
    weight_decay: Annotated[Real, Field(ge=0)] = Field(0.0, description="of matrices, those of vectors left out")
    beta1: Share = 0.9
    beta2: Share = 0.99
    eps: Positive = 1e-8


class FinetuneSchedule(ScheduleConfig):
    name: Literal["constant", "step", "linear", "cosine", "one_cycle", "warmup_stable_decay"] = "linear"
    warmup: Share | None = Field(0.05, description="share of the updates in which the rate rises")


class LabelLossConfig(Settings):
    """Cross-entropy of the labels."""

    label_smoothing: Share = 0.0
    class_weights: Literal["auto", "none", "root", "balanced"] = Field(
        "auto",
        description="balanced: every class counts the same; root: halfway there; auto: by the data and the model",
    )
    contrast: NonNegative = Field(
        0.0, description="weight of a loss that draws a batch's texts of one label together (arXiv 2004.11362)"
    )
    keep: NonNegative = Field(
        0.0, description="weight of a loss that keeps texts' vectors near the pretrained model's (arXiv 1607.00122)"
    )


class FinetuneUpdates(UpdatesConfig):
    epochs: Positive = 6.0

    @model_validator(mode="after")
    def _unbounded(self) -> Self:
        if self.clip is not None:
            raise ValueError("the vectors' gradient is sparse and has no norm to bound: leave train.clip out")
        return self


class FinetuneConfig(Recipe):
    """Everything `feedfwd finetune` needs to know.

    >>> FinetuneConfig(source="train.csv").with_("bag.hidden", [64]).ffn.activation
    'relu'
    """

    source: str
    test: str | None = Field(None, description="a file of its own for the test part")
    task: Literal["auto", "classify", "regress"] = Field("auto", description="auto: by what the target column holds")
    text: str | None = Field(None, description="column that holds the text; not given: guessed")
    target: str | None = Field(None, description="column that holds the label; not given: guessed")
    pretrained: str | None = Field(
        None,
        description="what to start from: a run of pretrain, a folder or a name of Hugging Face's; not given: a bag",
    )
    method: Literal["full", "head", "lora", "dora"] = Field("full", description="which weights of it are trained")
    data: LabelledConfig = LabelledConfig()
    bag: BagConfig = BagConfig()
    encoder: ReadingConfig = ReadingConfig()
    adapt: AdaptConfig = AdaptConfig()
    distil: DistilConfig = DistilConfig()
    ffn: FFNSpec = FFNSpec()
    loss: LabelLossConfig = LabelLossConfig()
    decide: DecideConfig = DecideConfig()
    optimizer: RowOptimizerConfig = RowOptimizerConfig()
    schedule: FinetuneSchedule = FinetuneSchedule()
    train: FinetuneUpdates = FinetuneUpdates()

    @model_validator(mode="after")
    def _has_what_it_changes(self) -> Self:
        if self.pretrained is None and self.method != "full":
            raise ValueError(f"--method {self.method} needs a pretrained model: name one with --from")
        if self.encoder.ngrams and (self.pretrained is None or self.method == "head"):
            raise ValueError("encoder.ngrams stands beside a pretrained model: name one with --from, not --method head")
        of_vectors = {"loss.contrast": self.loss.contrast, "loss.keep": self.loss.keep}
        for name, value in ({"encoder.masked": self.encoder.masked} | of_vectors).items():
            if value and (self.pretrained is None or self.method == "head"):
                raise ValueError(f"{name} is for a pretrained model that learns: --from, not --method head")
            if value and self.encoder.ngrams and name in of_vectors:
                raise ValueError(f"{name} compares a pretrained model's vectors alone: leave encoder.ngrams out")
        if self.encoder.start != "auto" and self.pretrained is None:
            raise ValueError("encoder.start is of the head above a pretrained model: name one with --from")
        if self.method not in ("lora", "dora") and self.adapt != AdaptConfig():
            raise ValueError("adapt.* is for --method lora and dora")
        if self.distil.teacher is None and self.distil != DistilConfig():
            raise ValueError("distil.* needs a teacher: name a run with --teacher")
        if self.distil.teacher is not None and self.pretrained is not None:
            raise ValueError("--teacher makes a small bag of n-grams, --from starts from a model: leave one out")
        return self


FEW = 20  # texts a class, up to which a class's mean and name were seen to do good
DIRECT = 10  # classes from which on n-grams have vectors and not a number for each
FEW_TEXTS: dict[str, Any] = {"train.batch_size": 64, "loss.contrast": 1.0}
LONGER, LONGER_OURS = 2, 5  # times as many epochs of them; a small model has more to learn
BAG_EPOCHS = {"quick": 3, "standard": 6, "best": 8}
BAG_SHOWN, BAG_MOST = 1_600, 30  # texts below which there are more epochs and smaller batches; epochs at most

LINEAR: dict[str, Any] = {"bag.width": 0, "bag.input_dropout": 0.0, "optimizer.ngrams": 1.0}  # docs/fine-tuning.md

PRETRAINED: dict[str, dict[str, Any]] = {  # by method, what every effort starts from
    "full": {"optimizer.lr": 1e-4, "optimizer.head": 10.0, "optimizer.layer_decay": 0.9, "train.batch_size": 32},
    "head": {"optimizer.lr": 0.01, "train.batch_size": 64},
    "lora": {"optimizer.lr": 1e-3, "train.batch_size": 32},
    "dora": {"optimizer.lr": 1e-3, "train.batch_size": 32},
}
OURS = {  # of a small model that `pretrain` made, which has less to lose
    "optimizer.lr": 2e-3, "optimizer.head": 5.0, "optimizer.layer_decay": 1.0, "encoder.dropout": 0.2,
}  # fmt: skip
PRETRAINED_EPOCHS = {"quick": 3.0, "standard": 6.0, "best": 10.0}
HEAD_EPOCHS = 5  # times as many of features that are there already


def preset(config: FinetuneConfig, texts: int, classes: int | None = None) -> Mapping[str, Any]:
    """What effort and method put beneath the user's settings, for so many training texts and classes; None: not one
    label a text.

    >>> preset(FinetuneConfig(source="a.csv", pretrained="run", effort="quick"), 5000)["train.epochs"]
    3.0
    >>> of = FinetuneConfig(source="a.csv", pretrained="bert")
    >>> [preset(of, texts, classes)["train.epochs"] for texts, classes in ((770, 77), (5000, 3), (5000, 77))]
    [12.0, 3.0, 6.0]
    >>> [preset(FinetuneConfig(source="a.csv"), texts) for texts in (770, 10_000)]
    [{'train.epochs': 12.0, 'train.batch_size': 16}, {'train.epochs': 6.0, 'train.batch_size': 32}]
    """
    plain = config.bag.model_fields_set.isdisjoint({"width", "hidden", "residual", "norm"})
    few = classes is not None and classes < DIRECT and plain
    if config.pretrained is None:
        least = BAG_EPOCHS[config.effort]
        often = min(BAG_MOST, max(least, least * BAG_SHOWN // max(1, texts)))
        found = {"train.epochs": float(often), "train.batch_size": 16 if texts < BAG_SHOWN else 32}
        if few and config.distil.teacher is None:
            longer = float(min(BAG_MOST, 2 * often))
            return found | LINEAR | {"train.epochs": longer, "loss.class_weights": "balanced"}
        return found
    epochs = PRETRAINED_EPOCHS[config.effort] * (HEAD_EPOCHS if config.method == "head" else 1)
    small = OURS if config.method == "full" and (Path(config.pretrained) / "config.toml").is_file() else {}
    found = PRETRAINED[config.method] | small | {"train.epochs": epochs, "loss.class_weights": "none"}
    if classes is not None and config.method == "full" and not config.encoder.ngrams:
        if not small and classes >= DIRECT:  # of few classes, and of a small model of ours, it was worth nothing
            found |= {"loss.keep": 1.0}
        if texts <= FEW * classes:
            return found | FEW_TEXTS | {"train.epochs": (LONGER_OURS if small else LONGER) * epochs}
        if classes < DIRECT and not small:
            return found | {"train.epochs": epochs / 2, "loss.class_weights": "root"}  # or learnt by heart
    return found | LINEAR if few and config.encoder.ngrams else found
