"""One page that shows a finished run, made from what the run directory holds and nothing else."""

from feedfwd.report.report import write_report

__all__ = ["write_report"]
