"""Deliver each event to the callbacks that listen to it; absorb what they raise."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from . import _faults
from .content import Payload
from .protocol import Hook, find_hook, name_of
from .types import ErrorContext, RequestMetadata, ResponseMetadata, StreamChunk

Level: TypeAlias = Literal["full", "redacted", "none", "lazy"]
"""A callback's content level; ``lazy`` is for the OpenTelemetry adapter, which decides per span what it needs."""

Held: TypeAlias = list[AbstractContextManager[object]]

running_hook: Final[ContextVar[bool]] = ContextVar("otel_llm_callback_running_hook", default=False)
"""True while a user's hook runs: a hook that calls the API must not be told of that call."""


@dataclass(slots=True)
class Counters:
    """What became of the events meant for one callback."""

    delivered: int = 0
    failed: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """A callback as the dispatcher sees it.

    Attributes:
        callback: The object whose hooks are called.
        content: How much content its hooks are given.
        counters: Where its deliveries are counted.
        trusted: The adapter; it does not call the API and measures nothing, so it needs no protection.
        queued: Passes events on; whatever is done there is counted and protected there.
        required: No ``suppress()`` silences it.
    """

    callback: object
    content: Level = "full"
    counters: Counters = field(default_factory=Counters)
    trusted: bool = False
    queued: bool = False
    required: bool = False

    @property
    def origin(self) -> object:
        """The user's object: the callback itself, or the one behind the queue."""
        return getattr(self.callback, "callback", self.callback) if self.queued else self.callback


class Dispatcher:
    """Deliver events to listeners, in their order.

    Immutable: adding a callback builds a new dispatcher, and calls in flight keep the one they began with. Which hooks
    exist is found here, once, so that a hook left alone costs nothing per call.
    """

    __slots__ = (
        "_chunk",
        "_error",
        "_idle",
        "_partial",
        "_received",
        "_sent",
        "_serves_adapter",
        "_shares_trace",
        "keeps_response",
        "listeners",
        "measures",
        "reads_request",
        "required",
        "shows_partial",
        "wants_chunk_text",
        "wants_chunks",
    )

    def __init__(self, listeners: Iterable[Listener]) -> None:
        self.listeners = tuple(listeners)
        self._sent = _hooks(self.listeners, "on_request_sent")
        self._chunk = _hooks(self.listeners, "on_stream_chunk")
        self._received = _hooks(self.listeners, "on_response_received")
        self._error = _hooks(self.listeners, "on_error")
        self._partial: list[Any] = [one.callback for one in self.listeners if one.trusted and one.content == "lazy"]
        self.shows_partial = bool(self._partial)
        self.reads_request = any(level != "none" for _, level, _ in self._sent)
        self.keeps_response = any(level != "none" for _, level, _ in self._received)
        self.wants_chunks = bool(self._chunk)
        self.wants_chunk_text = any(level == "full" for _, level, _ in self._chunk)
        users = [listener for listener in self.listeners if not listener.trusted]
        self.measures = any(_has_hook(user, "on_request_sent") for user in users)
        self._shares_trace = bool(users)
        self._serves_adapter = len(self.listeners) == 1 and not users
        self._idle = _idle_check(self.listeners)
        required = [listener for listener in self.listeners if listener.required]
        self.required: Dispatcher | None = self if len(required) == len(self.listeners) else None
        if required and self.required is None:
            self.required = Dispatcher(required)

    def is_idle(self) -> bool:
        """True if nobody would notice the call: no callbacks, or only an adapter without a configured SDK."""
        return self._idle is not None and self._idle()

    def request_sent(self, metadata: RequestMetadata, content: Payload | None, held: Held) -> bool:
        """Tell of a request; add to *held* the context managers to hold open while it is in flight.

        Returns:
            False if nobody has use for the end: there is only the adapter, and it keeps neither span nor metrics.
        """
        for hook, level, trusted in self._sent:
            manager = hook(metadata, "" if level == "none" or content is None else content.at(level))
            if manager is not None and hasattr(manager, "__enter__") and enter(manager, protect=not trusted):
                held.append(manager)
                if trusted and self._shares_trace and (trace_id := getattr(manager, "trace_id", None)) is not None:
                    _set_trace(metadata, trace_id, getattr(manager, "span_id", None))
        return not (self._serves_adapter and held and not getattr(held[0], "awaits_end", True))

    def stream_chunk(self, chunk: StreamChunk, bare: StreamChunk, index: int) -> None:
        """Tell of a chunk; *bare* is the same without its text.

        Only ``full`` sees text: what a redactor looks for may be split over two chunks.
        """
        for hook, level, _ in self._chunk:
            hook(chunk if level == "full" else bare, index)

    def response_received(self, metadata: ResponseMetadata, content: Payload | None) -> None:
        """Tell of the end of a call that did not fail."""
        for hook, level, _ in self._received:
            hook(metadata, "" if level == "none" or content is None else content.at(level))

    def error(self, error: BaseException, context: ErrorContext, content: Payload | None = None) -> None:
        """Tell of a failure; *content* is what had arrived, for the adapter alone: ``on_error`` takes none."""
        for adapter in self._partial if content is not None else ():
            adapter.keep_partial(context.request.call_id, content)
        for hook, _, _ in self._error:
            hook(error, context)


def release(held: Held, error: BaseException | None) -> None:
    """Leave context managers in reverse order; what they return or raise changes nothing for the caller."""
    while held:
        manager = held.pop()
        token = running_hook.set(True)
        try:
            manager.__exit__(type(error) if error is not None else None, error, None)
        except Exception as failure:  # noqa: BLE001 - a callback's context manager must not reach the caller
            _faults.report("release", failure, "a callback's context manager failed on exit")
        finally:
            running_hook.reset(token)


def guard(hook: Hook, name: str, counters: Counters, *, protect: bool) -> Hook:
    """Return *hook* made harmless: what it raises is logged and counted.

    With *protect*, calls to the API made inside the hook are not observed.
    """
    if not protect:

        def run(first: Any, second: Any) -> Any:
            try:
                result = hook(first, second)
            except Exception as error:  # noqa: BLE001 - the one place where hooks may fail
                _failed(error, name, counters)
                return None
            counters.delivered += 1
            return result

        return run

    def run_protected(first: Any, second: Any) -> Any:
        token = running_hook.set(True)
        try:
            result = hook(first, second)
            if inspect.iscoroutine(result):
                _refuse(result)
        except Exception as error:  # noqa: BLE001 - the one place where hooks may fail
            _failed(error, name, counters)
            return None
        finally:
            running_hook.reset(token)
        counters.delivered += 1
        return result

    return run_protected


def _refuse(coroutine: Coroutine[Any, Any, Any]) -> None:
    coroutine.close()
    raise TypeError("the hook returned a coroutine; declare it 'async def' and use delivery='queued'")


def _failed(error: BaseException, name: str, counters: Counters) -> None:
    counters.failed += 1
    _faults.log_failure(error, f"callback {name} failed", first=counters.failed == 1)


def _hooks(listeners: Iterable[Listener], name: str) -> tuple[tuple[Hook, Level, bool], ...]:
    """Hook, content level and whether it is ours, of each listener that has the hook."""
    found = []
    for listener in listeners:
        if (hook := find_hook(listener.callback, name)) is not None:
            if not listener.queued:
                label = f"{name_of(listener.callback)}.{name}"
                hook = guard(hook, label, listener.counters, protect=not listener.trusted)
            level = listener.content if _has_hook(listener, name) else "none"
            found.append((hook, level, listener.trusted))
    return tuple(found)


def _has_hook(listener: Listener, name: str) -> bool:
    # A queue takes requests and ends to tell calls apart, and so do some filters; what counts is who reads them.
    hook = find_hook(listener.origin, name)
    return hook is not None and getattr(hook, "reads", True) is not False


def _idle_check(listeners: tuple[Listener, ...]) -> Callable[[], bool] | None:
    checks = [getattr(listener.callback, "is_idle", None) for listener in listeners]
    if not checks:
        return lambda: True
    return checks[0] if len(checks) == 1 and callable(checks[0]) else None


def enter(manager: AbstractContextManager[object], *, protect: bool = True) -> bool:
    """Enter a callback's context manager; False if it failed, which is reported."""
    token = running_hook.set(protect)
    try:
        manager.__enter__()
    except Exception as error:  # noqa: BLE001 - a callback's context manager must not reach the caller
        _faults.report("hold", error, "a callback's context manager failed on entry")
        return False
    finally:
        running_hook.reset(token)
    return True


def _set_trace(metadata: RequestMetadata, trace_id: str, span_id: str | None) -> None:
    # The adapter comes first and the span exists only once it has run; nobody else has seen the metadata yet.
    object.__setattr__(metadata, "trace_id", trace_id)
    object.__setattr__(metadata, "span_id", span_id)
