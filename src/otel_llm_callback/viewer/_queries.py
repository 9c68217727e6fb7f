"""What the page asks the store: plain values, ready for JSON.

Times are whole milliseconds or fractions of them, since JavaScript's numbers hold no nanoseconds of today.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from ..callbacks._distribution import HIGHEST_MS, LOWEST_MS, Distribution
from ._database import Database
from ._otlp import attributes_of
from ._store import CHARTED_S, SLOT_NS

PAGE: Final = 50
_SEARCH_S: Final = 0.7
_TRACE_SPANS: Final = 100_000
_SPANS_WITH_EVENTS: Final = 300
_EVENTS: Final = 50
_NS_PER_MS: Final = 1_000_000
_NANO: Final = 10**9
_SLOT_S: Final = SLOT_NS // _NANO
_POINTS: Final = 120
_WORD_KINDS: Final = ("model", "operation", "outcome", "error_type", "service")

_TRACE_COLUMNS: Final = (
    "id, trace_id, started_ns, ended_ns, root, service, spans, calls, errors, retries, models, session, input_tokens, "
    "output_tokens, cost_nano, first_chunk_ns"
)

_ONE_TRACE: Final = f"SELECT {_TRACE_COLUMNS} FROM trace WHERE trace_id = ?"  # noqa: S608 - of known names


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which traces to list: those with at least one span to which all of this applies; None is anything.

    Attributes:
        error: An ``error.type``, or ``*`` for any error.
        slower_ms: Spans that took at least so long.
        text: To be found anywhere in the span, content included; or a trace id.
        before_ns: Only what started before, for the next page.
    """

    model: str | None = None
    operation: str | None = None
    outcome: str | None = None
    error: str | None = None
    session: str | None = None
    service: str | None = None
    slower_ms: float | None = None
    text: str | None = None
    before_ns: int | None = None

    @property
    def trace_id(self) -> bytes | None:
        """The trace id that ``text`` is, if it is one."""
        text = (self.text or "").strip()
        try:
            return bytes.fromhex(text) if len(text) == 32 else None  # noqa: PLR2004 - 16 bytes in hex
        except ValueError:
            return None

    def conditions(self) -> tuple[list[str], list[Any]]:
        """Return what has to hold of a span, and the values in it."""
        clauses: list[str] = []
        values: list[Any] = []
        for column in ("model", "operation", "outcome", "session", "service"):
            if (value := getattr(self, column)) is not None:
                clauses.append(f"s.{column} = ?")
                values.append(value)
        if self.outcome not in (None, "completed"):
            clauses.append("s.outcome <> 'completed'")  # what lets the index of the others be used
        if self.error == "*":
            clauses.append("s.error_type IS NOT NULL")
        elif self.error is not None:
            clauses.append("s.error_type = ?")
            values.append(self.error)
        if self.slower_ms is not None:
            clauses.append("s.duration_ns >= ?")
            values.append(round(self.slower_ms * _NS_PER_MS))
        if self.before_ns is not None:
            clauses.append("s.started_ns < ?")
            values.append(self.before_ns)
        return clauses, values


class Queries:
    """Read the store, from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def traces(self, filters: Filters) -> dict[str, Any]:
        """Return a page of traces, newest first, and how to go on.

        ``next`` is what to give as ``before`` for the page after, None if there is none. ``searched_to_ms`` is there
        if the search for text took too long: it did not look at what started before that time, and ``next`` goes on
        from there.
        """
        with self._database.read() as connection:
            if filters.trace_id is not None:
                rows = _rows(connection, _ONE_TRACE, [filters.trace_id])
                return {"traces": [_trace(row) for row in rows], "next": None}
            clauses, _ = filters.conditions()
            if not filters.text and clauses == ["s.started_ns < ?"][: len(clauses)]:
                return _newest(connection, filters.before_ns)
            return _matching(connection, filters)

    def trace(self, trace_id: bytes) -> dict[str, Any] | None:
        """Return a trace with what the waterfall needs of each span, None if it is not stored."""
        with self._database.read() as connection:
            found = _rows(connection, _ONE_TRACE, [trace_id])
            if not found:
                return None
            spans = _rows(
                connection,
                "SELECT * FROM span WHERE trace = ? ORDER BY started_ns, id LIMIT ?",
                [found[0]["id"], _TRACE_SPANS],
            )
            begun = found[0]["started_ns"]
            events = _events(connection, found[0]["id"], begun) if len(spans) <= _SPANS_WITH_EVENTS else {}
            bars = [{**_bar(row, begun), **events.get(row["id"], {})} for row in spans]
            return {**_trace(found[0]), "span_list": bars}

    def span(self, trace_id: bytes, span_id: bytes) -> dict[str, Any] | None:
        """Return all that came of a span, None if it is not stored."""
        with self._database.read() as connection:
            found = connection.execute(
                "SELECT b.content, o.content FROM trace t JOIN span s ON s.trace = t.id JOIN body b ON b.span = s.id"
                " JOIN origin o ON o.id = b.origin WHERE t.trace_id = ? AND s.span_id = ?",
                (trace_id, span_id),
            ).fetchone()
        return None if found is None else _whole(*found)

    def words(self) -> dict[str, list[str]]:
        """Return the values there are to filter by."""
        with self._database.read() as connection:
            found: dict[str, list[str]] = {kind: [] for kind in _WORD_KINDS}
            for kind, text in connection.execute("SELECT kind, text FROM word ORDER BY kind, text"):
                found.setdefault(kind, []).append(text)
            return found

    def sessions(self) -> list[str]:
        """Return the sessions of the newest traces that have one."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT DISTINCT session FROM"
                " (SELECT session FROM trace WHERE session IS NOT NULL ORDER BY started_ns DESC LIMIT 500) LIMIT 100"
            )
            return [session for (session,) in rows]

    def totals(self) -> dict[str, int]:
        """Return how much is stored, and what was given up."""
        with self._database.read() as connection:
            spans, size, evicted, refused = connection.execute("SELECT * FROM total").fetchone()
            (traces,) = connection.execute("SELECT count(*) FROM trace").fetchone() if spans else (0,)
        return {"spans": spans, "traces": traces, "bytes": size, "evicted": evicted, "refused": refused}

    def calls_of(self, session: str, limit: int) -> list[dict[str, Any]]:
        """Return the calls of a session, oldest first; the newest *limit* of them."""
        with self._database.read() as connection:
            rows = _rows(
                connection,
                "SELECT s.*, t.trace_id FROM span s JOIN trace t ON t.id = s.trace WHERE s.session = ?"
                " AND s.operation IS NOT NULL AND s.is_step = 0 ORDER BY s.started_ns DESC LIMIT ?",
                [session, limit],
            )
        return rows[::-1]

    def series(self) -> list[dict[str, Any]]:
        """Return the newest point of each metric series."""
        with self._database.read() as connection:
            rows = _rows(connection, "SELECT * FROM series ORDER BY name, service, attributes", [])
        for row in rows:
            row["attributes"] = _attributes_or_none(row["attributes"])
            row["at_ms"] = row.pop("at_ns") / _NS_PER_MS
            del row["id"]
        return rows

    def figures(self, window_s: int, now_ns: int) -> dict[str, Any]:
        """Return what the charts show of the last *window_s* seconds, a value for each step of time.

        Rates are per second over the step. A percentile is None where there was no call to measure, and cost and
        tokens where none was reported.
        """
        window_s = min(max(window_s, _SLOT_S), CHARTED_S)
        per_point = max(1, -(-window_s // (_SLOT_S * _POINTS)))
        last = now_ns // SLOT_NS // per_point
        first = last - window_s // (_SLOT_S * per_point) + 1
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT slot / ? AS point, kind, key, sum(n) FROM figure WHERE slot >= ? AND slot < ?"
                " GROUP BY point, kind, key",
                (per_point, first * per_point, (last + 1) * per_point),
            ).fetchall()
        return _charts(rows, range(first, last + 1), per_point * _SLOT_S)


def _rows(connection: sqlite3.Connection, query: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    cursor = connection.execute(query, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _newest(connection: sqlite3.Connection, before_ns: int | None) -> dict[str, Any]:
    where, values = ("WHERE started_ns < ?", [before_ns]) if before_ns is not None else ("", [])
    query = f"SELECT {_TRACE_COLUMNS} FROM trace {where} ORDER BY started_ns DESC LIMIT {PAGE + 1}"  # noqa: S608
    rows = _rows(connection, query, values)
    following = str(rows[PAGE - 1]["started_ns"]) if len(rows) > PAGE else None
    return {"traces": [_trace(row) for row in rows[:PAGE]], "next": following}


def _matching(connection: sqlite3.Connection, filters: Filters) -> dict[str, Any]:
    """Walk the spans from the newest to the oldest until a page of traces is full, or the time is up."""
    clauses, values = filters.conditions()
    source, content = "span s", "NULL"
    if filters.text:
        source, content = "span s JOIN body b ON b.span = s.id", "b.content"
    where = f"WHERE {' AND '.join(clauses)}" if clauses else ""
    query = f"SELECT s.trace, s.started_ns, {content} FROM {source} {where} ORDER BY s.started_ns DESC"  # noqa: S608
    found: list[int] = []
    seen: set[int] = set()
    at_ns: int | None = None
    answer: dict[str, Any] = {"next": None}
    for trace, at_ns in _narrowed(connection.execute(query, values), _matcher(filters.text), answer):
        if trace not in seen:
            seen.add(trace)
            found.append(trace)
            if len(found) == PAGE:
                answer["next"] = str(at_ns)
                break
    marks = ", ".join("?" * len(found))
    rows = _rows(connection, f"SELECT {_TRACE_COLUMNS} FROM trace WHERE id IN ({marks})", found)  # noqa: S608
    by_id = {row["id"]: row for row in rows}
    return {"traces": [_trace(by_id[trace]) for trace in found if trace in by_id], **answer}


def _narrowed(
    rows: Iterator[tuple[int, int, bytes | None]], matches: Callable[[bytes], bool] | None, answer: dict[str, Any]
) -> Iterator[tuple[int, int]]:
    if matches is None:
        yield from ((trace, at_ns) for trace, at_ns, _ in rows)
        return
    deadline = time.monotonic() + _SEARCH_S
    for number, (trace, at_ns, content) in enumerate(rows):
        if content is not None and matches(content):
            yield trace, at_ns
        if number % 256 == 255 and time.monotonic() > deadline:  # noqa: PLR2004 - not at each row
            answer.update(next=str(at_ns), searched_to_ms=at_ns / _NS_PER_MS)
            return


def _matcher(text: str | None) -> Callable[[bytes], bool] | None:
    """A body holds its strings as they are; content among them is JSON, where quotes and the like are escaped."""
    if not text:
        return None
    lowered = text.lower()
    plain, escaped = lowered.encode(), json.dumps(lowered, ensure_ascii=False)[1:-1].encode()
    if plain == escaped:
        return lambda content: plain in content.lower()
    return lambda content: plain in (lower := content.lower()) or escaped in lower


def _ms(value_ns: int | None) -> float | None:
    return None if value_ns is None else value_ns / _NS_PER_MS


def _usd(value_nano: int | None) -> float | None:
    return None if value_nano is None else value_nano / _NANO


def _trace(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "trace_id": row["trace_id"].hex(),
        "started_ms": _ms(row["started_ns"]),
        "duration_ms": _ms(row["ended_ns"] - row["started_ns"]),
        "name": row["root"],
        "service": row["service"],
        "spans": row["spans"],
        "calls": row["calls"],
        "errors": row["errors"],
        "retries": row["retries"],
        "models": row["models"].split("\n") if row["models"] else [],
        "session": row["session"],
        "input_tokens": row["input_tokens"],
        "output_tokens": row["output_tokens"],
        "cost_usd": _usd(row["cost_nano"]),
        "first_chunk_ms": _ms(row["first_chunk_ns"]),
    }


def _bar(row: Mapping[str, Any], begun_ns: int) -> dict[str, Any]:
    told = {
        "id": row["span_id"].hex(),
        "parent": row["parent_id"].hex() or None,
        "name": row["name"],
        "service": row["service"],
        "at_ms": (row["started_ns"] - begun_ns) / _NS_PER_MS,
        "ms": row["duration_ns"] / _NS_PER_MS,
        "error": bool(row["is_error"]),
        "operation": row["operation"],
        "model": row["model"],
        "outcome": row["outcome"],
        "input_tokens": row["input_tokens"],
        "output_tokens": row["output_tokens"],
        "first_chunk_ms": _ms(row["first_chunk_ns"]),
        "retries": row["retries"] or None,
        "cost_usd": _usd(row["cost_nano"]),
        "error_type": row["error_type"],
    }
    return {key: value for key, value in told.items() if value is not None}


def _events(connection: sqlite3.Connection, trace: int, begun_ns: int) -> dict[int, dict[str, Any]]:
    """Names and times of the span events of a trace, by span."""
    rows = connection.execute(
        "SELECT s.id, b.content FROM span s JOIN body b ON b.span = s.id WHERE s.trace = ?", (trace,)
    )
    told = {}
    for span, content in rows:
        events = Span.FromString(content).events[:_EVENTS]
        if events:
            told[span] = {"events": [(e.name, (e.time_unix_nano - begun_ns) / _NS_PER_MS) for e in events]}
    return told


def _whole(body: bytes, origin: bytes) -> dict[str, Any]:
    span = Span.FromString(body)
    source = ResourceSpans.FromString(origin)
    scope = source.scope_spans[0].scope if source.scope_spans else None
    started_ns, ended_ns = span.start_time_unix_nano, span.end_time_unix_nano
    return {
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_id": span.parent_span_id.hex() or None,
        "name": span.name,
        "kind": _name_of(Span.SpanKind, span.kind, "SPAN_KIND_"),
        "started_ms": started_ns / _NS_PER_MS,
        "duration_ms": max(0, ended_ns - started_ns) / _NS_PER_MS,
        "status": {0: "unset", 1: "ok", 2: "error"}.get(span.status.code, "unset"),
        "status_message": span.status.message or None,
        "attributes": attributes_of(span.attributes),
        "events": [
            {
                "name": event.name,
                "at_ms": (event.time_unix_nano - started_ns) / _NS_PER_MS,
                "attributes": attributes_of(event.attributes),
            }
            for event in span.events
        ],
        "links": [
            {
                "trace_id": link.trace_id.hex(),
                "span_id": link.span_id.hex(),
                "attributes": attributes_of(link.attributes),
            }
            for link in span.links
        ],
        "resource": attributes_of(source.resource.attributes),
        "scope": {"name": scope.name, "version": scope.version} if scope is not None else None,
    }


def _name_of(kinds: Any, number: int, prefix: str) -> str:
    try:
        return str(kinds.Name(number)).removeprefix(prefix).lower()
    except ValueError:
        return "unspecified"


def _attributes_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # cut, because it was very long
        return None


def _charts(rows: Sequence[tuple[int, str, str, int]], points: range, step_s: int) -> dict[str, Any]:
    by_kind: dict[str, dict[int, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for point, kind, key, n in rows:
        by_kind[kind][point][key] = n

    def rate(kind: str, factor: float = 1) -> list[float | None]:
        told = by_kind[kind]
        return [sum(told[point].values()) / step_s * factor if point in told else None for point in points]

    errors = sorted({key for told in by_kind["error"].values() for key in told})
    return {
        "step_s": step_s,
        "times": [point * step_s for point in points],
        "calls": [sum(by_kind["calls"].get(point, {}).values()) / step_s for point in points],
        "errors": {
            name: [by_kind["error"].get(point, {}).get(name, 0) / step_s for point in points] for name in errors
        },
        "latency": _percentiles(by_kind["latency"], points),
        "first_chunk": _percentiles(by_kind["first_chunk"], points),
        "input_tokens": rate("input_tokens"),
        "output_tokens": rate("output_tokens"),
        "cost_per_hour": rate("cost_nano", 3600 / _NANO),
        "totals": {
            "calls": _total(by_kind["calls"]) or 0,
            "errors": _total(by_kind["error"]) or 0,
            "input_tokens": _total(by_kind["input_tokens"]),
            "output_tokens": _total(by_kind["output_tokens"]),
            "cost_usd": _usd(_total(by_kind["cost_nano"])),
            "latency": _quantiles(_together(by_kind["latency"])),
            "first_chunk": _quantiles(_together(by_kind["first_chunk"])),
        },
    }


def _total(told: Mapping[int, Mapping[str, int]]) -> int | None:
    return sum(n for keys in told.values() for n in keys.values()) if told else None


def _together(told: Mapping[int, Mapping[str, int]]) -> dict[str, int]:
    buckets: dict[str, int] = defaultdict(int)
    for keys in told.values():
        for key, n in keys.items():
            buckets[key] += n
    return buckets


def _percentiles(told: Mapping[int, Mapping[str, int]], points: range) -> dict[str, list[float | None]]:
    quantiles = [_quantiles(told.get(point, {})) for point in points]
    return {name: [known[name] for known in quantiles] for name in ("p50", "p95", "p99")}


def _quantiles(keys: Mapping[str, int]) -> dict[str, float | None]:
    buckets = {int(key): n for key, n in keys.items()}
    known = bool(buckets)
    times = Distribution(
        count=sum(buckets.values()),
        min_ms=LOWEST_MS if known else None,
        max_ms=HIGHEST_MS if known else None,
        buckets=buckets,
    )
    return {"p50": times.quantile_ms(0.5), "p95": times.quantile_ms(0.95), "p99": times.quantile_ms(0.99)}
