"""Read the smaller APIs: embeddings, legacy completions, images, audio, moderations, search, videos, runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from ._readers import (
    RequestFacts,
    ResponseFacts,
    all_fields,
    count,
    fields,
    integer,
    label,
    number,
    read_request,
    read_usage,
    stop_sequences,
    text,
    utf8_length,
)
from .content import ContentReaders, Message
from .types import ChunkKind, Usage

_Table = Mapping[str, tuple[str, Callable[[object], object]]]

_PLAIN: Final[_Table] = {
    "model": ("model", label),
    "n": ("choice_count", count),
    "temperature": ("temperature", number),
}

_COMPLETION: Final[_Table] = {
    **_PLAIN,
    "max_tokens": ("max_tokens", count),
    "top_p": ("top_p", number),
    "frequency_penalty": ("frequency_penalty", number),
    "presence_penalty": ("presence_penalty", number),
    "stop": ("stop_sequences", stop_sequences),
    "seed": ("seed", integer),
}


def _encoding(value: object) -> tuple[str, ...] | None:
    # The client asks for base64 on its own account and decodes it; the caller did not ask for that.
    return (value,) if isinstance(value, str) and value != "base64" else None


_EMBEDDINGS: Final[_Table] = {
    "model": ("model", label),
    "dimensions": ("dimension_count", count),
    "encoding_format": ("encoding_formats", _encoding),
}


def completions_request(body: Mapping[str, object]) -> RequestFacts:
    """Read a legacy completions request."""
    return read_request(body, _COMPLETION)


def embeddings_request(body: Mapping[str, object]) -> RequestFacts:
    """Read an embeddings request."""
    return read_request(body, _EMBEDDINGS)


def image_request(body: Mapping[str, object]) -> RequestFacts:
    """Read a request for images."""
    return {"output_type": "image", **read_request(body, _PLAIN)}


def speech_request(body: Mapping[str, object]) -> RequestFacts:
    """Read a request for speech."""
    return {"output_type": "speech", **read_request(body, _PLAIN)}


def plain_request(body: Mapping[str, object]) -> RequestFacts:
    """Read the model and temperature, all that is shared by the rest."""
    return read_request(body, _PLAIN)


def search_request(body: Mapping[str, object]) -> RequestFacts:
    """Read a search of a vector store."""
    store = label(body.get("vector_store_id"))
    return {} if store is None else {"data_source_id": store}


def grader_request(body: Mapping[str, object]) -> RequestFacts:
    """Read a request to grade a sample; the model, if any, is the grader's."""
    return read_request(fields(body.get("grader")), _PLAIN)


def grader_response(parsed: object) -> ResponseFacts:
    """Read a grade; of the tokens only the sum is told."""
    details = all_fields(all_fields(parsed).get("metadata"))
    total = count(details.get("token_usage"))
    return {
        "model": label(details.get("sampled_model_name")),
        "usage": None if total is None else Usage(total_tokens=total),
    }


def unmeasured(_: Mapping[str, object]) -> int | None:
    """For requests that carry no messages."""
    return None


def prompt_length(body: Mapping[str, object]) -> int | None:
    """UTF-8 bytes of the prompt or input."""
    given = body.get("prompt", body.get("input"))
    if isinstance(given, str):
        return utf8_length(given)
    if isinstance(given, (list, tuple)):
        return sum(utf8_length(item) for item in given if isinstance(item, str))
    return None


def completions_response(parsed: object) -> ResponseFacts:
    """Read a legacy completion; the shape of the choices is that of chat."""
    data = all_fields(parsed)
    choices = data.get("choices")
    reasons = [fields(choice).get("finish_reason") for choice in choices] if isinstance(choices, list) else []
    return {
        "id": label(data.get("id")),
        "created": integer(data.get("created")),
        "model": label(data.get("model")),
        "finish_reasons": tuple([label(reason) or "error" for reason in reasons]),
        "usage": read_usage(data.get("usage")),
        "system_fingerprint": label(data.get("system_fingerprint")),
    }


def plain_response(parsed: object) -> ResponseFacts:
    """Read id, time, model and usage, whichever there are."""
    data = all_fields(parsed)
    return {
        "id": label(data.get("id")),
        "created": _seconds(data.get("created", data.get("created_at"))),
        "model": label(data.get("model")),
        "usage": read_usage(data.get("usage")),
    }


def _seconds(value: object) -> int | None:
    return integer(int(value) if isinstance(value, float) and math.isfinite(value) else value)


def job_response(parsed: object) -> ResponseFacts:
    """Read a job that goes on after the call: its status, and the error of one that failed already."""
    data = all_fields(parsed)
    facts = plain_response(parsed)
    facts["status"] = status = label(data.get("status"))
    if status == "failed":
        error = fields(data.get("error") or data.get("last_error"))
        facts["failure"] = label(error.get("code")) or "failed"
    return facts


class EventFold:
    """Streams whose last event of a kind carries usage: images, transcriptions, speech, runs."""

    __slots__ = ("_is_run", "_last", "_over", "_pieces", "saw_output")

    def __init__(self, *, keep_content: bool) -> None:
        self.saw_output = False
        self._last: Any = None
        self._over = False
        self._is_run = False
        self._pieces: list[str] | None = [] if keep_content else None

    def add(self, event: Any) -> None:
        """Take in an event."""
        data = event.__dict__
        kind = data.get("type") or data.get("event") or ""
        if kind.startswith("thread."):
            self._add_to_run(kind, data)
        elif kind.endswith((".completed", ".done")):
            self._last, self._over = event, True
            self.saw_output = True
        elif kind.endswith((".delta", ".partial_image", ".segment")):
            self.saw_output = True
            if self._pieces is not None and isinstance(piece := data.get("delta"), str):
                self._pieces.append(piece)

    def _add_to_run(self, kind: str, data: Mapping[str, Any]) -> None:
        if kind == "thread.message.delta":
            self.saw_output = True
            if self._pieces is not None:
                self._pieces.append(_message_text(data))
        elif kind.startswith("thread.run.") and not kind.startswith("thread.run.step."):
            self._is_run = True
            self._last, self._over = data.get("data"), kind not in _RUN_GOES_ON

    def facts(self, *, due: bool) -> ResponseFacts:  # noqa: ARG002 - these streams have no finish reasons
        """Return what the events said so far."""
        read = job_response if self._is_run else plain_response
        facts: ResponseFacts = read(self._last) if self._last is not None else {}
        facts["truncated"] = not self._over
        return facts

    def body(self) -> object:
        """Return the last event, or the text that had arrived."""
        if self._pieces is None:
            return None
        if self._last is not None and self._over:
            return {
                key: value for key, value in all_fields(self._last).items() if value is not None and key != "b64_json"
            }
        return {"text": "".join(self._pieces)}


_RUN_GOES_ON: Final = frozenset(f"thread.run.{status}" for status in ("created", "queued", "in_progress", "cancelling"))


def _message_text(event: Mapping[str, Any]) -> str:
    """The text in a piece of an assistant's message."""
    content = fields(fields(event.get("data")).get("delta")).get("content")
    blocks = content if isinstance(content, list) else []
    return "".join([text(fields(fields(block).get("text")).get("value")) or "" for block in blocks])


def event_chunk_text(event: Any) -> tuple[str, ChunkKind]:
    """Return the text of an event and what it is."""
    data = fields(event)
    kind = data.get("type")
    if kind is None and data.get("event") == "thread.message.delta":
        return _message_text(data), "text"
    if isinstance(kind, str) and kind.startswith("transcript.text.delta"):
        return text(data.get("delta")) or "", "text"
    if isinstance(kind, str) and kind.startswith("speech.audio.delta"):
        return "", "audio"
    return "", "event"


def completion_chunk_text(chunk: Any) -> tuple[str, ChunkKind]:
    """Return the text of a legacy completion chunk."""
    for choice in fields(chunk).get("choices") or ():
        if piece := text(fields(choice).get("text")):
            return piece, "text"
    return "", "event"


class CompletionFold:
    """Chunks of legacy completions."""

    __slots__ = ("_head", "_reasons", "_texts", "_usage", "saw_output")

    def __init__(self, *, keep_content: bool) -> None:
        self.saw_output = False
        self._head: Mapping[str, Any] | None = None
        self._reasons: dict[int, str | None] = {}
        self._usage: object = None
        self._texts: dict[int, list[str]] | None = {} if keep_content else None

    def add(self, chunk: Any) -> None:
        """Take in a chunk."""
        data = chunk.__dict__
        if self._head is None and (data.get("id") or data.get("model")):
            self._head = data
        if (usage := data.get("usage")) is not None:
            self._usage = usage
        for choice in data.get("choices") or ():
            entry = choice.__dict__
            index = entry["index"]
            if isinstance(index, int) and (len(self._reasons) < _MAX_CHOICES or index in self._reasons):
                self._reasons[index] = label(entry.get("finish_reason")) or self._reasons.get(index)
                if piece := text(entry.get("text")):
                    self.saw_output = True
                    if self._texts is not None:
                        self._texts.setdefault(index, []).append(piece)

    def facts(self, *, due: bool) -> ResponseFacts:
        """Return what the chunks said so far."""
        head = self._head or {}
        reasons = [self._reasons[index] for index in sorted(self._reasons)]
        return {
            "id": label(head.get("id")),
            "created": integer(head.get("created")),
            "model": label(head.get("model")),
            "finish_reasons": tuple(r or "error" for r in reasons) if due else tuple(r for r in reasons if r),
            "truncated": not reasons or None in reasons,
            "usage": read_usage(self._usage),
            "system_fingerprint": label(head.get("system_fingerprint")),
        }

    def body(self) -> dict[str, object] | None:
        """Return the completion the chunks add up to."""
        if self._texts is None:
            return None
        head = self._head or {}
        body: dict[str, object] = {key: head[key] for key in ("id", "object", "created", "model") if head.get(key)}
        body["choices"] = [
            {"index": index, "text": "".join(self._texts.get(index, ())), "finish_reason": reason}
            for index, reason in sorted(self._reasons.items())
        ]
        if self._usage is not None:
            body["usage"] = self._usage
        return body


_MAX_CHOICES: Final = 128


def completions_input(body: Mapping[str, Any]) -> list[Message]:
    """The prompt as one user message."""
    prompt = body.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt if isinstance(prompt, (list, tuple)) else []
    parts = [{"type": "text", "content": piece} for piece in prompts if isinstance(piece, str)]
    return [{"role": "user", "parts": parts}] if parts else []


def completions_output(parsed: object) -> list[Message]:
    """One assistant message per choice."""
    choices = fields(parsed).get("choices")
    return [_completion_message(fields(choice)) for choice in choices] if isinstance(choices, list) else []


def _completion_message(choice: Mapping[str, Any]) -> Message:
    message: Message = {"role": "assistant", "parts": [{"type": "text", "content": str(choice.get("text") or "")}]}
    if isinstance(reason := choice.get("finish_reason"), str):
        message["finish_reason"] = reason
    return message


def _no_output(_: object) -> list[Message]:
    return []


def _nothing(_: Mapping[str, Any]) -> list[Message]:
    return []


COMPLETIONS: Final = ContentReaders(completions_input, completions_output, _nothing, _nothing)
NO_CONTENT: Final = ContentReaders(_nothing, _no_output, _nothing, _nothing)
"""For APIs whose content the conventions do not describe: it is not recorded at all."""
