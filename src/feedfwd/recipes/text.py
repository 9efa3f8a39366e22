"""From text to all that a pretraining needs; the same settings make the same things, so resuming makes them again."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch

from feedfwd.config import flat
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.data.batches import Batch
from feedfwd.data.corpus import Corpus, Part
from feedfwd.data.packing import MaskTokens, PackedBatches
from feedfwd.data.sources import placed
from feedfwd.data.tokenizer import KINDS, TextTokenizer, make_tokenizer
from feedfwd.data.tokens import Tokens, tokenize
from feedfwd.errors import DataError
from feedfwd.ffn.spec import is_gated
from feedfwd.models.filling import Filling
from feedfwd.models.sizes import SIZES, fitting, size
from feedfwd.models.transformer import Transformer
from feedfwd.recipes import continued
from feedfwd.recipes.adapters import adapted
from feedfwd.recipes.console import Listener
from feedfwd.recipes.continued import Base, base_of
from feedfwd.recipes.language import build_transformer, masking
from feedfwd.recipes.memory import check_room
from feedfwd.recipes.prepare import usable_device, use_threads
from feedfwd.train.cross_entropy import Gradients
from feedfwd.train.loop import train
from feedfwd.train.losses import build_loss
from feedfwd.train.optimizers import Optimizer, build_optimizer
from feedfwd.train.precision import Precision, choose, products
from feedfwd.train.progress import typical
from feedfwd.train.schedules import build_schedule

EPOCHS = 10  # that an effort goes over the text at most; more teach little (Muennighoff et al. 2023, arXiv 2305.16264)
LONG = 20_000_000  # bytes of text from which tokenising shows how far it is
PER_PARAMETER = 20  # training tokens that a parameter wants; Hoffmann et al. 2022, arXiv 2203.15556
ENOUGH = 3  # tokens a parameter from which, in equal time, the larger of two sizes does better
LOOKED_AT = 32  # pieces of text that show whether a tokenizer loses any of it
HASTY = 1_000_000  # tokens up to which more and smaller updates of shorter rows are better
USUAL, LONGER = 2048, 4_000_000  # tokens of a batch, for so many in all; twice as many for four times those
OFTEN = 9  # epochs from which dropout and small batches pay: about seven, a trial promising a quarter more than comes
RESERVE = 0.1  # of the minutes given, for evaluations and samples
WARMUP, TIMED, LONGEST = 2, 10, 10.0  # updates of a trial, and seconds that it may take


@dataclass
class PreparedText:
    config: PretrainConfig  # with the effort's preset beneath
    corpus: Corpus
    tokenizer: TextTokenizer
    train: list[Tokens]  # one a source
    held_out: list[Tokens]
    model: Transformer
    precision: Precision
    device: torch.device
    notes: list[str] = field(default_factory=list)
    base: Base | None = None  # what is trained further
    adapted: str = ""  # which of its weights, in words
    suited: bool = False  # its size was chosen by what this machine does in the minutes given

    @property
    def predicting(self) -> Transformer | Filling:
        """The network as states and one matrix that makes logits of them: what an update runs."""
        return Filling(self.model) if self.model.head_kind == "masked" else self.model

    def batches(self) -> PackedBatches:
        c = self.config
        return PackedBatches(
            self.train,
            c.data.row,
            c.train.batch_size,
            seed=c.seed,
            weights=c.data.weights,
            transform=self.masking or weighted,
            device=self.device,
        )

    @property
    def masking(self) -> MaskTokens | None:
        """What hides tokens of a batch, where these are to be filled in."""
        return masking(self.config, self.tokenizer)

    @property
    def steps(self) -> int:
        return self.config.train.steps or 1

    @property
    def tokens_per_update(self) -> int:
        c = self.config
        return c.data.row * c.train.batch_size * c.train.accumulate

    @property
    def flops_per_token(self) -> int:
        """Of training: the backward pass takes twice the forward's products."""
        return 3 * self.model.flops(self.config.data.row)

    @property
    def fingerprint(self) -> list[str]:
        """Of the text and of how it becomes tokens."""
        return [self.corpus.fingerprint, self.tokenizer.fingerprint]

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Of the files' content, by where they lie."""
        return {placed(str(path)): value for path, value in self.corpus.files.items()}

    def optimizer(self) -> Optimizer:
        settings = self.config.optimizer.model_dump()
        return build_optimizer(self.model, **settings, growth=self.model.growth)

    def frozen(self) -> PretrainConfig:
        """The settings with what this machine decided and where things lie: what a run keeps to decide nothing anew."""
        c = self.config
        decided = {
            "train.threads": torch.get_num_threads(),
            "train.device": str(self.device),
            "train.precision": self.precision.name,
            "sources": [placed(source) for source in c.sources],
            "data.tokenizer": c.data.tokenizer if c.data.tokenizer in (*KINDS, "model") else placed(c.data.tokenizer),
            "pretrained": None if c.pretrained is None else placed(c.pretrained),
        }
        for name, value in decided.items():
            c = c.with_(name, value)
        return c


def weighted(batch: Batch, generator: torch.Generator) -> Batch:
    """Every token with a weight of its own, so that batches of an update are added up by their tokens."""
    if batch.weights is not None:
        return batch
    return replace(batch, weights=torch.ones_like(batch.targets, dtype=torch.float32))


def prepare_text(config: PretrainConfig, listener: Listener, *, tokenizer: TextTokenizer | None = None) -> PreparedText:
    """Read, split, tokenise, build. With `tokenizer` the settings are those of a run, and carry their preset."""
    base = None if config.pretrained is None else base_of(config, check=tokenizer is None)
    if tokenizer is None:  # what can't be is no reason to read a corpus
        if base is None:
            shape(config)
        schedule = config.over(SCHEDULE if base is None else continued.SCHEDULE).schedule
        build_schedule(total=config.train.steps or UPDATES_OF[config.effort], **schedule.model_dump())
    d = config.data
    use_threads(config.train.threads)
    device = usable_device(config.train.device)
    corpus = Corpus(config.sources, validation=d.validation, seed=config.seed, column=d.column, weights=d.weights)
    resolved = tokenizer is not None
    if base is not None:
        tokenizer = base.tokenizer
    elif tokenizer is None:
        tokenizer = make_tokenizer(
            d.tokenizer, corpus, vocabulary=d.vocabulary, mask=config.train.objective == "masked"
        )
    parts = {part: _tokens(corpus, tokenizer, part, listener) for part in ("train", "validation")}
    notes = [*corpus.notes, *tokenizer.notes, *([] if base is None else continued.notes(base))]
    if unknown := sum(tokens.counts.unknown for tokens in parts["validation"]):
        notes.append(f"{unknown:,} held-out tokens are unknown to the tokenizer, which flatters the bits per byte")
    if base is not None or d.tokenizer not in ("bpe", "bytes"):  # from which every text comes back
        lost = tokenizer.lost(piece.text for piece in islice(corpus.pieces("validation"), LOOKED_AT))
        if lost:
            notes.append(
                f"{100 * lost:.3g} % of the held-out characters don't come back from the tokenizer as they were, "
                "which flatters the bits per byte"
            )

    def built(config: PretrainConfig) -> PreparedText:
        torch.manual_seed(config.seed)
        done = ""
        if base is None:
            model = build_transformer(config, tokenizer)
        else:
            model = continued.network(config, base)
            done = str(adapted(model, config.method, config.adapt, base.pretrained))
        model = model.to(device)
        rows = config.data.row * config.train.batch_size
        precision = choose(config.train.precision, device, products(model, rows))
        if resolved:
            precision = replace(precision, reason="as the run began")
        prepared = PreparedText(
            config, corpus, tokenizer, parts["train"], parts["validation"], model, precision, device, notes, base, done
        )
        prepared.batches()  # says what can't be trained on before a run is begun
        check_room(prepared)
        return prepared

    if resolved:
        return built(config)
    if base is not None:
        return built(continued.settled(config, base, sum(map(len, parts["train"]))))

    def settled(config: PretrainConfig, seen: float | None = None) -> PretrainConfig:
        sized = shape(config)
        tokens = sum(map(len, parts["train"]))
        return config.over(sized | preset(config, tokens, {**sized, **flat(config.said())}, seen))

    if config.minutes is None:
        return built(settled(config))
    name, seen = suited(config, lambda config: built(settled(config)))
    sized = config if name is None else config.over({"size": name})
    return replace(built(settled(sized, seen)), suited=not of_ones_own(config))


def _tokens(corpus: Corpus, tokenizer: TextTokenizer, part: Part, listener: Listener) -> list[Tokens]:
    total, done = corpus.bytes_of(part), 0

    def progress(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        listener.progress(min(done, total), total, "tokenised", "byte")

    return tokenize(corpus, tokenizer, part, progress=progress if total > LONG else None)


# --- what an effort and a size mean ---------------------------------------------------------------------------------

SIZE_OF = {"quick": "nano", "standard": "tiny", "best": "small"}
UPDATES_OF = {"quick": 500, "standard": 2000, "best": 8000}

SCHEDULE = {"schedule.name": "warmup_stable_decay", "schedule.warmup": 0.02, "schedule.decay": 0.5}
PRESET = (  # the settings that effort and size may set
    *("model.width", "model.depth", "model.heads", "ffn.kind", "ffn.activation", "ffn.hidden", "train.steps"),
    *("optimizer.name", "optimizer.lr", "optimizer.weight_decay", "optimizer.beta2", "train.clip"),
    *("schedule.name", "schedule.warmup", "schedule.decay", "data.row", "train.batch_size", "model.dropout"),
)


def shape(config: PretrainConfig) -> dict[str, Any]:
    """Settings by dotted key: what the size says of the network's form, of which a given width brings its own."""
    name = config.size or SIZE_OF[config.effort]
    chosen, said = size(name), flat(config.said())
    kind, activation = said.get("ffn.kind"), said.get("ffn.activation")
    hidden = chosen.hidden
    if "model.width" in said:
        hidden = max(32, round(config.model.width * 8 / 3 / 32) * 32)
    if activation is None:
        activation = "gelu" if kind == "dense" else "swiglu"
    if kind is None:
        kind = "dense"  # which a gated activation makes gated
    gated = is_gated(kind, activation)
    return {
        "size": name,
        "model.width": chosen.width,
        "model.depth": chosen.depth,
        "model.heads": chosen.heads,
        "ffn.kind": kind,
        "ffn.activation": activation,
        "ffn.hidden": hidden if gated else hidden * 3 // 2,
    }


def preset(config: PretrainConfig, tokens: int, form: dict[str, Any], seen: float | None = None) -> dict[str, Any]:
    """Settings by dotted key for training on so many tokens a network of this form, which will see `seen` of them."""
    row, rows = config.data.row, config.train.batch_size * config.train.accumulate
    width = config.model.base_width if config.ffn.init == "mup" else form["model.width"]
    found: dict[str, Any] = {
        "optimizer.name": "normuon",
        "optimizer.lr": 0.006 * min(1.0, (128 / width) ** 0.5),
        "optimizer.weight_decay": 0.1,
        "optimizer.beta2": 0.95,
        **SCHEDULE,
        "train.clip": 1.0,
    }
    if config.minutes is None:
        steps = max(1, min(UPDATES_OF[config.effort], round(EPOCHS * tokens / (row * rows))))
        found["train.steps"] = steps
        seen = (config.train.steps or steps) * row * rows
    elif seen is not None and seen < HASTY:
        found |= {"data.row": 64, "train.batch_size": 16, "optimizer.lr": 2 * found["optimizer.lr"]}
    elif seen is not None and seen <= OFTEN * tokens:
        doublings = round(math.log2(USUAL * (seen / LONGER) ** 0.5 / (row * rows)))
        if doublings > 0:
            found["train.batch_size"] = config.train.batch_size * 2**doublings
    if seen is not None and seen > OFTEN * tokens:  # of a text seen often larger batches learn less
        found["model.dropout"] = 0.1
    return found


def suited(config: PretrainConfig, build: Callable[[PretrainConfig], PreparedText]) -> tuple[str | None, float]:
    """The largest size that sees enough tokens in the minutes given, and about how many, by trying on this machine.

    Sizes are tried from the smallest on; one that could not do it at twice the FLOPs a second of the one before isn't.
    A size, width or depth of the user's is tried alone.
    """
    assert config.minutes is not None
    seconds = 60 * config.minutes * (1 - RESERVE)
    own = of_ones_own(config)
    found: tuple[str | None, float] = config.size, 0.0
    flops = 0
    for name in [config.size] if own else SIZES:
        p = build(config if own else config.over({"size": name}))
        enough = ENOUGH * p.model.parameter_count if found[1] else 0.0
        if 2 * flops / p.flops_per_token * found[1] < enough:
            break
        seen = seconds / tried(p) * p.tokens_per_update
        if seen < enough:
            break
        found, flops = (name, seen), p.flops_per_token
    return found


def of_ones_own(config: PretrainConfig) -> bool:
    """Whether the settings name a size."""
    return config.size is not None or bool({"model.width", "model.depth"} & flat(config.said()).keys())


def too_short(p: PreparedText, steps: int | None = None) -> list[str]:
    """A note where the network has too many parameters for the tokens that it will see in `steps`, else in its own.

    Not where its size was chosen for the minutes: the larger of two sizes does better long before that.
    """
    tokens, parameters = (steps or p.steps) * p.tokens_per_update, p.model.parameter_count
    if p.suited or p.base is not None or tokens >= PER_PARAMETER * parameters:
        return []
    smaller = fitting(tokens, p.tokenizer.vocabulary, per_parameter=PER_PARAMETER)
    fits = size(smaller).parameters(p.tokenizer.vocabulary)
    advice = f"--size {smaller} would suit it better" if fits < 0.9 * parameters else "train longer"
    return [
        f"{tokens / parameters:.2g} training tokens a parameter, where about {PER_PARAMETER} make the best of a size: "
        + advice
    ]


# --- how long it takes ----------------------------------------------------------------------------------------------


def tried(p: PreparedText) -> float:
    """Seconds that an update takes here, from doing some on a copy of the network."""
    c = p.config.train
    trial = replace(p, model=copy.deepcopy(p.model))
    times: list[float] = []
    last = time.perf_counter()
    for _ in train(
        trial.predicting,
        trial.batches(),
        build_loss("cross_entropy"),
        trial.optimizer(),
        steps=WARMUP + TIMED,
        accumulate=c.accumulate,
        clip=c.clip,
        precision=p.precision,
        gradients=Gradients(c.z_loss),
    ):
        now = time.perf_counter()
        times.append(now - last)
        last = now
        if len(times) > WARMUP and sum(times) > LONGEST:
            break
    return typical(times, WARMUP)


def first_words(p: PreparedText, many: int = 16) -> list[int]:
    """The first tokens of the held-out text, for samples to go on from."""
    tokens = next((t for t in p.held_out if len(t)), None)
    if tokens is None:
        raise DataError("no text is held out", hint="give more text")
    found = tokens.read(0, min(many, len(tokens))).tolist()
    return found[: found.index(p.tokenizer.end)] or found if p.tokenizer.end in found else found
