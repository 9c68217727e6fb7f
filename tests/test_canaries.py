"""However a call ends, whatever is registered: by default nobody sees what was said, nor a secret."""

from __future__ import annotations

import asyncio
import gc
import inspect
import io
import json
import logging

import openai
import pytest
import sentry_sdk
from canaries import (
    ANSWER,
    CHUNKS,
    FAILURE,
    HAS_EVENTS,
    HEADERS,
    REQUEST,
    RESPONSES_ANSWER,
    RESPONSES_EVENTS,
    RESPONSES_FAILED,
    RESPONSES_REQUEST,
    SHOWN_OF_REQUESTS,
    SHOWN_OF_RESPONSES,
    SHOWN_OF_RESPONSES_REQUESTS,
    Crash,
    Logs,
    OurLog,
    canaries_in,
    canary,
    credentials,
    everything,
)
from forms import http_library
from opentelemetry.sdk._logs import LoggerProvider
from sentry_sdk.transport import Transport

import otel_llm_callback
from otel_llm_callback._doctor import examine, render
from otel_llm_callback.callbacks import (
    AuditLog,
    ConsoleLogger,
    CostTracker,
    JsonLogger,
    SentryCallback,
    SessionAnalytics,
    SqliteSink,
)
from otel_llm_callback.testing import (
    JsonReply,
    RecordingCallback,
    StreamReply,
    TelemetryCollector,
    embedding_list,
    transcription,
)

NAMES = SHOWN_OF_REQUESTS | SHOWN_OF_RESPONSES | SHOWN_OF_RESPONSES_REQUESTS | {"failure.code"}
"""All that may ever be seen: parameters the program writes, and what names an answer."""


# --- Calls that run with either client --------------------------------------------------------------------------------


async def settled(value):
    """What a sync client returned, or what an async one will."""
    return await value if inspect.isawaitable(value) else value


async def read(answer, limit=None):
    """Take *limit* chunks, all if it is None."""
    taken = []
    if hasattr(answer, "__aiter__"):
        async for chunk in answer:
            taken.append(chunk)
            if len(taken) == limit:
                break
    elif hasattr(answer, "__iter__"):
        for chunk in answer:
            taken.append(chunk)
            if len(taken) == limit:
                break
    return taken


async def ask(client, **more):
    return await settled(client.chat.completions.create(**REQUEST, **more))


async def respond(client, **more):
    return await settled(client.responses.create(**RESPONSES_REQUEST, **more))


async def embed(client):
    return await settled(
        client.embeddings.create(
            model=canary("request.model"),
            input=[canary("prompt")],
            user=canary("user"),
            encoding_format="float",
            extra_headers={"x-own": canary("header")},
            extra_body={"own": canary("extra.body")},
        )
    )


async def paint(client, **more):
    return await settled(
        client.images.generate(model=canary("request.model"), prompt=canary("prompt"), user=canary("user"), **more)
    )


async def speak(client):
    answer = await settled(
        client.audio.speech.create(
            model=canary("request.model"), voice="alloy", input=canary("prompt"), extra_body={"own": canary("extra")}
        )
    )
    return await settled(answer.aread() if isinstance(client, openai.AsyncOpenAI) else answer.read())


async def transcribe(client):
    sound = (canary("file.name"), canary("sound").encode())
    return await settled(
        client.audio.transcriptions.create(model=canary("request.model"), file=sound, prompt=canary("prompt"))
    )


APIS = {
    "chat": (ask, JsonReply(ANSWER, headers=HEADERS), [*CHUNKS]),
    "responses": (respond, JsonReply(RESPONSES_ANSWER, headers=HEADERS), RESPONSES_EVENTS),
    "embeddings": (
        embed,
        JsonReply({**embedding_list(), "model": canary("response.model"), "own": canary("own")}, headers=HEADERS),
        None,
    ),
    "images": (
        paint,
        JsonReply({"created": 1, "data": [{"revised_prompt": canary("revised"), "url": canary("url")}]}, 200, HEADERS),
        None,
    ),
    "speech": (speak, JsonReply(canary("sound").encode(), headers={**HEADERS, "content-type": "audio/mpeg"}), None),
    "transcription": (transcribe, JsonReply(transcription(canary("answer")), headers=HEADERS), None),
}
STREAMED = [name for name, (_, _, events) in APIS.items() if events is not None]
SLOWLY = [b""] * 500


def always(reply):
    return lambda _: reply


def refusal(status):
    return always(JsonReply(FAILURE, status, {**HEADERS, "retry-after-ms": "1"}))


# --- Ends -------------------------------------------------------------------------------------------------------------


async def succeed(client, call):
    await call(client)


async def fail(client, call):
    with pytest.raises(openai.APIError):
        await call(client)


async def time_out(client, call):
    with pytest.raises(openai.APITimeoutError):
        await call(client.with_options(timeout=0.05, max_retries=0))


async def be_refused(client, call):
    url = str(client.base_url).replace(f":{client.base_url.port}", ":1")
    with pytest.raises(openai.APIConnectionError):
        await call(client.with_options(base_url=url, max_retries=0))


async def be_cancelled(client, call):
    if not isinstance(client, openai.AsyncOpenAI):
        return  # a thread cannot be; what Ctrl-C does is among the ends of streams
    task = asyncio.ensure_future(call(client))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


ENDS = {
    "success": (succeed, None),
    "400": (fail, refusal(400)),
    "401": (fail, refusal(401)),
    "429 three times": (fail, refusal(429)),
    "500 three times": (fail, refusal(500)),
    "timeout": (time_out, always(JsonReply({}, delay_s=5))),
    "refused": (be_refused, None),
    "cancelled": (be_cancelled, always(JsonReply({}, delay_s=5))),
    "no JSON": (
        succeed,
        always(JsonReply(f'{{"a": "{canary("broken.json")}'.encode(), headers={"content-type": "text/plain"})),
    ),
}


async def read_all(client, call):
    await read(await call(client, stream=True))


async def close(client, call):
    answer = await call(client, stream=True)
    await read(answer, 1)
    await settled(answer.close())


async def abandon(client, call):
    answer = await call(client, stream=True)
    await read(answer, 1)
    del answer
    gc.collect()


async def break_off(client, call):
    with pytest.raises((openai.APIError, http_library.HTTPError)):
        await read_all(client, call)


async def cancel_stream(client, call):
    if not isinstance(client, openai.AsyncOpenAI):
        return
    answer = await call(client, stream=True)
    await read(answer, 1)
    task = asyncio.ensure_future(read(answer))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


STREAM_ENDS = {
    "read": (read_all, lambda events: StreamReply(events, headers=HEADERS, named=True)),
    "closed": (close, lambda events: StreamReply([*events[:1], *SLOWLY], headers=HEADERS, delay_s=0.01, named=True)),
    "abandoned": (abandon, lambda events: StreamReply([*events[:1], *SLOWLY], 0.01, HEADERS, named=True)),
    "cancelled": (cancel_stream, lambda events: StreamReply([*events[:1], *SLOWLY], 0.01, HEADERS, named=True)),
    "truncated": (read_all, lambda events: StreamReply(events[:1], headers=HEADERS, done=False, named=True)),
    "connection lost": (break_off, lambda events: StreamReply(events, headers=HEADERS, cut_after=1, named=True)),
    "error event": (break_off, lambda events: StreamReply([events[0], FAILURE], headers=HEADERS)),
}


# --- Everybody who listens --------------------------------------------------------------------------------------------


class Outbox(Transport):
    """Keeps what Sentry would send."""

    def __init__(self, options=None):
        super().__init__(options)
        self.sent = []

    def capture_envelope(self, envelope):
        self.sent.append(envelope.serialize().decode("utf-8", "replace"))


class Everybody:
    """Every callback that is shipped, at its defaults, and all that they, the SDK and our logger say."""

    def __init__(self, directory, *, hostile=False, **settings):
        self.telemetry, self.logs, self.recorder = TelemetryCollector(), Logs(), RecordingCallback(content="none")
        self.our_log, self.json_lines, self.console, self.outbox = OurLog(), OurLog(), io.StringIO(), Outbox()
        self.directory = directory
        self.analytics, self.costs = SessionAnalytics(), CostTracker()
        self.audit, self.rows = AuditLog(directory / "audit.jsonl", key=b"k" * 32), SqliteSink(directory / "rows.db")
        self.file = JsonLogger(directory / "calls.jsonl")
        self._loggers = {"otel_llm_callback": self.our_log, "opentelemetry": self.our_log, "llm_calls": self.json_lines}
        for name, handler in self._loggers.items():
            logging.getLogger(name).addHandler(handler)
            logging.getLogger(name).setLevel(logging.DEBUG)
        sentry_sdk.init(
            dsn="https://key@sentry.invalid/1",
            transport=self.outbox,
            default_integrations=False,
            auto_enabling_integrations=False,
            auto_session_tracking=False,
        )
        log_provider = LoggerProvider(shutdown_on_exit=False)
        log_provider.add_log_record_processor(self.logs)
        otel_llm_callback.instrument(
            self.recorder,
            self.analytics,
            self.costs,
            self.audit,
            self.rows,
            JsonLogger(),
            self.file,
            SentryCallback(),
            ConsoleLogger(self.console),
            *([Crash()] if hostile else []),
            redactor=failing_redactor if hostile else None,
            delivery="inline",
            metrics="both",
            exceptions="both" if HAS_EVENTS else "span",
            emit_event=HAS_EVENTS,
            tracer_provider=self.telemetry.tracer_provider,
            meter_provider=self.telemetry.meter_provider,
            logger_provider=log_provider,
            **settings,
        )

    def found(self):
        """The canaries, by the place they were seen in."""
        assert otel_llm_callback.flush(10)
        report = examine({})
        texts = {
            **everything(self.telemetry, self.logs, self.our_log, self.recorder),
            "doctor": [render(report), repr(report), json.dumps(report.as_json())],
            "analytics": [repr(self.analytics.summary()), str(self.analytics)],
            "costs": [repr(self.costs.summary()), str(self.costs)],
            "console": [self.console.getvalue()],
            "JSON lines": self.json_lines.lines,
            "Sentry": self.outbox.sent,
        }
        self.close()  # what is held back is written
        for path in self.directory.iterdir():
            texts[path.name] = [path.read_bytes().decode("latin-1")]
        return {place: set().union(*map(canaries_in, seen)) for place, seen in texts.items()}

    def close(self):
        otel_llm_callback.uninstrument()
        self.audit.close()
        self.file.close()
        sentry_sdk.get_client().close(timeout=0)
        sentry_sdk.Scope.get_global_scope().set_client(None)
        for name, handler in self._loggers.items():
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).setLevel(logging.NOTSET)


def failing_redactor(text):
    raise ValueError(text)


async def sweep(directory, server, asynchronous, act, call, **settings):
    """Have *act* done to *call* with everybody listening; return what was seen, by place."""
    everybody = Everybody(directory, **settings)
    try:
        client = (openai.AsyncOpenAI if asynchronous else openai.OpenAI)(**credentials(server))
        await act(client, call)
        await settled(client.close())
        for _ in range(3):  # the loop closes what the collector found, and then there is more to collect
            gc.collect()
            await asyncio.sleep(0.001)
        return everybody.found()
    finally:
        everybody.close()


def beyond_names(found):
    """What should not have been seen, by place."""
    return {place: names - NAMES for place, names in found.items() if names - NAMES}


either_client = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@either_client
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("api", APIS)
async def test_nobody_sees_content_however_a_call_ends(tmp_path, server, api, end, asynchronous, expected_logs):
    """Spans, events, metrics, logs, reprs, pickles, reports and files: of content and secrets there is nothing."""
    call, answer, _ = APIS[api]
    act, reply = ENDS[end]
    server.reply = reply or always(answer)
    found = await sweep(tmp_path, server, asynchronous, act, call)
    assert beyond_names(found) == {}
    if act is not be_cancelled or asynchronous:
        assert "request.model" in found["spans"] & found["metrics"] & found["rows.db"] & found["audit.jsonl"]


@either_client
@pytest.mark.parametrize("end", STREAM_ENDS)
@pytest.mark.parametrize("api", STREAMED)
async def test_nobody_sees_content_however_a_stream_ends(tmp_path, server, api, end, asynchronous, expected_logs):
    """The same for streams."""
    call, _, events = APIS[api]
    act, reply = STREAM_ENDS[end]
    server.reply = always(reply(events))
    found = await sweep(tmp_path, server, asynchronous, act, call)
    assert beyond_names(found) == {}
    if act is not cancel_stream or asynchronous:
        assert "request.model" in found["spans"] & found["metrics"] & found["rows.db"] & found["audit.jsonl"]


STRUCTURE = {"call.id", "call.name", "earlier.call.id", "earlier.call.name", "function.name"}
STRUCTURE |= {"tool.name", "tool.property"}
"""Names and ids of the program's own, which link the messages and are left when the rest is redacted."""

HOSTILE_ENDS = {"success": ENDS["success"], "400": ENDS["400"], "500 three times": ENDS["500 three times"]}


@either_client
@pytest.mark.parametrize("end", HOSTILE_ENDS)
@pytest.mark.parametrize("api", STREAMED)
async def test_what_crashes_shows_no_content(tmp_path, server, api, end, asynchronous, expected_logs):
    """With everything switched on, what cannot be redacted is withheld, and no log line quotes what was raised."""
    call, answer, _ = APIS[api]
    act, reply = HOSTILE_ENDS[end]
    server.reply = reply or always(answer)
    shown = "span_and_event" if HAS_EVENTS else "span_only"
    settings = {"hostile": True, "capture_content": shown, "error_text": True}
    found = beyond_names(await sweep(tmp_path, server, asynchronous, act, call, **settings))
    assert set().union(*found.values()) <= STRUCTURE
    assert set(found) == {"spans", *(["log events"] if HAS_EVENTS else [])}


@either_client
async def test_a_result_that_says_it_failed_shows_its_code_only(tmp_path, server, asynchronous, expected_logs):
    """The text of the failure is the server's, and may quote the prompt."""
    server.reply = always(JsonReply(RESPONSES_FAILED, headers=HEADERS))
    found = await sweep(tmp_path, server, asynchronous, succeed, respond)
    assert beyond_names(found) == {}
    assert "failure.code" in found["spans"] & found["rows.db"]


@either_client
async def test_the_sweep_finds_what_is_switched_on(tmp_path, server, asynchronous):
    """With content switched on the same sweep finds it on spans and events, so its silence means something."""
    server.reply = always(JsonReply(ANSWER, headers=HEADERS))
    shown = "span_and_event" if HAS_EVENTS else "span_only"
    found = await sweep(tmp_path, server, asynchronous, succeed, ask, capture_content=shown)
    for place in ("spans", *(["log events"] if HAS_EVENTS else [])):
        assert found[place] >= {"prompt", "system", "text.part", "answer", "refusal", "call.args", "tool.result"}
    assert set(beyond_names(found)) == {"spans", *(["log events"] if HAS_EVENTS else [])}


async def test_the_sweep_finds_what_a_callback_writes(tmp_path, server):
    """The same for files: a logger that is told to write content does."""
    server.reply = always(JsonReply(ANSWER, headers=HEADERS))
    (folder := tmp_path / "shown").mkdir()
    kept = JsonLogger(folder / "kept.jsonl", content="full")
    otel_llm_callback.register(kept, delivery="inline")
    found = await sweep(folder, server, False, succeed, ask)
    assert beyond_names(found)["kept.jsonl"] >= {"prompt", "answer", "metadata.value", "extra.body", "tool.result"}
    kept.close()
