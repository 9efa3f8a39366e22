"""Byte-level BPE by looking words up: the fast twin of the engine's own encoding, and equal to it.

BPE works on each word alone, and text repeats its words: of three megabytes of English 4 % are new. So a text is split
into words here, and only words that were not seen before go to the engine. Characters whose Unicode category could
differ between this Python's tables and the engine's send a text to the engine whole.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import chain, pairwise

import numpy as np
from tokenizers import Tokenizer

LIMIT = 100_000  # words remembered, about 30 MB; then all are forgotten
# Blocks that have been settled for many versions of Unicode: Latin to general punctuation, CJK punctuation, Han.
SETTLED = ((0x0000, 0x0370), (0x2000, 0x2065), (0x3000, 0x3040), (0x4E00, 0x9FCD), (0xFF01, 0xFF5F))
SPACE = "\t\n\v\f\r \x85\xa0\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # White_Space within these blocks


def _settled(category: str) -> str:
    """The settled characters of a category as ranges of a regular expression."""
    chosen = [c for a, b in SETTLED for c in range(a, b) if unicodedata.category(chr(c))[0] == category]
    starts = [chosen[0], *(b for a, b in pairwise(chosen) if b != a + 1)]
    ends = [*(a for a, b in pairwise(chosen) if b != a + 1), chosen[-1]]
    return "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in zip(starts, ends, strict=True))


def word_pattern() -> re.Pattern[str]:
    """GPT-2's words: contractions, letters, digits, other signs, each with a space before it, and white space."""
    letter, digit = _settled("L"), _settled("N")
    return re.compile(
        rf"'(?:[stmd]|re|ve|ll)| ?[{letter}]+| ?[{digit}]+| ?[^{SPACE}{letter}{digit}]+"
        rf"|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+"
    )


UNSETTLED = re.compile("[^" + "".join(f"{re.escape(chr(a))}-{re.escape(chr(b - 1))}" for a, b in SETTLED) + "]")


class WordLookup:
    """Encodes texts as `plain` does, which takes texts and gives the token numbers of each."""

    def __init__(self, plain: Callable[[Sequence[str]], list[list[int]]]) -> None:
        self.plain = plain
        self._words = word_pattern()
        self._known: dict[str, list[int]] = {}

    @staticmethod
    def serves(engine: Tokenizer) -> bool:
        """Whether the engine splits text into GPT-2's words and does nothing else to it."""
        state = json.loads(engine.to_str())
        split = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        return (
            state["model"]["type"] == "BPE"
            and not state["model"].get("dropout")
            and state["normalizer"] is None
            and split.items() <= (state["pre_tokenizer"] or {}).items()
            and all(token["special"] for token in state["added_tokens"])
        )

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        if any(UNSETTLED.search(text) for text in texts):
            return self._plainly(texts)
        words = [self._words.findall(text) for text in texts]
        new = [word for word in set(chain.from_iterable(words)) if word not in self._known]
        if 4 * sum(map(len, new)) > sum(map(len, texts)):  # as in Chinese, whose words have no spaces between
            return self._plainly(texts)
        if len(self._known) + len(new) > LIMIT:
            self._known.clear()
            new = list(set(chain.from_iterable(words)))
        self._known.update(zip(new, self.plain(new), strict=True))
        known = self._known.__getitem__
        return [np.fromiter(chain.from_iterable(map(known, w)), dtype=np.uint32) for w in words]

    def _plainly(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(ids, dtype=np.uint32) for ids in self.plain(texts)]
