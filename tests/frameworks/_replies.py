"""What the API answers the frameworks: another text, id and usage each time, and a tool call where tools are given."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from otel_llm_callback.testing import (
    JsonReply,
    ReceivedRequest,
    Reply,
    StreamReply,
    chat_chunk,
    chat_chunks,
    chat_completion,
    error_body,
)

CREATED = 1_767_225_600

UNKNOWN_MODEL = "no-such-model"
"""Asked for by the programs' step ``refused``."""


@dataclass(frozen=True)
class Replied:
    """What there is to know of a call, seen from the API.

    Attributes:
        api: The path, without slashes at its ends.
        model: As asked for.
        stream: Whether the answer was streamed.
        response_id: Of the answer, None if it was refused.
        usage: Input and output tokens as told to the client; None if it did not ask for them.
        text: What was said; None for a tool call.
        tool: Which tool was called.
        refused: Whether there was no answer but status 404.
    """

    api: str
    model: str
    stream: bool
    response_id: str | None
    usage: tuple[int, int] | None
    text: str | None
    tool: str | None
    refused: bool = False


class Replies:
    """The script of one run of a program; ``given`` is what was answered, in order."""

    def __init__(self) -> None:
        self.given: list[Replied] = []

    def __call__(self, request: ReceivedRequest) -> Reply:
        answer = {"/chat/completions": self._chat, "/responses": self._responses}.get(request.path)
        if answer is None:
            return JsonReply(error_body(f"nobody asks for {request.path}"), status=404)
        if request.json["model"] == UNKNOWN_MODEL:
            self._refuse(request)
            return JsonReply(
                error_body(f"The model `{UNKNOWN_MODEL}` does not exist", code="model_not_found"), status=404
            )
        return answer(request.json)

    def _chat(self, asked: Mapping[str, Any]) -> Reply:
        tool = None if any(message["role"] == "tool" for message in asked["messages"]) else _tool(asked)
        options = asked.get("stream_options") or {}
        told = self._note(
            "chat/completions", asked, tool, usage=not asked.get("stream") or options.get("include_usage")
        )
        facts = {"model": told.model, "usage": told.usage, "response_id": told.response_id}
        if tool is not None:
            call = {"id": f"call_{len(self.given)}", "type": "function", "function": tool}
            if not told.stream:
                return JsonReply(chat_completion(None, tool_calls=[call], finish_reason="tool_calls", **facts))
            delta = {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **call}]}
            first = chat_chunk(delta, model=told.model, response_id=told.response_id)
            _, *rest = chat_chunks("", finish_reason="tool_calls", **facts)
            return StreamReply([first, *rest])
        text = told.text or ""
        return StreamReply(chat_chunks(text, **facts)) if told.stream else JsonReply(chat_completion(text, **facts))

    def _responses(self, asked: Mapping[str, Any]) -> Reply:
        given = asked["input"] if isinstance(asked["input"], list) else []
        answered = any(item.get("type") == "function_call_output" for item in given)
        tool = None if answered else _tool(asked)
        told = self._note("responses", asked, tool, usage=True)
        item = _message(told) if tool is None else _call(told, tool)
        body = _response(told, asked, [item])
        if not told.stream:
            return JsonReply(body)
        return StreamReply(list(_events(body, item, told)), named=True, done=False)

    def _refuse(self, request: ReceivedRequest) -> None:
        refused = Replied(
            api=request.path.strip("/"),
            model=UNKNOWN_MODEL,
            stream=False,
            response_id=None,
            usage=None,
            text=None,
            tool=None,
            refused=True,
        )
        self.given.append(refused)

    def _note(self, api: str, asked: Mapping[str, Any], tool: Mapping[str, str] | None, *, usage: Any) -> Replied:
        number = len(self.given) + 1
        told = Replied(
            api=api,
            model=asked["model"],
            stream=bool(asked.get("stream")),
            response_id=f"resp_{number:04}",
            usage=(100 + number, 200 + number) if usage else None,
            text=_text(asked, number) if tool is None else None,
            tool=None if tool is None else tool["name"],
        )
        self.given.append(told)
        return told


def _text(asked: Mapping[str, Any], number: int) -> str:
    """Return a sentence, in the form that DSPy asks for where it is DSPy that asks."""
    answer = f"This is answer {number}."
    asked_last = str((asked.get("messages") or [{}])[-1].get("content"))
    fields = re.findall(r"`\[\[ ## (\w+) ## \]\]`", asked_last)
    return "\n\n".join(f"[[ ## {field} ## ]]\n{answer}" for field in fields) or answer


def _tool(asked: Mapping[str, Any]) -> dict[str, str] | None:
    """Return a call of the first tool on offer, with arguments made up by its schema."""
    if not asked.get("tools"):
        return None
    tool = asked["tools"][0]
    function = tool.get("function", tool)
    made_up = {"string": "Paris", "integer": 21, "number": 2.5, "boolean": True, "array": []}
    properties = function["parameters"].get("properties", {})
    arguments = {name: made_up.get(schema.get("type"), "Paris") for name, schema in properties.items()}
    return {"name": function["name"], "arguments": json.dumps(arguments)}


def _response(told: Replied, asked: Mapping[str, Any], output: list[dict[str, Any]]) -> dict[str, Any]:
    prompt, completion = told.usage or (0, 0)
    return {
        "id": told.response_id,
        "object": "response",
        "created_at": CREATED,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": told.model,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": asked.get("tools") or [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        },
    }


def _message(told: Replied) -> dict[str, Any]:
    content = [{"type": "output_text", "text": told.text, "annotations": [], "logprobs": []}]
    return {
        "id": f"msg_{told.response_id}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": content,
    }


def _call(told: Replied, tool: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": f"fc_{told.response_id}",
        "type": "function_call",
        "call_id": f"call_{told.response_id}",
        "status": "completed",
        **tool,
    }


def _events(body: dict[str, Any], item: dict[str, Any], told: Replied) -> list[dict[str, Any]]:
    """Return the events of a streamed response, as many kinds of them as a framework needs to follow it."""
    place = {"item_id": item["id"], "output_index": 0}
    begun = {**body, "status": "in_progress", "output": [], "usage": None}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    if told.text is None:
        arguments = item["arguments"]
        events += [
            {"type": "response.output_item.added", "output_index": 0, "item": {**item, "arguments": ""}},
            {"type": "response.function_call_arguments.delta", **place, "delta": arguments},
            {"type": "response.function_call_arguments.done", **place, "name": item["name"], "arguments": arguments},
        ]
    else:
        (part,) = item["content"]
        place["content_index"] = 0
        said = [
            {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
            for piece in re.findall(r"\S+\s*", told.text)
        ]
        events += [
            {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
            {"type": "response.content_part.added", **place, "part": {**part, "text": ""}},
            *said,
            {"type": "response.output_text.done", **place, "text": told.text, "logprobs": []},
            {"type": "response.content_part.done", **place, "part": part},
        ]
    events += [
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": body},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]
