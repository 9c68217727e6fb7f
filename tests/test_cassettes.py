"""What the real API once answered, replayed over a socket: span, metrics and metadata say what the recording says.

The recordings are kept beside the checkout, not in it. What is expected is worked out here from the recorded JSON and
from the request as it arrived at the server, by other means than those of the package.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from missing import give_up

from otel_llm_callback.testing import JsonReply, ScriptedServer, StreamReply

YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where pyyaml has it
FOLDER = Path(__file__).parents[2] / "shared" / "cassettes"
PASSED_ON = re.compile(r"content-type|x-request-id|openai-processing-ms|x-ratelimit-.*")
TIMES = {  # how long things took, which no recording tells
    "gen_ai.response.time_to_first_chunk",
    "llm_callback.time_to_first_output",
    "llm_callback.chunk.longest_gap",
}
TOKENS = {
    "gen_ai.usage.input_tokens": "input_tokens",
    "gen_ai.usage.output_tokens": "output_tokens",
    "gen_ai.usage.cache_read.input_tokens": "cached_tokens",
    "gen_ai.usage.cache_creation.input_tokens": "cache_write_tokens",
    "gen_ai.usage.reasoning.output_tokens": "reasoning_tokens",
    "gen_ai.usage.audio.input_tokens": "audio_input_tokens",
    "gen_ai.usage.audio.output_tokens": "audio_output_tokens",
}
ERRORS = {401: "AuthenticationError", 404: "NotFoundError"}
METHODS = {
    "/chat/completions": ("chat", "chat_completions", lambda client: client.chat.completions),
    "/embeddings": ("embeddings", None, lambda client: client.embeddings),
    "/responses": ("chat", "responses", lambda client: client.responses),
}


@dataclass(frozen=True)
class Exchange:
    """One recorded request and its answer."""

    path: str
    request: dict[str, Any]
    status: int
    headers: dict[str, str]
    answer: bytes

    @property
    def streamed(self):
        return self.headers["content-type"].startswith("text/event-stream")

    @property
    def events(self):
        """The JSON of the answer: one object, or those of the stream."""
        if not self.streamed:
            return [json.loads(self.answer)]
        data = re.findall(r"^data: (.*)$", self.answer.decode(), re.MULTILINE)
        return [json.loads(event) for event in data if event != "[DONE]"]

    def reply(self):
        if self.streamed:
            return StreamReply([self.answer], headers=self.headers, done=False)
        return JsonReply(self.answer, status=self.status, headers=self.headers)


def load():
    """Every recorded exchange as a pytest parameter, or one that says why there is none."""
    found = [
        pytest.param(read(interaction), id=f"{path.parent.name}/{path.stem}-{number}")
        for path in sorted(FOLDER.glob("*/*.yaml"))
        for number, interaction in enumerate(yaml.load(path.read_text(encoding="utf-8"), YAML)["interactions"])
    ]
    return found or [pytest.param(None, id="missing")]


def read(interaction):
    answer = interaction["response"]
    headers = {name.lower(): values[0] for name, values in answer["headers"].items()}
    body = answer["body"]["string"]
    body = body.encode() if isinstance(body, str) else body
    return Exchange(
        path=interaction["request"]["uri"].partition("/v1")[2],
        request=json.loads(interaction["request"]["body"]),
        status=answer["status"]["code"],
        headers={name: value for name, value in headers.items() if PASSED_ON.fullmatch(name)},
        answer=gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body,
    )


@pytest.fixture(params=load())
def exchange(request):
    if request.param is None:
        give_up(f"no recordings in {FOLDER}")
    return request.param


@pytest.fixture
def server(exchange):
    with ScriptedServer(lambda _: exchange.reply()) as server:
        yield server


@pytest.mark.usefixtures("instrumented")
def test_observation_says_what_was_recorded(exchange, server, client, recorder, telemetry):
    """Sync: identity, model, finish reasons, tokens and errors on span, metrics and metadata are the recorded ones."""
    method = METHODS[exchange.path][2](client).create
    try:
        result = method(**exchange.request)
        chunks = sum(1 for _ in result) if exchange.streamed else None
    except openai.APIStatusError:
        chunks = None
    check(exchange, server, recorder, telemetry, chunks)


@pytest.mark.usefixtures("instrumented")
async def test_async_observation_says_what_was_recorded(exchange, server, aclient, recorder, telemetry):
    """Async: the same."""
    method = METHODS[exchange.path][2](aclient).create
    try:
        result = await method(**exchange.request)
        chunks = len([chunk async for chunk in result]) if exchange.streamed else None
    except openai.APIStatusError:
        chunks = None
    check(exchange, server, recorder, telemetry, chunks)


def check(exchange, server, recorder, telemetry, chunks):
    (received,) = server.requests
    port = int(server.url.split(":")[2].partition("/")[0])
    said = Said(exchange, received.json, port)
    assert chunks == said.chunk_count

    (span,) = telemetry.spans()
    attributes = dict(span.attributes)
    assert TIMES & set(attributes) == (TIMES if chunks else set())
    assert {name: value for name, value in attributes.items() if name not in TIMES} == said.attributes()
    assert (span.name, span.status.is_ok, span.status.description) == (said.span_name, said.error is None, None)

    assert points(telemetry) == said.points()
    assert facts(recorder) == said.facts()


def points(telemetry):
    """The metrics that count something in the recording: name, number of values, sum of the tokens, attributes."""
    return sorted(
        (point.name, point.count, point.sum if "token" in point.name else None, sorted(point.attributes.items()))
        for point in telemetry.metrics()
        if point.name.startswith("gen_ai.") and not point.name.endswith("time_per_output_chunk")
    )


def facts(recorder):
    """What callbacks were told at the end."""
    end = recorder.events[-1]
    if end.name == "error":
        context = end.context
        return (end.name, context.outcome, context.error_type, context.status_code, context.request_id, context.partial)
    told = end.metadata
    usage = dataclasses.asdict(told.usage) if told.usage is not None else {}
    return (
        end.name,
        {
            "outcome": told.outcome,
            "id": told.id,
            "created": told.created,
            "model": told.model,
            "finish_reasons": told.finish_reasons,
            "usage": {name: value for name, value in usage.items() if value is not None},
            "total_tokens": told.total_tokens,
            "chunk_count": told.chunk_count,
            "status_code": told.status_code,
            "request_id": told.request_id,
            "service_tier": told.service_tier,
            "system_fingerprint": told.system_fingerprint,
            "truncated": told.truncated,
        },
    )


class Said:
    """What a recording says, in our words; *sent* is the request as it arrived."""

    def __init__(self, exchange, sent, port):
        self.exchange = exchange
        self.sent = sent
        self.port = port
        self.operation, self.api = METHODS[exchange.path][:2]
        self.span_name = f"{self.operation} {sent['model']}"
        self.error = ERRORS.get(exchange.status)
        self.headers = {"x-request-id": "req_000001", "openai-processing-ms": "7", **exchange.headers}
        events = exchange.events
        self.chunk_count = len(events) if exchange.streamed else None
        self.body = self._whole(events) if self.error is None else {}
        self.counts = self._counts(self.body.get("usage") or {})

    @staticmethod
    def _whole(events):
        """One answer from the events: the last value of each key wins, of the choices the last finish reason."""
        whole = {}
        reasons = {}
        for event in events:
            whole.update({key: value for key, value in event.items() if value is not None})
            for choice in event.get("choices", ()):
                reasons[choice["index"]] = choice["finish_reason"] or reasons.get(choice["index"])
        whole["reasons"] = tuple(reasons[index] for index in sorted(reasons))
        if "output" in whole:
            whole["reasons"] = ("length",) if whole["status"] == "incomplete" else ("stop",)
            whole["created"] = whole["created_at"]
        return whole

    @staticmethod
    def _counts(usage):
        spent = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        made = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
        return known(
            {
                "input_tokens": usage.get("prompt_tokens", usage.get("input_tokens")),
                "output_tokens": usage.get("completion_tokens", usage.get("output_tokens")),
                "total_tokens": usage.get("total_tokens"),
                "cached_tokens": spent.get("cached_tokens"),
                "cache_write_tokens": spent.get("cache_write_tokens"),
                "reasoning_tokens": made.get("reasoning_tokens"),
                "audio_input_tokens": spent.get("audio_tokens"),
                "audio_output_tokens": made.get("audio_tokens"),
            }
        )

    def attributes(self):
        sent, body = self.sent, self.body
        stop = sent.get("stop")
        tier = sent.get("service_tier")
        return known(
            {
                "gen_ai.operation.name": self.operation,
                "gen_ai.provider.name": "openai",
                "gen_ai.request.model": sent["model"],
                "server.address": "127.0.0.1",
                "server.port": self.port,
                "openai.api.type": self.api,
                "gen_ai.request.stream": sent.get("stream") or None,
                "gen_ai.request.temperature": sent.get("temperature"),
                "gen_ai.request.top_p": sent.get("top_p"),
                "gen_ai.request.max_tokens": next(
                    (
                        sent[name]
                        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")
                        if name in sent
                    ),
                    None,
                ),
                "gen_ai.request.frequency_penalty": sent.get("frequency_penalty"),
                "gen_ai.request.presence_penalty": sent.get("presence_penalty"),
                "gen_ai.request.seed": sent.get("seed"),
                "gen_ai.request.stop_sequences": (stop,) if isinstance(stop, str) else tuple(stop or ()) or None,
                "gen_ai.request.choice.count": sent["n"] if sent.get("n", 1) != 1 else None,
                "gen_ai.output.type": (sent.get("response_format") or {}).get("type"),
                "gen_ai.embeddings.dimension.count": sent.get("dimensions"),
                "openai.request.service_tier": None if tier == "auto" else tier,
                "gen_ai.response.id": body.get("id"),
                "gen_ai.response.model": body.get("model"),
                "gen_ai.response.finish_reasons": body.get("reasons") or None,
                **{name: self.counts.get(field) for name, field in TOKENS.items()},
                "openai.response.service_tier": body.get("service_tier"),
                "openai.response.system_fingerprint": body.get("system_fingerprint"),
                "llm_callback.outcome": "completed" if self.error is None else "error",
                "llm_callback.chunk.count": self.chunk_count,
                "llm_callback.usage.source": "missing" if self.error is None and not self.counts else None,
                "error.type": self.error,
                "http.response.status_code": None if self.error is None else self.exchange.status,
                **self._from_headers(),
            }
        )

    def _from_headers(self):
        headers = self.headers
        found = {
            "llm_callback.request_id": headers["x-request-id"],
            "llm_callback.processing_time": int(headers["openai-processing-ms"]) / 1000,
        }
        for kind in ("requests", "tokens"):
            for part in ("limit", "remaining", "reset"):
                text = headers.get(f"x-ratelimit-{part}-{kind}")
                read = seconds if part == "reset" else int
                found[f"llm_callback.rate_limit.{kind}.{part}"] = None if text is None else read(text)
        return found

    def points(self):
        base = {
            "gen_ai.operation.name": self.operation,
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": self.sent["model"],
            "gen_ai.response.model": self.body.get("model"),
            "server.address": "127.0.0.1",
            "server.port": self.port,
        }
        tier = {"openai.response.service_tier": self.body.get("service_tier")}
        expected = [("gen_ai.client.operation.duration", None, {**base, **tier, "error.type": self.error})]
        for kind in ("input", "output"):
            if (tokens := self.counts.get(f"{kind}_tokens")) is not None:
                expected.append(("gen_ai.client.token.usage", tokens, {**base, **tier, "gen_ai.token.type": kind}))
        if self.chunk_count:
            expected.append(("gen_ai.client.operation.time_to_first_chunk", None, base))
        return sorted((name, 1, value, sorted(known(attributes).items())) for name, value, attributes in expected)

    def facts(self):
        request_id = self.headers["x-request-id"]
        if self.error is not None:
            return ("error", "error", self.error, self.exchange.status, request_id, None)
        body = self.body
        return (
            "response_received",
            {
                "outcome": "completed",
                "id": body.get("id"),
                "created": body.get("created"),
                "model": body["model"],
                "finish_reasons": body["reasons"],
                "usage": self.counts,
                "total_tokens": self.counts.get("total_tokens"),
                "chunk_count": self.chunk_count,
                "status_code": 200,
                "request_id": request_id,
                "service_tier": body.get("service_tier"),
                "system_fingerprint": body.get("system_fingerprint"),
                "truncated": False,
            },
        )


def seconds(text):
    """A duration such as ``1m2s``, ``120ms`` or ``0``, in seconds."""
    if text.isdecimal():
        return float(text)
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(ms|s|m|h|d)", text))


def known(values):
    return {name: value for name, value in values.items() if value is not None}
