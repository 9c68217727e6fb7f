"""What is kept: all of it, within the limits, and from one run to the next."""

from __future__ import annotations

import os
import sqlite3
import stat
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from viewer._serving import serving
from viewer._spans import CALL, MS, request, span, trace_id

from otel_llm_callback.viewer import Limits, Options
from otel_llm_callback.viewer._database import Database, StoreError
from otel_llm_callback.viewer._otlp import read_spans
from otel_llm_callback.viewer._queries import Filters, Queries
from otel_llm_callback.viewer._store import Store


def rows(*spans, service="test"):
    return read_spans(request(*spans, service=service)).rows


def opened(path=None, **limits):
    database = Database(path)
    return database, Store(database, Limits(**limits)), Queries(database)


def listed(queries, **filters):
    return [trace["trace_id"] for trace in queries.traces(Filters(**filters))["traces"]]


def test_a_restart_keeps_what_was_stored(tmp_path):
    one = span()
    options = Options(port=0, store=tmp_path / "deep" / "er" / "view.db")
    for sends in (True, False):
        with serving(options) as viewer:
            if sends:
                viewer.send(request(one))
            assert [trace["trace_id"] for trace in viewer.traces()] == [one.trace_id.hex()]


def test_in_memory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serving(Options(port=0, store=None)) as viewer:
        viewer.send(request(span()))
        assert len(viewer.traces()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no such modes")
def test_the_store_is_its_owners_alone(tmp_path):
    path = tmp_path / "view.db"
    with serving(Options(port=0, store=path)) as viewer:
        viewer.send(request(span()))
        modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("view.db", "view.db-wal", "view.db-shm"), 0o600)


def test_the_oldest_traces_go_first_and_are_counted(tmp_path):
    database, store, queries = opened(tmp_path / "a.db", spans=10)
    ids = [trace_id() for _ in range(6)]
    traces = [[span(trace=one) for _ in range(3)] for one in ids]
    for members in traces:
        store.add([rows(*members)], [])
    totals = queries.totals()
    assert (totals["spans"], totals["traces"], totals["evicted"]) == (9, 3, 9)
    assert sorted(listed(queries)) == sorted(members[0].trace_id.hex() for members in traces[3:])
    database.close()


@given(
    st.lists(st.lists(st.integers(0, 400), min_size=1, max_size=6), min_size=1, max_size=12), st.integers(2000, 9000)
)
@settings(max_examples=30, deadline=None)
def test_the_bytes_stay_within_the_limit_whatever_comes(batches, limit):
    """And the sums that say so are those of what is there."""
    database, store, queries = opened(stored_bytes=limit)
    for sizes in batches:
        store.add([rows(*(span("x" * size) for size in sizes))], [])
        totals = queries.totals()
        assert totals["bytes"] <= limit
        with database.read() as connection:
            counted = connection.execute("SELECT count(*) FROM span").fetchone()[0]
            bodies = connection.execute("SELECT count(*) FROM body").fetchone()[0]
            traces = connection.execute("SELECT coalesce(sum(spans), 0), coalesce(sum(bytes), 0) FROM trace").fetchone()
        assert (counted, bodies, traces) == (totals["spans"], totals["spans"], (totals["spans"], totals["bytes"]))
    database.close()


def test_a_full_trace_refuses_by_name(tmp_path):
    """No silent loss: the sender is told how many spans of which kind were left out."""
    one = trace_id()
    with serving(Options(port=0, store=None, limits=Limits(spans_per_trace=5))) as viewer:
        answer = viewer.send(request(*(span(trace=one) for _ in range(8)), span()))
        said = ExportTraceServiceResponse.FromString(answer.body).partial_success
        assert (said.rejected_spans, said.error_message) == (3, "spans refused: 3 of traces that are full")
        totals = viewer.get("/api/traces")["totals"]
        assert (totals["spans"], totals["traces"], totals["refused"]) == (6, 2, 3)


def test_metric_series_are_bounded():
    from otel_llm_callback.viewer._otlp import Series

    database, store, queries = opened(series=3)
    for number in range(10):
        store.add([], [Series(f"m{number}", "s", "{}", "1", "sum", number, value=float(number))])
    assert [row["name"] for row in queries.series()] == ["m7", "m8", "m9"]
    database.close()


def test_error_types_and_words_are_bounded():
    """A sender that makes up names fills neither the charts nor the lists to choose from."""
    database, store, queries = opened()
    now = time.time_ns()
    made_up = [
        span(
            failed=True,
            started_ns=now - MS,
            took_ms=0,
            attributes={**CALL, "error.type": f"E{n}", "gen_ai.request.model": f"m{n}"},
        )
        for n in range(1000)
    ]
    store.add([rows(*made_up)], [])
    assert sum(len(words) for words in queries.words().values()) <= 500
    errors = queries.figures(900, now)["errors"]
    assert len(errors) == 21
    assert round(sum(sum(values) for values in errors.values()) * 10) == 1000
    database.close()


@pytest.mark.parametrize("content", ["not a database at all, only text" * 100, None])
def test_a_file_of_somebody_else_is_left_alone(tmp_path, content):
    path = tmp_path / "other.db"
    if content is None:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE theirs (x)")
        connection.close()
    else:
        path.write_text(content)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"other\.db"):
        Database(path)
    assert path.read_bytes() == before


order = st.permutations(range(6))


@given(order, st.lists(st.booleans(), min_size=6, max_size=6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_trace_adds_up_in_any_order_and_any_cut(permutation, cuts, repeats):
    """Spans come in any order, in any batches, and some of them twice: the row in the list is always the same."""
    one, began = trace_id(), 1_700_000_000 * 10**9
    root = span("turn", trace=one, started_ns=began, took_ms=100, attributes={"session.id": "s"})
    calls = [
        span(
            f"chat {number}",
            trace=one,
            parent=root.span_id,
            started_ns=began + number * MS,
            took_ms=10,
            failed=number == 3,
            attributes={**CALL, "gen_ai.request.model": f"m{number % 2}", "gen_ai.usage.cost": "0.1"},
        )
        for number in range(1, 6)
    ]
    spans = [root, *calls]
    database, store, queries = opened()
    batch = []
    for at in permutation:
        batch.append(spans[at])
        if cuts[at]:
            store.add([rows(*batch)], [])
            batch = batch if repeats else []
    store.add([rows(*batch)], [])
    [trace] = queries.traces(Filters())["traces"]
    models = trace.pop("models")
    assert sorted(models) == ["m0", "m1"]
    assert trace == {
        "trace_id": one.hex(),
        "started_ms": began / MS,
        "duration_ms": 100.0,
        "name": "turn",
        "service": "test",
        "spans": 6,
        "calls": 5,
        "errors": 1,
        "retries": 0,
        "session": None,
        "input_tokens": 50,
        "output_tokens": 25,
        "cost_usd": 0.5,
        "first_chunk_ms": 200.0,
    }
    database.close()
