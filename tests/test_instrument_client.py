"""One client is observed, the others are not; the global switch may be on as well."""

from __future__ import annotations

import asyncio
import gc
import weakref

import openai
import pytest

from otel_llm_callback import (
    CallbackStatus,
    MultiCallback,
    _client,
    flush,
    instrument,
    instrument_client,
    register,
    session,
    status,
    suppress,
    uninstrument,
    using,
)
from otel_llm_callback.config import ARGUMENTS
from otel_llm_callback.testing import (
    JsonReply,
    RecordingCallback,
    TelemetryCollector,
    chat_completion,
    check_grammar,
    error_body,
)

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
TOLD = ["request_sent", "response_received"]


def ask(client, **over):
    return client.chat.completions.create(**{**ASKED, **over})


@pytest.fixture
def other(server):
    with openai.OpenAI(api_key="test-key", base_url=server.url) as other:
        yield other


def test_one_client_is_observed_and_no_other(client, other, recorder):
    instrument_client(client, recorder, delivery="inline")
    ask(client)
    ask(other)
    assert recorder.names() == TOLD
    assert "request" not in vars(openai.OpenAI)


def test_status_has_the_callbacks_of_clients(client, recorder):
    """Behind those of everybody, with how they are told and what they took."""
    register(everybody := RecordingCallback(), delivery="inline")
    handle = instrument_client(client, MultiCallback(recorder, RecordingCallback()), delivery="queued")
    ask(client)
    assert flush(5)
    own = {"name": "RecordingCallback", "required": False, "failed": 0, "dropped": 0, "waiting": 0, "delivered": 2}
    assert status().callbacks == (
        CallbackStatus(delivery="inline", client_only=False, **own),
        CallbackStatus(delivery="queued", client_only=True, **own),
        CallbackStatus(delivery="queued", client_only=True, **own),
    )
    handle.remove()
    assert [callback.client_only for callback in status().callbacks] == [False]
    assert everybody.names() == TOLD


def test_handle_puts_the_client_back(client, recorder):
    """Its attributes are those of before, a method kept from meanwhile calls straight through."""
    ask(client)
    before = dict(vars(client))
    handle = instrument_client(client, recorder, delivery="inline")
    kept = client.request
    handle.remove()
    handle.remove()
    assert vars(client) == before
    ask(client)
    options = openai._models.FinalRequestOptions(method="post", url="/chat/completions", json_data=ASKED)
    assert kept(cast_to=object, options=options)["object"] == "chat.completion"
    assert recorder.events == []


async def test_asynchronous_client_is_observed(aclient, recorder):
    handle = instrument_client(aclient, recorder, delivery="inline")
    await ask(aclient)
    stream = await ask(aclient, stream=True)
    chunks = [chunk async for chunk in stream]
    handle.remove()
    await ask(aclient)
    assert recorder.names() == [*TOLD, TOLD[0], *["stream_chunk"] * len(chunks), TOLD[1]]
    check_grammar(recorder.events)


def test_azure_client_is_observed(server, recorder):
    server.reply = lambda _: JsonReply(chat_completion())
    with openai.AzureOpenAI(api_key="test-key", base_url=server.url, api_version="2024-10-21") as client:
        instrument_client(client, recorder, delivery="inline")
        ask(client)
        ask(client.with_options(timeout=9))
    assert recorder.names() == TOLD * 2
    assert {request.provider for request in recorder.requests} == {"azure.ai.openai"}


@pytest.mark.parametrize("make", [lambda c: c.with_options(timeout=9), lambda c: c.copy(), lambda c: c.copy().copy()])
def test_copies_are_observed_too(client, other, recorder, make):
    handle = instrument_client(client, recorder, delivery="inline")
    copy = make(client)
    ask(copy)
    ask(make(other))
    assert recorder.names() == TOLD
    handle.remove()
    ask(copy)
    assert recorder.names() == TOLD
    assert [name for name in vars(copy) if name in ("request", "copy", "_otel_llm_callback")] == []


async def test_copy_of_an_asynchronous_client_is_observed(aclient, recorder):
    instrument_client(aclient, recorder, delivery="inline")
    await ask(aclient.with_options(max_retries=0))
    assert recorder.names() == TOLD


def test_callback_added_to_a_copy_is_not_told_of_the_original(client, recorder):
    mine = RecordingCallback()
    instrument_client(client, recorder, delivery="inline")
    copy = client.copy()
    instrument_client(copy, mine, delivery="inline")
    ask(client)
    ask(copy)
    assert (recorder.names(), mine.names()) == (TOLD * 2, TOLD)


def test_second_call_adds_callbacks_and_each_handle_removes_its_own(client, recorder):
    second = RecordingCallback()
    first_handle = instrument_client(client, recorder, delivery="inline")
    second_handle = instrument_client(client, second, delivery="inline")
    ask(client)
    first_handle.remove()
    ask(client)
    second_handle.remove()
    ask(client)
    assert (recorder.names(), second.names()) == (TOLD, TOLD * 2)
    assert "request" not in vars(client)


def test_dropped_client_is_freed(server, recorder):
    """Neither the registry nor a handle keeps a client alive."""
    client = openai.OpenAI(api_key="test-key", base_url=server.url)
    handle = instrument_client(client, recorder, delivery="inline")
    ask(client)
    client.close()
    gone = weakref.ref(client)
    del client
    gc.collect()
    assert gone() is None
    register(RecordingCallback()).remove()
    handle.remove()


def test_thousand_clients_cost_no_threads(server, recorder):
    """Queued callbacks of all clients share one worker."""
    handles = []
    for _ in range(3):
        with openai.OpenAI(api_key="test-key", base_url=server.url) as client:
            handles.append(instrument_client(client, RecordingCallback()))
            ask(client)
    assert flush()
    assert [handle.delivered for handle in handles] == [2, 2, 2]
    workers = {listener.callback.worker for handle in handles for listener in handle.listeners}
    assert len(workers) == 1


# --- Beside the global switch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["client", "global"])
def test_client_and_global_callbacks_are_told_each_once(client, other, telemetry, first):
    """Whichever is switched on first: one exchange, one span, the client's callbacks before the global ones."""
    order = []

    class Told:
        def __init__(self, name):
            self.name = name

        def on_request_sent(self, metadata, request_json):
            order.append((self.name, metadata.call_id))

    def switch_on():
        instrument(Told("global"), delivery="inline", tracer_provider=telemetry.tracer_provider)

    if first == "global":
        switch_on()
    instrument_client(client, Told("client"), delivery="inline")
    if first == "client":
        switch_on()
    ask(client)
    assert [name for name, _ in order] == ["client", "global"]
    assert len({call_id for _, call_id in order}) == 1
    assert len(telemetry.spans()) == 1
    ask(other)
    assert [name for name, _ in order] == ["client", "global", "global"]


def test_precedence_is_required_per_call_per_client_global(client):
    order = []

    class Told:
        def __init__(self, name):
            self.name = name

        def on_request_sent(self, metadata, request_json):
            order.append(self.name)

    instrument(Told("global"), delivery="inline", telemetry=False)
    instrument_client(client, Told("per client"))
    register(Told("required"), delivery="inline", required=True)
    with using(Told("per call"), delivery="inline"):
        ask(client)
    assert order == ["required", "per call", "per client", "global"]


def test_same_callback_here_and_globally_is_told_once(client, recorder):
    instrument(recorder, delivery="inline")
    instrument_client(client, MultiCallback(recorder, recorder))
    ask(client)
    assert recorder.names() == TOLD


def test_retries_are_counted_once(server, client, recorder):
    """Class and client are wrapped alike."""
    replies = iter([JsonReply(error_body("slow down"), status=429)])
    server.reply = lambda _: next(replies, None)
    instrument(delivery="inline")
    instrument_client(client, recorder)
    instrument()
    ask(client)
    assert [len(response.retries) for response in recorder.responses] == [1]


def test_global_switch_may_go_on_and_off(client, recorder):
    """The client stays observed; after its handle is removed the global switch still holds."""
    everybody = RecordingCallback()
    handle = instrument_client(client, recorder, delivery="inline")
    for _ in range(2):
        instrument(everybody, delivery="inline")
        ask(client)
        uninstrument()
        ask(client)
    assert (recorder.names(), everybody.names()) == (TOLD * 4, TOLD * 2)
    instrument(everybody, delivery="inline")
    handle.remove()
    ask(client)
    assert (recorder.names(), everybody.names()) == (TOLD * 4, TOLD * 3)


def test_registered_callbacks_are_told_without_instrument(client, other, recorder):
    registration = register(recorder, delivery="inline")
    instrument_client(client)
    ask(client)
    ask(other)
    registration.remove()
    ask(client)
    assert recorder.names() == TOLD


def test_session_and_silence_hold(client, recorder):
    instrument_client(client, recorder, delivery="inline")
    with session("s-1"):
        ask(client)
        with suppress():
            ask(client)
    assert [request.session_id for request in recorder.requests] == ["s-1"]


# --- Telemetry --------------------------------------------------------------------------------------------------------


def test_client_has_spans_of_its_own_without_the_global_switch(client, other, telemetry, recorder):
    instrument_client(
        client,
        recorder,
        delivery="inline",
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
    )
    ask(client)
    ask(other)
    assert flush()
    assert [span.name for span in telemetry.spans()] == ["chat gpt-4o-mini"]
    assert [point.count for point in telemetry.metrics("gen_ai.client.operation.duration")] == [1]
    assert recorder.requests[0].span_id == f"{telemetry.spans()[0].context.span_id:016x}"


def test_settings_of_telemetry_given_to_the_client_decide(client, other, telemetry):
    """Its provider is its own; what was not given is as it is globally."""
    instrument(tracer_provider=telemetry.tracer_provider, capture_content="span_only")
    with TelemetryCollector() as mine:
        handle = instrument_client(client, tracer_provider=mine.tracer_provider)
        ask(client)
        ask(other)
        assert (len(mine.spans()), len(telemetry.spans())) == (1, 1)
        assert "gen_ai.input.messages" in mine.spans()[0].attributes
        handle.remove()
        ask(client)
        assert (len(mine.spans()), len(telemetry.spans())) == (1, 2)


def test_client_without_telemetry_has_callbacks_only(client, other, telemetry, recorder):
    instrument(tracer_provider=telemetry.tracer_provider)
    instrument_client(client, recorder, delivery="inline", telemetry=False)
    ask(client)
    assert (telemetry.spans(), recorder.names()) == ((), TOLD)
    ask(other)
    assert len(telemetry.spans()) == 1


def test_providers_by_host_are_the_client_s_own(client, other, recorder):
    instrument(recorder, delivery="inline")
    instrument_client(client, providers={"127.0.0.1": "mine", "localhost": "mine"})
    ask(client)
    ask(other)
    assert [request.provider for request in recorder.requests] == ["mine", "openai"]


def test_forked_child_leaves_the_parent_s_calls_alone(client, telemetry):
    """What was open at the fork is the parent's to end."""
    instrument_client(client, tracer_provider=telemetry.tracer_provider)
    stream = ask(client, stream=True)
    _client._state.forget_parent()
    list(stream)
    assert telemetry.spans() == ()
    ask(client)
    assert len(telemetry.spans()) == 1


def test_copy_that_cannot_be_observed_is_a_copy_all_the_same(client, recorder, monkeypatch, expected_logs):
    """The caller gets the copy, and one line says what is lost."""
    instrument_client(client, recorder, delivery="inline")
    monkeypatch.setattr("otel_llm_callback._openai.patch_client", None)
    ask(client.copy())
    assert recorder.events == []
    assert [record.getMessage().splitlines()[0] for record in expected_logs] == [
        "the copy of a client is not observed (stage copy): TypeError; the call is unaffected"
    ]


def test_redactor_and_usage_of_streams_may_be_the_client_s_own(client, server):
    """Settings that act on the call itself follow the client."""
    redacted = RecordingCallback("redacted")
    instrument_client(client, redacted, delivery="inline", redactor=str.upper, include_usage=True)
    list(ask(client, stream=True))
    assert '"content":"HI"' in redacted.events[0].request_json
    assert server.requests[0].json["stream_options"] == {"include_usage": True}


# --- Mistakes ---------------------------------------------------------------------------------------------------------


class Misspelt:
    def on_response_recieved(self, metadata, response_json):
        pass


class Asynchronous:
    async def on_request_sent(self, metadata, request_json):
        pass


HOOKS = "on_request_sent, on_stream_chunk, on_response_received, on_error"
MISTAKES = {
    "setting": (
        (),
        {"colour": "red"},
        TypeError,
        f"unknown setting colour; the settings are {', '.join(sorted(ARGUMENTS))}",
    ),
    "value": ((), {"metrics": "imperial"}, ValueError, "metrics='imperial' is not allowed; allowed: `current`, `next`"),
    "no callback": ((42,), {}, TypeError, f"int is no callback: it needs at least one of {HOOKS}"),
    "misspelt": ((Misspelt(),), {}, TypeError, "Misspelt has on_response_recieved, which is no hook"),
    "reference": ((), {"callbacks": ["nowhere:Nobody"]}, ValueError, "'nowhere:Nobody' cannot be loaded"),
    "inline async": ((Asynchronous(),), {"delivery": "inline"}, ValueError, "cannot be delivered 'inline'"),
    "provider": ((), {"tracer_provider": "the default"}, AttributeError, ""),
}


@pytest.mark.parametrize(("callbacks", "settings", "error", "text"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_one_clear_error_and_nothing_has_changed(client, recorder, callbacks, settings, error, text):
    before = dict(vars(client))
    with pytest.raises(error) as raised:
        instrument_client(client, recorder, *callbacks, **settings)
    assert text in str(raised.value)
    assert vars(client) == before
    ask(client)
    assert recorder.events == []


@pytest.mark.parametrize("given", [42, openai.OpenAI, None], ids=["number", "class", "nothing"])
def test_what_is_no_client_is_refused(given, recorder):
    with pytest.raises(TypeError, match="is no client; allowed: an OpenAI or AsyncOpenAI object"):
        instrument_client(given, recorder)


def test_callbacks_may_be_named(client):
    handle = instrument_client(client, callbacks=["otel_llm_callback.testing:RecordingCallback"], delivery="inline")
    ask(client)
    assert (handle.delivered, handle.failed, handle.dropped) == (2, 0, 0)
    assert repr(handle) == "<ClientRegistration of 1 callbacks: 2 delivered>"


async def test_concurrent_calls_are_kept_apart(aclient, recorder):
    instrument_client(aclient, recorder, delivery="inline")
    await asyncio.gather(*(ask(aclient) for _ in range(20)))
    assert len(recorder.calls()) == 20
    check_grammar(recorder.events)
