"""Ten callbacks at once, each in its own way, on 200 streams that are open at the same time."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from otel_llm_callback import DeliveryOptions, flush, instrument, session, status
from otel_llm_callback.callbacks import batch, only, sample, where
from otel_llm_callback.testing import RecordingCallback, ScriptedServer, StreamReply, chat_chunks, check_grammar

STREAMS = 200
CHUNKS = 6
"""With text; one before them carries the role, one after them the finish reason."""

ASK_TIMEOUT_S = 120

QUEUE_SIZE = 2 * STREAMS * (CHUNKS + 4)
"""Room for all chunks in the half that is theirs: nothing may be left out, however slow the machine."""


class AsyncRecorder(RecordingCallback):
    async def on_request_sent(self, metadata, request_json):
        super().on_request_sent(metadata, request_json)

    async def on_stream_chunk(self, chunk, index):
        super().on_stream_chunk(chunk, index)

    async def on_response_received(self, metadata, response_json):
        super().on_response_received(metadata, response_json)


def recorder(content="full", *, kind=RecordingCallback, **options):
    made = kind(content)
    made.delivery_options = DeliveryOptions(queue_size=QUEUE_SIZE, **options)
    return made


def texts(number):
    return [f"{number}.{index} " for index in range(CHUNKS)]


def body(number):
    return {
        "model": f"model-{number % 4}",
        "messages": [{"role": "user", "content": f"number {number}"}],
        "stream": True,
    }


def answer(together):
    """A reply that begins once all requests are there: the streams are open at the same time."""

    def reply(request):
        together.wait(ASK_TIMEOUT_S)
        return StreamReply(chat_chunks(texts(int(request.json["messages"][0]["content"].split()[1]))))

    return reply


def read(client, number):
    with session(f"s-{number}"):
        stream = client.chat.completions.create(**body(number))
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def with_threads(url):
    with openai.OpenAI(api_key="none", base_url=url) as client, ThreadPoolExecutor(STREAMS) as pool:
        return list(pool.map(lambda number: read(client, number), range(STREAMS)))


def with_tasks(url):
    async def read_one(client, number):
        with session(f"s-{number}"):
            stream = await client.chat.completions.create(**body(number))
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def read_all():
        async with openai.AsyncOpenAI(api_key="none", base_url=url) as client:
            return await asyncio.gather(*(read_one(client, number) for number in range(STREAMS)))

    return asyncio.run(read_all())


def log_of(events):
    """What a callback was told of one call: the events with what content they carried."""
    told = []
    for event in events:
        if event.name == "request_sent":
            told.append((event.name, json.loads(event.request_json)["messages"] if event.request_json else None))
        elif event.name == "stream_chunk":
            told.append((event.name, event.index, str(event.chunk)))
        else:
            told.append((event.name, event.metadata.outcome, event.metadata.chunk_count))
    return told


def expected(number, content="full", *, chunks=True):
    said = {"full": f"number {number}", "redacted": "[redacted]"}
    messages = None if content == "none" else [{"role": "user", "content": said[content]}]
    pieces = ["", *texts(number), ""] if content == "full" else [""] * (CHUNKS + 2)
    return [
        ("request_sent", messages),
        *([("stream_chunk", index, piece) for index, piece in enumerate(pieces)] if chunks else []),
        ("response_received", "completed", CHUNKS + 2),
    ]


@pytest.mark.parametrize("ask", [with_threads, with_tasks])
def test_each_of_ten_sees_its_full_ordered_log_once(ask):
    """Whatever the others are: filtered, queued or not, awaited or not, with more content or with less."""
    plain_inline, plain_queued = recorder(delivery="inline"), recorder(overflow="block")
    redacted, bare = recorder("redacted"), recorder("none", delivery="inline")
    awaited, by_model = recorder(kind=AsyncRecorder), recorder(overflow="drop_new")
    half, odd, at_the_end = recorder(delivery="inline"), recorder(content="redacted"), recorder("none")
    lists = []
    together = threading.Barrier(STREAMS)
    with ScriptedServer(answer(together)) as server:
        instrument(
            plain_inline,
            plain_queued,
            redacted,
            bare,
            awaited,
            only(by_model, model=["model-1", "*-3"]),
            sample(half, 0.5, key="session"),
            where(odd, lambda request: int(request.session_id[2:]) % 2),
            where(at_the_end, end=lambda end: end.chunk_count == CHUNKS + 2),
            batch(lists.append, size=70),
            telemetry=False,
        )
        answers = ask(server.url)
        assert flush(ASK_TIMEOUT_S)
    assert answers == ["".join(texts(number)) for number in range(STREAMS)]
    assert [(shown.failed, shown.dropped) for shown in status().callbacks] == [(0, 0)] * 10

    everyone = set(range(STREAMS))
    sampled = {int(request.session_id[2:]) for request in half.requests}
    assert 0 < len(sampled) < STREAMS
    for told, content, numbers, chunks in [
        (plain_inline, "full", everyone, True),
        (plain_queued, "full", everyone, True),
        (redacted, "redacted", everyone, True),
        (bare, "none", everyone, True),
        (awaited, "full", everyone, True),
        (by_model, "full", {number for number in everyone if number % 4 in {1, 3}}, True),
        (half, "full", sampled, True),
        (odd, "redacted", {number for number in everyone if number % 2}, True),
        (at_the_end, "none", everyone, False),
    ]:
        check_grammar(told.events)
        logs = {int(events[0].request.session_id[2:]): log_of(events) for events in told.calls().values()}
        assert len(told.calls()) == len(logs)
        assert logs == {number: expected(number, content, chunks=chunks) for number in numbers}
    assert [len(ends) for ends in lists] == [70, 70, 60]
    assert {int(end.request.session_id[2:]) for ends in lists for end in ends} == everyone
