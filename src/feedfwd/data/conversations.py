"""Conversations as rows of tokens, of which the answers are learnt, and batches of them."""

# B rows, T tokens, N conversations, R rows that share them

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from feedfwd.data.batches import Batch
from feedfwd.data.chats import Chat
from feedfwd.data.ragged import ALIKE, PAD, Ragged, RaggedBatches
from feedfwd.data.templates import ChatTemplate
from feedfwd.errors import DataError

TRIES = 8  # widths of rows, from the longest conversation's to twice that, of which the one that wastes least is taken


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

    def packed(self, rows: torch.Tensor) -> Batch:  # (N,) -> inputs (R, 2, T), targets and weights (R, T)
        """The same conversations sharing rows, none wider than the longest of all: see `models.apart.Apart`.

        Inputs are tokens and, below them, places, which begin at 0 with each conversation and at each filled-up place.
        """
        lengths = self.inputs.lengths[rows].tolist()
        widest = min(2 * max(lengths), int(self.inputs.lengths.max()))
        tries = [filled(lengths, width) for width in torch.linspace(max(lengths), widest, TRIES).int().tolist()]
        shape, places = min(tries, key=lambda tried: tried[0][0] * tried[0][1])
        tokens, at, targets = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
        weights = torch.zeros(shape)
        starts = self.inputs.starts[rows].tolist()
        for (row, begin), start, length in zip(places, starts, lengths, strict=True):
            here, there = slice(begin, begin + length), slice(start, start + length)
            at[row, here] = torch.arange(length)
            for whole, part in ((tokens, self.inputs), (targets, self.targets), (weights, self.learnt)):
                whole[row, here] = part.values[there]
        return Batch(torch.stack([tokens, at], 1), targets, weights)


def filled(lengths: Sequence[int], width: int) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Rows and width that hold texts of these lengths, and for each its row and where it begins there.

    The longest first, each into the first row that has room: at most 11/9 of the fewest rows and a little (Johnson
    1973, "Near-optimal bin packing algorithms").

    >>> filled([3, 5, 2, 4], width=5)
    ((3, 5), [(2, 0), (0, 0), (2, 3), (1, 0)])
    """
    used: list[int] = []
    found = [(0, 0)] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, taken in enumerate(used) if taken + lengths[i] <= width), len(used))
        if row == len(used):
            used.append(0)
        found[i] = row, used[row]
        used[row] += lengths[i]
    return (len(used), max(used)), found


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
    """An endless stream of shuffled batches of so many conversations, each once an epoch.

    `packing` lets them share rows; without it a batch's are of about one length, since each has a row of its own.
    """

    def __init__(
        self,
        rows: Conversations,
        batch_size: int,
        *,
        seed: int = 0,
        packing: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        places = torch.arange(len(rows))
        self.rows, self.packing, self.device = rows, packing, device
        self.places = RaggedBatches(rows.inputs, places, batch_size, seed=seed, alike=1 if packing else ALIKE)

    def __next__(self) -> Batch:
        chosen = next(self.places).targets
        batch = self.rows.packed(chosen) if self.packing else self.rows.batch(chosen)
        return batch.to(self.device)

    def state_dict(self) -> dict[str, int]:
        return self.places.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.places.load_state_dict(state)


def _ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    values = torch.tensor([one for row in rows for one in row], dtype=torch.int32)
    assert PAD not in (0, 1)
    return Ragged(values, lengths)
