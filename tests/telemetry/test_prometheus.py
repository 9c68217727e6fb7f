"""Prometheus without a collector: real scrapes over HTTP, the names that everything else uses, each listed once."""

from __future__ import annotations

import importlib.metadata
import socket
import urllib.request
from collections import Counter

import openai
import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from packaging import version
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from telemetry.prometheus_names import COST, FAMILIES, SCOPE_LABELS
from zero_code._program import WRAPPER, run, write
from zero_code._receiver import HttpReceiver

import otel_llm_callback
from otel_llm_callback import _faults
from otel_llm_callback.telemetry import _names
from otel_llm_callback.testing import (
    JsonReply,
    RecordingCallback,
    StreamReply,
    chat_chunks,
    chat_completion,
    error_body,
)

pytestmark = pytest.mark.skipif(
    version.parse(importlib.metadata.version("opentelemetry-exporter-prometheus")) < version.parse("0.64b0"),
    reason="older exporters list a family once for each set of labels",
)

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello."}]}
USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 50,
    "total_tokens": 150,
    "prompt_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 20},
    "completion_tokens_details": {"reasoning_tokens": 30},
}


class Endpoint:
    """A meter provider that is scraped."""

    def __init__(self, *others):
        registry = CollectorRegistry()
        self.provider = MeterProvider([PrometheusMetricReader(registry=registry), *others], shutdown_on_exit=False)
        self._server, self._thread = start_http_server(0, addr="127.0.0.1", registry=registry)
        self.url = f"http://127.0.0.1:{self._server.server_port}/metrics"

    def close(self):
        self.provider.shutdown()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def endpoint():
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


def scrape(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def families(text):
    """Name to labels, of each series; and no family is there twice."""
    parsed = list(text_string_to_metric_families(text))
    assert [name for name, count in Counter(family.name for family in parsed).items() if count > 1] == []
    found = {}
    for family in parsed:
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(set(sample.labels) - {"le"})
    return found


def expected(*prefixes):
    """The series of the table and their labels."""
    return {
        name: family.labels | SCOPE_LABELS
        for family in FAMILIES
        if family.name.startswith(prefixes)
        for name in family.series
    }


def ours(found):
    return {name: labels for name, labels in found.items() if name.startswith(("gen_ai_", "llm_callback_"))}


def make_calls(client, server):
    """One call of each kind that a metric or a label comes from, each repeated once."""
    failure = JsonReply(error_body("no"), status=400)
    answer = chat_completion("Hi", usage=USAGE)
    answer["service_tier"] = "flex"
    limits = {"x-ratelimit-limit-requests": "10", "x-ratelimit-remaining-requests": "9"}
    plain = JsonReply(answer, headers=limits)
    replies = {"bad": failure, "plain": plain, "stream": StreamReply(chat_chunks(["a", "b"], usage=None))}
    busy = JsonReply({}, 429, {"retry-after-ms": "1"})
    server.reply = lambda request: replies[request.json["model"]] if request.attempt else busy
    client.chat.completions.create(**{**ASKED, "model": "plain"})
    list(client.chat.completions.create(**{**ASKED, "model": "stream"}, stream=True))
    with client.chat.completions.create(**{**ASKED, "model": "stream"}, stream=True) as stream:
        next(iter(stream))
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**{**ASKED, "model": "bad"})


def test_a_scrape_has_the_names_of_the_table(client, server, endpoint):
    """All of ours and no other: names, suffixes and labels, of both metric families."""
    otel_llm_callback.instrument(
        RecordingCallback(), delivery="inline", meter_provider=endpoint.provider, metrics="both"
    )
    _faults.note("content", ValueError(), "an odd payload")
    make_calls(client, server)
    assert ours(families(scrape(endpoint.url))) == expected("gen_ai.", "llm_callback.")


def test_a_scrape_says_what_was_used(client, server, endpoint):
    otel_llm_callback.instrument(meter_provider=endpoint.provider)
    make_calls(client, server)
    samples = {
        (sample.name, sample.labels.get("gen_ai_token_type")): sample.value
        for family in text_string_to_metric_families(scrape(endpoint.url))
        for sample in family.samples
        if sample.name in {"gen_ai_client_token_usage_sum", "llm_callback_usage_missing_total"}
    }
    assert samples == {
        ("gen_ai_client_token_usage_sum", "input"): 100,
        ("gen_ai_client_token_usage_sum", "output"): 50,
        ("llm_callback_usage_missing_total", None): 1,
    }


def test_names_are_translated_as_the_table_says(endpoint):
    """Also those that are there only with some settings."""
    meter = endpoint.provider.get_meter("any")
    for family in (*FAMILIES, COST):
        if family.kind == "counter":
            meter.create_counter(family.name, unit=family.unit).add(1)
        elif family.kind == "gauge":
            meter.create_gauge(family.name, unit=family.unit).set(1)
        else:
            meter.create_histogram(family.name, unit=family.unit).record(1)
    assert set(ours(families(scrape(endpoint.url)))) == {name for family in (*FAMILIES, COST) for name in family.series}


def test_the_table_has_every_metric_there_is():
    """Whoever adds a metric to the names adds it to the table."""
    listed = {
        value
        for name, value in vars(_names).items()
        if name.isupper() and isinstance(value, str) and value.startswith("gen_ai.client.") and not value.endswith(".")
    } - {_names.LOG_OPERATION_DETAILS, _names.LOG_EXCEPTION}
    listed |= {_names.CALLBACK_EVENTS, _names.INSTRUMENTATION_ERRORS, _names.USAGE_MISSING, _names.USAGE_COST}
    listed |= {_names.NET_DURATION, _names.HEADROOM}
    assert listed - {family.name for family in (*FAMILIES, COST)} == set()


# --- flush() ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [otel_llm_callback.flush, otel_llm_callback.shutdown])
def test_a_flush_does_not_list_everything_twice(client, server, endpoint, end):
    """The reader keeps what a flush makes it collect and adds it to its next answer; so it is not flushed."""
    otel_llm_callback.instrument(meter_provider=endpoint.provider)
    make_calls(client, server)
    for _ in range(3):
        assert end(10)
    found = families(scrape(endpoint.url))
    assert "gen_ai_client_operation_duration_seconds_count" in found


def test_a_flush_still_flushes_the_readers_beside_it(client, server):
    class Pushing(InMemoryMetricReader):
        flushed = 0

        def force_flush(self, timeout_millis=10_000):
            Pushing.flushed += 1
            return super().force_flush(timeout_millis)

    endpoint = Endpoint(Pushing())
    try:
        otel_llm_callback.instrument(meter_provider=endpoint.provider)
        make_calls(client, server)
        assert otel_llm_callback.flush(10)
        assert Pushing.flushed == 1
        families(scrape(endpoint.url))
    finally:
        endpoint.close()


def test_status_names_the_reader(endpoint):
    otel_llm_callback.instrument(meter_provider=endpoint.provider)
    assert "PrometheusMetricReader" in otel_llm_callback.status().exporters


# --- By the environment -----------------------------------------------------------------------------------------------

APP = """
    import os
    import urllib.request

    import openai
    {first}
    with openai.OpenAI(api_key="any", base_url=os.environ["API"]) as client:
        client.chat.completions.create(model="gpt-4o-mini", messages=[{{"role": "user", "content": "hi"}}])
    {last}
    port = os.environ["OTEL_EXPORTER_PROMETHEUS_PORT"]
    with urllib.request.urlopen(f"http://localhost:{{port}}/metrics", timeout=10) as answer:
        print(answer.read().decode())
"""
PROGRAMS = {
    "wrapper": APP.format(first="", last="import otel_llm_callback; otel_llm_callback.flush()"),
    "configure": APP.format(
        first="from otel_llm_callback import configure, flush, instrument\n    configure()\n    instrument()",
        last="flush()",
    ),
}


@pytest.fixture(scope="module")
def no_distribution():
    found = [point.name for point in importlib.metadata.entry_points(group="opentelemetry_configurator")]
    if found:
        pytest.skip(f"installed, and sets the SDK up before we can: {', '.join(found)}")


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.usefixtures("no_distribution")
@pytest.mark.parametrize("exporters", ["prometheus", "prometheus,otlp"])
@pytest.mark.parametrize("way", PROGRAMS)
def test_the_standard_variable_serves_metrics(tmp_path, server, port, way, exporters):
    """Under the wrapper and with `configure()`, alone and beside OTLP."""
    if way == "wrapper" and not WRAPPER.exists():
        pytest.skip(f"there is no {WRAPPER}")
    program = write(tmp_path, "app.py", PROGRAMS[way])
    with HttpReceiver() as receiver:
        environment = {
            "API": server.url,
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": exporters,
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
            "OTEL_SERVICE_NAME": "shop",
        }
        done = run(program, environment, wrapped=way == "wrapper")
        pushed = {point.name for point in receiver.points()}
    assert (done.errors, done.code) == ("", 0)
    found = ours(families("\n".join(done.lines)))
    table = expected("gen_ai.client.operation.duration", "gen_ai.client.token.usage")
    assert set(found) - {"llm_callback_callback_events_total"} == set(table)
    assert [name for name, labels in table.items() if found[name] - labels] == []
    assert 'service_name="shop"' in "\n".join(done.lines)
    assert ("gen_ai.client.token.usage" in pushed) == (exporters != "prometheus")


CONFIGURE = """
    from otel_llm_callback import configure
    try:
        print(configure())
    except Exception as error:
        print(type(error).__name__, error)
"""


def said(tmp_path, **environment):
    program = write(tmp_path, "app.py", CONFIGURE)
    return run(program, {"OTEL_TRACES_EXPORTER": "none", **environment}, wrapped=False)


def test_a_port_that_is_taken_is_said_at_once(tmp_path):
    """Two processes cannot be scraped at one port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = said(
            tmp_path,
            OTEL_METRICS_EXPORTER="prometheus",
            OTEL_EXPORTER_PROMETHEUS_HOST="127.0.0.1",
            OTEL_EXPORTER_PROMETHEUS_PORT=str(port),
        )
    assert done.errors == ""
    (line,) = done.lines
    assert f"127.0.0.1:{port} cannot be served, see OTEL_EXPORTER_PROMETHEUS_PORT" in line


@pytest.mark.parametrize(
    ("variable", "value", "wrong", "allowed"),
    [
        ("OTEL_METRICS_EXPORTER", "prometheus,statsd", "statsd", "'otlp', 'console', 'prometheus', 'none'"),
        ("OTEL_TRACES_EXPORTER", "prometheus", "prometheus", "'otlp', 'console', 'none'"),
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "metrics", "metrics", "a port number"),
    ],
)
def test_a_value_that_is_wrong_is_said_with_what_is_allowed(tmp_path, variable, value, wrong, allowed):
    done = said(tmp_path, **{"OTEL_METRICS_EXPORTER": "prometheus", variable: value})
    assert (done.lines, done.errors) == ([f"ValueError {variable}={wrong!r} is not allowed; allowed: {allowed}"], "")
