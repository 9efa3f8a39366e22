"""Studies that several processes share, that are killed, and that search: what is trained, and what isn't again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feedfwd.config import FitConfig
from feedfwd.errors import TrainingError
from feedfwd.recipes import plan as recipe
from feedfwd.recipes.console import Silent
from feedfwd.recipes.finetune import Finetuning
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.recipes.prepare import prepare
from feedfwd.recipes.texts import TextPart
from feedfwd.recipes.training import Training
from feedfwd.study import shared as shared_module
from feedfwd.study.compare import _in_equal_time, compare, planned, resume
from feedfwd.study.plan import Plan
from feedfwd.study.shared import Shared, optuna_module
from feedfwd.study.trainings import Fit, Outcome, Watch

BASE: dict[str, Any] = {
    "source": "iris",
    "train": {"epochs": 3.0, "batch_size": 32},
    "optimizer": {"lr": 0.01},
    "model": {"hidden": [16]},
}
COMMAND = [sys.executable, "-m", "feedfwd.cli", "compare"]


def iris(vary: list[str], seeds: int = 2, **options: Any) -> Plan:
    return planned(BASE, vary, seeds=seeds, **options).checked()[0]


def begun(plan: Plan, folder: Path) -> Shared:
    folder.mkdir(exist_ok=True)
    return Shared.begin(plan, f"sqlite:///{folder / 'study.db'}", folder)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Trainings that take no time, best at a rate of 0.02: told are the rate and the share of it that was trained."""
    found: list[tuple[float, float]] = []

    def run(self: Fit, config: FitConfig, folder: Path, watch: Watch) -> Outcome:
        lr = config.optimizer.lr or 0.01
        accuracy = float(np.exp(-(np.log(lr / 0.02) ** 2))) + 0.001 * config.seed
        found.append((lr, 0.0))
        for share in np.linspace(0.05, 1, 20):
            found[-1] = (lr, float(share))
            watch(float(share), {"accuracy": accuracy * share})
        return Outcome({"accuracy": accuracy}, [(1.0, {"accuracy": accuracy})], 0.01, 100, 200, 10)

    monkeypatch.setattr(Fit, "run", run)
    return found


# --- searches ---------------------------------------------------------------------------------------------------------


def test_halving_drops_what_is_behind_early(told: list[tuple[float, float]], tmp_path: Path) -> None:
    shared = begun(iris(["optimizer.lr=0.0001..1.0"], seeds=3, search="halving", trials=14), tmp_path)
    shared.work()
    states = [row.state for row in shared.rows()]
    assert states.count("done") < 7 and states.count("dropped") + states.count("done") == 14
    assert states[0] == "done", "what the others are judged by is trained whole"
    assert sum(share for _, share in told) < 0.5 * 14 * 3, "less than half of the training"
    best = max((r for r in shared.rows() if r.state == "done"), key=lambda r: r.scores("accuracy", (0, 1, 2)).mean())
    assert 0.005 < best.changes["optimizer.lr"] < 0.08


@pytest.mark.slow
def test_tpe_goes_where_it_is_good(told: list[tuple[float, float]], tmp_path: Path) -> None:
    far = {}
    for search in ("random", "tpe"):
        begun(iris(["optimizer.lr=0.00001..10.0"], search=search, trials=30), tmp_path / search).work()
        later = [lr for lr, _ in told[40:]]  # two trainings each
        far[search] = np.median(np.abs(np.log(np.array(later) / 0.02)))
        told.clear()
    assert far["tpe"] < 0.6 * far["random"]


def test_a_search_of_few_tries_each_once() -> None:
    plan = iris(["ffn.activation=relu,gelu,tanh", "model.hidden=[8],[16]"], search="halving")
    assert None not in plan.queue and len(plan.queue) == 6
    assert len(iris(["ffn.activation=relu,gelu,tanh"], search="random", trials=2).queue) == 2


def test_equal_seconds_are_the_same_minutes_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fit, "seconds", lambda self, config: 30.0 * config.model.hidden[0] / 16)
    plan = _in_equal_time(iris(["model.hidden=[16],[512]"], match="seconds"), Silent())
    assert [plan.trial_config(v, 0).minutes for v in plan.queue if v is not None] == [0.5, 0.5]
    given = planned(BASE, ["model.hidden=[16],[512]"], match="seconds", minutes=2.0)
    assert _in_equal_time(given, Silent()).config.minutes == 2.0


def test_in_equal_seconds_the_faster_one_does_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "tried", lambda p: (0.0006 * p.config.model.hidden[0], 0.0))
    base = {**BASE, "train": {"batch_size": 32}}
    plan = planned(base, ["model.hidden=[16],[64]"], seeds=2, match="seconds", minutes=0.01)
    shared = begun(plan.checked()[0], tmp_path)
    shared.work()
    small, large = (row.outcomes[0]["steps"] for row in shared.rows())
    assert small == pytest.approx(4 * large, rel=0.15) and 40 < small < 70


# --- after a kill -----------------------------------------------------------------------------------------------------


def test_a_study_begun_in_half_is_begun_whole(
    told: list[tuple[float, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_module, "PATIENCE", 0.5)
    plan = iris(["ffn.activation=relu,tanh,gelu"])
    study = optuna_module().create_study(
        storage=f"sqlite:///{tmp_path / 'study.db'}", study_name=plan.name, direction="maximize"
    )
    study.enqueue_trial({"ffn.activation": "relu"}, user_attrs={"number": 0})  # and then it was killed
    shared = begun(plan, tmp_path)
    shared.work()
    assert [row.label for row in shared.rows() if row.state == "done"] == ["relu", "tanh", "gelu"]
    assert len(told) == 6


def test_after_its_time_only_what_others_are_judged_by_is_trained(
    told: list[tuple[float, float]], tmp_path: Path
) -> None:
    shared = begun(iris(["ffn.activation=relu,tanh,gelu"]), tmp_path)
    shared.end_at(time.time() - 1)
    shared.work()
    assert [row.state for row in shared.rows()] == ["done", "waiting", "waiting"] and not shared.unfinished


def test_one_that_comes_later_waits_for_what_is_in_work(told: list[tuple[float, float]], tmp_path: Path) -> None:
    first = begun(iris(["ffn.activation=relu,tanh"]), tmp_path)
    trial = first.study.ask()  # a process of this machine that is no more
    trial.set_user_attr("worker", f"{os.uname().nodename}:99999999")
    second = begun(iris(["ffn.activation=relu,tanh"]), tmp_path)
    second.work()
    assert [row.state for row in second.rows()] == ["done", "done"] and len(told) == 4


@pytest.mark.slow
@pytest.mark.parametrize("after", [7.0, 11.0])
def test_a_killed_study_goes_on(tmp_path: Path, after: float) -> None:
    vary = ["iris", "--vary", "ffn.activation=relu,tanh,gelu,silu", "--seeds", "4", "--set", "train.epochs=40"]
    run = tmp_path / "s"
    process = subprocess.Popen([*COMMAND, *vary, "--run", str(run)], start_new_session=True, stdout=subprocess.DEVNULL)
    end = time.monotonic() + after
    while process.poll() is None and (time.monotonic() < end or not (run / "study.json").exists()):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    found = resume(run)
    assert len(found.done) == 4 and all(len(row.outcomes) == 4 for row in found.done)
    assert json.loads((run / "result.json").read_text())["test_n"] == 30


@pytest.mark.slow
def test_two_processes_share_one_storage(tmp_path: Path) -> None:
    """The same command twice at once: each training is done by one of them, and both say the same."""
    vary = ["iris", "--vary", "ffn.activation=relu,tanh,gelu,silu,elu,mish", "--seeds", "3", "--workers", "1"]
    shared = ["--storage", f"sqlite:///{tmp_path / 'both.db'}", "--set", "train.epochs=40"]
    both = [
        subprocess.Popen([*COMMAND, *vary, *shared, "--run", str(tmp_path / name)], stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in "ab"]
    assert results[0]["best"] == results[1]["best"] and results[0]["variants"] == results[1]["variants"]
    assert results[0]["test"] == results[1]["test"], said
    assert sum((tmp_path / name / "winner").exists() for name in "ab") == 1, "one of them opens the test part"
    study = optuna_module().load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'both.db'}")
    done = [t for t in study.get_trials() if t.state.name == "COMPLETE"]
    assert sorted(t.user_attrs["number"] for t in done) == list(range(6)), "each once"
    assert len({t.user_attrs["worker"] for t in done}) == 2, said


@pytest.mark.slow
def test_workers_whose_every_training_fails_say_why(tmp_path: Path) -> None:
    base = BASE | {"optimizer": {"name": "sgd"}}
    with pytest.raises(TrainingError, match=r"every variant failed.*finite"):
        compare(planned(base, ["optimizer.lr=1e30,1e31"], seeds=2), None, tmp_path / "s", workers=2)
    assert not (tmp_path / "s/winner").exists()


# --- other verbs ------------------------------------------------------------------------------------------------------


def texts(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    words = [["bad", "poor", "sad"], ["good", "fine", "nice"]]
    rows = [f"{rng.choice(words[y])} {rng.choice(words[y])} {i},{['no', 'yes'][y]}" for i in range(80) for y in (0, 1)]
    (folder / "t.csv").write_text("text,label\n" + "\n".join(rows))
    return folder / "t.csv"


def test_fine_tuning_is_compared(tmp_path: Path) -> None:
    base: Mapping[str, Any] = {"train": {"steps": 6}, "bag": {"buckets": 512, "width": 8}}
    plan = planned({"source": str(texts(tmp_path)), **base}, ["bag.hidden=[],[8]"], verb="finetune", seeds=2)
    found = compare(plan, None, tmp_path / "s", workers=1)
    assert len(found.done) == 2 and found.test_n == 32
    assert (tmp_path / "s/winner/model.safetensors").is_file() and (tmp_path / "s/report.html").is_file()


def test_fine_tuning_opens_the_test_part_for_the_winner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[tuple[str, int]] = []
    scores = Finetuning._scores

    def counted(self: Finetuning, part: TextPart) -> Any:
        if part is self.p.test:
            scored.append((self.run.path.name, len(part)))
        return scores(self, part)

    monkeypatch.setattr(Finetuning, "_scores", counted)
    base: Mapping[str, Any] = {"train": {"steps": 6}, "bag": {"buckets": 512, "width": 8}}
    plan = planned({"source": str(texts(tmp_path)), **base}, ["bag.hidden=[],[8]"], verb="finetune", seeds=2)
    found = compare(plan, None, tmp_path / "s", workers=1)
    assert scored == [("winner", 32)]
    assert all(row.outcomes[0]["curve"][-1][0] == 1.0 for row in found.done), "the last look is part of the curve"
    assert not (tmp_path / "s/trials").exists(), "nothing is left of trainings that no one needs"


@pytest.mark.parametrize("verb", ["finetune", "pretrain"])
def test_a_training_that_was_stopped_goes_on_from_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    source = texts(tmp_path)
    if verb == "finetune":
        base: dict[str, Any] = {"source": str(source), "train": {"steps": 6}, "bag": {"buckets": 512, "width": 8}}
    else:
        base = {"sources": [str(source)], "size": "pico", "train": {"steps": 6, "batch_size": 2}, "model": {"depth": 1}}
        base |= {"data": {"tokenizer": "bytes", "row": 32}}
    plan = planned(base, ["optimizer.lr=0.001,0.002"], verb=verb, seeds=2)
    steps: list[tuple[str, int]] = []
    log = Training._log_step

    def stopped(self: Training, step: Any, meter: Any) -> None:
        log(self, step, meter)
        steps.append((self.run.path.name, step.n))
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Training, "_log_step", stopped)
    with pytest.raises(Interrupted, match="stopped with 0 of 2 variants done; go on with: feedfwd compare --resume"):
        compare(plan, None, tmp_path / "s", workers=1)
    found = resume(tmp_path / "s")
    assert len(found.done) == 2
    assert [n for name, n in steps if name == "0-seed-0"] == [1, 2, 3, 4, 5, 6]


def test_texts_have_one_test_part_for_all_seeds(tmp_path: Path) -> None:
    from feedfwd.recipes.labelled_parts import parts

    plan = planned({"source": str(texts(tmp_path))}, ["bag.hidden=[],[8]"], verb="finetune", seeds=3)
    found = [parts(plan.trial_config(plan.queue[0] or {}, seed)) for seed in plan.seeds]  # type: ignore[arg-type]
    assert len({tuple(of[2][0]) for of in found}) == 1
    assert len({tuple(of[1][0]) for of in found if of[1]}) == 3


def test_pretraining_is_compared(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    base = {"sources": [str(tmp_path / "t.txt")], "size": "pico", "train": {"steps": 2, "batch_size": 2}}
    base |= {"data": {"tokenizer": "bytes", "row": 32}, "model": {"depth": 1}}
    plan = planned(base, ["ffn.activation=swiglu,gelu"], verb="pretrain", seeds=2, match="parameters")
    found = compare(plan, None, tmp_path / "s")
    assert len(found.done) == 2 and plan.checked()[0].score == "bits_per_byte"
    counts = [o["parameters"] for row in found.done for o in row.outcomes.values()]
    assert max(counts) <= 1.01 * min(counts)
    assert "size" in (tmp_path / "s/winner.toml").read_text() and found.test is None


def test_other_seeds_hold_other_examples_back_and_none_of_the_test_part() -> None:
    plan = iris(["ffn.activation=relu,tanh"], seeds=3)
    found = [prepare(plan.trial_config({"ffn.activation": "relu"}, seed)) for seed in plan.seeds]  # type: ignore[arg-type]
    test = set(found[0].test.data.rows.tolist())  # type: ignore[union-attr]
    for p in found:
        assert p.validation is not None
        assert not test & {*p.train.data.rows.tolist(), *p.validation.data.rows.tolist()}  # type: ignore[union-attr]


def test_a_new_storage_can_be_opened_by_several_at_once(tmp_path: Path) -> None:
    """All find no tables, one makes them: the others look again instead of failing."""
    url, together = f"sqlite:///{tmp_path / 'new.db'}", threading.Barrier(4)

    def opened(_: int) -> str:
        together.wait()
        return shared_module._storage(url).engine.dialect.name

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(opened, range(4))) == ["sqlite"] * 4
