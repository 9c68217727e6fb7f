"""`include_usage`: streams whose caller did not ask for usage carry it all the same, and the caller does not notice."""

from __future__ import annotations

import sys

import openai
import pytest

import otel_llm_callback
from otel_llm_callback.testing import JsonReply, StreamReply, chat_chunks, error_body

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def reply(request):
    """Usage in a chunk of its own, for those who ask for it."""
    options = request.json.get("stream_options") or {}
    usage = USAGE if options.get("include_usage") else None
    return StreamReply(chat_chunks(["a", "b"], model="m", usage=usage))


@pytest.fixture
def asking(server, recorder, telemetry):
    """A server that answers as OpenAI does, and the option on."""
    server.reply = reply
    otel_llm_callback.instrument(
        recorder,
        delivery="inline",
        include_usage=True,
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
    )
    yield recorder
    otel_llm_callback.uninstrument()


def texts(chunks):
    """What a reader of the chunks sees of them."""
    return [(len(chunk.choices), chunk.usage) for chunk in chunks]


COUNT = len(chat_chunks(["a", "b"], model="m"))
PLAIN = [(1, None)] * COUNT


def usages(recorder):
    return [(r.prompt_tokens, r.completion_tokens, r.chunk_count) for r in recorder.responses]


def test_stream_reports_usage_and_its_caller_sees_no_other_chunks(server, client, asking):
    """The tokens are known; the chunks are those of a stream without usage."""
    assert texts(client.chat.completions.create(**ASKED, stream=True)) == PLAIN
    assert usages(asking) == [(5, 7, COUNT)]
    assert server.requests[-1].json["stream_options"] == {"include_usage": True}
    assert list(asking.names()) == ["request_sent", *["stream_chunk"] * COUNT, "response_received"]


async def test_asynchronous_stream_reports_usage_too(aclient, asking):
    """The same for an asynchronous client."""
    stream = await aclient.chat.completions.create(**ASKED, stream=True)
    assert texts([chunk async for chunk in stream]) == PLAIN
    assert usages(asking) == [(5, 7, COUNT)]


def test_chunks_taken_one_by_one_are_the_same(client, asking):
    """`next()` skips the extra chunk as iteration does."""
    stream = client.chat.completions.create(**ASKED, stream=True)
    taken = [next(stream) for _ in range(COUNT)]
    with pytest.raises(StopIteration):
        next(stream)
    assert (texts(taken), usages(asking)) == (PLAIN, [(5, 7, COUNT)])


async def test_chunks_awaited_one_by_one_are_the_same(aclient, asking):
    """And so does `anext()`."""
    stream = await aclient.chat.completions.create(**ASKED, stream=True)
    taken = [await stream.__anext__() for _ in range(COUNT)]
    with pytest.raises(StopAsyncIteration):
        await stream.__anext__()
    assert (texts(taken), usages(asking)) == (PLAIN, [(5, 7, COUNT)])


def test_helper_sees_no_usage_it_did_not_ask_for(client, asking):
    """What `.stream()` adds up is what it would be without us."""
    completions = (
        client.chat.completions if hasattr(client.chat.completions, "stream") else client.beta.chat.completions
    )
    with completions.stream(**ASKED) as stream:
        stream.until_done()
        assert stream.get_final_completion().usage is None
    assert usages(asking) == [(5, 7, COUNT)]


def test_raw_response_that_is_parsed_hides_the_chunk(client, asking):
    """A stream parsed from a raw response is observed like any other."""
    raw = client.chat.completions.with_raw_response.create(**ASKED, stream=True)
    assert texts(raw.parse()) == PLAIN
    assert usages(asking) == [(5, 7, COUNT)]


def test_body_read_by_the_caller_is_left_alone(server, client, asking):
    """Whoever reads the lines would see the extra one, so it is not asked for."""
    with client.chat.completions.with_streaming_response.create(**ASKED, stream=True) as response:
        list(response.iter_lines())
    assert "stream_options" not in server.requests[-1].json


@pytest.mark.parametrize("chosen", [True, False])
def test_what_the_caller_chose_stays(server, client, asking, chosen):
    """Asked for, the chunk is the caller's; refused, it is not asked for."""
    options = {"include_usage": chosen, "include_obfuscation": False}
    chunks = texts(client.chat.completions.create(**ASKED, stream=True, stream_options=options))
    assert len(chunks) == COUNT + chosen
    assert server.requests[-1].json["stream_options"] == options
    assert [r.prompt_tokens for r in asking.responses] == [5 if chosen else None]


def test_other_stream_options_are_kept(server, client, asking):
    """Ours is added to the caller's, and the caller's mapping is not touched."""
    options = {"include_obfuscation": False}
    list(client.chat.completions.create(**ASKED, stream=True, stream_options=options))
    assert server.requests[-1].json["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert options == {"include_obfuscation": False}


def test_usage_beside_a_choice_is_passed_on(server, client, asking):
    """Some servers put usage into the last chunk with a choice; that chunk is the caller's."""
    *before, last = chat_chunks(["a"], model="m")
    server.reply = lambda request: StreamReply([*before, {**last, "usage": USAGE}])
    chunks = list(client.chat.completions.create(**ASKED, stream=True))
    assert [chunk.usage is not None for chunk in chunks] == [*[False] * len(before), True]
    assert usages(asking) == [(5, 7, len(before) + 1)]


def test_calls_that_are_no_streams_are_sent_as_they_are(server, client, asking):
    """Only streams lack usage."""
    server.reply = None
    client.chat.completions.create(**ASKED)
    assert server.requests[-1].json == ASKED


def test_nothing_is_added_unless_asked_for(server, client, recorder):
    """By default the body is the one the client alone would send, byte for byte."""
    server.reply = reply
    assert texts(client.chat.completions.create(**ASKED, stream=True)) == PLAIN
    otel_llm_callback.instrument(recorder, delivery="inline")
    assert texts(client.chat.completions.create(**ASKED, stream=True)) == PLAIN
    without, within = server.requests[-2:]
    assert within.body == without.body


def test_refusal_names_our_setting(server, client, asking, expected_logs):
    """A server that does not know the option: the exception is the SDK's own, and says what may be the cause."""
    server.reply = lambda request: JsonReply(error_body("unknown field stream_options"), 400)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASKED, stream=True)
    said = "otel-llm-callback added stream_options.include_usage to this request; include_usage=False prevents that"
    assert [record.getMessage() for record in expected_logs] == [f"{said} (status 400)"]
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == [said]
