"""What analytics sinks share: one row per call, collected in memory and written in batches.

A batch is written when it is big enough or old enough, by ``otel_llm_callback.flush()`` and at exit. What cannot be
written waits and is tried again. Where rows go is the sinks' own business.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import ClassVar, Final

from .. import _faults, _timers
from ..types import Content, ErrorContext, ResponseMetadata
from ._lock import ForkSafeLock
from ._rows import CallEnd, Row, read_row
from ._text import plural

_PATIENCE_S: Final = 2.0
"""How long one batch may wait for a file that somebody else holds, on a thread where that delays no caller."""

_CALLERS_PATIENCE_S: Final = 0.05
"""The same on a caller's own thread, for sinks that are delivered inline."""

_FIRST_RETRY_S: Final = 1.0
_LAST_RETRY_S: Final = 60.0
_DOUBLINGS: Final = 6
_FORK_WAIT_S: Final = 1.0


class RowSink:
    """Collect rows and write them in batches; subclasses say where to.

    Args:
        batch_size: Rows that are written together; reaching it writes them at once.
        batch_seconds: How long a row waits at most for others. Delivered inline, there is no thread to keep the time:
            it is looked at when the next call ends.
        max_waiting: Rows that may wait while they cannot be written; further calls are left out and counted.

    Raises:
        ValueError: A limit is not positive, or *max_waiting* is below *batch_size*.
    """

    content: ClassVar[Content] = "none"

    def __init__(self, *, batch_size: int, batch_seconds: float, max_waiting: int) -> None:
        for name, value in (("batch_size", batch_size), ("batch_seconds", batch_seconds)):
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be greater than 0")
        if max_waiting < batch_size:
            raise ValueError(f"max_waiting is {max_waiting}; it must be at least batch_size, which is {batch_size}")
        self._batch_size = batch_size
        self._batch_s = batch_seconds
        self._max_waiting = max_waiting
        self._lock = ForkSafeLock()  # rows and counts
        self._writing = threading.Lock()  # one batch at a time, and none during a fork
        self._held_for_fork = False
        self._is_usable = True
        self._start_over()
        _sinks.add(self)
        _timers.flush_with_us(self)

    def on_response_received(self, metadata: ResponseMetadata, response_json: str) -> None:  # noqa: ARG002
        """Add the row of a call that did not fail."""
        self._add(read_row(CallEnd(metadata, metadata)))

    def on_error(self, error: BaseException, context: ErrorContext) -> None:  # noqa: ARG002
        """Add the row of a call that failed or was cancelled."""
        self._add(read_row(CallEnd(context, context.partial, context.error_type)))

    @property
    def written(self) -> int:
        """Rows that this process has written."""
        return self._written

    @property
    def waiting(self) -> int:
        """Rows that wait to be written."""
        with self._lock:
            self._forget_parent()
            return len(self._rows)

    @property
    def lost(self) -> int:
        """Rows left out because too many were waiting."""
        return self._lost

    @property
    def failures(self) -> int:
        """Batches that could not be written at once, for a full disk or a locked file; they are tried again."""
        return self._failures

    def flush(self, timeout: float = 5.0) -> bool:
        """Write all rows that wait; ``otel_llm_callback.flush()`` and the exit of the program do it too.

        Args:
            timeout: Seconds at most.

        Returns:
            False if not all could be written; what is left waits.
        """
        return self._write_waiting(time.monotonic() + timeout)

    def _write(self, rows: list[Row], deadline: float) -> None:
        """Write rows and take those that are safe out of the list; what raises leaves the others to be tried again."""
        raise NotImplementedError

    def _start_over(self) -> None:
        self._rows: list[Row] = []
        self._written = self._lost = self._failures = self._failures_in_row = 0
        self._due_s: float | None = None  # monotonic; None while nothing waits
        self._retry_s = 0.0
        self._timer_s: float | None = None

    def _forget_parent(self) -> None:
        """In a forked child, drop the rows: the parent still has them and will write them."""
        if self._lock.forked:
            self._lock.forked = False
            self._start_over()

    def _add(self, row: Row) -> None:
        now_s = time.monotonic()
        with self._lock:
            self._forget_parent()
            kept = len(self._rows) < self._max_waiting and self._is_usable
            if kept:
                self._rows.append(row)
                self._due_s = self._due_s or now_s + self._batch_s
                self._set_timer(self._due_s)
            else:
                self._lost += 1
            is_due = len(self._rows) >= self._batch_size or now_s >= (self._due_s or now_s)
            write_now = is_due and now_s >= self._retry_s
        if not kept:
            _faults.report(f"{self._stage}.lost", BufferError(), "a row was left out")
        if write_now and self._writing.acquire(blocking=False):  # else another thread is at it
            self._write_and_release(now_s + (_CALLERS_PATIENCE_S if _timers.delays_a_caller() else _PATIENCE_S))

    @property
    def _stage(self) -> str:
        return type(self).__name__

    def _set_timer(self, at_s: float) -> None:
        is_earlier = self._timer_s is None or at_s < self._timer_s
        if is_earlier and _timers.call_at(at_s, self._on_time):
            self._timer_s = at_s

    def _on_time(self) -> None:
        now_s = time.monotonic()
        with self._lock:
            self._forget_parent()
            self._timer_s = None
            if not self._rows:
                return
            if now_s < self._retry_s:
                self._set_timer(self._retry_s)
                return
        if not self._write_waiting(now_s + _PATIENCE_S):
            with self._lock:
                self._set_timer(max(self._retry_s, now_s + _FIRST_RETRY_S))

    def _write_waiting(self, deadline: float) -> bool:
        """Write what waits now, batch by batch; False if something of it is left at *deadline* or was refused."""
        if not self._writing.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return False
        return self._write_and_release(deadline)

    def _write_and_release(self, deadline: float) -> bool:
        try:
            left = self.waiting
            while left > 0 and (rows := self._take()):
                left -= len(rows)
                if not self._try(rows, deadline) or (left > 0 and time.monotonic() >= deadline):
                    return False
            return True
        finally:
            self._writing.release()

    def _take(self) -> list[Row]:
        with self._lock:
            self._forget_parent()
            rows = self._rows[: self._batch_size]
            del self._rows[: self._batch_size]
            if not self._rows:
                self._due_s = None
            return rows

    def _try(self, rows: list[Row], deadline: float) -> bool:
        count = len(rows)
        try:
            self._write(rows, deadline)
        except BaseException as error:  # whatever a full disk or a library raises, the rows wait
            self._put_back(rows, count - len(rows))
            if not isinstance(error, Exception):  # Ctrl-C during a flush
                raise
            _faults.report(self._stage, error, f"{plural(len(rows), 'row')} could not be written yet")
            return False
        with self._lock:
            self._written += count
            self._failures_in_row, self._retry_s = 0, 0.0
        return True

    def _put_back(self, rows: list[Row], written: int) -> None:
        now_s = time.monotonic()
        with self._lock:
            self._written += written
            self._rows[:0] = rows
            self._due_s = self._due_s or now_s
            self._failures += 1
            self._retry_s = now_s + min(_FIRST_RETRY_S * 2**self._failures_in_row, _LAST_RETRY_S)
            self._failures_in_row = min(self._failures_in_row + 1, _DOUBLINGS)
            self._set_timer(self._retry_s)

    def before_fork(self) -> None:
        """Wait for the batch that is being written, a second at most: a copy of it, half way, would be of no use."""
        self._held_for_fork = self._writing.acquire(timeout=_FORK_WAIT_S)

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._held_for_fork:
            self._writing.release()

    def after_fork_in_child(self) -> None:
        """Begin anew. If a batch was copied half way, take no rows: a library's locks and files are half copied too."""
        self._is_usable = self._is_usable and self._held_for_fork
        self._writing = threading.Lock()


_sinks: Final[weakref.WeakSet[RowSink]] = weakref.WeakSet()


def _tell(name: str) -> None:
    for sink in list(_sinks):
        getattr(sink, name)()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=lambda: _tell("before_fork"),
        after_in_parent=lambda: _tell("after_fork_in_parent"),
        after_in_child=lambda: _tell("after_fork_in_child"),
    )
