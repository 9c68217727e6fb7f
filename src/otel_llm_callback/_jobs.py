"""Responses that are made after the call that asked for them: whoever sees the end first counts their tokens."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from .types import Usage

PENDING: Final = frozenset(("queued", "in_progress"))

_LIMIT: Final = 4096


class Jobs:
    """The ids of answers under way, the newest 4,096; the rest is forgotten and its tokens stay uncounted."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, response_id: str) -> None:
        """An answer will be made later."""
        with self._lock:
            self._open[response_id] = None
            while len(self._open) > _LIMIT:
                self._open.popitem(last=False)

    def settle(self, response_id: str) -> bool:
        """True for the first call that sees the end of an answer that was started here."""
        with self._lock:
            return self._open.pop(response_id, _MISSING) is None


_MISSING: Final = object()

JOBS: Final = Jobs()


class Once:
    """Ids that were seen, the newest 4,096."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def is_new(self, one: str) -> bool:
        """True for the first call with *one*."""
        with self._lock:
            if one in self._seen:
                return False
            self._seen[one] = None
            if len(self._seen) > _LIMIT:
                self._seen.popitem(last=False)
            return True


TURNS: Final = Once()
"""Turns of agents whose tokens were counted: several streams may show the same one."""


def count_once(job: str, response_id: str | None, status: str | None, usage: Usage | None) -> Usage | None:
    """Return *usage* if this call is the one to count it.

    Args:
        job: ``start`` or ``fetch``.
        response_id: Of the answer.
        status: Of the answer, as the server gave it.
        usage: What the server reported; a fetch reports it again each time.
    """
    if response_id is None:
        return usage
    if job == "start":
        if status in PENDING:
            JOBS.start(response_id)
        return usage
    if status is not None and status not in PENDING and JOBS.settle(response_id):
        return usage
    return None
