"""Callbacks that misbehave: the caller, the other callbacks and the program's exit do not notice."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import forms
import openai
import pytest
import scenarios as s
from opentelemetry import trace
from scenarios import ANSWER, READ, STREAM, Failed, Received, Sent, told

import otel_llm_callback
from otel_llm_callback.protocol import HOOKS
from otel_llm_callback.testing import RecordingCallback, StreamReply, check_grammar

ARGUMENTS = s.chat()()
WHOLE = (Sent(), Received())
REFUSED = (Sent(), Failed("BadRequestError", status=400))

both_deliveries = pytest.mark.parametrize("delivery", ["inline", "queued"])


def answer(request):
    """An answer, a stream or, for the model ``refused``, a refusal."""
    if request.json.get("model") == "refused":
        return s.refusal(400)
    return STREAM if request.json.get("stream") else ANSWER


def use(client):
    """One call of each kind; returns what the caller sees."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="refused", messages=[])
    whole = client.chat.completions.create(**ARGUMENTS)
    chunks = list(client.chat.completions.create(stream=True, **ARGUMENTS))
    return refused.value.args, whole.model_dump(), [chunk.model_dump() for chunk in chunks]


async def ause(client):
    """The same with the async client."""
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="refused", messages=[])
    whole = await client.chat.completions.create(**ARGUMENTS)
    chunks = [chunk async for chunk in await client.chat.completions.create(stream=True, **ARGUMENTS)]
    return refused.value.args, whole.model_dump(), [chunk.model_dump() for chunk in chunks]


USED = [(Sent(model="refused"), REFUSED[1]), WHOLE, READ]
EVENTS_OF_USE = 2 + 2 + 8


# --- A callback that raises -------------------------------------------------------------------------------------------


SECRET = "what the prompt said"


class HostileError(Exception):
    """Raised by hooks, with a text that may not get into a log."""


def raising(hook):
    """A callback that has only *hook*, which raises."""

    def fail(self, first, second):
        raise HostileError(SECRET)

    return type("Raising", (), {hook: fail})()


@both_deliveries
@pytest.mark.parametrize("hook", HOOKS)
def test_hook_that_raises_harms_nobody(hook, delivery, server, client, recorder, instrumented, expected_logs):
    """The caller sees what it saw before, the other callback is told everything, the failure is counted."""
    server.reply = answer
    otel_llm_callback.uninstrument()
    before = use(client)
    hostile = otel_llm_callback.register(raising(hook), delivery=delivery)
    otel_llm_callback.instrument(recorder, delivery="inline", telemetry=False)
    assert use(client) == before
    assert otel_llm_callback.flush(5)
    assert told(recorder) == USED
    expected = {"on_request_sent": 3, "on_stream_chunk": 6, "on_response_received": 2, "on_error": 1}[hook]
    assert (hostile.failed, hostile.delivered, hostile.dropped) == (expected, 0, 0)


@both_deliveries
async def test_hook_that_raises_harms_nobody_async(delivery, server, aclient, recorder, instrumented, expected_logs):
    """The same for the async client, all four hooks raising."""
    server.reply = answer
    for hook in HOOKS:
        otel_llm_callback.register(raising(hook), delivery=delivery)
    await ause(aclient)
    assert await otel_llm_callback.aflush(5)
    assert told(recorder) == USED


@both_deliveries
def test_log_handler_that_raises_harms_nobody(delivery, server, client, recorder, instrumented, expected_logs):
    """What we say of a failed hook goes to the program's handlers; the caller and the next events do not notice."""

    class Broken(logging.Handler):
        def emit(self, record):
            raise OSError

    class Failing:
        def on_request_sent(self, metadata, request_json):
            raise ValueError

    server.reply = answer
    otel_llm_callback.register(Failing(), delivery=delivery)
    logger = logging.getLogger("otel_llm_callback")
    logger.addHandler(broken := Broken())
    try:
        use(client)
        assert otel_llm_callback.flush(10)
    finally:
        logger.removeHandler(broken)
    assert told(recorder) == USED
    assert [callback.failed for callback in otel_llm_callback.status().callbacks] == [0, 3]


@both_deliveries
def test_failing_hook_is_logged_once_and_without_content(delivery, server, client, instrumented, caplog, expected_logs):
    """The first failure is an error with the frames it came through, later ones are for debugging only."""
    caplog.set_level(logging.DEBUG, "otel_llm_callback")
    server.reply = answer
    otel_llm_callback.register(raising("on_stream_chunk"), delivery=delivery)
    list(client.chat.completions.create(stream=True, **ARGUMENTS))
    assert otel_llm_callback.flush(5)
    records = [record for record in caplog.records if "Raising" in record.getMessage()]
    assert [record.levelname for record in records] == ["ERROR", *["DEBUG"] * 5]
    assert "test_safety.py" in records[0].getMessage()
    assert SECRET not in caplog.text


class BadManager:
    """A context manager that raises, or tries to swallow what the caller is to get."""

    def __init__(self, where):
        self.where = where

    def __enter__(self):
        if self.where == "enter":
            raise HostileError

    def __exit__(self, *_):
        if self.where == "exit":
            raise HostileError
        return True


@pytest.mark.parametrize("where", ["enter", "exit", "swallow"])
def test_context_manager_of_a_hook_cannot_touch_the_call(where, server, client, recorder, instrumented, expected_logs):
    """Whatever it does, the caller's answer and exception are the same."""

    class Holding:
        def on_request_sent(self, metadata, request_json):
            return BadManager(where)

    server.reply = answer
    otel_llm_callback.register(Holding(), delivery="inline")
    use(client)  # checks that the refusal is raised
    assert told(recorder) == USED


# --- A callback that hangs or is slow ---------------------------------------------------------------------------------


def test_hook_that_never_returns_stops_nobody(server, client, instrumented):
    """A thousand calls finish; what has no room in the queue is dropped and counted, and nothing else is lost."""

    class Hanging(RecordingCallback):
        def on_request_sent(self, metadata, request_json):
            go_on.wait(30)
            super().on_request_sent(metadata, request_json)

    server.reply = lambda request: ANSWER
    go_on, hanging = threading.Event(), Hanging()
    registration = otel_llm_callback.register(hanging, delivery="queued", queue_size=64)
    try:
        for _ in range(1000):
            client.chat.completions.create(**ARGUMENTS)
        assert registration.dropped > 1500
    finally:
        go_on.set()
    assert otel_llm_callback.flush(10)
    check_grammar(hanging.events)
    assert registration.delivered == len(hanging.events) > 0
    assert registration.delivered + registration.dropped == 2000


def test_flush_does_not_wait_longer_than_it_may(server, client, instrumented):
    """With a callback that hangs it gives up in time and says so."""

    class Hanging:
        def on_error(self, error, context): ...

        def on_request_sent(self, metadata, request_json):
            go_on.wait(30)

    go_on = threading.Event()
    otel_llm_callback.register(Hanging(), delivery="queued")
    client.chat.completions.create(**ARGUMENTS)
    try:
        assert otel_llm_callback.flush(0.05) is False
    finally:
        go_on.set()
    assert otel_llm_callback.flush(5) is True


async def test_slow_hook_does_not_stall_the_event_loop(server, aclient, recorder, instrumented):
    """While twenty calls run beside a callback that sleeps 0.3 s per call, the loop is never blocked for long."""

    class Slow:
        def __init__(self):
            self.calls = 0
            self.pause_s = 0.3

        def on_response_received(self, metadata, response_json):
            self.calls += 1
            time.sleep(self.pause_s)

    async def watch():
        worst, last = 0.0, time.perf_counter()
        while not done.is_set():
            await asyncio.sleep(0.001)
            worst, last = max(worst, time.perf_counter() - last), time.perf_counter()
        return worst

    server.reply = lambda request: StreamReply(STREAM.events, delay_s=0.01)
    await forms.aread(forms.Scene(aclient, dict(ARGUMENTS), server))  # what the first call costs is not the question
    slow, done = Slow(), asyncio.Event()
    otel_llm_callback.register(slow, delivery="queued")
    gc.collect()
    watching = asyncio.create_task(watch())
    await asyncio.gather(*(forms.aread(forms.Scene(aclient, dict(ARGUMENTS), server)) for _ in range(20)))
    done.set()
    assert await watching < 0.15  # half of what one inline call of the hook would cost
    assert len(recorder.responses) == 21
    assert slow.calls < 20
    slow.pause_s = 0  # what waits in the queue is still told


# --- A callback that uses the API itself ------------------------------------------------------------------------------


@both_deliveries
def test_calls_made_by_hooks_are_not_observed(delivery, server, client, recorder, instrumented):
    """A hook that asks the model something, say for a judgement, does not set itself off."""

    class Asking:
        def __init__(self):
            self.answers = []

        def ask(self, *_):
            self.answers.append(client.chat.completions.create(model="judge", messages=[]).id)

        on_request_sent = on_stream_chunk = on_response_received = on_error = ask

    server.reply = answer
    asking = Asking()
    otel_llm_callback.register(asking, delivery=delivery)
    use(client)
    assert otel_llm_callback.flush(5)
    assert asking.answers == ["chatcmpl-1"] * EVENTS_OF_USE
    assert Counter(request.json["model"] for request in server.requests) == {"judge": 12, "refused": 1, forms.MODEL: 2}
    assert told(recorder) == USED


# --- A callback that changes what it gets -----------------------------------------------------------------------------


class Meddling:
    """Try to change every fact; keep what could be changed."""

    def __init__(self):
        self.changed = []
        self.tried = 0

    def meddle(self, *arguments):
        for argument in arguments:
            for owner in (argument, getattr(argument, "request", None), getattr(argument, "usage", None)):
                if dataclasses.is_dataclass(owner) or isinstance(owner, str):
                    self.set_all(owner)

    def set_all(self, owner):
        slots = getattr(type(owner), "__slots__", ())
        for name in [*slots, "brand_new"]:
            self.attempt(lambda name=name: setattr(owner, name, "meddled"), f"{type(owner).__name__}.{name}")
            value = getattr(owner, name, None)
            if hasattr(value, "keys"):
                self.attempt(lambda value=value: value.update(a=1), f"{type(owner).__name__}.{name}[...]")
                self.attempt(lambda value=value: value.__setitem__("a", 1), f"{type(owner).__name__}.{name}[...]")

    def attempt(self, change, what):
        self.tried += 1
        try:
            change()
        except (AttributeError, TypeError):
            return
        self.changed.append(what)

    on_request_sent = on_stream_chunk = on_response_received = meddle

    def on_error(self, error, context):
        self.meddle(context)


def test_facts_cannot_be_changed(server, client, recorder, instrumented):
    """Callbacks share the facts: nobody can alter what the next one is told, or what the caller gets."""
    server.reply = answer
    otel_llm_callback.uninstrument()
    before = use(client)
    meddling = Meddling()
    with otel_llm_callback.session("s-1", user="u-1", plan="free"):
        otel_llm_callback.instrument(meddling, recorder, delivery="inline", telemetry=False)
        assert use(client) == before
    assert meddling.tried > 300
    assert meddling.changed == []
    assert told(recorder) == USED
    assert {request.attributes.get("plan") for request in recorder.requests} == {"free"}


def test_request_json_is_what_was_sent(server, client, recorder, instrumented):
    """Callbacks get a text; the body that was sent is nobody's to change."""
    client.chat.completions.create(**ARGUMENTS, extra_body={"top_k": 3})
    assert json.loads(recorder.events[0].request_json) == server.requests[0].json


# --- async def hooks --------------------------------------------------------------------------------------------------


class AsyncRecorder(RecordingCallback):
    """The recorder with async hooks that give way before they record."""

    async def on_request_sent(self, *arguments):
        await asyncio.sleep(0)
        super().on_request_sent(*arguments)

    async def on_stream_chunk(self, *arguments):
        await asyncio.sleep(0)
        super().on_stream_chunk(*arguments)

    async def on_response_received(self, *arguments):
        await asyncio.sleep(0)
        super().on_response_received(*arguments)

    async def on_error(self, *arguments):
        await asyncio.sleep(0)
        super().on_error(*arguments)


def test_async_hooks_are_told_in_a_sync_program(server, client, instrumented):
    """They run to their end, in order, on a loop of their own."""
    server.reply = answer
    recorder = AsyncRecorder()
    otel_llm_callback.register(recorder, delivery="queued")
    use(client)
    assert otel_llm_callback.flush(5)
    assert told(recorder) == USED


async def test_async_hooks_are_told_in_an_async_program(server, aclient, instrumented):
    """They do not run on the program's loop, which they could block."""
    server.reply = answer
    recorder, loops = AsyncRecorder(), set()

    class Loops:
        async def on_request_sent(self, metadata, request_json):
            loops.add(asyncio.get_running_loop())

    otel_llm_callback.register(recorder, delivery="queued")
    otel_llm_callback.register(Loops(), delivery="queued")
    await ause(aclient)
    assert await otel_llm_callback.aflush(5)
    assert told(recorder) == USED
    assert len(loops) == 1
    assert asyncio.get_running_loop() not in loops


def test_async_hook_that_raises_harms_nobody(server, client, recorder, instrumented, expected_logs):
    """Its exception ends where a sync hook's does."""

    class Raising:
        async def on_request_sent(self, metadata, request_json):
            await asyncio.sleep(0)
            raise HostileError

    registration = otel_llm_callback.register(Raising(), delivery="queued")
    client.chat.completions.create(**ARGUMENTS)
    client.chat.completions.create(**ARGUMENTS)
    assert otel_llm_callback.flush(5)
    assert (registration.failed, len(recorder.responses)) == (2, 2)


def test_async_hook_is_refused_inline():
    """Nobody would await it; better to hear of that at the start."""
    with pytest.raises(ValueError, match=r"AsyncRecorder\.on_request_sent is 'async def'.*'queued'"):
        otel_llm_callback.register(AsyncRecorder(), delivery="inline")


# --- Many calls at once -----------------------------------------------------------------------------------------------


def test_calls_at_once_keep_the_grammar(server, client, recorder, instrumented, expected_logs):
    """Two hundred calls from twenty threads, one callback raises, one is slow: all others hear each call in order."""

    class Slow(RecordingCallback):
        def on_response_received(self, metadata, response_json):
            time.sleep(0.001)
            super().on_response_received(metadata, response_json)

    server.reply = answer
    quick, slow = RecordingCallback(), Slow()
    for callback in (raising("on_stream_chunk"), quick, slow):
        otel_llm_callback.register(callback, delivery="queued", queue_size=10_000)

    def call(number):
        if number % 4 == 0:
            list(client.chat.completions.create(stream=True, **ARGUMENTS))
        elif number % 4 == 1:
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(model="refused", messages=[])
        else:
            client.chat.completions.create(**ARGUMENTS)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(call, range(200)))
    assert otel_llm_callback.flush(10)
    expected = Counter({READ: 50, USED[0]: 50, WHOLE: 100})
    assert [Counter(told(each)) for each in (recorder, quick, slow)] == [expected] * 3


def test_queued_hook_sees_the_span_of_the_call(server, client, instrumented):
    """What a hook logs or traces from the worker thread belongs to the trace of the call."""
    seen = []

    class Looking:
        def on_request_sent(self, metadata, request_json):
            context = trace.get_current_span().get_span_context()
            seen.append((f"{context.trace_id:032x}", metadata.trace_id))

    otel_llm_callback.register(Looking(), delivery="queued")
    client.chat.completions.create(**ARGUMENTS)
    assert otel_llm_callback.flush(5)
    ((current, told_of),) = seen
    assert current == told_of


# --- Callbacks that come and go ---------------------------------------------------------------------------------------


@both_deliveries
def test_removed_callback_is_told_the_rest_of_its_calls(delivery, server, client, instrumented):
    """A call that was begun before the removal is told to its end, one begun after it not at all."""
    server.reply = answer
    recorder = RecordingCallback()
    registration = otel_llm_callback.register(recorder, delivery=delivery)
    chunks = client.chat.completions.create(stream=True, **ARGUMENTS)
    next(chunks)
    registration.remove()
    client.chat.completions.create(**ARGUMENTS)
    list(chunks)
    assert otel_llm_callback.flush(5)
    assert told(recorder) == [READ]


def test_flush_after_removal_waits_for_what_is_queued_and_no_longer(server, client, instrumented):
    """What is queued for a callback that was removed is delivered, and then there is nothing to wait for."""

    class Late(RecordingCallback):
        def on_response_received(self, metadata, response_json):
            time.sleep(0.1)
            super().on_response_received(metadata, response_json)

    late = Late()
    registration = otel_llm_callback.register(late, delivery="queued")
    client.chat.completions.create(**ARGUMENTS)
    registration.remove()
    assert otel_llm_callback.flush(3)
    assert late.names() == ["request_sent", "response_received"]


def test_removed_callbacks_leave_no_threads(server, client, instrumented):
    """Registering for a while, again and again, does not add up."""

    def threads():
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("otel-llm-callback")]

    server.reply = answer
    for _ in range(20):
        registration = otel_llm_callback.register(RecordingCallback(), delivery="queued")
        chunks = client.chat.completions.create(stream=True, **ARGUMENTS)
        registration.remove()
        list(chunks)
    deadline = time.monotonic() + 3
    while len(threads()) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(threads()) <= 1


def test_uninstrumented_in_the_middle_of_a_stream(server, client, recorder, telemetry, instrumented):
    """The call that is under way is told to its end and its span ends; the next call is not observed."""
    server.reply = answer
    chunks = client.chat.completions.create(stream=True, **ARGUMENTS)
    next(chunks)
    otel_llm_callback.uninstrument()
    assert len(list(chunks)) == 5
    client.chat.completions.create(**ARGUMENTS)
    assert told(recorder) == [READ]
    assert [span.attributes["llm_callback.outcome"] for span in telemetry.spans()] == ["completed"]


# --- The end of the program -------------------------------------------------------------------------------------------

PRELUDE = """
import asyncio, sys, openai, otel_llm_callback

class Printing:
    def on_request_sent(self, metadata, request_json): print("sent", flush=True)
    def on_response_received(self, metadata, response_json): print(metadata.outcome, flush=True)
    def on_error(self, error, context): print(context.outcome, type(error).__name__, flush=True)

class AsyncPrinting:
    async def on_response_received(self, metadata, response_json):
        await asyncio.sleep(0.05)
        print(metadata.outcome, flush=True)

url, messages = sys.argv[1], [{"role": "user", "content": "hi"}]
"""


def run_program(server, body):
    """Run a program against *server*, with every warning an error; return what it printed on both outputs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", PRELUDE + body, server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)
    return done.returncode, done.stdout.split(), done.stderr


def test_program_that_exits_at_once_still_delivers(server):
    """What is queued when ``asyncio.run`` returns and the program ends is delivered, by async hooks too."""
    body = """
otel_llm_callback.instrument(Printing(), AsyncPrinting())
async def main():
    async with openai.AsyncOpenAI(api_key="k", base_url=url) as client:
        await client.chat.completions.create(model="m", messages=messages)
asyncio.run(main(), debug=False)  # or it reports how slow this machine is
"""
    code, printed, errors = run_program(server, body)
    assert (code, sorted(printed), errors) == (0, ["completed", "completed", "sent"], "")


def test_program_that_fails_still_delivers(server):
    """The exception that ends the program is printed as ever, and what is queued is delivered."""
    server.reply = lambda request: s.refusal(400, "this text is the caller's")
    body = """
otel_llm_callback.instrument(Printing())
with openai.OpenAI(api_key="k", base_url=url) as client:
    client.chat.completions.create(model="m", messages=messages)
"""
    code, printed, errors = run_program(server, body)
    assert (code, printed) == (1, ["sent", "error", "BadRequestError"])
    last = errors.rstrip().splitlines()[-1]
    assert last.startswith("openai.BadRequestError: Error code: 400")
    assert "this text is the caller's" in last


OPEN_STREAM = """
client = openai.OpenAI(api_key="k", base_url=url)
stream = client.chat.completions.create(model="m", messages=messages, stream=True)
next(stream)
"""
# Unread: what asyncio itself prints when it closes the SDK's generators half-way is not for us to judge.
OPEN_ASYNC_STREAM = """
async def main():
    global stream
    client = openai.AsyncOpenAI(api_key="k", base_url=url)
    stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
    await client.close()
asyncio.run(main(), debug=False)  # or it reports how slow this machine is
"""


@pytest.mark.parametrize("body", [OPEN_STREAM, OPEN_ASYNC_STREAM], ids=["sync", "async"])
def test_exit_with_an_open_stream_prints_nothing(body, server):
    """Neither we nor the interpreter have anything to complain about."""
    server.reply = lambda request: StreamReply(s.ENDLESS.events, delay_s=0.01)
    code, printed, errors = run_program(server, "otel_llm_callback.instrument(Printing())\n" + body)
    assert (code, errors) == (0, "")
    assert printed in (["sent"], ["sent", "abandoned"], ["sent", "closed_early"])


def test_program_with_a_hanging_callback_ends(server):
    """The exit waits for callbacks, but not for ever."""
    body = """
import threading
class Hanging:
    def on_request_sent(self, metadata, request_json): threading.Event().wait()
otel_llm_callback.instrument(Hanging(), exit_timeout=0.2)
with openai.OpenAI(api_key="k", base_url=url) as client:
    client.chat.completions.create(model="m", messages=messages)
print("done")
"""
    assert run_program(server, body) == (0, ["done"], "")
