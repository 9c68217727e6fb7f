"""Keep one row per call in Parquet files, for DuckDB, pandas, polars, Spark and the like."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from ._row_sink import RowSink
from ._rows import COLUMNS, SCHEMA_VERSION, Row

__all__ = ["ParquetSink"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_STARTED_AT: Final = next(index for index, column in enumerate(COLUMNS) if column.name == "started_at")


class ParquetSink(RowSink):
    """Write one row per call to Parquet files under ``directory/date=2026-11-26/``, one file per batch and UTC day.

    A file appears when it is whole (written under another name, then renamed), so readers never see half of one, and
    any number of processes may write to one directory. A killed process loses the rows that were still waiting. A full
    disk is counted in ``failures`` and in ``status()``, and the rows are tried again.

    Args:
        directory: Where the files go; made if there is none.
        batch_size: Rows in one file; reaching it writes them at once.
        batch_seconds: How long a row waits at most for others. Delivered inline, there is no thread to keep the time:
            it is looked at when the next call ends.
        max_waiting: Rows that may wait while they cannot be written; further calls are left out and counted.

    Raises:
        ImportError: ``pyarrow`` is not installed.
        OSError: The directory cannot be made.
        ValueError: A limit is not positive.

    Example:
        >>> instrument(ParquetSink("calls"))  # doctest: +SKIP
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        batch_size: int = 5_000,
        batch_seconds: float = 60.0,
        max_waiting: int = 20_000,
    ) -> None:
        super().__init__(batch_size=batch_size, batch_seconds=batch_seconds, max_waiting=max_waiting)
        self._schema = _schema()
        self._directory = Path(directory).absolute()
        self._directory.mkdir(parents=True, exist_ok=True)

    def _write(self, rows: list[Row], deadline: float) -> None:  # noqa: ARG002 - a file of one's own is never locked
        for day in sorted({_day(row) for row in rows}):
            self._write_file(day, [row for row in rows if _day(row) == day])
            rows[:] = [row for row in rows if _day(row) != day]

    def _write_file(self, day: str, rows: Sequence[Row]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        columns = [pa.array(values, field.type) for values, field in zip(zip(*rows), self._schema)]  # noqa: B905
        table = pa.Table.from_arrays(columns, schema=self._schema)
        folder = self._directory / f"date={day}"
        folder.mkdir(exist_ok=True)
        name = f"calls-{os.getpid()}-{os.urandom(8).hex()}.parquet"
        unfinished = folder / f".{name}.tmp"
        try:
            with unfinished.open("wb") as file:
                parquet.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(folder / name)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise


def _schema() -> Any:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ImportError("ParquetSink needs pyarrow: pip install otel-llm-callback[parquet]") from error
    types = {
        "text": pa.string(),
        "json": pa.string(),
        "time": pa.timestamp("us", tz="UTC"),
        "integer": pa.int64(),
        "number": pa.float64(),
        "boolean": pa.bool_(),
    }
    fields = [pa.field(column.name, types[column.kind]) for column in COLUMNS]
    return pa.schema(fields, metadata={"otel_llm_callback.schema_version": str(SCHEMA_VERSION)})


def _day(row: Row) -> str:
    microseconds = row[_STARTED_AT]
    if not isinstance(microseconds, int):
        return "unknown"
    return (_EPOCH + timedelta(microseconds=microseconds)).strftime("%Y-%m-%d")
