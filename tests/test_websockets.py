"""Sessions over a websocket: one span each, one per response in it, and nothing changed for the program.

The server is a real one on the loopback. For every ``response.create`` it takes the next line of its script.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import socket
import weakref
from decimal import Decimal
from types import SimpleNamespace

import openai
import pytest
from websocket_server import CLOSE, DROP, Server, done, make_client, told

import otel_llm_callback
from otel_llm_callback import PriceTable, instrument, suppress, uninstrument
from otel_llm_callback.callbacks import CostTracker
from otel_llm_callback.testing import RecordingCallback

pytest.importorskip("websockets.sync.server")
realtime = pytest.importorskip("openai.resources.realtime.realtime")
responses = pytest.importorskip("openai.resources.responses.responses")
if not hasattr(responses, "ResponsesConnection"):
    pytest.skip("this openai has no responses.connect", allow_module_level=True)

SECRET = "the secret of the house"
SOUND = "UklGRiQAAABXQVZF"
SESSION = {
    "type": "session.created",
    "event_id": "e0",
    "session": {"type": "realtime", "id": "sess_1", "model": "rt-1"},
}
both_apis = pytest.mark.parametrize("api", ["realtime", "responses"])
both_clients = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
USAGE = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}


def spoken(api, number=1, *, status="completed", sound=False):
    """The events of one response."""
    name = f"resp_{number}"
    own = {"response_id": name, "event_id": "e"} if api == "realtime" else {"sequence_number": 1}
    place = {"item_id": "i", "output_index": 0, "content_index": 0, **own}
    content = [{"type": "output_text", "text": SECRET, "annotations": []}]
    item = {"id": "i", "type": "message", "role": "assistant", "status": "completed", "content": content}
    whole = {"id": name, "output": [item], "usage": USAGE}
    if api == "realtime":
        whole |= {"object": "realtime.response"}
        end = "response.done"
    else:
        whole |= {"object": "response", "model": "gpt-1", "created_at": 1}
        end = f"response.{status}"
    if status == "failed":
        error = {"code": "server_error", "type": "server_error", "message": SECRET}
        whole |= {"error": error, "status_details": {"type": "failed", "error": error}}
    deltas = [("response.output_audio.delta", SOUND)] if sound else [("response.output_text.delta", SECRET)]
    return [
        {
            "type": "response.created",
            **own,
            "response": {**whole, "output": [], "usage": None, "status": "in_progress"},
        },
        *({"type": kind, "delta": delta, **place} for kind, delta in deltas),
        {"type": end, **own, "response": {**whole, "status": status}},
    ]


@pytest.fixture
def sockets():
    server = Server()
    yield server
    server.stop()


def manager_of(client, api):
    return client.realtime.connect(model="rt") if api == "realtime" else client.responses.connect()


@contextlib.asynccontextmanager
async def opened(client, api):
    manager = manager_of(client, api)
    if hasattr(manager, "__aenter__"):
        async with manager as connection:
            yield connection
    else:
        with manager as connection:
            yield connection


async def ask(connection, api, **more):
    if api == "realtime":
        await done(connection.response.create(response={"instructions": SECRET}, **more))
    else:
        await done(connection.response.create(model="gpt", input=SECRET, **more))


async def read(connection, count):
    return [await done(connection.recv()) for _ in range(count)]


async def session(server, api, is_async, *, answers=1, count=3):
    """Open, ask for some answers, read them and close; what was read, and what was raised."""
    seen = []
    client = make_client(server, is_async)
    try:
        async with opened(client, api) as connection:
            for _ in range(answers):
                await ask(connection, api)
                seen += [(type(event), event.to_json()) for event in await read(connection, count)]
    except Exception as error:
        seen.append((type(error), str(error)))
    await done(client.close())
    return seen


OPERATION = {"realtime": "realtime_response", "responses": "chat"}
WHOLE = ["request_sent", "stream_chunk", "stream_chunk", "stream_chunk", "response_received"]


@both_apis
@both_clients
async def test_a_session_is_a_span_and_each_response_one_in_it(
    sockets, instrumented, recorder, telemetry, api, is_async
):
    sockets.script = [spoken(api, 1), spoken(api, 2)]
    await session(sockets, api, is_async, answers=2)
    operation = OPERATION[api]
    assert told(recorder) == [
        (f"{api}_session", ["request_sent", "response_received"], "completed"),
        (operation, WHOLE, "completed"),
        (operation, WHOLE, "completed"),
    ]
    first, second, whole = telemetry.spans()
    model = "rt" if api == "realtime" else "gpt"
    assert [span.name for span in (first, second, whole)] == [
        f"{operation} {model}",
        f"{operation} {model}",
        "realtime_session rt" if api == "realtime" else "responses_session",
    ]
    assert first.parent == second.parent == whole.context
    assert whole.parent is None
    assert (whole.attributes["server.address"], whole.attributes["server.port"]) == ("127.0.0.1", sockets.port)
    assert [span.attributes["gen_ai.response.id"] for span in (first, second)] == ["resp_1", "resp_2"]
    assert first.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert (first.attributes["gen_ai.usage.input_tokens"], first.attributes["gen_ai.usage.output_tokens"]) == (7, 5)
    assert SECRET not in "".join(span.to_json() for span in telemetry.spans())
    durations = telemetry.metrics("gen_ai.client.operation.duration")
    assert {point.attributes["gen_ai.operation.name"]: point.count for point in durations} == {
        operation: 2,
        f"{api}_session": 1,
    }
    tokens = telemetry.metrics("gen_ai.client.token.usage")
    assert {(p.attributes["gen_ai.token.type"], p.count, p.sum) for p in tokens} == {
        ("input", 2, 14),
        ("output", 2, 10),
    }


@both_apis
@both_clients
@pytest.mark.parametrize("ending", [[], [DROP], [CLOSE]], ids=["whole", "dropped", "closed"])
async def test_the_program_sees_the_same_with_us(sockets, recorder, api, is_async, ending):
    """Types, events, exceptions and their order."""
    steps = spoken(api)[: 2 if ending else 3] + ending
    sockets.script = [list(steps), list(steps)]
    before = await session(sockets, api, is_async)
    instrument(recorder, delivery="inline")
    assert await session(sockets, api, is_async) == before
    assert len(recorder.calls()) == 2


@both_apis
@both_clients
async def test_sound_is_told_of_without_its_data(sockets, instrumented, recorder, api, is_async):
    sockets.script = [spoken(api, sound=True)]
    await session(sockets, api, is_async)
    chunks = [event.chunk for event in recorder.events if event.name == "stream_chunk"]
    assert [str(chunk) for chunk in chunks] == ["", "", ""]
    if api == "realtime":
        assert [chunk.kind for chunk in chunks] == ["event", "audio", "event"]
    assert SOUND not in "".join(e.response_json for e in recorder.events if e.name == "response_received")


@both_apis
@both_clients
async def test_a_failed_response_is_an_error_and_the_session_is_not(sockets, instrumented, recorder, api, is_async):
    sockets.script = [spoken(api, status="failed")]
    await session(sockets, api, is_async)
    assert told(recorder) == [
        (f"{api}_session", ["request_sent", "response_received"], "completed"),
        (OPERATION[api], [*WHOLE[:-1], "error"], "error"),
    ]
    (failed,) = [event for event in recorder.events if event.name == "error"]
    assert failed.context.error_type == "server_error"


@both_apis
@both_clients
async def test_an_error_event_ends_the_response_it_refuses(sockets, instrumented, recorder, api, is_async):
    error = {"type": "invalid_request_error", "code": "bad_input", "message": SECRET, "event_id": None}
    sockets.script = [[{"type": "error", "event_id": "e", "error": error}]]
    await session(sockets, api, is_async, count=1)
    assert told(recorder) == [
        (f"{api}_session", ["request_sent", "response_received"], "completed"),
        (OPERATION[api], ["request_sent", "stream_chunk", "error"], "error"),
    ]
    assert [event.context.error_type for event in recorder.events if event.name == "error"] == ["bad_input"]


@both_apis
@both_clients
async def test_a_dropped_connection_fails_what_is_open(sockets, instrumented, recorder, telemetry, api, is_async):
    sockets.script = [[*spoken(api)[:2], DROP]]
    await session(sockets, api, is_async)
    assert told(recorder) == [
        (f"{api}_session", ["request_sent", "error"], "error"),
        (OPERATION[api], ["request_sent", "stream_chunk", "stream_chunk", "error"], "error"),
    ]
    assert {span.attributes["error.type"] for span in telemetry.spans()} == {"ConnectionClosedError"}


@both_apis
@both_clients
async def test_closing_early_is_not_an_error(sockets, instrumented, recorder, api, is_async):
    sockets.script = [spoken(api)[:2]]
    await session(sockets, api, is_async, count=2)
    assert told(recorder) == [
        (f"{api}_session", ["request_sent", "response_received"], "closed_early"),
        (OPERATION[api], [*WHOLE[:3], "response_received"], "closed_early"),
    ]


async def test_the_server_may_begin_a_response_by_itself(sockets, instrumented, recorder):
    """As with voice detection: ``response.created`` without a request."""
    sockets.greeting = [SESSION, *spoken("realtime")]
    client = make_client(sockets, is_async=False)
    with client.realtime.connect(model="rt") as connection:
        await read(connection, 4)
    client.close()
    assert [event[0:2] for event in told(recorder)] == [
        ("realtime_session", ["request_sent", "response_received"]),
        ("realtime_response", WHOLE),
    ]
    ends = {e.request.operation: e.metadata for e in recorder.events if e.name == "response_received"}
    assert [(end.id, end.model) for end in ends.values()] == [("resp_1", "rt-1"), ("sess_1", "rt-1")]


async def test_what_is_queued_before_the_connection_opens_is_told(sockets, instrumented, recorder):
    sockets.script = [spoken("responses")]
    client = make_client(sockets, is_async=False)
    manager = client.responses.connect()
    manager.send({"type": "response.create", "model": "gpt", "input": "a"})
    connection = manager.enter()
    await read(connection, 3)
    connection.close()
    client.close()
    assert told(recorder)[1] == ("chat", WHOLE, "completed")


@both_clients
async def test_a_connection_that_is_refused_is_an_error(instrumented, recorder, is_async):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    seen = await session(SimpleNamespace(url=f"http://127.0.0.1:{port}/v1"), "responses", is_async)
    assert (seen[0][0], told(recorder)) == (
        ConnectionRefusedError if not is_async else seen[0][0],
        [("responses_session", ["request_sent", "error"], "error")],
    )


@both_apis
async def test_suppressed_calls_are_not_told(sockets, instrumented, recorder, api):
    """A whole session, and one response in a session that is observed."""
    sockets.script = [spoken(api), spoken(api), spoken(api, 2)]
    with suppress():
        await session(sockets, api, is_async=False)
    assert recorder.events == []
    client = make_client(sockets, is_async=False)
    async with opened(client, api) as connection:
        with suppress():
            await ask(connection, api)
            await read(connection, 3)
        await ask(connection, api)
        await read(connection, 3)
    client.close()
    assert [call[0] for call in told(recorder)] == [f"{api}_session", OPERATION[api]]


@both_apis
async def test_a_hook_that_uses_the_connection_is_not_told_of_that(sockets, telemetry, api):
    """It wakes up inside an event and asks for another response: no lock is held, no call is told."""
    sockets.script = [spoken(api), spoken(api, 2)]
    client = make_client(sockets, is_async=False)
    recorder = RecordingCallback()

    class Asks:
        def on_response_received(self, metadata, response_json):
            if metadata.id == "resp_1":
                body = {"model": "gpt", "input": "a"} if api == "responses" else {}
                connection.send({"type": "response.create", **body})

    instrument(recorder, Asks(), delivery="inline", tracer_provider=telemetry.tracer_provider)
    with manager_of(client, api) as connection:
        await ask(connection, api)
        assert len(await read(connection, 6)) == 6
    client.close()
    assert [call[0] for call in told(recorder)] == [f"{api}_session", OPERATION[api]]


@both_apis
@both_clients
async def test_nothing_is_kept_after_the_end(sockets, instrumented, api, is_async):
    sockets.script = [spoken(api)]
    client = make_client(sockets, is_async)
    async with opened(client, api) as connection:
        await ask(connection, api)
        events = await read(connection, 3)
    kept = [weakref.ref(thing) for thing in (connection, *events)]
    await done(client.close())
    del connection, events
    gc.collect()
    assert [reference() for reference in kept] == [None] * 4


@both_apis
@both_clients
async def test_a_connection_that_is_dropped_is_abandoned(sockets, instrumented, recorder, api, is_async):
    """Nobody closes it; the collector finds it, and the next flush tells."""
    sockets.script = [spoken(api)[:2]]
    client = make_client(sockets, is_async)
    manager = manager_of(client, api)
    connection = await done(manager.enter())
    transport = connection._connection
    await ask(connection, api)
    await read(connection, 2)
    del connection, manager
    gc.collect()
    otel_llm_callback.flush()
    assert {(call[0], call[2]) for call in told(recorder)} == {
        (f"{api}_session", "abandoned"),
        (OPERATION[api], "abandoned"),
    }
    await done(transport.close())
    await done(client.close())


@both_apis
async def test_waiting_in_vain_for_an_event_ends_nothing(sockets, instrumented, recorder, api):
    """A cancelled ``recv`` loses no data, and the session goes on."""
    sockets.script = [spoken(api)]
    client = make_client(sockets, is_async=True)
    async with opened(client, api) as connection:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(connection.recv(), 0.05)
        await ask(connection, api)
        await read(connection, 3)
    await client.close()
    assert told(recorder) == [
        (f"{api}_session", ["request_sent", "response_received"], "completed"),
        (OPERATION[api], WHOLE, "completed"),
    ]


async def test_responses_in_two_lanes_are_told_apart(sockets, instrumented, recorder):
    """The events of a lane carry its ``stream_id``."""
    lanes = {name: [{**event, "stream_id": name} for event in spoken("responses", name)] for name in "ab"}
    mixed = [event for pair in zip(lanes["a"], lanes["b"], strict=True) for event in pair]
    sockets.script = [[], mixed]
    client = make_client(sockets, is_async=False)
    with client.responses.connect() as connection:
        for lane in "ab":
            connection.send({"type": "response.create", "model": "gpt", "input": "x", "stream_id": lane})
        await read(connection, 6)
    client.close()
    assert [call[1:] for call in told(recorder)[1:]] == [(WHOLE, "completed")] * 2
    ends = [event.metadata.id for event in recorder.events if event.name == "response_received"]
    assert ends[:2] == ["resp_a", "resp_b"]


@both_clients
async def test_a_session_goes_on_over_a_new_connection(sockets, instrumented, recorder, is_async):
    """Where the SDK reconnects: what was open on the old connection is lost, the session is not."""
    if "on_reconnecting" not in inspect.signature(openai.OpenAI(api_key="k").responses.connect).parameters:
        pytest.skip("this openai does not reconnect")
    sockets.script = [[*spoken("responses")[:2], DROP], spoken("responses", 2)]
    client = make_client(sockets, is_async)
    manager = client.responses.connect(on_reconnecting=lambda _: None, initial_delay=0.01)
    connection = await done(manager.enter())
    await ask(connection, "responses")
    await read(connection, 2)
    events = connection.__aiter__() if is_async else connection.__iter__()
    with contextlib.suppress(Exception):
        await done(connection.recv())
    if await done(connection._reconnect(closed_error())):
        await ask(connection, "responses")
        for _ in range(3):
            await events.__anext__() if is_async else next(events)
    await done(connection.close())
    await done(client.close())
    assert [(call[0], call[2]) for call in told(recorder)] == [
        ("responses_session", "completed"),
        ("chat", "error"),
        ("chat", "completed"),
    ]
    if is_async:
        await events.aclose()


def closed_error():
    from websockets.exceptions import ConnectionClosedError

    return ConnectionClosedError(None, None)


def test_uninstrument_puts_the_very_attributes_back_and_ends_what_is_open(sockets, recorder):
    classes = [realtime.RealtimeConnection, realtime.RealtimeConnectionManager, *realtime.RealtimeConnection.__mro__]
    before = [dict(vars(kind)) for kind in classes[:-1]]
    client = make_client(sockets, is_async=False)
    sockets.script = [spoken("realtime")]
    instrument(recorder, delivery="inline")
    with client.realtime.connect(model="rt") as connection:
        uninstrument()
        assert [dict(vars(kind)) for kind in classes[:-1]] == before
        connection.response.create()
        assert len([connection.recv() for _ in range(3)]) == 3
    client.close()
    assert told(recorder) == [("realtime_session", ["request_sent", "response_received"], "abandoned")]


def test_what_is_covered_is_named(recorder):
    instrument(recorder, delivery="inline")
    now = otel_llm_callback.status()
    assert now.missing == ()
    assert {"RealtimeConnection.parse_event", "AsyncResponsesConnectionManager.__aenter__"} <= set(now.covered)


# --- What we rely on in the SDK ---------------------------------------------------------------------------------------

CONNECTIONS = [
    realtime.RealtimeConnection,
    realtime.AsyncRealtimeConnection,
    responses.ResponsesConnection,
    responses.AsyncResponsesConnection,
]
MANAGERS = [
    realtime.RealtimeConnectionManager,
    realtime.AsyncRealtimeConnectionManager,
    responses.ResponsesConnectionManager,
    responses.AsyncResponsesConnectionManager,
]


@pytest.mark.parametrize("kind", CONNECTIONS)
def test_a_connection_has_the_methods_we_wrap(kind):
    is_async = kind.__name__.startswith("Async")
    names = ("recv_bytes", "parse_event", "close", "send", "send_raw")
    assert {name: inspect.iscoroutinefunction(getattr(kind, name)) for name in names} == dict.fromkeys(
        names, is_async
    ) | {"parse_event": False}
    source = inspect.getsource(kind.recv)
    assert "self.parse_event(" in source
    assert "self.recv_bytes()" in source
    if "send_raw" not in vars(kind):  # wrapped on the base class, which `send` names
        assert ".send_raw(self, data)" in inspect.getsource(kind.send)


@pytest.mark.parametrize("kind", MANAGERS)
def test_a_manager_enters_in_two_ways_and_keeps_client_and_query(kind):
    enter = "__aenter__" if kind.__name__.startswith("Async") else "__enter__"
    assert vars(kind)[enter] is vars(kind)["enter"]
    client = (openai.AsyncOpenAI if kind.__name__.startswith("Async") else openai.OpenAI)(api_key="k")
    api = "realtime" if "Realtime" in kind.__name__ else "responses"
    kept = vars(manager_of(client, api))
    assert kept[f"_{kind.__name__}__client"] is client
    assert f"_{kind.__name__}__extra_query" in kept
    if api == "realtime":
        assert kept[f"_{kind.__name__}__model"] == "rt"


def test_a_client_may_have_an_address_of_its_own_for_websockets():
    assert openai.OpenAI(api_key="k", websocket_base_url="ws://h:1/v1").websocket_base_url is not None


@pytest.mark.parametrize("base", [realtime.RealtimeConnection, responses.ResponsesConnection])
def test_a_connection_keeps_how_it_reconnects(base):
    assert "_on_reconnecting" in inspect.getsource(base.__init__) or hasattr(base, "_reconnect")


@both_apis
async def test_odd_events_reach_the_program_and_harm_nothing(sockets, instrumented, recorder, api):
    """Whatever a server sends, the calls end once."""
    odd = [[1], "a", {"type": 7}, {"type": "response.created", "response": []}, {"type": "session.x", "session": 1}]
    odd += [{"type": "response.output_text.delta", "delta": {}, "response_id": {}, "stream_id": []}, {"type": "error"}]
    whole = spoken(api)
    sockets.script = [[*whole[:1], *odd[:6], *whole[1:], odd[6]]]
    client = make_client(sockets, is_async=False)
    async with opened(client, api) as connection:
        await ask(connection, api)
        assert len(await read(connection, 10)) == 10
    client.close()
    calls = [call for call in told(recorder) if call[0] == OPERATION[api]]
    assert [(call[1][0], call[1][-1], call[2]) for call in calls][:1] == [
        ("request_sent", "response_received", "completed")
    ]
    assert all(call[1].count("response_received") + call[1].count("error") == 1 for call in calls)


@both_apis
async def test_each_response_of_a_session_is_priced(sockets, telemetry, recorder, api):
    """The session itself costs nothing, and nothing of it is missing."""
    sockets.script = [spoken(api, 1), spoken(api, 2)]
    rates = {"input": 2, "output": 8}
    tracker = CostTracker(prices=None)
    prices = PriceTable({"rt": rates, "gpt": rates, "gpt-1": rates})
    instrument(recorder, tracker, delivery="inline", prices=prices, tracer_provider=telemetry.tracer_provider)
    await session(sockets, api, is_async=False, answers=2)
    cost = Decimal("0.000054")  # 7 x 2 + 5 x 8
    assert [response.cost for response in recorder.responses if response.usage is not None] == [cost, cost]
    total = tracker.summary()
    assert (total.cost, total.priced_calls, total.calls_without_usage) == (2 * cost, 2, 0)
