"""Callbacks that are ready to use. They read only the facts they are told; none imports ``openai`` or OpenTelemetry.

Each is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ._audit_verify import AuditReport, verify_audit
    from ._distribution import Distribution
    from ._summary import CallSummary, SessionSummary
    from ._targets import Alert, AlertLog, AlertSpan, Webhook
    from .alerts import (
        AlertOptions,
        CostRateAlert,
        ErrorRateAlert,
        FirstChunkAlert,
        GapAlert,
        LatencyAlert,
        OutputSpeedAlert,
        RateLimitAlert,
        TokenRateAlert,
    )
    from .audit import AuditLog, AuditState
    from .console import ConsoleLogger
    from .cost import BudgetUse, CostSummary, CostTotals, CostTracker
    from .filters import CallEnd, batch, only, sample, where
    from .json_logger import JsonLogger
    from .live import LiveView
    from .multi import MultiCallback
    from .parquet import ParquetSink
    from .sentry import SentryCallback
    from .sessions import SessionAnalytics
    from .sqlite import SqliteSink

__all__ = [
    "Alert",
    "AlertLog",
    "AlertOptions",
    "AlertSpan",
    "AuditLog",
    "AuditReport",
    "AuditState",
    "BudgetUse",
    "CallEnd",
    "CallSummary",
    "ConsoleLogger",
    "CostRateAlert",
    "CostSummary",
    "CostTotals",
    "CostTracker",
    "Distribution",
    "ErrorRateAlert",
    "FirstChunkAlert",
    "GapAlert",
    "JsonLogger",
    "LatencyAlert",
    "LiveView",
    "MultiCallback",
    "OutputSpeedAlert",
    "ParquetSink",
    "RateLimitAlert",
    "SentryCallback",
    "SessionAnalytics",
    "SessionSummary",
    "SqliteSink",
    "TokenRateAlert",
    "Webhook",
    "batch",
    "only",
    "sample",
    "verify_audit",
    "where",
]

_HOMES: Final = {
    "Alert": "._targets",
    "AlertLog": "._targets",
    "AlertOptions": ".alerts",
    "AlertSpan": "._targets",
    "AuditLog": ".audit",
    "AuditReport": "._audit_verify",
    "AuditState": ".audit",
    "BudgetUse": ".cost",
    "CallEnd": ".filters",
    "CallSummary": "._summary",
    "ConsoleLogger": ".console",
    "CostRateAlert": ".alerts",
    "CostSummary": ".cost",
    "CostTotals": ".cost",
    "CostTracker": ".cost",
    "Distribution": "._distribution",
    "ErrorRateAlert": ".alerts",
    "FirstChunkAlert": ".alerts",
    "GapAlert": ".alerts",
    "JsonLogger": ".json_logger",
    "LatencyAlert": ".alerts",
    "LiveView": ".live",
    "MultiCallback": ".multi",
    "OutputSpeedAlert": ".alerts",
    "ParquetSink": ".parquet",
    "RateLimitAlert": ".alerts",
    "SentryCallback": ".sentry",
    "SessionAnalytics": ".sessions",
    "SessionSummary": "._summary",
    "SqliteSink": ".sqlite",
    "TokenRateAlert": ".alerts",
    "Webhook": "._targets",
    "batch": ".filters",
    "only": ".filters",
    "sample": ".filters",
    "verify_audit": "._audit_verify",
    "where": ".filters",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name], __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
