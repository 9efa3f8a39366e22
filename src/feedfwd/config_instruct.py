"""The settings of `feedfwd finetune --task instruct`: conversations, the model that learns to answer, and how."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from feedfwd.config import Count, OptimizerConfig, Positive, Recipe, ScheduleConfig, Settings, Share, UpdatesConfig
from feedfwd.config_finetune import AdaptConfig


class ChatConfig(Settings):
    """How a conversation becomes a row of tokens."""

    template: str = Field("auto", description="auto (the model's own, else plain), plain, chatml, or a .jinja file")
    longest: Annotated[int, Field(ge=8)] = Field(512, description="tokens of a conversation; what is longer is cut")
    packing: bool = Field(False, description="conversations of all lengths share rows; none sees another")
    validation: Share = Field(0.1, description="share of the conversations held back; 0: none")
    asked: Annotated[int, Field(ge=0)] = Field(
        32, description="questions of the test part, else of those held back, that are answered at the end"
    )


class InstructOptimizer(OptimizerConfig):
    name: Literal["adam", "adamw", "muon", "normuon"] = "adamw"
    lr: Positive = Field(2e-4, description="peak learning rate")
    beta2: Share | None = 0.99


class InstructSchedule(ScheduleConfig):
    warmup: Share | None = Field(0.05, description="share of the updates in which the rate rises")
    floor: Annotated[float, Field(ge=0, le=1)] = 0.1


class InstructUpdates(UpdatesConfig):
    batch_size: Count = Field(16, description="conversations")
    epochs: Positive = 2.0
    clip: Positive | None = 1.0


class InstructConfig(Recipe):
    """Everything that learning from conversations needs to know.

    >>> InstructConfig(source="chats.jsonl", pretrained="run").with_("method", "lora").optimizer.name
    'adamw'
    """

    source: str
    test: str | None = Field(None, description="a file of its own for the test part")
    task: Literal["instruct"] = "instruct"
    pretrained: str = Field(description="what to start from: a run of pretrain, a folder or a name of Hugging Face's")
    method: Literal["full", "lora", "dora"] = "full"
    chat: ChatConfig = ChatConfig()
    adapt: AdaptConfig = AdaptConfig()
    optimizer: InstructOptimizer = InstructOptimizer()
    schedule: InstructSchedule = InstructSchedule()
    train: InstructUpdates = InstructUpdates()

    @model_validator(mode="after")
    def _has_what_it_changes(self) -> Self:
        if self.method == "full" and self.adapt != AdaptConfig():
            raise ValueError("adapt.* is for --method lora and dora")
        return self


def preset(config: InstructConfig) -> dict[str, Any]:
    """What effort and method put beneath the user's settings."""
    epochs = {"quick": 1.0, "standard": 2.0, "best": 4.0}[config.effort]
    return {"train.epochs": epochs} | ({} if config.method == "full" else {"optimizer.lr": 1e-3})
