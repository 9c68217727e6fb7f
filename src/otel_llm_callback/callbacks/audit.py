"""Keep a record of every call that shows whether anybody changed it afterwards."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeAlias, get_args

from .._version import __version__
from ..protocol import DeliveryOptions
from ..types import Content, ErrorContext, RequestMetadata, ResponseMetadata, Retry, Usage
from ._audit_chain import TEXT_LIMIT, Seal, load_key, plain, timestamp
from ._audit_file import AuditState, ChainFile, Fsync, Head

__all__ = ["AuditLog", "AuditState"]

AuditContent: TypeAlias = Literal["hash", "none", "redacted", "full"]

_LEVELS: Final[Mapping[AuditContent, Content]] = {
    "hash": "full",  # a hash can only be made of what is there
    "none": "none",
    "redacted": "redacted",
    "full": "full",
}
_USAGE: Final = tuple(field.name for field in dataclasses.fields(Usage))


class AuditLog:
    """Write every call to an append-only file of JSON lines, each chained to the one before it by a hash.

    ``otel-llm-callback audit verify FILE`` then finds whatever was changed, removed, inserted or moved. A line tells of
    a request, a response, an error, or of the log itself (begun, recovered, replaced, records lost); ``docs/audit.md``
    has the schema. Prompts and answers are kept as hashes, error texts and secrets not at all. It is required, so that
    no caller can silence it, and a full queue makes callers wait instead of leaving something out. What waits in the
    queue is lost when the process is killed: ``register(log, delivery="inline")`` has each request written before it
    is sent.

    Each process writes a file of its own: the first ``audit.jsonl``, one beside it ``audit.1.jsonl``, a forked child
    the next that is free. Safe to use from any thread. The files are for the owner's eyes only (mode 0600) and must be
    on a local file system. A disk that fails never reaches the caller: the failure is counted here (``state``), for the
    callback in ``status()``, and in the log itself once it can be written again.

    Args:
        path: The file, in a directory that exists.
        key: Makes the chain with HMAC-SHA256, at least 16 bytes. Without a key, who can write the file can make the
            whole chain anew.
        key_file: A file that holds the key instead.
        key_variable: An environment variable that does.
        content: What is kept of requests and responses: ``hash`` (SHA-256, keyed if there is a key), ``none``,
            ``redacted`` (the text as the redactor leaves it) or ``full``.
        fsync: ``always`` waits for the disk at each record, ``interval`` has a thread do so every *interval_s*,
            ``never`` leaves it to the system. Without a power failure none of them loses anything.
        interval_s: Seconds, also between two heads.
        max_bytes: The file is replaced by the next one of the same chain once it has this size; None for never.
        max_age_s: And once it is this many seconds old; None for never.
        head: Where the newest sequence number and hash go every *interval_s*: a file, best on another machine, or a
            function that takes the line. Without it, lines removed from the end are not noticed.

    Raises:
        ValueError: An argument is not allowed, or *path* holds something else or was written with another key.
        OSError: The file cannot be written, or is not one of ours.

    Example:
        >>> instrument(AuditLog("audit.jsonl"))  # doctest: +SKIP
    """

    content: Content
    delivery_options: ClassVar[DeliveryOptions] = DeliveryOptions(overflow="block", required=True)

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        key: bytes | None = None,
        key_file: str | os.PathLike[str] | None = None,
        key_variable: str | None = None,
        content: AuditContent = "hash",
        fsync: Fsync = "interval",
        interval_s: float = 1.0,
        max_bytes: int | None = 100_000_000,
        max_age_s: float | None = None,
        head: Head | None = None,
    ) -> None:
        if not hasattr(os, "O_NOFOLLOW"):
            raise OSError("AuditLog needs the file locks of POSIX; there are none on this system")
        _check_choice("content", content, get_args(AuditContent))
        _check_choice("fsync", fsync, get_args(Fsync))
        for name, value in {"interval_s": interval_s, "max_bytes": max_bytes, "max_age_s": max_age_s}.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be greater than 0")
        self.content = _LEVELS[content]
        self._keeps_text = content in ("redacted", "full")
        self._seal = Seal(load_key(key, key_file=key_file, key_variable=key_variable))
        self._file = ChainFile(
            Path(path).absolute(),
            self._seal,
            {"content": content, "writer": f"otel-llm-callback {__version__}"},
            max_bytes=max_bytes,
            max_age_s=max_age_s,
            fsync=fsync,
            interval_s=interval_s,
            head=head,
        )
        self._file.open()
        weakref.finalize(self, self._file.close_from_finaliser).atexit = False  # the exit closes it in its turn

    def on_request_sent(self, metadata: RequestMetadata, request_json: str) -> None:
        """Write that a request goes out."""
        self._file.append("request", lambda: {**_request_facts(metadata), **self._content(request_json)})

    def on_response_received(self, metadata: ResponseMetadata, response_json: str) -> None:
        """Write how a call ended."""
        self._file.append(
            "response",
            lambda: {
                "outcome": metadata.outcome,
                **_response_facts(metadata),
                **_end_facts(metadata),
                **self._content(response_json),
            },
        )

    def on_error(self, error: BaseException, context: ErrorContext) -> None:  # noqa: ARG002
        """Write that a call failed, by the type of the error and never by its text."""
        self._file.append("error", lambda: {**_error_facts(context), **_end_facts(context)})

    @property
    def state(self) -> AuditState:
        """How the log fares in this process; ask ``state.failing`` before a call that must not go unrecorded."""
        return self._file.state

    def sync(self) -> None:
        """Have the disk take every record written so far, and write the head.

        Delivery is queued unless asked for inline: call ``otel_llm_callback.flush()`` before.

        Raises:
            OSError: The disk or the head's file refused.
        """
        self._file.sync()

    def close(self) -> None:
        """Write a last record and let go of the file, as happens at exit; a later call opens it again."""
        self._file.close()

    def _content(self, text: str) -> dict[str, Any]:
        if not text:  # nobody was given any: there is nothing to be hashed
            return {}
        encoded = text.encode("utf-8", "replace")
        content: dict[str, Any] = {"bytes": len(encoded), self._seal.content_name: self._seal.content(encoded)}
        if self._keeps_text and len(encoded) <= TEXT_LIMIT:
            content["text"] = encoded.decode()
        return {"content": content}

    def __repr__(self) -> str:
        return f"<AuditLog {self._file.path}>"


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}")


def _known(**facts: Any) -> dict[str, Any]:
    """Return what is known: unknown is absent."""
    return {name: plain(value) for name, value in facts.items() if value is not None}


def _request_facts(request: RequestMetadata) -> dict[str, Any]:
    facts = _known(
        call_id=request.call_id,
        api=request.api,
        operation=request.operation,
        provider=request.provider,
        model=request.model,
        server_address=request.server_address,
        server_port=request.server_port,
        started=timestamp(request.started_ns),
        stream=request.stream,
        conversation_id=request.conversation_id,
        previous_response_id=request.previous_response_id,
        fetched_response_id=request.response_id,
        session_id=request.session_id,
        user_id=request.user_id,
        trace_id=request.trace_id,
        span_id=request.span_id,
    )
    if request.attributes:
        facts["attributes"] = {str(plain(name)): plain(value) for name, value in request.attributes.items()}
    return facts


def _response_facts(response: ResponseMetadata) -> dict[str, Any]:
    facts = _known(
        response_id=response.id,
        response_model=response.model,
        finish_reasons=response.finish_reasons or None,
        usage_source=response.usage_source,
        chunks=response.chunk_count,
        status=response.status,
        failure=response.failure,
        truncated=response.truncated or None,
        cost_usd=None if response.cost is None else str(response.cost),
    )
    if response.usage is not None:
        facts["usage"] = _known(**{name: getattr(response.usage, name) for name in _USAGE})
    return facts


def _error_facts(context: ErrorContext) -> dict[str, Any]:
    partial = {} if context.partial is None else _response_facts(context.partial)
    return partial | _known(where=str(context), error_type=context.error_type, outcome=context.outcome)


def _end_facts(end: ResponseMetadata | ErrorContext) -> dict[str, Any]:
    return _known(
        call_id=end.request.call_id,
        ended=timestamp(end.ended_ns),
        duration_ns=round(end.response_time_ms * 1_000_000),
        status_code=end.status_code,
        request_id=end.request_id,
    ) | ({"retries": [_retry_facts(retry) for retry in end.retries]} if end.retries else {})


def _retry_facts(retry: Retry) -> dict[str, Any]:
    return _known(
        at=timestamp(retry.at_ns),
        delay_ns=round(retry.delay_s * 1_000_000_000),
        error=retry.error,
        status_code=retry.status_code,
    )
