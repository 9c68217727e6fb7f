"""Read the content of requests and responses into the messages of the GenAI conventions.

Used only when content capture is on. Media never go into a message: a digest does.

Source: GenAI conventions sheet, section 3.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ._readers import all_fields, fields
from .content import ContentReaders, Message

_HASHED_LIMIT: Final = 1_048_576
"""Base64 characters up to which media are hashed; larger ones get their size only, so that the cost is bounded."""

_FINISH_REASONS: Final = {"tool_calls": "tool_call", "function_call": "tool_call"}


def chat_input(body: Mapping[str, Any]) -> list[Message]:
    """Messages of a Chat Completions request, system messages included."""
    messages = body.get("messages")
    return [_input_message(fields(message)) for message in messages] if isinstance(messages, (list, tuple)) else []


def chat_output(parsed: object) -> list[Message]:
    """Messages of a Chat Completions response, one per choice."""
    choices = fields(parsed).get("choices")
    return [_output_message(fields(choice)) for choice in choices] if isinstance(choices, list) else []


def chat_tools(body: Mapping[str, Any]) -> list[Message]:
    """Tool definitions of a Chat Completions request."""
    tools = body.get("tools")
    return [_tool(fields(tool)) for tool in tools] if isinstance(tools, (list, tuple)) else []


def nothing(_: Mapping[str, Any]) -> list[Message]:
    """For what an API does not have."""
    return []


def _input_message(message: Mapping[str, Any]) -> Message:
    content = message.get("content")
    role = str(message.get("role") or "user")
    if type(content) is str and "tool_calls" not in message and role != "tool":
        parts = [{"type": "text", "content": content}]  # nearly every message; kept short for long histories
    elif role == "tool":
        parts = [with_id({"type": "tool_call_response", "response": _response(content)}, message.get("tool_call_id"))]
    else:
        parts = [*parts_of(content), *_spoken(message), *_calls(message)]
    result: Message = {"role": role, "parts": parts}
    if isinstance(name := message.get("name"), str):
        result["name"] = name
    return result


def _output_message(choice: Mapping[str, Any]) -> Message:
    message = choice.get("message")
    data = {**fields(message), **(getattr(message, "model_extra", None) or {})}
    parts = [*_reasoning(data), *parts_of(data.get("content")), *_spoken(data), *_calls(data)]
    result: Message = {"role": str(data.get("role") or "assistant"), "parts": parts}
    if isinstance(reason := choice.get("finish_reason"), str):
        result["finish_reason"] = _FINISH_REASONS.get(reason, reason)
    return result


def _response(content: Any) -> Any:
    if isinstance(content, str) or content is None:
        return content
    return list(parts_of(content))


def _reasoning(data: Mapping[str, Any]) -> Iterable[Message]:
    for name in ("reasoning_content", "reasoning"):
        if isinstance(text := data.get(name), str) and text:
            yield {"type": "reasoning", "content": text}
            return


def _spoken(data: Mapping[str, Any]) -> Iterable[Message]:
    if isinstance(refusal := data.get("refusal"), str) and refusal:
        yield {"type": "text", "content": refusal}
    audio = fields(data.get("audio"))
    if isinstance(sound := audio.get("data"), str):
        yield blob("audio", None, sound)
    if isinstance(transcript := audio.get("transcript"), str):
        yield {"type": "text", "content": transcript}


def _calls(data: Mapping[str, Any]) -> Iterable[Message]:
    calls = data.get("tool_calls")
    for call in calls if isinstance(calls, (list, tuple)) else ():
        entry = all_fields(call)
        function = fields(entry.get("function") or entry.get("custom"))
        yield tool_call(function.get("name"), function.get("arguments", function.get("input")), entry.get("id"))
    if data.get("function_call"):
        function = fields(data["function_call"])
        yield tool_call(function.get("name"), function.get("arguments"), None)


def tool_call(name: Any, arguments: Any, call_id: Any) -> Message:
    """A part for a call the model asks for; arguments are parsed where they are JSON."""
    part: Message = {"type": "tool_call", "name": str(name or "")}
    if arguments is not None:
        part["arguments"] = _parsed(arguments)
    return with_id(part, call_id)


def with_id(part: Message, call_id: Any) -> Message:
    if isinstance(call_id, str):
        part["id"] = call_id
    return part


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments, parse_constant=_refuse)
    except (ValueError, RecursionError):  # no JSON, or nested without end
        return arguments


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and Infinity are JSON to Python only


def parts_of(content: Any) -> Iterable[Message]:
    """Parts for the content of a chat message: text, or a list of items."""
    if isinstance(content, str):
        yield {"type": "text", "content": content}
    elif isinstance(content, (list, tuple)):
        for item in content:
            yield _part(item) if not isinstance(item, str) else {"type": "text", "content": item}


def _part(item: object) -> Message:
    data = fields(item)
    kind = str(data.get("type") or "unknown")
    if kind in ("text", "refusal"):
        return {"type": "text", "content": str(data.get("text") or data.get("refusal") or "")}
    if kind == "image_url":
        image = data.get("image_url")
        return uri("image", image if isinstance(image, str) else fields(image).get("url"))
    if kind == "input_audio":
        audio = fields(data.get("input_audio"))
        mime = {"wav": "audio/wav", "mp3": "audio/mpeg"}.get(str(audio.get("format")))
        return blob("audio", mime, audio.get("data"))
    if kind == "file":
        return file_part(fields(data.get("file")))
    return {"type": kind}


def file_part(data: Mapping[str, Any]) -> Message:
    """A part for a file, by id or inline."""
    if isinstance(file_id := data.get("file_id"), str):
        return {"type": "file", "modality": "document", "file_id": file_id}
    return uri("document", data.get("file_data"))


def uri(modality: str, url: Any) -> Message:
    """A part for a reference; a ``data:`` URL becomes the digest of what it holds."""
    if not isinstance(url, str):
        return {"type": "uri", "modality": modality, "uri": ""}
    if url[:5].lower() != "data:":
        return {"type": "uri", "modality": modality, "uri": url}
    head, _, data = url.partition(",")
    return blob(modality, head[5:].partition(";")[0] or None, data)


def blob(modality: str, mime_type: str | None, data: Any) -> Message:
    """A part for inline media: type, size in bytes and, up to a bound, the SHA-256 instead of the data."""
    part: Message = {"type": "blob", "modality": modality, "content": ""}
    if mime_type:
        part["mime_type"] = mime_type
    if isinstance(data, str):
        part["size_bytes"] = len(data) * 3 // 4 - data[-2:].count("=")
        if len(data) <= _HASHED_LIMIT:
            part["sha256"] = _sha256(data)
    return part


def _sha256(data: str) -> str:
    try:
        raw = base64.b64decode(data)
    except (binascii.Error, ValueError):
        raw = data.encode("utf-8", "surrogatepass")
    return hashlib.sha256(raw).hexdigest()


def _tool(tool: Mapping[str, Any]) -> Message:
    kind = str(tool.get("type") or "function")
    function = fields(tool.get("function") or tool.get("custom"))
    result: Message = {"type": kind, "name": str(function.get("name") or kind)}
    if isinstance(description := function.get("description"), str):
        result["description"] = description
    if isinstance(parameters := function.get("parameters"), Mapping):
        result["parameters"] = parameters
    return result


CHAT: Final = ContentReaders(chat_input, chat_output, chat_tools, nothing)
