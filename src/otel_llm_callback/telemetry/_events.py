"""Write the log-based events of the conventions; off unless asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry._logs import LogRecord, SeverityNumber, get_logger

from .. import _faults
from . import _names as n

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.context import Context


class EventWriter:
    """Emits events on a logger, linked to the span of the call."""

    def __init__(self, logger_provider: LoggerProvider | None) -> None:
        self._logger = get_logger(n.SCOPE, logger_provider=logger_provider, schema_url=n.SCHEMA_URL)

    def details(self, attributes: Mapping[str, Any], context: Context, at_ns: int) -> None:
        """The attributes of the span, with content as structured values."""
        self._emit(n.LOG_OPERATION_DETAILS, SeverityNumber.DEBUG, attributes, context, at_ns)

    def exception(self, attributes: Mapping[str, Any], context: Context, at_ns: int) -> None:
        """An exception that reached the caller."""
        self._emit(n.LOG_EXCEPTION, SeverityNumber.WARN, attributes, context, at_ns)

    def _emit(
        self, name: str, severity: SeverityNumber, attributes: Mapping[str, Any], context: Context, at_ns: int
    ) -> None:
        try:
            record = LogRecord(
                timestamp=at_ns, context=context, severity_number=severity, attributes=dict(attributes), event_name=name
            )
            self._logger.emit(record)
        except Exception as error:  # noqa: BLE001 - somebody's log processor must not cost the span or the metrics
            _faults.report("event", error, "a log event was not written")
