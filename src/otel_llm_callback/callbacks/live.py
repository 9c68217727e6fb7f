"""Tell a running live view of each call while it goes on: its page shows a stream growing before there is a span."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from .._timers import flush_with_us
from ..types import Content, ErrorContext, RequestMetadata, ResponseMetadata, StreamChunk
from . import _event_text
from ._lock import ForkSafeLock

if TYPE_CHECKING:
    from http.client import HTTPConnection

__all__ = ["LiveView"]

_CONTENT_LEVELS: Final[tuple[Content, ...]] = ("full", "redacted", "none")
_DEFAULT_URL: Final = "http://localhost:4318"
_PATH: Final = "/v1/live"
_WAITING_EVENTS: Final = 4096
_WAITING_TEXT: Final = 1024 * 1024
_PROMPT_LIMIT: Final = 2000
_PAUSE_S: Final = 0.05
_TIMEOUT_S: Final = 3.0
_ABSENT_S: Final = 5.0
_KEEP_ALIVE_S: Final = 10.0
_THREAD_IDLE_S: Final = 30.0
_ANSWER_BYTES: Final = 4096
_NS_PER_MS: Final = 1_000_000


class LiveView:
    """Send requests, chunks and ends to ``otel-llm-callback view`` as they happen.

    The hooks only note what happened; a thread of its own, started with the first event, sends it, at most twenty times
    a second. Nothing is sent twice: what a viewer that is slow or not there does not take is dropped and counted, and
    after a failure nothing is tried for five seconds. Spans are sent by the OTLP exporter as ever; when one arrives, it
    takes the place of what was shown of its call. A forked child starts clean.

    Args:
        url: Where the viewer listens.
        token: The viewer's token, if it has one; None reads ``OTEL_LLM_CALLBACK_VIEW_TOKEN``.
        content: ``full`` also sends the last message of the request and the text of the chunks; ``redacted`` sends the
            message as the redactor leaves it, and no chunk text.

    Raises:
        ValueError: *content* is not one of the three, or *url* is not an ``http://`` or ``https://`` address.

    Attributes:
        sent: Events the viewer took.
        dropped: Events that it was not told of.
    """

    content: Content

    def __init__(self, url: str = _DEFAULT_URL, *, token: str | None = None, content: Content = "none") -> None:
        if content not in _CONTENT_LEVELS:
            raise ValueError(f"content is {content!r}; allowed are {', '.join(map(repr, _CONTENT_LEVELS))}")
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("url must be an address such as http://localhost:4318")
        self.content = content
        self._address = address
        self._token = token or os.environ.get("OTEL_LLM_CALLBACK_VIEW_TOKEN")
        self._lock = ForkSafeLock()
        self._reset()
        flush_with_us(self)

    def _reset(self) -> None:
        self._waiting: deque[dict[str, Any]] = deque()
        self._waiting_text = 0
        self._thread: threading.Thread | None = None
        self._arrived = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self.sent = self.dropped = 0

    def on_request_sent(self, metadata: RequestMetadata, request_json: str) -> None:
        """Note a call."""
        event = {"event": "request", "at_ms": metadata.started_ns / _NS_PER_MS, **_facts(metadata)}
        if request_json and self.content != "none":
            event["prompt"] = _event_text.last_message(request_json)[:_PROMPT_LIMIT]
        self._note(event)

    def on_stream_chunk(self, chunk: StreamChunk, index: int) -> None:  # noqa: ARG002
        """Note a chunk; it joins the one before it if that is waiting still."""
        text = str(chunk) if self.content == "full" and chunk.kind != "event" else ""
        at_ms = chunk.at_ns / _NS_PER_MS
        with self._lock:
            self._start_clean()
            last = self._waiting[-1] if self._waiting else None
            if last is not None and last["event"] == "chunk" and last["call_id"] == chunk.request.call_id:
                if self._waiting_text + len(text) <= _WAITING_TEXT:
                    last["text"] += text
                    self._waiting_text += len(text)
                else:
                    self.dropped += 1
                last["count"] += 1
                last["at_ms"] = at_ms
                return
        self._note(
            {
                "event": "chunk",
                "at_ms": at_ms,
                "first_at_ms": at_ms,
                "started_ms": chunk.request.started_ns / _NS_PER_MS,
                **_facts(chunk.request),
                "count": 1,
                "text": text,
            }
        )

    def on_response_received(self, metadata: ResponseMetadata, response_json: str) -> None:  # noqa: ARG002
        """Note how a call ended."""
        self._note(_end(metadata.request, metadata.outcome, metadata.response_time_ms, metadata))

    def on_error(self, error: BaseException, context: ErrorContext) -> None:  # noqa: ARG002
        """Note that a call failed; of the exception only its type is sent."""
        event = _end(context.request, context.outcome, context.response_time_ms, context.partial)
        event["error_type"] = context.error_type
        self._note(event)

    def flush(self, timeout: float = 1.0) -> bool:
        """Wait until what was noted is sent or dropped; False if that took longer than *timeout* seconds.

        ``otel_llm_callback.flush()`` does this too, and so does the exit of the program.
        """
        return self._idle.wait(timeout)

    def _note(self, event: dict[str, Any]) -> None:
        text = len(event.get("text", "")) + len(event.get("prompt", ""))
        with self._lock:
            self._start_clean()
            is_full = len(self._waiting) >= _WAITING_EVENTS or self._waiting_text + text > _WAITING_TEXT
            if is_full and event["event"] == "chunk":
                self.dropped += 1
                return
            if len(self._waiting) >= _WAITING_EVENTS:
                self._forget(self._waiting.popleft())
                self.dropped += 1
            if is_full:
                event.pop("prompt", None)
                text = 0
            self._waiting.append(event)
            self._waiting_text += text
            self._idle.clear()
            if self._thread is None:
                self._start()
            self._arrived.set()

    def _start_clean(self) -> None:
        if self._lock.forked:  # what waits is the parent's, and its thread is not here
            self._reset()
            self._lock.forked = False

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="otel-llm-callback-live", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._waiting_text = 0
            self._idle.set()
            return
        self._thread = thread

    def _forget(self, event: dict[str, Any]) -> None:
        self._waiting_text -= len(event.get("text", "")) + len(event.get("prompt", ""))

    def _run(self) -> None:
        connection = self._connect()
        silent_until_s = used_s = 0.0
        while self._arrived.wait(_THREAD_IDLE_S) or not self._stop():
            self._arrived.clear()
            with self._lock:
                events = list(self._waiting)
                self._waiting.clear()
                self._waiting_text = 0
            now_s = time.monotonic()
            if now_s - used_s > _KEEP_ALIVE_S:  # the viewer may close an idle connection just now
                connection.close()
            is_sent = now_s >= silent_until_s and self._send(connection, events)
            used_s = time.monotonic()
            if not is_sent and now_s >= silent_until_s:
                silent_until_s = used_s + _ABSENT_S
                connection.close()
            with self._lock:
                self.sent += len(events) if is_sent else 0
                self.dropped += 0 if is_sent else len(events)
                if not self._waiting:
                    self._idle.set()
            time.sleep(_PAUSE_S)
        connection.close()

    def _stop(self) -> bool:
        """Let the sending thread end; False if there is something to send again."""
        with self._lock:
            if self._waiting:
                return False
            self._thread = None
            return True

    def _connect(self) -> HTTPConnection:
        from http.client import HTTPConnection, HTTPSConnection  # takes longer to import than all of us

        kind = HTTPSConnection if self._address.scheme == "https" else HTTPConnection
        return kind(self._address.hostname or "", self._address.port, timeout=_TIMEOUT_S)

    def _send(self, connection: HTTPConnection, events: list[dict[str, Any]]) -> bool:
        from http.client import MULTIPLE_CHOICES, HTTPException

        if not events:
            return True
        headers = {"content-type": "application/json"}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        body = json.dumps({"events": events}).encode()
        try:
            connection.request("POST", self._address.path.rstrip("/") + _PATH, body, headers)
            response = connection.getresponse()
            response.read(_ANSWER_BYTES)
        except (OSError, HTTPException, ValueError):  # ValueError: a host name or token that HTTP cannot carry
            return False
        return response.status < MULTIPLE_CHOICES


def _facts(request: RequestMetadata) -> dict[str, Any]:
    """What is sent with each chunk too: the viewer may have been started, or reached, only after the request."""
    return {
        "call_id": request.call_id,
        "operation": request.operation,
        "model": request.model,
        "provider": request.provider,
        "session_id": request.session_id,
        "user_id": request.user_id,
        "trace_id": request.trace_id,
        "span_id": request.span_id,
        "process": f"process {os.getpid()}",
    }


def _end(request: RequestMetadata, outcome: str, took_ms: float, response: ResponseMetadata | None) -> dict[str, Any]:
    event: dict[str, Any] = {
        "event": "end",
        "call_id": request.call_id,
        "at_ms": request.started_ns / _NS_PER_MS + took_ms,
        "duration_ms": took_ms,
        "outcome": outcome,
    }
    if response is not None:
        event["finish_reason"] = response.finish_reason
        if response.usage is not None:
            usage = response.usage
            event["input_tokens"], event["output_tokens"] = usage.input_tokens, usage.output_tokens
            event["cached_tokens"], event["reasoning_tokens"] = usage.cached_tokens, usage.reasoning_tokens
    return event
