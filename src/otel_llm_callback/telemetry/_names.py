"""Every name that goes on the wire. A change of the convention is a change of this module.

Names of ours start with ``llm_callback.``; all others are those of the GenAI conventions or of core OpenTelemetry.
"""

from __future__ import annotations

from typing import Final

SCOPE: Final = "otel_llm_callback"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/gen-ai-dev/1.42.0-dev"

OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_MODEL: Final = "gen_ai.response.model"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"
OPENAI_API_TYPE: Final = "openai.api.type"
OPENAI_RESPONSE_TIER: Final = "openai.response.service_tier"
OPENAI_REQUEST_TIER: Final = "openai.request.service_tier"

# Field of RequestMetadata -> span attribute.
REQUEST_FIELDS: Final = (
    ("temperature", "gen_ai.request.temperature"),
    ("max_tokens", "gen_ai.request.max_tokens"),
    ("top_p", "gen_ai.request.top_p"),
    ("top_k", "gen_ai.request.top_k"),
    ("frequency_penalty", "gen_ai.request.frequency_penalty"),
    ("presence_penalty", "gen_ai.request.presence_penalty"),
    ("seed", "gen_ai.request.seed"),
    ("reasoning_level", "gen_ai.request.reasoning.level"),
    ("output_type", "gen_ai.output.type"),
    ("conversation_id", "gen_ai.conversation.id"),
    ("previous_response_id", "gen_ai.request.previous_response.id"),
    ("prompt_name", "gen_ai.prompt.name"),
    ("prompt_version", "gen_ai.prompt.version"),
    ("response_id", "gen_ai.response.id"),
    ("stream_cursor", "gen_ai.request.stream_cursor"),
    ("dimension_count", "gen_ai.embeddings.dimension.count"),
    ("data_source_id", "gen_ai.data_source.id"),
    ("session_id", "session.id"),
    ("user_id", "user.id"),
)
CHOICE_COUNT: Final = "gen_ai.request.choice.count"
RESPONSE_STATUS: Final = "gen_ai.response.status"  # of fetched responses
ENCODING_FORMATS: Final = "gen_ai.request.encoding_formats"
STOP_SEQUENCES: Final = "gen_ai.request.stop_sequences"
SESSION_PREFIX: Final = "llm_callback.session."

FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"

# Field of ResponseMetadata -> span attribute.
RESPONSE_FIELDS: Final = (
    ("id", "gen_ai.response.id"),
    ("model", RESPONSE_MODEL),
    ("time_to_first_chunk_s", "gen_ai.response.time_to_first_chunk"),
    ("time_to_first_output_s", "llm_callback.time_to_first_output"),
    ("chunk_count", "llm_callback.chunk.count"),
    ("longest_gap_s", "llm_callback.chunk.longest_gap"),
    ("request_id", "llm_callback.request_id"),
    ("service_tier", OPENAI_RESPONSE_TIER),
    ("system_fingerprint", "openai.response.system_fingerprint"),
)

# Field of Usage -> span attribute; parts of the totals above. Jaeger reads ``cache_creation``, the newest convention
# says ``cache_write``; the former is emitted.
USAGE_DETAILS: Final = (
    ("cached_tokens", "gen_ai.usage.cache_read.input_tokens"),
    ("cache_write_tokens", "gen_ai.usage.cache_creation.input_tokens"),
    ("reasoning_tokens", "gen_ai.usage.reasoning.output_tokens"),
    ("text_input_tokens", "gen_ai.usage.text.input_tokens"),
    ("text_output_tokens", "gen_ai.usage.text.output_tokens"),
    ("image_input_tokens", "gen_ai.usage.image.input_tokens"),
    ("image_output_tokens", "gen_ai.usage.image.output_tokens"),
    ("audio_input_tokens", "gen_ai.usage.audio.input_tokens"),
    ("audio_output_tokens", "gen_ai.usage.audio.output_tokens"),
)

INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
TOOL_DEFINITIONS: Final = "gen_ai.tool.definitions"

HTTP_STATUS: Final = "http.response.status_code"
OUTCOME: Final = "llm_callback.outcome"
TRUNCATED: Final = "llm_callback.truncated"
RETRY_COUNT: Final = "llm_callback.retry.count"
RETRY_WAIT: Final = "llm_callback.retry.wait"
REQUEST_ID: Final = "llm_callback.request_id"
PROCESSING_TIME: Final = "llm_callback.processing_time"
USAGE_SOURCE: Final = "llm_callback.usage.source"
COST: Final = "llm_callback.cost"  # US dollars

# Field of RateLimit -> span attribute.
RATE_LIMIT_FIELDS: Final = (
    ("limit_requests", "llm_callback.rate_limit.requests.limit"),
    ("remaining_requests", "llm_callback.rate_limit.requests.remaining"),
    ("reset_requests_s", "llm_callback.rate_limit.requests.reset"),
    ("limit_tokens", "llm_callback.rate_limit.tokens.limit"),
    ("remaining_tokens", "llm_callback.rate_limit.tokens.remaining"),
    ("reset_tokens_s", "llm_callback.rate_limit.tokens.reset"),
)

EVENT_REQUEST_SENT: Final = "llm_callback.request_sent"
EVENT_FIRST_CHUNK: Final = "llm_callback.first_chunk"
EVENT_CHUNK: Final = "llm_callback.chunk"
EVENT_RETRY: Final = "llm_callback.retry"
EVENT_RESPONSE_RECEIVED: Final = "llm_callback.response_received"
EVENT_EXCEPTION: Final = "exception"
RETRY_DELAY: Final = "llm_callback.retry.delay"
RETRY_STATUS: Final = "llm_callback.retry.status_code"
RETRY_ERROR: Final = "llm_callback.retry.error"
CHUNK_INDEX: Final = "llm_callback.chunk.index"
CHUNK_KIND: Final = "llm_callback.chunk.kind"
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"

LOG_OPERATION_DETAILS: Final = "gen_ai.client.inference.operation.details"
LOG_EXCEPTION: Final = "gen_ai.client.operation.exception"

# Metrics: the family everything in the field reads, and the unreleased one.
DURATION: Final = "gen_ai.client.operation.duration"
TOKEN_USAGE: Final = "gen_ai.client.token.usage"  # noqa: S105 - a metric name
FIRST_CHUNK: Final = "gen_ai.client.operation.time_to_first_chunk"
PER_CHUNK: Final = "gen_ai.client.operation.time_per_output_chunk"
# Of no convention, but the name that packaged dashboards read (`gen_ai_usage_cost_USD_sum`).
USAGE_COST: Final = "gen_ai.usage.cost"
NEXT_DURATION: Final = "gen_ai.client.inference.duration"
NEXT_FIRST_CHUNK: Final = "gen_ai.client.inference.time_to_first_chunk"
NEXT_PER_CHUNK: Final = "gen_ai.client.inference.time_per_output_chunk"
NEXT_INPUT_TOKENS: Final = "gen_ai.client.inference.operation.input_tokens"
NEXT_OUTPUT_TOKENS: Final = "gen_ai.client.inference.operation.output_tokens"
NEXT_USAGE_PREFIX: Final = "gen_ai.client.inference.usage."
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - an attribute name
TOKEN_MODALITY: Final = "gen_ai.token.modality"  # noqa: S105 - an attribute name

# Of ours, recorded only where there is something to tell: a call that was repeated, a server that speaks of limits.
# Together with the durations of calls that were not `retried`, the first has the durations of all calls without waits.
NET_DURATION: Final = "llm_callback.duration.without_retry_wait"
RETRIED: Final = "llm_callback.retried"
HEADROOM: Final = "llm_callback.rate_limit.headroom"
HEADROOM_KIND: Final = "llm_callback.rate_limit.kind"

# Our own health.
CALLBACK_EVENTS: Final = "llm_callback.callback.events"
INSTRUMENTATION_ERRORS: Final = "llm_callback.instrumentation.errors"
USAGE_MISSING: Final = "llm_callback.usage.missing"
CALLBACK_NAME: Final = "llm_callback.callback.name"
CALLBACK_RESULT: Final = "llm_callback.callback.result"
ERROR_STAGE: Final = "llm_callback.stage"

DURATION_BUCKETS: Final = tuple(0.01 * 2**power for power in range(14))
TOKEN_BUCKETS: Final = tuple(4**power for power in range(14))
COST_BUCKETS: Final = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # US dollars

# Operations whose answers should say what they used.
METERED: Final = frozenset(("chat", "text_completion", "generate_content", "embeddings"))

# Operations that run a model; only these belong to the metrics of the next family.
INFERENCE: Final = frozenset(("chat", "text_completion", "generate_content"))
