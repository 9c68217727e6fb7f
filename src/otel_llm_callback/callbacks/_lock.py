"""A lock that a forked child can take although another thread of the parent held it."""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType
from typing import Final


class ForkSafeLock:
    """A mutex that is new and free in a forked child. What it guards may be half changed there; see ``forked``.

    Attributes:
        forked: True in a child until its owner sets it back: the guarded state is the parent's.
    """

    __slots__ = ("__weakref__", "_lock", "forked")

    def __init__(self) -> None:
        self.forked = False
        self._lock = threading.Lock()
        _locks.add(self)

    def __enter__(self) -> None:
        """Take the lock."""
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self._lock.release()

    def renew(self) -> None:
        """Replace the mutex; only for a child with a single thread."""
        self._lock = threading.Lock()
        self.forked = True


_locks: Final[weakref.WeakSet[ForkSafeLock]] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in _locks:
        lock.renew()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_all)
