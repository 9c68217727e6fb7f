"""Read what passes over a websocket: sessions, realtime responses and their events. Pure functions and state.

Responses over a websocket are those of the Responses API; what is said here of them is only how they differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ._media import NO_CONTENT, EventFold, event_chunk_text, plain_request, plain_response, unmeasured
from ._messages import blob
from ._operations import OPERATIONS, Operation
from ._readers import RequestFacts, ResponseFacts, all_fields, fields, label, read_usage, text
from ._responses import (
    ResponsesFold,
    responses_context_length,
    responses_input,
    responses_instructions,
    responses_output,
    responses_request,
    responses_tools,
)
from .content import ContentReaders, Message
from .types import ChunkKind

_MAX_ITEMS: Final = 1024

# The newer names and those of the beta.
_DELTAS: Final[Mapping[str, ChunkKind]] = {
    "response.output_text.delta": "text",
    "response.text.delta": "text",
    "response.output_audio.delta": "audio",
    "response.audio.delta": "audio",
    "response.output_audio_transcript.delta": "audio",
    "response.audio_transcript.delta": "audio",
    "response.function_call_arguments.delta": "tool_call",
    "response.mcp_call_arguments.delta": "tool_call",
}
_SOUND: Final = frozenset(("response.output_audio.delta", "response.audio.delta"))
_SAID: Final = frozenset(_DELTAS) - _SOUND - {"response.function_call_arguments.delta"}


def realtime_request(body: Mapping[str, object]) -> RequestFacts:
    """Read the ``response`` of a ``response.create`` event; what it leaves out is as the session has it."""
    # In this API `conversation` says whether the answer joins it, and is no id.
    facts = responses_request({key: value for key, value in body.items() if key not in ("conversation", "text")})
    modalities = body.get("output_modalities", body.get("modalities"))
    if isinstance(modalities, (list, tuple)):
        facts["output_type"] = "speech" if "audio" in modalities else "text"
    return facts


def realtime_response(parsed: object) -> ResponseFacts:
    """Read a realtime response."""
    data = fields(parsed)
    status = label(data.get("status"))
    details = fields(data.get("status_details"))
    facts: ResponseFacts = {
        "id": label(data.get("id")),
        "finish_reasons": _finish_reasons(status, details, data.get("output")),
        "usage": read_usage(_usage(data.get("usage"))),
        "status": status,
    }
    if status == "failed":
        facts["failure"] = _error_code(details) or "failed"
    return facts


def _error_code(holder: Mapping[str, Any]) -> str | None:
    error = fields(holder.get("error"))
    return label(error.get("code")) or label(error.get("type"))


def _usage(usage: object) -> Mapping[str, Any]:
    data = fields(usage)
    return {**data, "output_tokens_details": data.get("output_token_details")}  # the other APIs say it in the plural


def _finish_reasons(status: str | None, details: Mapping[str, Any], output: object) -> tuple[str, ...]:
    if status is None or status == "in_progress":
        return ()
    if status == "completed":
        items = output if isinstance(output, list) else []
        return ("tool_calls",) if any(fields(item).get("type") == "function_call" for item in items) else ("stop",)
    if status == "incomplete":
        reason = label(details.get("reason"))
        return ("length" if reason == "max_output_tokens" else reason or "incomplete",)
    return ("cancelled",) if status == "cancelled" else ("error",)


class RealtimeFold:
    """Events of one realtime response; ``response.done`` carries the whole, except the sound."""

    __slots__ = ("_done", "_failure", "_items", "_model", "_response", "_texts", "saw_output")

    def __init__(self, *, keep_content: bool, model: str | None = None) -> None:
        self.saw_output = False
        self._model = model
        self._response: Any = None
        self._done = False
        self._failure: str | None = None
        self._items: list[Any] | None = [] if keep_content else None
        self._texts: list[str] = []

    def add(self, event: Any) -> None:
        """Take in an event."""
        data = event.__dict__
        kind = data["type"]
        if kind in _DELTAS:
            self.saw_output = True
            if self._items is not None and kind in _SAID and (piece := text(data["delta"])):
                self._texts.append(piece)
        elif kind in ("response.created", "response.done"):
            self._response = data["response"]
            self._done = kind == "response.done"
        elif kind == "response.output_item.done" and self._items is not None and len(self._items) < _MAX_ITEMS:
            self._items.append(data["item"])
            self._texts.clear()
        elif kind == "error":  # instead of a response
            self._failure = _error_code(all_fields(event)) or "error"

    def facts(self, *, due: bool) -> ResponseFacts:
        """Return what the events said so far."""
        facts: ResponseFacts = realtime_response(self._response) if self._response is not None else {}
        facts["model"] = self._model  # a response does not name it; the session does
        if not self._done:
            facts["finish_reasons"] = ("error",) if due else ()
            facts["usage"] = None
        facts["truncated"] = not self._done
        if self._failure is not None:
            facts["failure"] = self._failure
        return facts

    def body(self) -> object:
        """Return the response, or what had arrived of it; of sound only a digest."""
        if self._items is None:
            return None
        head = fields(self._response)
        body: dict[str, object] = {"id": head.get("id"), "object": "realtime.response", "model": self._model}
        output = head.get("output") if self._done else None
        if not isinstance(output, list):
            output = list(self._items)
            if self._texts:
                content = [{"type": "output_text", "text": "".join(self._texts)}]
                output.append({"type": "message", "role": "assistant", "status": "incomplete", "content": content})
        body["status"] = head.get("status") if self._done else "incomplete"
        body["output"] = [_without_sound(item) for item in output]
        if self._done and head.get("usage") is not None:
            body["usage"] = head["usage"]
        return body


def _without_sound(item: object) -> dict[str, Any]:
    data = {key: value for key, value in fields(item).items() if value is not None}
    if isinstance(content := data.get("content"), (list, tuple)):
        data["content"] = [_part_without_sound(fields(part)) for part in content]
    return data


def _part_without_sound(part: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in part.items() if value is not None}
    if isinstance(sound := shown.get("audio"), str):
        shown["audio"] = blob("audio", None, sound)
    return shown


def without_sound(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``response`` of a ``response.create`` event with the digest of each sound in place of the sound."""
    given = body.get("input")
    return {**body, "input": [_without_sound(item) for item in given]} if isinstance(given, list) else body


def realtime_chunk_text(event: Any) -> tuple[str, ChunkKind]:
    """Return the text of an event and what it is; sound has none."""
    data = fields(event)
    name = data.get("type")
    kind = _DELTAS.get(name) if isinstance(name, str) else None
    if kind is None:
        return "", "event"
    return ("" if name in _SOUND else text(data.get("delta")) or ""), kind


def _spoken(item: object) -> Mapping[str, Any]:
    """An item with its transcripts where the Responses API has its texts."""
    data = fields(item)
    content = data.get("content")
    if not isinstance(content, (list, tuple)):
        return data
    parts = [fields(part) for part in content]
    said = [{"type": "text", "text": part["transcript"]} if part.get("transcript") else part for part in parts]
    return {**data, "content": said}


def _input(body: Mapping[str, Any]) -> list[Message]:
    given = body.get("input")
    return responses_input({"input": [_spoken(item) for item in given]}) if isinstance(given, (list, tuple)) else []


def _output(parsed: object) -> list[Message]:
    data = fields(parsed)
    output = data.get("output")
    return responses_output({**data, "output": [_spoken(item) for item in output]}) if isinstance(output, list) else []


class SocketFold(ResponsesFold):
    """Events of the Responses API as they come over a websocket, where an error is told one level deeper."""

    __slots__ = ("_code",)

    def __init__(self, *, keep_content: bool) -> None:
        super().__init__(keep_content=keep_content)
        self._code: str | None = None

    def add(self, event: Any) -> None:
        """Take in an event."""
        super().add(event)
        if self._error is not None and self._code is None:
            self._code = _error_code(all_fields(event))  # older versions of the SDK do not know the field

    def facts(self, *, due: bool) -> ResponseFacts:
        """Return what the events said so far."""
        facts = super().facts(due=due)
        if self._code is not None:
            facts["failure"] = self._code
        return facts


def _session(name: str, api: str, where: str) -> Operation:
    """A row for a connection as a whole; what is said on it belongs to its responses."""
    return Operation(
        name=name,
        api=api,
        where=where,
        request=plain_request,
        response=plain_response,
        fold=EventFold,
        chunk_text=event_chunk_text,
        content=NO_CONTENT,
        context_length=unmeasured,
    )


REALTIME_SESSION: Final = _session("realtime_session", "realtime", "realtime.connect")
RESPONSES_SESSION: Final = _session("responses_session", "responses", "responses.connect")
TRANSLATION_SESSION: Final = _session("translation_session", "realtime", "realtime.translations.connect")
LIVE_SESSION: Final = _session("live_session", "live", "live.connect")

REALTIME_RESPONSE: Final = Operation(
    name="realtime_response",
    api="realtime",
    where="realtime.response",
    request=realtime_request,
    response=realtime_response,
    fold=RealtimeFold,
    chunk_text=realtime_chunk_text,
    content=ContentReaders(_input, _output, responses_tools, responses_instructions),
    context_length=responses_context_length,
)
SOCKET_RESPONSE: Final = replace(OPERATIONS["POST /responses"], where="responses.connect", fold=SocketFold, job=None)
LIVE_RESPONSE: Final = replace(SOCKET_RESPONSE, where="live.response")
LIVE_DECISION: Final = replace(OPERATIONS["POST /decisions"], where="live.decision")
