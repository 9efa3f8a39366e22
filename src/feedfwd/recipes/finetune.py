"""`feedfwd finetune`: the policy around the loop: what to log, when to evaluate and save, and what is left behind."""

import copy
import shlex
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from feedfwd.checkpoint import FORMAT, Run, write_json, write_text
from feedfwd.config import parse
from feedfwd.config_finetune import FinetuneConfig, preset
from feedfwd.errors import RunError
from feedfwd.evaluate.arrays import Floats
from feedfwd.models import adapt
from feedfwd.models.bag import Bag
from feedfwd.models.encoder import Encoder
from feedfwd.recipes import environment
from feedfwd.recipes.adapters import LOW_RANK, keep
from feedfwd.recipes.beside import compared, sizes
from feedfwd.recipes.classifier import TOKENIZER, TextClassifier
from feedfwd.recipes.console import Listener, Silent
from feedfwd.recipes.held_out import judge
from feedfwd.recipes.interrupt import resumable
from feedfwd.recipes.judge import lines
from feedfwd.recipes.say import said_sets, summary
from feedfwd.recipes.texts import PreparedTexts, TextPart, prepare_texts
from feedfwd.recipes.training import Training
from feedfwd.recipes.verbs import opened
from feedfwd.report.words import duration, number
from feedfwd.train.loop import train
from feedfwd.train.progress import plan_steps, typical

WARMUP, TIMED, LONGEST = 3, 30, 5.0  # updates of a trial, and the seconds it may take
READING = 0.4  # of the time of an update, what its texts take to be read alone


def finetune_config(
    config: FinetuneConfig,
    run_path: Path | None = None,
    listener: Listener | None = None,
    *,
    started: float | None = None,
) -> TextClassifier:
    """Train by `config` into a new run directory; returns the trained classifier.

    `started` is `time.perf_counter()` when the process began, so that `seconds.total` covers all of it.
    """
    started = time.perf_counter() if started is None else started
    listener = listener or Silent()
    with torch.random.fork_rng():
        prepared = prepare_texts(config)
        run = Run.create(run_path, Path(config.source).stem)
        with resumable("finetune", run):
            return _begun(prepared, run, listener, started).train()


def validated(config: FinetuneConfig, path: Path, listener: Listener) -> tuple["Finetuning", dict[str, float]]:
    """Train, or go on with what was begun at `path`, and score on validation: the test part stays closed.

    At `path` lies what resuming needs, and no model.
    """
    run, started = Run(path), time.perf_counter()
    begun = run.config_file.is_file()
    with torch.random.fork_rng():
        if begun:
            training = _resumed(run, listener, started)
        else:
            shutil.rmtree(path, ignore_errors=True)  # of one that was stopped before its settings were written
            training = _begun(prepare_texts(config), Run.create(path, ""), listener, started)
        return training, training.updated()


def _begun(prepared: PreparedTexts, run: Run, listener: Listener, started: float) -> "Finetuning":
    for line in overview(prepared):
        listener.say(line)
    run.write_settings("finetune", prepared.frozen().model_dump(exclude_none=True))
    write_json(run.preprocess_file, prepared.about())
    if prepared.pretrained is not None:
        write_text(run.path / TOKENIZER, prepared.pretrained.tokenizer.text)
    if prepared.config.minutes is not None:
        seconds, per_step, reading = 60 * prepared.config.minutes, tried(prepared), 0.0
        if prepared.config.loss.keep:
            reading = per_step * prepared.updates_per_epoch * READING
            if reading > seconds / 4:
                listener.say(f"loss.keep left out: to read all texts first would take {duration(reading)}")
                prepared, reading = prepare_texts(prepared.config.with_("loss.keep", 0.0), resolved=True), 0.0
        steps = plan_steps(seconds - reading, per_step=per_step)
        listener.say(f"{steps:,} updates fit into {prepared.config.minutes:g} minutes")
        prepared = replace(prepared, config=prepared.config.with_("minutes", None).with_("train.steps", steps))
        run.write_settings("finetune", prepared.frozen().model_dump(exclude_none=True))
    return Finetuning(prepared, run, listener, started)


def dry_run(config: FinetuneConfig, listener: Listener) -> PreparedTexts:
    """Everything up to the first update, and what training would cost; nothing is written."""
    with torch.random.fork_rng():
        p = prepare_texts(config)
        per_step = tried(p)
    for line in overview(p):
        listener.say(line)
    for line in example(p):
        listener.say(line)
    seconds = per_step * p.steps if p.config.minutes is None else 60 * p.config.minutes
    listener.say(
        f"about {duration(seconds)} of training ({number(1000 * per_step)} ms an update), "
        f"{memory(p) / 1e6:,.0f} MB of memory beside torch itself"
    )
    listener.say("\n" + p.frozen().to_toml().rstrip())
    return p


def resume(path: Path, listener: Listener | None = None, *, started: float | None = None) -> TextClassifier:
    """Continue an interrupted run: on the same machine, versions and threads the result is the same to the bit."""
    started = time.perf_counter() if started is None else started
    listener = listener or Silent()
    run = opened(path, "finetune")
    if run.finished:
        what = f"{path} is finished; there is nothing to resume"
        raise RunError(what, hint="start a new run with `feedfwd finetune`")
    with torch.random.fork_rng(), resumable("finetune", run):
        return _resumed(run, listener, started).train()


def _resumed(run: Run, listener: Listener, started: float) -> "Finetuning":
    config = parse(FinetuneConfig, run.settings())
    prepared = prepare_texts(config, resolved=True)
    if config.minutes is not None:  # stopped before it was planned
        run.log_file.unlink(missing_ok=True)
        return _begun(prepared, run, listener, started)
    for line in overview(prepared):
        listener.say(line)
    training = Finetuning(prepared, run, listener, started)
    training.restore()
    return training


def tried(p: PreparedTexts) -> float:
    """Seconds that an update takes here, from doing some on a copy of the network."""
    model = copy.deepcopy(p.trained)
    times, last = [], time.perf_counter()
    optimizer = p.optimizer(model)
    for _ in train(
        model, p.batches(), p.loss, optimizer, steps=WARMUP + TIMED, accumulate=p.config.train.accumulate,
        precision=p.precision,
    ):  # fmt: skip
        now = time.perf_counter()
        times.append(now - last)
        last = now
        if len(times) > WARMUP and sum(times) > LONGEST:
            break
    return typical(times, WARMUP)


class Finetuning(Training):
    """One training: what `prepare_texts` made, and all that moves and has to be saved."""

    verb: ClassVar[str] = "finetune"

    def __init__(self, prepared: PreparedTexts, run: Run, listener: Listener, started: float) -> None:
        c = prepared.config
        if c.loss.keep:  # before a saved state takes the weights' place
            prepared.read_before(listener.say)
        super().__init__(
            run,
            listener,
            model=prepared.trained,
            batches=prepared.batches(),
            optimizer=prepared.optimizer(prepared.trained),
            loss=prepared.loss,
            steps=prepared.steps,
            updates=c.train,
            schedule=c.schedule,
            precision=prepared.precision,
            source=c.source,
            fingerprint=prepared.fingerprint,
            evaluate_every=c.train.evaluate_every or max(1, round(prepared.updates_per_epoch)),
            started=started,
            seconds=prepared.seconds,
        )
        self.p = prepared

    def train(self) -> TextClassifier:
        self._run_updates()
        return self._finish()

    def updated(self) -> dict[str, float]:
        """All updates; then the scores on validation, and no text of the test part has been looked at."""
        self._run_updates()
        p = self.p
        if p.pretrained is not None and p.config.method in LOW_RANK:
            adapt.merge(p.model)
        p.model.eval()
        assert p.validation is not None
        return self._scores(p.validation)[1]

    def _run_updates(self) -> None:
        self.begin(self.p.goal.task, {name: len(part) for name, part in self.p.parts.items()})
        self.updates()

    @property
    def held_out(self) -> int:
        return 0 if self.p.validation is None else len(self.p.validation)

    def look(self) -> dict[str, float] | None:
        return None if self.p.validation is None else self._scores(self.p.validation)[1]

    def settle(self) -> None:
        self.assess()
        super().settle()

    def _scores(self, part: TextPart) -> tuple[Floats, dict[str, float]]:
        answers = self.p.classifier.answered(self.p.read(part)[1])
        return answers, self.p.goal.scores(answers, part.data.targets)

    def _apart(self, part: TextPart) -> dict[str, dict[str, float]] | None:
        """Scores of the pretrained model and of the bag beside it, each by itself."""
        p = self.p
        if not isinstance(p.model, Encoder) or p.model.bag is None:
            return None
        network, bag = p.classifier.apart(part.rows)
        of = {"network": network, "n-grams": bag}
        return {name: p.goal.scores(p.goal.answers(z), part.data.targets) for name, z in of.items()}

    def _mix(self) -> None:
        """Weigh the pretrained model and the bag beside it by what each is worth on the texts held back."""
        p = self.p
        beside = isinstance(p.model, Encoder) and p.model.bag is not None
        if not beside or p.validation is None or p.goal.kind != "label":
            return
        assert isinstance(p.model, Encoder)
        both = torch.stack(p.classifier.apart(p.validation.rows), 1)
        p.model.mix_by(both, p.validation.data.targets)
        network, bag = p.model.mix.tolist()
        self.listener.say(
            f"by {len(p.validation):,} texts held back the model's outputs count {network:.2f} times, "
            f"those of the n-grams {bag:.2f} times"
        )

    def _finish(self) -> TextClassifier:
        p = self.p
        trained = p.trained_parameters  # merged, the adapters are not told apart any more
        if p.pretrained is not None and p.config.method in LOW_RANK:
            keep(self.run, p.model, p.pretrained.name)
            adapt.merge(p.model)
        p.model.eval()
        self._mix()
        scores: dict[str, dict[str, float] | None] = {"validation": None}
        if p.validation is not None:
            scores["validation"] = self._scores(p.validation)[1]
        judgement = judge(p, self.run, self.listener.say)  # first, for the test part's scores are at its temperature
        answers, tested = self._scores(p.test)
        scores["test"] = tested
        self.tested(tested, len(p.test))
        rows = p.test.data.rows
        indices = None if rows is None else rows.numpy()
        shown = p.goal.details(answers, p.test.data.targets, indices)
        self.run.save_model(p.model.state_dict())
        beside = compared(p, answers, self.listener.say)
        result: dict[str, Any] = {
            "format": FORMAT,
            "task": p.goal.task,
            "source": p.config.source,
            **scores,
            "sizes": {name: len(part) for name, part in p.parts.items()},
            "seconds": {"train": self.seconds, "total": time.perf_counter() - self.started},
            "steps": self.step,
            "examples_per_second": self.step * p.examples_per_update / self.seconds,
            "parameters": p.model.parameter_count,
            "trained_parameters": trained,
            "flops": p.flops,
            "seed": p.config.seed,
            "notes": p.notes,
            "command": command(p.config),
            "environment": environment.describe(p.device, p.precision),
            "test_details": shown,
            "judgement": judgement,
            "apart": self._apart(p.test),
            **beside,
        }
        told = [*(lines(judgement) if judgement is not None else []), *sizes(result)]
        self.leave(result, lambda result: summary(result) + told)
        p.classifier.run = self.run.path
        return p.classifier


def example(p: PreparedTexts) -> list[str]:
    """A training text with what it is to be given, and what the network sees of it."""
    text, target = p.train.texts[0], p.goal.shown(p.train.data.targets[0])
    lines = [f"an example: {_short(text)!r} → {target}"]
    if p.pretrained is not None:
        tokenizer, ids = p.pretrained.tokenizer, p.train.rows.values[: int(p.lengths(p.train)[0])].tolist()
        lines.append(f"the model sees {len(ids)} tokens: {_short(tokenizer.decode(ids, special=True))!r}")
    return lines


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[:most] + "…"


def memory(p: PreparedTexts) -> int:
    """Bytes that training holds at once, about: weights, moments and gradients, texts, and a batch's activations."""
    texts = sum(4 * len(part.rows.values) for part in p.parts.values())
    if isinstance(p.model, Bag):
        return 4 * 3 * p.model.parameter_count + texts
    weights = 4 * p.model.parameter_count + 4 * 3 * p.trained_parameters
    if p.features is not None:
        return weights + texts + p.features.nbytes
    b, longest = p.model.backbone, int(p.lengths(p.train).max())
    each = 2 if p.precision.name == "bf16" else 4
    kept = len(b.blocks) * (8 * b.width + 2 * b.hidden_width + b.heads * longest)
    return weights + texts + each * kept * longest * p.config.train.batch_size


def overview(p: PreparedTexts) -> list[str]:
    """What was found, what will be trained and how: the first lines of a run, and of a dry run."""
    c = p.config
    sizes = ", ".join(f"{len(part):,} {name}" for name, part in p.parts.items())
    length = f"{p.steps:,} updates" if c.minutes is None else f"as many updates as fit into {c.minutes:g} minutes"
    rows = "" if c.method != "full" or c.encoder.frozen_embeddings else " by rows"
    return [
        f"{c.source}: {p.goal.what}; {sizes}",
        *(_of_bag(p) if isinstance(p.model, Bag) else _of_encoder(p, p.model)),
        f"adam{rows}, rate {c.optimizer.lr:.3g}, {c.schedule.name}; {length} of {p.examples_per_update:,} texts",
        f"{p.device}, {p.precision.name} ({p.precision.reason})",
        *(f"note: {note}" for note in p.notes),
    ]


def _of_bag(p: PreparedTexts) -> list[str]:
    b, d, model = p.config.bag, p.config.distil, p.model
    by = "" if d.teacher is None else f", taught by {d.teacher} at temperature {d.temperature:g}"
    kinds = [f"runs of 1–{b.words} words"] * (b.words > 0) + [f"of {b.shortest}–{b.longest} characters"] * (
        b.longest > 0
    )
    mean = float(p.train.rows.lengths.float().mean())
    sizes = "-".join(map(str, model.mlp.sizes))
    network = f"network {sizes}, {p.config.ffn.activation}" if b.width else f"{sizes} numbers each, and no layers"
    return [
        f"bag of {' and '.join(kinds)} ({mean:,.0f} a text) in {b.buckets:,} buckets; {network}: "
        f"{model.parameter_count:,} parameters{by}"
    ]


def _of_encoder(p: PreparedTexts, model: Encoder) -> list[str]:
    assert p.pretrained is not None
    b, lengths = model.backbone, p.lengths(p.train)
    kind = "decoder" if b.causal else "encoder"
    return [
        f"from {p.pretrained.name}: {p.pretrained.family or 'a run of ours'}, {kind} of {len(b.blocks)} layers, "
        f"{b.width} wide; {float(lengths.float().mean()):,.0f} tokens a text, at most {int(lengths.max()):,}",
        f"{model.pooling} of the last states, head {'-'.join(map(str, model.mlp.sizes))}"
        f"{'' if model.bag is None else f' and a bag of n-grams in {p.config.bag.buckets:,} buckets'}; {p.adapted}",
    ]


def command(config: FinetuneConfig) -> str:
    """The command that repeats a run: every setting that differs from its default or that a preset sets, spelled out.

    >>> command(FinetuneConfig(source="train.csv", test="test.csv").with_("train.batch_size", 32))
    'feedfwd finetune train.csv --test test.csv --set train.batch_size=32 --set train.epochs=6.0'
    """
    words = ["feedfwd", "finetune", config.source]
    for name in ("teacher", "unlabelled"):
        if (value := getattr(config.distil, name)) is not None:
            words += [f"--{name}", str(value)]
    if config.distil.teacher is not None:
        plain = config.distil.model_copy(update={"teacher": None, "unlabelled": None})
        config = config.model_copy(update={"distil": plain})
    flags = {name: name for name in ("test", "text", "target", "task", "method", "effort", "minutes", "seed")}
    for name, flag in ({"pretrained": "from"} | flags).items():
        value = getattr(config, name)
        if value != type(config).model_fields[name].default:
            words += [f"--{flag}", str(value)]
    if (shots := config.data.shots) is not None:
        words += ["--shots", str(shots)]
        config = config.with_("data.shots", None)
    return shlex.join(words + said_sets(config, preset(config, 0).keys()))
