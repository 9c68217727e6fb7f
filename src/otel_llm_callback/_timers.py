"""What callbacks put off: done when its time comes, when the process is flushed, and at the exit.

A callback that collects events needs a clock, but no thread for it: the thread that delivers its events calls back
between two of them. Nothing here knows what is put off.
"""

from __future__ import annotations

import atexit
import heapq
import inspect
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from . import _faults
from ._dispatch import running_hook

_EXIT_S: Final = 1.0
"""Seconds at exit where nobody else sees to it: a program that uses callbacks without ``instrument()``."""

_LONGEST_WAIT_S: Final = 3600.0
"""What is put off to no certain time may be as far away as infinity; a wait may not."""


class Flushable(Protocol):
    """Holds something back until it is flushed."""

    def flush(self, timeout: float) -> bool:
        """Deliver what is held back, within *timeout* seconds; False if something is left."""


@dataclass(order=True, slots=True)
class _Later:
    """What is to be done at a time; *early*, if given, is what a flush and the end of the thread do in its place."""

    at_s: float
    number: int
    function: Callable[[], object] = field(compare=False)
    early: Callable[[], object] | None = field(compare=False)


class Timers:
    """What one thread is to do later; only that thread touches it.

    Args:
        run_coroutine: Runs what a function returns that is to be awaited.
    """

    def __init__(self, run_coroutine: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._later: list[_Later] = []
        self._numbers = itertools.count()
        self._run_coroutine = run_coroutine

    def add(self, at_s: float, function: Callable[[], object], early: Callable[[], object] | None = None) -> None:
        """Have *function* called at *at_s*, in monotonic seconds, or soon after."""
        heapq.heappush(self._later, _Later(at_s, next(self._numbers), function, early))

    def wait_s(self) -> float | None:
        """Return the seconds until it is time to look again; None if nothing is put off."""
        return min(max(0.0, self._later[0].at_s - time.monotonic()), _LONGEST_WAIT_S) if self._later else None

    def run_due(self) -> None:
        """Do what is due by now."""
        now_s = time.monotonic()
        while self._later and self._later[0].at_s <= now_s:
            self._run(heapq.heappop(self._later).function)

    def run_early(self) -> None:
        """Do now what may be done early, and what that puts off in turn."""
        while found := [later for later in sorted(self._later) if later.early is not None]:
            self._later = sorted(later for later in self._later if later.early is None)
            for later in found:
                self._run(later.early or later.function)

    def run_all(self) -> None:
        """Do everything now: the thread ends, and takes nothing more."""
        self.run_early()
        _thread.timers = None
        later, self._later = self._later, []
        for one in sorted(later):
            self._run(one.function)

    def _run(self, function: Callable[[], object]) -> None:
        try:
            result = function()
            if inspect.iscoroutine(result):
                self._run_coroutine(result)
        except Exception as error:  # noqa: BLE001 - the thread delivers for others too
            _faults.report("timer", error, "what a callback had put off was not done")


class _Thread(threading.local):
    timers: Timers | None = None


_thread: Final = _Thread()
_flushables: Final[weakref.WeakSet[Flushable]] = weakref.WeakSet()
_flushables_lock = threading.Lock()
_exit_is_seen_to = False


def own_timers(run_coroutine: Callable[[Coroutine[Any, Any, Any]], Any]) -> Timers:
    """Return new timers for the calling thread, which promises to run them."""
    timers = _thread.timers = Timers(run_coroutine)
    return timers


def run_early() -> None:
    """Have the calling thread do now what it has put off and may do early."""
    if _thread.timers is not None:
        token = running_hook.set(True)
        try:
            _thread.timers.run_early()
        finally:
            running_hook.reset(token)


def call_at(at_s: float, function: Callable[[], object], *, early: Callable[[], object] | None = None) -> bool:
    """Have the calling thread call *function* at *at_s*, in monotonic seconds, between two events or when it ends.

    With *early*, a flush and the end of the thread call that instead, before the time has come. What is called may
    return a coroutine.

    Returns:
        False if this thread delivers no queued events: nobody would call.
    """
    if _thread.timers is None:
        return False
    _thread.timers.add(at_s, function, early)
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
