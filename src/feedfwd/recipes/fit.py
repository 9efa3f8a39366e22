"""`feedfwd fit`: the policy around the loop: what to log, when to evaluate, save and stop, and what is left behind."""

import time
from contextlib import nullcontext
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedfwd.checkpoint import FORMAT, Run, write_json, write_text
from feedfwd.config import FitConfig, parse
from feedfwd.data.table_preprocess import TablePreprocessor
from feedfwd.data.tables import TableData
from feedfwd.errors import RunError
from feedfwd.evaluate import tables
from feedfwd.evaluate.evaluate import details
from feedfwd.recipes import environment
from feedfwd.recipes.console import Listener, Silent
from feedfwd.recipes.engine import engine, way
from feedfwd.recipes.interrupt import Interrupted, graceful
from feedfwd.recipes.plan import memory, plan, tried
from feedfwd.recipes.predictor import Predictor
from feedfwd.recipes.prepare import Part, Prepared, prepare
from feedfwd.recipes.say import command, cost, overview, parts_of, summary
from feedfwd.report import write_report
from feedfwd.report.words import duration, score, word
from feedfwd.train.averaging import EMA
from feedfwd.train.early_stopping import EarlyStopping
from feedfwd.train.loop import Step, train
from feedfwd.train.progress import Meter
from feedfwd.train.resume import flatten_state, generator_states, restore_generators, restore_state
from feedfwd.train.schedules import build_schedule

LOGGED = 100  # about so many steps of a run are logged


def fit_config(
    config: FitConfig, run_path: Path | None = None, listener: Listener | None = None, *, started: float | None = None
) -> Predictor:
    """Train by `config` into a new run directory; returns the trained predictor, loaded from it.

    `started` is `time.perf_counter()` when the process began, so that `seconds.total` covers all of it.
    """
    started = time.perf_counter() if started is None else started
    listener = listener or Silent()
    with torch.random.fork_rng():
        prepared = prepare(config)
        return _begin(prepared, Run.create(run_path, Path(config.source).stem), listener, started)


def _begin(prepared: Prepared, run: Run, listener: Listener, started: float) -> Predictor:
    for line in overview(prepared):
        listener.say(line)
    run.write_settings("fit", prepared.frozen().model_dump(exclude_none=True))
    write_text(run.preprocess_file, prepared.predictor.preprocess.to_json())
    planned = plan(prepared, run, listener)
    if planned is not prepared:
        run.write_settings("fit", planned.frozen().model_dump(exclude_none=True))
    return Fitting(planned, run, listener, started).train()


def dry_run(config: FitConfig, listener: Listener) -> Prepared:
    """Everything up to the first update, and what training would cost; nothing is written."""
    with torch.random.fork_rng():
        prepared = prepare(config)
        per_step, per_evaluation = tried(prepared)
    for line in [*overview(prepared), *cost(prepared, per_step, per_evaluation, memory(prepared))]:
        listener.say(line)
    listener.say("\n" + prepared.frozen().to_toml().rstrip())
    return prepared


def resume(path: Path, listener: Listener | None = None, *, started: float | None = None) -> Predictor:
    """Continue an interrupted run: on the same machine, versions and threads the result is the same to the bit."""
    started = time.perf_counter() if started is None else started
    listener = listener or Silent()
    run = Run.open(path)
    if run.finished:
        raise RunError(f"{path} is finished; there is nothing to resume", hint="start a new run with `feedfwd fit`")
    config = parse(FitConfig, run.settings())
    with torch.random.fork_rng():
        prepared = prepare(config, resolved=True)
        if config.optimizer.lr is None or config.minutes is not None:  # stopped before it was planned
            run.log_file.unlink(missing_ok=True)
            return _begin(prepared, run, listener, started)
        for line in overview(prepared):
            listener.say(line)
        fitting = Fitting(prepared, run, listener, started)
        fitting.restore()
        return fitting.train()


class Fitting:
    """One training: what `prepare` made, and all that moves and has to be saved."""

    def __init__(self, prepared: Prepared, run: Run, listener: Listener, started: float) -> None:
        self.p, self.run, self.listener, self.started = prepared, run, listener, started
        c = prepared.config.train
        self.steps = prepared.steps
        self.batches = prepared.batches()
        assert prepared.config.optimizer.lr is not None, "plan() found the rate"
        self.engine = engine(prepared, prepared.config.optimizer.lr)
        self.optimizer = self.engine.optimizer
        self.schedule = build_schedule(total=self.steps, **prepared.config.schedule.model_dump())
        self.ema = EMA(prepared.model, c.ema) if c.ema else None
        regression = prepared.predictor.classes is None
        self.watched = "rmse" if regression else "log_loss"
        self.stopping = EarlyStopping(c.patience, mode="min") if c.patience and prepared.validation else None
        self.best: dict[str, Tensor] = {}
        self.step, self.seconds = 0, 0.0
        self.evaluate_every = c.evaluate_every or max(1, round(prepared.updates_per_epoch), self.steps // 40)

    # --- the policy -------------------------------------------------------------------------------------------------

    def train(self) -> Predictor:
        self.run_updates()
        return self._finish()

    def run_updates(self) -> None:
        """All updates; then the network holds the weights to keep, and no test example has been looked at."""
        p, c = self.p, self.p.config
        if self.step == 0:
            parts = {name: len(part.data) for name, part in parts_of(self.p).items()}
            self.run.log({"event": "start", "time": time.time(), "source": c.source, "task": self._task(), **parts})
        self._began = time.perf_counter() - self.seconds
        meter = Meter(self.steps)
        log_every = max(1, self.steps // LOGGED)
        with graceful() as stop:
            for step in train(
                p.model,
                self.batches,
                p.loss,
                self.optimizer,
                steps=self.steps,
                schedule=self.schedule,
                start=self.step,
                accumulate=c.train.accumulate,
                clip=c.train.clip,
                precision=self.engine.precision,
                ema=self.ema,
                gradients=self.engine.gradients,
            ):
                self.step, last = step.n, step.n == self.steps
                meter.update(step)
                if step.n % log_every == 0 or last:
                    self._log_step(step, meter)
                if p.validation is not None and (step.n % self.evaluate_every == 0 or last):
                    with meter.paused():
                        enough = self._validate(p.validation)
                    if enough:
                        break
                if not last and (stop.number is not None or step.n % c.train.save_every == 0):
                    with meter.paused():
                        self.save()
                if stop.number is not None and not last:
                    where = f"stopped at step {step.n} of {self.steps}"
                    raise Interrupted(f"{where}; go on with: feedfwd fit --resume {self.run.path}", stop.number)
        self._tick()
        self._settle()

    def _tick(self) -> None:
        """Bring the training's wall clock up to now; it goes on where an interrupted run stopped."""
        self.seconds = time.perf_counter() - self._began

    def _validate(self, part: Part) -> bool:
        """Score the validation part; True when it is time to stop early."""
        with self._averaged():
            scores = self.scores(part)[1]
            self._tick()
            self.run.log({"event": "validation", "step": self.step, "scores": scores, "seconds": self.seconds})
            if self.stopping is None:
                return False
            if self.stopping.update(self.step, scores[self.watched]):
                self.best = {name: tensor.clone() for name, tensor in self.p.model.state_dict().items()}
        return self.stopping.stop

    def _averaged(self) -> Any:
        """The moving average's weights in place of the model's, where there is one."""
        return self.ema.swapped() if self.ema is not None else nullcontext()

    def scores(self, part: Part) -> tuple[np.ndarray, dict[str, float]]:
        answers = self.p.predictor.answers(part.inputs)
        return answers, self.p.predictor.scores(answers, part.data)

    # --- the state --------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Everything that moves, at an update boundary."""
        self._tick()
        optimizer, numbers = flatten_state(self.optimizer)
        tensors = {f"model.{name}": tensor for name, tensor in self.p.model.state_dict().items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"rng.{name}": tensor for name, tensor in generator_states().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        counters = {
            "data": self.p.train.data.fingerprint,
            "batches": self.batches.state_dict(),
            "optimizer": numbers,
            "stopping": self.stopping.state_dict() if self.stopping is not None else None,
            "gradients": way(self.p),
            "seconds": self.seconds,
        }
        self.run.save_state(self.step, tensors, counters)

    def restore(self) -> None:
        """Go back to the newest saved state, or to the beginning where there is none."""
        found = self.run.load_state()
        if found is None:
            self.listener.say(f"{self.run.path} has no saved state yet: starting it again from its settings")
            return
        tensors, counters = found
        if counters["data"] != self.p.train.data.fingerprint:
            raise RunError(
                f"the training data of {self.run.path} have changed since it began ({self.p.config.source})",
                hint="restore them to resume, or start a new run on the new data",
            )

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.p.model.load_state_dict(under("model."))
        restore_state(self.optimizer, under("optimizer."), counters["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(under("ema."))
        if self.stopping is not None:
            self.stopping.load_state_dict(counters["stopping"])
        self.best = under("best.")
        self.batches.load_state_dict(counters["batches"])
        self.step, self.seconds = counters["step"], counters["seconds"]
        if (before := counters["gradients"]) != (now := way(self.p)):
            note = f"gradients were found by {before} until step {self.step}, and from there by {now}"
            self.p.notes.append(f"{note}: the last digits differ from those of an uninterrupted run")
            self.listener.say(f"note: {self.p.notes[-1]}")
        restore_generators(under("rng."))
        self.listener.say(f"resuming {self.run.path} at step {self.step} of {self.steps}")

    # --- what is said and left behind -------------------------------------------------------------------------------

    def _task(self) -> str:
        classes = self.p.predictor.classes
        return "regression" if classes is None else "binary" if len(classes) == 2 else "multiclass"

    def _log_step(self, step: Step, meter: Meter) -> None:
        self._tick()
        now = meter.read()
        norm = None if step.grad_norm is None else float(step.grad_norm)
        rate = now.examples_per_second if isfinite(now.examples_per_second) else None
        event = {"event": "step", "step": step.n, "loss": float(step.loss), "lr": step.lr, "grad_norm": norm}
        self.run.log({**event, "examples_per_second": rate, "seconds": self.seconds})
        self.listener.progress(step.n, self.steps, str(now))

    def _settle(self) -> None:
        """Give the network the weights that count: the best on validation, or the moving average."""
        p = self.p
        if self.best:
            p.model.load_state_dict(self.best)
            assert self.stopping is not None
            p.notes.append(
                f"stopped early: the weights are those of step {self.stopping.best_step}, best on validation"
            )
        elif self.ema is not None:
            p.model.load_state_dict({k: v for k, v in self.ema.state_dict().items() if k != "updates"}, strict=False)
        p.model.eval()

    def _about_table(self, test: TableData) -> dict[str, Any]:
        """The neighbours on the same split, and what the network makes of the columns."""
        p, preprocess = self.p, self.p.predictor.preprocess
        assert isinstance(preprocess, TablePreprocessor)
        held = [p.train, *([p.validation] if p.validation is not None else [])]
        x = torch.cat([part.inputs for part in held]).cpu()
        known = [part.targets if preprocess.classes is not None else part.data.targets for part in held]
        x_test = p.test.inputs.cpu()
        others = tables.neighbours(preprocess, x, torch.cat(known).cpu(), x_test, test)
        main = next(iter(others[0]["scores"])) if others else ""
        for other in others:
            score_said = score(main, other["scores"][main], len(test))
            self.listener.say(
                f"{other['name']} on the same split: {word(main).label} {score_said}, in {duration(other['seconds'])}"
            )
        ranked = tables.importance(preprocess, p.predictor.answers, x_test, test)
        top = [row["column"] for row in ranked]
        return {
            "neighbours": others,
            "importance": ranked,
            "dependence": tables.dependence(preprocess, p.predictor.answers, test, top),
        }

    def _finish(self) -> Predictor:
        p, predictor = self.p, self.p.predictor
        scores: dict[str, dict[str, float] | None] = {"validation": None}
        if p.validation is not None:
            scores["validation"] = self.scores(p.validation)[1]
        answers, scores["test"] = self.scores(p.test)
        test = p.test.data
        shown = details(
            answers,
            test.targets if predictor.classes is None else test.recode(predictor.classes).targets,
            classes=predictor.classes,
            images=_pictures(test.inputs) if test.is_image else None,
            indices=None if test.rows is None else test.rows.numpy(),
            names=test.target_names if predictor.classes is None else None,
        )
        self.run.save_model(p.model.state_dict())
        examples = self.step * p.examples_per_update
        result: dict[str, Any] = {
            "format": FORMAT,
            "task": self._task(),
            "source": p.config.source,
            **scores,
            "sizes": {name: len(part.data) for name, part in parts_of(self.p).items()},
            "seconds": {"train": self.seconds, "total": time.perf_counter() - self.started},
            "steps": self.step,
            "examples_per_second": examples / self.seconds,
            "parameters": p.model.parameter_count,
            "flops": p.model.flops,
            "seed": p.config.seed,
            "notes": p.notes,
            "command": command(p.config),
            "gradients": way(p),
            "environment": environment.describe(p.device, p.precision),
            "test_details": shown,
        }
        if isinstance(test, TableData):
            result["table"] = self._about_table(test)
        self.run.log({"event": "end", "step": self.step, "seconds": self.seconds})
        write_json(self.run.result_file, result)
        report = write_report(self.run.path)
        result["seconds"]["total"] = time.perf_counter() - self.started
        write_json(self.run.result_file, result)
        self.run.drop_state()
        for line in summary(result):
            self.listener.say(line)
        self.listener.say(f"report: {report}")
        return Predictor(p.model, predictor.preprocess, self.run.path)


def _pictures(images: Tensor) -> Tensor:
    """Images as a report can show them: a few grey levels (digits has 17) would all be dark; floats are stretched."""
    return images if images.dtype == torch.uint8 and int(images.max()) > 64 else images.float()
