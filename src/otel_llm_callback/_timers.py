"""What callbacks put off: done when its time comes, when the process is flushed, and at the exit.

A callback that collects events needs a clock, but no thread for it: the thread that delivers its events calls back
between two of them. Nothing here knows what is put off.
"""

from __future__ import annotations

import atexit
import heapq
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final, Protocol

from . import _faults

_EXIT_S: Final = 1.0
"""Seconds at exit where nobody else sees to it: a program that uses callbacks without ``instrument()``."""


class Flushable(Protocol):
    """Holds something back until it is flushed."""

    def flush(self, timeout: float) -> bool:
        """Deliver what is held back, within *timeout* seconds; False if something is left."""


class Timers:
    """What one thread is to do later; only that thread touches it."""

    def __init__(self) -> None:
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def add(self, at_s: float, function: Callable[[], None]) -> None:
        """Have *function* called at *at_s*, in monotonic seconds, or soon after."""
        heapq.heappush(self._later, (at_s, next(self._numbers), function))

    def wait_s(self) -> float | None:
        """Return the seconds until something is due; None if nothing is put off."""
        return max(0.0, self._later[0][0] - time.monotonic()) if self._later else None

    def run_due(self) -> None:
        """Do what is due by now."""
        now_s = time.monotonic()
        while self._later and self._later[0][0] <= now_s:
            self._run(heapq.heappop(self._later)[2])

    def run_all(self) -> None:
        """Do everything now: the thread ends, and takes nothing more."""
        _thread.timers = None
        later, self._later = self._later, []
        for _, _, function in sorted(later):
            self._run(function)

    @staticmethod
    def _run(function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001 - the thread delivers for others too
            _faults.report("timer", error, "what a callback had put off was not done")


class _Thread(threading.local):
    timers: Timers | None = None


_thread: Final = _Thread()
_flushables: Final[weakref.WeakSet[Flushable]] = weakref.WeakSet()
_flushables_lock = threading.Lock()
_exit_is_seen_to = False


def own_timers() -> Timers:
    """Return new timers for the calling thread, which promises to run them."""
    timers = _thread.timers = Timers()
    return timers


def call_at(at_s: float, function: Callable[[], None]) -> bool:
    """Have the calling thread call *function* at *at_s*, in monotonic seconds, between two events or when it ends.

    Returns:
        False if this thread delivers no queued events: nobody would call.
    """
    if _thread.timers is None:
        return False
    _thread.timers.add(at_s, function)
    return True


def delays_a_caller() -> bool:
    """True unless the calling thread is one that delivers queued events."""
    return _thread.timers is None


def flush_with_us(flushable: Flushable) -> None:
    """Flush *flushable* whenever the process is flushed, and at exit, for as long as it lives."""
    with _flushables_lock:
        if not _flushables:
            atexit.unregister(_flush_at_exit)
            atexit.register(_flush_at_exit)
        _flushables.add(flushable)


def flush(deadline: float) -> bool:
    """Flush what asked for it; False if something was left at *deadline*, in monotonic seconds."""
    with _flushables_lock:
        flushables = list(_flushables)
    flushed = [flushable.flush(max(0.0, deadline - time.monotonic())) for flushable in flushables]
    return all(flushed)


def see_to_exit(*, seen_to: bool) -> None:
    """Say whether somebody else flushes at exit, so that it is not waited for twice."""
    global _exit_is_seen_to  # noqa: PLW0603
    _exit_is_seen_to = seen_to


def _flush_at_exit() -> None:
    if not _exit_is_seen_to:
        flush(time.monotonic() + _EXIT_S)


def _after_fork() -> None:
    global _flushables_lock  # noqa: PLW0603
    _flushables_lock = threading.Lock()
    _thread.timers = None  # of a hook that forks, the child has the thread but not the loop


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
