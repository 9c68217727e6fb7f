"""The web application: the receiver under ``/v1``, what the page asks under ``/api``, and the page."""

from __future__ import annotations

import asyncio
import functools
import importlib.resources
import json
import mimetypes
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from .._version import __version__
from . import _otlp
from ._database import Database
from ._guard import Door, Guard
from ._live import BadEventsError, LiveCalls, TooManyWatchersError, Watchers
from ._options import Options
from ._probe import NAME
from ._queries import Filters, Queries
from ._sessions import CALLS, summarise
from ._store import CHARTED_S, Store, Stored
from ._writer import Writer

_T = TypeVar("_T")

PAGES: Final = ("/", "/charts", "/metrics", "/trace/{id}", "/session/{id:path}")
_PUBLIC: Final = ("/api/about", "/api/login")
_READ_S: Final = 30
_LIVE_BYTES: Final = 4 * 1024 * 1024
_TOKEN_BYTES: Final = 4096
_CONVERTING: Final = 2
_QUERYING: Final = 3
_RETRY_AFTER_S: Final = "1"
_NO_LOGS: Final = "the live view keeps traces and metrics, no logs"
_MEDIA_TYPES: Final = {".js": "text/javascript", ".svg": "image/svg+xml"}


class _RefusedError(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Viewer:
    """Everything behind the address.

    Args:
        options: See there.

    Raises:
        StoreError: The store cannot be used.

    Attributes:
        app: The ASGI application; starting it up and shutting it down is part of its lifespan.
        watchers: The pages that are open.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.watchers = Watchers()
        self._limits = options.limits
        self._database = Database(options.store)
        self._queries = Queries(self._database)
        self._live = LiveCalls(options.limits)
        self._door = Door(options)
        self._held_bytes = 0
        self._files = _read_files()
        self.app = Starlette(
            routes=self._routes(),
            middleware=[Middleware(Guard, door=self._door, public=_PUBLIC)],
            exception_handlers={_RefusedError: _answer_refusal, ClientDisconnect: _answer_nobody},
            lifespan=self._lifespan,
        )

    def _routes(self) -> list[Route]:
        pages = [Route(path, self._page, methods=["GET"]) for path in PAGES]
        return [
            *pages,
            Route("/static/{name}", self._file, methods=["GET"]),
            Route("/v1/traces", self._receive_traces, methods=["POST"]),
            Route("/v1/metrics", self._receive_metrics, methods=["POST"]),
            Route("/v1/logs", self._receive_logs, methods=["POST"]),
            Route("/v1/live", self._receive_live, methods=["POST"]),
            Route("/api/about", self._about, methods=["GET"]),
            Route("/api/login", self._log_in, methods=["POST"]),
            Route("/api/events", self._events, methods=["GET"]),
            Route("/api/live", self._live_calls, methods=["GET"]),
            Route("/api/traces", self._traces, methods=["GET"]),
            Route("/api/traces/{trace_id}", self._trace, methods=["GET"]),
            Route("/api/traces/{trace_id}/spans/{span_id}", self._span, methods=["GET"]),
            Route("/api/sessions/{session:path}", self._session, methods=["GET"]),
            Route("/api/words", self._words, methods=["GET"]),
            Route("/api/figures", self._figures, methods=["GET"]),
            Route("/api/metrics", self._metrics, methods=["GET"]),
        ]

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        self._converting = anyio.CapacityLimiter(_CONVERTING)
        self._querying = anyio.CapacityLimiter(_QUERYING)
        self._writer = Writer(Store(self._database, self._limits))
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(self._writer.close)
            self._database.close()

    # The receiver

    async def _receive_traces(self, request: Request) -> Response:
        async with self._converted(request, ExportTraceServiceRequest, _otlp.read_spans) as spans:
            stored = await self._store(spans.rows, ())
            answer = ExportTraceServiceResponse()
            if spans.refused or stored.refused:
                answer.partial_success.rejected_spans = spans.refused + stored.refused
                answer.partial_success.error_message = _why_refused(spans.refused, stored.refused)
            return _export_response(request, answer)

    async def _receive_metrics(self, request: Request) -> Response:
        async with self._converted(request, ExportMetricsServiceRequest, _list_series) as series:
            await self._store((), series)
            return _export_response(request, ExportMetricsServiceResponse())

    async def _receive_logs(self, request: Request) -> Response:
        """Say that log records are not kept: an answer that senders do not repeat and need not report as a failure."""
        async with self._converted(request, ExportLogsServiceRequest, _otlp.count_logs) as count:
            answer = ExportLogsServiceResponse()
            if count:
                answer.partial_success.rejected_log_records = count
                answer.partial_success.error_message = _NO_LOGS
            return _export_response(request, answer)

    @asynccontextmanager
    async def _converted(self, request: Request, kind: type[Any], convert: Callable[[Any], _T]) -> AsyncIterator[_T]:
        """Read, decompress, parse and convert a body; its size counts as held until the end of the block."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in (_otlp.PROTOBUF, _otlp.JSON):
            raise _RefusedError(415, f"The content type must be {_otlp.PROTOBUF} or {_otlp.JSON}.")
        encoding = request.headers.get("content-encoding", "").strip().lower()
        body = await self._body(request, self._limits.request_bytes)
        held = len(body)
        self._hold(held)
        try:
            inflated = await self._off_loop(_otlp.inflate, body, encoding, self._limits.inflated_bytes)
            self._hold(len(inflated) - len(body), grows=True)
            held = len(inflated)
            message = await self._off_loop(_otlp.parse, inflated, media_type, kind)
            yield await self._off_loop(convert, message)
        except _otlp.UnreadableError as error:
            raise _RefusedError(400, f"Refused: {error}.") from None
        except _otlp.TooLargeError:
            raise _RefusedError(
                413, f"The body has more than {self._limits.inflated_bytes} bytes decompressed."
            ) from None
        finally:
            self._held_bytes -= held

    def _hold(self, size: int, *, grows: bool = False) -> None:
        is_too_much = self._held_bytes + size > self._limits.waiting_bytes and self._held_bytes > 0
        if is_too_much and not grows:  # what has been let in may grow; the next one waits
            raise _RefusedError(503, "Too much is waiting to be stored; try again.")
        self._held_bytes += size

    async def _off_loop(self, function: Callable[..., _T], *arguments: Any) -> _T:
        return await anyio.to_thread.run_sync(functools.partial(function, *arguments), limiter=self._converting)

    async def _store(self, spans: Any, series: Any) -> Stored:
        """Return what became of it once it is on disk."""
        done: asyncio.Future[Stored | None] = self._loop.create_future()

        def tell(stored: Stored | None) -> None:
            self._loop.call_soon_threadsafe(_settle, done, stored)

        self._writer.put(spans, series, tell)
        stored = await asyncio.shield(done)
        if stored is None:
            raise _RefusedError(503, "It could not be stored.")
        if self._live.stored(stored.calls):
            self.watchers.publish("refresh", {})
        self.watchers.note_stored(stored.spans)
        return stored

    async def _body(self, request: Request, limit: int) -> bytes:
        too_large = _RefusedError(413, f"The body has more than {limit} bytes.")
        try:
            if int(request.headers.get("content-length", "0")) > limit:
                raise too_large
        except ValueError:
            raise _RefusedError(400, "The content length is no number.") from None
        body = bytearray()
        try:
            with anyio.fail_after(_READ_S):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise _RefusedError(408, "The body did not come in time.") from None
        return bytes(body)

    async def _receive_live(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _otlp.JSON:
            raise _RefusedError(415, f"The content type must be {_otlp.JSON}.")
        body = await self._body(request, _LIVE_BYTES)
        try:
            changed, some_are_gone = self._live.take(body)
        except BadEventsError:
            raise _RefusedError(400, "These are not the events of LiveView.") from None
        if changed:
            self.watchers.publish("live", changed)
        if some_are_gone:
            self.watchers.publish("refresh", {})
        return Response(status_code=204)

    # What the page asks

    async def _about(self, request: Request) -> Response:
        told = {
            "name": NAME,
            "version": __version__,
            "needs_token": not self._door.admits(request.headers),
        }
        return _json(told)

    async def _log_in(self, request: Request) -> Response:
        body = await self._body(request, _TOKEN_BYTES)
        try:
            token = json.loads(body)["token"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise _RefusedError(400, "A JSON object with a token is needed.") from None
        if not isinstance(token, str) or not self._door.opens_with(token):
            raise _RefusedError(401, "That is not the token.")
        response = Response(status_code=204)
        response.set_cookie(self._door.cookie, self._door.cookie_value, httponly=True, samesite="strict")
        return response

    async def _events(self, _: Request) -> Response:
        stream = self.watchers.watch()
        try:
            first = await anext(stream)
        except TooManyWatchersError:
            raise _RefusedError(503, "Too many pages are open.") from None

        async def all_events() -> AsyncIterator[bytes]:
            try:
                yield first
                async for message in stream:
                    yield message
            finally:
                await stream.aclose()  # type: ignore[attr-defined]

        return StreamingResponse(all_events(), media_type="text/event-stream")

    async def _live_calls(self, _: Request) -> Response:
        return _json({"calls": self._live.all(), "version": self._live.version, "lost": self._live.lost})

    async def _traces(self, request: Request) -> Response:
        found = await self._asked(self._queries.traces, _filters(request))
        return _json({**found, "totals": await self._asked(self._queries.totals)})

    async def _trace(self, request: Request) -> Response:
        return await self._found(self._queries.trace, _id(request, "trace_id", 16))

    async def _span(self, request: Request) -> Response:
        return await self._found(self._queries.span, _id(request, "trace_id", 16), _id(request, "span_id", 8))

    async def _session(self, request: Request) -> Response:
        session = request.path_params["session"]
        calls = await self._asked(self._queries.calls_of, session, CALLS)
        if not calls:
            raise _RefusedError(404, "It is not stored.")
        summary = await self._asked(summarise, session, calls)
        return _json(
            {
                "session": session,
                "title": summary.title,
                "rows": list(summary.rows()),
                "text": str(summary),
                "is_whole": len(calls) < CALLS,
            }
        )

    async def _words(self, _: Request) -> Response:
        words = await self._asked(self._queries.words)
        return _json({**words, "session": await self._asked(self._queries.sessions)})

    async def _figures(self, request: Request) -> Response:
        try:
            window_s = int(request.query_params.get("window", "900"))
        except ValueError:
            raise _RefusedError(400, "The window is a number of seconds.") from None
        window_s = min(max(window_s, 10), CHARTED_S)
        return _json(await self._asked(self._queries.figures, window_s, time.time_ns()))

    async def _metrics(self, _: Request) -> Response:
        return _json({"series": await self._asked(self._queries.series)})

    async def _asked(self, query: Callable[..., _T], *arguments: Any) -> _T:
        return await anyio.to_thread.run_sync(functools.partial(query, *arguments), limiter=self._querying)

    async def _found(self, query: Callable[..., Any], *arguments: Any) -> Response:
        found = await self._asked(query, *arguments)
        if found is None:
            raise _RefusedError(404, "It is not stored.")
        return _json(found)

    # The page

    async def _page(self, _: Request) -> Response:
        return self._file_named("index.html")

    async def _file(self, request: Request) -> Response:
        return self._file_named(request.path_params["name"])

    def _file_named(self, name: str) -> Response:
        found = self._files.get(name)
        if found is None:
            raise _RefusedError(404, "There is no such file.")
        content, media_type = found
        return Response(content, media_type=media_type)


def _read_files() -> dict[str, tuple[bytes, str]]:
    """All files of the page: a name that is asked for is looked up here, and never on disk."""
    files = {}
    for item in importlib.resources.files(__package__).joinpath("static").iterdir():
        if item.is_file():
            suffix = "." + item.name.rpartition(".")[2]
            media_type = _MEDIA_TYPES.get(suffix) or mimetypes.guess_type(item.name)[0] or "text/plain"
            files[item.name] = (item.read_bytes(), media_type)
    return files


def _settle(done: asyncio.Future[Stored | None], stored: Stored | None) -> None:
    if not done.done():
        done.set_result(stored)


def _list_series(request: ExportMetricsServiceRequest) -> list[_otlp.Series]:
    return list(_otlp.read_series(request))


def _why_refused(invalid: int, surplus: int) -> str:
    reasons = []
    if invalid:
        reasons.append(f"{invalid} without valid ids or times")
    if surplus:
        reasons.append(f"{surplus} of traces that are full")
    return f"spans refused: {', '.join(reasons)}"


def _export_response(request: Request, message: Message) -> Response:
    """Answer in the sender's own format."""
    if request.headers.get("content-type", "").lower().startswith(_otlp.JSON):
        return Response(json_format.MessageToJson(message, indent=None), media_type=_otlp.JSON)
    return Response(message.SerializeToString(), media_type=_otlp.PROTOBUF)


async def _answer_refusal(request: Request, refused: Exception) -> Response:
    status = refused.status if isinstance(refused, _RefusedError) else 500
    headers = {"retry-after": _RETRY_AFTER_S} if status == 503 else {}  # noqa: PLR2004 - the one that asks to try again
    if not request.url.path.startswith("/v1/") or request.url.path == "/v1/live":
        return PlainTextResponse(f"{refused}\n", status, headers)
    response = _export_response(request, Status(message=str(refused)))
    response.status_code = status
    response.headers.update(headers)
    return response


async def _answer_nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=400)


def _json(value: Any) -> Response:
    return Response(
        json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"), media_type=_otlp.JSON
    )


def _id(request: Request, name: str, size: int) -> bytes:
    try:
        found = bytes.fromhex(request.path_params[name])
    except ValueError:
        found = b""
    if len(found) != size:
        raise _RefusedError(404, "That is no id.")
    return found


def _filters(request: Request) -> Filters:
    asked = request.query_params
    try:
        slower_ms = float(asked["slower_ms"]) if asked.get("slower_ms") else None
        before_ns = int(asked["before"]) if asked.get("before") else None
    except ValueError:
        raise _RefusedError(400, "slower_ms and before are numbers.") from None
    if (slower_ms is not None and not 0 <= slower_ms < 1e12) or (before_ns is not None and not 0 <= before_ns < 2**63):  # noqa: PLR2004
        raise _RefusedError(400, "slower_ms or before is out of range.")
    texts = {
        name: asked.get(name) or None
        for name in ("model", "operation", "outcome", "error", "session", "service", "text")
    }
    return Filters(**texts, slower_ms=slower_ms, before_ns=before_ns)
