"""The settings of `feedfwd finetune`: labelled texts, the network that reads them, and how it is trained."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from feedfwd.config import (
    Count,
    FFNSpec,
    Positive,
    Real,
    Recipe,
    ScheduleConfig,
    Settings,
    Share,
    UpdatesConfig,
)


class LabelledConfig(Settings):
    """How the texts are split."""

    validation: Share = Field(0.0, description="share of the training part held back for validation; 0 trains on all")
    test: Annotated[Share, Field(gt=0)] = Field(0.2, description="share split off as test part where none is named")


class BagConfig(Settings):
    """Hashed n-grams, a vector for each bucket, their weighted sum, and the layers above it."""

    buckets: Count = Field(131072, description="into which n-grams are hashed; each has a vector")
    width: Count = Field(128, description="of a vector")
    words: Annotated[int, Field(ge=0, le=5)] = Field(2, description="longest run of words; 0: none")
    shortest: Count = Field(2, description="shortest run of characters")
    longest: Annotated[int, Field(ge=0, le=10)] = Field(5, description="longest run of characters; 0: none")
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
        return self


class RowOptimizerConfig(Settings):
    """Adam that touches only the vectors of a batch's own n-grams."""

    lr: Positive = Field(0.01, description="peak learning rate")
    weight_decay: Annotated[Real, Field(ge=0)] = Field(0.0, description="of the layers above the sum")
    beta1: Share = 0.9
    beta2: Share = 0.99
    eps: Positive = 1e-8


class FinetuneSchedule(ScheduleConfig):
    name: Literal["constant", "step", "linear", "cosine", "one_cycle", "warmup_stable_decay"] = "linear"
    warmup: Share | None = Field(0.05, description="share of the updates in which the rate rises")


class LabelLossConfig(Settings):
    """Cross-entropy of the labels."""

    label_smoothing: Share = 0.0
    class_weights: Literal["none", "balanced"] = Field("none", description="balanced: every class counts the same")


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
    task: Literal["classify"] = Field("classify", description="one label a text")
    text: str | None = Field(None, description="column that holds the text; not given: guessed")
    target: str | None = Field(None, description="column that holds the label; not given: guessed")
    data: LabelledConfig = LabelledConfig()
    bag: BagConfig = BagConfig()
    ffn: FFNSpec = FFNSpec()
    loss: LabelLossConfig = LabelLossConfig()
    optimizer: RowOptimizerConfig = RowOptimizerConfig()
    schedule: FinetuneSchedule = FinetuneSchedule()
    train: FinetuneUpdates = FinetuneUpdates()


EFFORTS: dict[str, dict[str, Any]] = {
    "quick": {"train.epochs": 3.0},
    "standard": {},
    "best": {"train.epochs": 8.0, "bag.width": 256},
}
