"""What a study asks of a verb: is this variant possible, what does it cost, how long does it take, how good is it."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from feedfwd.checkpoint import Run
from feedfwd.config import FitConfig, Recipe, parse
from feedfwd.config_finetune import FinetuneConfig
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.data.tables import TableData
from feedfwd.errors import ConfigError, nearest
from feedfwd.evaluate.intervals import bootstrap_interval
from feedfwd.ffn.spec import build_ffn
from feedfwd.recipes.console import Listener, Silent
from feedfwd.recipes.fit import Fitting, fit_config
from feedfwd.recipes.fit import resume as resume_fit
from feedfwd.recipes.plan import plan, tried
from feedfwd.recipes.predictor import Predictor
from feedfwd.recipes.prepare import parts, prepare
from feedfwd.report.words import HEADLINES, word
from feedfwd.study.statistics import Estimate

Watch = Callable[[float, Mapping[str, float]], None]  # share of the training done, scores on validation

VALIDATION = 0.2  # of the training part, to decide by, where the settings don't say


@dataclass(frozen=True)
class Known:
    """What can be said of a variant without training it."""

    parameters: int
    flops: int
    scores: tuple[str, ...]  # names
    validation: int  # examples to be scored on
    training: int


@dataclass(frozen=True)
class Outcome:
    """One training of one variant."""

    scores: dict[str, float]  # on validation
    curve: list[tuple[float, dict[str, float]]]  # (share of the training, scores)
    seconds: float
    parameters: int
    flops: int
    steps: int
    notes: list[str] = field(default_factory=list)


class Training(Protocol):
    @property
    def verb(self) -> str: ...

    @property
    def kind(self) -> type[Recipe]: ...

    def settled(self, config: Recipe) -> Recipe:
        """With a validation part to decide by."""

    def check(self, config: Recipe) -> Known:
        """ConfigError or DataError where this can't be trained."""

    def seconds(self, config: Recipe) -> float:
        """What a training takes, from a short trial."""

    def run(self, config: Recipe, folder: Path, watch: Watch) -> Outcome:
        """Train and score on validation; `folder` may be written to. The test part stays closed."""

    def final(self, config: Recipe, path: Path, listener: Listener) -> dict[str, Any]:
        """Train the winner into a run directory of its own and open its test part; its result.

        A run that is there already is read, or resumed where it isn't finished.
        """


class Unkept(Run):
    """A run that leaves nothing behind: what it logs goes to a function."""

    def __init__(self, heard: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__(Path("unkept"))
        self.heard = heard

    def log(self, event: Mapping[str, Any]) -> None:
        self.heard(event)

    def save_state(self, step: int, tensors: Mapping[str, Any], counters: Mapping[str, Any]) -> None: ...


class Fit:
    verb, kind = "fit", FitConfig

    def settled(self, config: Recipe) -> Recipe:
        return _with_validation(config)

    def check(self, config: Recipe) -> Known:
        assert isinstance(config, FitConfig)
        with torch.random.fork_rng():
            p = prepare(config)
        assert p.validation is not None
        names = p.predictor.scores(p.predictor.answers(p.validation.inputs), p.validation.data)
        return Known(p.model.parameter_count, p.model.flops, tuple(names), len(p.validation.data), len(p.train.data))

    def seconds(self, config: Recipe) -> float:
        assert isinstance(config, FitConfig)
        if config.minutes is not None:
            return 60 * config.minutes
        with torch.random.fork_rng():
            p = prepare(config)
            per_step, evaluation = tried(p)
        return per_step * p.steps + evaluation * min(p.steps, 40)

    def run(self, config: Recipe, folder: Path, watch: Watch) -> Outcome:
        assert isinstance(config, FitConfig)
        curve: list[tuple[float, dict[str, float]]] = []
        steps = 1

        def heard(event: Mapping[str, Any]) -> None:
            if event["event"] == "validation":
                curve.append((event["step"] / steps, event["scores"]))
                watch(*curve[-1])

        started = time.perf_counter()
        with torch.random.fork_rng():
            run = Unkept(heard)
            prepared = plan(prepare(config), run, Silent())
            fitting = Fitting(prepared, run, Silent(), started)
            steps = fitting.steps
            fitting.run_updates()
            assert prepared.validation is not None
            scores = fitting.scores(prepared.validation)[1]
        m = prepared.model
        return Outcome(scores, curve, fitting.seconds, m.parameter_count, m.flops, fitting.step, prepared.notes)

    def final(self, config: Recipe, path: Path, listener: Listener) -> dict[str, Any]:
        assert isinstance(config, FitConfig)
        return _brought_to_an_end(path, lambda: fit_config(config, path, listener), lambda: resume_fit(path, listener))

    def resolved(self, config: FitConfig) -> tuple[FitConfig, bool]:
        """All settings, the preset's beneath those said; and whether the source is a table."""
        found = parts(config)
        return found.config, isinstance(found.train, TableData)


def beside(first: Path, second: Path, score: str) -> Estimate | None:
    """By how much the first of two runs is better than the second on the test part that they share.

    The interval is over its examples (paired bootstrap); None for a score that isn't made of single examples.
    """
    test = parts(parse(FitConfig, Run.open(first).settings()), resolved=True).test
    losses = []
    for path in (first, second):
        predictor = Predictor.load(path)
        answers = predictor.answers(predictor.preprocess.examples(test))
        known = test if predictor.classes is None else test.recode(predictor.classes)
        if (found := example_losses(score, answers, known.targets.numpy())) is None:
            return None
        losses.append(found)
    mean = root_mean if score == "rmse" else np.mean

    def better(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(mean(b, axis=-1) - mean(a, axis=-1))

    low, high = bootstrap_interval(better, *losses)
    return Estimate(float(better(*losses)), float(low), float(high), 1.0, len(losses[0]))


def example_losses(score: str, answers: np.ndarray, targets: np.ndarray) -> np.ndarray | None:
    """For each example what the score is a mean of, lower being better; None for a score that isn't a mean.

    >>> example_losses("accuracy", np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1])).tolist()
    [0.0, 1.0]
    """
    n = np.arange(len(targets))
    if targets.ndim > 1 and score in ("exact", "log_loss"):  # several labels
        p = np.clip(answers.astype(np.float64), 1e-7, 1 - 1e-7)
        if score == "exact":
            return ((p >= 0.5) != (targets > 0.5)).any(1).astype(np.float64)
        return -np.where(targets > 0.5, np.log(p), np.log1p(-p)).sum(1)
    match score:
        case "accuracy":
            return (answers.argmax(1) != targets).astype(np.float64)
        case "log_loss":
            return -np.log(np.clip(answers[n, targets].astype(np.float64), 1e-12, None))
        case "mae" | "rmse" if answers.ndim == 1:
            gap = np.abs(answers.astype(np.float64) - targets)
            return gap if score == "mae" else gap**2
    return None


def root_mean(squares: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(np.sqrt(squares.mean(axis)))


def _brought_to_an_end(path: Path, begin: Callable[[], object], resume: Callable[[], object]) -> dict[str, Any]:
    """The result of the run at `path`: read where it is finished, else resumed, else begun."""
    run = Run(path)
    if not run.finished:
        if run.config_file.is_file():
            resume()
        else:
            shutil.rmtree(path, ignore_errors=True)  # of one that was stopped before its settings were written
            begin()
    found: dict[str, Any] = run.read_json(run.result_file)
    return found


class Kept:
    """A verb that trains into run directories, one a training; scores and curve are read from there."""

    verb: str

    def run(self, config: Recipe, folder: Path, watch: Watch) -> Outcome:
        heard = _Follower(folder, watch)
        result = self.final(config, folder, heard)
        heard.read()
        flops = result.get("flops") or result.get("flops_per_token") or 0
        return Outcome(
            result["validation"],
            heard.curve,
            result["seconds"]["train"],
            result["parameters"],
            flops,
            result["steps"],
            result["notes"],
        )

    def _train(self, config: Recipe, path: Path, listener: Listener) -> None:
        raise NotImplementedError

    def _resume(self, path: Path, listener: Listener) -> None:
        raise NotImplementedError

    def final(self, config: Recipe, path: Path, listener: Listener) -> dict[str, Any]:
        return _brought_to_an_end(
            path, lambda: self._train(config, path, listener), lambda: self._resume(path, listener)
        )


class _Follower(Silent):
    """Reads the validation scores from a run's log whenever the run says how far it is."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        self.file, self.watch, self.seen = folder / "log.jsonl", watch, 0
        self.curve: list[tuple[float, dict[str, float]]] = []
        self.total = 1

    def progress(self, step: int, total: int, text: str, unit: str = "step") -> None:
        self.total = total
        self.read()

    def read(self) -> None:
        if not self.file.is_file():
            return
        lines = self.file.read_text(encoding="utf-8").splitlines()
        for line in lines[self.seen :]:
            event = json.loads(line)
            if event["event"] == "validation":
                self.curve.append((event["step"] / self.total, event["scores"]))
                self.watch(*self.curve[-1])
        self.seen = len(lines)


class Pretrain(Kept):
    verb, kind = "pretrain", PretrainConfig

    def settled(self, config: Recipe) -> Recipe:
        return config

    def check(self, config: Recipe) -> Known:
        from feedfwd.recipes.text import prepare_text

        assert isinstance(config, PretrainConfig)
        _check_layer(config)
        with torch.random.fork_rng():
            p = prepare_text(config.with_("minutes", None) if config.minutes else config, Silent())
        names = ("bits_per_byte", "loss", "perplexity") if config.train.objective == "next" else ("loss", "perplexity")
        sizes = [sum(map(len, part)) for part in (p.held_out, p.train)]
        return Known(p.model.parameter_count, p.flops_per_token, names, *sizes)

    def seconds(self, config: Recipe) -> float:
        from feedfwd.recipes import text

        assert isinstance(config, PretrainConfig)
        if config.minutes is not None:
            return 60 * config.minutes
        with torch.random.fork_rng():
            p = text.prepare_text(config, Silent())
            return text.tried(p) * p.steps

    def _train(self, config: Recipe, path: Path, listener: Listener) -> None:
        from feedfwd.recipes.pretrain import pretrain_config

        assert isinstance(config, PretrainConfig)
        pretrain_config(config, path, listener)

    def _resume(self, path: Path, listener: Listener) -> None:
        from feedfwd.recipes.pretrain import resume

        resume(path, listener)


class Finetune(Kept):
    verb, kind = "finetune", FinetuneConfig

    def settled(self, config: Recipe) -> Recipe:
        return _with_validation(config)

    def check(self, config: Recipe) -> Known:
        from feedfwd.recipes.texts import prepare_texts

        assert isinstance(config, FinetuneConfig)
        _check_layer(config)
        with torch.random.fork_rng():
            p = prepare_texts(config)
        assert p.validation is not None
        names = ("accuracy", "macro_f1", "log_loss", "ece", "brier")
        flops = p.model.flops  # of one text; a Transformer's depend on its length
        return Known(
            p.model.parameter_count, flops if isinstance(flops, int) else 0, names, len(p.validation), len(p.train)
        )

    def seconds(self, config: Recipe) -> float:
        from feedfwd.recipes.finetune import tried
        from feedfwd.recipes.texts import prepare_texts

        assert isinstance(config, FinetuneConfig)
        if config.minutes is not None:
            return 60 * config.minutes
        with torch.random.fork_rng():
            p = prepare_texts(config)
            return tried(p) * p.steps

    def run(self, config: Recipe, folder: Path, watch: Watch) -> Outcome:
        from feedfwd.recipes.finetune import validated

        assert isinstance(config, FinetuneConfig)
        heard = _Follower(folder, watch)
        training, scores = validated(config, folder, heard)
        heard.read()
        shutil.rmtree(folder)  # a training of a study needs no model
        with suppress(OSError):  # others are at work there
            folder.parent.rmdir()
        p = training.p
        parameters = p.model.parameter_count
        return Outcome(scores, heard.curve, training.seconds, parameters, p.flops, training.step, p.notes)

    def _train(self, config: Recipe, path: Path, listener: Listener) -> None:
        from feedfwd.recipes.finetune import finetune_config

        assert isinstance(config, FinetuneConfig)
        finetune_config(config, path, listener)

    def _resume(self, path: Path, listener: Listener) -> None:
        from feedfwd.recipes.finetune import resume

        resume(path, listener)


def _check_layer(config: PretrainConfig | FinetuneConfig) -> None:
    """A word that isn't known is no reason to read the texts."""
    build_ffn(config.ffn.spec() if isinstance(config, PretrainConfig) else config.ffn, 8, 8)


def _with_validation(config: Recipe) -> Recipe:
    """A validation part to decide by: presets may keep none."""
    given = config.said().get("data", {}).get("validation")
    if given == 0:
        raise ConfigError(
            "data.validation=0 leaves nothing to decide by",
            hint=f"leave it out for {VALIDATION:g} of the training part",
        )
    return config if given is not None else config.with_("data.validation", VALIDATION)


TRAININGS: dict[str, Callable[[], Training]] = {"fit": Fit, "pretrain": Pretrain, "finetune": Finetune}


def training(verb: str) -> Training:
    if verb not in TRAININGS:
        raise ConfigError(f"--verb {verb} can't be compared", hint=nearest(verb, TRAININGS))
    return TRAININGS[verb]()


def scored_by(asked: str | None, names: tuple[str, ...]) -> str:
    """The score that decides: the one asked for, or the one that stands on top of a report."""
    if asked is None:
        return next((name for name in HEADLINES if name in names), names[0])
    if asked not in names:
        raise ConfigError(f"--score {asked} is none of this task's scores", hint=nearest(asked, names))
    return asked


def higher_is_better(score: str) -> bool:
    return word(score).meaning.endswith("higher is better")
