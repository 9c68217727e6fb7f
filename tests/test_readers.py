"""Reading bodies: what is understood becomes a fact, what is odd is left out, and nothing is ever made up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion

from otel_llm_callback._readers import (
    all_fields,
    chat_context_length,
    chat_request,
    chat_response,
    count,
    fields,
    integer,
    label,
    number,
    read_usage,
    text,
)
from otel_llm_callback.testing import chat_completion
from otel_llm_callback.types import RequestMetadata, Usage

# --- Requests ---------------------------------------------------------------------------------------------------------


def test_every_parameter():
    """Each parameter of the API becomes the field of its meaning."""
    body = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "secret"}],
        "temperature": 1,
        "max_tokens": 5,
        "top_p": 0.5,
        "top_k": 40,
        "frequency_penalty": -1,
        "presence_penalty": 0.25,
        "stop": ["a", "b"],
        "seed": -7,
        "n": 2,
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema"},
        "service_tier": "auto",
        "user": "secret",
        "metadata": {"a": "secret"},
    }
    assert chat_request(body) == {
        "model": "gpt-4o-mini",
        "temperature": 1.0,
        "max_tokens": 5,
        "top_p": 0.5,
        "top_k": 40,
        "frequency_penalty": -1.0,
        "presence_penalty": 0.25,
        "stop_sequences": ("a", "b"),
        "seed": -7,
        "choice_count": 2,
        "reasoning_level": "low",
        "output_type": "json",
        "service_tier": "auto",
    }


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        ({}, {}),
        ({"temperature": None, "stop": None, "response_format": None}, {}),
        ({"temperature": "hot", "top_p": True, "seed": 1.5, "n": "2", "model": 3}, {}),
        ({"max_tokens": -1, "n": -1}, {}),
        ({"max_tokens": 0, "n": 0, "temperature": 0}, {"max_tokens": 0, "choice_count": 0, "temperature": 0.0}),
        ({"max_tokens": 5, "max_completion_tokens": 9}, {"max_tokens": 9}),
        ({"max_completion_tokens": 9, "max_tokens": 5}, {"max_tokens": 9}),
        ({"max_completion_tokens": "odd", "max_tokens": 5}, {"max_tokens": 5}),
        ({"stop": "END"}, {"stop_sequences": ("END",)}),
        ({"stop": []}, {}),
        ({"stop": ["a", 1, None]}, {"stop_sequences": ("a",)}),
        ({"stop": {"a": 1}}, {}),
        ({"model": ""}, {}),
        ({"model": "\ud83d"}, {"model": "?"}),
        ({"response_format": {"type": "text"}}, {"output_type": "text"}),
        ({"response_format": {"type": "grammar"}}, {}),
        ({"response_format": "json"}, {}),
        ({"modalities": ["text", "audio"]}, {"output_type": "speech"}),
        ({"modalities": ["text"]}, {}),
        ({"modalities": "audio"}, {}),
        ({"seed": 2**63}, {}),
        ({"seed": -(2**63)}, {"seed": -(2**63)}),
        ({"temperature": 10**400}, {}),
    ],
    ids=str,
)
def test_rules_of_parameters(body, facts):
    """Null is not given, the wrong type is left out, and nothing raises."""
    assert chat_request(body) == facts


def test_sentinels_of_the_sdk_are_not_given():
    """What the SDK puts where nothing was given is no value."""
    import openai

    nothing = getattr(openai, "omit", openai.NOT_GIVEN)
    assert chat_request(dict.fromkeys(("temperature", "stop", "seed", "n", "model", "response_format"), nothing)) == {}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PARAMETERS = (
    "model",
    "temperature",
    "max_tokens",
    "max_completion_tokens",
    "top_p",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
    "stop",
    "seed",
    "n",
    "reasoning_effort",
    "response_format",
    "modalities",
    "service_tier",
)


@given(body=st.dictionaries(st.sampled_from(PARAMETERS) | st.text(max_size=5), anything, max_size=8))
def test_any_body_is_read(body):
    """Whatever a caller passes, reading gives facts of the right types and no others."""
    kinds = {
        "temperature": float,
        "top_p": float,
        "frequency_penalty": float,
        "presence_penalty": float,
        "max_tokens": int,
        "top_k": int,
        "seed": int,
        "choice_count": int,
        "stop_sequences": tuple,
    }
    facts = chat_request(body)
    assert set(facts) <= set(RequestMetadata.__dataclass_fields__)
    assert all(type(value) is kinds.get(name, str) for name, value in facts.items())


# --- The length of a context ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "length"),
    [
        ([], 0),
        ([{"role": "user", "content": "hello"}], 5),
        ([{"role": "user", "content": "Grüße \N{GRINNING FACE}"}], 12),
        (({"content": "a"}, {"content": "b"}), 2),
        ([{"content": [{"type": "text", "text": "ab"}, {"type": "image_url"}, {"type": "text", "text": "c"}]}], 3),
        ([{"content": None}, {"content": 3}, {}, None, "text"], 0),
        ([{"content": [{"text": 3}, None, "text"]}], 0),
        ([{"content": "\ud83d"}], 3),
    ],
    ids=str,
)
def test_context_length_is_utf8_bytes_of_text(messages, length):
    """Texts and text parts count in bytes; media and what is odd do not."""
    assert chat_context_length({"messages": messages}) == length


@pytest.mark.parametrize("body", [{}, {"messages": None}, {"messages": "hello"}, {"messages": {"a": 1}}], ids=str)
def test_context_without_messages_has_no_length(body):
    """Unknown is not zero."""
    assert chat_context_length(body) is None


def test_generator_of_messages_is_left_to_the_caller():
    """Only lists and tuples are looked through: what can be read once is not ours to read."""
    messages = iter([{"role": "user", "content": "hello"}])
    assert chat_context_length({"messages": messages}) is None
    assert next(messages) == {"role": "user", "content": "hello"}


# --- Responses --------------------------------------------------------------------------------------------------------


def test_response():
    """Facts of the response, and none of its content."""
    body = {**chat_completion("secret", choices=2), "service_tier": "flex", "system_fingerprint": "fp"}
    assert chat_response(ChatCompletion.construct(**body)) == {
        "id": "chatcmpl-1",
        "created": 1_767_225_600,
        "model": "gpt-4o-mini",
        "finish_reasons": ("stop", "stop"),
        "usage": Usage(
            input_tokens=5,
            output_tokens=7,
            total_tokens=12,
            cached_tokens=0,
            reasoning_tokens=0,
            audio_input_tokens=0,
            audio_output_tokens=0,
        ),
        "service_tier": "flex",
        "system_fingerprint": "fp",
    }


NOTHING = {
    "id": None,
    "created": None,
    "model": None,
    "finish_reasons": (),
    "usage": None,
    "service_tier": None,
    "system_fingerprint": None,
}


@pytest.mark.parametrize("parsed", [None, 3, "text", [1, 2], {}, object(), b"bytes"], ids=repr)
def test_what_is_no_response_has_no_facts(parsed):
    """A caller may have asked for any type."""
    assert chat_response(parsed) == NOTHING


def test_response_as_a_mapping():
    """Cast to a plain object, the response reads the same."""
    body = chat_completion("a")
    assert chat_response(body) == chat_response(ChatCompletion.construct(**body))


@given(body=st.dictionaries(st.sampled_from([*NOTHING, "choices", "object"]), anything, max_size=8))
def test_any_response_is_read(body):
    """Whatever a server sends, reading it gives facts of the right types."""
    facts = chat_response(SimpleNamespace(**body))
    assert set(facts) == set(NOTHING)
    for name in ("id", "model", "service_tier", "system_fingerprint"):
        assert facts[name] is None or (isinstance(facts[name], str) and facts[name].encode())
    assert facts["created"] is None or type(facts["created"]) is int
    assert all(type(reason) is str for reason in facts["finish_reasons"])
    assert facts["usage"] is None or isinstance(facts["usage"], Usage)


# --- Usage ------------------------------------------------------------------------------------------------------------

CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 50,
    "total_tokens": 150,
    "prompt_tokens_details": {
        "cached_tokens": 40,
        "cache_write_tokens": 20,
        "text_tokens": 70,
        "image_tokens": 25,
        "audio_tokens": 5,
        "cached_tokens_details": {"text_tokens": 30, "image_tokens": 7, "audio_tokens": 3},
    },
    "completion_tokens_details": {"reasoning_tokens": 30, "text_tokens": 45, "image_tokens": 2, "audio_tokens": 3},
}
EVERYTHING = Usage(
    input_tokens=100,
    output_tokens=50,
    total_tokens=150,
    cached_tokens=40,
    cache_write_tokens=20,
    reasoning_tokens=30,
    text_input_tokens=70,
    text_output_tokens=45,
    image_input_tokens=25,
    image_output_tokens=2,
    audio_input_tokens=5,
    audio_output_tokens=3,
    cached_audio_tokens=3,
    cached_image_tokens=7,
)


def in_words_of_responses(usage):
    """The same usage as the Responses API spells it."""
    words = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
    return {
        words.get(name.removesuffix("_details"), name.removesuffix("_details"))
        + ("_details" if name.endswith("_details") else ""): value
        for name, value in usage.items()
    }


@pytest.mark.parametrize(
    "usage",
    [
        CHAT_USAGE,
        in_words_of_responses(CHAT_USAGE),
        CompletionUsage.construct(**CHAT_USAGE),
        CompletionUsage.construct(**in_words_of_responses(CHAT_USAGE)),
        SimpleNamespace(**CHAT_USAGE),
    ],
    ids=["chat", "responses", "SDK object", "SDK object in other words", "any object"],
)
def test_usage_in_every_spelling(usage):
    """Every count of both APIs, also those that the installed SDK does not know."""
    assert read_usage(usage) == EVERYTHING


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, None),
        ({}, None),
        ({"prompt_tokens": None, "completion_tokens": None}, None),
        ({"prompt_tokens": "5"}, None),
        ({"prompt_tokens": -1}, None),
        ({"prompt_tokens": 2**63}, None),
        ({"prompt_tokens_details": {"cached_tokens": 1}}, None),
        ({"prompt_tokens": 5}, Usage(input_tokens=5)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage(input_tokens=0, output_tokens=0)),
        ({"total_tokens": 12}, Usage(total_tokens=12)),
        ({"prompt_tokens": 5, "prompt_tokens_details": None}, Usage(input_tokens=5)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {}}, Usage(input_tokens=5)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": None}}, Usage(input_tokens=5)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0}}, Usage(input_tokens=5, cached_tokens=0)),
        ({"prompt_tokens": 5, "completion_tokens_details": 3}, Usage(input_tokens=5)),
    ],
    ids=str,
)
def test_usage_is_as_reported(usage, expected):
    """Silence is None and never zero, and a zero that was reported is a zero."""
    assert read_usage(usage) == expected


@given(usage=anything)
def test_any_usage_is_read(usage):
    """No usage object raises."""
    assert isinstance(read_usage(usage), Usage | None)


# --- Narrowing --------------------------------------------------------------------------------------------------------

BIG = 2**63


@pytest.mark.parametrize(
    ("narrow", "cases"),
    [
        (text, {"a": "a", "": None, 1: None, None: None, b"a": None}),
        (label, {"a": "a", "": None, "ü\N{GRINNING FACE}": "ü\N{GRINNING FACE}", "a\ud83d": "a?", 1: None, None: None}),
        (number, {1: 1.0, 0.5: 0.5, "1": None, None: None, BIG: None}),
        (integer, {1: 1, -1: -1, 1.5: None, "1": None, BIG: None, BIG - 1: BIG - 1, -BIG: -BIG, -BIG - 1: None}),
        (count, {0: 0, 1: 1, -1: None, 1.5: None, BIG: None, BIG - 1: BIG - 1}),
    ],
    ids=["text", "label", "number", "integer", "count"],
)
def test_narrowing(narrow, cases):
    """A value of the right type is itself, any other is None; numbers fit what an export can carry."""
    found = {value: narrow(value) for value in cases}
    assert found == cases
    assert {value: type(known) for value, known in found.items()} == {
        value: type(known) for value, known in cases.items()
    }


@pytest.mark.parametrize("narrow", [number, integer, count])
def test_truth_is_no_number(narrow):
    """Python counts True as one; here it is a mistake."""
    assert (narrow(True), narrow(False)) == (None, None)


def test_fields_of_anything():
    """Objects and mappings have fields, other values none; a mapping is not copied."""
    mapping = {"a": 1}
    assert fields(mapping) is mapping
    assert (fields(SimpleNamespace(a=1)), fields(3), fields(None), fields("a")) == ({"a": 1}, {}, {}, {})


def test_fields_the_sdk_does_not_know():
    """Pydantic keeps them elsewhere."""
    usage = CompletionUsage.construct(prompt_tokens=1, own=2)
    assert ("own" in fields(usage), all_fields(usage)["own"], all_fields(usage)["prompt_tokens"]) == (False, 2, 1)
    assert (all_fields({"a": 1}), all_fields(None)) == ({"a": 1}, {})
