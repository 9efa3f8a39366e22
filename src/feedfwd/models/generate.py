"""Writing: a model's next token, drawn, appended and read again.

`tokens` yields ids step by step for a batch of prompts, `write` text piece by piece for one, `complete` whole texts for
many. When a text reaches the model's `context`, its older half is forgotten and the rest read anew.
"""

# B prompts, V vocabulary

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from feedfwd.errors import ConfigError, DataError, TrainingError
from feedfwd.models.reading import Remembering, Rereading
from feedfwd.models.transformer import Transformer

COLDEST = 1e-30  # temperature below which a logit divided by it is beyond fp32, and the likeliest token is all there is
LARGEST_SEED = 2**62  # what a generator takes, with room for the number of a row
BATCH = 16  # prompts written after at once


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn: logits / temperature, then what the filters leave, applied in this order.

    temperature 0 takes the likeliest token. `top_k` keeps so many, `top_p` the likeliest that together have that
    probability (Holtzman et al. 2020, arXiv 1904.09751), `min_p` those with at least that share of the likeliest's
    (Nguyen et al. 2024, arXiv 2407.01082). `repetition_penalty` divides the logits of tokens that occurred if positive
    and multiplies them if not (Keskar et al. 2019, arXiv 1909.05858).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, value, wanted, holds in (
            ("temperature", self.temperature, "0 (the likeliest token) or more", 0 <= self.temperature < math.inf),
            ("top_k", self.top_k, "at least 1", self.top_k is None or self.top_k >= 1),
            ("top_p", self.top_p, "above 0 and at most 1", 0 < self.top_p <= 1),
            ("min_p", self.min_p, "at least 0 and below 1", 0 <= self.min_p < 1),
            ("repetition_penalty", self.repetition_penalty, "above 0", 0 < self.repetition_penalty < math.inf),
        ):
            if not holds:
                raise ConfigError(f"{name}={value} can't be used", hint=f"give a number {wanted}")

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        """(B, V), of what the filters leave.

        >>> Sampling(top_k=2).probabilities(torch.tensor([[0.0, 0.0, -1.0]]))
        tensor([[0.5000, 0.5000, 0.0000]])
        """
        if self.temperature < COLDEST:
            return torch.zeros_like(logits_BV, dtype=torch.float32).scatter_(1, logits_BV.argmax(-1, keepdim=True), 1.0)
        z = logits_BV.float() / self.temperature
        if self.top_k is not None and self.top_k < z.shape[1]:
            z = z.masked_fill(z < z.topk(self.top_k)[0][:, -1:], -math.inf)
        p = z.softmax(-1)
        if self.top_p < 1:
            sorted_p, order = p.sort(descending=True)
            beyond = sorted_p.cumsum(-1) - sorted_p >= self.top_p  # the likelier ones suffice without it
            p = p.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), 0.0)
        if self.min_p:
            p = p.masked_fill(p < self.min_p * p.amax(-1, keepdim=True), 0.0)
        return p / p.sum(-1, keepdim=True)

    def draw(self, logits_BV: Tensor, seen_BV: Tensor | None, generators: Sequence[Generator]) -> list[int]:
        """One token for each row, by that row's generator."""
        if seen_BV is not None:
            factor = torch.where(logits_BV > 0, 1 / self.repetition_penalty, self.repetition_penalty)
            logits_BV = torch.where(seen_BV, logits_BV * factor, logits_BV)
        if self.temperature < COLDEST:
            found: list[int] = logits_BV.argmax(-1).tolist()
            return found
        if not logits_BV.isfinite().all():
            hint = "it was trained at too high a rate: lower optimizer.lr"
            raise TrainingError("the model's outputs are not finite, and no token can be drawn from them", hint=hint)
        rows = zip(self.probabilities(logits_BV), generators, strict=True)
        return [int(torch.multinomial(p, 1, generator=generator)) for p, generator in rows]


def tokens(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    most: int,
    sampling: Sampling | None = None,
    end: int | None = None,
    seed: int = 0,
    closed: set[int] | None = None,
    remember: bool = True,
) -> Iterator[list[int | None]]:
    """Up to `most` tokens for each prompt, a step at a time; None for a row that has ended.

    A row ends after the token `end`, which is yielded, or when the caller puts its number into `closed`. Row r draws
    from its own generator, of seed + r: what it writes doesn't depend on the others.
    """
    sampling, closed = sampling or Sampling(), closed if closed is not None else set()
    if abs(seed) >= LARGEST_SEED:
        raise ConfigError(f"seed={seed} can't be used", hint="give a smaller number, such as 0")
    _check(model, prompts)
    texts = [list(prompt) for prompt in prompts]
    device = model.head_weight.device
    generators = [Generator(device).manual_seed(seed + row) for row in range(len(texts))]
    seen = None
    if sampling.repetition_penalty != 1:
        seen = torch.zeros(len(texts), model.vocabulary, dtype=torch.bool, device=device)
        for row, text in enumerate(texts):
            seen[row, text] = True
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            texts, _ = _recent(texts, model.context)
            reader = Remembering(model) if remember else Rereading(model)
            logits = reader.start(texts)
            for n in range(most):
                drawn = sampling.draw(logits, seen, generators)
                yield [None if row in closed else one for row, one in enumerate(drawn)]
                closed.update(row for row, one in enumerate(drawn) if one == end)
                if len(closed) == len(texts) or n + 1 == most:
                    return
                for row, one in enumerate(drawn):
                    texts[row].append(one)
                    if seen is not None:
                        seen[row, one] = True
                texts, forgot = _recent(texts, model.context)
                logits = reader.start(texts) if forgot else reader.step(drawn)
    finally:
        model.train(training)


def _check(model: Transformer, prompts: Sequence[Sequence[int]]) -> None:
    if not model.causal:
        raise ConfigError(
            "this model sees both sides of a token and can't write", hint="train one with train.objective=next"
        )
    if not prompts or not all(prompts):
        raise DataError("there is no token to begin with", hint="give a prompt, at least the end-of-text token")
    if max(map(max, prompts)) >= model.vocabulary or min(map(min, prompts)) < 0:
        what = f"a prompt holds a token outside the model's vocabulary of {model.vocabulary}"
        raise DataError(what, hint="encode it by the tokenizer that the model was trained with")


def _recent(texts: list[list[int]], context: int) -> tuple[list[list[int]], bool]:
    """The texts, of those that reached the context the newer half, and whether there were any."""
    long = [len(text) >= context and len(text) > 1 for text in texts]
    keep = max(1, context // 2)
    return [text[-keep:] if cut else text for text, cut in zip(texts, long, strict=True)], any(long)


SEEN = 8  # tokens of a prompt that a decoder is shown with those after it


class Tokenizer(Protocol):
    """What this module asks of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


class Piecewise:
    """Text from tokens, given out as soon as it is certain: no half characters, nothing from a stop string on.

    `before` are the tokens that it goes on from: many tokenizers leave out the first space of what they decode.

    >>> class Letters:
    ...     def encode(self, text): return [ord(c) for c in text]
    ...     def decode(self, ids): return "".join(map(chr, ids))
    >>> piecewise = Piecewise(Letters(), stop=["END"])
    >>> [piecewise.add(ord(c)) for c in "a, E, EN"], piecewise.stopped
    (['a', ',', ' ', '', 'E,', ' ', '', ''], False)
    >>> piecewise.add(ord("D")), piecewise.stopped
    ('', True)
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, [s for s in stop if s]
        self.ids: list[int] = list(before[-SEEN:])
        # tokens before `shown` are done with; those before `decoded` are in `held`
        self.shown, self.decoded = 0, len(self.ids)
        self.held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """What has become certain by this token."""
        self.ids.append(token)
        before = self.tokenizer.decode(self.ids[self.shown : self.decoded])
        after = self.tokenizer.decode(self.ids[self.shown :])
        if after.endswith("�") and len(self.ids) - self.decoded < 8:  # a character whose bytes are still to come
            return ""
        self.held += after[len(before) :]
        self.shown, self.decoded = self.decoded, len(self.ids)
        return self._release()

    def finish(self) -> str:
        """What was held back, nothing more being to come."""
        before = self.tokenizer.decode(self.ids[self.shown : self.decoded])
        self.held += self.tokenizer.decode(self.ids[self.shown :])[len(before) :]
        certain, self.held = self._release() + self.held, ""
        return certain

    def _release(self) -> str:
        if self.stopped:
            self.held = ""
            return ""
        found = [at for at in map(self.held.find, self.stop) if at >= 0]
        if found:
            self.stopped = True
            certain, self.held = self.held[: min(found)], ""
            return certain
        longest = max((len(s) - 1 for s in self.stop), default=0)
        for length in range(min(longest, len(self.held)), 0, -1):  # the end may be the beginning of a stop string
            if any(s.startswith(self.held[-length:]) for s in self.stop):
                certain, self.held = self.held[:-length], self.held[-length:]
                return certain
        certain, self.held = self.held, ""
        return certain


def write(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    most: int = 200,
    sampling: Sampling | None = None,
    end: int | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> Iterator[str]:
    """The text that follows a prompt, piece by piece. An empty prompt begins at `end`, as a new document."""
    ids = _ids(tokenizer, prompt, end)
    text = Piecewise(tokenizer, stop, ids)
    for (token,) in tokens(model, [ids], most=most, sampling=sampling, end=end, seed=seed):
        if token is None or token == end:
            break
        if piece := text.add(token):
            yield piece
        if text.stopped:
            return
    if piece := text.finish():
        yield piece


def complete(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    most: int = 200,
    sampling: Sampling | None = None,
    end: int | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = BATCH,
) -> list[str]:
    """The texts that follow the prompts, `batch_size` at a time; each as if alone, with seed + its place."""
    done: list[str] = []
    for start in range(0, len(prompts), batch_size):
        ids = [_ids(tokenizer, prompt, end) for prompt in prompts[start : start + batch_size]]
        texts = [Piecewise(tokenizer, stop, one) for one in ids]
        pieces: list[list[str]] = [[] for _ in ids]
        closed: set[int] = set()
        steps = tokens(model, ids, most=most, sampling=sampling, end=end, seed=seed + start, closed=closed)
        for step in steps:
            for row, token in enumerate(step):
                if token is not None and token != end:
                    pieces[row].append(texts[row].add(token))
                    if texts[row].stopped:
                        closed.add(row)
        done += ["".join([*parts, text.finish()]) for parts, text in zip(pieces, texts, strict=True)]
    return done


def _ids(tokenizer: Tokenizer, prompt: str, end: int | None) -> list[int]:
    ids = tokenizer.encode(prompt)
    return [end] if not ids and end is not None else ids
