"""Without telemetry of ours, callbacks still learn which span their call belongs to: the caller's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from opentelemetry.trace import get_current_span

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

    from ..types import RequestMetadata


class CallerSpan:
    """Stands in for the adapter: tells the ids of the span that is current when a call is made."""

    content = "none"

    def is_idle(self) -> bool:
        """It serves other callbacks; alone it has nothing to do."""
        return True

    def on_request_sent(self, _metadata: RequestMetadata, _request_json: str) -> AbstractContextManager[object] | None:
        """Return what carries the ids, None if no span is current."""
        identity = get_current_span().get_span_context()
        return _Ids(identity) if identity.is_valid else None


class _Ids(nullcontext[None]):
    def __init__(self, identity: SpanContext) -> None:
        super().__init__()
        self.trace_id = f"{identity.trace_id:032x}"
        self.span_id = f"{identity.span_id:016x}"
