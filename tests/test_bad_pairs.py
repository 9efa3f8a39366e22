"""What a user who embeds or ranks gets for what can't work: one line, exit status 2, nothing left behind."""

import json
import shutil
from pathlib import Path

import pytest

from command import call
from feedfwd.config_retrieval import EmbedConfig
from feedfwd.recipes.embed import embed_config


def lines(*rows: dict, n: int = 1) -> str:
    return "".join(json.dumps({k: v.format(i) if isinstance(v, str) else v for k, v in row.items()}) + "\n"
                   for i in range(n) for row in rows)  # fmt: skip


FILES = {
    "pairs.jsonl": lines({"query": "question {}", "answer": "answer {}"}, n=10),
    "empty.csv": "",
    "header.csv": "query,answer\n",
    "one.jsonl": lines({"query": "q", "answer": "a"}),
    "same.jsonl": lines({"query": "Text {}", "answer": "text  {}"}, n=10),
    "repeated.jsonl": lines({"query": "q", "answer": "a"}, n=10),
    "answer.jsonl": lines({"query": "question {}", "answer": "the one"}, n=10),
    "words.jsonl": lines({"query": "q{}", "answer": "a{}", "relevance": 1}, n=9)
    + lines({"query": "q", "answer": "a", "relevance": "good"}),
    "nan.jsonl": lines({"query": "q{}", "answer": "a{}", "relevance": "nan"}, n=9),
    "judged.jsonl": lines({"query": "q{}", "candidate": "a{}", "relevance": 3}, n=9),
    "triplets.jsonl": lines({"query": "question {}", "positive": "answer {}", "negative": "none {}"}, n=10),
    "chats.toml": 'task = "instruct"\n[chat]\nlongest = 64\n',
    "zero.jsonl": lines({"query": "q{}", "answer": "a{}", "relevance": 0}, n=9),
    "lists.jsonl": lines({"query": "q{}", "candidates": ["a", "b"], "labels": [1]}, n=9),
    "blank.jsonl": lines({"query": " ", "answer": "a{}"}, n=9),
    "three.csv": "left,middle,right\n" + "".join(f"l {i},m {i},r {i}\n" for i in range(9)),
    "labels.jsonl": lines({"text": "text {}", "label": "x{}"}, n=9),
    "label.jsonl": lines({"text": "text {}", "label": "x"}, n=9),
    "data.json": "[]",
    "data.xml": "<a/>",
    "texts.txt": "where\nis it\n",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    shutil.copytree(tiny_bert, folder / "bert")
    made = EmbedConfig(source=str(folder / "pairs.jsonl")).with_("bag.buckets", 64).with_("train.steps", 1)
    embed_config(made, folder / "run")
    return folder


EMBED = ["finetune", "--task", "embed"]
RANK = ["finetune", "--task", "rank", "--from", "bert"]
CASES: list[tuple[list[str], str, str]] = [
    ([*EMBED, "nothing.csv"], "there is no file or folder nothing.csv", "check the path"),
    ([*EMBED, "empty.csv"], "empty.csv is empty", ""),
    ([*EMBED, "header.csv"], "has no rows", ""),
    ([*EMBED, "data.json"], "data.json has no rows", ""),
    ([*EMBED, "data.xml"], "not of a form", ".jsonl"),
    ([*EMBED, "bert/1_Pooling"], "config.json holds no list", ""),
    (EMBED, "no DATA", "--task embed"),
    ([*EMBED, "pairs.jsonl", "--text", "qeury"], "no column 'qeury'", "did you mean 'query'"),
    ([*EMBED, "pairs.jsonl", "--set", "data.candidate=anwser"], "no column 'anwser'", "did you mean 'answer'"),
    ([*EMBED, "pairs.jsonl", "--set", "data.negative=[\"no\"]"], "no column 'no'", "known: answer, query"),
    ([*EMBED, "pairs.jsonl", "--text", "answer", "--set", "data.candidate=answer"], "named for two parts", ""),
    ([*EMBED, "three.csv"], "no column whose name says that it holds answers", "data.candidate"),
    ([*EMBED, "one.jsonl"], "leaves one part empty", "--test"),
    ([*EMBED, "same.jsonl"], "the same text as its query", "which columns"),
    ([*EMBED, "repeated.jsonl"], "leaves one part empty", ""),
    ([*EMBED, "answer.jsonl"], "nothing to tell apart", "pairs that differ"),
    ([*EMBED, "words.jsonl"], "row 10: 'relevance' holds 'good', which is no number", "0 for no answer"),
    ([*EMBED, "nan.jsonl"], "row 1: 'relevance' holds 'nan'", ""),
    ([*EMBED, "zero.jsonl"], "no candidate is relevant", "above 0"),
    ([*EMBED, "lists.jsonl"], "2 candidates and 1 values", ""),
    ([*EMBED, "blank.jsonl"], "no row with query and answer", ""),
    ([*EMBED, "labels.jsonl"], "no label has two training texts", "--target"),
    ([*EMBED, "label.jsonl"], "all training texts have one label", "two labels"),
    ([*EMBED, "pairs.jsonl", "--test", "labels.jsonl"], "labels.jsonl holds labelled texts", "same form"),
    ([*EMBED, "pairs.jsonl", "--test", "pairs.jsonl"], "every query of pairs.jsonl is in pairs.jsonl", ""),
    ([*EMBED, "pairs.jsonl", "--method", "lora"], "needs a pretrained model", "--from"),
    ([*EMBED, "pairs.jsonl", "--method", "head"], "method", ""),
    ([*EMBED, "pairs.jsonl", "--shots", "4"], "--shots is for labelled texts", "leave it out"),
    ([*EMBED, "pairs.jsonl", "--set", "loss.temperature=0"], "loss.temperature", ""),
    ([*EMBED, "pairs.jsonl", "--set", "bag.hidden=[3]"], "unknown setting 'bag.hidden'", ""),
    ([*EMBED, "pairs.jsonl", "--from", "texts.txt"], "texts.txt", "name"),
    (["finetune", "--task", "rank", "pairs.jsonl"], "needs a model that reads", "--from"),
    ([*RANK, "labels.jsonl"], "no column of candidates", "data.candidate"),
    ([*RANK, "pairs.jsonl", "--set", "data.mined=0"], "different relevance: nothing to rank", "data.mined"),
    ([*RANK, "pairs.jsonl", "--set", "loss.name=pointwise"], "equally relevant: nothing to rank", ""),
    ([*RANK, "pairs.jsonl", "--set", "adapt.rank=3"], "adapt.* is for --method lora and dora", ""),
    (["finetune", "pairs.jsonl"], "can be learnt from as embed or instruct", "say which: --task embed"),
    (["finetune", "judged.jsonl"], "--task rank needs a model that reads", "--from"),
    (["finetune", "--config", "chats.toml", "pairs.jsonl"], "--task instruct needs a model that writes", "--from"),
    (["predict", "run", "texts.txt"], "vectors are written to a file", "--out vectors.npy"),
    (["predict", "run", "texts.txt", "--out", "v.csv"], "no form for vectors", ".npy"),
    (["predict", "run", "", "--out", "v.npy"], "the text is empty", ""),
    (["evaluate", "run", "zero.jsonl"], "no candidate is relevant", ""),
    (["export", "run", "--to", "hf", "--out", "out"], "bag of n-grams", "ff.load"),
    (["finetune", "--resume", "run"], "is finished", "--from"),
    (["fit", "--resume", "run"], "is a run of `feedfwd finetune --task embed`", "finetune --resume run"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "what", "hint"), CASES, ids=[" ".join(case[0][-3:]) for case in CASES])
def test_it_is_told_in_one_line(prepared: Path, monkeypatch, capsys, argv: list[str], what: str, hint: str):
    monkeypatch.chdir(prepared)
    before = sorted(p.name for p in prepared.iterdir())
    assert call(*argv) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error, error
    assert what in error and hint in error, error
    assert sorted(p.name for p in prepared.iterdir()) == before


def test_a_dry_run_of_nothing_exits_with_2(prepared: Path, monkeypatch, capsys):
    monkeypatch.chdir(prepared)
    assert call(*EMBED, "answer.jsonl", "--dry-run") == 2
    assert call(*RANK, "pairs.jsonl", "--set", "data.mined=0", "--dry-run") == 2
    assert call(*RANK, "pairs.jsonl", "--set", "encoder.longest=16", "--dry-run") == 0
    assert "the model sees 1" in capsys.readouterr().out


def test_what_the_columns_tell_is_said(prepared: Path, monkeypatch, capsys):
    monkeypatch.chdir(prepared)
    assert call("finetune", "triplets.jsonl", "--dry-run", "--set", "bag.buckets=64") == 0
    assert "taken as --task embed: columns query, positive, negative; --task says" in capsys.readouterr().out
