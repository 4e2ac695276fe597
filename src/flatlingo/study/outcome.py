"""What became of a run that was to be computed."""

from typing import Literal, NamedTuple

from flatlingo.study.runspec import RunConfig

# The last line of the log of a run that failed begins with this; the log of a run that was killed has no such line.
FAILED = "FAILED "


class Outcome(NamedTuple):
    """What became of a run: it is in the store; another process computes it; or it failed, and why."""

    config: RunConfig
    state: Literal["done", "busy", "failed"]
    reason: str = ""
