"""MLflow as a view on the runs: every stage appears there, nothing is ever read back from it.

Tracking never stops a job: whatever fails is one warning on stderr, and `python -m
forgetmenot.cli.tracking rebuild` restores the store from the results themselves.
"""

from forgetmenot.tracking.run import Run, run

__all__ = ["Run", "run"]
