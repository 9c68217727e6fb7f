"""Several callbacks as one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .._dispatch import Counters, Held, enter, guard, release
from ..content import restrict
from ..protocol import CONTENT_LEVELS, HOOKS, DeliveryOptions, Hook, check_callback, find_hook, name_of
from ..types import Content, ErrorContext, RequestMetadata, ResponseMetadata, StreamChunk, new_chunk


class MultiCallback:
    """Tell several callbacks, in order; what one of them raises reaches neither the others nor the caller.

    Registered with this package, each child is delivered to as if it had been registered itself, in the same order.
    Used inside another callback, it calls its children one after the other. A child is given no more content than it
    declares.

    Raises:
        TypeError: One of *callbacks* is no callback.

    Example:
        >>> instrument(MultiCallback(MetricsCollector(), AuditLogger(), CostTracker()))  # doctest: +SKIP
    """

    delivery_options: DeliveryOptions | None = None

    def __init__(self, *callbacks: Any) -> None:
        for callback in callbacks:
            check_callback(callback)
        self.callbacks = callbacks
        self.content: Content = max(
            (_content(callback) for callback in callbacks), key=CONTENT_LEVELS.index, default="none"
        )
        self._hooks = {name: _children(callbacks, name) for name in HOOKS}

    def on_request_sent(self, metadata: RequestMetadata, request_json: str) -> AbstractContextManager[object] | None:
        """Tell each child of a request; what they return is held open together."""
        held: Held = []
        for hook, level in self._hooks["on_request_sent"]:
            manager = hook(metadata, restrict(request_json, level))
            if hasattr(manager, "__enter__") and enter(manager):
                held.append(manager)
        return _HeldTogether(held) if held else None

    def on_stream_chunk(self, chunk: StreamChunk, index: int) -> None:
        """Tell each child of a chunk."""
        for hook, level in self._hooks["on_stream_chunk"]:
            text = restrict_chunk(chunk, level)
            hook(text, index)

    def on_response_received(self, metadata: ResponseMetadata, response_json: str) -> None:
        """Tell each child of a response."""
        for hook, level in self._hooks["on_response_received"]:
            hook(metadata, restrict(response_json, level))

    def on_error(self, error: BaseException, context: ErrorContext) -> None:
        """Tell each child of a failure."""
        for hook, _ in self._hooks["on_error"]:
            hook(error, context)


class _HeldTogether(nullcontext[None]):
    """Context managers that were entered, to be left together."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self._held = held

    def __exit__(self, *details: object) -> None:
        error = details[1]
        release(self._held, error if isinstance(error, BaseException) else None)


def restrict_chunk(chunk: StreamChunk, level: str) -> StreamChunk:
    """Return *chunk* with its text lowered to a content level."""
    if level == "full" or not chunk:
        return chunk
    return new_chunk("", chunk.request, chunk.kind, chunk.at_ns)  # a text to redact may be split over two chunks


def _content(callback: Any) -> Content:
    content = getattr(callback, "content", "full")
    return content if content in CONTENT_LEVELS else "full"


def _children(callbacks: tuple[Any, ...], name: str) -> list[tuple[Hook, Content]]:
    found = []
    for callback in callbacks:
        if (hook := find_hook(callback, name)) is not None:
            label = f"{name_of(callback)}.{name}"
            found.append((guard(hook, label, Counters(), protect=True), _content(callback)))
    return found
