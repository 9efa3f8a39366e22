"""BM25 against its formula written out."""

import math

import pytest

from feedfwd.evaluate.lexical import BM25, words

TEXTS = ["a lost card is a lost card", "top up by card", "the exchange rate", "", "我的信用卡丢了"]


def test_scores_are_the_formula():
    k, b = 1.2, 0.75
    found = BM25(TEXTS, k=k, b=b).scores(["lost card card", "unknown", "信用卡"])
    split = [words(text) for text in TEXTS]
    mean = sum(map(len, split)) / len(split)
    for query, row in zip(["lost card card", "unknown", "信用卡"], found, strict=True):
        for text, value in zip(split, row, strict=True):
            wanted = 0.0
            for word in words(query):
                holding = sum(word in other for other in split)
                n = text.count(word)
                idf = math.log(1 + (len(split) - holding + 0.5) / (holding + 0.5))
                wanted += idf * n * (k + 1) / (n + k * (1 - b + b * len(text) / mean))
            assert value == pytest.approx(wanted)
    assert found.argmax(1).tolist()[0] == 0 and found.argmax(1).tolist()[2] == 4 and not found[1].any()


def test_texts_without_words_score_nothing():
    assert not BM25(["", "!?"]).scores(["a", ""]).any()
