"""Read the Responses API: requests, responses, its event streams and its content.

Source: GenAI conventions sheet, sections 2.2 to 2.4 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from ._messages import file_part, parts_of, tool_call, uri, with_id
from ._readers import (
    RequestFacts,
    ResponseFacts,
    all_fields,
    count,
    fields,
    integer,
    label,
    number,
    output_type,
    read_request,
    read_usage,
    text,
    utf8_length,
)
from .content import ContentReaders, Message
from .types import ChunkKind

_PENDING: Final = frozenset(("queued", "in_progress"))
_TOOL_CALLS: Final = ("function_call", "custom_tool_call")
_MAX_ITEMS: Final = 1024


def _conversation(value: object) -> str | None:
    return label(value) or label(fields(value).get("id"))


def _effort(value: object) -> str | None:
    return label(fields(value).get("effort"))


def _format(value: object) -> str | None:
    return output_type(fields(value).get("format"))


def _true(value: object) -> bool | None:
    return True if value is True else None


_REQUEST: Final[Mapping[str, tuple[str, Callable[[object], object]]]] = {
    "model": ("model", label),
    "temperature": ("temperature", number),
    "max_output_tokens": ("max_tokens", count),
    "top_p": ("top_p", number),
    "reasoning": ("reasoning_level", _effort),
    "text": ("output_type", _format),
    "service_tier": ("service_tier", label),
    "conversation": ("conversation_id", _conversation),
    "previous_response_id": ("previous_response_id", label),
    "background": ("background", _true),
}


def responses_request(body: Mapping[str, object]) -> RequestFacts:
    """Read the body of ``responses.create`` and its relatives."""
    facts = read_request(body, _REQUEST)
    prompt = fields(body.get("prompt"))
    if name := label(prompt.get("id")):
        facts["prompt_name"] = name
        if version := label(prompt.get("version")):
            facts["prompt_version"] = version
    return facts


def fetch_request(body: Mapping[str, object]) -> RequestFacts:
    """Read the path and query of ``responses.retrieve`` and ``cancel``."""
    facts: RequestFacts = {}
    if response_id := label(body.get("response_id")):
        facts["response_id"] = response_id
    cursor = body.get("starting_after")
    if isinstance(cursor, (int, str)) and not isinstance(cursor, bool):
        facts["stream_cursor"] = label(str(cursor)) or ""
    return facts


def responses_context_length(body: Mapping[str, object]) -> int | None:
    """UTF-8 bytes of text in the input and instructions."""
    given = body.get("input")
    total = _text_bytes(given)
    if total is None:
        return None
    return total + (utf8_length(instructions) if isinstance(instructions := body.get("instructions"), str) else 0)


def _text_bytes(given: object) -> int | None:
    if isinstance(given, str):
        return utf8_length(given)
    if not isinstance(given, (list, tuple)):
        return None
    total = 0
    for item in given:
        data = fields(item)
        for value in (data.get("content"), data.get("output"), data.get("text")):
            total += _text_bytes(value) or 0
    return total


def responses_response(parsed: object) -> ResponseFacts:
    """Read a response; what failed on the server says so although the request succeeded."""
    data = all_fields(parsed)
    status = label(data.get("status"))
    error = fields(data.get("error"))
    facts: ResponseFacts = {
        "id": label(data.get("id")),
        "created": _seconds(data.get("created_at")),
        "model": label(data.get("model")),
        "finish_reasons": _finish_reasons(status, data),
        "usage": read_usage(data.get("usage")),
        "service_tier": label(data.get("service_tier")),
        "status": status,
    }
    if status == "failed":
        facts["failure"] = label(error.get("code")) or "failed"
    return facts


def token_count_response(_: object) -> ResponseFacts:
    """Read the answer of ``responses.input_tokens.count``: a number asked for, not tokens used."""
    return {}


def _seconds(value: object) -> int | None:
    return integer(int(value) if isinstance(value, float) and math.isfinite(value) else value)


def _finish_reasons(status: str | None, data: Mapping[str, Any]) -> tuple[str, ...]:
    if status is None or status in _PENDING:
        return ()
    if status == "completed":
        output = data.get("output")
        items = output if isinstance(output, list) else []
        called = any(fields(item).get("type") in _TOOL_CALLS for item in items)
        return ("tool_calls",) if called else ("stop",)
    if status == "incomplete":
        reason = label(fields(data.get("incomplete_details")).get("reason"))
        return ("length" if reason == "max_output_tokens" else reason or "incomplete",)
    return ("error",)


class ResponsesFold:
    """Events of the Responses API: the last response object wins, items and texts are kept only for content."""

    __slots__ = ("_called", "_error", "_items", "_response", "_terminal", "_texts", "saw_output")

    def __init__(self, *, keep_content: bool) -> None:
        self.saw_output = False
        self._response: Any = None
        self._terminal = False
        self._called = False
        self._error: Mapping[str, Any] | None = None
        self._items: list[Any] | None = [] if keep_content else None
        self._texts: list[str] = []

    def add(self, event: Any) -> None:
        """Take in an event."""
        data = event.__dict__
        kind = data["type"]
        if kind in _DELTAS:
            self.saw_output = True
            if self._items is not None and kind == "response.output_text.delta":
                self._texts.append(data["delta"])
        elif kind in _WITH_RESPONSE:
            self._response = data["response"]
            self._terminal = kind in _TERMINAL
        elif kind == "response.output_item.done":
            self._called = self._called or fields(data["item"]).get("type") in _TOOL_CALLS
            if self._items is not None and len(self._items) < _MAX_ITEMS:
                self._items.append(data["item"])
                self._texts.clear()
        elif kind == "error":
            self._error = data

    def facts(self, *, due: bool) -> ResponseFacts:
        """Return what the events said so far."""
        facts: ResponseFacts = responses_response(self._response) if self._response is not None else {}
        if not self._terminal:
            facts["finish_reasons"] = ("error",) if due else ()
            facts["usage"] = None
        elif self._called and facts.get("finish_reasons") == ("stop",):
            facts["finish_reasons"] = ("tool_calls",)  # some servers leave the items out of the last event
        facts["truncated"] = not self._terminal
        if self._error is not None:
            facts["failure"] = label(self._error.get("code")) or "error"
        return facts

    def body(self) -> object:
        """Return the final response, or what had arrived of it."""
        if self._items is None:
            return None
        head = all_fields(self._response)
        if self._terminal and (head.get("output") or not self._items):
            return self._response
        output = list(self._items)
        if self._texts:
            content = [{"type": "output_text", "text": "".join(self._texts)}]
            output.append({"type": "message", "role": "assistant", "status": "incomplete", "content": content})
        if self._terminal:
            return {**head, "output": output}
        return {
            "id": head.get("id"),
            "object": "response",
            "model": head.get("model"),
            "status": "incomplete",
            "output": output,
        }


_TERMINAL: Final = frozenset(("response.completed", "response.incomplete", "response.failed"))
_WITH_RESPONSE: Final = _TERMINAL | {"response.created", "response.in_progress", "response.queued"}

_DELTAS: Final[Mapping[str, ChunkKind]] = {
    "response.output_text.delta": "text",
    "response.reasoning_text.delta": "reasoning",
    "response.reasoning_summary_text.delta": "reasoning",
    "response.refusal.delta": "refusal",
    "response.function_call_arguments.delta": "tool_call",
    "response.custom_tool_call_input.delta": "tool_call",
    "response.mcp_call_arguments.delta": "tool_call",
    "response.code_interpreter_call_code.delta": "tool_call",
    "response.shell_call_command.delta": "tool_call",
    "response.audio.transcript.delta": "audio",
    "response.audio.delta": "audio",
}


def responses_chunk_text(event: Any) -> tuple[str, ChunkKind]:
    """Return the text of an event and what it is; audio data is not text."""
    data = fields(event)
    name = data.get("type")
    kind = _DELTAS.get(name) if isinstance(name, str) else None
    if kind is None:
        return "", "event"
    return ("" if name == "response.audio.delta" else text(data.get("delta")) or ""), kind


def responses_input(body: Mapping[str, Any]) -> list[Message]:
    """Messages of the request: a text is one user message, items are one message each."""
    given = body.get("input")
    if isinstance(given, str):
        return [{"role": "user", "parts": [{"type": "text", "content": given}]}]
    return [_input_item(all_fields(item)) for item in given] if isinstance(given, (list, tuple)) else []


def responses_output(parsed: object) -> list[Message]:
    """The one message of the response, with all its items as parts."""
    data = all_fields(parsed)
    output = data.get("output")
    if not isinstance(output, list) or not output:
        return []
    parts = [part for item in output for part in _item_parts(all_fields(item))]
    message: Message = {"role": "assistant", "parts": parts}
    if reasons := _finish_reasons(text(data.get("status")), data):
        message["finish_reason"] = "tool_call" if reasons[0] == "tool_calls" else reasons[0]
    return [message]


def responses_instructions(body: Mapping[str, Any]) -> list[Message]:
    """The instructions, given outside the input."""
    instructions = body.get("instructions")
    return [{"type": "text", "content": instructions}] if isinstance(instructions, str) else []


def responses_tools(body: Mapping[str, Any]) -> list[Message]:
    """Tool definitions; a built-in tool has no name, so its type stands in."""
    tools = body.get("tools")
    return [_tool(fields(tool)) for tool in tools] if isinstance(tools, (list, tuple)) else []


def _tool(tool: Mapping[str, Any]) -> Message:
    kind = str(tool.get("type") or "function")
    result: Message = {"type": kind, "name": str(tool.get("name") or tool.get("server_label") or kind)}
    if isinstance(description := tool.get("description"), str):
        result["description"] = description
    if isinstance(parameters := tool.get("parameters"), Mapping):
        result["parameters"] = parameters
    return result


_OUTPUT_ROLES: Final = frozenset(("function_call_output", "custom_tool_call_output", "computer_call_output"))


def _input_item(item: Mapping[str, Any]) -> Message:
    kind = item.get("type") or "message"
    role = "tool" if kind in _OUTPUT_ROLES else "user"
    if kind != "message" and kind not in _OUTPUT_ROLES:
        role = "assistant"
    return {"role": str(item.get("role") or role), "parts": list(_item_parts(item))}


def _item_parts(item: Mapping[str, Any]) -> Iterable[Message]:
    kind = str(item.get("type") or "message")
    if kind == "message":
        yield from _content_parts(item.get("content"))
    elif kind in ("function_call", "custom_tool_call"):
        yield tool_call(item.get("name"), item.get("arguments", item.get("input")), item.get("call_id"))
    elif kind in _OUTPUT_ROLES:
        output = item.get("output")
        given = [output] if isinstance(output, Mapping) else output
        response = given if isinstance(given, str) else list(_content_parts(given))
        yield with_id({"type": "tool_call_response", "response": response}, item.get("call_id"))
    elif kind == "reasoning":
        yield from _thoughts(item.get("summary"))
        yield from _thoughts(item.get("content"))
    elif kind == "compaction":
        yield with_id({"type": "compaction"}, item.get("id"))
    elif kind.endswith("_call"):
        yield with_id(
            {"type": "server_tool_call", "name": kind[:-5], "server_tool_call": _server_call(kind, item)},
            item.get("id"),
        )
    elif kind.endswith("_call_output"):
        yield with_id(
            {"type": "server_tool_call_response", "server_tool_call_response": {"type": kind}}, item.get("id")
        )
    else:
        yield with_id({"type": kind}, item.get("id"))


def _thoughts(pieces: Any) -> Iterable[Message]:
    for piece in pieces if isinstance(pieces, (list, tuple)) else ():
        if isinstance(said := fields(piece).get("text"), str):
            yield {"type": "reasoning", "content": said}


def _server_call(kind: str, item: Mapping[str, Any]) -> dict[str, Any]:
    call: dict[str, Any] = {"type": kind}
    for name in ("status", "name", "server_label", "arguments", "code", "queries"):
        if (value := item.get(name)) is not None and isinstance(value, (str, list)):
            call[name] = value
    if query := text(fields(item.get("action")).get("query")):
        call["query"] = query
    return call


def _content_parts(content: Any) -> Iterable[Message]:
    if isinstance(content, (list, tuple)):
        for item in content:
            yield _content_part(all_fields(item)) if not isinstance(item, str) else {"type": "text", "content": item}
    else:
        yield from parts_of(content)


def _content_part(data: Mapping[str, Any]) -> Message:
    kind = str(data.get("type") or "unknown")
    if kind in ("input_text", "output_text", "text", "refusal", "summary_text"):
        return {"type": "text", "content": str(data.get("text") or data.get("refusal") or "")}
    if kind == "reasoning_text":
        return {"type": "reasoning", "content": str(data.get("text") or "")}
    if kind in ("input_image", "computer_screenshot"):
        if isinstance(file_id := data.get("file_id"), str):
            return {"type": "file", "modality": "image", "file_id": file_id}
        return uri("image", data.get("image_url"))
    if kind == "input_file":
        return (
            file_part(data) if data.get("file_id") or data.get("file_data") else uri("document", data.get("file_url"))
        )
    return {"type": kind}


RESPONSES: Final = ContentReaders(responses_input, responses_output, responses_tools, responses_instructions)
