"""Several yes/no targets of a table, learnt at once: from the file to answers for raw rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest

import feedfwd as ff
from feedfwd.checkpoint import Run
from feedfwd.config import FitConfig
from feedfwd.data.split import fold, split
from feedfwd.data.tables import load_table
from feedfwd.errors import ConfigError, DataError
from feedfwd.evaluate.several import label_details, label_scores
from feedfwd.recipes.apply import evaluate_run, predict_run
from feedfwd.recipes.console import Silent
from feedfwd.recipes.fit import dry_run, fit_config, resume
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.recipes.prepare import prepare

N = 900
TARGETS = ["hot", "ripe", "sort"]


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def frame() -> polars.DataFrame:
    """A label of each form: a boolean, numbers 0 and 1 of which 1 is rare, two names; a column that tells nothing."""
    generator = np.random.default_rng(0)
    x, z = generator.uniform(-3, 3, (2, N))
    kind = generator.integers(0, 3, N)
    return polars.DataFrame(
        {
            "x": x,
            "z": z,
            "kind": np.array(["low", "middle", "high"])[kind],
            "noise": generator.normal(size=N),
            "hot": np.sin(2 * x) > 0,
            "ripe": ((z > 1.4) & (kind > 0)).astype(int),
            "sort": np.where(x + kind > 1, "plum", "apple"),
        }
    )


@pytest.fixture(scope="module")
def source(frame: polars.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "fruit.csv"
    frame.write_csv(path)
    return path


def config(source: Path, **settings: Any) -> FitConfig:
    found = FitConfig(source=str(source), target=TARGETS)
    for key, value in ({"train.epochs": 40, "model.hidden": [64]} | settings).items():
        found = found.with_(key, value)
    return found


@pytest.fixture(scope="module")
def run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    fit_config(config(source), path)
    return path


def test_all_labels_are_learnt_beyond_chance(run: Path) -> None:
    result = Run(run).read_json(run / "result.json")
    shown, test = result["test_details"], result["test"]
    assert result["task"] == shown["kind"] == "labels"
    assert test["macro_f1"] > 0.85 > 0.7 > shown["baseline"]["macro_f1"]  # of always saying yes
    assert test["exact"] > 0.75 and test["auroc"] > 0.95
    assert [row["class"] for row in shown["per_class"]] == TARGETS
    assert all(row["f1"] > 0.75 and row["accuracy"] > 0.85 and row["auroc"] > 0.9 for row in shown["per_class"])
    for name in ("macro_f1", "micro_f1", "exact"):
        low, high = shown["intervals"][name]
        assert low < test[name] < high or low <= test[name] == high == 1


def test_neighbours_importance_and_dependence_take_every_label(run: Path) -> None:
    table = Run(run).read_json(run / "result.json")["table"]
    linear, trees = (row["scores"] for row in table["neighbours"])
    assert trees["macro_f1"] > 0.85 > linear["macro_f1"]  # no line follows a sine
    assert table["alone"] == "" and table["importance"][-1]["column"] == "noise"
    of = {d["column"]: d for d in table["dependence"]}
    assert of["z"]["of"] == "probability of ripe=1" and of["kind"]["of"] == "probability of sort=plum"
    assert of["z"]["points"][0][1] < 0.05 < 0.3 < of["z"]["points"][-1][1]


def test_the_report_shows_each_label(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "<h2>Labels</h2>" in page and "all labels right" in page and "always answering yes to every label" in page
    assert all(f"<tr><th>{name}</th>" in page for name in TARGETS) and "histogram gradient boosting" in page
    command = Run(run).read_json(run / "result.json")["command"]
    assert command.endswith(
        "--target hot --target ripe --target sort --set train.epochs=40.0 --set 'model.hidden=[64]'"
    )


def test_raw_rows_are_answered_in_the_columns_own_words(run: Path, frame: polars.DataFrame) -> None:
    loaded, rows = ff.load(run), frame.drop(TARGETS)
    given, p = loaded.predict(rows), loaded.predict_proba(rows)
    assert given.shape == p.shape == (N, 3) and p.min() >= 0 and p.max() <= 1
    assert [set(column) for column in given.T] == [{"true", "false"}, {"0", "1"}, {"apple", "plum"}]
    truth = np.stack([frame["hot"].cast(polars.String), frame["ripe"].cast(polars.String), frame["sort"]], 1)
    assert (given == truth).mean() > 0.93
    np.testing.assert_array_equal(given[:, 2] == "plum", p[:, 2] >= 0.5)
    np.testing.assert_allclose(loaded.predict_proba(rows.head(5).to_dicts()), p[:5], rtol=1e-4, atol=1e-6)


def test_predict_and_evaluate_take_files(run: Path, source: Path, frame: polars.DataFrame, tmp_path: Path) -> None:
    predict_run(run, str(source), tmp_path / "out.jsonl", Silent())
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == N and list(rows[0]) == ["example", *(f"{t}{e}" for t in TARGETS for e in ("", " probability"))]
    assert all(row["sort"] in ("apple", "plum") and 0.5 <= row["sort probability"] <= 1 for row in rows)
    heard = Heard()
    assert evaluate_run(run, None, heard) == Run(run).read_json(run / "result.json")["test"]
    assert any(line.strip().startswith("ripe: F1") and "AUROC" in line for line in heard.lines)
    one_sided = frame.filter(~polars.col("hot") & (polars.col("sort") == "apple"))  # by itself it tells no two names
    one_sided.with_columns(polars.col("hot").cast(polars.String).str.to_uppercase()).write_csv(tmp_path / "some.csv")
    assert evaluate_run(run, str(tmp_path / "some.csv"), Silent())["exact"] > 0.7
    frame.with_columns(polars.lit("pear").alias("sort")).write_csv(tmp_path / "other.csv")
    with pytest.raises(DataError, match="'sort' has 'pear', which is neither 'apple' nor 'plum'"):
        evaluate_run(run, str(tmp_path / "other.csv"), Silent())


def test_an_ensemble_means_each_label_by_itself(source: Path, tmp_path: Path) -> None:
    predictor = fit_config(config(source, **{"model.members": 4, "train.epochs": 15}), tmp_path / "run")
    assert predictor.result["test"]["macro_f1"] > 0.8
    x = predictor.transform(polars.read_csv(source).head(50))
    members = predictor.model.train()(x).sigmoid().mean(1).detach()  # no dropout changes a mean so much
    np.testing.assert_allclose(predictor.answers(x), members, atol=0.25)
    assert float(predictor.answers(x).sum(1).max()) > 1.2  # which a softmax over the labels can't give


def test_a_killed_training_resumes_to_the_same_bits(source: Path, tmp_path: Path) -> None:
    c = config(source, **{"train.epochs": 6, "train.save_every": 10})
    fit_config(c, tmp_path / "whole")

    class Stopping(Silent):
        def progress(self, step: int, total: int, text: str) -> None:
            if step > total // 2:
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        fit_config(c, tmp_path / "cut", Stopping())
    resume(tmp_path / "cut")
    whole, cut = (Run(tmp_path / name).read_json(tmp_path / name / "result.json") for name in ("whole", "cut"))
    assert whole["test"] == cut["test"] and whole["task"] == cut["task"] == "labels"
    name = "model.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_dry_run_says_what_would_be_learnt(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    heard = Heard()
    dry_run(config(source), heard)
    assert any("3 yes/no labels: hot, ripe, sort" in line for line in heard.lines)
    assert any("what counts as yes: sort=plum" in line for line in heard.lines)
    assert any('name = "binary_cross_entropy"' in line for line in heard.lines) and not list(tmp_path.iterdir())


def test_what_counts_as_yes() -> None:
    rows = {"x": [0.5 * i for i in range(40)], "n": [i % 2 for i in range(40)]}
    for words in (("No", "Yes"), ("f", "T"), ("FALSE", "true")):
        data = load_table({**rows, "a": [words[i % 4 == 0] for i in range(40)]}, ["a", "n"])
        assert data.answers == (tuple(w.lower() for w in words), ("0", "1")) and data.task == "labels"
        assert data.targets[:, 0].tolist() == [float(i % 4 == 0) for i in range(40)]
    rare = load_table({**rows, "a": [int(i < 2) for i in range(40)]}, ["a", "n"])
    assert any("labels are uneven: a is yes in 5 % of the rows" in note for note in rare.notes)
    both = {**rows, "a": [i % 2 for i in range(40)]}
    assert load_table(both, ["a", "n"], task="regress").task == "regress"
    assert load_table({**rows, "a": [i % 3 for i in range(40)]}, ["a", "n"]).task == "regress"


def test_what_cannot_be_learnt_is_said(source: Path, frame: polars.DataFrame, tmp_path: Path) -> None:
    for name, message in (("loss.name", "cross_entropy"), ("loss.class_weights", "balanced")):
        with pytest.raises(ConfigError, match="the targets are several labels"):
            prepare(config(source, **{name: message}))
    frame.with_columns(polars.lit(0).alias("ripe")).write_csv(tmp_path / "same.csv")
    with pytest.raises(DataError, match="label 'ripe' is the same in every row"):
        prepare(config(tmp_path / "same.csv"))
    frame.with_columns((polars.col("ripe") * 3).alias("told")).write_csv(tmp_path / "told.csv")
    notes = prepare(config(tmp_path / "told.csv")).notes
    assert any("column 'told' alone tells 100.0 % of 'ripe'" in note for note in notes)


def test_a_rare_label_stands_in_both_parts() -> None:
    rows = {
        "x": [0.5 * i for i in range(200)],
        "n": [i % 2 for i in range(200)],
        "rare": [int(i < 10) for i in range(200)],
    }
    data = load_table(rows, ["n", "rare"])
    for seed in range(20):
        rest, part = split(data, 0.2, seed)
        assert 1 <= int(part.targets[:, 1].sum()) <= 3 and int(rest.targets[:, 1].sum()) >= 7
        assert [int(fold(data, 5, k, seed)[1].targets[:, 1].sum()) for k in range(5)] == [2] * 5


def test_left_out_neighbours_are_said(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedfwd.evaluate.tables.MOST_CELLS", 1000)
    heard = Heard()
    fit_config(config(source, **{"train.epochs": 1}), tmp_path / "run", heard)
    assert any("no simpler models beside it: the table is so large" in line for line in heard.lines)
    assert "No simpler models beside this one" in (tmp_path / "run/report.html").read_text()


def test_scores_are_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    generator = np.random.default_rng(1)
    y = (generator.random((300, 4)) < [0.5, 0.2, 0.1, 0.7]).astype(float)
    p = np.clip(0.3 * y + generator.random((300, 4)) * 0.7, 0, 1)
    scores, shown = label_scores(p, y), label_details(p, y, list("abcd"))
    assert scores["macro_f1"] == pytest.approx(f1_score(y, p >= 0.5, average="macro"))
    assert scores["exact"] == pytest.approx(accuracy_score(y, p >= 0.5))
    for c, row in enumerate(shown["per_class"]):
        assert row["accuracy"] == pytest.approx(accuracy_score(y[:, c], p[:, c] >= 0.5))
        assert row["auroc"] == pytest.approx(roc_auc_score(y[:, c], p[:, c]))
    assert shown["baseline"]["macro_f1"] == pytest.approx(f1_score(y, np.ones_like(y), average="macro"))
    draws = np.random.default_rng(0).integers(300, size=(1000, 300))
    resampled = [f1_score(y[d], p[d] >= 0.5, average="macro") for d in draws[:200]]
    assert shown["intervals"]["macro_f1"] == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.02)


@pytest.fixture
def compared(source: Path, tmp_path: Path) -> Callable[..., Any]:
    pytest.importorskip("optuna")
    from feedfwd.study import compare as study

    def run(score: str | None) -> Any:
        base = config(source, **{"train.epochs": 2}).said()
        plan = study.planned(base, ["model.hidden=[4],[64]"], seeds=2, score=score)
        return study.compare(plan, run=tmp_path / "study")

    return run


@pytest.mark.parametrize("score", [None, "log_loss"])
def test_labels_can_be_compared(compared: Callable[..., Any], tmp_path: Path, score: str | None) -> None:
    compared(score)
    study = tmp_path / "study"
    assert json.loads((study / "result.json").read_text())["score"] == (score or "macro_f1")
    assert Run(study / "winner").read_json(study / "winner/result.json")["task"] == "labels"


def test_the_command_line_compares_all_targets(source: Path) -> None:
    pytest.importorskip("optuna")
    from typer.testing import CliRunner

    from feedfwd.cli import app

    targets = [word for name in TARGETS for word in ("--target", name)]
    vary = ["--vary", "model.hidden=[4],[8]", "--set", "train.epochs=1", "--dry-run"]
    found = CliRunner().invoke(app, ["compare", str(source), *targets, *vary])
    assert found.exit_code == 0 and "macro F1" in found.output  # of one target alone it would be accuracy


def test_an_examples_losses_average_to_the_score(run: Path, source: Path) -> None:
    from feedfwd.study.trainings import example_losses

    loaded, data = ff.load(run), load_table(str(source), TARGETS)
    p = loaded.predict_proba(polars.read_csv(source).drop(TARGETS))
    scores = label_scores(p, data.targets.numpy())
    for name, wanted in (("log_loss", scores["log_loss"]), ("exact", 1 - scores["exact"])):
        losses = example_losses(name, p, data.targets.numpy())
        assert losses is not None and losses.mean() == pytest.approx(wanted)
    assert example_losses("macro_f1", p, data.targets.numpy()) is None
