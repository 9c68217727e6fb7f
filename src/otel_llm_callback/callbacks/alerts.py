"""Alerts on what calls measure: latency, first chunk, gaps, errors, speed, tokens, cost, rate limits.

Each alert keeps a sliding window per group of calls, fires when a figure over the window passes its threshold, and
clears when the figure is back at another level. It fires again only after it has cleared and its cool-down is over.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias, TypedDict, get_args

from .. import _timers
from ..protocol import is_async
from ..types import Content, ErrorContext, RateLimit, RequestMetadata, ResponseMetadata
from ._lock import ForkSafeLock
from ._steps import run_all
from ._targets import Alert, AlertLog, Target
from ._windows import Call, Number, Samples, Sums, Window

if TYPE_CHECKING:
    from typing_extensions import Unpack

GroupBy: TypeAlias = Literal["model", "provider", "operation", "session", "user"]

OTHER_GROUP: Final = "other"

TokenKind: TypeAlias = Literal["total", "input", "output"]

_GROUP_FIELDS: Final = {"session": "session_id", "user": "user_id"}
_S_PER_HOUR: Final = 3600
_ALL: Final = 100
_SHORTEST_WAIT_S: Final = 0.01


class AlertOptions(TypedDict, total=False):
    """What every alert takes besides its threshold and its targets.

    Attributes:
        clear_at: The level at which it clears; None for the threshold. Some way off, it does not flutter.
        window_s: How far back it looks, in seconds; 300 unless given.
        min_calls: With fewer calls in the window it does not fire; 20, of rates and rate limits 1.
        max_calls: Of how many calls the latest are kept, per group; 1000. Rates of tokens and cost need no limit.
        cool_down_s: Seconds after it fired in which it does not fire again; 60.
        group_by: ``model``, ``provider``, ``operation``, ``session``, ``user``, or a function of the request: each
            group has a window of its own. None for all calls together.
        max_groups: Groups kept at most, idle ones leave; what is beyond them is the group ``other``; 100.
        name: Instead of the usual one, to tell several apart.
        clock: A monotonic clock in seconds, for tests.
    """

    clear_at: Number | None
    window_s: float
    min_calls: int
    max_calls: int
    cool_down_s: float
    group_by: GroupBy | Callable[[RequestMetadata], Hashable] | None
    max_groups: int
    name: str | None
    clock: Callable[[], float]


@dataclass(slots=True)
class _Group:
    """The calls of one group and whether the alert is on for them."""

    name: str | None
    window: Window
    firing: bool = False
    fired_s: float = -math.inf


class _LevelAlert:
    """What all alerts have in common; the subclasses say what is read of a call and what is made of a window."""

    content: ClassVar[Content] = "none"

    _name: ClassVar[str]
    _unit: ClassVar[str]
    _above: ClassVar[bool] = True

    def __init__(
        self,
        threshold: Number,
        targets: tuple[Target, ...],
        *,
        statistic: str,
        unit: str | None = None,
        fires_above: bool | None = None,
        clear_at: Number | None = None,
        window_s: float = 300.0,
        min_calls: int = 20,
        max_calls: int = 1000,
        cool_down_s: float = 60.0,
        group_by: GroupBy | Callable[[RequestMetadata], Hashable] | None = None,
        max_groups: int = 100,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fires_above = self._above if fires_above is None else fires_above
        clear_at = threshold if clear_at is None else clear_at
        if (clear_at > threshold) if self._fires_above else (clear_at < threshold):
            side = "at most" if self._fires_above else "at least"
            raise ValueError(f"clear_at={clear_at!r} is not allowed; allowed: {side} the threshold, {threshold}")
        for given, value in {"window_s": window_s, "min_calls": min_calls, "max_groups": max_groups}.items():
            _check(given, value, value > 0, "a number greater than 0")
        _check("cool_down_s", cool_down_s, cool_down_s >= 0, "a number from 0")
        _check("max_calls", max_calls, max_calls >= min_calls, f"at least min_calls, {min_calls}")
        if group_by is not None and not callable(group_by) and group_by not in get_args(GroupBy):
            allowed = ", ".join(f"`{name}`" for name in get_args(GroupBy))
            raise ValueError(f"group_by={group_by!r} is not allowed; allowed: {allowed}, a function, None")
        for target in targets:
            if not callable(target) or is_async(target):
                raise TypeError("a target is a function of an Alert, and is not awaited")
        self._threshold = threshold
        self._clear_at = clear_at
        self._targets = targets or (AlertLog(),)
        self._statistic = statistic
        self._shown_unit = unit or self._unit
        self._window_s = window_s
        self._min_calls = min_calls
        self._max_calls = max_calls
        self._cool_down_s = cool_down_s
        self._group_by = group_by
        self._max_groups = max_groups
        self._alert_name = name or self._name
        self._clock = clock
        self._lock = ForkSafeLock()
        self._groups: dict[str | None, _Group] = {}
        self._firing: dict[str | None, _Group] = {}
        self._is_timed = False

    @property
    def firing(self) -> tuple[str | None, ...]:
        """The groups for which the alert is on, the one that fired first before the others."""
        with self._lock:
            self._forget_parent()
            return tuple(self._firing)

    def on_response_received(self, metadata: ResponseMetadata, response_json: str) -> object:  # noqa: ARG002
        """Take a call that did not fail."""
        return self._ended(metadata.request, metadata, None, metadata.ended_ns)

    def on_error(self, error: BaseException, context: ErrorContext) -> object:  # noqa: ARG002
        """Take a call that failed."""
        return self._ended(context.request, context.partial, context, context.ended_ns)

    def _read(self, response: ResponseMetadata | None, context: ErrorContext | None) -> Number | None:
        """Return what the call measured, None if it says nothing; *context* is None if it did not fail."""
        raise NotImplementedError

    def _window(self) -> Window:
        return Samples(self._window_s, self._max_calls)

    def _measure(self, window: Any) -> Number | None:
        raise NotImplementedError

    def _ended(
        self,
        request: RequestMetadata,
        response: ResponseMetadata | None,
        context: ErrorContext | None,
        at_ns: int,
    ) -> object:
        value = self._read(response, context)
        name = self._group_of(request) if value is not None else None
        with self._lock:
            self._forget_parent()
            now_s = self._clock()
            alerts = self._look_at_firing(now_s, at_ns)
            if value is not None:
                group = self._find_group(name, now_s)
                group.window.add(now_s, value, Call(request.call_id, request.trace_id, request.span_id))
                alerts += self._judge(group, now_s, at_ns)
            self._call_later()
        return self._send(alerts)

    def _look_again(self) -> object:
        """Clear what time alone has cleared."""
        with self._lock:
            self._is_timed = False
            self._forget_parent()
            alerts = self._look_at_firing(self._clock(), time.time_ns())
            self._call_later()
        return self._send(alerts)

    def _call_later(self) -> None:
        """Have the thread that delivers look again when the next call leaves the window of an alert that is on."""
        if self._is_timed or not self._firing:
            return
        leaving = [at_s for group in self._firing.values() if (at_s := group.window.expires_at()) is not None]
        if leaving:
            after_s = max(min(leaving) - self._clock(), _SHORTEST_WAIT_S)
            self._is_timed = _timers.call_at(time.monotonic() + after_s, self._look_again)

    def _group_of(self, request: RequestMetadata) -> str | None:
        if self._group_by is None:
            return None
        if callable(self._group_by):
            found = self._group_by(request)
        else:
            found = getattr(request, _GROUP_FIELDS.get(self._group_by, self._group_by))
        return "unknown" if found is None else str(found)

    def _find_group(self, name: str | None, now_s: float) -> _Group:
        """Return the group of that name; where there are too many already, the one for all others."""
        if name not in self._groups and len(self._groups) >= self._max_groups:
            self._forget_idle(now_s)
            if len(self._groups) >= self._max_groups:
                name = OTHER_GROUP
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group(name, self._window())
        return group

    def _forget_idle(self, now_s: float) -> None:
        for group in list(self._groups.values()):
            group.window.expire(now_s)
            if not group.window.count and not group.firing and now_s - group.fired_s >= self._cool_down_s:
                del self._groups[group.name]

    def _look_at_firing(self, now_s: float, at_ns: int) -> list[Alert]:
        return [alert for group in list(self._firing.values()) for alert in self._judge(group, now_s, at_ns)]

    def _judge(self, group: _Group, now_s: float, at_ns: int) -> list[Alert]:
        """Return the alert that is due for *group*, if one is."""
        window = group.window
        window.expire(now_s)
        value = self._measure(window) if window.count else None
        enough = value is not None and window.count >= self._min_calls
        if group.firing:
            if window.count and (not enough or self._is_beyond(value, self._clear_at)):
                return []
            group.firing = False
            del self._firing[group.name]
            return [self._alert(group, "cleared", value, at_ns)]
        if not enough or not self._is_beyond(value, self._threshold) or now_s - group.fired_s < self._cool_down_s:
            return []
        group.firing, group.fired_s = True, now_s
        self._firing[group.name] = group
        return [self._alert(group, "fired", value, at_ns)]

    def _is_beyond(self, value: Any, level: Any) -> bool:
        return bool(value > level if self._fires_above else value < level)

    def _alert(self, group: _Group, state: Literal["fired", "cleared"], value: Number | None, at_ns: int) -> Alert:
        worst = group.window.worst(highest=self._above)
        return Alert(
            name=self._alert_name,
            state=state,
            value=value,
            threshold=self._threshold,
            unit=self._shown_unit,
            statistic=self._statistic,
            above=self._fires_above,
            window_s=self._window_s,
            calls=group.window.count,
            group=group.name,
            call_id=None if worst is None else worst.call_id,
            trace_id=None if worst is None else worst.trace_id,
            span_id=None if worst is None else worst.span_id,
            at=datetime.fromtimestamp(at_ns / 1e9, tz=timezone.utc),
        )

    def _send(self, alerts: list[Alert]) -> object:
        # Outside the lock: a target may take its time, and may ask us what is firing.
        return run_all([partial(target, alert) for alert in alerts for target in self._targets])

    def _forget_parent(self) -> None:
        if self._lock.forked:
            self._lock.forked = False
            self._groups.clear()
            self._firing.clear()
            self._is_timed = False

    def __repr__(self) -> str:
        side = "above" if self._fires_above else "below"
        return f"<{type(self).__name__} at {self._statistic} {side} {self._threshold} {self._shown_unit}>"


class _ValueAlert(_LevelAlert):
    """An alert on a percentile of what single calls measured, or on the share of calls beyond a level."""

    _percentile: ClassVar[float] = 95

    def __init__(
        self,
        threshold: float,
        targets: tuple[Target, ...],
        percentile: float | None,
        share: float | None,
        options: AlertOptions,
    ) -> None:
        _check("threshold", threshold, _is_number(threshold) and threshold > 0, "a number greater than 0")
        self._level = threshold
        self._share = share
        self._percent = self._percentile if percentile is None else percentile
        if share is None:
            _check("percentile", self._percent, _is_number(self._percent) and 0 < self._percent <= _ALL, "0 to 100")
            super().__init__(threshold, targets, statistic=f"p{self._percent:g}", **options)
            return
        if percentile is not None:
            raise ValueError("percentile and share exclude one another")
        _check("share", share, _is_number(share) and 0 <= share < 1, "a number from 0, below 1")
        side = "above" if self._above else "below"
        statistic = f"share {side} {threshold:g} {self._unit}"
        super().__init__(share, targets, statistic=statistic, unit="share", fires_above=True, **options)

    def _measure(self, window: Samples) -> float | None:
        if self._share is None:
            return window.percentile(self._percent)
        return window.share_beyond(self._level, above=self._above)


class _TimeAlert(_ValueAlert):
    """An alert on a time that should be short."""

    _unit = "s"

    def __init__(
        self,
        threshold_s: float,
        *targets: Target,
        percentile: float | None = None,
        share: float | None = None,
        **options: Unpack[AlertOptions],
    ) -> None:
        super().__init__(threshold_s, targets, percentile, share, options)


class LatencyAlert(_TimeAlert):
    """Fire when completed calls take longer than *threshold_s*, not counting the client's waits between retries.

    Calls that failed or were cancelled do not count, nor streams that were not read to their end: their time says
    little of the server's.

    Args:
        threshold_s: In seconds.
        targets: Functions of an :class:`Alert`; a warning in the log if there is none.
        percentile: Which percentile is held against the threshold; 95 unless given.
        share: Instead, fire when more than this share of calls takes longer.
        options: See :class:`AlertOptions`.

    Raises:
        TypeError: A target is no plain function.
        ValueError: A value is not allowed.

    Example:
        >>> instrument(LatencyAlert(2.0, print, group_by="model"))  # doctest: +SKIP
    """

    _name = "latency"

    def _read(self, response: ResponseMetadata | None, context: ErrorContext | None) -> float | None:
        return _working_s(response) if response is not None and context is None else None


class FirstChunkAlert(_TimeAlert):
    """Fire when the first chunk of streams comes later than *threshold_s*, not counting waits between retries.

    All streams count that had a first chunk, however they ended.

    Args:
        threshold_s: In seconds.
        targets: As for :class:`LatencyAlert`.
        output: Wait for the first chunk that carries output; leading chunks with a role alone do not count.
        percentile: As for :class:`LatencyAlert`.
        share: As for :class:`LatencyAlert`.
        options: See :class:`AlertOptions`.
    """

    _name = "first_chunk"

    def __init__(
        self,
        threshold_s: float,
        *targets: Target,
        output: bool = False,
        percentile: float | None = None,
        share: float | None = None,
        **options: Unpack[AlertOptions],
    ) -> None:
        self._output = output
        super().__init__(threshold_s, *targets, percentile=percentile, share=share, **options)

    def _read(self, response: ResponseMetadata | None, context: ErrorContext | None) -> float | None:  # noqa: ARG002
        if response is None:
            return None
        after_s = response.time_to_first_output_s if self._output else response.time_to_first_chunk_s
        return None if after_s is None else max(0.0, after_s - response.retry_wait_ms / 1000)


class GapAlert(_TimeAlert):
    """Fire when the longest wait between two chunks of a stream is longer than *threshold_s*.

    Takes what :class:`LatencyAlert` takes. All streams of two chunks or more count.
    """

    _name = "gap"

    def _read(self, response: ResponseMetadata | None, context: ErrorContext | None) -> float | None:  # noqa: ARG002
        return None if response is None else response.longest_gap_s


class OutputSpeedAlert(_ValueAlert):
    """Fire when completed calls make fewer output tokens per second than *threshold_per_s*.

    The time is that of :class:`LatencyAlert`, whose arguments this takes too; the percentile is the median unless
    given. Calls whose usage is unknown do not count.
    """

    _name = "output_speed"
    _unit = "tokens/s"
    _above = False
    _percentile = 50

    def __init__(
        self,
        threshold_per_s: float,
        *targets: Target,
        percentile: float | None = None,
        share: float | None = None,
        **options: Unpack[AlertOptions],
    ) -> None:
        super().__init__(threshold_per_s, targets, percentile, share, options)

    def _read(self, response: ResponseMetadata | None, context: ErrorContext | None) -> float | None:
        if response is None or context is not None or response.completion_tokens is None:
            return None
        took_s = _working_s(response)
        return response.completion_tokens / took_s if took_s else None


class ErrorRateAlert(_LevelAlert):
    """Fire when more than the share *threshold* of calls ended in an error.

    A cancelled call counts neither as an error nor as a call; streams that the caller closed early or abandoned are
    calls without an error.

    Args:
        threshold: From 0, below 1.
        targets: As for :class:`LatencyAlert`.
        options: See :class:`AlertOptions`.
    """

    _name = "error_rate"
    _unit = "share"

    def __init__(self, threshold: float, *targets: Target, **options: Unpack[AlertOptions]) -> None:
        _check("threshold", threshold, _is_number(threshold) and 0 <= threshold < 1, "a number from 0, below 1")
        super().__init__(threshold, targets, statistic="share of errors", **options)

    def _read(self, response: ResponseMetadata | None, context: ErrorContext | None) -> float | None:  # noqa: ARG002
        if context is None:
            return 0.0
        return 1.0 if context.outcome == "error" else None

    def _measure(self, window: Samples) -> float | None:
        return window.share_beyond(0.0, above=True)


class RateLimitAlert(_LevelAlert):
    """Fire when less than the share *threshold* of a rate limit is left, of requests or of tokens.

    It goes by the latest answer that told of its limits, and clears when none has for the length of the window.

    Args:
        threshold: Above 0, up to 1.
        targets: As for :class:`LatencyAlert`.
        options: See :class:`AlertOptions`; the window is 60 seconds unless given.
    """

    _name = "rate_limit"
    _unit = "share"
    _above = False

    def __init__(self, threshold: float, *targets: Target, **options: Unpack[AlertOptions]) -> None:
        _check("threshold", threshold, _is_number(threshold) and 0 < threshold <= 1, "a number above 0, up to 1")
        options = {"window_s": 60.0, "min_calls": 1, **options}
        super().__init__(threshold, targets, statistic="share left", **options)

    def _read(self, response: ResponseMetadata | None, context: ErrorContext | None) -> float | None:
        facts = response if context is None else context
        return None if facts is None or facts.rate_limit is None else _headroom(facts.rate_limit)

    def _measure(self, window: Samples) -> float | None:
        return window.latest()


class TokenRateAlert(_LevelAlert):
    """Fire when calls use more tokens per second than *threshold_per_s*, on average over the window.

    Args:
        threshold_per_s: Tokens per second.
        targets: As for :class:`LatencyAlert`.
        kind: ``total``, ``input`` or ``output`` tokens. Calls whose usage is unknown do not count.
        options: See :class:`AlertOptions`.
    """

    _name = "token_rate"
    _unit = "tokens/s"

    def __init__(
        self, threshold_per_s: float, *targets: Target, kind: TokenKind = "total", **options: Unpack[AlertOptions]
    ) -> None:
        _check("threshold", threshold_per_s, _is_number(threshold_per_s) and threshold_per_s > 0, "greater than 0")
        if kind not in get_args(TokenKind):
            raise ValueError(f"kind={kind!r} is not allowed; allowed: `total`, `input`, `output`")
        self._kind = kind
        options = {"min_calls": 1, **options}
        super().__init__(threshold_per_s, targets, statistic=f"rate of {kind} tokens", **options)

    def _read(self, response: ResponseMetadata | None, context: ErrorContext | None) -> int | None:  # noqa: ARG002
        if response is None:
            return None
        if self._kind == "total":
            return response.total_tokens
        return response.prompt_tokens if self._kind == "input" else response.completion_tokens

    def _window(self) -> Sums:
        return Sums(self._window_s)

    def _measure(self, window: Sums) -> float | None:
        total = window.total()
        return None if total is None else float(total) / self._window_s


class CostRateAlert(_LevelAlert):
    """Fire when calls cost more US dollars per hour than *threshold_per_hour*, at the rate of the window.

    It reads ``ResponseMetadata.cost``; calls without a price do not count. Amounts are ``Decimal``.

    Args:
        threshold_per_hour: In US dollars; a ``str`` or ``Decimal`` for an exact amount.
        targets: As for :class:`LatencyAlert`.
        options: See :class:`AlertOptions`; ``clear_at`` is an amount per hour too.
    """

    _name = "cost_rate"
    _unit = "USD/h"

    def __init__(
        self, threshold_per_hour: Decimal | float | str, *targets: Target, **options: Unpack[AlertOptions]
    ) -> None:
        threshold = _amount("threshold", threshold_per_hour)
        options = {"min_calls": 1, **options}
        if options.get("clear_at") is not None:
            options["clear_at"] = _amount("clear_at", options["clear_at"])
        super().__init__(threshold, targets, statistic="rate of cost", **options)

    def _read(self, response: ResponseMetadata | None, context: ErrorContext | None) -> Decimal | None:  # noqa: ARG002
        return None if response is None else response.cost

    def _window(self) -> Sums:
        return Sums(self._window_s)

    def _measure(self, window: Sums) -> Decimal | None:
        total = window.total()
        return None if total is None else Decimal(total) * _S_PER_HOUR / Decimal(str(self._window_s))


def _working_s(response: ResponseMetadata) -> float | None:
    """Return how long a completed call took without the waits between its attempts."""
    if response.outcome != "completed":
        return None
    return max(0.0, response.response_time_ms - response.retry_wait_ms) / 1000


def _headroom(limit: RateLimit) -> float | None:
    """Return the smaller share that is left of what is limited."""
    pairs = ((limit.remaining_requests, limit.limit_requests), (limit.remaining_tokens, limit.limit_tokens))
    return min((left / most for left, most in pairs if left is not None and most), default=None)


def _amount(name: str, given: Any) -> Decimal:
    try:
        amount = Decimal(str(given))
    except InvalidOperation:
        amount = Decimal("NaN")
    _check(name, given, amount.is_finite() and amount > 0 and not isinstance(given, bool), "an amount greater than 0")
    return amount


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check(name: str, value: object, is_allowed: bool, allowed: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not is_allowed:
        raise ValueError(f"{name}={value!r} is not allowed; allowed: {allowed}")
