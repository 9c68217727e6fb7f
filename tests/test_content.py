"""The gate: what is shown is redacted, no longer than allowed, and still JSON."""

from __future__ import annotations

import datetime as dt
import json
import sys
from dataclasses import FrozenInstanceError
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from otel_llm_callback import _faults
from otel_llm_callback._messages import CHAT
from otel_llm_callback.content import (
    REDACTED,
    REDACTION_FAILED,
    Gate,
    Payload,
    fit,
    json_text,
    redact,
    redact_json,
    restrict,
)
from otel_llm_callback.testing import chat_completion


def user(content, **more):
    return {"role": "user", "parts": [{"type": "text", "content": content}], **more}


def omitted(count):
    return {"role": "system", "parts": [{"type": "omitted", "count": count}]}


# --- Fitting ----------------------------------------------------------------------------------------------------------


def test_what_fits_is_left_alone():
    """Compact, with the characters as they are, up to the very limit."""
    messages = [user("Grüße \N{GRINNING FACE}")]
    text = '[{"role":"user","parts":[{"type":"text","content":"Grüße \N{GRINNING FACE}"}]}]'
    assert fit(messages, len(text)) == text
    assert len(fit(messages, len(text) - 1)) < len(text)


def test_long_texts_are_cut_first_and_say_by_how_much():
    """All messages stay; only the long one is shorter."""
    messages = [user("short"), user("x" * 10_000)]
    assert json.loads(fit(messages, 1000)) == [user("short"), user("x" * 500 + "…[+9500]")]


def test_then_the_oldest_messages_go():
    """The newest messages are the ones that explain the answer."""
    messages = [user(f"message {number}") for number in range(1000)]
    found = json.loads(fit(messages, 1000))
    assert found == [omitted(1000 - len(found) + 1), *messages[1 - len(found) :]]
    assert len(found) > 10


def test_what_is_no_message_says_what_was_left_out_in_its_own_shape():
    """A list of tools stays a list of tools."""
    tools = [{"type": "function", "name": f"tool-{number}"} for number in range(100)]
    found = json.loads(fit(tools, 300))
    assert found == [{"type": "omitted", "name": "omitted", "count": 101 - len(found)}, *tools[1 - len(found) :]]


def test_no_room_for_anything():
    """The shortest JSON there is."""
    assert [fit([user("hello")], limit) for limit in (2, 10, 40)] == ["[]"] * 3


def test_every_long_text_is_cut_at_the_same_length():
    """Names and ids too, if they are that long; what is short stays."""
    call = {"type": "tool_call", "id": "c1", "name": "n" * 300, "arguments": {"text": "x" * 10_000}}
    (message,) = json.loads(fit([{"role": "assistant", "parts": [call]}], 400))
    cut = {"id": "c1", "name": "n" * 25 + "…[+275]", "arguments": {"text": "x" * 25 + "…[+9975]"}}
    assert message["parts"] == [{"type": "tool_call", **cut}]


def test_fitting_changes_no_original():
    """It works on copies."""
    messages = [user("x" * 1000)]
    fit(messages, 200)
    assert messages == [user("x" * 1000)]


def test_half_a_surrogate_pair_is_escaped():
    """Some servers cut between the halves; put together they are the character again, alone they are valid JSON."""
    assert json.loads(fit([user("\ud83d\ude00")], 1000)) == [user("\N{GRINNING FACE}")]
    text = fit([user("\ud83d")], 1000)
    assert (text.isascii(), json.loads(text)) == (True, [user("\ud83d")])


def test_odd_values_are_named_or_written_plainly():
    """Keys that are no text, sets, dates, objects and numbers JSON lacks cost nobody the rest."""
    odd = {1: 2, "set": {1}, "date": dt.date(2026, 1, 2), "object": object(), "nan": float("nan"), "tuple": (1,)}
    (message,) = json.loads(fit([{"role": "user", "parts": [], "odd": odd}], 1000))
    expected = {"1": 2, "set": [1], "date": "2026-01-02", "object": "<object>", "nan": None, "tuple": [1]}
    assert message["odd"] == expected


texts = st.one_of(st.text(max_size=40), st.text(alphabet='"\\\n\x00é\U0001f600', min_size=50, max_size=400))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
parts = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "content": texts}),
    st.fixed_dictionaries({"type": st.just("tool_call"), "name": texts, "id": texts, "arguments": values}),
    st.fixed_dictionaries({"type": st.just("tool_call_response"), "response": values}),
)
messages_of_any_size = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "parts": st.lists(parts, max_size=4)},
        optional={"name": texts},
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(messages=messages_of_any_size, limit=st.one_of(st.integers(2, 300), st.integers(300, 5000)))
def test_any_messages_fit_any_limit(messages, limit):
    """Always JSON, as long as the limit allows; what is left are the newest messages, in order, with their roles."""
    text, whole = fit(messages, limit), fit(messages, 10**9)
    assert len(text) <= limit
    assert (text == whole) == (len(whole) <= limit)
    found = json.loads(text, parse_constant=pytest.fail)
    assert all(set(message) >= {"role", "parts"} for message in found)
    if found and found[0] == omitted(len(messages) - len(found) + 1):
        del found[0]
    roles = [message["role"] for message in messages]
    assert [message["role"] for message in found] == roles[len(roles) - len(found) :]


# --- Redacting --------------------------------------------------------------------------------------------------------


def test_texts_are_redacted_and_structure_is_not():
    """Roles, types, ids, names of tools and numbers stay; every other text passes the redactor."""
    message = {
        "role": "assistant",
        "name": "secret ada",
        "parts": [
            {"type": "text", "content": "secret"},
            {
                "type": "tool_call",
                "id": "c1",
                "name": "look_up",
                "arguments": {"city": "secret", "days": 3, "on": True},
            },
            {"type": "uri", "modality": "image", "uri": "secret"},
        ],
        "finish_reason": "stop",
    }
    assert redact([message], lambda text: text.replace("secret", "***")) == [
        {
            "role": "assistant",
            "name": "*** ada",
            "parts": [
                {"type": "text", "content": "***"},
                {
                    "type": "tool_call",
                    "id": "c1",
                    "name": "look_up",
                    "arguments": {"city": "***", "days": 3, "on": True},
                },
                {"type": "uri", "modality": "image", "uri": "***"},
            ],
            "finish_reason": "stop",
        }
    ]


@pytest.mark.parametrize("key", ["arguments", "metadata", "variables"])
def test_in_free_form_nothing_is_structure(key):
    """A value under `name` that a person or a model made up is content."""
    made_up = {"name": "Ada", "id": "1", "nested": [{"role": "patient", "type": {"status": "ill"}}]}
    redacted = {"name": "X", "id": "X", "nested": [{"role": "X", "type": {"status": "X"}}]}
    call = {"type": "tool_call", "name": "f", "id": "c1"}
    assert redact({key: made_up, **call}, lambda _: "X") == {key: redacted, **call}


@pytest.mark.parametrize("text", ["two words", "", "a\n", "x" * 129, "-dash"])
def test_structure_that_does_not_look_like_a_word_is_redacted(text):
    """Somebody may write anything under `type` or `id`."""
    assert redact({"id": text, "type": text, "role": "user"}, lambda _: "X") == {"id": "X", "type": "X", "role": "user"}


def test_name_stays_only_if_it_is_that_of_a_tool():
    """People have names too."""
    tool = {"type": "function", "function": {"name": "look_up", "description": "secret"}}
    body = {"messages": [{"role": "user", "name": "Ada", "content": "secret"}], "tools": [tool]}
    assert redact(body, lambda _: "X") == {
        "messages": [{"role": "user", "name": "X", "content": "X"}],
        "tools": [{"type": "function", "function": {"name": "look_up", "description": "X"}}],
    }


def test_structural_key_with_something_else_than_text_is_redacted():
    """Only text is taken for a name or a type."""
    assert redact({"name": ["Ada"], "type": {"a": "b"}}, lambda _: "X") == {"name": ["X"], "type": {"a": "X"}}


def test_redaction_goes_as_deep_as_a_reader_would():
    """Beyond 32 levels nothing is shown at all."""
    value = "secret"
    for _ in range(40):
        value = [value]
    text = json.dumps(redact(value, str.upper))
    assert ("secret" in text.lower(), REDACTED in text) == (False, True)


def test_bytes_and_objects_are_redacted_as_text():
    """What is neither a number nor a container goes to the redactor as text."""
    assert redact([b"secret", dt.date(2026, 1, 2)], lambda _: "X") == ["X", "X"]


def raising(_):
    raise RuntimeError("no")


@pytest.mark.parametrize("redactor", [raising, lambda _: None, lambda _: 3], ids=["raises", "None", "a number"])
@pytest.mark.usefixtures("expected_logs")
def test_redaction_fails_closed(redactor):
    """A redactor that raises, or returns no text, shows nothing."""
    assert redact({"content": "secret", "type": "text"}, redactor) == {"content": REDACTION_FAILED, "type": "text"}


def test_failing_redactor_is_counted_and_logged_once_without_the_text(expected_logs):
    """What it was given is in no log line."""

    def quoting(text):
        raise RuntimeError(text)

    redact(["secret", "secret"], quoting)
    assert _faults.counts() == {"redact": 2}
    (record,) = expected_logs
    assert "secret" not in record.getMessage().partition("\n")[0]
    assert record.exc_info is None


def test_an_interrupt_is_no_failure():
    """Ctrl-C during redaction is the program's to handle."""

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        redact("secret", interrupted)


@given(value=values)
def test_without_a_redactor_no_text_stays(value):
    """Each text becomes a note, numbers and keys stay, and the original is as it was."""
    before = repr(value)
    found = redact(value, lambda _: REDACTED)
    assert repr(value) == before

    def texts_in(value):
        if isinstance(value, dict):
            structural = ("id", "name", "type", "role", "model", "object", "status")
            return {t for key, item in value.items() if key not in structural for t in texts_in(item)}
        if isinstance(value, list):
            return {t for item in value for t in texts_in(item)}
        return {value} if isinstance(value, str) else set()

    assert texts_in(found) <= {REDACTED}


# --- The gate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "on_spans", "on_events"),
    [
        ("no_content", False, False),
        ("span_only", True, False),
        ("event_only", False, True),
        ("span_and_event", True, True),
    ],
)
def test_modes(mode, on_spans, on_events):
    """The four modes of the conventions."""
    gate = Gate(mode)
    assert (gate.on_spans, gate.on_events) == (on_spans, on_events)


def test_gate_is_closed_by_default_and_stays_as_it_was_made():
    """Nothing is shown unless asked for."""
    gate = Gate()
    assert (gate.mode, gate.error_text, gate.limit, gate.redactor) == ("no_content", False, 262_144, None)
    with pytest.raises(FrozenInstanceError):
        gate.mode = "span_only"


def test_gate_redacts_before_it_cuts():
    """A redactor must see a whole text: half a card number is not recognised."""
    gate = Gate(limit=200, redactor=lambda text: text.replace("4" * 300, "[card]"))
    assert json.loads(gate.messages([user("4" * 300)])) == [user("[card]")]
    assert gate.text("4" * 300) == "[card]"


def test_gate_cuts_plain_text():
    """Error text is no JSON, so it is simply cut."""
    assert [Gate(limit=5).text(text) for text in ("abcde", "abcdef", "")] == ["abcde", "abcde", ""]


# --- Bodies as JSON text ----------------------------------------------------------------------------------------------


def test_json_text_is_compact_and_keeps_characters():
    """As it would be sent."""
    assert json_text({"a": ["ü", 1, None]}) == '{"a":["ü",1,null]}'


def test_json_text_of_an_sdk_object_is_what_the_server_sent():
    """Fields the server left out stay out, fields the SDK does not know stay in."""
    body = {**chat_completion("hi"), "own": {"a": 1}}
    assert json.loads(json_text(ChatCompletion.construct(**body))) == body


def test_json_text_of_odd_values():
    """What JSON cannot write is written plainly or named."""
    value = {"set": frozenset([1]), "tuple": (1,), "time": dt.time(1, 2), "object": object()}
    assert json.loads(json_text(value)) == {"set": [1], "tuple": [1], "time": "01:02:00", "object": "<object>"}


def test_json_text_of_a_mapping_with_sdk_objects_in_it():
    """An earlier answer put into the next request is written as it was received."""
    body = chat_completion("hi")["choices"][0]["message"]
    message = ChatCompletion.construct(**chat_completion("hi")).choices[0].message
    assert json.loads(json_text(MappingProxyType({"messages": [message]}))) == {"messages": [body]}


def test_fitting_needs_no_pydantic(monkeypatch):
    """Without `openai` there is no pydantic; the text is longer and as good."""
    monkeypatch.setitem(sys.modules, "pydantic_core", None)
    assert json.loads(fit([user("Grüße", odd=(1,))], 1000)) == [user("Grüße", odd=[1])]


def test_redact_json_lowers_a_body_to_its_structure():
    """Without a redactor each text becomes a note."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "n": 1})
    expected = {"model": "m", "messages": [{"role": "user", "content": REDACTED}], "n": 1}
    assert json.loads(redact_json(body, None)) == expected
    assert json.loads(redact_json(body, str.upper))["messages"] == [{"role": "user", "content": "HI"}]


@pytest.mark.parametrize(
    ("level", "expected"),
    [("full", '{"content":"hi","id":"1"}'), ("redacted", '{"content":"[redacted]","id":"1"}'), ("none", "")],
)
def test_restrict(level, expected):
    """Text is lowered to a level; no text stays no text."""
    assert restrict('{"content":"hi","id":"1"}', level) == expected
    assert restrict("", level) == ""


class CountedBody(dict):
    """A body that counts how often it is made into text."""

    made = 0

    def items(self):
        type(self).made += 1
        return super().items()


def test_payload_is_made_into_text_once_per_level_and_only_if_asked():
    """All callbacks of a level share one text; with none there is no work."""
    CountedBody.made = 0
    payload = Payload(CountedBody(content="hi"), CHAT, str.upper)
    assert (payload == "", payload.at("lazy") is payload, CountedBody.made) == (True, True, 0)
    texts = [payload.at("full"), payload.at("redacted"), payload.at("full"), payload.at("redacted")]
    assert texts == ['{"content":"hi"}', '{"content":"HI"}'] * 2
    assert (payload.at("full") is payload.at("full"), CountedBody.made) == (True, 2)


def test_body_that_is_no_json_is_no_text(expected_logs):
    """An odd body costs the text, not the event, and is counted."""
    assert Payload({("a",): 1}, CHAT).at("full") == ""
    assert _faults.counts() == {"content": 1}
    assert len(expected_logs) == 1
