"""Put spans and metrics into the database, and take the oldest out when it is full."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..callbacks._distribution import Times
from ._database import Database
from ._facts import CallFacts
from ._options import Limits
from ._otlp import Series, SpanRow

SLOT_NS: Final = 10 * 10**9
"""Charts know no finer time than this."""

CHARTED_S: Final = 24 * 3600
"""Charts go back this far."""

_ROW_BYTES: Final = 400  # a span's rows and their places in the indexes, about
_ORIGIN_BYTES: Final = 100
_MODELS: Final = 5
_WORDS: Final = 500
_ERROR_TYPES_PER_SLOT: Final = 20
_FUTURE_NS: Final = 60 * 10**9
_OTHER: Final = "(other)"
_NS_PER_MS: Final = 1_000_000
_HIGHEST: Final = 2**62  # what a sender makes up must not overflow the database's integers

_INSERT_SPAN: Final = f"INSERT OR IGNORE INTO span VALUES (NULL{', ?' * 23})"  # noqa: S608 - of question marks
_UPSERT_TRACE: Final = f"INSERT OR REPLACE INTO trace VALUES (?{', ?' * 18})"  # noqa: S608 - likewise
_NO_FACTS: Final = (None,) * 13


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a batch.

    Attributes:
        spans: Stored now; one that was there already does not count.
        refused: Left out, because their trace is full.
        calls: Trace and span ids of the calls among them.
    """

    spans: int
    refused: int
    calls: Sequence[tuple[bytes, bytes]]


class Store:
    """What is kept. For one writing thread.

    Args:
        database: Where.
        limits: How much.
    """

    def __init__(self, database: Database, limits: Limits) -> None:
        self._database = database
        self._limits = limits
        self._words: set[tuple[str, str]] = set()

    def add(self, batches: Sequence[Sequence[SpanRow]], series: Iterable[Series]) -> list[Stored]:
        """Store all of it in one transaction, and then make room if there is too much.

        Returns:
            What became of each batch of spans.
        """
        with self._database.write() as connection:
            stored = [self._add_spans(connection, rows) for rows in batches]
            self._add_series(connection, series)
            self._make_room(connection)
        return stored

    def _add_spans(self, connection: sqlite3.Connection, rows: Sequence[SpanRow]) -> Stored:
        by_trace: dict[bytes, list[SpanRow]] = defaultdict(list)
        for row in rows:
            by_trace[row.trace_id].append(row)
        added: list[SpanRow] = []
        refused = size = 0
        for trace_id, members in by_trace.items():
            summary = _Summary.load(connection, trace_id)
            new, grown, left_out = self._add_to_trace(connection, summary, members)
            if new:
                summary.include(new, grown)
                summary.save(connection)
            added += new
            size += grown
            refused += left_out
        if added:
            self._add_words(connection, added)
            _add_figures(connection, added)
        connection.execute(
            "UPDATE total SET spans = spans + ?, bytes = bytes + ?, refused = refused + ?", (len(added), size, refused)
        )
        calls = [(row.trace_id, row.span_id) for row in added if row.facts is not None]
        return Stored(len(added), refused, calls)

    def _add_to_trace(
        self, connection: sqlite3.Connection, summary: _Summary, members: Sequence[SpanRow]
    ) -> tuple[list[SpanRow], int, int]:
        new: list[SpanRow] = []
        bodies: list[tuple[int, int, bytes]] = []
        origins: dict[bytes, int] = {}
        size = refused = 0
        room = self._limits.spans_per_trace - summary.spans
        for row in members:
            if len(new) >= room:
                refused += 1
                continue
            inserted = connection.execute(_INSERT_SPAN, _span_values(summary.id, row))
            if inserted.rowcount < 1:  # sent again, because the answer to the first time was lost
                continue
            origin = origins.get(row.origin)
            if origin is None:
                origin, grown = _origin_of(connection, summary.id, row.origin)
                origins[row.origin] = origin
                size += grown
            bodies.append((inserted.lastrowid or 0, origin, row.body))
            size += len(row.body) + _ROW_BYTES
            new.append(row)
        connection.executemany("INSERT INTO body VALUES (?, ?, ?)", bodies)
        return new, size, refused

    def _add_words(self, connection: sqlite3.Connection, rows: Iterable[SpanRow]) -> None:
        """Note the values one can filter by."""
        words: set[tuple[str, str]] = set()
        for row in rows:
            words.add(("service", row.service))
            if row.facts is not None:
                facts = row.facts
                words.add(("operation", facts.operation))
                words.add(("outcome", facts.outcome))
                words.add(("model", facts.model or ""))
                words.add(("error_type", facts.error_type or ""))
        for kind, text in words - self._words:
            if text and len(self._words) < _WORDS:
                connection.execute("INSERT OR IGNORE INTO word VALUES (?, ?)", (kind, text))
                self._words.add((kind, text))

    def _add_series(self, connection: sqlite3.Connection, series: Iterable[Series]) -> None:
        newest = {(one.name, one.service, one.attributes): one for one in series}
        if not newest:
            return
        connection.executemany(
            "INSERT INTO series (name, service, attributes, unit, kind, at_ns, value, count, total)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name, service, attributes) DO UPDATE SET"
            " unit = excluded.unit, kind = excluded.kind, at_ns = excluded.at_ns, value = excluded.value,"
            " count = excluded.count, total = excluded.total",
            [
                (s.name, s.service, s.attributes, s.unit, s.kind, s.at_ns, s.value, s.count, s.total)
                for s in newest.values()
            ],
        )
        connection.execute(
            "DELETE FROM series WHERE id IN (SELECT id FROM series ORDER BY at_ns DESC LIMIT -1 OFFSET ?)",
            (self._limits.series,),
        )

    def _make_room(self, connection: sqlite3.Connection) -> None:
        """Remove the traces that came first, whole, until what is left is within the limits."""
        spans, size = connection.execute("SELECT spans, bytes FROM total").fetchone()
        evicted = 0
        while spans > self._limits.spans or size > self._limits.stored_bytes:
            oldest = connection.execute("SELECT id, spans, bytes FROM trace ORDER BY id LIMIT 1").fetchone()
            if oldest is None:
                break
            trace, its_spans, its_bytes = oldest
            connection.execute("DELETE FROM body WHERE span IN (SELECT id FROM span WHERE trace = ?)", (trace,))
            for table in ("span", "origin"):
                connection.execute(f"DELETE FROM {table} WHERE trace = ?", (trace,))  # noqa: S608 - two known names
            connection.execute("DELETE FROM trace WHERE id = ?", (trace,))
            spans, size, evicted = spans - its_spans, size - its_bytes, evicted + its_spans
        if evicted:
            connection.execute("UPDATE total SET spans = ?, bytes = ?, evicted = evicted + ?", (spans, size, evicted))
        oldest_slot = (time.time_ns() - CHARTED_S * 10**9) // SLOT_NS
        connection.execute("DELETE FROM figure WHERE slot < ?", (oldest_slot,))


def _span_values(trace: int, row: SpanRow) -> tuple[Any, ...]:
    facts = row.facts
    error_type = "unknown" if row.is_error else None
    return (
        trace,
        row.span_id,
        row.parent_id,
        row.name,
        row.service,
        row.started_ns,
        row.ended_ns - row.started_ns,
        row.is_error,
        *((error_type, *_NO_FACTS, None) if facts is None else _fact_values(facts)),
    )


def _fact_values(facts: CallFacts) -> tuple[Any, ...]:
    return (
        facts.error_type,
        facts.operation,
        facts.is_step,
        facts.provider,
        facts.model,
        facts.outcome,
        facts.session,
        facts.first_chunk_ns,
        facts.input_tokens,
        facts.output_tokens,
        facts.cached_tokens,
        facts.reasoning_tokens,
        facts.cost_nano,
        facts.retries,
        facts.retry_wait_ns,
    )


def _origin_of(connection: sqlite3.Connection, trace: int, content: bytes) -> tuple[int, int]:
    """Return the id of a resource and scope within *trace*, and by how many bytes the store has grown."""
    digest = hashlib.blake2b(content, digest_size=16).digest()
    found = connection.execute("SELECT id FROM origin WHERE trace = ? AND digest = ?", (trace, digest)).fetchone()
    if found is not None:
        return int(found[0]), 0
    inserted = connection.execute("INSERT INTO origin VALUES (NULL, ?, ?, ?)", (trace, digest, content))
    return inserted.lastrowid or 0, len(content) + _ORIGIN_BYTES


@dataclass(slots=True)
class _Summary:
    """A row of the table of traces: what the list shows without looking at the spans."""

    id: int
    trace_id: bytes
    started_ns: int = 0
    ended_ns: int = 0
    root: str = ""
    root_started_ns: int = 0
    root_is_known: int = 0
    service: str = ""
    spans: int = 0
    calls: int = 0
    errors: int = 0
    retries: int = 0
    models: str = ""
    session: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_nano: int | None = None
    first_chunk_ns: int | None = None
    size_bytes: int = 0

    @classmethod
    def load(cls, connection: sqlite3.Connection, trace_id: bytes) -> _Summary:
        """Return the row of a trace, a new one if there is none."""
        found = connection.execute("SELECT * FROM trace WHERE trace_id = ?", (trace_id,)).fetchone()
        if found is not None:
            return cls(*found)
        (last,) = connection.execute("SELECT max(id) FROM trace").fetchone()
        return cls((last or 0) + 1, trace_id)

    def save(self, connection: sqlite3.Connection) -> None:
        """Write the row."""
        connection.execute(_UPSERT_TRACE, tuple(getattr(self, name) for name in self.__slots__))

    def include(self, rows: Sequence[SpanRow], size: int) -> None:
        """Add up."""
        if not self.spans:
            self.started_ns, self.ended_ns = rows[0].started_ns, rows[0].ended_ns
        self.spans += len(rows)
        self.size_bytes += size
        models = self.models.split("\n") if self.models else []
        for row in rows:
            self.started_ns = min(self.started_ns, row.started_ns)
            self.ended_ns = max(self.ended_ns, row.ended_ns)
            self.errors += row.is_error
            self._consider_root(row)
            if row.facts is not None:
                self._include_call(row.facts, models)
        self.models = "\n".join(models)

    def _consider_root(self, row: SpanRow) -> None:
        """The root is the span without a parent; until it arrives, which it does last, the earliest one."""
        is_root = not row.parent_id
        if self.root_is_known and not is_root:
            return
        if is_root > self.root_is_known or not self.root or row.started_ns < self.root_started_ns:
            self.root, self.service = row.name, row.service
            self.root_started_ns, self.root_is_known = row.started_ns, int(is_root)

    def _include_call(self, facts: CallFacts, models: list[str]) -> None:
        self.session = self.session or facts.session
        if facts.is_step:
            return
        self.calls += 1
        self.retries += facts.retries
        if facts.model and facts.model not in models and len(models) < _MODELS:
            models.append(facts.model.replace("\n", " "))
        self.input_tokens = _plus(self.input_tokens, facts.input_tokens)
        self.output_tokens = _plus(self.output_tokens, facts.output_tokens)
        self.cost_nano = _plus(self.cost_nano, facts.cost_nano)
        if facts.first_chunk_ns is not None:
            self.first_chunk_ns = max(self.first_chunk_ns or 0, facts.first_chunk_ns)


def _plus(left: int | None, right: int | None) -> int | None:
    if left is None or right is None:
        return right if left is None else left
    return min(left + right, _HIGHEST)


def _add_figures(connection: sqlite3.Connection, rows: Iterable[SpanRow]) -> None:
    """Add the calls among *rows* to what the charts are drawn from."""
    now_ns = time.time_ns()
    counts: Counter[tuple[int, str, str]] = Counter()
    times: dict[tuple[int, str], Times] = defaultdict(Times)
    for row in rows:
        facts = row.facts
        if facts is None or facts.is_step or not now_ns - CHARTED_S * 10**9 < row.ended_ns < now_ns + _FUTURE_NS:
            continue
        slot = row.ended_ns // SLOT_NS
        counts[slot, "calls", ""] += 1
        if facts.error_type is not None:
            counts[slot, "error", facts.error_type] += 1
        for kind in ("input_tokens", "output_tokens", "cost_nano"):
            if (value := getattr(facts, kind)) is not None:
                counts[slot, kind, ""] += value
        if facts.error_type is None:
            times[slot, "latency"].add((row.ended_ns - row.started_ns) / _NS_PER_MS)
        if facts.first_chunk_ns is not None:
            times[slot, "first_chunk"].add(facts.first_chunk_ns / _NS_PER_MS)
    for (slot, kind), collected in times.items():
        for bucket, count in collected.distribution().buckets.items():
            counts[slot, kind, str(bucket)] += count
    connection.executemany(
        "INSERT INTO figure VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n",
        [(*key, min(n, _HIGHEST)) for key, n in _named(connection, counts).items()],
    )


def _named(connection: sqlite3.Connection, counts: Mapping[tuple[int, str, str], int]) -> Counter[tuple[int, str, str]]:
    """Keep a sender from filling the table with made-up error types."""
    kept: Counter[tuple[int, str, str]] = Counter()
    for (slot, kind, key), n in counts.items():
        name = key
        if kind == "error":
            known = {
                text
                for (text,) in connection.execute("SELECT key FROM figure WHERE slot = ? AND kind = ?", (slot, kind))
            }
            known |= {k for s, what, k in kept if (s, what) == (slot, kind)}
            if key not in known and len(known) >= _ERROR_TYPES_PER_SLOT:
                name = _OTHER
        kept[slot, kind, name] += n
    return kept
