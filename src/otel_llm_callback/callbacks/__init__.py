"""Callbacks that are ready to use. They read only the facts they are told; none imports ``openai`` or OpenTelemetry."""

from ._distribution import Distribution
from ._summary import CallSummary, SessionSummary
from .console import ConsoleLogger
from .multi import MultiCallback
from .sessions import SessionAnalytics

__all__ = ["CallSummary", "ConsoleLogger", "Distribution", "MultiCallback", "SessionAnalytics", "SessionSummary"]
