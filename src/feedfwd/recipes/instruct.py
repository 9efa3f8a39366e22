"""`feedfwd finetune --task instruct`: a language model learns to answer, from conversations."""

import hashlib
import math
import shlex
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from feedfwd.checkpoint import FORMAT, Run, write_json, write_text
from feedfwd.config import parse
from feedfwd.config_instruct import InstructConfig, preset
from feedfwd.data.chats import Chat, Chats, read_chats
from feedfwd.data.conversations import ChatBatches, Conversations, conversations
from feedfwd.data.templates import ChatTemplate, chat_template
from feedfwd.errors import ConfigError, RunError
from feedfwd.models import adapt
from feedfwd.models.apart import Apart
from feedfwd.models.transformer import Transformer, build
from feedfwd.recipes import environment
from feedfwd.recipes.adapters import adapted, keep
from feedfwd.recipes.answered import SHOWN, answer_scores, answered, shown, split
from feedfwd.recipes.chatter import TEMPLATE, TOKENIZER, Chatter, about
from feedfwd.recipes.console import Listener, Silent
from feedfwd.recipes.interrupt import resumable
from feedfwd.recipes.memory import activations
from feedfwd.recipes.prepare import usable_device, use_threads
from feedfwd.recipes.pretrained import Pretrained, load_pretrained
from feedfwd.recipes.say import said_sets
from feedfwd.recipes.training import Training
from feedfwd.recipes.verbs import opened
from feedfwd.report.words import duration, number
from feedfwd.train.cross_entropy import LOGITS, Gradients
from feedfwd.train.loop import train
from feedfwd.train.losses import build_loss
from feedfwd.train.optimizers import Optimizer, build_optimizer
from feedfwd.train.precision import Precision, choose, products
from feedfwd.train.progress import WINDOW, Progress, clock, plan_steps, typical

WARMUP, TIMED, LONGEST = 1, 5, 10.0  # updates of a trial, and the seconds it may take


@dataclass
class PreparedChats:
    config: InstructConfig  # with the effort's preset beneath
    model: Transformer
    pretrained: Pretrained
    template: ChatTemplate
    chats: Chats
    train: Conversations
    validation: Conversations | None
    held_back: tuple[Chat, ...]
    test: Conversations | None
    test_chats: tuple[Chat, ...]
    adapted: adapt.Prepared
    precision: Precision
    device: torch.device
    fingerprint: str
    notes: list[str] = field(default_factory=list)

    @property
    def trained(self) -> Transformer | Apart:
        """What an update runs."""
        return Apart(self.model) if self.config.chat.packing else self.model

    def batches(self) -> ChatBatches:
        c = self.config
        return ChatBatches(self.train, c.train.batch_size, seed=c.seed, packing=c.chat.packing, device=self.device)

    def optimizer(self) -> Optimizer:
        return build_optimizer(self.model, **self.config.optimizer.model_dump())

    @property
    def sizes(self) -> dict[str, int]:
        found = {"train": len(self.train), "validation": len(self.validation or ())}
        return found | ({} if self.test is None else {"test": len(self.test)})

    @property
    def steps_per_epoch(self) -> float:
        c = self.config.train
        return math.ceil(len(self.train) / c.batch_size) / c.accumulate

    @property
    def steps(self) -> int:
        c = self.config.train
        return c.steps or max(1, round(c.epochs * self.steps_per_epoch))

    def frozen(self) -> InstructConfig:
        """The settings with what this machine decided, so that resuming decides nothing anew."""
        decided = {"threads": torch.get_num_threads(), "device": str(self.device), "precision": self.precision.name}
        config = self.config
        for name, value in decided.items():
            config = config.with_(f"train.{name}", value)
        return config


def prepare_chats(config: InstructConfig, *, resolved: bool = False) -> PreparedChats:
    """Read, split, encode, adapt. `resolved` settings come from a run and already carry their preset."""
    if not resolved:
        config = config.over(preset(config))
    use_threads(config.train.threads)
    chats = read_chats(config.source)
    pretrained = load_pretrained(config.pretrained)
    if not pretrained.model.causal or pretrained.model.head_kind != "tokens":
        what = f"{pretrained.name} reads texts and can't write: answers need a model of the next token"
        raise ConfigError(what, hint="start from a run of feedfwd pretrain, or from a GPT-2, Llama or Qwen")
    longest = min(config.chat.longest, pretrained.longest - 1)
    template = chat_template(config.chat.template, pretrained.tokenizer, pretrained.folder)
    kept, held = split(chats.chats, config)
    tested = read_chats(config.test) if config.test is not None else None
    rows = conversations(kept, template, longest)
    validation = conversations(held, template, longest) if held else None
    torch.manual_seed(config.seed)
    # documents of a row would be told apart by a token that stands within a conversation
    model = build(pretrained.settings | {"end": None})
    model.load_state_dict(pretrained.model.state_dict())
    done = adapted(model, config.method, config.adapt, pretrained)
    device = usable_device(config.train.device)
    per_batch = config.train.batch_size * int(rows.inputs.lengths.float().mean())
    precision = choose(config.train.precision, device, products(model, per_batch))
    return PreparedChats(
        config=config,
        model=model.to(device),
        pretrained=replace(pretrained, settings=model.settings),
        template=template,
        chats=chats,
        train=rows,
        validation=validation if validation is not None and len(validation) else None,
        held_back=held,
        test=None if tested is None else conversations(tested.chats, template, longest),
        test_chats=() if tested is None else tested.chats,
        adapted=done,
        precision=precision,
        device=device,
        fingerprint=_fingerprint(rows),
        notes=[*chats.notes, *_notes(rows, len(kept), longest), *_of_test(chats, tested)],
    )


def _notes(rows: Conversations, given: int, longest: int) -> Iterator[str]:
    share = rows.answers / max(1, len(rows.inputs.values))
    yield f"{share:.0%} of {len(rows.inputs.values):,} training tokens are answers and learnt, the others only read"
    if rows.cut:
        yield f"{rows.cut / given:.1%} of the conversations are longer than {longest} tokens and were cut"
    if rows.dropped:
        yield f"{rows.dropped:,} of them were left out: no answer is within their first {longest} tokens"


def _of_test(chats: Chats, tested: Chats | None) -> Iterator[str]:
    """What to know of the test part: questions that are learnt from too."""
    if tested is not None:
        yield from (f"{tested.name}: {note}" for note in tested.notes)
        known = {chat[:-1] for chat in chats.chats}
        if twice := sum(chat[:-1] in known for chat in tested.chats):
            yield f"{twice:,} of {len(tested):,} test questions stand in the training part too"


def _fingerprint(rows: Conversations) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in (rows.inputs, rows.learnt):
        digest.update(part.values.numpy().tobytes())
        digest.update(part.lengths.numpy().tobytes())
    return digest.hexdigest()


# --- the verb ---------------------------------------------------------------------------------------------------------


def instruct_config(
    config: InstructConfig,
    run_path: Path | None = None,
    listener: Listener | None = None,
    *,
    started: float | None = None,
) -> Chatter:
    """Train by `config` into a new run directory; returns the model that answers."""
    started = time.perf_counter() if started is None else started
    listener = listener or Silent()
    with torch.random.fork_rng():
        prepared = prepare_chats(config)
        run = Run.create(run_path, Path(config.source).stem)
        with resumable("finetune", run):
            return _begin(prepared, run, listener, started)


def _begin(p: PreparedChats, run: Run, listener: Listener, started: float) -> Chatter:
    for line in overview(p):
        listener.say(line)
    write_text(run.path / TOKENIZER, p.pretrained.tokenizer.text)
    write_text(run.path / TEMPLATE, p.template.source)
    write_json(run.preprocess_file, about(p.pretrained, p.template.name))
    run.write_settings("instruct", p.frozen().model_dump(exclude_none=True))
    if p.config.minutes is not None:
        steps = plan_steps(60 * p.config.minutes, per_step=tried(p))
        listener.say(f"{steps:,} updates fit into {p.config.minutes:g} minutes")
        p = replace(p, config=p.config.with_("minutes", None).with_("train.steps", steps))
        run.write_settings("instruct", p.frozen().model_dump(exclude_none=True))
    return Instructing(p, run, listener, started).train()


def dry_run(config: InstructConfig, listener: Listener) -> PreparedChats:
    """Everything up to the first update, and what training would cost; nothing is written."""
    with torch.random.fork_rng():
        p = prepare_chats(config)
        per_step = tried(p)
    for line in [*overview(p), *example(p)]:
        listener.say(line)
    seconds = per_step * p.steps if p.config.minutes is None else 60 * p.config.minutes
    listener.say(
        f"about {duration(seconds)} of training ({number(1000 * per_step)} ms an update), "
        f"{memory(p) / 1e6:,.0f} MB of memory beside torch itself"
    )
    listener.say("\n" + p.frozen().to_toml().rstrip())
    return p


def resume(path: Path, listener: Listener | None = None, *, started: float | None = None) -> Chatter:
    """Continue an interrupted run: on the same machine, versions and threads the result is the same to the bit."""
    started = time.perf_counter() if started is None else started
    listener = listener or Silent()
    run = opened(path, "instruct")
    if run.finished:
        raise RunError(f"{path} is finished; there is nothing to resume", hint="start a new run from it with --from")
    config = parse(InstructConfig, run.settings())
    with torch.random.fork_rng(), resumable("finetune", run):
        p = prepare_chats(config, resolved=True)
        if config.minutes is not None:  # stopped before it was planned
            run.log_file.unlink(missing_ok=True)
            return _begin(p, run, listener, started)
        for line in overview(p):
            listener.say(line)
        training = Instructing(p, run, listener, started)
        training.restore()
        return training.train()


def tried(p: PreparedChats) -> float:
    """Seconds that an update takes here, from doing some and putting the weights back."""
    before = {name: tensor.clone() for name, tensor in p.model.state_dict().items()}
    times, last = [], time.perf_counter()
    for _ in train(
        p.trained, p.batches(), build_loss("cross_entropy"), p.optimizer(), steps=WARMUP + TIMED,
        accumulate=p.config.train.accumulate, precision=p.precision, gradients=Gradients(),
    ):  # fmt: skip
        now = time.perf_counter()
        times.append(now - last)
        last = now
        if len(times) > WARMUP and sum(times) > LONGEST:
            break
    p.model.load_state_dict(before)
    return typical(times, WARMUP)


def memory(p: PreparedChats) -> int:
    """Bytes that training holds at once, about: weights, gradients and moments, and what a batch of the longest keeps
    for the backward pass."""
    c = p.config
    longest = p.train.inputs.lengths.argsort(descending=True)[: c.train.batch_size]
    batch = p.train.packed(longest) if c.chat.packing else p.train.batch(longest)
    size = 2 if p.precision.name == "bf16" else 4
    logits = min(LOGITS, len(longest) * int(p.train.inputs.lengths.max()) * p.model.vocabulary) * size
    kept = activations(p.trained, batch.inputs.to(p.device), p.precision)
    return 4 * (p.adapted.total + 3 * p.adapted.trained) + kept + logits


class Instructing(Training):
    """The training of one model on conversations."""

    verb: ClassVar[str] = "finetune"

    def __init__(self, p: PreparedChats, run: Run, listener: Listener, started: float) -> None:
        c = p.config
        super().__init__(
            run,
            listener,
            model=p.trained,
            batches=p.batches(),
            optimizer=p.optimizer(),
            loss=build_loss("cross_entropy"),
            steps=p.steps,
            updates=c.train,
            schedule=c.schedule,
            precision=p.precision,
            source=c.source,
            fingerprint=p.fingerprint,
            evaluate_every=c.train.evaluate_every or max(1, round(p.steps_per_epoch)),
            started=started,
            gradients=Gradients(),
        )
        self.p = p

    def rate(self, now: Progress) -> tuple[dict[str, float | None], str]:
        c = self.p.config.train
        speed = c.batch_size * c.accumulate / statistics.fmean(self.durations[-WINDOW:])
        left = "" if math.isnan(now.eta) else f"  {clock(now.eta)} left"
        return {"examples_per_second": speed}, f"loss {now.loss:.4f}  {speed:,.1f} conversations/s{left}"

    @property
    def held_out(self) -> int:
        return len(self.p.validation or ())

    def look(self) -> dict[str, float] | None:
        if self.p.validation is None:
            return None
        return answer_scores(self.p.model, self.p.validation, self.p.pretrained.tokenizer)

    def train(self) -> Chatter:
        p = self.p
        self.begin("instruct", p.sizes)
        self.updates()
        if p.config.method != "full":
            keep(self.run, p.model, p.pretrained.name)
            adapt.merge(p.model)
        chatter = Chatter(p.model, p.pretrained.tokenizer, p.template, p.config, self.run.path)
        part, chats = (p.validation, p.held_back) if p.test is None else (p.test, p.test_chats)
        final, written = (None, []) if part is None else answered(chatter, part, chats)
        scores, tested = (final, None) if p.test is None else (self.look(), final)
        if scores is not None:
            self.run.log({"event": "validation", "step": self.step, "scores": scores, "seconds": self.seconds})
        self.run.save_model(p.model.state_dict())
        result: dict[str, Any] = {
            "format": FORMAT,
            "task": "instruct",
            "source": self.source,
            "validation": scores,
            "test": tested,
            "sizes": p.sizes,
            "seconds": {"train": self.seconds, "total": time.perf_counter() - self.started},
            "steps": self.step,
            "examples_per_second": self.step * p.config.train.batch_size * p.config.train.accumulate / self.seconds,
            "parameters": p.adapted.total,
            "trained_parameters": p.adapted.trained,
            "seed": p.config.seed,
            "answers": written[:SHOWN],
            "asked": {"n": len(written), "stopped": sum(row["stopped"] for row in written)},
            "notes": p.notes,
            "command": command(p.config),
            "environment": environment.describe(p.device, p.precision),
        }
        self.leave(result, summary)
        return chatter


# --- what is said -----------------------------------------------------------------------------------------------------


def overview(p: PreparedChats) -> list[str]:
    """What was found, what will be trained and how: the first lines of a run, and of a dry run."""
    c = p.config
    parts = ", ".join(f"{n:,} {name}" for name, n in p.sizes.items() if n)
    length = f"{p.steps:,} updates" if c.minutes is None else f"as many updates as fit into {c.minutes:g} minutes"
    return [
        f"{c.source}: {len(p.chats):,} conversations; {parts}",
        f"{p.pretrained.name}: {len(p.model.blocks)} layers, {p.model.width} wide; {p.adapted}",
        f"template {p.template.name or 'of the model'}, an answer ends with "
        f"{p.pretrained.tokenizer.decode([p.template.stop], special=True)}",
        f"{c.optimizer.name}, rate {c.optimizer.lr:.3g}, {c.schedule.name}; {length} of "
        f"{c.train.batch_size * c.train.accumulate:,} conversations",
        f"{p.device}, {p.precision.name} ({p.precision.reason})",
        *(f"note: {note}" for note in p.notes),
    ]


def example(p: PreparedChats) -> list[str]:
    """The first conversation as the model sees it, and what of it is learnt."""
    n = int(p.train.inputs.lengths[0])
    seen, learnt, targets = (part.values[:n].tolist() for part in (p.train.inputs, p.train.learnt, p.train.targets))
    written = [target for target, yes in zip(targets, learnt, strict=True) if yes]
    decode = p.pretrained.tokenizer.decode
    return [
        f"the model sees: {decode(seen[:300], special=True)!r}",
        f"and learns to write: {decode(written[:300], special=True)!r}",
    ]


def summary(result: Mapping[str, Any]) -> list[str]:
    """The last lines of a run."""
    lines = []
    for part, said in (("validation", "answers held back"), ("test", "answers of the test part")):
        if scores := result.get(part):
            bits = f", {scores['bits_per_byte']:.4f} bits a byte" if "bits_per_byte" in scores else ""
            lines.append(
                f"{said} ({result['sizes'][part]:,} conversations): {scores['loss']:.4f} nats a token{bits}, "
                f"perplexity {number(scores['perplexity'])}, {scores['token_accuracy']:.1%} of tokens foretold"
            )
    for row in result["answers"][:2]:
        lines.append(f"  {shown(row)}")
    if n := result.get("asked", {}).get("n"):
        exact = (result["test"] or result["validation"])["exact_answers"]
        lines.append(
            f"of {n:,} answers {exact:.1%} are the wanted ones word for word, {result['asked']['stopped']:,} ended "
            "by themselves"
        )
    seconds = result["seconds"]["train"]
    lines.append(f"trained in {duration(seconds)}, {result['examples_per_second']:,.1f} conversations/s")
    return lines


def command(config: InstructConfig) -> str:
    """The command that repeats a run."""
    words = ["feedfwd", "finetune", config.source, "--task", "instruct", "--from", config.pretrained]
    for flag in ("test", "method", "effort", "minutes", "seed"):
        value = getattr(config, flag)
        if value != type(config).model_fields[flag].default:
            words += [f"--{flag}", str(value)]
    return shlex.join(words + said_sets(config, preset(config)))
