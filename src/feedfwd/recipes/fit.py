"""`feedfwd fit`: the policy around the loop: what to log, when to evaluate, save and stop, and what is left behind."""

import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from feedfwd.checkpoint import FORMAT, Run, write_text
from feedfwd.config import FitConfig, parse
from feedfwd.data.table_preprocess import TablePreprocessor
from feedfwd.data.tables import TableData
from feedfwd.errors import RunError
from feedfwd.evaluate import tables
from feedfwd.recipes import environment
from feedfwd.recipes.console import Listener, Silent
from feedfwd.recipes.engine import engine, way
from feedfwd.recipes.interrupt import resumable
from feedfwd.recipes.plan import memory, plan, tried
from feedfwd.recipes.predictor import Predictor
from feedfwd.recipes.prepare import Part, Prepared, prepare
from feedfwd.recipes.say import command, cost, overview, parts_of, summary
from feedfwd.recipes.training import Training
from feedfwd.report.words import duration, score, word
from feedfwd.train.early_stopping import EarlyStopping


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
        run = Run.create(run_path, Path(config.source).stem)
        with resumable("fit", run):
            return _begin(prepared, run, listener, started)


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
    with torch.random.fork_rng(), resumable("fit", run):
        prepared = prepare(config, resolved=True)
        if config.optimizer.lr is None or config.minutes is not None:  # stopped before it was planned
            run.log_file.unlink(missing_ok=True)
            return _begin(prepared, run, listener, started)
        for line in overview(prepared):
            listener.say(line)
        fitting = Fitting(prepared, run, listener, started)
        fitting.restore()
        return fitting.train()


class Fitting(Training):
    """One training: what `prepare` made, and all that moves and has to be saved."""

    verb: ClassVar[str] = "fit"

    def __init__(self, prepared: Prepared, run: Run, listener: Listener, started: float) -> None:
        c = prepared.config
        assert c.optimizer.lr is not None, "plan() found the rate"
        way_to_gradients = engine(prepared, c.optimizer.lr)
        super().__init__(
            run,
            listener,
            model=prepared.model,
            batches=prepared.batches(),
            optimizer=way_to_gradients.optimizer,
            loss=prepared.loss,
            steps=prepared.steps,
            updates=c.train,
            schedule=c.schedule,
            precision=way_to_gradients.precision,
            source=c.source,
            fingerprint=prepared.train.data.fingerprint,
            evaluate_every=c.train.evaluate_every or max(1, round(prepared.updates_per_epoch), prepared.steps // 40),
            started=started,
            gradients=way_to_gradients.gradients,
        )
        self.p = prepared
        self.watched = "rmse" if prepared.predictor.task == "regression" else "log_loss"
        self.stopping = (
            EarlyStopping(c.train.patience, mode="min") if c.train.patience and prepared.validation else None
        )
        self.best: dict[str, Tensor] = {}

    def train(self) -> Predictor:
        self.run_updates()
        return self._finish()

    def run_updates(self) -> None:
        """All updates; then the network holds the weights to keep, and no test example has been looked at."""
        self.begin(self.p.predictor.task, {name: len(part.data) for name, part in parts_of(self.p).items()})
        self.updates()

    @property
    def stops_early(self) -> bool:
        return self.stopping is not None

    @property
    def held_out(self) -> int:
        return 0 if self.p.validation is None else len(self.p.validation.data)

    def look(self) -> dict[str, float] | None:
        return None if self.p.validation is None else self.scores(self.p.validation)[1]

    def seen(self, scores: dict[str, float]) -> bool:
        if self.stopping is None:
            return False
        if self.stopping.update(self.step, scores[self.watched]):
            self.best = {name: tensor.clone() for name, tensor in self.p.model.state_dict().items()}
        return self.stopping.stop

    def scores(self, part: Part) -> tuple[np.ndarray, dict[str, float]]:
        answers = self.p.predictor.answers(part.inputs)
        return answers, self.p.predictor.scores(answers, part.data)

    def settle(self) -> None:
        """The best weights on validation where early stopping watched them, else as ever."""
        if self.step == self.steps:
            self.assess()
        if not self.best:
            super().settle()
            return
        assert self.stopping is not None
        self.p.model.load_state_dict(self.best)
        self.p.notes.append(
            f"stopped early: the weights are those of step {self.stopping.best_step}, best on validation"
        )

    def counters(self) -> dict[str, Any]:
        return {
            "stopping": self.stopping.state_dict() if self.stopping is not None else None,
            "gradients": way(self.p),
        }

    def tensors(self) -> dict[str, Tensor]:
        return {f"best.{name}": tensor for name, tensor in self.best.items()}

    def recall(self, counters: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        if self.stopping is not None:
            self.stopping.load_state_dict(counters["stopping"])
        self.best = {name.removeprefix("best."): t for name, t in tensors.items() if name.startswith("best.")}
        if (before := counters["gradients"]) != (now := way(self.p)):
            note = f"gradients were found by {before} until step {self.step}, and from there by {now}"
            self.p.notes.append(f"{note}: the last digits differ from those of an uninterrupted run")
            self.listener.say(f"note: {self.p.notes[-1]}")

    # --- what is said and left behind -------------------------------------------------------------------------------

    def _about_table(self, test: TableData) -> dict[str, Any]:
        """The neighbours on the same split, and what the network makes of the columns."""
        p, preprocess = self.p, self.p.predictor.preprocess
        assert isinstance(preprocess, TablePreprocessor)
        held = [p.train, *([p.validation] if p.validation is not None else [])]
        x = torch.cat([part.inputs for part in held]).cpu()
        known = [part.data.targets if preprocess.task == "regress" else part.targets for part in held]
        x_test, y = p.test.inputs.cpu(), torch.cat(known).cpu()
        if alone := tables.left_out(preprocess, x, y):
            self.listener.say(f"no simpler models beside it: {alone}")
        others = [] if alone else tables.neighbours(preprocess, x, y, x_test, test)
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
            "alone": alone,
            "importance": ranked,
            "dependence": tables.dependence(preprocess, p.predictor.answers, test, top),
        }

    def _finish(self) -> Predictor:
        p, predictor = self.p, self.p.predictor
        scores: dict[str, dict[str, float] | None] = {"validation": None}
        if p.validation is not None:
            scores["validation"] = self.scores(p.validation)[1]
        answers, tested = self.scores(p.test)
        test, scores["test"] = p.test.data, tested
        self.tested(tested, len(test))
        shown = predictor.details(answers, test, _pictures(test.inputs) if test.is_image else None)
        self.run.save_model(p.model.state_dict())
        examples = self.step * p.examples_per_update
        result: dict[str, Any] = {
            "format": FORMAT,
            "task": predictor.task,
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
            "command": command(p.config, p.usual),
            "gradients": way(p),
            "environment": environment.describe(p.device, p.precision),
            "test_details": shown,
        }
        if isinstance(test, TableData):
            result["table"] = self._about_table(test)
        self.leave(result, summary)
        return Predictor(p.model, predictor.preprocess, self.run.path)


def _pictures(images: Tensor) -> Tensor:
    """Images as a report can show them: a few grey levels (digits has 17) would all be dark; floats are stretched."""
    return images if images.dtype == torch.uint8 and int(images.max()) > 64 else images.float()
