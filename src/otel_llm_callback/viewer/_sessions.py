"""The summary of a session, in the words of :class:`SessionAnalytics`, made from the stored calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, cast

from ..callbacks import SessionAnalytics, SessionSummary
from ..types import ErrorContext, Outcome, RequestMetadata, ResponseMetadata, Retry, Usage

CALLS: Final = 10_000
"""A summary covers the newest calls of a session, so many at most."""

_OUTCOMES: Final = frozenset(("completed", "closed_early", "abandoned", "cancelled", "error"))
_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000


def summarise(session: str, calls: Sequence[Mapping[str, Any]]) -> SessionSummary:
    """Return the summary of *calls*, rows of the table of spans."""
    now_ns = 0

    def read_clock() -> int:
        return now_ns

    analytics = SessionAnalytics(
        max_sessions=1, session_ttl_s=1e9, call_ttl_s=1e9, max_open_calls=CALLS + 1, clock_ns=read_clock
    )
    for at_ns, _, call, is_end in sorted(_events(calls), key=lambda event: event[:2]):
        now_ns = at_ns
        request = _request(session, call)
        if not is_end:
            analytics.on_request_sent(request, "")
        elif call["outcome"] in ("error", "cancelled"):
            analytics.on_error(RuntimeError(), _failure(request, call))
        else:
            analytics.on_response_received(_response(request, call), "")
    return analytics.summary(session_id=session) if calls else SessionSummary(session_id=session)


def _events(calls: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, int, Mapping[str, Any], bool]]:
    for number, call in enumerate(calls):
        yield call["started_ns"], number, call, False
        yield call["started_ns"] + call["duration_ns"], number + len(calls), call, True


def _request(session: str, call: Mapping[str, Any]) -> RequestMetadata:
    return RequestMetadata(
        call_id=f"{call['trace']}-{call['id']}",
        api="",
        operation=call["operation"],
        provider=call["provider"] or "",
        started_ns=call["started_ns"],
        model=call["model"],
        session_id=session,
    )


def _response(request: RequestMetadata, call: Mapping[str, Any]) -> ResponseMetadata:
    kinds = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
    usage = Usage(**{kind: call[kind] for kind in kinds}) if any(call[kind] is not None for kind in kinds) else None
    first_ns, cost = call["first_chunk_ns"], call["cost_nano"]
    return ResponseMetadata(
        request=request,
        outcome=_outcome(call),
        ended_ns=call["started_ns"] + call["duration_ns"],
        response_time_ms=call["duration_ns"] / _NS_PER_MS,
        usage=usage,
        usage_source="missing" if usage is None else "reported",
        time_to_first_chunk_s=None if first_ns is None else first_ns / _NS_PER_S,
        retries=_retries(call),
        cost=None if cost is None else Decimal(cost).scaleb(-9),
    )


def _failure(request: RequestMetadata, call: Mapping[str, Any]) -> ErrorContext:
    return ErrorContext(
        "",
        request=request,
        error_type=call["error_type"] or "unknown",
        ended_ns=call["started_ns"] + call["duration_ns"],
        response_time_ms=call["duration_ns"] / _NS_PER_MS,
        outcome=_outcome(call),
        partial=_response(request, call),
        retries=_retries(call),
    )


def _outcome(call: Mapping[str, Any]) -> Outcome:
    return cast("Outcome", call["outcome"]) if call["outcome"] in _OUTCOMES else "completed"


def _retries(call: Mapping[str, Any]) -> tuple[Retry, ...]:
    """So many as were counted, up to a hundred; the wait, known as a sum, stands with the first."""
    wait_s = (call["retry_wait_ns"] or 0) / _NS_PER_S
    count = min(call["retries"] or 0, 100)
    return tuple(Retry(at_ns=call["started_ns"], delay_s=wait_s if number == 0 else 0.0) for number in range(count))
