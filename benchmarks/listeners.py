"""Callbacks that do next to nothing, so that what is measured is telling them."""

from __future__ import annotations

from otel_llm_callback import RequestMetadata, ResponseMetadata, StreamChunk


class CountCalls:
    """Takes requests and ends, without content."""

    content = "none"

    def __init__(self) -> None:
        self.requests = 0
        self.responses = 0

    def on_request_sent(self, metadata: RequestMetadata, request_json: str) -> None:
        self.requests += 1

    def on_response_received(self, metadata: ResponseMetadata, response_json: str) -> None:
        self.responses += 1


class TakeChunks:
    """Takes chunks with their text."""

    def __init__(self) -> None:
        self.characters = 0

    def on_stream_chunk(self, chunk: StreamChunk, index: int) -> None:
        self.characters += len(chunk)


def ten() -> list[CountCalls]:
    return [CountCalls() for _ in range(10)]


def chunks() -> list[TakeChunks]:
    return [TakeChunks()]
