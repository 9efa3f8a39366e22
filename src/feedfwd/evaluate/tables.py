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
from feedfwd.evaluate.several import label_scores

MOST_CELLS = 4e6  # rows × columns (× classes or labels) that neighbours are fitted to: some seconds
MOST_NAMES = 250  # of a column that trees take as a category
SHUFFLED_ROWS, DEPENDENCE_ROWS = 2000, 300
SHUFFLES = 3
MOST_SHUFFLED = 200  # columns
TOP = 4  # columns whose partial dependence is drawn up
POINTS = 9

Answers = Callable[[Tensor], np.ndarray]


def left_out(preprocess: TablePreprocessor, x: Tensor, y: Tensor) -> str:
    """Why no neighbours are fitted to these rows; "" where they are."""
    if preprocess.task == "regress" and y.ndim > 1:
        return "there are several numbers to predict"
    times = preprocess.outputs if preprocess.outputs > 2 or preprocess.task == "labels" else 1
    if x.numel() * times > MOST_CELLS:
        return f"the table is so large ({len(x):,} rows of {x.shape[1]:,} numbers) that fitting them would take long"
    return ""


def neighbours(
    preprocess: TablePreprocessor, x: Tensor, y: Tensor, x_test: Tensor, test: TableData
) -> list[dict[str, Any]]:
    """Scores on the test part of a linear model and of gradient-boosted trees, fitted to the same rows at defaults.

    x: encoded rows (N, D) to learn from; y: class numbers, labels (N, T) as 0 and 1, of which each has a model of its
    own, or values in the target's units. `left_out` says for which rows not to ask.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multioutput import MultiOutputClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = preprocess.classes
    cut, sizes = x.shape[1] - len(preprocess.layout.categories), preprocess.layout.categories
    few = [cut + i for i, size in enumerate(sizes) if size <= MOST_NAMES]
    models: list[tuple[str, Any, bool]]
    if preprocess.task == "regress":
        linear = make_pipeline(StandardScaler(), Ridge())
        trees = HistGradientBoostingRegressor(categorical_features=few, random_state=0)
    else:
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
        trees = HistGradientBoostingClassifier(categorical_features=few, random_state=0)
        if preprocess.task == "labels":
            linear, trees = MultiOutputClassifier(linear), MultiOutputClassifier(trees)
    models = [("linear model", linear, True), ("histogram gradient boosting", trees, False)]
    found = []
    for name, model, spread in models:
        if spread and cut + sum(sizes) > 2000:
            continue
        began = time.perf_counter()
        fitted = model.fit((_one_hot(x, cut, sizes) if spread else x).numpy(), y.numpy())
        rows = (_one_hot(x_test, cut, sizes) if spread else x_test).numpy()
        if preprocess.task == "labels":
            p_NT = np.stack([p_N2[:, 1] for p_N2 in fitted.predict_proba(rows)], 1)
            scores = label_scores(p_NT, test.targets.numpy())
        elif classes is None:
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
        if preprocess.task == "labels":
            return label_scores(found, y)["log_loss"]
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

    Of a classifier it is the probability of the last of two classes, or of the first of more; of several labels that of
    yes for the label that the column moves most.
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
            means.append(answers(x).reshape(len(frame), -1).mean(0))
        of, means_V = _shown(preprocess, np.stack(means))
        found.append({"column": name, "of": of, "points": list(zip(values, means_V.tolist(), strict=True))})
    return found


def _shown(preprocess: TablePreprocessor, means_VO: np.ndarray) -> tuple[str, np.ndarray]:
    """Which of the answers is shown, in words, and its means for V values."""
    classes, names = preprocess.classes, preprocess.target_names or ("the target",)
    if classes is not None:
        shown = -1 if len(classes) == 2 else 0
        return f"probability of {classes[shown]}", means_VO[:, shown]
    if preprocess.answers is not None:
        shown = int(np.ptp(means_VO, axis=0).argmax())
        return f"probability of {names[shown]}={preprocess.answers[shown][1]}", means_VO[:, shown]
    return names[0], means_VO[:, 0]
