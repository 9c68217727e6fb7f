"""Add up the chunks of a stream to what the whole response would have said: pure state, one class per dialect.

A fold is on the path of every chunk. It reads only ``__dict__`` and keeps no content unless asked to.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from ._readers import ResponseFacts, all_fields, fields, integer, label, read_usage, text
from .types import ChunkKind

# A server chooses these indices; a huge number of them must not become our memory.
_MAX_CHOICES: Final = 128
_MAX_TOOL_CALLS: Final = 256


class Fold(Protocol):
    """What the exchange needs of a stream dialect.

    One whose stream goes on until it is closed has ``is_over`` besides: True while nothing is under way.
    """

    saw_output: bool
    """True once a chunk carried output."""

    def add(self, chunk: Any, /) -> None:
        """Take in a chunk; may raise on an odd one, having taken what it understood before."""

    def facts(self, *, due: bool) -> ResponseFacts:
        """Return what the chunks said so far; a finish reason that is *due* and missing reads ``error``."""

    def body(self) -> object:
        """Return the response the chunks add up to, None if no content was kept."""


class ChatFold:
    """Chunks of Chat Completions."""

    __slots__ = ("_choices", "_head", "_reasons", "_usage", "saw_output")

    def __init__(self, *, keep_content: bool) -> None:
        self.saw_output = False
        self._head: dict[str, Any] | None = None
        self._reasons: dict[int, str | None] = {}
        self._usage: object = None
        self._choices: dict[int, _Choice] | None = {} if keep_content else None

    def add(self, chunk: Any) -> None:
        """Take in a chunk."""
        data = chunk.__dict__
        if self._head is None and (data.get("id") or data.get("model")):
            self._head = data  # Azure opens with a chunk that has neither
        if (usage := data.get("usage")) is not None:
            self._usage = usage
        choices = data.get("choices")
        if not choices:
            return
        reasons = self._reasons
        for choice in choices:
            entry = choice.__dict__
            index = entry["index"]
            if isinstance(reason := entry["finish_reason"], str) and reason:
                if index in reasons or len(reasons) < _MAX_CHOICES:
                    reasons[index] = reason
            elif index not in reasons and len(reasons) < _MAX_CHOICES:
                reasons[index] = None
            if self._choices is not None:
                self._keep(index, entry["delta"])
            if not self.saw_output and chat_delta(entry["delta"])[1] != "event":
                self.saw_output = True

    def facts(self, *, due: bool) -> ResponseFacts:
        """Return what the chunks said so far."""
        head = self._head or {}
        reasons = [self._reasons[index] for index in sorted(self._reasons, key=_by_index)]
        missing = not reasons or None in reasons
        return {
            "id": label(head.get("id")),
            "created": integer(head.get("created")),
            "model": label(head.get("model")),
            "finish_reasons": tuple(r or "error" for r in reasons) if due else tuple(r for r in reasons if r),
            "truncated": missing,
            "usage": read_usage(self._usage),
            "service_tier": label(head.get("service_tier")),
            "system_fingerprint": label(head.get("system_fingerprint")),
        }

    def body(self) -> dict[str, object] | None:
        """Return the response the chunks add up to, in the shape of one that was not streamed."""
        if self._choices is None:
            return None
        head = self._head or {}
        body: dict[str, object] = {"id": head.get("id"), "object": "chat.completion"}
        body.update(
            {key: head[key] for key in ("created", "model", "service_tier", "system_fingerprint") if head.get(key)}
        )
        body["choices"] = [
            {"index": index, "message": self._choices[index].message(), "finish_reason": self._reasons.get(index)}
            for index in sorted(self._choices, key=_by_index)
        ]
        if self._usage is not None:
            body["usage"] = _plain_usage(self._usage)
        return body

    def _keep(self, index: Any, delta: object) -> None:
        choices = self._choices
        if choices is None:
            return
        choice = choices.get(index)
        if choice is None:
            if len(choices) >= _MAX_CHOICES:
                return
            choice = choices[index] = _Choice()
        choice.add(delta)


class _Choice:
    """One choice of a streamed chat answer, piece by piece."""

    __slots__ = ("_calls", "_last", "_role", "_texts")

    def __init__(self) -> None:
        self._role: str | None = None
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[object, _ToolCall] = {}
        self._last: _ToolCall | None = None

    def add(self, delta: object) -> None:
        data = all_fields(delta)
        if role := data.get("role"):
            self._role = role
        for name in ("content", "refusal", "reasoning_content", "reasoning"):
            if piece := text(data.get(name)):
                self._texts.setdefault(name, []).append(piece)
        if piece := text(fields(data.get("audio")).get("transcript")):
            self._texts.setdefault("transcript", []).append(piece)
        for call in data.get("tool_calls") or ():
            self._add_call(all_fields(call))
        if function := data.get("function_call"):
            self._add_call({"index": "function_call", "type": "function_call", "function": function})

    def _add_call(self, data: Any) -> None:
        index, call_id = data.get("index"), data.get("id")
        if index is None:
            # Some servers leave the index out: a new id starts a call, anything else goes on with the last one.
            index = call_id or (self._last.index if self._last is not None else 0)
        call = self._calls.get(index)
        if call is None:
            if len(self._calls) >= _MAX_TOOL_CALLS:
                return
            call = self._calls[index] = _ToolCall(index)
        self._last = call
        call.add(data)

    def message(self) -> dict[str, object]:
        message: dict[str, object] = {"role": self._role or "assistant"}
        texts = {name: "".join(pieces) for name, pieces in self._texts.items()}
        message["content"] = texts.pop("content", None)
        if transcript := texts.pop("transcript", None):
            message["audio"] = {"transcript": transcript}  # the sound itself is not kept
        message.update(texts)
        calls = [call.value() for call in self._calls.values()]
        tool_calls = [call for call in calls if call["type"] != "function_call"]
        if tool_calls:
            message["tool_calls"] = tool_calls
        if len(tool_calls) < len(calls):
            message["function_call"] = next(call["function"] for call in calls if call["type"] == "function_call")
        return message


class _ToolCall:
    __slots__ = ("_arguments", "_id", "_name", "_type", "index")

    def __init__(self, index: object) -> None:
        self.index = index
        self._id: str | None = None
        self._type: str | None = None
        self._name: str | None = None
        self._arguments: list[str] = []

    def add(self, data: Any) -> None:
        self._id = data.get("id") or self._id
        self._type = data.get("type") or self._type
        function = fields(data.get("function") or data.get("custom"))
        self._name = function.get("name") or self._name
        if piece := text(function.get("arguments")) or text(function.get("input")):
            self._arguments.append(piece)

    def value(self) -> dict[str, object]:
        if self._type == "custom":
            custom = {"name": self._name, "input": "".join(self._arguments)}
            return {"id": self._id, "type": self._type, "custom": custom}
        return {
            "id": self._id,
            "type": self._type or "function",
            "function": {"name": self._name, "arguments": "".join(self._arguments)},
        }


def chat_delta(delta: object) -> tuple[str, ChunkKind]:  # noqa: PLR0911 - one return per kind
    """Return the text of a chat delta and what it is; ``event`` if it carries no output."""
    data = fields(delta)
    if (piece := data.get("content")) and isinstance(piece, str):
        return piece, "text"
    if calls := data.get("tool_calls"):
        return "".join([_arguments(call) for call in calls]), "tool_call"
    if (piece := data.get("refusal")) and isinstance(piece, str):
        return piece, "refusal"
    extra = getattr(delta, "model_extra", None) or {}
    if piece := text(extra.get("reasoning_content")) or text(extra.get("reasoning")):
        return piece, "reasoning"
    if audio := extra.get("audio") or data.get("audio"):
        return text(fields(audio).get("transcript")) or "", "audio"
    if call := data.get("function_call"):
        return text(fields(call).get("arguments")) or "", "tool_call"
    return "", "event"


def _arguments(call: object) -> str:
    return text(fields(fields(call).get("function")).get("arguments")) or ""


def chat_chunk_text(chunk: Any) -> tuple[str, ChunkKind]:
    """Return the text of a chat chunk and what it is: the first choice that carries output decides."""
    for choice in chunk.__dict__.get("choices") or ():
        piece, kind = chat_delta(choice.__dict__["delta"])
        if kind != "event":
            return piece, kind
    return "", "event"


def _plain_usage(usage: Any) -> object:
    return usage.model_dump(mode="json", exclude_unset=True, warnings=False) if hasattr(usage, "model_dump") else usage


def _by_index(index: object) -> tuple[bool, int]:
    return (False, index) if isinstance(index, int) else (True, 0)
