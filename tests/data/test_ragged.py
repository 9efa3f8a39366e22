"""Rows of different lengths: what is taken of them is them, at a cost of what is taken."""

import torch

from feedfwd.data.ragged import Ragged


def test_rows_are_selected_in_any_order_and_more_than_once() -> None:
    rows = Ragged(torch.tensor([5, 6, 7, 8]), torch.tensor([1, 0, 3]))
    found = rows.select(torch.tensor([2, 0, 1, 2]))
    assert [row.tolist() for row in found] == [[6, 7, 8], [5], [], [6, 7, 8]]
    assert len(rows.select(torch.tensor([], dtype=torch.int64))) == 0


def test_one_long_row_does_not_make_the_others_long() -> None:
    lengths = torch.ones(20_000, dtype=torch.int64)
    lengths[7] = 2_000_000  # side by side they would take 160 GB
    rows = Ragged(torch.arange(int(lengths.sum()), dtype=torch.int32), lengths)
    found = rows.select(torch.arange(20_000).flip(0))
    assert int(found.lengths[-8]) == 2_000_000 and int(found.values[-1]) == 0
