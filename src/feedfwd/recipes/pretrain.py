"""`feedfwd pretrain`: the policy around the loop: when to log, evaluate, sample and save, and what is left behind."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from feedfwd.checkpoint import FORMAT, Run, write_json, write_text
from feedfwd.config import parse
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.data.sources import placed
from feedfwd.data.tokenizer import TextTokenizer
from feedfwd.errors import RunError
from feedfwd.models import adapt
from feedfwd.recipes import environment
from feedfwd.recipes.adapters import LOW_RANK, keep
from feedfwd.recipes.console import Listener, Silent
from feedfwd.recipes.interrupt import resumable
from feedfwd.recipes.memory import memory
from feedfwd.recipes.pace import ESTIMATE, EVALUATIONS, FEW, Look, Pace, again_at, planned, replanned, scored
from feedfwd.recipes.samples import judge, sample
from feedfwd.recipes.say_text import command, cost, example, headline, overview, summary
from feedfwd.recipes.text import PreparedText, prepare_text, too_short, tried
from feedfwd.recipes.training import Training, finite, listed
from feedfwd.recipes.verbs import opened
from feedfwd.recipes.writer import TOKENIZER, Writer
from feedfwd.report.words import duration
from feedfwd.train.cross_entropy import Gradients
from feedfwd.train.losses import build_loss
from feedfwd.train.precision import products
from feedfwd.train.progress import Progress, clock, typical
from feedfwd.train.rate import matrix_rate

LOOKING = 0.2  # of the work at most for evaluations on the way, unless their number is given
WRITTEN = 512  # tokens of training that a sample takes the time of
REMEMBERED = 2000  # files whose hashes a saved state keeps, to say which one has changed
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
        name = "+".join(Path(placed(source)).stem for source in config.sources)
        run = Run.create(run_path, name[:60])
        with resumable("pretrain", run):
            return _begin(prepared, run, listener, started)


def _begin(prepared: PreparedText, run: Run, listener: Listener, started: float) -> Writer:
    for line in overview(prepared):
        listener.say(line)
    write_text(run.path / TOKENIZER, prepared.tokenizer.to_json())
    if prepared.base is not None:
        write_json(run.preprocess_file, prepared.base.about(prepared.model))
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
    for line in [*overview(prepared), *example(prepared), *cost(prepared, per_step, memory(prepared))]:
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
            f"{path} is finished; there is nothing to resume",
            hint=f"to train it further, start a new run: feedfwd pretrain SOURCE --from {path}",
        )
    config = parse(PretrainConfig, run.settings())
    with torch.random.fork_rng(), resumable("pretrain", run):
        prepared = prepare_text(config, listener, tokenizer=TextTokenizer.load(run.path / TOKENIZER))
        if config.minutes is not None:  # stopped before it was planned
            run.log_file.unlink(missing_ok=True)
            return _begin(prepared, run, listener, started)
        for line in overview(prepared):
            listener.say(line)
        pretraining = Pretraining(prepared, run, listener, started)
        pretraining.restore()
        return pretraining.train()


class Pretraining(Training):
    """One training: what `prepare_text` made, and all that moves and has to be saved."""

    verb: ClassVar[str] = "pretrain"
    keeps_last: ClassVar[bool] = True

    def __init__(self, prepared: PreparedText, run: Run, listener: Listener, started: float) -> None:
        c = prepared.config
        super().__init__(
            run,
            listener,
            model=prepared.predicting,
            batches=prepared.batches(),
            optimizer=prepared.optimizer(),
            loss=build_loss("cross_entropy"),
            steps=prepared.steps,
            updates=c.train,
            schedule=c.schedule,
            precision=prepared.precision,
            source=prepared.corpus.name,
            fingerprint=prepared.fingerprint,
            evaluate_every=_looks(prepared, prepared.steps),
            started=started,
            gradients=Gradients(c.train.z_loss),
        )
        self.p = prepared
        self.pace: Pace | None = None  # where the plan is to be made once more
        self.notes: list[str] = []
        self.per_step = math.nan  # seconds, before the process that goes on
        self._looked: Look | None = None
        self.before: dict[str, float] | None = None  # scores of a model that is trained further

    # --- the policy -------------------------------------------------------------------------------------------------

    def train(self) -> Writer:
        p = self.p
        if self.step == 0:
            self.notes = too_short(p)
            for note in self.notes:
                self.listener.say(f"note: {note}")
            if p.base is not None:
                self.before = scored(p)
                self.listener.say(f"before: held-out {headline(self.before)}")
        self.begin("language", {"train": sum(map(len, p.train)), "validation": sum(map(len, p.held_out))})
        self.again = None if self.pace is None else again_at(p.config)
        self.updates()
        return self._finish(self._typical())

    def _typical(self) -> float:
        """Seconds that an update takes."""
        return typical(self.durations, UNTIMED) if self.durations else self.per_step

    def between(self) -> bool:
        if self.step == self.again:
            self._plan_again(self.durations[UNTIMED:])
        return self.step == self.again

    def _plan_again(self, durations: Sequence[float]) -> None:
        """Settle how many updates fit into the minutes, by what the first ones took."""
        self._tick()
        c, pace = self.p.config, self.pace
        if pace is not None and len(durations) >= FEW:
            pace = replace(pace, update=statistics.fmean(durations))
            more = pace.updates(self.seconds, self.evaluate_every, c.train.save_every)
            c = replanned(c, self.step, more)
            self.p = replace(self.p, config=c)
            self.steps, self.schedule, self.evaluate_every = self.p.steps, c.schedule, _looks(self.p, self.p.steps)
            self.run.write_settings("pretrain", self.p.frozen().model_dump(exclude_none=True))
            self.settings = self.run.settings()
            self.run.log({"event": "plan", "step": self.step, "steps": self.steps, "seconds": self.seconds})
            self.listener.say(f"step {self.step:,}: {self.steps:,} updates will fit into the minutes given")
        self.pace = None

    @property
    def held_out(self) -> int:
        return sum(map(len, self.p.held_out))

    def look(self) -> dict[str, float]:
        self._looked = Look.at(self.p)
        if self.pace is not None:
            self.pace = replace(self.pace, look=self._looked.seconds, final=self._looked.final)
        return self._looked.scores

    def seen(self, scores: dict[str, float]) -> bool:
        """Say how well it does and what it writes by now."""
        assert self._looked is not None
        shown, text = "", self._looked.text
        if text is not None:
            self.run.log({"event": "sample", "step": self.step, **text})
            shown = "  " + repr(text["prompt"][-40:] + text["text"])
        self.listener.say(f"step {self.step:,}: held-out {headline(scores)}{shown}")
        return False

    # --- the state --------------------------------------------------------------------------------------------------

    def save(self) -> None:
        super().save()
        if self.pace is not None:
            self.pace = replace(self.pace, save=time.perf_counter() - self._began - self.seconds)

    def counters(self) -> dict[str, Any]:
        files = self.p.hashes if len(self.p.hashes) <= REMEMBERED else {}
        pace, notes = None if self.pace is None else asdict(self.pace), {"notes": self.notes, "before": self.before}
        return {"pace": pace, "files": files, "per_step": finite(self._typical()), **notes}

    def recall(self, counters: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.notes, self.before = counters.get("notes", []), counters.get("before")
        self.per_step = counters.get("per_step") or math.nan
        self.pace = Pace(**pace) if (pace := counters.get("pace")) else None

    def changed(self, counters: dict[str, Any], edited: list[str]) -> RunError:
        """By a setting, the tokenizer, or the text: each is put right in another place."""
        corpus, tokenizer = counters["data"]
        reading = [word for word in edited if word.startswith(("data.", "seed="))]
        if corpus == self.p.corpus.fingerprint:
            what = f"{self.run.path / TOKENIZER} has changed since the run began"
            return RunError(what, hint="restore the tokenizer that it began with, or start a new run")
        if reading:
            what = (
                f"{self.run.config_file} was changed since the state was saved: {listed(reading)}; that is other text"
            )
            return RunError(what, hint="set it back to resume, or start a new run with it")
        also = "" if tokenizer == self.p.tokenizer.fingerprint else f", and so has {self.run.path / TOKENIZER}"
        return RunError(
            f"the training data of {self.run.path} have changed since it began ({self.source}): "
            f"{other_files(counters.get('files') or {}, self.p.hashes)}{also}",
            hint="restore them to resume, or start a new run on the new text",
        )

    # --- what is said and left behind -------------------------------------------------------------------------------

    def rate(self, now: Progress) -> tuple[dict[str, float | None], str]:
        speed = finite(now.examples_per_second * self.p.config.data.row)
        left = "" if speed is None else f"  {speed:,.0f} tokens/s  {clock(now.eta)} left"
        return {"tokens_per_second": speed}, f"loss {now.loss:.4f}{left}"

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
        if p.config.method in LOW_RANK:
            assert p.base is not None
            keep(self.run, p.model, p.base.pretrained.name)
            adapt.merge(p.model)
        expected = "" if self._looked is None else f", about {duration(self._looked.final)}"
        self.listener.say(f"training is done and saved; scoring all {self.held_out:,} held-out tokens{expected}")
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
            **({} if self.before is None else {"compared": {"before": self.before}}),
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
        self.leave(result, summary)
        about = None if p.base is None else p.base.about(p.model)
        return Writer(p.model, p.tokenizer, p.config, self.run.path, about)


def other_files(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Which files differ, by path and hash of their content.

    >>> other_files({"a": "1", "b": "2"}, {"a": "3", "b": "2", "c": "4"})
    'a is another, c is new'
    """
    if not before:
        return "one of its files"
    found = [f"{path} is another" for path in now if before.get(path, now[path]) != now[path]]
    found += [f"{path} is new" for path in now if path not in before]
    found += [f"{path} is gone" for path in before if path not in now]
    return listed(found) if found else "the order of its files, or how they are read"


def _looks(p: PreparedText, steps: int) -> int:
    """Updates from one evaluation to the next: in short runs fewer, so that most of the work is training.

    Scoring a token takes a third of training on it, and the sample that comes with it about as much as `WRITTEN` do.
    """
    if p.config.train.evaluate_every is not None:
        return p.config.train.evaluate_every
    look = min(ESTIMATE, sum(map(len, p.held_out))) / 3 + (WRITTEN if p.model.causal else 0)
    return max(1, steps // EVALUATIONS, math.ceil(look / (LOOKING * p.tokens_per_update)))
