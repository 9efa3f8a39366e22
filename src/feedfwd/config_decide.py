"""The settings of how a classifier decides: what its thresholds promise, and on how many answers they are fitted."""

from typing import Annotated

from pydantic import Field

from feedfwd.config import Real, Settings

Portion = Annotated[Real, Field(gt=0, lt=1)]


class DecideConfig(Settings):
    """What is fitted on held-out answers: the validation part's, else those of folds of the training part."""

    error: Portion = Field(0.05, description="share of the answers that may be wrong when the unsure are left out")
    level: Portion = Field(0.9, description="confidence with which decide.error is kept")
    false_reject: Portion = Field(0.05, description="share of texts inside the scope that may be taken for outside")
    held: Annotated[int, Field(ge=0)] = Field(
        2000, description="held-out answers to fit on: as many fifths of the training part as give them; 0: fit nothing"
    )
