"""Which verb made a run, and what to say to one that belongs to another."""

from pathlib import Path

from feedfwd.checkpoint import Run
from feedfwd.errors import RunError

USE = {
    "fit": "`feedfwd predict` and `feedfwd evaluate`",
    "finetune": "`feedfwd predict` and `feedfwd evaluate`",
    "pretrain": "`feedfwd generate` and `feedfwd evaluate`",
    "instruct": "`feedfwd generate`",
}
COMMAND = {"instruct": "`feedfwd finetune --task instruct`"}  # where it isn't the verb itself


def verb_of(path: Path) -> str:
    """`fit`, `finetune`, `instruct` (finetune's task) or `pretrain`; a run that is none says so by RunError."""
    return str(Run.open(path).about().get("verb"))


def opened(path: Path, verb: str) -> Run:
    """The run at `path`, which has to be `verb`'s."""
    run = Run.open(path)
    made = str(run.about().get("verb"))
    if made in USE and made != verb:
        what = f"{path} is a run of {COMMAND.get(made, f'`feedfwd {made}`')}, not of `feedfwd {verb}`"
        resumed = "finetune" if made == "instruct" else made
        hint = f"it is for {USE[made]}; an interrupted one goes on with: feedfwd {resumed} --resume {path}"
        raise RunError(what, hint=hint)
    return run
