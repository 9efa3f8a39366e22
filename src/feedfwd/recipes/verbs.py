"""Which verb made a run, and what to say to one that belongs to another."""

from pathlib import Path

from feedfwd.checkpoint import Run
from feedfwd.errors import RunError

USE = {
    "fit": "`feedfwd predict` and `feedfwd evaluate`",
    "finetune": "`feedfwd predict` and `feedfwd evaluate`",
    "pretrain": "`feedfwd generate` and `feedfwd evaluate`",
    "instruct": "`feedfwd generate` and `feedfwd evaluate`",
    "embed": "`feedfwd predict` and `feedfwd evaluate`",
    "rank": "`feedfwd predict` and `feedfwd evaluate`",
}
TASKS = ("instruct", "embed", "rank")  # of finetune
COMMAND = {task: f"`feedfwd finetune --task {task}`" for task in TASKS}  # where it isn't the verb itself


def verb_of(path: Path) -> str:
    """`fit`, `pretrain`, `finetune` or one of its `TASKS`; a run that is none says so by RunError."""
    return str(Run.open(path).about().get("verb"))


def opened(path: Path, verb: str) -> Run:
    """The run at `path`, which has to be `verb`'s."""
    run = Run.open(path)
    made = str(run.about().get("verb"))
    if made in USE and made != verb:
        what = f"{path} is a run of {COMMAND.get(made, f'`feedfwd {made}`')}, not of `feedfwd {verb}`"
        resumed = "finetune" if made in TASKS else made
        hint = f"it is for {USE[made]}; an interrupted one goes on with: feedfwd {resumed} --resume {path}"
        raise RunError(what, hint=hint)
    return run
