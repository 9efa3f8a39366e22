"""`feedfwd finetune --task embed`: vectors that find answers which words alone don't."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from meanings import MEANT, Lines, pairs, write

import feedfwd as ff
from feedfwd.checkpoint import Run
from feedfwd.config import parse
from feedfwd.config_retrieval import EmbedConfig
from feedfwd.recipes.console import Silent
from feedfwd.recipes.embed import dry_run, embed_config, mine, prepare_vectors, resume
from feedfwd.recipes.export import export_run
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.recipes.retrieval import parts
from feedfwd.recipes.retrieved import embed_file, evaluate_pairs
from feedfwd.recipes.searcher import passed


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    write(folder / "pairs.jsonl", pairs())
    labelled = [{"text": row["query"], "label": row["answer"]} for row in pairs()]
    write(folder / "labels.jsonl", labelled)
    return folder


def config(source: Path, **settings: object) -> EmbedConfig:
    made = parse(EmbedConfig, {"source": str(source), "bag": {"buckets": 4096, "width": 64}})
    for key, value in {"train__precision": "fp32", "train__threads": 1, **settings}.items():
        made = made.with_(key.replace("__", "."), value)
    return made


@pytest.mark.parametrize("source", ["pairs", "labels"])
def test_a_bag_learns_from_scratch_what_words_cannot_find(place: Path, tmp_path: Path, source: str):
    said = Lines()
    settings = {"train__epochs": 12.0, "train__batch_size": 16, "data__validation": 0.1}
    made = embed_config(config(place / f"{source}.jsonl", **settings), tmp_path / "run", said)
    result = made.result
    first = "recall@1" if source == "pairs" else "hit@1"
    assert result["test"][first] >= 0.9
    if source == "pairs":
        assert result["compared"]["BM25"][first] < 0.5 and result["compared"]["untrained"][first] < 0.5
    assert result["validation"] is not None and result["sizes"]["test"] == 13
    shutil.move(tmp_path / "run", tmp_path / "moved")
    loaded = ff.load(tmp_path / "moved")
    texts = ["where is akuba", "", "take w0"]
    vectors = loaded.encode(texts)
    assert vectors.shape == (3, 64) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    np.testing.assert_array_equal(vectors, made.encode(texts))
    page = (tmp_path / "moved" / "report.html").read_text()
    assert "BM25" in page and "untrained" in page and ("Recall@1" in page or "hit@1" in page)
    assert any("BM25" in line for line in said.lines)
    if source == "pairs":
        places, cosines = loaded.search(["i want cidem"], [f"take {word}" for word in MEANT], k=3)
        assert places[0, 0] == 2 and cosines.shape == (1, 3) and (np.diff(cosines[0]) <= 0).all()
        again, _ = loaded.search(["i want cidem"], loaded.encode([f"take {word}" for word in MEANT]), k=3)
        np.testing.assert_array_equal(places, again)


def test_vectors_are_transformers_states_meaned(place: Path, tmp_path: Path, tiny_bert: Path):
    from transformers import AutoModel, AutoTokenizer

    made = embed_config(config(place / "pairs.jsonl", pretrained=str(tiny_bert), train__steps=2), tmp_path / "run")
    export_run(tmp_path / "run", "hf", tmp_path / "hf", Silent())
    texts = ["where is akuba", "a", "take w0 and then some more words"]
    p = prepare_vectors(config(place / "pairs.jsonl", pretrained=str(tiny_bert)))
    for folder, ours in ((tiny_bert, p.keeper(tmp_path)), (tmp_path / "hf", made)):
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            h = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        there = inputs["attention_mask"][..., None].float()
        wanted = F.normalize((h * there).sum(1) / there.sum(1), dim=1)
        torch.testing.assert_close(torch.from_numpy(ours.encode(texts)), wanted, rtol=1e-4, atol=1e-5)
    assert made.encode(texts) != pytest.approx(p.keeper(tmp_path).encode(texts), abs=1e-4)
    again = prepare_vectors(config(place / "pairs.jsonl", pretrained=str(tmp_path / "hf")))
    np.testing.assert_allclose(again.keeper(tmp_path).encode(texts), made.encode(texts), atol=1e-5)


@pytest.mark.parametrize("method", ["full", "lora", "dora"])
def test_a_pretrained_encoder_learns_by_every_method(place: Path, tmp_path: Path, tiny_bert: Path, method: str):
    settings = {
        "pretrained": str(tiny_bert),
        "method": method,
        "train__batch_size": 16,
        "optimizer__lr": 5e-3,
        "encoder__dropout": 0.0,
    }
    made = embed_config(config(place / "pairs.jsonl", train__epochs=12.0, **settings), tmp_path / "run")
    result = made.result
    assert result["test"]["mrr"] > result["compared"]["as it came"]["mrr"] + 0.2
    assert (method == "full") == (result["trained_parameters"] == result["parameters"])
    assert result["trained_parameters"] > 0
    assert not any("lora" in name for name in made.model.state_dict())
    np.testing.assert_allclose(ff.load(tmp_path / "run").encode(["x y"]), made.encode(["x y"]), atol=1e-6)


@pytest.mark.parametrize("pretrained", [False, True])
def test_resuming_gives_the_same_bits(place: Path, tmp_path: Path, tiny_bert: Path, monkeypatch, pretrained: bool):
    from feedfwd.recipes import training as module

    start = {"pretrained": str(tiny_bert)} if pretrained else {}
    made = config(place / "pairs.jsonl", train__steps=6, train__batch_size=8, data__validation=0.2, **start)
    whole = embed_config(made, tmp_path / "whole")
    original = module.Training._log_step

    def killed(self, step, meter):
        original(self, step, meter)
        if step.n == 4:
            self.save()
            raise Interrupted("killed", 2)

    monkeypatch.setattr(module.Training, "_log_step", killed)
    with pytest.raises(Interrupted):
        embed_config(made, tmp_path / "cut")
    monkeypatch.setattr(module.Training, "_log_step", original)
    cut = resume(tmp_path / "cut")
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.result["compared"] == cut.result["compared"] and whole.result["test"] == cut.result["test"]
    with pytest.raises(ff.errors.RunError, match="finished"):
        resume(tmp_path / "cut")


@pytest.mark.parametrize("at", ["planning", "the last update"])
def test_a_stop_before_or_after_the_updates_goes_on(place: Path, tmp_path: Path, monkeypatch, at: str):
    from feedfwd.recipes import retrieval as module

    if at == "planning":
        made = config(place / "pairs.jsonl", train__batch_size=8).with_("minutes", 0.01)
        monkeypatch.setattr(module, "tried", lambda p: os.kill(os.getpid(), signal.SIGINT))
    else:
        made = config(place / "pairs.jsonl", train__batch_size=8, train__steps=6)
        monkeypatch.setattr(module.Retrieving, "between", lambda self: self.step == 6 and signal.raise_signal(2))
    with pytest.raises(Interrupted, match=r"go on with: feedfwd finetune --resume .*run"):
        embed_config(made, tmp_path / "run")
    monkeypatch.undo()
    assert resume(tmp_path / "run").result["steps"] >= 1


def test_no_query_of_the_test_is_trained_on(place: Path, tmp_path: Path):
    rows = pairs()
    rows += [{"query": row["query"].upper(), "answer": "again " + row["answer"]} for row in rows[:20]]
    both = parts(config(Path(write(tmp_path / "twice.jsonl", rows)), data__validation=0.2))
    queries = {name: set(ids.tolist()) for name, ids in both.queries.items()}
    assert sum(map(len, queries.values())) == len(set().union(*queries.values())) == 64
    assert not queries["test"] & set(both.train.query_J.tolist())
    test = write(tmp_path / "test.jsonl", rows[:5])
    named = parts(config(place / "pairs.jsonl", test=test))
    assert "5 queries of the test file stand in the training file too" in " ".join(named.notes)
    assert not set(named.queries["test"].tolist()) & set(named.train.query_J.tolist())


def test_mined_negatives_are_near_and_no_answers(place: Path):
    p = prepare_vectors(config(place / "pairs.jsonl", data__mined=3))
    assert p.mined is not None and any("hard negatives" in note for note in p.notes)
    known, vectors = p.data.train, passed(p.model, p.rows)
    answers = set(zip(*(part.tolist() for part in known.answers), strict=True))
    found = list(zip(*(part.tolist() for part in p.mined), strict=True))
    assert found and not set(found) & answers and {q for q, _ in found} <= set(known.queries.tolist())
    again = mine(p.data, vectors, 3)
    assert [part.tolist() for part in again] == [part.tolist() for part in p.mined]
    _, candidates, _ = p.batches().drawn()
    assert set(candidates.tolist()) & {c for _, c in found}


def test_a_dry_run_shows_what_would_be_done_and_writes_nothing(
    place: Path, tiny_bert: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    said = Lines()
    dry_run(config(place / "pairs.jsonl", pretrained=str(tiny_bert)), said)
    text = "\n".join(said.lines)
    for words in ("queries from column 'query'", "51 train, 13 test", "an example: ", "[CLS] ", "told apart from",
                  "of memory", "of training", "temperature = 0.05"):  # fmt: skip
        assert words in text, words
    assert not list(tmp_path.iterdir())


def test_minutes_plan_the_updates(place: Path, tmp_path: Path):
    made = embed_config(config(place / "pairs.jsonl", minutes=0.01), tmp_path / "run")
    assert made.result["seconds"]["train"] < 5 and made.result["steps"] >= 1


def test_a_run_is_evaluated_and_applied(place: Path, tmp_path: Path):
    made = embed_config(config(place / "pairs.jsonl", train__steps=3), tmp_path / "run")
    said = Lines()
    assert evaluate_pairs(tmp_path / "run", None, said, "embed") == pytest.approx(made.result["test"])
    other = write(tmp_path / "other.jsonl", pairs()[:10])
    assert set(evaluate_pairs(tmp_path / "run", other, said, "embed")) == set(made.result["test"])
    assert any("BM25" in line for line in said.lines)
    (tmp_path / "texts.txt").write_text("where is akuba\ntake w0\n")
    embed_file(tmp_path / "run", str(tmp_path / "texts.txt"), tmp_path / "v.npy", said)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), made.encode(["where is akuba", "take w0"]))


def test_a_run_reads_other_files_by_its_own_columns(place: Path, tmp_path: Path):
    rows = [{"ask": row["query"], "positive": row["answer"]} for row in pairs()]
    made = embed_config(config(write(tmp_path / "p.jsonl", rows), text="ask", train__steps=1), tmp_path / "run")
    assert Run(tmp_path / "run").settings()["data"]["candidate"] == "positive" and made.result["steps"] == 1
    more = [{"query": "nothing", "answer": "of it", **row} for row in rows]
    said = Lines()
    evaluate_pairs(tmp_path / "run", write(tmp_path / "more.jsonl", more), said, "embed")
    assert "note: queries from column 'ask', candidates from 'positive'" in said.lines
    evaluate_pairs(tmp_path / "run", str(place / "pairs.jsonl"), said, "embed")
    assert "note: queries from column 'query', candidates from 'answer'" in said.lines
