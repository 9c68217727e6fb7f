"""Switch observation on and off: settings become an adapter, callbacks and a patch."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as context_api
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.metrics import CallbackOptions, Observation
from wrapt import register_post_import_hook

from . import _background, _exchange, _faults
from ._others import find_wrappers
from ._registry import REGISTRY, Registration, make_listeners
from .config import Settings, load_object, load_settings, logger
from .protocol import HOOKS
from .telemetry import CallerSpan, OpenTelemetryCallback
from .telemetry import _names as n

if TYPE_CHECKING:
    from ._openai import Patch

OPENAI_REQUIREMENT = "openai >= 1.66"

# OpenTelemetry's own switch for "do not instrument what happens here": the name others may set, and the key it made.
_SUPPRESS_KEYS = ("suppress_instrumentation", getattr(context_api, "_SUPPRESS_INSTRUMENTATION_KEY", ""))

_switching = threading.RLock()

provider_sources: list[Callable[[], list[Any]]] = []
"""Where ``flush()`` finds providers besides those of ``instrument()``."""


class OpenAIInstrumentor(BaseInstrumentor):
    """The instrumentor that ``opentelemetry-instrument`` finds; ``instrument()`` and ``uninstrument()`` call it.

    ``instrument()`` takes the settings as keyword arguments. Without any, as ``opentelemetry-instrument`` calls it,
    what is wrong in the environment is logged; otherwise it raises.
    """

    def __init__(self) -> None:
        if not hasattr(self, "_active"):  # the base class makes one instance only and initialises it again and again
            self._active: _Active | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """The packages this instruments."""
        return (OPENAI_REQUIREMENT,)

    @property
    def active(self) -> _Active | None:
        """What is on, None while nothing is."""
        return self._active

    def _instrument(self, **kwargs: Any) -> None:
        strict = kwargs.pop("strict", None)
        kwargs.pop("auto_instrumentation_version", None)
        try:
            settings = load_settings(kwargs)
            callbacks = tuple(make_callback(callback) for callback in settings.callbacks)
            self._active = _Active(settings, callbacks)
        except (TypeError, ValueError) as error:
            if strict or kwargs:
                raise
            # Called by the wrapper: an exception from here would keep every other package from being instrumented.
            logger.error("not instrumented: %s", error)

    def _uninstrument(self, **_: Any) -> None:
        if self._active is not None:
            self._active.close()
            self._active = None


class _Active:
    """One span of time between ``instrument()`` and ``uninstrument()``."""

    def __init__(self, settings: Settings, callbacks: tuple[Any, ...]) -> None:
        _check(callbacks, settings)  # all of them before anything changes
        self.settings = settings
        self.patch: Patch | None = None
        self.adapter = make_adapter(settings) if settings.telemetry else None
        REGISTRY.set_up(settings, self.adapter or CallerSpan())
        self._own: list[Registration] = []
        self._others: set[str] = set()
        self._register(callbacks)
        self._closed = False
        self._undo = [_background.drain_at_exit(settings.exit_timeout)]
        if self.adapter is not None:
            # What is registered last runs first at exit: our drain must come before the shutdown of a later provider.
            self.adapter.on_new_provider = lambda: self._undo.append(_background.drain_at_exit(settings.exit_timeout))
            _observe_health(settings.meter_provider)
        if "openai" in sys.modules:
            self._patch()
        else:  # a program that never imports it must not pay for the import
            register_post_import_hook(lambda _module: self._patch(), "openai")

    def add(self, callbacks: Iterable[Any]) -> None:
        """Register further callbacks until ``close()``."""
        callbacks = tuple(callbacks)
        _check(callbacks, self.settings)
        self._register(callbacks)

    def _register(self, callbacks: tuple[Any, ...]) -> None:
        before = REGISTRY.registrations
        for callback in callbacks:
            REGISTRY.add(callback)
        self._own += [registration for registration in REGISTRY.registrations if registration not in before]

    def close(self) -> None:
        """Undo everything."""
        self._closed = True
        for undo in reversed(self._undo):
            undo()
        for registration in self._own:
            registration.remove()
        REGISTRY.set_up(None, None)

    def _patch(self) -> None:
        if self._closed or self.patch is not None:
            return
        try:
            from . import _openai

            seam = _openai.Seam(
                REGISTRY.dispatcher,
                is_suppressed,
                redactor=self.settings.redactor,
                hosts=self.settings.providers,
                include_usage=self.settings.include_usage,
                estimator=self.settings.usage_estimator,
                prices=self.settings.prices,
            )
            self._undo.append(REGISTRY.watch(lambda dispatcher: setattr(seam, "dispatcher", dispatcher)))
            self._warn_of_others()
            seam.on_first_call = self._warn_of_others  # by then those that come after us are there too
            self.patch = _openai.patch(seam)
        except Exception as error:  # noqa: BLE001 - this may run inside the program's own `import openai`
            _faults.report("patch", error, "this version of openai cannot be observed at all")
            return
        self._undo.append(self.patch.undo)
        if self.patch.missing:
            logger.warning(
                "this version of openai lacks %s; what depends on it is not observed", ", ".join(self.patch.missing)
            )

    def _warn_of_others(self) -> None:
        if self.adapter is None:
            return
        others = [name for name in find_wrappers() if name not in self._others]
        if others:
            self._others.update(others)
            logger.warning(
                "openai is wrapped by %s already; if that makes spans, each call has two: telemetry=False leaves those "
                "and keeps the callbacks",
                ", ".join(others),
            )


def _check(callbacks: tuple[Any, ...], settings: Settings) -> None:
    for callback in callbacks:
        make_listeners(callback, settings)


def is_suppressed() -> bool:
    """True while OpenTelemetry's own suppression is on."""
    context = context_api.get_current()
    return bool(context.get(_SUPPRESS_KEYS[0]) or context.get(_SUPPRESS_KEYS[1]))


def make_adapter(settings: Settings) -> OpenTelemetryCallback:
    """Return the adapter that *settings* describe."""
    from .content import Gate

    return OpenTelemetryCallback(
        tracer_provider=settings.tracer_provider,
        meter_provider=settings.meter_provider,
        logger_provider=settings.logger_provider,
        gate=Gate(
            settings.capture_content,
            settings.error_text,
            settings.content_limit,
            settings.redactor,
            settings.tool_details,
        ),
        metrics=settings.metrics,
        chunk_timing=settings.chunk_timing,
        chunk_events=settings.chunk_events,
        exceptions=settings.exceptions,
        emit_event=settings.emit_event,
    )


def make_callback(given: Any) -> Any:
    """The callback itself, or what ``module:object`` names: a class or a factory function is called."""
    if not isinstance(given, str):
        return given
    found = load_object(given)
    if not isinstance(found, type) and (not callable(found) or any(hasattr(found, hook) for hook in HOOKS)):
        return found
    try:
        return found()
    except Exception as error:
        raise ValueError(f"{given!r} cannot be made into a callback: {type(error).__name__}") from error


def instrument(*callbacks: Any, **settings: Any) -> None:
    """Observe every ``openai`` client of this process, those that exist already included.

    Called again, it adds the callbacks it is given and leaves the settings as they are. It starts no thread, opens no
    socket and sets no provider; ``openai`` is patched when it is imported.

    Args:
        callbacks: Objects with at least one hook of :class:`TelemetryCallback`.
        settings: See the table in the README; each is also an environment variable.

    Raises:
        TypeError: A callback is none, has a misspelt hook, or a setting does not exist.
        ValueError: A value is not allowed; the message names what is.
    """
    instrumentor = OpenAIInstrumentor()
    with _switching:
        if instrumentor.active is None:
            given = settings.pop("callbacks", None)
            named = () if given is None else load_settings({"callbacks": given}, environment={}).callbacks
            if callbacks or named:
                settings["callbacks"] = (*callbacks, *(named or load_settings().callbacks))
            instrumentor.instrument(strict=True, **settings)
            return
        load_settings(settings)
        if settings:
            logger.warning("already instrumented; these settings change nothing: %s", ", ".join(sorted(settings)))
        instrumentor.active.add(callbacks)


def uninstrument() -> None:
    """Put the original attributes back and forget the callbacks ``instrument()`` was given. Idempotent.

    Calls under way are still told to their end, and what is queued is delivered.
    """
    instrumentor = OpenAIInstrumentor()
    with _switching:
        if instrumentor.active is not None:
            instrumentor.uninstrument()


def flush(timeout: float = 5.0) -> bool:
    """Deliver what is queued now and have the providers export.

    It drains the whole process: call it at the end of a task or before a freeze, not once per request.

    Args:
        timeout: Seconds at most.

    Returns:
        False if not all was done in time; what is left goes on in the background. A hook does not wait for the queue
        that it is itself delivered by.
    """
    return _flush(timeout, threading.current_thread())


async def aflush(timeout: float = 5.0) -> bool:
    """``flush()`` that leaves the event loop free."""
    import asyncio

    return await asyncio.to_thread(_flush, timeout, threading.current_thread())


def _flush(timeout: float, caller: threading.Thread) -> bool:
    deadline = time.monotonic() + timeout
    _exchange.sweep()
    delivered = _background.flush(timeout, caller)
    return _force_flush(deadline) and delivered


def shutdown(timeout: float = 5.0) -> bool:
    """``uninstrument()`` and ``flush()``: the end of observation; the providers stay usable.

    Returns:
        False if not all was delivered in *timeout* seconds.
    """
    deadline = time.monotonic() + timeout
    active = OpenAIInstrumentor().active
    providers = _providers(active)
    _exchange.sweep()
    delivered = _background.flush(timeout)
    uninstrument()
    return _force_flush(deadline, providers) and delivered


def _providers(active: _Active | None) -> list[Any]:
    found = [provider for source in provider_sources for provider in source()]
    if active is not None and active.adapter is not None:
        settings = active.settings
        found += [
            settings.tracer_provider or trace.get_tracer_provider(),
            settings.meter_provider or metrics.get_meter_provider(),
            *([settings.logger_provider] if settings.logger_provider is not None else []),
        ]
    return list({id(provider): provider for provider in found}.values())


def _force_flush(deadline: float, providers: list[Any] | None = None) -> bool:
    """Flush the providers, on a thread of its own: the SDK's time limits do not hold while an endpoint hangs."""
    providers = _providers(OpenAIInstrumentor().active) if providers is None else providers
    flushes = [flush for provider in providers for flush in _flushes(provider)]
    return not flushes or _ProviderFlush.start(flushes).wait(max(0.0, deadline - time.monotonic()))


def _flushes(provider: Any) -> list[Callable[[], Any]]:
    """Return what flushes *provider*, without readers that are scraped.

    Those have nothing to send, and Prometheus' would list everything twice in its next answer.
    """
    readers = readers_of(provider)
    pushing = [reader for reader in readers if not type(reader).__module__.startswith(_SCRAPED)]
    if len(pushing) < len(readers):
        return [reader.force_flush for reader in pushing]
    return [provider.force_flush] if hasattr(provider, "force_flush") else []


def readers_of(provider: object) -> tuple[Any, ...]:
    """Return the metric readers of *provider*, where an attribute of the SDK leads to them."""
    config = getattr(provider, "_sdk_config", None)
    readers = getattr(provider, "_metric_readers", None) or getattr(config, "metric_readers", None)  # SDK 1.45, earlier
    return tuple(readers or ())


class _ProviderFlush:
    """One flush of the providers; while it hangs, later ones wait for it instead of adding threads."""

    _lock = threading.Lock()
    _running: _ProviderFlush | None = None

    def __init__(self, flushes: list[Callable[[], Any]]) -> None:
        self._flushes = flushes
        self._thread = threading.Thread(target=self._run, name="otel-llm-callback-flush", daemon=True)
        self._done = threading.Event()
        self._well = True

    @classmethod
    def start(cls, flushes: list[Callable[[], Any]]) -> _ProviderFlush:
        """Return the flush under way, or a new one."""
        with cls._lock:
            if cls._running is not None and cls._running.is_alive:
                return cls._running
            cls._running = flush = cls(flushes)
            try:
                flush._thread.start()
            except RuntimeError:  # the interpreter is shutting down; the SDK has its own exit
                flush._well = False
                flush._done.set()
            return flush

    @property
    def is_alive(self) -> bool:
        """Whether its thread is at work; a forked child has none."""
        return self._thread.is_alive()

    def wait(self, timeout_s: float) -> bool:
        """True if all was flushed well within *timeout_s*."""
        done = self._done.wait(timeout_s)
        return done and self._well

    def _run(self) -> None:
        for force_flush in self._flushes:
            try:
                self._well = force_flush() is not False and self._well
            except Exception:  # noqa: BLE001 - an exporter's trouble is the SDK's to report
                self._well = False
        self._done.set()


_SCRAPED: Final = "opentelemetry.exporter.prometheus"
_healthy: weakref.WeakSet[Any] = weakref.WeakSet()


def _observe_health(meter_provider: Any) -> None:
    """Report our own deliveries and failures on the meter, once per provider."""
    known = meter_provider or _observe_health  # the function stands for the global provider
    if known in _healthy:
        return
    _healthy.add(known)
    meter = metrics.get_meter(n.SCOPE, "", meter_provider, n.SCHEMA_URL)
    meter.create_observable_counter(
        n.CALLBACK_EVENTS, [_count_events], unit="{event}", description="Events by callback and what became of them."
    )
    meter.create_observable_counter(
        n.INSTRUMENTATION_ERRORS, [_count_errors], unit="{error}", description="Failures inside the instrumentation."
    )


def _count_events(_: CallbackOptions) -> Iterable[Observation]:
    totals: dict[tuple[str, str], int] = {}
    counted = [*((r.name, r) for r in REGISTRY.registrations), *REGISTRY.removed.items()]
    for name, counters in counted:
        for result in ("delivered", "failed", "dropped"):
            totals[name, result] = totals.get((name, result), 0) + int(getattr(counters, result))
    return [
        Observation(total, {n.CALLBACK_NAME: name, n.CALLBACK_RESULT: result})
        for (name, result), total in totals.items()
    ]


def _count_errors(_: CallbackOptions) -> Iterable[Observation]:
    return [Observation(count, {n.ERROR_STAGE: stage}) for stage, count in _faults.counts().items()]


def registrations() -> tuple[Registration, ...]:
    """All registered callbacks."""
    return REGISTRY.registrations
