"""Two texts as one row of tokens, as a pretrained model's own tokenizer puts them together."""

from collections.abc import Iterable, Sequence

import torch

from feedfwd.data.model_tokenizer import ModelTokenizer
from feedfwd.data.ragged import Ragged

Tokens = list[int]


class PairRows:
    """The tokens of a query and of a candidate between the model's special ones, at most `longest` in all.

    What belongs to the second segment stands as its id plus `vocabulary`. Of a pair that is too long the query keeps at
    least half of the row's room, or all that it needs, and the candidate the rest. A tokenizer that knows no pairs gets
    what ends a text between the two, or a line end.

    >>> from feedfwd.data.tokenizer import byte_tokenizer
    >>> tokenizer = ModelTokenizer(byte_tokenizer().to_json(), before=[256], after=[256])
    >>> pairs = PairRows(tokenizer, longest=8, vocabulary=1000)
    >>> pairs.row([65], [66, 67]), pairs.row([65] * 9, [66] * 9)
    ([256, 65, 256, 1066, 1067, 256], [256, 65, 65, 256, 1066, 1066, 1066, 256])
    """

    def __init__(self, tokenizer: ModelTokenizer, longest: int, vocabulary: int) -> None:
        self.tokenizer, self.longest, self.vocabulary = tokenizer, longest, vocabulary
        tokenizer.engine.no_truncation()
        probe = tokenizer.engine.encode("a", "a", add_special_tokens=True)
        marks: list[Tokens] = [[], [], []]  # before, between and after the two
        place, second = 0, vocabulary
        for token, sequence, kind in zip(probe.ids, probe.sequence_ids, probe.type_ids, strict=True):
            if sequence is None:
                marks[place].append(token + kind * vocabulary)
            else:
                place, second = 1 + sequence, kind * vocabulary
        self.first, self.middle, self.last = marks
        if not any(marks):
            line = tokenizer.encode(["\n"], longest=None, special=False)[0]
            self.first, self.last = list(tokenizer.before), list(tokenizer.after)
            self.middle = list(tokenizer.after or tokenizer.before or line)
            second = vocabulary
        self.second = second

    def tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """Of each text, without special ones."""
        return self.tokenizer.encode(texts, longest=None, special=False)

    @property
    def room(self) -> int:
        return self.longest - len(self.first) - len(self.middle) - len(self.last)

    def row(self, query: Tokens, candidate: Tokens) -> Tokens:
        """The two as the model reads them."""
        query = query[: max(self.room // 2, self.room - len(candidate))]
        candidate = candidate[: self.room - len(query)]
        return [*self.first, *query, *self.middle, *(one + self.second for one in candidate), *self.last]

    def rows(self, pairs: Iterable[tuple[Tokens, Tokens]]) -> Ragged:
        found = [self.row(query, candidate) for query, candidate in pairs]
        values = torch.tensor([one for row in found for one in row], dtype=torch.int64)
        return Ragged(values, torch.tensor([len(row) for row in found], dtype=torch.int64))

    def decode(self, row: Sequence[int]) -> str:
        """A row with its special tokens."""
        return self.tokenizer.decode([one % self.vocabulary for one in row], special=True)
