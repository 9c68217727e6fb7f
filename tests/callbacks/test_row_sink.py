"""What sinks share: rows are collected, written together, kept if they cannot be written, and never copied half way."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from otel_llm_callback import instrument, status
from otel_llm_callback.callbacks._row_sink import RowSink
from otel_llm_callback.testing import make_request, make_response


class ListSink(RowSink):
    """Writes to a list; may be told to take its time, or to raise."""

    def __init__(self, **limits):
        super().__init__(**{"batch_size": 3, "batch_seconds": 3600, "max_waiting": 10, **limits})
        self.batches = []
        self.before = lambda: None

    def _write(self, rows, deadline):
        self.before()
        self.batches.append([row[0] for row in rows])
        rows.clear()


def add(sink, *call_ids):
    for call_id in call_ids:
        sink.on_response_received(make_response(request=make_request(call_id=call_id)), "")


def fail(error):
    def before():
        raise error

    return before


def test_rows_are_written_in_batches_and_in_order():
    sink = ListSink()
    add(sink, *"abcdefgh")
    assert sink.flush()
    assert sink.batches == [["a", "b", "c"], ["d", "e", "f"], ["g", "h"]]
    assert (sink.written, sink.waiting, sink.lost, sink.failures) == (8, 0, 0, 0)


def test_delivered_inline_an_old_batch_is_written_when_the_next_call_ends():
    sink = ListSink(batch_seconds=0.01)
    add(sink, "a")
    time.sleep(0.02)
    add(sink, "b")
    assert sink.batches == [["a", "b"]]


def test_what_could_not_be_written_comes_before_what_came_later(expected_logs):
    sink = ListSink()
    sink.before = fail(OSError())
    add(sink, *"abcde")
    assert (sink.failures, sink.waiting, sink.batches) == (1, 5, [])  # no second try before its time
    sink.before = lambda: None
    assert sink.flush()
    assert sink.batches == [["a", "b", "c"], ["d", "e"]]
    assert status().errors == {"ListSink": 1}
    assert len(expected_logs) == 1


def test_no_more_wait_than_allowed(expected_logs):
    """The newest are left out, and counted."""
    sink = ListSink(max_waiting=4)
    sink.before = fail(OSError())
    add(sink, *"abcdef")
    assert (sink.waiting, sink.lost) == (4, 2)
    assert status().errors == {"ListSink": 1, "ListSink.lost": 2}
    assert len(expected_logs) == 2


def test_an_interrupt_during_a_flush_leaves_the_rows_waiting():
    sink = ListSink()
    sink.before = fail(KeyboardInterrupt())
    add(sink, "a")
    with pytest.raises(KeyboardInterrupt):
        sink.flush()
    sink.before = lambda: None
    assert sink.flush()
    assert sink.batches == [["a"]]


def test_a_flush_gives_up_at_its_deadline():
    """Another thread has been writing for too long."""
    sink, entered, go_on = ListSink(), threading.Event(), threading.Event()

    def wait():
        entered.set()
        go_on.wait(30)

    sink.before = wait
    thread = threading.Thread(target=add, args=(sink, "a", "b", "c"))
    thread.start()
    assert entered.wait(30)
    add(sink, "d")  # does not wait either
    assert not sink.flush(0.01)
    go_on.set()
    thread.join()
    assert sink.flush()
    assert sink.batches == [["a", "b", "c"], ["d"]]


def test_many_threads_lose_and_double_nothing():
    sink = ListSink(batch_size=7, max_waiting=10_000)
    threads = [
        threading.Thread(target=lambda name=name: add(sink, *(f"{name}-{number}" for number in range(100))))
        for name in "abcdefgh"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sink.flush()
    written = sorted(call_id for batch in sink.batches for call_id in batch)
    assert written == sorted(f"{name}-{number}" for name in "abcdefgh" for number in range(100))


def test_a_sink_needs_no_content(client):
    sink = ListSink()
    instrument(sink, telemetry=False, delivery="inline")
    client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}])
    assert (sink.waiting, sink.content) == (1, "none")


FORK_DURING_A_BATCH = """
    import logging, os, sys, threading, time
    from otel_llm_callback.callbacks._row_sink import RowSink
    from otel_llm_callback.testing import make_response

    class SlowSink(RowSink):
        busy = False
        def _write(self, rows, deadline):
            self.busy = True
            time.sleep(float(sys.argv[1]))
            self.busy = False
            rows.clear()

    logging.disable()
    sink = SlowSink(batch_size=1, batch_seconds=3600, max_waiting=10)
    thread = threading.Thread(target=sink.on_response_received, args=(make_response(), ""))
    thread.start()
    while not sink.busy:
        time.sleep(0.001)
    if (child := os.fork()) == 0:
        sink.on_response_received(make_response(), "")
        print("child", sink.busy, sink.written, sink.lost, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    thread.join()
    print("parent", sink.written, sink.lost)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(
    ("batch_s", "child"),
    [pytest.param(0.2, "child False 1 0", id="waits"), pytest.param(4, "child True 0 1", id="takes_no_rows")],
)
def test_a_fork_waits_for_a_batch_or_the_child_takes_no_rows(batch_s, child):
    """A library's locks and files, copied in the middle of a batch, could destroy the file."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORK_DURING_A_BATCH), str(batch_s)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.splitlines() == [child, "parent 1 0"]
