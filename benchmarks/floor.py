"""The least a correct instrumentation must do, by hand and as fast as the public API of OpenTelemetry allows.

No product: only ``chat.completions.create`` of both clients, no errors in the stream, no raw responses, no settings.

``setup_floor`` makes what any instrumentation of the conventions makes: one span with ten attributes, one duration, two
token counts; for streams also the time to the first chunk. ``setup_same`` makes exactly the span, the events and the
metric points that this package makes, which shows how much of our cost is the SDK's.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from functools import wraps
from time import perf_counter, time_ns
from typing import Any

from openai.resources.chat.completions import AsyncCompletions, Completions
from opentelemetry import metrics, trace
from opentelemetry.context import attach, detach
from opentelemetry.trace import SpanKind, set_span_in_context
from pydantic_core import to_json

_CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_SECONDS = [0.01 * 2**power for power in range(14)]
_TOKENS = [4**power for power in range(14)]


class _Plan:
    """What is the same for all calls of one model at one server, by the model that answers."""

    def __init__(self, model: str, url: Any) -> None:
        self.name = f"chat {model}"
        self.start = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": model,
            "server.address": url.host,
            "server.port": url.port,
        }
        self._points: dict[str, tuple[dict[str, Any], ...]] = {}

    def points(self, answered: str) -> tuple[dict[str, Any], ...]:
        known = self._points.get(answered)
        if known is None:
            base = {**self.start, "gen_ai.response.model": answered}
            kinds = ({**base, "gen_ai.token.type": kind} for kind in ("input", "output"))
            known = self._points[answered] = (base, *kinds)
        return known


def setup_floor() -> None:
    _Floor().patch()


def setup_same() -> None:
    _Same().patch()


class _Floor:
    def __init__(self) -> None:
        self.start_span = trace.get_tracer("benchmark").start_span
        meter = metrics.get_meter("benchmark")
        self.duration = meter.create_histogram(
            "gen_ai.client.operation.duration", unit="s", explicit_bucket_boundaries_advisory=_SECONDS
        ).record
        self.tokens = meter.create_histogram(
            "gen_ai.client.token.usage", unit="{token}", explicit_bucket_boundaries_advisory=_TOKENS
        ).record
        self.captures = os.environ.get(_CAPTURE) == "span_only"
        self.plans: dict[tuple[int, str], tuple[object, _Plan]] = {}
        self.bound: tuple[object, object] = (None, None)
        self.measures = self.active = False

    def look(self) -> bool:
        """True if anything is configured; the SDK may come after us."""
        bound = trace.get_tracer_provider(), metrics.get_meter_provider()
        if bound != self.bound:
            self.bound = bound
            self.measures = not type(bound[1]).__module__.startswith("opentelemetry.metrics")
            self.active = self.measures or not type(bound[0]).__module__.startswith("opentelemetry.trace")
        return self.active

    def plan(self, client: Any, model: str) -> _Plan:
        url = client._base_url
        known = self.plans.get((id(url), model))
        if known is None or known[0] is not url:
            known = self.plans[id(url), model] = (url, _Plan(model, url))
        return known[1]

    def begin(self, plan: _Plan, asked: dict[str, Any]) -> Any:
        attributes = plan.start
        if self.captures:
            attributes = {**attributes, "gen_ai.input.messages": _messages(asked["messages"])}
        return self.start_span(plan.name, None, SpanKind.CLIENT, attributes)

    def finish(self, span: Any, plan: _Plan, started: float, facts: dict[str, Any], first: float | None = None) -> None:
        """End with the facts of a response, or those of a stream put together."""
        seconds = perf_counter() - started
        usage = facts["usage"].__dict__
        if span is not None:
            self.write(span, facts, usage, first)
        if self.measures:
            base, taken, given = plan.points(facts["model"])
            self.record(span, seconds, usage, base, taken, given, first)
        if span is not None:
            span.end()

    def write(self, span: Any, facts: dict[str, Any], usage: dict[str, Any], first: float | None) -> None:
        end = {
            "gen_ai.response.id": facts["id"],
            "gen_ai.response.model": facts["model"],
            "gen_ai.response.finish_reasons": [choice.__dict__["finish_reason"] for choice in facts["choices"]],
            "gen_ai.usage.input_tokens": usage["prompt_tokens"],
            "gen_ai.usage.output_tokens": usage["completion_tokens"],
        }
        if first is not None:
            end["gen_ai.response.time_to_first_chunk"] = first
        if self.captures and first is None:
            end["gen_ai.output.messages"] = _messages([facts["choices"][0].message.__dict__])
        span.set_attributes(end)

    def record(self, span: Any, seconds: float, usage: Any, base: Any, taken: Any, given: Any, first: Any) -> None:
        self.duration(seconds, base)
        self.tokens(usage["prompt_tokens"], taken)
        self.tokens(usage["completion_tokens"], given)

    def patch(self) -> None:
        Completions.create = self.wrap(Completions.create)  # type: ignore[method-assign]
        AsyncCompletions.create = self.wrap_async(AsyncCompletions.create)  # type: ignore[method-assign]

    def settle(self, result: Any, span: Any, plan: _Plan, started: float, *, stream: bool) -> Any:
        span = span if span.is_recording() else None
        if span is None and not self.measures:
            return result
        if not stream:
            self.finish(span, plan, started, result.__dict__)
        elif hasattr(result, "__aiter__"):
            result._iterator = self.aread(result._iterator, span, plan, started)
        else:
            result._iterator = self.read(result._iterator, span, plan, started)
        return result

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def create(resource: Any, **asked: Any) -> Any:
            if not self.look():
                return original(resource, **asked)
            plan = self.plan(resource._client, asked["model"])
            span = self.begin(plan, asked)
            started = perf_counter()
            token = attach(set_span_in_context(span))
            try:
                result = original(resource, **asked)
            finally:
                detach(token)
            return self.settle(result, span, plan, started, stream="stream" in asked)

        return create

    def wrap_async(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        async def create(resource: Any, **asked: Any) -> Any:
            if not self.look():
                return await original(resource, **asked)
            plan = self.plan(resource._client, asked["model"])
            span = self.begin(plan, asked)
            started = perf_counter()
            token = attach(set_span_in_context(span))
            try:
                result = await original(resource, **asked)
            finally:
                detach(token)
            return self.settle(result, span, plan, started, stream="stream" in asked)

        return create

    # The client's own iterator is replaced inside its stream: no proxy, one generator.
    def read(self, chunks: Iterator[Any], span: Any, plan: _Plan, started: float) -> Iterator[Any]:
        first = last = None
        ended: list[Any] = []
        for chunk in chunks:
            if first is None:
                first = perf_counter() - started
            last = chunk
            for choice in chunk.__dict__["choices"]:
                if choice.__dict__["finish_reason"] is not None:
                    ended.append(choice)
            yield chunk
        self.finish(span, plan, started, {**last.__dict__, "choices": ended}, first)

    async def aread(self, chunks: AsyncIterator[Any], span: Any, plan: _Plan, started: float) -> AsyncIterator[Any]:
        first = last = None
        ended: list[Any] = []
        async for chunk in chunks:
            if first is None:
                first = perf_counter() - started
            last = chunk
            for choice in chunk.__dict__["choices"]:
                if choice.__dict__["finish_reason"] is not None:
                    ended.append(choice)
            yield chunk
        self.finish(span, plan, started, {**last.__dict__, "choices": ended}, first)


class _Same(_Floor):
    """The attributes, events and exemplars of ours, with values that are mostly made up."""

    def begin(self, plan: _Plan, asked: dict[str, Any]) -> Any:
        attributes = {
            **plan.start,
            "openai.api.type": "chat_completions",
            "gen_ai.request.temperature": asked["temperature"],
            "gen_ai.request.max_tokens": asked["max_tokens"],
        }
        if "stream" in asked:
            attributes["gen_ai.request.stream"] = True
        now = time_ns()
        span = self.start_span(plan.name, None, SpanKind.CLIENT, attributes, None, now)
        if span.is_recording():
            span.add_event("llm_callback.request_sent", timestamp=now)
            if self.captures:
                span.set_attributes({"gen_ai.input.messages": _messages(asked["messages"])})
        return span

    def write(self, span: Any, facts: dict[str, Any], usage: dict[str, Any], first: float | None) -> None:
        prompt, completion = usage["prompt_tokens_details"].__dict__, usage["completion_tokens_details"].__dict__
        end = {
            "llm_callback.outcome": "completed",
            "gen_ai.response.id": facts["id"],
            "gen_ai.response.model": facts["model"],
            "llm_callback.request_id": "req_4c1d0b5e",
            "openai.response.service_tier": facts["service_tier"],
            "openai.response.system_fingerprint": facts.get("system_fingerprint") or "fp",
            "gen_ai.response.finish_reasons": tuple([c.__dict__["finish_reason"] for c in facts["choices"]]),
            "gen_ai.usage.input_tokens": usage["prompt_tokens"],
            "gen_ai.usage.output_tokens": usage["completion_tokens"],
            "gen_ai.usage.cache_read.input_tokens": prompt["cached_tokens"],
            "gen_ai.usage.audio.input_tokens": prompt["audio_tokens"],
            "gen_ai.usage.reasoning.output_tokens": completion["reasoning_tokens"],
            "gen_ai.usage.audio.output_tokens": completion["audio_tokens"],
            "llm_callback.processing_time": 0.412,
            "llm_callback.rate_limit.requests.limit": 10000,
            "llm_callback.rate_limit.requests.remaining": 9999,
            "llm_callback.rate_limit.requests.reset": 0.006,
            "llm_callback.rate_limit.tokens.limit": 2000000,
            "llm_callback.rate_limit.tokens.remaining": 1999744,
            "llm_callback.rate_limit.tokens.reset": 0.007,
        }
        if first is not None:
            end["gen_ai.response.time_to_first_chunk"] = first
            end["llm_callback.time_to_first_output"] = first
            end["llm_callback.chunk.count"] = 1
            end["llm_callback.chunk.longest_gap"] = first
        if self.captures and first is None:
            end["gen_ai.output.messages"] = _messages([facts["choices"][0].message.__dict__])
        span.set_attributes(end)
        if first is not None:
            span.add_event("llm_callback.first_chunk", timestamp=time_ns())
        span.add_event("llm_callback.response_received", timestamp=time_ns())

    def record(self, span: Any, seconds: float, usage: Any, base: Any, taken: Any, given: Any, first: Any) -> None:
        context = None if span is None else set_span_in_context(span)
        self.duration(seconds, {**base, "openai.response.service_tier": "default"}, context)
        self.tokens(usage["prompt_tokens"], {**taken, "openai.response.service_tier": "default"}, context)
        self.tokens(usage["completion_tokens"], {**given, "openai.response.service_tier": "default"}, context)


def _messages(messages: list[dict[str, Any]]) -> str:
    return to_json([{"role": message["role"], "parts": _parts(message)} for message in messages]).decode()


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    parts = [] if content is None else [{"type": "text", "content": content}]
    for call in message.get("tool_calls") or ():
        asked = call["function"]
        parts.append({"type": "tool_call", "id": call["id"], "name": asked["name"], "arguments": asked["arguments"]})
    return parts
