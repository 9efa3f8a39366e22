"""The run directory: everything one training leaves behind, self-contained, movable, and never half written.

    config.toml         settings, resolved, and what wrote them ([run])
    preprocess.json     how raw inputs become what the model sees
    model.safetensors   the trained weights
    log.jsonl           what happened, one event a line
    result.json         scores, seconds, environment; its presence means: finished
    report.html         the page made from the two above
    state/step-N/       what resuming needs: tensors.safetensors and counters.json

Files appear whole or not at all: written beside their place, flushed to the disk, then renamed. No pickle is read.
"""

import json
import os
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import tomli_w
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from feedfwd._version import __version__
from feedfwd.data.cache import flush, in_one_step
from feedfwd.errors import RunError

FORMAT = 1
RUNS = Path("runs")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour of `path`, then put it in place in one step, or change nothing."""

    def fill(part: Path) -> None:
        write(part)
        open_up(part)

    try:
        in_one_step(path, path.with_name(f".{path.name}.part"), fill)
    except OSError as error:
        raise RunError(f"{path} can't be written ({error.strerror or error})", hint=_room(error)) from None
    except SafetensorError as error:  # how safetensors reports a full disk
        raise RunError(f"{path} can't be written ({error})", hint="free some space or choose another --run") from None


def open_up(path: Path) -> None:
    """Give a file the rights that new ones get here: safetensors makes its own for the owner alone."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        probe = Path(folder) / "probe"
        probe.touch()
        path.chmod(stat.S_IMODE(probe.stat().st_mode))


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _room(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "choose a folder you may write to with --run"
    if isinstance(error, FileNotFoundError):
        return "make its folder first"
    return "free some space or choose another --run; what was saved before is intact"


class Run:
    """One run directory, opened for reading or writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.toml"
        self.preprocess_file = path / "preprocess.json"
        self.model_file = path / "model.safetensors"
        self.log_file = path / "log.jsonl"
        self.result_file = path / "result.json"
        self.report_file = path / "report.html"
        self.state_folder = path / "state"

    # --- making and opening ---------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path | None, name: str) -> "Run":
        """A new, empty directory: `path`, or `runs/<date>-<name>` with a number where that is taken."""
        if path is None:
            stem = f"{date.today().isoformat()}-{name}"
            candidates = (RUNS / (stem if n == 1 else f"{stem}-{n}") for n in range(1, 10_000))
            path = next(p for p in candidates if not p.exists())
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(
                f"{path} exists and is not empty; a run is never overwritten",
                hint="choose another --run, or --resume it",
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path).close()
        except OSError as error:
            raise RunError(f"{path} can't be written ({error.strerror})", hint=_room(error)) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """An existing run; says what is missing when it is none, or from a newer version."""
        run = cls(path)
        if not path.is_dir():
            raise RunError(f"no run at {path}", hint="`feedfwd runs` lists the runs of this folder")
        if not run.config_file.is_file():
            raise RunError(f"{path} is no run directory: config.toml is missing", hint="`feedfwd runs` lists the runs")
        found = run.about().get("format")
        if not isinstance(found, int):
            raise RunError(f"{run.config_file} carries no format number", hint="was it made by feedfwd?")
        if found > FORMAT:
            raise RunError(
                f"{path} was written by a newer feedfwd (format {found}, this one reads up to {FORMAT})",
                hint="upgrade with: pip install --upgrade feedfwd",
            )
        return run

    def _toml(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self.config_file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise RunError(
                f"{self.config_file} is damaged: {error}", hint="restore it from a copy of the run"
            ) from None

    def about(self) -> dict[str, Any]:
        """What wrote this run: format, verb, version."""
        about = self._toml().get("run", {})
        return about if isinstance(about, dict) else {}

    def settings(self) -> dict[str, Any]:
        return {key: value for key, value in self._toml().items() if key != "run"}

    def write_settings(self, verb: str, settings: Mapping[str, Any]) -> None:
        about = {"format": FORMAT, "verb": verb, "feedfwd": __version__}
        write_text(self.config_file, tomli_w.dumps({**settings, "run": about}))

    @property
    def finished(self) -> bool:
        return self.result_file.is_file()

    def read_text(self, file: Path) -> str:
        try:
            return file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RunError(f"{self.path} is incomplete: {file.name} is missing", hint=self._repair()) from None
        except (ValueError, OSError) as error:
            raise RunError(f"{file} is damaged: {error}", hint=self._repair()) from None

    def read_json(self, file: Path) -> Any:
        text = self.read_text(file)
        try:
            return json.loads(text)
        except ValueError as error:
            raise RunError(f"{file} is damaged: {error}", hint=self._repair()) from None

    def _repair(self) -> str:
        if not self.finished and self.state_folder.is_dir():
            return f"the run is unfinished; finish it with --resume {self.path}"
        return "restore it from a copy, or train again"

    # --- weights --------------------------------------------------------------------------------------------------

    def save_model(self, tensors: Mapping[str, Tensor]) -> None:
        write_whole(self.model_file, lambda part: save_file(_own(tensors), part, metadata={"format": "pt"}))

    def load_model(self) -> dict[str, Tensor]:
        if not self.model_file.is_file():
            raise RunError(f"{self.path} is incomplete: {self.model_file.name} is missing", hint=self._repair())
        return _load(self.model_file, self._repair())

    def misfit(self, error: Exception, what: object = None) -> RunError:
        """What to raise where torch says that the weights are of another model; it lists every tensor."""
        lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
        first, more = lines[min(1, len(lines) - 1)], f", and {len(lines) - 2} more" if len(lines) > 2 else ""
        return RunError(f"{what or self.model_file} doesn't fit config.toml: {first}{more}", hint="was one replaced?")

    # --- the log --------------------------------------------------------------------------------------------------

    def log(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(event, ensure_ascii=False)
        try:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise RunError(f"{self.log_file} can't be written ({error.strerror})", hint=_room(error)) from None

    # --- the state ------------------------------------------------------------------------------------------------

    def save_state(self, step: int, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Keep what resuming at `step` needs; older states go only when this one is whole."""
        folder = self.state_folder / f"step-{step}"
        if folder.is_dir():
            return
        part = self.state_folder / f".step-{step}.part"
        log_bytes = self.log_file.stat().st_size if self.log_file.exists() else 0
        counters = {**counters, "step": step, "log_bytes": log_bytes}
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            save_file(_own(tensors), part / "tensors.safetensors")
            (part / "counters.json").write_text(json.dumps(counters), encoding="utf-8")
            for file in part.iterdir():
                flush(file)
            part.rename(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            raise RunError(
                f"the state of step {step} can't be written to {self.state_folder} ({error})",
                hint=f"free some space, then --resume {self.path}: the last good state is intact",
            ) from None
        for old in self._states()[:-1]:
            shutil.rmtree(old, ignore_errors=True)

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole state, or None before the first; the log is cut back to that moment."""
        states = self._states()
        if not states:
            self.log_file.unlink(missing_ok=True)
            return None
        folder = states[-1]
        damage = "delete that folder to start over from an older state or from the beginning"
        tensors = _load(folder / "tensors.safetensors", damage)
        try:
            counters = json.loads((folder / "counters.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{folder}/counters.json is damaged: {error}", hint=damage) from None
        if self.log_file.exists():
            os.truncate(self.log_file, min(counters["log_bytes"], self.log_file.stat().st_size))
        return tensors, counters

    def saved_step(self) -> int | None:
        """The step of the newest saved state, None before the first."""
        states = self._states()
        return int(states[-1].name[5:]) if states else None

    def drop_state(self) -> None:
        shutil.rmtree(self.state_folder, ignore_errors=True)

    def _states(self) -> list[Path]:
        found = [p for p in self.state_folder.glob("step-*") if p.name[5:].isdigit()]
        return sorted(found, key=lambda p: int(p.name[5:]))


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of one storage (flat parameters, tied weights) as tensors of their own, which safetensors asks for."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        out[name] = tensor if whole else tensor.clone().contiguous()
    return out


def _load(file: Path, hint: str) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{file} is damaged: {error}", hint=hint) from None


def list_runs(folder: Path = RUNS) -> list[Run]:
    """The runs of a folder, oldest first."""
    found = [p.parent for p in folder.glob("*/config.toml")]
    return [Run(p) for p in sorted(found, key=lambda p: p.stat().st_mtime)]
