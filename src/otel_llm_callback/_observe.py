"""Drive the events of a call by hand: for other clients and agent frameworks.

The call is an `Exchange` like any other. What a patched client reads from the SDK's objects, the caller says here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, get_args

from . import _faults
from ._dispatch import Dispatcher, running_hook
from ._exchange import Exchange, has_abandoned, sweep
from ._operations import OPERATIONS, Operation
from ._readers import ResponseFacts, count, integer, label, read_usage
from ._registry import REGISTRY
from ._sampling import new_id
from ._scope import current, told_of_calls
from .instrumentor import is_suppressed
from .types import ChunkKind, Outcome, RequestMetadata, Usage

if TYPE_CHECKING:
    from typing_extensions import Self

_SHAPES: Final = {row.api: row for row in reversed(list(OPERATIONS.values()))}
_CHAT: Final = _SHAPES["chat_completions"]
_KINDS: Final = frozenset(get_args(ChunkKind))
_SWEPT_PER_CALL: Final = 16


@dataclass(slots=True)
class _Answer:
    """What the caller said of the response so far; to the exchange it is the fold of a stream."""

    shape: Operation
    facts_given: ResponseFacts = field(default_factory=ResponseFacts)
    body_given: object = None
    given: bool = False
    saw_output: bool = False
    texts: dict[str, list[str]] | None = None

    def fold(self, *, keep_content: bool) -> _Answer:
        """Return itself, which adds up the chunks."""
        self.texts = {} if keep_content else None
        return self

    def add(self, chunk: tuple[str, ChunkKind]) -> None:
        """Take in a chunk."""
        text, kind = chunk
        if kind != "event":
            self.saw_output = True
        if self.texts is not None and text:
            self.texts.setdefault(kind, []).append(text)

    def facts(self, *, due: bool = True) -> ResponseFacts:  # noqa: ARG002 - reasons are as the caller gave them
        """Return the facts, which must come as a copy."""
        return {"truncated": False, **self.facts_given}

    def body(self) -> object:
        """Return the body that was given, else what is known in the shape of a chat completion."""
        if self.body_given is not None:
            return self.body_given
        known = {name: self.facts_given.get(name) for name in ("id", "created", "model")}
        reasons = self.facts_given.get("finish_reasons") or ((None,) if self.texts else ())
        choices: list[dict[str, object]] = [
            {"index": index, "finish_reason": reason} for index, reason in enumerate(reasons)
        ]
        if self.texts:
            choices[0]["message"] = self._message()
        return {**{name: value for name, value in known.items() if value is not None}, "choices": choices}

    def output(self, body: object) -> list[dict[str, Any]]:
        """Messages of *body*, which has the shape of the API if it was given and that of chat if not."""
        shape = _CHAT if self.body_given is None else self.shape
        return shape.content.output_messages(body)

    def _message(self) -> dict[str, str]:
        joined = {kind: "".join(pieces) for kind, pieces in (self.texts or {}).items()}
        names = {"reasoning": "reasoning_content", "text": "content", "refusal": "refusal"}
        return {"role": "assistant", **{name: joined[kind] for kind, name in names.items() if kind in joined}}


class ObservedCall:
    """One call that the caller drives; what `observe` returns, to be used in one ``with`` or ``async with`` block.

    Its methods may be called from any thread and never raise for what a server sent: what they do not understand is
    left out. Outside the block they do nothing.
    """

    def __init__(self, request: RequestMetadata, operation: Operation, body: Mapping[str, object]) -> None:
        self._draft: tuple[RequestMetadata, Operation, Mapping[str, object]] | None = (request, operation, body)
        self._answer = _Answer(operation)
        self._exchange: Exchange | None = None
        # Re-entrant: an inline callback is told of a chunk while it is held.
        self._lock = threading.RLock()

    @property
    def request(self) -> RequestMetadata | None:
        """What callbacks were told of the request; None if nobody is told of this call."""
        return None if self._exchange is None else self._exchange.request

    def chunk(self, text: str, *, kind: ChunkKind = "text") -> None:
        """Tell of a chunk of a stream.

        Args:
            text: Its text; empty if it has none.
            kind: What it carries: ``text``, ``reasoning``, ``tool_call``, ``refusal``, ``audio`` or ``event``, which
                anything else is taken for.
        """
        with self._lock:
            if self._exchange is not None:
                self._exchange.chunk((text if isinstance(text, str) else "", kind if kind in _KINDS else "event"))

    def response(
        self,
        *,
        id: str | None = None,  # noqa: A002 - the name of the fact
        created: int | None = None,
        model: str | None = None,
        finish_reasons: Iterable[str] = (),
        usage: Usage | Mapping[str, object] | None = None,
        body: object = None,
        service_tier: str | None = None,
        status_code: int | None = None,
        request_id: str | None = None,
    ) -> None:
        """Say what came back; callbacks are told when the block ends. Said again, what is new is added.

        Args:
            id: Of the response.
            created: When the server says it made the answer, seconds since the epoch.
            model: The model that answered.
            finish_reasons: One per choice, as the provider spells them.
            usage: Token counts, or the provider's usage object in the spelling of OpenAI.
            body: The response, for callbacks that take JSON and for captured messages; else it is made of the facts
                and the chunks.
            service_tier: The tier that served the call.
            status_code: HTTP status.
            request_id: The provider's id of the HTTP request.
        """
        facts: ResponseFacts = {
            "id": label(id),
            "created": integer(created),
            "model": label(model),
            "finish_reasons": tuple([reason for reason in finish_reasons or () if isinstance(reason, str)]),
            "usage": usage if isinstance(usage, Usage) else read_usage(usage),
            "service_tier": label(service_tier),
        }
        with self._lock:
            if self._exchange is None:
                return
            answer = self._answer
            answer.given = True
            answer.facts_given.update({name: value for name, value in facts.items() if value})  # type: ignore[typeddict-item]
            answer.body_given = answer.body_given if body is None else body
            self._exchange.parsed(answer.body())
            if status_code is not None or request_id is not None:
                known = label(request_id)
                self._exchange.headers(count(status_code), {} if known is None else {"request_id": known})

    def __enter__(self) -> Self:
        """Tell of the request; its span is current until the block ends.

        Raises:
            RuntimeError: The call was made already; `observe` gives one object per call.
        """
        draft, self._draft = self._draft, None
        if draft is None:
            raise RuntimeError("this call was observed already; use observe() once per call")
        try:
            self._exchange = _begin(*draft, self._answer)
        except Exception as error:  # noqa: BLE001 - bodies of any shape are read here
            _faults.report("observe", error, "a call was not observed")
        if self._exchange is not None:
            self._exchange.send()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell of the end; an exception goes on untouched."""
        with self._lock:
            exchange, self._exchange = self._exchange, None
            if exchange is not None:
                cut_short = exchange.chunk_count and not self._answer.given
                _end(exchange, error, "closed_early" if cut_short else "completed")

    async def __aenter__(self) -> Self:
        """Tell of the request."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell of the end."""
        self.__exit__(kind, error, trace)


def observe(
    *,
    provider: str,
    operation: str = "chat",
    model: str | None = None,
    api: str = "custom",
    request: Mapping[str, object] | None = None,
    stream: bool = False,
    server_address: str | None = None,
    server_port: int | None = None,
) -> ObservedCall:
    """Tell callbacks and telemetry of a call that some other client makes: the same four events, driven by hand.

    Told are the callbacks of ``register()``, ``using()`` and ``instrument()``, and the adapter once ``instrument()``
    was called; ``openai`` need not be installed. ``suppress()`` and ``session()`` hold as for any call. Calls of a
    patched ``openai`` client inside the block are told as well, as calls of their own.

    The block is the call. Left by an exception, ``on_error`` is told. Left in any other way, ``on_response_received``
    is told, with what ``response()`` said: the outcome is ``completed``, or ``closed_early`` if there were chunks and
    ``response()`` was never called. A generator that is closed inside the block leaves the call ``abandoned``.

    Args:
        provider: ``gen_ai.provider.name``, such as ``anthropic``.
        operation: ``gen_ai.operation.name``, such as ``chat`` or ``invoke_agent``.
        model: The model as requested; None for the ``model`` of *request*.
        api: The API family. One that this package knows, such as ``responses``, says what shape bodies have; with any
            other they are read as those of chat completions as far as they go.
        request: The request body. It is content: only what the content settings allow is shown of it.
        stream: Whether the answer was asked for as a stream.
        server_address: Host of the server.
        server_port: Its port.

    Returns:
        The call, to be used once as a context manager, synchronous or not.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: *provider*, *operation* or *api* is empty.

    Example:
        >>> with observe(provider="anthropic", model="some-model", request={"messages": []}) as call:
        ...     call.response(id="msg_1", finish_reasons=("end_turn",), usage=Usage(input_tokens=3, output_tokens=5))
    """
    _check_names(provider=provider, operation=operation, api=api)
    _check_types(model=(model, str), request=(request, Mapping), server_address=(server_address, str))
    _check_types(server_port=(server_port, int), stream=(stream, bool))
    body = request or {}
    draft = RequestMetadata(
        call_id=new_id(),
        api=api,
        operation=operation,
        provider=provider,
        started_ns=0,
        stream=stream or body.get("stream") is True,
        model=model,
        server_address=server_address,
        server_port=server_port,
    )
    shape = _SHAPES.get(api, _CHAT)
    return ObservedCall(draft, replace(shape, name=operation, api=api, where=operation, job=None), body)


def _check_names(**names: object) -> None:
    _check_types(**{name: (value, str) for name, value in names.items() if value is not None})
    for name, value in names.items():
        if not value:
            raise ValueError(f"observe({name}={value!r}) is not allowed; allowed: a name that is not empty")


def _check_types(**given: tuple[object, type]) -> None:
    for name, (value, kind) in given.items():
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"observe({name}=) is {type(value).__name__}; it must be {kind.__name__}")


def _begin(
    draft: RequestMetadata, operation: Operation, body: Mapping[str, object], answer: _Answer
) -> Exchange | None:
    """Start the exchange; None if nobody is told."""
    if running_hook.get():
        return None
    if has_abandoned():
        sweep(_SWEPT_PER_CALL)
    scope = current.get()
    dispatcher = told_of_calls(REGISTRY.dispatcher, scope, is_suppressed)
    if dispatcher is None:
        return None
    facts: dict[str, Any] = {**operation.request(body), **(scope.session.facts if scope and scope.session else {})}
    if draft.model is not None:
        facts["model"] = draft.model
    if dispatcher.measures:
        facts["context_length"] = operation.context_length(body)
    return _exchange(replace(draft, started_ns=time.time_ns(), **facts), operation, dispatcher, body, answer)


def _exchange(
    request: RequestMetadata, operation: Operation, dispatcher: Dispatcher, body: Mapping[str, object], answer: _Answer
) -> Exchange:
    manual = replace(
        operation,
        response=lambda _: answer.facts(),
        fold=answer.fold,
        chunk_text=_same,
        content=replace(operation.content, output_messages=answer.output),
    )
    return Exchange(
        request,
        manual,
        dispatcher,
        started=time.perf_counter_ns(),
        body=body,
        parse=None,
        wrap=_same_of,
        redactor=REGISTRY.redactor,
        prices=REGISTRY.prices,
    )


def _same(chunk: tuple[str, ChunkKind]) -> tuple[str, ChunkKind]:
    return chunk


def _same_of(parsed: Any, _: Exchange) -> Any:
    return parsed  # the SDK's parser hook, which no SDK calls here


def _end(exchange: Exchange, error: BaseException | None, outcome: Outcome) -> None:
    if error is None:
        exchange.sent(None)
        exchange.finish(outcome)
        return
    try:
        if isinstance(error, GeneratorExit):  # perhaps from the collector: no callbacks here
            exchange.abandon()
        else:
            exchange.fail(error)
    finally:
        exchange.sent(error)
