"""Observe one client only: what ``instrument()`` does to the classes, done to an object and the copies made of it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

from opentelemetry import metrics, trace

from . import _background, _faults
from ._dispatch import Dispatcher, Listener
from ._registry import REGISTRY, adapter_listener, make_listeners, scoped_worker
from ._scope import in_order
from .config import NULLABLE, Settings, load_settings
from .instrumentor import is_suppressed, make_adapter, make_callback, provider_sources
from .telemetry import CallerSpan, OpenTelemetryCallback

_ATTRIBUTE: Final = "_otel_llm_callback"

_OF_THE_ADAPTER: Final = frozenset(
    (
        "telemetry",
        "tracer_provider",
        "meter_provider",
        "logger_provider",
        "capture_content",
        "error_text",
        "tool_details",
        "content_limit",
        "redactor",
        "metrics",
        "chunk_timing",
        "chunk_events",
        "exceptions",
        "emit_event",
    )
)
"""Settings that say how spans and metrics are made; one of them given to a client gives it an adapter of its own."""


class ClientRegistration:
    """What `instrument_client` returns; ``remove()`` undoes it. Counts are of events, not of calls."""

    def __init__(self, callbacks: Iterable[Any], given: dict[str, Any]) -> None:
        checked = load_settings(given)
        named = [name for name, value in given.items() if value is not None or name in NULLABLE]
        self._given = {name: getattr(checked, name) for name in named}
        self._base = REGISTRY.settings
        self.decides = not _OF_THE_ADAPTER.isdisjoint(named)
        settings = self.settings
        made = [make_listeners(callback, settings, worker_of=scoped_worker) for callback in callbacks]
        self.listeners: tuple[Listener, ...] = tuple(listener for listeners in made for listener in listeners)
        self.parts: weakref.WeakSet[_Part] = weakref.WeakSet()
        if self.decides:
            _ = self.adapter  # what is wrong with a provider must be said before anything has changed

    @property
    def settings(self) -> Settings:
        """What was given to the client, over what is in force globally or else was at the start."""
        return replace(REGISTRY.in_force or self._base, **self._given)

    @cached_property
    def adapter(self) -> Listener:
        """The client's own adapter, made only if it is needed."""
        return adapter_listener(make_adapter(self.settings) if self.settings.telemetry else CallerSpan())

    @property
    def delivered(self) -> int:
        """Events its hooks took."""
        return sum(listener.counters.delivered for listener in self.listeners)

    @property
    def failed(self) -> int:
        """Events on which a hook raised."""
        return sum(listener.counters.failed for listener in self.listeners)

    @property
    def dropped(self) -> int:
        """Events left out because the queue was full."""
        return sum(listener.counters.dropped for listener in self.listeners)

    def remove(self) -> None:
        """Put the client and its copies back as they were; calls under way are still told. Idempotent."""
        with _state.lock:
            for part in list(self.parts):
                part.drop(self)

    def __repr__(self) -> str:
        return f"<ClientRegistration of {len(self.listeners)} callbacks: {self.delivered} delivered>"


class _Part:
    """What is known of one client; it lives as long as the client does."""

    def __init__(self, client: Any, registrations: Iterable[ClientRegistration]) -> None:
        from . import _openai

        self.registrations = list(registrations)
        self._client = client
        self._seam = _openai.Seam(self._dispatcher(), is_suppressed)
        self._take_up_settings()
        self._undo = _openai.patch_client(self._seam, client, self._copied)
        vars(client)[_ATTRIBUTE] = self
        self._join(self.registrations)
        _state.parts.add(self)

    def add(self, registration: ClientRegistration) -> None:
        """Tell the callbacks of one more registration."""
        self.registrations.append(registration)
        self._join([registration])
        self.refresh()

    def drop(self, registration: ClientRegistration) -> None:
        """Forget *registration*; with the last one the client gets its attributes back."""
        registration.parts.discard(self)
        self.registrations.remove(registration)
        if self.registrations:
            self.refresh()
            return
        _state.parts.discard(self)
        vars(self._client).pop(_ATTRIBUTE, None)
        self._undo()

    def refresh(self) -> None:
        """Take up what has changed, here or globally."""
        self._take_up_settings()
        self._seam.endpoints.clear()
        self._seam.dispatcher = self._dispatcher()

    def _take_up_settings(self) -> None:
        latest, seam = self.registrations[-1].settings, self._seam
        seam.redactor, seam.hosts = latest.redactor, latest.providers
        seam.include_usage, seam.estimator = latest.include_usage, latest.usage_estimator
        seam.prices = latest.prices

    def _join(self, registrations: Iterable[ClientRegistration]) -> None:
        for registration in registrations:
            registration.parts.add(self)

    def _dispatcher(self) -> Dispatcher:
        shared = REGISTRY.adapter
        decides = next((one for one in reversed(self.registrations) if one.decides), None)
        adapter = self.registrations[-1].adapter if decides is None and shared is None else shared
        own = [listener for one in self.registrations for listener in one.listeners]
        others = [listener for listener in REGISTRY.dispatcher.listeners if listener is not shared]
        # The client's own come first, but nothing given to a client makes optional what is required of the process.
        users = sorted((*own, *others), key=lambda listener: not listener.required)
        once: dict[int, Listener] = {}
        for listener in (adapter if decides is None else decides.adapter, *users):
            if listener is not None:
                once.setdefault(id(listener.origin), listener)
        return in_order(once.values())

    def _copied(self, client: Any) -> None:
        try:
            with _state.lock:
                if self.registrations and _ATTRIBUTE not in vars(client):
                    _Part(client, self.registrations)
        except Exception as error:  # noqa: BLE001 - SDK objects of any version pass here
            _faults.report("copy", error, "the copy of a client is not observed")


class _State:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.parts: weakref.WeakSet[_Part] = weakref.WeakSet()

    def refresh(self, _: Dispatcher) -> None:
        """Callbacks were registered or removed globally."""
        with self.lock:
            for part in list(self.parts):
                part.refresh()

    def forget_parent(self) -> None:
        """After a fork: another thread's lock and the parent's calls are of no use here."""
        self.lock = threading.RLock()
        for registration in self._registrations():
            adapter = vars(registration).get("adapter")
            if adapter is not None and isinstance(adapter.callback, OpenTelemetryCallback):
                adapter.callback.forget()

    def providers(self) -> list[Any]:
        """The providers behind the adapters that clients have of their own."""
        with self.lock:
            settings = [one.settings for one in self._registrations() if "adapter" in vars(one)]
        found: list[Any] = []
        for one in settings:
            if one.telemetry:
                found.append(one.tracer_provider or trace.get_tracer_provider())
                found.append(one.meter_provider or metrics.get_meter_provider())
                found += [one.logger_provider] if one.logger_provider is not None else []
        return found

    def _registrations(self) -> Iterator[ClientRegistration]:
        return iter({one: None for part in list(self.parts) for one in part.registrations})

    def registrations(self) -> list[ClientRegistration]:
        """Those of the clients that are still there."""
        with self.lock:
            return list(self._registrations())


_state: Final = _State()
REGISTRY.watch(_state.refresh)
provider_sources.append(_state.providers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.forget_parent)


def instrument_client(client: Any, *callbacks: Any, **settings: Any) -> ClientRegistration:
    """Observe one ``openai`` client, and the clients made from it by ``with_options()`` or ``copy()`` from now on.

    It works with and without ``instrument()``; realtime connections alone need that. With it, the client's callbacks
    are told before the global ones and each callback once; settings that are not given are the global ones, and there
    is one span per call. A setting of telemetry given here, such as ``tracer_provider`` or ``telemetry=False``, decides
    for this client. Called again for the same client, it adds callbacks.

    Args:
        client: An ``OpenAI`` or ``AsyncOpenAI`` object, or one of a subclass such as ``AzureOpenAI``.
        callbacks: Objects with at least one hook of :class:`TelemetryCallback`.
        settings: Those of ``instrument()``. ``exit_timeout`` holds only while nothing is instrumented globally;
            ``configure`` changes nothing here.

    Returns:
        A handle whose ``remove()`` puts the client back as it was, its copies included.

    Raises:
        TypeError: *client* is no client, a callback is none or has a misspelt hook, or a setting does not exist.
        ValueError: A value is not allowed; the message names what is.
    """
    named = load_settings({"callbacks": settings.pop("callbacks", None)}, environment={}).callbacks
    registration = ClientRegistration((*callbacks, *map(make_callback, named)), settings)
    with _state.lock:
        part = getattr(client, "__dict__", {}).get(_ATTRIBUTE)
        if part is None:
            _start(client, registration)
        else:
            part.add(registration)
    if REGISTRY.adapter is None:
        _background.drain_at_exit(registration.settings.exit_timeout)
    return registration


def client_registrations() -> list[ClientRegistration]:
    """Return what is registered for clients that are still there."""
    return _state.registrations()


def _start(client: Any, registration: ClientRegistration) -> None:
    try:
        _Part(client, [registration])
    except ImportError:  # without openai there is no client
        raise TypeError(f"{type(client).__name__} is no client; openai cannot be imported") from None
