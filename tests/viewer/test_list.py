"""What the page asks: the filters, the pages, the charts, the summary of a session."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from viewer._spans import CALL, MS, request, span, trace_id
from viewer.test_store import opened, rows

from otel_llm_callback.viewer._queries import PAGE, Filters, Queries
from otel_llm_callback.viewer._sessions import CALLS, summarise

MODELS = ("gpt-4o", "tiny-chat")
OUTCOMES = ("completed", "closed_early", "error")


def told(chance):
    """What one span says, and how long it took."""
    outcome = chance.choice(OUTCOMES)
    attributes = {
        **CALL,
        "gen_ai.operation.name": chance.choice(("chat", "embeddings")),
        "gen_ai.request.model": chance.choice(MODELS),
        "llm_callback.outcome": outcome,
        "session.id": chance.choice(("s-1", "s-2", "s-3")),
        "gen_ai.input.messages": f'[{{"content":"{chance.choice(("Faust", "Hamlet"))} said \\"hi\\""}}]',
    }
    if outcome == "error":
        attributes["error.type"] = chance.choice(("RateLimitError", "APITimeoutError"))
    return attributes, chance.choice((50, 700, 3000))


CHOICES = {
    "model": [None, *MODELS],
    "operation": [None, "embeddings"],
    "outcome": [None, *OUTCOMES],
    "error": [None, "*", "RateLimitError"],
    "session": [None, "s-2"],
    "slower_ms": [None, 600.0],
    "text": [None, "faust", 'said "hi"'],
}


def applies(filters, attributes, took_ms):
    """The rule, said a second time and simply."""
    error = attributes.get("error.type")
    named = {"model": "gen_ai.request.model", "operation": "gen_ai.operation.name", "outcome": "llm_callback.outcome"}
    return (
        all(filters[key] in (None, attributes[name]) for key, name in {**named, "session": "session.id"}.items())
        and (filters["error"] is None or error == filters["error"] or (filters["error"] == "*" and error is not None))
        and (filters["slower_ms"] is None or took_ms >= filters["slower_ms"])
        and (
            filters["text"] is None
            or filters["text"].lower() in attributes["gen_ai.input.messages"].replace("\\", "").lower()
        )
    )


@pytest.fixture(scope="module")
def crowd():
    """A store of 40 traces of 1 to 4 calls, and what was put in."""
    chance = random.Random(7)
    database, store, queries = opened()
    put = {}
    for number in range(40):
        one = trace_id()
        members = []
        for part in range(chance.randrange(1, 5)):
            attributes, took_ms = told(chance)
            began = 1_700_000_000 * 10**9 + number * 1000 * MS + part
            members.append(
                span(
                    trace=one,
                    started_ns=began,
                    took_ms=took_ms,
                    failed="error.type" in attributes,
                    attributes=attributes,
                )
            )
            put.setdefault(one.hex(), []).append((attributes, took_ms))
        store.add([rows(*members)], [])
    yield queries, put
    database.close()


@pytest.mark.parametrize("model", CHOICES["model"])
def test_filters_keep_exactly_what_they_say(crowd, model):
    """Every combination: the traces with one span to which all of it applies, newest first."""
    queries, put = crowd
    found_any = False
    for values in itertools.product(*(CHOICES[name] for name in CHOICES if name != "model")):
        filters = {"model": model, **dict(zip([name for name in CHOICES if name != "model"], values, strict=True))}
        expected = [
            one for one, members in reversed(put.items()) if any(applies(filters, *member) for member in members)
        ]
        found = [trace["trace_id"] for trace in queries.traces(Filters(**filters))["traces"]]
        assert found == expected, filters
        found_any = found_any or bool(found)
    assert found_any


@pytest.mark.parametrize("filters", [{}, {"operation": "chat"}, {"text": "chat"}], ids=["all", "filtered", "searched"])
def test_pages_show_each_trace_once(filters):
    database, store, queries = opened()
    sent = [span(started_ns=1_700_000_000 * 10**9 + number * MS) for number in range(PAGE * 2 + 7)]
    store.add([rows(*sent)], [])
    found, before = [], None
    while True:
        page = queries.traces(Filters(**filters, before_ns=before))
        found += [trace["trace_id"] for trace in page["traces"]]
        if page["next"] is None:
            break
        before = int(page["next"])
    assert found == [one.trace_id.hex() for one in reversed(sent)]
    database.close()


def test_a_trace_id_is_found_as_such(crowd):
    queries, put = crowd
    one = next(iter(put))
    assert [trace["trace_id"] for trace in queries.traces(Filters(text=f" {one.upper()} "))["traces"]] == [one]


def test_a_long_search_says_how_far_it_got(monkeypatch):
    """Rather than making the page wait; asked to go on from there it finds what is further back."""
    monkeypatch.setattr("otel_llm_callback.viewer._queries._SEARCH_S", 0.0)
    database, store, queries = opened()
    began = 1_700_000_000 * 10**9
    sent = [span(started_ns=began + number * MS) for number in range(600)]
    sent[5].name = "needle"
    store.add([rows(*sent)], [])
    found, before, rounds = [], None, 0
    while rounds == 0 or before is not None:
        page = queries.traces(Filters(text="needle", before_ns=before))
        found += [trace["trace_id"] for trace in page["traces"]]
        before = int(page["next"]) if page["next"] else None
        rounds += 1
        if before is not None:
            assert page["searched_to_ms"] == before / MS
    assert (found, rounds) == ([sent[5].trace_id.hex()], 3)
    database.close()


def test_the_charts_add_up():
    database, store, queries = opened()
    now = time.time_ns()
    sent = [
        span(started_ns=now - 2000 * MS, took_ms=took, attributes={**CALL, "gen_ai.usage.cost": 0.25})
        for took in (100, 200, 300, 400)
    ]
    sent.append(
        span(
            started_ns=now - 2000 * MS,
            failed=True,
            attributes={**CALL, "error.type": "APITimeoutError", "llm_callback.outcome": "error"},
        )
    )
    sent.append(span("tool", started_ns=now - 2000 * MS, attributes={"gen_ai.operation.name": "execute_tool"}))
    sent.append(span("http", started_ns=now - 2000 * MS, attributes={"http.request.method": "POST"}))
    store.add([rows(*sent)], [])
    told = queries.figures(900, now)
    totals = told["totals"]
    assert (totals["calls"], totals["errors"], totals["cost_usd"]) == (5, 1, 1.0)
    assert (totals["input_tokens"], totals["output_tokens"]) == (50, 25)
    assert totals["latency"]["p50"] == pytest.approx(200, rel=0.01)
    assert totals["latency"]["p99"] == pytest.approx(400, rel=0.01)
    assert totals["first_chunk"]["p95"] == pytest.approx(200, rel=0.01)
    assert round(sum(told["calls"]) * told["step_s"]) == 5
    assert {name: round(sum(values) * told["step_s"]) for name, values in told["errors"].items()} == {
        "APITimeoutError": 1
    }
    database.close()


def test_what_is_not_known_is_not_drawn_as_zero():
    database, store, queries = opened()
    now = time.time_ns()
    store.add([rows(span(started_ns=now - MS, attributes={"gen_ai.operation.name": "chat"}))], [])
    told = queries.figures(900, now)
    assert told["totals"]["cost_usd"] is None
    assert told["totals"]["input_tokens"] is None
    assert set(told["cost_per_hour"]) == {None}
    assert set(told["first_chunk"]["p50"]) == {None}
    database.close()


@pytest.mark.parametrize("window_s", [1, 300, 900, 3600, 86_400, 10**9])
def test_a_chart_has_as_many_points_as_times(window_s):
    database, _, queries = opened()
    told = queries.figures(window_s, time.time_ns())
    lines = [told["calls"], told["input_tokens"], told["cost_per_hour"], *told["latency"].values()]
    assert {len(line) for line in lines} == {len(told["times"])}
    assert 1 <= len(told["times"]) <= 120
    database.close()


def test_a_session_is_told_as_the_terminal_tells_it():
    database, store, _ = opened()
    began = 1_700_000_000 * 10**9
    usage = {"session.id": "s", "gen_ai.usage.cache_read.input_tokens": 4}
    sent = [
        span(started_ns=began, took_ms=100, attributes={**CALL, **usage}),
        span(
            started_ns=began + 200 * MS,
            took_ms=300,
            attributes={**CALL, **usage, "llm_callback.retry.count": 2, "llm_callback.retry.wait": 0.15},
        ),
        span(
            started_ns=began + 600 * MS,
            took_ms=400,
            failed=True,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": "other",
                "session.id": "s",
                "error.type": "RateLimitError",
                "llm_callback.outcome": "error",
            },
        ),
        span(started_ns=began, attributes={**CALL, "session.id": "another"}),
    ]
    store.add([rows(*sent)], [])
    text = str(summarise("s", Queries(database).calls_of("s", CALLS)))
    assert (
        text
        == """\
Session summary: s
  Duration             1.00 s
  Requests             3
  Responses            2
  Errors               1 (1 RateLimitError)
  Tokens               30 total
                       20 input, 10 output, 8 cached
  Tokens per response  15.0 on average over 2 responses
  Response time        p50 100 ms, p95 300 ms, p99 300 ms
    without waits      p50 100 ms, p95 150 ms, p99 150 ms
  First chunk after    p50 200 ms, p95 200 ms, p99 200 ms
  Retries              2 retries in 1 call, 150 ms of waiting
  Model                gpt-4o-mini
                       2 requests, 30 tokens
  Model                other
                       1 request, 1 error"""
    )
    database.close()


def test_a_page_that_asks_nonsense_is_told_so(viewer):
    viewer.send(request(span()))
    asked = [
        "/api/traces?slower_ms=x",
        "/api/traces?before=-1",
        "/api/traces?before=9" + "9" * 30,
        "/api/traces?slower_ms=nan",
    ]
    assert [viewer("GET", path, host="localhost").status for path in asked] == [400] * 4
    missing = [
        "/api/traces/zz",
        f"/api/traces/{'0' * 31}1",
        "/api/traces/00/spans/00",
        "/api/sessions/none",
        "/static/../_app.py",
        "/static/none",
        "/none",
    ]
    assert [viewer("GET", path, host="localhost").status for path in missing] == [404] * 7
