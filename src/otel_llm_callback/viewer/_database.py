"""The SQLite database: its tables, and who may use which connection when."""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_VERSION: Final = 1
_APPLICATION_ID: Final = 0x4F4C4356  # "OLCV"
_READERS: Final = 4
_BUSY_S: Final = 10
_CACHE_KIB: Final = 65_536
_MAPPED_BYTES: Final = 1024 * 1024 * 1024

# The rows that lists and charts read are kept apart from the bodies. The list walks an index by time; the indexes hold
# what it filters by too, since looking at each row to find that nothing matches would take seconds.
_TABLES: Final = """
CREATE TABLE trace (
    id INTEGER PRIMARY KEY,
    trace_id BLOB NOT NULL UNIQUE,
    started_ns INTEGER NOT NULL,
    ended_ns INTEGER NOT NULL,
    root TEXT NOT NULL,
    root_started_ns INTEGER NOT NULL,
    root_is_known INTEGER NOT NULL,
    service TEXT NOT NULL,
    spans INTEGER NOT NULL,
    calls INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    retries INTEGER NOT NULL,
    models TEXT NOT NULL,
    session TEXT,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cost_nano INTEGER,
    first_chunk_ns INTEGER,
    bytes INTEGER NOT NULL
);
CREATE INDEX trace_by_start ON trace (started_ns);
CREATE TABLE span (
    id INTEGER PRIMARY KEY,
    trace INTEGER NOT NULL,
    span_id BLOB NOT NULL,
    parent_id BLOB NOT NULL,
    name TEXT NOT NULL,
    service TEXT NOT NULL,
    started_ns INTEGER NOT NULL,
    duration_ns INTEGER NOT NULL,
    is_error INTEGER NOT NULL,
    error_type TEXT,
    operation TEXT,
    is_step INTEGER,
    provider TEXT,
    model TEXT,
    outcome TEXT,
    session TEXT,
    first_chunk_ns INTEGER,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cached_tokens INTEGER,
    reasoning_tokens INTEGER,
    cost_nano INTEGER,
    retries INTEGER,
    retry_wait_ns INTEGER,
    UNIQUE (trace, span_id)
);
CREATE INDEX span_by_start ON span (started_ns, duration_ns, operation, service, trace);
CREATE INDEX span_by_model ON span (model, started_ns, duration_ns, trace) WHERE model IS NOT NULL;
CREATE INDEX span_by_session ON span (session, started_ns) WHERE session IS NOT NULL;
CREATE INDEX span_by_error ON span (error_type, started_ns) WHERE error_type IS NOT NULL;
CREATE INDEX span_by_outcome ON span (outcome, started_ns) WHERE outcome <> 'completed';
CREATE TABLE body (span INTEGER PRIMARY KEY, origin INTEGER NOT NULL, content BLOB NOT NULL);
CREATE TABLE origin (
    id INTEGER PRIMARY KEY,
    trace INTEGER NOT NULL,
    digest BLOB NOT NULL,
    content BLOB NOT NULL,
    UNIQUE (trace, digest)
);
CREATE TABLE word (kind TEXT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (kind, text)) WITHOUT ROWID;
CREATE TABLE figure (
    slot INTEGER NOT NULL,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    n INTEGER NOT NULL,
    PRIMARY KEY (slot, kind, key)
) WITHOUT ROWID;
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    service TEXT NOT NULL,
    attributes TEXT NOT NULL,
    unit TEXT NOT NULL,
    kind TEXT NOT NULL,
    at_ns INTEGER NOT NULL,
    value REAL,
    count INTEGER,
    total REAL,
    UNIQUE (name, service, attributes)
);
CREATE TABLE total (spans INTEGER NOT NULL, bytes INTEGER NOT NULL, evicted INTEGER NOT NULL, refused INTEGER NOT NULL);
INSERT INTO total VALUES (0, 0, 0, 0);
"""


class StoreError(Exception):
    """The file cannot be used as a store; the text says why."""


class Database:
    """One writer and several readers of one database; in memory they take turns.

    Args:
        path: The file, made with access for its owner only; None keeps everything in memory.

    Raises:
        StoreError: The file cannot be opened, or is none of ours.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._turn = threading.Lock()
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._readers: list[sqlite3.Connection] = []
        try:
            if path is not None:
                _make_private(path)
            self._writer = self._open()
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"the store {path} cannot be used: {error}") from None

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            ":memory:" if self.path is None else self.path,
            timeout=_BUSY_S,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        if self.path is not None:
            connection.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}")
        return connection

    def _prepare(self) -> None:
        writer = self._writer
        (application,) = writer.execute("PRAGMA application_id").fetchone()
        (version,) = writer.execute("PRAGMA user_version").fetchone()
        (tables,) = writer.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != _APPLICATION_ID:
            raise StoreError(f"{self.path} is a database of another program; name another file with --store")
        if tables and version != _VERSION:
            raise StoreError(f"{self.path} was written by another version; remove it or name another file with --store")
        if self.path is not None:
            writer.execute("PRAGMA journal_mode = WAL")
            writer.execute("PRAGMA synchronous = FULL")  # what was acknowledged outlives even a loss of power
            writer.execute("PRAGMA journal_size_limit = 67108864")
        if not tables:
            writer.executescript(
                f"BEGIN; PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_VERSION};{_TABLES}COMMIT;"
            )

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: committed at the end of the block, undone if that raises. For one thread at a time."""
        with self._turn if self.path is None else _no_turn:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            self._writer.execute("COMMIT")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One state of the database, for as long as the block lasts. For any thread."""
        if self.path is None:
            with self._turn:
                yield self._writer
            return
        connection = self._reader()
        try:
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.execute("COMMIT")
            self._idle.put(connection)

    def _reader(self) -> sqlite3.Connection:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            with self._turn:
                if len(self._readers) < _READERS:
                    connection = self._open()
                    connection.execute("PRAGMA query_only = ON")
                    self._readers.append(connection)
                    return connection
        return self._idle.get()

    def close(self) -> None:
        """Close all connections; nobody may be using one."""
        for connection in (*self._readers, self._writer):
            connection.close()


class _NoTurn:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


_no_turn: Final = _NoTurn()


def _make_private(path: Path) -> None:
    """Have the file be there and readable by its owner only; SQLite gives its companions the same mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        if hasattr(os, "fchmod"):  # not on Windows before 3.13
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
