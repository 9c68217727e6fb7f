"""Texts that are found nowhere else, planted in every field of a call, and the sweep that looks for them."""

from __future__ import annotations

import json
import logging
import pickle
import re

from opentelemetry._logs import LogRecord

import otel_llm_callback
from otel_llm_callback.testing import chat_chunk, chat_completion, response_object

HAS_EVENTS = "event_name" in LogRecord.__init__.__code__.co_varnames


class Logs:
    """A log record processor that keeps what it is given; the SDK has renamed its method."""

    def __init__(self):
        self.records = []

    def on_emit(self, log):
        self.records.append(log.log_record)

    emit = on_emit

    def shutdown(self):
        """Keep nothing open."""

    def force_flush(self, timeout_millis=0):
        return True


def canary(name):
    """A text that is found nowhere else and names the field it was put in."""
    return f"CANARY_{name}_"


def canaries_in(text):
    return set(re.findall(r"CANARY_([a-z0-9.]+)_", text))


TOOL = {
    "type": "function",
    "function": {
        "name": canary("tool.name"),
        "description": canary("tool.description"),
        "parameters": {"type": "object", "properties": {canary("tool.property"): {"type": "string"}}},
    },
}

HISTORY = [
    {"role": "system", "content": canary("system")},
    {"role": "user", "name": canary("participant"), "content": canary("prompt")},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": canary("text.part")},
            {"type": "image_url", "image_url": {"url": f"https://example.com/{canary('image.url')}.png"}},
            {"type": "input_audio", "input_audio": {"data": canary("audio.data"), "format": "wav"}},
            {"type": "file", "file": {"file_id": canary("file.id")}},
        ],
    },
    {
        "role": "assistant",
        "content": None,
        "refusal": canary("earlier.refusal"),
        "tool_calls": [
            {
                "id": canary("earlier.call.id"),
                "type": "function",
                "function": {
                    "name": canary("earlier.call.name"),
                    "arguments": json.dumps({"q": canary("earlier.args")}),
                },
            }
        ],
    },
    {"role": "tool", "tool_call_id": canary("earlier.call.id"), "content": canary("tool.result")},
]

REQUEST = {
    "model": canary("request.model"),
    "messages": HISTORY,
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": canary("tool.name")}},
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": canary("schema.name"), "schema": {"description": canary("schema")}},
    },
    "prediction": {"type": "content", "content": canary("prediction")},
    "stop": [canary("stop")],
    "reasoning_effort": canary("reasoning.effort"),
    "service_tier": canary("request.tier"),
    "metadata": {canary("metadata.key"): canary("metadata.value")},
    "user": canary("user"),
    "extra_headers": {"x-own": canary("header")},
    "extra_query": {"q": canary("query")},
    "extra_body": {  # the first two are parameters of newer releases
        "safety_identifier": canary("safety.identifier"),
        "prompt_cache_key": canary("cache.key"),
        "own": {"field": canary("extra.body")},
    },
}

SPOKEN = {
    "content": canary("answer"),
    "refusal": canary("refusal"),
    "reasoning_content": canary("reasoning"),
    "tool_calls": [
        {
            "index": 0,
            "id": canary("call.id"),
            "type": "function",
            "function": {"name": canary("call.name"), "arguments": json.dumps({"q": canary("call.args")})},
        }
    ],
    "function_call": {"name": canary("function.name"), "arguments": canary("function.args")},
    "audio": {"id": canary("audio.id"), "data": "AAAA", "expires_at": 1, "transcript": canary("transcript")},
    "annotations": [{"type": "url_citation", "url_citation": {"url": canary("citation")}}],
}

HEAD = {
    "id": canary("response.id"),
    "model": canary("response.model"),
    "service_tier": canary("response.tier"),
    "system_fingerprint": canary("fingerprint"),
    "own": canary("response.extra"),
}

HEADERS = {
    "x-request-id": canary("request.id"),
    "openai-processing-ms": canary("processing"),
    "openai-organization": canary("organization.header"),
    "x-ratelimit-limit-requests": canary("limit"),
    "x-ratelimit-reset-tokens": canary("reset"),
    "set-cookie": canary("cookie"),
}

ANSWER = {
    **chat_completion(usage={"prompt_tokens": 1, "completion_tokens": 1, "own": canary("usage.extra")}),
    **HEAD,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", **SPOKEN},
            "finish_reason": canary("finish.reason"),
            "logprobs": {"content": [{"token": canary("logprob"), "logprob": 0, "top_logprobs": []}]},
        }
    ],
}

CHUNKS = [
    {**chat_chunk({"role": "assistant", **SPOKEN}), **HEAD},
    {**chat_chunk({}, finish_reason=canary("finish.reason")), **HEAD},
]

FAILURE = {
    "error": {
        "message": canary("error.message"),
        "type": canary("error.type"),
        "param": canary("error.param"),
        "code": canary("error.code"),
    }
}

SHOWN_OF_REQUESTS = {"request.model", "stop", "reasoning.effort", "request.tier"}
"""What the conventions make attributes of a request: parameters, which the program writes and no user does."""

SHOWN_OF_RESPONSES = {"response.id", "response.model", "response.tier", "fingerprint", "finish.reason", "request.id"}
"""And of a response: what names it, not what it says."""


class Crash:
    """A callback that fails with what it was told."""

    def on_request_sent(self, metadata, request_json):
        raise RuntimeError(request_json)

    def on_stream_chunk(self, chunk, index):
        raise RuntimeError(chunk)

    def on_response_received(self, metadata, response_json):
        raise RuntimeError(response_json)

    def on_error(self, error, context):
        raise RuntimeError(str(error)) from error


class OurLog(logging.Handler):
    """Everything our logger says, at any level, with tracebacks."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.lines = []

    def emit(self, record):
        self.lines.append(logging.Formatter("%(name)s %(message)s").format(record))


def everything(telemetry, logs, our_log, recorder):
    """All that could be seen of the calls, by place."""
    facts = [*recorder.requests, *recorder.chunks, *recorder.responses, *recorder.errors]
    return {
        "spans": [span.to_json() + repr(span.status.description) for span in telemetry.spans()],
        "metrics": [repr(point) for point in telemetry.metrics()],
        "log events": [repr((record.attributes, record.body)) for record in logs.records],
        "our log": our_log.lines,
        "reprs": [repr(fact) for fact in facts],
        "pickles": [pickle.dumps(fact).decode("latin-1") for fact in facts],
        "status": [repr(otel_llm_callback.status())],
    }


def credentials(server):
    """A client whose every secret is a canary."""
    url = server.url.replace("http://", f"http://{canary('url.user')}:{canary('url.password')}@")
    return {
        "api_key": canary("api.key"),
        "organization": canary("organization"),
        "project": canary("project"),
        "base_url": url,
        "default_headers": {"x-default": canary("default.header")},
        "default_query": {"default": canary("default.query")},
    }


RESPONSES_REQUEST = {
    "model": canary("request.model"),
    "instructions": canary("instructions"),
    "input": [
        {"role": "user", "content": canary("prompt")},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": canary("text.part")},
                {"type": "input_image", "image_url": f"https://example.com/{canary('image.url')}.png"},
                {"type": "input_file", "filename": canary("file.name"), "file_data": canary("file.data")},
            ],
        },
        {"type": "function_call_output", "call_id": canary("earlier.call.id"), "output": canary("tool.result")},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": canary("earlier.thought")}]},
    ],
    "tools": [{**TOOL["function"], "type": "function"}],
    "metadata": {canary("metadata.key"): canary("metadata.value")},
    "user": canary("user"),
    "extra_body": {
        "safety_identifier": canary("safety.identifier"),
        "prompt_cache_key": canary("cache.key"),
        "previous_response_id": canary("previous.id"),
        "conversation": {"id": canary("conversation.id"), "own": canary("conversation.extra")},
        "prompt": {"id": canary("prompt.id"), "variables": {"a": canary("prompt.variable")}},
    },
}

RESPONSES_ANSWER = {
    **response_object(),
    "id": canary("response.id"),
    "model": canary("response.model"),
    "instructions": canary("instructions.echo"),
    "metadata": {"a": canary("metadata.echo")},
    "output": [
        {
            "type": "message",
            "id": "m",
            "role": "assistant",
            "content": [{"type": "output_text", "text": canary("answer")}],
        },
        {
            "type": "function_call",
            "call_id": canary("call.id"),
            "name": canary("call.name"),
            "arguments": canary("call.args"),
        },
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": canary("reasoning")}]},
        {"type": "web_search_call", "id": "ws", "action": {"type": "search", "query": canary("web.query")}},
    ],
}
RESPONSES_FAILED = {
    **RESPONSES_ANSWER,
    "status": "failed",
    "error": {"code": canary("failure.code"), "message": canary("failure.message")},
}
RESPONSES_EVENTS = [
    {"type": "response.output_text.delta", "delta": canary("delta"), "output_index": 0},
    {"type": "response.output_item.done", "output_index": 0, "item": RESPONSES_ANSWER["output"][0]},
    {"type": "response.completed", "response": RESPONSES_ANSWER},
]

SHOWN_OF_RESPONSES_REQUESTS = {"request.model", "previous.id", "conversation.id", "prompt.id"}
