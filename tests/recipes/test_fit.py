"""The way from a source to a finished run, on scikit-learn's small data sets."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import feedfwd as ff
from feedfwd.checkpoint import Run
from feedfwd.config import FitConfig, overrides, parse
from feedfwd.errors import FeedfwdError
from feedfwd.recipes.fit import dry_run, fit_config
from feedfwd.recipes.prepare import prepare
from feedfwd.recipes.say import command, overview

SHORT = {"train.epochs": 8, "optimizer.lr": 0.003, "train.batch_size": 64, "model.hidden": [32]}


def short(source: str, **settings: object) -> FitConfig:
    config = FitConfig(source=source)
    for key, value in {**SHORT, **{k.replace("__", "."): v for k, v in settings.items()}}.items():
        config = config.with_(key, value)
    return config


def test_a_run_holds_everything_and_repeats(tmp_path: Path) -> None:
    predictor = fit_config(short("digits"), tmp_path / "a")
    names = {p.name for p in (tmp_path / "a").iterdir()}
    assert names == {
        "config.toml",
        "preprocess.json",
        "model.safetensors",
        "log.jsonl",
        "result.json",
        "report.html",
    }
    result = predictor.result
    assert result["test"]["accuracy"] > 0.85
    assert result["validation"]["accuracy"] > 0.8
    assert result["sizes"]["train"] + result["sizes"]["validation"] + result["sizes"]["test"] == 1797
    assert result["task"] == "multiclass" and result["parameters"] == 64 * 32 + 32 + 32 * 10 + 10
    assert 0 < result["seconds"]["train"] < result["seconds"]["total"]
    events = [json.loads(line) for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    assert events[0]["event"] == "start" and events[-1]["event"] == "end"
    assert {"step", "validation"} <= {e["event"] for e in events}

    fit_config(short("digits"), tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    again = parse(FitConfig, Run.open(tmp_path / "a").settings())
    fit_config(again, tmp_path / "c")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "c/model.safetensors").read_bytes()


def test_a_loaded_run_predicts_as_the_trained_one(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    trained = fit_config(short("digits"), tmp_path / "run")
    moved = tmp_path / "elsewhere"
    (tmp_path / "run").rename(moved)
    loaded = ff.load(moved)
    images, labels = load_digits(return_X_y=True)
    assert isinstance(loaded.model, torch.nn.Module) and not loaded.model.training
    np.testing.assert_array_equal(loaded.predict_proba(images), trained.predict_proba(images))
    np.testing.assert_array_equal(loaded.predict(images), loaded.predict(images.reshape(-1, 8, 8)))
    assert (loaded.predict(images) == labels.astype(str)).mean() > 0.85
    assert "accuracy" in loaded._repr_html_()


def test_regression_answers_in_the_targets_units(tmp_path: Path) -> None:
    predictor = fit_config(short("diabetes", train__epochs=40), tmp_path / "run")
    test = predictor.result["test"]
    assert set(test) == {"rmse", "mae", "r2"} and 40 < test["rmse"] < 70 and test["r2"] > 0.25
    answers = predictor.predict(np.zeros((3, 10), np.float32))
    assert answers.shape == (3,) and 50 < answers[0] < 250


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "focal"])
def test_a_binary_task_takes_one_logit_or_two(tmp_path: Path, loss: str) -> None:
    predictor = fit_config(short("breast_cancer", loss__name=loss), tmp_path / "run")
    assert predictor.model.sizes[-1] == (1 if loss == "binary_cross_entropy" else 2)
    assert predictor.result["task"] == "binary" and predictor.result["test"]["auroc"] > 0.95
    probabilities = predictor.predict_proba(np.zeros((4, 30), np.float32))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"ffn__activation": "swiglu"},
        {"model__residual": True, "model__norm": "rms", "ffn__activation": "geglu"},
        {"model__norm": "batch", "model__noise": 0.2, "model__input_dropout": 0.1, "ffn__dropout": 0.1},
        {"data__mixup": 0.2, "data__noise": 0.1, "train__ema": 0.9, "train__clip": 1.0},
        {"data__deform__rotation": 5.0, "data__deform__elastic": 0.3, "loss__label_smoothing": 0.1},
        {"optimizer__name": "muon", "schedule__name": "warmup_stable_decay", "train__accumulate": 2},
        {"loss__class_weights": "balanced", "train__precision": "bf16"},
        {"model__hidden": [16, 16, 16, 16], "ffn__kind": "stranger:Maxout"},
    ],
    ids=lambda s: ",".join(s),
)
def test_every_part_trains(tmp_path: Path, settings: dict[str, object]) -> None:
    predictor = fit_config(short("digits", train__epochs=12, **settings), tmp_path / "run")
    assert predictor.result["test"]["accuracy"] > 0.8
    x = torch.rand(5, 8, 8) * 16
    np.testing.assert_array_equal(ff.load(tmp_path / "run").predict_proba(x), predictor.predict_proba(x))


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    config = short("wine", train__patience=2, train__epochs=200, optimizer__lr=0.05, train__evaluate_every=5)
    predictor = fit_config(config, tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = {e["step"]: e["scores"]["log_loss"] for e in events if e["event"] == "validation"}
    result = predictor.result
    assert result["steps"] < 200 * 2 and result["validation"]["log_loss"] == pytest.approx(min(losses.values()))
    assert any("stopped early" in note for note in result["notes"])


def test_the_test_part_plays_no_role_in_training(tmp_path: Path) -> None:
    """Other test examples, the same training examples: the same weights."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 5)).astype(np.float32), rng.integers(0, 2, 200)
    for name, seed in (("one", 1), ("two", 2)):
        other = np.random.default_rng(seed)
        extra = {"x_test": other.normal(size=(50, 5)).astype(np.float32) * seed, "y_test": other.integers(0, 2, 50)}
        np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=y, **extra)
        config = short(str(tmp_path / f"{name}.npz")).with_("optimizer.lr", 0.01)
        fit_config(config, tmp_path / name)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_a_rate_not_given_is_found_and_kept(tmp_path: Path) -> None:
    config = FitConfig(source="wine").with_("train.epochs", 5)
    fit_config(config, tmp_path / "run")
    settings = Run.open(tmp_path / "run").settings()
    assert 1e-5 < settings["optimizer"]["lr"] < 1
    events = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    found = next(e for e in events if e["event"] == "range_test")
    assert found["suggested"] == settings["optimizer"]["lr"] and len(found["lrs"]) == len(found["losses"])


def test_minutes_fix_the_number_of_updates(tmp_path: Path) -> None:
    config = parse(FitConfig, {**short("digits").said(), "minutes": 0.03})
    predictor = fit_config(config, tmp_path / "run")
    settings = Run.open(tmp_path / "run").settings()
    assert settings["train"]["steps"] == predictor.result["steps"] and "minutes" not in settings
    assert 0.2 < predictor.result["seconds"]["train"] < 10


def test_folds_cover_everything_once() -> None:
    rows = []
    for fold in range(3):
        config = short("iris", data__folds=3, data__fold=fold, data__validation=0.0)
        found = prepare(config).test.data.rows
        assert found is not None
        rows += found.tolist()
    assert sorted(rows) == list(range(150))


def test_python_and_command_share_errors(tmp_path: Path) -> None:
    with pytest.raises(FeedfwdError, match="digits"):
        ff.fit("digit", run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Listener:
        text = ""

        def say(self, text: str) -> None:
            self.text += text + "\n"

        def progress(self, step: int, total: int, text: str) -> None:
            raise AssertionError("a dry run makes no progress")

    monkeypatch.chdir(tmp_path)
    listener = Listener()
    prepared = dry_run(short("digits"), listener)
    for word in ("digits", "2,410 parameters", "MB of memory", "of training", "batch_size = 64", "FLOPs"):
        assert word in listener.text
    assert prepared.steps == 8 * 21 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["digits", "diabetes"])
def test_the_fast_path_gives_what_autograd_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    config = short(source, train__epochs=3, data__noise=0.1, train__ema=0.9)
    fast = fit_config(config, tmp_path / "fast").model.state_dict()
    monkeypatch.setattr("feedfwd.recipes.prepare.lacks", lambda model, optimizer: "a test wants autograd")
    plain = fit_config(config, tmp_path / "plain").model.state_dict()
    for name, tensor in plain.items():
        torch.testing.assert_close(fast[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("effort", ["quick", "standard", "best"])
def test_the_command_of_a_run_repeats_it(effort: str) -> None:
    said = parse(FitConfig, {"source": "wine", "effort": effort, "data": {"noise": 0.0}, "ffn": {"dropout": 0.0}})
    prepared = prepare(said)
    config = prepared.config.with_("optimizer.lr", 0.01)
    words = shlex.split(command(config, prepared.usual))
    pairs = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    again = parse(FitConfig, {"source": "wine", "effort": effort, **overrides(pairs)})
    assert prepare(again).config == config


@pytest.mark.parametrize("source", ["digits", "wine", "diabetes"])
def test_the_command_says_only_what_the_effort_does_not(source: str) -> None:
    plain = prepare(parse(FitConfig, {"source": source, "effort": "quick"}))
    assert command(plain.config, plain.usual) == f"feedfwd fit {source} --effort quick"
    changed = prepare(parse(FitConfig, {"source": source, "effort": "quick", "ffn": {"activation": "gelu"}}))
    said = f"feedfwd fit {source} --effort quick --set ffn.activation=gelu"
    assert command(changed.config, changed.usual) == said
    again = prepare(changed.frozen(), resolved=True)  # as resuming does
    kept = parse(FitConfig, {**again.config.model_dump(), "train": changed.config.train.model_dump()})
    assert command(kept, again.usual) == said


def test_what_finds_the_gradients_is_said() -> None:
    fast, plain = (prepare(short("digits", model__norm=norm)) for norm in ("none", "layer"))
    assert any("gradients by the chain rule in " in line for line in overview(fast))
    assert any("gradients by autograd (a layer is normalised)" in line for line in overview(plain))


def test_adversarial_training_moves_the_inputs_uphill(tmp_path: Path) -> None:
    """At the same small size, a step along the gradient's sign costs a network less that was trained against it."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)

    def loss_after_the_step(reach: float) -> float:
        config = short("digits", train__epochs=30, train__adversarial=reach, model__norm="layer")
        predictor = fit_config(config, tmp_path / str(reach))
        inputs = predictor.transform(x).requires_grad_()
        targets = torch.tensor(y)
        loss = torch.nn.functional.cross_entropy(predictor.model(inputs), targets)
        (slope,) = torch.autograd.grad(loss, inputs)
        return torch.nn.functional.cross_entropy(predictor.model(inputs + 0.2 * slope.sign()), targets).item()

    assert loss_after_the_step(0.2) < 0.85 * loss_after_the_step(0.0)


def test_gated_layers_that_follow_one_another_are_normalised_unless_said() -> None:
    def norm(source: str, *sets: str) -> str:
        return prepare(parse(FitConfig, {"source": source, "target": [], **overrides(list(sets))})).config.model.norm

    assert norm("iris", "ffn.activation=swiglu", "model.hidden=[8,8]") == "layer"
    assert norm("iris", "ffn.kind=gated", "model.hidden=[8,8,8]") == "layer"
    assert norm("iris", "ffn.activation=swiglu", "model.hidden=[8,8]", "model.norm=none") == "none"
    assert norm("iris", "ffn.activation=swiglu", "model.hidden=[8]") == "none"
    assert norm("iris", "ffn.activation=swiglu", "model.hidden=[8,8]", "model.residual=true") == "none"
    assert norm("iris", "ffn.activation=relu", "model.hidden=[8,8,8]") == "none"
