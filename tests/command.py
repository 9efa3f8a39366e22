"""The command as a user types it, within the test's own process."""

import sys

from feedfwd.cli import main


def call(*argv: str) -> int:
    """The exit status of `feedfwd ARGV`."""
    sys.argv = ["feedfwd", *argv]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
