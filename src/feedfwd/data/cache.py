"""Where prepared text is kept between runs: files that appear whole or not at all, under keys made of content.

A key is a hash of all that decides a file's content: the bytes that it was made from and the settings. Nothing is ever
looked up by a path or a date, so a changed file finds nothing, and the folder can be deleted at any time.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from feedfwd.errors import DataError


def cache_folder() -> Path:
    """$FEEDFWD_CACHE, else ~/.cache/feedfwd."""
    named = os.environ.get("FEEDFWD_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "feedfwd"


def key(*parts: object) -> str:
    """A short name for these values: equal only for equal ones.

    >>> key("a", 1) == key("a", 1), key("a", 1) == key("a1")
    (True, False)
    """
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def in_one_step(path: Path, part: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill `part`, a neighbour of `path`, then put it in place in one step, or change nothing."""
    try:
        write(part)
        flush(part)
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Have the disk hold what was written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """A file of the cache, whole or not at all.

    Its neighbour's name carries the process, so that two runs that prepare the same text don't disturb each other.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        in_one_step(path, path.with_name(f".{path.name}.{os.getpid()}.part"), write)
    except OSError as error:
        raise DataError(
            f"the cache {cache_folder()} can't be written ({error.strerror or error})",
            hint="free some space, or set FEEDFWD_CACHE to a folder that has it",
        ) from None


def write_json(path: Path, value: object) -> None:
    write_whole(path, lambda part: part.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8"))


def read_json(path: Path) -> Any:
    """A file's content, or None where there is none that can be read: then it is made again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
