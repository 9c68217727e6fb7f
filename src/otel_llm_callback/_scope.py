"""What the caller says for a block of code: a session, further callbacks, silence.

One context variable holds it all, so that the hot path reads one thing. It follows asyncio tasks and threads started
with a copied context, as every context variable does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypedDict

from ._dispatch import Dispatcher, Listener
from .types import Attributes, AttributeValue

if TYPE_CHECKING:
    from typing_extensions import Self


class SessionFacts(TypedDict, total=False):
    """Fields of ``RequestMetadata`` that a session tells."""

    session_id: str | None
    user_id: str | None
    attributes: Mapping[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class Session:
    """Who a call belongs to."""

    facts: SessionFacts


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """What holds for the calls of one block, and the scope around it."""

    session: Session | None = None
    listeners: tuple[Listener, ...] = ()
    suppressed: bool = False
    block: Block | None = None
    outer: Scope | None = None
    merged: dict[Dispatcher, Dispatcher] = field(default_factory=dict, init=False, repr=False)


current: Final[ContextVar[Scope | None]] = ContextVar("otel_llm_callback_scope", default=None)

_EMPTY: Final = Scope()


class Block:
    """Change the scope for the length of a ``with`` or ``async with`` block.

    One object may be used again and again, also by several threads and tasks at once: what is to be put back is in the
    scope, not in the object.
    """

    def _change(self, scope: Scope) -> Scope:
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Start the block."""
        outer = current.get()
        current.set(replace(self._change(outer or _EMPTY), block=self, outer=outer))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the block."""
        scope = current.get()
        # A generator may be entered in one context and left in another, where the block never began.
        if scope is not None and scope.block is self:
            current.set(scope.outer)

    async def __aenter__(self) -> Self:
        """Start the block."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the block."""
        self.__exit__(kind, error, trace)


class session(Block):  # noqa: N801 - used like a function
    """Give the calls of a block a session.

    The ids go on spans and metadata, never on metrics. A block inside another one keeps what it does not say itself.

    Args:
        id: Of the conversation or session.
        user: Of the user.
        attributes: Further facts; on spans as ``llm_callback.session.<name>``.

    Raises:
        TypeError: A value is not text, a number, a truth value or a tuple of one of them.

    Example:
        >>> with session("s-1", user="bob"):
        ...     client.chat.completions.create(...)  # doctest: +SKIP
    """

    def __init__(self, id: str | None = None, *, user: str | None = None, **attributes: AttributeValue) -> None:  # noqa: A002
        super().__init__()
        for name, given in {"id": id, "user": user}.items():
            if given is not None and not isinstance(given, str):
                raise TypeError(f"session {name} is {type(given).__name__}; it must be str or None")
        for name, value in attributes.items():
            if not isinstance(value, (str, bool, int, float, tuple)):
                raise TypeError(
                    f"session attribute {name} is {type(value).__name__}; use str, bool, int, float or tuple"
                )
        self._facts: SessionFacts = {}
        if id is not None:
            self._facts["session_id"] = id
        if user is not None:
            self._facts["user_id"] = user
        self._attributes = attributes

    def _change(self, scope: Scope) -> Scope:
        outer: SessionFacts = scope.session.facts if scope.session is not None else {}
        attributes = Attributes({**outer.get("attributes", {}), **self._attributes})
        return replace(scope, session=Session({**outer, **self._facts, "attributes": attributes}))


class suppress(Block):  # noqa: N801 - used like a function
    """Observe nothing inside the block; callbacks registered with ``required=True`` are told all the same."""

    def _change(self, scope: Scope) -> Scope:
        return replace(scope, suppressed=True)


def dispatcher_for(base: Dispatcher, scope: Scope) -> Dispatcher:
    """Return *base* with the callbacks of *scope* added: ours first, then required ones, then those of the block.

    A callback that is there already is not told twice.
    """
    if not scope.listeners:
        return base
    merged = scope.merged.get(base)
    if merged is None:
        known = {id(listener.origin) for listener in base.listeners}
        added: dict[int, Listener] = {}
        for listener in scope.listeners:
            if id(listener.origin) not in known:
                added.setdefault(id(listener.origin), listener)
        merged = scope.merged[base] = in_order((*added.values(), *base.listeners))
    return merged


def told_of_calls(base: Dispatcher, scope: Scope | None, is_suppressed: Callable[[], bool]) -> Dispatcher | None:
    """Return who is to be told of a call made now in *scope*, given the callbacks in force; None if nobody.

    Args:
        base: The callbacks in force.
        scope: The caller's, None outside any block.
        is_suppressed: True while OpenTelemetry's own suppression is on.
    """
    dispatcher: Dispatcher | None = base
    if scope is not None:
        dispatcher = dispatcher_for(base, scope)
        if scope.suppressed:
            dispatcher = dispatcher.required
    if dispatcher is not None and is_suppressed():
        dispatcher = dispatcher.required
    return None if dispatcher is None or dispatcher.is_idle() else dispatcher


def in_order(listeners: Iterable[Listener]) -> Dispatcher:
    """Return a dispatcher that tells the adapter first, then required callbacks, then the others as they come."""
    return Dispatcher(sorted(listeners, key=_rank))


def _rank(listener: Listener) -> int:
    return 0 if listener.trusted else 1 if listener.required else 2
