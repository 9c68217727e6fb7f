"""The writing thread: what arrived meanwhile goes into one transaction, and is acknowledged when that is committed."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from ._otlp import Series, SpanRow
from ._store import Store, Stored

logger: Final = logging.getLogger("otel_llm_callback.viewer")

_TRANSACTION_SPANS: Final = 20_000

Told: TypeAlias = Callable[["Stored | None"], None]
"""Told, on the writing thread, what became of a batch; None if it could not be stored."""


@dataclass(frozen=True, slots=True)
class _Work:
    spans: Sequence[SpanRow]
    series: Sequence[Series]
    tell: Told


class Writer:
    """One thread that writes, in the order of arrival. Whoever gives it work bounds how much may wait.

    Args:
        store: Where to.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="otel-llm-callback-store", daemon=True)
        self._thread.start()

    def put(self, spans: Sequence[SpanRow], series: Sequence[Series], tell: Told) -> None:
        """Have a batch stored.

        Args:
            spans: Of one request.
            series: Of one request.
            tell: Told when the batch is on disk, or could not be stored.
        """
        with self._changed:
            self._waiting.append(_Work(spans, series, tell))
            self._changed.notify()

    def close(self) -> None:
        """Store what is waiting, then end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while work := self._take():
            self._write(work)

    def _take(self) -> list[_Work]:
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            taken: list[_Work] = []
            spans = 0
            while self._waiting and (not taken or spans + len(self._waiting[0].spans) <= _TRANSACTION_SPANS):
                taken.append(self._waiting.popleft())
                spans += len(taken[-1].spans)
            return taken

    def _write(self, work: Sequence[_Work]) -> None:
        try:
            stored = self._store.add([one.spans for one in work], [point for one in work for point in one.series])
        except Exception as error:  # noqa: BLE001 - a full disk or an odd batch must not end the thread
            if len(work) > 1:  # one of them alone may be at fault
                for one in work:
                    self._write([one])
                return
            detail = f" ({error})" if isinstance(error, sqlite3.Error) else ""
            logger.error(  # noqa: TRY400 - a traceback may show values
                "a batch could not be stored: %s%s", type(error).__name__, detail
            )
            work[0].tell(None)
            return
        for one, result in zip(work, stored, strict=True):
            one.tell(result)
