"""The settings of `feedfwd finetune --task embed` and `--task rank`: which text answers which, and what learns it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from feedfwd.config import Count, Names, Positive, Recipe, Settings, Share
from feedfwd.config_finetune import (
    AdaptConfig,
    FinetuneSchedule,
    FinetuneUpdates,
    RowOptimizerConfig,
)


class PairsConfig(Settings):
    """Where a file says what answers what, and how its queries are split."""

    candidate: str | None = Field(None, description="column of the candidates; not given: by its name")
    negative: Names = Field([], description="columns of texts that are no answer; not given: by their names")
    validation: Share = Field(0.0, description="share of the training queries held back for validation")
    test: Annotated[Share, Field(gt=0)] = Field(
        0.2, description="share of the queries split off where no test is named"
    )


class NgramsConfig(Settings):
    """From scratch: hashed n-grams, a vector for each bucket, their weighted sum."""

    buckets: Count = Field(131072, description="into which n-grams are hashed; each has a vector")
    width: Count = Field(256, description="of a vector")
    words: Annotated[int, Field(ge=0, le=5)] = Field(2, description="longest run of words; 0: none")
    shortest: Count = Field(2, description="shortest run of characters")
    longest: Annotated[int, Field(ge=0, le=10)] = Field(5, description="longest run of characters; 0: none")

    @model_validator(mode="after")
    def _reads_something(self) -> Self:
        if self.longest and self.longest < self.shortest:
            raise ValueError(f"bag.longest={self.longest} is below bag.shortest={self.shortest}")
        if not self.longest and not self.words:
            raise ValueError("bag.words=0 and bag.longest=0 leave nothing of a text to read")
        return self


class ReadingConfig(Settings):
    """How a pretrained model reads."""

    pooling: Literal["auto", "mean", "cls", "last"] = Field("auto", description="auto: as the model was trained")
    longest: Annotated[int, Field(ge=8)] = Field(256, description="tokens of a row; what is longer is cut")
    dropout: Share | None = Field(None, description="inside the pretrained model; not given: as it says itself")
    frozen_embeddings: bool = Field(False, description="the tokens' vectors stay as they are")


class RetrievalConfig(Recipe):
    """What both tasks need to know."""

    source: str
    test: str | None = Field(None, description="a file of its own for the test part")
    text: str | None = Field(None, description="column of the queries, or of labelled texts; not given: by its name")
    target: str | None = Field(None, description="column of the relevance or the label; not given: by its name")
    method: Literal["full", "lora", "dora"] = Field("full", description="which weights are trained")
    data: PairsConfig = PairsConfig()
    encoder: ReadingConfig = ReadingConfig()
    adapt: AdaptConfig = AdaptConfig()
    optimizer: RowOptimizerConfig = RowOptimizerConfig()
    schedule: FinetuneSchedule = FinetuneSchedule()
    train: FinetuneUpdates = FinetuneUpdates()

    @model_validator(mode="after")
    def _has_what_it_adapts(self) -> Self:
        if self.method not in ("lora", "dora") and self.adapt != AdaptConfig():
            raise ValueError("adapt.* is for --method lora and dora")
        return self


class EmbedPairsConfig(PairsConfig):
    mined: Annotated[int, Field(ge=0)] = Field(
        0, description="hard negatives a query: texts that the model, as it is, finds near and are no answer"
    )
    negatives: Count = Field(4, description="hard negatives of a query that share its batch, at most")


class ContrastiveConfig(Settings):
    """Softmax over the candidates of a batch."""

    temperature: Positive = Field(0.05, description="by which cosines are divided")


class EmbedConfig(RetrievalConfig):
    """Everything that learning vectors of texts needs to know.

    >>> EmbedConfig(source="pairs.csv").with_("loss.temperature", 0.1).loss.temperature
    0.1
    """

    task: Literal["embed"] = "embed"
    pretrained: str | None = Field(
        None, description="what to start from: a run, a folder or a name of Hugging Face's; not given: a bag"
    )
    data: EmbedPairsConfig = EmbedPairsConfig()
    bag: NgramsConfig = NgramsConfig()
    loss: ContrastiveConfig = ContrastiveConfig()

    @model_validator(mode="after")
    def _has_what_it_changes(self) -> Self:
        if self.pretrained is None and self.method != "full":
            raise ValueError(f"--method {self.method} needs a pretrained model: name one with --from")
        return self


class RankPairsConfig(PairsConfig):
    mined: Annotated[int, Field(ge=0)] = Field(
        7, description="candidates that BM25 finds for a query without negatives, to be ranked below its answers"
    )
    candidates: Annotated[int, Field(ge=2)] = Field(8, description="of a query that share a batch, at most")


class RankLossConfig(Settings):
    name: Literal["auto", "listwise", "pointwise"] = Field(
        "auto", description="listwise: softmax over a query's candidates; pointwise: each by itself; auto: by the data"
    )


class RankConfig(RetrievalConfig):
    """Everything that learning to rank needs to know."""

    task: Literal["rank"] = "rank"
    pretrained: str = Field(description="what to start from: a run, a folder or a name of Hugging Face's")
    data: RankPairsConfig = RankPairsConfig()
    loss: RankLossConfig = RankLossConfig()


EPOCHS = {"quick": 1.0, "standard": 3.0, "best": 6.0}


def preset(config: EmbedConfig | RankConfig) -> dict[str, Any]:
    """What effort, method and beginning put beneath the user's settings.

    >>> preset(EmbedConfig(source="pairs.csv", pretrained="run", effort="quick"))["train.epochs"]
    1.0
    """
    epochs = EPOCHS[config.effort]
    if config.pretrained is None:
        return {"optimizer.lr": 0.01, "train.epochs": 2 * epochs, "train.batch_size": 128}
    size = 64 if config.task == "embed" else 16
    rate = 1e-4 if config.method == "full" else 1e-3
    return {"optimizer.lr": rate, "optimizer.head": 10.0, "train.epochs": epochs, "train.batch_size": size}
