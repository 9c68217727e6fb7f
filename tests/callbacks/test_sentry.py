"""SentryCallback with the real SDK: what an event says, what it never says, and that there is one."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
import textwrap

import openai
import pytest
import sentry_sdk
from sentry_sdk.transport import Transport

import otel_llm_callback
from otel_llm_callback.callbacks import SentryCallback
from otel_llm_callback.protocol import check_callback
from otel_llm_callback.testing import (
    JsonReply,
    StreamReply,
    chat_chunks,
    error_body,
    make_error_context,
    make_request,
    make_response,
)
from otel_llm_callback.types import FailedResponseError, Retry

SECRET = "canary-4711"
ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": SECRET}]}
REFUSED = JsonReply(error_body(f"You said {SECRET}"), status=400)
DELIVERIES = ("inline", "queued")


class InMemory(Transport):
    """Keeps what would be sent."""

    def __init__(self, options=None):
        super().__init__(options)
        self.envelopes = []

    def capture_envelope(self, envelope):
        self.envelopes.append(envelope)

    @property
    def events(self):
        return [event for envelope in self.envelopes if (event := envelope.get_event()) is not None]

    @property
    def text(self):
        return b"\n".join(envelope.serialize() for envelope in self.envelopes).decode()


@pytest.fixture
def sentry():
    """Sentry as a program sets it up, but for integrations, which patch things for good; call it to say more."""
    clients = []

    def init(**options):
        transport = InMemory()
        usual = {"dsn": "https://key@sentry.invalid/1", "transport": transport, "auto_session_tracking": False}
        sentry_sdk.init(**{**usual, "default_integrations": False, "auto_enabling_integrations": False, **options})
        clients.append(sentry_sdk.get_client())
        return transport

    yield init
    for client in clients:
        client.close(timeout=0)
    sentry_sdk.Scope.get_global_scope().set_client(None)
    sentry_sdk.Scope.get_isolation_scope().clear()


def fail(client, **over):
    with pytest.raises(openai.APIError) as raised:
        client.chat.completions.create(**{**ASKED, **over})
    return raised.value


def observe(callback, delivery="inline", **settings):
    otel_llm_callback.instrument(callback, delivery=delivery, **settings)


# --- What an event says -----------------------------------------------------------------------------------------------


def test_it_is_a_callback_that_asks_for_no_content():
    check_callback(SentryCallback())
    check_callback(SentryCallback(breadcrumbs=True))
    assert SentryCallback().content == "none"


def test_an_event_says_what_failed_and_where(sentry):
    transport = sentry()
    request = make_request(call_id="c", session_id="s", user_id="bob", trace_id="1" * 32, span_id="2" * 16, stream=True)
    partial = make_response(request=request, chunk_count=2, response_time_ms=50.0)
    retries = (Retry(at_ns=0, delay_s=0.5, status_code=429),)
    context = make_error_context("chat.completions stream", request=request, partial=partial, retries=retries)
    SentryCallback().on_error(ValueError(SECRET), context)
    (event,) = transport.events
    told = {name: event[name] for name in ("level", "logger", "exception", "fingerprint", "tags")}
    assert told == {
        "level": "error",
        "logger": "otel_llm_callback",
        "exception": {
            "values": [
                {
                    "type": "ValueError",
                    "module": "builtins",
                    "value": "chat gpt-4o-mini failed with RateLimitError (HTTP 429) after 1 retry",
                    "mechanism": {"type": "otel_llm_callback", "handled": True},
                }
            ]
        },
        "fingerprint": ["chat", "openai", "gpt-4o-mini", "RateLimitError"],
        "tags": {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o-mini",
            "error.type": "RateLimitError",
            "http.response.status_code": "429",
            "llm_callback.outcome": "error",
        },
    }
    assert event["contexts"]["llm"] == {
        "type": "llm",
        "where": "chat.completions stream",
        "call_id": "c",
        "api": "chat_completions",
        "stream": True,
        "server_address": "api.openai.com",
        "server_port": 443,
        "session_id": "s",
        "trace_id": "1" * 32,
        "span_id": "2" * 16,
        "duration_ms": 100.0,
        "status_code": 429,
        "request_id": "req-1",
        "retry_count": 1,
        "retry_wait_ms": 500.0,
        "response_id": "chatcmpl-1",
        "response_model": "gpt-4o-mini",
        "chunk_count": 2,
        "input_tokens": 10,
        "output_tokens": 5,
    }


def test_errors_are_grouped_by_what_failed(sentry):
    """The text of an error, which may differ each time, does not make a group of its own."""
    transport = sentry()
    callback = SentryCallback()
    for number, model in enumerate(["a", "a", "b"]):
        callback.on_error(ValueError(number), make_error_context(request=make_request(model=model)))
    assert [event["fingerprint"][2] for event in transport.events] == ["a", "a", "b"]
    assert transport.events[0]["exception"] == transport.events[1]["exception"]


def test_the_provider_code_of_a_failed_result_is_its_type(sentry):
    transport = sentry()
    SentryCallback().on_error(FailedResponseError("server_error"), make_error_context(error_type="server_error"))
    (event,) = transport.events
    assert (event["exception"]["values"][0]["type"], event["tags"]["error.type"]) == (
        "FailedResponseError",
        "server_error",
    )


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_frames_lead_to_the_program_and_show_no_variables(client, server, sentry, delivery):
    transport = sentry()
    server.reply = lambda _: REFUSED
    observe(SentryCallback(), delivery)
    fail(client)
    assert otel_llm_callback.flush(10)
    (event,) = transport.events
    frames = event["exception"]["values"][0]["stacktrace"]["frames"]
    assert [frame["function"] for frame in frames if frame["module"] == __name__][-2:] == [
        "test_frames_lead_to_the_program_and_show_no_variables",
        "fail",
    ]
    assert {frame["in_app"] for frame in frames if frame["module"].startswith("otel_llm_callback")} == {False}
    assert {name for frame in frames for name in frame} == {
        "filename",
        "abs_path",
        "function",
        "module",
        "lineno",
        "in_app",
    }


def test_what_the_program_set_on_its_scope_is_on_the_event(client, server, sentry):
    """Told on another thread, it is still the scope of the caller."""
    transport = sentry(release="shop@1")
    server.reply = lambda _: REFUSED
    observe(SentryCallback(), "queued")
    with sentry_sdk.new_scope() as scope:
        scope.set_tag("plan", "pro")
        fail(client)
    assert otel_llm_callback.flush(10)
    (event,) = transport.events
    assert (event["tags"]["plan"], event["release"]) == ("pro", "shop@1")


def test_the_text_of_the_error_is_sent_only_on_request(sentry):
    transport = sentry()
    SentryCallback(error_text=True).on_error(ValueError(SECRET), make_error_context())
    assert transport.events[0]["exception"]["values"][0]["value"] == SECRET


def test_cancelled_is_no_error_unless_asked(sentry):
    transport = sentry()
    cancelled = make_error_context(outcome="cancelled", error_type="CancelledError", status_code=None)
    SentryCallback().on_error(KeyboardInterrupt(), cancelled)
    assert transport.events == []
    SentryCallback(cancelled=True).on_error(KeyboardInterrupt(), cancelled)
    (event,) = transport.events
    assert (event["level"], event["exception"]["values"][0]["value"]) == ("warning", "chat gpt-4o-mini was cancelled")


def test_breadcrumbs_are_left_only_on_request(sentry):
    transport = sentry()
    for callback, count in ((SentryCallback(), 0), (SentryCallback(breadcrumbs=True), 1)):
        sentry_sdk.Scope.get_isolation_scope().clear_breadcrumbs()
        if hasattr(callback, "on_response_received"):
            callback.on_response_received(make_response(), "")
        callback.on_error(ValueError(), make_error_context())
        crumbs = [crumb for crumb in transport.events[-1]["breadcrumbs"]["values"] if crumb["category"] == "llm"]
        assert len(crumbs) == count
    assert (crumbs[0]["message"], crumbs[0]["data"]) == (
        "chat gpt-4o-mini",
        {
            "outcome": "completed",
            "duration_ms": 100.0,
            "status_code": 200,
            "request_id": "req-1",
            "retry_count": 0,
            "response_id": "chatcmpl-1",
            "response_model": "gpt-4o-mini",
            "input_tokens": 10,
            "output_tokens": 5,
        },
    )


# --- What it never says -----------------------------------------------------------------------------------------------


def _broken_stream():
    chunks = chat_chunks([f"{SECRET} said"], model="gpt-4o-mini")
    return StreamReply([*chunks[:2], {"error": {"message": f"{SECRET} again", "code": "server_error"}}])


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize(
    "reply",
    [REFUSED, JsonReply(error_body(SECRET), status=401), JsonReply(error_body(SECRET), status=429), _broken_stream()],
    ids=["bad request", "wrong key", "rate limit", "broken stream"],
)
def test_no_secret_is_in_an_envelope(server, sentry, reply, delivery):
    """Prompt, answer, key, header, organisation, metadata, error body: planted everywhere, found nowhere."""
    transport = sentry(attach_stacktrace=True, include_source_context=True, default_integrations=True)
    server.reply = lambda _: reply
    observe(SentryCallback(breadcrumbs=True), delivery, capture_content="span_only")
    secrets = {"api_key": f"key-{SECRET}", "organization": f"org-{SECRET}", "default_headers": {"X-Mine": SECRET}}
    with openai.OpenAI(base_url=server.url, max_retries=1, **secrets) as client, pytest.raises(openai.APIError):
        list(client.chat.completions.create(**ASKED, stream=True, metadata={"of": SECRET}, user=SECRET))
    assert otel_llm_callback.flush(10)
    assert len(transport.events) == 1
    assert "4711" not in transport.text


# --- One event --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_check", [True, False], ids=["with Sentry's own check", "without"])
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_an_error_that_the_program_sends_too_is_one_event(client, server, sentry, delivery, own_check):
    transport = sentry(default_integrations=own_check)
    server.reply = lambda _: REFUSED
    observe(SentryCallback(), delivery)
    error = fail(client)
    sentry_sdk.capture_exception(error)
    assert otel_llm_callback.flush(10)
    sentry_sdk.capture_exception(error)
    assert len(transport.events) == 1


def test_an_error_that_the_program_has_sent_is_not_sent_again(client, server, sentry):
    transport = sentry()
    callback = SentryCallback()
    error = type("Mine", (ValueError,), {})()
    sentry_sdk.capture_exception(error)
    callback.on_error(error, make_error_context())
    assert [event["exception"]["values"][0]["mechanism"]["type"] for event in transport.events] == ["generic"]


def test_what_has_nothing_to_do_with_calls_is_left_to_the_program(sentry):
    """An exception that we never sent may be sent as often as the program likes."""
    transport = sentry()
    SentryCallback()
    error = type("Mine", (ValueError,), {})()
    for _ in range(2):
        sentry_sdk.capture_exception(error)
        sentry_sdk.capture_message("hello")
    assert len(transport.events) == 4


def test_what_a_filter_drops_may_be_sent_by_another(sentry):
    drop = {"otel_llm_callback"}
    transport = sentry(before_send=lambda event, _: None if event.get("logger") in drop else event)
    error = type("Mine", (ValueError,), {})()
    SentryCallback().on_error(error, make_error_context())
    sentry_sdk.capture_exception(error)
    assert [event.get("logger") for event in transport.events] == [None]


def test_an_ignored_error_is_ignored(sentry):
    transport = sentry(ignore_errors=[openai.RateLimitError, "ValueError"])
    SentryCallback().on_error(ValueError(), make_error_context())
    assert transport.events == []


def test_an_exception_is_not_kept_alive(sentry):
    import gc
    import weakref

    sentry()
    error = type("Mine", (ValueError,), {})()
    gone = weakref.ref(error)
    SentryCallback().on_error(error, make_error_context())
    sentry_sdk.capture_exception(ValueError("another one, for Sentry to remember"))
    del error
    gc.collect()
    assert gone() is None


# Patches `openai` for good, so it has a process of its own.
BESIDE = """
    import sys

    import openai
    import sentry_sdk
    from sentry_sdk.integrations.openai import OpenAIIntegration
    from sentry_sdk.transport import Transport

    from otel_llm_callback import flush, instrument
    from otel_llm_callback.callbacks import SentryCallback
    from otel_llm_callback.testing import JsonReply, ScriptedServer, error_body

    events = []

    class InMemory(Transport):
        def capture_envelope(self, envelope):
            events.append(envelope.get_event())

    sentry_sdk.init(dsn="https://key@sentry.invalid/1", transport=InMemory(), integrations=[OpenAIIntegration()])
    instrument(SentryCallback(), delivery=sys.argv[1], telemetry=False)
    with ScriptedServer(lambda _: JsonReply(error_body("no"), status=400)) as server:
        with openai.OpenAI(api_key="any", base_url=server.url) as client:
            try:
                client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
            except openai.BadRequestError:
                pass
    flush()
    print(len([event for event in events if event is not None]))
"""


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_beside_the_openai_integration_of_sentry_there_is_one_event(delivery):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BESIDE), delivery],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


# --- Without Sentry ---------------------------------------------------------------------------------------------------


def test_without_a_program_that_sets_sentry_up_it_says_so_once(client, server, expected_logs):
    server.reply = lambda _: REFUSED
    observe(SentryCallback(breadcrumbs=True))
    for _ in range(3):
        fail(client)
    assert [record.getMessage() for record in expected_logs] == [
        "SentryCallback sends nothing: call sentry_sdk.init() first"
    ]


def test_without_the_library_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.partition(".")[0] == "sentry_sdk":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install otel-llm-callback\[sentry\]"):
        SentryCallback()


def test_an_envelope_is_json(sentry):
    """Nothing of ours is an object that Sentry has to describe by its repr."""
    transport = sentry()
    SentryCallback().on_error(ValueError(), make_error_context(request=make_request(model="m\x00\u202e")))
    (event,) = transport.events
    assert json.loads(json.dumps(event["contexts"]["llm"])) == event["contexts"]["llm"]
