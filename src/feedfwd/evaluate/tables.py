"""What a table's report shows beside the scores: honest neighbours, and what the network makes of the columns."""

# N rows, D numbers in an encoded row, C classes

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedfwd.data.table_preprocess import TablePreprocessor
from feedfwd.data.tables import TableData
from feedfwd.evaluate.metrics import classification_scores, regression_scores

MOST_CELLS = 4e6  # rows × columns (× classes) that neighbours are fitted to: some seconds
MOST_NAMES = 250  # of a column that trees take as a category
SHUFFLED_ROWS, DEPENDENCE_ROWS = 2000, 300
SHUFFLES = 3
MOST_SHUFFLED = 200  # columns
TOP = 4  # columns whose partial dependence is drawn up
POINTS = 9

Answers = Callable[[Tensor], np.ndarray]


def neighbours(
    preprocess: TablePreprocessor, x: Tensor, y: Tensor, x_test: Tensor, test: TableData
) -> list[dict[str, Any]]:
    """Scores on the test part of a linear model and of gradient-boosted trees, fitted to the same rows at defaults.

    x: encoded rows (N, D) to learn from; y: class numbers, or values in the target's units. Nothing where the table is
    so large that it would take long, or has several targets.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = preprocess.classes
    if y.ndim > 1 or x.numel() * (len(classes) if classes and len(classes) > 2 else 1) > MOST_CELLS:
        return []
    cut, sizes = x.shape[1] - len(preprocess.layout.categories), preprocess.layout.categories
    few = [cut + i for i, size in enumerate(sizes) if size <= MOST_NAMES]
    models: list[tuple[str, Any, bool]]
    if classes is None:
        linear = make_pipeline(StandardScaler(), Ridge())
        trees = HistGradientBoostingRegressor(categorical_features=few, random_state=0)
    else:
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
        trees = HistGradientBoostingClassifier(categorical_features=few, random_state=0)
    models = [("linear model", linear, True), ("histogram gradient boosting", trees, False)]
    found = []
    for name, model, spread in models:
        if spread and cut + sum(sizes) > 2000:
            continue
        began = time.perf_counter()
        fitted = model.fit((_one_hot(x, cut, sizes) if spread else x).numpy(), y.numpy())
        rows = (_one_hot(x_test, cut, sizes) if spread else x_test).numpy()
        if classes is None:
            scores = regression_scores(fitted.predict(rows), test.targets.numpy())
        else:
            p_NC = np.zeros((len(rows), len(classes)))
            p_NC[:, fitted.classes_.astype(int)] = fitted.predict_proba(rows)
            scores = classification_scores(p_NC, test.recode(classes).targets.numpy())
        found.append({"name": name, "scores": scores, "seconds": time.perf_counter() - began})
    return found


def _one_hot(x: Tensor, cut: int, sizes: tuple[int, ...]) -> Tensor:
    hot = [torch.nn.functional.one_hot(x[:, cut + i].long(), size).float() for i, size in enumerate(sizes)]
    return torch.cat([x[:, :cut], *hot], 1)


def importance(preprocess: TablePreprocessor, answers: Answers, x: Tensor, test: TableData) -> list[dict[str, Any]]:
    """How much worse the answers get when one column is shuffled among the rows (Breiman 2001), the most first.

    In log loss or RMSE, the mean of some shuffles. A column that another repeats looks less important than it is.
    """
    if len(preprocess.columns) > MOST_SHUFFLED or len(x) < 2:
        return []
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:SHUFFLED_ROWS]
    x, part = x[rows], test.subset(rows)
    known = part.targets if preprocess.classes is None else part.recode(preprocess.classes).targets
    y = known.numpy()

    def loss(of: Tensor) -> float:
        found = answers(of)
        if preprocess.classes is None:
            return regression_scores(found, y)["rmse"]
        return classification_scores(found, y)["log_loss"]

    base, generator = loss(x), torch.Generator().manual_seed(1)
    found = []
    for name, places in preprocess.places.items():
        worse = []
        for _ in range(SHUFFLES):
            changed = x.clone()
            changed[:, places] = x[torch.randperm(len(x), generator=generator)][:, places]
            worse.append(loss(changed) - base)
        found.append({"column": name, "worse": float(np.mean(worse)), "spread": float(np.std(worse))})
    return sorted(found, key=lambda row: -float(row["worse"]))


def dependence(
    preprocess: TablePreprocessor, answers: Answers, test: TableData, columns: list[str]
) -> list[dict[str, Any]]:
    """The mean answer when all rows have one value in a column, for values across it (Friedman 2001).

    Of a classifier it is the probability of the last of two classes, or of the first of more.
    """
    import polars

    frame = test.frame.head(DEPENDENCE_ROWS)
    kinds = preprocess.kinds
    found = []
    for name in columns[:TOP]:
        column = test.frame[name].drop_nulls()
        if kinds[name] not in ("number", "category") or not len(column):
            continue
        if kinds[name] == "number":
            levels = np.quantile(column.to_numpy(), np.linspace(0.02, 0.98, POINTS))
            values: list[Any] = np.unique(levels).tolist()
        else:
            values = column.value_counts(sort=True)[name].head(POINTS).to_list()
        means = []
        for value in values:
            x = preprocess.encode(frame.with_columns(polars.lit(value, dtype=frame[name].dtype).alias(name)))
            means.append(_shown(answers(x), preprocess.classes))
        of = (preprocess.target_names or ("the target",))[0]
        if preprocess.classes is not None:
            of = f"probability of {preprocess.classes[-1 if len(preprocess.classes) == 2 else 0]}"
        found.append({"column": name, "of": of, "points": list(zip(values, means, strict=True))})
    return found


def _shown(answer: np.ndarray, classes: tuple[str, ...] | None) -> float:
    if answer.ndim == 1:
        return float(answer.mean())
    return float(answer[:, -1 if classes is not None and len(classes) == 2 else 0].mean())
