"""Twelve ways a stream can end, sync and async: each is told once, with the right outcome, and leaves nothing."""

from __future__ import annotations

import asyncio
import gc
import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import forms
import openai
import pytest
import scenarios as s
from scenarios import Failed, Received, Scene, Sent, told

import otel_llm_callback
from otel_llm_callback._exchange import Exchange, has_abandoned
from otel_llm_callback._streams import Body, Observed
from otel_llm_callback.telemetry import OpenTelemetryCallback
from otel_llm_callback.testing import StreamReply, chat_completion, error_body

# What exists per call; none of it may outlive the call.
PER_CALL = (Exchange, Observed, Body, openai.Stream, openai.AsyncStream)

NOTHING_READ = Received(id=None, model=None, finish_reasons=(), usage=None, chunks=0)


def two_words_then(*events: object) -> StreamReply:
    """Two chunks, then *events*, then silence until the client leaves."""
    return StreamReply([s.delta(content="word ")] * 2 + [*events, *[b""] * 500], delay_s=0.01)


def failed_after_two(error: str, outcome: str = "error") -> tuple[Any, ...]:
    partial = Received(outcome, finish_reasons=("error",), usage=None, chunks=2)
    return (Sent(stream=True), s.Chunk("word "), s.Chunk("word "), Failed(error, outcome, partial=partial))


@pytest.fixture(scope="module", autouse=True)
def quick_collector():
    """What exists already is none of the collector's business here; a collection then takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@dataclass(frozen=True)
class Ending:
    """One way for a stream to end.

    Attributes:
        events: What callbacks are told.
        hung_up: Whether the server sees the client leave before everything was sent.
    """

    name: str
    sync: Callable[[Scene], object]
    asynchronous: Callable[[Scene], Any]
    reply: StreamReply
    events: tuple[Any, ...]
    hung_up: bool = True

    def __str__(self) -> str:
        return self.name


def read_interrupted(scene):
    """Read until Ctrl-C, which arrives while the next chunk is awaited."""

    def events():
        yield s.delta(content="word ")
        yield s.delta(content="word ")
        time.sleep(0.1)  # by now the reader waits again
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        yield from [b": still here\n\n"] * 500

    scene.server.reply = lambda request: StreamReply(events(), delay_s=0.01)
    # A shell starts its background jobs with the signal ignored, and Python then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return forms.read(scene)
    finally:
        signal.signal(signal.SIGINT, before)


ENDINGS = (
    Ending("exhausted", forms.read, forms.aread, s.STREAM, s.READ, hung_up=False),
    Ending("closed", forms.close_after_two, forms.aclose_after_two, s.ENDLESS, (*s.BEGUN, s.left("closed_early", 2))),
    Ending(
        "with left by break",
        forms.break_in_with,
        forms.abreak_in_with,
        s.ENDLESS,
        (*s.BEGUN, s.left("closed_early", 2)),
    ),
    Ending(
        "with left by exception",
        forms.raise_in_with,
        forms.araise_in_with,
        s.ENDLESS,
        (*s.BEGUN, s.left("closed_early", 2)),
    ),
    Ending(
        "helper left", forms.leave_helper, forms.aleave_helper, s.ENDLESS, (*s.BEGUN[:2], s.left("closed_early", 1))
    ),
    Ending(
        "response closed", forms.close_response, forms.aclose_response, s.ENDLESS, (*s.BEGUN, s.left("closed_early", 2))
    ),
    Ending("dropped", forms.drop_after_two, forms.adrop_after_two, s.ENDLESS, (*s.BEGUN, s.left("abandoned", 2))),
    Ending(
        "dropped unread",
        forms.drop_unread,
        forms.adrop_unread,
        s.ENDLESS,
        (Sent(stream=True), NOTHING_READ._replace(outcome="abandoned")),
        hung_up=False,  # the SDK itself leaves the connection open until the client is closed
    ),
    Ending(
        "closed unread",
        forms.close_unread,
        forms.aclose_unread,
        s.ENDLESS,
        (Sent(stream=True), NOTHING_READ._replace(outcome="closed_early")),
    ),
    Ending(
        "error event",
        forms.read,
        forms.aread,
        two_words_then(error_body("overloaded", "server_error")),
        failed_after_two("APIError"),
    ),
    Ending(
        "connection cut",
        forms.read,
        forms.aread,
        StreamReply([s.delta(content="word ")] * 2, cut_after=2),
        failed_after_two(forms.StreamCut.__name__),
        hung_up=False,
    ),
    Ending(
        "interrupted", read_interrupted, forms.cancel_mid_stream, two_words_then(), failed_after_two("?", "cancelled")
    ),
)


@pytest.mark.parametrize("ending", ENDINGS, ids=str)
def test_stream_ends_once(ending, server, client, recorder, telemetry, instrumented):
    """One terminal event, one span, nothing retained, and the connection is let go of."""
    if ending.name == "interrupted" and sys.platform == "win32":
        pytest.skip("a thread cannot send a signal to another")
    server.reply = lambda request: ending.reply
    leave(ending.sync, Scene(client, s.chat()(), server))
    assert otel_llm_callback.flush(5)
    check_end(ending, recorder, telemetry, "KeyboardInterrupt")
    recorder.clear()  # the exceptions in there have tracebacks, which hold streams
    assert retained() == []
    hang_ups_seen(server, ending.hung_up)


@pytest.mark.parametrize("ending", ENDINGS, ids=str)
async def test_async_stream_ends_once(ending, server, aclient, recorder, telemetry, instrumented):
    """The same for the async client."""
    server.reply = lambda request: ending.reply
    await aleave(ending.asynchronous, Scene(aclient, s.chat()(), server))
    assert await otel_llm_callback.aflush(5)
    check_end(ending, recorder, telemetry, "CancelledError")
    recorder.clear()
    for _ in range(3):  # the loop closes what the collector found, and then there is more to collect
        gc.collect()
        await asyncio.sleep(0.001)
    assert retained() == []
    await asyncio.to_thread(hang_ups_seen, server, ending.hung_up)


def leave(form, scene):
    """Run *form* and let go of everything it returned or raised."""
    try:
        form(scene)
    except (Exception, KeyboardInterrupt):
        return


async def aleave(form, scene):
    try:
        await form(scene)
    except (Exception, asyncio.CancelledError):
        return


def check_end(ending, recorder, telemetry, interruption):
    """One terminal event, one span, one duration, all with the outcome of *ending*."""
    *before, end = ending.events
    if isinstance(end, Failed) and end.error == "?":
        end = end._replace(error=interruption)
    assert told(recorder) == [(*before, end)]
    (span,) = telemetry.spans()
    assert span.attributes["llm_callback.outcome"] == end.outcome
    assert span.status.status_code.name == ("ERROR" if isinstance(end, Failed) else "UNSET")
    (duration,) = telemetry.metrics("gen_ai.client.operation.duration")
    assert duration.count == 1


def retained():
    """Everything that exists per call and is still there, and every entry in a registry of ours."""
    gc.collect()
    gc.collect()  # the first one closed generators, which kept what they held until then
    objects = gc.get_objects()
    left_over = [kind.__name__ for kind in map(type, objects) if kind in PER_CALL]
    open_spans = [span for each in objects if type(each) is OpenTelemetryCallback for span in each._open]
    return [*left_over, *open_spans, *(["abandoned"] if has_abandoned() else [])]


def hang_ups_seen(server, expected):
    deadline = time.monotonic() + 3
    while expected and server.closed_early == 0 and time.monotonic() < deadline:
        time.sleep(0.002)
    assert server.closed_early == int(expected)


# --- Abandoned streams ------------------------------------------------------------------------------------------------


def test_dropped_stream_is_ended_by_the_next_call(server, client, recorder, instrumented):
    """Nobody has to flush: the next call of the program tells the end of the stream that was dropped before."""
    server.reply = lambda request: s.ENDLESS if request.json.get("stream") else s.ANSWER
    scene = Scene(client, s.chat()(), server)
    leave(forms.drop_after_two, scene)
    leave(forms.create, scene)
    assert told(recorder) == [(*s.BEGUN, s.left("abandoned", 2)), (Sent(), Received())]


def test_dropped_stream_ended_when_its_last_chunk_came(server, client, recorder, telemetry, instrumented):
    """However late the end is noticed, the duration is that of the stream as far as it was read."""
    server.reply = lambda request: s.ENDLESS
    leave(forms.drop_after_two, Scene(client, s.chat()(), server))
    time.sleep(0.05)
    assert otel_llm_callback.flush(5)
    (span,), (response,) = telemetry.spans(), recorder.responses
    assert (span.end_time, response.ended_ns) == (recorder.chunks[-1].at_ns, recorder.chunks[-1].at_ns)


def test_stream_in_a_cycle_ends_when_it_is_collected(server, client, recorder, instrumented):
    """A stream that only the garbage collector can find is abandoned, and not taken for closed by the caller."""
    server.reply = lambda request: s.ENDLESS
    scene = Scene(client, s.chat()(), server)

    def lose():
        chunks = client.chat.completions.create(stream=True, **scene.arguments)
        kept: list[object] = [chunks, next(chunks), next(chunks)]
        kept.append(kept)

    lose()
    gc.collect()
    assert otel_llm_callback.flush(5)
    assert told(recorder) == [(*s.BEGUN, s.left("abandoned", 2))]


def test_raw_stream_dropped_unparsed_is_abandoned(server, client, recorder, instrumented):
    """Nobody ever asked for its chunks."""
    server.reply = lambda request: s.ENDLESS
    client.chat.completions.with_raw_response.create(stream=True, **s.chat()())
    gc.collect()
    assert otel_llm_callback.flush(5)
    assert told(recorder) == [(Sent(stream=True), NOTHING_READ._replace(outcome="abandoned"))]


def test_many_dropped_streams_leave_nothing(server, client, recorder, telemetry, instrumented):
    """Registries and memory do not grow with streams nobody reads to the end."""
    server.reply = lambda request: StreamReply(s.ENDLESS.events)
    scene = Scene(client, s.chat()(), server)
    for _ in range(100):
        leave(forms.drop_after_two, scene)
        gc.collect(0)
    assert otel_llm_callback.flush(5)
    assert told(recorder) == [(*s.BEGUN, s.left("abandoned", 2))] * 100
    assert len(telemetry.spans()) == 100
    recorder.clear()
    assert retained() == []


# --- Races ------------------------------------------------------------------------------------------------------------


def test_racing_threads_end_a_stream_once(server, client, recorder, instrumented):
    """One thread reads, one closes the stream, one its response: whoever is first, there is one end."""
    server.reply = lambda request: StreamReply(s.STREAM.events, delay_s=0.0005)

    def attempt(action):
        barrier.wait(5)
        try:
            action()
        except Exception:  # reading what another thread closes fails in the SDK's own ways
            return

    def race():
        chunks = client.chat.completions.create(stream=True, **s.chat()())
        actions = (lambda: list(chunks), chunks.close, chunks.response.close)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(attempt, actions))

    barrier = threading.Barrier(3)
    for _ in range(40):
        race()
    assert otel_llm_callback.flush(5)
    ends = [call[-1] for call in told(recorder)]  # told() checks that there is one
    assert len(ends) == 40
    assert {end.outcome for end in ends} <= {"completed", "closed_early", "abandoned", "error"}


async def test_cancelled_close_ends_the_stream(server, aclient, recorder, instrumented):
    """A task cancelled while it closes its stream leaves no call open."""
    server.reply = lambda request: s.ENDLESS
    chunks = await aclient.chat.completions.create(stream=True, **s.chat()())
    await anext(chunks)
    await anext(chunks)
    closing = asyncio.create_task(chunks.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    del chunks
    assert await otel_llm_callback.aflush(5)
    (call,) = told(recorder)
    assert call[-1].outcome in ("closed_early", "abandoned")


# --- The interplay of chunks and ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [0, 1, 2, 5, 6])
def test_chunks_are_told_as_they_are_taken(taken, server, client, recorder, instrumented):
    """Callbacks hear of exactly the chunks the caller took, before the next one is asked for."""
    server.reply = lambda request: s.STREAM
    with client.chat.completions.create(stream=True, **s.chat()()) as chunks:
        for number, _ in enumerate(itertools.islice(chunks, taken), start=1):
            assert len(recorder.chunks) == number
    assert len(recorder.chunks) == taken


def test_finish_reason_that_arrived_is_told_though_the_stream_was_left(server, client, recorder, instrumented):
    """What arrived before an early close is reported as it arrived."""
    server.reply = lambda request: StreamReply([*s.STREAM.events[:-1], *[b""] * 500], delay_s=0.005)
    with client.chat.completions.create(stream=True, **s.chat()()) as chunks:
        for chunk in chunks:
            if chunk.choices[0].finish_reason:
                break
    assert told(recorder)[0][-1] == Received("closed_early", usage=None, chunks=5)


def test_answer_of_a_stream_is_put_together(server, client, recorder, instrumented):
    """The response JSON of a stream has the shape of an answer that was not streamed."""
    import json

    server.reply = lambda request: s.STREAM
    list(client.chat.completions.create(stream=True, **s.chat()()))
    whole = chat_completion("".join(s.PIECES), model=s.ANSWERED_BY, usage=s.USAGE)
    (message,) = [choice["message"] for choice in whole["choices"]]
    answer = json.loads(recorder.events[-1].response_json)
    assert answer == {
        "id": whole["id"],
        "object": "chat.completion",
        "created": whole["created"],
        "model": whole["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": message["content"]},
                "finish_reason": "stop",
            }
        ],
        "usage": whole["usage"],
    }


def test_stream_without_a_name_is_not_dropped_while_it_is_read(server, client, recorder, instrumented):
    """``for chunk in create(…)`` holds the iterator only; calls made meanwhile must not end the stream."""
    server.reply = lambda request: s.STREAM if request.json.get("stream") else s.ANSWER
    for _ in client.chat.completions.create(stream=True, **s.chat()()):
        client.chat.completions.create(**s.chat()())
        assert otel_llm_callback.flush(5)
    assert told(recorder) == [s.READ, *[(Sent(), Received())] * 6]


async def test_async_stream_without_a_name_is_not_dropped_while_it_is_read(server, aclient, recorder, instrumented):
    """The same for the async client."""
    server.reply = lambda request: s.STREAM if request.json.get("stream") else s.ANSWER
    async for _ in await aclient.chat.completions.create(stream=True, **s.chat()()):
        await aclient.chat.completions.create(**s.chat()())
        assert await otel_llm_callback.aflush(5)
    assert told(recorder) == [s.READ, *[(Sent(), Received())] * 6]
