"""What learning to embed and learning to rank share: the data's parts, and the way from settings to a finished run."""

# Q queries, M candidates

import hashlib
import math
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from feedfwd.checkpoint import FORMAT, Run, write_json, write_text
from feedfwd.config_retrieval import EmbedConfig, RankConfig, preset
from feedfwd.data.pairs import Judged, Names, PairTable, judged, read_pairs, split_queries
from feedfwd.data.text_tables import folded
from feedfwd.errors import DataError, RunError
from feedfwd.evaluate.arrays import Floats
from feedfwd.evaluate.intervals import bootstrap_interval
from feedfwd.models import adapt
from feedfwd.models.adapt import layer_rates
from feedfwd.models.encoder import Encoder
from feedfwd.recipes import environment
from feedfwd.recipes.adapters import LOW_RANK, adapted, keep
from feedfwd.recipes.classifier import TOKENIZER, TokenReader
from feedfwd.recipes.console import Listener, Silent
from feedfwd.recipes.interrupt import resumable
from feedfwd.recipes.pretrained import Pretrained
from feedfwd.recipes.say import said_sets
from feedfwd.recipes.training import Batches, Training
from feedfwd.recipes.verbs import opened
from feedfwd.report.words import duration, number, score, word
from feedfwd.train.loop import train
from feedfwd.train.losses import Loss
from feedfwd.train.precision import Precision
from feedfwd.train.progress import plan_steps, typical
from feedfwd.train.rows import RowAdam

WARMUP, TIMED, LONGEST = 1, 10, 10.0  # updates of a trial, and the seconds it may take

Scores = dict[str, float]


# --- the data ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """All that is known, the queries of each part, and what the user should know."""

    known: Judged
    queries: dict[str, Tensor]  # train, validation where there is one, test
    what: str
    names: Names
    notes: list[str]

    @property
    def train(self) -> Judged:
        return self.known.of(self.queries["train"])


def parts(config: EmbedConfig | RankConfig) -> Parts:
    """Training, validation and test queries: a query's judgements all stand in one part."""
    labelled = config.task == "embed"
    whole = read_like(config.source, config, other=False)
    notes = list(whole.notes)
    if config.test is None:
        known = judged([whole])
        rest, tested = split_queries(known, known.queries, config.data.test, config.seed, 1)
    else:
        other = read_like(config.test, with_columns(config, whole.names))
        if labelled and bool(other.labelled) != bool(whole.labelled):
            what = f"{config.test} holds {other.what}, and {config.source} {whole.what}"
            raise DataError(what, hint="give a test file of the same form")
        notes += [f"{config.test}: {note}" for note in other.notes if note not in whole.notes]
        held = {folded(query) for query in other.queries}
        whole, both = _without(whole, held)
        if both:
            what = "quer{} of the test file stand{}" if not whole.labelled else "text{} of the test file stand{}"
            ends = ("s" if whole.labelled else "ies", "") if both > 1 else ("" if whole.labelled else "y", "s")
            notes.append(f"{both:,} {what.format(*ends)} in the training file too, and are tested, not trained on")
        if not len(whole):
            raise DataError(f"every query of {config.source} is in {config.test} too", hint="give another test file")
        known = judged([whole, other])
        at_test = torch.tensor(sorted({known.place[one] for one in held if one in known.place}))
        at_test = at_test[torch.isin(at_test, known.queries)]
        rest, tested = known.queries[~torch.isin(known.queries, at_test)], at_test
    queries = {"train": rest, "test": tested}
    if config.data.validation > 0:
        rest, held_back = split_queries(known, rest, config.data.validation, config.seed, 2)
        queries = {"train": rest, "validation": held_back, "test": tested}
    else:
        notes.append("trained on all training queries: none is held back for validation")
    notes += known.notes
    if known.class_T is None and (seen := int(torch.isin(tested, known.of(rest).candidates).sum())):
        notes.append(f"{seen:,} test quer{'ies are' if seen > 1 else 'y is'} a candidate of a training query")
    return Parts(known, queries, whole.what, whole.names, notes)


def with_columns(config: Any, names: Names) -> Any:
    """The settings with the columns that were found."""
    found = {"text": names.query, "target": names.target, "data.candidate": names.candidate}
    for name, column in (found | {"data.negative": names.negatives}).items():
        config = config.with_(name, column) if column else config
    return config


def read_like(source: str, config: EmbedConfig | RankConfig, *, other: bool = True) -> PairTable:
    """The training source or an `other` one by the columns that the settings name."""
    d = config.data
    return read_pairs(
        source,
        text=config.text,
        candidate=d.candidate,
        negative=d.negative,
        target=config.target,
        other=other,
        part="test" if other else "train",
        labelled=config.task == "embed",
    )


def _without(table: PairTable, queries: set[str]) -> tuple[PairTable, int]:
    """The table without these queries, and how many it had of them."""
    gone = {folded(query) for query in table.queries} & queries
    return replace(
        table,
        judgements=tuple(j for j in table.judgements if folded(j.query) not in gone),
        labelled=tuple(one for one in table.labelled if folded(one.text) not in gone),
    ), len(gone)


def fingerprint(known: Judged) -> str:
    """Of texts and what is known of them."""
    digest = hashlib.blake2b("\0".join(known.texts).encode("utf-8", "surrogatepass"), digest_size=16)
    for part in (known.query_J, known.candidate_J, known.relevance_J, known.class_T):
        if part is not None:
            digest.update(part.numpy().tobytes())
    return digest.hexdigest()


# --- what is trained --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Scores, of how many examples, and 95 % of what other examples of the kind would show."""

    scores: Scores
    n: int
    intervals: dict[str, list[float]]

    @classmethod
    def of_queries(cls, found: dict[str, Floats]) -> "Measured":
        """Means of scores that each query has, (Q,)."""
        stacked = np.stack(list(found.values()), 1)
        low, high = bootstrap_interval(lambda values: values.mean(1), stacked)
        ends = {name: [float(low[i]), float(high[i])] for i, name in enumerate(found)}
        return cls({name: float(values.mean()) for name, values in found.items()}, len(stacked), ends)


@dataclass
class Prepared(ABC):
    """All that a training needs; the same settings make the same things."""

    verb: ClassVar[str]
    unit: ClassVar[str]  # what an epoch goes through

    config: Any  # with the preset beneath
    model: nn.Module
    data: Parts
    pretrained: Pretrained | None
    reader: Any
    precision: Precision
    device: torch.device
    adapted: str
    notes: list[str] = field(default_factory=list)

    @abstractmethod
    def batches(self) -> Batches: ...

    @abstractmethod
    def loss(self) -> Loss: ...

    @abstractmethod
    def measured(self, part: str) -> Measured:
        """Scores of the model as it is."""

    @abstractmethod
    def compared(self) -> dict[str, Scores]:
        """Scores on the test part of what is there without this training, by name; asked for before it begins."""

    @abstractmethod
    def about_model(self) -> list[str]: ...

    @abstractmethod
    def example(self) -> list[str]: ...

    @abstractmethod
    def keeper(self, run: Path) -> Any:
        """What `ff.load` would give for the run."""

    @property
    @abstractmethod
    def examples(self) -> int:
        """In an epoch."""

    @property
    @abstractmethod
    def places(self) -> int:
        """Tokens or n-grams of a batch, about."""

    @property
    def trained_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def updates_per_epoch(self) -> float:
        c = self.config.train
        return math.ceil(self.examples / c.batch_size) / c.accumulate

    @property
    def steps(self) -> int:
        c = self.config.train
        return c.steps or max(1, round(c.epochs * self.updates_per_epoch))

    def optimizer(self) -> RowAdam:
        o = self.config.optimizer
        rate: Callable[[str], float] = lambda name: 1.0  # noqa: E731
        if isinstance(self.model, Encoder):
            of_layer = layer_rates(self.model, o.layer_decay)
            rate = lambda name: of_layer(name) if name.startswith("backbone.") else o.head  # noqa: E731
        betas = (o.beta1, o.beta2)
        return RowAdam(
            self.model.named_parameters(), o.lr, betas=betas, eps=o.eps, weight_decay=o.weight_decay, rate=rate
        )

    def about(self) -> dict[str, Any]:
        """For preprocess.json: all that using the model takes beside the settings, the weights and the tokenizer."""
        if self.pretrained is None or not isinstance(self.model, Encoder):
            return {"task": self.verb}
        of = {"name": self.pretrained.name, "family": self.pretrained.family, "pooling": self.model.pooling}
        said = of | {"settings": self.model.backbone.settings} | self.reader.about()
        return {"task": self.verb, "pretrained": said}

    def frozen(self) -> Any:
        """The settings with what this machine and the data decided, so that resuming decides nothing anew."""
        decided = {"threads": torch.get_num_threads(), "device": str(self.device), "precision": self.precision.name}
        config = with_columns(self.config, self.data.names)
        for name, value in decided.items():
            config = config.with_(f"train.{name}", value)
        return config

    @property
    def memory(self) -> int:
        """Bytes that training holds at once, about: weights, gradients, moments, and a batch's activations."""
        weights = 4 * sum(p.numel() for p in self.model.parameters()) + 12 * self.trained_parameters
        if not isinstance(self.model, Encoder):
            return weights
        b, each = self.model.backbone, 2 if self.precision.name == "bf16" else 4
        return weights + each * len(b.blocks) * (8 * b.width + 2 * b.hidden_width) * self.places


def adapt_encoder(model: Encoder, config: EmbedConfig | RankConfig, pretrained: Pretrained) -> str:
    """Say which weights are trained, in place; in words."""
    done = adapted(model, config.method, config.adapt, pretrained, frozen_embeddings=config.encoder.frozen_embeddings)
    # so that an update touches the tokens of its batch alone
    model.backbone.embedding.sparse = model.backbone.embedding.weight.requires_grad
    return str(done)


def cut_note(reader: TokenReader, texts: tuple[str, ...]) -> list[str]:
    """The share of texts that are too long, in words."""
    cut = reader.cut(texts, reader.rows(texts))
    return [f"{cut / len(texts):.1%} of the texts are longer than {reader.longest} tokens and cut there"] if cut else []


# --- from settings to a run -------------------------------------------------------------------------------------------

Prepare = Callable[..., Prepared]


def run_config(
    prepare: Prepare, config: EmbedConfig | RankConfig, run_path: Path | None, listener: Listener | None, started: float
) -> Any:
    """Train by `config` into a new run directory; returns what `ff.load` gives for it."""
    listener = listener or Silent()
    with torch.random.fork_rng():
        p = prepare(config)
        run = Run.create(run_path, Path(config.source).stem)
        with resumable("finetune", run):
            return _begin(p, run, listener, started)


def _begin(p: Prepared, run: Run, listener: Listener, started: float) -> Any:
    for line in overview(p):
        listener.say(line)
    write_json(run.preprocess_file, p.about())
    if p.pretrained is not None:
        write_text(run.path / TOKENIZER, p.pretrained.tokenizer.text)
    run.write_settings(p.verb, p.frozen().model_dump(exclude_none=True))
    if p.config.minutes is not None:
        steps = plan_steps(60 * p.config.minutes, per_step=tried(p))
        listener.say(f"{steps:,} updates fit into {p.config.minutes:g} minutes")
        p = replace(p, config=p.config.with_("minutes", None).with_("train.steps", steps))
        run.write_settings(p.verb, p.frozen().model_dump(exclude_none=True))
    return Retrieving(p, run, listener, started).train()


def dry_run_config(prepare: Prepare, config: EmbedConfig | RankConfig, listener: Listener) -> Prepared:
    """Everything up to the first update, and what training would cost; nothing is written."""
    with torch.random.fork_rng():
        p = prepare(config)
        per_step = tried(p)
    for line in [*overview(p), *p.example()]:
        listener.say(line)
    seconds = per_step * p.steps if p.config.minutes is None else 60 * p.config.minutes
    listener.say(
        f"about {duration(seconds)} of training ({number(1000 * per_step)} ms an update), "
        f"{p.memory / 1e6:,.0f} MB of memory beside torch itself"
    )
    listener.say("\n" + p.frozen().to_toml().rstrip())
    return p


def resume_run(
    prepare: Prepare,
    parse: Callable[[Mapping[str, Any]], Any],
    verb: str,
    path: Path,
    listener: Listener | None,
    at: float,
) -> Any:
    """Continue an interrupted run: on the same machine, versions and threads the result is the same to the bit."""
    listener = listener or Silent()
    run = opened(path, verb)
    if run.finished:
        raise RunError(f"{path} is finished; there is nothing to resume", hint="start a new run from it with --from")
    config = parse(run.settings())
    with torch.random.fork_rng(), resumable("finetune", run):
        p = prepare(config, resolved=True)
        if config.minutes is not None:  # stopped before it was planned
            run.log_file.unlink(missing_ok=True)
            return _begin(p, run, listener, at)
        for line in overview(p):
            listener.say(line)
        training = Retrieving(p, run, listener, at)
        training.restore()
        return training.train()


def tried(p: Prepared) -> float:
    """Seconds that an update takes here, from doing some and putting the weights back."""
    before = {name: tensor.clone() for name, tensor in p.model.state_dict().items()}
    times, last = [], time.perf_counter()
    for _ in train(
        p.model, p.batches(), p.loss(), p.optimizer(), steps=WARMUP + TIMED,
        accumulate=p.config.train.accumulate, precision=p.precision,
    ):  # fmt: skip
        now = time.perf_counter()
        times.append(now - last)
        last = now
        if len(times) > WARMUP and sum(times) > LONGEST:
            break
    p.model.load_state_dict(before)
    return typical(times, WARMUP)


class Retrieving(Training):
    """The training of a model that embeds or ranks."""

    verb: ClassVar[str] = "finetune"

    def __init__(self, p: Prepared, run: Run, listener: Listener, started: float) -> None:
        c = p.config
        super().__init__(
            run,
            listener,
            model=p.model,
            batches=p.batches(),
            optimizer=p.optimizer(),
            loss=p.loss(),
            steps=p.steps,
            updates=c.train,
            schedule=c.schedule,
            precision=p.precision,
            source=c.source,
            fingerprint=fingerprint(p.data.train),
            evaluate_every=c.train.evaluate_every or max(1, round(p.updates_per_epoch)),
            started=started,
        )
        self.p = p
        self.compared: dict[str, Scores] = {}

    def look(self) -> Scores | None:
        return self.p.measured("validation").scores if "validation" in self.p.data.queries else None

    def counters(self) -> dict[str, Any]:
        return {"compared": self.compared}

    def recall(self, counters: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.compared = counters["compared"]

    def train(self) -> Any:
        p = self.p
        sizes = {name: len(queries) for name, queries in p.data.queries.items()}
        self.begin(p.verb, sizes)
        if self.step == 0:
            self.compared = p.compared()
        self.updates()
        trained = p.trained_parameters  # merged, the adapters are not told apart any more
        if p.pretrained is not None and p.config.method in LOW_RANK:
            keep(self.run, p.model, p.pretrained.name)
            adapt.merge(p.model)
        scores: dict[str, Scores | None] = {"validation": None}
        if (found := self.look()) is not None:
            scores["validation"] = found
            self.run.log({"event": "validation", "step": self.step, "scores": found, "seconds": self.seconds})
        measured = p.measured("test")
        scores["test"] = measured.scores
        self.run.save_model(p.model.state_dict())
        per_update = min(p.config.train.batch_size, p.examples) * p.config.train.accumulate
        result: dict[str, Any] = {
            "format": FORMAT,
            "task": p.verb,
            "source": self.source,
            **scores,
            "compared": self.compared,
            "sizes": sizes,
            "seconds": {"train": self.seconds, "total": time.perf_counter() - self.started},
            "steps": self.step,
            "examples_per_second": self.step * per_update / self.seconds,
            "parameters": sum(parameter.numel() for parameter in p.model.parameters()),
            "trained_parameters": trained,
            "seed": p.config.seed,
            "notes": [*p.data.notes, *p.notes],
            "command": command(p.config),
            "environment": environment.describe(p.device, p.precision),
            "test_details": {"kind": p.verb, "n": measured.n, "intervals": measured.intervals},
        }
        self.leave(result, summary)
        return p.keeper(self.run.path)


# --- what is said -----------------------------------------------------------------------------------------------------


def overview(p: Prepared) -> list[str]:
    """What was found, what will be trained and how: the first lines of a run, and of a dry run."""
    c, known = p.config, p.data.known
    sizes = ", ".join(f"{len(queries):,} {name}" for name, queries in p.data.queries.items())
    what = f"{len(known.classes):,} labels" if known.class_T is not None else f"{len(known.candidates):,} candidates"
    length = f"{p.steps:,} updates" if c.minutes is None else f"as many updates as fit into {c.minutes:g} minutes"
    size = min(c.train.batch_size, p.examples) * c.train.accumulate
    return [
        f"{c.source}: {p.data.what}, {len(known.texts):,} texts, {what}; queries: {sizes}",
        *p.about_model(),
        f"adam, rate {c.optimizer.lr:.3g}, {c.schedule.name}; {length} of {size:,} {p.unit}",
        f"{p.device}, {p.precision.name} ({p.precision.reason})",
        *(f"note: {note}" for note in [*p.data.notes, *p.notes]),
    ]


def summary(result: Mapping[str, Any]) -> list[str]:
    """The last lines of a run: its scores beside those of what was there before."""
    n = result["test_details"]["n"]
    rows = {"this run": result["test"], **result["compared"]}
    lines = table(f"test, {n:,} {'queries' if 'mrr' in result['test'] else 'pairs'}", rows, n)
    if found := result.get("validation"):
        lines += table("validation", {"this run": found}, result["sizes"]["validation"])
    seconds = result["seconds"]
    return [*lines, f"trained in {duration(seconds['train'])}, {result['examples_per_second']:,.0f} examples/s"]


def table(title: str, rows: Mapping[str, Scores], n: int) -> list[str]:
    """Scores of several, one below the other.

    >>> table("test", {"this run": {"mrr": 0.5}, "BM25": {"mrr": 0.25}}, 10)
    ['test               MRR', '  this run      0.5000', '  BM25          0.2500']
    """
    names = list(next(iter(rows.values())))
    width = 2 + max(map(len, [title, *(f"  {name}" for name in rows)]))
    columns = [max(8, len(word(name).label)) for name in names]
    head = "".join(f"  {word(name).label:>{wide}}" for name, wide in zip(names, columns, strict=True))
    found = [f"{title:<{width}}{head}"]
    for row, scores in rows.items():
        cells = [f"  {score(name, scores.get(name), n):>{wide}}" for name, wide in zip(names, columns, strict=True)]
        found.append(f"  {row:<{width - 2}}{''.join(cells)}")
    return found


def command(config: EmbedConfig | RankConfig) -> str:
    """The command that repeats a run: every setting that differs from its default or that a preset sets, spelled out.

    >>> command(EmbedConfig(source="pairs.csv", pretrained="run"))[:57]
    'feedfwd finetune pairs.csv --task embed --from run --set '
    """
    words = ["feedfwd", "finetune", config.source, "--task", config.task]
    flags = {name: name for name in ("test", "text", "target", "method", "effort", "minutes", "seed")}
    for name, flag in ({"pretrained": "from"} | flags).items():
        value, field_ = getattr(config, name), type(config).model_fields[name]
        if field_.is_required() or value != field_.default:
            words += [f"--{flag}", str(value)]
    return shlex.join(words + said_sets(config, preset(config)))
