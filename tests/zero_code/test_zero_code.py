"""``opentelemetry-instrument python app.py`` with a program that knows nothing of us, each in a process of its own."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest
from missing import give_up
from zero_code._program import WRAPPER, run, write
from zero_code._receiver import GrpcReceiver, HttpReceiver

pytestmark = pytest.mark.skipif(not WRAPPER.exists(), reason=f"there is no {WRAPPER}")

METRICS = [
    "gen_ai.client.operation.duration",
    "gen_ai.client.operation.time_per_output_chunk",
    "gen_ai.client.operation.time_to_first_chunk",
    "gen_ai.client.token.usage",
]

# One plain and one streamed call, as anybody would write them.
APP = """
    import os
    import openai

    with openai.OpenAI(api_key="any", base_url=os.environ["API"]) as client:
        asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
        print(client.chat.completions.create(**asked).choices[0].message.content)
        stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        print("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))
"""

# Tells what became of the process it runs in; imports openai only after it has looked whether somebody else did.
PROBE = """
    import json, os, re, sys, threading

    found = {"openai imported": "openai" in sys.modules}
    from opentelemetry import metrics, trace
    found["providers"] = [type(get()).__name__ for get in (trace.get_tracer_provider, metrics.get_meter_provider)]
    names = sorted(thread.name for thread in threading.enumerate() if thread is not threading.main_thread())
    found["threads"] = [re.sub("OtelBatchSpan.*", "OtelBatchSpan", name) for name in names]
    if "API" in os.environ:
        import openai
        found["patched"] = hasattr(openai.OpenAI.request, "__wrapped__")
        with openai.OpenAI(api_key="any", base_url=os.environ["API"]) as client:
            client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}])
    print(json.dumps(found))
"""

# Another package's instrumentation, installed beside ours, which is on if and only if it says so.
OTHER = """
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

    class Other(BaseInstrumentor):
        def instrumentation_dependencies(self):
            return ()

        def _instrument(self, **_):
            print("the other one is on", flush=True)

        def _uninstrument(self, **_):
            pass
"""

NO_SDK = ["ProxyTracerProvider", "_ProxyMeterProvider"]
SDK = ["TracerProvider", "MeterProvider"]
SDK_THREADS = ["OtelBatchSpan", "OtelPeriodicExportingMetricReader"]  # one pipeline for each signal
EXIT_THREADS = ["otel-llm-callback-exit"] * 2  # ours, one to shut each signal down
NO_EXPORT = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}


@pytest.fixture(scope="module", autouse=True)
def no_distribution():
    """A distribution would do what is to be tested here in our place."""
    found = [point.name for point in importlib.metadata.entry_points(group="opentelemetry_configurator")]
    if found:
        pytest.skip(f"installed, and sets the SDK up before we can: {', '.join(found)}")


@pytest.fixture
def app(tmp_path):
    return write(tmp_path, "app.py", APP)


@pytest.fixture
def probe(tmp_path):
    return write(tmp_path, "probe.py", PROBE)


@pytest.fixture
def other(tmp_path):
    """The other package, where every program of this test finds it."""
    write(tmp_path, "other.py", OTHER)
    installed = tmp_path / "other-1.0.dist-info"
    installed.mkdir()
    write(installed, "METADATA", "Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    write(installed, "entry_points.txt", "[opentelemetry_instrumentor]\nother = other:Other\n")


@pytest.mark.parametrize(
    ("receive", "protocol", "encodings"), [(HttpReceiver, "http/protobuf", {"gzip"}), (GrpcReceiver, "grpc", set())]
)
def test_package_and_its_otlp_extra_are_enough(app, server, receive, protocol, encodings):
    """Spans and metrics of a program nobody changed arrive, under its service name; nothing is printed."""
    with receive() as receiver:
        done = run(
            app,
            {
                "API": server.url,
                "OTEL_SERVICE_NAME": "shop",
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
                "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
                "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            },
        )
        spans, points = receiver.spans(), receiver.points()
    said = "Hello! I am a scripted server, and this is all I ever say."
    assert (done.lines, done.errors, done.code) == ([said, said], "", 0)
    assert [(span.name, span.service) for span in spans] == [("chat gpt-4o-mini", "shop")] * 2
    assert [span.attributes["gen_ai.usage.output_tokens"] for span in spans] == [7, 7]
    assert sorted({point.name for point in points if point.name.startswith("gen_ai.")}) == METRICS
    assert {point.service for point in points} == {"shop"}
    assert receiver.encodings == encodings


CALLBACKS = """
    import pathlib

    class Told:
        def __init__(self, name="class"):
            self.name = name

        def on_response_received(self, metadata, response_json):
            with pathlib.Path("told.txt").open("a") as file:
                print(self.name, metadata.outcome, repr(response_json[:6]), file=file)

    def make():
        return Told("factory")

    instance = Told("instance")
"""


def test_every_setting_can_come_from_the_environment(app, server):
    """Callbacks are loaded by name from a class, a factory or as they are, and told all before the program is gone."""
    write(app.parent, "hooks.py", CALLBACKS)
    with HttpReceiver() as receiver:
        done = run(
            app,
            {
                "API": server.url,
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
                "OTEL_LLM_CALLBACK_CALLBACKS": "hooks:Told, hooks:make,hooks:instance",
                "OTEL_LLM_CALLBACK_CALLBACK_CONTENT": "none",
                "OTEL_LLM_CALLBACK_DELIVERY": "inline",
                "OTEL_LLM_CALLBACK_CHUNK_EVENTS": "2",
                "OTEL_LLM_CALLBACK_METRICS": "next",
                "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "span_only",
                "OTEL_LLM_CALLBACK_PROVIDERS": "127.0.0.1=acme",
            },
        )
        spans, names = receiver.spans(), {point.name for point in receiver.points()}
    assert (done.errors, done.code) == ("", 0)
    told = (app.parent / "told.txt").read_text().splitlines()
    assert told == ["class completed ''", "factory completed ''", "instance completed ''"] * 2
    assert [span.attributes["gen_ai.provider.name"] for span in spans] == ["acme", "acme"]
    assert all("scripted server" in span.attributes["gen_ai.output.messages"] for span in spans)
    assert [span.events.count("llm_callback.chunk") for span in spans] == [0, 2]
    assert not names & set(METRICS)


def test_queued_callbacks_of_the_environment_are_told_before_the_end(app, server):
    """A program under the wrapper ends only when its callbacks know all."""
    write(app.parent, "hooks.py", CALLBACKS)
    done = run(app, {"API": server.url, "OTEL_LLM_CALLBACK_CALLBACKS": "hooks:make", **NO_EXPORT})
    assert (done.errors, done.code) == ("", 0)
    assert (app.parent / "told.txt").read_text().splitlines() == ["factory completed '{\"id\":'"] * 2


def probed(done):
    return json.loads(done.lines[-1])


def test_program_without_openai_does_not_import_it(probe):
    """Whoever never uses the client does not pay for its import."""
    done = run(probe, NO_EXPORT)
    assert (done.errors, done.code) == ("", 0)
    assert probed(done) == {"openai imported": False, "providers": SDK, "threads": EXIT_THREADS}


def test_switched_off_by_name_we_are_off_and_others_are_not(probe, server, other):
    """``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`` turns us off, the setting up of the SDK included, and nobody else."""
    done = run(probe, {"API": server.url, "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "foo, otel_llm_callback"})
    assert (done.lines[:-1], done.errors, done.code) == (["the other one is on"], "", 0)
    assert probed(done) == {"openai imported": False, "providers": NO_SDK, "threads": [], "patched": False}


@pytest.mark.parametrize(
    ("variables", "providers"),
    [({"OTEL_SDK_DISABLED": "TRUE"}, NO_SDK), ({"OTEL_LLM_CALLBACK_CONFIGURE": "false"}, NO_SDK), (NO_EXPORT, SDK)],
    ids=["SDK disabled", "not configured", "no exporters"],
)
def test_nothing_is_sent_where_nothing_is_to_be(probe, server, variables, providers):
    """Without an SDK or without exporters the program is observed, by nobody, and nothing leaves it."""
    with HttpReceiver() as receiver:
        done = run(probe, {"API": server.url, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, **variables})
        assert (receiver.spans(), receiver.points()) == ([], [])
    assert (done.errors, done.code) == ("", 0)
    threads = EXIT_THREADS if providers is SDK else []
    assert probed(done) == {"openai imported": False, "providers": providers, "threads": threads, "patched": True}


def test_console_exporters_print(app, server):
    """``console`` prints spans and metrics on standard output, each signal by itself."""
    done = run(app, {"API": server.url, "OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none"})
    printed = "\n".join(done.lines)
    assert (done.errors, done.code) == ("", 0)
    assert (printed.count('"name": "chat gpt-4o-mini"'), printed.count("resource_metrics")) == (2, 0)
    done = run(app, {"API": server.url, "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "console"})
    printed = "\n".join(done.lines)
    assert (done.errors, done.code) == ("", 0)
    assert ('"name": "chat gpt-4o-mini"' in printed, "gen_ai.client.operation.duration" in printed) == (False, True)


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        (
            {"OTEL_TRACES_EXPORTER": "pigeon"},
            "the SDK is not set up: OTEL_TRACES_EXPORTER='pigeon' is not allowed; allowed: 'otlp', 'console', 'none'",
        ),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "morse"},
            (
                "the SDK is not set up: OTEL_EXPORTER_OTLP_TRACES_PROTOCOL or OTEL_EXPORTER_OTLP_PROTOCOL is 'morse'; "
                "allowed: 'http/protobuf', 'grpc'"
            ),
        ),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_COMPRESSION": "squeeze"},
            'the SDK is not set up: Invalid value "squeeze" for compression envvar OTEL_EXPORTER_OTLP_COMPRESSION',
        ),
    ],
    ids=["exporter", "protocol", "what the exporter minds"],
)
def test_wrong_value_of_the_sdk_is_one_line(probe, other, variables, error):
    """A mistake in what configures the SDK is one line on standard error; the program and other packages run."""
    done = run(probe, {"OTEL_METRICS_EXPORTER": "none", **variables})
    assert (done.lines[:-1], done.errors, done.code) == (["the other one is on"], f"{error}\n", 0)
    assert probed(done) == {"openai imported": False, "providers": NO_SDK, "threads": []}


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        (
            "OTEL_LLM_CALLBACK_METRICS",
            "imperial",
            "OTEL_LLM_CALLBACK_METRICS='imperial' is not allowed; allowed: `current`, `next`, `both`",
        ),
        (
            "OTEL_LLM_CALLBACK_CONFIGURE",
            "perhaps",
            "OTEL_LLM_CALLBACK_CONFIGURE='perhaps' is not allowed; allowed: `true`, `false`",
        ),
        (
            "OTEL_LLM_CALLBACK_CALLBACKS",
            "nowhere:Nobody",
            "'nowhere:Nobody' cannot be loaded: No module named 'nowhere'",
        ),
        ("OTEL_LLM_CALLBACK_CALLBACKS", "json:dumps", "'json:dumps' cannot be made into a callback: TypeError"),
        ("OTEL_LLM_CALLBACK_CALLBACKS", "broken:Callback", "'broken:Callback' cannot be loaded: "),
    ],
    ids=["setting", "configure", "no such callback", "no callback", "broken module"],
)
def test_wrong_value_of_ours_is_one_line(probe, other, variable, value, error):
    """A mistake in what configures us is one line on standard error; the program and other packages run."""
    write(probe.parent, "broken.py", "class Callback(:\n    pass\n")
    done = run(probe, {**NO_EXPORT, variable: value})
    assert (done.lines[:-1], done.code, probed(done)["openai imported"]) == (["the other one is on"], 0, False)
    (line,) = done.errors.splitlines()
    assert line.startswith(f"not instrumented: {error}")


@pytest.fixture(scope="module")
def distribution(tmp_path_factory):
    """A directory that holds ``opentelemetry-distro``, to be put on ``PYTHONPATH``."""
    directory = tmp_path_factory.mktemp("distribution")
    version = importlib.metadata.version("opentelemetry-instrumentation")
    wanted = f"opentelemetry-distro=={version}"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(directory), wanted]
    done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        give_up(f"{wanted} cannot be installed: {done.stderr.strip()}")
    return directory


def test_distribution_wins(probe, server, distribution):
    """Where a distribution sets the SDK up we do not: one pipeline, each span once, and nothing is complained of."""
    with HttpReceiver() as receiver:
        done = run(
            probe,
            {
                "API": server.url,
                "PYTHONPATH": str(distribution),
                "OTEL_SERVICE_NAME": "shop",
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_LOGS_EXPORTER": "none",
            },
        )
        spans, points = receiver.spans(), receiver.points()
    assert (done.errors, done.code) == ("", 0)
    assert probed(done) == {
        "openai imported": False,
        "providers": SDK,
        "threads": SDK_THREADS,
        "patched": True,
    }
    assert [(span.name, span.service) for span in spans] == [("chat gpt-4o-mini", "shop")]
    durations = [point for point in points if point.name == "gen_ai.client.operation.duration"]
    assert len(durations) == 1
