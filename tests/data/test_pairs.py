"""Which text answers which, read from files, split and put into batches."""

import json
from pathlib import Path

import pytest
import torch

from feedfwd.data.model_tokenizer import ModelTokenizer
from feedfwd.data.pair_batches import ListBatches, PairBatches
from feedfwd.data.pair_rows import PairRows
from feedfwd.data.pairs import Judged, judged, read_pairs, split_queries
from feedfwd.data.ragged import Ragged
from feedfwd.errors import DataError


def written(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"query": "q", "positive": "a"}, [("q", "a", 1.0)]),
        ({"Question": "q", "Answer": "a", "Class": "x"}, [("q", "a", 1.0)]),
        ({"anchor": "q", "positive": "a", "negative": "b"}, [("q", "a", 1.0), ("q", "b", 0.0)]),
        ({"query": "q", "pos": ["a", "b"], "neg": ["c"]}, [("q", "a", 1.0), ("q", "b", 1.0), ("q", "c", 0.0)]),
        ({"query": "q", "document": "a", "relevance": 2}, [("q", "a", 2.0)]),
        ({"sentence1": "q", "sentence2": "a", "score": 0.5}, [("q", "a", 0.5)]),
        ({"query": "q", "candidates": ["a", "b"], "labels": [0, 1]}, [("q", "a", 0.0), ("q", "b", 1.0)]),
        ({"anchor": "q", "positive": "a", "negative_1": "b", "negative_2": "c"},
         [("q", "a", 1.0), ("q", "b", 0.0), ("q", "c", 0.0)]),
        ({"left": "q", "right": "a"}, [("q", "a", 1.0)]),
        ({"text": "q", "answer": "a"}, [("q", "a", 1.0)]),
    ],
)  # fmt: skip
def test_columns_are_seen_by_name_and_said(tmp_path: Path, row: dict, found: list):
    table = read_pairs(written(tmp_path / "t.jsonl", [row, row | {}]))
    assert [(j.query, j.candidate, j.relevance) for j in table.judgements if j.row == 0] == found
    assert "queries from column" in table.notes[0]


def test_texts_with_labels_are_texts_that_answer_each_other(tmp_path: Path):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(6)]
    known = judged([read_pairs(written(tmp_path / "t.jsonl", rows))])
    assert known.classes == ("a", "b") and known.class_T is not None and known.class_T.tolist() == [0, 1] * 3
    relevance = known.relevance(torch.tensor([0]), known.candidates)
    assert relevance.tolist() == [[0, 0, 1, 0, 1, 0]]  # itself is no answer


def test_words_that_name_columns_win_over_their_names(tmp_path: Path):
    row = {"query": "no", "positive": "nor this", "a": "q", "b": "a", "n": "w", "how": "3"}
    path = written(tmp_path / "t.jsonl", [row, row])
    table = read_pairs(path, text="a", candidate="b", negative=["n"], target="how")
    assert [(j.query, j.candidate, j.relevance) for j in table.judgements[:2]] == [("q", "a", 3.0), ("q", "w", 0.0)]


def test_what_repeats_is_one_and_a_text_is_no_answer_to_itself(tmp_path: Path):
    rows = [{"query": "Q  one", "answer": "A"}, {"query": "q one", "answer": "a"}, {"query": "same", "answer": "SAME"}]
    known = judged([read_pairs(written(tmp_path / "t.jsonl", rows))])
    assert known.texts == ("Q  one", "A", "same") and len(known.query_J) == 1
    assert any("1 pair repeats" in note for note in known.notes)
    assert any("1 pair of a text with itself" in note for note in known.notes)


def test_the_lowest_relevance_is_no_answer(tmp_path: Path):
    rows = [{"query": f"q{i}", "answer": f"a{i}", "score": i + 1} for i in range(5)]
    known = judged([read_pairs(written(tmp_path / "t.jsonl", rows))])
    assert known.relevance_J.tolist() == [0, 1, 2, 3, 4]
    assert len(known.answers[0]) == 3 and len(known.wrong[0]) == 1  # 2, 3 and 4 answer; 1 is neither
    assert "from 1 to 5" in " ".join(known.notes)


def pairs(n: int = 20) -> Judged:
    """Query i has the answers n + i and n + (i + 1) % n, and 2n + i is wrong."""
    q = torch.arange(n)
    query, candidate = torch.cat([q, q, q]), torch.cat([n + q, n + (q + 1) % n, 2 * n + q])
    relevance = torch.cat([torch.ones(2 * n), torch.zeros(n)])
    return Judged(tuple(f"t{i}" for i in range(3 * n)), query, candidate, relevance)


def test_a_split_takes_whole_queries_and_labels_in_proportion():
    known = pairs()
    rest, part = split_queries(known, known.queries, 0.25, 0, 1)
    assert len(part) == 5 and sorted([*rest.tolist(), *part.tolist()]) == list(range(20))
    assert set(known.of(part).query_J.tolist()) == set(part.tolist())
    labelled = Judged(tuple(f"t{i}" for i in range(40)), *[torch.zeros(0, dtype=torch.int64)] * 3,
                      torch.arange(40) % 4, tuple("abcd"))  # fmt: skip
    _, part = split_queries(labelled, labelled.queries, 0.25, 0, 1)
    assert torch.bincount(labelled.class_T[part]).tolist() == pytest.approx([2.5] * 4, abs=1)
    with pytest.raises(DataError, match="leaves one part empty"):
        split_queries(known, torch.tensor([3]), 0.2, 0, 1)


def one_token_each(n: int) -> Ragged:
    return Ragged(torch.arange(n, dtype=torch.int32), torch.ones(n, dtype=torch.int64))


def test_a_batch_masks_what_answers_too():
    known = pairs()
    batches = PairBatches(one_token_each(60), known, 8, seed=1)
    seen = []
    for _ in range(batches.batches_per_epoch):
        queries, candidates, targets = batches.drawn()
        assert len(set(candidates.tolist())) == len(candidates)
        for i, q in enumerate(queries.tolist()):
            answers = {20 + q, 20 + (q + 1) % 20}
            for c, target in zip(candidates.tolist(), targets[i].tolist(), strict=True):
                assert (target == 0) == (c not in answers)
            assert (targets[i] == 1).sum() == 1 and 40 + q in candidates  # its own wrong one is in the batch
            seen.append((q, int(candidates[targets[i].argmax()])))
    assert sorted(seen) == sorted(zip(known.answers[0].tolist(), known.answers[1].tolist(), strict=True))


def test_a_batch_of_labelled_texts_has_another_of_its_class_for_each():
    classes = torch.tensor([0, 1, 2] * 8 + [3, -1])  # the last but one is alone, the last in another part
    known = Judged(tuple(f"t{i}" for i in range(26)), *[torch.zeros(0, dtype=torch.int64)] * 3, classes, tuple("abcd"))
    batches = PairBatches(one_token_each(26), known, 6, seed=2)
    seen: list[int] = []
    for _ in range(batches.batches_per_epoch):
        queries, candidates, targets = batches.drawn()
        same = classes[queries][:, None] == classes[candidates]
        assert torch.equal(targets == 0, ~same)
        answer = candidates[targets.argmax(1)]
        assert torch.equal(classes[answer], classes[queries]) and not (answer == queries).any()
        seen += queries.tolist()
    assert sorted(seen) == list(range(24))


def test_batches_go_on_where_they_were():
    known = pairs()
    rows = lambda q, c: one_token_each(60).select(c)  # noqa: E731
    for make in (
        lambda: PairBatches(one_token_each(60), known, 7, seed=3),
        lambda: ListBatches(rows, known, 3, seed=3, candidates=2),
    ):
        stream, again = make(), make()
        for _ in range(11):
            next(stream)
        again.load_state_dict(stream.state_dict())
        for _ in range(9):
            one, other = next(stream), next(again)
            assert torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)
        with pytest.raises(DataError, match="position 99"):
            again.load_state_dict({"seed": 0, "epoch": 0, "position": 99})


def test_lists_keep_an_answer_and_something_else():
    known = pairs()
    rows = lambda q, c: Ragged(torch.stack([q, c], 1).flatten(), torch.full((len(q),), 2))  # noqa: E731
    batches = ListBatches(rows, known, 4, seed=0, candidates=2)
    batch = next(batches)
    assert batch.targets.shape == (4, 2) and batch.inputs.shape == (8, 2)
    assert (batch.targets.max(1).values == 1).all() and (batch.targets.min(1).values == 0).all()
    alike = Judged(known.texts, known.query_J[:40], known.candidate_J[:40], known.relevance_J[:40])
    with pytest.raises(DataError, match="different relevance"):
        ListBatches(rows, alike, 4)
    more = ListBatches(rows, alike, 4, more=(known.query_J[40:], known.candidate_J[40:]))
    assert next(more).targets.tolist() == [[1.0, 1.0, 0.0]] * 4
    single = next(ListBatches(rows, known, 5, pairs=True))
    assert single.targets.shape == (5, 1) and single.inputs.shape == (5, 2)


def test_a_row_of_two_texts_is_the_tokenizers_own(tiny_bert: Path):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(tiny_bert)
    tokenizer = ModelTokenizer.load(tiny_bert)
    made = PairRows(tokenizer, 64, tokenizer.vocabulary)
    a, b = made.tokens(["where is it", "a lost card"])
    row = made.row(a, b)
    wanted = theirs("where is it", "a lost card", return_token_type_ids=True)
    assert [one % tokenizer.vocabulary for one in row] == wanted["input_ids"]
    assert [one // tokenizer.vocabulary for one in row] == wanted["token_type_ids"]
    short = PairRows(tokenizer, 9, tokenizer.vocabulary)
    assert len(short.row(a, b)) == 9 and len(short.row(a[:1], b)) == 9
    assert short.row(a[:1], b)[:3] == [2, a[0], 3]
