"""What the command line says, checked before anything is opened."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

DEFAULT_PORT: Final = 4318
"""The standard port of OTLP over HTTP, so that exporters find the viewer without being told."""

_SHORTEST_TOKEN: Final = 16
_HIGHEST_PORT: Final = 65_535
_MIB: Final = 1024 * 1024


class OptionsError(ValueError):
    """An option, or the combination of some, is not allowed; the text says what is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is taken and kept; each is a bound on memory or disk.

    Attributes:
        spans: Spans the store keeps; the oldest traces go first.
        stored_bytes: Bytes the store keeps, as it counts them: bodies and an allowance for each row.
        spans_per_trace: Spans of one trace; further ones are refused by name, in the answer to their sender.
        series: Metric series that are remembered; the one longest without a value goes first.
        request_bytes: A request's body as it is sent.
        inflated_bytes: A request's body once decompressed.
        waiting_bytes: Bodies that were received and are not stored yet. Beyond it senders are told to try again.
        connections: Open connections, event streams included.
        live_calls: Calls in flight that are shown.
        live_text: Characters of each that are kept; the first ones go first.
    """

    spans: int = 1_000_000
    stored_bytes: int = 2048 * _MIB
    spans_per_trace: int = 100_000
    series: int = 5_000
    request_bytes: int = 16 * _MIB
    inflated_bytes: int = 64 * _MIB
    waiting_bytes: int = 128 * _MIB
    connections: int = 256
    live_calls: int = 1_000
    live_text: int = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run the viewer.

    Attributes:
        host: The address to listen on.
        port: 0 for any free one.
        store: The database file; None keeps everything in memory.
        token: What senders and the page must present; None for no token, on loopback only.
        exit_after_s: Seconds without a request or an open page after which the viewer ends; None for never.
        names: Further host names under which the viewer may be addressed.
        limits: See :class:`Limits`.

    Raises:
        OptionsError: See its text.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    store: Path | None = None
    token: str | None = field(default=None, repr=False)
    exit_after_s: float | None = None
    names: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= _HIGHEST_PORT:
            raise OptionsError(f"--port is {self.port}; it must be from 0 to {_HIGHEST_PORT}")
        for name, value in _POSITIVE.items():
            if (number := value(self)) is not None and number <= 0:
                raise OptionsError(f"{name} must be greater than 0")
        if self.token is not None and (len(self.token) < _SHORTEST_TOKEN or not self.token.isascii()):
            raise OptionsError(f"--token must have at least {_SHORTEST_TOKEN} characters, all of them ASCII")
        if not self.is_loopback and self.token is None:
            raise OptionsError(
                f"--host {self.host} can be reached from other machines, and prompts may be among what is stored; "
                "give --token TEXT too, or listen on 127.0.0.1"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the viewer."""
        return is_loopback(self.host)

    @property
    def address(self) -> str:
        """The host as it stands in a URL; where it means every interface, this machine's own name for itself."""
        if self.host in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
            return "localhost"
        return f"[{self.host}]" if ":" in self.host else self.host


_POSITIVE: Final[Mapping[str, Callable[[Options], float | None]]] = {
    "--max-spans": lambda options: options.limits.spans,
    "--max-mib": lambda options: options.limits.stored_bytes,
    "--exit-after": lambda options: options.exit_after_s,
}


def is_loopback(host: str) -> bool:
    """Whether *host*, a name or a literal address, is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def default_store() -> Path:
    """Return where the store is kept if nothing is said: a directory of the user's own."""
    from platformdirs import user_state_path

    return user_state_path("otel-llm-callback", appauthor=False) / "live-view.db"
