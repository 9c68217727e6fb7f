"""The one registry: which callbacks there are, and the dispatcher they make up."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from ._background import Queued, Worker, is_async, queue_for
from ._dispatch import Counters, Dispatcher, Level, Listener
from ._scope import Block, Scope
from .callbacks.multi import MultiCallback
from .config import Delivery, Overflow, Settings, load_settings, logger
from .content import Redactor
from .protocol import HOOKS, check_callback, find_hook
from .telemetry import CallerSpan, OpenTelemetryCallback

_LEVELS: Final[tuple[Level, ...]] = ("none", "redacted", "full")


@dataclass(frozen=True, slots=True)
class Options:
    """How one callback asked to be told; None leaves it to the settings."""

    delivery: Delivery | None = None
    overflow: Overflow | None = None
    queue_size: int | None = None
    required: bool = False

    def apply(self, settings: Settings) -> Settings:
        """Return *settings* with what was asked for."""
        asked = {"delivery": self.delivery, "overflow": self.overflow, "queue_size": self.queue_size}
        given = {name: value for name, value in asked.items() if value is not None}
        if not given:
            return settings
        checked = load_settings(given, environment={})
        return replace(settings, **{name: getattr(checked, name) for name in given})


class Registration:
    """A registered callback; ``remove()`` undoes it. Counts are of events, not of calls."""

    def __init__(self, callback: object, options: Options, registry: Registry) -> None:
        self.callback = callback
        self.options = options
        self.listeners: tuple[Listener, ...] = ()
        self._registry = registry
        self._before = Counters()
        self._way: tuple[Delivery, Overflow, int] | None = None

    def remove(self) -> None:
        """Tell the callback of no further call; calls under way and what is queued are still told. Idempotent."""
        self._registry.remove(self)

    @property
    def name(self) -> str:
        """The callback's class."""
        return type(self.callback).__name__

    @property
    def required(self) -> bool:
        """Whether it is told even of suppressed calls."""
        return self.options.required

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
        settings = self.options.apply(settings)
        way = (settings.delivery, settings.overflow, settings.queue_size)
        if way == self._way:  # a second queue could overtake the first
            self.listeners = tuple(
                listener if listener.trusted else replace(listener, content=content_level(listener.origin, settings))
                for listener in self.listeners
            )
            return
        listeners = make_listeners(self.callback, settings, required=self.options.required)
        self.close()
        self._before = Counters(self.delivered, self.failed, self.dropped)
        self._way = way
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

    def add(self, callback: Any, options: Options | None = None) -> Registration:
        """Register *callback*; the same object twice is one registration, unless other options are asked for."""
        with self._lock:
            for known in self._registrations:
                if known.callback is callback:
                    if options is not None and options != known.options:
                        raise ValueError(f"{known.name} is registered with other options; remove() it first")
                    return known
            registration = Registration(callback, options or Options(), self)
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


def make_listeners(
    callback: Any, settings: Settings, *, required: bool = False, worker: Worker | None = None
) -> tuple[Listener, ...]:
    """Return *callback* as the dispatcher takes it: checked, taken apart if it is several, queued if it is to be.

    Raises:
        TypeError: It is no callback.
        ValueError: It cannot be delivered to in this way.
    """
    if isinstance(callback, MultiCallback):
        parts = [make_listeners(part, settings, required=required, worker=worker) for part in callback.callbacks]
        return tuple(listener for part in parts for listener in part)
    if isinstance(callback, OpenTelemetryCallback):
        return (adapter_listener(callback, required=required),)
    check_callback(callback)
    level = content_level(callback, settings)
    counters = Counters()
    if settings.delivery == "inline":
        _check_inline(callback)
        return (Listener(callback, level, counters, required=required),)
    queued = queue_for(callback, worker or Worker(settings.queue_size), settings.overflow, counters)
    return (Listener(queued, level, counters, queued=True, required=required),)


def content_level(callback: object, settings: Settings) -> Level:
    """How much content *callback* is given: what it declares, and no more than the settings allow."""
    declared: Level = getattr(callback, "content", "full")
    return min(declared, settings.callback_content, key=_LEVELS.index)


def _check_inline(callback: Any) -> None:
    asynchronous = [name for name in HOOKS if (hook := find_hook(callback, name)) is not None and is_async(hook)]
    if asynchronous:
        name = type(callback).__name__
        raise ValueError(f"{name}.{asynchronous[0]} is 'async def' and cannot be delivered 'inline'; allowed: 'queued'")


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
) -> Registration:
    """Tell *callback* of every call from now on, whether or not ``instrument()`` was called before.

    Args:
        callback: An object with at least one hook.
        delivery: ``queued`` or ``inline``; None for the setting.
        overflow: What gives way when its queue is full: ``drop_chunks``, ``drop_new`` or ``block``; None for the
            setting.
        queue_size: Events its queue holds; None for the setting.
        required: It is told even of calls inside ``suppress()``.

    Returns:
        A handle that undoes the registration. The same object twice gives the same handle.

    Raises:
        TypeError: It is no callback.
        ValueError: A value is not allowed, or the object is registered already with other options.
    """
    return REGISTRY.add(callback, Options(delivery, overflow, queue_size, required))


class using(Block):  # noqa: N801 - used like a function
    """Tell further callbacks of the calls made inside the block.

    They are told before those registered globally. All queued callbacks of all blocks share one thread, so that a block
    per request costs none.

    Args:
        callbacks: Objects with at least one hook.
        delivery: ``queued`` or ``inline``; None for the setting.

    Raises:
        TypeError: One of them is no callback.
        ValueError: One of them cannot be delivered to in this way.
    """

    def __init__(self, *callbacks: Any, delivery: Delivery | None = None) -> None:
        super().__init__()
        settings = Options(delivery).apply(REGISTRY.settings)
        worker = scoped_worker(settings.queue_size) if settings.delivery == "queued" else None
        made = [make_listeners(callback, settings, worker=worker) for callback in callbacks]
        self._listeners = tuple(listener for listeners in made for listener in listeners)

    def _change(self, scope: Scope) -> Scope:
        return replace(scope, listeners=(*self._listeners, *scope.listeners))


def scoped_worker(size: int) -> Worker:
    """Return the worker that blocks and clients share, so that one of them per request costs no thread."""
    worker = _scoped.get(size)
    if worker is None:
        worker = _scoped[size] = Worker(size)
    return worker
