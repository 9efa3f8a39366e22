"""What a model writes: samples as it trains, and at the end how much of its text is copied and how much parses."""

import ast
import codeop
from collections.abc import Sequence
from typing import Any

import numpy as np

from feedfwd.data.copies import BLOCK, copied, verbatim_length
from feedfwd.data.documents import form_of
from feedfwd.data.tokens import Tokens
from feedfwd.models.generate import Piecewise, Sampling, tokens
from feedfwd.recipes.text import PreparedText, first_words

SAMPLE = 64  # tokens
MANY = 16  # texts that the shares are taken of
BEGINNING, LONGEST = 32, 256  # tokens of their prompts at most, and of what is written after them
WRITING = Sampling(temperature=0.8)
INCOMPLETE = codeop.PyCF_ALLOW_INCOMPLETE_INPUT | codeop.PyCF_DONT_IMPLY_DEDENT  # type: ignore[attr-defined]
Ids = list[int]


def sample(p: PreparedText) -> dict[str, Any]:
    """What the model writes after the first words of the held-out text, and the share of it that is copied."""
    prompt = first_words(p)
    text = Piecewise(p.tokenizer, before=prompt)
    (ids,) = continued(p, [prompt], SAMPLE)
    pieces = [text.add(one) for one in ids if one != p.tokenizer.end]
    found = "".join([*pieces, text.finish()])
    return {"prompt": p.tokenizer.decode(prompt), "text": found, "copied": share_copied(p, [ids])}


def judge(p: PreparedText) -> dict[str, Any]:
    """What 16 continuations of held-out text are like, and what the text's own continuations are, to compare with.

    `copied` is the share of their tokens in stretches that the training text has word for word (see `data.copies`);
    common phrases and licences make it more than nothing in any text. `parses`, for Python alone, is the share of the
    16 texts, prompt and continuation together, that are the beginning of a program (see `begins_a_program`).
    """
    row = p.config.data.row
    many = min(BEGINNING, max(1, row // 8))
    # Without the end token before it a file's first quotes could as well close a string that was opened above.
    before = [p.tokenizer.end] if is_python(p) else []
    most = min(max(1, row - many - len(before)), LONGEST)
    held = beginnings(p, MANY, many + most)
    prompts, own = [ids[:many] for ids in held], [ids[many:] for ids in held]
    written = continued(p, [before + ids for ids in prompts], most)
    found: dict[str, Any] = {"texts": len(held), "tokens": sum(map(len, written))}
    for name, texts in (("written", written), ("held_out", own)):
        shares: dict[str, float | None] = {"copied": share_copied(p, texts)}
        if is_python(p):
            whole = zip(prompts, texts, strict=True)
            shares["parses"] = float(np.mean([_parses(p, [*prompt, *text]) for prompt, text in whole]))
        found[name] = shares
    return found


def share_copied(p: PreparedText, texts: Sequence[Ids]) -> float | None:
    """Of the texts' tokens, ends of documents aside; None where no text is long enough to be a copy."""
    length = verbatim_length(p.train)
    texts = [[one for one in ids if one != p.tokenizer.end] for ids in texts]
    texts = [ids for ids in texts if len(ids) >= length]
    return float(np.concatenate(copied(texts, p.train, length)).mean()) if texts else None


def continued(p: PreparedText, prompts: Sequence[Ids], most: int) -> list[Ids]:
    """What the model writes after each prompt, the end token included where it comes."""
    written: list[Ids] = [[] for _ in prompts]
    for step in tokens(p.model, prompts, most=most, sampling=WRITING, end=p.tokenizer.end, seed=p.config.seed):
        for ids, one in zip(written, step, strict=True):
            if one is not None:
                ids.append(one)
    return written


def beginnings(p: PreparedText, many: int, length: int) -> list[Ids]:
    """Stretches of up to `length` tokens from all over the held-out text, each within a document.

    They are the beginnings of `many` documents. Where there are fewer, other places make up for it, but in Python,
    where the middle of a file is no beginning of a program.
    """
    found: list[Ids] = []
    share = -(-many // sum(len(held) > 0 for held in p.held_out))
    for held in (held for held in p.held_out if len(held)):
        starts = _documents(held)
        if len(starts) < share and not is_python(p):
            starts = np.union1d(starts, np.arange(share) * len(held) // share)
        stretches = [held.read(at, min(at + length, len(held))).tolist() for at in _spread(starts, 4 * share)]
        cut = [ids[: ids.index(held.end) + 1] if held.end in ids else ids for ids in stretches]
        long = [ids for ids in cut if len(ids) > length // 2]
        found += [(long or cut)[i] for i in _spread(np.arange(len(long or cut)), share)]
    return found


def _documents(held: Tokens) -> np.ndarray:
    """Where documents begin."""
    blocks = (held.read(at, min(at + BLOCK, len(held))) for at in range(0, len(held), BLOCK))
    starts = [np.flatnonzero(ids == held.end) + i * BLOCK + 1 for i, ids in enumerate(blocks)]
    places = np.concatenate([np.zeros(1, np.int64), *starts])
    return places[places < len(held)]


def _spread(places: np.ndarray, many: int) -> list[int]:
    """At most so many of them, evenly."""
    chosen = np.arange(min(many, len(places))) * len(places) // min(many, len(places))
    return [int(places[i]) for i in chosen]


def is_python(p: PreparedText) -> bool:
    """Whether all text is from Python files, as the standard library's is."""
    forms = {form_of(path) for source in p.corpus.sources for path in source.files}
    return forms <= {".py", ".py.gz"}


def _parses(p: PreparedText, ids: Ids) -> bool:
    return begins_a_program(p.tokenizer.decode(ids), whole=ids[-1] == p.tokenizer.end)


def begins_a_program(text: str, *, whole: bool = False) -> bool:
    """Whether Python's parser takes the text, up to its last line end, for a program or the beginning of one.

    A bracket or block may be open at its end, but no string: inside one, anything goes. `whole`: nothing is cut off,
    and nothing may be open.

    >>> begins_a_program("def f(x):\\n  return (x +\\n  1 +"), begins_a_program("def f(:\\n  return 1\\n")
    (True, False)
    """
    source = text if whole else text[: text.rfind("\n") + 1]
    try:
        ast.parse(source)
        return bool(source.strip())
    except SyntaxError as error:
        if whole or error.msg.startswith("unterminated"):
            return False
    except (ValueError, RecursionError, MemoryError):
        return False
    flags = ast.PyCF_ONLY_AST | INCOMPLETE
    try:
        compile(source, "<text>", "exec", flags)
    except SyntaxError as error:
        return error.msg == "incomplete input"
    return True
