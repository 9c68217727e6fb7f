"""Read the few response headers that are of use: request id, processing time, rate limits.

A server may write anything there; what is not understood is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from .types import RateLimit

# The only headers that are ever read.
NAMES: Final = {
    b"x-request-id": "request_id",
    b"openai-processing-ms": "processing_ms",
    b"x-ratelimit-limit-requests": "limit_requests",
    b"x-ratelimit-remaining-requests": "remaining_requests",
    b"x-ratelimit-reset-requests": "reset_requests",
    b"x-ratelimit-limit-tokens": "limit_tokens",
    b"x-ratelimit-remaining-tokens": "remaining_tokens",
    b"x-ratelimit-reset-tokens": "reset_tokens",
}

_LIMITS: Final = frozenset(NAMES.values()) - {"request_id", "processing_ms"}
_NO_LIMIT: Final = RateLimit()
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_ONE_UNIT: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhd])")
_LONGEST: Final = 200
_MOST_DIGITS: Final = 18


def read_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers of use under our names for them."""
    return {
        known: value.decode("latin-1")
        for name, value in raw
        if (known := NAMES.get(name.lower())) is not None and len(value) <= _LONGEST
    }


def read_rate_limit(headers: Mapping[str, str]) -> RateLimit | None:
    """Return what the headers say of limits, None if they say nothing."""
    if _LIMITS.isdisjoint(headers):
        return None
    get = headers.get
    limit = RateLimit(
        limit_requests=_count(get("limit_requests")),
        remaining_requests=_count(get("remaining_requests")),
        reset_requests_s=duration(get("reset_requests")),
        limit_tokens=_count(get("limit_tokens")),
        remaining_tokens=_count(get("remaining_tokens")),
        reset_tokens_s=duration(get("reset_tokens")),
    )
    return None if limit == _NO_LIMIT else limit


def duration(text: str | None) -> float | None:
    """Return seconds for a duration such as ``6m0s``, ``120ms`` or ``1.5``; None if it is not one."""
    if text is None:
        return None
    if (simple := _ONE_UNIT.fullmatch(text)) is not None:
        return float(simple[1]) * _UNITS[simple[2]]
    if (plain := to_float(text)) is not None:
        return plain
    total, number, unit = 0.0, "", ""
    for character in f"{text}0":
        if character.isdigit() or character == ".":
            if unit:
                if unit not in _UNITS or (value := to_float(number)) is None:
                    return None
                total, number, unit = total + value * _UNITS[unit], "", ""
            number += character
        else:
            unit += character
    return total if total or text.startswith("0") else None


def to_float(text: str | None) -> float | None:
    """Return the number in *text*, None if it is not a finite one."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) <= _MOST_DIGITS else None
