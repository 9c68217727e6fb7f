"""What a span tells of a call to a model, whoever wrote it: the conventions' names, older ones, and other projects'."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from ..telemetry import _names as n

FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
SESSION_ID: Final = "session.id"
USER_ID: Final = "user.id"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"

# Field -> attributes that may tell it, the best first. Those after the first are older names of the conventions and
# those of OpenInference.
_SOURCES: Final[Mapping[str, tuple[str, ...]]] = {
    "operation": (n.OPERATION_NAME, "llm.request.type", "openinference.span.kind"),
    "provider": (n.PROVIDER_NAME, "gen_ai.system", "llm.provider", "llm.system"),
    "model": (n.REQUEST_MODEL, n.RESPONSE_MODEL, "llm.model_name"),
    "outcome": (n.OUTCOME,),
    "error_type": (n.ERROR_TYPE,),
    "session": (SESSION_ID, "gen_ai.conversation.id"),
    "first_chunk_s": (FIRST_CHUNK, "gen_ai.server.time_to_first_token"),
    "input_tokens": (n.INPUT_TOKENS, "gen_ai.usage.prompt_tokens", "llm.token_count.prompt"),
    "output_tokens": (n.OUTPUT_TOKENS, "gen_ai.usage.completion_tokens", "llm.token_count.completion"),
    "cached_tokens": (CACHED_TOKENS, "gen_ai.usage.cache_read_input_tokens"),
    "reasoning_tokens": (REASONING_TOKENS,),
    "cost": (n.COST, n.USAGE_COST),
    "retries": (n.RETRY_COUNT,),
    "retry_wait_s": (n.RETRY_WAIT,),
}
CALL_KEYS: Final = frozenset(name for names in _SOURCES.values() for name in names)
"""The attributes that are read of every span."""

_NO_CALLS: Final = frozenset(("CHAIN", "TOOL", "AGENT", "RETRIEVER", "RERANKER", "GUARDRAIL", "EVALUATOR", "PROMPT"))
_STEPS: Final = frozenset(("execute_tool", "invoke_agent", "create_agent", "invoke_workflow"))
_TEXT_LIMIT: Final = 200
_HIGHEST: Final = 2**62
_NANO: Final = 10**9


@dataclass(slots=True)
class CallFacts:
    """The facts of a call; None is unknown.

    Attributes:
        operation: Such as ``chat``.
        is_step: True for a tool, agent or workflow, which runs no model of its own: its tokens are those of others.
        first_chunk_ns: From the start of the call to its first chunk.
        cost_nano: In billionths of a US dollar, so that sums are exact.
    """

    operation: str
    is_step: bool
    provider: str | None
    model: str | None
    outcome: str
    error_type: str | None
    session: str | None
    first_chunk_ns: int | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    cost_nano: int | None
    retries: int
    retry_wait_ns: int


def read_facts(told: Mapping[str, Any], *, is_error: bool) -> CallFacts | None:
    """Return what *told*, attributes among :data:`CALL_KEYS`, says of a call; None if it is none."""
    operation, model = _text(told, "operation"), _text(told, "model")
    provider = _text(told, "provider")
    if operation is None and model is None and provider is None:
        return None
    outcome = _text(told, "outcome") or ("error" if is_error else "completed")
    return CallFacts(
        operation=operation or "unknown",
        is_step=operation in _STEPS or operation in _NO_CALLS,
        provider=provider,
        model=model,
        outcome=outcome,
        error_type=_text(told, "error_type") or ("unknown" if is_error else None),
        session=_text(told, "session"),
        first_chunk_ns=_scaled(told, "first_chunk_s"),
        input_tokens=_scaled(told, "input_tokens", 1),
        output_tokens=_scaled(told, "output_tokens", 1),
        cached_tokens=_scaled(told, "cached_tokens", 1),
        reasoning_tokens=_scaled(told, "reasoning_tokens", 1),
        cost_nano=_scaled(told, "cost"),
        retries=_scaled(told, "retries", 1) or 0,
        retry_wait_ns=_scaled(told, "retry_wait_s") or 0,
    )


def _first(told: Mapping[str, Any], field: str) -> Any:
    for name in _SOURCES[field]:
        value = told.get(name)
        if value is not None:
            return value
    return None


def _text(told: Mapping[str, Any], field: str) -> str | None:
    value = _first(told, field)
    return str(value)[:_TEXT_LIMIT] if value is not None and value != "" else None


def _scaled(told: Mapping[str, Any], field: str, factor: int = _NANO) -> int | None:
    """A figure that is not negative, times *factor*; None for what is no such figure."""
    value = _first(told, field)
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = Decimal(value)
        except InvalidOperation:
            return None
    if not math.isfinite(value) or not 0 <= value <= _HIGHEST // factor:
        return None
    return round(Decimal(value) * factor)
