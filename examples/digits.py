"""The main job in one minute: train on real handwritten digits, measure honestly, look at what came of it.

1,797 digits, 8×8 pixels, scanned from hand-filled forms (scikit-learn carries them, so nothing is downloaded). Each of
five networks is tested on the fifth of the digits that it never saw.
"""

import statistics
from pathlib import Path

from sklearn.datasets import load_digits

import feedfwd as ff

FOLDS = 5
SHADES = " ░▒▓█"


def draw(pixels) -> list[str]:
    """An 8×8 image of 17 grey levels as eight lines of text."""
    return ["".join(SHADES[round(4 * float(p) / 16)] * 2 for p in row) for row in pixels]


def main() -> None:
    scores, predictors = [], []
    for fold in range(FOLDS):
        print(f"\n--- fold {fold + 1} of {FOLDS}")
        predictor = ff.fit("digits", effort="quick", settings={"data.folds": FOLDS, "data.fold": fold})
        predictors.append(predictor)
        scores.append(predictor.result["test"]["accuracy"])

    last = predictors[-1]
    wrong = {row["index"] for row in last.result["test_details"]["most_wrong"]}
    images = load_digits().images
    shown = [3, 14, 15, 92, 65]
    answers, sure = last.predict(images[shown]), last.predict_proba(images[shown]).max(1)
    print("\nfive digits, and what the last network says of them:")
    for lines in zip(*map(draw, images[shown]), strict=True):
        print("   ".join(lines))
    print("   ".join(f"{f'{a} ({p:.0%})':<16}" for a, p in zip(answers, sure, strict=True)))

    print(f"\ntest accuracy, mean of {FOLDS} folds: {statistics.mean(scores):.2%}", end=" ")
    print(f"(from {min(scores):.2%} to {max(scores):.2%}); the last network got {len(wrong)} wrong")
    print(f"see them, and everything else, in {Path(last.run) / 'report.html'}")


if __name__ == "__main__":
    main()
