"""Write one JSON object per event, to a logger or to a file: the debug log.

The field names are a promise, listed in ``docs/logging.md``. What is unknown is absent.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol, TypeAlias

from ..content import cut_texts
from ..types import Content, ErrorContext, RequestMetadata, ResponseMetadata, Retry, StreamChunk
from ._lock import ForkSafeLock
from ._text import printable

__all__ = ["JsonLogger"]

_CONTENT_LEVELS: Final[tuple[Content, ...]] = ("full", "redacted", "none")
_LOGGER: Final = "llm_calls"
_KEY: Final = "llm"
_LEAST_LIMIT: Final = 512
_LONGEST_FACT: Final = 256
_FILE_SUFFIXES: Final = (".json", ".jsonl", ".log", ".ndjson", ".txt")

# All of these are short and plain, so that a record of them fits the least limit.
_ESSENTIAL: Final[tuple[str, ...]] = ("time", "event", "call_id", "trace_id", "span_id", "outcome", "cut")

_REQUEST_FIELDS: Final = (
    "stream",
    "server_address",
    "server_port",
    "context_length",
    "temperature",
    "max_tokens",
    "top_p",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "choice_count",
    "reasoning_level",
    "output_type",
    "service_tier",
    "conversation_id",
    "previous_response_id",
)
_USAGE_FIELDS: Final = (
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
)

_Fields: TypeAlias = dict[str, Any]


class _Writable(Protocol):
    def write(self, text: str, /) -> object:
        """Take *text*."""


class JsonLogger:
    """Write one JSON object for each request, response and error, and for each chunk if asked.

    To a logger go standard records: a short message, and the fields as one attribute, ``record.llm``, which formatters
    for JSON (structlog's ``ProcessorFormatter``, python-json-logger and others) pick up. Requests and responses are
    INFO, chunks DEBUG, errors ERROR, cancelled calls WARNING. To a file goes one line of ASCII per event.

    By default no content is written. Of an error that is its type, never its text.

    Args:
        target: A logger or the name of one; a :class:`pathlib.Path`, for a file that is made with *mode* and rotated;
            or an object with ``write()``, which is given whole lines. ``{pid}`` in the path stands for the process id.
        content: ``full`` also writes bodies, the text of chunks and of errors; ``redacted`` writes bodies as the
            redactor leaves them.
        chunks: Whether chunks of streams are written.
        limit: Characters of one record; longer ones are cut, stay valid JSON and say ``"cut": true``.
        max_bytes: Size at which a file is rotated; 0 for never. Where locks on directories exist (not on Windows),
            several processes may write to one file and rotate it.
        backups: How many rotated files are kept.
        mode: Of files that are made; one that exists keeps its own.

    Raises:
        OSError: The file cannot be opened.
        TypeError: *target* is none of these.
        ValueError: A value is not allowed, or the name of a logger looks like that of a file.
    """

    content: Content

    def __init__(
        self,
        target: logging.Logger | str | os.PathLike[str] | _Writable = _LOGGER,
        *,
        content: Content = "none",
        chunks: bool = False,
        limit: int = 16_384,
        max_bytes: int = 10_485_760,
        backups: int = 3,
        mode: int = 0o600,
    ) -> None:
        if content not in _CONTENT_LEVELS:
            raise ValueError(f"content is {content!r}; allowed are {', '.join(map(repr, _CONTENT_LEVELS))}")
        if limit < _LEAST_LIMIT:
            raise ValueError(f"limit is {limit}; allowed is a whole number from {_LEAST_LIMIT}")
        if max_bytes < 0 or backups < 1:
            raise ValueError(f"max_bytes is {max_bytes} and backups {backups}; allowed are numbers from 0 and from 1")
        self.content = content
        self._limit = limit
        self._destination = _destination(target, max_bytes=max_bytes, backups=backups, mode=mode)
        if chunks:  # of a hook that is not there no event is made
            self.on_stream_chunk = self._on_stream_chunk

    def on_request_sent(self, metadata: RequestMetadata, request_json: str) -> None:
        """Write what is asked for."""
        self._write(
            logging.INFO,
            "request_sent",
            metadata,
            metadata.started_ns,
            {
                **_known(metadata, _REQUEST_FIELDS),
                **({"stop_sequence_count": len(metadata.stop_sequences)} if metadata.stop_sequences else {}),
                **({"background": True} if metadata.background else {}),
                "request": request_json,
            },
        )

    def _on_stream_chunk(self, chunk: StreamChunk, index: int) -> None:
        fields = {"index": index, "kind": chunk.kind, "text": str(chunk) or None}
        self._write(logging.DEBUG, "stream_chunk", chunk.request, chunk.at_ns, fields)

    def on_response_received(self, metadata: ResponseMetadata, response_json: str) -> None:
        """Write what came back."""
        fields = {"outcome": metadata.outcome, **_of_response(metadata), "response": response_json}
        self._write(logging.INFO, "response_received", metadata.request, metadata.ended_ns, fields)

    def on_error(self, error: BaseException, context: ErrorContext) -> None:
        """Write what failed and where; the exception's own text only if ``content`` is ``full``."""
        partial = {} if context.partial is None else _of_response(context.partial)
        fields = {
            "outcome": context.outcome,
            "error_type": context.error_type,
            "where": str(context),
            **partial,
            **_of_http(context),
            "error_text": str(error) if self.content == "full" else None,
        }
        level = logging.WARNING if context.outcome == "cancelled" else logging.ERROR
        self._write(level, "error", context.request, context.ended_ns, fields)

    def close(self) -> None:
        """Close the file, if it was opened here."""
        self._destination.close()

    def _write(self, level: int, event: str, request: RequestMetadata, at_ns: int, facts: Mapping[str, Any]) -> None:
        if not self._destination.takes(level):
            return
        fields = {
            "time": _time(at_ns),
            "event": event,
            "call_id": request.call_id,
            **_known(request, ("trace_id", "span_id", "session_id", "user_id")),
            **({"attributes": _plain(request.attributes)} if request.attributes else {}),
            **_known(request, ("operation", "api", "provider", "model")),
            **{name: value for name, value in facts.items() if _is_known(value)},
        }
        self._destination.write(level, *_fitted(fields, self._limit))


class _Destination(Protocol):
    def takes(self, level: int) -> bool:
        """Whether an event of *level* would be written at all."""

    def write(self, level: int, fields: _Fields, text: str) -> None:
        """Write an event, given as fields and as their JSON text."""

    def close(self) -> None:
        """Let go of what was opened."""


class _Logger:
    """Standard log records."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def takes(self, level: int) -> bool:
        return self._logger.isEnabledFor(level)

    def write(self, level: int, fields: _Fields, text: str) -> None:  # noqa: ARG002
        self._logger.log(level, "%s", _message(fields), extra={_KEY: fields})

    def close(self) -> None:
        pass


class _File(RotatingFileHandler):
    """Lines in a file that only its owner may read.

    Each line is one write at the end of the file, so that several processes may write to it. Whoever finds that another
    one has rotated it, or an outside program has, goes on with the new file.
    """

    def __init__(self, path: str, *, max_bytes: int, backups: int, mode: int) -> None:
        self._pattern = str(Path(path).absolute())  # where it is now, whatever the program makes its directory
        self._mode = mode
        super().__init__(_with_pid(path), maxBytes=max_bytes, backupCount=backups, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(message)s"))

    def takes(self, level: int) -> bool:  # noqa: ARG002
        return True

    def write(self, level: int, fields: _Fields, text: str) -> None:  # noqa: ARG002
        self.handle(logging.makeLogRecord({"msg": text, "levelno": level}))

    def emit(self, record: logging.LogRecord) -> None:
        self.baseFilename = _with_pid(self._pattern)  # a forked child has a file of its own, if so named
        if not self._is_current():
            self._reopen()
        super().emit(record)

    def doRollover(self) -> None:  # noqa: N802
        with _locked(Path(self.baseFilename).parent):
            if self._is_current():
                super().doRollover()
            else:  # another process was faster
                self._reopen()

    def handleError(self, record: logging.LogRecord) -> NoReturn:  # noqa: ARG002, N802
        raise  # noqa: PLE0704 - called where an exception is handled; it is counted as the callback's

    def _open(self) -> io.TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        file = io.FileIO(os.open(self.baseFilename, flags, self._mode), "a")
        return io.TextIOWrapper(file, encoding="utf-8", newline="\n", write_through=True)

    def _is_current(self) -> bool:
        try:
            there = Path(self.baseFilename).stat()
        except FileNotFoundError:
            return False
        return self.stream is not None and os.path.samestat(os.fstat(self.stream.fileno()), there)

    def _reopen(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.stream = self._open()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    place = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


class _Stream:
    """Lines to an object with ``write()``."""

    def __init__(self, file: _Writable) -> None:
        self._file = file
        self._lock = ForkSafeLock()

    def takes(self, level: int) -> bool:  # noqa: ARG002
        return True

    def write(self, level: int, fields: _Fields, text: str) -> None:  # noqa: ARG002
        with self._lock:
            self._file.write(text + "\n")
            if (flush := getattr(self._file, "flush", None)) is not None:
                flush()

    def close(self) -> None:
        pass


def _destination(target: object, *, max_bytes: int, backups: int, mode: int) -> _Destination:
    if isinstance(target, logging.Logger):
        return _Logger(target)
    if isinstance(target, str):
        if target.endswith(_FILE_SUFFIXES) or Path(target).name != target:
            raise ValueError(f"{target!r} is taken as the name of a logger; for a file pass pathlib.Path({target!r})")
        return _Logger(logging.getLogger(target))
    if isinstance(target, os.PathLike):
        return _File(os.fspath(target), max_bytes=max_bytes, backups=backups, mode=mode)
    if callable(getattr(target, "write", None)):
        return _Stream(target)  # type: ignore[arg-type]
    raise TypeError(
        f"target is {type(target).__name__}; allowed are a logger or its name, a pathlib.Path, an object with write()"
    )


def _with_pid(path: str) -> str:
    return path.replace("{pid}", str(os.getpid()))


def _of_response(response: ResponseMetadata) -> _Fields:
    fields = {
        **_known(response, ("id", "model"), prefix="response_"),
        **_known(response, ("status", "failure", "service_tier", "system_fingerprint")),
        **({"finish_reasons": list(response.finish_reasons)} if response.finish_reasons else {}),
        **({"truncated": True} if response.truncated else {}),
        **_of_http(response),
        "time_to_first_chunk_ms": _ms(response.time_to_first_chunk_s),
        "time_to_first_output_ms": _ms(response.time_to_first_output_s),
        "longest_gap_ms": _ms(response.longest_gap_s),
        "chunk_count": response.chunk_count,
        "usage_source": response.usage_source,
        **({} if response.usage is None else _known(response.usage, _USAGE_FIELDS)),
        "total_tokens": response.total_tokens,
        "cost_usd": None if response.cost is None else float(response.cost),
    }
    return {name: value for name, value in fields.items() if _is_known(value)}


def _of_http(end: ResponseMetadata | ErrorContext) -> _Fields:
    return {
        "duration_ms": _rounded(end.response_time_ms),
        **_known(end, ("status_code", "request_id", "processing_ms")),
        **_of_retries(end.retries),
        **({} if end.rate_limit is None else _known(end.rate_limit, ("remaining_requests", "remaining_tokens"))),
    }


def _of_retries(retries: tuple[Retry, ...]) -> _Fields:
    if not retries:
        return {"retry_count": 0}
    causes = dict.fromkeys(str(retry.status_code or retry.error or "unknown") for retry in retries)
    wait_ms = sum(retry.delay_s for retry in retries) * 1000
    return {"retry_count": len(retries), "retry_wait_ms": _rounded(wait_ms), "retry_causes": list(causes)}


def _known(facts: object, names: Iterable[str], *, prefix: str = "") -> _Fields:
    values = {prefix + name: getattr(facts, name) for name in names}
    return {name: value for name, value in values.items() if _is_known(value)}


def _is_known(value: object) -> bool:
    """False also for numbers that JSON cannot say, and for the empty text of content that was not given."""
    return value is not None and value != "" and not (isinstance(value, float) and not math.isfinite(value))


def _plain(attributes: Mapping[str, object]) -> _Fields:
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in attributes.items()}
    return {name: value for name, value in lists.items() if _is_known(value)}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else _rounded(seconds * 1000)


def _rounded(ms: float) -> float:
    return round(ms, 3)


def _time(at_ns: int) -> str:
    at = datetime.fromtimestamp(at_ns // 1_000_000_000, tz=timezone.utc)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at_ns % 1_000_000_000 // 1000:06d}Z"


def _message(fields: _Fields) -> str:
    pieces = [fields["event"].replace("_", " "), fields["operation"], fields.get("model")]
    pieces += [fields.get("outcome"), fields.get("error_type")] if fields["event"] == "error" else []
    return printable(" ".join(piece for piece in pieces if piece), limit=_LONGEST_FACT)


def _fitted(fields: _Fields, limit: int) -> tuple[_Fields, str]:
    """Return *fields*, cut if they have to be, and their JSON text of at most *limit* characters."""
    bodies: _Fields = {}
    for name in ("request", "response"):
        if name in fields and (body := _parsed(fields.pop(name))) is not None:
            bodies[name] = body
    bodies.update({name: fields.pop(name) for name in ("text", "error_text") if name in fields})
    for content in (bodies, {}):
        try:
            for shortened in _ever_shorter(fields, content, limit):
                text = _json(shortened)
                if text is not None and len(text) <= limit:
                    return shortened, text
        except RecursionError:  # a body that is too deep to be cut
            continue
    essential = {name: fields[name] for name in _ESSENTIAL if name in fields} | {"cut": True}
    return essential, json.dumps(essential, separators=(",", ":"))


def _ever_shorter(fields: _Fields, bodies: _Fields, limit: int) -> Iterator[_Fields]:
    yield {**fields, **bodies}
    fields = {**cut_texts(fields, _LONGEST_FACT), "cut": True}
    cap = limit // 2
    while bodies and cap >= 16:  # noqa: PLR2004 - below that a cut text says nothing
        yield {**fields, **cut_texts(bodies, cap)}
        cap //= 8
    yield fields
    fields.pop("attributes", None)
    yield fields


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json(fields: _Fields) -> str | None:
    try:
        return json.dumps(fields, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):  # a body with a number or a depth that JSON does not have
        return None
