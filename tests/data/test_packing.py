"""Rows of tokens: each token is a target once an epoch, and the place in the stream is exact."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from feedfwd.data.batches import Batch
from feedfwd.data.corpus import Corpus
from feedfwd.data.packing import MaskTokens, PackedBatches, held_out_batches
from feedfwd.data.tokenizer import byte_tokenizer
from feedfwd.data.tokens import Counts, Tokens, tokenize
from feedfwd.errors import DataError
from feedfwd.models.transformer import Transformer

END = 9


class Held(Tokens):
    """Tokens in memory, for the tests."""

    def __init__(self, ids: list[int], end: int = END) -> None:
        super().__init__([], Counts(tokens=len(ids)), end, vocabulary=10)
        self.ids = np.array(ids, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        padded = np.concatenate([[self.end], self.ids, np.full(stop, self.end)])
        return padded[start + 1 : stop + 1]


def numbered(n: int, first: int = 100) -> Held:
    """Tokens that are all different, so that each can be followed."""
    return Held(list(range(first, first + n)))


def valid(batch: Batch) -> list[int]:
    return (batch.targets if batch.weights is None else batch.targets[batch.weights > 0]).flatten().tolist()


def test_every_token_is_a_target_once_an_epoch_in_another_order() -> None:
    stream = PackedBatches([numbered(103)], row=10, batch_size=1)
    epochs = [[t for _ in range(11) for t in valid(next(stream))] for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(100, 203))
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [
        t for s in [PackedBatches([numbered(103)], 10, 1, seed=1)] for _ in range(11) for t in valid(next(s))
    ]


def test_inputs_are_the_targets_one_place_earlier_and_the_corpus_begins_after_an_end() -> None:
    for batch in held_out_batches([numbered(40)], row=10, batch_size=2):
        assert batch.inputs.shape == batch.targets.shape == (2, 10) and batch.weights is None
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1]) and batch.inputs.is_contiguous()
        assert batch.inputs[:, 0].tolist() == [END if t == 100 else t - 1 for t in batch.targets[:, 0].tolist()]
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64


def test_all_batches_have_one_shape_and_flow_over_the_epochs_end() -> None:
    stream = PackedBatches([numbered(103)], row=10, batch_size=4)
    batches = [next(stream) for _ in range(11)]
    assert {tuple(b.targets.shape) for b in batches} == {(4, 10)} and stream.drawn == [44]
    counts = np.bincount([t for b in batches for t in valid(b)], minlength=203)
    assert set(counts[100:]) == {4} and stream.batches_per_epoch == 2.75 and stream.tokens_per_epoch == 103


def test_what_fills_up_the_last_row_weighs_nothing() -> None:
    batches = list(held_out_batches([numbered(23)], row=10, batch_size=2))
    assert [len(b.targets) for b in batches] == [2, 1] and batches[0].weights is None
    assert batches[1].weights is not None and batches[1].weights.tolist() == [[1] * 3 + [0] * 7]
    assert batches[1].targets.tolist() == [[120, 121, 122] + [END] * 7]


def test_held_out_text_is_all_there_in_order() -> None:
    batches = list(held_out_batches([numbered(23), Held([]), numbered(8, first=500)], row=10, batch_size=3))
    assert [t for b in batches for t in valid(b)] == [*range(100, 123), *range(500, 508)]


def reorder(batch: Batch, generator: torch.Generator) -> Batch:
    return Batch(batch.inputs + torch.randint(1000, (1,), generator=generator), batch.targets, batch.weights)


@pytest.mark.parametrize("done", [0, 1, 5, 11, 30])
@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
def test_the_state_restores_the_stream_exactly(done: int, weights: list[float] | None) -> None:
    def make(seed: int) -> PackedBatches:
        sources = [numbered(103), numbered(57, first=500)]
        return PackedBatches(sources, row=10, batch_size=3, seed=seed, weights=weights, transform=reorder)

    through = make(seed=7)
    for _ in range(done):
        next(through)
    state = json.loads(json.dumps(through.state_dict()))
    resumed = make(seed=123)
    next(resumed)
    resumed.load_state_dict(state)
    for _ in range(12):
        expected, restored = next(through), next(resumed)
        assert torch.equal(expected.inputs, restored.inputs) and torch.equal(expected.targets, restored.targets)
        assert (expected.weights is None) == (restored.weights is None)


def test_the_state_is_a_copy() -> None:
    stream = PackedBatches([numbered(103)], row=10, batch_size=4)
    state = stream.state_dict()
    next(stream)
    assert state["drawn"] == [0]


def test_without_weights_sources_end_their_epochs_together() -> None:
    stream = PackedBatches([numbered(100), numbered(37, first=500), numbered(10, first=900)], row=10, batch_size=1)
    for epoch in (1, 2, 3):
        drawn = [t for _ in range(15) for t in valid(next(stream))]
        assert sorted(drawn) == [*range(100, 200), *range(500, 537), *range(900, 910)]
        assert stream.drawn == [10 * epoch, 4 * epoch, epoch]


def test_weights_are_shares_of_the_rows_all_along() -> None:
    weights = np.array([5.0, 3.0, 2.0])
    sources = [numbered(40), numbered(900, first=1000), Held([]), numbered(300, first=5000)]
    stream = PackedBatches(
        sources, row=10, batch_size=1, weights=[5.0, 3.0, 7.0, 2.0]
    )  # a source without text has none
    for n in range(1, 400):
        next(stream)
        assert np.abs(np.array(stream.drawn) - n * weights / 10).max() <= 1.5


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    next(PackedBatches([numbered(103)], 10, 4, transform=MaskTokens(1, END, 10)))
    assert torch.equal(torch.rand(1), expected)


def test_from_files_to_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "document {i}"}}\n' for i in range(100)))
    corpus, tokenizer = Corpus([str(tmp_path / "a.jsonl")]), byte_tokenizer()
    held = tokenize(corpus, tokenizer, "validation")
    ids = [t for b in held_out_batches(held, row=64, batch_size=4) for t in valid(b)]
    assert len(ids) == len(held[0]) and ids.count(tokenizer.end) == held[0].counts.documents
    texts = tokenizer.engine.decode(ids, skip_special_tokens=False).split("<|endoftext|>")
    assert all(text.startswith("document ") for text in texts[:-1]) and texts[-1] == ""


# --- boundaries -------------------------------------------------------------------------------------------------------


def test_no_word_is_predicted_with_another_document_in_view() -> None:
    """Of packed rows, with the model's own rule of what a document is: the first word of the second one too."""
    model = Transformer(10, width=16, depth=1, heads=2, hidden=16, context=8, end=END).eval()

    def second(first: list[int]) -> torch.Tensor:
        (batch,) = held_out_batches([Held([*first, END, 4, 5, 6, END])], row=8, batch_size=1)
        begin = batch.targets[0].tolist().index(4)
        return model(batch.inputs)[0, begin : begin + 4]

    torch.testing.assert_close(second([1, 2, 3]), second([8, 7, 6]), atol=0, rtol=0)


# --- masked tokens ----------------------------------------------------------------------------------------------------


def masked(n: int = 40_000, seed: int = 0) -> tuple[Batch, Batch]:
    tokens = torch.randint(2, 1000, (n // 100, 100), generator=torch.Generator().manual_seed(5))
    tokens[:, 50] = END
    batch = Batch(torch.zeros_like(tokens), tokens)
    return batch, MaskTokens(mask=1, end=END, vocabulary=1000)(batch, torch.Generator().manual_seed(seed))


def test_masking_is_in_the_proportions_of_the_paper() -> None:
    batch, out = masked()
    assert out.weights is not None and torch.equal(out.targets, batch.targets)
    chosen = out.weights == 1
    assert 0.14 < chosen.float().mean() < 0.16 and not chosen[batch.targets == END].any()
    assert torch.equal(out.inputs[~chosen], batch.targets[~chosen])
    inputs, targets = out.inputs[chosen], out.targets[chosen]
    assert 0.78 < (inputs == 1).float().mean() < 0.82
    assert 0.08 < (inputs == targets).float().mean() < 0.12
    assert 0.08 < ((inputs != 1) & (inputs != targets)).float().mean() < 0.12


def test_masking_follows_its_generator() -> None:
    assert torch.equal(masked()[1].inputs, masked()[1].inputs)
    assert not torch.equal(masked()[1].inputs, masked(seed=1)[1].inputs)


def test_a_row_always_has_a_token_to_predict_unless_it_has_none_at_all() -> None:
    tokens = torch.tensor([[END, 4, END], [END, END, END], [5, 6, 7]])
    weights = torch.tensor([[1.0, 1, 1], [1, 1, 1], [1, 0, 0]])
    for seed in range(30):
        out = MaskTokens(1, END, 10, share=0.01)(Batch(tokens, tokens, weights), torch.Generator().manual_seed(seed))
        assert out.weights is not None and out.weights.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


# --- what can't be packed ---------------------------------------------------------------------------------------------


BAD = {
    "short text": (lambda: PackedBatches([numbered(9)], 10, 1), "9 tokens, fewer than one row of data.row=10: set"),
    "no text": (lambda: PackedBatches([], 10, 1), "0 tokens, fewer than one row"),
    "row": (lambda: PackedBatches([numbered(9)], 1, 1), "data.row=1 is too short"),
    "batch size": (lambda: PackedBatches([numbered(9)], 4, 0), "train.batch_size=0 is not positive"),
    "nothing held out": (lambda: next(held_out_batches([Held([])], 4, 1)), "no text to evaluate on"),
    "other rows": (
        lambda: PackedBatches([numbered(99)], 4, 1).load_state_dict({"seed": 0, "rows": [3], "drawn": [1]}),
        r"one in \[3\] rows of text, but there are \[25\]: resume with",
    ),
    "mask share": (lambda: MaskTokens(1, END, 10, share=1.0), "a share of 1 of the tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_packed_is_one_line(case: str) -> None:
    act, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value) and caught.value.hint
