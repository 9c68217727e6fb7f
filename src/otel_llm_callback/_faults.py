"""Count and log what went wrong inside this package, without ever quoting content.

The host never sees our failures. The first one of a kind is logged at ERROR with the frames it passed through, later
ones at DEBUG; all are counted and shown by ``status()``. Exception texts are left out: they may quote a prompt.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from typing import Final

logger: Final = logging.getLogger("otel_llm_callback")

_counts: dict[str, int] = {}


def report(stage: str, error: BaseException, what: str) -> None:
    """Count a failure under *stage* and log it; *what* says which part was lost."""
    count = _counts[stage] = _counts.get(stage, 0) + 1
    log_failure(error, f"{what} (stage {stage})", first=count == 1)


def note(stage: str, error: BaseException, what: str) -> None:
    """Count under *stage* what is not our failure, such as an odd payload, and log it at DEBUG."""
    _counts[stage] = _counts.get(stage, 0) + 1
    log_failure(error, f"{what} (stage {stage})", first=False)


def log_failure(error: BaseException, what: str, *, first: bool) -> None:
    """Log type and frames of *error*, at ERROR the first time and at DEBUG later."""
    level = logging.ERROR if first else logging.DEBUG
    if logger.isEnabledFor(level):
        frames = "".join(traceback.format_tb(error.__traceback__))
        with contextlib.suppress(Exception):  # a handler may raise, the one that just failed us included
            logger.log(level, "%s: %s; the call is unaffected\n%s", what, type(error).__name__, frames)


def counts() -> dict[str, int]:
    """Failures so far, by stage."""
    return dict(_counts)


def forget() -> None:
    """Set all counts to zero, so that the next failure is logged as the first."""
    _counts.clear()
