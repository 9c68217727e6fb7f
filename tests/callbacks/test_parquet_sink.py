"""ParquetSink: whole files that DuckDB and Arrow read, from any number of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import duckdb
import pyarrow.parquet
import pytest
from row_facts import FULL_ROW, HARD_FACTS, RESPONSE

import otel_llm_callback
from otel_llm_callback import instrument, status
from otel_llm_callback.callbacks import ParquetSink
from otel_llm_callback.testing import make_request, make_response

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "secret question"}]}
DAY_NS = 24 * 3600 * 10**9
STARTED_NS = 1_790_000_000_000_000_000  # 2026-09-21


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "calls"


def query(directory, sql):
    """Return the rows of a query on `calls`, the files of *directory* as DuckDB sees them."""
    with duckdb.connect() as database:
        source = f"read_parquet('{directory}/**/*.parquet', hive_partitioning = true)"
        return database.execute(sql.replace("calls", source)).fetchall()


def add(sink, *call_ids, **facts):
    for call_id in call_ids:
        sink.on_response_received(make_response(request=make_request(call_id=call_id, **facts)), "")


def files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def run(program, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_call_becomes_one_row_with_every_fact(directory):
    """The same columns and values as in SQLite; times and booleans have types of their own here."""
    sink = ParquetSink(directory)
    sink.on_response_received(RESPONSE, "")
    assert sink.flush()
    (file,) = files(directory)
    assert file.parent.name == "date=2026-09-21"
    table = pyarrow.parquet.ParquetFile(file).read()
    (row,) = table.to_pylist()
    times = {name: row[name].strftime("%Y-%m-%dT%H:%M:%S.%fZ") for name in ("started_at", "ended_at")}
    assert {**row, **times} == FULL_ROW
    assert table.schema.metadata[b"otel_llm_callback.schema_version"] == b"1"


def test_unknown_is_null_for_a_reader(directory):
    sink = ParquetSink(directory)
    sink.on_response_received(make_response(usage=None), "")
    sink.flush()
    sql = "SELECT input_tokens, total_tokens, cost_usd, usage_source FROM calls"
    assert query(directory, sql) == [(None, None, None, "missing")]


def test_values_no_column_takes_do_not_spoil_the_batch(directory):
    sink = ParquetSink(directory)
    add(sink, "before")
    add(sink, "hard", **HARD_FACTS)
    assert sink.flush()
    sql = "SELECT call_id, max_tokens, temperature, length(user_id) FROM calls ORDER BY call_id"
    assert query(directory, sql) == [("before", None, None, None), ("hard", None, None, 4096)]


def test_real_calls_are_there_after_a_flush_of_the_process(directory, client):
    instrument(ParquetSink(directory), telemetry=False)
    client.chat.completions.create(**ASK)
    list(client.chat.completions.create(**ASK, stream=True))
    assert otel_llm_callback.flush()
    assert query(directory, "SELECT outcome, stream FROM calls ORDER BY started_at") == [
        ("completed", False),
        ("completed", True),
    ]
    assert all(b"secret" not in file.read_bytes() for file in files(directory))


def test_each_day_has_a_folder_and_each_batch_a_file(directory):
    """DuckDB takes the folder's name as a column, and a query for one day reads one folder."""
    sink = ParquetSink(directory, batch_size=2)
    for number, day in enumerate((0, 0, 0, 1)):
        add(sink, f"c-{number}", started_ns=STARTED_NS + day * DAY_NS)
    assert [file.parent.name for file in files(directory)] == ["date=2026-09-21", "date=2026-09-21", "date=2026-09-22"]
    sql = "SELECT CAST(date AS VARCHAR), count(*) FROM calls GROUP BY 1 ORDER BY 1"
    assert query(directory, sql) == [("2026-09-21", 3), ("2026-09-22", 1)]


def test_what_was_written_before_a_failure_is_not_written_again(directory, expected_logs):
    """The folder of the second day cannot be made: the first day's rows are safe, the others wait."""
    sink = ParquetSink(directory)
    (directory / "date=2026-09-22").write_text("in the way")
    for number in (0, 1):
        add(sink, f"c-{number}", started_ns=STARTED_NS + number * DAY_NS)
    assert not sink.flush()
    assert (sink.written, sink.waiting, sink.failures, status().errors) == (1, 1, 1, {"ParquetSink": 1})
    assert [record.levelname for record in expected_logs] == ["ERROR"]
    (directory / "date=2026-09-22").unlink()
    assert sink.flush()
    assert query(directory, "SELECT call_id FROM calls ORDER BY 1") == [("c-0",), ("c-1",)]


FULL_DISK = """
    import logging, resource, sys
    from otel_llm_callback.callbacks import ParquetSink
    from otel_llm_callback.testing import make_request, make_response
    logging.disable()
    sink = ParquetSink(sys.argv[1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    for number in range(1000):
        sink.on_response_received(make_response(request=make_request(call_id=f"c-{number}")), "")
    print(sink.flush(), sink.written, sink.waiting, sink.failures)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    print(sink.flush(), sink.written, sink.waiting)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_leaves_no_half_file(directory):
    out, err = run(FULL_DISK, directory).communicate(timeout=60)
    assert (out.splitlines(), err) == (["False 0 1000 1", "True 1000 0"], "")
    assert len(files(directory)) == 1
    assert query(directory, "SELECT count(*) FROM calls") == [(1000,)]


WRITER = """
    import sys
    from otel_llm_callback.callbacks import ParquetSink
    from otel_llm_callback.testing import make_request, make_response
    sink = ParquetSink(sys.argv[1], batch_size=20, batch_seconds=3600)
    for number in range(int(sys.argv[3])):
        request = make_request(call_id=f"{sys.argv[2]}-{number}")
        sink.on_response_received(make_response(request=request), "")
        print(number, flush=True)
"""


def test_several_processes_write_one_directory(directory):
    """And what is left of a batch is written at exit."""
    processes = [run(WRITER, directory, name, 50) for name in "abc"]
    assert [process.communicate(timeout=120)[1] for process in processes] == [""] * 3
    found = {call_id for (call_id,) in query(directory, "SELECT call_id FROM calls")}
    assert found == {f"{name}-{number}" for name in "abc" for number in range(50)}


def test_kill_9_loses_at_most_the_batch_not_yet_written(directory):
    process = run(WRITER, directory, "k", 10**9)
    for line in process.stdout:
        if int(line) >= 70:
            break
    process.send_signal(signal.SIGKILL)
    told = [int(line) for line in process.stdout.read().splitlines() if line.strip()]
    process.communicate()
    ((found,),) = query(directory, "SELECT count(*) FROM calls")
    assert found % 20 == 0
    assert max(told, default=70) + 1 - found < 20


FORKING = """
    import os, sys
    from otel_llm_callback.callbacks import ParquetSink
    from otel_llm_callback.testing import make_request, make_response
    def add(name):
        sink.on_response_received(make_response(request=make_request(call_id=name)), "")
    sink = ParquetSink(sys.argv[1], batch_seconds=3600)
    add("parent-1")
    sink.flush()
    add("parent-2")
    if (child := os.fork()) == 0:
        add("child-1")
        sys.exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_writes_its_own_rows_only(directory):
    process = run(FORKING, directory)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert query(directory, "SELECT call_id FROM calls ORDER BY 1") == [("child-1",), ("parent-1",), ("parent-2",)]


def test_without_pyarrow_the_error_names_the_extra(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"^ParquetSink needs pyarrow: pip install otel-llm-callback\[parquet\]$"):
        ParquetSink(directory)
