"""The policy around the loop that recipes share: when to log, to look, to save, and how to stop and go on.

A recipe derives from `Training`, says what is its own (`look`, `seen`, `between`, `counters`), runs `updates`, scores
what they leave, and hands the result to `leave`.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from math import isfinite
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from feedfwd.checkpoint import Run, write_json
from feedfwd.config import ScheduleConfig, UpdatesConfig, edits
from feedfwd.data.batches import Batch
from feedfwd.errors import FeedfwdError, RunError
from feedfwd.recipes import state
from feedfwd.recipes.console import Listener
from feedfwd.recipes.interrupt import Interrupted, going_on, graceful
from feedfwd.report import write_report
from feedfwd.train.averaging import EMA
from feedfwd.train.checkup import Finding
from feedfwd.train.health import Health
from feedfwd.train.loop import Step, autograd, train
from feedfwd.train.losses import Loss
from feedfwd.train.optimizers import Optimizer
from feedfwd.train.precision import Precision
from feedfwd.train.progress import Meter, Progress
from feedfwd.train.schedules import build_schedule

LOGGED = 200  # about so many steps of a run are logged
LONG = 30.0  # seconds of updates that are worth saving before the scoring at the end


class Batches(Iterator[Batch], Protocol):
    """An endless stream of batches that can say where it is."""

    def state_dict(self) -> dict[str, int]: ...
    def load_state_dict(self, state: dict[str, int]) -> None: ...


class Training:
    """One training: what moves, and what has to be saved of it."""

    verb: ClassVar[str]  # whose `--resume` goes on with it
    keeps_last: ClassVar[bool] = False  # saved after the last update too, where scoring what it left takes long

    def __init__(
        self,
        run: Run,
        listener: Listener,
        *,
        model: nn.Module,
        batches: Batches,
        optimizer: Optimizer,
        loss: Loss,
        steps: int,
        updates: UpdatesConfig,
        schedule: ScheduleConfig,
        precision: Precision,
        source: str,
        fingerprint: Any,
        evaluate_every: int,
        started: float,
        gradients: Callable[..., Tensor] = autograd,
        seconds: float = 0.0,
    ) -> None:
        self.run, self.listener, self.started = run, listener, started
        self.model, self.batches, self.optimizer, self.loss = model, batches, optimizer, loss
        self.steps, self.config, self.precision, self.gradients = steps, updates, precision, gradients
        self.schedule = schedule
        self.source, self.fingerprint, self.evaluate_every = source, fingerprint, evaluate_every
        self.ema = EMA(model, updates.ema) if updates.ema else None
        self.step, self.seconds = 0, seconds  # done so far
        self.durations: list[float] = []  # seconds of each update since this process began, nothing beside it counted
        self.health: Health | None = None
        self._healthy: dict[str, Any] | None = None  # what a saved state says of it
        self.settings = run.settings() if run.config_file.is_file() else {}  # as this training was built

    # --- what a recipe says -------------------------------------------------------------------------------------------

    def look(self) -> dict[str, float] | None:
        """Scores on what is held back; None where nothing is."""
        return None

    def seen(self, scores: dict[str, float]) -> bool:
        """What a recipe makes of scores on the way, the averages still in place; True: it is enough, stop here."""
        return False

    @property
    def held_out(self) -> int:
        """Examples behind the scores of `look`, or tokens."""
        return 0

    @property
    def stops_early(self) -> bool:
        """Whether the recipe itself sees to a training that gets worse on what is held back."""
        return False

    def between(self) -> bool:
        """What a recipe does after an update, beside looking; True: save now."""
        return False

    def rate(self, now: Progress) -> tuple[dict[str, float | None], str]:
        """How fast it goes, for the log, and all that the bar says."""
        return {"examples_per_second": finite(now.examples_per_second)}, str(now)

    def settle(self) -> None:
        """Give the model the weights to keep: the moving average where there is one."""
        if self.ema is not None:
            averages = {name: value for name, value in self.ema.state_dict().items() if name != "updates"}
            self.model.load_state_dict(averages, strict=False)

    def counters(self) -> dict[str, Any]:
        """Numbers of the recipe's own that a saved state keeps; `recall` gets them back."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of the recipe's own, by `part.name`, as well."""
        return {}

    def recall(self, counters: dict[str, Any], tensors: dict[str, Tensor]) -> None: ...

    # --- the policy ---------------------------------------------------------------------------------------------------

    def begin(self, task: str, sizes: Mapping[str, int]) -> None:
        """The log's first line, where no update has been done."""
        if self.step == 0:
            self.run.log({"event": "start", "time": time.time(), "source": self.source, "task": task, **sizes})

    def updates(self) -> None:
        """All updates still to do; then the model holds the weights to keep."""
        self._began = time.perf_counter() - self.seconds
        self._saved = time.perf_counter()
        meter = Meter(self.steps)
        self.model.train()  # all of it: a pretrained body comes in evaluation mode
        self.health = self._watch() if self.config.health else None
        with graceful() as stop:
            ended = time.perf_counter()
            for step in self._steps():
                self.durations.append(time.perf_counter() - ended)
                self.step, last = step.n, step.n == self.steps
                meter.update(step)
                if step.n % max(1, self.steps // LOGGED) == 0 or last:
                    self._log_step(step, meter)
                with meter.paused():
                    self._examine(step)
                    if step.n % self.evaluate_every == 0 and not last and self.assess():
                        break
                    due = self.between() or step.n % self.config.save_every == 0
                    meter.total = self.steps
                    due = self.keeps_last or time.perf_counter() - self._saved > LONG if last else due
                    if due or stop.number is not None:
                        self.save()
                if stop.number is not None:
                    break
                ended = time.perf_counter()
        if stop.number is not None:
            where = f"stopped at step {self.step} of {self.steps}"
            raise Interrupted(f"{where}; {going_on(self.verb, self.run.path)}", stop.number)
        self._tick()
        self.settle()
        self.model.eval()

    def _steps(self) -> Iterator[Step]:
        """All updates still to do, also where their number changes on the way, and with it the schedule."""
        while self.step < self.steps:
            steps = self.steps
            for step in train(
                self.model,
                self.batches,
                self.loss,
                self.optimizer,
                steps=steps,
                schedule=build_schedule(total=steps, **self.schedule.model_dump()),
                start=self.step,
                accumulate=self.config.accumulate,
                clip=self.config.clip,
                precision=self.precision,
                ema=self.ema,
                gradients=self.gradients,
            ):
                yield step
                if self.steps != steps:
                    break

    def assess(self) -> bool:
        """Score what is held back, by the averages; True when it is time to stop early."""
        with self.averaged():
            scores = self.look()
            self._tick()
            if scores is None:
                return False
            self.run.log({"event": "validation", "step": self.step, "scores": scores, "seconds": self.seconds})
            if self.health is not None:
                self._report(self.health.validated(self.step, scores))
            return self.seen(scores)

    def _watch(self) -> Health:
        """What looks after this training, with a batch to look at it by, which the training will still see."""
        place = self.batches.state_dict()
        probe = next(self.batches).inputs
        self.batches.load_state_dict(place)
        health = Health(self.model, probe, max(1, self.held_out), self.stops_early, self.precision.autocast())
        return health if self._healthy is None else health.load_state_dict(self._healthy)

    def _examine(self, step: Step) -> None:
        if self.health is not None:
            checkup, findings = self.health.update(step, self.steps)
            if checkup is not None:
                self.run.log(checkup.event())
            self._report(findings)

    def tested(self, scores: Mapping[str, float], examples: int) -> None:
        """What the test part's scores say of the whole, where none is held back to say it."""
        if self.health is not None and not self.held_out:
            self._report(self.health.tested(self.step, scores, examples))

    def _report(self, findings: list[Finding]) -> None:
        for finding in findings:
            self.run.log({"event": "finding", **asdict(finding)})
            self.listener.say(f"step {finding.step:,}: {finding}")

    def averaged(self) -> AbstractContextManager[Any]:
        """The moving average's weights in place of the model's, where there is one."""
        return nullcontext() if self.ema is None else self.ema.swapped()

    def _tick(self) -> None:
        """Bring the training's wall clock up to now; it goes on where an interrupted run stopped."""
        self.seconds = time.perf_counter() - self._began

    def _log_step(self, step: Step, meter: Meter) -> None:
        self._tick()
        now = meter.read()
        norm = None if step.grad_norm is None else float(step.grad_norm)
        speed, shown = self.rate(now)
        event = {"event": "step", "step": step.n, "loss": float(step.loss), "lr": step.lr, "grad_norm": norm}
        self.run.log({**event, **speed, "seconds": self.seconds})
        self.listener.progress(step.n, self.steps, shown)

    # --- the state ----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Everything that moves, at an update boundary."""
        self._tick()
        tensors, numbers = state.moving(self.model, self.optimizer, self.ema)
        counters = {
            "data": self.fingerprint,
            "settings": self.settings,
            "batches": self.batches.state_dict(),
            "optimizer": numbers,
            "seconds": self.seconds,
            "health": None if self.health is None else self.health.state_dict(),
        }
        self.run.save_state(self.step, tensors | self.tensors(), counters | self.counters())
        self._saved = time.perf_counter()

    def restore(self) -> None:
        """Go back to the newest saved state, or to the beginning where there is none."""
        found = self.run.load_state()
        if found is None:
            self.listener.say(f"{self.run.path} has no saved state yet: starting it again from its settings")
            return
        tensors, counters = found
        edited = edits(counters.get("settings", self.settings), self.settings)
        if counters["data"] != self.fingerprint:
            raise self.changed(counters, edited)
        try:
            state.restore(tensors, counters["optimizer"], self.model, self.optimizer, self.ema)
            self.batches.load_state_dict(counters["batches"])
        except (RuntimeError, KeyError, ValueError, FeedfwdError) as error:
            raise self._misfit(error, edited) from None
        if edited:
            self.listener.say(f"note: {self.run.config_file} was changed since this state was saved: {listed(edited)}")
        self.step, self.seconds = counters["step"], counters["seconds"]
        self._healthy = counters.get("health")
        self.recall(counters, tensors)
        self.listener.say(f"resuming {self.run.path} at step {self.step} of {self.steps}")

    def changed(self, counters: dict[str, Any], edited: list[str]) -> RunError:
        """What to raise where the data aren't those that the saved state was trained on."""
        return RunError(
            f"the training data of {self.run.path} have changed since it began ({self.source})",
            hint="restore them to resume, or start a new run on the new data",
        )

    def _misfit(self, error: Exception, edited: list[str]) -> RunError:
        """What to raise where the saved state is of another network or optimizer than the settings make."""
        if edited:
            what = f"the saved state doesn't fit {self.run.config_file}, which was changed since: {listed(edited)}"
            return RunError(what, hint="set it back to resume, or start a new run with it")
        if isinstance(error, FeedfwdError):
            return RunError(error.message, error.hint)
        return self.run.misfit(error, "the saved state")

    # --- what is left behind ------------------------------------------------------------------------------------------

    def leave(self, result: dict[str, Any], summary: Callable[[dict[str, Any]], list[str]]) -> None:
        """The result, the report made from it, and both in words; then the state to resume from goes."""
        with graceful() as stop:  # whole, or to be made again
            self.run.log({"event": "end", "step": self.step, "seconds": self.seconds})
            write_json(self.run.result_file, result)
            report = write_report(self.run.path)
            result["seconds"]["total"] = time.perf_counter() - self.started
            write_json(self.run.result_file, result)
            self.run.drop_state()
        if stop.number is not None:
            raise Interrupted("", stop.number)
        for line in summary(result):
            self.listener.say(line)
        self.listener.say(f"report: {report}")


def listed(edited: list[str], most: int = 3) -> str:
    more = len(edited) - most
    return ", ".join(edited[:most]) + (f", and {more} more" if more > 0 else "")


def finite(number: float) -> float | None:
    return number if isfinite(number) else None
