"""A study where several processes, or machines, find their work and leave their results: optuna's storage.

A trial is one variant with all its seeds. The trials wait in a queue from the beginning; who is free takes the next.
A variant whose worker was killed or stopped goes back into the queue with the seeds that it has done.
"""

import contextlib
import math
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feedfwd.errors import MissingExtra, RunError
from feedfwd.recipes.console import Listener, Silent
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.study.plan import Plan
from feedfwd.study.space import Choice, Variant

if TYPE_CHECKING:
    import optuna

BEAT, GRACE = 20, 90  # seconds between a worker's signs of life, and after which it is taken for dead
OFTEN = 1.0  # seconds between notes of how far a training is
ATTEMPTS = 5  # at opening a storage that others open at the same time
SETTLED = 0.2  # seconds after which nobody else claims what was free
PATIENCE = 5.0  # seconds in which who begins a study queues at least one more variant
RUNGS, KEPT = (
    11,
    3,
)  # successive halving: first look at 11 % of the first seed; the best third goes on, three times as far


def optuna_module() -> Any:
    """optuna, quiet; MissingExtra where it isn't installed."""
    try:
        import optuna
    except ImportError:
        raise MissingExtra("comparisons need optuna", hint='pip install "feedfwd[study]"') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


@dataclass
class Row:
    """What is known of one variant by now."""

    number: int  # its place in the queue
    state: str  # waiting, running, done, dropped (by halving), failed
    variant: Variant | None
    label: str
    outcomes: dict[int, dict[str, Any]] = field(default_factory=dict)  # by seed: `trainings.Outcome` as it is stored
    changes: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    share: float = 0.0  # of the seed that is being trained

    def scores(self, name: str, seeds: tuple[int, ...]) -> np.ndarray:
        """A score a seed, nan where there is none."""
        return np.array([self.outcomes[s]["scores"][name] if s in self.outcomes else np.nan for s in seeds])


@dataclass(frozen=True)
class Opened:
    """What the winner reached on the test part."""

    path: Path  # of its run, where it was trained
    scores: dict[str, float] | None
    n: int | None
    details: dict[str, Any]


class _Beating(Silent):
    """Tells the others, whenever a training says how far it is, that it is still in work."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self.beat, self.told = beat, time.monotonic()

    def progress(self, step: int, total: int, text: str, unit: str = "") -> None:
        if time.monotonic() - self.told > BEAT:
            self.told = time.monotonic()
            self.beat()


class Shared:
    """One study in its storage."""

    def __init__(self, study: "optuna.Study", plan: Plan, folder: Path) -> None:
        self.study, self.plan, self.folder = study, plan, folder

    @classmethod
    def begin(cls, plan: Plan, url: str, folder: Path, *, seed: int = 0, name: str | None = None) -> "Shared":
        """The study that `plan` asks for: a new one with all its work queued, or the one that is there."""
        optuna, name = optuna_module(), name or plan.name
        storage = _storage(url)
        try:
            study = optuna.create_study(
                storage=storage, study_name=name, direction="maximize" if plan.higher else "minimize"
            )
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(study_name=name, storage=storage)
            _wait_for_plan(study)
        if "plan" not in study.user_attrs:
            queued = {t.user_attrs.get("number") for t in study.get_trials(deepcopy=False)}  # by one that was killed
            for number, variant in enumerate(plan.queue):
                if number not in queued:
                    study.enqueue_trial(dict(variant or {}), user_attrs={"number": number})
            study.set_user_attr("plan", plan.to_json())  # last: who joins waits for it
        return cls.join(url, name, folder, seed=seed)

    @classmethod
    def join(cls, url: str, name: str, folder: Path, *, seed: int = 0) -> "Shared":
        """Take part in a study that somebody began; `seed` differs by worker, so that they sample differently."""
        optuna, storage = optuna_module(), _storage(url)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, multivariate=True, constant_liar=True)
        study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
        _wait_for_plan(study)
        if "plan" not in study.user_attrs:
            raise RunError(f"the study {name} was never begun whole", hint="give the command that began it again")
        plan = Plan.from_json(study.user_attrs["plan"])
        if plan.search in ("grid", "random"):
            study.sampler = optuna.samplers.RandomSampler(seed=seed)
        study.pruner = optuna.pruners.NopPruner()
        if plan.search == "halving":
            study.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=RUNGS, reduction_factor=KEPT)
        return cls(study, plan, folder)

    # --- doing the work -----------------------------------------------------------------------------------------------

    def work(self, changed: Callable[[], None] = lambda: None) -> None:
        """Take what waits until nothing does. `changed` is called whenever there is news."""
        optuna = optuna_module()
        while True:
            if self._any("WAITING"):
                try:
                    self.study.optimize(lambda trial: self._try(trial, changed), n_trials=1, catch=(Exception,))
                except KeyboardInterrupt:
                    self.requeue()
                    raise
            elif self._any("RUNNING"):  # elsewhere; where that one dies, its variant waits again
                time.sleep(OFTEN)
                _stop_if_orphaned()
                optuna.storages.fail_stale_trials(self.study)
                self.bury()
            else:
                return
            changed()
            self.requeue()

    @property
    def until(self) -> float:
        """Seconds since 1970 from which on nothing more is begun but the first variant, which others are judged by."""
        return float(self.study.user_attrs.get("until", math.inf))

    def end_at(self, until: float) -> None:
        self.study.set_user_attr("until", until)

    @property
    def unfinished(self) -> bool:
        return self._any("WAITING", "RUNNING")

    def _any(self, *states: str) -> bool:
        from optuna.trial import TrialState

        return bool(self.study.get_trials(deepcopy=False, states=tuple(TrialState[state] for state in states)))

    def _try(self, trial: "optuna.Trial", changed: Callable[[], None]) -> float:
        """One variant on all seeds; the mean of the score that decides."""
        from optuna import TrialPruned

        plan = self.plan
        if "number" not in trial.user_attrs:  # two took the last that waited: this one is nobody's
            raise TrialPruned
        trial.set_user_attr("worker", _me())
        optional = trial.user_attrs["number"] > 0
        if optional and time.time() > self.until:
            trial.set_user_attr("late", True)
            raise TrialPruned
        variant = self._chosen(trial)
        outcomes: dict[str, Any] = dict(trial.user_attrs.get("outcomes", {})) or self._twin(trial, variant)
        try:
            trial.set_user_attr("changes", plan.changes(variant))
            for place, seed in enumerate(plan.seeds):
                _stop_if_orphaned()
                if str(seed) not in outcomes:
                    outcomes[str(seed)] = self._train(trial, variant, seed, place, changed)
                    trial.set_user_attr("outcomes", outcomes)
                scores = [outcomes[str(s)]["scores"][plan.score] for s in plan.seeds[: place + 1]]
                if not np.isfinite(scores[-1]):
                    raise FloatingPointError(f"{plan.score} is {scores[-1]} with seed {seed}")
                if plan.search == "halving":  # each write costs some milliseconds
                    trial.report(float(np.mean(scores)), 100 * (place + 1))
                changed()
                if optional and place + 1 < len(plan.seeds) and (trial.should_prune() or time.time() > self.until):
                    raise TrialPruned
        except (TrialPruned, Interrupted):
            raise
        except Exception as error:
            kind = "" if hasattr(error, "hint") else f"{type(error).__name__}: "
            trial.set_user_attr("reason", " ".join(f"{kind}{error}".split())[:300])
            raise
        return float(np.mean(scores))

    def _train(
        self, trial: "optuna.Trial", variant: Variant, seed: int, place: int, changed: Callable[[], None]
    ) -> dict[str, Any]:
        from optuna import TrialPruned

        plan, told, noted = self.plan, time.monotonic(), False

        def watch(share: float, scores: Mapping[str, float]) -> None:
            nonlocal told, noted
            value = scores.get(plan.score, np.nan)
            if place == 0 and plan.search == "halving" and trial.user_attrs["number"] > 0 and 0 < share < 1:
                if np.isfinite(value) and round(100 * share) > 0:
                    trial.report(float(value), round(100 * share))
                if trial.should_prune():
                    raise TrialPruned
            if (now := time.monotonic()) - told > OFTEN:
                told, noted = now, True
                trial.set_user_attr("share", round(share, 2))
                _stop_if_orphaned()
                changed()

        folder = self.folder / "trials" / f"{trial.user_attrs['number']}-seed-{seed}"
        outcome = plan.training.run(plan.trial_config(variant, seed), folder, watch)
        stored = asdict(outcome)
        every = max(1, len(outcome.curve) // 40)
        thin = [*outcome.curve[::-1][::every]][::-1]  # the last one stays
        stored["curve"] = [[round(share, 4), scores.get(plan.score)] for share, scores in thin]
        if noted:
            trial.set_user_attr("share", 0.0)
        return stored

    def _chosen(self, trial: "optuna.Trial") -> Variant:
        found: Variant = {}
        for axis in self.plan.axes:
            if isinstance(axis, Choice):
                found[axis.name] = trial.suggest_categorical(axis.name, list(axis.levels))
            elif axis.whole:
                found[axis.name] = trial.suggest_int(axis.name, int(axis.low), int(axis.high), log=axis.logarithmic)
            else:
                found[axis.name] = trial.suggest_float(axis.name, axis.low, axis.high, log=axis.logarithmic)
        return found

    def _twin(self, trial: "optuna.Trial", variant: Variant) -> dict[str, Any]:
        """A search may choose the same variant again: what is known needn't be trained again."""
        twins = [r for r in self.rows() if r.variant == variant and r.number != trial.user_attrs["number"]]
        return {str(seed): outcome for twin in twins for seed, outcome in twin.outcomes.items()}

    # --- the test part ------------------------------------------------------------------------------------------------

    def opened(self, train: Callable[[Listener], dict[str, Any]]) -> Opened:
        """What `train`, a run's result, says of the test part; of all who take part in a study one asks it, and once.

        The others wait for the answer, and so does who asks again later. Where that one dies, another takes its place.
        """

        def claim() -> None:
            self.study.set_user_attr("test", {"by": _me(), "at": time.time()})

        while True:
            found = self.study.user_attrs.get("test")
            if found is not None and "path" in found:
                return Opened(Path(found["path"]), found["scores"], found["n"], found["details"])
            if found is None or _given_up(found):
                claim()
                time.sleep(SETTLED)  # of several that claim it at once, the last has it
            elif found["by"] == _me():
                result = train(_Beating(claim))
                details = {"intervals": (result.get("test_details") or {}).get("intervals", {})}
                said = {"scores": result.get("test"), "n": result["sizes"].get("test"), "details": details}
                self.study.set_user_attr("test", {"by": _me(), "path": str(self.folder / "winner"), **said})
            else:
                time.sleep(OFTEN)

    # --- after a kill -------------------------------------------------------------------------------------------------

    def requeue(self) -> None:
        """What was begun and neither finished nor failed for a reason waits again."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        again = {t.user_attrs["again"] for t in trials if "again" in t.user_attrs}
        for t in trials:
            left = t.state == TrialState.FAIL and "number" in t.user_attrs and "reason" not in t.user_attrs
            if left and t.number not in again:
                chosen = {**t.system_attrs.get("fixed_params", {}), **t.params}
                self.study.enqueue_trial(chosen, user_attrs={**t.user_attrs, "again": t.number})

    def bury(self) -> None:
        """Give up the trials of this machine's workers that are no more, without waiting for their heartbeat to end."""
        from optuna.trial import TrialState

        for t in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            host, _, pid = t.user_attrs.get("worker", "").rpartition(":")
            if host == socket.gethostname() and not _alive(int(pid)):
                with contextlib.suppress(ValueError, RuntimeError):  # somebody else was faster
                    self.study.tell(t.number, state=TrialState.FAIL)
        self.requeue()

    # --- what is known ------------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Every variant that was queued, in the order of the queue."""
        from optuna.trial import TrialState

        words = {
            TrialState.WAITING: "waiting",
            TrialState.RUNNING: "running",
            TrialState.COMPLETE: "done",
            TrialState.PRUNED: "dropped",
            TrialState.FAIL: "failed",
        }
        rows: dict[int, Row] = {}
        for t in self.study.get_trials(deepcopy=False):
            if "number" not in t.user_attrs:
                continue
            state = words[t.state]
            late = "late" in t.user_attrs and "outcomes" not in t.user_attrs
            if late or (state == "failed" and "reason" not in t.user_attrs):
                state = "waiting"
            number = t.user_attrs["number"]
            params = {**t.system_attrs.get("fixed_params", {}), **t.params}
            whole = len(params) == len(self.plan.axes)
            row = Row(
                number,
                state,
                params if whole else None,
                self.plan.label(params) if whole else "to be chosen",
                {int(seed): outcome for seed, outcome in t.user_attrs.get("outcomes", {}).items()},
                t.user_attrs.get("changes", {}),
                t.user_attrs.get("reason", ""),
                t.user_attrs.get("share", 0.0),
            )
            if number not in rows or _rank(row) >= _rank(rows[number]):
                rows[number] = row
        return [rows[number] for number in sorted(rows)]


def _rank(row: Row) -> tuple[bool, int]:
    return row.state in ("done", "dropped", "failed"), len(row.outcomes)


def _storage(url: str) -> Any:
    """optuna's storage at this URL; RunError where it can't be opened.

    Two processes that begin at once both find no tables, and the later one fails to make them: it looks again.
    """
    optuna = optuna_module()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _quietly():
                storage = optuna.storages.RDBStorage(url, heartbeat_interval=BEAT, grace_period=GRACE)
            break
        except Exception as error:  # each database has its own
            if attempt < ATTEMPTS:
                time.sleep(0.1 * attempt)
                continue
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RunError(
                f"the study's storage {url} can't be opened ({first})",
                hint="name a database as in sqlite:///study.db or postgresql://user@host/name",
            ) from None
    if storage.engine.dialect.name == "sqlite":
        from sqlalchemy import event

        # a write waits for the file system, not for the disk: 20 ms less each, and a kill still loses nothing
        event.listen(storage.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        storage.engine.dispose()
    return storage


def _wait_for_plan(study: "optuna.Study") -> None:
    """Until whoever begins the study has queued all its work, or has stopped doing so."""
    queued, since = -1, time.monotonic()
    while "plan" not in study.user_attrs and time.monotonic() - since < PATIENCE:
        if len(trials := study.get_trials(deepcopy=False)) != queued:
            queued, since = len(trials), time.monotonic()
        time.sleep(0.2)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _me() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _given_up(claim: Mapping[str, Any]) -> bool:
    """Whether who claimed it is no more: by its process on this machine, by its signs of life on another."""
    host, _, pid = claim["by"].rpartition(":")
    if host == socket.gethostname():
        return not _alive(int(pid))
    return bool(time.time() - claim["at"] > GRACE)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


_PARENT = os.getppid()


def _stop_if_orphaned() -> None:
    """A worker whose study was killed stops too: nobody would know of it."""
    if os.environ.get("FEEDFWD_STUDY_WORKER") and os.getppid() != _PARENT:
        raise Interrupted("the study that this worker belongs to is gone", 15)
