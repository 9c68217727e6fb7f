"""Every private name of the SDK that this package touches, and nothing else.

Every resource method, helper and paginator of the SDK ends in ``client.request``, and whatever that returns went
through ``options.post_parser``. So three methods of the two client classes are wrapped, and our exchange is put into
the request options as their post-parser. A target that is missing degrades alone and is named in ``Patch.missing``.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from openai import AsyncOpenAI, AsyncStream, OpenAI, Stream
from openai._legacy_response import LegacyAPIResponse
from openai._response import APIResponse, AsyncAPIResponse
from wrapt import FunctionWrapper

from . import _faults
from ._dispatch import Dispatcher, running_hook
from ._exchange import Estimate, Exchange, has_abandoned, sweep, watch_collector
from ._headers import read_headers
from ._operations import Operation, find_operation
from ._providers import provider_of
from ._sampling import new_id
from ._scope import Scope, Session, SessionFacts, current, told_of_calls
from ._streams import (
    Body,
    ObservedAsyncResponse,
    ObservedAsyncStream,
    ObservedResponse,
    ObservedStream,
    observe,
)
from .content import Estimator, Redactor, json_text
from .prices import PriceSource
from .types import new_request

if TYPE_CHECKING:
    from . import _websockets

_NO_BODY: Final[Mapping[str, Any]] = {}
_SWEPT_PER_CALL: Final = 16  # a program that drops thousands of streams at once must not pay for them in one call
_RAW_HEADER: Final = "X-Stainless-Raw-Response"
_REFUSALS: Final = (400, 422)
_NO_SESSION: Final[SessionFacts] = {}


@dataclass(slots=True, eq=False)
class Seam:
    """What the wrapped methods ask on every call; the instrumentor replaces the dispatcher as callbacks come and go.

    Attributes:
        dispatcher: Who is told.
        is_suppressed: True while OpenTelemetry's own suppression is on.
        active: False once uninstrumented: bound methods that were kept by then call straight through.
        estimator: Makes up for usage that was not reported.
        include_usage: Ask streams for usage where the caller did not.
        prices: Say what a call cost.
        redactor: For JSON at the level ``redacted``.
        hosts: The user's table of providers by host.
        on_first_call: Run once, when the first call is made; must not raise.
    """

    dispatcher: Dispatcher
    is_suppressed: Callable[[], bool]
    active: bool = True
    estimator: Estimator | None = None
    include_usage: bool = False
    prices: PriceSource | None = None
    redactor: Redactor | None = None
    hosts: Mapping[str, str] = field(default_factory=dict)
    on_first_call: Callable[[], None] | None = None
    endpoints: dict[tuple[type, int], tuple[object, _Endpoint]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Endpoint:
    provider: str
    address: str | None
    port: int | None


@dataclass(frozen=True, slots=True)
class Patch:
    """What was wrapped.

    Attributes:
        requests: Wrapped names of the clients, such as ``OpenAI.request``.
        lacking: Such names this version of the SDK lacks.
        undo: Puts the original attributes back.
        sockets: The same for sessions over a websocket, whose classes are wrapped when they are imported.
    """

    requests: tuple[str, ...]
    lacking: tuple[str, ...]
    undo: Callable[[], None]
    sockets: _websockets.Coverage

    @property
    def covered(self) -> tuple[str, ...]:
        """Wrapped names, such as ``OpenAI.request``."""
        return (*self.requests, *self.sockets.covered)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names this version of the SDK lacks."""
        return (*self.lacking, *self.sockets.missing)


def patch(seam: Seam) -> Patch:
    """Wrap the client classes."""
    covered: list[str] = []
    missing: list[str] = []
    restores: list[Callable[[], None]] = []
    for owner in (OpenAI, AsyncOpenAI):
        for name, wrapper in _wrappers(seam, is_async=owner is AsyncOpenAI).items():
            label = f"{owner.__name__}.{name}"
            if hasattr(owner, name):
                restores.append(_replace(owner, name, wrapper))
                covered.append(label)
            else:
                missing.append(label)
    from . import _websockets  # which needs what is defined here

    sockets = _websockets.patch(seam)
    watch_collector(on=True)

    def undo() -> None:
        seam.active = False
        for restore in reversed(restores):
            restore()
        sockets.undo()
        watch_collector(on=False)

    return Patch(tuple(covered), tuple(missing), undo, sockets)


def patch_client(seam: Seam, client: Any, copied: Callable[[Any], None]) -> Callable[[], None]:
    """Wrap one client; *copied* is told of each client made from it.

    Returns:
        What puts its attributes back.

    Raises:
        TypeError: It is no client.
    """
    if not isinstance(client, (OpenAI, AsyncOpenAI)):
        raise TypeError(f"{type(client).__name__} is no client; allowed: an OpenAI or AsyncOpenAI object")

    def copy(wrapped: Any, _client: Any, args: Any, kwargs: Any) -> Any:
        made = wrapped(*args, **kwargs)
        copied(made)
        return made

    wrappers = {**_wrappers(seam, is_async=isinstance(client, AsyncOpenAI)), "copy": copy, "with_options": copy}
    restores = [_replace(client, name, wrapper) for name, wrapper in wrappers.items() if hasattr(client, name)]
    watch_collector(on=True)

    def undo() -> None:
        seam.active = False
        for restore in reversed(restores):
            restore()
        watch_collector(on=False)

    return undo


def _wrappers(seam: Seam, *, is_async: bool) -> dict[str, Callable[..., Any]]:
    def request(wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
        begun = _begin(seam, client, args, kwargs)
        if begun is None:
            return wrapped(*args, **kwargs)
        exchange, args, kwargs = begun
        try:
            exchange.send()
            result = wrapped(*args, **kwargs)
        except BaseException as error:
            _fail(exchange, error)
            raise
        exchange.sent(None)
        return _settle(exchange, result)

    async def arequest(wrapped: Any, client: Any, args: Any, kwargs: Any) -> Any:
        begun = _begin(seam, client, args, kwargs)
        if begun is None:
            return await wrapped(*args, **kwargs)
        exchange, args, kwargs = begun
        try:
            exchange.send()
            result = await wrapped(*args, **kwargs)
        except BaseException as error:
            _fail(exchange, error)
            raise
        exchange.sent(None)
        return _settle(exchange, result)

    return {
        "request": arequest if is_async else request,
        "_process_response": _process_response,
        "_calculate_retry_timeout": _retry_scheduled,
    }


def _process_response(wrapped: Any, _client: Any, args: Any, kwargs: Any) -> Any:
    # One plain function serves both clients: it only looks at keyword arguments.
    exchange = _exchange_of(kwargs.get("options"))
    if exchange is not None and not exchange.unheard and (response := kwargs.get("response")) is not None:
        exchange.http = response
        _note_headers(exchange, response)
    return wrapped(*args, **kwargs)


def _retry_scheduled(wrapped: Any, _client: Any, args: Any, kwargs: Any) -> Any:
    exchange = _exchange_of(kwargs.get("options", args[1] if len(args) > 1 else None))
    before = 0 if exchange is None else exchange.retry_count
    delay_s = wrapped(*args, **kwargs)
    if exchange is not None and exchange.retry_count == before:  # else the class is wrapped as well as the client
        cause = sys.exc_info()[1]  # the SDK schedules retries while it handles what went wrong
        status = getattr(getattr(cause, "response", None), "status_code", None)
        exchange.retry(delay_s, type(cause).__name__ if cause is not None else None, status)
    return delay_s


def _begin(seam: Seam, client: Any, args: Any, kwargs: Any) -> tuple[Exchange, Any, Any] | None:
    """Start an exchange; None if the call is not to be observed."""
    exchange: Exchange | None = None
    try:
        in_kwargs = "options" in kwargs
        options = kwargs["options"] if in_kwargs else args[1]
        found = find_operation(options.method, options.url)
        if found is None or type(options.post_parser) is Exchange:
            return None
        if has_abandoned():
            sweep(_SWEPT_PER_CALL)
        scope = current.get()
        dispatcher = _dispatcher(seam, scope)
        if dispatcher is None:
            return None
        exchange = _open(
            seam,
            client,
            options,
            operation=found[0],
            arguments=found[1],
            dispatcher=dispatcher,
            session=scope.session if scope is not None else None,
            stream=bool(kwargs.get("stream")),
        )
        options = _copy(options, exchange)
        if seam.include_usage and exchange.request.stream and found[0].asks_usage:
            _ask_for_usage(options, exchange)
    except Exception as error:  # noqa: BLE001 - SDK objects of any version pass here
        _faults.report("begin", error, "a call was not observed")
        if exchange is not None:
            exchange.cancel()
        return None
    if in_kwargs:
        return exchange, args, {**kwargs, "options": options}
    return exchange, (args[0], options, *args[2:]), kwargs


def _copy(options: Any, exchange: Exchange) -> Any:
    """The caller's options with the exchange as post-parser.

    By pydantic's protocol for pickling, which takes half the time of its copying and is the same in all its versions.
    """
    state = options.__getstate__()
    state["__dict__"] = {**state["__dict__"], "post_parser": exchange}
    kind: Any = type(options)
    copy = kind.__new__(kind)
    copy.__setstate__(state)
    return copy


def _ask_for_usage(options: Any, exchange: Exchange) -> None:
    """Have the stream carry usage, unless the caller has decided that, or reads the body's lines himself."""
    body = options.json_data
    asked = body.get("stream_options") if isinstance(body, Mapping) else None
    raw = options.headers.get(_RAW_HEADER) if isinstance(options.headers, Mapping) else None
    if not isinstance(body, Mapping) or raw == "stream" or (isinstance(asked, Mapping) and "include_usage" in asked):
        return
    extra = {**asked, "include_usage": True} if isinstance(asked, Mapping) else {"include_usage": True}
    options.json_data = {**body, "stream_options": extra}
    exchange.hides_usage = True


def _dispatcher(seam: Seam, scope: Scope | None) -> Dispatcher | None:
    """Who is to be told of a call made now; None if nobody."""
    if not seam.active or running_hook.get():
        return None
    return told_of_calls(seam.dispatcher, scope, seam.is_suppressed)


def _open(
    seam: Seam,
    client: Any,
    options: Any,
    *,
    operation: Operation,
    arguments: Mapping[str, str],
    dispatcher: Dispatcher,
    session: Session | None,
    stream: bool,
) -> Exchange:
    body = _mapping(options.json_data)
    if isinstance(extra := getattr(options, "extra_json", None), Mapping):
        body = {**body, **extra}
    if arguments:  # what stands in path and query is part of what was asked
        body = {**_mapping(options.params), **arguments, **body}
    endpoint = _endpoint(seam, client)
    started = time.perf_counter_ns()
    request = new_request(
        call_id=new_id(),
        api=operation.api,
        operation=operation.name,
        provider=endpoint.provider,
        started_ns=time.time_ns(),
        stream=stream or body.get("stream") is True,
        server_address=endpoint.address,
        server_port=endpoint.port,
        context_length=operation.context_length(body) if dispatcher.measures else None,
        **operation.request(body),
        **(_NO_SESSION if session is None else session.facts),
    )
    return Exchange(
        request,
        operation,
        dispatcher,
        started=started,
        body=body,
        parse=options.post_parser if callable(options.post_parser) else None,
        wrap=_wrap,
        redactor=seam.redactor,
        estimate=None if seam.estimator is None else _estimate(seam.estimator, request.model, body),
        prices=seam.prices,
    )


def _estimate(estimator: Estimator, model: str | None, body: Mapping[str, Any]) -> Estimate:
    return lambda answer: None if answer is None else estimator(model, json_text(body), json_text(answer))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else _NO_BODY


def _endpoint(seam: Seam, client: Any) -> _Endpoint:
    """Facts about the client's base URL, worked out once per URL object."""
    url = client._base_url if hasattr(client, "_base_url") else client.base_url  # the property costs forty times more
    key = (type(client), id(url))
    known = seam.endpoints.get(key)
    if known is not None and known[0] is url:
        return known[1]
    if seam.on_first_call is not None:  # looked for here, where it costs calls to a known server nothing
        look, seam.on_first_call = seam.on_first_call, None
        look()
    host = url.host or None
    port = url.port or {"https": 443, "http": 80}.get(url.scheme)
    runtime = getattr(getattr(client, "_provider_runtime", None), "name", None)
    provider = provider_of(type(client), runtime, host or "", url.path, seam.hosts)
    endpoint = _Endpoint(provider, host, port if host else None)
    if len(seam.endpoints) >= 256:  # noqa: PLR2004 - programs with a client per request must not grow us
        seam.endpoints.clear()
    seam.endpoints[key] = (url, endpoint)
    return endpoint


def _fail(exchange: Exchange, error: BaseException) -> None:
    if isinstance(error, GeneratorExit):  # the coroutine was thrown away, perhaps by the collector: no callbacks here
        exchange.abandon()
        exchange.sent(error)
        return
    with contextlib.suppress(Exception):
        if (response := getattr(error, "response", None)) is not None:
            _note_headers(exchange, response)
        if exchange.hides_usage and getattr(error, "status_code", None) in _REFUSALS:
            _explain(error)
    try:
        exchange.fail(error)
    finally:
        exchange.sent(error)


def _explain(error: BaseException) -> None:
    """Say that the request was not quite the caller's, which may be why it was refused."""
    note = "otel-llm-callback added stream_options.include_usage to this request; include_usage=False prevents that"
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note(note)
    _faults.logger.warning("%s (status %s)", note, getattr(error, "status_code", None))


def _note_headers(exchange: Exchange, response: Any) -> None:
    try:
        exchange.headers(response.status_code, read_headers(response.headers.raw))
    except Exception as error:  # noqa: BLE001 - whatever HTTP library the caller brought
        _faults.report("headers", error, "response headers were not read")


def _wrap(parsed: Any, exchange: Exchange) -> Any:
    """What the SDK parsed, observed if it is a stream."""
    if isinstance(parsed, Stream):
        return observe(parsed, exchange, ObservedStream)
    if isinstance(parsed, AsyncStream):
        return observe(parsed, exchange, ObservedAsyncStream)
    exchange.parsed(parsed)
    return parsed


def _settle(exchange: Exchange, result: Any) -> Any:
    """End the exchange if its body was read, else when the caller is done with it."""
    if exchange.unheard:
        return result
    try:
        http, exchange.http = exchange.http, None  # a response that holds its exchange would be a cycle
        if http is None:
            http = _http_response_of(result)
        if http is None or http.is_closed:
            if isinstance(result, LegacyAPIResponse):
                with contextlib.suppress(Exception):  # the caller's own parse() will raise it
                    result.parse()
            exchange.body_read = True
            exchange.finish()
        elif isinstance(result, (APIResponse, AsyncAPIResponse)):
            behaviour = ObservedResponse if isinstance(result, APIResponse) else ObservedAsyncResponse
            observed = observe(result, exchange, behaviour)
            http.stream = Body(http.stream, exchange, ends=False)
            return observed
        else:
            http.stream = Body(http.stream, exchange, ends=True)
    except Exception as error:  # noqa: BLE001 - SDK objects of any version pass here
        _faults.report("settle", error, "the end of a call may go unseen")
    return result


def _http_response_of(result: Any) -> Any:
    # Only where `_process_response` could not be wrapped.
    with contextlib.suppress(Exception):
        response = getattr(result, "http_response", None) or getattr(result, "response", None)
        return response if hasattr(response, "is_closed") else None
    return None


def _exchange_of(options: Any) -> Exchange | None:
    parser = getattr(options, "post_parser", None)
    return parser if type(parser) is Exchange else None


def _replace(owner: Any, name: str, wrapper: Any) -> Callable[[], None]:
    """Wrap the method on *owner*, a class or a client, and return what takes the wrapper off again."""
    inherited = name not in vars(owner)
    original = getattr(owner, name)
    ours = FunctionWrapper(original, wrapper)
    setattr(owner, name, ours)

    def restore() -> None:
        if vars(owner).get(name) is not ours:  # somebody has wrapped us since; theirs stays, ours does nothing
            return
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, original)

    return restore
