"""From what was typed to settings: a file, `--set` and the flags, and what can't stand beside `--resume`."""

import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()  # of the process, about: the command imports this at once


def layered(kind: Any, config: Path | None, set_: list[str] | None, flags: dict[str, Any]) -> dict[str, Any]:
    """Settings from a file, over them `--set`, over them the flags that were given."""
    from feedfwd.config import merge, overrides, read_toml

    settings = read_toml(config) if config is not None else {}
    settings.pop("run", None)
    given = {key: value for key, value in flags.items() if value is not None}
    return merge(merge(settings, overrides(set_ or [], kind)), given)


def refuse_beside_resume(flags: dict[str, Any], **options: object) -> None:
    """A resumed run has its own settings."""
    from feedfwd.errors import ConfigError

    extra = [name for name, value in {**flags, **options}.items() if value]
    if extra:
        name = "SOURCE" if extra[0] in ("source", "sources") else "--" + extra[0].strip("_").replace("_", "-")
        raise ConfigError(
            f"--resume continues a run with its own settings, so {name} can't be given with it",
            hint="leave it out, or start a new run without --resume",
        )
