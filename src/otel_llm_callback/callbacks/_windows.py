"""Sliding windows over what calls measured: of bounded memory, and not safe for threads; the owner holds a lock."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Final, NamedTuple, Protocol, TypeAlias

Number: TypeAlias = float | Decimal

BUCKETS: Final = 60
"""Parts of the time that a window of sums covers; the oldest part falls out whole."""


class Call(NamedTuple):
    """What is kept of a call, so that the worst one can be looked at."""

    call_id: str
    trace_id: str | None
    span_id: str | None


class Window(Protocol):
    """What is known of the calls of the last while."""

    count: int

    def add(self, now_s: float, value: Number, call: Call) -> None:
        """Take what a call measured."""

    def expire(self, now_s: float) -> None:
        """Forget what is too old."""

    def expires_at(self) -> float | None:
        """Return when the oldest will be too old; None if there is nothing."""

    def worst(self, *, highest: bool) -> Call | None:
        """Return the call with the highest or the lowest value."""


class Samples:
    """The latest values, each by itself: at most so many, none older than so many seconds."""

    def __init__(self, window_s: float, limit: int) -> None:
        self._window_s = window_s
        self._limit = limit
        self._samples: deque[tuple[float, float, Call]] = deque()
        self._ordered: list[float] = []
        self.count = 0

    def add(self, now_s: float, value: Number, call: Call) -> None:
        """Take a value; beyond the limit the oldest goes."""
        number = float(value)
        self._samples.append((now_s, number, call))
        insort(self._ordered, number)
        if len(self._samples) > self._limit:
            self._drop_oldest()
        self.count = len(self._samples)

    def expire(self, now_s: float) -> None:
        """Forget what is as old as the window is long."""
        while self._samples and self._samples[0][0] <= now_s - self._window_s:
            self._drop_oldest()
        self.count = len(self._samples)

    def expires_at(self) -> float | None:
        """Return when the oldest will be as old as that."""
        return self._samples[0][0] + self._window_s if self._samples else None

    def worst(self, *, highest: bool) -> Call | None:
        """Return the call with the highest or the lowest value, the latest of several."""
        if not self._samples:
            return None
        value = self._ordered[-1] if highest else self._ordered[0]
        return next(call for _, number, call in reversed(self._samples) if number == value)

    def percentile(self, percent: float) -> float | None:
        """Return the smallest value that so many per cent do not exceed (nearest rank)."""
        if not self._ordered:
            return None
        return self._ordered[_rank(percent, len(self._ordered)) - 1]

    def share_beyond(self, level: float, *, above: bool) -> float | None:
        """Return the share of values above *level*, or below it."""
        if not self._ordered:
            return None
        beyond = len(self._ordered) - bisect_right(self._ordered, level) if above else bisect_left(self._ordered, level)
        return beyond / len(self._ordered)

    def latest(self) -> float | None:
        """Return the value that came last."""
        return self._samples[-1][1] if self._samples else None

    def _drop_oldest(self) -> None:
        _, number, _ = self._samples.popleft()
        del self._ordered[bisect_left(self._ordered, number)]


@lru_cache(maxsize=4096)
def _rank(percent: float, count: int) -> int:
    # A fraction of the decimal text: in floats 95 per cent of 20 may be a little more than 19.
    return max(1, math.ceil(Fraction(str(percent)) / 100 * count))


class Sums:
    """Totals of the last while in sixty parts, however many calls there are. Sums of ``Decimal`` stay exact."""

    def __init__(self, window_s: float) -> None:
        self._width_s = window_s / BUCKETS
        self._parts: deque[_Part] = deque()
        self.count = 0

    def add(self, now_s: float, value: Number, call: Call) -> None:
        """Add a value to the part that is now."""
        index = math.floor(now_s / self._width_s)
        if not self._parts or self._parts[-1].index < index:
            self._parts.append(_Part(index))
        self._parts[-1].add(value, call)
        self.count += 1

    def expire(self, now_s: float) -> None:
        """Forget the parts that have left the window."""
        first = math.floor(now_s / self._width_s) - BUCKETS + 1
        while self._parts and self._parts[0].index < first:
            self.count -= self._parts.popleft().count

    def expires_at(self) -> float | None:
        """Return when the oldest part will leave it."""
        return (self._parts[0].index + BUCKETS) * self._width_s if self._parts else None

    def worst(self, *, highest: bool) -> Call | None:  # noqa: ARG002 - a sum grows by the highest
        """Return the call that added most."""
        return max(self._parts, key=lambda part: part.most).most_by if self._parts else None

    def total(self) -> Number | None:
        """Return the sum; None if nothing was added."""
        return sum((part.total for part in self._parts), start=type(self._parts[0].total)(0)) if self._parts else None


class _Part:
    __slots__ = ("count", "index", "most", "most_by", "total")

    def __init__(self, index: int) -> None:
        self.index = index
        self.count = 0
        self.total: Number = 0
        self.most: Number = 0
        self.most_by: Call | None = None

    def add(self, value: Number, call: Call) -> None:
        self.count += 1
        self.total = value if self.count == 1 else self.total + value  # type: ignore[operator]  # of one kind
        if self.most_by is None or value >= self.most:
            self.most, self.most_by = value, call
