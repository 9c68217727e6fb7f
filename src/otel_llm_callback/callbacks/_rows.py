"""One row per call: the columns that analytics sinks write, and how a row is read from the facts.

The schema only ever grows: a column keeps its name, type and meaning, and a new one comes with a higher
``SCHEMA_VERSION``. Unknown is None, which becomes NULL. No column carries content.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, Literal, TypeAlias

from ..types import ErrorContext, RequestMetadata, ResponseMetadata, Usage

SCHEMA_VERSION: Final = 1
"""Raised with each column that is added."""

TEXT_LIMIT: Final = 4096
"""Characters of one text; ids and names that are longer are cut, for rows wait in memory."""

Kind: TypeAlias = Literal["text", "json", "time", "integer", "number", "boolean"]
Value: TypeAlias = "str | int | float | bool | None"
Row: TypeAlias = tuple[Value, ...]
"""The values of ``COLUMNS``, in their order. A time is microseconds since the epoch."""

_INTEGER_LIMIT: Final = 2**63


class _Unknown:
    """Stands for a response or usage there is none of: every fact of it is None."""

    def __getattr__(self, _: str) -> None:
        return None


_UNKNOWN: Final = _Unknown()


class CallEnd:
    """A response or an error, seen alike.

    Attributes:
        request: The request of the call.
        end: What was told last.
        response: What had arrived; all None if nothing had.
        usage: Its token counts; all None if there were none.
        error_type: None unless the call failed or was cancelled.
    """

    __slots__ = ("end", "error_type", "request", "response", "usage")

    def __init__(
        self, end: ResponseMetadata | ErrorContext, response: ResponseMetadata | None, error_type: str | None = None
    ) -> None:
        self.request: RequestMetadata = end.request
        self.end = end
        self.response: ResponseMetadata | _Unknown = response or _UNKNOWN
        self.usage: Usage | _Unknown = self.response.usage or _UNKNOWN
        self.error_type = error_type


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its type, what it means and where it comes from."""

    name: str
    kind: Kind
    meaning: str
    read: Callable[[CallEnd], object]


def _milliseconds(path: str) -> Callable[[CallEnd], object]:
    read = attrgetter(path)

    def read_ms(call: CallEnd) -> object:
        value_s = read(call)
        return None if value_s is None else value_s * 1000

    return read_ms


def _waited_ms(call: CallEnd) -> float:
    return sum(retry.delay_s for retry in call.end.retries) * 1000


def _exact_cost(call: CallEnd) -> str | None:
    cost = call.response.cost
    return None if cost is None else format(cost, "f")


COLUMNS: Final[tuple[Column, ...]] = (
    Column("call_id", "text", "Unique to the call, also across processes", attrgetter("request.call_id")),
    Column("started_at", "time", "When the call began, UTC", attrgetter("request.started_ns")),
    Column("ended_at", "time", "When it ended, UTC", attrgetter("end.ended_ns")),
    Column("operation", "text", "Such as `chat`", attrgetter("request.operation")),
    Column("api", "text", "The API family, such as `chat_completions`", attrgetter("request.api")),
    Column("provider", "text", "Such as `openai`", attrgetter("request.provider")),
    Column("server_address", "text", "Host that was asked", attrgetter("request.server_address")),
    Column("server_port", "integer", "Its port", attrgetter("request.server_port")),
    Column("request_model", "text", "The model as requested", attrgetter("request.model")),
    Column("response_model", "text", "The model that answered", attrgetter("response.model")),
    Column("stream", "boolean", "Whether the answer was asked for as a stream", attrgetter("request.stream")),
    Column("session_id", "text", "From `session()`", attrgetter("request.session_id")),
    Column("user_id", "text", "From `session()`", attrgetter("request.user_id")),
    Column("attributes", "json", "Further attributes of `session()`, a JSON object", attrgetter("request.attributes")),
    Column(
        "outcome", "text", "`completed`, `closed_early`, `abandoned`, `cancelled` or `error`", attrgetter("end.outcome")
    ),
    Column("error_type", "text", "Of a call that failed or was cancelled", attrgetter("error_type")),
    Column("truncated", "boolean", "Whether a choice never got its finish reason", attrgetter("response.truncated")),
    Column(
        "finish_reason", "text", "Of the first choice, as the provider spells it", attrgetter("response.finish_reason")
    ),
    Column("input_tokens", "integer", "Cached and cache-write tokens included", attrgetter("usage.input_tokens")),
    Column("output_tokens", "integer", "Reasoning tokens included", attrgetter("usage.output_tokens")),
    Column("total_tokens", "integer", "As reported, else the sum of both", attrgetter("response.total_tokens")),
    Column("cached_tokens", "integer", "Input served from the provider's cache", attrgetter("usage.cached_tokens")),
    Column("cache_write_tokens", "integer", "Input written to that cache", attrgetter("usage.cache_write_tokens")),
    Column("reasoning_tokens", "integer", "Output spent on reasoning", attrgetter("usage.reasoning_tokens")),
    Column("text_input_tokens", "integer", "Part of the input", attrgetter("usage.text_input_tokens")),
    Column("text_output_tokens", "integer", "Part of the output", attrgetter("usage.text_output_tokens")),
    Column("image_input_tokens", "integer", "Part of the input", attrgetter("usage.image_input_tokens")),
    Column("image_output_tokens", "integer", "Part of the output", attrgetter("usage.image_output_tokens")),
    Column("audio_input_tokens", "integer", "Part of the input", attrgetter("usage.audio_input_tokens")),
    Column("audio_output_tokens", "integer", "Part of the output", attrgetter("usage.audio_output_tokens")),
    Column("usage_source", "text", "`reported`, `missing` or `estimated`", attrgetter("response.usage_source")),
    Column("cost_usd", "text", "Exact decimal text, where a price is known", _exact_cost),
    Column("cost_usd_float", "number", "The same, rounded, to add up in queries", attrgetter("response.cost")),
    Column("response_time_ms", "number", "From start to end, retries included", attrgetter("end.response_time_ms")),
    Column("retry_wait_ms", "number", "Waits between attempts, part of it", _waited_ms),
    Column("retry_count", "integer", "Repetitions; attempts are one more", lambda call: len(call.end.retries)),
    Column("first_chunk_ms", "number", "Start to first chunk", _milliseconds("response.time_to_first_chunk_s")),
    Column(
        "first_output_ms",
        "number",
        "Start to first chunk with output",
        _milliseconds("response.time_to_first_output_s"),
    ),
    Column("longest_gap_ms", "number", "Longest wait between two chunks", _milliseconds("response.longest_gap_s")),
    Column(
        "chunk_count", "integer", "Chunks the caller was given; of streams only", attrgetter("response.chunk_count")
    ),
    Column("status_code", "integer", "HTTP status", attrgetter("end.status_code")),
    Column("request_id", "text", "The provider's id, for support tickets", attrgetter("end.request_id")),
    Column("response_id", "text", "The id in the body", attrgetter("response.id")),
    Column("processing_ms", "number", "The server's own figure for its work", attrgetter("end.processing_ms")),
    Column("service_tier", "text", "As the server said", attrgetter("response.service_tier")),
    Column("status", "text", "Of a response or job that the server keeps", attrgetter("response.status")),
    Column("failure", "text", "The provider's code of a result that says it failed", attrgetter("response.failure")),
    Column("conversation_id", "text", "Of a conversation that the API keeps", attrgetter("request.conversation_id")),
    Column(
        "previous_response_id", "text", "What this response goes on from", attrgetter("request.previous_response_id")
    ),
    Column("temperature", "number", "As requested", attrgetter("request.temperature")),
    Column("top_p", "number", "As requested", attrgetter("request.top_p")),
    Column("max_tokens", "integer", "As requested", attrgetter("request.max_tokens")),
    Column("trace_id", "text", "32 hex digits, to find the trace", attrgetter("request.trace_id")),
    Column("span_id", "text", "16 hex digits", attrgetter("request.span_id")),
)
"""The schema, in the order in which the columns came."""


def read_row(call: CallEnd) -> Row:
    """Return the row of a call. Every value fits its column, whatever the server or the caller made of it."""
    return tuple([None if (value := read(call)) is None else fit(value) for read, fit in _READERS])


def _text(value: object) -> str:
    text = value if type(value) is str else str(value)
    text = text[:TEXT_LIMIT]
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate fits nowhere


def _json(attributes: Mapping[str, object]) -> str:
    if not attributes:
        return "{}"
    return _encoder.encode({_text(name): _plain(value) for name, value in attributes.items()})


def _plain(value: object) -> object:
    if isinstance(value, str):
        return value[:TEXT_LIMIT]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it
    return list(value) if isinstance(value, tuple) else value


def _integer(value: Any) -> int | None:
    return int(value) if isinstance(value, int) and -_INTEGER_LIMIT <= value < _INTEGER_LIMIT else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _time(value: int) -> int:
    return value // 1000


_encoder: Final = json.JSONEncoder(separators=(",", ":"), default=str)

_FIT: Final[Mapping[Kind, Callable[[Any], Value]]] = {
    "text": _text,
    "json": _json,
    "time": _time,
    "integer": _integer,
    "number": _number,
    "boolean": bool,
}

_READERS: Final = [(column.read, _FIT[column.kind]) for column in COLUMNS]
