"""Record the metrics of a call.

One histogram record in the SDK costs more than twenty chunks of everything else, so nothing is recorded per chunk
unless asked for, and attribute mappings are built once per combination of values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from .._jobs import PENDING
from ..config import MetricFamily
from . import _names as n

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import Counter, Histogram, Meter

    from ..types import ErrorContext, RateLimit, RequestMetadata, ResponseMetadata, Retry, Usage

Attributes: TypeAlias = "dict[str, str | int]"

OTHER: Final = "other"
_MODEL_LIMIT: Final = 200
_TIER_LIMIT: Final = 16
_ERROR_LIMIT: Final = 64
_HOST_LIMIT: Final = 64
# Beyond 2,000 series of a metric the SDK gives up on all attributes; token counts have four series for each of these.
_SERIES_LIMIT: Final = 400
_MADE_UP: Final = (n.REQUEST_MODEL, n.RESPONSE_MODEL, n.SERVER_ADDRESS, n.OPENAI_RESPONSE_TIER, n.ERROR_TYPE)
_CACHE_LIMIT: Final = 1024
_HEADROOM_PAUSE_NS: Final = 1_000_000_000


class BoundedNames:
    """Keeps the number of values of a metric attribute bounded: beyond the limit they become ``other``."""

    __slots__ = ("_known", "_limit")

    def __init__(self, limit: int) -> None:
        self._known: set[str] = set()
        self._limit = limit

    def bounded(self, name: str | None) -> str | None:
        """Return *name*, or ``other`` once there are too many."""
        if name is None or name in self._known:
            return name
        if len(self._known) >= self._limit:
            return OTHER
        self._known.add(name)
        return name


class MetricRecorder:
    """The instruments of one meter and the attribute mappings they are recorded with."""

    def __init__(self, meter: Meter, family: MetricFamily) -> None:
        self._current = _Current(meter) if family in ("current", "both") else None
        self._next = _Next(meter) if family in ("next", "both") else None
        self._missing = meter.create_counter(
            n.USAGE_MISSING, unit="{call}", description="Calls that ended well and whose tokens are unknown."
        )
        self._cost = meter.create_histogram(
            n.USAGE_COST,
            unit="USD",
            description="Cost of the operation, where prices are set and known.",
            explicit_bucket_boundaries_advisory=n.COST_BUCKETS,
        )
        self._duration = None if self._current is not None else _seconds(meter, n.DURATION, _DURATION_HELP)
        self._net_duration = _seconds(
            meter, n.NET_DURATION, "Duration of operations that were repeated, without the waits in between."
        )
        # Each has a table of its own: what a server makes up must not use up the names the program asks for.
        self._requested = BoundedNames(_MODEL_LIMIT)
        self._answered = BoundedNames(_MODEL_LIMIT)
        self._tiers = BoundedNames(_TIER_LIMIT)
        self._error_types = BoundedNames(_ERROR_LIMIT)
        self._hosts = BoundedNames(_HOST_LIMIT)
        self._series: set[tuple[Any, ...]] = set()
        self._attributes: dict[tuple[Any, ...], _AttributeSet] = {}
        self._headroom = _Headroom(meter, self._requested)

    def response(self, metadata: ResponseMetadata, context: Context, *, gaps: bool) -> None:
        """Record a call that ended without an exception; *gaps* says whether to record the waits between chunks."""
        outcome = None if metadata.outcome == "completed" else metadata.outcome
        retries = metadata.retries
        attributes = self._set(
            metadata.request, metadata.model, metadata.service_tier, None, outcome, retried=bool(retries)
        )
        self._record(metadata, attributes, metadata.response_time_ms / 1000, retries, context, gaps=gaps)
        if metadata.rate_limit is not None:
            self._headroom.record(metadata.request, metadata.rate_limit, metadata.ended_ns, context)
        if metadata.usage is None and outcome is None and should_say_usage(metadata):
            self._missing.add(1, attributes.base, context)

    def error(self, failure: ErrorContext, context: Context, *, gaps: bool) -> None:
        """Record a call that failed, with what had arrived."""
        request, partial, retries = failure.request, failure.partial, failure.retries
        model, tier = (partial.model, partial.service_tier) if partial is not None else (None, None)
        outcome = "cancelled" if failure.outcome == "cancelled" else None
        attributes = self._set(request, model, tier, failure.error_type, outcome, retried=bool(retries))
        duration_s = failure.response_time_ms / 1000
        if partial is None:
            self._record_duration(request.operation, attributes, duration_s, retries, context)
        else:
            self._record(partial, attributes, duration_s, retries, context, gaps=gaps)
        if failure.rate_limit is not None:
            self._headroom.record(request, failure.rate_limit, failure.ended_ns, context)

    def gap(self, request: RequestMetadata, gap_s: float, context: Context) -> None:
        """Record one wait between two chunks."""
        attributes = self._set(request, None, None, None, None, retried=False).base
        if self._current is not None:
            self._current.per_chunk.record(gap_s, attributes, context)
        if self._next is not None:
            self._next.per_chunk.record(gap_s, attributes, context)

    def _record(
        self,
        metadata: ResponseMetadata,
        attributes: _AttributeSet,
        duration_s: float,
        retries: tuple[Retry, ...],
        context: Context,
        *,
        gaps: bool,
    ) -> None:
        operation = metadata.request.operation
        self._record_duration(operation, attributes, duration_s, retries, context)
        if metadata.cost is not None:
            self._cost.record(float(metadata.cost), attributes.tokens, context)
        usage, first = metadata.usage, metadata.time_to_first_chunk_s
        chunk_gaps = metadata.chunk_gaps_s if gaps else ()
        if self._current is not None:
            self._current.record(attributes, usage, first, chunk_gaps, context)
        if self._next is not None and operation in n.INFERENCE:
            self._next.record(attributes, usage, first, chunk_gaps, context)

    def _record_duration(
        self,
        operation: str,
        attributes: _AttributeSet,
        duration_s: float,
        retries: tuple[Retry, ...],
        context: Context,
    ) -> None:
        if self._current is not None:
            self._current.duration.record(duration_s, attributes.duration, context)
        if self._next is not None and operation in n.INFERENCE:
            self._next.duration.record(duration_s, attributes.duration, context)
        elif self._duration is not None:
            self._duration.record(duration_s, attributes.duration, context)
        if retries:
            waited_s = sum(retry.delay_s for retry in retries)
            self._net_duration.record(max(0.0, duration_s - waited_s), attributes.duration, context)

    def _set(
        self,
        request: RequestMetadata,
        model: str | None,
        tier: str | None,
        error_type: str | None,
        outcome: str | None,
        *,
        retried: bool,
    ) -> _AttributeSet:
        key = (
            request.operation,
            request.provider,
            request.model,
            request.server_address,
            request.server_port,
            model,
            tier,
            error_type,
            outcome,
            retried,
        )
        known = self._attributes.get(key)
        if known is None:
            if len(self._attributes) >= _CACHE_LIMIT:
                self._attributes.clear()
            known = self._attributes[key] = self._build(request, model, tier, error_type, outcome, retried=retried)
        return known

    def _build(
        self,
        request: RequestMetadata,
        model: str | None,
        tier: str | None,
        error_type: str | None,
        outcome: str | None,
        *,
        retried: bool,
    ) -> _AttributeSet:
        host = self._hosts.bounded(request.server_address)
        base: dict[str, str | int | None] = {
            n.OPERATION_NAME: request.operation,
            n.PROVIDER_NAME: request.provider,
            n.REQUEST_MODEL: self._requested.bounded(request.model),
            n.RESPONSE_MODEL: self._answered.bounded(model),
            n.SERVER_ADDRESS: host,
            n.SERVER_PORT: None if host == OTHER else request.server_port,
        }
        extra: dict[str, str | int | None] = {
            n.OPENAI_RESPONSE_TIER: self._tiers.bounded(tier),
            n.ERROR_TYPE: self._error_types.bounded(error_type),
            n.OUTCOME: outcome,
            n.RETRIED: retried or None,
        }
        series = (*base.values(), *extra.values())
        if len(self._series) < _SERIES_LIMIT:
            self._series.add(series)
        elif series not in self._series:
            base, extra = _lumped(base), _lumped(extra)
        return _AttributeSet(_known(base), _known(extra))


def _lumped(attributes: Mapping[str, str | int | None]) -> dict[str, str | int | None]:
    """Return *attributes* without the names of what is one of too many combinations."""
    return {
        key: None if value is None or key == n.SERVER_PORT else OTHER if key in _MADE_UP else value
        for key, value in attributes.items()
    }


def _known(attributes: Mapping[str, str | int | None]) -> Attributes:
    return {key: value for key, value in attributes.items() if value is not None}


def should_say_usage(metadata: ResponseMetadata) -> bool:
    """True for answers that ought to say what they used: those of models, once they are made."""
    return metadata.request.operation in n.METERED and metadata.status not in PENDING


class _AttributeSet:
    """The mappings one call is recorded with; the SDK copies what it keeps, so they are shared."""

    __slots__ = ("base", "duration", "input", "output", "tokens")

    def __init__(self, base: Attributes, extra: Attributes) -> None:
        tier = {key: value for key, value in extra.items() if key == n.OPENAI_RESPONSE_TIER}
        self.base = base
        self.duration: Attributes = {**base, **extra}
        self.tokens: Attributes = {**base, **tier}
        self.input: Attributes = {**self.tokens, n.TOKEN_TYPE: "input"}
        self.output: Attributes = {**self.tokens, n.TOKEN_TYPE: "output"}


class _Headroom:
    """How much of their rate limits servers say is left.

    A level and no count: of calls of one model within a second only the first is recorded.
    """

    __slots__ = ("_gauge", "_models", "_recorded_ns")

    def __init__(self, meter: Meter, models: BoundedNames) -> None:
        # Not the unit `1`, of which a push to Prometheus makes `_ratio` and a scrape nothing.
        self._gauge = meter.create_gauge(
            n.HEADROOM, unit="{share}", description="Share of the rate limit that was left, as the server said."
        )
        self._models = models
        self._recorded_ns: dict[tuple[Any, ...], int] = {}

    def record(self, request: RequestMetadata, limit: RateLimit, at_ns: int, context: Context) -> None:
        key = (request.provider, request.model, request.server_address, request.server_port)
        if abs(self._recorded_ns.get(key, 0) - at_ns) < _HEADROOM_PAUSE_NS:
            return
        if len(self._recorded_ns) >= _CACHE_LIMIT and key not in self._recorded_ns:
            self._recorded_ns.clear()
        self._recorded_ns[key] = at_ns
        attributes: dict[str, str | int | None] = {
            n.PROVIDER_NAME: request.provider,
            n.REQUEST_MODEL: self._models.bounded(request.model),
            n.SERVER_ADDRESS: request.server_address,
            n.SERVER_PORT: request.server_port,
        }
        known = {name: value for name, value in attributes.items() if value is not None}
        for kind, remaining, of in (
            ("requests", limit.remaining_requests, limit.limit_requests),
            ("tokens", limit.remaining_tokens, limit.limit_tokens),
        ):
            if remaining is not None and of:
                self._gauge.set(remaining / of, {**known, n.HEADROOM_KIND: kind}, context)


_DURATION_HELP: Final = "Duration of the operation, retries included."


def _seconds(meter: Meter, name: str, description: str) -> Histogram:
    return meter.create_histogram(
        name, unit="s", description=description, explicit_bucket_boundaries_advisory=n.DURATION_BUCKETS
    )


def _tokens(meter: Meter, name: str, description: str) -> Histogram:
    return meter.create_histogram(
        name, unit="{token}", description=description, explicit_bucket_boundaries_advisory=n.TOKEN_BUCKETS
    )


class _Current:
    """The metrics everything in the field reads today."""

    def __init__(self, meter: Meter) -> None:
        self.duration = _seconds(meter, n.DURATION, _DURATION_HELP)
        self.token_usage = _tokens(meter, n.TOKEN_USAGE, "Input and output tokens of the operation.")
        self.first_chunk = _seconds(meter, n.FIRST_CHUNK, "Time from the call to the first chunk of the stream.")
        self.per_chunk = _seconds(meter, n.PER_CHUNK, "Time between two chunks of the stream.")

    def record(
        self,
        attributes: _AttributeSet,
        usage: Usage | None,
        first_chunk_s: float | None,
        gaps_s: tuple[float, ...],
        context: Context,
    ) -> None:
        if usage is not None:
            if usage.input_tokens is not None:
                self.token_usage.record(usage.input_tokens, attributes.input, context)
            if usage.output_tokens is not None:
                self.token_usage.record(usage.output_tokens, attributes.output, context)
        if first_chunk_s is not None:
            self.first_chunk.record(first_chunk_s, attributes.base, context)
        for gap_s in gaps_s:
            self.per_chunk.record(gap_s, attributes.base, context)


class _Next:
    """The unreleased ``gen_ai.client.inference.*`` metrics."""

    def __init__(self, meter: Meter) -> None:
        self.duration = _seconds(meter, n.NEXT_DURATION, _DURATION_HELP)
        self.first_chunk = _seconds(meter, n.NEXT_FIRST_CHUNK, "Time from the call to the first chunk of the stream.")
        self.per_chunk = _seconds(meter, n.NEXT_PER_CHUNK, "Time between two chunks of the stream.")
        self.input_tokens = _tokens(meter, n.NEXT_INPUT_TOKENS, "Input tokens of one call.")
        self.output_tokens = _tokens(meter, n.NEXT_OUTPUT_TOKENS, "Output tokens of one call.")
        self._counters = {
            name: meter.create_counter(n.NEXT_USAGE_PREFIX + name, unit="{token}", description=help_text)
            for name, help_text in {
                "input_tokens": "Input tokens, cached ones included.",
                "output_tokens": "Output tokens, reasoning included.",
                "cache_read.input_tokens": "Input tokens read from the provider's cache.",
                "cache_write.input_tokens": "Input tokens written to the provider's cache.",
                "reasoning.output_tokens": "Output tokens spent on reasoning.",
            }.items()
        }

    def record(
        self,
        attributes: _AttributeSet,
        usage: Usage | None,
        first_chunk_s: float | None,
        gaps_s: tuple[float, ...],
        context: Context,
    ) -> None:
        if usage is not None:
            self._record_usage(usage, attributes.tokens, context)
        if first_chunk_s is not None:
            self.first_chunk.record(first_chunk_s, attributes.base, context)
        for gap_s in gaps_s:
            self.per_chunk.record(gap_s, attributes.base, context)

    def _record_usage(self, usage: Usage, attributes: Attributes, context: Context) -> None:
        if usage.input_tokens is not None:
            self.input_tokens.record(usage.input_tokens, attributes, context)
            known = (usage.text_input_tokens, usage.image_input_tokens, usage.audio_input_tokens)
            self._by_modality("input_tokens", usage.input_tokens, known, attributes, context)
        if usage.output_tokens is not None:
            self.output_tokens.record(usage.output_tokens, attributes, context)
            known = (usage.text_output_tokens, usage.image_output_tokens, usage.audio_output_tokens)
            self._by_modality("output_tokens", usage.output_tokens, known, attributes, context)
        self._by_modality("cache_read.input_tokens", usage.cached_tokens, (), attributes, context)
        self._by_modality("cache_write.input_tokens", usage.cache_write_tokens, (), attributes, context)
        self._by_modality("reasoning.output_tokens", usage.reasoning_tokens, (), attributes, context)

    def _by_modality(
        self,
        name: str,
        total: int | None,
        known: tuple[int | None, ...],
        attributes: Attributes,
        context: Context,
    ) -> None:
        """Count every token in exactly one modality; what the provider did not break down is ``unknown``."""
        if total is None:
            return
        counter: Counter = self._counters[name]
        rest = total
        for modality, tokens in zip(("text", "image", "audio"), known):  # noqa: B905 - strict is not in 3.9 style zips of ()
            if part := min(tokens or 0, rest):  # a breakdown that exceeds its total must not exceed ours
                counter.add(part, {**attributes, n.TOKEN_MODALITY: modality}, context)
                rest -= part
        if rest > 0:
            counter.add(rest, {**attributes, n.TOKEN_MODALITY: "unknown"}, context)
