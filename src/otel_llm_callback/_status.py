"""Say what is observed, who is told, and where telemetry goes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry import metrics, trace

from . import _faults
from ._background import Queued
from ._client import client_registrations
from ._operations import OPERATIONS
from .instrumentor import OpenAIInstrumentor, readers_of, registrations


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackStatus:
    """One registered callback; counts are of events.

    Attributes:
        name: Its class.
        delivery: ``queued`` or ``inline``.
        required: Whether it is told even of suppressed calls.
        delivered: What its hooks took.
        failed: On which a hook raised.
        dropped: What was left out because the queue was full.
        waiting: In its queue; those of several clients share one.
        client_only: Whether it is told of the calls of some clients only, by ``instrument_client()``.
    """

    name: str
    delivery: str
    required: bool
    delivered: int
    failed: int
    dropped: int
    waiting: int
    client_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The state of observation in this process.

    Attributes:
        instrumented: Whether ``instrument()`` is in force.
        openai_version: None if ``openai`` is not imported yet.
        covered: SDK methods that are wrapped.
        missing: SDK methods that this version lacks; what depends on them is not observed.
        operations: API methods that are observed, as ``POST /path``.
        callbacks: The registered callbacks, first those that are told of all calls.
        errors: Failures inside the instrumentation, by stage.
        tracer_provider: Class of the tracer provider in use, None without telemetry.
        meter_provider: Class of the meter provider in use, None without telemetry.
        exporters: Classes of the exporters found behind the providers, as far as they can be seen.
    """

    instrumented: bool
    openai_version: str | None
    covered: tuple[str, ...]
    missing: tuple[str, ...]
    operations: tuple[str, ...]
    callbacks: tuple[CallbackStatus, ...]
    errors: Mapping[str, int]
    tracer_provider: str | None
    meter_provider: str | None
    exporters: tuple[str, ...]


def status() -> Status:
    """Return what is patched, registered, delivered, failed and dropped; safe to call at any time."""
    active = OpenAIInstrumentor().active
    patch = active.patch if active is not None else None
    providers: tuple[Any, ...] = ()
    if active is not None and active.adapter is not None:
        settings = active.settings
        providers = (
            settings.tracer_provider or trace.get_tracer_provider(),
            settings.meter_provider or metrics.get_meter_provider(),
        )
    openai = sys.modules.get("openai")
    return Status(
        instrumented=active is not None,
        openai_version=getattr(openai, "__version__", None),
        covered=patch.covered if patch is not None else (),
        missing=patch.missing if patch is not None else (),
        operations=tuple(OPERATIONS),
        callbacks=(*map(_callback_status, registrations()), *_client_callbacks()),
        errors=_faults.counts(),
        tracer_provider=type(providers[0]).__name__ if providers else None,
        meter_provider=type(providers[1]).__name__ if providers else None,
        exporters=tuple(name for provider in providers for name in exporters_of(provider)),
    )


def _callback_status(registration: Any) -> CallbackStatus:
    return CallbackStatus(
        name=registration.name,
        delivery=registration.delivery,
        required=registration.required,
        delivered=registration.delivered,
        failed=registration.failed,
        dropped=registration.dropped,
        waiting=registration.waiting,
    )


def _client_callbacks() -> list[CallbackStatus]:
    return [
        CallbackStatus(
            name=type(listener.origin).__name__,
            delivery="queued" if listener.queued else "inline",
            required=listener.required,
            delivered=listener.counters.delivered,
            failed=listener.counters.failed,
            dropped=listener.counters.dropped,
            waiting=listener.callback.worker.waiting if isinstance(listener.callback, Queued) else 0,
            client_only=True,
        )
        for registration in client_registrations()
        for listener in registration.listeners
    ]


def exporters_of(provider: object) -> list[str]:
    """Return classes of exporters, by name, and only where the SDK's present attributes lead to them."""
    processors = getattr(getattr(provider, "_active_span_processor", None), "_span_processors", ())
    found = []
    for holder in (*processors, *readers_of(provider)):
        batch = getattr(holder, "_batch_processor", holder)
        exporter = getattr(batch, "_exporter", None) or getattr(holder, "span_exporter", None)
        found.append(type(exporter).__name__ if exporter is not None else type(holder).__name__)
    return found
