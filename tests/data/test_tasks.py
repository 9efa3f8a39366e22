"""Which task a source is made for, found out from its columns."""

import json
from pathlib import Path
from typing import Any

import pytest

from feedfwd.data.tasks import task_of
from feedfwd.errors import ConfigError

TURNS = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}]
ROWS: dict[str, tuple[dict[str, Any], str | None]] = {  # {} in a text is the row's number, {:2} that of the label
    "messages": ({"messages": TURNS}, "instruct"),
    "messages as JSON": ({"messages": json.dumps(TURNS)}, "instruct"),
    "alpaca": ({"instruction": "do {}", "input": "", "output": "done {}"}, "instruct"),
    "completion": ({"prompt": "say {}", "completion": "so {}"}, "instruct"),
    "pairs": ({"query": "q {}", "positive": "a {}"}, "embed"),
    "triplets": ({"anchor": "q {}", "positive": "a {}", "negative": "b {}"}, "embed"),
    "two sentences": ({"sentence1": "q {}", "sentence2": "a {}"}, "embed"),
    "judged": ({"query": "q {}", "candidate": "a {}", "relevance": 3}, "rank"),
    "judged texts": ({"text": "q {}", "document": "a {}", "relevance": 3}, "rank"),
    "judged lists": ({"query": "q {}", "candidates": ["a {}", "b"], "labels": [0, 1]}, "rank"),
    "similar": ({"sentence1": "q {}", "sentence2": "a {}", "score": 0.5}, "rank"),
    "labels": ({"text": "t {}", "label": "x"}, None),
    "questions with labels": ({"question": "t {}", "category": "x"}, None),
    "prompts with labels": ({"prompt": "t {}", "label": "x", "note": "n {}"}, None),
    "numbers": ({"text": "t {}", "price": 1.5}, None),
}
UNCLEAR: dict[str, tuple[dict[str, Any], str]] = {
    "asked and answered": ({"question": "q {}", "answer": "a {}"}, "embed or instruct"),
    "with a category": ({"question": "q {}", "answer": "a {}", "category": "x"}, "embed or instruct or classify"),
    "entailment": ({"premise": "q {}", "hypothesis": "a {}", "label": 2}, "embed or classify"),
    "answers that come back": ({"input": "q {}", "output": "yes"}, "instruct or classify"),
}


def written(path: Path, row: dict[str, Any]) -> str:
    lines = [json.dumps(row).replace("{}", str(i)) for i in range(8)]
    path.write_text("\n".join(lines).replace('"yes"', '"no"', 4), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("case", ROWS)
def test_the_columns_tell_the_task(tmp_path: Path, case: str) -> None:
    row, task = ROWS[case]
    found = task_of(written(tmp_path / "t.jsonl", row))
    assert (found and found[0]) == task
    assert found is None or all(
        name in row for name in found[1].removeprefix("columns ").removeprefix("column ").split(", ")
    )


@pytest.mark.parametrize("case", UNCLEAR)
def test_columns_that_fit_several_tasks_are_asked_about(tmp_path: Path, case: str) -> None:
    row, tasks = UNCLEAR[case]
    with pytest.raises(ConfigError, match=f"can be learnt from as {tasks}: say which: --task {tasks.split()[0]}"):
        task_of(written(tmp_path / "t.jsonl", row))


def test_a_named_target_is_a_label_unless_it_is_a_relevance(tmp_path: Path) -> None:
    row = {"query": "q {}", "answer": "a {}", "score": 2, "kind": "x"}
    path = written(tmp_path / "t.jsonl", row)
    assert task_of(path, "kind") is None and task_of(path, "score") == ("rank", "columns query, answer, score")
