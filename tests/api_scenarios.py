"""The rows of `scenarios.py` for the other APIs: Responses, embeddings, completions, images, audio, jobs.

A row whose method this release of openai lacks is left out.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import api_forms as f
import openai
from forms import MODEL, Person, StreamCut
from openai.types import audio
from scenarios import ANSWERED_BY, EVENT, PIECES, USAGE, Chunk, Failed, Received, Scenario, Sent, Told, refusal

from otel_llm_callback.testing import (
    JsonReply,
    StreamReply,
    agent_invocation,
    agent_session,
    agent_session_events,
    compaction,
    decision,
    embedding_list,
    grade,
    image_events,
    image_list,
    moderation,
    response_events,
    response_object,
    search_page,
    text_completion,
    text_completion_chunks,
    thread_run,
    thread_run_events,
    transcription_events,
    video,
)

# --- How rows are made ------------------------------------------------------------------------------------------------


def given(**arguments: Any) -> Any:
    """Make these arguments, anew for each run."""
    return lambda: copy.deepcopy(arguments)


def row(name: str, form: Any, reply: Any, events: tuple[Told, ...], arguments: Any, **more: Any) -> Scenario:
    sync, asynchronous = form
    return Scenario(name, sync, asynchronous, reply, events, arguments, **more)


def rows(path: str, *made: Scenario) -> tuple[Scenario, ...]:
    """The rows, if this release of openai has the method."""
    return made if f.exists(path) else ()


def faces(name: str, path: str, reply: Any, told: tuple[Told, ...], arguments: Any) -> tuple[Scenario, ...]:
    """Two rows for the other faces of a method: what they give is told as the plain call is."""
    return (
        row(f"{name}, raw", f.raw(path), reply, told, arguments),
        row(f"{name}, streaming response", f.streaming(path), reply, told, arguments),
    )


def asking(model: str | None, operation: str, api: str, *, stream: bool = False) -> Any:
    """Make what is told of such a request."""
    return partial(Sent, model=model, operation=operation, api=api, stream=stream)


def sse(events: Any, **options: Any) -> StreamReply:
    """Events as every API but the oldest two sends them."""
    return StreamReply(events, done=False, named=True, **options)


# --- Responses --------------------------------------------------------------------------------------------------------

asked = asking(MODEL, "chat", "responses")
asked_stream = asking(MODEL, "chat", "responses", stream=True)
fetched = asking(None, "fetch_response", "responses")
fetched_stream = asking(None, "fetch_response", "responses", stream=True)

responded = partial(Received, id="resp_1", model=ANSWERED_BY, state="completed")
pending = partial(responded, finish_reasons=(), usage=None)

body = partial(response_object, "".join(PIECES), model=ANSWERED_BY, usage=USAGE)
events = partial(response_events, PIECES, model=ANSWERED_BY, usage=USAGE)

RESPONSE = JsonReply(body())
EVENTS = sse(events())
BEFORE, AFTER = (EVENT,) * 4, (EVENT,) * 4
"""What comes around the pieces of the text: what began, and what ended."""

READ = (asked_stream(), *BEFORE, *map(Chunk, PIECES), *AFTER, responded(chunks=11))
SLOW = sse(response_events(["word "] * 500, model=ANSWERED_BY), delay_s=0.01)

ASK = given(model=MODEL, input="Say hello.")
FETCH = given(response_id="resp_1")
PERSON = JsonReply(response_object('{"name": "Ada"}', model=ANSWERED_BY, usage=USAGE))
PERSON_EVENTS = sse(response_events(['{"name": ', '"Ada"}'], model=ANSWERED_BY, usage=USAGE))

FUNCTION_CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_1",
    "name": "look_up",
    "arguments": '{"city": "Oslo"}',
    "status": "completed",
}

OUTPUT_ITEMS = [
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
    FUNCTION_CALL,
    {"type": "custom_tool_call", "id": "ct_1", "call_id": "call_2", "name": "run", "input": "1 + 1"},
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "cats"}},
    {"type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["cats"], "results": None},
    {
        "type": "code_interpreter_call",
        "id": "ci_1",
        "status": "completed",
        "code": "1",
        "container_id": "c",
        "outputs": None,
    },
    {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "iVBORw0KGgo="},
    {"type": "mcp_call", "id": "mcp_1", "name": "look", "server_label": "sea", "arguments": "{}", "output": "seen"},
    {"type": "compaction", "id": "cmp_1", "encrypted_content": "AAAA"},
]

FAILED = JsonReply(body(status="failed", error_code="rate_limit_exceeded", usage=None))


def ended(status: str | None, **facts: Any) -> tuple[Told, ...]:
    """What is told of a stream with this terminal event, without the items that a failed one does not finish."""
    after = () if status is None else (EVENT,) if status == "failed" else AFTER
    chunks = (*BEFORE, *map(Chunk, PIECES), *after)
    return (asked_stream(), *chunks, responded(chunks=len(chunks), state=status, **facts))


def failing(told: tuple[Told, ...], code: str) -> tuple[Told, ...]:
    """The same told as an error with a code: nothing was raised, the result says so."""
    *before, partial_result = told
    assert isinstance(partial_result, Received)
    return (*before, Failed(code, partial=partial_result._replace(outcome="error")))


def job(request: Any) -> JsonReply:
    """A response in the background: queued, still queued, in progress, then done."""
    if request.method == "POST":
        return JsonReply(body(status="queued", usage=None))
    seen = job.polls = getattr(job, "polls", 0) + 1
    states = ["queued", "in_progress", "completed", "completed"]
    status = states[(seen - 1) % 4]
    return JsonReply(body(status=status, usage=USAGE if status == "completed" else None))


FIRST_THREE = [{**event} for event in events()[:3]]
TEXT_DELTA = events()[4]

RESPONSES = rows(
    "responses.create",
    row("responses", f.called("responses.create"), RESPONSE, (asked(), responded()), ASK),
    row(
        "responses, usual answer",
        f.called("responses.create"),
        None,
        (asked(), responded(id="resp_000001", model=MODEL)),
        ASK,
    ),
    row("responses, raw", f.raw("responses.create"), RESPONSE, (asked(), responded()), ASK),
    row("responses, streaming response", f.streaming("responses.create"), RESPONSE, (asked(), responded()), ASK),
    row("responses, streamed", f.read("responses.create"), EVENTS, READ, ASK),
    row("responses, streamed raw", f.raw_read("responses.create"), EVENTS, READ, ASK),
    row("responses, streamed streaming response", f.streaming_read("responses.create"), EVENTS, READ, ASK),
    row(
        "responses, closed after two",
        f.closed_after_two("responses.create"),
        SLOW,
        (asked_stream(), EVENT, EVENT, pending("closed_early", state="in_progress", chunks=2)),
        ASK,
    ),
    row(
        "responses, function call",
        f.called("responses.create"),
        JsonReply(body(output=[FUNCTION_CALL])),
        (asked(), responded(finish_reasons=("tool_calls",))),
        ASK,
    ),
    row(
        "responses, incomplete",
        f.called("responses.create"),
        JsonReply(body(status="incomplete")),
        (asked(), responded(finish_reasons=("length",), state="incomplete")),
        ASK,
    ),
    row(
        "responses, content filter",
        f.called("responses.create"),
        JsonReply(body(status="incomplete", incomplete_reason="content_filter")),
        (asked(), responded(finish_reasons=("content_filter",), state="incomplete")),
        ASK,
    ),
    row(
        "responses, failed with status 200",
        f.called("responses.create"),
        FAILED,
        failing((asked(), responded(finish_reasons=("error",), usage=None, state="failed")), "rate_limit_exceeded"),
        ASK,
    ),
    row(
        "responses, failed with status 200, raw",
        f.raw("responses.create"),
        FAILED,
        failing((asked(), responded(finish_reasons=("error",), usage=None, state="failed")), "rate_limit_exceeded"),
        ASK,
    ),
    row(
        "responses, refused",
        f.called("responses.create"),
        refusal(400),
        (asked(), Failed("BadRequestError", status=400)),
        ASK,
        raises=openai.BadRequestError,
    ),
    row(
        "responses, streamed, incomplete",
        f.read("responses.create"),
        sse(events(status="incomplete")),
        ended("incomplete", finish_reasons=("length",)),
        ASK,
    ),
    row(
        "responses, streamed, failed",
        f.read("responses.create"),
        sse(events(status="failed", error_code="server_error", usage=None)),
        failing(ended("failed", finish_reasons=("error",), usage=None), "server_error"),
        ASK,
    ),
    row(
        "responses, streamed, breaks off",
        f.read("responses.create"),
        sse(events(status=None)),
        (
            asked_stream(),
            *BEFORE,
            *map(Chunk, PIECES),
            responded(chunks=7, finish_reasons=("error",), usage=None, truncated=True, state="in_progress"),
        ),
        ASK,
    ),
    row(
        "responses, streamed, error event",
        f.read("responses.create"),
        sse([*FIRST_THREE, {"type": "error", "code": "server_error", "message": "no", "param": None}]),
        failing(
            (
                asked_stream(),
                *(EVENT,) * 4,
                responded(chunks=4, finish_reasons=("error",), usage=None, truncated=True, state="in_progress"),
            ),
            "server_error",
        ),
        ASK,
    ),
    row(
        "responses, streamed, connection dropped",
        f.read("responses.create"),
        sse(events(), cut_after=5),
        (
            asked_stream(),
            *BEFORE,
            Chunk(PIECES[0]),
            Failed(
                StreamCut.__name__,
                partial=responded("error", chunks=5, finish_reasons=("error",), usage=None, state="in_progress"),
            ),
        ),
        ASK,
        raises=StreamCut,
    ),
    row(
        "responses, events nobody has heard of",
        f.read("responses.create"),
        sse(
            [
                {"type": "response.telepathy.delta", "delta": "hm"},
                {"type": "response.output_text.delta"},
                {"type": "response.completed"},
                {"no": "type"},
                {"type": None, "response": {}},
                TEXT_DELTA,
                events()[-1],
            ]
        ),
        (asked_stream(), EVENT, Chunk(""), *(EVENT,) * 3, Chunk(PIECES[0]), EVENT, responded(chunks=7)),
        ASK,
    ),
    row(
        "responses, streamed although nobody asked",
        f.called("responses.create"),
        EVENTS,
        (asked(), Received(id=None, model=None, finish_reasons=(), usage=None)),
        ASK,
    ),
    row(
        "responses, answer without fields",
        f.called("responses.create"),
        JsonReply({}),
        (asked(), Received(id=None, model=None, finish_reasons=(), usage=None)),
        ASK,
    ),
    row(
        "responses in the background",
        f.in_background(),
        job,
        (asked(), pending(state="queued")),
        given(model=MODEL, input="Say hello.", extra_body={"background": True}),
        more=(
            (fetched(), pending(state="queued")),
            (fetched(), pending(state="in_progress")),
            (fetched(), responded()),
            (fetched(), responded(usage=None)),
        ),
    ),
    row(
        "responses, fetched",
        f.called("responses.retrieve"),
        RESPONSE,
        (fetched(), responded(usage=None)),
        FETCH,
    ),
    row("responses, fetched raw", f.raw("responses.retrieve"), RESPONSE, (fetched(), responded(usage=None)), FETCH),
    row(
        "responses, fetched, streaming response",
        f.streaming("responses.retrieve"),
        RESPONSE,
        (fetched(), responded(usage=None)),
        FETCH,
    ),
)

RESPONSES += rows(
    "responses.parse",
    row(
        "responses, parse",
        f.called("responses.parse"),
        PERSON,
        (asked(), responded()),
        given(model=MODEL, input="Who?", text_format=Person),
    ),
    row(
        "responses, raw parse",
        f.raw("responses.parse"),
        PERSON,
        (asked(), responded()),
        given(model=MODEL, input="Who?", text_format=Person),
    ),
)

RESPONSES += rows(
    "responses.stream",
    row("responses, helper", f.helper("responses.stream"), EVENTS, READ, ASK),
    row("responses, helper, final response only", f.final_only("responses.stream"), EVENTS, READ, ASK),
    row(
        "responses, typed helper",
        f.helper("responses.stream"),
        PERSON_EVENTS,
        (asked_stream(), *BEFORE, Chunk('{"name": '), Chunk('"Ada"}'), *AFTER, responded(chunks=10)),
        given(model=MODEL, input="Who?", text_format=Person),
    ),
    row(
        "responses, helper left early",
        f.helper_left("responses.stream"),
        SLOW,
        (asked_stream(), EVENT, pending("closed_early", state="in_progress", chunks=1)),
        ASK,
    ),
    row(
        "responses, helper of a response that was begun",
        f.helper("responses.stream"),
        EVENTS,
        (fetched_stream(), *READ[1:-1], responded(chunks=11, usage=None)),
        FETCH,
    ),
    row(
        "responses, fetched as a stream",
        f.read("responses.retrieve"),
        EVENTS,
        (fetched_stream(), *READ[1:-1], responded(chunks=11, usage=None)),
        FETCH,
    ),
    row(
        "responses, stream taken up again",
        f.read("responses.retrieve"),
        None,
        (fetched_stream(), *AFTER, responded(model=MODEL, chunks=4, usage=None)),
        given(response_id="resp_1", starting_after=len(response_events()) - 5),
    ),
)

CANCELLED = (
    JsonReply(body(status="cancelled", usage=None)),
    (
        fetched()._replace(operation="cancel_response"),
        responded(finish_reasons=("error",), usage=None, state="cancelled"),
    ),
    FETCH,
)
COMPACTED = (
    JsonReply(compaction(usage=USAGE)),
    (asked()._replace(operation="compact_response"), Received(id="resp_1", model=None, finish_reasons=())),
    ASK,
)
COUNTED = (
    None,
    (asked()._replace(operation="count_tokens"), Received(id=None, model=None, finish_reasons=(), usage=None)),
    ASK,
)
for beta in ("", "beta."):
    for title, path, what in (
        ("cancelled", "responses.cancel", CANCELLED),
        ("compacted", "responses.compact", COMPACTED),
        ("tokens counted", "responses.input_tokens.count", COUNTED),
    ):
        name = f"{beta.replace('.', ' ')}responses, {title}"
        RESPONSES += rows(beta + path, row(name, f.called(beta + path), *what), *faces(name, beta + path, *what))

RESPONSES += rows(
    "responses.input_items.list",
    row(
        "responses, input items", f.iterated("responses.input_items.list"), JsonReply({"data": []}), (), FETCH, calls=0
    ),
)

RESPONSES += rows(
    "beta.responses.create",
    row("beta responses", f.called("beta.responses.create"), RESPONSE, (asked(), responded()), ASK),
    row("beta responses, raw", f.raw("beta.responses.create"), RESPONSE, (asked(), responded()), ASK),
    row("beta responses, streamed", f.read("beta.responses.create"), EVENTS, READ, ASK),
    row(
        "beta responses, streaming response",
        f.streaming("beta.responses.create"),
        RESPONSE,
        (asked(), responded()),
        ASK,
    ),
    row("beta responses, streamed raw", f.raw_read("beta.responses.create"), EVENTS, READ, ASK),
    row("beta responses, streamed streaming response", f.streaming_read("beta.responses.create"), EVENTS, READ, ASK),
    row(
        "beta responses, fetched",
        f.called("beta.responses.retrieve"),
        RESPONSE,
        (fetched(), responded(usage=None)),
        FETCH,
    ),
)

# --- Embeddings and legacy completions --------------------------------------------------------------------------------

EMBEDDER = "text-embedding-3-small"
VECTORS = ([0.25, -0.5], [1.0, 0.0])


def vectors(request: Any) -> JsonReply:
    encoding = request.json.get("encoding_format", "float")
    return JsonReply(embedding_list(VECTORS, model=EMBEDDER, encoding_format=encoding))


EMBED = {"model": EMBEDDER, "input": ["a", "b"]}
EMBEDDED = (
    Sent(False, EMBEDDER, "embeddings", "embeddings"),
    Received(id=None, model=EMBEDDER, finish_reasons=(), usage=(5, None)),
)

EMBEDDINGS = (
    row("embeddings", f.called("embeddings.create"), vectors, EMBEDDED, given(**EMBED)),
    row("embeddings, usual answer", f.called("embeddings.create"), None, EMBEDDED, given(**EMBED)),
    row("embeddings of one text", f.called("embeddings.create"), None, EMBEDDED, given(model=EMBEDDER, input="a")),
    row("embeddings of tokens", f.called("embeddings.create"), None, EMBEDDED, given(model=EMBEDDER, input=[1, 2])),
    row(
        "embeddings as floats",
        f.called("embeddings.create", encoding_format="float"),
        vectors,
        EMBEDDED,
        given(**EMBED),
    ),
    row(
        "embeddings as base64",
        f.called("embeddings.create", encoding_format="base64"),
        vectors,
        EMBEDDED,
        given(**EMBED),
    ),
    row("embeddings, raw", f.raw("embeddings.create"), vectors, EMBEDDED, given(**EMBED)),
    row("embeddings, streaming response", f.streaming("embeddings.create"), vectors, EMBEDDED, given(**EMBED)),
    row(
        "embeddings, no data",
        f.called("embeddings.create"),
        JsonReply({"object": "list", "data": [], "model": EMBEDDER}),
        (EMBEDDED[0], Failed("ValueError", partial=EMBEDDED[1]._replace(outcome="error", usage=None))),
        given(**EMBED),
        raises=ValueError,
    ),
)

WRITER = "gpt-3.5-turbo-instruct"
WRITE = given(model=WRITER, prompt="Once")
writing = asking(WRITER, "text_completion", "completions")
written = partial(Received, id="cmpl-1", model=WRITER)
WRITTEN = JsonReply(text_completion("".join(PIECES)))
WRITTEN_STREAM = StreamReply(text_completion_chunks(PIECES, usage=USAGE))
WRITTEN_READ = (writing(stream=True), *map(Chunk, PIECES), EVENT, EVENT, written(chunks=5))

COMPLETIONS = (
    row("completions", f.called("completions.create"), WRITTEN, (writing(), written()), WRITE),
    row(
        "completions, usual answer", f.called("completions.create"), None, (writing(), written(id="cmpl-000001")), WRITE
    ),
    row("completions, raw", f.raw("completions.create"), WRITTEN, (writing(), written()), WRITE),
    row("completions, streaming response", f.streaming("completions.create"), WRITTEN, (writing(), written()), WRITE),
    row(
        "completions, two choices",
        f.called("completions.create"),
        JsonReply(text_completion(choices=2)),
        (writing(), written(finish_reasons=("stop", "stop"))),
        given(model=WRITER, prompt="Once", n=2),
    ),
    row("completions, streamed", f.read("completions.create"), WRITTEN_STREAM, WRITTEN_READ, WRITE),
    row("completions, streamed raw", f.raw_read("completions.create"), WRITTEN_STREAM, WRITTEN_READ, WRITE),
    row(
        "completions, two choices streamed",
        f.read("completions.create"),
        StreamReply(text_completion_chunks(["a"], choices=2)),
        (
            writing(stream=True),
            Chunk("a"),
            Chunk("a"),
            EVENT,
            EVENT,
            written(chunks=4, finish_reasons=("stop", "stop"), usage=None),
        ),
        given(model=WRITER, prompt="Once", n=2),
    ),
    row(
        "completions, closed after two",
        f.closed_after_two("completions.create"),
        StreamReply(text_completion_chunks(["word "] * 500), delay_s=0.01),
        (
            writing(stream=True),
            Chunk("word "),
            Chunk("word "),
            written("closed_early", chunks=2, finish_reasons=(), usage=None),
        ),
        WRITE,
    ),
)

# --- Images and audio -------------------------------------------------------------------------------------------------

PAINTER = "gpt-image-1"
PNG_FILE = ("a.png", b"\x89PNG", "image/png")
PAINT = {"model": PAINTER, "prompt": "a cat"}
painting = asking(PAINTER, "image_generation", "images")
editing = asking(PAINTER, "image_edit", "images")
painted = partial(Received, id=None, model=None, finish_reasons=())

EDITED = (None, (editing(), painted()), given(**PAINT, image=PNG_FILE))
EDITED_PIECEWISE = (
    None,
    (editing(stream=True), EVENT, EVENT, painted(chunks=2)),
    given(**PAINT, image=PNG_FILE),
)
VARIED = (
    JsonReply(image_list(usage=None)),
    (Sent(False, "dall-e-2", "image_variation", "images"), painted(usage=None)),
    given(model="dall-e-2", image=PNG_FILE),
)

IMAGES = (
    row("images", f.called("images.generate"), JsonReply(image_list()), (painting(), painted()), given(**PAINT)),
    row("images, usual answer", f.called("images.generate"), None, (painting(), painted()), given(**PAINT, n=2)),
    row("images, raw", f.raw("images.generate"), None, (painting(), painted()), given(**PAINT)),
    row("images, streaming response", f.streaming("images.generate"), None, (painting(), painted()), given(**PAINT)),
    row("images, edit", f.called("images.edit"), *EDITED),
    *faces("images, edit", "images.edit", *EDITED),
    row("images, variation", f.called("images.create_variation"), *VARIED),
    *faces("images, variation", "images.create_variation", *VARIED),
    *(
        (
            row(
                "images, streamed",
                f.read("images.generate"),
                sse(image_events(partial_images=2)),
                (painting(stream=True), *(EVENT,) * 3, painted(chunks=3)),
                given(**PAINT, partial_images=2),
            ),
            row("images, edit streamed", f.read("images.edit"), *EDITED_PIECEWISE),
            row("images, edit streamed raw", f.raw_read("images.edit"), *EDITED_PIECEWISE),
            row("images, edit streamed streaming response", f.streaming_read("images.edit"), *EDITED_PIECEWISE),
            row(
                "images, stream breaks off",
                f.read("images.generate"),
                sse(image_events(partial_images=2)[:2]),
                (painting(stream=True), EVENT, EVENT, painted(chunks=2, usage=None, truncated=True)),
                given(**PAINT),
            ),
        )
        if hasattr(openai.types, "ImageGenCompletedEvent")
        else ()
    ),
)

SPEAK = given(model="tts-1", voice="alloy", input="hello")
SPOKEN = (Sent(False, "tts-1", "speech", "audio"), painted(usage=None))
WAV = ("a.wav", b"RIFF", "audio/wav")
LISTENER = "gpt-4o-transcribe"
HEAR = {"model": LISTENER, "file": WAV}
hearing = asking(LISTENER, "transcription", "audio")
translating = asking("whisper-1", "translation", "audio")

TRANSLATED = (None, (translating(), painted(usage=None)), given(model="whisper-1", file=WAV))
OVERHEARD = (
    sse(transcription_events(PIECES)),
    (hearing(stream=True), *map(Chunk, PIECES), EVENT, painted(chunks=4)),
    given(**HEAR),
)

AUDIO = (
    row("speech", f.all_bytes("audio.speech.create"), None, SPOKEN, SPEAK),
    row("speech, in parts", f.bytes_in_parts("audio.speech.create"), None, SPOKEN, SPEAK),
    row(
        "speech, the beginning",
        f.bytes_left("audio.speech.create"),
        StreamReply([bytes(64)] * 500, done=False, headers={"content-type": "audio/mpeg"}, delay_s=0.01),
        (SPOKEN[0], painted("closed_early", usage=None)),
        SPEAK,
    ),
    row("transcription", f.called("audio.transcriptions.create"), None, (hearing(), painted()), given(**HEAR)),
    row("transcription, raw", f.raw("audio.transcriptions.create"), None, (hearing(), painted()), given(**HEAR)),
    row(
        "transcription, streaming response",
        f.streaming("audio.transcriptions.create"),
        None,
        (hearing(), painted()),
        given(**HEAR),
    ),
    row(
        "transcription as text",
        f.called("audio.transcriptions.create"),
        None,
        (hearing(), painted(usage=None)),
        given(**HEAR, response_format="text"),
    ),
    row(
        "transcription billed by the second",
        f.called("audio.transcriptions.create"),
        JsonReply({"text": "hello", "usage": {"type": "duration", "seconds": 1.5}}),
        (hearing(), painted(usage=None)),
        given(**HEAR),
    ),
    row("translation", f.called("audio.translations.create"), *TRANSLATED),
    *faces("translation", "audio.translations.create", *TRANSLATED),
    row(
        "translation as text",
        f.called("audio.translations.create"),
        None,
        (translating(), painted(usage=None)),
        given(model="whisper-1", file=WAV, response_format="text"),
    ),
    *(
        (
            row("transcription, streamed", f.read("audio.transcriptions.create"), *OVERHEARD),
            row("transcription, streamed raw", f.raw_read("audio.transcriptions.create"), *OVERHEARD),
            row(
                "transcription, streamed streaming response",
                f.streaming_read("audio.transcriptions.create"),
                *OVERHEARD,
            ),
        )
        if hasattr(audio, "TranscriptionTextDoneEvent")
        else ()
    ),
)

# --- The rest ---------------------------------------------------------------------------------------------------------

JUDGE = "omni-moderation-latest"
SEARCH = given(vector_store_id="vs_1", query="cats")
SEARCHED = (Sent(False, None, "retrieval", "vector_stores"), painted(usage=None))
FOUND = JsonReply(search_page("a", "b"))

MODERATED = (
    JsonReply(moderation()),
    (Sent(False, JUDGE, "moderation", "moderations"), painted(id="modr-1", model=JUDGE, usage=None)),
    given(model=JUDGE, input="hello"),
)
DECIDED = (
    JsonReply(decision()),
    (Sent(False, "gpt-6-luna", "decision", "decisions"), painted(model="gpt-6-luna")),
    given(model="gpt-6-luna", input="hello", questions=[{"type": "predicate", "question": "Is it?"}]),
)
GRADED = (
    JsonReply(grade(model=MODEL)),
    (Sent(False, MODEL, "grader_run", "fine_tuning"), painted(model=MODEL, usage=(None, None))),
    given(grader={"type": "score_model", "name": "g", "model": MODEL, "input": []}, model_sample="hello"),
)

OTHERS = (
    row("moderation", f.called("moderations.create"), *MODERATED),
    *faces("moderation", "moderations.create", *MODERATED),
    *rows(
        "decisions.create",
        row("decision", f.called("decisions.create"), *DECIDED),
        *faces("decision", "decisions.create", *DECIDED),
    ),
    *rows(
        "fine_tuning.alpha.graders.run",
        row("grader", f.called("fine_tuning.alpha.graders.run"), *GRADED),
        *faces("grader", "fine_tuning.alpha.graders.run", *GRADED),
        row(
            "grader that asks no model",
            f.called("fine_tuning.alpha.graders.run"),
            JsonReply(grade(total_tokens=None)),
            (GRADED[1][0], GRADED[1][1]._replace(usage=None)),
            GRADED[2],
        ),
    ),
    *rows(
        "vector_stores.search",
        row("search, iterated", f.iterated("vector_stores.search"), FOUND, SEARCHED, SEARCH),
        row("search, one page", f.one_page("vector_stores.search"), FOUND, SEARCHED, SEARCH),
        *faces("search", "vector_stores.search", FOUND, SEARCHED, SEARCH),
    ),
    row("list of files", f.iterated("files.list"), JsonReply({"object": "list", "data": []}), (), given(), calls=0),
    row("list of batches", f.iterated("batches.list"), JsonReply({"object": "list", "data": []}), (), given(), calls=0),
    row("one model", f.called("models.retrieve"), JsonReply({"id": "m"}), (), given(model="m"), calls=0),
)

FILMED = painted(id="video_1", model="sora-2", usage=None, state="queued")
MP4_FILE = ("a.mp4", b"ftyp", "video/mp4")
SHOT = (
    None,
    (Sent(False, "sora-2", "video_generation", "videos"), FILMED),
    given(model="sora-2", prompt="a cat"),
)
REMIXED = (
    None,
    (Sent(False, None, "video_remix", "videos"), FILMED),
    given(video_id="video_1", prompt="a dog"),
)
CUT = (None, (Sent(False, None, "video_edit", "videos"), FILMED), given(prompt="a dog", video=MP4_FILE))
LENGTHENED = (
    None,
    (Sent(False, None, "video_extension", "videos"), FILMED),
    given(prompt="more", seconds="4", video=MP4_FILE),
)
VIDEOS = rows(
    "videos.create",
    row("video", f.called("videos.create"), *SHOT),
    row(
        "video that failed at once",
        f.called("videos.create"),
        JsonReply(video(status="failed", error_code="moderation_blocked")),
        failing(
            (Sent(False, "sora-2", "video_generation", "videos"), FILMED._replace(state="failed")),
            "moderation_blocked",
        ),
        given(model="sora-2", prompt="a cat"),
    ),
    row("video remix", f.called("videos.remix"), *REMIXED),
    *faces("video", "videos.create", *SHOT),
    *faces("video remix", "videos.remix", *REMIXED),
    row("video fetched", f.called("videos.retrieve"), JsonReply(video()), (), given(video_id="video_1"), calls=0),
)

VIDEOS += rows(
    "videos.edit", row("video edit", f.called("videos.edit"), *CUT), *faces("video edit", "videos.edit", *CUT)
)
VIDEOS += rows(
    "videos.extend",
    row("video extension", f.called("videos.extend"), *LENGTHENED),
    *faces("video extension", "videos.extend", *LENGTHENED),
)

RUN = painted(id="run_1", model=MODEL, usage=None, state="queued")
running = asking(None, "thread_run", "threads")
RUNS = rows(
    "beta.threads.runs.create",
    row(
        "thread run",
        f.called("beta.threads.runs.create"),
        JsonReply(thread_run()),
        (running(), RUN),
        given(thread_id="thread_1", assistant_id="asst_1"),
    ),
    row(
        "thread run with its thread",
        f.called("beta.threads.create_and_run"),
        None,
        (running(), RUN),
        given(assistant_id="asst_1"),
    ),
    row(
        "thread run, tool outputs",
        f.called("beta.threads.runs.submit_tool_outputs"),
        None,
        (running(), RUN),
        given(thread_id="thread_1", run_id="run_1", tool_outputs=[]),
    ),
    row(
        "thread run, streamed",
        f.read("beta.threads.runs.create"),
        StreamReply(thread_run_events(PIECES)),
        (
            running(stream=True),
            EVENT,
            *map(Chunk, PIECES),
            EVENT,
            EVENT,
            RUN._replace(chunks=6, usage=USAGE, state="completed"),
        ),
        given(thread_id="thread_1", assistant_id="asst_1"),
    ),
    row(
        "thread run, streamed, needs a tool",
        f.read("beta.threads.runs.create"),
        StreamReply(thread_run_events([], status="requires_action", usage=None)),
        (running(stream=True), *(EVENT,) * 3, RUN._replace(chunks=3, state="requires_action")),
        given(thread_id="thread_1", assistant_id="asst_1"),
    ),
    row(
        "thread run, streamed, failed",
        f.read("beta.threads.runs.create"),
        StreamReply(thread_run_events([], status="failed", usage=None)),
        failing(
            (running(stream=True), *(EVENT,) * 3, RUN._replace(chunks=3, state="failed")),
            "server_error",
        ),
        given(thread_id="thread_1", assistant_id="asst_1"),
    ),
)

# --- Agents -----------------------------------------------------------------------------------------------------------

AGENT = "gpt-6-luna"
beginning = asking(AGENT, "agent_session", "agents")
telling = asking(None, "agent_input", "agents")
listening = asking(None, "agent_events", "agents", stream=True)
began = painted(id="sess_1", model=AGENT, usage=None, state="in_progress")
accepted = painted(id=None, model=None, usage=None, status=202)
BEGIN = {"environment": {"type": "none"}, "agent": {"model": AGENT}, "input": "Say hello."}
TELL = {
    "session_id": "sess_1",
    "events": [
        {
            "type": "agent.session.input.message",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "Say hello."}]}],
        }
    ],
}
LISTEN = given(session_id="sess_1")


def turn(**more: Any) -> Any:
    """A server with an agent that takes one turn."""

    def reply(request: Any) -> Any:
        if request.method == "POST" and request.path.endswith("/events"):
            return JsonReply(b"", status=202)
        if request.method == "GET" and not request.path.endswith("/events"):
            return JsonReply(agent_session(model=AGENT, status="idle"))
        return sse(agent_session_events(PIECES, usage=USAGE, **more))

    return reply


def heard(*first: Told, **facts: Any) -> tuple[Told, ...]:
    """What is told of the events of a whole turn."""
    end = painted(id="sess_1", model=AGENT, state="idle", chunks=7, **facts)
    return (*first, EVENT, EVENT, *map(Chunk, PIECES), EVENT, EVENT, end)


AGENTS = rows(
    "beta.agents.sessions.create",
    row("agent", f.called("beta.agents.sessions.create"), None, (beginning(), began), given(**BEGIN)),
    *faces("agent", "beta.agents.sessions.create", None, (beginning(), began), given(**BEGIN)),
    row(
        "agent whose session failed at once",
        f.called("beta.agents.sessions.create"),
        JsonReply(agent_session(model=AGENT, status="failed")),
        failing((beginning(), began._replace(state="failed")), "failed"),
        given(**BEGIN),
    ),
    row(
        "agent, streamed", f.read("beta.agents.sessions.create"), turn(), heard(beginning(stream=True)), given(**BEGIN)
    ),
    row(
        "agent, streamed raw",
        f.raw_read("beta.agents.sessions.create"),
        turn(),
        heard(beginning(stream=True)),
        given(**BEGIN),
    ),
    row(
        "agent, streamed, turn failed",
        f.read("beta.agents.sessions.create"),
        turn(status="failed", error_code="rate_limit_exceeded"),
        failing(heard(beginning(stream=True)), "rate_limit_exceeded"),
        given(**BEGIN),
    ),
    row(
        "agent, streamed, error event",
        f.read("beta.agents.sessions.create"),
        sse([{"type": "error", "event_id": "e", "session_id": "sess_1", "error": {"type": "t", "message": "m"}}]),
        failing(
            (beginning(stream=True), EVENT, painted(id="sess_1", model=None, usage=None, chunks=1, truncated=True)),
            "t",
        ),
        given(**BEGIN),
    ),
    row(
        "agent, streamed, breaks off",
        f.read("beta.agents.sessions.create"),
        sse(agent_session_events(PIECES)[:3]),
        (beginning(stream=True), EVENT, EVENT, Chunk(PIECES[0]), began._replace(chunks=3, truncated=True)),
        given(**BEGIN),
    ),
    row(
        "agent, streamed, closed after two",
        f.closed_after_two("beta.agents.sessions.create"),
        sse(agent_session_events(["word "] * 500), delay_s=0.01),
        (beginning(stream=True), EVENT, EVENT, began._replace(outcome="closed_early", chunks=2)),
        given(**BEGIN),
    ),
    row(
        "agent, told something",
        f.called("beta.agents.sessions.events.create"),
        None,
        (telling(), accepted),
        given(**TELL),
    ),
    *faces("agent, told something", "beta.agents.sessions.events.create", None, (telling(), accepted), given(**TELL)),
    row("agent, listened to", f.all_events("beta.agents.sessions.events.stream"), turn(), heard(listening()), LISTEN),
    row(
        "agent, helper",
        f.agent_turn("beta.agents.sessions.stream"),
        turn(),
        heard(listening()),
        given(session_id="sess_1", input="Say hello."),
        more=((telling(), accepted),),
    ),
    row(
        "agent, invoked by hand",
        f.called("beta.agents.automations.invocations.create"),
        None,
        (
            Sent(False, None, "agent_invocation", "agents"),
            painted(id="invocation_1", model=None, usage=None, state="queued"),
        ),
        given(automation_id="automation_1"),
    ),
    row(
        "agent, invocation that failed",
        f.called("beta.agents.automations.invocations.create"),
        JsonReply(agent_invocation(status="failed")),
        failing(
            (
                Sent(False, None, "agent_invocation", "agents"),
                painted(id="invocation_1", model=None, usage=None, state="failed"),
            ),
            "delivery_failed",
        ),
        given(automation_id="automation_1"),
    ),
)

# What the first releases with the Responses API lack or do in another way.
YOUNG = f.takes("responses.retrieve", "stream")
NOT_IN_OLD = {
    "responses, raw parse",
    "responses, helper of a response that was begun",
    "responses, fetched as a stream",
    "responses, stream taken up again",
    "responses, streamed, error event",
    "embeddings, no data",
}

ALL = (*RESPONSES, *EMBEDDINGS, *COMPLETIONS, *IMAGES, *AUDIO, *OTHERS, *VIDEOS, *RUNS, *AGENTS)
API_SCENARIOS = tuple(scenario for scenario in ALL if YOUNG or scenario.name not in NOT_IN_OLD)
