"""Live and translation sessions: a span each, and a call for each piece of work the voice model hands on."""

from __future__ import annotations

import contextlib
import inspect
import json

import pytest
from api_forms import exists
from websocket_server import CLOSE, DROP, Server, done, make_client, told

from otel_llm_callback import instrument, status
from otel_llm_callback._websockets import _seen
from otel_llm_callback.testing import RecordingCallback, decision, response_events

pytest.importorskip("websockets.sync.server")

needs_live = pytest.mark.skipif(not exists("live.connect"), reason="this openai has no live sessions")
needs_translations = pytest.mark.skipif(
    not exists("realtime.translations.connect"), reason="this openai has no translation sessions"
)
both_clients = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])

SECRET = "the secret of the house"
BACKEND = {"model": "gpt-back", "instructions": SECRET, "tools": [{"type": "web_search"}]}
WHOLE = ["request_sent", *["stream_chunk"] * 4, "response_received"]


def started(backend=None, **more):
    delegation = {"type": "responses", "responses": backend or BACKEND}
    session = {"id": "live_1", "model": "gpt-live-1", "status": "active", "expires_at": 1, "delegation": delegation}
    return {"type": "session.started", "event_id": "e1", "session": {**session, **more}}


def nested(number=1, *, lane="d1", text="Oslo", state="completed"):
    """The events of one response of the backend, as a live session passes them on."""
    events = response_events([text], status=state, response_id=f"resp_{number}", model="gpt-back-1", usage=(7, 5))
    kept = [events[0], next(event for event in events if "delta" in event), events[-2], events[-1]]
    return [{"type": "response.event", "event_id": "e", "delegation_id": lane, "event": event} for event in kept]


def delegated(lane="d1", target="responses"):
    delegation = {"type": "delegation", "id": lane, "target": target}
    return {"type": "session.delegation.created", "event_id": "e", "offset_ms": 1, "delegation": delegation}


def decided(lane="d1"):
    event = {"type": "decision.completed", "decision": decision(usage=(3, 2))}
    return {"type": "decision.event", "event_id": "e", "delegation_id": lane, "event": event}


@pytest.fixture
def live():
    _seen._seen.clear()
    server = Server("session.start", "response.create")
    yield server
    server.stop()


@contextlib.asynccontextmanager
async def opened(client, way):
    connect = {
        "live": client.live.connect,
        "fork": lambda: client.live.forks.connect(session_id="live_0"),
        "sideband": lambda: client.live.sideband.connect(session_id="live_1"),
        "translation": lambda: client.realtime.translations.connect(model="gpt-tr"),
    }[way]
    manager = connect()
    connection = await done(manager.enter())
    try:
        yield connection
    finally:
        await done(connection.close())


async def seen_by(server, way, is_async, *, count, asks=()):
    """What a program sees that sends some events and reads so many."""
    client = make_client(server, is_async)
    seen = []
    try:
        async with opened(client, way) as connection:
            for event in asks:
                await done(connection.send(event))
            for _ in range(count):
                event = await done(connection.recv())
                seen.append((type(event), event.to_json(warnings=False) if hasattr(event, "to_json") else event))
    except Exception as error:
        seen.append((type(error), str(error)))
    await done(client.close())
    return seen


START = {"type": "session.start", "session": {"model": "gpt-live-1"}}


@needs_live
@both_clients
@pytest.mark.parametrize("way", ["live", "fork", "sideband"])
async def test_work_that_is_handed_on_is_a_call_in_the_session(live, instrumented, recorder, telemetry, way, is_async):
    """However the session is watched: the response is told with its text, its model and its tokens."""
    live.script = [[started(), delegated(), *nested()]]
    await seen_by(live, way, is_async, count=6, asks=[START])
    assert told(recorder) == [
        ("live_session", ["request_sent", "response_received"], "completed"),
        ("chat", WHOLE, "completed"),
    ]
    response, session = telemetry.spans()
    assert (session.name, session.attributes["gen_ai.response.model"]) == ("live_session", "gpt-live-1")
    assert (response.name, response.parent) == ("chat gpt-back", session.context)
    assert response.attributes["gen_ai.response.id"] == "resp_1"
    used = [response.attributes[f"gen_ai.usage.{kind}_tokens"] for kind in ("input", "output")]
    assert used == [7, 5]
    assert "".join(map(str, recorder.chunks)) == "Oslo"
    assert SECRET not in "".join(span.to_json() for span in telemetry.spans())


@needs_live
@both_clients
@pytest.mark.parametrize("ending", [[], [DROP], [CLOSE]], ids=["whole", "dropped", "closed"])
async def test_the_program_sees_the_same_with_us(live, recorder, ending, is_async):
    """Types, events, exceptions and their order."""
    steps = [started(), delegated(), *nested(), decided("d2")]
    steps = steps[:4] + ending if ending else steps
    live.script = [list(steps), list(steps)]
    before = await seen_by(live, "live", is_async, count=7, asks=[START])
    sent = list(live.received)
    instrument(recorder, delivery="inline", telemetry=False)
    assert await seen_by(live, "live", is_async, count=7, asks=[START]) == before
    assert live.received == sent * 2
    assert len(recorder.calls()) >= 2


@needs_live
@both_clients
async def test_response_that_the_client_asks_for(live, instrumented, recorder, is_async):
    """It begins when it is asked for; the first one of a delegation is the voice model's, whatever was asked."""
    asked = {"type": "response.create", "event_id": "mine"}
    live.script = [[started(), delegated()], [*nested(1), *nested(2)]]
    await seen_by(live, "live", is_async, count=10, asks=[START, asked])
    assert told(recorder) == [
        ("live_session", ["request_sent", "response_received"], "completed"),
        ("chat", WHOLE, "completed"),
        ("chat", WHOLE, "completed"),
    ]
    ends = {end.id: end.request.started_ns for end in recorder.responses if end.request.operation == "chat"}
    assert list(ends) == ["resp_1", "resp_2"]
    assert ends["resp_2"] < ends["resp_1"]


@needs_live
async def test_response_that_is_refused(live, instrumented, recorder):
    """The error names the client's event; an error about something else ends nothing."""
    error = {"type": "invalid_request_error", "code": "no_backend", "message": SECRET}
    other = {"type": "error", "event_id": "e", "error": {**error, "client_event_id": "another"}}
    about = {"type": "error", "event_id": "e", "error": {**error, "client_event_id": "mine"}}
    live.script = [[started()], [other, about]]
    await seen_by(live, "live", False, count=3, asks=[START, {"type": "response.create", "event_id": "mine"}])
    (session, refused) = told(recorder)
    assert session[2] == "completed"
    assert refused == ("chat", ["request_sent", "stream_chunk", "error"], "error")
    assert [context.error_type for context in recorder.errors] == ["no_backend"]


@needs_live
async def test_response_that_breaks_in_the_backend(live, instrumented, recorder):
    """Its error is nested like its events."""
    error = {"type": "error", "code": "server_error", "message": SECRET, "sequence_number": 3, "param": None}
    passed_on = {"type": "response.event", "event_id": "e", "delegation_id": "d1", "event": error}
    live.script = [[started(), delegated(), nested()[0], passed_on]]
    await seen_by(live, "live", False, count=4, asks=[START])
    assert [context.error_type for context in recorder.errors] == ["server_error"]


@needs_live
async def test_decisions_are_calls_too(live, instrumented, recorder):
    """From the delegation to the answer; one that a transcript triggered is seen at its end only."""
    backend = {"model": "gpt-decide", "questions": []}
    delegation = {"type": "decisions", "decisions": backend}
    live.script = [[started(delegation=delegation), delegated("d1", "decisions"), decided("d1"), decided(None)]]
    await seen_by(live, "live", False, count=4, asks=[START])
    ends = [end for end in recorder.responses if end.request.operation == "decision"]
    assert [(end.request.model, end.model, end.usage.input_tokens, end.usage.output_tokens) for end in ends] == [
        ("gpt-decide", "gpt-6-luna", 3, 2),
        (None, "gpt-6-luna", 3, 2),
    ]


@needs_live
async def test_two_views_of_a_session_tell_of_a_response_once(live, instrumented, recorder):
    """As with a socket beside the main one: tokens must not count twice."""
    live.script = [[started(), delegated(), *nested()], [started(), delegated(), *nested()]]
    for way in ("live", "sideband"):
        await seen_by(live, way, False, count=6, asks=[START])
    assert [call[0] for call in told(recorder)] == ["live_session", "chat", "live_session"]


@needs_live
@pytest.mark.parametrize("ending", [DROP, CLOSE])
async def test_what_is_open_ends_with_the_connection(live, instrumented, recorder, ending):
    """Responses and decisions alike."""
    steps = [started(), delegated(), *nested()[:2], delegated("d2", "decisions")]
    live.script = [[*steps, ending]]
    await seen_by(live, "live", False, count=6, asks=[START])
    calls = {call[0]: call[2] for call in told(recorder)}
    assert {calls["chat"], calls["decision"]} == {"error"}


@needs_live
async def test_odd_events_reach_the_program_and_harm_nothing(live, instrumented, recorder):
    """Whatever a server sends."""
    odd = [
        {"type": "response.event"},
        {"type": "response.event", "event": {"type": 3}},
        {"type": "response.event", "event": {"type": "response.created", "response": []}, "delegation_id": {}},
        {"type": "decision.event", "event": 3},
        {"type": "session.delegation.created", "delegation": [1]},
        {"type": "session.started", "session": {"delegation": 7}},
    ]
    live.script = [[*odd, started(), delegated(), *nested()]]
    assert len(await seen_by(live, "live", False, count=12, asks=[START])) == 12
    assert ("chat", WHOLE, "completed") in told(recorder)


@needs_live
def test_content_of_the_backend_is_content(live, telemetry):
    """Instructions of the backend and its answer are shown only where content is."""
    recorder = RecordingCallback(content="none")
    instrument(recorder, delivery="inline", tracer_provider=telemetry.tracer_provider, capture_content="span_only")
    live.script = [[started(), delegated(), *nested()]]
    client = make_client(live, is_async=False)
    with client.live.connect() as connection:
        connection.send(START)
        for _ in range(6):
            connection.recv()
    client.close()
    span = next(span for span in telemetry.spans() if span.name.startswith("chat"))
    assert json.loads(span.attributes["gen_ai.system_instructions"]) == [{"type": "text", "content": SECRET}]
    assert json.loads(span.attributes["gen_ai.output.messages"])[0]["parts"] == [{"type": "text", "content": "Oslo"}]


# --- Translations -----------------------------------------------------------------------------------------------------

TRANSLATION = {
    "type": "session.created",
    "event_id": "e",
    "session": {"id": "tr_1", "type": "translation", "model": "gpt-tr-1", "expires_at": 1, "audio": {}},
}
HEARD = {"type": "session.output_transcript.delta", "event_id": "e", "delta": SECRET}


@needs_translations
@both_clients
@pytest.mark.parametrize(
    ("ending", "outcome"), [(None, "completed"), (CLOSE, "completed"), (DROP, "error")], ids=["", "closed", "dropped"]
)
async def test_translation_is_one_session(live, instrumented, recorder, telemetry, is_async, ending, outcome):
    """Its protocol has no responses and no tokens: one span, with the model the server named."""
    live.greeting = [TRANSLATION, HEARD, *([ending] if ending else [])]
    seen = await seen_by(live, "translation", is_async, count=3 if ending else 2)
    assert len(seen) == (3 if ending else 2)
    end = "error" if outcome == "error" else "response_received"
    assert told(recorder) == [("translation_session", ["request_sent", end], outcome)]
    (span,) = telemetry.spans()
    assert span.name == "translation_session gpt-tr"
    assert span.attributes["gen_ai.response.model"] == "gpt-tr-1"
    assert span.attributes["gen_ai.response.id"] == "tr_1"
    assert SECRET not in span.to_json()


# --- What we rely on in the SDK ---------------------------------------------------------------------------------------


@needs_live
@needs_translations
def test_each_connection_has_the_methods_we_wrap(recorder):
    """Nothing is missing in the newest SDK, and the classes are there under these names."""
    client = make_client(type("Nowhere", (), {"url": "http://127.0.0.1:9/v1"}), is_async=False)
    assert client.live.sideband
    assert client.live.forks
    assert client.realtime.translations
    client.close()
    instrument(recorder, delivery="inline")
    now = status()
    assert now.missing == ()
    for name in ("Live", "Forks", "Sideband", "Translations"):
        for start in ("", "Async"):
            assert f"{start}{name}Connection.parse_event" in now.covered


@needs_live
def test_nested_events_are_plain_mappings():
    """The SDK does not make objects of them, so we do."""
    from openai.types.live import ResponseEvent

    assert ResponseEvent.model_fields["event"].annotation == dict[str, object] or "Dict" in str(
        inspect.get_annotations(ResponseEvent)["event"]
    )
