"""Sessions over a websocket: every private name of the SDK that observing them touches, and nothing else.

Such a session does not go through ``client.request``. Five methods are wrapped: the manager's ``__enter__`` opens a
session and its ``send`` queues events until then; the connection's ``send_raw`` shows what the client asks,
``parse_event`` what the server answers, and ``recv_bytes`` and ``close`` how the connection ends. Each session is an
exchange, and so is each response in it, with the session's span as its parent.

The modules of the SDK that hold these classes are large, so each is patched when the program imports it. A target that
is missing degrades alone and is named in ``Coverage.missing``.

A program that takes raw messages with ``recv_bytes`` and never has them parsed shows no answers here.
"""

from __future__ import annotations

import contextvars
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from wrapt import register_post_import_hook

from . import _faults, _openai
from ._exchange import Exchange, _streaming, has_abandoned, sweep
from ._jobs import Once
from ._operations import Operation
from ._readers import all_fields, fields, label
from ._realtime import (
    LIVE_DECISION,
    LIVE_RESPONSE,
    LIVE_SESSION,
    REALTIME_RESPONSE,
    REALTIME_SESSION,
    RESPONSES_SESSION,
    SOCKET_RESPONSE,
    TRANSLATION_SESSION,
    without_sound,
)
from ._sampling import new_id
from ._scope import Scope, current
from .types import Outcome, RequestMetadata

_SWEPT_PER_SESSION: Final = 16
_MAX_DELEGATIONS: Final = 1024
_CREATE: Final = "response.create"
_NOT_GIVEN: Final = frozenset(("NotGiven", "Omit"))
_TERMINAL: Final = frozenset(
    ("response.done", "response.completed", "response.failed", "response.incomplete", "response.cancelled")
)


@dataclass(slots=True)
class Coverage:
    """What was wrapped so far; it grows as the program imports more of the SDK.

    Attributes:
        covered: Wrapped names, such as ``RealtimeConnection.parse_event``.
        missing: Names this version of the SDK lacks although it has the module.
        undo: Puts the original attributes back and ends what is open.
    """

    covered: list[str]
    missing: list[str]
    undo: Callable[[], None]


@dataclass(slots=True, eq=False)
class _Waiting:
    """A response the client asked for and the server has not begun; *exchange* is None if nobody is told of it."""

    exchange: Exchange | None
    event: Mapping[str, Any]


class _Session:
    """One connection, from its opening to its end."""

    operation: Operation
    response: Operation | None = None

    def __init__(self, seam: _openai.Seam, manager: Any) -> None:
        self._seam = seam
        self._scope = current.get()
        client = _private(manager, "client")
        self._place = _place(seam, client)
        query = fields(_private(manager, "extra_query"))
        self._asked_model = label(_private(manager, "model")) or label(query.get("model"))
        self._model = self._asked_model  # until the server names its own
        self._lock = threading.Lock()  # held for bookkeeping only, never while a callback runs
        self._waiting: list[_Waiting] = []
        self._active: dict[object, Exchange | None] = {}
        self._lost: BaseException | None = None
        self._reconnects = False
        self._closing = False
        self._context: contextvars.Context | None = None
        exchange = self._exchange(self.operation, {}, self._scope, stream=False)
        if exchange is None:
            raise LookupError
        self.exchange = exchange
        _streaming.add(exchange)  # at the exit of the program it is ended as an open stream is

    # --- Opening ------------------------------------------------------------------------------------------------------

    def send(self) -> None:
        """Tell that the connection is being opened; its span is current until it is."""
        self.exchange.send()
        self._context = contextvars.copy_context()

    def opened(self, connection: Any, queued: list[Mapping[str, Any]]) -> None:
        """Take note of the connection and of the events that went out with its opening."""
        self.exchange.sent(None)
        self._reconnects = getattr(connection, "_on_reconnecting", None) is not None
        for event in queued:
            self.asked(event)

    def refused(self, error: BaseException) -> None:
        """End: there is no connection."""
        if isinstance(error, GeneratorExit):  # the coroutine was thrown away, perhaps by the collector
            self.exchange.abandon()
        else:
            status = getattr(getattr(error, "response", None), "status_code", None)
            self.exchange.headers(status if isinstance(status, int) else None, {})
            self.exchange.fail(error)
        self.exchange.sent(error)

    # --- What the client asks -----------------------------------------------------------------------------------------

    def asked(self, event: Mapping[str, Any]) -> _Waiting:
        """Begin the response that a ``response.create`` event asks for."""
        waiting = _Waiting(self._begin(self.response, self._body(event)), self._mark(event))
        with self._lock:
            self._waiting.append(waiting)
        return waiting

    def unsent(self, waiting: _Waiting, error: BaseException) -> None:
        """End a response that could not be asked for."""
        with self._lock:
            if waiting not in self._waiting:
                return
            self._waiting.remove(waiting)
        exchange = waiting.exchange
        if exchange is None:
            return
        if isinstance(error, GeneratorExit):
            exchange.abandon()
        else:
            exchange.fail(error)

    def _begin(self, operation: Operation | None, body: Mapping[str, Any], *, stream: bool = True) -> Exchange | None:
        # In the session's context, so that its span is the parent; a copy, as two threads may be at this at once.
        if operation is None or self._context is None:
            return None
        exchange = self._exchange(self._reader(operation), body, current.get() or self._scope, stream=stream)
        if exchange is not None:
            self._context.copy().run(_tell, exchange)
        return exchange

    def _exchange(
        self, operation: Operation, body: Mapping[str, Any], scope: Scope | None, *, stream: bool
    ) -> Exchange | None:
        dispatcher = _openai._dispatcher(self._seam, scope)
        if dispatcher is None:
            return None
        provider, address, port = self._place
        started = time.perf_counter_ns()
        session: Any = {} if scope is None or scope.session is None else scope.session.facts
        facts: Any = {"model": self._usual_model(), **operation.request(body)}
        request = RequestMetadata(
            call_id=new_id(),
            api=operation.api,
            operation=operation.name,
            provider=provider,
            started_ns=time.time_ns(),
            stream=stream,
            server_address=address,
            server_port=port,
            context_length=operation.context_length(body) if dispatcher.measures else None,
            **facts,
            **session,
        )
        return Exchange(
            request,
            operation,
            dispatcher,
            started=started,
            body=body,
            parse=None,
            wrap=_as_it_is,
            redactor=self._seam.redactor,
            prices=self._seam.prices,
        )

    # --- What the server answers --------------------------------------------------------------------------------------

    def event(self, event: Any) -> None:
        """Take in an event of the server."""
        data = fields(event)
        kind = data.get("type")
        if not isinstance(kind, str):
            return
        self._lost = None  # the connection is there, perhaps again
        if kind.startswith("session."):
            self._note_session(all_fields(data.get("session")))
        elif self.response is None:
            return
        elif kind == "error":
            self._refuse(event)
        elif kind.startswith("response."):
            self._feed(kind, event)

    def _note_session(self, session: Mapping[str, Any]) -> None:
        model = label(session.get("model"))
        if model is not None or session.get("id") is not None:
            self._model = model or self._model
            # The rest of it is content, such as instructions.
            self.exchange.parsed({"id": session.get("id"), "model": self._model})

    def _feed(self, kind: str, event: Any) -> None:
        key = self._key(event)
        with self._lock:
            known = key in self._active
            exchange = self._active.get(key)
            if kind in _TERMINAL:
                self._active.pop(key, None)
        if kind == "response.created" and not known:
            exchange = self._started(key, event)
        if exchange is not None:
            exchange.chunk(event)
            if kind in _TERMINAL:
                exchange.finish()

    def _started(self, key: object, event: Any) -> Exchange | None:
        """The response that the server begins: one that was asked for, else one of its own."""
        with self._lock:
            waiting = self._match(event)
            if waiting is not None:
                self._waiting.remove(waiting)
        exchange = self._begin_unasked(event) if waiting is None else waiting.exchange
        with self._lock:
            self._active[key] = exchange
        return exchange

    def _begin_unasked(self, _event: Any) -> Exchange | None:
        """Begin a response that is the server's own doing."""
        return self._begin(self.response, {})

    def _refuse(self, event: Any) -> None:
        """End the response that an ``error`` event is about, if it is about one."""
        with self._lock:
            exchange = self._take_refused(event)
        if exchange is not None:
            exchange.chunk(event)
            exchange.finish()

    # --- The end ------------------------------------------------------------------------------------------------------

    def closing(self) -> None:
        """Note that the client closes the connection, which is what ends it from now on."""
        self._closing = True

    def closed(self) -> None:
        """End what is open: the client closed the connection."""
        early: Outcome = "completed"
        for exchange in self._take_all():
            exchange.finish("closed_early")
            early = "closed_early"
        if self._lost is not None and not _is_normal(self._lost):
            self.exchange.fail(self._lost)
        else:
            self.exchange.finish(early)

    def lost(self, error: BaseException) -> None:
        """End what is open if *error* says that the connection is gone and the client did not close it."""
        if self._closing or not _is_closed(error):
            return
        for exchange in self._take_all():
            exchange.fail(error)
        self._lost = error
        if self._reconnects:  # the SDK may bring the session back; if not, closing it ends it
            return
        if _is_normal(error):
            self.exchange.finish()
        else:
            self.exchange.fail(error)

    def abandoned(self, *, now: bool) -> None:
        """End what is open because nobody watches any more; later unless *now*, for finalisers."""
        for exchange in (*self._take_all(), self.exchange):
            if now:
                exchange.finish("abandoned")
            else:
                exchange.abandon()

    def _take_all(self) -> list[Exchange]:
        with self._lock:
            exchanges = [*self._active.values(), *(waiting.exchange for waiting in self._waiting)]
            self._active.clear()
            self._waiting.clear()
        return [exchange for exchange in exchanges if exchange is not None]

    # --- What differs between the APIs --------------------------------------------------------------------------------

    def _usual_model(self) -> str | None:
        """The model of a request that names none."""
        return self._asked_model or self._model

    def _reader(self, operation: Operation) -> Operation:
        return operation

    def _body(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        """The part of a ``response.create`` event that is the request."""
        return {key: value for key, value in event.items() if key != "type"}

    def _mark(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        """The part of a ``response.create`` event by which its answer is known."""
        return {"stream_id": label(event.get("stream_id"))}

    def _key(self, event: Any) -> object:
        """What is the same for all events of one response, and for no other's."""
        return label(all_fields(event).get("stream_id"))

    def _match(self, event: Any) -> _Waiting | None:
        """Which of those asked for the server begins."""
        lane = self._key(event)
        return next((waiting for waiting in self._waiting if waiting.event["stream_id"] == lane), None)

    def _take_refused(self, event: Any) -> Exchange | None:
        """Take out the response that an ``error`` event ends."""
        data, lane = fields(event), self._key(event)
        waiting = self._match(event)
        if lane in self._active and (waiting is None or data.get("sequence_number") is not None):
            return self._active.pop(lane)
        if waiting is None:
            return None
        self._waiting.remove(waiting)
        return waiting.exchange


class _ResponsesSession(_Session):
    """The Responses API: responses follow one another, in each lane by itself."""

    operation = RESPONSES_SESSION
    response = SOCKET_RESPONSE


class _RealtimeSession(_Session):
    """The Realtime API: events name their response, and the server may begin one by itself."""

    operation = REALTIME_SESSION
    response = REALTIME_RESPONSE

    def _reader(self, operation: Operation) -> Operation:
        return replace(operation, fold=partial(operation.fold, model=self._model))

    def _body(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        return without_sound(fields(event.get("response")))

    def _mark(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "event_id": label(event.get("event_id")),
            "metadata": fields(event.get("response")).get("metadata") or None,
        }

    def _key(self, event: Any) -> object:
        data = all_fields(event)
        return label(data.get("response_id")) or label(fields(data.get("response")).get("id"))

    def _match(self, event: Any) -> _Waiting | None:
        # The API tells responses apart by their metadata; without any, they begin in the order they were asked for.
        metadata = fields(fields(event).get("response")).get("metadata") or None
        same = (waiting for waiting in self._waiting if waiting.event["metadata"] == metadata)
        return next(same, self._waiting[0] if self._waiting else None)

    def _take_refused(self, event: Any) -> Exchange | None:
        # Most errors are about something else and the session goes on; those about an event of the client name it.
        about = all_fields(all_fields(event).get("error")).get("event_id")
        for waiting in self._waiting:
            if waiting.event["event_id"] == about:
                self._waiting.remove(waiting)
                return waiting.exchange
        return None


class _TranslationSession(_Session):
    operation = TRANSLATION_SESSION


class _LiveSession(_Session):
    """The Live API: the voice model hands work to a model of the Responses or Decisions API, whose events are nested.

    What the voice model takes is told in seconds, not in tokens, so only what it hands on are responses.
    """

    operation = LIVE_SESSION
    response = LIVE_RESPONSE

    def __init__(self, seam: _openai.Seam, manager: Any) -> None:
        super().__init__(seam, manager)
        self._backend: Mapping[str, Any] = {}
        self._delegated: dict[str, None] = {}

    def event(self, event: Any) -> None:
        """Take in an event of the server."""
        data = fields(event)
        kind = data.get("type")
        if kind == "response.event":
            self._nested(data)
        elif kind == "decision.event":
            self._decided(data)
        elif kind == "session.delegation.created":
            self._note_delegation(fields(data.get("delegation")))
        else:
            super().event(event)

    def _nested(self, data: Mapping[str, Any]) -> None:
        inner, self._lost = fields(data.get("event")), None
        event = SimpleNamespace(**{**inner, "stream_id": data.get("delegation_id")})
        kind = inner.get("type")
        if kind == "error":
            with self._lock:
                exchange = self._active.pop(self._key(event), None)
            if exchange is not None:
                exchange.chunk(event)
                exchange.finish()
        elif isinstance(kind, str) and kind.startswith("response."):
            self._feed(kind, event)

    def _note_session(self, session: Mapping[str, Any]) -> None:
        super()._note_session(session)
        if (delegation := session.get("delegation")) is not None:
            own = all_fields(delegation)
            self._backend = all_fields(own.get("responses") or own.get("decisions"))

    def _note_delegation(self, delegation: Mapping[str, Any]) -> None:
        target, name = delegation.get("target"), label(delegation.get("id"))
        if name is None:
            return
        if target == "responses":
            if len(self._delegated) < _MAX_DELEGATIONS:
                self._delegated[name] = None
        elif target == "decisions":
            exchange = self._begin(LIVE_DECISION, self._backend, stream=False)
            with self._lock:
                self._active["decision", name] = exchange

    def _decided(self, data: Mapping[str, Any]) -> None:
        """End a decision; one that a transcript triggered is seen at its end only, and begins there."""
        key = ("decision", label(data.get("delegation_id")))
        with self._lock:
            known = key in self._active
            exchange = self._active.pop(key, None)
        if not known:
            exchange = self._begin(LIVE_DECISION, {}, stream=False)
        if exchange is not None:
            exchange.parsed(fields(data.get("event")).get("decision"))
            exchange.finish()

    def _begin_unasked(self, event: Any) -> Exchange | None:
        # Several connections of one program may watch the same session.
        name = label(fields(fields(event).get("response")).get("id"))
        return self._begin(self.response, self._backend) if name is None or _seen.is_new(name) else None

    def _usual_model(self) -> str | None:
        return None  # that of the session speaks; what is handed on goes to another one

    def _body(self, _event: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._backend

    def _mark(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"event_id": label(event.get("event_id"))}

    def _match(self, event: Any) -> _Waiting | None:
        lane = self._key(event)
        if isinstance(lane, str) and self._delegated.pop(lane, False) is None:
            return None  # the first response of a delegation was asked for by the voice model
        name = label(fields(fields(event).get("response")).get("id"))
        if self._waiting and name is not None:
            _seen.is_new(name)
        return self._waiting[0] if self._waiting else None

    def _take_refused(self, event: Any) -> Exchange | None:
        about = label(all_fields(all_fields(event).get("error")).get("client_event_id"))
        for waiting in self._waiting:
            if about is not None and waiting.event["event_id"] == about:
                self._waiting.remove(waiting)
                return waiting.exchange
        return None


_seen: Final = Once()
"""Responses in live sessions that were told of."""


# Module of the SDK and what its classes begin with -> how its sessions are read.
_MODULES: Final[Mapping[tuple[str, str], type[_Session]]] = {
    ("openai.resources.realtime.realtime", "Realtime"): _RealtimeSession,
    ("openai.resources.beta.realtime.realtime", "Realtime"): _RealtimeSession,
    ("openai.resources.responses.responses", "Responses"): _ResponsesSession,
    ("openai.resources.beta.responses.responses", "Responses"): _ResponsesSession,
    ("openai.resources.realtime.translations.translations", "Translations"): _TranslationSession,
    ("openai.resources.live.live", "Live"): _LiveSession,
    ("openai.resources.live.forks", "Forks"): _LiveSession,
    ("openai.resources.live.sideband", "Sideband"): _LiveSession,
}


@dataclass(slots=True, eq=False)
class _Sockets:
    """All that is observed between one ``patch`` and its ``undo``."""

    seam: _openai.Seam
    coverage: Coverage
    sessions: WeakKeyDictionary[Any, _Session] = field(default_factory=WeakKeyDictionary)
    queued: WeakKeyDictionary[Any, list[Mapping[str, Any]]] = field(default_factory=WeakKeyDictionary)
    restores: list[Callable[[], None]] = field(default_factory=list)
    shared: set[tuple[Any, str]] = field(default_factory=set)

    def cover(self, module: Any, prefix: str, kind: type[_Session]) -> None:
        """Wrap the classes of a module, if it has any: before a certain version it has not."""
        where = "beta." if ".beta." in module.__name__ else ""
        for start in ("", "Async"):
            manager = getattr(module, f"{start}{prefix}ConnectionManager", None)
            connection = getattr(module, f"{start}{prefix}Connection", None)
            if manager is None and connection is None:
                if hasattr(getattr(module, f"{start}{prefix}", None), "connect"):
                    self.coverage.missing.append(f"{where}{start}{prefix}ConnectionManager")
                continue
            wrappers = _async_wrappers(self, kind) if start else _wrappers(self, kind)
            enter = "__aenter__" if start else "__enter__"
            for name, key, is_needed in ((enter, "enter", True), ("enter", "enter", True), ("send", "queue", False)):
                self._wrap(
                    manager, f"{where}{start}{prefix}ConnectionManager", name, wrappers[key], is_needed=is_needed
                )
            named = f"{where}{start}{prefix}Connection"
            for name in ("recv_bytes", "parse_event", "close"):
                self._wrap(connection, named, name, wrappers[name])
            for name in _senders(connection):
                self._wrap(connection, named, name, wrappers["send"])

    def _wrap(self, owner: Any, label: str, name: str, wrapper: Any, *, is_needed: bool = True) -> None:
        found = None if owner is None else next((base for base in owner.__mro__ if name in vars(base)), None)
        if found is None:
            if is_needed:
                self.coverage.missing.append(f"{label}.{name}")
            return
        # A method that all connections share is wrapped where it is: the SDK calls it there by name.
        target = (found, name)
        if target not in self.shared:
            self.shared.add(target)
            self.restores.append(_openai._replace(found, name, wrapper))
        self.coverage.covered.append(f"{label}.{name}")

    def undo(self) -> None:
        """Put the original attributes back; what is open has nobody to see its end and ends here."""
        for restore in reversed(self.restores):
            restore()
        self.restores.clear()
        for session in list(self.sessions.values()):
            session.abandoned(now=True)
        self.sessions.clear()
        self.queued.clear()

    def open(self, kind: type[_Session], manager: Any) -> _Session | None:
        """Begin to observe a session; None if nobody is told of it."""
        if not self.seam.active:
            return None
        if has_abandoned():
            sweep(_SWEPT_PER_SESSION)
        try:
            return kind(self.seam, manager)
        except LookupError:
            return None
        except Exception as error:  # noqa: BLE001 - SDK objects of any version pass here
            _faults.report("websocket", error, "a session was not observed")
            return None

    def opened(self, session: _Session, manager: Any, connection: Any) -> None:
        """Take note of an open connection."""
        with _guarded():
            session.opened(connection, self.queued.pop(manager, []))
            self.sessions[connection] = session

    def asked(self, connection: Any, args: Any, kwargs: Any) -> tuple[_Session, _Waiting] | None:
        """Begin a response if the client asks for one."""
        session = self.sessions.get(connection)
        if session is None or session.response is None:
            return None
        with _guarded():
            event = _creation(args, kwargs)
            if event is not None:
                return session, session.asked(event)
        return None


def patch(seam: _openai.Seam) -> Coverage:
    """Wrap the connections of every API that has them, now or when the program imports it."""
    coverage = Coverage([], [], lambda: None)
    sockets = _Sockets(seam, coverage)

    def undo() -> None:
        _observing.remove(sockets)
        sockets.undo()

    coverage.undo = undo
    _observing.append(sockets)
    for (module, prefix), kind in _MODULES.items():
        if module in sys.modules:
            _cover(sockets, sys.modules[module], prefix, kind)
        elif module not in _watched:  # a hook cannot be taken back, so there is one for all times
            _watched.add(module)
            register_post_import_hook(partial(_imported, prefix, kind), module)
    return coverage


_observing: Final[list[_Sockets]] = []
_watched: Final[set[str]] = set()


def _imported(prefix: str, kind: type[_Session], module: Any) -> None:
    for sockets in tuple(_observing):
        _cover(sockets, module, prefix, kind)


def _cover(sockets: _Sockets, module: Any, prefix: str, kind: type[_Session]) -> None:
    with _guarded():  # this runs inside an import statement of the program
        sockets.cover(module, prefix, kind)


class _guarded:  # noqa: N801 - used like a function
    """Report what fails inside and go on: SDK objects of any version pass here."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        _faults.report("websocket", error, "a session is not observed in full")
        return True


def _wrappers(sockets: _Sockets, kind: type[_Session]) -> dict[str, Callable[..., Any]]:
    def enter(wrapped: Any, manager: Any, args: Any, kwargs: Any) -> Any:
        session = sockets.open(kind, manager)
        if session is None:
            return wrapped(*args, **kwargs)
        try:
            session.send()
            connection = wrapped(*args, **kwargs)
        except BaseException as error:
            session.refused(error)
            raise
        sockets.opened(session, manager, connection)
        return connection

    def send(wrapped: Any, connection: Any, args: Any, kwargs: Any) -> Any:
        begun = sockets.asked(connection, args, kwargs)
        try:
            return wrapped(*args, **kwargs)
        except BaseException as error:
            _unsent(begun, error)
            raise

    def recv_bytes(wrapped: Any, connection: Any, args: Any, kwargs: Any) -> Any:
        try:
            return wrapped(*args, **kwargs)
        except Exception as error:
            _lost(sockets, connection, error)
            raise

    def close(wrapped: Any, connection: Any, args: Any, kwargs: Any) -> Any:
        session = sockets.sessions.get(connection)
        if session is None:
            return wrapped(*args, **kwargs)
        session.closing()
        try:
            return wrapped(*args, **kwargs)
        finally:
            _closed(sockets, connection, session)

    return {**_plain_wrappers(sockets), "enter": enter, "send": send, "recv_bytes": recv_bytes, "close": close}


def _async_wrappers(sockets: _Sockets, kind: type[_Session]) -> dict[str, Callable[..., Any]]:
    async def enter(wrapped: Any, manager: Any, args: Any, kwargs: Any) -> Any:
        session = sockets.open(kind, manager)
        if session is None:
            return await wrapped(*args, **kwargs)
        try:
            session.send()
            connection = await wrapped(*args, **kwargs)
        except BaseException as error:
            session.refused(error)
            raise
        sockets.opened(session, manager, connection)
        return connection

    async def send(wrapped: Any, connection: Any, args: Any, kwargs: Any) -> Any:
        begun = sockets.asked(connection, args, kwargs)
        try:
            return await wrapped(*args, **kwargs)
        except BaseException as error:
            _unsent(begun, error)
            raise

    async def recv_bytes(wrapped: Any, connection: Any, args: Any, kwargs: Any) -> Any:
        try:
            return await wrapped(*args, **kwargs)
        except Exception as error:
            _lost(sockets, connection, error)
            raise

    async def close(wrapped: Any, connection: Any, args: Any, kwargs: Any) -> Any:
        session = sockets.sessions.get(connection)
        if session is None:
            return await wrapped(*args, **kwargs)
        return await _close(wrapped(*args, **kwargs), sockets, connection, session)

    return {**_plain_wrappers(sockets), "enter": enter, "send": send, "recv_bytes": recv_bytes, "close": close}


async def _close(closing: Awaitable[Any], sockets: _Sockets, connection: Any, session: _Session) -> Any:
    session.closing()
    try:
        result = await closing
    except GeneratorExit:  # the coroutine was thrown away, perhaps by the collector: no callbacks here
        session.abandoned(now=False)
        raise
    except BaseException:
        _closed(sockets, connection, session)
        raise
    _closed(sockets, connection, session)
    return result


def _plain_wrappers(sockets: _Sockets) -> dict[str, Callable[..., Any]]:
    """Those that are the same for both clients."""

    def parse_event(wrapped: Any, connection: Any, args: Any, kwargs: Any) -> Any:
        event = wrapped(*args, **kwargs)
        session = sockets.sessions.get(connection)
        if session is not None:
            with _guarded():
                session.event(event)
        return event

    def queue(wrapped: Any, manager: Any, args: Any, kwargs: Any) -> Any:
        result = wrapped(*args, **kwargs)
        if sockets.seam.active:
            with _guarded():
                if (event := _creation(args, kwargs)) is not None:
                    sockets.queued.setdefault(manager, []).append(event)
        return result

    return {"parse_event": parse_event, "queue": queue}


def _unsent(begun: tuple[_Session, _Waiting] | None, error: BaseException) -> None:
    if begun is not None:
        session, waiting = begun
        with _guarded():
            session.unsent(waiting, error)


def _lost(sockets: _Sockets, connection: Any, error: BaseException) -> None:
    session = sockets.sessions.get(connection)
    if session is not None:
        with _guarded():
            session.lost(error)


def _closed(sockets: _Sockets, connection: Any, session: _Session) -> None:
    with _guarded():
        sockets.sessions.pop(connection, None)
        session.closed()


def _senders(connection: Any) -> tuple[str, ...]:
    """What every event of the client goes through: newer versions send all of them by the base class's method."""
    if connection is None:
        return ("send",)
    shares = "send_raw" not in vars(connection) and hasattr(connection, "send_raw")
    if shares:
        return ("send_raw",)
    return ("send", "send_raw") if hasattr(connection, "send_raw") else ("send",)


def _creation(args: Any, kwargs: Any) -> Mapping[str, Any] | None:
    """The ``response.create`` event that is sent, None if it is another one."""
    event: Any = args[0] if args else next(iter(kwargs.values()), None)
    if isinstance(event, (str, bytes)):
        # Sound is sent many times a second: it is searched, not parsed.
        name: Any = f'"{_CREATE}"'
        event = json.loads(event) if (name if isinstance(event, str) else name.encode()) in event else None
    elif hasattr(event, "to_json"):
        event = json.loads(event.to_json()) if fields(event).get("type") == _CREATE else None
    if not isinstance(event, Mapping) or event.get("type") != _CREATE:
        return None
    # Older versions of the SDK take what was not given out only later.
    return {key: value for key, value in event.items() if type(value).__name__ not in _NOT_GIVEN}


def _tell(exchange: Exchange) -> None:
    exchange.send()
    exchange.sent(None)


def _as_it_is(parsed: Any, _: Exchange) -> Any:
    return parsed


def _private(manager: Any, name: str) -> Any:
    """A private attribute of the manager, by the class that the name is mangled with; None if it has none."""
    for base in type(manager).__mro__:
        mangled = f"_{base.__name__.lstrip('_')}__{name}"
        if mangled in vars(manager):
            return vars(manager)[mangled]
    return None


def _place(seam: _openai.Seam, client: Any) -> tuple[str, str | None, int | None]:
    """Provider, host and port."""
    endpoint = _openai._endpoint(seam, client)
    own = getattr(client, "websocket_base_url", None)
    if own is None:
        return endpoint.provider, endpoint.address, endpoint.port
    url = urlsplit(str(own))
    return endpoint.provider, url.hostname, url.port or {"wss": 443, "ws": 80, "https": 443, "http": 80}.get(url.scheme)


def _is_closed(error: BaseException) -> bool:
    return "ConnectionClosed" in _names(error)


def _is_normal(error: BaseException) -> bool:
    return "ConnectionClosedOK" in _names(error)


def _names(error: BaseException) -> set[str]:
    # By name, so that nothing here needs the websockets library, which may not be installed.
    return {base.__name__ for base in type(error).__mro__ if base.__module__.startswith("websockets")}
