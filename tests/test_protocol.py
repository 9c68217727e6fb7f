"""What a callback is, what it is told, and several as one."""

from __future__ import annotations

import contextlib
import functools
import json
import sys

import pytest

from otel_llm_callback import MultiCallback, TelemetryCallback, flush, instrument, register
from otel_llm_callback._registry import REGISTRY
from otel_llm_callback.protocol import HOOKS, check_callback, find_hook
from otel_llm_callback.testing import (
    JsonReply,
    RecordingCallback,
    StreamReply,
    chat_chunks,
    error_body,
    make_chunk,
    make_error_context,
    make_request,
    make_response,
)

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(autouse=True)
def _nothing_left():
    """Each test takes back what it registered."""
    yield
    for registration in REGISTRY.registrations:
        registration.remove()


def made(*names):
    """An object with the hooks of these names and nothing else; each notes that it was called."""

    def note(self, first, second, name):
        self.told.append(name)

    hooks = {name: functools.partialmethod(note, name=name) for name in names}
    callback = type("Callback", (), hooks)()
    callback.told = []
    return callback


def use(client, server):
    """A plain call, a streamed one and one that fails."""
    client.chat.completions.create(**ASKED)
    assert len(list(client.chat.completions.create(**ASKED, stream=True))) > 1
    server.reply = lambda _: JsonReply(error_body("no"), status=400)
    with contextlib.suppress(Exception):
        client.chat.completions.create(**ASKED)
    server.reply = None


# --- What a callback is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_any_object_with_one_hook_is_a_callback(server, client, delivery):
    """No base class and no other hook is needed; each is told of exactly what it listens to."""
    callbacks = {name: made(name) for name in HOOKS}
    instrument(*callbacks.values(), delivery=delivery)
    use(client, server)
    assert flush()
    assert {name: set(callback.told) for name, callback in callbacks.items()} == {name: {name} for name in HOOKS}
    assert {name: len(callbacks[name].told) for name in HOOKS if name != "on_stream_chunk"} == {
        "on_request_sent": 3,
        "on_response_received": 2,
        "on_error": 1,
    }


@pytest.mark.parametrize("name", HOOKS)
def test_hook_left_alone_is_never_called(server, client, name):
    """Of a callback that derives from the protocol only the hooks it overrides run, on any of the ways to an end."""
    defaults = {getattr(TelemetryCallback, hook).__code__ for hook in HOOKS}
    called = []

    class Callback(TelemetryCallback):
        pass

    setattr(Callback, name, lambda self, first, second: called.append("own"))
    instrument(Callback(), delivery="inline")

    def watch(frame, event, _):
        if event == "call" and frame.f_code in defaults:
            called.append("default")

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        use(client, server)
    finally:
        sys.setprofile(before)
    assert set(called) == {"own"}


def test_find_hook_finds_what_is_not_left_alone():
    """A method, and a partial kept on the instance, are hooks; a default and None are not."""

    class Callback(TelemetryCallback):
        on_stream_chunk = None

        def on_error(self, error, context):
            return "method"

    callback = Callback()
    callback.on_response_received = functools.partial(lambda *told: "partial", "bound")
    found = {name: find_hook(callback, name) for name in HOOKS}
    assert {name: None if hook is None else hook(None, None) for name, hook in found.items()} == {
        "on_request_sent": None,
        "on_stream_chunk": None,
        "on_response_received": "partial",
        "on_error": "method",
    }


def test_default_hooks_do_nothing():
    """A subclass may call the hook it overrides with ``super()``."""

    class Callback(TelemetryCallback):
        def on_request_sent(self, metadata, request_json):
            return super().on_request_sent(metadata, request_json)

        def on_stream_chunk(self, chunk, index):
            return super().on_stream_chunk(chunk, index)

        def on_response_received(self, metadata, response_json):
            return super().on_response_received(metadata, response_json)

        def on_error(self, error, context):
            return super().on_error(error, context)

    callback = Callback()
    assert callback.content == "full"
    assert [
        callback.on_request_sent(make_request(), ""),
        callback.on_stream_chunk(make_chunk(), 0),
        callback.on_response_received(make_response(), ""),
        callback.on_error(OSError(), make_error_context()),
    ] == [None] * 4


class Asynchronous:
    async def on_error(self, error, context):
        pass


class AnyArguments:
    def on_error(self, *told):
        pass


class WithDefaults:
    def on_error(self, error, context, *, verbose=True):
        pass


class Static:
    @staticmethod
    def on_error(error, context):
        pass


class OfTheClass:
    @classmethod
    def on_error(cls, error, context):
        pass


class Flagged:
    on_call = True  # a name like a hook's, but nothing to be called

    def on_error(self, error, context):
        pass


class WrittenInC:
    on_error = print


class Callable:
    def __init__(self):
        self.on_error = self

    def __call__(self, error, context):
        pass


@pytest.mark.parametrize(
    "callback_class",
    [RecordingCallback, Asynchronous, AnyArguments, WithDefaults, Static, OfTheClass, Flagged, WrittenInC, Callable],
)
def test_what_is_accepted(callback_class):
    """Any way to say "a callable that takes two arguments" will do."""
    check_callback(callback_class())


class NoHooks(TelemetryCallback):
    pass


class Misspelt:
    def on_error(self, error, context):
        pass

    def on_stream_chunks(self, chunk, index):
        pass

    def on_request(self, metadata, request_json):
        pass


class TooFew:
    def on_request_sent(self, metadata):
        pass


class TooMany:
    def on_request_sent(self, metadata, request_json, extra):
        pass


class KeywordsOnly:
    def on_request_sent(self, *, metadata, request_json):
        pass


class NotCallable:
    on_request_sent = "yes"


class WrongContent:
    content = "some"

    def on_error(self, error, context):
        pass


ALLOWED = "on_request_sent, on_stream_chunk, on_response_received, on_error"


@pytest.mark.parametrize(
    ("callback", "error", "text"),
    [
        (None, TypeError, f"NoneType is no callback: it needs at least one of {ALLOWED}"),
        (NoHooks(), TypeError, f"NoHooks is no callback: it needs at least one of {ALLOWED}"),
        (RecordingCallback, TypeError, "RecordingCallback is a class; pass an instance of it"),
        (
            Misspelt(),
            TypeError,
            f"Misspelt has on_request, on_stream_chunks, which is no hook; the hooks are {ALLOWED}",
        ),
        (TooFew(), TypeError, "TooFew.on_request_sent(metadata) must take two positional arguments"),
        (
            TooMany(),
            TypeError,
            "TooMany.on_request_sent(metadata, request_json, extra) must take two positional arguments",
        ),
        (
            KeywordsOnly(),
            TypeError,
            "KeywordsOnly.on_request_sent(*, metadata, request_json) must take two positional arguments",
        ),
        (NotCallable(), TypeError, "NotCallable.on_request_sent is not callable"),
        (WrongContent(), ValueError, "WrongContent.content is 'some'; allowed are 'full', 'redacted', 'none'"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, (str, type)) else None,
)
def test_what_is_refused(callback, error, text):
    """One clear error says what is wrong and, where there is a choice, what is allowed."""
    with pytest.raises(error) as raised:
        check_callback(callback)
    assert str(raised.value) == text


# --- Several as one ---------------------------------------------------------------------------------------------------


class Named(RecordingCallback):
    """A recorder that also notes in a common list when it is told."""

    def __init__(self, name, log, content="full"):
        super().__init__(content)
        self._name, self._log = name, log

    def on_request_sent(self, metadata, request_json):
        self._log.append((self._name, "request", request_json))
        super().on_request_sent(metadata, request_json)

    def on_stream_chunk(self, chunk, index):
        self._log.append((self._name, "chunk", str(chunk)))
        super().on_stream_chunk(chunk, index)

    def on_response_received(self, metadata, response_json):
        self._log.append((self._name, "response", response_json))
        super().on_response_received(metadata, response_json)

    def on_error(self, error, context):
        self._log.append((self._name, "error", str(context)))
        super().on_error(error, context)


class Failing:
    """Fails at whatever it is told."""

    def __getattr__(self, name):
        if name not in HOOKS:
            raise AttributeError(name)

        def hook(first, second):
            raise ValueError(name)

        return hook


REQUEST = make_request(stream=True)
TOLD = {
    "on_request_sent": (REQUEST, '{"messages":[]}'),
    "on_stream_chunk": (make_chunk("Hi", request=REQUEST), 0),
    "on_response_received": (make_response(request=REQUEST), '{"choices":[]}'),
    "on_error": (OSError("gone"), make_error_context("chat.completions", request=REQUEST)),
}
EVENTS = [
    ("request", '{"messages":[]}'),
    ("chunk", "Hi"),
    ("response", '{"choices":[]}'),
    ("error", "chat.completions"),
]


def tell(callback):
    """Tell a callback of one event of each kind, as a callback that holds others does."""
    for name, arguments in TOLD.items():
        find_hook(callback, name)(*arguments)


def names(log):
    return [(name, event) for name, event, _ in log]


def test_children_are_told_in_order():
    """Each event goes to all children, the first one first, with the very arguments."""
    log = []
    first, second = Named("first", log), Named("second", log)
    tell(MultiCallback(first, second))
    assert log == [(name, *event) for event in EVENTS for name in ("first", "second")]
    assert first.events == second.events
    assert first.chunks[0] is TOLD["on_stream_chunk"][0]


def test_child_that_fails_reaches_nobody(expected_logs):
    """Neither its siblings nor the caller; its first failure in each hook is logged with its name."""
    log = []
    many = MultiCallback(Named("first", log), Failing(), Named("last", log))
    tell(many)
    tell(many)
    assert log == [(name, *event) for event in EVENTS for name in ("first", "last")] * 2
    messages = [record.getMessage() for record in expected_logs]
    assert [message.split(":")[0] for message in messages] == [f"callback Failing.{name} failed" for name in HOOKS]


def test_nesting_changes_nothing():
    """``MultiCallback(a, MultiCallback(b, c))`` tells as ``MultiCallback(a, b, c)`` does."""
    flat, nested = [], []
    tell(MultiCallback(*(Named(name, flat) for name in "abcd")))
    tell(
        MultiCallback(
            MultiCallback(Named("a", nested)),
            MultiCallback(),
            MultiCallback(Named("b", nested), MultiCallback(Named("c", nested))),
            Named("d", nested),
        )
    )
    assert nested == flat


@pytest.mark.parametrize(
    ("levels", "level"),
    [
        ((), "none"),
        (("none",), "none"),
        (("none", "redacted"), "redacted"),
        (("redacted", "full", "none"), "full"),
    ],
)
def test_content_is_the_most_any_child_takes(levels, level):
    """So that the one who takes most is given enough."""
    assert MultiCallback(*(RecordingCallback(each) for each in levels)).content == level


def test_child_gets_no_more_content_than_it_declares():
    """Each child is given its own level, nested or not; text of chunks only where all of it may be seen."""
    secret = "s3cret"
    request_json = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": secret}]})
    seen = {}

    class Callback:
        def __init__(self, content):
            self.content = content

        def on_request_sent(self, metadata, request_json):
            seen[self.content, "request"] = secret in request_json, bool(request_json)

        def on_stream_chunk(self, chunk, index):
            seen[self.content, "chunk"] = str(chunk), chunk.request, chunk.kind, chunk.at_ns

        def on_response_received(self, metadata, response_json):
            seen[self.content, "response"] = secret in response_json, bool(response_json)

    many = MultiCallback(Callback("none"), MultiCallback(Callback("redacted"), Callback("full")))
    many.on_request_sent(REQUEST, request_json)
    chunk = make_chunk(secret, request=REQUEST)
    many.on_stream_chunk(chunk, 0)
    many.on_response_received(make_response(request=REQUEST), request_json)
    facts = (chunk.request, chunk.kind, chunk.at_ns)
    assert seen == {
        ("none", "request"): (False, False),
        ("none", "response"): (False, False),
        ("none", "chunk"): ("", *facts),
        ("redacted", "request"): (False, True),
        ("redacted", "response"): (False, True),
        ("redacted", "chunk"): ("", *facts),
        ("full", "request"): (True, True),
        ("full", "response"): (True, True),
        ("full", "chunk"): (secret, *facts),
    }


class Holding:
    """Returns a context manager that notes when it is entered and left."""

    def __init__(self, name, log, error=None):
        self.name, self.log, self.error = name, log, error

    @contextlib.contextmanager
    def _held(self):
        if self.error is not None:
            raise self.error
        self.log.append(("enter", self.name))
        yield
        self.log.append(("leave", self.name))

    def on_request_sent(self, metadata, request_json):
        return self._held()


def test_context_managers_of_children_are_held_together():
    """What children return from ``on_request_sent`` is left in reverse order; none returned, none held."""
    log = []
    held = MultiCallback(Holding("first", log), RecordingCallback(), Holding("second", log)).on_request_sent(
        REQUEST, ""
    )
    with held:
        log.append("waiting")
    assert log == [("enter", "first"), ("enter", "second"), "waiting", ("leave", "second"), ("leave", "first")]
    assert MultiCallback(RecordingCallback()).on_request_sent(REQUEST, "") is None


def test_context_manager_that_cannot_be_entered_reaches_nobody(expected_logs):
    """It is the failure of one child like any other."""
    log = []
    many = MultiCallback(Holding("first", log), Holding("broken", log, OSError("no")), Holding("last", log))
    with many.on_request_sent(REQUEST, ""):
        log.append("waiting")
    assert log == [("enter", "first"), ("enter", "last"), "waiting", ("leave", "last"), ("leave", "first")]
    assert [record.levelname for record in expected_logs] == ["ERROR"]


@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_registered_it_is_taken_apart(server, client, delivery, expected_logs):
    """Each child is delivered to as if it had been registered itself; the registration counts them all together."""
    log = []
    children = Named("a", log), Failing(), Named("b", log, "none"), Named("c", log, "redacted")
    registration = register(MultiCallback(children[0], MultiCallback(*children[1:3]), children[3]), delivery=delivery)
    instrument()
    server.reply = lambda _: StreamReply(chat_chunks(["Hi"]))
    assert len(list(client.chat.completions.create(**ASKED, stream=True))) == 3
    assert flush()
    assert [listener.callback for listener in registration.listeners] != [registration.callback]
    assert len(registration.listeners) == 4
    told = ["request", "chunk", "chunk", "chunk", "response"]
    assert {name: [event for who, event, _ in log if who == name] for name in "abc"} == dict.fromkeys("abc", told)
    if delivery == "inline":
        assert names(log) == [(name, event) for event in told for name in "abc"]
    texts = {name: [text for who, event, text in log if who == name and event == "chunk"] for name in "abc"}
    assert texts == {"a": ["", "Hi", ""], "b": [""] * 3, "c": [""] * 3}
    requests = {who: text for who, event, text in log if event == "request"}
    assert ("hi" in requests["a"], requests["b"], '"hi"' in requests["c"]) == (True, "", False)
    assert (registration.delivered, registration.failed, registration.dropped) == (15, 5, 0)
    assert {record.getMessage().split(":")[0] for record in expected_logs} == {
        "callback Failing.on_request_sent failed"
    }


def test_registered_empty_it_tells_nobody(server, client):
    """A ``MultiCallback`` of nothing is allowed and has no effect."""
    registration = register(MultiCallback())
    instrument()
    client.chat.completions.create(**ASKED)
    assert (registration.listeners, registration.delivered) == ((), 0)
