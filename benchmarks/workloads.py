"""What is measured: calls of the real client over a transport that stays in memory.

Nothing here knows which instrumentation is on. The HTTP library, the decoder of streams and the construction of models
are the real ones; only the socket is replaced.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from typing import Any, Final

from openai import AsyncOpenAI, OpenAI

try:
    import httpx2 as httpx
except ImportError:  # before openai 3
    import httpx

BASE_URL: Final = "http://llm.example:8443/v1"
HEADERS: Final = {
    "content-type": "application/json",
    "x-request-id": "req_4c1d0b5e",
    "openai-processing-ms": "412",
    "x-ratelimit-limit-requests": "10000",
    "x-ratelimit-limit-tokens": "2000000",
    "x-ratelimit-remaining-requests": "9999",
    "x-ratelimit-remaining-tokens": "1999744",
    "x-ratelimit-reset-requests": "6ms",
    "x-ratelimit-reset-tokens": "7ms",
    "server": "edge",
    "date": "Sat, 22 Nov 2025 10:00:00 GMT",
}
STREAM_HEADERS: Final = {**HEADERS, "content-type": "text/event-stream; charset=utf-8"}

_FACTS: Final = {"created": 1763806500, "model": "gpt-4o-mini-2024-07-18", "service_tier": "default"}
_USAGE: Final = {
    "prompt_tokens": 43,
    "completion_tokens": 151,
    "total_tokens": 194,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
_MESSAGE: Final = {"role": "assistant", "content": "Measure before you change anything. " * 20, "refusal": None}
_ANSWER: Final = {
    "id": "chatcmpl-ID",
    "object": "chat.completion",
    **_FACTS,
    "choices": [{"index": 0, "message": _MESSAGE, "logprobs": None, "finish_reason": "stop"}],
    "usage": _USAGE,
    "system_fingerprint": "fp_51db84afab",
}
_MODEL: Final = {"id": "gpt-4o-mini", "object": "model", "created": 1763806500, "owned_by": "system"}

ASK: Final[dict[str, Any]] = {
    "model": "gpt-4o-mini",
    "messages": [
        {"role": "system", "content": "You are a terse assistant who answers in plain English."},
        {"role": "user", "content": "Explain in one paragraph why measuring comes before optimising."},
    ],
    "temperature": 0.7,
    "max_tokens": 256,
}


def _history() -> list[dict[str, Any]]:
    """200 messages of 500 characters: 100 kB, a few of them tool calls."""
    text = ("copying values between layers which each believe they are the first to look at them " * 6)[:500]
    messages: list[dict[str, Any]] = []
    for index in range(200):
        if index % 10 == 5:
            function = {"name": "lookup", "arguments": json.dumps({"query": text[:480]})}
            calls = [{"id": f"call_{index}", "type": "function", "function": function}]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        elif index % 10 == 6:
            messages.append({"role": "tool", "tool_call_id": f"call_{index - 1}", "content": text})
        else:
            messages.append({"role": "assistant" if index % 2 else "user", "content": text})
    return messages


HISTORY: Final = {**ASK, "messages": _history()}


def _event(delta: dict[str, object], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    chunk = {"id": "chatcmpl-s", "object": "chat.completion.chunk", **_FACTS, "choices": [choice]}
    return b"data: %b\n\n" % json.dumps(chunk).encode()


def _usage_event() -> bytes:
    chunk = {"id": "chatcmpl-s", "object": "chat.completion.chunk", **_FACTS, "choices": [], "usage": _USAGE}
    return b"data: %b\n\n" % json.dumps(chunk).encode()


class _Stream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A role, words, a finish reason, usage: each an event and a piece of its own."""

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        word = _event({"content": " word"})
        yield _event({"role": "assistant", "content": ""})
        for _ in range(self.chunks - 3):
            yield word
        yield _event({}, "stop")
        yield _usage_event()
        yield b"data: [DONE]\n\n"

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            await asyncio.sleep(0)  # so that streams take turns, as those of a server do
            yield piece


class Transport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers at once: with a stream where the header ``x-chunks`` asks for one."""

    def __init__(self) -> None:
        self._ids = count()
        self._answer = json.dumps(_ANSWER).encode()
        self._model = json.dumps(_MODEL).encode()

    def handle_request(self, request: Any) -> Any:
        if request.method == "GET":
            return httpx.Response(200, headers=HEADERS, content=self._model, request=request)
        chunks = request.headers.get("x-chunks")
        if chunks is not None:
            return httpx.Response(200, headers=STREAM_HEADERS, stream=_Stream(int(chunks)), request=request)
        answer = self._answer.replace(b"-ID", b"-%08d" % next(self._ids))  # one peer keeps a table of ids
        return httpx.Response(200, headers=HEADERS, content=answer, request=request)

    async def handle_async_request(self, request: Any) -> Any:
        return self.handle_request(request)


def make_client() -> OpenAI:
    return OpenAI(base_url=BASE_URL, api_key="none", http_client=httpx.Client(transport=Transport()), max_retries=0)


def make_async_client() -> AsyncOpenAI:
    transport = httpx.AsyncClient(transport=Transport())
    return AsyncOpenAI(base_url=BASE_URL, api_key="none", http_client=transport, max_retries=0)


def _calls(client: OpenAI, ask: dict[str, Any]) -> Callable[[int], None]:
    create = client.chat.completions.create

    def run(times: int) -> None:
        for _ in range(times):
            create(**ask)

    return run


def _stream(client: OpenAI) -> Callable[[int], None]:
    """One stream of so many chunks."""
    create = client.chat.completions.create
    ask = {**ASK, "stream": True, "stream_options": {"include_usage": True}}

    def run(chunks: int) -> None:
        for _ in create(**ask, extra_headers={"x-chunks": str(chunks)}):
            pass

    return run


def _untraced(client: OpenAI) -> Callable[[int], None]:
    """A route nobody observes."""
    retrieve = client.models.retrieve

    def run(times: int) -> None:
        for _ in range(times):
            retrieve("gpt-4o-mini")

    return run


def _async_streams() -> Callable[[int], None]:
    """A hundred streams at once on one event loop, of so many chunks each."""
    client = make_async_client()
    ask = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
    loop = asyncio.new_event_loop()

    async def read(chunks: int) -> None:
        async for _ in await client.chat.completions.create(**ask, extra_headers={"x-chunks": str(chunks)}):
            pass

    async def read_all(chunks: int) -> None:
        await asyncio.gather(*(read(chunks) for _ in range(100)))

    return lambda chunks: loop.run_until_complete(read_all(chunks))


def make(name: str) -> Callable[[int], None]:
    """Return what runs a workload; its argument is the number of calls, or of chunks per stream."""
    if name == "async_streams":
        return _async_streams()
    client = make_client()
    if name == "stream":
        return _stream(client)
    if name == "untraced":
        return _untraced(client)
    return _calls(client, HISTORY if name == "history" else ASK)
