"""Drive one call to its single end.

An exchange travels in the request options as their post-parser, so it goes wherever the call goes: through retries,
parsing, raw responses and streams. Whichever end comes first counts; all later ones find the door locked.
"""

from __future__ import annotations

import gc
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias

from . import _faults
from ._dispatch import Dispatcher, Held, release
from ._folds import Fold
from ._headers import read_rate_limit, to_float
from ._jobs import count_once
from ._operations import Operation
from ._readers import ResponseFacts
from ._sampling import Reservoir
from .content import Payload, Redactor
from .prices import PriceSource, cost_of
from .types import (
    ErrorContext,
    FailedResponseError,
    Outcome,
    RequestMetadata,
    ResponseMetadata,
    Retry,
    StreamChunk,
    Usage,
    UsageSource,
    new_chunk,
    new_response,
)

_clock = time.perf_counter_ns

Estimate: TypeAlias = Callable[[object], Usage | None]
"""Takes the answer and returns its usage, for answers that do not report it."""

# Exchanges dropped without an end. Filled from finalisers, where running a callback could wait for a lock that this
# very thread holds; emptied by `sweep`. `SimpleQueue.put` is re-entrant by contract.
_abandoned: Final[queue.SimpleQueue[Exchange]] = queue.SimpleQueue()

# Streams that have not ended, for the exit of the program: what is still referred to then is never dropped.
_streaming: Final[weakref.WeakSet[Exchange]] = weakref.WeakSet()

wakers: list[Callable[[], None]] = []
"""Called when an exchange was abandoned; each must be safe inside a finaliser."""

_generation = 0
_watching = 0
_collecting: int | None = None


def _forked() -> None:
    # A copy of the parent's open exchanges lives on in the child; their ends are the parent's to tell.
    global _generation  # noqa: PLW0603
    _generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def watch_collector(*, on: bool) -> None:
    """Know when the garbage collector runs: a body closed by it was dropped, not closed by the caller.

    Each patch switches it on once and off once; the last one off ends it.
    """
    global _watching  # noqa: PLW0603
    _watching += 1 if on else -1
    if _watching and _note_collection not in gc.callbacks:
        gc.callbacks.append(_note_collection)
    elif not _watching and _note_collection in gc.callbacks:
        gc.callbacks.remove(_note_collection)


def _note_collection(phase: str, _: object) -> None:
    global _collecting  # noqa: PLW0603
    _collecting = threading.get_ident() if phase == "start" else None


class Exchange:
    """One call, from request to its only end.

    Attributes:
        request: The facts callbacks were told.
        http: The HTTP response, until the exchange is settled; kept longer it would be a reference cycle.
        pulling: True while a stream waits for its next chunk; a body closed meanwhile is the stream's business.
        body_read: True once the body was read to its end.
        hides_usage: True if we asked for a usage chunk that the caller did not ask for.
        unheard: True once it is known that nobody has use for the end; then nothing of the answer is looked at.
    """

    __slots__ = (
        "__weakref__",
        "_add",
        "_dispatcher",
        "_estimate",
        "_fold",
        "_gaps",
        "_generation",
        "_headers",
        "_held",
        "_once",
        "_operation",
        "_parse",
        "_parsed",
        "_payload",
        "_prices",
        "_redactor",
        "_retries",
        "_started",
        "_tells_chunks",
        "_wrap",
        "body_read",
        "chunk_count",
        "dropped_at",
        "first_chunk",
        "first_output",
        "hides_usage",
        "http",
        "last_chunk",
        "longest_gap",
        "pulling",
        "request",
        "status_code",
        "unheard",
    )

    def __init__(
        self,
        request: RequestMetadata,
        operation: Operation,
        dispatcher: Dispatcher,
        *,
        started: int,
        body: Mapping[str, Any],
        parse: Callable[[Any], Any] | None,
        wrap: Callable[[Any, Exchange], Any],
        redactor: Redactor | None,
        estimate: Estimate | None = None,
        prices: PriceSource | None = None,
    ) -> None:
        self._once = threading.Lock()  # acquired by whichever end comes first, never released
        self.request = request
        self.http: Any = None
        self.pulling = False
        self.body_read = False
        self.hides_usage = False
        self.unheard = False
        self.chunk_count = 0
        self.first_chunk = 0
        self.first_output = 0
        self.last_chunk = 0
        self.longest_gap = 0
        self.dropped_at = 0
        self.status_code: int | None = None
        self._operation = operation
        self._dispatcher = dispatcher
        self._started = started
        self._parse = parse
        self._wrap = wrap
        self._redactor = redactor
        self._estimate = estimate
        self._prices = prices
        self._parsed: Any = None
        self._headers: Mapping[str, str] | None = None
        self._retries: list[Retry] | None = None
        self._held: Held | None = None
        self._generation = _generation
        self._tells_chunks = dispatcher.wants_chunks
        self._fold: Fold | None = None
        self._gaps: Reservoir | None = None
        if request.stream:
            self._expect_chunks()
        self._payload = Payload(body, operation.content, redactor) if dispatcher.reads_request else None

    def __call__(self, parsed: Any) -> Any:
        """Post-parser: see what the SDK parsed, then let the caller's own parser have it."""
        try:
            parsed = parsed if self.unheard else self._wrap(parsed, self)
        except Exception as error:  # noqa: BLE001 - SDK objects of any version pass here
            _faults.report("parse", error, "a response was not observed")
        return parsed if self._parse is None else self._parse(parsed)

    def send(self) -> None:
        """Tell of the request and hold open what callbacks ask to be held."""
        payload, self._payload = self._payload, None
        self._held = []
        if not self._dispatcher.request_sent(self.request, payload, self._held) and not self.hides_usage:
            self.unheard = True
            self.cancel()
            self._forget()

    def sent(self, error: BaseException | None) -> None:
        """Let go of what was held: the headers are back, or *error* came instead."""
        held, self._held = self._held, None
        if held:
            release(held, error)

    def headers(self, status_code: int | None, headers: Mapping[str, str]) -> None:
        """Note the facts in the response headers that are read, by lower-case name."""
        self.status_code = status_code
        self._headers = headers

    def retry(self, delay_s: float, error: str | None, status_code: int | None) -> None:
        """Note that the client will try again after *delay_s* seconds."""
        retry = Retry(at_ns=self._wall(_clock()), delay_s=delay_s, error=error, status_code=status_code)
        if self._retries is None:
            self._retries = []
        self._retries.append(retry)

    @property
    def retry_count(self) -> int:
        """Retries noted so far."""
        return len(self._retries or ())

    def parsed(self, parsed: Any) -> None:
        """Note the parsed response."""
        self._parsed = parsed

    def chunk(self, chunk: Any) -> None:
        """Take in a chunk of the stream."""
        now = _clock()
        index = self.chunk_count
        if index:
            gap = now - self.last_chunk
            if gap > self.longest_gap:  # noqa: PLR1730 - half the time of max()
                self.longest_gap = gap
            if index > self._gaps.next_at:  # type: ignore[union-attr]
                self._gaps.add(gap)  # type: ignore[union-attr]
        else:
            self.first_chunk = now
            if self._fold is None:
                self._expect_chunks()  # the server streams although it was not asked to
        self.last_chunk = now
        self.chunk_count = index + 1
        try:
            self._add(chunk)
        except Exception as error:  # noqa: BLE001 - an odd chunk must not become the caller's error
            _faults.note("chunk", error, "a chunk was not understood")
        if not self.first_output and self._fold.saw_output:  # type: ignore[union-attr]
            self.first_output = now
        if self._tells_chunks:
            self._tell(chunk, index, now)

    def takes_usage(self, chunk: Any) -> bool:
        """Take in *chunk* if it is the one we asked for, with usage and nothing else; the caller must not see it."""
        data = getattr(chunk, "__dict__", {})
        if data.get("choices") or data.get("usage") is None:
            return False
        try:
            self._add(chunk)
        except Exception as error:  # noqa: BLE001 - an odd chunk must not become the caller's error
            _faults.note("chunk", error, "a chunk was not understood")
        return True

    def finish(self, outcome: Outcome = "completed", *, at: int = 0) -> None:
        """End without an exception."""
        if not self._once.acquire(blocking=False) or self._generation != _generation:
            return
        try:
            metadata = self._response(outcome, at or _clock())
            if metadata.failure is None:
                self._dispatcher.response_received(metadata, self._response_payload())
            else:
                self._tell_failure(metadata)
        except Exception as error:  # noqa: BLE001 - reading SDK objects of any version
            _faults.report("finish", error, "the end of a call was not told")
        self._forget()

    def fail(self, error: BaseException) -> None:
        """End with the exception that reaches the caller."""
        if not self._once.acquire(blocking=False) or self._generation != _generation:
            return
        try:
            ended = _clock()
            arrived = self.chunk_count > 0 or self._parsed is not None
            partial = self._response(_outcome(error), ended) if arrived else None
            context = self._context(error, partial, self._wall(ended), (ended - self._started) / 1e6)
            self._dispatcher.error(error, context, self._partial_payload() if arrived else None)
        except Exception as failure:  # noqa: BLE001 - reading SDK objects of any version
            _faults.report("fail", failure, "a failed call was not told")
        self._forget()

    def _tell_failure(self, metadata: ResponseMetadata) -> None:
        """The request succeeded and its result says it failed: an error, though nothing was raised."""
        code = metadata.failure or ""
        partial = replace(metadata, outcome="error")
        error = FailedResponseError(code)
        context = self._context(error, partial, metadata.ended_ns, metadata.response_time_ms)
        self._dispatcher.error(error, context, self._partial_payload())

    def body_closed(self) -> None:
        """End because the body was closed, unless the stream is just reading it."""
        if self.pulling or self.dropped_at:
            return
        if _collecting == threading.get_ident():
            self.abandon()
        else:
            # Some streams go on until they are closed; between two answers that is their end.
            whole = self.body_read or getattr(self._fold, "is_over", False)
            self.finish("completed" if whole else "closed_early")

    def abandon(self) -> None:
        """Have the exchange ended from a safer place than a finaliser."""
        if not self.dropped_at and not self._once.locked():
            self.dropped_at = _clock()
            _abandoned.put(self)
            for wake in wakers:
                wake()

    def __del__(self) -> None:
        """Nobody can end this exchange any more."""
        self.abandon()

    def end_abandoned(self) -> None:
        """End what was dropped: when its last chunk came, or when it was dropped if none had."""
        self.finish("abandoned", at=self.last_chunk or self.dropped_at)

    def _expect_chunks(self) -> None:
        keeps = self._dispatcher.keeps_response or self._estimate is not None
        self._fold = self._operation.fold(keep_content=keeps)
        self._add: Callable[[Any], None] = self._fold.add
        self._gaps = Reservoir()
        _streaming.add(self)

    def _tell(self, chunk: Any, index: int, now: int) -> None:
        dispatcher = self._dispatcher
        try:
            text, kind = self._operation.chunk_text(chunk)
        except Exception:  # noqa: BLE001 - an odd chunk must not become the caller's error
            text, kind = "", "event"
        at_ns = self._wall(now)
        bare = new_chunk("", self.request, kind, at_ns)
        full: StreamChunk = (
            bare if not dispatcher.wants_chunk_text or not text else new_chunk(text, self.request, kind, at_ns)
        )
        dispatcher.stream_chunk(full, bare, index)

    def _wall(self, clock: int) -> int:
        return self.request.started_ns + clock - self._started

    def _facts(self, outcome: Outcome) -> ResponseFacts:
        if self._fold is not None and self.chunk_count:
            facts = self._fold.facts(due=outcome not in ("closed_early", "abandoned"))
            facts["truncated"] = outcome == "completed" and facts["truncated"]
            return facts
        if self._parsed is not None:
            return self._operation.response(self._parsed)
        # A stream that was read to its end and held nothing is an answer that never came.
        return {"truncated": True} if self._fold is not None and outcome == "completed" and self.pulling else {}

    def _response(self, outcome: Outcome, ended: int) -> ResponseMetadata:
        try:
            facts = self._facts(outcome)
        except Exception as error:  # noqa: BLE001 - reading SDK objects of any version
            _faults.report("read", error, "a response was not understood")
            facts = {}
        if (job := self._operation.job) is not None:
            facts["usage"] = count_once(job, facts.get("id"), facts.get("status"), facts.get("usage"))
        source: UsageSource = "missing" if facts.get("usage") is None else "reported"
        if source == "missing" and outcome == "completed" and self._estimate is not None:
            facts["usage"] = self._estimated()
            source = "missing" if facts["usage"] is None else "estimated"
        started, headers = self._started, self._headers
        count = self.chunk_count
        streamed = self._fold is not None
        metadata = new_response(
            request=self.request,
            outcome=outcome,
            ended_ns=self.request.started_ns + ended - started,
            response_time_ms=(ended - started) / 1e6,
            time_to_first_chunk_s=(self.first_chunk - started) / 1e9 if count else None,
            time_to_first_output_s=(self.first_output - started) / 1e9 if self.first_output else None,
            chunk_count=count if streamed else None,
            longest_gap_s=self.longest_gap / 1e9 if count > 1 else None,
            chunk_gaps_s=tuple([gap / 1e9 for gap in self._gaps.values]) if self._gaps is not None else (),
            retries=self._waited(self._wall(ended)),
            status_code=self.status_code,
            request_id=headers.get("request_id") if headers else None,
            processing_ms=to_float(headers.get("processing_ms")) if headers else None,
            rate_limit=read_rate_limit(headers) if headers else None,
            usage_source=source,
            **facts,
        )
        if self._prices is not None:
            self._price(self._prices, metadata)
        return metadata

    def _price(self, prices: PriceSource, metadata: ResponseMetadata) -> None:
        """Fill in what the call cost, as far as the program's prices tell."""
        try:
            # Not by `replace`, which takes as long as finding the price: nobody else has seen the facts yet.
            object.__setattr__(metadata, "cost", cost_of(prices, metadata))
        except Exception as error:  # noqa: BLE001 - the prices are the program's
            _faults.report("price", error, "a call was not priced")

    def _estimated(self) -> Usage | None:
        """What the program's own function makes of an answer without usage."""
        try:
            return None if self._estimate is None else self._estimate(self._body())
        except Exception as error:  # noqa: BLE001 - the function is the program's
            _faults.report("estimate", error, "usage was not estimated")
            return None

    def _body(self) -> object:
        """The answer, or what its chunks add up to; None if it was not kept."""
        return self._fold.body() if self._fold is not None and self.chunk_count else self._parsed

    def _response_payload(self) -> Payload | None:
        body = self._body() if self._dispatcher.keeps_response else None
        return None if body is None else Payload(body, self._operation.content, self._redactor)

    def _partial_payload(self) -> Payload | None:
        try:
            return self._response_payload() if self._dispatcher.shows_partial else None
        except Exception as error:  # noqa: BLE001 - reading SDK objects of any version
            _faults.report("read", error, "what had arrived of a failed call was not understood")
            return None

    def _context(
        self, error: BaseException, partial: ResponseMetadata | None, ended_ns: int, response_time_ms: float
    ) -> ErrorContext:
        status = getattr(error, "status_code", None)
        headers = self._headers or {}
        return ErrorContext(
            f"{self._operation.where} {self._phase()}",
            request=self.request,
            outcome=_outcome(error),
            error_type=error.code if isinstance(error, FailedResponseError) else type(error).__name__,
            partial=partial,
            ended_ns=ended_ns,
            response_time_ms=response_time_ms,
            retries=self._waited(ended_ns),
            status_code=status if isinstance(status, int) else self.status_code,
            request_id=headers.get("request_id"),
            processing_ms=to_float(headers.get("processing_ms")),
            rate_limit=read_rate_limit(headers) if headers else None,
        )

    def _waited(self, ended_ns: int) -> tuple[Retry, ...]:
        """The retries; of a wait that was cut short only what was waited."""
        if not self._retries:
            return ()
        *before, last = self._retries
        left_s = (ended_ns - last.at_ns) / 1e9
        return (*before, last if last.delay_s <= left_s else replace(last, delay_s=max(0.0, left_s)))

    def _phase(self) -> str:
        if self.chunk_count or self.pulling:
            return "stream"
        return "request" if self._parsed is None else "response"

    def cancel(self) -> None:
        """Make this the exchange of a call that nobody is told of."""
        self._once.acquire(blocking=False)

    def _forget(self) -> None:
        # A raw response keeps its options, and so this exchange, for as long as the caller keeps the response.
        # Chunks that were buffered may still be read; nobody is told of them.
        if self._fold is not None:
            _streaming.discard(self)
        self._parsed = self._payload = self._estimate = None
        self._fold = _ENDED
        self._add = _ENDED.add
        self._tells_chunks = False
        self.http = None


class _Ended:
    """What takes the chunks that come after the end."""

    saw_output = True

    def add(self, _: Any) -> None:
        pass

    def facts(self, *, due: bool) -> ResponseFacts:  # noqa: ARG002
        return {}

    def body(self) -> None:
        return None


_ENDED: Final = _Ended()


def _outcome(error: BaseException) -> Outcome:
    return "error" if isinstance(error, Exception) else "cancelled"


def sweep(most: int | None = None) -> None:
    """End the exchanges that were dropped without an end, all or at most *most* of them."""
    while most is None or most > 0:
        most = None if most is None else most - 1
        try:
            exchange = _abandoned.get_nowait()
        except queue.Empty:
            return
        exchange.end_abandoned()


def end_streams() -> None:
    """End the streams that are still open: the program is over."""
    for exchange in _open_streams():
        exchange.abandon()
    sweep()


def _open_streams() -> list[Exchange]:
    while True:
        try:
            return list(_streaming)
        except RuntimeError:  # another thread has opened one meanwhile
            continue


def has_abandoned() -> bool:
    """True if `sweep` has something to do."""
    return not _abandoned.empty()
