"""The OpenTelemetry adapter: a callback that turns calls into spans, span events, metrics and log events."""

from ._adapter import OpenTelemetryCallback
from ._caller import CallerSpan

__all__ = ["CallerSpan", "OpenTelemetryCallback"]
