"""Add up what calls cost, in US dollars, and say so when a budget is used up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias

from ..prices import EXACT, Number, PriceSource, amount, cost_of, price_source
from ..types import Content, ErrorContext, ResponseMetadata
from ._lock import ForkSafeLock
from ._summary import _listed, _name, _nonzero, _plus
from ._text import dollars, plural
from .sessions import _UNKNOWN_MODEL, _bounded

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BudgetUse", "CostSummary", "CostTotals", "CostTracker"]

Scope: TypeAlias = Literal["process", "session", "user"]

# Calls that run no model, or whose tokens another call counts: without usage they are nothing that is missing.
_COSTLESS: Final = frozenset(
    ("cancel_response", "count_tokens", "fetch_response", "moderation", "realtime_session", "responses_session")
)
_PENDING: Final = frozenset(("queued", "in_progress"))


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetUse:
    """What ``on_budget`` is told: a share of a budget is used up.

    Attributes:
        scope: Whose budget: that of the ``process``, a ``session`` or a ``user``.
        id: The id of the session or user; None for the process.
        share: The share that was reached, such as ``Decimal("0.8")``.
        budget: In US dollars.
        cost: What was spent by then, in US dollars.
    """

    scope: Scope
    id: str | None
    share: Decimal
    budget: Decimal
    cost: Decimal


@dataclass(frozen=True, kw_only=True)
class CostTotals:
    """Totals over some calls. Two of them can be added; the order does not matter.

    Attributes:
        cost: Of the priced calls, in US dollars; None, not zero, as long as there is none.
        priced_calls: Calls whose cost is known.
        estimated_calls: Those among ``priced_calls`` whose token counts are an estimate.
        unpriced_calls: Calls that reported usage and have no price; their cost is not in ``cost``.
        unpriced_models: Those calls by model.
        calls_without_usage: Calls that ran a model and whose usage is unknown, streams that broke off included.
    """

    cost: Decimal | None = None
    priced_calls: int = 0
    estimated_calls: int = 0
    unpriced_calls: int = 0
    unpriced_models: Mapping[str, int] = field(default_factory=dict)
    calls_without_usage: int = 0

    def __add__(self, other: Self) -> Self:
        """Return the totals over the calls of both."""
        if type(other) is not type(self):
            return NotImplemented
        with localcontext(EXACT):
            merged: dict[str, Any] = {f.name: self._merged(f.name, other) for f in fields(self)}
        return type(self)(**merged)

    def _merged(self, name: str, other: Self) -> object:
        return _plus(getattr(self, name), getattr(other, name))


@dataclass(frozen=True, kw_only=True)
class CostSummary(CostTotals):
    """Totals over the calls of a session, of a user, or of all calls. ``str()`` of it is plain text.

    Attributes:
        session_id: The session; None if it is not about one.
        user_id: The user, likewise.
        budget: What may be spent, in US dollars; None if there is no limit, and for a sum.
        models: Totals by requested model.
    """

    session_id: str | None = None
    user_id: str | None = None
    budget: Decimal | None = None
    models: Mapping[str, CostTotals] = field(default_factory=dict)

    def _merged(self, name: str, other: Self) -> object:
        if name in ("session_id", "user_id"):
            return getattr(self, name) if getattr(self, name) == getattr(other, name) else None
        return None if name == "budget" else super()._merged(name, other)

    def __str__(self) -> str:
        """Return the totals as aligned lines."""
        about = self.session_id if self.session_id is not None else self.user_id
        title = "Cost summary" if about is None else f"Cost summary: {_name(about)}"
        rows = list(self._rows())
        width = max(len(name) for name, _ in rows)
        return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in rows)])

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "Cost", _money(self)
        if self.budget is not None:
            yield "Budget", _used(self.cost or Decimal(0), self.budget)
        if self.unpriced_calls:
            yield "Unpriced", _listed([plural(self.unpriced_calls, "call"), *_nonzero(self.unpriced_models)])
        if self.calls_without_usage:
            yield "Without usage", plural(self.calls_without_usage, "call")
        if len(self.models) > 1:
            for model, totals in self.models.items():
                yield "Model", f"{_name(model)}: {_money(totals)}"


def _money(totals: CostTotals) -> str:
    if totals.cost is None:
        return "unknown"
    text = f"{dollars(totals.cost)} for {plural(totals.priced_calls, 'call')}"
    return _listed([text, *_nonzero({"estimated": totals.estimated_calls})])


def _used(cost: Decimal, budget: Decimal) -> str:
    with localcontext(EXACT):
        share = f"{cost / budget:.1%} of " if budget else ""
    return share + dollars(budget)


class CostTracker:
    """Add up the cost of calls: for the process, for each model, session and user; and watch budgets.

    A call that ``instrument(prices=…)`` has priced counts with that cost, any other with the prices given here. Calls
    that fail before there is an answer are left out; of one that breaks off, the usage that had arrived counts. Calls
    made inside ``otel_llm_callback.session(id, user=…)`` also count for that session and user. Safe to use from any
    thread; memory is bounded; a forked child starts from zero, its budgets included. It needs no content and leaves
    ``on_stream_chunk`` alone.

    Args:
        prices: ``library`` (extra ``cost``), the path of a JSON file, a price source such as :class:`PriceTable`, or
            several in the order of preference. None: only calls that are priced already have a cost.
        budget: US dollars that all calls together may cost.
        session_budget: US dollars that the calls of one session may cost.
        user_budget: US dollars that the calls of one user may cost.
        on_budget: Called with a :class:`BudgetUse` once for each share that the spending of a budget reaches: on the
            thread that tells this callback, and never while a lock is held. It cannot stop a call.
        shares: The shares of a budget to tell of.
        max_sessions: How many sessions are remembered; the one longest without a call goes first.
        max_users: How many users are remembered, likewise.

    Raises:
        ImportError: ``library`` is asked for and not installed.
        ValueError: An amount, share or limit is not a number that is greater than 0, or *prices* is none.

    Example:
        >>> tracker = CostTracker(prices=None)
        >>> print(tracker.summary().cost)
        None
    """

    content: ClassVar[Content] = "none"

    def __init__(
        self,
        prices: object = "library",
        *,
        budget: Number | None = None,
        session_budget: Number | None = None,
        user_budget: Number | None = None,
        on_budget: Callable[[BudgetUse], object] | None = None,
        shares: Iterable[Number] = ("0.5", "0.8", "1"),
        max_sessions: int = 1000,
        max_users: int = 1000,
    ) -> None:
        self._prices: PriceSource | None = price_source(prices)
        given = {"process": budget, "session": session_budget, "user": user_budget}
        self._budgets = {
            scope: _positive(value, f"the {scope} budget") for scope, value in given.items() if value is not None
        }
        self._shares = tuple(sorted({_positive(share, "a share") for share in shares}))
        if on_budget is not None and not self._budgets:
            raise ValueError("on_budget needs a budget, session_budget or user_budget")
        self._tell = on_budget
        self._limits = {"session": max_sessions, "user": max_users}
        for scope, limit in self._limits.items():
            if limit <= 0:
                raise ValueError(f"max_{scope}s is {limit}; it must be greater than 0")
        self._lock = ForkSafeLock()
        self._all = _Account()
        self._accounts: dict[str, OrderedDict[str, _Account]] = {"session": OrderedDict(), "user": OrderedDict()}

    def on_response_received(self, metadata: ResponseMetadata, response_json: str) -> None:  # noqa: ARG002
        """Count what the call cost."""
        self._count(metadata)

    def on_error(self, error: BaseException, context: ErrorContext) -> None:  # noqa: ARG002
        """Count what had arrived before the error: it was paid for."""
        if context.partial is not None:
            self._count(context.partial)

    def summary(self, *, session_id: str | None = None, user_id: str | None = None) -> CostSummary:
        """Return the totals so far: over all calls, or of one session or user.

        Callbacks are told on a worker thread unless asked for inline: call ``otel_llm_callback.flush()`` before, to be
        sure that every call that has returned is counted.

        Raises:
            KeyError: No call of that session or user was seen, or it is no longer remembered.
            TypeError: Both are given.
        """
        if session_id is not None and user_id is not None:
            raise TypeError("summary() takes a session_id or a user_id, not both")
        scope: Scope = "session" if session_id is not None else "user" if user_id is not None else "process"
        known = session_id if session_id is not None else user_id
        with self._lock:
            self._start_clean()
            if known is not None and known not in self._accounts[scope]:
                raise KeyError(f"{scope} {known!r} was not seen or is no longer remembered")
            account = self._all if known is None else self._accounts[scope][known]
            return account.summary(session_id=session_id, user_id=user_id, budget=self._budgets.get(scope))

    def session_ids(self) -> tuple[str, ...]:
        """Return the sessions that are remembered, the one with the latest call last."""
        return self._ids("session")

    def user_ids(self) -> tuple[str, ...]:
        """Return the users that are remembered, the one with the latest call last."""
        return self._ids("user")

    def reset(self) -> None:
        """Start over from zero, as at the start of a month: each share of a budget is told of once more."""
        with self._lock:
            self._start_over()

    def __str__(self) -> str:
        """Return the summary over all calls, as plain text."""
        return str(self.summary())

    def _ids(self, scope: Scope) -> tuple[str, ...]:
        with self._lock:
            self._start_clean()
            return tuple(self._accounts[scope])

    def _start_over(self) -> None:
        self._all = _Account()
        for accounts in self._accounts.values():
            accounts.clear()

    def _start_clean(self) -> None:
        """In a forked child drop what the parent counted."""
        if self._lock.forked:
            self._lock.forked = False
            self._start_over()

    def _count(self, metadata: ResponseMetadata) -> None:
        request = metadata.request
        if metadata.usage is None and metadata.cost is None and _is_costless(metadata):
            return
        cost = metadata.cost
        failure: Exception | None = None
        if cost is None and self._prices is not None:
            try:
                cost = cost_of(self._prices, metadata)
            except Exception as error:  # noqa: BLE001 - the source is the program's; the call still counts, unpriced
                failure = error
        owners: tuple[tuple[Scope, str | None], ...] = (
            ("process", None),
            ("session", request.session_id),
            ("user", request.user_id),
        )
        reached: list[BudgetUse] = []
        with self._lock:
            self._start_clean()
            for scope, owner in owners:
                if scope == "process" or owner is not None:
                    account = self._account(scope, owner)
                    account.count(request.model or metadata.model or _UNKNOWN_MODEL, metadata, cost)
                    reached += account.reached(scope, owner, self._budgets.get(scope), self._shares)
        for use in reached:
            try:
                if self._tell is not None:
                    self._tell(use)
            except Exception as error:  # noqa: BLE001 - the others must be told; the dispatcher reports it
                failure = failure or error
        if failure is not None:
            raise failure

    def _account(self, scope: Scope, owner: str | None) -> _Account:
        if owner is None:
            return self._all
        accounts = self._accounts[scope]
        account = accounts.setdefault(owner, _Account())
        accounts.move_to_end(owner)
        while len(accounts) > self._limits[scope]:
            accounts.popitem(last=False)
        return account


def _positive(value: object, what: str) -> Decimal:
    number = amount(value, what)
    if not number:
        raise ValueError(f"{what} is {value!r}; it must be greater than 0")
    return number


def _is_costless(metadata: ResponseMetadata) -> bool:
    waits = metadata.request.background and metadata.status in _PENDING
    return waits or metadata.request.operation in _COSTLESS


class _Account:
    """The running totals of one owner."""

    __slots__ = ("_models", "_told", "_total")

    def __init__(self) -> None:
        self._total = _Tally()
        self._models: dict[str, _Tally] = {}
        self._told = 0  # how many shares of the budget

    def count(self, model: str, metadata: ResponseMetadata, cost: Decimal | None) -> None:
        self._total.count(model, metadata, cost)
        self._models.setdefault(_bounded(model, self._models), _Tally()).count(model, metadata, cost)

    def reached(
        self, scope: Scope, owner: str | None, budget: Decimal | None, shares: tuple[Decimal, ...]
    ) -> list[BudgetUse]:
        """Return the shares of the budget that the last call was the first to reach."""
        cost = self._total.cost
        if budget is None or cost is None:
            return []
        with localcontext(EXACT):
            new = [share for share in shares[self._told :] if cost >= share * budget]
        self._told += len(new)
        return [BudgetUse(scope=scope, id=owner, share=share, budget=budget, cost=cost) for share in new]

    def summary(self, *, session_id: str | None, user_id: str | None, budget: Decimal | None) -> CostSummary:
        return CostSummary(
            **vars(self._total.totals()),
            session_id=session_id,
            user_id=user_id,
            budget=budget,
            models={name: tally.totals() for name, tally in self._models.items()},
        )


class _Tally:
    """Running totals behind one :class:`CostTotals`."""

    __slots__ = ("_estimated", "_priced", "_unpriced", "_without_usage", "cost")

    def __init__(self) -> None:
        self.cost: Decimal | None = None
        self._priced = self._estimated = self._without_usage = 0
        self._unpriced: dict[str, int] = {}

    def count(self, model: str, metadata: ResponseMetadata, cost: Decimal | None) -> None:
        if cost is not None:
            with localcontext(EXACT):
                self.cost = cost if self.cost is None else self.cost + cost
            self._priced += 1
            self._estimated += metadata.usage_source == "estimated"
        elif metadata.usage is None:
            self._without_usage += 1
        else:
            name = _bounded(model, self._unpriced)
            self._unpriced[name] = self._unpriced.get(name, 0) + 1

    def totals(self) -> CostTotals:
        return CostTotals(
            cost=self.cost,
            priced_calls=self._priced,
            estimated_calls=self._estimated,
            unpriced_calls=sum(self._unpriced.values()),
            unpriced_models=dict(self._unpriced),
            calls_without_usage=self._without_usage,
        )
