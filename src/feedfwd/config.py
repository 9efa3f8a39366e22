"""Validated settings: what a user may say, checked before anything runs, and kept with every run as TOML.

Settings are layered: defaults, then what the chosen effort brings, then a file, then `--set` and the flags. Only what
was said explicitly overrides an effort's preset; pydantic remembers which fields those are.
"""

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from feedfwd.errors import ConfigError


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested table by dotted key.

    >>> flat({"model": {"width": 8, "rope_scaling": {"kind": "none"}}})
    {'model.width': 8, 'model.rope_scaling.kind': 'none'}
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and key != "options"
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def edits(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which settings differ between two nested tables, in words.

    >>> edits({"model": {"width": 8}, "seed": 0}, {"model": {"width": 9}, "seed": 0})
    ['model.width=9 (was 8)']
    """
    old, new = flat(before), flat(now)
    return [
        f"{key}={new.get(key, 'none')} (was {old.get(key, 'none')})"
        for key in dict.fromkeys((*old, *new))
        if old.get(key) != new.get(key)
    ]


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Real = Annotated[float, AfterValidator(_finite)]
Positive = Annotated[Real, Field(gt=0)]
NonNegative = Annotated[Real, Field(ge=0)]
Share = Annotated[Real, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Names = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Immutable, strict about names; a section of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=True)


class FFNSpec(Settings):
    """Which feed-forward layer to build; `ffn.spec.build_ffn` turns it into one."""

    kind: str = Field("dense", description="dense, gated, or package.module:Class")
    activation: str = Field("relu", description="σ; a gated name such as swiglu implies kind=gated")
    init: str = Field("auto", description="initialisation scheme")
    bias: bool = True
    dropout: Share = 0.0
    options: dict[str, Any] = Field(default_factory=dict, description="extra arguments of a layer of your own")


class DeformConfig(Settings):
    """Small random deformations of training images; 0 switches one off."""

    rotation: NonNegative = Field(0.0, description="degrees, ± uniform")
    scale: Share = Field(0.0, description="relative, ± uniform")
    shear: NonNegative = Field(0.0, description="degrees, ± uniform")
    shift: NonNegative = Field(0.0, description="pixels, ± uniform")
    elastic: NonNegative = Field(0.0, description="pixels, root mean square")
    smoothness: Positive = Field(5.5, description="pixels over which the elastic displacement varies")

    @property
    def any(self) -> bool:
        return any((self.rotation, self.scale, self.shear, self.shift, self.elastic))


class DataConfig(Settings):
    """How the data are split, scaled and varied."""

    validation: Share = Field(0.1, description="share of the training part held back for validation; 0 trains on all")
    test: Share = Field(0.2, description="share split off as test part where the source brings none")
    folds: Annotated[int, Field(ge=2)] | None = Field(None, description="take fold `data.fold` of this many as test")
    fold: Annotated[int, Field(ge=0)] = 0
    test_seed: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="seed of the test part's split; not given: `seed`"
    )
    split: str = Field("random", description="tables: random, time:COLUMN (the latest are the test part), group:COLUMN")
    drop: Names = Field(default_factory=list, description="tables: columns that are not to be used")
    task: Literal["auto", "classify", "regress"] = Field(
        "auto", description="tables: whether whole numbers are classes"
    )
    augment: Literal["auto", "none"] = Field("auto", description="none: an effort's preset deforms no images")
    mixup: NonNegative = Field(0.0, description="alpha of the Beta distribution (arXiv 1710.09412); 0: off")
    noise: NonNegative = Field(0.0, description="Gaussian noise on standardised inputs, standard deviation")
    shift: Annotated[int, Field(ge=0)] = Field(0, description="whole pixels by which each batch of images is moved")
    deform: DeformConfig = DeformConfig()

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"data.fold={self.fold} is not below data.folds={self.folds}")
        way, colon, column = self.split.partition(":")
        if self.split != "random" and not (way in ("time", "group") and colon and column):
            raise ValueError(f"data.split={self.split!r} is none of random, time:COLUMN, group:COLUMN")
        return self


class ModelConfig(Settings):
    """The network around the feed-forward layers."""

    hidden: list[Count] = Field([128, 128], description="width of each hidden layer")
    residual: bool = Field(False, description="x + FFN(norm(x)) blocks instead of plain layers")
    norm: Literal["none", "layer", "rms", "batch"] = Field(
        "none", description="of each layer; gated layers that follow one another take layer"
    )
    input_dropout: Share = 0.0
    noise: NonNegative = Field(0.0, description="Gaussian noise on every layer's input while training")
    base_width: Count = Field(128, description="ffn.init=mup: width whose best learning rate serves every width")
    numbers: Literal["plain", "periodic", "piecewise"] = Field("piecewise", description="tables: embedding of numbers")
    members: Count = Field(1, description="tables: networks in one, trained side by side (arXiv 2410.24210)")


class LossConfig(Settings):
    name: Literal["auto", "mse", "mae", "huber", "cross_entropy", "binary_cross_entropy", "focal"] = "auto"
    label_smoothing: Share = 0.0
    class_weights: Literal["none", "balanced"] | list[Positive] = "none"
    delta: Positive = Field(1.0, description="Huber: where the square turns into a line")
    gamma: NonNegative = Field(2.0, description="focal: how much easy examples are played down")


class OptimizerConfig(Settings):
    name: Literal["sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adam", "adamw", "muon", "normuon"] = "adam"
    lr: Positive | None = Field(None, description="peak learning rate; not given: found by a range test")
    weight_decay: NonNegative = 0.0
    momentum: Share | None = Field(None, description="not given: the optimizer's usual one")
    beta1: Share = 0.9
    beta2: Share | None = Field(None, description="not given: the optimizer's usual one")
    eps: Positive = 1e-8


class ScheduleConfig(Settings):
    name: Literal["constant", "step", "linear", "cosine", "one_cycle", "warmup_stable_decay"] = "cosine"
    warmup: Share | None = Field(None, description="share of the updates in which the rate rises")
    floor: Annotated[Real, Field(ge=0, le=1)] = Field(0.0, description="last rate, relative to the peak")
    decay: Share = Field(0.2, description="warmup_stable_decay: share of the updates in which the rate falls")
    every: Share = Field(1 / 3, description="step: share of the updates after which the rate is multiplied")
    factor: Share = Field(0.1, description="step: by how much")


class UpdatesConfig(Settings):
    """How the updates are done, whatever is trained."""

    batch_size: Count = 64
    steps: Count | None = Field(None, description="number of updates; given, it overrides epochs")
    accumulate: Count = Field(1, description="batches per update")
    clip: Positive | None = Field(None, description="largest norm of the gradient")
    ema: Share = Field(0.0, description="decay of the moving average of the weights; 0: off")
    evaluate_every: Count | None = Field(None, description="updates between evaluations; not given: once an epoch")
    save_every: Count = Field(1000, description="updates between saved states")
    health: bool = Field(True, description="watch for dead units, vanishing gradients and the like")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    threads: Count | None = Field(None, description="CPU threads; part of what makes two runs equal")


class TrainConfig(UpdatesConfig):
    epochs: Positive = 10.0
    adversarial: NonNegative = Field(0.0, description="reach of the worst small change of standardised inputs; 0: off")
    patience: Count | None = Field(None, description="evaluations without a better validation score before stopping")


class Recipe(Settings):
    """Everything a recipe needs to know; what is common to all of them."""

    minutes: Positive | None = Field(None, description="time to plan the training for, instead of train.steps")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    effort: Literal["quick", "standard", "best"] = "standard"
    train: UpdatesConfig = UpdatesConfig()

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.minutes is not None and self.train.steps is not None:
            raise ValueError("minutes and train.steps say two lengths of one training: give one of them")
        return self

    def with_(self, key: str, value: Any) -> Self:
        """A copy with one setting changed, validated; the setting counts as given explicitly."""
        said = self.said()
        _put(said, key, value, type(self))
        return parse(type(self), said)

    def said(self) -> dict[str, Any]:
        """Only what was given explicitly, nested by section."""
        return self.model_dump(exclude_unset=True)

    def over(self, preset: Mapping[str, Any]) -> Self:
        """This configuration with `preset` (dotted keys) beneath what was given explicitly."""
        base: dict[str, Any] = {}
        for key, value in preset.items():
            _put(base, key, value, type(self))
        return parse(type(self), merge(base, self.said()))

    def to_toml(self) -> str:
        """All settings, resolved; what is None is left out, since TOML has no word for it."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


class FitConfig(Recipe):
    """Everything `feedfwd fit` needs to know.

    >>> base = FitConfig(source="digits")
    >>> base.with_("ffn.activation", "swiglu").ffn.activation
    'swiglu'
    """

    source: str
    test: str | None = Field(None, description="a source of its own for the test part")
    target: Names = Field(
        default_factory=list, description="tables: the column to predict, or several: all numbers, or all yes or no"
    )
    data_dir: str | None = Field(None, description="folder that holds the built-in data sets' files")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    ffn: FFNSpec = FFNSpec()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, `over` winning.

    >>> merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
    {'a': {'x': 1, 'y': 3}}
    """
    out = dict(base)
    for key, value in over.items():
        inner = out.get(key)
        out[key] = merge(inner, value) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return out


def keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of all settings.

    >>> "train.batch_size" in keys(FitConfig)
    True
    """
    names = []
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += keys(field.annotation, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _put(tree: dict[str, Any], key: str, value: Any, kind: type[BaseModel]) -> None:
    known = keys(kind)
    free = next((k for k in known if key.startswith(k + ".") and k.endswith(".options")), None)
    if key not in known and free is None:
        raise ConfigError(f"unknown setting {key!r}", hint=_nearest_key(key, known))
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = value


def _nearest_key(key: str, known: list[str]) -> str:
    """The same last word in another section is likelier meant than similar letters.

    >>> _nearest_key("batch_size", ["train.batch_size", "train.epochs"])
    "did you mean 'train.batch_size'?"
    """
    last = key.rsplit(".", 1)[-1]
    close = [name for name in known if name.rsplit(".", 1)[-1] == last] or difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "`feedfwd info --settings` lists all settings"


def parse(kind: type[S], tree: Mapping[str, Any]) -> S:
    """Validate nested settings; the first thing that is wrong becomes a ConfigError with its dotted name."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not _is_type_tag(part))
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"unknown setting {where!r}", hint=_nearest_key(where, keys(kind))) from None
        if first["type"] == "missing":
            raise ConfigError(f"{where} is missing", hint=f"say {where} = …") from None
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        value = first["input"]
        if not where:  # of several settings together: the message names them, and what to do about it
            what, _, hint = message.partition(": ")
            raise ConfigError(what, hint=hint or "change one of these settings") from None
        said = where if isinstance(value, Mapping | BaseModel) else f"{where}={_shown(value)}"
        raise ConfigError(f"{said} can't be used", hint=message) from None


def _shown(value: object) -> str:
    """A setting's value in a message; of what fills more than a line, such as a table, only the kind of thing."""
    text = repr(value)
    return text if len(text) < 200 and "\n" not in text else f"<{type(value).__name__}>"


def _is_type_tag(part: object) -> bool:
    """Union branches appear in pydantic's error locations; they are no part of a setting's name."""
    return isinstance(part, str) and ("[" in part or part in ("int", "float", "str", "none", "literal"))


def overrides(pairs: Iterable[str], kind: type[Settings] = FitConfig) -> dict[str, Any]:
    """`key=value` texts as nested settings; values are TOML, anything else is taken as text.

    >>> overrides(["model.hidden=[64]", "ffn.activation=gelu"])
    {'model': {'hidden': [64]}, 'ffn': {'activation': 'gelu'}}
    """
    tree: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {pair!r} is no setting", hint="write --set key=value, as in --set train.epochs=5")
        try:
            value: Any = tomllib.loads(f"value = {text.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        _put(tree, key.strip(), value, kind)
    return tree


def read_toml(path: Path) -> dict[str, Any]:
    """A settings file; errors name the file and, where known, the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no settings file at {path}", hint="check --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}", hint="check the file and its permissions") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", hint="see toml.io for the form") from None
