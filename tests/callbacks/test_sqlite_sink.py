"""SqliteSink: one row per call, whatever the call, the file and the other processes do."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from row_facts import FULL_ROW, HARD_FACTS, REQUEST, RESPONSE

import otel_llm_callback
from otel_llm_callback import Usage, instrument, register, session, status
from otel_llm_callback.callbacks import MultiCallback, SqliteSink
from otel_llm_callback.testing import (
    JsonReply,
    StreamReply,
    chat_chunks,
    chat_completion,
    error_body,
    make_error_context,
    make_request,
    make_response,
)

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "secret question"}]}
DAY_NS = 24 * 3600 * 10**9


@pytest.fixture
def path(tmp_path):
    return tmp_path / "calls.db"


def read(path, sql="SELECT * FROM llm_calls ORDER BY rowid"):
    with sqlite3.connect(path) as database:
        database.row_factory = sqlite3.Row
        rows = [dict(row) for row in database.execute(sql)]
    database.close()
    return rows


def ids(path):
    return [row["call_id"] for row in read(path)]


def add(sink, *call_ids, **facts):
    for call_id in call_ids:
        sink.on_response_received(make_response(request=make_request(call_id=call_id, **facts)), "")


def run(program, *arguments):
    """Start a Python program of its own; its first argument is `sys.argv[1]`."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(true, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_a_call_becomes_one_row_with_every_fact(path):
    sink = SqliteSink(path)
    sink.on_response_received(RESPONSE, "")
    assert sink.flush()
    assert read(path) == [FULL_ROW]


def test_what_is_unknown_is_null_and_never_zero(path):
    """A failure before anything came back: nothing is known but what was asked and how it ended."""
    sink = SqliteSink(path)
    sink.on_error(ValueError("secret"), make_error_context(request=make_request(call_id="c", server_port=None)))
    sink.flush()
    (row,) = read(path)
    assert {name: value for name, value in row.items() if value is not None} == {
        "call_id": "c",
        "started_at": "2023-11-14T22:13:20.000000Z",
        "ended_at": "2023-11-14T22:13:20.100000Z",
        "operation": "chat",
        "api": "chat_completions",
        "provider": "openai",
        "server_address": "api.openai.com",
        "request_model": "gpt-4o-mini",
        "stream": 0,
        "attributes": "{}",
        "outcome": "error",
        "error_type": "RateLimitError",
        "response_time_ms": 100.0,
        "retry_wait_ms": 0.0,
        "retry_count": 0,
        "status_code": 429,
        "request_id": "req-1",
    }


def test_an_error_keeps_what_had_arrived(path):
    sink = SqliteSink(path)
    partial = make_response(request=REQUEST, chunk_count=3, usage=Usage(input_tokens=7))
    sink.on_error(ValueError(), make_error_context(request=REQUEST, partial=partial))
    sink.flush()
    (row,) = read(path)
    assert (row["chunk_count"], row["input_tokens"], row["output_tokens"], row["error_type"]) == (
        3,
        7,
        None,
        "RateLimitError",
    )


def test_real_calls_become_rows_without_content(path, server, client):
    """Through the client and the queue: a plain answer, a stream, a failure; the file has no word of what was said."""

    def reply(request):
        if request.json["model"] == "no-such-model":
            return JsonReply(error_body("secret error"), status=404)
        if request.json.get("stream"):
            return StreamReply(chat_chunks(["secret ", "answer"], usage=(3, 2)))
        return JsonReply(chat_completion("secret answer", usage=(16, 4)))

    server.reply = reply
    sink = SqliteSink(path)
    instrument(sink, telemetry=False)
    with session("s-42", user="bob", plan="pro"):
        client.chat.completions.create(**ASK)
    list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**ASK, "model": "no-such-model"})
    assert otel_llm_callback.flush()
    columns = "outcome, error_type, status_code, stream, total_tokens, usage_source, session_id, user_id, attributes"
    assert [tuple(row.values()) for row in read(path, f"SELECT {columns} FROM llm_calls ORDER BY rowid")] == [
        ("completed", None, 200, 0, 20, "reported", "s-42", "bob", '{"plan":"pro"}'),
        ("completed", None, 200, 1, 5, "reported", None, None, "{}"),
        ("error", "NotFoundError", 404, 0, None, None, None, None, "{}"),
    ]
    assert b"secret" not in path.read_bytes()


def test_values_no_column_takes_do_not_spoil_the_batch(path):
    sink = SqliteSink(path)
    add(sink, "before")
    add(sink, "hard", **HARD_FACTS)
    assert (sink.flush(), ids(path)) == (True, ["before", "hard"])
    row = read(path)[1]
    assert (row["request_model"], row["max_tokens"], row["temperature"], row["top_p"]) == ("???", None, None, None)
    assert (len(row["user_id"]), row["session_id"]) == (4096, "nul\0inside")
    assert json.loads(row["attributes"]) == {"half": "\udcff", "nan": None, "long": "y" * 4096}


anything = st.none() | st.text() | st.integers() | st.floats() | st.booleans()


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=anything, user_id=anything, max_tokens=anything, status_code=anything, tokens=anything)
def test_whatever_the_facts_hold_they_become_a_row(tmp_path, model, user_id, max_tokens, status_code, tokens):
    """Servers send anything, and so do callers; what does not fit is unknown."""
    sink = SqliteSink(tmp_path / "any.db")
    request = make_request(model=model, user_id=user_id, max_tokens=max_tokens)
    usage = Usage(input_tokens=tokens, total_tokens=tokens)
    sink.on_response_received(make_response(request=request, status_code=status_code, usage=usage), "")
    assert (sink.flush(), sink.written, sink.failures) == (True, 1, 0)
    assert request.call_id in ids(tmp_path / "any.db")


def test_a_full_batch_is_written_at_once(path):
    sink = SqliteSink(path, batch_size=3, batch_seconds=3600)
    add(sink, "a", "b")
    assert (ids(path), sink.waiting) == ([], 2)
    add(sink, "c", "d")
    assert (ids(path), sink.waiting) == (["a", "b", "c"], 1)


def test_a_batch_is_written_when_its_time_has_come(path, client):
    """Without a further call, without a flush: the thread that delivers the events keeps the time."""
    sink = SqliteSink(path, batch_seconds=0.05)
    instrument(sink, telemetry=False)
    client.chat.completions.create(**ASK)
    wait_until(lambda: sink.written == 1)
    assert len(ids(path)) == 1


def test_the_process_flush_reaches_a_sink_inside_other_callbacks(path, client):
    class Wrapper:
        content = "none"

        def __init__(self, inner):
            self.on_response_received = inner.on_response_received

    sink = SqliteSink(path, batch_seconds=3600)
    instrument(MultiCallback(Wrapper(sink)), telemetry=False)
    client.chat.completions.create(**ASK)
    assert otel_llm_callback.flush()
    assert len(ids(path)) == 1


def test_a_removed_sink_writes_what_it_holds(path, client):
    sink = SqliteSink(path, batch_seconds=3600)
    instrument(telemetry=False)
    registration = register(sink)
    client.chat.completions.create(**ASK)
    registration.remove()
    wait_until(lambda: sink.written == 1)
    assert len(ids(path)) == 1


def test_one_call_is_one_row_although_a_batch_is_tried_twice(path):
    sink = SqliteSink(path)
    add(sink, "a")
    sink.flush()
    add(sink, "a", "b")
    sink.flush()
    assert ids(path) == ["a", "b"]


EXIT = """
    import sys
    from otel_llm_callback import instrument, observe
    from otel_llm_callback.callbacks import SqliteSink
    instrument(SqliteSink(sys.argv[1], batch_seconds=3600), telemetry=False)
    for _ in range(10):
        with observe(provider="any", model="m"):
            pass
"""


def test_the_exit_of_the_program_writes_all(path):
    process = run(EXIT, path)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err, len(ids(path))) == (0, "", 10)


def test_the_exit_writes_all_without_instrument(path):
    """A sink that somebody calls by hand."""
    program = """
        import sys
        from otel_llm_callback.callbacks import SqliteSink
        from otel_llm_callback.testing import make_response
        sink = SqliteSink(sys.argv[1], batch_seconds=3600)
        sink.on_response_received(make_response(), "")
    """
    process = run(program, path)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err, len(ids(path))) == (0, "", 1)


def test_a_file_locked_at_exit_is_tried_once(path):
    """The exit waits for `exit_timeout` in all, not again for the sink."""
    program = """
        import logging, sqlite3, sys
        from otel_llm_callback import instrument, observe
        from otel_llm_callback.callbacks import SqliteSink
        logging.basicConfig(format="%(levelname)s %(message)s", level=logging.DEBUG)
        instrument(SqliteSink(sys.argv[1], batch_seconds=3600), telemetry=False, exit_timeout=0.2)
        with observe(provider="any", model="m"):
            pass
        locker = sqlite3.connect(sys.argv[1], isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
    """
    process = run(program, path)
    _, err = process.communicate(timeout=60)
    refused = "ERROR 1 row could not be written yet (stage SqliteSink):"
    assert (process.returncode, [line[: len(refused)] for line in err.splitlines() if "1 row" in line]) == (
        0,
        [refused],
    )


KILLED = """
    import sys
    from otel_llm_callback.callbacks import SqliteSink
    from otel_llm_callback.testing import make_request, make_response
    sink = SqliteSink(sys.argv[1], batch_size=20, batch_seconds=3600)
    for number in range(10**9):
        sink.on_response_received(make_response(request=make_request(call_id=f"{number:09}")), "")
        print(number, flush=True)
"""


def test_kill_9_loses_at_most_the_batch_not_yet_written(path):
    process = run(KILLED, path)
    for line in process.stdout:
        if int(line) >= 150:
            break
    process.send_signal(signal.SIGKILL)
    told = [int(line) for line in process.stdout.read().splitlines() if line.strip()]
    process.communicate()
    last = max(told, default=150)
    found = ids(path)
    assert found == [f"{number:09}" for number in range(len(found))]
    assert len(found) % 20 == 0
    assert last + 1 - len(found) < 20
    assert read(path, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]


MANY = """
    import sys
    from otel_llm_callback.callbacks import SqliteSink
    from otel_llm_callback.testing import make_request, make_response
    sink = SqliteSink(sys.argv[1], batch_size=10)
    for number in range(300):
        request = make_request(call_id=f"{sys.argv[2]}-{number}")
        sink.on_response_received(make_response(request=request), "")
    while not sink.flush(30):
        pass
    print(sink.written, sink.lost)
"""


def test_several_processes_write_one_file(path):
    """They start with no file at all, so they also make the table at the same time."""
    processes = [run(MANY, path, name) for name in "abcd"]
    told = [process.communicate(timeout=120)[0] for process in processes]
    assert told == ["300 0\n"] * 4
    assert sorted(ids(path)) == sorted(f"{name}-{number}" for name in "abcd" for number in range(300))
    assert read(path, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]


FORKING = """
    import os, sys, warnings
    from otel_llm_callback.callbacks import SqliteSink
    from otel_llm_callback.testing import make_request, make_response

    def add(name):
        sink.on_response_received(make_response(request=make_request(call_id=name)), "")

    sink = SqliteSink(sys.argv[1], batch_seconds=3600)
    add("parent-1")
    if (child := os.fork()) == 0:
        assert sink.waiting == 0
        add("child-1")
        sys.exit(0)
    os.waitpid(child, 0)
    add("parent-2")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_writes_its_own_rows_only(path):
    process = run(FORKING, path)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err, ids(path)) == (0, "", ["child-1", "parent-1", "parent-2"])


def test_a_file_of_an_older_release_gets_the_columns_it_lacks(path):
    SqliteSink(path)
    database = sqlite3.connect(path)
    database.execute("ALTER TABLE llm_calls DROP COLUMN longest_gap_ms")
    database.execute("INSERT INTO llm_calls (call_id, total_tokens) VALUES ('old', 5)")
    database.execute("UPDATE llm_calls_schema SET version = 0")
    database.commit()
    database.close()
    sink = SqliteSink(path)
    sink.on_response_received(RESPONSE, "")
    sink.flush()
    assert read(path, "SELECT call_id, total_tokens, longest_gap_ms FROM llm_calls ORDER BY rowid") == [
        {"call_id": "old", "total_tokens": 5, "longest_gap_ms": None},
        {"call_id": "call-full", "total_tokens": 120, "longest_gap_ms": 125.0},
    ]
    assert read(path, "SELECT version FROM llm_calls_schema") == [{"version": 1}]


def test_a_file_of_a_newer_release_is_left_as_it_is(path):
    SqliteSink(path)
    database = sqlite3.connect(path)
    database.execute("ALTER TABLE llm_calls ADD COLUMN of_the_future TEXT")
    database.execute("UPDATE llm_calls_schema SET version = 99")
    database.commit()
    database.close()
    sink = SqliteSink(path)
    sink.on_response_received(RESPONSE, "")
    sink.flush()
    assert read(path) == [{**FULL_ROW, "of_the_future": None}]
    assert read(path, "SELECT version FROM llm_calls_schema") == [{"version": 99}]


def test_the_oldest_rows_beyond_a_number_are_deleted(path):
    sink = SqliteSink(path, max_rows=5, batch_size=2)
    add(sink, *"abcdefghij")
    sink.flush()
    assert ids(path) == list("fghij")


def test_rows_beyond_an_age_are_deleted(path):
    sink = SqliteSink(path, max_age_days=30)
    add(sink, "old", started_ns=time.time_ns() - 31 * DAY_NS)
    add(sink, "new", started_ns=time.time_ns() - 29 * DAY_NS)
    sink.flush()
    assert ids(path) == ["new"]


def test_a_locked_file_is_counted_and_tried_again(path, client, expected_logs):
    """The caller notices nothing; the failure is in the log, without content, and in `status()`."""
    sink = SqliteSink(path, batch_size=1, max_waiting=2)
    instrument(sink, telemetry=False, delivery="inline")
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    for _ in range(4):
        client.chat.completions.create(**ASK)
    assert (sink.failures, sink.waiting, sink.lost, sink.flush(0.05)) == (1, 2, 2, False)
    assert status().errors == {"SqliteSink": 2, "SqliteSink.lost": 2}
    assert {record.levelname for record in expected_logs} == {"ERROR"}
    assert "secret" not in "".join(record.getMessage() for record in expected_logs)
    locker.execute("ROLLBACK")
    locker.close()
    assert (sink.flush(), sink.waiting, len(ids(path))) == (True, 0, 2)


def test_a_locked_file_is_tried_again_without_a_further_call(path, client, expected_logs):
    sink = SqliteSink(path, batch_size=1, batch_seconds=3600)
    instrument(sink, telemetry=False)
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    client.chat.completions.create(**ASK)
    wait_until(lambda: sink.failures == 1)
    locker.execute("ROLLBACK")
    locker.close()
    wait_until(lambda: sink.written == 1)
    assert len(ids(path)) == 1


FULL_DISK = """
    import logging, resource, sys
    from otel_llm_callback import status
    from otel_llm_callback.callbacks import SqliteSink
    from otel_llm_callback.testing import make_request, make_response
    logging.disable()
    sink = SqliteSink(sys.argv[1], batch_size=1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    for number in range(1500):
        sink.on_response_received(make_response(request=make_request(call_id=f"c-{number}")), "")
    print(sink.written, sink.failures, sink.waiting, sink.lost, dict(status().errors))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    print(sink.flush(30), sink.written, sink.waiting)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_is_counted_and_tried_again(path):
    process = run(FULL_DISK, path)
    out, err = process.communicate(timeout=60)
    assert (out.splitlines(), err) == (["0 1 1500 0 {'SqliteSink': 1}", "True 1500 0"], "")
    assert len(ids(path)) == 1500


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be greater than 0"),
        ({"batch_seconds": -1}, "batch_seconds is -1; it must be greater than 0"),
        ({"max_waiting": 10}, "max_waiting is 10; it must be at least batch_size, which is 500"),
        ({"max_rows": 0}, "max_rows is 0; it must be greater than 0"),
        ({"max_age_days": 0}, "max_age_days is 0; it must be greater than 0"),
        ({"path": ":memory:"}, "path is ':memory:'; it must name a file, for it is opened again and again"),
    ],
)
def test_wrong_settings_raise_at_once(path, settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SqliteSink(**{"path": path, **settings})


def test_a_missing_directory_raises_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no directory"):
        SqliteSink(tmp_path / "missing" / "calls.db")


def test_a_file_that_is_no_database_raises_at_once(path):
    path.write_text("not a database, but long enough to be looked at as one" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        SqliteSink(path)
