"""Content in the shape of the conventions: every kind of message, part and tool, as whole values."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from otel_llm_callback._messages import (
    CHAT,
    blob,
    chat_input,
    chat_output,
    chat_tools,
    nothing,
    tool_call,
    uri,
)
from otel_llm_callback.testing import chat_completion

PIXEL = b"\x89PNG"
PIXEL_TEXT = base64.b64encode(PIXEL).decode()
DIGEST = {"content": "", "size_bytes": 4, "sha256": hashlib.sha256(PIXEL).hexdigest()}


def text(content):
    return {"type": "text", "content": content}


# --- Requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": "hi"}, {"role": "user", "parts": [text("hi")]}),
        ({"role": "system", "content": "be terse"}, {"role": "system", "parts": [text("be terse")]}),
        ({"role": "developer", "content": "be kind"}, {"role": "developer", "parts": [text("be kind")]}),
        (
            {"role": "user", "name": "ada", "content": "hi"},
            {"role": "user", "parts": [text("hi")], "name": "ada"},
        ),
        ({"role": "user", "content": ""}, {"role": "user", "parts": [text("")]}),
        ({"role": "assistant", "content": None}, {"role": "assistant", "parts": []}),
        ({"role": "assistant"}, {"role": "assistant", "parts": []}),
        ({"content": "hi"}, {"role": "user", "parts": [text("hi")]}),
        ({"role": "assistant", "refusal": "no"}, {"role": "assistant", "parts": [text("no")]}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, "b"]},
            {"role": "user", "parts": [text("a"), text("b")]},
        ),
        (
            {"role": "tool", "tool_call_id": "c1", "content": "rainy"},
            {"role": "tool", "parts": [{"type": "tool_call_response", "response": "rainy", "id": "c1"}]},
        ),
        (
            {"role": "tool", "content": None},
            {"role": "tool", "parts": [{"type": "tool_call_response", "response": None}]},
        ),
        (
            {"role": "function", "name": "f", "content": "1"},
            {"role": "function", "parts": [text("1")], "name": "f"},
        ),
        (None, {"role": "user", "parts": []}),
        (3, {"role": "user", "parts": []}),
    ],
    ids=str,
)
def test_message(message, expected):
    """One message in, one message out, with the role the caller gave it."""
    assert chat_input({"messages": [message]}) == [expected]


def test_tool_result_in_parts():
    """The parts of a tool's result are read like any others."""
    message = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "a"}]}
    part = {"type": "tool_call_response", "id": "c1", "response": [text("a")]}
    assert chat_input({"messages": [message]}) == [{"role": "tool", "parts": [part]}]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "text", "text": "hi"}, text("hi")),
        ({"type": "refusal", "refusal": "no"}, text("no")),
        (
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
            {"type": "uri", "modality": "image", "uri": "https://example.com/a.png"},
        ),
        (
            {"type": "image_url", "image_url": "https://example.com/a.png"},
            {"type": "uri", "modality": "image", "uri": "https://example.com/a.png"},
        ),
        (
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL_TEXT}"}},
            {"type": "blob", "modality": "image", "mime_type": "image/png", **DIGEST},
        ),
        (
            {"type": "input_audio", "input_audio": {"data": PIXEL_TEXT, "format": "wav"}},
            {"type": "blob", "modality": "audio", "mime_type": "audio/wav", **DIGEST},
        ),
        (
            {"type": "input_audio", "input_audio": {"data": PIXEL_TEXT, "format": "mp3"}},
            {"type": "blob", "modality": "audio", "mime_type": "audio/mpeg", **DIGEST},
        ),
        (
            {"type": "input_audio", "input_audio": {"data": PIXEL_TEXT, "format": "opus"}},
            {"type": "blob", "modality": "audio", **DIGEST},
        ),
        (
            {"type": "file", "file": {"file_id": "file-1"}},
            {"type": "file", "modality": "document", "file_id": "file-1"},
        ),
        (
            {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PIXEL_TEXT}"}},
            {"type": "blob", "modality": "document", "mime_type": "application/pdf", **DIGEST},
        ),
        ({"type": "hologram", "hologram": "secret"}, {"type": "hologram"}),
        ({"type": "image_url"}, {"type": "uri", "modality": "image", "uri": ""}),
        ({"type": "input_audio"}, {"type": "blob", "modality": "audio", "content": ""}),
        ({}, {"type": "unknown"}),
        (None, {"type": "unknown"}),
    ],
    ids=str,
)
def test_part(part, expected):
    """Each kind of part has its shape; media are digests, and what is not known is named and not shown."""
    assert chat_input({"messages": [{"role": "user", "content": [part]}]}) == [{"role": "user", "parts": [expected]}]


@pytest.mark.parametrize("messages", [None, "hi", {"a": 1}, iter([]), 3])
def test_what_is_no_list_of_messages_is_left_alone(messages):
    """What can be read only once is the caller's to read."""
    assert chat_input({"messages": messages}) == []


def test_history_with_a_tool_round_trip():
    """The example of the conventions."""
    messages = [
        {"role": "user", "content": "Weather in Paris?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rainy, 14 C"},
    ]
    call = {"type": "tool_call", "id": "call_1", "name": "get_weather", "arguments": {"city": "Paris"}}
    assert chat_input({"messages": messages}) == [
        {"role": "user", "parts": [text("Weather in Paris?")]},
        {"role": "assistant", "parts": [call]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1", "response": "rainy, 14 C"}]},
    ]


# --- Tool calls -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"city": "Oslo"}', {"city": "Oslo"}),
        ("[1]", [1]),
        ('"text"', "text"),
        ("", ""),
        ('{"city": ', '{"city": '),
        ("plain", "plain"),
        ('{"a": NaN}', '{"a": NaN}'),
        ("[-Infinity]", "[-Infinity]"),
        ("[" * 100_000, "[" * 100_000),
        ("9" * 5000, "9" * 5000),
        ({"city": "Oslo"}, {"city": "Oslo"}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_arguments_are_parsed_where_they_are_json(arguments, expected):
    """JSON as everybody understands it; anything else stays the text it was."""
    assert tool_call("f", arguments, "c1") == {"type": "tool_call", "name": "f", "arguments": expected, "id": "c1"}


def test_call_without_arguments_or_id():
    """What is not there is not made up; only the name is required."""
    assert tool_call(None, None, None) == {"type": "tool_call", "name": ""}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "run", "input": "1 + 1"}}]},
            {"type": "tool_call", "name": "run", "arguments": "1 + 1", "id": "c"},
        ),
        ({"tool_calls": [{}]}, {"type": "tool_call", "name": ""}),
        ({"function_call": {"name": "f", "arguments": "{}"}}, {"type": "tool_call", "name": "f", "arguments": {}}),
    ],
    ids=["custom", "empty", "legacy"],
)
def test_kinds_of_calls(fields, expected):
    """Custom tools and the predecessor of tool calls have the same shape."""
    assert chat_input({"messages": [{"role": "assistant", **fields}]}) == [{"role": "assistant", "parts": [expected]}]


# --- Responses --------------------------------------------------------------------------------------------------------


def answer(**message):
    body = chat_completion(None)
    body["choices"][0]["message"] = {"role": "assistant", **message}
    return body


EVERYTHING = answer(
    content="It rains.",
    refusal="no",
    reasoning_content="hm",
    audio={"id": "a", "data": PIXEL_TEXT, "expires_at": 1, "transcript": "It rains."},
    tool_calls=[{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
)


@pytest.mark.parametrize("make", [dict, lambda body: ChatCompletion.construct(**body)], ids=["mapping", "SDK object"])
def test_choice_with_everything(make):
    """What the model thought, said, refused, spoke and called, in that order, in one message."""
    assert chat_output(make(EVERYTHING)) == [
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "hm"},
                text("It rains."),
                text("no"),
                {"type": "blob", "modality": "audio", **DIGEST},
                text("It rains."),
                {"type": "tool_call", "id": "c1", "name": "f", "arguments": {}},
            ],
            "finish_reason": "stop",
        }
    ]


def test_reasoning_under_either_name_counts_once():
    """Servers disagree about the name, and some send both."""
    for fields in ({"reasoning": "hm"}, {"reasoning_content": "hm"}, {"reasoning": "hm", "reasoning_content": "hm"}):
        (message,) = chat_output(ChatCompletion.construct(**answer(content=None, **fields)))
        assert message["parts"] == [{"type": "reasoning", "content": "hm"}]


@pytest.mark.parametrize(
    ("reason", "normalised"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("tool_calls", "tool_call"),
        ("function_call", "tool_call"),
        ("own", "own"),
    ],
)
def test_finish_reason_is_that_of_the_conventions(reason, normalised):
    """Two words of the API have one of the conventions; others stay."""
    expected = {"role": "assistant", "parts": [text("a")], "finish_reason": normalised}
    assert chat_output(chat_completion("a", finish_reason=reason)) == [expected]


def test_choice_without_a_finish_reason():
    """What never came is absent."""
    assert chat_output(chat_completion("a", finish_reason=None)) == [{"role": "assistant", "parts": [text("a")]}]


def test_one_message_per_choice():
    """Never split, never mixed."""
    messages = chat_output(chat_completion("a", choices=3))
    assert messages == [{"role": "assistant", "parts": [text("a")], "finish_reason": "stop"}] * 3


@pytest.mark.parametrize("parsed", [None, 3, "text", {}, {"choices": None}, {"choices": "a"}, object()], ids=repr)
def test_what_is_no_response_has_no_messages(parsed):
    """Nothing is made up."""
    assert chat_output(parsed) == []


def test_odd_choices_are_empty_messages():
    """Each keeps its place."""
    assert chat_output({"choices": [None, {}, {"message": 3}]}) == [{"role": "assistant", "parts": []}] * 3


# --- Tools ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "expected"),
    [
        (
            {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}},
            {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}},
        ),
        ({"type": "function", "function": {"name": "f", "strict": True}}, {"type": "function", "name": "f"}),
        ({"type": "custom", "custom": {"name": "run"}}, {"type": "custom", "name": "run"}),
        ({"type": "web_search"}, {"type": "web_search", "name": "web_search"}),
        ({}, {"type": "function", "name": "function"}),
        (None, {"type": "function", "name": "function"}),
    ],
    ids=str,
)
def test_tool_definition(tool, expected):
    """Type and name always, description and parameters where there are any."""
    assert chat_tools({"tools": [tool]}) == [expected]


@pytest.mark.parametrize("tools", [None, "f", 3])
def test_what_is_no_list_of_tools(tools):
    """Nothing is made up."""
    assert chat_tools({"tools": tools}) == []


# --- Media ------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_digest_of_media(raw):
    """Size and hash are those of the bytes, not of their text."""
    part = blob("image", "image/png", base64.b64encode(raw).decode())
    assert part == {
        "type": "blob",
        "modality": "image",
        "content": "",
        "mime_type": "image/png",
        "size_bytes": len(raw),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }


def test_large_media_are_not_hashed():
    """Above a million characters the size is all there is, so that the cost is bounded."""
    assert "sha256" in blob("image", None, "A" * 1_048_576)
    assert blob("image", None, "A" * 1_048_580) == {
        "type": "blob",
        "modality": "image",
        "content": "",
        "size_bytes": 786_435,
    }


@pytest.mark.parametrize("data", ["A", "\ud83d", "ümlaut", "not base64!"])
def test_media_that_are_no_base64_are_hashed_as_text(data):
    """Odd data still has a digest, and never shows."""
    part = blob("image", None, data)
    assert len(part["sha256"]) == 64
    assert data not in json.dumps({**part, "sha256": ""})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.com/a.png", {"type": "uri", "modality": "image", "uri": "https://example.com/a.png"}),
        ("gs://bucket/a.png", {"type": "uri", "modality": "image", "uri": "gs://bucket/a.png"}),
        (
            f"data:image/png;base64,{PIXEL_TEXT}",
            {"type": "blob", "modality": "image", "mime_type": "image/png", **DIGEST},
        ),
        (f"data:;base64,{PIXEL_TEXT}", {"type": "blob", "modality": "image", **DIGEST}),
        (None, {"type": "uri", "modality": "image", "uri": ""}),
        (3, {"type": "uri", "modality": "image", "uri": ""}),
    ],
    ids=str,
)
def test_uri(url, expected):
    """A reference stays one; inline data becomes a digest."""
    assert uri("image", url) == expected


def test_upper_case_data_url_is_inline_too():
    """The scheme of a URL has no case."""
    assert uri("image", f"DATA:image/png;base64,{PIXEL_TEXT}")["type"] == "blob"
    assert (CHAT.system_instructions is nothing, nothing({"instructions": "secret"})) == (True, [])
