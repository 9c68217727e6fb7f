"""The form of an audit log: canonical JSON, one record a line, each with the hash of the one before it.

Writer and verifier share this module and nothing else. A line is the record in canonical JSON (RFC 8785) with one more
member, ``hash``, put last: SHA-256 of the canonical JSON without it, or HMAC-SHA256 if there is a key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

FIRST_PREV: Final = "0" * 64
"""What stands for the hash before the first record of a chain."""

LINE_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of one line; nothing longer is written, and nothing longer is read."""

TEXT_LIMIT: Final = 10 * 1024 * 1024
"""Bytes of one text kept in full; as JSON in JSON it can grow sixfold."""

STARTS: Final = frozenset({"open", "recovered", "rotate"})
"""Kinds of record that a file can begin with."""

_KEY_BYTES: Final = 16
_SAFE_INTEGER: Final = 2**53 - 1
_STRING_LIMIT: Final = 4096
_SEAL: Final = re.compile(rb',"hash":"([0-9a-f]{64})"\}\Z')
_SEAL_BYTES: Final = 75

_sort_and_encode: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
).encode
_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def canonical(record: Mapping[str, Any]) -> bytes:
    """Return *record* as RFC 8785 has it, provided that what it holds went through :func:`plain`.

    Raises:
        ValueError: It holds NaN, an infinity, or half of a surrogate pair.
    """
    text = _sort_and_encode(record)
    if not text.isascii():  # the RFC sorts names by UTF-16 code units, which only differs outside ASCII
        text = _encode(_in_order(record))
    return text.encode()


def _in_order(value: Any) -> Any:
    if isinstance(value, Mapping):
        names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
        return {name: _in_order(value[name]) for name in names}
    return [_in_order(item) for item in value] if isinstance(value, (list, tuple)) else value


def plain(value: Any) -> Any:
    """Return *value* as every JSON library reads and writes it alike.

    A number on which they disagree (beyond 2**53, or in need of an exponent) becomes a string. A string is cut after
    4,096 characters, half of a surrogate pair becomes a question mark, and what is no JSON the name of its class.
    """
    if isinstance(value, str):
        return well_formed(value if len(value) <= _STRING_LIMIT else value[:_STRING_LIMIT] + "…")
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value) if abs(value) <= _SAFE_INTEGER else f"{value:#x}"
    if isinstance(value, float):
        return _plain_float(float(value))
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return type(value).__name__


def well_formed(text: str) -> str:
    """Return *text* with what UTF-8 cannot carry replaced."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _plain_float(value: float) -> Any:
    if value.is_integer() and abs(value) <= _SAFE_INTEGER:
        return int(value)
    written = repr(value)
    return value if written.strip("-0123456789.") == "" and abs(value) <= _SAFE_INTEGER else written


class Sealed(NamedTuple):
    """A line taken apart; nothing is known of it yet but its form."""

    body: bytes
    digest: str


def take_apart(line: bytes) -> Sealed | None:
    """Return the two parts of a *line* without its line break; None if it has not the form of a record."""
    seal = _SEAL.search(line, max(0, len(line) - _SEAL_BYTES))
    return None if seal is None else Sealed(line[:-_SEAL_BYTES] + b"}", seal[1].decode("ascii"))


class Seal:
    """Make and check hashes, with a key or without one. The key shows in no repr."""

    __slots__ = ("_key", "algorithm", "content_name", "key_id")

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) < _KEY_BYTES:
            raise ValueError(f"the audit key has {len(key)} bytes; it must have {_KEY_BYTES} or more")
        self._key = key
        self.algorithm = "sha256" if key is None else "hmac-sha256"
        self.content_name = self.algorithm.replace("-", "_")
        self.key_id = None if key is None else self._digest(b"key id")[:16]

    def line(self, record: Mapping[str, Any]) -> tuple[bytes, str]:
        """Return *record* as a line with its line break, and its hash."""
        body = canonical(record)
        digest = self._digest(body)
        return b'%b,"hash":"%b"}\n' % (body[:-1], digest.encode("ascii")), digest

    def fits(self, sealed: Sealed) -> bool:
        """Return whether the hash is that of the body."""
        return hmac.compare_digest(self._digest(sealed.body), sealed.digest)

    def content(self, text: bytes) -> str:
        """Return the hash that stands for a request or response; with a key nobody else can try out guesses."""
        return hashlib.sha256(text).hexdigest() if self._key is None else self._digest(b"content\n" + text)

    def _digest(self, body: bytes) -> str:
        if self._key is None:
            return hashlib.sha256(body).hexdigest()
        return hmac.digest(self._key, body, "sha256").hex()


class UnreadableRecordError(ValueError):
    """A body that no writer of ours can have made; the text says why and quotes nothing."""


def read_body(body: bytes) -> dict[str, Any]:
    """Return the record that *body* holds.

    Raises:
        UnreadableRecordError: It is no canonical JSON, or lacks what every record has.
    """
    try:
        record = json.loads(body)
        is_canonical = isinstance(record, dict) and canonical(record) == body
    except RecursionError:
        raise UnreadableRecordError("is nested too deeply") from None
    except UnicodeDecodeError:
        raise UnreadableRecordError("is not UTF-8") from None
    except ValueError:
        raise UnreadableRecordError("is not JSON") from None
    if not isinstance(record, dict):
        raise UnreadableRecordError("is not a JSON object")
    if not is_canonical:
        raise UnreadableRecordError("is not canonical JSON (names out of order or given twice, or spaces)")
    wrong = [name for name, kind in _MEMBERS.items() if type(record.get(name)) is not kind]
    if wrong:
        raise UnreadableRecordError(f"has no {', '.join(wrong)}")
    return record


_MEMBERS: Final = {"chain": str, "kind": str, "prev": str, "seq": int, "time": str}


def load_key(
    key: bytes | None = None, *, key_file: str | os.PathLike[str] | None = None, key_variable: str | None = None
) -> bytes | None:
    """Return the key, wherever it is kept; None if no place is named. Line breaks at its end are no part of it.

    Raises:
        OSError: The file cannot be read.
        ValueError: More than one place is named, or the variable is not set.
        TypeError: *key* is not bytes.
    """
    if sum(place is not None for place in (key, key_file, key_variable)) > 1:
        raise ValueError("give one of key, key_file and key_variable")
    if key_file is not None:
        return Path(key_file).read_bytes().rstrip(b"\r\n")
    if key_variable is not None:
        text = os.environ.get(key_variable)
        if not text:
            raise ValueError(f"the environment variable {key_variable} holds no audit key")
        return text.encode().rstrip(b"\r\n")
    if key is not None and not isinstance(key, bytes):
        raise TypeError(f"the audit key must be bytes, not {type(key).__name__}")
    return key


def timestamp(at_ns: int) -> str:
    """Return nanoseconds since the epoch as RFC 3339 in UTC, exactly."""
    at_s, rest_ns = divmod(at_ns, 1_000_000_000)
    t = time.gmtime(at_s)
    return f"{t.tm_year:04}-{t.tm_mon:02}-{t.tm_mday:02}T{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}.{rest_ns:09}Z"
