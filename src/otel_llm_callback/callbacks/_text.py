"""Words for a terminal: figures with their unit, and strings from outside made harmless.

A model name, a finish reason, an exception text or a chunk can hold anything, escape sequences that rewrite the screen
or text direction marks that hide a part of it included. Everything from outside passes ``printable`` first.
"""

from __future__ import annotations

import unicodedata
from decimal import Decimal
from typing import Final

_HARMLESS_FORMAT_CHARACTERS: Final = frozenset("\u200c\u200d")  # joiners: scripts and emoji need them
_ESCAPED_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_MS_PER_S: Final = 1000


def printable(text: str, *, limit: int | None = None, encoding: str = "utf-8") -> str:
    r"""Return *text* on one line, with what could steer a terminal spelt out, such as ``\x1b``.

    Args:
        text: Anything.
        limit: Characters of *text* to keep; None keeps all. What was cut shows as ``...``.
        encoding: What the terminal takes; characters it lacks are spelt out too.
    """
    if limit is not None and len(text) > limit:
        text = text[:limit] + "..."
    if text.isascii() and text.isprintable():
        return text
    visible = "".join(_spelt_out(character) if _is_harmful(character) else character for character in text)
    return visible.encode(encoding, "backslashreplace").decode(encoding)


def _is_harmful(character: str) -> bool:
    return unicodedata.category(character) in _ESCAPED_CATEGORIES and character not in _HARMLESS_FORMAT_CHARACTERS


def _spelt_out(character: str) -> str:
    return repr(character)[1:-1]


def milliseconds(value_ms: float) -> str:
    """Return a time such as ``4.2 ms``, ``412 ms`` or ``2.41 s``."""
    if value_ms < 10:  # noqa: PLR2004 - where a digit after the point still says something
        return f"{value_ms:.1f} ms"
    if value_ms < _MS_PER_S:
        return f"{value_ms:.0f} ms"
    return f"{value_ms / _MS_PER_S:,.2f} s"


def seconds(value_s: float) -> str:
    """Return a time given in seconds, as :func:`milliseconds` does."""
    return milliseconds(value_s * _MS_PER_S)


def plural(count: int, noun: str, plural_noun: str | None = None) -> str:
    """Return such as ``1 retry`` or ``1,200 chunks``."""
    return f"{count:,} {noun if count == 1 else plural_noun or noun + 's'}"


def dollars(amount: Decimal) -> str:
    """Return such as ``0.0042 USD``: exact, without an exponent and without zeros at the end."""
    text = f"{amount:f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} USD"
