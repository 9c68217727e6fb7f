"""The callback protocol: what users implement to be told about every call."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final, Protocol, TypeAlias

from .types import Content, ErrorContext, RequestMetadata, ResponseMetadata, StreamChunk

HOOKS: Final = ("on_request_sent", "on_stream_chunk", "on_response_received", "on_error")
"""The four hook names, in the order in which they are called."""

Hook: TypeAlias = Callable[[Any, Any], Any]


class TelemetryCallback(Protocol):
    """Observe calls. Override what you need; a method left alone is never called and costs nothing.

    Per call: ``on_request_sent`` once, ``on_stream_chunk`` any number of times, then exactly one of
    ``on_response_received`` and ``on_error``. What a hook raises is logged and counted and goes no further.
    A hook may be ``async def``; it then runs on the worker's own event loop, not on the caller's.

    No base class is needed: any object with at least one of the four methods is a callback.
    """

    content: ClassVar[Content] = "full"
    """How much content ``request_json``, ``response_json`` and the chunk text carry."""

    def on_request_sent(self, metadata: RequestMetadata, request_json: str) -> AbstractContextManager[object] | None:
        """Told once, before the first byte is sent.

        Args:
            metadata: Facts about the request.
            request_json: The request body as JSON text, empty if ``content`` is ``none``.

        Returns:
            None, or a context manager. Delivered inline, it is held open until the response headers are back;
            what it returns on exit is ignored.
        """

    def on_stream_chunk(self, chunk: StreamChunk, index: int) -> None:
        """Told for each chunk of a stream, before the caller sees it.

        Args:
            chunk: The chunk's text, with ``.request``, ``.kind`` and ``.at_ns``; empty unless ``content`` is ``full``.
            index: 0 for the first chunk of the call.
        """

    def on_response_received(self, metadata: ResponseMetadata, response_json: str) -> None:
        """Told when a call ended without an exception; a stream the caller stopped reading counts.

        Args:
            metadata: Facts about the response; see ``metadata.outcome``.
            response_json: The response as JSON text (of a stream: its chunks put together), empty if ``content`` is
                ``none``.
        """

    def on_error(self, error: BaseException, context: ErrorContext) -> None:
        """Told when an exception reached the caller.

        Args:
            error: The very exception. Its text may quote the prompt.
            context: Where it happened, with ``.request``, ``.partial``, ``.outcome`` and more.
        """


def find_hook(callback: object, name: str) -> Hook | None:
    """Return the bound hook *name* of *callback*, or None if it was left alone."""
    hook = getattr(callback, name, None)
    if hook is None or getattr(hook, "__func__", None) is getattr(TelemetryCallback, name):
        return None
    return hook  # type: ignore[no-any-return]


def check_callback(callback: object) -> None:
    """Raise if *callback* cannot be one.

    Raises:
        TypeError: It is a class instead of an instance, has none of the four hooks, has a method whose name starts
            with ``on_`` but is not a hook, or a hook that does not take two positional arguments.
        ValueError: Its ``content`` is not one of the allowed values.
    """
    kind = type(callback)
    if kind in _checked and not any(name.startswith("on_") for name in getattr(callback, "__dict__", ())):
        _check_content(callback)
        return
    name = kind.__name__
    allowed = ", ".join(HOOKS)
    if isinstance(callback, type):
        raise TypeError(f"{callback.__name__} is a class; pass an instance of it")
    unknown = [n for n in dir(callback) if n.startswith("on_") and n not in HOOKS and callable(getattr(callback, n))]
    if unknown:
        raise TypeError(f"{name} has {', '.join(unknown)}, which is no hook; the hooks are {allowed}")
    hooks = {hook_name: find_hook(callback, hook_name) for hook_name in HOOKS}
    if not any(hooks.values()):
        raise TypeError(f"{name} is no callback: it needs at least one of {allowed}")
    for hook_name, hook in hooks.items():
        if hook is not None:
            _check_arguments(name, hook_name, hook)
    _check_content(callback)
    if not any(hook_name in getattr(callback, "__dict__", ()) for hook_name in HOOKS):
        _checked.add(kind)


# Classes whose hooks were found good: callbacks may be made by the thousand, one per request.
_checked: Final[weakref.WeakSet[type]] = weakref.WeakSet()


def _check_content(callback: object) -> None:
    content = getattr(callback, "content", "full")
    if content not in ("full", "redacted", "none", "lazy"):  # lazy: the OpenTelemetry adapter as part of another one
        raise ValueError(f"{type(callback).__name__}.content is {content!r}; allowed are 'full', 'redacted', 'none'")


def _check_arguments(name: str, hook_name: str, hook: Hook) -> None:
    if not callable(hook):
        raise TypeError(f"{name}.{hook_name} is not callable")
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):  # some callables written in C have none
        return
    try:
        signature.bind(None, None)
    except TypeError:
        raise TypeError(f"{name}.{hook_name}{signature} must take two positional arguments") from None
