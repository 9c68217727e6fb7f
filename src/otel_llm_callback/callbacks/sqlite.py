"""Keep one row per call in an SQLite file, with nothing but the standard library."""

from __future__ import annotations

import os
import time
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ._row_sink import RowSink
from ._rows import COLUMNS, SCHEMA_VERSION, Kind, Row

if TYPE_CHECKING:
    import sqlite3

__all__ = ["SqliteSink"]

_TABLE: Final = "llm_calls"
_SET_UP_S: Final = 5.0
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)

_TYPES: Final[dict[Kind, str]] = {
    "text": "TEXT",
    "json": "TEXT",
    "time": "TEXT",
    "integer": "INTEGER",
    "number": "REAL",
    "boolean": "INTEGER",
}
_TIMES: Final = [index for index, column in enumerate(COLUMNS) if column.kind == "time"]
_INSERT: Final = (
    f"INSERT OR IGNORE INTO {_TABLE} ({', '.join(column.name for column in COLUMNS)}) "  # noqa: S608 - names of ours
    f"VALUES ({', '.join('?' * len(COLUMNS))})"
)


class SqliteSink(RowSink):
    """Write one row per call to the table ``llm_calls`` of an SQLite file; the file is made if there is none.

    Any number of processes may write to one file, and others may read meanwhile (write-ahead log). The file is opened
    for each batch and holds nothing in between, so a forked worker needs no care. A killed process loses the rows that
    were still waiting, never a part of a batch. A file made by an older release gets the columns it lacks. A full disk
    or a locked file is counted in ``failures`` and in ``status()``, and the rows are tried again.

    Args:
        path: The file. Its directory must exist.
        batch_size: Rows that are written together; reaching it writes them at once.
        batch_seconds: How long a row waits at most for others. Delivered inline, there is no thread to keep the time:
            it is looked at when the next call ends.
        max_waiting: Rows that may wait while they cannot be written; further calls are left out and counted.
        max_rows: The oldest rows beyond this number are deleted; None keeps all.
        max_age_days: Rows of calls that began longer ago are deleted; None keeps all.

    Raises:
        FileNotFoundError: There is no such directory.
        sqlite3.DatabaseError: The file cannot be opened or is no database.
        ValueError: A limit is not positive, or *path* is not a file.

    Example:
        >>> instrument(SqliteSink("calls.db", max_age_days=90))  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        batch_size: int = 500,
        batch_seconds: float = 2.0,
        max_waiting: int = 10_000,
        max_rows: int | None = None,
        max_age_days: float | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, batch_seconds=batch_seconds, max_waiting=max_waiting)
        for name, value in (("max_rows", max_rows), ("max_age_days", max_age_days)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be greater than 0")
        if os.fspath(path) in {"", ":memory:"}:
            raise ValueError(f"path is {os.fspath(path)!r}; it must name a file, for it is opened again and again")
        self._path = Path(path).absolute()
        self._max_rows = max_rows
        self._max_age = None if max_age_days is None else timedelta(days=max_age_days)
        if not self._path.parent.is_dir():
            raise FileNotFoundError(f"{self._path.parent} is no directory")
        self._set_up()

    def _set_up(self) -> None:
        """Make or complete the file now, so that a wrong path shows at once."""
        import sqlite3  # a few milliseconds, for those who use it

        try:
            self._write([], time.monotonic() + _SET_UP_S)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):  # whoever has it locked will let go; each batch looks at the table again
                raise

    def _write(self, rows: list[Row], deadline: float) -> None:
        import sqlite3

        wait_s = max(0.0, deadline - time.monotonic())
        with closing(sqlite3.connect(self._path, timeout=wait_s, isolation_level=None)) as database:
            if database.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")  # a crash of the machine may cost the latest batches
            database.execute("BEGIN IMMEDIATE")
            try:
                _complete_table(database)
                database.executemany(_INSERT, map(_with_text_times, rows))
                self._delete_old(database)
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
            rows.clear()

    def _delete_old(self, database: sqlite3.Connection) -> None:
        if self._max_age is not None:
            oldest = _text_time(datetime.now(timezone.utc) - self._max_age)
            database.execute(f"DELETE FROM {_TABLE} WHERE started_at < ?", (oldest,))  # noqa: S608 - a name of ours
        if self._max_rows is not None:
            newest = f"(SELECT max(rowid) FROM {_TABLE})"  # noqa: S608 - as above
            database.execute(f"DELETE FROM {_TABLE} WHERE rowid <= {newest} - ?", (self._max_rows,))  # noqa: S608


def _complete_table(database: sqlite3.Connection) -> None:
    """Make the table, or add the columns that a newer release of ours has."""
    there = {name for _, name, *_ in database.execute(f"PRAGMA table_info({_TABLE})")}
    missing = [column for column in COLUMNS if column.name not in there]
    if not missing:
        return
    if not there:
        columns = ", ".join(f"{column.name} {_TYPES[column.kind]}" for column in COLUMNS[1:])
        database.execute(f"CREATE TABLE {_TABLE} (call_id TEXT PRIMARY KEY, {columns})")
        database.execute(f"CREATE INDEX {_TABLE}_started_at ON {_TABLE} (started_at)")
        database.execute(f"CREATE TABLE {_TABLE}_schema (version INTEGER NOT NULL)")
        database.execute(f"INSERT INTO {_TABLE}_schema VALUES (0)")  # noqa: S608 - a name of ours
    else:
        for column in missing:
            database.execute(f"ALTER TABLE {_TABLE} ADD COLUMN {column.name} {_TYPES[column.kind]}")
    database.execute(f"UPDATE {_TABLE}_schema SET version = max(version, ?)", (SCHEMA_VERSION,))  # noqa: S608


def _with_text_times(row: Row) -> Row:
    values = list(row)
    for index in _TIMES:
        if isinstance(microseconds := values[index], int):
            values[index] = _text_time(_EPOCH + timedelta(microseconds=microseconds))
    return tuple(values)


def _text_time(at: datetime) -> str:
    """Return such as ``2026-11-26T08:00:00.000001Z``: of one width, so that texts sort as times do."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond:06}Z"
