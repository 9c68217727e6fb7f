"""The facts that callbacks are told: plain, frozen data about one call.

Nothing here reads the SDK or OpenTelemetry. In every type ``None`` means *not known*; it is never a stand-in for zero.
Times are taken from one wall-clock reading per call plus a monotonic difference, so no duration is ever negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeAlias, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

Outcome: TypeAlias = Literal["completed", "closed_early", "abandoned", "cancelled", "error"]
"""How a call ended.

``completed``: everything the server sent was read. ``closed_early``: the caller closed a stream or body before its end.
``abandoned``: the caller dropped it without closing it. ``cancelled``: the task or thread was told to stop
(``CancelledError``, ``KeyboardInterrupt``). ``error``: an exception reached the caller.
"""

UsageSource: TypeAlias = Literal["reported", "missing", "estimated"]
"""Where token counts come from: the API, nowhere, or an offline estimate the user asked for."""

ChunkKind: TypeAlias = Literal["text", "reasoning", "tool_call", "refusal", "audio", "event"]
"""What a stream chunk carries; ``event`` is everything that is not output (role, finish reason, usage)."""

Content: TypeAlias = Literal["full", "redacted", "none"]
"""How much content a callback is given in JSON and chunk text."""

Delivery: TypeAlias = Literal["queued", "inline"]
"""Where a callback's hooks run: on a worker's thread, or on the caller's."""

Overflow: TypeAlias = Literal["drop_chunks", "drop_new", "block"]
"""What gives way when a queue is full: chunks first (from half full on), whatever comes next, or the caller."""

AttributeValue: TypeAlias = "str | bool | int | float | tuple[str, ...] | tuple[int, ...] | tuple[float, ...]"


class Attributes(dict[str, AttributeValue]):
    """A dict that cannot be changed; it pickles and copies as one that can."""

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("session attributes are read-only")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = __ior__ = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[object, ...]:
        return Attributes, (dict(self),)


_NO_ATTRIBUTES: Final = Attributes()


def _no_attributes() -> Mapping[str, AttributeValue]:
    return _NO_ATTRIBUTES


def _utc(at_ns: int) -> datetime:
    return datetime.fromtimestamp(at_ns / 1e9, tz=timezone.utc)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetadata:
    """What was asked of the API, without its content.

    Attributes:
        call_id: Unique to this call, also across processes; the same on every event of the call.
        api: The API family, such as ``chat_completions``.
        operation: ``gen_ai.operation.name``, such as ``chat``.
        provider: ``gen_ai.provider.name``, the best that is known.
        started_ns: When the call began, nanoseconds since the epoch.
        stream: True if the answer was asked for as a stream.
        model: The model as requested; on Azure the deployment.
        server_address: Host of the client's base URL, without user name and password.
        server_port: Its port, the scheme's default where the URL names none.
        context_length: UTF-8 bytes of text in the messages. None unless a callback other than the OpenTelemetry
            adapter listens to requests, because measuring costs time in proportion to the history.
        max_tokens: Upper limit for output tokens, whatever the API calls it.
        stop_sequences: Empty if none were given.
        choice_count: The ``n`` of the request.
        reasoning_level: The reasoning effort, as sent.
        output_type: ``text``, ``json``, ``image`` or ``speech`` if the request names a format.
        conversation_id: Of a conversation the API keeps; never invented.
        previous_response_id: The response this one goes on from.
        prompt_name: Id of the prompt template.
        background: True if the answer is made after the call; later calls fetch it.
        response_id: The response that is fetched or cancelled.
        stream_cursor: Where a fetched stream is taken up again.
        dimension_count: Length of the embeddings asked for.
        encoding_formats: As the caller asked; empty for base64, which the client asks for on its own account.
        data_source_id: The vector store that is searched.
        session_id: From :func:`otel_llm_callback.session`.
        user_id: From :func:`otel_llm_callback.session`.
        attributes: Further attributes given to :func:`otel_llm_callback.session`.
        trace_id: 32 lower-case hex digits of the span of this call, or of the caller's span in callbacks-only mode.
        span_id: 16 lower-case hex digits, likewise.
    """

    call_id: str
    api: str
    operation: str
    provider: str
    started_ns: int
    stream: bool = False
    model: str | None = None
    server_address: str | None = None
    server_port: int | None = None
    context_length: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop_sequences: tuple[str, ...] = ()
    seed: int | None = None
    choice_count: int | None = None
    reasoning_level: str | None = None
    output_type: str | None = None
    service_tier: str | None = None
    conversation_id: str | None = None
    previous_response_id: str | None = None
    prompt_name: str | None = None
    prompt_version: str | None = None
    background: bool = False
    response_id: str | None = None
    stream_cursor: str | None = None
    dimension_count: int | None = None
    encoding_formats: tuple[str, ...] = ()
    data_source_id: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    attributes: Mapping[str, AttributeValue] = field(default_factory=_no_attributes)
    trace_id: str | None = None
    span_id: str | None = None

    @property
    def timestamp(self) -> datetime:
        """When the call began, in UTC."""
        return _utc(self.started_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one call; a field is None where the API was silent.

    Cached and cache-write tokens are part of the input count, reasoning tokens of the output count, audio and image
    tokens of either, cached audio of both the cached and the audio count; none is to be added to the totals.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    text_input_tokens: int | None = None
    text_output_tokens: int | None = None
    image_input_tokens: int | None = None
    image_output_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    cached_audio_tokens: int | None = None
    cached_image_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A repetition that the client scheduled; attempts are retries + 1.

    Attributes:
        at_ns: When it was scheduled, nanoseconds since the epoch.
        delay_s: How long the client then waited, in seconds.
        error: Why: the class name of the exception, such as ``HTTPStatusError`` or ``ReadTimeout``.
        status_code: The HTTP status if the server answered at all.
    """

    at_ns: int
    delay_s: float
    error: str | None = None
    status_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """What the ``x-ratelimit-…`` headers said; times in seconds."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests_s: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseMetadata:
    """What came back, without its content.

    Attributes:
        request: The request this answers.
        outcome: How the call ended.
        ended_ns: When it ended, nanoseconds since the epoch. For an abandoned stream: when its last chunk arrived.
        response_time_ms: From the start of the call to ``ended_ns``, waits between retries included.
        id: The id in the body, such as ``chatcmpl-…``.
        created: When the server says it made the answer, seconds since the epoch.
        model: The model that answered.
        finish_reasons: One per choice, in the order of their index, as the provider spells them; ``error`` where a
            reason was due and never came.
        truncated: True if a stream was read to its end and a choice never got a finish reason.
        usage: Token counts, None if the API reported none.
        usage_source: ``missing`` if ``usage`` is None.
        time_to_first_chunk_s: From the start of the call to the first chunk of a stream, in seconds. It includes
            retries and the time the caller took before asking for the first chunk.
        time_to_first_output_s: The same to the first chunk that carries output (text, tool call, reasoning …); leading
            chunks with only a role or filter results do not count.
        chunk_count: Chunks the caller was given; None if the call was not a stream.
        longest_gap_s: The longest wait between two chunks, in seconds.
        chunk_gaps_s: Waits between chunks: all of them up to 64, beyond that a uniform sample of 64.
        retries: What the client repeated on its own, in order.
        status_code: HTTP status.
        request_id: The provider's id of the HTTP request, for support tickets.
        processing_ms: The server's own figure for its work, in milliseconds.
        rate_limit: What the headers said of limits.
        status: Of a response or job the server keeps, such as ``completed``, ``queued`` or ``incomplete``.
        failure: The provider's error code of a result that says it failed; see :class:`FailedResponseError`.
        cost: In US dollars, if `prices` is set and knows it; an estimate if ``usage_source`` is ``estimated``.
    """

    request: RequestMetadata
    outcome: Outcome
    ended_ns: int
    response_time_ms: float
    id: str | None = None
    created: int | None = None
    model: str | None = None
    finish_reasons: tuple[str, ...] = ()
    truncated: bool = False
    usage: Usage | None = None
    usage_source: UsageSource = "missing"
    time_to_first_chunk_s: float | None = None
    time_to_first_output_s: float | None = None
    chunk_count: int | None = None
    longest_gap_s: float | None = None
    chunk_gaps_s: tuple[float, ...] = field(default=(), repr=False)
    retries: tuple[Retry, ...] = ()
    status_code: int | None = None
    request_id: str | None = None
    processing_ms: float | None = None
    rate_limit: RateLimit | None = None
    service_tier: str | None = None
    system_fingerprint: str | None = None
    status: str | None = None
    failure: str | None = None
    cost: Decimal | None = None

    @property
    def call_id(self) -> str:
        """The id shared by all events of the call."""
        return self.request.call_id

    @property
    def timestamp(self) -> datetime:
        """When the call ended, in UTC."""
        return _utc(self.ended_ns)

    @property
    def finish_reason(self) -> str | None:
        """The finish reason of the first choice."""
        return self.finish_reasons[0] if self.finish_reasons else None

    @property
    def prompt_tokens(self) -> int | None:
        """Input tokens, cached ones included."""
        return None if self.usage is None else self.usage.input_tokens

    @property
    def completion_tokens(self) -> int | None:
        """Output tokens, reasoning included."""
        return None if self.usage is None else self.usage.output_tokens

    @property
    def total_tokens(self) -> int | None:
        """The reported total, else the sum of input and output if both are known."""
        usage = self.usage
        if usage is None:
            return None
        if usage.total_tokens is not None:
            return usage.total_tokens
        if usage.input_tokens is None or usage.output_tokens is None:
            return None
        return usage.input_tokens + usage.output_tokens

    @property
    def cached_tokens(self) -> int | None:
        """Input tokens served from the provider's cache."""
        return None if self.usage is None else self.usage.cached_tokens

    @property
    def cache_write_tokens(self) -> int | None:
        """Input tokens written to the provider's cache."""
        return None if self.usage is None else self.usage.cache_write_tokens

    @property
    def reasoning_tokens(self) -> int | None:
        """Output tokens spent on reasoning."""
        return None if self.usage is None else self.usage.reasoning_tokens

    @property
    def audio_tokens(self) -> int | None:
        """Audio tokens, input and output together."""
        if self.usage is None:
            return None
        known = [n for n in (self.usage.audio_input_tokens, self.usage.audio_output_tokens) if n is not None]
        return sum(known) if known else None

    @property
    def retry_wait_ms(self) -> float:
        """How long the client waited between attempts; part of ``response_time_ms``."""
        return sum(retry.delay_s for retry in self.retries) * 1000


_Facts = TypeVar("_Facts")


def _quick(kind: type[_Facts]) -> type[_Facts]:
    """Return what makes objects of *kind* in a quarter of the time its constructor takes.

    A frozen dataclass sets each field by a call of ``object.__setattr__``. This class has the same slots and is not
    frozen; its objects turn into those of *kind* once they are filled.
    """

    def freeze(self: Any) -> None:
        self.__class__ = kind

    return make_dataclass(
        kind.__name__,
        [(f.name, Any, field(default=f.default, default_factory=f.default_factory)) for f in fields(kind)],  # type: ignore[arg-type]
        namespace={"__post_init__": freeze},
        kw_only=True,
        slots=True,
        repr=False,
        eq=False,
    )


new_request: Final = _quick(RequestMetadata)
new_response: Final = _quick(ResponseMetadata)
new_usage: Final = _quick(Usage)


class FailedResponseError(Exception):
    """The API answered with HTTP 200 and a result that says it failed; told to ``on_error``, never raised.

    The caller got the result as an ordinary object. The text of the exception is the code alone.

    Attributes:
        code: The provider's error code.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class StreamChunk(str):
    """The text of one stream chunk, with what belongs to it.

    The string is empty where the chunk carries no output and for callbacks whose ``content`` is ``none``.

    Attributes:
        request: The request this is part of the answer to.
        kind: What the text is.
        at_ns: When it arrived, nanoseconds since the epoch.
    """

    __slots__ = ("at_ns", "kind", "request")

    request: RequestMetadata
    kind: ChunkKind
    at_ns: int

    def __new__(  # noqa: PYI034 - made by a function, always of this class
        cls, text: str = "", *, request: RequestMetadata, kind: ChunkKind = "text", at_ns: int = 0
    ) -> StreamChunk:
        """Make a chunk; callbacks get theirs from the dispatcher."""
        return new_chunk(text, request, kind, at_ns)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: callbacks share the chunk."""
        raise AttributeError(f"StreamChunk.{name} is read-only")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with its facts."""
        return new_chunk, (str(self), self.request, self.kind, self.at_ns)


_new_text = str.__new__
_set_request = StreamChunk.__dict__["request"].__set__
_set_kind = StreamChunk.__dict__["kind"].__set__
_set_at_ns = StreamChunk.__dict__["at_ns"].__set__


def new_chunk(text: str, request: RequestMetadata, kind: ChunkKind, at_ns: int) -> StreamChunk:
    """Make a chunk, positional and without a constructor's frame: this runs once per chunk."""
    chunk = _new_text(StreamChunk, text)
    _set_request(chunk, request)
    _set_kind(chunk, kind)
    _set_at_ns(chunk, at_ns)
    return chunk


class ErrorContext(str):
    """Where a call failed, such as ``chat.completions stream``, with what is known of it.

    Attributes:
        request: The request that failed.
        outcome: ``error`` or ``cancelled``.
        error_type: The value of ``error.type``: the exception's class name, or the provider's code.
        partial: What had arrived before the failure, or None if nothing had.
        ended_ns: When it failed, nanoseconds since the epoch.
        response_time_ms: From the start of the call to ``ended_ns``.
        retries: What the client had repeated before it gave up.
        status_code: HTTP status if the server answered.
        request_id: The provider's id of the HTTP request.
        processing_ms: The server's own figure for its work.
        rate_limit: What the headers said of limits.
    """

    __slots__ = (
        "ended_ns",
        "error_type",
        "outcome",
        "partial",
        "processing_ms",
        "rate_limit",
        "request",
        "request_id",
        "response_time_ms",
        "retries",
        "status_code",
    )

    request: RequestMetadata
    outcome: Outcome
    error_type: str
    partial: ResponseMetadata | None
    ended_ns: int
    response_time_ms: float
    retries: tuple[Retry, ...]
    status_code: int | None
    request_id: str | None
    processing_ms: float | None
    rate_limit: RateLimit | None

    def __new__(
        cls,
        where: str,
        *,
        request: RequestMetadata,
        error_type: str,
        ended_ns: int,
        response_time_ms: float,
        outcome: Outcome = "error",
        partial: ResponseMetadata | None = None,
        retries: tuple[Retry, ...] = (),
        status_code: int | None = None,
        request_id: str | None = None,
        processing_ms: float | None = None,
        rate_limit: RateLimit | None = None,
    ) -> Self:
        """Make a context; callbacks get theirs from the dispatcher."""
        context = super().__new__(cls, where)
        facts = {
            "request": request,
            "outcome": outcome,
            "error_type": error_type,
            "partial": partial,
            "ended_ns": ended_ns,
            "response_time_ms": response_time_ms,
            "retries": retries,
            "status_code": status_code,
            "request_id": request_id,
            "processing_ms": processing_ms,
            "rate_limit": rate_limit,
        }
        for name, value in facts.items():
            object.__setattr__(context, name, value)
        return context

    @property
    def call_id(self) -> str:
        """The id shared by all events of the call."""
        return self.request.call_id

    @property
    def timestamp(self) -> datetime:
        """When the call failed, in UTC."""
        return _utc(self.ended_ns)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: callbacks share the context."""
        raise AttributeError(f"ErrorContext.{name} is read-only")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with its facts."""
        return _context, (str(self), {name: getattr(self, name) for name in self.__slots__})


def _context(where: str, facts: dict[str, object]) -> ErrorContext:
    return ErrorContext(where, **facts)  # type: ignore[arg-type]
