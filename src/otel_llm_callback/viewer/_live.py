"""Calls in flight, as :class:`LiveView` tells of them, and the pages that watch. All of it on the event loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from ._options import Limits

_LATEST_ENDED_S: Final = 60
_SILENT_S: Final = 3600
_CLIPPED: Final = 500
_EVENT_LIMIT: Final = 20_000
_REMEMBERED: Final = 20_000
_WATCHERS: Final = 64
_WATCHER_QUEUE: Final = 64
_PING_S: Final = 15
_NOTICE_S: Final = 0.4

_REQUEST_TEXTS: Final = (
    *("operation", "model", "provider", "session_id", "user_id", "trace_id", "span_id", "process", "prompt"),
)
_END_TEXTS: Final = ("outcome", "error_type", "finish_reason")
_END_NUMBERS: Final = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "duration_ms")


class BadEventsError(Exception):
    """A body is not what :class:`LiveView` sends."""


class TooManyWatchersError(Exception):
    """No further page can watch."""


@dataclass(slots=True)
class LiveCall:
    """A call that is going on, or has ended a moment ago.

    Attributes:
        text: The end of what has come so far, if the callback was told to show it.
        cut: Characters before that are no longer kept.
        is_partial: True if its first chunks were not seen, so that counts and times are from the first that was.
        version: Of the latest change; a page that is told of an older one later leaves that alone.
        touched_s: When something was last heard of it, by the monotonic clock.
    """

    call_id: str
    started_ms: float
    operation: str | None = None
    model: str | None = None
    provider: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    process: str | None = None
    prompt: str | None = None
    chunks: int = 0
    first_chunk_ms: float | None = None
    last_chunk_ms: float | None = None
    text: str = ""
    cut: int = 0
    is_partial: bool = False
    is_over: bool = False
    outcome: str | None = None
    error_type: str | None = None
    finish_reason: str | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    cached_tokens: float | None = None
    reasoning_tokens: float | None = None
    duration_ms: float | None = None
    version: int = 0
    touched_s: float = 0.0


class LiveCalls:
    """What is going on, bounded in calls and text.

    Attributes:
        lost: Calls that were given up to make room for others.
        version: Counts the changes.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._calls: dict[str, LiveCall] = {}
        self._stored: OrderedDict[tuple[str, str], None] = OrderedDict()
        self.lost = 0
        self.version = time.time_ns() // 1_000_000  # a page that is open goes on counting when the viewer is restarted

    def take(self, body: bytes) -> tuple[list[dict[str, Any]], bool]:
        """Take in what a callback sent; return the calls it changed, and whether some are gone.

        Raises:
            BadEventsError: It is not what a callback sends. What came before the fault is kept.
        """
        try:
            events = json.loads(body)["events"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BadEventsError from None
        if not isinstance(events, list) or len(events) > _EVENT_LIMIT:
            raise BadEventsError
        changed: dict[str, LiveCall] = {}
        for event in events:
            call = self._apply(event)
            if call is not None:
                changed[call.call_id] = call
        self._tidy()
        done = [call_id for call_id, call in changed.items() if (call.trace_id, call.span_id) in self._stored]
        for call_id in done:  # the span of a short call may be here before this was
            del changed[call_id]
            self._calls.pop(call_id, None)
        return [_shown(call) for call in changed.values()], bool(done)

    def stored(self, spans: Iterable[tuple[bytes, bytes]]) -> bool:
        """Forget the calls whose spans are stored; True if there were any."""
        arrived = {(trace_id.hex(), span_id.hex()): None for trace_id, span_id in spans}
        self._stored.update(arrived)
        while len(self._stored) > _REMEMBERED:
            self._stored.popitem(last=False)
        done = [call.call_id for call in self._calls.values() if (call.trace_id, call.span_id) in arrived]
        for call_id in done:
            del self._calls[call_id]
        return bool(done)

    def all(self) -> list[dict[str, Any]]:
        """Return every call, the newest first."""
        self._tidy()
        return [_shown(call) for call in reversed(self._calls.values())]

    def _apply(self, event: Any) -> LiveCall | None:
        if not isinstance(event, dict) or not isinstance(event.get("call_id"), str):
            raise BadEventsError
        call_id, at_ms, kind = event["call_id"][:_CLIPPED], _number(event, "at_ms"), event.get("event")
        if at_ms is None or kind not in ("request", "chunk", "end"):
            raise BadEventsError
        call = self._begin(call_id, at_ms, event) if kind == "request" else self._calls.get(call_id)
        started_ms = _number(event, "started_ms")
        if call is None and kind == "chunk" and started_ms is not None:  # begun before this viewer was there
            call = self._begin(call_id, started_ms, event)
            call.is_partial = True
        if call is None:  # over, and nothing of it was seen, or it was given up
            return None
        if kind == "chunk":
            self._add_chunk(call, event, at_ms)
        elif kind == "end":
            _end(call, event)
        self.version += 1
        call.version = self.version
        call.touched_s = time.monotonic()
        return call

    def _begin(self, call_id: str, at_ms: float, event: Mapping[str, Any]) -> LiveCall:
        call = LiveCall(call_id, at_ms)
        for name in _REQUEST_TEXTS:
            setattr(call, name, _text(event, name))
        if len(self._calls) >= self._limits.live_calls:
            del self._calls[next(iter(self._calls))]
            self.lost += 1
        self._calls[call_id] = call
        return call

    def _add_chunk(self, call: LiveCall, event: Mapping[str, Any], at_ms: float) -> None:
        if call.first_chunk_ms is None and not call.is_partial:
            call.first_chunk_ms = max(0.0, (_number(event, "first_at_ms") or at_ms) - call.started_ms)
        call.last_chunk_ms = max(0.0, at_ms - call.started_ms)
        call.chunks += int(_number(event, "count") or 1)
        text = event.get("text")
        if isinstance(text, str) and text:
            whole = call.text + text
            call.text = whole[-self._limits.live_text :]
            call.cut += len(whole) - len(call.text)

    def _tidy(self) -> None:
        now_s = time.monotonic()
        old = [
            call.call_id
            for call in self._calls.values()
            if now_s - call.touched_s > (_LATEST_ENDED_S if call.is_over else _SILENT_S)
        ]
        for call_id in old:
            del self._calls[call_id]


def _end(call: LiveCall, event: Mapping[str, Any]) -> None:
    call.is_over = True
    for name in _END_TEXTS:
        setattr(call, name, _text(event, name))
    for name in _END_NUMBERS:
        setattr(call, name, _number(event, name))


def _shown(call: LiveCall) -> dict[str, Any]:
    told = asdict(call)
    del told["touched_s"]
    return {name: value for name, value in told.items() if value is not None}


def _text(event: Mapping[str, Any], name: str) -> str | None:
    value = event.get(name)
    limit = _CLIPPED if name != "prompt" else _CLIPPED * 20
    return value[:limit] if isinstance(value, str) else None


def _number(event: Mapping[str, Any], name: str) -> float | None:
    value = event.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**53:
        return None
    return value


class Watchers:
    """The pages that are open. One that reads too slowly is told to look for itself instead of being told all."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[bytes | None]] = set()
        self._stored = 0
        self._notice: asyncio.TimerHandle | None = None
        self._is_closed = False

    def publish(self, event: str, told: Any) -> None:
        """Tell every page."""
        if not self._queues:
            return
        message = _message(event, told)
        for queue in self._queues:
            _offer(queue, message)

    def note_stored(self, spans: int) -> None:
        """Tell the pages, soon and not for each batch, that there is more to see."""
        self._stored += spans
        if self._notice is None and self._queues:
            self._notice = asyncio.get_running_loop().call_later(_NOTICE_S, self._tell_stored)

    def _tell_stored(self) -> None:
        self._notice = None
        self.publish("stored", {"spans": self._stored})

    async def watch(self) -> AsyncIterator[bytes]:
        """Yield server-sent events until the page goes away or the viewer is closed.

        Raises:
            TooManyWatchersError: There are too many already.
        """
        if len(self._queues) >= _WATCHERS:
            raise TooManyWatchersError
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(_WATCHER_QUEUE)
        self._queues.add(queue)
        try:
            yield b"retry: 2000\n" + _message("hello", {})
            while not self._is_closed:
                try:
                    message = await asyncio.wait_for(queue.get(), _PING_S)
                except (asyncio.TimeoutError, TimeoutError):
                    message = b": still here\n\n"
                if message is None:
                    return
                yield message
        finally:
            self._queues.discard(queue)

    def close(self) -> None:
        """End all streams of events."""
        self._is_closed = True
        for queue in self._queues:
            while queue.full():
                queue.get_nowait()
            queue.put_nowait(None)


def _message(event: str, told: Any) -> bytes:
    return f"event: {event}\ndata: {json.dumps(told, separators=(',', ':'))}\n\n".encode()


def _offer(queue: asyncio.Queue[bytes | None], message: bytes) -> None:
    if queue.full():
        while not queue.empty():
            queue.get_nowait()
        message = _message("refresh", {})
    queue.put_nowait(message)
