"""scikit-learn's own checks, and what its users do with an estimator."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import feedfwd as ff
from feedfwd.errors import ConfigError, RunError
from feedfwd.estimators import EXPECTED

Estimator = ff.FeedForwardClassifier | ff.FeedForwardRegressor
IRIS = load_iris(return_X_y=True)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@parametrize_with_checks(
    [ff.FeedForwardClassifier(epochs=20), ff.FeedForwardRegressor(epochs=20)],
    expected_failed_checks=lambda estimator: EXPECTED,
)
def test_scikit_learns_checks(estimator: Estimator, check: Any) -> None:
    check(estimator)


def small(**more: Any) -> ff.FeedForwardClassifier:
    return ff.FeedForwardClassifier(epochs=30, random_state=0, **more)


def test_pipelines_searches_and_clones() -> None:
    x, y = IRIS
    piped = make_pipeline(StandardScaler(), small())
    assert cross_val_score(piped, x, y, cv=3).mean() > 0.9
    search = GridSearchCV(small(), {"hidden": [[8], [32, 32]], "activation": ["relu", "swiglu"]}, cv=2).fit(x, y)
    assert search.best_score_ > 0.9 and set(search.best_params_) == {"hidden", "activation"}
    twin = clone(small(hidden=[8]))
    assert twin.get_params() == small(hidden=[8]).get_params()


def test_the_same_seed_gives_the_same_bits() -> None:
    x, y = IRIS
    first, again = small().fit(x, y).predict_proba(x), small().fit(x, y).predict_proba(x)
    assert np.array_equal(first, again)
    other = ff.FeedForwardClassifier(epochs=30, random_state=1).fit(x, y).predict_proba(x)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("way", ["pickle", "save"])
@pytest.mark.parametrize("names", [False, True])
def test_it_can_be_kept(way: str, names: bool, tmp_path: Path) -> None:
    x, y = IRIS
    target = np.array(["setosa", "versicolor", "virginica"])[y] if names else y
    fitted = small(class_weight=dict.fromkeys(np.unique(target).tolist(), 2.0)).fit(x, target)
    if way == "pickle":
        back = pickle.loads(pickle.dumps(fitted))
    else:
        fitted.save(tmp_path / "kept")
        assert not list((tmp_path / "kept").glob("*.pkl"))
        back = ff.load(tmp_path / "kept")
    assert np.array_equal(back.predict_proba(x), fitted.predict_proba(x))
    assert back.get_params() == fitted.get_params() and back.classes_.dtype == fitted.classes_.dtype
    back.partial_fit(x, target)  # goes on


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    small().fit(*IRIS).save(tmp_path / "kept")
    (tmp_path / "kept/estimator.json").write_text("{}")
    with pytest.raises(RunError, match=r"estimator\.json is damaged"):
        ff.load(tmp_path / "kept")


def test_frames_with_names_and_gaps() -> None:
    generator = np.random.default_rng(0)
    colour = generator.choice(["red", "green", "blue"], 300)
    size = generator.normal(size=300)
    y = (colour == "red") ^ (size > 0)
    frame = polars.DataFrame({"colour": colour, "size": size}).with_columns(
        polars.when(polars.int_range(300) % 20 == 0).then(None).otherwise("size").alias("size")
    )
    model = ff.FeedForwardClassifier(epochs=60, random_state=0).fit(frame[:200], y[:200])
    assert model.feature_names_in_.tolist() == ["colour", "size"]
    assert model.score(frame[200:], y[200:]) > 0.85
    with pytest.raises(ValueError, match="give a frame"), pytest.warns(UserWarning):
        model.predict(np.zeros((3, 2)))


def test_missing_values_are_read_as_missing() -> None:
    x, y = IRIS[0].copy(), IRIS[1]
    x[::7, 2] = np.nan
    assert small().fit(x[::2], y[::2]).score(x[1::2], y[1::2]) > 0.85


def test_weights_of_rows_and_classes_count() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 2))
    y = (x[:, 0] + generator.normal(size=400) > 1.5).astype(int)
    plain = small().fit(x, y).predict(x).mean()
    assert small(class_weight="balanced").fit(x, y).predict(x).mean() > 1.5 * plain
    assert small().fit(x, y, sample_weight=np.where(y == 1, 1e-6, 1.0)).predict(x).mean() < 0.2 * plain


def test_it_stops_where_it_was_best() -> None:
    x, y = IRIS
    model = ff.FeedForwardClassifier(epochs=400, early_stopping=True, patience=5, random_state=0).fit(x, y)
    assert model.n_iter_ < 400 and model.score(x, y) > 0.9


def test_several_targets_and_their_units() -> None:
    x, y = load_diabetes(return_X_y=True)
    both = np.stack([y, -1000 * y], 1)
    model = ff.FeedForwardRegressor(epochs=30, random_state=0).fit(x, both)
    assert model.predict(x).shape == both.shape and model.score(x, both) > 0.4


def test_step_by_step() -> None:
    x, y = IRIS
    model = small()
    with pytest.raises(ValueError, match="classes must be passed"):
        model.partial_fit(x, y)
    for _ in range(40):
        model.partial_fit(x[::2], y[::2], classes=[0, 1, 2])
    assert model.n_iter_ == 40 and model.score(x[1::2], y[1::2]) > 0.85


def test_wrong_parameters_are_named_when_fitting() -> None:
    with pytest.raises(ConfigError, match="activation"):
        small(activation="relo").fit(*IRIS)
    with pytest.raises(ConfigError):
        small(settings={"model.hiden": [3]}).fit(*IRIS)
    with pytest.raises(ValueError, match="one class"):
        small().fit(IRIS[0][:50], IRIS[1][:50])


@pytest.mark.parametrize(
    "setting", [{"loss.label_smoothing": 0.3}, {"loss.class_weights": "balanced"}, {"train.ema": 0.9}]
)
def test_settings_of_loss_and_updates_are_those_of_fit(setting: dict[str, Any]) -> None:
    """What `feedfwd fit` heeds changes the answers here too, also with early stopping."""
    x, y = IRIS
    few = np.r_[0:50, 50:80, 100:110]
    for more in ({}, {"early_stopping": True}):
        plain, other = (
            ff.FeedForwardClassifier("quick", hidden=[8], epochs=3, random_state=0, settings=s, **more).fit(
                x[few], y[few]
            )
            for s in (None, setting)
        )
        assert np.abs(plain.predict_proba(x) - other.predict_proba(x)).max() > 1e-3
    with pytest.raises(ConfigError, match=r"label_smoothing can't be used"):
        ff.FeedForwardRegressor(epochs=1, settings={"loss.label_smoothing": 0.3}).fit(x, y)


def test_accumulated_batches_are_an_update() -> None:
    x, y = IRIS
    settings = {"train.accumulate": 4}
    whole = ff.FeedForwardClassifier(hidden=[8], epochs=2, batch_size=64, dropout=0.0, random_state=0).fit(
        x[:128], y[:128]
    )
    parts = ff.FeedForwardClassifier(
        hidden=[8], epochs=2, batch_size=16, dropout=0.0, random_state=0, settings=settings
    ).fit(x[:128], y[:128])
    assert len(whole.loss_curve_) == len(parts.loss_curve_) == 2
    assert np.abs(whole.predict_proba(x) - parts.predict_proba(x)).max() < 1e-4
