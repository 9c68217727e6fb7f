"""How a callback is told: what is said at registration, by the callback itself, and by the settings."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_callback import (
    DeliveryOptions,
    MultiCallback,
    flush,
    instrument,
    instrument_client,
    register,
    status,
    suppress,
    using,
)
from otel_llm_callback._background import Queued
from otel_llm_callback._registry import REGISTRY, make_listeners
from otel_llm_callback.config import Settings
from otel_llm_callback.protocol import CONTENT_LEVELS, NO_OPTIONS, lower_content

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}


class Listening:
    """A callback with options of its own that keeps the JSON of each request."""

    content = "full"

    def __init__(self, options=None):
        self.delivery_options = options
        self.requests = []

    def on_request_sent(self, metadata, request_json):
        self.requests.append(request_json)


def ways(callback, settings=None, options=NO_OPTIONS):
    """How each part of *callback* is told."""
    return [
        {
            "delivery": "queued" if listener.queued else "inline",
            "overflow": listener.callback._overflow if isinstance(listener.callback, Queued) else None,
            "queue_size": listener.callback.worker.size if isinstance(listener.callback, Queued) else None,
            "required": listener.required,
            "content": listener.content,
        }
        for listener in make_listeners(callback, settings or Settings(), options)
    ]


# --- Precedence -------------------------------------------------------------------------------------------------------


def test_argument_wins_over_attribute_and_attribute_over_settings():
    """Each field by itself: the first of the three that names it decides."""
    settings = Settings(delivery="inline", overflow="drop_new", queue_size=10)
    own = DeliveryOptions(delivery="queued", queue_size=20)
    assert ways(Listening(), settings)[0]["delivery"] == "inline"
    assert ways(Listening(own), settings) == [
        {"delivery": "queued", "overflow": "drop_new", "queue_size": 20, "required": False, "content": "full"}
    ]
    asked = DeliveryOptions(overflow="block", queue_size=30)
    assert ways(Listening(own), settings, asked) == [
        {"delivery": "queued", "overflow": "block", "queue_size": 30, "required": False, "content": "full"}
    ]


def test_parts_of_several_are_told_each_in_its_own_way():
    """A part's own word wins over that of the one around it; what neither says is as the settings have it."""
    several = MultiCallback(
        Listening(DeliveryOptions(delivery="inline")),
        Listening(DeliveryOptions(queue_size=7, content="none")),
        MultiCallback(Listening()),
    )
    several.delivery_options = DeliveryOptions(queue_size=9, required=True)
    told = [(way["delivery"], way["queue_size"], way["required"], way["content"]) for way in ways(several)]
    assert told == [
        ("inline", None, True, "full"),
        ("queued", 7, True, "none"),
        ("queued", 9, True, "full"),
    ]


contents = st.none() | st.sampled_from(CONTENT_LEVELS)
options = st.builds(
    DeliveryOptions,
    delivery=st.none() | st.sampled_from(["queued", "inline"]),
    overflow=st.none() | st.sampled_from(["drop_chunks", "drop_new", "block"]),
    queue_size=st.none() | st.integers(2, 9),
    required=st.booleans(),
    content=contents,
)


@given(first=options, second=options, third=options)
def test_options_over_options_is_associative_and_has_a_neutral_element(first, second, third):
    """How many are stacked, and where the brackets stand, makes no difference."""
    assert first.over(second).over(third) == first.over(second.over(third))
    assert first.over(NO_OPTIONS) == NO_OPTIONS.over(first) == first


@given(asked=contents, own=contents, declared=st.sampled_from(CONTENT_LEVELS), ceiling=st.sampled_from(CONTENT_LEVELS))
def test_content_never_rises(asked, own, declared, ceiling):
    """A callback is given the least of what it declares, its options, the argument and the settings say."""
    callback = Listening(DeliveryOptions(content=own))
    callback.content = declared
    settings = Settings(delivery="inline", callback_content=ceiling)
    [way] = ways(callback, settings, DeliveryOptions(content=asked))
    lowest = min([level for level in (asked, own, declared, ceiling) if level], key=CONTENT_LEVELS.index)
    assert (way["content"], lower_content(None, lowest)) == (lowest, lowest)


# --- Over real calls --------------------------------------------------------------------------------------------------


def said_by_instrument(callback, client):
    instrument(callback, delivery="queued", telemetry=False)


def said_by_register(callback, client):
    instrument(telemetry=False)
    register(callback)


def said_by_client(callback, client):
    instrument_client(client, callback, delivery="queued")


def said_by_multi(callback, client):
    instrument(MultiCallback(callback), delivery="queued", telemetry=False)


@pytest.mark.parametrize("use", [said_by_instrument, said_by_register, said_by_client, said_by_multi])
def test_attribute_holds_wherever_the_callback_is_used(server, client, use):
    """Told on the caller's thread, before the call returns, without content, and in spite of ``suppress()``."""
    callback = Listening(DeliveryOptions(delivery="inline", required=True, content="none"))
    use(callback, client)
    client.chat.completions.create(**ASKED)
    with suppress():
        client.chat.completions.create(**ASKED)
    assert callback.requests == ["", ""]


def test_attribute_holds_inside_a_block(server, client):
    callback = Listening(DeliveryOptions(delivery="inline", required=True, content="none"))
    instrument(telemetry=False)
    with using(callback):
        client.chat.completions.create(**ASKED)
        with suppress():
            client.chat.completions.create(**ASKED)
    client.chat.completions.create(**ASKED)
    assert callback.requests == ["", ""]


def test_block_s_argument_wins_over_the_attribute(server, client):
    callback = Listening(DeliveryOptions(delivery="queued"))
    instrument(telemetry=False)
    with using(callback, delivery="inline"):
        client.chat.completions.create(**ASKED)
        assert len(callback.requests) == 1


def test_registered_with_less_content_it_sees_less(server, client):
    """``register(content=…)`` lowers what the callback declares, also while the settings change around it."""
    register_none, register_redacted, whole = Listening(), Listening(), Listening()
    register(register_none, content="none", delivery="inline")
    register(register_redacted, content="redacted", delivery="inline")
    register(whole, content="full", delivery="inline")
    instrument(telemetry=False)
    client.chat.completions.create(**ASKED)
    assert [listening.requests[0] for listening in (register_none, register_redacted)] == [
        "",
        json.dumps({**ASKED, "messages": [{"role": "user", "content": "[redacted]"}]}, separators=(",", ":")),
    ]
    assert json.loads(whole.requests[0]) == ASKED


def test_settings_are_the_ceiling_of_content(server, client):
    callback = Listening(DeliveryOptions(content="full"))
    instrument(delivery="inline", telemetry=False, callback_content="none")
    register(callback, content="full")
    client.chat.completions.create(**ASKED)
    assert callback.requests == [""]


def test_required_of_the_process_stays_required_of_a_client(server, client):
    """A client that is given the same callback again cannot make it optional."""
    callback = Listening()
    instrument(telemetry=False)
    register(callback, required=True, delivery="inline")
    instrument_client(client, callback, delivery="inline")
    with suppress():
        client.chat.completions.create(**ASKED)
    assert len(callback.requests) == 1


def test_queue_is_kept_while_the_settings_change_what_the_callback_says_itself(server, client):
    """A second queue could overtake the first, so there is none unless the callback is to be told in another way."""
    callback = Listening(DeliveryOptions(delivery="queued", queue_size=50, overflow="block"))
    registration = register(callback)
    [before] = registration.listeners
    instrument(telemetry=False, queue_size=99, delivery="inline", callback_content="none")
    [after] = registration.listeners
    assert (after.callback, after.content) == (before.callback, "none")
    client.chat.completions.create(**ASKED)
    assert flush()
    assert callback.requests == [""]


def test_status_tells_what_the_callback_asked_for():
    instrument(MultiCallback(Listening(DeliveryOptions(required=True)), Listening()), telemetry=False)
    [shown] = status().callbacks
    assert (shown.delivery, shown.required) == ("queued", True)


# --- Mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"delivery": "later"}, "delivery='later' is not allowed; allowed: `queued`, `inline`"),
        ({"overflow": "wait"}, "overflow='wait' is not allowed; allowed: `drop_chunks`, `drop_new`, `block`"),
        ({"queue_size": 1}, "queue_size=1 is not allowed; allowed: a whole number from 2"),
        ({"required": "yes"}, "required='yes' is not allowed; allowed: `true`, `false`"),
        ({"content": "some"}, "content='some' is not allowed; allowed: `full`, `redacted`, `none`"),
    ],
)
def test_wrong_option_raises_at_registration_and_names_what_is_allowed(wrong, text):
    """As an argument and as an attribute, of a callback and of a part of one; nothing is registered."""
    said = Listening(DeliveryOptions(**wrong))
    errors = []
    for attempt in (
        lambda: register(Listening(), **wrong),
        lambda: register(said),
        lambda: instrument(said),
        lambda: register(MultiCallback(Listening(), said)),
        lambda: using(said),
    ):
        with pytest.raises(ValueError, match="not allowed") as caught:
            attempt()
        errors.append(str(caught.value))
    assert errors == [text] * 5
    assert REGISTRY.registrations == ()


def test_options_of_another_type_raise_at_registration():
    callback = Listening()
    callback.delivery_options = {"delivery": "inline"}
    with pytest.raises(TypeError, match=r"Listening\.delivery_options is dict; it must be DeliveryOptions or None"):
        register(callback)
    with pytest.raises(TypeError, match="DeliveryOptions"):
        MultiCallback(callback)
