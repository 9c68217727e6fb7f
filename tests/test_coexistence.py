"""Beside another instrumentation of ``openai``: one warning, and callbacks only leaves its spans as they are."""

from __future__ import annotations

import functools

import openai
import pytest
import wrapt
from openai.resources.chat.completions import AsyncCompletions, Completions

from otel_llm_callback import instrument, uninstrument
from otel_llm_callback._others import find_wrappers

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
THEIRS = "other_instrumentation.openai"
WARNING = (
    f"openai is wrapped by {THEIRS} already; if that makes spans, each call has two: telemetry=False leaves those and "
    "keeps the callbacks"
)
SOURCE = """
import functools


def traced(tracer):
    def wrapper(wrapped, instance, args, kwargs):
        with tracer.start_as_current_span("theirs"):
            return wrapped(*args, **kwargs)

    return wrapper


def decorated(tracer, wrapped):
    @functools.wraps(wrapped)
    def wrapper(*args, **kwargs):
        with tracer.start_as_current_span("theirs"):
            return wrapped(*args, **kwargs)

    return wrapper
"""


@pytest.fixture
def theirs():
    """A small instrumentation as others are made, in a module of its own name."""
    names = {"__name__": f"{THEIRS}.patch"}
    exec(compile(SOURCE, "patch.py", "exec"), names)
    return names


def wrap(monkeypatch, theirs, telemetry, how, owner=Completions, name="create"):
    tracer = telemetry.tracer_provider.get_tracer("theirs")
    original = getattr(owner, name)
    if how == "wrapt":
        theirs_now = wrapt.FunctionWrapper(original, theirs["traced"](tracer))
    else:
        theirs_now = theirs["decorated"](tracer, original)
    monkeypatch.setattr(owner, name, theirs_now)


def messages(records):
    return [record.getMessage() for record in records]


@pytest.mark.parametrize("how", ["wrapt", "functools"])
@pytest.mark.parametrize(
    ("owner", "name"), [(Completions, "create"), (AsyncCompletions, "create"), (openai.OpenAI, "request")]
)
def test_other_instrumentation_is_named_once(monkeypatch, theirs, telemetry, expected_logs, how, owner, name):
    """Whatever it wraps and by whatever means: one warning that names it and the way out."""
    wrap(monkeypatch, theirs, telemetry, how, owner, name)
    instrument(tracer_provider=telemetry.tracer_provider)
    instrument()
    uninstrument()
    monkeypatch.undo()
    assert messages(expected_logs) == [WARNING]


@pytest.mark.parametrize("how", ["wrapt", "functools"])
def test_one_that_comes_after_us_is_named_at_the_first_call(monkeypatch, theirs, telemetry, client, expected_logs, how):
    """Once, however many calls there are, and not again if it was named at the start."""
    instrument(tracer_provider=telemetry.tracer_provider)
    wrap(monkeypatch, theirs, telemetry, how)
    assert messages(expected_logs) == []
    for _ in range(3):
        client.chat.completions.create(**ASKED)
    assert messages(expected_logs) == [WARNING]


def test_one_that_was_named_is_not_named_again(monkeypatch, theirs, telemetry, client, expected_logs):
    wrap(monkeypatch, theirs, telemetry, "wrapt")
    instrument(tracer_provider=telemetry.tracer_provider)
    client.chat.completions.create(**ASKED)
    assert messages(expected_logs) == [WARNING]


def test_callbacks_only_has_nothing_to_warn_of_later_either(monkeypatch, theirs, telemetry, client, recorder):
    instrument(recorder, delivery="inline", telemetry=False)
    wrap(monkeypatch, theirs, telemetry, "wrapt")
    client.chat.completions.create(**ASKED)
    assert recorder.names() == ["request_sent", "response_received"]


def test_several_places_are_one_warning(monkeypatch, theirs, telemetry, expected_logs):
    for owner in (Completions, AsyncCompletions):
        wrap(monkeypatch, theirs, telemetry, "wrapt", owner)
    instrument(tracer_provider=telemetry.tracer_provider)
    assert messages(expected_logs) == [WARNING]


@pytest.mark.parametrize("how", ["wrapt", "functools"])
def test_callbacks_only_leaves_their_spans_as_they_are(monkeypatch, theirs, telemetry, client, recorder, how):
    """No warning, one span, theirs, and callbacks learn its ids."""
    wrap(monkeypatch, theirs, telemetry, how)
    instrument(recorder, delivery="inline", telemetry=False)
    client.chat.completions.create(**ASKED)
    (span,) = telemetry.spans()
    assert (span.name, dict(span.attributes), span.events) == ("theirs", {}, ())
    assert recorder.names() == ["request_sent", "response_received"]
    (request,) = recorder.requests
    assert (request.trace_id, request.span_id) == (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}")


def test_with_telemetry_ours_is_below_theirs(monkeypatch, theirs, telemetry, client, expected_logs):
    """Two spans, as the warning says, and both whole."""
    wrap(monkeypatch, theirs, telemetry, "wrapt")
    instrument(tracer_provider=telemetry.tracer_provider)
    client.chat.completions.create(**ASKED)
    ours, outer = telemetry.spans()
    assert (ours.name, ours.parent.span_id, outer.name) == ("chat gpt-4o-mini", outer.context.span_id, "theirs")


def test_openai_alone_is_wrapped_by_nobody():
    """The SDK's own decorators, and ours, are no other instrumentation."""
    assert find_wrappers() == ()
    instrument()
    assert find_wrappers() == ()
    uninstrument()


def test_decorator_of_the_sdk_is_not_theirs():
    """``create`` is made with ``functools.wraps`` by the SDK itself."""
    assert hasattr(Completions.create, "__wrapped__")
    assert functools.wraps(Completions.create)(Completions.create).__module__.startswith("openai")
    assert find_wrappers() == ()
