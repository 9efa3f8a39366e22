"""Rows of tokens: every token of a corpus is a target once an epoch, none is thrown away.

Row r of tokens t has targets t[rT : rT+T] and, one place earlier, inputs t[rT-1 : rT+T-1], where t[-1] is the end
token: the first word of a corpus is predicted from "a document begins" as those of all other documents are. The last
row, where it isn't full, is filled up with end tokens of weight 0.
"""

# B rows in a batch, T tokens in a row, S sources

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from feedfwd.data.batches import Batch, Transform, derived_seed
from feedfwd.data.tokens import Tokens
from feedfwd.errors import DataError


class PackedBatches(Iterator[Batch]):
    """An endless stream of batches of `batch_size` rows: inputs (B, T), targets (B, T), weights (B, T) or None.

    Each source's rows come in an order drawn from (seed, source, epoch), each once an epoch; a batch may end one epoch
    and begin the next, so that all batches have one shape. Several sources are mixed row by row so that each
    keeps its share all along: `weights` are the shares; without them a source gives as many rows as it has, so that all
    end their epochs together.
    `transform` gets a generator seeded by (seed, rows drawn). The state is the seed and what was drawn of each source.
    """

    def __init__(
        self,
        sources: Sequence[Tokens],
        row: int,
        batch_size: int,
        *,
        seed: int = 0,
        weights: Sequence[float] | None = None,
        transform: Transform | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        _check_sizes(row, batch_size)
        present = [tokens for tokens in sources if len(tokens)]
        if weights is not None:
            weights = [w for w, tokens in zip(weights, sources, strict=True) if len(tokens)]
        longest = max((len(tokens) for tokens in present), default=0)
        if longest < row:
            raise DataError(
                f"the training text has {longest:,} tokens, fewer than one row of data.row={row:,}",
                hint=f"set data.row={max(1, longest // 4)} or fewer, or give more text",
            )
        self.sources, self.row, self.batch_size = present, row, batch_size
        self.transform, self.device = transform, torch.device(device)
        self.rows = [-(-len(tokens) // row) for tokens in present]
        shares = np.array(self.rows if weights is None else weights, dtype=np.float64)
        self.shares = shares / shares.sum()
        self.seed, self.drawn = seed, [0] * len(present)
        self._orders: list[tuple[int, np.ndarray] | None] = [None] * len(present)

    @property
    def tokens_per_epoch(self) -> int:
        return sum(len(tokens) for tokens in self.sources)

    @property
    def batches_per_epoch(self) -> float:
        """Batches in which as many rows are drawn as there are."""
        return sum(self.rows) / self.batch_size

    def __next__(self) -> Batch:
        position = sum(self.drawn)
        batch = _batch([self._draw() for _ in range(self.batch_size)], self.row, self.device)
        if self.transform is not None:
            generator = torch.Generator(self.device).manual_seed(derived_seed(self.seed, position, 5))
            batch = self.transform(batch, generator)
        return batch

    def _draw(self) -> tuple[Tokens, int]:
        """The next row: of the source that is furthest behind its share."""
        due = self.shares * (sum(self.drawn) + 1) - self.drawn
        source = int(due.argmax())
        epoch, position = divmod(self.drawn[source], self.rows[source])
        self.drawn[source] += 1
        return self.sources[source], int(self._order(source, epoch)[position])

    def _order(self, source: int, epoch: int) -> np.ndarray:
        held = self._orders[source]
        if held is None or held[0] != epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, source, epoch))
            held = epoch, torch.randperm(self.rows[source], generator=generator).numpy()
            self._orders[source] = held
        return held[1]

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "rows": list(self.rows), "drawn": list(self.drawn)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["rows"] != self.rows:
            raise DataError(
                f"the position is one in {state['rows']} rows of text, but there are {self.rows}",
                hint="resume with the text, data.tokenizer and data.row that the run began with",
            )
        self.seed, self.drawn = state["seed"], list(state["drawn"])
        self._orders = [None] * len(self.sources)


def held_out_batches(
    sources: Sequence[Tokens],
    row: int,
    batch_size: int,
    *,
    transform: Transform | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """All tokens once, in order, in rows that don't overlap; the last batch may have fewer rows.

    A transform draws the same each time, so that two evaluations can be compared.
    """
    _check_sizes(row, batch_size)
    device = torch.device(device)
    places = [(tokens, r) for tokens in sources for r in range(-(-len(tokens) // row))]
    if not places:
        raise DataError("there is no text to evaluate on", hint="hold some out with data.validation=0.1")
    for i in range(0, len(places), batch_size):
        batch = _batch(places[i : i + batch_size], row, device)
        if transform is not None:
            batch = transform(batch, torch.Generator(device).manual_seed(derived_seed(seed, i, 6)))
        yield batch


def _batch(places: Sequence[tuple[Tokens, int]], row: int, device: torch.device) -> Batch:
    rows = np.stack([tokens.read(r * row - 1, r * row + row) for tokens, r in places])
    valid = np.array([min(row, len(tokens) - r * row) for tokens, r in places])
    rows_BT = torch.from_numpy(rows).to(device)
    weights = None
    if (valid < row).any():
        weights = torch.from_numpy(np.arange(row) < valid[:, None]).to(device, torch.float32)
    return Batch(rows_BT[:, :-1].contiguous(), rows_BT[:, 1:].contiguous(), weights)


def _check_sizes(row: int, batch_size: int) -> None:
    if row < 2:
        raise DataError(f"data.row={row} is too short to learn from", hint="try 256 tokens")
    if batch_size < 1:
        raise DataError(f"train.batch_size={batch_size} is not positive", hint="try 8 rows")


# --- masked tokens ----------------------------------------------------------------------------------------------------


class MaskTokens:
    """Masked-token training (Devlin 2019, arXiv 1810.04805): a transform that makes the targets' own tokens the inputs.

    Of all tokens but the ends of documents `share` are to be predicted: 80 % of them are replaced by the mask token,
    10 % by any token, 10 % stay. Weights are 1 there and 0 elsewhere. Every row that has a token to predict has one.

    >>> mask = MaskTokens(mask=3, end=4, vocabulary=5)
    >>> batch = Batch(torch.full((1, 4), 9), torch.tensor([[0, 1, 2, 4]]))
    >>> out = mask(batch, torch.Generator().manual_seed(0))
    >>> out.targets.tolist(), int(out.weights.sum()) >= 1, float(out.weights[0, 3])
    ([[0, 1, 2, 4]], True, 0.0)
    """

    def __init__(self, mask: int, end: int, vocabulary: int, share: float = 0.15) -> None:
        if not 0 < share < 1:
            raise DataError(f"a share of {share:g} of the tokens can't be masked", hint="try 0.15")
        self.mask, self.end, self.vocabulary, self.share = mask, end, vocabulary, share

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        tokens = batch.targets
        draw = torch.rand(tokens.shape, generator=generator, device=tokens.device)
        other = torch.randint(self.vocabulary, tokens.shape, generator=generator, device=tokens.device)
        how = torch.rand(tokens.shape, generator=generator, device=tokens.device)
        draw = draw.masked_fill(tokens == self.end, 2.0)
        if batch.weights is not None:
            draw = draw.masked_fill(batch.weights == 0, 2.0)
        least = draw.min(-1, keepdim=True).values
        chosen = ((draw < self.share) | (draw == least)) & (draw < 1)
        inputs = torch.where(chosen & (how < 0.8), self.mask, tokens)
        inputs = torch.where(chosen & (how >= 0.9), other, inputs)
        weights = chosen.float() if batch.weights is None else chosen * batch.weights
        return Batch(inputs, tokens, weights)
