"""The callback protocol: what users implement to be told about every call."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, ClassVar, Final, Protocol, TypeAlias

from .types import Content, Delivery, ErrorContext, Overflow, RequestMetadata, ResponseMetadata, StreamChunk

HOOKS: Final = ("on_request_sent", "on_stream_chunk", "on_response_received", "on_error")
"""The four hook names, in the order in which they are called."""

Hook: TypeAlias = Callable[[Any, Any], Any]


CONTENT_LEVELS: Final[tuple[Content, ...]] = ("none", "redacted", "full")
"""From nothing to all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOptions:
    """How a callback wants to be told; what is None is left to whoever registers it, and then to the settings.

    As the attribute ``delivery_options`` of a callback it holds wherever the callback is used: with ``instrument()``,
    ``register()``, ``instrument_client()``, ``using()``, and as a part of a :class:`MultiCallback`. What ``register()``
    is given wins over the attribute, the attribute over the settings. Two things only ever add up: a callback that is
    required in one place is required, and it is given the lowest of all contents that are named.

    Attributes:
        delivery: ``queued`` or ``inline``.
        overflow: What gives way when its queue is full: ``drop_chunks``, ``drop_new`` or ``block``.
        queue_size: Events its queue holds, from 2.
        required: It is told even of calls inside ``suppress()``.
        content: ``full``, ``redacted`` or ``none``; never more than its class declares and the settings allow.

    Example:
        >>> class Ledger:
        ...     delivery_options = DeliveryOptions(overflow="block", required=True)
        ...     def on_response_received(self, metadata, response_json): ...
    """

    delivery: Delivery | None = None
    overflow: Overflow | None = None
    queue_size: int | None = None
    required: bool = False
    content: Content | None = None

    def over(self, other: DeliveryOptions) -> DeliveryOptions:
        """Return these options, with *other* for what they leave open."""
        return DeliveryOptions(
            delivery=other.delivery if self.delivery is None else self.delivery,
            overflow=other.overflow if self.overflow is None else self.overflow,
            queue_size=other.queue_size if self.queue_size is None else self.queue_size,
            required=self.required or other.required,
            content=lower_content(self.content, other.content),
        )


NO_OPTIONS: Final = DeliveryOptions()


def lower_content(first: Content | None, second: Content | None) -> Content | None:
    """Return the lower of two content levels, None if neither is given."""
    if first is None or second is None:
        return first or second
    return min(first, second, key=CONTENT_LEVELS.index)


class TelemetryCallback(Protocol):
    """Observe calls. Override what you need; a method left alone is never called and costs nothing.

    Per call: ``on_request_sent`` once, ``on_stream_chunk`` any number of times, then exactly one of
    ``on_response_received`` and ``on_error``. What a hook raises is logged and counted and goes no further.
    A hook may be ``async def``; it then runs on the worker's own event loop, not on the caller's.

    No base class is needed: any object with at least one of the four methods is a callback. An attribute
    ``delivery_options``, a :class:`DeliveryOptions`, says how it wants to be told.
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


def is_async(hook: Callable[..., Any]) -> bool:
    """True if *hook* is ``async def``, an object whose call is, or passes on to one that is."""
    if isinstance(hook, FunctionType) and (behind := getattr(hook, "passes_on_to", None)) is not None:
        return is_async(behind)
    return inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(getattr(hook, "__call__", None))  # noqa: B004


def name_of(callback: object) -> str:
    """Return what a callback is called in ``status()`` and in logs: its class, or what it says of itself."""
    name = getattr(callback, "callback_name", None)
    return name if isinstance(name, str) else type(callback).__name__


def check_callback(callback: object) -> None:
    """Raise if *callback* cannot be one.

    Raises:
        TypeError: It is a class instead of an instance, has none of the four hooks, has a method whose name starts
            with ``on_`` but is not a hook, or a hook that does not take two positional arguments.
            It has ``delivery_options`` that are no :class:`DeliveryOptions`.
        ValueError: Its ``content`` is not one of the allowed values.
    """
    options_of(callback)
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


def options_of(callback: object) -> DeliveryOptions:
    """Return how *callback* says it wants to be told.

    Raises:
        TypeError: Its ``delivery_options`` are of another type.
    """
    options = getattr(callback, "delivery_options", None)
    if options is None:
        return NO_OPTIONS
    if not isinstance(options, DeliveryOptions):
        name = type(callback).__name__
        raise TypeError(f"{name}.delivery_options is {type(options).__name__}; it must be DeliveryOptions or None")
    return options


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
