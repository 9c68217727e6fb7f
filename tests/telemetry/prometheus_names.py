"""What our metrics are called in Prometheus: by scrape, by OTLP push and through the Collector alike.

A scrape adds the labels of the scope, which Prometheus leaves out of what is pushed unless it is told to promote them.

The translation is ``UnderscoreEscapingWithSuffixes``, the default of all three: dots become underscores, the unit ``s``
becomes ``_seconds``, units in braces go, others stay, counters end in ``_total``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Family:
    """One metric.

    Attributes:
        name: In OpenTelemetry.
        unit: In OpenTelemetry.
        kind: A histogram is read as ``_bucket``, ``_sum`` and ``_count``.
        prometheus: In Prometheus, without what a histogram adds.
        labels: Those it may have, besides those of the scope and of the target.
    """

    name: str
    unit: str
    kind: Literal["histogram", "counter", "gauge"]
    prometheus: str
    labels: frozenset[str]

    @property
    def series(self) -> tuple[str, ...]:
        """The names of its series."""
        if self.kind != "histogram":
            return (self.prometheus,)
        return tuple(self.prometheus + suffix for suffix in ("_bucket", "_sum", "_count"))


SCOPE_LABELS: Final = frozenset(("otel_scope_name", "otel_scope_version", "otel_scope_schema_url"))

_BASE: Final = frozenset(
    (
        "gen_ai_operation_name",
        "gen_ai_provider_name",
        "gen_ai_request_model",
        "gen_ai_response_model",
        "server_address",
        "server_port",
    )
)
_TIER: Final = _BASE | {"openai_response_service_tier"}
# All three absent, or empty, of a call that was completed at the first attempt.
_ENDED: Final = _TIER | {"error_type", "llm_callback_outcome", "llm_callback_retried"}
_LIMITED: Final = _BASE - {"gen_ai_operation_name", "gen_ai_response_model"}
_BY_TYPE: Final = _TIER | {"gen_ai_token_type"}
_BY_MODALITY: Final = _TIER | {"gen_ai_token_modality"}

_CURRENT: Final = "gen_ai.client.operation."
_NEXT: Final = "gen_ai.client.inference."
_NEXT_USAGE: Final = "gen_ai.client.inference.usage."


def _seconds(name: str, prometheus: str, labels: frozenset[str]) -> Family:
    return Family(name, "s", "histogram", prometheus, labels)


def _tokens(name: str, prometheus: str, labels: frozenset[str]) -> Family:
    return Family(name, "{token}", "histogram", prometheus, labels)


def _total(name: str, unit: str, prometheus: str, labels: frozenset[str]) -> Family:
    return Family(name, unit, "counter", prometheus, labels)


# fmt: off
FAMILIES: Final = (
    _seconds(_CURRENT + "duration", "gen_ai_client_operation_duration_seconds", _ENDED),
    _seconds(_CURRENT + "time_to_first_chunk", "gen_ai_client_operation_time_to_first_chunk_seconds", _BASE),
    _seconds(_CURRENT + "time_per_output_chunk", "gen_ai_client_operation_time_per_output_chunk_seconds", _BASE),
    _tokens("gen_ai.client.token.usage", "gen_ai_client_token_usage", _BY_TYPE),
    _seconds(_NEXT + "duration", "gen_ai_client_inference_duration_seconds", _ENDED),
    _seconds(_NEXT + "time_to_first_chunk", "gen_ai_client_inference_time_to_first_chunk_seconds", _BASE),
    _seconds(_NEXT + "time_per_output_chunk", "gen_ai_client_inference_time_per_output_chunk_seconds", _BASE),
    _tokens(_NEXT + "operation.input_tokens", "gen_ai_client_inference_operation_input_tokens", _TIER),
    _tokens(_NEXT + "operation.output_tokens", "gen_ai_client_inference_operation_output_tokens", _TIER),
    _total(_NEXT_USAGE + "input_tokens", "{token}", "gen_ai_client_inference_usage_input_tokens_total", _BY_MODALITY),
    _total(_NEXT_USAGE + "output_tokens", "{token}", "gen_ai_client_inference_usage_output_tokens_total", _BY_MODALITY),
    _total(
        _NEXT_USAGE + "cache_read.input_tokens", "{token}",
        "gen_ai_client_inference_usage_cache_read_input_tokens_total", _BY_MODALITY,
    ),
    _total(
        _NEXT_USAGE + "cache_write.input_tokens", "{token}",
        "gen_ai_client_inference_usage_cache_write_input_tokens_total", _BY_MODALITY,
    ),
    _total(
        _NEXT_USAGE + "reasoning.output_tokens", "{token}",
        "gen_ai_client_inference_usage_reasoning_output_tokens_total", _BY_MODALITY,
    ),
    _seconds(
        "llm_callback.duration.without_retry_wait", "llm_callback_duration_without_retry_wait_seconds", _ENDED,
    ),
    Family(
        "llm_callback.rate_limit.headroom", "{share}", "gauge", "llm_callback_rate_limit_headroom",
        _LIMITED | {"llm_callback_rate_limit_kind"},
    ),
    _total("llm_callback.usage.missing", "{call}", "llm_callback_usage_missing_total", _BASE),
    _total(
        "llm_callback.callback.events", "{event}", "llm_callback_callback_events_total",
        frozenset(("llm_callback_callback_name", "llm_callback_callback_result")),
    ),
    _total(
        "llm_callback.instrumentation.errors", "{error}", "llm_callback_instrumentation_errors_total",
        frozenset(("llm_callback_stage",)),
    ),
)
# fmt: on

COST: Final = Family("gen_ai.usage.cost", "USD", "histogram", "gen_ai_usage_cost_USD", _TIER)
"""What calls cost, where prices are known. The unit stays as it is written."""
