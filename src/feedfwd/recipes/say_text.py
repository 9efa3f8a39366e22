"""What a pretraining tells a person, as lines of text; pure functions of what was found."""

import shlex
from collections.abc import Mapping
from typing import Any

from feedfwd.config_pretrain import PretrainConfig, TransformerConfig, WideFFN
from feedfwd.recipes.say import said_sets
from feedfwd.recipes.text import PRESET, PreparedText, too_short
from feedfwd.report.words import count, duration, number

SHOWN = 10  # hidden tokens of an example


def overview(p: PreparedText) -> list[str]:
    """What was found, what will be trained and how: the first lines of a run, and of a dry run."""
    c, m = p.config, p.config.model
    n_train, n_held = (sum(map(len, part)) for part in (p.train, p.held_out))
    per_token = p.corpus.bytes_of("train") / max(1, n_train)
    length = f"{p.steps:,} updates" if c.minutes is None else f"as many updates as fit into {c.minutes:g} minutes"
    seen = p.steps * p.tokens_per_update
    shown = "" if c.minutes is not None else f", {count(seen)} in all ({seen / max(1, n_train):.3g} epochs)"
    tokenizer, kind = (c.data.tokenizer, c.size) if p.base is None else ("its own", f"from {c.pretrained}")
    aim = "" if c.train.objective == "next" else f"; {c.train.masked:.0%} of the tokens hidden, to be filled in"
    return [
        p.corpus.describe(),
        f"{tokenizer} tokenizer, {p.tokenizer.vocabulary:,} tokens of {per_token:.3g} bytes on average: "
        f"{n_train:,} to train on, {n_held:,} held out{aim}",
        f"{kind}: {m.depth} layers, {m.width} wide, {m.heads} heads, {c.ffn.activation} {c.ffn.hidden} wide: "
        f"{p.model.parameter_count:,} parameters, {count(p.flops_per_token)} FLOPs a token in training",
        *([p.adapted] if p.adapted else []),
        f"{c.optimizer.name}, rate {c.optimizer.lr:.3g}, {c.schedule.name}; {length} of {p.tokens_per_update:,} "
        f"tokens{shown}",
        f"{p.device}, {p.precision.name} ({p.precision.reason})",
        *(f"note: {note}" for note in p.notes),
    ]


def example(p: PreparedText) -> list[str]:
    """The first row as the model sees it, and what of it is learnt."""
    batch = next(p.batches())
    seen, targets = batch.inputs[0].tolist(), batch.targets[0].tolist()
    if p.config.train.objective == "next":
        learnt = len(seen) if batch.weights is None else int((batch.weights[0] > 0).sum())
        return [f"the model sees: {_short(p.tokenizer.decode(seen, special=True))!r}, and learns what follows each of "
                f"{learnt:,} tokens"]  # fmt: skip
    assert batch.weights is not None
    hidden = [p.tokenizer.decode([token]) for token, w in zip(targets, batch.weights[0].tolist(), strict=True) if w > 0]
    shown = ", ".join(map(repr, hidden[:SHOWN])) + (", …" if len(hidden) > SHOWN else "")
    return [
        f"the model sees: {_short(p.tokenizer.decode(seen, special=True))!r}",
        f"and learns to fill in {len(hidden):,} of {len(seen):,} tokens: {shown}",
    ]


def _short(text: str, most: int = 300) -> str:
    return text if len(text) <= most else text[:most] + "…"


def cost(p: PreparedText, per_step: float, memory: int) -> list[str]:
    """What training would take, from a short trial, and whether it is too short; `memory` beside torch, in bytes."""
    minutes = p.config.minutes
    steps = p.steps if minutes is None else max(1, int(60 * minutes / per_step))
    seconds = per_step * steps if minutes is None else 60 * minutes
    flops = p.flops_per_token * p.tokens_per_update * steps
    return [
        f"about {duration(seconds)} of training ({number(1000 * per_step)} ms an update, "
        f"{p.tokens_per_update / per_step:,.0f} tokens/s), {count(flops)} FLOPs in all, "
        f"{memory / 1e6:,.0f} MB of memory beside torch itself",
        *(f"note: {note}" for note in too_short(p, steps)),
    ]


def summary(result: Mapping[str, Any]) -> list[str]:
    """The last lines of a run: scores with their n, and the time it took."""
    scores, n = result["validation"], result["sizes"]["validation"]
    speed = result["tokens_per_second"]
    before = result.get("compared", {}).get("before")
    rate = "" if speed is None else f", {speed:,.0f} tokens/s"
    if (mfu := result.get("mfu")) is not None:
        rate += f", {mfu:.0%} of this machine's matrix rate ({count(result['matrix_rate'])} FLOPs/s)"
    return [
        *([f"before: held-out text {headline(before)}, perplexity {number(before['perplexity'])}"] if before else []),
        f"held-out text ({n:,} tokens): {headline(scores)}, perplexity {number(scores['perplexity'])}"
        + (f", loss {scores['loss']:.4f} nats a token" if "bits_per_byte" in scores else ""),
        f"trained in {duration(result['seconds']['train'])}{rate}",
        *_written(result.get("samples")),
    ]


def headline(scores: Mapping[str, float]) -> str:
    """The score that says most: bits per byte, or the loss where tokens were hidden.

    >>> headline({"loss": 2.1, "bits_per_byte": 1.23}), headline({"loss": 2.1})
    ('1.2300 bits per byte', '2.1000 nats a hidden token')
    """
    if "bits_per_byte" in scores:
        return f"{scores['bits_per_byte']:.4f} bits per byte"
    return f"{scores['loss']:.4f} nats a hidden token"


def _written(samples: Mapping[str, Any] | None) -> list[str]:
    """What the texts that the model wrote are like, beside held-out text."""
    if not samples:
        return []
    own, held = samples["written"], samples["held_out"]
    words = {"copied": "of it copied word for word", "parses": "of the texts parse as Python"}
    said = [
        f"{own[key]:.0%} {what}" + ("" if held.get(key) is None else f" (held-out text: {held[key]:.0%})")
        for key, what in words.items()
        if own.get(key) is not None
    ]
    return [f"{samples['tokens']:,} tokens written in {samples['texts']} texts: {', '.join(said)}"] if said else []


def command(config: PretrainConfig) -> str:
    """The command that repeats a run: every setting that differs from its default or that an effort sets, spelled out.

    >>> command(PretrainConfig(sources=["a.txt"], seed=3))
    'feedfwd pretrain a.txt --seed 3'
    """
    words = ["feedfwd", "pretrain", *config.sources]
    if config.pretrained is not None:  # which says of itself what it is
        words += ["--from", config.pretrained, *(["--method", config.method] if config.method != "full" else [])]
        own = TransformerConfig(dropout=config.model.dropout, recompute=config.model.recompute)
        data = config.data.model_copy(update={"tokenizer": "bpe"})
        config = config.model_copy(update={"model": own, "ffn": WideFFN(), "data": data})
    for flag in ("size", "effort", "minutes", "seed"):
        value = getattr(config, flag)
        if value != type(config).model_fields[flag].default:
            words += [f"--{flag}", str(value)]
    return shlex.join(words + said_sets(config, PRESET if config.size else ()))
