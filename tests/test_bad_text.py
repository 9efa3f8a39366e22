"""What a user of language models gets for what can't work: one line, exit status 2, and nothing changed."""

import gzip
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from command import call
from feedfwd.config import overrides, parse
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.recipes.pretrain import pretrain_config

TINY = [
    "model.width=16",
    "model.depth=1",
    "model.heads=2",
    "ffn.hidden=32",
    "data.tokenizer=bytes",
    "data.row=16",
    "train.batch_size=4",
    "train.threads=1",
    "train.precision=fp32",
]
SETS = [word for pair in [*TINY, "train.steps=2"] for word in ("--set", pair)]
TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300))
Make = Callable[[], list[str]]


class Stop:
    """A listener that stops the training after its first updates."""

    def say(self, text: str) -> None: ...

    def progress(self, step: int, total: int, text: str) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, a finished run of it, one that was stopped, and one that fills in hidden tokens."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FEEDFWD_CACHE", str(folder / "cache"))
        Path("text.txt").write_text(TEXT)

        def config(*settings: str) -> PretrainConfig:
            return parse(PretrainConfig, {"sources": ["text.txt"], **overrides([*TINY, *settings], PretrainConfig)})

        pretrain_config(config("train.steps=1"), Path("done"))
        pretrain_config(config("train.steps=1", "train.objective=masked"), Path("masked"))
        with pytest.raises(Interrupted):
            pretrain_config(config("train.steps=9"), Path("half"), Stop())
    return folder


def command(*argv: str) -> Make:
    return lambda: list(argv)


def setting(*pairs: str) -> Make:
    return lambda: ["pretrain", "text.txt", *SETS, *(word for pair in pairs for word in ("--set", pair))]


def written(name: str, content: bytes | str, *argv: str) -> Make:
    """A source of this name and content."""

    def make() -> list[str]:
        raw = content.encode() if isinstance(content, str) else content
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(raw)
        return ["pretrain", name, *SETS, *argv]

    return make


def spoilt(spoil: Callable[[], object], *argv: str) -> Make:
    def make() -> list[str]:
        spoil()
        return list(argv)

    return make


def rows(good: int, bad: int) -> str:
    lines = [json.dumps({"text": f"row {i} of many, and not the last"}) for i in range(good)]
    return "\n".join([*lines, *['{"text": broken'] * bad]) + "\n"


def cut(path: str, keep: int) -> Callable[[], object]:
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[:keep])


def other_tokenizer() -> object:
    from feedfwd.data.tokenizer import learn_chars

    return Path("done/tokenizer.json").write_text(learn_chars([TEXT]).to_json())


def wider() -> object:
    file = Path("done/config.toml")
    return file.write_text(file.read_text().replace("width = 16", "width = 32"))


CASES: list[tuple[str, Make, str]] = [
    # text
    ("no such source", command("pretrain", "nowhere.txt"), "nowhere.txt"),
    ("empty text", written("a.txt", ""), "no text"),
    ("a source of no name", command("pretrain", ""), "without a name"),
    ("white space alone is text of no tokens to learn", written("a.txt", " "), "too few"),
    ("an empty folder", lambda: [Path("e").mkdir(), ["pretrain", "e"]][1], "no text files"),
    ("a form that isn't text", written("a.docx", "hello"), "a.docx"),
    ("a binary file", written("a.txt", bytes(range(256)) * 20), "binary"),
    ("UTF-16", written("a.txt", TEXT.encode("utf-16")), "UTF-16"),
    ("Latin-1", written("a.txt", "déjà vu, encore et encore\n".encode("latin-1") * 50), "UTF-8"),
    ("a damaged gzip file", written("a.txt.gz", gzip.compress(TEXT.encode())[:200]), "gzip"),
    ("a damaged Zstandard file", written("a.jsonl.zst", "no such thing"), "Zstandard"),
    ("a damaged Parquet file", written("a.parquet", "PAR1"), "a.parquet"),
    ("many broken rows", written("a.jsonl", rows(20, 10)), "line 21"),
    ("rows without text", written("a.jsonl", '{"n": 1}\n{"n": 2}\n' * 20), "no column of text"),
    ("a column that isn't there", written("a.jsonl", rows(50, 0), "--set", "data.column=body"), "text"),
    ("a csv with an open quote", written("a.csv", 'text\n"it never ends\n' + "x\n" * 50), "quotes"),
    ("shorter than a row", written("a.txt", "a few words", "--set", "data.row=64"), "data.row"),
    ("weights for two sources of one", setting("data.weights=[1,2]"), "2 weights"),
    ("a negative weight", setting("data.weights=[-1]"), "data.weights"),
    ("all held out", setting("data.validation=1.0"), "data.validation"),
    ("nothing held out", setting("data.validation=0"), "data.validation"),
    # tokenizer
    ("an unknown tokenizer", setting("data.tokenizer=words"), "words"),
    ("more characters than there are", setting("data.tokenizer=chars", "data.vocabulary=999"), "999"),
    ("more words than there are", setting("data.tokenizer=bpe", "data.vocabulary=9999"), "larger than the text allows"),
    ("fewer tokens than bytes", setting("data.tokenizer=bpe", "data.vocabulary=100"), "at least 257"),
    ("bytes of another number", setting("data.vocabulary=300"), "257"),
    ("a tokenizer that is none", spoilt(
        lambda: Path("t.json").write_text("{}"), "pretrain", "text.txt", "--set", "data.tokenizer=t.json"
    ), "t.json"),
    # settings
    ("warmup that decay leaves no room for", command(
        "pretrain", "nowhere.txt", "--set", "schedule.warmup=0.8", "--dry-run"  # said before any text is read
    ), "schedule.decay=0.5 overlap"),
    ("an unknown size", command("pretrain", "text.txt", "--size", "huge"), "huge"),
    ("an unknown setting", setting("model.widht=3"), "model.width"),
    ("a setting of fit", setting("train.epochs=3"), "train.epochs"),
    ("heads that don't divide", setting("model.heads=3"), "not divisible"),
    ("key heads that don't divide", setting("model.heads=4", "model.kv_heads=3"), "model.kv_heads"),
    ("a head of odd width", setting("model.head_width=7"), "odd"),
    ("a window of nothing", setting("model.window=0"), "model.window"),
    ("stretched, but not how", setting("model.rope_scaling.factor=2"), "kind"),
    ("stretched from where", setting("model.rope_scaling.kind=yarn"), "original"),
    ("stretched without rotation", setting("model.positions=learned", "model.rope_scaling.kind=linear"), "learned"),
    ("an unknown objective", setting("train.objective=next_sentence"), "train.objective"),
    ("all tokens hidden", setting("train.masked=1.0"), "train.masked"),
    ("an unknown activation", setting("ffn.activation=rellu"), "rellu"),
    ("a layer that isn't there", setting("ffn.kind=no_such_module:Layer"), "no_such_module"),
    ("an unknown optimizer", setting("optimizer.name=adan"), "optimizer.name"),
    ("too large for any memory", setting("model.width=4000000", "model.heads=1000"), "memory"),
    ("more rows than memory", setting("train.batch_size=100000000"), "set train.batch_size="),
    ("more threads than cores", setting("train.threads=1000"), "train.threads=1000"),
    ("two lengths", command("pretrain", "text.txt", "--minutes", "1", *SETS), "train.steps"),
    ("no minutes", command("pretrain", "text.txt", "--minutes", "0"), "minutes"),
    ("a device that isn't here", setting("train.device=cuda:7"), "train.device"),
    ("a run that exists", command("pretrain", "text.txt", "--run", "done", *SETS), "never overwritten"),
    # resuming
    ("resume with settings", command("pretrain", "--resume", "half", "--size", "nano"), "--size"),
    ("resume with a text", command("pretrain", "other.txt", "--resume", "half"), "SOURCE"),
    ("resume what is finished", command("pretrain", "--resume", "done"), "finished"),
    ("resume as another verb", command("fit", "--resume", "half"), "feedfwd pretrain --resume"),
    ("resume what is no run", command("pretrain", "--resume", "nowhere"), "no run at"),
    ("resume on a changed text", spoilt(
        lambda: Path("text.txt").write_text(TEXT[::-1]), "pretrain", "--resume", "half"
    ), "have changed"),
    ("resume without the text", spoilt(lambda: Path("text.txt").unlink(), "pretrain", "--resume", "half"), "text.txt"),
    ("resume without the tokenizer", spoilt(
        lambda: Path("half/tokenizer.json").unlink(), "pretrain", "--resume", "half"
    ), "tokenizer"),
    ("resume from a damaged state", spoilt(
        lambda: cut(str(next(Path("half/state").glob("*/tensors.safetensors"))), 99)(), "pretrain", "--resume", "half"
    ), "tensors.safetensors"),
    # a run
    ("write with an unfinished run", command("generate", "half", "a"), "--resume half"),
    ("write with what fills in", command("generate", "masked", "a"), "hidden tokens"),
    ("no prompt", command("generate", "done"), "prompt"),
    ("two kinds of prompt", command("generate", "done", "a", "--prompts", "text.txt"), "prompt"),
    ("no file of prompts", command("generate", "done", "--prompts", "nowhere.txt"), "nowhere.txt"),
    ("a file without prompts", spoilt(
        lambda: Path("p.txt").write_text("\n"), "generate", "done", "--prompts", "p.txt"
    ), "p.txt"),
    ("nothing to write", command("generate", "done", "a", "--tokens", "0"), "--tokens"),
    ("a top_p out of range", command("generate", "done", "a", "--top-p", "2"), "top_p"),
    ("a seed beyond all numbers", command("generate", "done", "a", "--seed", "9" * 20), "seed=9999"),
    ("a temperature below zero", command("generate", "done", "a", "--temperature", "-1"), "temperature"),
    ("no run", command("generate", "nowhere", "a"), "no run at"),
    ("predict with it", command("predict", "done", "digits"), "feedfwd generate"),
    ("score on what isn't there", command("evaluate", "done", "nowhere.txt"), "nowhere.txt"),
    ("score on nothing", spoilt(lambda: Path("n.txt").write_text(""), "evaluate", "done", "n.txt"), "no text"),
    ("no tokenizer", spoilt(lambda: Path("done/tokenizer.json").unlink(), "generate", "done", "a"), "tokenizer.json"),
    ("a damaged tokenizer", spoilt(cut("done/tokenizer.json", 50), "generate", "done", "a"), "tokenizer.json"),
    ("another tokenizer", spoilt(other_tokenizer, "generate", "done", "a"), "trained with"),
    ("no weights", spoilt(lambda: Path("done/model.safetensors").unlink(), "generate", "done", "a"), "missing"),
    ("damaged weights", spoilt(cut("done/model.safetensors", 500), "generate", "done", "a"), "damaged"),
    ("settings of another model", spoilt(wider, "generate", "done", "a"), "config.toml"),
    ("an export of no known form", command("export", "done", "--to", "gguf", "--out", "out"), "known: hf, onnx"),
    ("an export onto something", command("export", "done", "--to", "hf", "--out", "half"), "not empty"),
    ("an export of what fills in", command("export", "masked", "--to", "hf", "--out", "out"), "train.objective=masked"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "says"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_gets_one_clear_line(
    make: Make,
    says: str,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    for file in folder.glob("*/config.toml"):  # which says where the text lies
        file.write_text(file.read_text().replace(str(prepared), str(folder)))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
    argv = make()
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert call(*argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert says in lines[0], lines[0]
    assert ": " in lines[0].removeprefix("error: "), "what next is missing"
    assert len(lines[0]) < 400, lines[0]
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before, "files changed"


def test_a_few_broken_rows_are_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
    Path("a.jsonl").write_text(rows(200, 1))
    assert call("pretrain", "a.jsonl", "--run", "run", *SETS) == 0
    assert "left out 1 of 201 rows (line 201: no JSON)" in capsys.readouterr().out
