"""Tables beside the peers: the same rows for training and test for all, scored by paired differences over splits.

    python benchmarks/tables.py run FILE.jsonl --folder DATA --models best,standard,trees,mlp,realmlp,tabm --splits 5
    python benchmarks/tables.py show FILE.jsonl

`run` adds a line for each training that the file lacks, so that it may be stopped and go on, and so that the peers can
run in an environment of their own (`pip install pytabkit tabm pandas`, with this project on its path). DATA holds
adult.csv and california-housing.csv; breast cancer comes with scikit-learn. Every model gets the training rows whole
and holds back what it wants for its own validation.
"""

# N rows, K members

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch

from feedfwd.config import FitConfig
from feedfwd.data.split import fold, split
from feedfwd.data.table_preprocess import TablePreprocessor
from feedfwd.data.tables import TableData, load_table
from feedfwd.evaluate.metrics import classification_scores, regression_scores

SETS = {
    "california": ("california-housing.csv", "median_house_value", "rmse"),
    "adult": ("adult.csv", "Salary", "accuracy"),
    "breast_cancer": ("breast_cancer.csv", "target", "accuracy"),
}
Answer = Callable[[TableData, TableData, int, str], np.ndarray]


def source(name: str, folder: Path) -> Path:
    if name != "breast_cancer":
        return folder / SETS[name][0]
    from sklearn.datasets import load_breast_cancer

    path = Path(tempfile.gettempdir()) / "feedfwd-breast_cancer.csv"
    found = load_breast_cancer()
    frame = polars.DataFrame(found.data, schema=list(found.feature_names))
    frame.with_columns(polars.Series("target", found.target_names[found.target])).write_csv(path)
    return path


def settings(name: str, path: Path, effort: str, number: int) -> FitConfig:
    config = FitConfig(source=str(path), target=[SETS[name][1]], effort=effort, seed=number)
    if name == "breast_cancer":
        return config.with_("data.folds", 5).with_("data.fold", number).with_("data.test_seed", 0)
    return config


def parts(name: str, path: Path, number: int) -> tuple[TableData, TableData]:
    """The rows that `fit` trains and tests on, by the same split."""
    whole = load_table(path, [SETS[name][1]])
    found = fold(whole, 5, number, 0) if name == "breast_cancer" else split(whole, 0.2, number)
    assert isinstance(found[0], TableData) and isinstance(found[1], TableData)
    return found[0], found[1]


def run(name: str, path: Path, model: str, number: int, device: str) -> dict[str, Any]:
    measure = SETS[name][2]
    began = time.perf_counter()
    if model in ("quick", "standard", "best"):
        from feedfwd.recipes.fit import fit_config

        with tempfile.TemporaryDirectory() as folder:
            result = fit_config(settings(name, path, model, number), Path(folder) / "run").result
        return {"score": result["test"][measure], "seconds": result["seconds"]["train"], "steps": result["steps"]}
    rest, test = parts(name, path, number)
    answers = PEERS[model](rest, test, number, device)
    seconds = time.perf_counter() - began
    if rest.classes is None:
        return {"score": regression_scores(answers, test.targets.numpy())[measure], "seconds": seconds}
    return {"score": classification_scores(answers, test.targets.numpy())[measure], "seconds": seconds}


# --- peers ------------------------------------------------------------------------------------------------------------


def trees(rest: TableData, test: TableData, seed: int, device: str) -> np.ndarray:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.preprocessing import OrdinalEncoder

    names = [n for n, kind in rest.kinds.items() if kind == "category"]
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan)

    def matrix(data: TableData, learn: bool) -> np.ndarray:
        numbers = data.frame.drop(names).to_numpy().astype(np.float64)
        if not names:
            return numbers
        text = data.frame.select(names).fill_null("(missing)").to_numpy()
        return np.hstack([encoder.fit_transform(text) if learn else encoder.transform(text), numbers])

    kind = HistGradientBoostingRegressor if rest.classes is None else HistGradientBoostingClassifier
    model = kind(categorical_features=list(range(len(names))), random_state=seed)
    model.fit(matrix(rest, True), rest.targets.numpy())
    x = matrix(test, False)
    return model.predict(x) if rest.classes is None else model.predict_proba(x)


def _one_hot(rest: TableData, test: TableData) -> tuple[np.ndarray, np.ndarray]:
    prepared = TablePreprocessor.fit(rest)
    cut, sizes = prepared.width - len(prepared.layout.categories), prepared.layout.categories

    def matrix(data: TableData) -> np.ndarray:
        x = prepared.examples(data)
        hot = [torch.nn.functional.one_hot(x[:, cut + i].long(), size).float() for i, size in enumerate(sizes)]
        return torch.cat([x[:, :cut], *hot], 1).numpy()

    return matrix(rest), matrix(test)


def mlp(rest: TableData, test: TableData, seed: int, device: str) -> np.ndarray:
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    x, x_test = _one_hot(rest, test)
    y = rest.targets.numpy()
    if rest.classes is None:
        mean, std = y.mean(), y.std()
        model = MLPRegressor(random_state=seed, early_stopping=True).fit(x, (y - mean) / std)
        return model.predict(x_test) * std + mean
    return MLPClassifier(random_state=seed, early_stopping=True).fit(x, y).predict_proba(x_test)


def realmlp(rest: TableData, test: TableData, seed: int, device: str) -> np.ndarray:
    from pytabkit import RealMLP_TD_Classifier, RealMLP_TD_Regressor

    middle = {n: rest.frame[n].median() for n, kind in rest.kinds.items() if kind == "number"}

    def frame(data: TableData) -> Any:  # it refuses missing numbers
        filled = [polars.col(n).fill_null(v) for n, v in middle.items()]
        names = [polars.col(n).fill_null("(missing)") for n, kind in data.kinds.items() if kind == "category"]
        import pandas

        return pandas.DataFrame(data.frame.with_columns(*filled, *names).to_dict(as_series=False))

    kind = RealMLP_TD_Regressor if rest.classes is None else RealMLP_TD_Classifier
    names = [n for n, k in rest.kinds.items() if k == "category"]
    model = kind(random_state=seed, n_threads=torch.get_num_threads(), device=device, verbosity=0)
    model.fit(frame(rest), rest.targets.numpy(), cat_col_names=names)
    return model.predict(frame(test)) if rest.classes is None else model.predict_proba(frame(test))


def tabm(rest: TableData, test: TableData, seed: int, device: str) -> np.ndarray:
    """As its own example trains it: default architecture, piecewise-linear embeddings, batches of 256, patience 16."""
    from rtdl_num_embeddings import PiecewiseLinearEmbeddings, compute_bins
    from sklearn.preprocessing import QuantileTransformer
    from tabm import TabM

    torch.manual_seed(seed)
    train, held = split(rest, 0.1, seed)
    assert isinstance(train, TableData) and isinstance(held, TableData)
    prepared = TablePreprocessor.fit(train)
    layout = prepared.layout
    cut = layout.numbers + layout.plain
    scaler = QuantileTransformer(n_quantiles=max(min(len(train) // 30, 1000), 10), output_distribution="normal")
    raw = prepared.examples(train)[:, :cut].numpy()
    noise = np.random.default_rng(seed).normal(0, 1e-5, raw.shape).astype(np.float32)
    scaler.fit(raw + noise)

    def inputs(data: TableData) -> tuple[torch.Tensor, torch.Tensor | None]:
        x = prepared.examples(data)
        numbers = torch.from_numpy(scaler.transform(x[:, :cut].numpy()).astype(np.float32))
        return numbers.to(device), x[:, cut:].long().to(device) if layout.categories else None

    x, c = inputs(train)
    bins = compute_bins(x.cpu(), n_bins=48)
    embeddings = PiecewiseLinearEmbeddings(bins, 16, activation=False, version="B")
    outputs = 1 if rest.classes is None else len(rest.classes)
    model = TabM.make(
        n_num_features=cut, cat_cardinalities=list(layout.categories), d_out=outputs, num_embeddings=embeddings
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=3e-4)
    y = prepared.targets(train).to(device)
    loss = torch.nn.functional.mse_loss if rest.classes is None else torch.nn.functional.cross_entropy

    def answers(data: TableData) -> np.ndarray:
        model.eval()
        numbers, names = inputs(data)
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            found = [
                model(numbers[i : i + 2048], None if names is None else names[i : i + 2048]).float()
                for i in range(0, len(numbers), 2048)
            ]
        out_NKO = torch.cat(found).cpu()
        if rest.classes is None:
            return prepared.restore(out_NKO.mean(1))[:, 0].numpy()
        return out_NKO.softmax(2).mean(1).numpy()

    best, wait, kept = math.inf, 0, None
    y_held = held.targets.numpy()
    while wait < 16:
        model.train()
        for rows in torch.randperm(len(x)).to(device).split(256):
            with torch.autocast(device, torch.bfloat16):
                out_NKO = model(x[rows], None if c is None else c[rows])
            out = out_NKO.float().flatten(0, 1)
            target = y[rows].repeat_interleave(out_NKO.shape[1])
            value = loss(out.squeeze(1) if rest.classes is None else out, target)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        scored = answers(held)
        if rest.classes is None:
            now = regression_scores(scored, y_held)["rmse"]
        else:
            now = -classification_scores(scored, y_held)["accuracy"]
        wait += 1
        if now < best:
            best, wait, kept = now, 0, {k: v.clone() for k, v in model.state_dict().items()}
    assert kept is not None
    model.load_state_dict(kept)
    return answers(test)


PEERS: dict[str, Answer] = {"trees": trees, "mlp": mlp, "realmlp": realmlp, "tabm": tabm}


# --- the tables of scores ---------------------------------------------------------------------------------------------


def show(path: Path) -> None:
    """Means over splits, and paired differences to `best` with 95 % intervals where two or more splits are shared."""
    from scipy.stats import t as student

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for name, (_, _, measure) in SETS.items():
        found: dict[str, dict[int, tuple[float, float]]] = {}
        for row in rows:
            if row["data"] == name:
                found.setdefault(row["model"], {})[row["split"]] = row["score"], row["seconds"]
        print(f"{name}, {measure}")
        ours = found.get("best", {})
        for model, scores in found.items():
            values = np.array([s for s, _ in scores.values()])
            seconds = np.mean([took for _, took in scores.values()])
            line = f"  {model:<10} {values.mean():.5g}  (splits {sorted(scores)}), {seconds:.0f} s"
            both = sorted(ours.keys() & scores.keys())
            if model != "best" and len(both) > 1:
                gaps = np.array([ours[k][0] - scores[k][0] for k in both])
                reach = student.ppf(0.975, len(both) - 1) * gaps.std(ddof=1) / math.sqrt(len(both))
                line += f"; best less this one {gaps.mean():+.4g} ± {reach:.2g} on {len(both)} splits"
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--data", default=",".join(SETS))
    parser.add_argument("--models", default="best,standard,trees,mlp")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="that RealMLP and TabM train on")
    options = parser.parse_args()
    if options.action == "show":
        show(options.file)
        return
    done = set()
    if options.file.exists():
        rows = [json.loads(line) for line in options.file.read_text().splitlines()]
        done = {(row["data"], row["model"], row["split"]) for row in rows}
    for number in range(options.splits):
        for name in options.data.split(","):
            path = source(name, options.folder)
            for model in options.models.split(","):
                if (name, model, number) in done:
                    continue
                row = {"data": name, "model": model, "split": number, **run(name, path, model, number, options.device)}
                print(json.dumps(row), flush=True)
                with options.file.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
