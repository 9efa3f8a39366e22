"""`ff.load`: whatever was trained and saved, by its folder."""

from pathlib import Path
from typing import Any

from feedfwd.recipes import api


def load(run: str | Path) -> Any:
    """What a finished run trained, with its `.model`, a plain nn.Module, and its `.result`; or a saved estimator.

    Of `fit` a `Predictor`: `.predict(x)`, `.predict_proba(x)`. Of `pretrain` a `Writer`: `.write(prompt)`,
    `.complete(prompts)`, and `.model(ids)` gives logits. Of `finetune` a `TextClassifier`: `.predict(texts)`,
    `.predict_proba(texts)`; with --task embed a `TextEncoder`: `.encode(texts)`, `.search(queries, texts, k)`;
    with --task rank a `Ranker`: `.rank(query, candidates)`. Of an estimator's `save` the estimator.
    """
    if (Path(run) / "estimator.json").is_file():
        from feedfwd import estimators

        return estimators.load(Path(run))
    return api.load(run)
