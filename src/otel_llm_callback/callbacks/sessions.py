"""Count calls, tokens, errors and times over a session: the seed's custom telemetry logger without its printing."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import ClassVar, Final

from ..types import Content, ErrorContext, Outcome, RequestMetadata, ResponseMetadata, Retry
from ._distribution import Times
from ._lock import ForkSafeLock
from ._summary import OUTCOMES, CallSummary, SessionSummary

__all__ = ["OTHER", "SessionAnalytics"]

OTHER: Final = "(other)"
"""Stands for the models and error types beyond the hundred that are counted by name."""

_NAMES_LIMIT: Final = 100
_UNKNOWN_MODEL: Final = "(unknown)"
_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000


class SessionAnalytics:
    """Add up what calls cost in tokens and time: for the process, for each model and for each session.

    Every call counts in the totals. A call made inside ``otel_llm_callback.session(id)`` also counts for that session.
    Safe to use from any thread. Memory is bounded: percentiles come from buckets (see :class:`Distribution`), sessions,
    models and open calls are limited in number. It needs no content and leaves ``on_stream_chunk`` alone, so that a
    chunk costs nothing. A forked child starts from zero.

    Args:
        max_sessions: How many sessions are remembered; the one longest without an event goes first.
        session_ttl_s: Seconds without an event after which a session is forgotten.
        max_open_calls: How many calls are awaited; the oldest is given up first.
        call_ttl_s: Seconds after which a call whose end never came is given up.
        clock_ns: A monotonic clock in nanoseconds, for tests.

    Raises:
        ValueError: A limit is not positive.

    Example:
        >>> analytics = SessionAnalytics()
        >>> print(analytics.summary().requests)
        0
    """

    content: ClassVar[Content] = "none"

    def __init__(
        self,
        *,
        max_sessions: int = 1000,
        session_ttl_s: float = 3600,
        max_open_calls: int = 10_000,
        call_ttl_s: float = 3600,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        limits = {
            "max_sessions": max_sessions,
            "session_ttl_s": session_ttl_s,
            "max_open_calls": max_open_calls,
            "call_ttl_s": call_ttl_s,
        }
        for name, value in limits.items():
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be greater than 0")
        self._max_sessions = max_sessions
        self._session_ttl_ns = round(session_ttl_s * _NS_PER_S)
        self._max_open_calls = max_open_calls
        self._call_ttl_ns = round(call_ttl_s * _NS_PER_S)
        self._clock_ns = clock_ns
        self._lock = ForkSafeLock()
        self._all = _Ledger()
        self._sessions: OrderedDict[str, _Ledger] = OrderedDict()
        self._open: dict[str, _OpenCall] = {}
        self._expired_sessions = self._expired_calls = 0

    def on_request_sent(self, metadata: RequestMetadata, request_json: str) -> None:  # noqa: ARG002
        """Count a call as begun."""
        with self._lock:
            now_ns = self._now()
            self._open[metadata.call_id] = _OpenCall(metadata, now_ns)
            self._give_up_calls(now_ns)
            for ledger in self._ledgers(metadata.session_id, now_ns):
                ledger.begin(metadata, now_ns)

    def on_response_received(self, metadata: ResponseMetadata, response_json: str) -> None:  # noqa: ARG002
        """Count a response and what it reported."""
        self._end(
            _End(
                request=metadata.request,
                outcome=metadata.outcome,
                ended_ns=metadata.ended_ns,
                response_time_ms=metadata.response_time_ms,
                retries=metadata.retries,
                response=metadata,
            )
        )

    def on_error(self, error: BaseException, context: ErrorContext) -> None:  # noqa: ARG002
        """Count an error, and the usage of what had arrived before it."""
        self._end(
            _End(
                request=context.request,
                outcome=context.outcome,
                ended_ns=context.ended_ns,
                response_time_ms=context.response_time_ms,
                retries=context.retries,
                response=context.partial,
                error_type=context.error_type,
            )
        )

    def summary(self, *, session_id: str | None = None) -> SessionSummary:
        """Return the totals so far.

        Callbacks are told on a worker thread unless asked for inline: call ``otel_llm_callback.flush()`` before, to be
        sure that every call that has returned is counted.

        Args:
            session_id: Only the calls of this session; None for all calls.

        Raises:
            KeyError: No call of that session was seen, or it has expired.
        """
        with self._lock:
            now_ns = self._now()
            self._give_up_calls(now_ns)
            self._forget_sessions(now_ns)
            if session_id is None:
                return self._all.summary(
                    open_calls=len(self._open),
                    sessions=len(self._sessions),
                    expired_sessions=self._expired_sessions,
                    expired_calls=self._expired_calls,
                )
            if session_id not in self._sessions:
                raise KeyError(f"session {session_id!r} was not seen or has expired")
            open_calls = sum(call.request.session_id == session_id for call in self._open.values())
            return self._sessions[session_id].summary(session_id=session_id, open_calls=open_calls)

    def session_ids(self) -> tuple[str, ...]:
        """Return the sessions that are remembered, the one with the latest event last."""
        with self._lock:
            self._forget_sessions(self._now())
            return tuple(self._sessions)

    def reset(self) -> None:
        """Start over from zero. Calls that are still open are carried over, as requests of the new count."""
        with self._lock:
            now_ns = self._now()
            open_calls = dict(self._open)
            self._start_over()
            self._open.update(open_calls)
            for call in open_calls.values():
                for ledger in self._ledgers(call.request.session_id, now_ns):
                    ledger.begin(call.request, call.sent_ns)

    def __str__(self) -> str:
        """Return the final summary over all calls, as plain text."""
        return str(self.summary())

    def _start_over(self) -> None:
        self._all = _Ledger()
        self._sessions.clear()
        self._open.clear()
        self._expired_sessions = self._expired_calls = 0

    def _now(self) -> int:
        """Return the time; in a forked child drop what the parent counted."""
        if self._lock.forked:
            self._lock.forked = False
            self._start_over()
        return self._clock_ns()

    def _end(self, end: _End) -> None:
        with self._lock:
            now_ns = self._now()
            call = self._open.pop(end.request.call_id, None)
            for ledger in self._ledgers(end.request.session_id, now_ns):
                ledger.end(end, call, now_ns)

    def _ledgers(self, session_id: str | None, now_ns: int) -> Iterator[_Ledger]:
        """Yield the books in which a call of *session_id* is entered."""
        yield self._all
        if session_id is None:
            return
        self._forget_sessions(now_ns)
        ledger = self._sessions.setdefault(session_id, _Ledger())
        ledger.touched_ns = now_ns
        self._sessions.move_to_end(session_id)
        self._forget_sessions(now_ns)
        yield ledger

    def _forget_sessions(self, now_ns: int) -> None:
        oldest_ns = now_ns - self._session_ttl_ns
        while self._sessions:
            ledger = next(iter(self._sessions.values()))
            if len(self._sessions) <= self._max_sessions and ledger.touched_ns >= oldest_ns:
                return
            self._sessions.popitem(last=False)
            self._expired_sessions += 1

    def _give_up_calls(self, now_ns: int) -> None:
        oldest_ns = now_ns - self._call_ttl_ns
        while self._open:
            call_id, call = next(iter(self._open.items()))
            if len(self._open) <= self._max_open_calls and call.sent_ns >= oldest_ns:
                return
            del self._open[call_id]
            self._expired_calls += 1


@dataclass(frozen=True, slots=True)
class _OpenCall:
    request: RequestMetadata
    sent_ns: int  # monotonic


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """What a response and an error have in common."""

    request: RequestMetadata
    outcome: Outcome
    ended_ns: int
    response_time_ms: float
    retries: tuple[Retry, ...]
    response: ResponseMetadata | None
    error_type: str | None = None


class _Ledger:
    """The books of one session, or of all calls."""

    __slots__ = ("_ended_ns", "_first_ns", "_last_ns", "_models", "_started_ns", "_tally", "touched_ns")

    def __init__(self) -> None:
        self.touched_ns = 0  # monotonic
        self._tally = _Tally()
        self._models: dict[str, _Tally] = {}
        self._first_ns: int | None = None  # monotonic
        self._last_ns: int | None = None
        self._started_ns: int | None = None  # by the wall clock
        self._ended_ns: int | None = None

    def begin(self, request: RequestMetadata, sent_ns: int) -> None:
        self._tally.requests += 1
        self._model(request).requests += 1
        self._sent(request, sent_ns)

    def end(self, end: _End, call: _OpenCall | None, now_ns: int) -> None:
        self._tally.end(end)
        self._model(end.request).end(end)
        sent_ns, ended_ns = _span(end, call, now_ns)
        self._sent(end.request, sent_ns)
        self._last_ns = ended_ns if self._last_ns is None else max(ended_ns, self._last_ns)
        self._ended_ns = end.ended_ns if self._ended_ns is None else max(end.ended_ns, self._ended_ns)

    def _sent(self, request: RequestMetadata, sent_ns: int) -> None:
        self._first_ns = sent_ns if self._first_ns is None else min(sent_ns, self._first_ns)
        self._started_ns = request.started_ns if self._started_ns is None else min(request.started_ns, self._started_ns)

    def _model(self, request: RequestMetadata) -> _Tally:
        # The requested model: errors have no other, and the answering one changes with every release of it.
        name = _bounded(request.model or _UNKNOWN_MODEL, self._models)
        return self._models.setdefault(name, _Tally())

    def summary(
        self,
        *,
        session_id: str | None = None,
        open_calls: int,
        sessions: int = 0,
        expired_sessions: int = 0,
        expired_calls: int = 0,
    ) -> SessionSummary:
        last_ns, first_ns = self._last_ns, self._first_ns
        totals = self._tally.summary()
        return SessionSummary(
            **vars(totals),
            session_id=session_id,
            duration_s=None if last_ns is None or first_ns is None else (last_ns - first_ns) / _NS_PER_S,
            started_at=_utc(self._started_ns),
            ended_at=_utc(self._ended_ns),
            open_calls=open_calls,
            expired_calls=expired_calls,
            sessions=sessions,
            expired_sessions=expired_sessions,
            models={name: tally.summary() for name, tally in self._models.items()},
        )


def _span(end: _End, call: _OpenCall | None, now_ns: int) -> tuple[int, int]:
    """Return when a call was sent and ended by the monotonic clock.

    Not by the wall-clock times in the facts: the clock may have been set between two calls. And the end is not simply
    the present: the event may have waited in a queue. The response time was measured, so the rest follows from it.
    """
    lasted_ns = round(end.response_time_ms * _NS_PER_MS)
    sent_ns = now_ns - lasted_ns if call is None else min(call.sent_ns, now_ns - lasted_ns)
    return sent_ns, sent_ns + lasted_ns


class _Tally:
    """Running totals behind one :class:`CallSummary`."""

    def __init__(self) -> None:
        self.requests = 0
        self._outcomes: dict[Outcome, int] = dict.fromkeys(OUTCOMES, 0)
        self._error_types: dict[str, int] = {}
        self._with_usage = self._without_usage = self._estimated = 0
        self._tokens: dict[str, int] = {}
        self._cost: Decimal | None = None
        self._priced = 0
        self._retries = self._retried = self._retry_wait_ns = 0
        self._latency, self._latency_without_wait, self._first_chunk = Times(), Times(), Times()

    def end(self, end: _End) -> None:
        self._outcomes[end.outcome] += 1
        if end.error_type is not None and end.outcome == "error":
            name = _bounded(end.error_type, self._error_types)
            self._error_types[name] = self._error_types.get(name, 0) + 1
        if end.retries:
            self._retries += len(end.retries)
            self._retried += 1
            self._retry_wait_ns += _waited_ns(end.retries)
        if end.outcome == "completed":
            self._latency.add(end.response_time_ms)
            self._latency_without_wait.add(end.response_time_ms - _waited_ns(end.retries) / _NS_PER_MS)
        if end.response is not None:
            self._read(end.response, is_response=end.error_type is None)

    def _read(self, response: ResponseMetadata, *, is_response: bool) -> None:
        counts = {
            "input_tokens": response.prompt_tokens,
            "output_tokens": response.completion_tokens,
            "total_tokens": response.total_tokens,
            "cached_tokens": response.cached_tokens,
            "cache_write_tokens": response.cache_write_tokens,
            "reasoning_tokens": response.reasoning_tokens,
            "response_tokens": response.total_tokens if is_response else None,
        }
        for name, count in counts.items():
            if count is not None:
                self._tokens[name] = self._tokens.get(name, 0) + count
        if is_response:
            self._with_usage += response.total_tokens is not None
            self._without_usage += response.total_tokens is None
            self._estimated += response.total_tokens is not None and response.usage_source == "estimated"
        if response.cost is not None:
            self._cost = response.cost + (self._cost or 0)
            self._priced += 1
        if response.time_to_first_chunk_s is not None:
            self._first_chunk.add(response.time_to_first_chunk_s * 1000)

    def summary(self) -> CallSummary:
        outcomes = dict(self._outcomes)
        return CallSummary(
            requests=self.requests,
            responses=sum(outcomes.values()) - outcomes["error"] - outcomes["cancelled"],
            errors=outcomes["error"],
            cancelled=outcomes["cancelled"],
            outcomes=outcomes,
            error_types=dict(self._error_types),
            responses_with_usage=self._with_usage,
            responses_without_usage=self._without_usage,
            responses_with_estimated_usage=self._estimated,
            **self._tokens,
            cost=self._cost,
            priced_calls=self._priced,
            retries=self._retries,
            retried_calls=self._retried,
            retry_wait_ns=self._retry_wait_ns,
            latency=self._latency.distribution(),
            latency_without_retry_wait=self._latency_without_wait.distribution(),
            time_to_first_chunk=self._first_chunk.distribution(),
        )


def _waited_ns(retries: tuple[Retry, ...]) -> int:
    return sum(round(retry.delay_s * _NS_PER_S) for retry in retries)


def _bounded(name: str, known: Mapping[str, object]) -> str:
    """Return *name*, or ``OTHER`` if there are too many names already: they may be the caller's callers' choice."""
    return name if name in known or len(known) < _NAMES_LIMIT else OTHER


def _utc(at_ns: int | None) -> datetime | None:
    return None if at_ns is None else datetime.fromtimestamp(at_ns / _NS_PER_S, tz=timezone.utc)
