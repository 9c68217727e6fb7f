"""What callbacks put off is done in time, by every flush and when the thread ends, and by nobody else's thread."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import pytest

from otel_llm_callback import _timers, flush, instrument, register
from otel_llm_callback._timers import Timers
from otel_llm_callback.testing import RecordingCallback, make_request, make_response

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}


class Later:
    """A callback that puts something off, and keeps where it was done."""

    content = "none"

    def __init__(self, after_s, work=lambda: None):
        self.after_s = after_s
        self.work = work
        self.taken = None
        self.threads = []
        self.done = threading.Event()

    def on_response_received(self, metadata, response_json):
        self.threads.append(threading.current_thread())
        self.taken = _timers.call_at(time.monotonic() + self.after_s, self._do)

    def _do(self):
        self.threads.append(threading.current_thread())
        self.done.set()
        self.work()


def test_what_is_due_is_done_in_the_order_of_its_time():
    timers, done = Timers(asyncio.run), []
    for number in (3, 1, 2):
        timers.add(float(number), lambda number=number: done.append(number))
    timers.run_due()
    assert (done, timers.wait_s()) == ([1, 2, 3], None)


def test_what_is_not_due_waits():
    timers, done = Timers(asyncio.run), []
    timers.add(time.monotonic() + 3600, lambda: done.append(1))
    timers.run_due()
    assert done == []
    assert 3500 < timers.wait_s() <= 3600


def test_the_thread_that_delivers_calls_back(client):
    later = Later(0.02)
    instrument(later, telemetry=False)
    client.chat.completions.create(**ASK)
    assert later.done.wait(30)
    assert (later.taken, len(set(later.threads))) == (True, 1)
    assert later.threads[0] is not threading.current_thread()


def test_the_end_of_the_thread_does_what_is_left(client):
    later = Later(3600)
    instrument(telemetry=False)
    registration = register(later)
    client.chat.completions.create(**ASK)
    registration.remove()
    assert later.done.wait(30)


def test_a_callers_thread_does_nothing_later(client):
    """Delivered inline there is no thread to call back; the callback is told so."""
    later = Later(0)
    instrument(later, telemetry=False, delivery="inline")
    client.chat.completions.create(**ASK)
    assert (later.taken, later.done.is_set()) == (False, False)


def test_a_failure_is_reported_and_the_thread_goes_on(client, expected_logs):
    text = "secret"

    def fail():
        raise ValueError(text)

    later = Later(0, fail)
    instrument(later, telemetry=False)
    client.chat.completions.create(**ASK)
    assert later.done.wait(30)
    client.chat.completions.create(**ASK)
    assert flush()
    assert len([thread for thread in later.threads if thread is later.threads[0]]) == len(later.threads) >= 3
    assert "stage timer" in expected_logs[0].getMessage()
    assert "secret" not in expected_logs[0].getMessage()


def test_a_call_made_in_what_was_put_off_is_not_told(client, server):
    """As in a hook: a callback that calls the API must not be told of that call."""
    recorder = RecordingCallback()
    later = Later(0, lambda: client.chat.completions.create(**ASK))
    instrument(later, recorder, telemetry=False)
    client.chat.completions.create(**ASK)
    assert later.done.wait(30)
    for _ in range(3000):
        if len(server.requests) == 2:
            break
        time.sleep(0.01)
    flush()
    assert (len(server.requests), recorder.names()) == (2, ["request_sent", "response_received"])


@pytest.mark.parametrize("well", [True, False])
def test_a_flush_of_the_process_says_if_something_was_left(well):
    class Holder:
        def flush(self, timeout):
            self.timeout = timeout
            return well

    holder = Holder()
    _timers.flush_with_us(holder)
    assert flush(7) is well
    assert 0 < holder.timeout <= 7


def test_what_is_due_is_done_while_events_keep_coming():
    """A callback that is busy must not keep another one on the same thread waiting for its time."""
    done = threading.Event()
    seen = []

    class Busy:
        def on_response_received(self, metadata, response_json):
            if not seen:
                _timers.call_at(time.monotonic(), done.set)
            seen.append(done.is_set())

    registration = register(Busy())
    [listener] = registration.listeners
    worker = listener.callback.worker
    gate = threading.Event()
    worker.put(gate.wait)
    for _ in range(3):  # all three wait in the queue before the first is run
        request = make_request()
        listener.callback.on_request_sent(request, "")
        listener.callback.on_response_received(make_response(request=request), "")
    gate.set()
    assert flush()
    assert seen == [False, True, True]


def test_flush_and_the_end_of_the_thread_do_early_what_may_be_done_early():
    """And what that puts off in turn; what may not be done early waits for its time."""
    done = []
    timers = _timers.own_timers(asyncio.run)

    async def later():
        done.append("awaited")

    def early():
        done.append("early")
        _timers.call_at(math.inf, lambda: done.append("inner"), early=later)

    try:
        _timers.call_at(math.inf, lambda: done.append("outer"), early=early)
        _timers.call_at(math.inf, lambda: done.append("in time"))
        assert timers.wait_s() == 3600
        _timers.run_early()
        assert done == ["early", "awaited"]
        timers.run_all()
        assert done == ["early", "awaited", "in time"]
        assert not _timers.call_at(0, early)
    finally:
        timers.run_all()
