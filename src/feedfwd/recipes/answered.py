"""How well a model answers: what it holds of the right answers, and what it writes itself; `feedfwd evaluate`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from feedfwd.checkpoint import Run
from feedfwd.config import parse
from feedfwd.config_instruct import InstructConfig
from feedfwd.data.batches import derived_seed
from feedfwd.data.chats import Chat, read_chats
from feedfwd.data.conversations import Conversations, conversations
from feedfwd.data.model_tokenizer import ModelTokenizer
from feedfwd.errors import DataError
from feedfwd.models.generate import Sampling, tokens
from feedfwd.models.transformer import Transformer
from feedfwd.recipes.chatter import Chatter
from feedfwd.recipes.console import Listener
from feedfwd.report.words import score, word

SHOWN = 4  # answers that are kept in the result
TOGETHER = 16  # questions that are answered in one batch


def split(chats: Sequence[Chat], config: InstructConfig) -> tuple[tuple[Chat, ...], tuple[Chat, ...]]:
    """Those to learn from and those held back, drawn by seed; of a question that is asked twice both go one way."""
    if not config.chat.validation or len(chats) < 2:
        return tuple(chats), ()
    questions = list(dict.fromkeys(chat[:-1] for chat in chats))
    order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(derived_seed(config.seed, 0)))
    count = min(len(questions) - 1, max(1, round(config.chat.validation * len(questions))))
    held = {questions[i] for i in order[:count].tolist()}
    return tuple(c for c in chats if c[:-1] not in held), tuple(c for c in chats if c[:-1] in held)


def answer_scores(
    model: Transformer, rows: Conversations, tokenizer: ModelTokenizer | None = None, most: int = 8192
) -> dict[str, float]:
    """Mean loss (nats), perplexity and share of tokens foretold, over all learnt tokens of the answers.

    With the `tokenizer` bits a byte of the answers' text as well, which models of other tokenizers can be compared by.
    """
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
    found = {"loss": loss, "perplexity": math.exp(min(loss, 700)), "token_accuracy": right / count}
    if tokenizer is not None and (size := _bytes(rows, tokenizer)):
        found["bits_per_byte"] = total / math.log(2) / size
    return found


def _bytes(rows: Conversations, tokenizer: ModelTokenizer) -> int:
    """Of the answers' text, in UTF-8."""
    texts = (ids[yes == 1].tolist() for ids, yes in zip(rows.targets, rows.learnt, strict=True))
    return sum(len(tokenizer.decode(text).encode("utf-8", "replace")) for text in texts)


def answers_of(chatter: Chatter, chats: Sequence[Chat], longest: int) -> list[dict[str, Any]]:
    """What the model answers to the last question of each, always taking the likeliest token, beside what was answered
    there; at most so many tokens of a question and its answer, and no more than the longest answer there takes."""
    found = []
    for i in range(0, len(chats), TOGETHER):
        chosen, context = chats[i : i + TOGETHER], min(chatter.model.context, longest)
        wanted = [len(chatter.tokenizer.encode([c[-1].text], longest=None, special=False)[0]) for c in chosen]
        most = max(1, min(max(wanted) + 1, context // 2))
        prompts = [chatter.template.prompt(chat[:-1])[-(context - most) :] for chat in chosen]
        written: list[list[int]] = [[] for _ in chosen]
        stop = chatter.template.stop
        for drawn in tokens(chatter.model, prompts, most=most, sampling=Sampling(temperature=0), end=stop):
            for row, one in enumerate(drawn):
                if one is not None:
                    written[row].append(one)
        found += [
            {
                "question": chat[-2].text if len(chat) > 1 else "",
                "answer": chatter.tokenizer.decode([one for one in ids if one != stop]),
                "wanted": chat[-1].text,
                "stopped": bool(ids) and ids[-1] == stop,
            }
            for chat, ids in zip(chosen, written, strict=True)
        ]
    return found


def answered(
    chatter: Chatter, rows: Conversations, chats: Sequence[Chat]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """All scores of a part, and what was answered to its first questions, `chat.asked` of them.

    exact_answers: share of these answers that are the wanted ones word for word, but for spaces around them.
    """
    chat = chatter.config.chat
    scores = answer_scores(chatter.model, rows, chatter.tokenizer)
    found = answers_of(chatter, chats[: chat.asked], chat.longest)
    if found:
        scores["exact_answers"] = sum(row["answer"].strip() == row["wanted"].strip() for row in found) / len(found)
    return scores, found


def shown(row: Mapping[str, Any]) -> str:
    """A question and what was answered, in one line.

    >>> shown({"question": "Where?", "answer": "Over\\n\\n there."})
    "'Where?' → 'Over there.'"
    """
    question, answer = (" ".join(row[key].split()) for key in ("question", "answer"))
    return f"{question[-60:]!r} → {answer[:80]!r}"


def evaluate_chats(path: Path, source: str | None, listener: Listener) -> dict[str, float]:
    """Scores of a run that answers on other conversations, or on its own test part, else those that it held back."""
    chatter = Chatter.load(path)
    config = parse(InstructConfig, Run.open(path).settings())
    if source is None and config.test is None:
        chats, name = split(read_chats(config.source).chats, config)[1], f"what was held back of {config.source}"
        if not chats:
            raise DataError(f"{path} held back no conversations", hint="give a file: feedfwd evaluate RUN FILE")
    else:
        read = read_chats(str(source or config.test))
        chats, name = read.chats, read.name
        for note in read.notes:
            listener.say(f"note: {note}")
    rows = conversations(chats, chatter.template, min(config.chat.longest, chatter.model.context - 1))
    scores, found = answered(chatter, rows, chats)
    listener.say(f"{path} on {name}, n={len(rows):,}")
    for key, value in scores.items():
        of = f"  of {len(found):,} answers" if key == "exact_answers" else ""
        listener.say(f"  {word(key).label:<24}{score(key, value, rows.answers)}{of}")
    for row in found[:2]:
        listener.say(f"  {shown(row)}")
    return scores
