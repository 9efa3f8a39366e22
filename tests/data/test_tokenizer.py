"""Tokenizers: every text comes back to the bit, files load elsewhere, and sizes are what was asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from feedfwd.data.corpus import Corpus
from feedfwd.data.documents import cut
from feedfwd.data.tokenizer import END, MASK, TextTokenizer, byte_tokenizer, learn_bpe, learn_chars, make_tokenizer
from feedfwd.errors import ConfigError, DataError, FeedfwdError

ENGLISH = "It's the feed-forward layer, isn't it? We'll see 12 of them.\r\n\n"
CHINESE = "前馈网络是变换器的心脏。我们测量了它，在两个核上跑得很快！\n"
CODE = "def f(x: int) -> str:\n\treturn {'a': 1}[x]  # comment\n\n\nclass A:\n    pass\n"
TEXT = (ENGLISH + CHINESE + CODE) * 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 10, encoding="utf-8", newline="")
    return Corpus([str(path)])


BPE = learn_bpe([TEXT], 400)
BYTES = byte_tokenizer()
CHARS = learn_chars([TEXT])


@pytest.mark.parametrize("tokenizer", [BPE, BYTES, CHARS], ids=["bpe", "bytes", "chars"])
@pytest.mark.parametrize("text", [ENGLISH, CHINESE, CODE, "", " ", "\n"], ids=repr)
def test_text_comes_back_to_the_bit(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and all(0 <= i < tokenizer.vocabulary for i in ids)
    assert tokenizer.encode_batch([text, TEXT])[0].tolist() == ids


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_at_all_comes_back_from_bpe_and_bytes(text: str) -> None:
    assert BPE.decode(BPE.encode(text)) == text
    assert BYTES.encode(text) == list(text.encode()) and BYTES.decode(BYTES.encode(text)) == text


def test_a_file_that_cannot_encode_the_text_says_so() -> None:
    engine = Tokenizer(models.WordLevel({"one": 0, "two": 1}))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = TextTokenizer(engine)
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(DataError, match=r"can't encode the text .*data\.tokenizer=bpe"):
            encode("one three")


def test_what_a_tokenizer_loses_is_measured() -> None:
    engine = Tokenizer(BPE.engine.model)
    engine.normalizer, engine.decoder = normalizers.Lowercase(), decoders.ByteLevel()
    engine.pre_tokenizer = pre_tokenizers.ByteLevel()  # puts a space before a text
    assert TextTokenizer(engine).lost(["the Feed-Forward", " layer"]) == pytest.approx(2 / 22)
    assert BPE.lost([TEXT, ""]) == CHARS.lost([TEXT]) == 0


def test_bpe_is_as_large_as_asked_shortens_and_repeats_itself() -> None:
    assert BPE.vocabulary == 400 and len(BPE.encode(TEXT)) < 0.6 * len(TEXT.encode())
    assert learn_bpe([TEXT], 400).fingerprint == BPE.fingerprint
    assert learn_bpe([TEXT], 401).fingerprint != BPE.fingerprint


def test_cutting_a_document_into_pieces_changes_no_token() -> None:
    text = "".join(f"A line, number {i}, it's long.\nAnd the next\n\n\n    indented: x[{i}]\r\n" for i in range(3000))
    pieces = [piece.text for piece in cut([text])]
    assert len(pieces) > 3 and np.concatenate(BPE.encode_batch(pieces)).tolist() == BPE.encode(text)


def test_characters_are_numbered_in_order_and_others_are_unknown() -> None:
    tokenizer = learn_chars(["hello"])
    assert tokenizer.encode("helo") == [1, 0, 2, 3] and tokenizer.vocabulary == 6  # with unknown and end
    assert tokenizer.encode("hez") == [1, 0, tokenizer.unknown] and tokenizer.decode(tokenizer.encode("hez")) == "he"
    frequent = learn_chars(["aaabbc"], vocabulary=4)
    assert frequent.encode("abc") == [0, 1, frequent.unknown]


@pytest.mark.parametrize("tokenizer", [BPE, BYTES, CHARS], ids=["bpe", "bytes", "chars"])
def test_a_document_cannot_end_itself(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode(f"a{END}b")
    assert tokenizer.end not in ids and len(ids) > 3
    assert tokenizer.decode([tokenizer.end]) == ""


@pytest.mark.parametrize("make", [learn_bpe, learn_chars], ids=["bpe", "chars"])
def test_the_mask_token_is_there_when_asked_for(make) -> None:
    assert make([TEXT]).mask is None
    with_mask = make([TEXT], mask=True)
    assert with_mask.mask is not None and with_mask.engine.id_to_token(with_mask.mask) == MASK
    assert byte_tokenizer(mask=True).mask == 257


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [BPE, BYTES, CHARS], ids=["bpe", "bytes", "chars"])
def test_a_file_gives_the_same_tokenizer_here_and_in_transformers(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = TextTokenizer.load(place)
        assert loaded.encode(TEXT) == tokenizer.encode(TEXT) and loaded.fingerprint == tokenizer.fingerprint
        assert (loaded.end, loaded.vocabulary, loaded.notes) == (tokenizer.end, tokenizer.vocabulary, ())
    transformers = pytest.importorskip("transformers")
    names = tokenizer.special_tokens()
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **names)
    assert theirs(TEXT, add_special_tokens=False)["input_ids"] == tokenizer.encode(TEXT)
    assert theirs.decode(tokenizer.encode(TEXT)) == TEXT and theirs.eos_token_id == tokenizer.end


def foreign(path: Path, specials: list[str]) -> Path:
    engine = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.add_special_tokens(specials)
    engine.enable_truncation(2)
    engine.save(str(path))
    return path


def test_a_foreign_tokenizer_keeps_its_own_end_and_is_never_cut_short(tmp_path: Path, corpus: Corpus) -> None:
    path = foreign(tmp_path / "t.json", ["[CLS]", "[SEP]", "[MASK]"])
    tokenizer = make_tokenizer(str(path), corpus, mask=True)
    assert (tokenizer.end, tokenizer.mask, tokenizer.unknown, tokenizer.vocabulary) == (4, 5, 0, 6)
    assert tokenizer.encode("a b a b") == [1, 2, 1, 2] and tokenizer.notes == ()


def test_what_a_foreign_tokenizer_lacks_is_added_and_said(tmp_path: Path, corpus: Corpus) -> None:
    tokenizer = make_tokenizer(str(foreign(tmp_path / "t.json", [])), corpus, mask=True)
    assert tokenizer.vocabulary == 5 and len(tokenizer.notes) == 2
    assert tokenizer.engine.id_to_token(tokenizer.end) == END


# --- by name ----------------------------------------------------------------------------------------------------------


def test_only_training_text_is_learnt_from(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc" * 300 + "z" * 90)
    assert make_tokenizer("chars", Corpus([str(path)])).engine.token_to_id("z") is None


def test_learning_is_done_once(corpus: Corpus, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_tokenizer("bpe", corpus, vocabulary=300)
    with monkeypatch.context() as patched:
        patched.setattr("feedfwd.data.tokenizer.learn_bpe", lambda *_, **__: pytest.fail("learnt again"))
        again = make_tokenizer("bpe", corpus, vocabulary=300)
    assert again.fingerprint == first.fingerprint and again.encode(TEXT) == first.encode(TEXT)
    for file in (cache / "tokenizers").iterdir():
        file.write_text("{torn")
    assert make_tokenizer("bpe", corpus, vocabulary=300).fingerprint == first.fingerprint


def test_a_sample_is_said(corpus: Corpus) -> None:
    assert make_tokenizer("bpe", corpus, vocabulary=300).notes == ()
    (note,) = make_tokenizer("bpe", corpus, vocabulary=300, sample=2_000).notes
    assert "sample" in note


BAD = {
    "too large": ("bpe", {"vocabulary": 50_000}, ConfigError, r"vocabulary=50,000 is larger than the text allows: it"),
    "too small": ("bpe", {"vocabulary": 100}, ConfigError, "vocabulary=100 is too small.*at least 257"),
    "chars too large": ("chars", {"vocabulary": 9_999}, ConfigError, "larger than the text allows: it gives [0-9]+ "),
    "no room": ("chars", {"vocabulary": 2}, ConfigError, "leaves no room for characters"),
    "bytes": ("bytes", {"vocabulary": 300}, ConfigError, "doesn't fit bytes.*257"),
    "unknown": ("wordpiece", {}, ConfigError, "neither a kind nor a path.*bpe, chars, bytes"),
    "not json": ("text.txt", {}, DataError, "is not a tokenizer.json"),
    "other json": ("other.json", {}, DataError, "is not a tokenizer.json"),
    "binary": ("binary.json", {}, DataError, "can't be read"),
    "no file": ("folder", {}, DataError, "there is no tokenizer at"),
    "size of a file": ("good.json", {"vocabulary": 9}, ConfigError, "but the tokenizer .* has 6"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_one_line(case: str, tmp_path: Path, corpus: Corpus, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    (tmp_path / "binary.json").write_bytes(b"\xff\x00")
    (tmp_path / "folder").mkdir()
    foreign(tmp_path / "good.json", ["[SEP]", "[MASK]", "[CLS]"])
    name, options, kind, message = BAD[case]
    with pytest.raises(FeedfwdError, match=message) as caught:
        make_tokenizer(name, corpus, **options)
    assert type(caught.value) is kind and "\n" not in str(caught.value) and caught.value.hint


def test_the_size_that_the_error_names_works(corpus: Corpus) -> None:
    with pytest.raises(ConfigError) as caught:
        make_tokenizer("bpe", corpus, vocabulary=50_000)
    reached = int(caught.value.hint.split("=")[1].split()[0])
    assert make_tokenizer("bpe", corpus, vocabulary=reached).vocabulary == reached


def test_half_a_character_is_refused() -> None:
    with pytest.raises(DataError, match="not Unicode"):
        BYTES.encode("na\udcefve")
