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
    """Whether there are so few that a class's name counts, and what is known of them before; of a run of ours it
    wasn't measured."""
    others = pretrained is not None and bool(pretrained.family)
    return others and config.method == "full" and texts <= FEW * goal.outputs


def start_of(config: FinetuneConfig, goal: Goal, pretrained: Pretrained | None, few: bool) -> str:
    """Where the head begins: "random", "means" or "regression"; ConfigError where it can't."""
    asked, can = config.encoder.start, goal.kind == "label" and not config.encoder.hidden
    if asked != "auto":
        if asked != "random" and not can:
            what = f"encoder.start={asked} is for a head without hidden layers that gives each text one label"
            raise ConfigError(what, hint="leave it out")
        return asked
    if not can or pretrained is None or not pretrained.family:
        return "random"
    if config.method in LOW_RANK:  # the head learns at the adapters' rate, too slow to come there from random numbers
        return "means"
    return "regression" if few else "random"


def hiding(config: FinetuneConfig, pretrained: Pretrained | None, few: bool) -> HideTokens | None:
    """What hides tokens of the training texts; ConfigError where the settings ask for it and it can't be."""
    share = config.encoder.masked
    if pretrained is None or share == 0 or (share is None and not few):
        return None
    tokenizer = pretrained.tokenizer
    if tokenizer.mask is None:
        if share is None:
            return None
        what = f"encoder.masked: the tokenizer of {pretrained.name} has no mask token"
        raise ConfigError(what, hint="leave it out")
    kept = sorted(tokenizer.set_apart)
    return HideTokens(share or MASKED, mask=tokenizer.mask, kept=kept, vocabulary=pretrained.model.vocabulary)
