"""Switching observation on and off: what it needs, what it leaves alone, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import textwrap
import threading
from pathlib import Path

import openai
import pytest
import wrapt
from opentelemetry import metrics, trace

import otel_llm_callback
from otel_llm_callback import (
    MultiCallback,
    OpenAIInstrumentor,
    RequestMetadata,
    flush,
    instrument,
    register,
    status,
    uninstrument,
    using,
)
from otel_llm_callback._registry import REGISTRY
from otel_llm_callback.config import ARGUMENTS
from otel_llm_callback.testing import RecordingCallback

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
PACKAGE = Path(otel_llm_callback.__file__).parent


def attributes():
    """The attributes of the client classes, the inherited ones too, and whether they are their own."""
    names = ("request", "_process_response", "_calculate_retry_timeout")
    owners = (openai.OpenAI, openai.AsyncOpenAI)
    return {(owner, name): (name in vars(owner), getattr(owner, name, None)) for owner in owners for name in names}


def trace_of_us():
    """All that must be as before when switching on has failed."""
    active = OpenAIInstrumentor()
    return {
        "attributes": attributes(),
        "threads": {thread for thread in threading.enumerate() if thread.name.startswith("otel-llm-callback")},
        "active": active.active,
        "instrumented": active.is_instrumented_by_opentelemetry,
        "registrations": REGISTRY.registrations,
        "listeners": REGISTRY.dispatcher.listeners,
        "settings": REGISTRY.settings,
    }


def run(source, *, path=None, flags=("-W", "error")):
    """Run a program in a process of its own and return what it printed; *path* is where it finds us."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHON"))}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(source)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- Switching on -----------------------------------------------------------------------------------------------------


def test_switching_on_starts_nothing():
    """No thread, no socket, no provider, and neither ``openai`` nor the SDK is imported; the same for the way back."""
    output = run("""
        import json, sys, threading
        asked = []
        sys.addaudithook(lambda event, _: asked.append(event) if event.startswith("socket.") else None)
        import otel_llm_callback as o

        class Callback:
            def on_request_sent(self, metadata, request_json):
                pass

        for step in (lambda: o.instrument(), lambda: o.instrument(Callback()), o.status, o.uninstrument):
            step()
        from opentelemetry import metrics, trace
        print(json.dumps({
            "sockets": asked,
            "threads": [thread.name for thread in threading.enumerate()],
            "providers": [type(trace.get_tracer_provider()).__name__, type(metrics.get_meter_provider()).__name__],
            "imported": [name for name in ("openai", "httpx", "opentelemetry.sdk") if name in sys.modules],
        }))
    """)
    assert json.loads(output) == {
        "sockets": [],
        "threads": ["MainThread"],
        "providers": ["ProxyTracerProvider", "_ProxyMeterProvider"],
        "imported": [],
    }


def test_openai_imported_later_is_observed(server):
    """The order of ``import openai`` and ``instrument()`` does not matter."""
    output = run(f"""
        import otel_llm_callback as o
        from otel_llm_callback.testing import RecordingCallback
        recorder = RecordingCallback()
        o.instrument()
        o.uninstrument()
        o.instrument(recorder, delivery="inline")
        print(o.status().openai_version, o.status().covered)
        import openai
        print(sum("OpenAI." in name for name in o.status().covered), openai.OpenAI.request.__wrapped__ is not None)
        with openai.OpenAI(api_key="any", base_url={server.url!r}) as client:
            client.chat.completions.create(**{ASKED!r})
        o.uninstrument()
        print(recorder.names(), "request" in vars(openai.OpenAI))
    """)
    assert output.splitlines() == [
        "None ()",
        "6 True",
        "['request_sent', 'response_received'] False",
    ]


def test_switched_off_before_openai_is_imported_nothing_is_patched():
    """What waits for the import is called off too."""
    output = run("""
        import otel_llm_callback as o
        o.instrument()
        o.uninstrument()
        import openai
        print("request" in vars(openai.OpenAI))
    """)
    assert output == "False\n"


def test_clients_that_exist_are_observed(server, client, recorder):
    """A client made before is observed, and no longer once switched off."""
    client.chat.completions.create(**ASKED)
    instrument(recorder, delivery="inline")
    client.chat.completions.create(**ASKED)
    uninstrument()
    client.chat.completions.create(**ASKED)
    assert (len(server.requests), recorder.names()) == (3, ["request_sent", "response_received"])


def test_nobody_else_s_providers_are_touched(server, client, telemetry, recorder):
    """Neither the global providers nor the processors of those it is given are changed."""
    before = trace.get_tracer_provider(), metrics.get_meter_provider()
    processors = telemetry.tracer_provider._active_span_processor._span_processors
    instrument(recorder, tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider)
    client.chat.completions.create(**ASKED)
    assert flush()
    assert (trace.get_tracer_provider(), metrics.get_meter_provider()) == before
    assert telemetry.tracer_provider._active_span_processor._span_processors == processors


def test_switched_on_again_it_adds_callbacks_and_leaves_settings(server, client, recorder, expected_logs):
    """A second ``instrument()`` adds the callbacks it is given; settings change nothing and a warning says so."""
    second = RecordingCallback()
    instrument(recorder, delivery="inline", content_limit=100)
    patched = attributes()
    instrument(second)
    assert expected_logs == []
    instrument(content_limit=200, metrics="next")
    assert [record.getMessage() for record in expected_logs] == [
        "already instrumented; these settings change nothing: content_limit, metrics"
    ]
    assert (attributes(), OpenAIInstrumentor().active.settings.content_limit) == (patched, 100)
    client.chat.completions.create(**ASKED)
    assert (recorder.names(), second.names()) == (["request_sent", "response_received"],) * 2
    uninstrument()
    assert REGISTRY.registrations == ()


# --- Switching off ----------------------------------------------------------------------------------------------------


def test_the_very_attributes_come_back(recorder):
    """Afterwards each attribute is the object it was before, inherited where it was inherited; time and again."""
    before = attributes()
    assert [own for own, _ in before.values()] == [False] * 6  # as of now, all of them are inherited
    for _ in range(3):
        instrument(recorder)
        assert [own for own, _ in attributes().values()] == [True] * 6
        uninstrument()
        assert attributes() == before
        assert all(attributes()[key][1] is attribute for key, (_, attribute) in before.items())
        uninstrument()


def test_who_wraps_after_us_stays_and_we_do_nothing(server, client, recorder):
    """Another package's wrapper around ours is left in place; ours calls straight through from then on."""
    calls = []

    def wrapper(wrapped, instance, args, kwargs):
        calls.append("theirs")
        return wrapped(*args, **kwargs)

    instrument(recorder, delivery="inline", telemetry=False)
    theirs = wrapt.FunctionWrapper(openai.OpenAI.request, wrapper)
    openai.OpenAI.request = theirs
    try:
        client.chat.completions.create(**ASKED)
        uninstrument()
        assert vars(openai.OpenAI)["request"] is theirs
        client.chat.completions.create(**ASKED)
        assert (calls, recorder.names()) == (["theirs"] * 2, ["request_sent", "response_received"])
        assert [name for (owner, name), (own, _) in attributes().items() if own] == ["request"]
    finally:
        del openai.OpenAI.request


def test_bound_method_kept_from_before_does_nothing_afterwards(server, client, recorder):
    """A method somebody holds on to calls straight through once switched off."""
    instrument(recorder, delivery="inline")
    kept = client.request
    uninstrument()
    options = openai._models.FinalRequestOptions(method="get", url="/models")
    assert kept(cast_to=object, options=options)["object"] == "list"
    assert recorder.events == []


def test_registered_callbacks_outlive_switching_off(server, client, recorder):
    """Who was given to ``instrument()`` is forgotten; who was given to ``register()`` is told when it is on again."""
    mine = RecordingCallback()
    registration = register(mine, delivery="inline")
    instrument(recorder, delivery="inline")
    uninstrument()
    instrument()
    client.chat.completions.create(**ASKED)
    registration.remove()
    assert (recorder.names(), mine.names()) == ([], ["request_sent", "response_received"])


# --- Mistakes ---------------------------------------------------------------------------------------------------------


class Misspelt:
    def on_request_sent(self, metadata, request_json):
        pass

    def on_response_recieved(self, metadata, response_json):
        pass


class Asynchronous:
    async def on_request_sent(self, metadata, request_json):
        pass


class Narrow:
    def on_error(self, error):
        pass


SETTINGS = ", ".join(sorted(ARGUMENTS))
HOOKS = "on_request_sent, on_stream_chunk, on_response_received, on_error"

MISTAKES = {
    "unknown setting": ((), {"colour": "red"}, TypeError, f"unknown setting colour; the settings are {SETTINGS}"),
    "choice": (
        (),
        {"metrics": "imperial"},
        ValueError,
        "metrics='imperial' is not allowed; allowed: `current`, `next`, `both`",
    ),
    "number": ((), {"queue_size": 1}, ValueError, "queue_size=1 is not allowed; allowed: a whole number from 2"),
    "seconds": (
        (),
        {"exit_timeout": "soon"},
        ValueError,
        "exit_timeout='soon' is not allowed; allowed: seconds from 0 to 3600",
    ),
    "truth": ((), {"telemetry": "yes"}, ValueError, "telemetry='yes' is not allowed; allowed: `true`, `false`"),
    "redactor": (
        (),
        {"redactor": "secret"},
        ValueError,
        "redactor=<str> is not allowed; allowed: a function; in the environment `module:object`",
    ),
    "reference": (
        (),
        {"callbacks": ["nowhere:Nobody"]},
        ValueError,
        "'nowhere:Nobody' cannot be loaded: No module named 'nowhere'",
    ),
    "no callback": ((42,), {}, TypeError, f"int is no callback: it needs at least one of {HOOKS}"),
    "misspelt hook": (
        (Misspelt(),),
        {},
        TypeError,
        f"Misspelt has on_response_recieved, which is no hook; the hooks are {HOOKS}",
    ),
    "class": ((RecordingCallback,), {}, TypeError, "RecordingCallback is a class; pass an instance of it"),
    "arguments": ((Narrow(),), {}, TypeError, "Narrow.on_error(error) must take two positional arguments"),
    "inline async": (
        (Asynchronous(),),
        {"delivery": "inline"},
        ValueError,
        "Asynchronous.on_request_sent is 'async def' and cannot be delivered 'inline'; allowed: 'queued'",
    ),
    "inline async child": (
        (MultiCallback(RecordingCallback(), Asynchronous()),),
        {"delivery": "inline"},
        ValueError,
        "Asynchronous.on_request_sent is 'async def' and cannot be delivered 'inline'; allowed: 'queued'",
    ),
}

every_mistake = pytest.mark.parametrize(("callbacks", "settings", "error", "text"), MISTAKES.values(), ids=MISTAKES)


@every_mistake
def test_mistake_is_one_clear_error_and_nothing_has_changed(callbacks, settings, error, text):
    """The message names what is allowed; nothing is registered, patched or set, and it can be tried again."""
    before = trace_of_us()
    with pytest.raises(error) as raised:
        instrument(RecordingCallback(), *callbacks, **settings)
    assert str(raised.value) == text
    assert trace_of_us() == before
    instrument()
    assert status().instrumented


@pytest.mark.parametrize(
    "callback", [42, Misspelt(), RecordingCallback, Narrow()], ids=lambda c: getattr(c, "__name__", type(c).__name__)
)
def test_mistake_when_switched_on_already_changes_nothing(callback):
    """A second ``instrument()`` with a mistake in it adds nobody."""
    instrument(RecordingCallback())
    before = trace_of_us()
    with pytest.raises(TypeError):
        instrument(RecordingCallback(), callback)
    assert trace_of_us() == before


def test_registering_says_the_same():
    """``register()``, ``using()`` and ``MultiCallback`` mind the same mistakes as ``instrument()``."""
    before = trace_of_us()
    for add in (register, using, MultiCallback):
        for name in ("no callback", "misspelt hook", "class", "arguments"):
            (callback,), _, error, text = MISTAKES[name]
            with pytest.raises(error) as raised:
                add(callback)
            assert str(raised.value) == text
    for add in (register, using):
        (callback,), settings, error, text = MISTAKES["inline async"]
        with pytest.raises(error) as raised:
            add(callback, **settings)
        assert str(raised.value) == text
    assert trace_of_us() == before


@pytest.mark.parametrize("name", ["tracer_provider", "meter_provider"])
def test_provider_that_is_none_changes_nothing(name):
    """Something else in a provider's place is an error like any other."""
    before = trace_of_us()
    with pytest.raises((TypeError, ValueError, AttributeError)):
        instrument(RecordingCallback(), **{name: "the default one"})
    assert trace_of_us() == before


# --- Environments -----------------------------------------------------------------------------------------------------


def test_without_openai_nothing_is_raised(tmp_path):
    """Where ``openai`` is not installed, importing us and switching on and off does no harm, and one line says why."""
    for installed in Path(sysconfig.get_path("purelib")).iterdir():
        if not installed.name.startswith("openai"):
            (tmp_path / installed.name).symlink_to(installed)
    output = run(
        f"""
        import logging, sys
        sys.path += [{str(tmp_path)!r}, {str(PACKAGE.parent)!r}]
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s openai missing: %(message)s")
        import otel_llm_callback as o
        o.instrument()
        print(o.status().instrumented, o.status().openai_version, o.flush(), o.shutdown())
        o.uninstrument()
        """,
        flags=("-S", "-W", "error"),
    )
    line, answers = output.splitlines()
    assert (line.startswith("ERROR openai missing: "), "openai >= 1.66" in line) == (True, True)
    assert answers == "False None True True"


def test_works_from_a_read_only_copy_without_metadata(server, tmp_path):
    """As an operator injects it: a copy on ``PYTHONPATH`` that cannot be written to and that nobody has installed."""
    copy = tmp_path / "injected" / "otel_llm_callback"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*copy.rglob("*"), copy):
        path.chmod(stat.S_IREAD | (stat.S_IEXEC if path.is_dir() else 0))  # which root may ignore
    try:
        output = run(
            f"""
            import importlib.metadata
            found = importlib.metadata.Distribution.from_name

            def without_us(name):
                if name.replace("_", "-") == "otel-llm-callback":
                    raise importlib.metadata.PackageNotFoundError(name)
                return found(name)

            importlib.metadata.Distribution.from_name = without_us
            import otel_llm_callback as o
            from otel_llm_callback.testing import RecordingCallback
            recorder = RecordingCallback()
            o.instrument(recorder)
            import openai
            with openai.OpenAI(api_key="any", base_url={server.url!r}) as client:
                client.chat.completions.create(**{ASKED!r})
            print(o.flush(), recorder.names(), o.__version__ != "", o.__file__)
            """,
            path=copy.parent,
        )
    finally:
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755)
    assert output == f"True ['request_sent', 'response_received'] True {copy / '__init__.py'}\n"


# --- Status -----------------------------------------------------------------------------------------------------------


def test_status_before_during_and_after(server, client, telemetry, recorder):
    """It says what is patched, who is told and where telemetry goes, at any time."""
    off = status()
    assert (off.instrumented, off.openai_version) == (False, openai.__version__)
    assert (off.covered, off.missing, off.callbacks, off.errors) == ((), (), (), {})
    assert (off.tracer_provider, off.meter_provider, off.exporters) == (None, None, ())
    instrument(recorder, tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider)
    client.chat.completions.create(**ASKED)
    assert flush()
    on = status()
    assert (on.instrumented, on.openai_version, on.missing, on.errors) == (True, openai.__version__, (), {})
    assert on.covered[:6] == tuple(  # then those for websockets, as far as their modules are imported
        f"{owner}.{name}"
        for owner in ("OpenAI", "AsyncOpenAI")
        for name in ("request", "_process_response", "_calculate_retry_timeout")
    )
    (callback,) = on.callbacks
    assert callback == otel_llm_callback.CallbackStatus(
        name="RecordingCallback", delivery="queued", required=False, delivered=2, failed=0, dropped=0, waiting=0
    )
    assert (on.tracer_provider, on.meter_provider) == ("TracerProvider", "MeterProvider")
    assert on.exporters[0] == "InMemorySpanExporter"
    uninstrument()
    assert status() == off


def test_status_without_telemetry_names_no_provider(recorder):
    """Callbacks only: nothing of OpenTelemetry is in use, and nothing of it is named."""
    instrument(recorder, telemetry=False)
    now = status()
    assert (now.instrumented, now.tracer_provider, now.meter_provider, now.exporters) == (True, None, None, ())
    assert [(callback.name, callback.delivery) for callback in now.callbacks] == [("RecordingCallback", "queued")]


def test_instrumentor_is_one_and_works_by_itself(server, client, recorder):
    """``OpenAIInstrumentor`` as the wrapper uses it is the same switch as ``instrument()``."""
    OpenAIInstrumentor().instrument(delivery="inline")
    assert (OpenAIInstrumentor() is OpenAIInstrumentor(), status().instrumented) == (True, True)
    with using(recorder):
        client.chat.completions.create(**ASKED)
    OpenAIInstrumentor().uninstrument()
    client.chat.completions.create(**ASKED)
    assert (status().instrumented, recorder.names()) == (False, ["request_sent", "response_received"])
    assert isinstance(recorder.requests[0], RequestMetadata)
