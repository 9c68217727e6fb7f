"""Filters: which calls pass, that what passes is whole and in order, and that nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_llm_callback import (
    DeliveryOptions,
    MultiCallback,
    OpenTelemetryCallback,
    _registry,
    flush,
    instrument,
    register,
    session,
    status,
    suppress,
    using,
)
from otel_llm_callback._dispatch import Dispatcher
from otel_llm_callback._registry import make_listeners
from otel_llm_callback.callbacks import batch, only, sample, where
from otel_llm_callback.config import Settings
from otel_llm_callback.protocol import CONTENT_LEVELS, HOOKS, find_hook
from otel_llm_callback.testing import (
    JsonReply,
    RecordingCallback,
    StreamReply,
    chat_chunks,
    check_grammar,
    error_body,
    make_chunk,
    make_error_context,
    make_request,
    make_response,
)

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
A_WHILE_S = 10.0
SECRET = "quoted " + "prompt"


def tell(callback, request, *, chunks=0, error=None):
    """Tell *callback* of a whole call, as a dispatcher would."""
    end = ("on_response_received", make_response(request=request), '{"answer":1}')
    if error is not None:
        end = ("on_error", error, make_error_context(request=request))
    events = [
        ("on_request_sent", request, '{"question":1}'),
        *(("on_stream_chunk", make_chunk("text", request=request), index) for index in range(chunks)),
        end,
    ]
    for name, first, second in events:
        if (hook := find_hook(callback, name)) is not None:
            hook(first, second)


def passed(wrap, requests):
    """The call ids of *requests* that get through the filter *wrap* makes."""
    recorder = RecordingCallback()
    callback = wrap(recorder)
    for request in requests:
        tell(callback, request, chunks=1)
    check_grammar(recorder.events)
    return list(recorder.calls())


def wait_until(condition):
    deadline = time.monotonic() + A_WHILE_S
    while not condition():
        assert time.monotonic() < deadline, "it has not come true"
        time.sleep(0.005)


# --- only -------------------------------------------------------------------------------------------------------------

FACTS = {
    "model": ["gpt-4o", "gpt-4o-mini", "o3", None],
    "operation": ["chat", "embeddings"],
    "api": ["chat_completions", "responses"],
    "provider": ["openai", "groq"],
    "session_id": ["s-1", "s-2", None],
    "user_id": ["ann", "bob", None],
}


@pytest.mark.parametrize(
    ("criteria", "matches"),
    [
        ({"model": "gpt-4o"}, lambda r: r.model == "gpt-4o"),
        ({"model": "gpt-4o*"}, lambda r: r.model in {"gpt-4o", "gpt-4o-mini"}),
        ({"model": ["o?", "*-mini"]}, lambda r: r.model in {"o3", "gpt-4o-mini"}),
        ({"model": "GPT-4o"}, lambda r: False),
        ({"operation": "chat"}, lambda r: r.operation == "chat"),
        ({"api": ("responses",)}, lambda r: r.api == "responses"),
        ({"provider": {"groq"}}, lambda r: r.provider == "groq"),
        ({"session": "s-1"}, lambda r: r.session_id == "s-1"),
        ({"user": ["ann", "eve"]}, lambda r: r.user_id == "ann"),
        ({"user": "ann", "operation": "chat"}, lambda r: r.user_id == "ann" and r.operation == "chat"),
    ],
)
def test_only_tells_of_the_calls_that_match(criteria, matches):
    """One of the values of each criterion; what is unknown matches nothing."""
    requests = [make_request(**dict(zip(FACTS, facts, strict=True))) for facts in itertools.product(*FACTS.values())]
    assert passed(lambda r: only(r, **criteria), requests) == [r.call_id for r in requests if matches(r)]


names = st.sampled_from([["gpt-4o"], ["gpt-*"], ["o3", "gpt-4o"], ["*"]])
users = st.sampled_from([["ann"], ["bob"], ["ann", "bob"]])
requests = st.lists(
    st.builds(make_request, model=st.sampled_from(FACTS["model"]), user_id=st.sampled_from(FACTS["user_id"])),
    max_size=8,
)


@given(model=names, user=users, requests=requests)
def test_only_after_only_is_only_with_both(model, user, requests):
    both = passed(lambda r: only(r, model=model, user=user), requests)
    assert both == passed(lambda r: only(only(r, model=model), user=user), requests)
    assert both == passed(lambda r: only(only(r, user=user), model=model), requests)


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (only, TypeError, "at least one of model, operation"),
        (lambda r: only(r, model=[]), TypeError, "at least one of model, operation"),
        (lambda r: only(r, user=[1]), TypeError, "only"),
        (lambda r: only(r, colour="red"), TypeError, "colour"),
        (lambda r: only(RecordingCallback, user="ann"), TypeError, "is a class"),
        (lambda r: only(OpenTelemetryCallback(), user="ann"), TypeError, "cannot be filtered"),
        (lambda r: sample(r, 1.1), ValueError, "share=1.1 is not allowed; allowed: a number from 0 to 1"),
        (lambda r: sample(r, True), ValueError, "share=True"),
        (lambda r: sample(r, 0.5, "user"), ValueError, "key='user' is not allowed; allowed: `call`, `session`"),
        (where, TypeError, "needs a predicate or end="),
        (lambda r: where(r, "yes"), TypeError, "plain functions"),
        (lambda r: where(object(), bool), TypeError, "is no callback"),
        (lambda r: batch(r, size=0), ValueError, "size=0 is not allowed; allowed: a whole number from 1"),
        (lambda r: batch(r, seconds=0), ValueError, "seconds=0 is not allowed; allowed: a number greater than 0"),
        (lambda r: batch(object()), TypeError, "is no callback"),
    ],
)
def test_mistake_raises_when_the_filter_is_made(wrong, error, text):
    with pytest.raises(error, match=text.replace("(", r"\(").replace("*", r"\*")):
        wrong(RecordingCallback())


def test_async_predicate_is_refused():
    async def predicate(request):
        return True

    with pytest.raises(TypeError, match="cannot be awaited"):
        where(RecordingCallback(), predicate)


# --- sample -----------------------------------------------------------------------------------------------------------


def test_sample_is_as_large_as_it_says_and_grows_with_the_share():
    """Of 4,000 ids each share lies within five standard deviations, and who passes at one share passes at the next."""
    ids = [make_request(call_id=f"{number:032x}") for number in range(4000)]
    shares = [0, 0.01, 0.1, 0.5, 0.9, 1]
    samples = [set(passed(lambda r, share=share: sample(r, share), ids)) for share in shares]
    assert all(lower <= higher for lower, higher in itertools.pairwise(samples))
    off = [abs(len(chosen) - share * 4000) for share, chosen in zip(shares, samples, strict=True)]
    assert all(d <= 5 * math.sqrt(4000 * p * (1 - p)) for d, p in zip(off, shares, strict=True))


@given(share=st.floats(0, 1), other=st.floats(0, 1))
@settings(max_examples=30)
def test_sample_of_a_sample_is_the_smaller_one(share, other):
    ids = [make_request(call_id=f"{number:x}") for number in range(50)]
    assert passed(lambda r: sample(sample(r, share), other), ids) == passed(lambda r: sample(r, min(share, other)), ids)


def test_sample_by_session_keeps_sessions_whole():
    calls = [make_request(session_id=f"s-{number % 40}") for number in range(400)]
    chosen = set(passed(lambda r: sample(r, 0.5, "session"), calls))
    by_session = {s: {r.call_id in chosen for r in calls if r.session_id == s} for s in {r.session_id for r in calls}}
    assert {len(told) for told in by_session.values()} == {1}
    assert 0 < len(chosen) < 400
    alone = [make_request(call_id=f"{number:x}") for number in range(100)]
    assert passed(lambda r: sample(r, 0.5, "session"), alone) == passed(lambda r: sample(r, 0.5), alone)


def test_sample_is_the_same_in_another_process():
    """Nothing random in it: hash seeds differ between processes."""
    program = """
        from otel_llm_callback.callbacks import sample
        from otel_llm_callback.testing import RecordingCallback, make_request
        recorder = RecordingCallback()
        callback = sample(recorder, 0.5)
        for number in range(64):
            callback.on_request_sent(make_request(call_id=f"{number:x}"), "")
        print(*recorder.calls())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, timeout=60
    )
    ids = [make_request(call_id=f"{number:x}") for number in range(64)]
    assert done.stdout.split() == passed(lambda r: sample(r, 0.5), ids)


# --- where ------------------------------------------------------------------------------------------------------------


def test_where_asks_once_per_call_and_holds_to_the_answer():
    """A function that answers differently each time cannot tear a call apart."""
    asked = []
    answers = itertools.cycle([True, False])

    def predicate(request):
        asked.append(request.call_id)
        return next(answers)

    calls = [make_request() for _ in range(6)]
    told = passed(lambda r: where(r, predicate), calls)
    assert asked == [r.call_id for r in calls]
    assert told == asked[::2]


def test_predicate_that_raises_tells_and_is_counted(expected_logs):
    """The call is told, siblings see nothing of it, and the failure is logged once without its text."""
    recorder, sibling = RecordingCallback(), RecordingCallback()

    def predicate(request):
        raise ValueError(SECRET)

    both = MultiCallback(where(recorder, predicate), sibling)
    for _ in range(2):
        tell(both, make_request(), chunks=2)
    assert recorder.names() == sibling.names()
    check_grammar(recorder.events)
    assert [r.levelname for r in expected_logs] == ["ERROR"]
    assert SECRET not in expected_logs[0].getMessage()
    assert status().errors["filter"] == 2


def test_where_remembers_nothing_of_calls_that_ended():
    """Whichever hooks the callback has; a call that is not told of is not remembered at all."""
    callbacks = [where(made(*chosen), bool) for chosen in subsets(HOOKS)]
    for callback in callbacks:
        tell(callback, make_request(), chunks=2)
        tell(callback, make_request(), error=OSError())
    assert [callback._told for callback in callbacks] == [set()] * len(callbacks)


def test_where_at_the_end_tells_of_errors_only(server, client):
    """The request, with its JSON, and the end come together; of the other calls nothing is told."""
    recorder = RecordingCallback()
    instrument(where(recorder, end=lambda end: end.outcome == "error"), delivery="inline", telemetry=False)
    client.chat.completions.create(**ASKED)
    list(client.chat.completions.create(**ASKED, stream=True))
    server.reply = lambda _: JsonReply(error_body("no"), status=400)
    with contextlib.suppress(Exception):
        client.chat.completions.create(**ASKED)
    assert recorder.names() == ["request_sent", "error"]
    assert '"messages"' in recorder.events[0].request_json
    check_grammar(recorder.events)


def test_where_at_the_end_asks_both_functions():
    """First which calls are of interest at all, then how they ended; what is not of interest is not kept."""
    calls = [make_request(user_id=user) for user in ("ann", "bob", "ann")]
    recorder = RecordingCallback()
    callback = where(recorder, lambda request: request.user_id == "ann", end=lambda end: end.outcome == "completed")
    tell(callback, calls[0])
    tell(callback, calls[1])
    tell(callback, calls[2], error=OSError())
    assert (list(recorder.calls()), recorder.names(calls[0].call_id)) == (
        [calls[0].call_id],
        ["request_sent", "response_received"],
    )
    assert callback._requests == {}


def test_end_is_told_although_the_request_hook_raises():
    """The failure is counted once the call was told of whole."""

    class Failing(RecordingCallback):
        def on_request_sent(self, metadata, request_json):
            super().on_request_sent(metadata, request_json)
            raise ConnectionError

    recorder = Failing()
    callback = where(recorder, end=bool)
    with pytest.raises(ConnectionError):
        tell(callback, make_request())
    assert recorder.names() == ["request_sent", "response_received"]


# --- batch ------------------------------------------------------------------------------------------------------------


def test_batch_hands_over_by_size_and_the_rest_on_flush(server, client):
    """Nothing is lost, doubled or out of order; a failed call is an end like any other."""
    lists = []
    instrument(batch(lists.append, size=3, seconds=None), telemetry=False)
    for _ in range(7):
        client.chat.completions.create(**ASKED)
    server.reply = lambda _: JsonReply(error_body("no"), status=400)
    with contextlib.suppress(Exception):
        client.chat.completions.create(**ASKED)
    assert flush()
    assert [[end.outcome for end in ends] for ends in lists] == [
        ["completed"] * 3,
        ["completed"] * 3,
        ["completed", "error"],
    ]
    assert len({end.call_id for ends in lists for end in ends}) == 8
    assert flush()
    assert len(lists) == 3


def test_batch_hands_over_by_time_without_another_call(server, client):
    """The thread of its queue wakes up for it: there is no thread for the clock."""
    lists = []
    instrument(batch(lists.append, size=1000, seconds=0.05), telemetry=False)
    client.chat.completions.create(**ASKED)
    wait_until(lambda: [len(ends) for ends in lists] == [1])
    client.chat.completions.create(**ASKED)
    wait_until(lambda: [len(ends) for ends in lists] == [1, 1])
    assert len([t for t in threading.enumerate() if t.name == "otel-llm-callback"]) == 1


def test_batch_is_handed_over_when_it_is_removed(server, client):
    lists = []
    instrument(telemetry=False)
    registration = register(batch(lists.append, size=1000, seconds=None))
    client.chat.completions.create(**ASKED)
    registration.remove()
    wait_until(lambda: [len(ends) for ends in lists] == [1])


@pytest.fixture
def own_shared_workers(monkeypatch):
    """The queues that blocks share are this test's own, and end with it."""
    shared = {}
    monkeypatch.setattr(_registry, "_scoped", shared)
    yield
    for worker in shared.values():
        worker.close()


@pytest.mark.usefixtures("own_shared_workers")
def test_batch_of_a_block_is_handed_over_after_the_block_is_gone(server, client):
    """Nobody holds the batch any more but what is in it."""
    lists = []
    instrument(telemetry=False)
    for _ in range(2):
        with using(batch(lists.append, size=1000, seconds=None)):
            client.chat.completions.create(**ASKED)
    assert flush()
    assert [len(ends) for ends in lists] == [1, 1]


def test_batch_of_an_async_function_is_awaited(server, client):
    lists = []

    async def take(ends):
        await asyncio.sleep(0)
        lists.append(ends)

    instrument(batch(take, size=2), telemetry=False)
    for _ in range(3):
        client.chat.completions.create(**ASKED)
    assert flush()
    assert [len(ends) for ends in lists] == [2, 1]


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_batch_tells_a_callback_of_many_calls_in_one_go(server, client, kind):
    """Request and end of each call together, in the order in which they ended, and nothing before its time."""
    recorder = RecordingCallback() if kind == "plain" else AsyncRecorder()
    instrument(batch(recorder, size=2, seconds=None), telemetry=False)
    client.chat.completions.create(**ASKED)
    assert recorder.names() == []
    list(client.chat.completions.create(**ASKED, stream=True))
    client.chat.completions.create(**ASKED)
    assert flush()
    assert recorder.names() == ["request_sent", "response_received"] * 3
    assert all('"messages"' in event.request_json for event in recorder.events if event.name == "request_sent")
    check_grammar(recorder.events)


def test_function_that_raises_loses_its_list_and_no_other(server, client, expected_logs):
    """It is counted and logged as any callback's failure is, by a name that says which function."""
    lists = []

    def take(ends):
        lists.append(len(ends))
        if len(lists) == 1:
            raise ValueError(SECRET)

    instrument(batch(take, size=2, seconds=None), telemetry=False)
    for _ in range(5):
        client.chat.completions.create(**ASKED)
    assert flush()
    [shown] = status().callbacks
    assert (lists, shown.name, shown.failed, shown.delivered) == ([2, 2, 1], "batch(take)", 1, 4)
    assert "batch(take).on_response_received failed" in expected_logs[0].getMessage()
    assert SECRET not in expected_logs[0].getMessage()


def test_function_that_hangs_costs_memory_up_to_the_queue_and_the_rest_is_counted():
    """Full is full: calls are left out whole, and every one is accounted for."""
    gate, taken = threading.Event(), []

    def take(ends):
        taken.extend(ends)
        assert gate.wait(A_WHILE_S)

    registration = register(batch(take, size=1), queue_size=4, overflow="drop_new")
    [listener] = registration.listeners
    for _ in range(50):
        tell(listener.callback, make_request())
    gate.set()
    assert flush()
    assert registration.dropped > 0
    assert (len(taken), registration.delivered + registration.dropped) == (registration.delivered, 50)
    registration.remove()


def test_batch_cannot_be_inline():
    """It would run the function on the caller's thread, and the clock would not be watched."""
    taker = batch(print)
    with pytest.raises(ValueError, match=r"batch\(print\) holds calls back and cannot be delivered 'inline'"):
        register(taker, delivery="inline")
    recorder = RecordingCallback()
    recorder.delivery_options = DeliveryOptions(delivery="inline")
    with pytest.raises(ValueError, match="cannot be batched"):
        batch(recorder)
    instrument(taker, delivery="inline", telemetry=False)  # the settings are for those who do not say
    assert status().callbacks[0].delivery == "queued"


def test_batch_is_handed_over_at_exit(server):
    program = f"""
        import openai, otel_llm_callback
        from otel_llm_callback.callbacks import batch, only
        otel_llm_callback.instrument(only(batch(lambda ends: print(len(ends), "ends")), operation="chat"))
        client = openai.OpenAI(api_key="none", base_url={server.url!r})
        for _ in range(3):
            client.chat.completions.create(model="m", messages=[])
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("3 ends\n", "")


@pytest.mark.skipif(not hasattr(sys.modules["os"], "fork"), reason="this system has no fork")
def test_forked_child_hands_over_its_own_calls_only(server):
    """What the parent holds is the parent's to hand over; the child starts empty and its thread works."""
    program = f"""
        import os, openai, otel_llm_callback
        from otel_llm_callback.callbacks import batch
        otel_llm_callback.instrument(
            batch(lambda ends: print(who, len(ends), flush=True), seconds=None), telemetry=False
        )
        client = openai.OpenAI(api_key="none", base_url={server.url!r})
        who = "parent"
        for _ in range(3):
            client.chat.completions.create(model="m", messages=[])
        while otel_llm_callback.status().callbacks[0].delivered < 3:
            pass
        if os.fork() == 0:
            who = "child"
            openai.OpenAI(api_key="none", base_url={server.url!r}).chat.completions.create(model="m", messages=[])
            otel_llm_callback.flush()
            os._exit(0)
        os.wait()
        otel_llm_callback.flush()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("child 1\nparent 3\n", "")


# --- What a filter takes up from the callback behind it ---------------------------------------------------------------


def subsets(items):
    return [chosen for size in range(1, len(items) + 1) for chosen in itertools.combinations(items, size)]


def made(*names):
    """An object with the hooks of these names and nothing else; it counts how often each is called."""
    callback = type("Callback", (), {"told": None})()
    callback.told = Counter()
    for name in names:
        setattr(callback, name, lambda first, second, name=name: callback.told.update([name]))
    return callback


class AsyncRecorder(RecordingCallback):
    """A recorder all hooks of which are to be awaited."""

    async def on_request_sent(self, metadata, request_json):
        await asyncio.sleep(0)
        super().on_request_sent(metadata, request_json)

    async def on_stream_chunk(self, chunk, index):
        super().on_stream_chunk(chunk, index)

    async def on_response_received(self, metadata, response_json):
        await asyncio.sleep(0)
        super().on_response_received(metadata, response_json)

    async def on_error(self, error, context):
        super().on_error(error, context)


PASS_ALL = {
    "only": lambda callback: only(callback, operation="*chat".strip("*")),
    "sample": lambda callback: sample(callback, 1),
    "where": lambda callback: where(callback, lambda request: True),
    "where_end": lambda callback: where(callback, end=lambda end: True),
    "batch": lambda callback: batch(callback, size=2),
}


@pytest.mark.parametrize("wrap", PASS_ALL.values(), ids=PASS_ALL)
@pytest.mark.parametrize("hooks", subsets(HOOKS), ids="+".join)
def test_filter_asks_for_no_more_than_the_callback_behind_it(wrap, hooks):
    """Which JSON is built, whether messages are measured and chunks are told: all as without the filter.

    Filters that put off what they tell ask for no chunk at all.
    """
    plain, filtered = (
        Dispatcher(make_listeners(callback, Settings(delivery="queued")))
        for callback in (made(*hooks), wrap(made(*hooks)))
    )
    facts = ["reads_request", "keeps_response", "measures", "wants_chunks", "wants_chunk_text"]
    expected = {name: getattr(plain, name) for name in facts}
    if wrap in {PASS_ALL["where_end"], PASS_ALL["batch"]}:
        expected.update(wants_chunks=False, wants_chunk_text=False)
    assert {name: getattr(filtered, name) for name in facts} == expected


@pytest.mark.parametrize("wrap", PASS_ALL.values(), ids=PASS_ALL)
def test_filter_keeps_content_and_delivery_options(wrap):
    """And of several as one each keeps its own, as does what holds them together."""
    first, second = RecordingCallback("none"), RecordingCallback("redacted")
    first.delivery_options = DeliveryOptions(queue_size=7, overflow="block", required=True)
    several = MultiCallback(first, MultiCallback(second))
    several.delivery_options = DeliveryOptions(queue_size=9)
    told = [
        (one.content, one.required, one.callback.worker.size, one.callback._overflow)
        for one in make_listeners(wrap(several), Settings())
    ]
    assert told == [("none", True, 7, "block"), ("redacted", False, 9, "drop_chunks")]


@pytest.mark.parametrize("wrap", PASS_ALL.values(), ids=PASS_ALL)
def test_async_hooks_are_awaited_behind_a_filter(server, client, wrap):
    recorder = AsyncRecorder()
    instrument(wrap(recorder), telemetry=False)
    client.chat.completions.create(**ASKED)
    client.chat.completions.create(**ASKED)
    assert flush()
    assert recorder.names() == ["request_sent", "response_received"] * 2


@pytest.mark.parametrize("wrap", PASS_ALL.values(), ids=PASS_ALL)
def test_async_hooks_behind_a_filter_are_refused_inline(wrap):
    with pytest.raises(ValueError, match="cannot be delivered 'inline'"):
        register(wrap(AsyncRecorder()), delivery="inline")


@pytest.mark.parametrize("name", ["only", "sample", "where"])
def test_context_manager_of_the_request_hook_is_held_open(server, client, name):
    """Until the response headers are back, as without the filter."""
    log = []

    class Holding:
        def on_request_sent(self, metadata, request_json):
            return self.hold()

        @contextlib.contextmanager
        def hold(self):
            log.append("entered")
            yield
            log.append("left")

        def on_response_received(self, metadata, response_json):
            log.append("response")

    instrument(PASS_ALL[name](Holding()), delivery="inline", telemetry=False)
    client.chat.completions.create(**ASKED)
    assert log == ["entered", "left", "response"]


def test_required_behind_a_filter_is_told_of_suppressed_calls(server, client):
    recorder = RecordingCallback()
    recorder.delivery_options = DeliveryOptions(required=True)
    instrument(only(recorder, user="ann"), telemetry=False)
    with suppress(), session(user="ann"):
        client.chat.completions.create(**ASKED)
    with suppress():
        client.chat.completions.create(**ASKED)
    assert flush()
    assert recorder.names() == ["request_sent", "response_received"]


def test_filter_is_named_after_what_it_filters(server, client):
    instrument(only(sample(RecordingCallback(), 1), model="gpt-*"), telemetry=False)
    assert [shown.name for shown in status().callbacks] == ["only(sample(RecordingCallback))"]


# --- Laws of any composition ------------------------------------------------------------------------------------------

wraps = st.lists(
    st.one_of(
        st.builds(lambda model: lambda c: only(c, model=model), names),
        st.builds(lambda user: lambda c: only(c, user=user), users),
        st.builds(lambda share: lambda c: sample(c, share), st.floats(0, 1)),
        st.builds(lambda odd: lambda c: where(c, lambda r: hash(r.call_id) % 2 == odd), st.integers(0, 1)),
        st.just(lambda c: where(c, end=lambda end: end.outcome != "cancelled")),
        st.builds(lambda size: lambda c: batch(c, size=size, seconds=None), st.integers(1, 4)),
        st.just(MultiCallback),
    ),
    max_size=4,
)
calls = st.lists(
    st.tuples(
        st.builds(make_request, model=st.sampled_from(FACTS["model"]), user_id=st.sampled_from(FACTS["user_id"])),
        st.integers(0, 3),
        st.sampled_from([None, OSError()]),
    ),
    max_size=8,
)


def interleaved(listeners, told, order):
    """Tell all listeners of all calls at once, event by event in an order of hypothesis's choice."""
    scripts = []
    for request, chunks, error in told:
        script = [("on_request_sent", request, "{}")]
        script += [("on_stream_chunk", make_chunk("text", request=request), index) for index in range(chunks)]
        script.append(
            ("on_response_received", make_response(request=request), "{}")
            if error is None
            else ("on_error", error, make_error_context(request=request))
        )
        scripts.append(script)
    while any(scripts):
        script = order([script for script in scripts if script])
        name, first, second = script.pop(0)
        for listener in listeners:
            if (hook := find_hook(listener.callback, name)) is not None:
                hook(first, second)


@given(wraps=wraps, told=calls, choose=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_any_composition_tells_whole_calls_in_order_once(wraps, told, choose):
    """Grammar per call, no call twice, none that is not there, ends in the order in which they came."""
    recorder, plain = RecordingCallback(), RecordingCallback()
    callback = recorder
    for wrap in wraps:
        callback = wrap(callback)
    listeners = [*make_listeners(callback, Settings()), *make_listeners(plain, Settings())]
    try:
        interleaved(listeners, told, choose.choice)
    finally:  # hypothesis may give an example up half way
        for listener in listeners:
            listener.callback.worker.close()
    for listener in listeners:
        assert listener.callback.worker.flush(time.monotonic() + A_WHILE_S, threading.current_thread())
    check_grammar(recorder.events)
    for call_id, events in recorder.calls().items():
        without_chunks = [event for event in plain.events_of(call_id) if event.name != "stream_chunk"]
        assert events in (plain.events_of(call_id), without_chunks)
    assert ends_of(recorder) == [call_id for call_id in ends_of(plain) if call_id in recorder.calls()]


def ends_of(recorder):
    """The call ids in the order in which the calls ended."""
    return [event.request.call_id for event in recorder.events if event.name in {"response_received", "error"}]


@given(declared=st.sampled_from(CONTENT_LEVELS), ceiling=st.sampled_from(CONTENT_LEVELS), wraps=wraps)
@settings(max_examples=60, deadline=None)
def test_no_composition_raises_content(declared, ceiling, wraps):
    callback = RecordingCallback(declared)
    for wrap in wraps:
        callback = wrap(callback)
    lowest = min(declared, ceiling, key=CONTENT_LEVELS.index)
    assert [one.content for one in make_listeners(callback, Settings(callback_content=ceiling))] == [lowest]


def test_hanging_child_delays_no_sibling(server, client):
    """While one hangs in its first event, its siblings are told of everything; the caller gets all answers."""
    gate, reached = threading.Event(), threading.Event()

    class Hanging(RecordingCallback):
        def on_request_sent(self, metadata, request_json):
            super().on_request_sent(metadata, request_json)
            reached.set()
            assert gate.wait(A_WHILE_S)

    hanging, siblings, lists = Hanging(), [RecordingCallback() for _ in range(3)], []
    instrument(
        MultiCallback(
            only(hanging, model="*"),
            sample(siblings[0], 1),
            where(siblings[1], lambda request: True),
            where(siblings[2], end=lambda end: True),
            batch(lists.append, size=20),
        ),
        telemetry=False,
    )
    server.reply = lambda request: StreamReply(chat_chunks(["a", "b"])) if request.json.get("stream") else None
    for _ in range(10):
        client.chat.completions.create(**ASKED)
        list(client.chat.completions.create(**ASKED, stream=True))
    assert reached.wait(A_WHILE_S)
    for sibling in siblings:
        sibling.wait_for_ends(20)
    wait_until(lambda: [len(ends) for ends in lists] == [20])
    assert hanging.names() == ["request_sent"]
    gate.set()
    assert flush()
    assert len(hanging.calls()) == 20
    for recorder in (hanging, *siblings):
        check_grammar(recorder.events)


def test_raising_child_hurts_no_sibling(server, client, expected_logs):
    """Behind a filter as without one: counted for it alone."""

    class Raising:
        def on_request_sent(self, metadata, request_json):
            raise OSError

        def on_response_received(self, metadata, response_json):
            raise SystemExit

    recorder = RecordingCallback()
    instrument(telemetry=False)
    first, second = register(sample(Raising(), 1)), register(only(recorder, operation="chat"))
    client.chat.completions.create(**ASKED)
    assert flush()
    assert recorder.names() == ["request_sent", "response_received"]
    assert (first.failed, first.delivered, second.failed, second.delivered) == (2, 0, 0, 2)
