"""Fixtures that every test may ask for, and the rules that hold for every test whether it asks or not."""

from __future__ import annotations

import logging

import openai
import pytest
import schemas

import otel_llm_callback
from otel_llm_callback import _faults
from otel_llm_callback._client import client_registrations
from otel_llm_callback._registry import REGISTRY
from otel_llm_callback.testing import RecordingCallback, ScriptedServer, TelemetryCollector

_WATCHED = ("otel_llm_callback", "opentelemetry")


class _Reports(logging.Handler):
    """Keep what our logger and OpenTelemetry's report at WARNING and above."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture(autouse=True)
def reports():
    """What our logger and OpenTelemetry's said during the test, as log records."""
    handler = _Reports()
    _faults.forget()  # only the first failure of a kind is logged as an error
    for name in _WATCHED:
        logging.getLogger(name).addHandler(handler)
    yield handler.records
    for name in _WATCHED:
        logging.getLogger(name).removeHandler(handler)


@pytest.fixture(autouse=True)
def no_swallowed_errors(request, reports):
    """A test fails if an error was swallowed and only logged, unless it asks for `expected_logs`."""
    yield
    if "expected_logs" not in request.fixturenames:
        assert [f"{record.name}: {record.getMessage()}" for record in reports] == []


@pytest.fixture(autouse=True)
def uninstrumented(no_swallowed_errors):
    """Every test begins and ends with a client nobody has touched and no callbacks."""
    yield
    otel_llm_callback.uninstrument()
    for registration in (*REGISTRY.registrations, *client_registrations()):
        registration.remove()
    assert [name for name in ("request", "_process_response", "_calculate_retry_timeout") if _is_patched(name)] == []


def _is_patched(name):
    return any(hasattr(getattr(client, name), "__wrapped__") for client in (openai.OpenAI, openai.AsyncOpenAI))


@pytest.fixture
def expected_logs(reports):
    """What was logged at WARNING and above, for the test to check."""
    return reports


@pytest.fixture(autouse=True)
def quick_client(monkeypatch):
    """Spare the tests what takes the SDK time: certificates, 20 ms a client, and half a second before each retry."""
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *_, **__: None)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


@pytest.fixture
def server():
    """A fake API; set ``server.reply`` to script it."""
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(api_key="test-key", base_url=server.url) as client:
        yield client


@pytest.fixture
async def aclient(server):
    async with openai.AsyncOpenAI(api_key="test-key", base_url=server.url) as client:
        yield client


@pytest.fixture
def recorder():
    return RecordingCallback()


@pytest.fixture
def telemetry():
    """Spans and metrics; whatever messages the spans have at the end of the test are those of the conventions."""
    with TelemetryCollector() as collector:
        yield collector
        schemas.check_spans(collector.spans())


@pytest.fixture
def instrumented(recorder, telemetry):
    """The package at work: `recorder` is told inline, spans and metrics go to `telemetry`."""
    otel_llm_callback.instrument(
        recorder,
        delivery="inline",
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
    )
    yield
    otel_llm_callback.uninstrument()
