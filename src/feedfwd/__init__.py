"""feedfwd: from raw data to a working model on the machine you have, with the feed-forward layer at its heart.

    import feedfwd as ff
    run = ff.fit("digits")
    run.predict(x)

Names are imported when first used, so that `import feedfwd` and `feedfwd --help` cost nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from feedfwd._version import __version__

if TYPE_CHECKING:
    from feedfwd import ffn, testing
    from feedfwd.config import FFNSpec, FitConfig
    from feedfwd.estimators import FeedForwardClassifier, FeedForwardRegressor
    from feedfwd.ffn.dense import DenseFFN
    from feedfwd.ffn.gated import GatedFFN
    from feedfwd.loading import load
    from feedfwd.models.mlp import MLP
    from feedfwd.recipes.api import finetune, fit, pretrain

__all__ = [
    "MLP",
    "DenseFFN",
    "FFNSpec",
    "FeedForwardClassifier",
    "FeedForwardRegressor",
    "FitConfig",
    "GatedFFN",
    "__version__",
    "ffn",
    "finetune",
    "fit",
    "load",
    "pretrain",
    "testing",
]

_HOMES = {
    "MLP": "feedfwd.models.mlp",
    "DenseFFN": "feedfwd.ffn.dense",
    "GatedFFN": "feedfwd.ffn.gated",
    "FFNSpec": "feedfwd.config",
    "FitConfig": "feedfwd.config",
    "FeedForwardClassifier": "feedfwd.estimators",
    "FeedForwardRegressor": "feedfwd.estimators",
    "finetune": "feedfwd.recipes.api",
    "fit": "feedfwd.recipes.api",
    "pretrain": "feedfwd.recipes.api",
    "load": "feedfwd.loading",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in ("ffn", "testing"):
        return importlib.import_module(f"feedfwd.{name}")
    raise AttributeError(f"module 'feedfwd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
