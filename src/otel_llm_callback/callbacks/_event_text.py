"""What :class:`ConsoleLogger` says of each event: facts in, short pieces of text out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Final

from ..types import ErrorContext, RequestMetadata, ResponseMetadata, Retry
from ._text import dollars, milliseconds, plural, printable, seconds

_NAME_LIMIT: Final = 60


def of_request(request: RequestMetadata) -> list[str]:
    """Say what is asked for: model, size, parameters."""
    pieces = [_name(f"{request.operation} {request.model or ''}".rstrip())]
    if request.context_length is not None:
        pieces.append(plural(request.context_length, "byte"))
    if request.stream:
        pieces.append("stream")
    if request.temperature is not None:
        pieces.append(f"temperature {request.temperature:g}")
    if request.max_tokens is not None:
        pieces.append(f"at most {plural(request.max_tokens, 'token')}")
    if request.session_id is not None:
        pieces.append(f"session {_name(request.session_id)}")
    return pieces


def of_response(response: ResponseMetadata) -> list[str]:
    """Say what came back: tokens, time, finish reason, stream, retries, request id."""
    pieces = [] if response.outcome == "completed" else [response.outcome.replace("_", " ")]
    pieces += [_tokens(response), *_cost(response), milliseconds(response.response_time_ms)]
    reasons = dict.fromkeys(response.finish_reasons)
    if reasons:
        pieces.append(_name(", ".join(reasons)))
    if response.truncated:
        pieces.append("truncated")
    pieces += _stream(response)
    pieces += _retries(response.retries)
    if response.request_id is not None:
        pieces.append(_name(response.request_id))
    return pieces


def of_error(context: ErrorContext) -> list[str]:
    """Say what failed and where, without the exception's text: it may quote the prompt."""
    pieces = [_name(context.error_type), _name(context)]
    if context.status_code is not None:
        pieces.append(f"status {context.status_code}")
    pieces.append(f"after {milliseconds(context.response_time_ms)}")
    if context.partial is not None:
        pieces += [*_stream(context.partial), *_cost(context.partial)]
    pieces += _retries(context.retries) or ["no retries"]
    if context.request_id is not None:
        pieces.append(_name(context.request_id))
    return pieces


def last_message(request_json: str) -> str:
    """Return who says what in the last message, or the whole text if it has none that is plain text."""
    body = _parsed(request_json)
    messages = body.get("messages", body.get("input"))
    if isinstance(messages, str):
        return messages
    if isinstance(messages, Sequence) and messages and isinstance(messages[-1], Mapping):
        last = messages[-1]
        if isinstance(last.get("content"), str):
            return f"{last.get('role', 'user')}: {last['content']}"
    return request_json


def answer(response_json: str) -> str:
    """Return the text of the first choice, or the whole text if there is none."""
    with contextlib.suppress(LookupError, TypeError, AttributeError):
        text = _parsed(response_json)["choices"][0]["message"]["content"]  # type: ignore[index]
        if isinstance(text, str):
            return text
    return response_json


def _parsed(text: str) -> Mapping[str, object]:
    try:
        body = json.loads(text)
    except ValueError:
        return {}
    return body if isinstance(body, Mapping) else {}


def _tokens(response: ResponseMetadata) -> str:
    counts = {
        "in": response.prompt_tokens,
        "out": response.completion_tokens,
        "cached": response.cached_tokens or None,
        "reasoning": response.reasoning_tokens or None,
    }
    known = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count is not None)
    if response.total_tokens is None:
        return f"tokens {known}" if known else "no usage reported"
    text = plural(response.total_tokens, "token") + (f" ({known})" if known else "")
    return f"about {text}" if response.usage_source == "estimated" else text


def _cost(response: ResponseMetadata) -> list[str]:
    if response.cost is None:
        return []
    text = dollars(response.cost)
    return [f"about {text}" if response.usage_source == "estimated" else text]


def _stream(response: ResponseMetadata) -> list[str]:
    if response.chunk_count is None:
        return []
    pieces = [plural(response.chunk_count, "chunk")]
    if response.time_to_first_chunk_s is not None:
        pieces.append(f"first after {seconds(response.time_to_first_chunk_s)}")
    if response.longest_gap_s is not None:
        pieces.append(f"longest gap {seconds(response.longest_gap_s)}")
    return pieces


def _retries(retries: Sequence[Retry]) -> list[str]:
    if not retries:
        return []
    causes = dict.fromkeys(_name(str(retry.status_code or retry.error or "unknown cause")) for retry in retries)
    waited = seconds(sum(retry.delay_s for retry in retries))
    return [f"{plural(len(retries), 'retry', 'retries')} ({', '.join(causes)}; waited {waited})"]


def _name(text: str) -> str:
    return printable(text, limit=_NAME_LIMIT)
