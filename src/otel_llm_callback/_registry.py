"""The one registry: which callbacks there are, and the dispatcher they make up."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from ._background import Queued, Worker, queue_for
from ._dispatch import Counters, Dispatcher, Level, Listener
from ._scope import Block, Scope
from .callbacks.multi import MultiCallback
from .config import Settings, checked, load_settings, logger
from .content import Redactor
from .prices import PriceSource
from .protocol import (
    CONTENT_LEVELS,
    HOOKS,
    NO_OPTIONS,
    DeliveryOptions,
    check_callback,
    find_hook,
    is_async,
    lower_content,
    name_of,
    options_of,
)
from .telemetry import CallerSpan, OpenTelemetryCallback
from .types import Content, Delivery, Overflow


class Registration:
    """A registered callback; ``remove()`` undoes it. Counts are of events, not of calls."""

    def __init__(self, callback: object, options: DeliveryOptions, registry: Registry) -> None:
        self.callback = callback
        self.options = options
        self.listeners: tuple[Listener, ...] = ()
        self._registry = registry
        self._before = Counters()
        self._ways: tuple[_Way, ...] | None = None

    def remove(self) -> None:
        """Tell the callback of no further call; calls under way and what is queued are still told. Idempotent."""
        self._registry.remove(self)

    @property
    def name(self) -> str:
        """The callback's class, or what it calls itself."""
        return name_of(self.callback)

    @property
    def required(self) -> bool:
        """Whether it, or a part of it, is told even of suppressed calls."""
        return self.options.required or any(listener.required for listener in self.listeners)

    @property
    def delivery(self) -> Delivery:
        """How it is told."""
        return "queued" if any(listener.queued for listener in self.listeners) else "inline"

    @property
    def delivered(self) -> int:
        """Events its hooks took."""
        return self._before.delivered + sum(listener.counters.delivered for listener in self.listeners)

    @property
    def failed(self) -> int:
        """Events on which a hook raised."""
        return self._before.failed + sum(listener.counters.failed for listener in self.listeners)

    @property
    def dropped(self) -> int:
        """Events left out because the queue was full."""
        return self._before.dropped + sum(listener.counters.dropped for listener in self.listeners)

    @property
    def waiting(self) -> int:
        """Events queued and not yet delivered."""
        workers = {listener.callback.worker for listener in self.listeners if isinstance(listener.callback, Queued)}
        return sum(worker.waiting for worker in workers)

    def apply(self, settings: Settings) -> None:
        """Take up *settings*; what was queued before is still delivered.

        Raises:
            ValueError: The callback cannot be delivered to in this way.
        """
        parts = tuple(_parts(self.callback, settings, self.options))
        ways = tuple(part.way for part in parts)
        if ways == self._ways:  # a second queue could overtake the first
            self.listeners = tuple(
                listener
                if listener.trusted
                else replace(listener, content=_content_level(listener.origin, part.settings))
                for listener, part in zip(self.listeners, parts, strict=True)
            )
            return
        listeners = tuple(_make_listener(part, Worker) for part in parts)
        self.close()
        self._before = Counters(self.delivered, self.failed, self.dropped)
        self._ways = ways
        self.listeners = listeners

    def close(self) -> None:
        """Let the threads of its queues end once they are empty."""
        for listener in self.listeners:
            if isinstance(listener.callback, Queued):
                listener.callback.worker.close()

    def __repr__(self) -> str:
        return f"<Registration of {self.name}, {self.delivery}: {self.delivered} delivered>"


class Registry:
    """Callbacks in the order of their registration, and who must hear of a change."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._registrations: list[Registration] = []
        self._adapter: Listener | None = None
        self._watchers: list[Callable[[Dispatcher], None]] = []
        self._settings: Settings | None = None
        self.removed: dict[str, Counters] = {}
        self.dispatcher = Dispatcher(())

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """All registrations."""
        return tuple(self._registrations)

    @property
    def settings(self) -> Settings:
        """The settings in force; those of the environment while nothing is instrumented."""
        return self._settings or load_settings()

    @property
    def in_force(self) -> Settings | None:
        """The settings of ``instrument()``; None while nothing is instrumented."""
        return self._settings

    @property
    def redactor(self) -> Redactor | None:
        """The redactor in force; None while nothing is instrumented, and what is to be redacted is then withheld."""
        return None if self._settings is None else self._settings.redactor

    @property
    def prices(self) -> PriceSource | None:
        """The prices in force; None while nothing is instrumented."""
        return None if self._settings is None else self._settings.prices

    @property
    def adapter(self) -> Listener | None:
        """The adapter in force, or its stand-in; None while nothing is instrumented."""
        return self._adapter

    def set_up(self, settings: Settings | None, adapter: OpenTelemetryCallback | CallerSpan | None) -> None:
        """Put *settings* in force for all callbacks, and the adapter, or its stand-in, before them.

        Raises:
            ValueError: A registered callback cannot be delivered to as the settings say.
        """
        with self._lock:
            before, self._settings = self._settings, settings
            try:
                for registration in self._registrations:
                    registration.apply(self.settings)
            except ValueError:
                self._settings = before
                raise
            self._adapter = None if adapter is None else adapter_listener(adapter)
            self._rebuild()

    def watch(self, watcher: Callable[[Dispatcher], None]) -> Callable[[], None]:
        """Tell *watcher* of each new dispatcher, the present one included; returns what stops it."""
        with self._lock:
            self._watchers.append(watcher)
            watcher(self.dispatcher)

        def stop() -> None:
            with self._lock:
                if watcher in self._watchers:
                    self._watchers.remove(watcher)

        return stop

    def add(self, callback: Any, options: DeliveryOptions | None = None) -> Registration:
        """Register *callback*; the same object twice is one registration, unless other options are asked for."""
        with self._lock:
            for known in self._registrations:
                if known.callback is callback:
                    if options is not None and options != known.options:
                        raise ValueError(f"{known.name} is registered with other options; remove() it first")
                    return known
            registration = Registration(callback, options or NO_OPTIONS, self)
            registration.apply(self.settings)
            if isinstance(callback, OpenTelemetryCallback) and self._has_adapter():
                logger.warning("two OpenTelemetry adapters make two spans per call; telemetry=False leaves one")
            self._registrations.append(registration)
            self._rebuild()
            return registration

    def remove(self, registration: Registration) -> None:
        """Take *registration* out; its counts stay in ``removed``, by name."""
        with self._lock:
            if registration not in self._registrations:
                return
            self._registrations.remove(registration)
            registration.close()
            kept = self.removed.setdefault(registration.name, Counters())
            kept.delivered += registration.delivered
            kept.failed += registration.failed
            kept.dropped += registration.dropped
            self._rebuild()

    def forget_parent(self) -> None:
        """After a fork: a lock that another thread held, and calls that are the parent's, are of no use here."""
        self._lock = threading.RLock()
        if self._adapter is not None and isinstance(self._adapter.callback, OpenTelemetryCallback):
            self._adapter.callback.forget()

    def _has_adapter(self) -> bool:
        return self._adapter is not None and isinstance(self._adapter.callback, OpenTelemetryCallback)

    def _rebuild(self) -> None:
        listeners = [listener for registration in self._registrations for listener in registration.listeners]
        listeners.sort(key=lambda listener: not listener.required)
        adapter = [self._adapter] if self._adapter is not None else []
        self.dispatcher = Dispatcher([*adapter, *listeners])
        for watcher in self._watchers:
            watcher(self.dispatcher)


def adapter_listener(adapter: OpenTelemetryCallback | CallerSpan, *, required: bool = False) -> Listener:
    """Return the adapter, or its stand-in, as the dispatcher takes it."""
    level: Level = "lazy" if adapter.content == "lazy" else "none"
    return Listener(adapter, level, trusted=True, required=required)


_Way: TypeAlias = tuple[Delivery, Overflow, int]


@dataclass(frozen=True, slots=True)
class _Part:
    """One callback that is told by itself, with the settings as they hold for it."""

    callback: Any
    settings: Settings
    required: bool

    @property
    def way(self) -> _Way:
        """How it is told; if that changes it needs another queue."""
        return self.settings.delivery, self.settings.overflow, self.settings.queue_size


def make_listeners(
    callback: Any,
    settings: Settings,
    options: DeliveryOptions = NO_OPTIONS,
    *,
    worker_of: Callable[[int], Worker] = Worker,
) -> tuple[Listener, ...]:
    """Return *callback* as the dispatcher takes it: checked, taken apart if it is several, queued if it is to be.

    Args:
        callback: What a user gave.
        settings: Hold for what is not said otherwise.
        options: What was asked for at registration; wins over what the callback says itself.
        worker_of: Returns who delivers a queue of that size.

    Raises:
        TypeError: It is no callback.
        ValueError: It cannot be delivered to in this way, or an option is not allowed.
    """
    return tuple(_make_listener(part, worker_of) for part in _parts(callback, settings, options))


def _parts(
    callback: Any, settings: Settings, asked: DeliveryOptions, around: DeliveryOptions = NO_OPTIONS
) -> Iterator[_Part]:
    """Yield the parts of *callback*, itself if it is one; *around* is what says the one that holds it together."""
    own = _checked_options(options_of(callback)).over(around)
    if isinstance(callback, MultiCallback):
        for part in callback.callbacks:
            yield from _parts(part, settings, asked, own)
        return
    options = _checked_options(asked).over(own)
    yield _Part(callback, _applied(options, settings), options.required)


def _checked_options(options: DeliveryOptions) -> DeliveryOptions:
    if options == NO_OPTIONS:
        return options
    checked("telemetry", options.required, shown_as="required")
    asked = {"delivery": options.delivery, "overflow": options.overflow, "queue_size": options.queue_size}
    given = {name: checked(name, value) for name, value in asked.items() if value is not None}
    if options.content is not None:
        given["content"] = checked("callback_content", options.content, shown_as="content")
    return replace(options, **given)


def _applied(options: DeliveryOptions, settings: Settings) -> Settings:
    asked = {"delivery": options.delivery, "overflow": options.overflow, "queue_size": options.queue_size}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if options.content is not None:
        given["callback_content"] = lower_content(options.content, settings.callback_content)
    return replace(settings, **given) if given else settings


def _make_listener(part: _Part, worker_of: Callable[[int], Worker]) -> Listener:
    callback, settings = part.callback, part.settings
    if isinstance(callback, OpenTelemetryCallback):
        return adapter_listener(callback, required=part.required)
    check_callback(callback)
    level = _content_level(callback, settings)
    counters = Counters()
    if settings.delivery == "inline":
        _check_inline(callback)
        return Listener(callback, level, counters, required=part.required)
    queued = queue_for(callback, worker_of(settings.queue_size), settings.overflow, counters)
    return Listener(queued, level, counters, queued=True, required=part.required)


def _content_level(callback: object, settings: Settings) -> Level:
    """How much content *callback* is given: what it declares, and no more than the settings allow."""
    declared: Content = getattr(callback, "content", "full")
    return min(declared, settings.callback_content, key=CONTENT_LEVELS.index)


def _check_inline(callback: Any) -> None:
    name = name_of(callback)
    asynchronous = [hook for hook in HOOKS if (found := find_hook(callback, hook)) is not None and is_async(found)]
    if asynchronous:
        raise ValueError(f"{name}.{asynchronous[0]} is 'async def' and cannot be delivered 'inline'; allowed: 'queued'")
    if getattr(callback, "needs_queue", False) is True:
        raise ValueError(f"{name} holds calls back and cannot be delivered 'inline'; allowed: 'queued'")


REGISTRY: Final = Registry()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=REGISTRY.forget_parent)

_scoped: dict[int, Worker] = {}


def register(
    callback: Any,
    *,
    delivery: Delivery | None = None,
    overflow: Overflow | None = None,
    queue_size: int | None = None,
    required: bool = False,
    content: Content | None = None,
) -> Registration:
    """Tell *callback* of every call from now on, whether or not ``instrument()`` was called before.

    What is None here is as the callback's own ``delivery_options`` say, and then as the settings do.

    Args:
        callback: An object with at least one hook.
        delivery: ``queued`` or ``inline``.
        overflow: What gives way when its queue is full: ``drop_chunks``, ``drop_new`` or ``block``.
        queue_size: Events its queue holds.
        required: It is told even of calls inside ``suppress()``.
        content: ``redacted`` or ``none`` gives it less content than it declares; nothing here gives it more.

    Returns:
        A handle that undoes the registration. The same object twice gives the same handle.

    Raises:
        TypeError: It is no callback.
        ValueError: A value is not allowed, or the object is registered already with other options.
    """
    options = DeliveryOptions(
        delivery=delivery, overflow=overflow, queue_size=queue_size, required=required, content=content
    )
    return REGISTRY.add(callback, options)


class using(Block):  # noqa: N801 - used like a function
    """Tell further callbacks of the calls made inside the block.

    They are told before those registered globally. All queued callbacks of all blocks share one thread, so that a block
    per request costs none.

    Args:
        callbacks: Objects with at least one hook.
        delivery: ``queued`` or ``inline``; None for what each says itself, and then the setting.

    Raises:
        TypeError: One of them is no callback.
        ValueError: One of them cannot be delivered to in this way.
    """

    def __init__(self, *callbacks: Any, delivery: Delivery | None = None) -> None:
        super().__init__()
        settings, options = REGISTRY.settings, DeliveryOptions(delivery=delivery)
        made = [make_listeners(callback, settings, options, worker_of=scoped_worker) for callback in callbacks]
        self._listeners = tuple(listener for listeners in made for listener in listeners)

    def _change(self, scope: Scope) -> Scope:
        return replace(scope, listeners=(*self._listeners, *scope.listeners))


def scoped_worker(size: int) -> Worker:
    """Return the worker that blocks and clients share, so that one of them per request costs no thread."""
    worker = _scoped.get(size)
    if worker is None:
        worker = _scoped[size] = Worker(size)
    return worker
