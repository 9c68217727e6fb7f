"""What :class:`SessionAnalytics` answers: frozen totals that can be added, and their final summary as text."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..types import Outcome
from ._distribution import Distribution
from ._text import dollars, milliseconds, plural, printable, seconds

if TYPE_CHECKING:
    from typing_extensions import Self

_T = TypeVar("_T")

OUTCOMES: Final[tuple[Outcome, ...]] = ("completed", "closed_early", "abandoned", "cancelled", "error")

_NAME_LIMIT: Final = 60
_NOT_REPORTED: Final = "not reported"
_NS_PER_S: Final = 1_000_000_000


def _no_outcomes() -> dict[Outcome, int]:
    return dict.fromkeys(OUTCOMES, 0)


@dataclass(frozen=True, kw_only=True)
class CallSummary:
    """Totals over some calls. Two of them can be added; the order does not matter.

    Token counts cover every end that came with usage, what had arrived before an error included. They are None, not
    zero, as long as no call reported the kind.

    Attributes:
        requests: Calls begun.
        responses: Calls that ended without an exception, streams the caller stopped reading included.
        errors: Calls that ended in an exception.
        cancelled: Calls whose task or thread was told to stop; not errors.
        outcomes: Ends by outcome, all five outcomes present.
        error_types: Errors by ``error.type``.
        responses_with_usage: Responses whose total token count is known.
        responses_without_usage: The others.
        responses_with_estimated_usage: Those among ``responses_with_usage`` whose counts are an estimate.
        input_tokens: Cached ones included.
        output_tokens: Reasoning included.
        total_tokens: As reported, else input and output together.
        cached_tokens: Input tokens served from the provider's cache.
        cache_write_tokens: Input tokens written to the provider's cache.
        reasoning_tokens: Output tokens spent on reasoning.
        response_tokens: Total tokens of ``responses_with_usage`` alone: without those of errors.
        cost: Of the calls whose price is known, in US dollars.
        priced_calls: How many those are.
        retries: Repetitions by the client, over all calls.
        retried_calls: Calls with at least one.
        retry_wait_ns: How long the client waited before repetitions, in nanoseconds.
        latency: Response times of completed calls, retries and waits included.
        latency_without_retry_wait: The same, less the waits between attempts.
        time_to_first_chunk: Of all streams that had a first chunk, however they ended.
    """

    requests: int = 0
    responses: int = 0
    errors: int = 0
    cancelled: int = 0
    outcomes: Mapping[Outcome, int] = field(default_factory=_no_outcomes)
    error_types: Mapping[str, int] = field(default_factory=dict)
    responses_with_usage: int = 0
    responses_without_usage: int = 0
    responses_with_estimated_usage: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    response_tokens: int | None = None
    cost: Decimal | None = None
    priced_calls: int = 0
    retries: int = 0
    retried_calls: int = 0
    retry_wait_ns: int = 0
    latency: Distribution = field(default_factory=Distribution)
    latency_without_retry_wait: Distribution = field(default_factory=Distribution)
    time_to_first_chunk: Distribution = field(default_factory=Distribution)

    @property
    def average_tokens_per_response(self) -> float | None:
        """Total tokens per response, over the responses that reported usage; None if none did."""
        if self.response_tokens is None or not self.responses_with_usage:
            return None
        return self.response_tokens / self.responses_with_usage

    @property
    def retry_wait_s(self) -> float:
        """How long the client waited before repetitions, in seconds."""
        return self.retry_wait_ns / _NS_PER_S

    def __add__(self, other: Self) -> Self:
        """Return the totals over the calls of both."""
        if type(other) is not type(self):
            return NotImplemented
        merged: dict[str, Any] = {f.name: self._merged(f.name, other) for f in fields(self)}
        return type(self)(**merged)

    def _merged(self, name: str, other: Self) -> object:
        return _plus(getattr(self, name), getattr(other, name))


@dataclass(frozen=True, kw_only=True)
class SessionSummary(CallSummary):
    """Totals over the calls of a session, or of everything one :class:`SessionAnalytics` was told.

    ``str()`` of it is the final summary: plain text, aligned, no longer than 80 columns unless names are.
    Summaries can be added, those of several processes too. ``duration_s`` of the sum is the time from the first send of
    any to the last end of any by the wall clock, and never less than that of a part.

    Attributes:
        session_id: The session; None for all calls, and for a sum over different sessions.
        duration_s: From the first send to the last end, in seconds, by the monotonic clock; None until a call ended.
        started_at: When the first call was sent, in UTC by the wall clock.
        ended_at: When the last call ended, likewise.
        open_calls: Calls that have not ended yet.
        expired_calls: Calls whose end never came and which were given up.
        sessions: Sessions with an id that are remembered. 0 in the summary of a session.
        expired_sessions: Sessions that are no longer remembered by their id; their calls stay in the totals.
        models: Totals by requested model.
    """

    session_id: str | None = None
    duration_s: float | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    open_calls: int = 0
    expired_calls: int = 0
    sessions: int = 0
    expired_sessions: int = 0
    models: Mapping[str, CallSummary] = field(default_factory=dict)

    def _merged(self, name: str, other: Self) -> object:
        if name == "session_id":
            return self.session_id if self.session_id == other.session_id else None
        if name == "started_at":
            return _known(min, self.started_at, other.started_at)
        if name == "ended_at":
            return _known(max, self.ended_at, other.ended_at)
        if name == "duration_s":
            return self._merged_duration(other)
        return super()._merged(name, other)

    def _merged_duration(self, other: Self) -> float | None:
        longest = _known(max, self.duration_s, other.duration_s)
        if self.started_at is None or other.started_at is None:
            return longest
        ended_at = _known(max, self.ended_at, other.ended_at)
        between = None if ended_at is None else (ended_at - min(self.started_at, other.started_at)).total_seconds()
        return _known(max, longest, between)

    def __str__(self) -> str:
        """Return the final summary."""
        rows = list(self.rows())
        width = max(len(name) for name, _ in rows)
        return "\n".join([self.title, *(f"  {name:<{width}}  {text}".rstrip() for name, text in rows)])

    @property
    def title(self) -> str:
        """The heading of the final summary."""
        return "Session summary" if self.session_id is None else f"Session summary: {_name(self.session_id)}"

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield the lines of the final summary as name and text; a line that goes on has no name."""
        yield "Duration", "no call has ended" if self.duration_s is None else seconds(self.duration_s)
        yield (
            "Requests",
            _listed([f"{self.requests:,}", *_nonzero({"open": self.open_calls, "lost": self.expired_calls})]),
        )
        yield "Responses", _listed([f"{self.responses:,}", *_nonzero(self._response_outcomes())])
        yield "Errors", _listed([f"{self.errors:,}", *_nonzero(self.error_types)])
        if self.cancelled:
            yield "Cancelled", f"{self.cancelled:,}"
        yield from self._token_rows()
        yield from self._time_rows()
        if self.retries:
            wait = f"{plural(self.retries, 'retry', 'retries')} in {plural(self.retried_calls, 'call')}"
            yield "Retries", f"{wait}, {seconds(self.retry_wait_s)} of waiting"
        if self.cost is not None:
            yield "Cost", f"{dollars(self.cost)} for {plural(self.priced_calls, 'call')}"
        if len(self.models) > 1:
            for model, calls in self.models.items():
                yield from _model_rows(model, calls)

    def _response_outcomes(self) -> dict[str, int]:
        if self.outcomes["completed"] == self.responses:
            return {}
        return {outcome: count for outcome, count in self.outcomes.items() if outcome not in ("error", "cancelled")}

    def _token_rows(self) -> Iterator[tuple[str, str]]:
        yield "Tokens", _NOT_REPORTED if self.total_tokens is None else f"{self.total_tokens:,} total"
        kinds = {
            "input": self.input_tokens,
            "output": self.output_tokens,
            "cached": self.cached_tokens,
            "reasoning": self.reasoning_tokens,
        }
        known = [f"{count:,} {kind}" for kind, count in kinds.items() if count is not None]
        if known:
            yield "", ", ".join(known)
        yield "Tokens per response", self._average()

    def _average(self) -> str:
        average = self.average_tokens_per_response
        if average is None:
            return _NOT_REPORTED
        text = f"{average:,.1f} on average over {plural(self.responses_with_usage, 'response')}"
        notes = {"without usage": self.responses_without_usage, "estimated": self.responses_with_estimated_usage}
        return _listed([text, *_nonzero(notes)])

    def _time_rows(self) -> Iterator[tuple[str, str]]:
        if self.latency.count:
            yield "Response time", _percentiles(self.latency)
        if self.retries and self.latency_without_retry_wait.count:
            yield "  without waits", _percentiles(self.latency_without_retry_wait)
        if self.time_to_first_chunk.count:
            yield "First chunk after", _percentiles(self.time_to_first_chunk)


def _model_rows(model: str, calls: CallSummary) -> Iterator[tuple[str, str]]:
    parts = [plural(calls.requests, "request")]
    if calls.errors:
        parts.append(plural(calls.errors, "error"))
    if calls.total_tokens is not None:
        parts.append(plural(calls.total_tokens, "token"))
    if calls.cost is not None:
        parts.append(dollars(calls.cost))
    yield "Model", _name(model)
    yield "", ", ".join(parts)


def _percentiles(times: Distribution) -> str:
    known = {"p50": times.p50_ms, "p95": times.p95_ms, "p99": times.p99_ms}
    return ", ".join(f"{name} {milliseconds(value)}" for name, value in known.items() if value is not None)


def _listed(parts: Iterable[str]) -> str:
    first, *others = parts
    return f"{first} ({', '.join(others)})" if others else first


def _nonzero(counts: Mapping[Any, int]) -> list[str]:
    return [f"{count:,} {_name(name)}" for name, count in counts.items() if count]


def _name(name: str) -> str:
    return printable(name, limit=_NAME_LIMIT)


def _plus(left: object, right: object) -> object:
    """Return the sum of two fields of the same kind, either of which may be unknown."""
    if left is None or right is None:
        return right if left is None else left
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return {key: _plus(left.get(key), right.get(key)) for key in {**left, **right}}
    return operator.add(left, right)


def _known(choose: Callable[[_T, _T], _T], left: _T | None, right: _T | None) -> _T | None:
    if left is None or right is None:
        return right if left is None else left
    return choose(left, right)
