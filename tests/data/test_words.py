"""Looking words up gives what the engine gives, to the token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from feedfwd.data import words as module
from feedfwd.data.sources import find
from feedfwd.data.tokenizer import TextTokenizer, byte_tokenizer, learn_bpe, learn_chars
from feedfwd.data.words import SETTLED, UNSETTLED, WordLookup, word_pattern

STDLIB = [path.read_text(encoding="utf-8") for path in find("stdlib").files[:12]]
BPE = learn_bpe(STDLIB, 1000)


def lookup() -> WordLookup:
    return WordLookup(BPE._encode_plainly)


def same(texts: list[str], by: WordLookup) -> bool:
    pairs = zip(by.encode_batch(texts), BPE._encode_plainly(texts), strict=True)
    return all(np.array_equal(fast, plain) for fast, plain in pairs)


def test_every_settled_character_splits_words_as_the_engine_does() -> None:
    engine = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for begin, end in SETTLED:
        text = "".join(f"a{c}b {c}{c}1{c} \n {c}'s{c}  \t{c}" for c in map(chr, range(begin, end)))
        spans = [span for _, span in engine.pre_tokenize_str(text)]
        assert word_pattern().findall(text) == [text[a:b] for a, b in spans] and not UNSETTLED.search(text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.one_of(st.characters(max_codepoint=0x400), st.characters(codec="utf-8"))), max_size=3))
def test_any_texts_are_encoded_alike(texts: list[str]) -> None:
    assert same([text * 9 for text in texts], lookup())


def test_real_texts_are_encoded_alike_and_mostly_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    by = lookup()
    monkeypatch.setattr(by, "_plainly", lambda texts: pytest.fail("not looked up"))
    texts = [text for text in STDLIB if not UNSETTLED.search(text)] * 4
    assert len(texts) > 20 and same(texts, by)


def test_forgetting_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 3000)
    by = lookup()
    for text in STDLIB:
        assert same([text] * 3, by) and len(by._known) < 3000 + len(text)


def test_text_without_spaces_goes_to_the_engine() -> None:
    by = lookup()
    chinese = ["".join(chr(0x4E00 + i * 37 % 5000) for i in range(start, start + 400)) for start in (0, 400)]
    assert same(chinese, by) and not by._known


def test_it_serves_only_gpt2s_words() -> None:
    assert WordLookup.serves(BPE.engine)
    assert not WordLookup.serves(byte_tokenizer().engine) and not WordLookup.serves(learn_chars(["abc"]).engine)
    other = TextTokenizer(learn_bpe(STDLIB, 300).engine)
    other.engine.add_tokens(["import"])
    assert not WordLookup.serves(other.engine)


@pytest.mark.parametrize("cores", [1, 2, 64])
def test_the_number_of_cores_changes_no_token(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    tokenizer = TextTokenizer(BPE.engine)
    assert (tokenizer._lookup is None) == (cores == 64)
    assert [ids.tolist() for ids in tokenizer.encode_batch(STDLIB)] == BPE._encode_plainly(STDLIB)
