"""What the server says for the other APIs: bodies a strict client takes, with what was asked for."""

from __future__ import annotations

import openai
import pytest
from api_forms import exists, method_of, no_deprecation, takes

from otel_llm_callback.testing import (
    JsonReply,
    StreamReply,
    compaction,
    decision,
    embedding_list,
    image_events,
    image_list,
    moderation,
    response_events,
    response_object,
    search_page,
    text_completion,
    text_completion_chunks,
    thread_run,
    transcription,
    transcription_events,
    video,
)
from otel_llm_callback.testing._bodies import SPEECH, TEXT

MODEL = "gpt-4o-mini"
FILE = ("a.wav", b"RIFF", "audio/wav")
PICTURE = ("a.png", b"\x89PNG", "image/png")
THREAD = {"thread_id": "thread_1", "assistant_id": "asst_1"}


@pytest.fixture
def strict(server):
    """A client that refuses a body it does not know."""
    with openai.OpenAI(api_key="test-key", base_url=server.url, _strict_response_validation=True) as client:
        yield client


USUAL = [
    ("responses.create", {"model": MODEL, "input": "a"}),
    ("responses.create", {"model": MODEL, "input": "a", "extra_body": {"background": True}}),
    ("responses.retrieve", {"response_id": "resp_9"}),
    ("responses.cancel", {"response_id": "resp_9"}),
    ("responses.compact", {"model": MODEL, "input": "a"}),
    ("responses.input_tokens.count", {"model": MODEL, "input": "a"}),
    ("beta.responses.create", {"model": MODEL, "input": "a"}),
    ("completions.create", {"model": MODEL, "prompt": "a"}),
    ("embeddings.create", {"model": MODEL, "input": ["a", "b"]}),
    ("embeddings.create", {"model": MODEL, "input": "a", "encoding_format": "float"}),
    ("images.generate", {"prompt": "a"}),
    ("images.edit", {"prompt": "a", "image": PICTURE}),
    ("images.create_variation", {"image": PICTURE}),
    ("audio.transcriptions.create", {"model": MODEL, "file": FILE}),
    ("audio.translations.create", {"model": "whisper-1", "file": FILE}),
    ("moderations.create", {"input": "a"}),
    ("vector_stores.search", {"vector_store_id": "vs_1", "query": "a"}),
    ("videos.create", {"prompt": "a"}),
    ("videos.remix", {"video_id": "video_1", "prompt": "a"}),
    ("decisions.create", {"model": "gpt-6-luna", "input": "a", "questions": []}),
    ("videos.edit", {"prompt": "a", "video": ("a.mp4", b"ftyp", "video/mp4")}),
    ("beta.agents.automations.invocations.create", {"automation_id": "automation_1"}),
    ("beta.threads.create_and_run", {"assistant_id": "asst_1"}),
    ("beta.threads.runs.create", THREAD),
]
STREAMED = [
    ("responses.create", {"model": MODEL, "input": "a"}),
    ("responses.retrieve", {"response_id": "resp_9"}),
    ("completions.create", {"model": MODEL, "prompt": "a"}),
    ("images.generate", {"prompt": "a"}),
    ("images.edit", {"prompt": "a", "image": PICTURE}),
    ("audio.transcriptions.create", {"model": MODEL, "file": FILE}),
    ("beta.threads.runs.create", THREAD),
]
NEWEST = exists("responses.compact")
# The types of the SDK do not say that vectors come as base64, a reason is null at first and categories may be missing.
LOOSE = {"completions.create", "embeddings.create", "moderations.create"}


@pytest.mark.parametrize(("path", "arguments"), USUAL, ids=range(len(USUAL)))
def test_usual_answers_are_what_the_sdk_expects(client, strict, path, arguments):
    """A strict client has nothing against them."""
    if not exists(path):
        pytest.skip("not in this release of openai")
    with no_deprecation():
        assert method_of(client if path in LOOSE or not NEWEST else strict, path)(**arguments)


@pytest.mark.parametrize(("path", "arguments"), STREAMED, ids=range(len(STREAMED)))
def test_usual_streams_are_what_the_sdk_expects(client, strict, path, arguments):
    """Nor against their events."""
    if not NEWEST:
        pytest.skip("not all of it is in this release of openai")
    with no_deprecation():
        assert len(list(method_of(client if path in LOOSE else strict, path)(**arguments, stream=True))) > 1


def test_usual_answers_are_about_what_was_asked(client):
    """Ids differ where the server makes them, and are those asked for where it does not."""
    made = [client.responses.create(model="m", input="a") for _ in range(2)]
    assert [(answer.id, answer.model) for answer in made] == [("resp_000001", "m"), ("resp_000002", "m")]
    assert client.responses.retrieve("resp_9").id == "resp_9"
    assert client.responses.create(model="m", input="a", extra_body={"background": True}).status == "queued"
    assert len(client.completions.create(model="m", prompt="a", n=2).choices) == 2
    assert len(client.embeddings.create(model="m", input=["a", "b"]).data) == 2
    assert len(client.images.generate(prompt="a", n=2).data) == 2
    assert client.audio.speech.create(model="m", voice="alloy", input="a").content == SPEECH
    assert client.audio.transcriptions.create(model="m", file=FILE, response_format="text") == f"{TEXT}\n"


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}], ids=["base64", "float"])
def test_embeddings_come_out_as_they_were_put_in(server, client, encoding):
    """Base64 or not."""
    server.reply = lambda request: JsonReply(
        embedding_list([[0.25, -0.5]], encoding_format=request.json["encoding_format"])
    )
    assert client.embeddings.create(model="m", input="a", **encoding).data[0].embedding == [0.25, -0.5]


@pytest.mark.skipif(not takes("responses.retrieve", "stream"), reason="no streamed fetch in this openai")
def test_stream_of_a_response_can_be_taken_up_again(client):
    """What comes after the cursor comes once more."""
    events = [event.sequence_number for event in client.responses.retrieve("resp_1", stream=True, starting_after=3)]
    assert events == list(range(4, len(response_events())))


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed", None])
def test_events_of_a_response_add_up(status):
    """The pieces are the text, and the last event has the whole response."""
    events = response_events("a b c", status=status)
    assert "".join(event["delta"] for event in events if "delta" in event) == "a b c"
    last = events[-1]
    if status is None:
        assert last["type"] == "response.output_text.delta"
    else:
        assert last["type"] == f"response.{status}"
        expected = response_object("a b c", status=status)
        assert last["response"] == expected


def test_what_is_left_out():
    """None leaves usage out, or says null where the API does."""
    assert response_object(usage=None)["usage"] is None
    assert response_object(None)["output"] == []
    bodies = [
        text_completion(usage=None),
        embedding_list(tokens=None),
        image_list(usage=None),
        transcription(usage=None),
        transcription_events(usage=None)[-1],
        text_completion_chunks()[-1],
    ]
    assert [body for body in bodies if "usage" in body] == []


def test_usage_may_be_spelled_out():
    """As a mapping in the API's own words."""
    spelled = {"input_tokens": 1, "own": 2}
    bodies = [
        response_object(usage=spelled),
        image_list(usage=spelled),
        image_events(usage=spelled)[-1],
        decision(usage=spelled),
        compaction(usage=spelled),
        thread_run(usage=spelled),
    ]
    assert [body["usage"] for body in bodies] == [spelled] * 6
    assert transcription(usage=spelled)["usage"] == {"type": "tokens", **spelled}


def test_what_failed_says_why():
    """With a code; what went well has none."""
    assert [body["error"] for body in (response_object(), video())] == [None, None]
    assert [body["error"]["code"] for body in (response_object(status="failed"), video(status="failed"))] == [
        "server_error"
    ] * 2
    assert thread_run(status="failed")["last_error"]["code"] == "server_error"
    assert [moderation(flagged=flagged)["results"][0]["flagged"] for flagged in (True, False)] == [True, False]
    assert [item["content"][0]["text"] for item in search_page("a", "b")["data"]] == ["a", "b"]


def test_unknown_steps_of_a_path_are_not_found(client):
    """A star in the table is one step, no more."""
    with pytest.raises(openai.NotFoundError):
        client.get("/responses/a/b/c", cast_to=object)


def test_pieces_are_sent_as_they_are(server, client):
    """Whatever they are."""
    server.reply = lambda request: StreamReply(text_completion_chunks(["a", "", "b"], choices=2, usage=(1, 2)))
    chunks = list(client.completions.create(model="m", prompt="a", stream=True))
    assert ["".join(c.text for chunk in chunks for c in chunk.choices if c.index == i) for i in range(2)] == [
        "ab",
        "ab",
    ]
