"""What an alert says, and where it can be sent besides a function."""

from __future__ import annotations

import json
import logging
import queue
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from .. import _faults
from .._background import Worker
from ._text import printable
from ._windows import Number

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

_GROUP_SHOWN: Final = 100
_RETRIED: Final = frozenset({408, 425, 429})
_SERVER_ERROR: Final = 500
_LONGEST_BACKOFF_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A level that was passed, or no longer is.

    Attributes:
        name: Of the alert, such as ``latency``.
        state: ``fired`` or ``cleared``.
        value: What was measured over the window; None if it cleared because no calls are left in it.
        threshold: The level at which it fires.
        unit: Of both: ``s``, ``share``, ``tokens/s`` or ``USD/h``.
        statistic: How the value was made of the calls, such as ``p95``.
        above: True if it fires above the threshold, False if below.
        window_s: How far the window reaches back, in seconds.
        calls: How many calls the value was made of.
        group: Which model, session …, if calls are grouped; ``other`` for those beyond the limit.
        call_id: The worst call in the window, None if there is none.
        trace_id: Its trace.
        span_id: Its span.
        at: When, in UTC.
    """

    name: str
    state: Literal["fired", "cleared"]
    value: Number | None
    threshold: Number
    unit: str
    statistic: str
    above: bool
    window_s: float
    calls: int
    group: str | None
    call_id: str | None
    trace_id: str | None
    span_id: str | None
    at: datetime

    def __str__(self) -> str:
        """Return it as one line without anything that could steer a terminal."""
        group = "" if self.group is None else f" of {printable(self.group, limit=_GROUP_SHOWN)}"
        value = "no calls left" if self.value is None else f"{self.statistic} is {_figure(self.value, self.unit)}"
        level = f"{'above' if self.above else 'below'} {_figure(self.threshold, self.unit)}"
        return f"{self.name}{group} {self.state}: {value}, alert is {level}, {self.calls} calls in {self.window_s:g} s"


Target: TypeAlias = Callable[[Alert], object]


def _figure(value: Number, unit: str) -> str:
    return f"{value:.1%}" if unit == "share" else f"{value:.4g} {unit}"


class AlertLog:
    """Write alerts as log records: one that fired as a warning, one that cleared as information.

    The record has the alert as its attribute ``alert``, and its trace in ``otelTraceID`` and ``otelSpanID``.

    Args:
        logger: A logger or its name.
    """

    def __init__(self, logger: logging.Logger | str = "otel_llm_callback.alerts") -> None:
        self._logger = logging.getLogger(logger) if isinstance(logger, str) else logger

    def __call__(self, alert: Alert) -> None:
        """Write *alert*."""
        level = logging.WARNING if alert.state == "fired" else logging.INFO
        extra = {"alert": alert, "otelTraceID": alert.trace_id or "0", "otelSpanID": alert.span_id or "0"}
        self._logger.log(level, "%s", alert, extra=extra)

    def __repr__(self) -> str:
        return f"AlertLog({self._logger.name!r})"


class AlertSpan:
    """Show alerts in the trace view: a short span of its own per alert, with a span event and a link to the worst call.

    It is no event on the call's own span: that has ended before the last figure about the call is known, and no other
    span of the program is ours to write on.

    Args:
        tracer_provider: Instead of the global one.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer_provider = tracer_provider

    def __call__(self, alert: Alert) -> None:
        """Make a span of *alert*."""
        from opentelemetry import trace
        from opentelemetry.context import Context

        tracer = trace.get_tracer("otel_llm_callback", tracer_provider=self._tracer_provider)
        links = []
        if alert.trace_id is not None and alert.span_id is not None:
            worst = trace.SpanContext(
                int(alert.trace_id, 16), int(alert.span_id, 16), is_remote=False, trace_flags=trace.TraceFlags(1)
            )
            links.append(trace.Link(worst))
        facts = {
            name: float(value) if isinstance(value, Number) and not isinstance(value, int) else value
            for name, value in _facts(alert).items()
            if name not in {"trace_id", "span_id", "at"} and value is not None
        }
        attributes = {f"llm_callback.alert.{name}": value for name, value in facts.items()}
        span = tracer.start_span(f"alert {alert.name}", context=Context(), links=links, attributes=attributes)
        span.add_event(f"llm_callback.alert.{alert.state}", attributes)
        span.end()

    def __repr__(self) -> str:
        return "AlertSpan()"


class Webhook:
    """Post alerts as JSON, from a thread of its own.

    What waits is bounded; what does not fit is dropped and counted. An answer of 5xx, 408, 425 or 429, none in time and
    no connection are tried again, after waits that double; anything else is not. Redirects are not followed, and
    nothing of the answer is read. At exit what waits is sent within ``exit_timeout``. Losses are logged once, without
    the address, and counted under ``webhook`` in ``status().errors``.

    The body has the fields of :class:`Alert` and ``text``, one line that says it all. It carries no content.

    Args:
        url: Where to, ``http`` or ``https``. It may hold a secret: only its host is ever shown.
        headers: Sent besides the content type.
        timeout_s: How long an answer may take.
        attempts: How often an alert is sent at most.
        backoff_s: The first wait before trying again.
        queue_size: How many alerts wait at most.

    Raises:
        ValueError: A value is not allowed.

    Attributes:
        delivered: Alerts that were answered with 2xx.
        failed: Alerts that were given up.
        dropped: Alerts that found the queue full.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 5.0,
        attempts: int = 5,
        backoff_s: float = 0.5,
        queue_size: int = 100,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("url is not allowed; allowed: one that begins with http:// or https:// and names a host")
        for name, value in {"timeout_s": timeout_s, "attempts": attempts, "queue_size": queue_size}.items():
            if value <= 0:
                raise ValueError(f"{name}={value!r} is not allowed; allowed: a number greater than 0")
        if backoff_s < 0:
            raise ValueError(f"backoff_s={backoff_s!r} is not allowed; allowed: a number from 0")
        self._url = url
        self._host = parts.hostname
        self._headers = {**(headers or {}), "Content-Type": "application/json"}
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._backoff_s = backoff_s
        self._worker = Worker(queue_size, is_fed=True)
        self._closed = threading.Event()
        self.delivered = self.failed = self.dropped = 0

    def __call__(self, alert: Alert) -> None:
        """Queue *alert*; never waits."""
        body = json.dumps({**_facts(alert), "text": str(alert)}, default=str).encode()
        if self._closed.is_set() or self._worker.is_full or not self._worker.put(lambda: self._deliver(body)):
            self.dropped += 1
            _faults.report("webhook", queue.Full(), "an alert was not sent: too many wait")

    def close(self) -> None:
        """Send what waits, without waits between attempts, and let the thread end. Returns at once; idempotent."""
        self._closed.set()
        self._worker.close()

    def _deliver(self, body: bytes) -> None:
        wait_s = self._backoff_s
        for attempt in range(1, self._attempts + 1):
            error = self._post(body)
            if error is None:
                self.delivered += 1
                return
            if attempt == self._attempts or not _is_worth_another(error):
                self.failed += 1
                _faults.report("webhook", error, "an alert was not sent")
                return
            self._closed.wait(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - so that many processes do not keep step
            wait_s = min(wait_s * 2, _LONGEST_BACKOFF_S)

    def _post(self, body: bytes) -> Exception | None:
        from urllib.request import HTTPRedirectHandler, Request, build_opener  # takes longer to import than all of us

        class Stay(HTTPRedirectHandler):
            def redirect_request(self, *_: Any) -> None:
                """Follow no redirect: it may lead anywhere."""

        request = Request(self._url, data=body, headers=self._headers, method="POST")  # noqa: S310 - http and https only
        try:
            with build_opener(Stay).open(request, timeout=self._timeout_s):
                return None
        except Exception as error:  # noqa: BLE001 - whatever a network does
            close = getattr(error, "close", None)
            if close is not None:
                close()
            return error

    def __repr__(self) -> str:
        return f"<Webhook to {self._host}: {self.delivered} delivered>"


def _is_worth_another(error: Exception) -> bool:
    code = getattr(error, "code", None)  # of an answer; without one nobody has answered
    return not isinstance(code, int) or code >= _SERVER_ERROR or code in _RETRIED


def _facts(alert: Alert) -> dict[str, Any]:
    """Return the fields as JSON has them; amounts of money stay as exact as they are."""
    facts = asdict(alert)
    return {**facts, "at": alert.at.isoformat()}
