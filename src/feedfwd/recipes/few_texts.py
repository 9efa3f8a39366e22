"""How a pretrained model begins to learn labels, and what it is shown of a text; other things where texts are few."""

from feedfwd.config_finetune import FEW, FinetuneConfig
from feedfwd.data.ragged import HideTokens
from feedfwd.errors import ConfigError
from feedfwd.recipes.adapters import LOW_RANK
from feedfwd.recipes.goals import Goal
from feedfwd.recipes.pretrained import Pretrained

MASKED = 0.15  # of few texts' tokens
STARTS = {"means": "the classes' means", "regression": "logistic regression on the texts' vectors"}  # in words


def few_texts(config: FinetuneConfig, goal: Goal, pretrained: Pretrained | None, texts: int) -> bool:
    """Whether there are so few that a class's name counts, and what the model makes of them before it learns."""
    of_one_label = goal.kind == "label" and texts <= FEW * goal.outputs
    return of_one_label and config.method == "full" and pretrained is not None


def start_of(config: FinetuneConfig, goal: Goal, pretrained: Pretrained | None, few: bool) -> str:
    """Where the head begins: "random", "means" or "regression"; ConfigError where it can't."""
    asked, can = config.encoder.start, goal.kind == "label" and not config.encoder.hidden
    if asked != "auto":
        if asked != "random" and not can:
            what = f"encoder.start={asked} is for a head without hidden layers that gives each text one label"
            raise ConfigError(what, hint="leave it out")
        return asked
    if can and few:
        return "regression"
    others = pretrained is not None and bool(pretrained.family)
    if can and others and config.method in LOW_RANK:
        return "means"  # the head learns at the adapters' rate, too slow to come there from random numbers
    return "random"


def hiding(config: FinetuneConfig, pretrained: Pretrained | None, few: bool) -> HideTokens | None:
    """What hides tokens of the training texts; ConfigError where the settings ask for it and it can't be."""
    share = config.encoder.masked
    if pretrained is None or share == 0:
        return None
    tokenizer = pretrained.tokenizer
    if share is None and not (few and pretrained.family and tokenizer.mask is not None):
        return None  # a run of ours wasn't tried
    if tokenizer.mask is None:
        what = f"encoder.masked: the tokenizer of {pretrained.name} has no mask token"
        raise ConfigError(what, hint="leave it out")
    kept = sorted(tokenizer.set_apart)
    return HideTokens(share or MASKED, mask=tokenizer.mask, kept=kept, vocabulary=pretrained.model.vocabulary)
