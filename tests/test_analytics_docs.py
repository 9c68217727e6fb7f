"""docs/analytics.md: its queries run on rows of recorded calls and say what is true of these; its table is complete."""

from __future__ import annotations

import math
import re
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import duckdb
import openai
import pytest
from readme_table import columns_table

from otel_llm_callback import ErrorContext, flush, instrument, session
from otel_llm_callback.callbacks import MultiCallback, ParquetSink, SqliteSink
from otel_llm_callback.testing import (
    CallFailed,
    JsonReply,
    RecordingCallback,
    ResponseReceived,
    ScriptedServer,
    StreamReply,
    chat_chunks,
    chat_completion,
    error_body,
)

PAGE = (Path(__file__).parents[1] / "docs" / "analytics.md").read_text("utf-8")
FIRST_DAY = datetime(2026, 11, 24, 23, 0, tzinfo=timezone.utc)
MODELS = ("large", "small")


def query(name):
    """The SQL below the marker."""
    return re.findall(rf"<!-- query: {name} -->\n```sql\n(.*?)```", PAGE, re.DOTALL)[0]


def reply(request):
    """Answer by the question: a number of tokens, a stream, an error."""
    asked = request.json["messages"][0]["content"]
    if asked == "fail":
        return JsonReply(error_body("no"), status=404)
    if asked == "be limited":
        return JsonReply(error_body("slow down"), status=429, headers={"x-should-retry": "false"})
    if request.json.get("stream"):
        return StreamReply(chat_chunks(["a", "b"], model=request.json["model"]))
    return JsonReply(chat_completion("a", model=request.json["model"], usage=(int(asked), 7)))


def record():
    """Make real calls of every kind; return what was told of their ends."""
    recorder = RecordingCallback()
    instrument(recorder, telemetry=False, delivery="inline")
    with ScriptedServer(reply) as server, openai.OpenAI(api_key="any", base_url=server.url) as client:
        for number in range(40):
            ask = "fail" if number in {3, 4, 17} else "be limited" if number == 5 else str(100 + number)
            messages = [{"role": "user", "content": ask}]
            with session(f"s-{number % 3}", user=f"u-{number % 3}"):
                try:
                    answer = client.chat.completions.create(
                        model=MODELS[number % 2], messages=messages, stream=number % 10 == 9
                    )
                    list(answer)
                except openai.APIStatusError:
                    pass
    return [event for event in recorder.events if isinstance(event, (ResponseReceived, CallFailed))]


@dataclass
class Rows:
    """The recorded calls, a quarter of an hour apart and with a price, and the sinks that were told of them."""

    calls: list
    database: sqlite3.Connection
    directory: Path


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analytics")
    calls = [spread(event, number) for number, event in enumerate(record())]
    sinks = MultiCallback(SqliteSink(folder / "calls.db"), ParquetSink(folder / "calls"))
    for call in calls:
        if isinstance(call, ErrorContext):
            sinks.on_error(ValueError(), call)
        else:
            sinks.on_response_received(call, "")
    assert flush()
    with closing(sqlite3.connect(folder / "calls.db")) as database:
        yield Rows(calls, database, folder / "calls")


def spread(event, number):
    """Move a call to its place in time, so that there are two days; price those whose usage is known."""
    facts = event.context if isinstance(event, CallFailed) else event.metadata
    started_ns = int((FIRST_DAY + timedelta(minutes=15 * number)).timestamp()) * 10**9
    request = replace(facts.request, started_ns=started_ns)
    ended_ns = started_ns + round(facts.response_time_ms * 1e6)
    if isinstance(event, CallFailed):
        kept = ("outcome", "error_type", "response_time_ms", "retries", "status_code", "request_id")
        return ErrorContext(facts, request=request, ended_ns=ended_ns, **{name: getattr(facts, name) for name in kept})
    cost = None if facts.usage is None else Decimal("0.0001") * facts.usage.input_tokens
    return replace(facts, request=request, ended_ns=ended_ns, cost=cost)


def known(values):
    return [value for value in values if value is not None]


def total(values):
    return sum(found) if (found := known(values)) else None


def day(call):
    return call.request.timestamp.date().isoformat()


def of(calls, name):
    return [getattr(call, name, None) for call in calls]


def by_day_and_model(rows):
    for key in sorted({(day(call), call.request.model) for call in rows.calls}):
        yield key, [call for call in rows.calls if (day(call), call.request.model) == key]


def p95(calls):
    times = sorted(call.response_time_ms - sum(retry.delay_s for retry in call.retries) * 1000 for call in calls)
    return round(times[math.ceil(0.95 * len(times)) - 1], 1)


def test_cost_and_tokens_per_model_and_day(rows):
    expected = []
    for key, calls in by_day_and_model(rows):
        tokens, cost = of(calls, "total_tokens"), total(of(calls, "cost"))
        without = len(calls) - len(known(tokens))
        sums = (total(of(calls, "prompt_tokens")), total(of(calls, "completion_tokens")))
        expected.append((*key, len(calls), without, *sums, cost and round(float(cost), 6)))
    assert len(expected) == 4
    assert sum(row[3] for row in expected) == 8  # four streams, four errors
    assert rows.database.execute(query("cost")).fetchall() == expected


def test_95th_percentile(rows):
    completed = [call for call in rows.calls if call.outcome == "completed"]
    expected = []
    for model in MODELS:
        calls = [call for call in completed if call.request.model == model]
        expected.append((model, len(calls), p95(calls)))
    assert rows.database.execute(query("p95")).fetchall() == expected


def test_error_rate_by_type(rows):
    assert rows.database.execute(query("errors")).fetchall() == [
        ("NotFoundError", 3, 7.5),
        ("RateLimitError", 1, 2.5),
    ]


def test_slowest_calls(rows):
    slowest = sorted(rows.calls, key=lambda call: -call.response_time_ms)[:10]
    found = rows.database.execute(query("slowest")).fetchall()
    assert [(row[1], row[2], row[4], row[6]) for row in found] == [
        (call.request.model, round(call.response_time_ms), call.outcome, call.request_id) for call in slowest
    ]


def test_sessions(rows):
    expected = []
    for number in range(3):
        calls = [call for call in rows.calls if call.request.session_id == f"s-{number}"]
        errors = sum(call.outcome == "error" for call in calls)
        seconds = round((max(of(calls, "ended_ns")) - min(call.request.started_ns for call in calls)) / 1e9)
        expected.append((f"s-{number}", f"u-{number}", len(calls), errors, total(of(calls, "total_tokens")), seconds))
    expected.sort(key=lambda row: -row[4])
    found = [(*row[:-1], round(row[-1])) for row in rows.database.execute(query("sessions")).fetchall()]
    assert found == expected


def test_the_same_from_parquet(rows):
    """The exact cost adds up exactly."""
    expected = []
    for key, calls in by_day_and_model(rows):
        completed = [call for call in calls if call.outcome == "completed"]
        expected.append((*key, len(calls), total(of(calls, "cost")), p95(completed)))
    sql = query("duckdb").replace("'calls/", f"'{rows.directory}/")
    with duckdb.connect() as database:
        found = [(str(row[0]), *row[1:]) for row in database.execute(sql).fetchall()]
    assert found == expected


def test_every_query_is_tested():
    named = Counter(re.findall(r"<!-- query: (\w+) -->", PAGE))
    assert named == Counter(["cost", "p95", "errors", "slowest", "sessions", "duckdb"])
    assert PAGE.count("```sql") == len(named)


def test_the_table_of_columns_is_complete():
    """It is what `python tests/readme_table.py columns` prints."""
    between = re.search(r"<!-- columns -->\n(.*?)\n?<!-- /columns -->", PAGE, re.DOTALL)
    assert between is not None
    assert between[1] == columns_table()
