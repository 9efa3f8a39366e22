"""What studies promise: how often they err, how often they find, how long they take, whether advice helps.

    python benchmarks/study.py null                     # simulated studies in which nothing differs, and power
    python benchmarks/study.py digits                   # wall time of compare: 4 activations × 2 widths × 5 seeds
    python benchmarks/study.py advise [--data DIR] [--minutes 1] [--splits 3] [--tables iris adult …]

`advise` asks for advice on scikit-learn's bundled tables, on Adult and on California housing (in DIR/tables), each
with other splits, and shows the test part's scores, opened once for what is advised and for the defaults. Where the
defaults are advised the two are the same.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TABLES = {
    "iris": ("iris", None),
    "wine": ("wine", None),
    "breast_cancer": ("breast_cancer", None),
    "diabetes": ("diabetes", None),
    "adult": ("tables/adult.csv", "Salary"),
    "california": ("tables/california-housing.csv", "median_house_value"),
}


def null(many: int) -> None:
    """Scores are luck of the split, shared by all variants, plus luck of their own; a study errs by any call at all."""
    from feedfwd.study.statistics import findings, power

    print("| variants | nothing differs: studies that say otherwise |\n|---|---|")
    for variants in (2, 4, 8):
        print(f"| {variants} | {_called(variants, 0.0, many, 5, findings):.1%} of {many:,} |", flush=True)
    share = _called(8, 0.0, many, 5, findings, levels=4)
    print(f"| 8, as 4 × 2 levels | {share:.1%} of {many:,} |")
    print(f"| advice, 21 changes | {_advised(many):.1%} of {many:,} |")
    print("\n| seeds | a true difference of 2 standard errors: found | the paired t-test's power |\n|---|---|---|")
    for seeds in (3, 5, 10, 20):
        print(f"| {seeds} | {_called(2, 2.0, many, seeds, findings):.1%} | {power(2.0, seeds):.1%} |", flush=True)


def _called(variants: int, effect: float, many: int, seeds: int, findings, levels: int = 0) -> float:
    rng, calls = np.random.default_rng(0), 0
    chosen = {str(v): {"a": str(v % levels), "b": str(v // levels)} for v in range(variants)} if levels else None
    for _ in range(many):
        luck = rng.normal(size=seeds)
        scores = {str(v): luck + rng.normal(size=seeds) for v in range(variants)}
        scores["0"] = scores["0"] + effect * np.sqrt(2 / seeds)
        calls += findings(scores, chosen).calls > 0
    return calls / many


def _advised(many: int, changes: int = 21, seeds: int = 5) -> float:
    """How often advice leaves the defaults although no change is worth anything: its steps on simulated scores."""
    from feedfwd.study.advice import worth
    from feedfwd.study.advise import DEFAULTS, Question, check_plan, proven
    from feedfwd.study.plan import Plan
    from feedfwd.study.shared import Row
    from feedfwd.study.space import Choice

    rng, left = np.random.default_rng(0), 0
    names = [f"change {i}" for i in range(changes)]
    axis = Choice("change", {DEFAULTS: {}, **{name: {f"x.{i // 2}": i} for i, name in enumerate(names)}})
    plan = Plan("fit", {"source": "iris"}, (axis,), tuple(range(seeds)), score="accuracy")
    question = Question(plan, {name: f"choice {i // 2}" for i, name in enumerate(names)}, 5.0, 2, 0.25)

    def trained(plan: Plan) -> list[Row]:
        luck = rng.normal(size=len(plan.seeds))
        rows = []
        for number, variant in enumerate(v for v in plan.queue if v is not None):
            own = 0.8 + 0.02 * (luck + rng.normal(size=len(plan.seeds)))
            outcomes = {s: {"scores": {"accuracy": a}, "seconds": 1.0} for s, a in zip(plan.seeds, own, strict=True)}
            changed = next(iter(plan.axes[0].levels.values())) if number == 0 else {"x.y": number}
            rows.append(Row(number, "done", variant, plan.label(variant) if number else DEFAULTS, outcomes, changed))
        return rows

    for _ in range(many):
        reference, *rows = trained(plan)
        worths = [worth(plan, row, reference, 0.25, question.kinds[row.label]) for row in rows]
        check = check_plan(question, reference, worths)
        if check is not None:
            reference, *rows = trained(check)
            left += proven([worth(check, row, reference, 0.25, "checked") for row in rows]) is not None
    return left / many


def digits() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "feedfwd.cli", "compare", "digits", "--seeds", "5", "--run", f"{folder}/s"]
        command += ["--vary", "ffn.activation=relu,tanh,gelu,swiglu", "--vary", "model.hidden=[64],[128,128]"]
        began = time.perf_counter()
        subprocess.run(command, check=True)
        print(f"\n40 trainings and the winner: {time.perf_counter() - began:.1f} s of wall time")


def advised(options: argparse.Namespace) -> None:
    from feedfwd.report.words import word
    from feedfwd.study.advice import amount
    from feedfwd.study.advise import advise

    print(
        "| table | split | advised | how sure | test, defaults | test, advised | gain (95 % over examples) | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for table in options.tables:
        source, target = TABLES[table]
        base = {"source": source if target is None else str(options.data / source)}
        base |= {"target": [target]} if target else {}
        minutes = options.minutes * (3 if target else 1)
        for split in range(options.splits):
            began = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                a = advise({**base, "seed": split}, minutes, None, Path(folder) / "a")
            name = a.plan.score
            tests = {which: result["test"][name] for which, result in a.tests.items()}
            gain = "0: the same settings"
            if a.test_gain is not None:
                gain = " ".join(amount(name, x) for x in (a.test_gain.mean, a.test_gain.low, a.test_gain.high))
            sure = max((w for w in a.checked if w.gain), key=lambda w: w.mean, default=None)
            said = "nothing promising" if sure is None else f"{sure.label}: {amount(name, sure.mean)}, p = {sure.p:.2g}"
            print(
                f"| {table}, {word(name).label} | {split} | {a.label} | {said} | {tests['defaults']:.4f} | "
                f"{tests.get('advised', tests['defaults']):.4f} | {gain} | {time.perf_counter() - began:.0f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("null", "digits", "advise"))
    parser.add_argument("--many", type=int, default=2000, help="simulated studies")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="for a small table; three times as long for a large one"
    )
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    options = parser.parse_args()
    match options.what:
        case "null":
            null(options.many)
        case "digits":
            digits()
        case _:
            advised(options)


if __name__ == "__main__":
    main()
