"""`feedfwd finetune --task instruct`: a language model learns to answer, from conversations."""

import hashlib
import math
import shlex
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from feedfwd.checkpoint import FORMAT, Run, write_json, write_text
from feedfwd.config import parse
from feedfwd.config_instruct import InstructConfig, preset
from feedfwd.data.batches import derived_seed
from feedfwd.data.chats import Chat, Chats, read_chats
from feedfwd.data.conversations import ChatBatches, Conversations, conversations
from feedfwd.data.templates import ChatTemplate, chat_template
from feedfwd.errors import ConfigError, RunError
from feedfwd.models import adapt
from feedfwd.models.apart import Apart
from feedfwd.models.generate import Sampling, tokens
from feedfwd.models.transformer import Transformer, build
from feedfwd.recipes import environment
from feedfwd.recipes.adapters import adapted, keep
from feedfwd.recipes.chatter import TEMPLATE, TOKENIZER, Chatter, about
from feedfwd.recipes.console import Listener, Silent
from feedfwd.recipes.prepare import usable_device, use_threads
from feedfwd.recipes.pretrained import Pretrained, load_pretrained
from feedfwd.recipes.say import said_sets
from feedfwd.recipes.training import Training
from feedfwd.recipes.verbs import opened
from feedfwd.report.words import duration, number
from feedfwd.train.cross_entropy import Gradients
from feedfwd.train.loop import train
from feedfwd.train.losses import build_loss
from feedfwd.train.optimizers import Optimizer, build_optimizer
from feedfwd.train.precision import Precision, choose, products
from feedfwd.train.progress import WINDOW, Progress, clock, plan_steps, typical

WARMUP, TIMED, LONGEST = 1, 5, 10.0  # updates of a trial, and the seconds it may take
SHOWN = 4  # held-back questions that are answered at the end
MOST = 64  # tokens of such an answer


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
    adapted: adapt.Prepared
    precision: Precision
    device: torch.device
    fingerprint: str
    notes: list[str] = field(default_factory=list)

    @property
    def trained(self) -> nn.Module:
        """What an update runs."""
        return Apart(self.model) if self.config.chat.packing else self.model

    def batches(self) -> ChatBatches:
        c = self.config
        return ChatBatches(self.train, c.train.batch_size, seed=c.seed, packing=c.chat.packing)

    def optimizer(self) -> Optimizer:
        return build_optimizer(self.model, **self.config.optimizer.model_dump())

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
    folder = Path(config.pretrained).expanduser()
    template = chat_template(config.chat.template, pretrained.tokenizer, folder if folder.is_dir() else None)
    kept, held = _split(chats.chats, config)
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
        adapted=done,
        precision=precision,
        device=device,
        fingerprint=_fingerprint(rows),
        notes=[*chats.notes, *_notes(rows, len(kept), longest)],
    )


def _split(chats: Sequence[Chat], config: InstructConfig) -> tuple[tuple[Chat, ...], tuple[Chat, ...]]:
    """Those to learn from and those held back, drawn by seed; of a question that is asked twice both go one way."""
    if not config.chat.validation or len(chats) < 2:
        return tuple(chats), ()
    questions = list(dict.fromkeys(chat[:-1] for chat in chats))
    order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(derived_seed(config.seed, 0)))
    count = min(len(questions) - 1, max(1, round(config.chat.validation * len(questions))))
    held = {questions[i] for i in order[:count].tolist()}
    return tuple(c for c in chats if c[:-1] not in held), tuple(c for c in chats if c[:-1] in held)


def _notes(rows: Conversations, given: int, longest: int) -> Iterator[str]:
    share = rows.answers / max(1, len(rows.inputs.values))
    yield f"{share:.0%} of {len(rows.inputs.values):,} training tokens are answers and learnt, the others only read"
    if rows.cut:
        yield f"{rows.cut / given:.1%} of the conversations are longer than {longest} tokens and were cut"
    if rows.dropped:
        yield f"{rows.dropped:,} of them were left out: no answer is within their first {longest} tokens"


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
        return _begin(prepared, Run.create(run_path, Path(config.source).stem), listener, started)


def _begin(p: PreparedChats, run: Run, listener: Listener, started: float) -> Chatter:
    for line in overview(p):
        listener.say(line)
    write_text(run.path / TOKENIZER, p.pretrained.tokenizer.text)
    write_text(run.path / TEMPLATE, p.template.source)
    write_json(run.preprocess_file, about(p.pretrained, p.template.name))
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
    weights = 4 * (p.adapted.total + 3 * p.adapted.trained)
    listener.say(
        f"about {duration(seconds)} of training ({number(1000 * per_step)} ms an update); weights, gradients and "
        f"moments take {weights / 1e6:,.0f} MB"
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
    with torch.random.fork_rng():
        p = prepare_chats(parse(InstructConfig, run.settings()), resolved=True)
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
        return None if self.p.validation is None else answer_scores(self.p.model, self.p.validation)

    def train(self) -> Chatter:
        p = self.p
        self.begin("instruct", {"train": len(p.train), "validation": len(p.validation or ())})
        self.updates()
        if p.config.method != "full":
            keep(self.run, p.model, p.pretrained.name)
            adapt.merge(p.model)
        scores = self.look()
        if scores is not None:
            self.run.log({"event": "validation", "step": self.step, "scores": scores, "seconds": self.seconds})
        self.run.save_model(p.model.state_dict())
        chatter = Chatter(p.model, p.pretrained.tokenizer, p.template, p.config, self.run.path)
        answered = answers_of(chatter, p.held_back)
        result: dict[str, Any] = {
            "format": FORMAT,
            "task": "instruct",
            "source": self.source,
            "validation": scores,
            "sizes": {"train": len(p.train), "validation": len(p.validation or ())},
            "seconds": {"train": self.seconds, "total": time.perf_counter() - self.started},
            "steps": self.step,
            "examples_per_second": self.step * p.config.train.batch_size * p.config.train.accumulate / self.seconds,
            "parameters": p.adapted.total,
            "trained_parameters": p.adapted.trained,
            "seed": p.config.seed,
            "answers": answered,
            "notes": p.notes,
            "command": command(p.config),
            "environment": environment.describe(p.device, p.precision),
        }
        self.leave(result, summary)
        return chatter


def answer_scores(model: Transformer, rows: Conversations, most: int = 8192) -> dict[str, float]:
    """Mean loss (nats), perplexity and share of tokens foretold, over all learnt tokens of the answers."""
    training, device = model.training, model.head_weight.device
    model.eval()
    total, right, count = 0.0, 0, 0
    order = rows.inputs.lengths.argsort(stable=True)
    size = max(1, most // int(rows.inputs.lengths.max()))
    try:
        with torch.inference_mode():
            for part in torch.split(order, size):
                batch = rows.batch(part)
                there = batch.weights.bool() if batch.weights is not None else batch.targets >= 0
                h = model.hidden(batch.inputs.to(device))[there.to(device)]
                targets = batch.targets[there].to(device)
                logits = F.linear(h, model.head_weight).float()
                total += float(F.cross_entropy(logits, targets, reduction="sum"))
                right += int((logits.argmax(-1) == targets).sum())
                count += len(targets)
    finally:
        model.train(training)
    loss = total / count
    return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "token_accuracy": right / count}


def answers_of(chatter: Chatter, chats: Sequence[Chat]) -> list[dict[str, Any]]:
    """What the model answers to the first questions held back, beside what was answered there."""
    chosen = chats[:SHOWN]
    if not chosen:
        return []
    prompts = [chatter.template.prompt(chat[:-1])[-(chatter.model.context - MOST) :] for chat in chosen]
    written: list[list[int]] = [[] for _ in chosen]
    stop = chatter.template.stop
    for drawn in tokens(chatter.model, prompts, most=MOST, sampling=Sampling(temperature=0), end=stop):
        for row, one in enumerate(drawn):
            if one is not None:
                written[row].append(one)
    return [
        {
            "question": chat[-2].text if len(chat) > 1 else "",
            "answer": chatter.tokenizer.decode([one for one in ids if one != stop]),
            "wanted": chat[-1].text,
            "stopped": bool(ids) and ids[-1] == stop,
        }
        for chat, ids in zip(chosen, written, strict=True)
    ]


# --- what is said -----------------------------------------------------------------------------------------------------


def overview(p: PreparedChats) -> list[str]:
    """What was found, what will be trained and how: the first lines of a run, and of a dry run."""
    c = p.config
    parts = f"{len(p.train):,} train" + (f", {len(p.validation):,} validation" if p.validation is not None else "")
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
    if scores := result["validation"]:
        lines.append(
            f"answers held back ({result['sizes']['validation']:,} conversations): {scores['loss']:.4f} nats a token, "
            f"perplexity {number(scores['perplexity'])}, {scores['token_accuracy']:.1%} of tokens foretold"
        )
    for row in result["answers"][:2]:
        lines.append(f"  {row['question'][-60:]!r} → {row['answer'][:80]!r}")
    if found := result["answers"]:
        lines.append(f"{sum(row['stopped'] for row in found)} of {len(found)} answers ended within {MOST} tokens")
    seconds = result["seconds"]["train"]
    lines.append(f"trained in {duration(seconds)}, {result['examples_per_second']:,.1f} conversations/s")
    return lines


def command(config: InstructConfig) -> str:
    """The command that repeats a run."""
    words = ["feedfwd", "finetune", config.source, "--task", "instruct", "--from", config.pretrained]
    for flag in ("method", "effort", "minutes", "seed"):
        value = getattr(config, flag)
        if value != type(config).model_fields[flag].default:
            words += [f"--{flag}", str(value)]
    return shlex.join(words + said_sets(config, preset(config)))
