"""What a model writes: how much of it is copied, whether it parses, and that held-out text is measured alike."""

import json
from pathlib import Path

import pytest

from feedfwd.config import overrides, parse
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.recipes.pretrain import pretrain_config
from feedfwd.recipes.samples import begins_a_program

SMALL = [
    "model.width=64",
    "model.depth=1",
    "model.heads=2",
    "ffn.hidden=128",
    "data.tokenizer=bytes",
    "data.row=128",
    "train.batch_size=4",
    "train.threads=1",
]


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))


def trained(source: str, *settings: str) -> dict:
    tree = overrides([*SMALL, *settings], PretrainConfig)
    return pretrain_config(parse(PretrainConfig, {"sources": [source], **tree}), Path("run")).result


def test_a_model_that_recites_is_found_out() -> None:
    verse = "Thirty days hath September, April, June and November; all the rest have thirty-one, but for one alone.\n"
    Path("text.txt").write_text(verse * 100)
    result = trained("text.txt", "train.steps=120", "data.row=100", "optimizer.lr=0.01")
    samples = result["samples"]
    assert samples["written"]["copied"] > 0.9 and samples["held_out"]["copied"] > 0.9
    assert "parses" not in samples["written"] and samples["texts"] >= 14
    assert result["sample"]["copied"] > 0.9
    events = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert all("copied" in event for event in events if event["event"] == "sample")
    assert "word for word" in Path("run/report.html").read_text()


def test_of_python_it_is_said_how_much_parses() -> None:
    Path("code").mkdir()
    for i in range(60):
        Path(f"code/{i}.py").write_text(f"def add{i}(x):\n    return x + {i}\n\n\nprint(add{i}({i * i}))\n" * 3)
    samples = trained("code", "train.steps=3")["samples"]
    assert samples["written"]["parses"] < samples["held_out"]["parses"] == 1
    assert samples["written"]["copied"] < 0.2, "three updates teach nothing by heart"
    assert "parse as Python" in Path("run/report.html").read_text()


@pytest.mark.parametrize(
    ("text", "whole", "parses"),
    [
        ("x = 1\n", True, True),
        ("x = 1\ny = (", False, True),
        ("x = (1 +\n", False, True),
        ("x = (1 +\n", True, False),
        ("class A:\n    def f(self):\n", False, True),
        ("if x:\n    y\n  z\n", False, False),
        ("x = = 1\n", False, False),
        ('def f():\n    """It goes\n    on\n', False, False),
        ("x = 'a\n", False, False),
        ("no line end", False, False),
        ("", True, False),
        ("x = '\0'\n", False, False),
        ("(" * 5000 + "\n", False, False),
    ],
)
def test_what_begins_a_program(text: str, whole: bool, parses: bool) -> None:
    assert begins_a_program(text, whole=whole) is parses
