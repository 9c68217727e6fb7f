"""A uniform sample of bounded size, taken as the items come by."""

from __future__ import annotations

import math
import os
import random
from typing import Final

SAMPLE_SIZE: Final = 64

# Our own generator: drawing from the global one would change the numbers a seeded program gets.
_random: Final = random.Random()  # noqa: S311 - statistics, not secrets
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def new_id() -> str:
    """Return 32 hex digits, unique across processes."""
    return f"{_random.getrandbits(128):032x}"


class Reservoir:
    """At most 64 of the numbers added, each with the same chance.

    ``next_at`` says which item is wanted next, so that the caller compares two integers for all the others. Algorithm L
    (Li, 1994): the number of items to skip is drawn, not decided item by item.
    """

    __slots__ = ("_w", "next_at", "values")

    def __init__(self) -> None:
        self.values: list[int] = []
        self.next_at = 0
        self._w = 1.0

    def add(self, value: int) -> None:
        """Take the item at ``next_at``."""
        values = self.values
        if len(values) < SAMPLE_SIZE:
            values.append(value)
            self.next_at += 1
            if len(values) == SAMPLE_SIZE:
                self._skip()
            return
        values[_random.randrange(SAMPLE_SIZE)] = value
        self.next_at += 1
        self._skip()

    def _skip(self) -> None:
        self._w *= math.exp(math.log(1.0 - _random.random()) / SAMPLE_SIZE)
        self.next_at += int(math.log(1.0 - _random.random()) / math.log1p(-self._w)) if self._w < 1.0 else 0
