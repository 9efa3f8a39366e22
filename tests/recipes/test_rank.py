"""`feedfwd finetune --task rank`: which of a query's candidates answers it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from meanings import ASKED, MEANT, SIGNS, Lines, write

import feedfwd as ff
from feedfwd.checkpoint import Run
from feedfwd.config import parse
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.config_retrieval import EmbedConfig, RankConfig
from feedfwd.recipes.embed import embed_config
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.recipes.pretrain import pretrain_config
from feedfwd.recipes.rank import Finder, dry_run, judged_alone, prepare_lists, rank_config, resume
from feedfwd.recipes.retrieved import evaluate_pairs, rank_file


def judged(n: int = 4) -> list[dict]:
    """Of each query the right answer and some wrong ones."""
    rows = []
    for s, sign in enumerate(SIGNS):
        for how in ASKED:
            for k in range(n):
                meant = MEANT[(s + k * 3) % len(MEANT)]
                rows.append({"query": how.format(sign), "document": f"take {meant}", "relevance": int(k == 0)})
    return rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rank")
    write(folder / "lists.jsonl", judged())
    return folder


def config(source: Path, base: Path, **settings: object) -> RankConfig:
    made = parse(RankConfig, {"source": str(source), "pretrained": str(base)})
    given = {"train__precision": "fp32", "train__threads": 1, "optimizer__lr": 5e-3, "train__batch_size": 8}
    for key, value in {**given, **settings}.items():
        made = made.with_(key.replace("__", "."), value)
    return made


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_learns_which_candidate_answers(place: Path, tmp_path: Path, tiny_bert: Path, method: str):
    settings = {"method": method, "train__epochs": 20.0, "encoder__dropout": 0.0}
    made = rank_config(config(place / "lists.jsonl", tiny_bert, **settings), tmp_path / "run")
    result = made.result
    assert result["test"]["mrr"] > result["compared"]["its vectors as they came"]["mrr"] + 0.15
    assert result["test"]["mrr"] > result["compared"]["BM25"]["mrr"] + 0.15
    assert result["test_details"]["n"] == result["sizes"]["test"] == 13
    loaded = ff.load(tmp_path / "run")
    candidates = [f"take {word}" for word in MEANT]
    ranked = loaded.rank("where is akuba", candidates)
    assert sorted(place for place, _ in ranked) == list(range(8))
    assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)
    assert (
        ranked == made.rank("where is akuba", candidates) and loaded.rank("where is akuba", candidates, 2) == ranked[:2]
    )
    assert "BM25" in (tmp_path / "run" / "report.html").read_text()
    rows, _ = rank_file(tmp_path / "run", write(tmp_path / "new.jsonl", judged()[:8]))
    assert [row["place"] for row in rows] == [1, 2, 3, 4] * 2
    assert evaluate_pairs(tmp_path / "run", None, Lines(), "rank") == pytest.approx(result["test"], abs=1e-6)


def test_pairs_alone_get_candidates_that_words_find(place: Path, tmp_path: Path, tiny_bert: Path):
    rows = [row for row in judged() if row["relevance"]]
    p = prepare_lists(config(Path(write(tmp_path / "pairs.jsonl", rows)), tiny_bert, data__mined=3))
    assert p.mined is not None and any("BM25 finds" in note for note in p.notes)
    answers = set(zip(p.data.known.query_J.tolist(), p.data.known.candidate_J.tolist(), strict=True))
    found = list(zip(*(part.tolist() for part in p.mined), strict=True))
    assert len(found) == 3 * len(p.data.queries["train"]) and not set(found) & answers
    queries, _ = p.tested["test"]
    assert len(queries) == 13 * 8  # all other candidates, for there are no more
    assert Finder(p.data.known).beside(p.data.train, p.data.queries["train"], 0)[0].tolist() == []


def test_pairs_judged_one_by_one_are_learnt_one_by_one(tmp_path: Path, tiny_bert: Path):
    rows = [
        {"sentence1": f"{a} and {b}", "sentence2": f"{a} or {c}", "score": 5.0 * (b == c) - 0.5 * (i % 2)}
        for i, (a, b, c) in enumerate((SIGNS[i % 8], MEANT[i % 7 % 8], MEANT[i % 5]) for i in range(120))
    ]
    source = Path(write(tmp_path / "sts.jsonl", rows))
    said = Lines()
    made = rank_config(config(source, tiny_bert, train__epochs=6.0), tmp_path / "run", said)
    assert made.config.loss.name == "pointwise" and set(made.result["test"]) == {"spearman"}
    assert Run(tmp_path / "run").settings()["loss"]["name"] == "pointwise"
    found = made.scores([row["sentence1"] for row in rows], [row["sentence2"] for row in rows])
    assert ((found > 0) & (found < 1)).all()
    yes = [row | {"score": int(row["score"] > 2)} for row in rows]
    binary = config(Path(write(tmp_path / "yes.jsonl", yes)), tiny_bert, train__steps=2)
    assert set(rank_config(binary, tmp_path / "yes").result["test"]) == {"auroc", "spearman"}


def test_what_the_data_judge_decides_the_loss(place: Path, tiny_bert: Path):
    known = prepare_lists(config(place / "lists.jsonl", tiny_bert))
    assert known.config.loss.name == "listwise" and not judged_alone(known.data.known)


def test_resuming_gives_the_same_bits(place: Path, tmp_path: Path, tiny_bert: Path, monkeypatch):
    from feedfwd.recipes import training as module

    made = config(place / "lists.jsonl", tiny_bert, train__steps=5)
    whole = rank_config(made, tmp_path / "whole")
    original = module.Training._log_step

    def killed(self, step, meter):
        original(self, step, meter)
        if step.n == 3:
            self.save()
            raise Interrupted("killed", 2)

    monkeypatch.setattr(module.Training, "_log_step", killed)
    with pytest.raises(Interrupted):
        rank_config(made, tmp_path / "cut")
    monkeypatch.setattr(module.Training, "_log_step", original)
    cut = resume(tmp_path / "cut")
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.result["compared"] == cut.result["compared"]


def test_a_dry_run_shows_a_list_and_a_row(place: Path, tiny_bert: Path):
    said = Lines()
    dry_run(config(place / "lists.jsonl", tiny_bert), said)
    text = "\n".join(said.lines)
    for words in ("judged pairs", "softmax over a query's candidates", "relevance 1: 'take ", "[SEP] ", "of memory"):
        assert words in text, words


def test_scores_are_of_pairs_and_not_of_their_company(place: Path, tmp_path: Path, tiny_bert: Path):
    made = rank_config(config(place / "lists.jsonl", tiny_bert, train__steps=1), tmp_path / "run")
    queries, texts = ["where is akuba", "x", "akuba " * 9], ["take w0", "take x1 " * 8, "y"]
    whole = made.scores(queries, texts)
    alone = [made.scores([q], [t])[0] for q, t in zip(queries, texts, strict=True)]
    np.testing.assert_allclose(whole, alone, rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "run" / "preprocess.json").read_text())["task"] == "rank"


def test_a_run_that_embeds_goes_on_to_rank(place: Path, tmp_path: Path, tiny_bert: Path):
    pairs = parse(EmbedConfig, {"source": str(place / "lists.jsonl"), "pretrained": str(tiny_bert)})
    encoder = embed_config(pairs.with_("train.steps", 2), tmp_path / "embed")
    p = prepare_lists(config(place / "lists.jsonl", tmp_path / "embed"))
    body = {name.removeprefix("backbone."): tensor for name, tensor in encoder.model.state_dict().items()}
    for name, tensor in p.model.backbone.state_dict().items():
        assert torch.equal(tensor, body[name])
    assert p.pretrained.pooling == "mean" and p.pretrained.family == "bert"
    assert "[CLS] " in p.pairs.decode(next(iter(p.rows(*(part[:1] for part in p.tested["test"])))).tolist())
    bag = embed_config(
        parse(EmbedConfig, {"source": str(place / "lists.jsonl"), "train": {"steps": 1}}), tmp_path / "b"
    )
    with pytest.raises(ff.errors.ConfigError, match="bag of n-grams, which nothing can start from"):
        prepare_lists(config(place / "lists.jsonl", bag.run))


def test_a_language_model_of_ours_embeds_and_ranks(place: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(200)))
    sizes = {"width": 32, "depth": 1, "heads": 2}
    made = {"sources": [str(tmp_path / "text.txt")], "model": sizes, "train": {"steps": 1, "batch_size": 4}}
    base = parse(PretrainConfig, made | {"data": {"row": 64, "tokenizer": "bytes", "separate": True}})
    pretrain_config(base, tmp_path / "base")
    ranker = rank_config(config(place / "lists.jsonl", tmp_path / "base", train__steps=1), tmp_path / "rank")
    row = ranker.pairs.row([65], [66])
    assert [one % 257 for one in row] == [256, 65, 256, 66] and ranker.model.backbone.end is None
    first, other = ranker.scores(["a", "a"], ["take w0", "take x1"])
    assert first != other
    pairs = parse(EmbedConfig, {"source": str(place / "lists.jsonl"), "pretrained": str(tmp_path / "base")})
    encoder = embed_config(pairs.with_("train.steps", 1), tmp_path / "embed")
    assert encoder.model.pooling == "mean" and encoder.encode(["a", ""]).shape == (2, 32)
