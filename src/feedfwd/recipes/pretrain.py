"""`feedfwd pretrain`: the policy around the loop: when to log, evaluate, sample and save, and what is left behind."""

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from feedfwd.checkpoint import FORMAT, Run, write_json, write_text
from feedfwd.config import parse
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.data.tokenizer import TextTokenizer
from feedfwd.errors import RunError
from feedfwd.recipes import environment, state
from feedfwd.recipes.console import Listener, Silent
from feedfwd.recipes.interrupt import Interrupted, graceful
from feedfwd.recipes.memory import memory
from feedfwd.recipes.pace import EVALUATIONS, FEW, Look, Pace, again_at, planned, replanned, scored
from feedfwd.recipes.samples import judge, sample
from feedfwd.recipes.say_text import command, cost, headline, overview, summary
from feedfwd.recipes.text import PreparedText, prepare_text, too_short, tried
from feedfwd.recipes.verbs import opened
from feedfwd.recipes.writer import TOKENIZER, Writer
from feedfwd.report import write_report
from feedfwd.train.averaging import EMA
from feedfwd.train.cross_entropy import Gradients
from feedfwd.train.loop import Step, train
from feedfwd.train.losses import build_loss
from feedfwd.train.precision import products
from feedfwd.train.progress import Meter, clock, typical
from feedfwd.train.rate import matrix_rate
from feedfwd.train.schedules import build_schedule

LOGGED = 200  # about so many steps of a run are logged
UNTIMED = 9  # first updates, which allocate, compile and fill caches


def pretrain_config(
    config: PretrainConfig,
    run_path: Path | None = None,
    listener: Listener | None = None,
    *,
    started: float | None = None,
) -> Writer:
    """Train a language model by `config` into a new run directory; returns it with its tokenizer.

    `started` is `time.perf_counter()` when the process began, so that `seconds.total` covers all of it.
    """
    started = time.perf_counter() if started is None else started
    listener = listener or Silent()
    with torch.random.fork_rng():
        prepared = prepare_text(config, listener)
        name = "+".join(Path(source).stem for source in config.sources)
        return _begin(prepared, Run.create(run_path, name[:60]), listener, started)


def _begin(prepared: PreparedText, run: Run, listener: Listener, started: float) -> Writer:
    for line in overview(prepared):
        listener.say(line)
    write_text(run.path / TOKENIZER, prepared.tokenizer.to_json())
    run.write_settings("pretrain", prepared.frozen().model_dump(exclude_none=True))
    plan, pace = planned(prepared, listener)
    if pace is not None:
        run.write_settings("pretrain", plan.frozen().model_dump(exclude_none=True))
    pretraining = Pretraining(plan, run, listener, started)
    pretraining.pace = pace
    return pretraining.train()


def dry_run(config: PretrainConfig, listener: Listener) -> PreparedText:
    """Everything up to the first update, and what training would cost; nothing is written but the cache of tokens."""
    with torch.random.fork_rng():
        prepared = prepare_text(config, listener)
        per_step = tried(prepared)
    for line in [*overview(prepared), *cost(prepared, per_step, memory(prepared))]:
        listener.say(line)
    listener.say("\n" + prepared.frozen().to_toml().rstrip())
    return prepared


def resume(path: Path, listener: Listener | None = None, *, started: float | None = None) -> Writer:
    """Continue an interrupted run: on the same machine, versions and threads the result is the same to the bit."""
    started = time.perf_counter() if started is None else started
    listener = listener or Silent()
    run = opened(path, "pretrain")
    if run.finished:
        raise RunError(
            f"{path} is finished; there is nothing to resume", hint="start a new run with `feedfwd pretrain`"
        )
    config = parse(PretrainConfig, run.settings())
    with torch.random.fork_rng():
        prepared = prepare_text(config, listener, tokenizer=TextTokenizer.load(run.path / TOKENIZER))
        if config.minutes is not None:  # stopped before it was planned
            run.log_file.unlink(missing_ok=True)
            return _begin(prepared, run, listener, started)
        for line in overview(prepared):
            listener.say(line)
        pretraining = Pretraining(prepared, run, listener, started)
        pretraining.restore()
        return pretraining.train()


class Pretraining:
    """One training: what `prepare_text` made, and all that moves and has to be saved."""

    def __init__(self, prepared: PreparedText, run: Run, listener: Listener, started: float) -> None:
        self.p, self.run, self.listener, self.started = prepared, run, listener, started
        c = prepared.config.train
        self.batches = prepared.batches()
        self.optimizer = prepared.optimizer()
        self.ema = EMA(prepared.model, c.ema) if c.ema else None
        self.step, self.seconds = 0, 0.0
        self.pace: Pace | None = None  # where the plan is to be made once more
        self.notes: list[str] = []

    @property
    def steps(self) -> int:
        return self.p.steps

    @property
    def evaluate_every(self) -> int:
        return self.p.config.train.evaluate_every or max(1, self.steps // EVALUATIONS)

    # --- the policy -------------------------------------------------------------------------------------------------

    def train(self) -> Writer:
        p, c = self.p, self.p.config
        if self.step == 0:
            self.notes = too_short(p)
            for note in self.notes:
                self.listener.say(f"note: {note}")
            parts = {"train": sum(map(len, p.train)), "validation": sum(map(len, p.held_out))}
            self.run.log({"event": "start", "time": time.time(), "source": p.corpus.name, "task": "language", **parts})
        self._began = time.perf_counter() - self.seconds
        self._meter = Meter(self.steps)
        durations: list[float] = []
        again = None if self.pace is None else again_at(c)
        with graceful() as stop:
            last_end = time.perf_counter()
            for step in self._updates():
                durations.append(time.perf_counter() - last_end)
                self.step, last = step.n, step.n == self.steps
                self._meter.update(step)
                if step.n % max(1, self.steps // LOGGED) == 0 or last:
                    self._log_step(step)
                with self._meter.paused():
                    if step.n % self.evaluate_every == 0 and not last:
                        self._look()
                    if step.n == again:
                        self._plan_again(durations[UNTIMED:])
                    if not last and (stop.number is not None or step.n == again or step.n % c.train.save_every == 0):
                        self.save()
                if stop.number is not None and not last:
                    where = f"stopped at step {step.n} of {self.steps}"
                    raise Interrupted(f"{where}; go on with: feedfwd pretrain --resume {self.run.path}", stop.number)
                last_end = time.perf_counter()
        self._tick()
        return self._finish(typical(durations, UNTIMED) if durations else math.nan)

    def _updates(self) -> Iterator[Step]:
        """All updates still to do, also where their number and the schedule change on the way."""
        p, c = self.p, self.p.config
        while self.step < self.steps:
            steps = self.steps
            for step in train(
                p.model,
                self.batches,
                build_loss("cross_entropy"),
                self.optimizer,
                steps=steps,
                schedule=build_schedule(total=steps, **self.p.config.schedule.model_dump()),
                start=self.step,
                accumulate=c.train.accumulate,
                clip=c.train.clip,
                precision=p.precision,
                ema=self.ema,
                gradients=Gradients(c.train.z_loss),
            ):
                yield step
                if self.steps != steps:
                    break

    def _plan_again(self, durations: Sequence[float]) -> None:
        """Settle how many updates fit into the minutes, by what the first ones took."""
        self._tick()
        c, pace = self.p.config, self.pace
        if pace is not None and len(durations) >= FEW:
            pace = replace(pace, update=statistics.fmean(durations))
            more = pace.updates(self.seconds, self.evaluate_every, c.train.save_every)
            self.p = replace(self.p, config=replanned(c, self.step, more))
            self._meter.total = self.steps
            self.run.write_settings("pretrain", self.p.frozen().model_dump(exclude_none=True))
            self.run.log({"event": "plan", "step": self.step, "steps": self.steps, "seconds": self.seconds})
            self.listener.say(f"step {self.step:,}: {self.steps:,} updates will fit into the minutes given")
        self.pace = None

    def _tick(self) -> None:
        """Bring the training's wall clock up to now; it goes on where an interrupted run stopped."""
        self.seconds = time.perf_counter() - self._began

    def _look(self) -> None:
        """See, and say, how well it does and what it writes by now."""
        with self.ema.swapped() if self.ema is not None else nullcontext():
            look = Look.at(self.p)
        if self.pace is not None:
            self.pace = replace(self.pace, look=look.seconds, final=look.final)
        self._tick()
        self.run.log({"event": "validation", "step": self.step, "scores": look.scores, "seconds": self.seconds})
        shown = ""
        if look.text is not None:
            self.run.log({"event": "sample", "step": self.step, **look.text})
            shown = "  " + repr(look.text["prompt"][-40:] + look.text["text"])
        self.listener.say(f"step {self.step:,}: held-out {headline(look.scores)}{shown}")

    # --- the state --------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Everything that moves, at an update boundary."""
        self._tick()
        tensors, numbers = state.moving(self.p.model, self.optimizer, self.ema)
        counters = {
            "data": self.p.fingerprint,
            "batches": self.batches.state_dict(),
            "optimizer": numbers,
            "seconds": self.seconds,
            "pace": None if self.pace is None else asdict(self.pace),
            "notes": self.notes,
        }
        self.run.save_state(self.step, tensors, counters)
        if self.pace is not None:
            self.pace = replace(self.pace, save=time.perf_counter() - self._began - self.seconds)

    def restore(self) -> None:
        """Go back to the newest saved state, or to the beginning where there is none."""
        found = self.run.load_state()
        if found is None:
            self.listener.say(f"{self.run.path} has no saved state yet: starting it again from its settings")
            return
        tensors, counters = found
        if counters["data"] != self.p.fingerprint:
            raise RunError(
                f"the text or the tokenizer of {self.run.path} has changed since it began ({self.p.corpus.name})",
                hint="restore it to resume, or start a new run on the new text",
            )
        state.restore(tensors, counters["optimizer"], self.p.model, self.optimizer, self.ema)
        self.batches.load_state_dict(counters["batches"])
        self.step, self.seconds, self.notes = counters["step"], counters["seconds"], counters.get("notes", [])
        self.pace = Pace(**pace) if (pace := counters.get("pace")) else None
        self.listener.say(f"resuming {self.run.path} at step {self.step} of {self.steps}")

    # --- what is said and left behind -------------------------------------------------------------------------------

    def _log_step(self, step: Step) -> None:
        self._tick()
        now = self._meter.read()
        norm = None if step.grad_norm is None else float(step.grad_norm)
        speed = now.examples_per_second * self.p.config.data.row
        rate = speed if isfinite(speed) else None
        event = {"event": "step", "step": step.n, "loss": float(step.loss), "lr": step.lr, "grad_norm": norm}
        self.run.log({**event, "tokens_per_second": rate, "seconds": self.seconds})
        left = "" if rate is None else f"  {rate:,.0f} tokens/s  {clock(now.eta)} left"
        self.listener.progress(step.n, self.steps, f"loss {now.loss:.4f}{left}")

    def _speed(self, per_step: float) -> dict[str, float | None]:
        """Tokens a second, FLOPs a token, and `mfu`: the share of the matrix rate that training reached.

        FLOPs are those of the products that training needs, as `flops_per_token` counts them; the matrix rate is what
        this machine does of the same products alone (`train.rate`), measured after training and not counted as it.
        Slower products alone than in training mean that other programs were at work by then: measured again, and where
        that doesn't help there is no `mfu`.
        """
        p, c = self.p, self.p.config
        if not isfinite(per_step):
            return {"tokens_per_second": None, "flops_per_token": p.flops_per_token, "matrix_rate": None, "mfu": None}
        speed = p.tokens_per_update / per_step
        found: dict[str, float | None] = {"tokens_per_second": speed, "flops_per_token": p.flops_per_token}
        for _ in range(3):
            rate = matrix_rate(products(p.model, c.data.row * c.train.batch_size), p.precision, p.device)
            if (mfu := speed * p.flops_per_token / rate) < 1:
                return found | {"matrix_rate": rate, "mfu": mfu}
        self.notes.append("other programs kept this machine too busy to measure its matrix rate")
        return found | {"matrix_rate": None, "mfu": None}

    def _finish(self, per_step: float) -> Writer:
        p = self.p
        if self.ema is not None:
            p.model.load_state_dict({k: v for k, v in self.ema.state_dict().items() if k != "updates"}, strict=False)
        p.model.eval()
        scores = scored(p)
        self.run.log({"event": "validation", "step": self.step, "scores": scores, "seconds": self.seconds})
        written: dict[str, Any] = {}
        if p.model.causal:
            written = {"sample": sample(p), "samples": judge(p)}
            self.run.log({"event": "sample", "step": self.step, **written["sample"]})
        self.run.save_model(p.model.state_dict())
        result: dict[str, Any] = {
            "format": FORMAT,
            "task": "language",
            "source": p.corpus.name,
            "validation": scores,
            "sizes": {"train": sum(map(len, p.train)), "validation": sum(map(len, p.held_out))},
            "bytes": {part: p.corpus.bytes_of(part) for part in ("train", "validation")},
            "vocabulary": p.tokenizer.vocabulary,
            "seconds": {"train": self.seconds, "total": time.perf_counter() - self.started},
            "steps": self.step,
            "tokens": self.step * p.tokens_per_update,
            **self._speed(per_step),
            "parameters": p.model.parameter_count,
            "seed": p.config.seed,
            **written,
            "notes": [*p.notes, *self.notes],
            "command": command(p.config),
            "environment": environment.describe(p.device, p.precision),
        }
        self.run.log({"event": "end", "step": self.step, "seconds": self.seconds})
        write_json(self.run.result_file, result)
        report = write_report(self.run.path)
        result["seconds"]["total"] = time.perf_counter() - self.started
        write_json(self.run.result_file, result)
        self.run.drop_state()
        for line in summary(result):
            self.listener.say(line)
        self.listener.say(f"report: {report}")
        return Writer(p.model, p.tokenizer, p.config, self.run.path)
