"""From a table's file to a run that predicts for raw rows."""

import json
from pathlib import Path

import numpy as np
import polars
import pytest

import feedfwd as ff
from feedfwd.checkpoint import Run
from feedfwd.config import FitConfig
from feedfwd.recipes.apply import evaluate_run, predict_run
from feedfwd.recipes.console import Silent
from feedfwd.recipes.fit import fit_config, resume
from feedfwd.recipes.interrupt import Interrupted

N = 600


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    x, kind = generator.uniform(-3, 3, N), generator.integers(0, 3, N)
    y = np.sin(2 * x) + kind + 0.1 * generator.normal(size=N)
    path = tmp_path_factory.mktemp("tables") / "waves.csv"
    names = np.array(["low", "middle", "high"])[kind]
    noise = generator.normal(size=N)
    polars.DataFrame({"x": x, "kind": names, "noise": noise, "y": y, "big": y > 1}).write_csv(path)
    return path


def config(source: Path, target: str, **settings: object) -> FitConfig:
    other = "big" if target == "y" else "y"
    found = FitConfig(source=str(source), target=[target]).with_("data.drop", [other])
    for key, value in ({"train.epochs": 40, "model.hidden": [64]} | settings).items():
        found = found.with_(key, value)
    return found


def test_a_regression_learns_and_reports(source: Path, tmp_path: Path) -> None:
    predictor = fit_config(config(source, "y"), tmp_path / "run")
    result = predictor.result
    assert result["task"] == "regression" and result["test"]["r2"] > 0.9
    table = result["table"]
    assert [row["name"] for row in table["neighbours"]] == ["linear model", "histogram gradient boosting"]
    assert table["neighbours"][0]["scores"]["r2"] < 0.8 < table["neighbours"][1]["scores"]["r2"]
    assert table["importance"][-1]["column"] == "noise" and abs(table["importance"][-1]["worse"]) < 0.1
    kinds = next(d for d in table["dependence"] if d["column"] == "kind")
    means = dict(kinds["points"])
    assert means["low"] < means["middle"] < means["high"]
    page = (tmp_path / "run/report.html").read_text()
    assert "Neighbours" in page and "histogram gradient boosting" in page and "Dependence" in page
    drawn = page[page.index("<h2>Dependence") :]
    assert drawn.count('aria-label="') >= 1 and "kind" in drawn, "numbers as curves, names as a table"
    assert "--target y" in result["command"]


@pytest.mark.parametrize("settings", [{"model.members": 4}, {"loss.name": "binary_cross_entropy", "model.members": 3}])
def test_an_ensemble_learns_and_a_loaded_run_answers_the_same(
    source: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    trained = fit_config(config(source, "big", **settings), tmp_path / "run")
    assert trained.result["test"]["accuracy"] > 0.85
    loaded = ff.load(tmp_path / "run")
    rows = polars.read_csv(source).head(20)
    given = loaded.predict_proba(rows)
    np.testing.assert_array_equal(given, trained.predict_proba(rows))
    np.testing.assert_allclose(given, loaded.predict_proba(rows.to_dicts()), rtol=1e-6)
    np.testing.assert_allclose(given.sum(1), 1, rtol=1e-5)
    assert set(loaded.predict(rows)) <= {"true", "false"}


def test_predict_and_evaluate_take_files(source: Path, tmp_path: Path) -> None:
    fit_config(config(source, "big", **{"train.epochs": 3}), tmp_path / "run")
    own = evaluate_run(tmp_path / "run", None, Silent())
    assert own["accuracy"] == Run(tmp_path / "run").read_json(tmp_path / "run/result.json")["test"]["accuracy"]
    assert set(evaluate_run(tmp_path / "run", str(source), Silent())) == set(own)
    predict_run(tmp_path / "run", str(source), tmp_path / "out.jsonl", Silent())
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == N and rows[0].keys() == {"example", "prediction", "probability"}


def test_a_killed_training_resumes_to_the_same_bits(source: Path, tmp_path: Path) -> None:
    c = config(source, "y", **{"model.members": 3, "train.epochs": 6, "train.save_every": 10})
    fit_config(c, tmp_path / "whole")

    class Stopping(Silent):
        def progress(self, step: int, total: int, text: str) -> None:
            if step > total // 2:
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        fit_config(c, tmp_path / "cut", Stopping())
    resume(tmp_path / "cut")
    name = "model.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_several_numbers_are_predicted_together(source: Path, tmp_path: Path) -> None:
    c = FitConfig(source=str(source), target=["y", "noise"]).with_("data.drop", ["big"]).with_("train.epochs", 3)
    predictor = fit_config(c, tmp_path / "run")
    assert predictor.predict(polars.read_csv(source).head(7)).shape == (7, 2)
    assert predictor.result["table"]["neighbours"] == []


def test_a_time_split_tests_on_the_latest(source: Path, tmp_path: Path) -> None:
    predictor = ff.fit(
        str(source),
        target="big",
        split="time:x",
        run=tmp_path / "run",
        settings={"data.drop": ["y"], "train.epochs": 2, "model.hidden": [8]},
    )
    assert predictor.result["sizes"]["test"] == 120
    assert [c.name for c in predictor.preprocess.columns] == ["kind", "noise"]  # type: ignore[union-attr]
