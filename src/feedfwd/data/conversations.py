"""Conversations as rows of tokens, of which the answers are learnt, and batches of them."""

# B rows, T tokens

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from feedfwd.data.batches import Batch
from feedfwd.data.chats import Chat
from feedfwd.data.ragged import PAD, Ragged, RaggedBatches
from feedfwd.data.templates import ChatTemplate
from feedfwd.errors import DataError


@dataclass(frozen=True)
class Conversations:
    """Tokens seen, the next ones, and whether these are learnt, row by row; and what became of the rows on the way."""

    inputs: Ragged
    targets: Ragged
    learnt: Ragged  # 0 or 1
    cut: int  # conversations longer than there was room
    dropped: int  # of which nothing learnt was left

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def answers(self) -> int:
        """Tokens that are learnt."""
        return int(self.learnt.values.sum())

    def batch(self, rows: torch.Tensor) -> Batch:  # (B,) -> inputs, targets and weights (B, T)
        """Padded on the right, where a causal model can't look from; padding has no weight."""
        learnt = self.learnt.padded(rows)
        return Batch(
            self.inputs.padded(rows).clamp(min=0).long(),
            self.targets.padded(rows).clamp(min=0).long(),
            (learnt == 1).float(),
        )


def conversations(chats: Sequence[Chat], template: ChatTemplate, longest: int) -> Conversations:
    """The chats as the template writes them, of at most `longest` tokens. DataError where no answer is within them."""
    inputs: list[list[int]] = []
    targets: list[list[int]] = []
    learnt: list[list[int]] = []
    cut = dropped = 0
    for chat in chats:
        ids, yes = template.conversation(chat)
        cut += len(ids) > longest + 1
        ids, yes = ids[: longest + 1], yes[: longest + 1]
        if not any(yes[1:]):
            dropped += 1
            continue
        inputs.append(ids[:-1])
        targets.append(ids[1:])
        learnt.append([int(one) for one in yes[1:]])
    if chats and not inputs:
        what = f"no answer of {len(chats):,} conversations is within their first {longest} tokens: nothing would train"
        raise DataError(what, hint="set chat.longest higher, or shorten what stands before the answers")
    return Conversations(_ragged(inputs), _ragged(targets), _ragged(learnt), cut, dropped)


class ChatBatches(Iterator[Batch]):
    """An endless stream of shuffled batches of conversations of about one length, each once an epoch."""

    def __init__(self, rows: Conversations, batch_size: int, *, seed: int = 0) -> None:
        places = torch.arange(len(rows))
        self.rows, self.places = rows, RaggedBatches(rows.inputs, places, batch_size, seed=seed, alike=True)

    def __next__(self) -> Batch:
        return self.rows.batch(next(self.places).targets)

    def state_dict(self) -> dict[str, int]:
        return self.places.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.places.load_state_dict(state)


def _ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    values = torch.tensor([one for row in rows for one in row], dtype=torch.int32)
    assert PAD not in (0, 1)
    return Ragged(values, lengths)
