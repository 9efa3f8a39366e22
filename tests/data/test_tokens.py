"""Tokens on disk: what the plain loop gives, whole or not at all, kept through a kill, made anew on any change."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from feedfwd.data import tokens as module
from feedfwd.data.corpus import Corpus
from feedfwd.data.tokenizer import TextTokenizer, byte_tokenizer, learn_bpe, learn_chars
from feedfwd.data.tokens import Tokens, tokenize
from feedfwd.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, n: int = 300) -> Path:
    texts = [f"Document {i}: it's {'long ' * (i % 50)}here.\n" for i in range(n)]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


def all_of(tokens: Tokens) -> list[int]:
    return tokens.read(0, len(tokens)).tolist()


def plain(corpus: Corpus, tokenizer: TextTokenizer, part: str = "train") -> list[int]:
    """The definition: every document's tokens, and its end."""
    ids = []
    for piece in corpus.pieces(part):  # type: ignore[arg-type]
        ids += tokenizer.encode(piece.text) + [tokenizer.end] * piece.last
    return ids


@pytest.mark.parametrize("shard", [1 << 22, 1000])
def test_tokens_are_those_of_the_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int) -> None:
    monkeypatch.setattr(module, "SHARD", shard)
    monkeypatch.setattr(module, "TOGETHER", 500)
    corpus = Corpus([str(write(tmp_path / "a.jsonl"))])
    tokenizer = learn_bpe(corpus.texts(), 300)
    for part in ("train", "validation"):
        (tokens,) = tokenize(corpus, tokenizer, part)
        expected = plain(corpus, tokenizer, part)
        assert all_of(tokens) == expected and len(tokens) == len(expected) == tokens.counts.tokens
        assert tokens.counts.bytes == corpus.bytes_of(part) and tokens.counts.unknown == 0
        assert tokens.counts.documents == expected.count(tokenizer.end)
        assert tokens.counts.bytes == corpus.bytes_of(part)


def test_any_stretch_can_be_read_across_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD", 400)
    (tokens,) = tokenize(Corpus([str(write(tmp_path / "a.jsonl", 40))]), byte_tokenizer(), "train")
    every = [tokens.end, *all_of(tokens)]
    for start, stop in [(-1, 10), (395, 420), (0, 1), (350, 1250), (len(tokens) - 3, len(tokens)), (5, 5)]:
        assert tokens.read(start, stop).tolist() == every[start + 1 : stop + 1]
    assert tokens.read(len(tokens) - 1, len(tokens) + 2).tolist() == [tokens.end] * 3


def test_each_source_has_its_own_tokens_and_large_vocabularies_fit(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", 5), write(tmp_path / "b.jsonl", 9)
    wide = "".join(map(chr, [*range(0x100, 0xD800), *range(0xE000, 0x12000)]))
    corpus = Corpus([str(a), str(b)], validation=0)
    one, two = tokenize(corpus, learn_chars([*corpus.texts(), wide]), "train")
    assert one.counts.documents == 5 and two.counts.documents == 4  # five of b are a's
    assert one.dtype == np.uint32 and one.vocabulary > 1 << 16
    assert all(t.dtype == np.uint16 for t in tokenize(corpus, byte_tokenizer(), "train"))


def test_characters_that_training_did_not_have_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc" * 300 + "zab" * 33)
    corpus = Corpus([str(tmp_path / "a.txt")])
    (tokens,) = tokenize(corpus, learn_chars(corpus.texts()), "validation")
    assert tokens.counts.unknown == 33


def test_an_empty_part_has_no_tokens(tmp_path: Path) -> None:
    (tokens,) = tokenize(Corpus([str(write(tmp_path / "a.jsonl"))], validation=0), byte_tokenizer(), "validation")
    assert len(tokens) == tokens.counts.bytes == 0


def test_progress_tells_every_byte_also_when_nothing_is_to_do(tmp_path: Path) -> None:
    corpus = Corpus([str(write(tmp_path / "a.jsonl"))])
    for _ in range(2):
        told: list[int] = []
        tokenize(corpus, byte_tokenizer(), "train", progress=told.append)
        assert sum(told) == corpus.bytes_of("train")


# --- the cache --------------------------------------------------------------------------------------------------------


class Spy(TextTokenizer):
    """Counts the texts that it is given."""

    seen = 0

    def encode_batch(self, texts):
        Spy.seen += len(texts)
        return super().encode_batch(texts)


@pytest.fixture
def spy() -> Spy:
    Spy.seen = 0
    return Spy(byte_tokenizer().engine)


def test_work_is_done_once_and_anew_when_text_or_tokenizer_change(tmp_path: Path, spy: Spy) -> None:
    path = write(tmp_path / "a.jsonl")
    (first,) = tokenize(Corpus([str(path)]), spy, "train")
    done = Spy.seen
    (again,) = tokenize(Corpus([str(path)]), spy, "train")
    assert Spy.seen == done and all_of(again) == all_of(first)
    write(path, 301)
    corpus = Corpus([str(path)])
    (changed,) = tokenize(corpus, spy, "train")
    assert Spy.seen > done and all_of(changed) == plain(corpus, spy)
    (other,) = tokenize(corpus, byte_tokenizer(mask=True), "train")
    assert other.vocabulary == 258 and all_of(other) == all_of(changed)


@pytest.mark.parametrize("harm", ["truncate", "junk", "no facts", "torn facts", "gone"])
def test_damaged_shards_are_made_anew(
    tmp_path: Path, cache: Path, spy: Spy, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    monkeypatch.setattr(module, "SHARD", 2000)
    monkeypatch.setattr(module, "TOGETHER", 500)
    corpus = Corpus([str(write(tmp_path / "a.jsonl"))])
    expected = all_of(tokenize(corpus, spy, "train")[0])
    shard, facts = next(cache.rglob("00003.npy")), next(cache.rglob("00003.json"))
    if harm == "truncate":
        os.truncate(shard, shard.stat().st_size - 2)
    elif harm == "junk":
        shard.write_bytes(b"junk")
    elif harm == "torn facts":
        facts.write_text('{"tokens": 20')
    else:
        (facts if harm == "no facts" else shard).unlink()
    all_texts, Spy.seen = Spy.seen, 0
    assert all_of(tokenize(corpus, spy, "train")[0]) == expected
    assert 0 < Spy.seen < all_texts  # the shards before it are kept


def test_a_shard_cut_short_under_the_reader_is_said(tmp_path: Path, cache: Path) -> None:
    (tokens,) = tokenize(Corpus([str(write(tmp_path / "a.jsonl"))]), byte_tokenizer(), "train")
    os.truncate(next(cache.rglob("00000.npy")), 200)
    with pytest.raises(DataError, match=r"is damaged.*delete it and run again"):
        all_of(tokens)


KILLED = """
import sys, time
from feedfwd.data import tokens
from feedfwd.data.corpus import Corpus
from feedfwd.data.tokenizer import TextTokenizer, byte_tokenizer
class Slow(TextTokenizer):
    def encode_batch(self, texts):
        time.sleep(0.02)
        return super().encode_batch(texts)
tokens.SHARD, tokens.TOGETHER = 2000, 500
tokens.tokenize(Corpus([sys.argv[1]]), Slow(byte_tokenizer().engine), "train")
"""


def test_a_kill_costs_the_shard_it_met(tmp_path: Path, cache: Path, spy: Spy, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", 1000)
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)])
    deadline = time.monotonic() + 60
    while len(list(cache.rglob("0000?.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    finished = {p: p.stat().st_mtime_ns for p in cache.rglob("*.json") if p.stem.isdigit()}
    assert len(finished) >= 3 and not list(cache.rglob("all.json"))
    monkeypatch.setattr(module, "SHARD", 2000)
    corpus = Corpus([str(path)])
    (tokens,) = tokenize(corpus, spy, "train")
    assert all_of(tokens) == plain(corpus, spy)
    assert all(p.stat().st_mtime_ns == t for p, t in finished.items())
    assert Spy.seen <= 1000 - 20 * len(finished)
