"""The settings of `feedfwd pretrain`: text, tokenizer, Transformer, and how it is trained."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from feedfwd.config import (
    Count,
    FFNSpec,
    NonNegative,
    OptimizerConfig,
    Positive,
    Real,
    Recipe,
    ScheduleConfig,
    Settings,
    Share,
    UpdatesConfig,
)
from feedfwd.config_finetune import AdaptConfig


class TextConfig(Settings):
    """Which text is read, how it becomes tokens, and how long a row of them is."""

    validation: Annotated[Share, Field(gt=0)] = Field(0.1, description="share of the text held out")
    column: str | None = Field(None, description="which column of tables and JSON lines holds the text")
    weights: list[Positive] | None = Field(None, description="how often each source is drawn from; not given: by size")
    tokenizer: str = Field("bpe", description="bpe, chars, bytes, a tokenizer.json's path; with --from the model's own")
    vocabulary: Count | None = Field(None, description="tokens; not given: bpe up to 8192, chars as many as there are")
    row: Annotated[int, Field(ge=2)] = Field(256, description="tokens the model sees at once")
    separate: bool = Field(False, description="no token sees another document of its row")


class RopeScaling(Settings):
    """Rotary positions stretched to rows longer than those trained on; `feedfwd.models.positions` has the formulas."""

    kind: Literal["none", "linear", "yarn", "llama3"] = "none"
    factor: Annotated[Real, Field(ge=1)] = Field(1.0, description="how many times longer")
    original: Count | None = Field(None, description="yarn, llama3: tokens of the rows trained on")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind == "none" and (self.factor != 1 or self.original is not None):
            raise ValueError("say which: model.rope_scaling.kind=linear, yarn or llama3")
        if self.kind in ("yarn", "llama3") and self.original is None:
            raise ValueError(f"{self.kind} needs model.rope_scaling.original, the tokens of the rows trained on")
        return self

    def given(self) -> dict[str, Any] | None:
        """As the model takes it."""
        return None if self.kind == "none" else self.model_dump(exclude_none=True)


class TransformerConfig(Settings):
    """What `size` sets, and what it leaves; the names are those of `feedfwd.models.transformer.Transformer`."""

    width: Count = 256
    depth: Count = 6
    heads: Count = 4
    kv_heads: Count | None = Field(None, description="key and value heads; not given: as many as heads")
    head_width: Count | None = Field(None, description="not given: width / heads")
    norm_kind: Literal["rms", "layer"] = "rms"
    norm_place: Literal["pre", "post"] = "pre"
    positions: Literal["rope", "learned", "none"] = "rope"
    rope_base: Positive = 10_000.0
    rope_scaling: RopeScaling = RopeScaling()
    bias: Literal["none", "qkv", "all"] = "none"
    qk_norm: bool = False
    window: Count | None = Field(None, description="tokens that attention looks back; not given: the whole row")
    tied: bool = Field(True, description="one matrix for embedding and output")
    dropout: Share = 0.0
    recompute: bool = Field(False, description="less memory for more time: blocks run again in the backward pass")
    base_width: Count = Field(128, description="ffn.init=mup: width whose best learning rate serves every width")

    def given(self) -> dict[str, Any]:
        """As the model takes it."""
        return self.model_dump() | {"rope_scaling": self.rope_scaling.given()}


class WideFFN(FFNSpec):
    """The feed-forward layer of every block."""

    activation: str = Field("swiglu", description="σ; a gated name such as swiglu implies kind=gated")
    bias: bool = False
    hidden: Count = Field(704, description="width inside")

    def spec(self) -> FFNSpec:
        return FFNSpec(**self.model_dump(exclude={"hidden"}))


class PretrainUpdates(UpdatesConfig):
    batch_size: Count = Field(8, description="rows a batch")
    steps: Count | None = Field(None, description="number of updates")
    evaluate_every: Count | None = Field(
        None, description="updates between evaluations; not given: ten in all, in short runs fewer"
    )
    save_every: Count = Field(200, description="updates between saved states")
    objective: Literal["next", "masked"] = Field(
        "next", description="next: each token from those before; masked: hidden ones from both sides (arXiv 1810.04805)"
    )
    masked: Annotated[Share, Field(gt=0)] = Field(0.15, description="objective=masked: share of the tokens")
    z_loss: NonNegative = Field(0.0, description="keeps the logits from drifting (arXiv 2204.02311 takes 1e-4)")


class PretrainConfig(Recipe):
    """Everything `feedfwd pretrain` needs to know.

    >>> PretrainConfig().with_("ffn.kind", "dense").sources
    ['stdlib']
    """

    sources: Annotated[list[str], Field(min_length=1)] = Field(["stdlib"], description="where the text comes from")
    size: str | None = Field(
        None, description="pico, nano, micro, tiny, small, medium, base, large, xl; not given: by effort, or minutes"
    )
    pretrained: str | None = Field(
        None, description="train this one further: a run of pretrain, a folder or a name of Hugging Face's"
    )
    method: Literal["full", "lora", "dora"] = Field("full", description="which weights of it are trained")
    data: TextConfig = TextConfig()
    adapt: AdaptConfig = AdaptConfig()
    model: TransformerConfig = TransformerConfig()
    ffn: WideFFN = WideFFN()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: PretrainUpdates = PretrainUpdates()

    @model_validator(mode="after")
    def _has_what_it_changes(self) -> Self:
        if self.pretrained is None and self.method != "full":
            raise ValueError(f"--method {self.method} needs a pretrained model: name one with --from")
        if self.method == "full" and self.adapt != AdaptConfig():
            raise ValueError("adapt.* is for --method lora and dora")
        return self
