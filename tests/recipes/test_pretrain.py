"""From text to a language model that writes: runs, resuming to the bit, and one line for what can't work."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tokenizers import normalizers

import feedfwd as ff
from command import call
from feedfwd.checkpoint import Run
from feedfwd.config import overrides, parse
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.data.tokenizer import byte_tokenizer, learn_chars
from feedfwd.errors import RunError, TrainingError
from feedfwd.models.generate import Sampling
from feedfwd.recipes.console import Silent
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.recipes.pretrain import pretrain_config, resume
from feedfwd.recipes.text import prepare_text
from feedfwd.recipes.training import Training
from feedfwd.recipes.writer import Writer, generate_run

TINY = [
    "model.width=16",
    "model.depth=1",
    "model.heads=2",
    "ffn.hidden=32",
    "data.tokenizer=bytes",
    "data.row=16",
    "train.batch_size=4",
    "train.steps=12",
    "train.threads=1",
    "train.precision=fp32",
]


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
    Path("text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300)))


def config(*settings: str) -> PretrainConfig:
    return parse(PretrainConfig, {"sources": ["text.txt"], **overrides([*TINY, *settings], PretrainConfig)})


def weights(run: str) -> bytes:
    return (Path(run) / "model.safetensors").read_bytes()


def test_a_run_holds_everything_and_repeats(tmp_path: Path) -> None:
    writer = pretrain_config(config("train.steps=60"), Path("a"))
    names = {p.name for p in Path("a").iterdir()}
    wanted = {"config.toml", "tokenizer.json", "model.safetensors", "log.jsonl", "result.json", "report.html"}
    assert names == wanted
    result = writer.result
    scores = result["validation"]
    assert scores["loss"] < 4.5 and scores["bits_per_byte"] == pytest.approx(scores["loss"] / 0.6931, rel=0.02)
    assert result["tokens"] == 60 * 64 and result["tokens_per_second"] > 0
    assert result["flops_per_token"] == 3 * writer.model.flops(16)
    reached = result["tokens_per_second"] * result["flops_per_token"] / result["matrix_rate"]
    assert 0 < result["mfu"] < 1 and result["mfu"] == pytest.approx(reached)
    assert "of the matrix rate" in Path("a/report.html").read_text()
    assert any("tokens a parameter" in note for note in result["notes"])
    events = [json.loads(line) for line in Path("a/log.jsonl").read_text().splitlines()]
    assert {"start", "step", "validation", "sample", "health", "end"} == {e["event"] for e in events}
    losses = [e["loss"] for e in events if e["event"] == "step"]
    assert losses[-1] < losses[0] - 0.5
    again = parse(PretrainConfig, Run.open(Path("a")).settings())
    pretrain_config(again, Path("b"))
    assert weights("a") == weights("b")

    Path("a").rename(tmp_path / "moved")
    loaded = ff.load("moved")
    assert isinstance(loaded, Writer)
    ids = loaded.encode("2 times 2")
    logits = loaded.model(ids)
    assert logits.shape == (1, 9, 257)
    assert torch.equal(logits, writer.model(ids))
    text = "".join(loaded.write("2 times", most=9, seed=1))
    assert text == loaded.complete(["2 times"], most=9, seed=1)[0] == "".join(writer.write("2 times", most=9, seed=1))


@pytest.mark.parametrize(
    "settings",
    [
        ["ffn.kind=dense", "train.ema=0.9", "model.positions=learned", "model.norm_kind=layer"],
        ["optimizer.name=adamw", "schedule.name=cosine", "train.accumulate=3", "data.separate=true"],
        ["ffn.kind=stranger:Maxout", "data.tokenizer=chars", "train.precision=bf16", "train.z_loss=1e-4"],
        ["data.tokenizer=bpe", "data.vocabulary=270", "model.kv_heads=1", "model.tied=false"],
        ["train.objective=masked", "data.tokenizer=chars", "train.accumulate=2", "data.separate=true"],
    ],
    ids=lambda s: ",".join(s),
)
def test_every_part_trains(settings: list[str]) -> None:
    writer = pretrain_config(config(*settings), Path("run"))
    assert writer.result["validation"]["loss"] < 6
    ids = writer.encode("2 times")
    assert torch.equal(ff.load("run").model(ids), writer.model(ids))


def test_hidden_tokens_are_filled_in(capsys: pytest.CaptureFixture[str]) -> None:
    masked = config("train.objective=masked", "train.steps=300", "optimizer.lr=0.02", "data.row=32")
    writer = pretrain_config(masked, Path("run"))
    scores = writer.result["validation"]
    assert set(scores) == {"loss", "perplexity"} and scores["loss"] < 3
    assert not {"sample", "samples"} & set(writer.result)
    tokenizer = writer.tokenizer
    assert tokenizer.mask == 257 and tokenizer.vocabulary == 258
    assert writer.score("text.txt") == writer.score("text.txt"), "the same tokens are hidden each time"
    ids = writer.encode("17 times 3 is 51.")
    later = ids.clone()
    later[0, -1] = tokenizer.mask
    assert not torch.equal(writer.model(ids)[0, 0], writer.model(later)[0, 0]), "it sees what comes after"
    hidden = writer.encode("17 times 3 is 51.")
    hidden[0, 5] = tokenizer.mask
    assert ff.load("run").model(hidden)[0, 5].argmax() == ids[0, 5], "ti_es"
    for argv in (["a"], ["--prompts", "text.txt"]):
        assert call("generate", "run", *argv) == 2
        assert "hidden tokens" in capsys.readouterr().err
    assert call("info", "run") == call("runs", ".") == call("evaluate", "run", "text.txt") == 0
    assert "nats a hidden token" in capsys.readouterr().out


class StopWhileScoring:
    """A listener that asks this process to stop once all is left to do is to score."""

    said = ""

    def say(self, text: str) -> None:
        if "scoring all" in text:
            self.said = text
            os.kill(os.getpid(), signal.SIGINT)

    def progress(self, step: int, total: int, text: str) -> None: ...


@pytest.mark.parametrize("settings", [["train.ema=0.9", "train.evaluate_every=5"], ["optimizer.name=adamw"]])
def test_stopped_while_scoring_nothing_is_lost(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain_config(config(*settings), Path("whole"))
    stop = StopWhileScoring()
    with pytest.raises(Interrupted, match="go on with: feedfwd pretrain --resume run"):
        pretrain_config(config(*settings), Path("run"), stop)
    assert "held-out tokens" in stop.said and Run(Path("run")).saved_step() == 12
    monkeypatch.setattr("feedfwd.recipes.training.train", lambda *_, **__: pytest.fail("trained again"))
    again = resume(Path("run"))
    assert weights("run") == weights("whole") and again.result["tokens_per_second"] > 0
    assert again.result["validation"] == ff.load("whole").result["validation"]


def stopped_half_way() -> None:
    with pytest.raises(Interrupted):
        pretrain_config(config("train.save_every=4"), Path("half"), StopAt(6))


def edited(*pairs: tuple[str, str]) -> None:
    file = Path("half/config.toml")
    for old, new in pairs:
        assert file.read_text().count(old) == 1, old
        file.write_text(file.read_text().replace(old, new))


def test_a_run_goes_on_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    Path("own.json").write_text(byte_tokenizer().to_json())
    with pytest.raises(Interrupted):
        pretrain_config(config("data.tokenizer=own.json"), Path("half"), StopAt(6))
    assert call("info", "half") == call("runs", ".") == 0
    assert "feedfwd pretrain text.txt," in capsys.readouterr().out, "seen from here"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "half").rename("moved")
    resume(Path("moved"))
    again = parse(PretrainConfig, Run.open(Path("moved")).settings())
    assert again.sources == [str(tmp_path / "text.txt")]
    pretrain_config(again, Path("again"))
    assert weights("again") == weights("moved")


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([("\nwidth = 16", "\nwidth = 32"), ("hidden = 32", "hidden = 48")], "model.width=32 (was 16), ffn.hidden=48"),
        ([('name = "normuon"', 'name = "adamw"')], "optimizer.name=adamw (was normuon)"),
        ([("ema = 0.0", "ema = 0.9")], "train.ema=0.9 (was 0.0)"),
        ([("row = 16", "row = 8")], "data.row=8 (was 16)"),
        ([("validation = 0.1", "validation = 0.2")], "data.validation=0.2 (was 0.1)"),
    ],
    ids=lambda p: p if isinstance(p, str) else "",
)
def test_resuming_names_the_settings_that_no_longer_fit(pairs: list[tuple[str, str]], said: str) -> None:
    stopped_half_way()
    edited(*pairs)
    with pytest.raises(RunError) as raised:
        resume(Path("half"))
    assert said in str(raised.value) and "config.toml" in str(raised.value) and raised.value.hint


def test_a_setting_that_still_fits_is_said_when_resuming(capsys: pytest.CaptureFixture[str]) -> None:
    stopped_half_way()
    edited(("save_every = 4", "save_every = 5"))
    assert call("pretrain", "--resume", "half") == 0
    assert "train.save_every=5 (was 4)" in capsys.readouterr().out


def test_resuming_tells_a_changed_text_from_a_changed_tokenizer() -> None:
    Path("more.txt").write_text("more of it, again and again. " * 40)
    both = parse(PretrainConfig, {**config("train.save_every=4").said(), "sources": ["text.txt", "more.txt"]})
    with pytest.raises(Interrupted):
        pretrain_config(both, Path("half"), StopAt(6))
    tokenizer = Path("half/tokenizer.json").read_text()
    Path("half/tokenizer.json").write_text(learn_chars(["abc"]).to_json())
    with pytest.raises(RunError, match=r"half/tokenizer\.json has changed"):
        resume(Path("half"))
    Path("half/tokenizer.json").write_text(tokenizer)
    Path("more.txt").write_text("other text, again and again. " * 40)
    with pytest.raises(RunError, match=r"more\.txt is another") as raised:
        resume(Path("half"))
    assert "text.txt is" not in str(raised.value) and "tokenizer" not in str(raised.value)


def test_a_busy_machine_gets_no_share_of_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedfwd.recipes.pretrain.matrix_rate", lambda *_: 1.0)
    result = pretrain_config(config(), Path("run")).result
    assert result["mfu"] is result["matrix_rate"] is None and result["tokens_per_second"] > 0
    assert any("too busy" in note for note in result["notes"])


class StopAt:
    """A listener that asks this process to stop, as Ctrl-C would, once training has reached a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def say(self, text: str) -> None: ...

    def progress(self, step: int, total: int, text: str) -> None:
        if step >= self.step:
            self.step = 10**9
            os.kill(os.getpid(), signal.SIGINT)


STATEFUL = ["train.ema=0.9", "model.dropout=0.1", "train.evaluate_every=5", "train.accumulate=2", "train.steps=20"]


@pytest.mark.parametrize(
    "more", ["optimizer.name=muon", "optimizer.name=normuon", "optimizer.name=adamw", "train.objective=masked"]
)
def test_resuming_gives_the_same_bits(more: str) -> None:
    stateful = config(*STATEFUL, more)
    pretrain_config(stateful, Path("whole"))
    with pytest.raises(Interrupted, match="pretrain --resume"):
        pretrain_config(stateful, Path("parts"), StopAt(7))
    with pytest.raises(Interrupted):
        resume(Path("parts"), StopAt(13))
    resume(Path("parts"))
    assert weights("parts") == weights("whole")
    scores = [json.loads(Path(run, "result.json").read_text())["validation"] for run in ("parts", "whole")]
    assert scores[0] == scores[1]


def test_a_changed_text_is_not_resumed() -> None:
    with pytest.raises(Interrupted):
        pretrain_config(config(*STATEFUL), Path("run"), StopAt(7))
    Path("text.txt").write_text("something else entirely. " * 200)
    with pytest.raises(RunError, match="have changed"):
        resume(Path("run"))


def test_minutes_fix_the_number_of_updates() -> None:
    timed = {**config().said(), "minutes": 0.005}
    timed["train"] = {key: value for key, value in timed["train"].items() if key != "steps"}
    writer = pretrain_config(parse(PretrainConfig, timed), Path("run"))
    settings = Run.open(Path("run")).settings()
    assert settings["train"]["steps"] == writer.result["steps"] and "minutes" not in settings


# --- the command ------------------------------------------------------------------------------------------------------


SETS = [word for pair in TINY for word in ("--set", pair)]


def test_the_commands_work_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("pretrain", "text.txt", "--run", "run", *SETS) == 0
    assert "bits per byte" in capsys.readouterr().out
    assert call("generate", "run", "2 times", "--tokens", "5", "--temperature", "0") == 0
    assert capsys.readouterr().out.startswith("2 times")
    Path("prompts.txt").write_text("1 times\n2 times\n")
    assert call("generate", "run", "--prompts", "prompts.txt", "--tokens", "5") == 0
    assert [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()] == ["1 times", "2 times"]
    assert call("evaluate", "run", "text.txt") == call("info", "run") == call("runs", ".") == 0
    assert "perplexity" in capsys.readouterr().out


def test_a_dry_run_tells_time_and_memory_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    before = {p for p in Path.cwd().rglob("*") if "cache" not in p.parts}
    assert call("pretrain", "text.txt", "--dry-run", *SETS) == 0
    said = capsys.readouterr().out
    assert "MB of memory" in said and "an update" in said and "[model]" in said
    assert "training tokens a parameter" in said and "train longer" in said
    assert "the model sees: " in said and "what follows each of " in said
    assert call("pretrain", "text.txt", "--dry-run", *SETS, "--set", "train.objective=masked") == 0
    said = capsys.readouterr().out
    assert "and learns to fill in " in said and "<|mask|>" in said
    assert {p for p in Path.cwd().rglob("*") if "cache" not in p.parts} == before


def test_blocks_that_run_again_change_no_bit() -> None:
    pretrain_config(config(), Path("plain"))
    pretrain_config(config("model.recompute=true"), Path("again"))
    assert weights("plain") == weights("again")


def test_what_is_kept_is_the_average_of_the_weights() -> None:
    plain, averaged = (pretrain_config(config(f"train.ema={ema}"), Path(f"{ema}")) for ema in (0, 0.99))
    assert weights("0") != weights("0.99")
    assert averaged.result["validation"]["loss"] > plain.result["validation"]["loss"], "it lags behind at first"
    assert torch.equal(ff.load("0.99").model.head_weight, averaged.model.head_weight)


def test_sources_are_drawn_by_their_weights() -> None:
    Path("rare.txt").write_text("another text, and a long one: " * 400)
    settings = {**config("data.weights=[3,1]").said(), "sources": ["text.txt", "rare.txt"]}
    prepared = prepare_text(parse(PretrainConfig, settings), Silent())
    batches = prepared.batches()
    for _ in range(20):
        next(batches)
    assert batches.drawn == [60, 20]
    assert pretrain_config(parse(PretrainConfig, settings), Path("run")).result["tokens"] == 12 * 64


def test_a_tokenizer_that_loses_text_is_said_with_its_share() -> None:
    engine = byte_tokenizer().engine
    engine.normalizer = normalizers.Replace("times", "by")
    Path("own.json").write_text(engine.to_str())
    (note,) = [n for n in prepare_text(config("data.tokenizer=own.json"), Silent()).notes if "come back" in n]
    assert re.match(r"2\d(\.\d)? % of the held-out characters", note)
    assert not any("come back" in n for n in prepare_text(config("data.tokenizer=chars"), Silent()).notes)


def test_a_file_of_prompts_is_answered_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = pretrain_config(config(), Path("run"))
    prompts = [f"{i} times" for i in range(20)]
    Path("prompts.txt").write_text("\n".join(prompts))
    out, seen = [], []
    whole, batch = writer.complete(prompts, most=5, seed=3), Writer.complete

    def spy(self: Writer, asked: list[str], **options: object) -> list[str]:
        seen.append((len(asked), len(out)))
        return batch(self, asked, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Writer, "complete", spy)
    generate_run(Path("run"), None, Path("prompts.txt"), out.append, most=5, sampling=Sampling(), seed=3)
    assert seen == [(16, 0), (4, 16)], "the first ones are out before the last are asked for"
    assert [json.loads(line)["text"] for line in out] == whole


def test_what_the_tokenizer_does_not_know_of_a_prompt_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    pretrain_config(config("data.tokenizer=chars"), Path("run"))
    assert call("generate", "run", "2 timesZQ", "--tokens", "3") == 0
    said = capsys.readouterr()
    assert "doesn't know 'Z', 'Q'" in said.err and "note" not in said.out
    Path("prompts.txt").write_text("1 times\nZ times\n")
    assert call("generate", "run", "--prompts", "prompts.txt", "--tokens", "3") == 0
    assert "1 of 2 prompts" in capsys.readouterr().err
    assert call("generate", "run", "2 times", "--tokens", "3") == 0
    assert capsys.readouterr().err == ""


def test_weights_may_be_read_by_whom_other_files_may() -> None:
    before = os.umask(0o027)
    try:
        pretrain_config(config(), Path("run"))
        assert call("export", "run", "--to", "hf", "--out", "out") == 0
    finally:
        os.umask(before)
    for file in (Path("run/model.safetensors"), Path("run/result.json"), Path("out/model.safetensors")):
        assert file.stat().st_mode & 0o777 == 0o640, file


def test_what_is_counted_and_why_is_said_right(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feedfwd.recipes.text.LONG", 100)
    settings = [word for pair in [*TINY[:-1], "train.save_every=5"] for word in ("--set", pair)]
    with monkeypatch.context() as patch:
        patch.setattr("feedfwd.recipes.training.Training.save", save_and_stop)
        assert call("pretrain", "text.txt", "--run", "half", *settings) == 143
    said = capsys.readouterr().out
    assert "byte 5225/5225  tokenised" in said and "small products" in said
    assert call("pretrain", "--resume", "half") == 0
    assert "fp32 (as the run began)" in capsys.readouterr().out


def save_and_stop(self: Training, save=Training.save) -> None:
    save(self)
    raise Interrupted("enough", signal.SIGTERM)


def test_what_breaks_is_told_without_words_of_the_kernels(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TrainingError, match=r"lower optimizer\.lr"):
        pretrain_config(config("optimizer.lr=1e10"), Path("run"))
    assert "plain formula" not in caplog.text


def test_info_tells_of_texts(capsys: pytest.CaptureFixture[str]) -> None:
    Path("texts").mkdir()
    Path("texts/a.md").write_text("words and more words. " * 20)
    Path("texts/b.txt").write_bytes(b"\0")
    for source in ("text.txt", "texts"):
        assert call("info", source) == 0
        said = capsys.readouterr().out
        assert "1 document," in said and "bytes of text" in said and f"feedfwd pretrain {source}" in said
    assert "b.txt is a binary file" in said
    Path("empty").mkdir()
    assert call("info", "empty") == 2


def test_short_runs_are_evaluated_seldom() -> None:
    def looks(*settings: str) -> int:
        pretrain_config(config(*settings), Path("run"))
        events = [json.loads(line)["event"] for line in Path("run/log.jsonl").read_text().splitlines()]
        shutil.rmtree("run")
        return events.count("validation") - 1  # the last one is not on the way

    assert looks("train.steps=12") == 0, "on fewer tokens than an evaluation takes"
    assert looks("train.steps=200") == 3
    assert looks("train.steps=12", "train.evaluate_every=4") == 2, "unless one says so"
