"""Set the OpenTelemetry SDK up for a program that has none. Opt-in; nothing else in this package sets a provider."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

from . import _exchange
from ._background import exit_deadline
from .config import logger

_EXIT_DEADLINE_S: Final = 3.0
_LEAST_S: Final = 1.0

_INSTANCE: Final = "service.instance.id"
_PROMETHEUS_HOST: Final = "OTEL_EXPORTER_PROMETHEUS_HOST"
_PROMETHEUS_PORT: Final = "OTEL_EXPORTER_PROMETHEUS_PORT"


def configure(*, service_name: str | None = None, exit_timeout: float = _EXIT_DEADLINE_S) -> bool:
    """Set global tracer and meter providers that export over OTLP, as the standard ``OTEL_…`` variables say.

    Read are ``OTEL_SDK_DISABLED``, ``OTEL_TRACES_EXPORTER`` and ``OTEL_METRICS_EXPORTER`` (``otlp``, ``console`` or
    ``none``, or several separated by commas; of metrics also ``prometheus``, which serves them on
    ``OTEL_EXPORTER_PROMETHEUS_HOST`` and ``…_PORT``, ``localhost`` and 9464 by default),
    ``OTEL_EXPORTER_OTLP_PROTOCOL`` and its per-signal forms (``http/protobuf`` or ``grpc``), and whatever the SDK and
    its exporters read on their own. The exit of the program waits at most *exit_timeout* seconds for an
    endpoint that does not answer, the time callbacks took included, though never less than one second. Each process
    gets a ``service.instance.id`` of its own if ``OTEL_RESOURCE_ATTRIBUTES`` does not say one.

    Args:
        service_name: ``service.name`` where ``OTEL_SERVICE_NAME`` does not say it.
        exit_timeout: Seconds.

    Returns:
        False if providers are set already, or the SDK is disabled; nothing has changed then.

    Raises:
        ImportError: The SDK or the exporter is not installed; the message names the extra.
        OSError: The address for Prometheus is taken, by another process of the program perhaps.
        ValueError: A variable names an exporter or protocol that is not known.
    """
    from opentelemetry import metrics, trace

    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    present = (trace.get_tracer_provider(), metrics.get_meter_provider())
    if not all(type(one).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics")) for one in present):
        return False
    try:
        providers = _build(service_name)
    except ImportError as error:
        extra = "prometheus" if "prometheus" in str(error.name) else "otlp"
        raise ImportError(
            f"{error.name} is missing; pip install 'otel-llm-callback[{extra}]'", name=error.name
        ) from error
    trace.set_tracer_provider(providers[0])
    metrics.set_meter_provider(providers[1])
    _Closer([provider.shutdown for provider in providers], exit_timeout)
    return True


def _build(service_name: str | None) -> tuple[Any, Any]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    named = service_name is not None and not os.environ.get("OTEL_SERVICE_NAME")
    resource = Resource.create({"service.name": service_name} if named and service_name else {})
    if (
        _INSTANCE not in resource.attributes
    ):  # newer SDKs make one up; without it two processes overwrite each other's series
        resource = resource.merge(Resource({_INSTANCE: str(uuid.uuid4())}))
    wanted = {signal: _exporters(signal) for signal in ("traces", "metrics")}
    spans = [ConsoleSpanExporter() if name == "console" else _otlp("traces") for name in wanted["traces"]]
    pushed = [name for name in wanted["metrics"] if name != "prometheus"]
    points = [ConsoleMetricExporter() if name == "console" else _otlp("metrics") for name in pushed]
    scraped = [_prometheus()] if "prometheus" in wanted["metrics"] else []
    tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in spans:
        tracer_provider.add_span_processor(BatchSpanProcessor(exporter))
    readers = [*map(PeriodicExportingMetricReader, points), *scraped]
    return tracer_provider, MeterProvider(readers, resource=resource, shutdown_on_exit=False)


def _exporters(signal: str) -> list[str]:
    """Return what the variable of *signal* names, without ``none``."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    allowed = ("otlp", "console", "prometheus", "none") if signal == "metrics" else ("otlp", "console", "none")
    text = os.environ.get(variable, "").strip().lower() or "otlp"
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if wrong := [name for name in names if name not in allowed]:
        raise ValueError(f"{variable}={wrong[0]!r} is not allowed; allowed: {', '.join(map(repr, allowed))}")
    return [name for name in names if name != "none"]


def _prometheus() -> Any:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from prometheus_client import start_http_server

    host = os.environ.get(_PROMETHEUS_HOST, "").strip() or "localhost"
    port = os.environ.get(_PROMETHEUS_PORT, "").strip() or "9464"
    if not port.isdecimal():
        raise ValueError(f"{_PROMETHEUS_PORT}={port!r} is not allowed; allowed: a port number")
    try:
        start_http_server(int(port), addr=host)
    except OSError as error:
        raise OSError(
            error.errno, f"{host}:{port} cannot be served, see {_PROMETHEUS_PORT}: {error.strerror}"
        ) from error
    return PrometheusMetricReader()


def _otlp(signal: str) -> Any:
    variable = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL"
    general = "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = (os.environ.get(variable) or os.environ.get(general) or "http/protobuf").strip().lower()
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter() if signal == "traces" else OTLPMetricExporter()
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import metric_exporter, trace_exporter

        return trace_exporter.OTLPSpanExporter() if signal == "traces" else metric_exporter.OTLPMetricExporter()
    raise ValueError(f"{variable} or {general} is {protocol!r}; allowed: 'http/protobuf', 'grpc'")


class _Closer:
    """Shuts providers down at exit, for so long and no longer.

    An exporter that waits for a dead endpoint cannot be told to stop, so the shutting down is done by daemon threads
    that are left behind: one for each provider, so that one dead endpoint does not cost what goes to the other. They
    must exist before: the interpreter starts none once it exits.
    """

    def __init__(self, shutdowns: list[Callable[[], Any]], timeout_s: float) -> None:
        self._shutdowns = shutdowns
        self._timeout_s = timeout_s
        self._start()
        atexit.register(self._close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._start)

    def _start(self) -> None:
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(
                target=_close_when, args=(self._closing, shutdown), name="otel-llm-callback-exit", daemon=True
            )
            for shutdown in self._shutdowns
        ]
        for thread in self._threads:
            with contextlib.suppress(RuntimeError):  # a child forked where no thread can be had
                thread.start()

    def _close(self) -> None:
        deadline = max(exit_deadline(self._timeout_s), time.monotonic() + _LEAST_S)
        _exchange.end_streams()  # while their spans can still be exported
        self._closing.set()
        for thread in self._threads:
            with contextlib.suppress(RuntimeError):  # it was never started
                thread.join(max(0.0, deadline - time.monotonic()))


def _close_when(closing: threading.Event, shutdown: Callable[[], Any]) -> None:
    closing.wait()
    try:
        shutdown()
    except Exception as error:  # noqa: BLE001 - an exporter's trouble at exit is nobody's any more
        logger.debug("shutdown failed: %s", type(error).__name__)
