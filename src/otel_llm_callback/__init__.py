"""OpenTelemetry instrumentation for the ``openai`` client, built around a callback protocol.

Importing starts nothing: no thread, no socket, no provider, and neither ``openai`` nor the SDK is imported.
"""

from ._client import ClientRegistration, instrument_client
from ._observe import ObservedCall, observe
from ._registry import Registration, register, using
from ._scope import session, suppress
from ._status import CallbackStatus, Status, status
from ._version import __version__
from .callbacks.multi import MultiCallback
from .instrumentor import OpenAIInstrumentor, aflush, flush, instrument, shutdown, uninstrument
from .prices import LibraryPrices, PriceTable, Rates
from .protocol import DeliveryOptions, TelemetryCallback
from .sdk import configure
from .telemetry import OpenTelemetryCallback
from .types import (
    ErrorContext,
    FailedResponseError,
    RateLimit,
    RequestMetadata,
    ResponseMetadata,
    Retry,
    StreamChunk,
    Usage,
)

__all__ = [
    "CallbackStatus",
    "ClientRegistration",
    "DeliveryOptions",
    "ErrorContext",
    "FailedResponseError",
    "LibraryPrices",
    "MultiCallback",
    "ObservedCall",
    "OpenAIInstrumentor",
    "OpenTelemetryCallback",
    "PriceTable",
    "RateLimit",
    "Rates",
    "Registration",
    "RequestMetadata",
    "ResponseMetadata",
    "Retry",
    "Status",
    "StreamChunk",
    "TelemetryCallback",
    "Usage",
    "__version__",
    "aflush",
    "configure",
    "flush",
    "instrument",
    "instrument_client",
    "observe",
    "register",
    "session",
    "shutdown",
    "status",
    "suppress",
    "uninstrument",
    "using",
]
