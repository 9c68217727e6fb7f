"""Callbacks that pass on some of what they are told: ``only``, ``sample``, ``where``; and ``batch``, all at once later.

What goes through a filter keeps the grammar: of a call the callback behind it is told all or nothing. A filter takes up
the content level and the delivery options of what it filters and has no hook that this lacks. Of several callbacks as
one, each gets a filter of its own.
"""

from __future__ import annotations

import fnmatch
import functools
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Final, Literal, TypeAlias, get_args

from .. import _faults, _timers
from ..protocol import (
    HOOKS,
    DeliveryOptions,
    Hook,
    check_callback,
    find_hook,
    is_async,
    name_of,
    options_of,
)
from ..types import Content, ErrorContext, RequestMetadata, ResponseMetadata
from ._lock import ForkSafeLock
from ._steps import run_all
from .multi import MultiCallback

CallEnd: TypeAlias = ResponseMetadata | ErrorContext
"""How a call ended: what ``on_response_received`` is told, or what ``on_error`` is. Both have ``request`` and more."""

SampleKey: TypeAlias = Literal["call", "session"]

_Tells: TypeAlias = Callable[[RequestMetadata], bool]

_END_HOOKS: Final = ("on_response_received", "on_error")
_HASH_BYTES: Final = 8


def only(
    callback: Any,
    *,
    model: str | Iterable[str] = (),
    operation: str | Iterable[str] = (),
    api: str | Iterable[str] = (),
    provider: str | Iterable[str] = (),
    session: str | Iterable[str] = (),
    user: str | Iterable[str] = (),
) -> object:
    """Tell *callback* of the calls that match; what is unknown of a call matches nothing.

    Each criterion is one value or several, of which one must match; of several criteria all must.

    Args:
        callback: An object with at least one hook.
        model: The model as requested; with ``*``, ``?`` and ``[…]`` as in file names: ``gpt-4o*``.
        operation: Such as ``chat`` or ``embeddings``.
        api: Such as ``chat_completions``.
        provider: Such as ``openai``.
        session: The id given to :func:`otel_llm_callback.session`.
        user: The user given to it.

    Returns:
        A callback.

    Raises:
        TypeError: It is no callback, there is no criterion, or one is not text.

    Example:
        >>> instrument(only(AuditLogger(), model="gpt-*", operation=["chat", "embeddings"]))  # doctest: +SKIP
    """
    exact = {"operation": operation, "api": api, "provider": provider, "session_id": session, "user_id": user}
    wanted = {name: values for name, given in exact.items() if (values := _values(name, given))}
    globs = _values("model", model)
    if not wanted and not globs:
        raise TypeError("only() needs at least one of model, operation, api, provider, session, user")
    matches = _glob_matcher(globs) if globs else None

    def tells(request: RequestMetadata) -> bool:
        if matches is not None and (request.model is None or not matches(request.model)):
            return False
        return all(getattr(request, name) in values for name, values in wanted.items())

    return _each(callback, lambda one: _Filter("only", one, tells))


def sample(callback: Any, share: float, key: SampleKey = "call") -> object:
    """Tell *callback* of a share of all calls.

    Which ones follows from their id alone: all processes and all filters agree, and who is told of a call at one share
    is told of it at every higher one. A sample of a sample is therefore the smaller of the two.

    Args:
        callback: An object with at least one hook.
        share: From 0, no call, to 1, every call.
        key: ``call`` decides for each call, ``session`` for all calls of a session alike; a call without a session is
            decided by its own id.

    Returns:
        A callback.

    Raises:
        TypeError: It is no callback.
        ValueError: *share* or *key* is not allowed.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ValueError(f"share={share!r} is not allowed; allowed: a number from 0 to 1")
    if key not in get_args(SampleKey):
        raise ValueError(f"key={key!r} is not allowed; allowed: `call`, `session`")
    by_session = key == "session"
    below = share * 2 ** (8 * _HASH_BYTES)

    def tells(request: RequestMetadata) -> bool:
        identity = request.session_id if by_session and request.session_id is not None else request.call_id
        digest = blake2b(identity.encode(errors="surrogatepass"), digest_size=_HASH_BYTES).digest()
        return bool(int.from_bytes(digest, "big") < below)

    return _each(callback, lambda one: _Filter("sample", one, tells))


def where(
    callback: Any,
    predicate: Callable[[RequestMetadata], object] | None = None,
    *,
    end: Callable[[CallEnd], object] | None = None,
) -> object:
    """Tell *callback* of the calls that a function says yes to.

    A function that raises has said yes: it is better to know a call too much than to miss one. That is logged once and
    counted under ``filter`` in ``status().errors``.

    Args:
        callback: An object with at least one hook.
        predicate: Asked once per call, when the request is sent, on the thread that tells *callback*. None for yes.
        end: Asked once more when the call has ended; it is given what ``on_response_received`` is told first or
            ``on_error`` second, and both have ``.request`` and ``.outcome``. The callback is then told of the request
            and of the end together, and of no chunk. Until then the JSON of the request is kept in memory if the
            callback takes it.

    Returns:
        A callback.

    Raises:
        TypeError: It is no callback, none of the functions is given, or one is no plain function.

    Example:
        >>> instrument(where(JsonLogger(), end=lambda end: end.outcome == "error"))  # doctest: +SKIP
    """
    if predicate is None and end is None:
        raise TypeError("where() needs a predicate or end=")
    for asked in (predicate, end):
        if asked is not None and (not callable(asked) or is_async(asked)):
            raise TypeError("where() takes plain functions; a predicate cannot be awaited")
    if end is None:
        return _each(callback, lambda one: _Where(one, predicate))
    return _each(callback, lambda one: _WhereEnd(one, predicate, end))


def batch(callback: Any, *, size: int = 100, seconds: float | None = 5.0) -> object:
    """Hand over how calls ended in lists, to a function, or to a callback that is told of many calls in one go.

    A list is handed over when it has *size* ends, when its first one is *seconds* old, by ``flush()``, when the
    callback is removed, and at exit: on the thread of the callback's queue, which is also what bounds the memory if
    that takes long. If it raises, the list is lost; that is logged and counted, as a failure of the callback or, where
    the clock or a flush was the reason, under ``timer`` in ``status().errors``.

    Args:
        callback: A function, plain or ``async def``, that takes a list of :class:`ResponseMetadata` and, of calls that
            failed, :class:`ErrorContext`, in the order in which they ended. Or an object with at least one hook; it is
            told of each call's request and end together, and of no chunk.
        size: Ends in a list at most.
        seconds: How long an end is held back at most; None for as long as the list is not full.

    Returns:
        A callback; it is always delivered to through a queue.

    Raises:
        TypeError: It is neither a function nor a callback.
        ValueError: *size* or *seconds* is not positive, or the callback asks for inline delivery.

    Example:
        >>> instrument(batch(lambda ends: rows.extend(map(row_of, ends)), size=500))  # doctest: +SKIP
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size={size!r} is not allowed; allowed: a whole number from 1")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds <= 0):
        raise ValueError(f"seconds={seconds!r} is not allowed; allowed: a number greater than 0, or None")
    is_function = callable(callback) and not isinstance(callback, type) and not any(hasattr(callback, h) for h in HOOKS)
    if is_function:
        return _BatchOfFacts(callback, size, seconds)
    return _each(callback, lambda one: _BatchOfCalls(one, size, seconds))


def _each(callback: Any, make: Callable[[Any], object]) -> object:
    """Return what *make* makes of *callback*; of several as one, of each of them."""
    if not isinstance(callback, MultiCallback):
        return make(callback)
    several = MultiCallback(*(_each(one, make) for one in callback.callbacks))
    several.delivery_options = callback.delivery_options
    return several


def _values(name: str, given: str | Iterable[str]) -> frozenset[str]:
    values = frozenset([given] if isinstance(given, str) else given)
    if not all(isinstance(value, str) for value in values):
        raise TypeError(f"only({name}=…) takes text or several of it")
    return values


def _glob_matcher(globs: Iterable[str]) -> Callable[[str], bool]:
    pattern = re.compile("|".join(fnmatch.translate(glob) for glob in sorted(globs)))

    @functools.lru_cache(maxsize=1024)
    def matches(name: str) -> bool:
        return pattern.match(name) is not None

    return matches


class _Behind:
    """What all filters take up from the callback behind them."""

    def __init__(self, kind: str, callback: Any) -> None:
        check_callback(callback)
        if hasattr(type(callback), "is_idle"):
            raise TypeError(f"{name_of(callback)} cannot be filtered: a sampler decides which spans there are")
        self.callback = callback
        self.callback_name = f"{kind}({name_of(callback)})"
        self.content: Content = getattr(callback, "content", "full")
        self.delivery_options = options_of(callback)
        self.needs_queue = getattr(callback, "needs_queue", False) is True

    def __repr__(self) -> str:
        return f"<{self.callback_name}>"


class _Filter(_Behind):
    """Pass on the events of calls that a pure function of the request says yes to."""

    def __init__(self, kind: str, callback: Any, tells: _Tells) -> None:
        super().__init__(kind, callback)
        tells = _once_in_a_row(tells)
        for name in HOOKS:
            if (hook := find_hook(callback, name)) is not None:
                setattr(self, name, _if_told(hook, name, tells))


class _Where(_Behind):
    """Pass on the events of calls that were said yes to when they began."""

    def __init__(self, callback: Any, predicate: Callable[[RequestMetadata], object] | None) -> None:
        super().__init__("where", callback)
        self._predicate = predicate
        self._told: set[str] = set()
        self._fork = ForkSafeLock()
        hooks = {name: find_hook(callback, name) for name in HOOKS}
        request_hook = hooks.pop("on_request_sent")
        tells = self._begins if any(hooks.values()) else self._asks
        self.on_request_sent = _if_told(request_hook, "on_request_sent", tells)
        if hooks["on_stream_chunk"] is not None:
            self.on_stream_chunk = _if_told(hooks["on_stream_chunk"], "on_stream_chunk", self._goes_on)
        if any(hooks.values()):
            self.on_response_received = _if_told(hooks["on_response_received"], "on_response_received", self._ends)
            self.on_error = _if_told(hooks["on_error"], "on_error", self._ends)

    def _asks(self, request: RequestMetadata) -> bool:
        return self._predicate is None or _says_yes(self._predicate, request)

    def _begins(self, request: RequestMetadata) -> bool:
        if self._fork.forked:  # the parent's calls do not end here
            self._fork.forked = False
            self._told.clear()
        told = self._asks(request)
        if told:
            self._told.add(request.call_id)
        return told

    def _goes_on(self, request: RequestMetadata) -> bool:
        return request.call_id in self._told

    def _ends(self, request: RequestMetadata) -> bool:
        told = request.call_id in self._told
        self._told.discard(request.call_id)
        return told


class _AtTheEnd(_Behind):
    """Keep a request until its call has ended."""

    def __init__(self, kind: str, callback: Any, predicate: Callable[[RequestMetadata], object] | None = None) -> None:
        super().__init__(kind, callback)
        self._predicate = predicate
        self._requests: dict[str, str] = {}
        self._fork = ForkSafeLock()
        self._request_hook = find_hook(callback, "on_request_sent")
        self._end_hooks = {name: find_hook(callback, name) for name in _END_HOOKS}
        self.on_request_sent = self._request_keeper()
        self.on_response_received = self._end_hook("on_response_received")
        self.on_error = self._end_hook("on_error")

    def _request_keeper(self) -> Hook:
        def keep(metadata: RequestMetadata, request_json: str) -> None:
            if self._fork.forked:  # the parent's calls do not end here
                self._fork.forked = False
                self._requests.clear()
            if self._predicate is None or _says_yes(self._predicate, metadata):
                self._requests[metadata.call_id] = request_json

        return _before(self._request_hook, keep)

    def _end_hook(self, name: str) -> Hook:
        def end(first: Any, second: Any) -> object:
            request_json = self._requests.pop(_request_of(name, first, second).call_id, None)
            return None if request_json is None else self._ended(request_json, name, first, second)

        return _before(self._end_hooks[name], end)

    def _ended(self, request_json: str, name: str, first: Any, second: Any) -> object:
        raise NotImplementedError

    def _tell(self, request_json: str, name: str, first: Any, second: Any) -> list[Callable[[], object]]:
        """Return what is to be run to tell of a whole call."""
        request = _request_of(name, first, second)
        steps: list[Callable[[], object]] = []
        if self._request_hook is not None:
            steps.append(functools.partial(self._request_hook, request, request_json))
        if (hook := self._end_hooks[name]) is not None:
            steps.append(functools.partial(hook, first, second))
        return steps


class _WhereEnd(_AtTheEnd):
    """Tell of calls that were said yes to when they ended."""

    def __init__(
        self,
        callback: Any,
        predicate: Callable[[RequestMetadata], object] | None,
        end: Callable[[CallEnd], object],
    ) -> None:
        super().__init__("where", callback, predicate)
        self._says_yes_to = end

    def _ended(self, request_json: str, name: str, first: Any, second: Any) -> object:
        end = second if name == "on_error" else first
        if not _says_yes(self._says_yes_to, end):
            return None
        return run_all(self._tell(request_json, name, first, second))


class _Held:
    """A list that is handed over when it is long enough, or old enough, or when the thread it is filled on is flushed.

    Args:
        size: When it is long enough.
        seconds: When it is old enough; None for never.
        hand_over: Takes the list; may return a coroutine.
    """

    def __init__(self, size: int, seconds: float | None, hand_over: Callable[[list[Any]], object]) -> None:
        self._size = size
        self._seconds = math.inf if seconds is None else seconds
        self._hand_over = hand_over
        self._items: list[Any] = []
        self._due_s = math.inf
        self._is_timed = False
        self._lock = ForkSafeLock()

    def add(self, item: Any) -> object:
        """Hold *item*, and hand over if it is time."""
        with self._lock:
            if self._lock.forked:  # what the parent holds is the parent's to hand over
                self._lock.forked = False
                self._items, self._is_timed = [], False
            now_s = time.monotonic()
            if not self._items:
                self._due_s = now_s + self._seconds
            self._items.append(item)
            is_due = len(self._items) >= self._size or self._due_s <= now_s
            if not is_due and not self._is_timed:
                self._is_timed = _timers.call_at(self._due_s, self._when_due, early=self._early)
        return self._now() if is_due else None

    def _when_due(self) -> object:
        with self._lock:
            is_due = self._due_s <= time.monotonic()
            # A later list may be held by now: there is one timer at a time, however many lists there are.
            self._is_timed = (
                bool(self._items) and not is_due and _timers.call_at(self._due_s, self._when_due, early=self._early)
            )
        return self._now() if is_due else None

    def _early(self) -> object:
        with self._lock:
            self._is_timed = False
        return self._now()

    def _now(self) -> object:
        with self._lock:
            items, self._items = self._items, []
        return self._hand_over(items) if items else None


class _BatchOfFacts:
    """Hand over lists of ends to a function."""

    content: Content = "none"
    delivery_options = DeliveryOptions(delivery="queued")
    needs_queue = True

    def __init__(self, function: Callable[[Sequence[CallEnd]], object], size: int, seconds: float | None) -> None:
        self.callback_name = f"batch({getattr(function, '__name__', type(function).__name__)})"
        self._held = _Held(size, seconds, function)

    def on_response_received(self, metadata: ResponseMetadata, response_json: str) -> object:  # noqa: ARG002
        """Hold how a call ended."""
        return self._held.add(metadata)

    def on_error(self, error: BaseException, context: ErrorContext) -> object:  # noqa: ARG002
        """Hold how a call failed."""
        return self._held.add(context)

    def __repr__(self) -> str:
        return f"<{self.callback_name}>"


class _BatchOfCalls(_AtTheEnd):
    """Tell a callback of many calls in one go."""

    def __init__(self, callback: Any, size: int, seconds: float | None) -> None:
        super().__init__("batch", callback)
        if self.delivery_options.delivery == "inline":
            raise ValueError(f"{name_of(callback)} asks to be delivered 'inline' and cannot be batched")
        self.delivery_options = replace(self.delivery_options, delivery="queued")
        self.needs_queue = True
        self._held = _Held(size, seconds, lambda calls: run_all([step for steps in calls for step in steps]))

    def _ended(self, request_json: str, name: str, first: Any, second: Any) -> object:
        return self._held.add(self._tell(request_json, name, first, second))


def _request_of(name: str, first: Any, second: Any) -> RequestMetadata:
    """Return the request that an event is about."""
    if name == "on_request_sent":
        return first  # type: ignore[no-any-return]
    return second.request if name == "on_error" else first.request  # type: ignore[no-any-return]


def _once_in_a_row(tells: _Tells) -> _Tells:
    """Return *tells* with the answer for the latest request kept: the chunks of a stream mostly come one by one."""
    latest: tuple[RequestMetadata | None, bool] = (None, False)

    def told(request: RequestMetadata) -> bool:
        nonlocal latest
        known, answer = latest  # read and replaced whole, so that threads need no lock
        if known is not request:
            answer = tells(request)
            latest = (request, answer)
        return answer

    return told


def _if_told(hook: Hook | None, name: str, tells: _Tells) -> Hook:
    """Return a hook that passes on to *hook* what *tells* says yes to; None for one that only keeps account."""

    def run(first: Any, second: Any) -> Any:
        told = tells(_request_of(name, first, second))
        return hook(first, second) if told and hook is not None else None

    return _before(hook, run)


def _before(hook: Hook | None, run: Hook) -> Hook:
    """Return the function *run*, which now says before which hook it stands, or else that it reads no content."""
    vars(run).update(passes_on_to=hook, reads=hook is not None)
    return run


def _says_yes(predicate: Callable[[Any], object], facts: object) -> bool:
    try:
        return bool(predicate(facts))
    except Exception as error:  # noqa: BLE001 - a user's function; the callback behind it must not pay for it
        _faults.report("filter", error, "a function given to where() failed, and its callback is told")
        return True
