"""Percentiles of times in bounded memory.

The method is that of DDSketch (Masson, Rim, Lee, VLDB 2019): counts in buckets whose bounds grow by a constant factor.
Against a reservoir sample it has four merits here: an answer is never off by more than one per cent of the true value,
two distributions can be added without loss, the order of the values does not matter, and it needs no random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from typing import Final

ACCURACY: Final = 0.01
"""By how much a percentile may differ from the true value, relative to it."""

LOWEST_MS: Final = 0.1
HIGHEST_MS: Final = 1e8  # 28 hours
"""Values beyond these count as these; between them lie about a thousand buckets, which bounds the memory."""

_GROWTH: Final = (1 + ACCURACY) / (1 - ACCURACY)
_LOG_GROWTH: Final = math.log(_GROWTH)
_NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """How times are distributed; everything but ``count`` is None if there were none.

    A percentile is the smallest value that at least that share of the values does not exceed (nearest rank), off by at
    most one per cent. Mean, smallest and largest are exact to the nanosecond. Distributions can be added.

    Attributes:
        count: How many times were measured.
        mean_ms: In milliseconds, as all of them.
        min_ms: The smallest.
        max_ms: The largest.
        p50_ms: The median.
        p95_ms: The 95th percentile.
        p99_ms: The 99th percentile.
        total_ns: All of them added up, in nanoseconds; a whole number, so that adding is exact in any order.
        buckets: How many values fell in which bucket; for :meth:`quantile_ms` and for adding.
    """

    count: int = 0
    mean_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    total_ns: int = field(default=0, repr=False)
    buckets: Mapping[int, int] = field(default_factory=dict, repr=False)

    def quantile_ms(self, share: float) -> float | None:
        """Return the value in milliseconds that *share* of all values, between 0 and 1, do not exceed.

        Raises:
            ValueError: *share* is not between 0 and 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; it must be between 0 and 1")
        if self.min_ms is None or self.max_ms is None:
            return None
        return _quantile(self.buckets, self.count, share, self.min_ms, self.max_ms)

    def __add__(self, other: Distribution) -> Distribution:
        """Return the distribution of the values of both."""
        both = Times()
        both.include(self)
        both.include(other)
        return both.distribution()


class Times:
    """Collect times for a :class:`Distribution`. Not safe for threads: the owner holds a lock."""

    __slots__ = ("_buckets", "_max_ms", "_min_ms", "_total_ns")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._total_ns = 0
        self._min_ms = math.inf
        self._max_ms = -math.inf

    def add(self, value_ms: float) -> None:
        """Count one value in milliseconds; a negative one counts as zero."""
        value_ms = max(0.0, value_ms)
        bucket = _bucket(value_ms)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self._total_ns += round(value_ms * _NS_PER_MS)
        self._min_ms = min(self._min_ms, value_ms)
        self._max_ms = max(self._max_ms, value_ms)

    def include(self, other: Distribution) -> None:
        """Count all values of *other*."""
        if other.min_ms is None or other.max_ms is None:
            return
        for bucket, count in other.buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self._total_ns += other.total_ns
        self._min_ms = min(self._min_ms, other.min_ms)
        self._max_ms = max(self._max_ms, other.max_ms)

    def distribution(self) -> Distribution:
        """Return what was collected so far."""
        buckets = dict(sorted(self._buckets.items()))
        count = sum(buckets.values())
        if not count:
            return Distribution()
        p50, p95, p99 = (_quantile(buckets, count, share, self._min_ms, self._max_ms) for share in (0.50, 0.95, 0.99))
        return Distribution(
            count=count,
            mean_ms=self._total_ns / count / _NS_PER_MS,
            min_ms=self._min_ms,
            max_ms=self._max_ms,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            total_ns=self._total_ns,
            buckets=buckets,
        )


def _bucket(value_ms: float) -> int:
    within = min(max(value_ms, LOWEST_MS), HIGHEST_MS)
    return math.ceil(math.log(within / LOWEST_MS) / _LOG_GROWTH)


def _middle_ms(bucket: int) -> float:
    """Return the value that is off by the same factor from both bounds of the bucket."""
    return float(LOWEST_MS * 2 * _GROWTH**bucket / (_GROWTH + 1))


def _quantile(buckets: Mapping[int, int], count: int, share: float, min_ms: float, max_ms: float) -> float:
    # A fraction of the decimal text: 0.95 * 100 is a little more than 95 in floats, which would be one rank too high.
    rank = max(1, math.ceil(Fraction(str(share)) * count))
    ordered = sorted(buckets)
    up_to = accumulate(buckets[bucket] for bucket in ordered)
    bucket = next(bucket for bucket, number in zip(ordered, up_to, strict=True) if number >= rank)
    return min(max(_middle_ms(bucket), min_ms), max_ms)
