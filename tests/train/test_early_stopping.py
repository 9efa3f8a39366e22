"""Early stopping beyond its doctest: scores that are no numbers, and restored state."""

import math

from feedfwd.train.early_stopping import EarlyStopping


def test_nan_is_no_improvement() -> None:
    stopping = EarlyStopping(patience=2)
    assert not stopping.update(1, math.nan)
    assert stopping.update(2, 1.0)
    assert not stopping.update(3, math.nan) and not stopping.stop
    assert not stopping.update(4, 1.0) and stopping.stop
    assert (stopping.best, stopping.best_step) == (1.0, 2)


def test_state_is_restored() -> None:
    stopping, other = EarlyStopping(patience=3), EarlyStopping(patience=3)
    for step, score in enumerate([3.0, 1.0, 2.0]):
        stopping.update(step, score)
    other.load_state_dict(stopping.state_dict())
    assert other == stopping
