"""Send errors to Sentry: what failed, where and after how many retries, without a word of what was said."""

from __future__ import annotations

import logging
import sys
import traceback
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal

from ..types import Content, ErrorContext, RequestMetadata, ResponseMetadata
from ._text import plural, printable

__all__ = ["SentryCallback"]

_logger: Final = logging.getLogger("otel_llm_callback")

_MOST_FRAMES: Final = 100
_LONGEST_TAG: Final = 200
_LONGEST_MESSAGE: Final = 500
_PACKAGE: Final = __name__.partition(".")[0]


class SentryCallback:
    """Send each failed call to Sentry as one event.

    It uses the client and the scope that the program set up, so tags, user and release are the program's. An event has
    a fingerprint of operation, provider, model and error type, tags by the names of the span attributes, a context
    ``llm`` (request id, retries, times, tokens so far, trace and span id) and frames without local variables and source
    lines. It has no prompt, no answer, no header and not the text of the exception, which may quote the prompt.

    An exception is sent once: if the program or another integration of Sentry has sent it already, nothing is sent, and
    if they are later, theirs is left out, as Sentry does itself for one thread.

    Where Sentry is not initialised nothing happens, and one warning says so.

    Args:
        error_text: Send the text of the exception too.
        cancelled: Send cancelled calls too.
        breadcrumbs: Leave a breadcrumb for each call that did not fail.

    Raises:
        ImportError: ``sentry-sdk`` is not installed.
    """

    content: Content = "none"

    def __init__(self, *, error_text: bool = False, cancelled: bool = False, breadcrumbs: bool = False) -> None:
        try:
            import sentry_sdk
        except ImportError as error:
            raise ImportError("SentryCallback needs sentry-sdk: pip install otel-llm-callback[sentry]") from error
        self._sentry = sentry_sdk
        self._error_text = error_text
        self._cancelled = cancelled
        self._warned = False
        _SENT.watch(sentry_sdk)
        if breadcrumbs:  # of a hook that is not there no event is made
            self.on_response_received = self._on_response_received

    def on_error(self, error: BaseException, context: ErrorContext) -> None:
        """Send what failed, unless it was sent already."""
        if context.outcome == "cancelled" and not self._cancelled:
            return
        if not self._is_initialised() or not _SENT.claim(error, "ours"):
            return
        event = _event(error, context, error_text=self._error_text)
        # Without a traceback nobody can add local variables; the exception is there for `ignore_errors` and filters.
        with self._sentry.new_scope() as scope:
            scope.add_event_processor(_without_variables)
            sent = scope.capture_event(event, {"exc_info": (type(error), error, None), _OURS: True})
        if sent is None:  # sampled, filtered or ignored: another one may still be sent
            _SENT.release(error)

    def _on_response_received(self, metadata: ResponseMetadata, response_json: str) -> None:  # noqa: ARG002
        if self._is_initialised():
            self._sentry.add_breadcrumb(
                type="info",
                category="llm",
                message=_subject(metadata.request),
                level="info",
                data=_without_none({"outcome": metadata.outcome, **_of_end(metadata), **_of_answer(metadata)}),
            )

    def _is_initialised(self) -> bool:
        if self._sentry.is_initialized():
            return True
        if not self._warned:
            self._warned = True
            _logger.warning("SentryCallback sends nothing: call sentry_sdk.init() first")
        return False


_OURS: Final = "otel_llm_callback"

_Sender = Literal["ours", "theirs"]


class _Sent:
    """Who has sent which exception, so that one of ours and one of the program's make one event.

    Sentry's own check knows only the last exception of a thread or task; callbacks run on another. There is no lock:
    an entry goes when its exception does, and that may be in the middle of anything.
    """

    def __init__(self) -> None:
        self._watching = False
        self._senders: dict[int, tuple[weakref.ref[BaseException], _Sender]] = {}

    def watch(self, sentry: Any) -> None:
        """Look at every event of the program from now on."""
        if not self._watching:
            self._watching = True
            sentry.Scope.get_global_scope().add_event_processor(self._once)

    def claim(self, error: BaseException, sender: _Sender) -> bool:
        """True if *sender* may send *error*."""
        senders, key = self._senders, id(error)
        try:
            entry = (weakref.ref(error, lambda _: senders.pop(key, None)), sender)
        except TypeError:  # some built-in exceptions cannot be watched; Sentry's own check has to do
            return True
        known = senders.setdefault(key, entry)
        return known is entry or known[1] == sender == "theirs"  # how often they send theirs is theirs to decide

    def release(self, error: BaseException) -> None:
        """Let others send *error* after all."""
        self._senders.pop(id(error), None)

    def _once(self, event: Any, hint: Mapping[str, Any]) -> Any:
        exc_info = hint.get("exc_info")
        if _OURS in hint or not exc_info or exc_info[1] is None:
            return event
        return event if self.claim(exc_info[1], "theirs") else None


_SENT: Final = _Sent()


def _event(error: BaseException, context: ErrorContext, *, error_text: bool) -> Any:
    request = context.request
    told: dict[str, Any] = {
        "type": type(error).__name__,
        "module": type(error).__module__,
        "value": str(error) if error_text else _message(context),
        "mechanism": {"type": _PACKAGE, "handled": True},
    }
    if frames := _frames(error):
        told["stacktrace"] = {"frames": frames}
    tags = {
        "gen_ai.operation.name": request.operation,
        "gen_ai.provider.name": request.provider,
        "gen_ai.request.model": request.model,
        "error.type": context.error_type,
        "http.response.status_code": context.status_code,
        "llm_callback.outcome": context.outcome,
    }
    return {
        "level": "warning" if context.outcome == "cancelled" else "error",
        "logger": _PACKAGE,
        "exception": {"values": [told]},
        "fingerprint": [request.operation, request.provider, request.model or "", context.error_type],
        "tags": {name: str(value)[:_LONGEST_TAG] for name, value in _without_none(tags).items()},
        "contexts": {"llm": _without_none({"type": "llm", **_of_call(context)})},
    }


def _of_call(context: ErrorContext) -> dict[str, Any]:
    request, partial = context.request, context.partial
    return {
        "where": str(context),
        "call_id": request.call_id,
        "api": request.api,
        "stream": request.stream,
        "server_address": request.server_address,
        "server_port": request.server_port,
        "session_id": request.session_id,
        "trace_id": request.trace_id,
        "span_id": request.span_id,
        **_of_end(context),
        **({} if partial is None else _of_answer(partial)),
    }


def _of_end(end: ErrorContext | ResponseMetadata) -> dict[str, Any]:
    return {
        "duration_ms": round(end.response_time_ms, 3),
        "status_code": end.status_code,
        "request_id": end.request_id,
        "processing_ms": end.processing_ms,
        "retry_count": len(end.retries),
        "retry_wait_ms": round(sum(retry.delay_s for retry in end.retries) * 1000, 3) if end.retries else None,
    }


def _of_answer(response: ResponseMetadata) -> dict[str, Any]:
    return {
        "response_id": response.id,
        "response_model": response.model,
        "chunk_count": response.chunk_count,
        "input_tokens": response.prompt_tokens,
        "output_tokens": response.completion_tokens,
    }


def _message(context: ErrorContext) -> str:
    pieces = [_subject(context.request), "was cancelled" if context.outcome == "cancelled" else "failed"]
    if context.error_type and context.outcome != "cancelled":
        pieces.append(f"with {context.error_type}")
    if context.status_code is not None:
        pieces.append(f"(HTTP {context.status_code})")
    if context.retries:
        pieces.append(f"after {plural(len(context.retries), 'retry', 'retries')}")
    return printable(" ".join(pieces), limit=_LONGEST_MESSAGE)


def _subject(request: RequestMetadata) -> str:
    return printable(f"{request.operation} {request.model or ''}".rstrip(), limit=_LONGEST_TAG)


def _frames(error: BaseException) -> list[dict[str, Any]]:
    """Return where *error* came from, outermost first: files, functions and lines, nothing that was in them."""
    trace = error.__traceback__
    if trace is None:
        return []
    outer: list[tuple[FrameType, int]] = []
    if getattr(sys, "_is_gil_enabled", lambda: True)():  # without it, a frame of another thread is not to be looked at
        outer = list(traceback.walk_stack(trace.tb_frame.f_back))  # what the exception has not passed yet
    steps = [*reversed(outer), *traceback.walk_tb(trace)]
    return [_frame(frame, line) for frame, line in steps[-_MOST_FRAMES:]]


def _frame(frame: FrameType, line: int) -> dict[str, Any]:
    module = frame.f_globals.get("__name__")
    told = {
        "filename": Path(frame.f_code.co_filename).name,
        "abs_path": frame.f_code.co_filename,
        "function": frame.f_code.co_name,
        "module": module,
        "lineno": line,
    }
    if isinstance(module, str) and module.partition(".")[0] == _PACKAGE:
        told["in_app"] = False
    return told


def _without_variables(event: Any, _: object) -> Any:
    for told in event.get("exception", {}).get("values", ()):
        for frame in told.get("stacktrace", {}).get("frames", ()):
            for name in ("vars", "pre_context", "context_line", "post_context"):
                frame.pop(name, None)
    return event


def _without_none(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}
