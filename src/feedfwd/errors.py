"""The exceptions a user may see. Each says what is wrong and where, and its hint says what to do next.

The command prints them as one line and exits with status 2; in Python they are ordinary exceptions.
"""

import difflib
from collections.abc import Iterable


class FeedfwdError(Exception):
    """Base of all errors that feedfwd raises on purpose.

    >>> str(FeedfwdError("model.width=100 is odd", hint="try 96"))
    'model.width=100 is odd: try 96'
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = message, hint
        super().__init__(message, hint)

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message


class ConfigError(FeedfwdError):
    """A setting that can't be used: unknown, of the wrong type, impossible or in conflict with another."""


class DataError(FeedfwdError):
    """Input data that is missing, damaged, or of a form that can't be trained on."""


class RunError(FeedfwdError):
    """A run directory that can't be written, read, resumed, or fits another version."""


class TrainingError(FeedfwdError):
    """Training that can't go on, such as a loss that is no longer finite."""


class ConformanceError(FeedfwdError):
    """A layer that breaks a promise every feed-forward layer makes."""


class MissingExtra(FeedfwdError):
    """An optional dependency that isn't installed; the hint names the extra that brings it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint for a name that isn't known: the closest one, and all of them.

    >>> nearest("rellu", ["relu", "gelu"])
    "did you mean 'relu'? known: gelu, relu"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listing = f"known: {', '.join(names)}"
    return f"did you mean {close[0]!r}? {listing}" if close else listing
