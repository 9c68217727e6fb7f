"""Queued delivery: off the caller's path, in order, bounded, counted, and over when the program is."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from typing import ClassVar

import pytest
from opentelemetry import trace

import otel_llm_callback
from otel_llm_callback import MultiCallback, aflush, flush, instrument, register, shutdown, uninstrument, using
from otel_llm_callback._registry import REGISTRY
from otel_llm_callback.protocol import find_hook
from otel_llm_callback.testing import (
    RecordingCallback,
    check_grammar,
    make_chunk,
    make_error_context,
    make_request,
    make_response,
)

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}

A_WHILE_S = 10.0
"""How long to wait for what is to come; what does not come fails the test."""


class Gated(RecordingCallback):
    """A recorder whose hooks hang until the gate is open."""

    gates: ClassVar[list[threading.Event]] = []

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.gates.append(self.gate)
        self.reached = threading.Event()

    def _hang(self):
        self.reached.set()
        assert self.gate.wait(6 * A_WHILE_S)  # longer than whatever is done meanwhile, also on a busy machine

    def on_request_sent(self, metadata, request_json):
        self._hang()
        super().on_request_sent(metadata, request_json)

    def on_stream_chunk(self, chunk, index):
        self._hang()
        super().on_stream_chunk(chunk, index)

    def on_response_received(self, metadata, response_json):
        self._hang()
        super().on_response_received(metadata, response_json)

    def on_error(self, error, context):
        self._hang()
        super().on_error(error, context)


class Call:
    """One call as callbacks are told of it, without the network: what is tested here is what becomes of the telling.

    It tells those that were registered when it began, each in the way it is delivered to.
    """

    def __init__(self):
        self.request = make_request(stream=True)
        self.told = 0
        self._callbacks = [listener.callback for listener in REGISTRY.dispatcher.listeners]
        self._index = itertools.count()

    def begin(self, text=""):
        return self._tell("on_request_sent", self.request, text)

    def chunks(self, count):
        for index in itertools.islice(self._index, count):
            self._tell("on_stream_chunk", make_chunk(str(index), request=self.request), index)
        return self

    def end(self):
        return self._tell("on_response_received", make_response(request=self.request), "")

    def fail(self, error):
        return self._tell("on_error", error, make_error_context(request=self.request))

    def _tell(self, hook_name, *arguments):
        for callback in self._callbacks:
            if (hook := find_hook(callback, hook_name)) is not None:
                hook(*arguments)
        self.told += 1
        return self


def told_of(recorder, call):
    """What the recorder knows of a call, briefly: chunks by their index."""
    return [getattr(event, "index", event.name) for event in recorder.events_of(call.request.call_id)]


def counts(registration):
    return registration.delivered, registration.failed, registration.dropped


def workers():
    """The threads that deliver."""
    return [thread for thread in threading.enumerate() if thread.name == "otel-llm-callback"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + A_WHILE_S
    while not condition():
        assert time.monotonic() < deadline, "it has not come true"
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _nothing_left():
    """Each test takes back what it registered, and its threads end."""
    yield
    for gate in Gated.gates:
        gate.set()
    Gated.gates.clear()
    for registration in REGISTRY.registrations:
        registration.remove()
    shared = 1 if any(worker.is_running for worker in otel_llm_callback._registry._scoped.values()) else 0
    wait_until(lambda: len(workers()) <= shared)


@pytest.fixture
def gated():
    return Gated()


# --- Order and overflow -----------------------------------------------------------------------------------------------


def test_order_is_kept(recorder):
    """Events arrive in the order in which they were told, however the calls interleave."""
    register(recorder)
    first, second = Call().begin(), Call().begin()
    for _ in range(50):
        first.chunks(1)
        second.chunks(2)
    error = OSError("gone")
    second.fail(error)
    first.end()
    assert flush(A_WHILE_S)
    names = recorder.names()
    assert names == ["request_sent"] * 2 + ["stream_chunk"] * 150 + ["error", "response_received"]
    assert told_of(recorder, second) == ["request_sent", *range(100), "error"]
    assert recorder.events[-2].error is error
    check_grammar(recorder.events)


def test_order_is_kept_when_switched_off_and_on():
    """A registered callback is told by one thread at a time and in order, whatever is switched meanwhile."""
    gate, began, told = threading.Event(), [], []

    class Callback:
        def on_request_sent(self, metadata, request_json):
            began.append(metadata.call_id)
            assert gate.wait(A_WHILE_S)
            told.append(metadata.call_id)

    register(Callback())
    instrument()
    calls = [Call().begin()]
    wait_until(lambda: began != [])
    uninstrument()
    instrument()
    calls.append(Call().begin())
    flush(0.2)
    at_once = len(began)
    gate.set()
    assert flush(A_WHILE_S)
    assert (at_once, told) == (1, [call.request.call_id for call in calls])


# With a queue of eight and a callback that hangs in the request of the first call, this is what there is room for: four
# chunks with `drop_chunks`, which keeps half of it for requests and ends; eight with `drop_new`.
@pytest.mark.parametrize(
    ("overflow", "first_chunks", "second", "third"),
    [
        ("drop_chunks", 4, ["request_sent", "response_received"], ["request_sent", "response_received"]),
        ("drop_new", 8, [], []),
    ],
)
def test_what_gives_way_when_the_queue_is_full(gated, overflow, first_chunks, second, third):
    """A call is left out whole or loses chunks, never its end; what arrives and what does not is counted exactly."""
    registration = register(gated, overflow=overflow, queue_size=8)
    calls = [Call().begin()]
    assert gated.reached.wait(A_WHILE_S)
    calls[0].chunks(20).end()
    calls += [Call().begin().chunks(3).end() for _ in range(3)]
    gated.gate.set()
    assert flush(A_WHILE_S)
    assert [told_of(gated, call) for call in calls] == [
        ["request_sent", *range(first_chunks), "response_received"],
        second,
        third,
        [],
    ]
    told = sum(call.told for call in calls)
    assert counts(registration) == (len(gated.events), 0, told - len(gated.events))
    check_grammar(gated.events)


def test_block_makes_the_caller_wait_and_loses_nothing(gated):
    """With ``block`` a full queue holds the caller up until there is room."""
    registration = register(gated, overflow="block", queue_size=4)
    call = Call().begin()
    assert gated.reached.wait(A_WHILE_S)
    caller = threading.Thread(target=lambda: call.chunks(20).end(), daemon=True)
    caller.start()
    wait_until(lambda: registration.waiting == 4)
    caller.join(0.1)
    assert (caller.is_alive(), registration.waiting) == (True, 4)
    gated.gate.set()
    caller.join(A_WHILE_S)
    assert flush(A_WHILE_S)
    assert told_of(gated, call) == ["request_sent", *range(20), "response_received"]
    assert counts(registration) == (22, 0, 0)


@pytest.mark.parametrize("overflow", ["drop_chunks", "drop_new", "block"])
def test_grammar_and_counts_hold_under_pressure(overflow):
    """Four threads faster than the callback: each call that is told of is told right, each event is accounted for."""

    class Slow(RecordingCallback):
        def on_stream_chunk(self, chunk, index):
            time.sleep(0.0002)
            super().on_stream_chunk(chunk, index)

    slow = Slow()
    registration = register(slow, overflow=overflow, queue_size=16)
    told = []

    def caller():
        for number in range(40):
            call = Call().begin().chunks(number % 7)
            told.append((call.end() if number % 3 else call.fail(OSError("gone"))).told)

    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(A_WHILE_S)
    assert flush(A_WHILE_S)
    check_grammar(slow.events, all_chunks=overflow == "block")
    assert counts(registration) == (len(slow.events), 0, sum(told) - len(slow.events))
    assert overflow != "block" or registration.dropped == 0


def test_only_what_a_callback_listens_to_is_counted(gated):
    """A hook that is not there takes nothing and misses nothing."""

    class Ends:
        def on_response_received(self, metadata, response_json):
            gated.on_response_received(metadata, response_json)

    registration = register(Ends(), queue_size=2)
    Call().begin().end()
    assert gated.reached.wait(A_WHILE_S)
    for _ in range(3):
        Call().begin().chunks(5).end()
    Call().begin().fail(OSError("gone"))
    gated.gate.set()
    assert flush(A_WHILE_S)
    assert counts(registration) == (2, 0, 2)


def test_queue_is_bounded_while_a_callback_hangs(gated):
    """However long it hangs, a queue holds its size and one end for each request in it."""
    registration = register(gated, queue_size=16)
    Call().begin().chunks(1)
    assert gated.reached.wait(A_WHILE_S)
    for _ in range(2000):
        Call().begin().chunks(10).end()
    assert registration.waiting <= 2 * 16 + 1
    (listener,) = registration.listeners
    assert len(listener.callback._open) + len(listener.callback._contexts) <= 2


def test_queue_is_bounded_in_text_too(gated):
    """However few the calls, the JSON that waits in a queue is bounded: a call that comes on top of it is left out."""
    registration = register(gated)
    Call().begin()
    assert gated.reached.wait(A_WHILE_S)
    text = "x" * (40 * 1024 * 1024)
    calls = [Call().begin(text).end() for _ in range(3)]
    gated.gate.set()
    assert flush(A_WHILE_S)
    later = Call().begin(text).end()
    assert flush(A_WHILE_S)
    whole = ["request_sent", "response_received"]
    assert [told_of(gated, call) for call in (*calls, later)] == [whole, whole, [], whole]
    assert counts(registration) == (7, 0, 2)


def test_abandoned_streams_do_not_fill_a_queue_that_hangs(gated, recorder, server, client):
    """What wakes a busy thread to see to dropped streams wakes it once; meanwhile another thread sees to them."""
    hanging, free = register(gated, queue_size=4), register(recorder)
    instrument()
    client.chat.completions.create(**ASKED)
    assert gated.reached.wait(A_WHILE_S)
    for _ in range(30):
        client.chat.completions.create(**ASKED, stream=True)
        gc.collect()
    assert hanging.waiting <= 2 * 4 + 2
    recorder.wait_for_ends(31)
    assert [response.outcome for response in recorder.responses] == ["completed", *["abandoned"] * 30]
    assert free.dropped == 0


# --- What hooks see ---------------------------------------------------------------------------------------------------


def test_hooks_run_on_one_thread_that_is_not_the_callers(server, client):
    """A callback needs no lock against itself, and the caller's thread never waits for it."""
    threads = []

    class Callback:
        def on_request_sent(self, metadata, request_json):
            threads.append(threading.current_thread())

        def on_response_received(self, metadata, response_json):
            threads.append(threading.current_thread())

    instrument(Callback())
    for _ in range(3):
        client.chat.completions.create(**ASKED)
    assert flush(A_WHILE_S)
    assert (len(threads), len(set(threads)), threading.current_thread() in threads) == (6, 1, False)


async def test_async_hooks_share_one_loop_that_is_not_the_callers(server, aclient):
    """``async def`` hooks are awaited one after the other on the worker's own loop, other threads and all."""
    threads, loops = [], []

    class Callback:
        async def on_request_sent(self, metadata, request_json):
            self.lock = asyncio.Lock()  # belongs to the loop it is first awaited on
            await asyncio.to_thread(lambda: threads.append(threading.current_thread()))

        async def on_stream_chunk(self, chunk, index):
            async with self.lock:
                await asyncio.sleep(0)

        async def on_response_received(self, metadata, response_json):
            async with self.lock:
                loops.append(asyncio.get_running_loop())

    registration = register(Callback())
    instrument()
    await aclient.chat.completions.create(**ASKED)
    async for _ in await aclient.chat.completions.create(**ASKED, stream=True):
        pass
    assert await aflush(A_WHILE_S)
    first, second = loops
    assert (first is second, first is asyncio.get_running_loop(), len(threads)) == (True, False, 2)
    assert (registration.failed, registration.dropped) == (0, 0)


def test_hook_that_returns_a_coroutine_is_awaited():
    """A lambda around an ``async def`` is as good as the ``async def`` itself."""
    done = []

    async def note(metadata, request_json):
        await asyncio.sleep(0)
        done.append(metadata.call_id)

    class Callback:
        def __init__(self):
            self.on_request_sent = lambda *told: note(*told)  # noqa: PLW0108 - that it is no `async def` is the point

    register(Callback())
    call = Call().begin()
    assert flush(A_WHILE_S)
    assert done == [call.request.call_id]


def test_hooks_see_the_callers_context(server, client, telemetry):
    """Hooks see the span of the call and the caller's context variables; what a hook sets, the caller does not."""
    who = contextvars.ContextVar("who", default="nobody")
    seen = []

    class Callback:
        def on_request_sent(self, metadata, request_json):
            self.note(metadata)
            who.set("the hook")

        def on_stream_chunk(self, chunk, index):
            self.note(chunk.request)

        def on_response_received(self, metadata, response_json):
            self.note(metadata.request)

        def note(self, request):
            span = trace.get_current_span().get_span_context()
            current = (format(span.trace_id, "032x"), format(span.span_id, "016x"))
            seen.append((who.get(), current == (request.trace_id, request.span_id)))

    instrument(
        Callback(), tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider, queue_size=64
    )
    who.set("the caller")
    for _ in client.chat.completions.create(**ASKED, stream=True):
        pass
    assert flush(A_WHILE_S)
    assert seen[0] == ("the caller", True)
    assert set(seen[1:]) == {("the hook", True)}
    assert who.get() == "the caller"


def test_hook_may_call_the_api(server, client, recorder):
    """A call made by a hook is not told of, so that a callback cannot chase its own tail."""

    class Callback:
        def on_response_received(self, metadata, response_json):
            client.chat.completions.create(**ASKED)

    instrument(Callback(), recorder)
    client.chat.completions.create(**ASKED)
    assert flush(A_WHILE_S)
    assert (len(server.requests), recorder.names()) == (2, ["request_sent", "response_received"])


class Leave(BaseException):
    """Nothing that ``except Exception`` would catch."""


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError, Leave])
def test_hook_that_raises_does_not_end_the_thread(expected_logs, error, asynchronous):
    """Not even what ends threads does: it is counted and logged once, with the callback's name and without content."""
    heard, secret = [], "4711"

    class Callback:
        def on_request_sent(self, metadata, request_json):
            raise error(secret)

        async def on_stream_chunk(self, chunk, index):
            raise error(secret)

        def on_response_received(self, metadata, response_json):
            heard.append(metadata.request.call_id)

    registration = register(Callback())
    calls = [Call().begin().chunks(1 if asynchronous else 0).end() for _ in range(3)]
    assert flush(A_WHILE_S)
    assert heard == [call.request.call_id for call in calls]
    assert counts(registration) == (3, 6 if asynchronous else 3, 0)
    (record,) = expected_logs
    assert (record.levelname, "Callback.on_request_sent" in record.getMessage()) == ("ERROR", True)
    assert secret not in record.getMessage()


# --- Flushing ---------------------------------------------------------------------------------------------------------


def test_flush_tells_whether_all_was_delivered(gated):
    """False in time if a hook hangs, True once all is delivered; nothing is lost by asking."""
    register(gated)
    assert flush(0.0)
    call = Call().begin().end()
    began = time.monotonic()
    assert not flush(0.1)
    assert time.monotonic() - began < A_WHILE_S / 2
    gated.gate.set()
    assert flush(A_WHILE_S)
    assert told_of(gated, call) == ["request_sent", "response_received"]


def test_flush_inside_a_hook_does_not_wait_for_itself(recorder):
    """A hook that flushes gets an answer at once, be it ``def`` or ``async def``."""
    answers = []

    class Flushing:
        def on_request_sent(self, metadata, request_json):
            answers.append(flush(A_WHILE_S))

        async def on_response_received(self, metadata, response_json):
            answers.append(flush(A_WHILE_S))

    register(Flushing())
    register(recorder)
    call = Call().begin().chunks(3).end()
    began = time.monotonic()
    assert flush(A_WHILE_S)
    assert time.monotonic() - began < A_WHILE_S / 2
    assert answers == [True, True]
    assert told_of(recorder, call) == ["request_sent", 0, 1, 2, "response_received"]


@pytest.mark.parametrize("wait", [aflush, flush])
def test_hook_that_flushes_does_not_wait_for_itself(client, wait):
    """Its own queue is emptied by the very thread it runs on."""
    took = []

    class Callback:
        async def on_response_received(self, metadata, response_json):
            began = time.monotonic()
            done = wait(A_WHILE_S)
            took.append((await done if wait is aflush else done, time.monotonic() - began < A_WHILE_S))

    register(Callback())
    instrument()
    for _ in range(2):
        client.chat.completions.create(**ASKED)
    assert flush(3 * A_WHILE_S)
    assert took == [(True, True)] * 2


async def test_aflush_leaves_the_loop_free(gated):
    """While ``aflush()`` waits, the event loop goes on."""
    register(gated)
    Call().begin().end()
    waiting = asyncio.ensure_future(aflush(0.3))
    ticks = 0
    while not waiting.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert (waiting.result(), ticks > 3) == (False, True)
    gated.gate.set()
    assert await aflush(A_WHILE_S)


# --- Threads ----------------------------------------------------------------------------------------------------------


def test_no_thread_before_the_first_event(server, client, recorder):
    """Registering, instrumenting and flushing start no thread; the first call does."""
    before = threading.active_count()
    instrument(recorder)
    with using(RecordingCallback()):
        assert flush(1.0)
    assert threading.active_count() == before
    client.chat.completions.create(**ASKED)
    assert len(workers()) >= 1


def test_same_object_twice_is_one_registration(recorder):
    """Registered again, by whatever way, it is told once and handed the same handle."""
    registration = register(recorder)
    assert register(recorder) is registration
    instrument(recorder)
    instrument(recorder)
    with pytest.raises(ValueError, match="RecordingCallback is registered with other options"):
        register(recorder, queue_size=7)
    assert REGISTRY.registrations == (registration,)
    Call().begin().end()
    assert flush(A_WHILE_S)
    assert recorder.names() == ["request_sent", "response_received"]


def test_remove_lets_its_thread_end(gated, recorder):
    """What is queued is still delivered, then the thread is gone; what comes later is not told."""
    registration, other = register(gated), register(recorder)
    call = Call().begin().chunks(5).end()
    assert gated.reached.wait(A_WHILE_S)
    registration.remove()
    registration.remove()
    late = Call().begin().end()
    assert len(workers()) == 2
    gated.gate.set()
    wait_until(lambda: len(workers()) == 1)
    assert (told_of(gated, call), told_of(gated, late)) == (["request_sent", *range(5), "response_received"], [])
    other.remove()
    wait_until(lambda: workers() == [])


def test_call_under_way_is_told_to_its_end_after_remove(recorder):
    """It began before, so its end is told; the thread it takes ends again too."""
    registration = register(recorder)
    calls = [Call().begin() for _ in range(20)]
    registration.remove()
    for call in calls:
        wait_until(lambda: workers() == [])
        call.chunks(1).end()
        assert flush(A_WHILE_S)
    assert [told_of(recorder, call) for call in calls] == [["request_sent", 0, "response_received"]] * 20
    assert counts(registration) == (60, 0, 0)
    wait_until(lambda: workers() == [])


def test_nothing_is_lost_while_the_thread_comes_and_goes(recorder):
    """An event that is queued at the very moment the thread ends is delivered by the next one."""
    registration = register(recorder)
    calls = [Call().begin() for _ in range(300)]
    registration.remove()
    threads = [
        threading.Thread(target=lambda part=part: [call.end() for call in part]) for part in (calls[::2], calls[1::2])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(A_WHILE_S)
    recorder.wait_for_ends(300, A_WHILE_S)
    check_grammar(recorder.events)


def test_blocks_leave_nothing_behind(server, client):
    """Ten thousand ``using()`` blocks share one thread and leave the registry as it was."""
    instrument()
    heard = []

    class Callback:
        def on_response_received(self, metadata, response_json):
            heard.append(metadata)

    with using(Callback()):
        client.chat.completions.create(**ASKED)
    assert flush(A_WHILE_S)
    before = threading.active_count(), REGISTRY.registrations, REGISTRY.dispatcher
    for number in range(10_000):
        with using(Callback()):
            if number % 500 == 0:
                client.chat.completions.create(**ASKED)
    assert flush(A_WHILE_S)
    assert (threading.active_count(), REGISTRY.registrations, REGISTRY.dispatcher) == before
    assert len(heard) == 21
    gc.collect()
    (worker,) = {worker for worker in otel_llm_callback._registry._scoped.values() if worker.is_running}
    assert len(worker.queued) <= 1


def test_children_of_a_multi_callback_do_not_delay_each_other(gated, recorder):
    """Each has its own queue: one that hangs holds up neither the caller nor its siblings."""
    register(MultiCallback(gated, recorder))
    call = Call().begin().chunks(2).end()
    recorder.wait_for_ends(1, A_WHILE_S)
    assert (told_of(recorder, call), gated.events) == (["request_sent", 0, 1, "response_received"], [])


def test_shutdown_delivers_and_forgets(server, client, gated, recorder):
    """What is queued is delivered and nobody is told of later calls; False in time if a callback hangs."""
    before = workers()
    instrument(recorder)
    client.chat.completions.create(**ASKED)
    assert shutdown(A_WHILE_S)
    client.chat.completions.create(**ASKED)
    assert recorder.names() == ["request_sent", "response_received"]
    wait_until(lambda: workers() == before)
    assert (REGISTRY.registrations, shutdown(A_WHILE_S)) == ((), True)

    instrument(gated)
    client.chat.completions.create(**ASKED)
    began = time.monotonic()
    assert not shutdown(0.1)
    assert time.monotonic() - began < A_WHILE_S / 2
    gated.gate.set()
    gated.wait_for_ends(1)


# --- Programs: exit and fork ------------------------------------------------------------------------------------------


def programs(*sources):
    """Run programs side by side with ``-X dev -W error``; return what each printed, its errors and its exit code."""
    started = [
        subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(source)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for source in sources
    ]
    return [finished(process) for process in started]


def finished(process):
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return output.splitlines(), errors, process.returncode


# Tells a callback of calls without openai, whose import takes longer than all of this.
PRELUDE = """
    import asyncio, atexit, gc, logging, os, signal, sys, threading, time, warnings
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of slowness, and a busy machine is slow
    import otel_llm_callback as o
    from otel_llm_callback._registry import REGISTRY
    from otel_llm_callback.testing import make_request, make_response

    def say(*words):
        os.write(1, (" ".join(words) + "\\n").encode())  # in one piece, whichever thread it comes from

    def begin(**facts):
        listeners = REGISTRY.dispatcher.listeners
        callbacks = [listener.callback for listener in listeners if not listener.trusted]
        request = make_request(**facts)
        for callback in callbacks:
            callback.on_request_sent(request, "")
        return request, callbacks

    def end(begun):
        request, callbacks = begun
        for callback in callbacks:
            callback.on_response_received(make_response(request=request), "")

    def call(**facts):
        end(begin(**facts))

    class Slow:
        def on_response_received(self, metadata, response_json):
            time.sleep(0.05)
            say("told")

    class AsyncSlow:
        async def on_response_received(self, metadata, response_json):
            await asyncio.sleep(0.05)
            say("told")

    class Hanging:
        def on_response_received(self, metadata, response_json):
            threading.Event().wait()
"""


def test_what_is_queued_is_delivered_before_the_program_is_gone():
    """At the end of a script or ``asyncio.run()``, after ``uninstrument()`` or ``sys.exit()``; nothing is printed."""
    script = "o.instrument(Slow(), AsyncSlow())\n[call() for _ in range(5)]\nsay('end')"
    after = "o.instrument(Slow(), AsyncSlow())\n[call() for _ in range(5)]\no.uninstrument()\nsay('end')"
    coroutine = """
    async def main():
        with o.using(Slow(), AsyncSlow()):
            o.instrument(Slow(), AsyncSlow())
            [call() for _ in range(5)]
            say('end')

    asyncio.run(main())
    """
    left = f"{script}\nsys.exit(3)"
    delivered = ["end", *["told"] * 10]
    assert programs(script, after, coroutine, left) == [
        (delivered, "", 0),
        (delivered, "", 0),
        (delivered, "", 0),
        (delivered, "", 3),
    ]


def test_calls_made_while_the_interpreter_exits_do_no_harm():
    """In ``atexit`` functions calls are told as long as there is a thread to tell them; nothing is ever printed."""
    source = """
    def late():
        call()

    atexit.register(late)  # run after our own
    o.instrument(Slow(), AsyncSlow())
    call()
    atexit.register(late)  # run before our own
    """
    never_before = """
    atexit.register(call)
    o.instrument(Slow())
    atexit.register(call)
    """
    (first, *silent), second = programs(source, never_before)
    assert (first[:4], silent) == (["told"] * 4, ["", 0])
    assert second[1:] == ("", 0)


def test_hanging_callback_delays_the_exit_by_its_timeout_at_most():
    """``exit_timeout`` is all the time the exit waits, however many callbacks hang."""
    source = """
    o.instrument(Hanging(), Hanging(), exit_timeout={timeout})
    o.register(Hanging())
    began = time.monotonic()
    call()
    atexit.register(say, "end")  # before our own
    """
    clock = "atexit.register(lambda: say(str(round(time.monotonic() - began, 1))))  # after our own"
    outcomes = programs(*(clock + textwrap.dedent(source.format(timeout=timeout)) for timeout in (0, 1)))
    assert [(lines[0], errors, code) for lines, errors, code in outcomes] == [("end", "", 0)] * 2
    none, one = (float(lines[1]) for lines, _, _ in outcomes)
    assert (none < 1, 1 <= one < 4) == (True, True)


FORKS = """
    # Python warns of forks where there are threads, which is what this is about.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    signal.alarm(50)
    parent = os.getpid()

    def who():
        return "parent" if os.getpid() == parent else "child"

    def fork(child):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                child()
                status = 0
            finally:
                os._exit(status)
        return pid

    def join(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def forking(*sources):
    return programs(*(textwrap.dedent(FORKS) + textwrap.dedent(source) for source in sources))


needs_fork = pytest.mark.skipif(not hasattr(sys.modules["os"], "fork"), reason="there is no fork")


@needs_fork
def test_parent_and_child_both_deliver():
    """Each tells of its own calls: what was queued before the fork, and calls under way, are the parent's alone."""
    source = """
    at_fork = threading.Event()

    class Callback:
        def on_request_sent(self, metadata, request_json):
            if metadata.model == "first":
                assert at_fork.wait(10)
            say(who(), metadata.model, "sent")

        def on_response_received(self, metadata, response_json):
            say(who(), metadata.request.model, "received")

    o.instrument(Callback())
    call(model="first")
    call(model="queued")
    open = begin(model="open")

    def child():
        end(open)
        call(model="after")
        assert o.flush(10)

    pid = fork(child)
    assert join(pid) == 0
    at_fork.set()
    end(open)
    call(model="later")
    assert o.flush(10)
    """
    ((lines, errors, code),) = forking(source)
    assert (errors, code) == ("", 0)
    assert lines == [
        "child after sent",
        "child after received",
        *[f"parent {model} {what}" for model in ("first", "queued") for what in ("sent", "received")],
        "parent open sent",
        "parent open received",
        "parent later sent",
        "parent later received",
    ]


@needs_fork
def test_child_needs_no_lock_that_was_held_at_the_fork():
    """Whatever another thread was doing, the child delivers; and a child that just ends delivers before it is gone."""
    held = """
    class Callback:
        def on_request_sent(self, metadata, request_json):
            say(who())

    o.instrument(Callback())
    call()
    assert o.flush(10)
    worker = REGISTRY.registrations[0].listeners[0].callback.worker
    taken, over = threading.Event(), threading.Event()

    def hold():
        with worker._starting, worker._room:
            taken.set()
            over.wait(10)

    threading.Thread(target=hold).start()
    taken.wait(10)

    def child():
        call()
        assert o.flush(10)

    assert join(fork(child)) == 0
    over.set()
    if os.fork() == 0:
        call()
        sys.exit()
    os.wait()
    """
    busy = """
    class Callback:
        def on_request_sent(self, metadata, request_json):
            time.sleep(0.0005)

    o.instrument(queue_size=4)
    registrations = [o.register(Callback(), overflow=overflow) for overflow in ("drop_new", "block")]
    over = threading.Event()

    def caller():
        while not over.is_set():
            call()

    threads = [threading.Thread(target=caller) for _ in range(2)]
    [thread.start() for thread in threads]

    def child():
        before = [registration.delivered for registration in registrations]
        call()
        assert o.flush(10)
        assert [registration.delivered for registration in registrations] == [count + 1 for count in before]

    statuses = []
    for _ in range(20):
        statuses.append(join(fork(child)))
        time.sleep(0.002)
    over.set()
    [thread.join() for thread in threads]
    assert o.flush(10)
    say(str(statuses == [0] * 20))
    """
    assert forking(held, busy) == [(["parent", "child", "child"], "", 0), (["True"], "", 0)]


@needs_fork
def test_child_can_register_whoever_was_registering_at_the_fork():
    """The registry's lock, held by another thread when the process forked, is free in the child."""
    source = """
    o.instrument()
    taken, over = threading.Event(), threading.Event()

    def hold():
        with REGISTRY._lock:
            taken.set()
            over.wait(10)

    threading.Thread(target=hold).start()
    taken.wait(10)

    def child():
        signal.alarm(5)
        o.register(Slow())
        call()
        assert o.flush(3)

    status = join(fork(child))
    over.set()
    say(str(status))
    """
    assert forking(source) == [(["told", "0"], "", 0)]


@needs_fork
def test_fork_leaves_the_loop_of_async_hooks_whole():
    """A child gives up its copy of the worker's event loop; the parent's goes on, and the child makes its own."""
    source = """
    class Callback:
        async def on_request_sent(self, metadata, request_json):
            await asyncio.wait_for(asyncio.to_thread(time.sleep, 0.05), 5)  # the loop sleeps and must be woken
            say(who())

    o.instrument(Callback())
    call()
    assert o.flush(10)

    def child():
        gc.collect()  # what is left of the parent's
        call()
        assert o.flush(10)

    assert join(fork(child)) == 0
    began = time.monotonic()
    call()
    assert o.flush(10)
    assert time.monotonic() - began < 4
    """
    assert forking(source) == [(["parent", "child", "parent"], "", 0)]


def test_exit_with_a_stream_half_read_tells_its_end(server):
    """A stream that is open when the program ends is told of as abandoned, and nothing else is said."""
    source = f"""
    import openai

    class Callback:
        async def on_response_received(self, metadata, response_json):
            say(metadata.outcome)

    o.instrument(Callback())
    with openai.OpenAI(api_key="any", base_url={server.url!r}) as client:
        asked = {ASKED!r}
        client.chat.completions.create(**asked)
        stream = client.chat.completions.create(**asked, stream=True)
        next(iter(stream))
    """
    assert programs(source) == [(["completed", "abandoned"], "", 0)]
