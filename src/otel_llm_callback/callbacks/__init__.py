"""Callbacks that are ready to use. They read only the facts they are told; none imports ``openai`` or OpenTelemetry."""

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
