"""Alerts: they fire and clear exactly when a plain model of the rule says so."""

from __future__ import annotations

import itertools
import logging
import math
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal
from fractions import Fraction

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_llm_callback import flush, instrument, register, session, status
from otel_llm_callback.callbacks import (
    Alert,
    AlertLog,
    CostRateAlert,
    ErrorRateAlert,
    FirstChunkAlert,
    GapAlert,
    LatencyAlert,
    OutputSpeedAlert,
    RateLimitAlert,
    TokenRateAlert,
    only,
)
from otel_llm_callback.testing import JsonReply, error_body, make_error_context, make_request, make_response
from otel_llm_callback.types import RateLimit, Retry, Usage

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
A_WHILE_S = 10.0


class Clock:
    """A monotonic clock that stands until it is moved on."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


def ended(alert, **facts):
    alert.on_response_received(make_response(**facts), "")


def failed(alert, outcome="error", **facts):
    alert.on_error(OSError(), make_error_context(outcome=outcome, **facts))


def brief(alerts):
    return [(alert.state, alert.value) for alert in alerts]


def wait_until(condition):
    deadline = time.monotonic() + A_WHILE_S
    while not condition():
        assert time.monotonic() < deadline, "it has not come true"
        time.sleep(0.005)


# --- What each alert reads of a call ----------------------------------------------------------------------------------

SLOW = {"response_time_ms": 3000.0}
WAITED = (Retry(at_ns=0, delay_s=2.0), Retry(at_ns=0, delay_s=0.5))
PARTIAL = make_response(outcome="error", usage=Usage(input_tokens=30), time_to_first_chunk_s=1.5, cost=Decimal("0.1"))


@pytest.mark.parametrize(
    ("make", "facts", "value"),
    [
        (lambda *t, **o: LatencyAlert(0.1, *t, **o), SLOW, 3.0),
        (lambda *t, **o: LatencyAlert(0.1, *t, **o), {**SLOW, "retries": WAITED}, 0.5),
        (lambda *t, **o: LatencyAlert(0.1, *t, **o), {**SLOW, "outcome": "closed_early"}, None),
        (lambda *t, **o: FirstChunkAlert(0.1, *t, **o), {"time_to_first_chunk_s": 1.5}, 1.5),
        (lambda *t, **o: FirstChunkAlert(0.1, *t, **o), {"time_to_first_chunk_s": 3.0, "retries": WAITED}, 0.5),
        (lambda *t, **o: FirstChunkAlert(0.1, *t, **o), {"time_to_first_chunk_s": 1.5, "outcome": "closed_early"}, 1.5),
        (lambda *t, **o: FirstChunkAlert(0.1, *t, output=True, **o), {"time_to_first_chunk_s": 1.5}, None),
        (lambda *t, **o: FirstChunkAlert(0.1, *t, output=True, **o), {"time_to_first_output_s": 2.5}, 2.5),
        (lambda *t, **o: GapAlert(0.1, *t, **o), {"longest_gap_s": 0.5}, 0.5),
        (lambda *t, **o: GapAlert(0.1, *t, **o), {}, None),
        (lambda *t, **o: OutputSpeedAlert(100, *t, **o), {**SLOW, "usage": Usage(output_tokens=60)}, 20.0),
        (lambda *t, **o: OutputSpeedAlert(100, *t, **o), {**SLOW, "usage": None}, None),
        (lambda *t, **o: TokenRateAlert(0.01, *t, window_s=10, **o), {"usage": Usage(total_tokens=50)}, 5.0),
        (lambda *t, **o: TokenRateAlert(0.01, *t, window_s=10, kind="input", **o), {}, 1.0),
        (lambda *t, **o: TokenRateAlert(0.01, *t, window_s=10, kind="output", **o), {}, 0.5),
        (lambda *t, **o: TokenRateAlert(0.01, *t, **o), {"usage": None}, None),
        (lambda *t, **o: CostRateAlert("0.01", *t, window_s=1800, **o), {"cost": Decimal("0.25")}, Decimal("0.5")),
        (lambda *t, **o: CostRateAlert("0.01", *t, **o), {}, None),
        (
            lambda *t, **o: RateLimitAlert(1, *t, **o),
            {"rate_limit": RateLimit(limit_tokens=8, remaining_tokens=2)},
            0.25,
        ),
        (lambda *t, **o: RateLimitAlert(1, *t, **o), {"rate_limit": RateLimit(remaining_tokens=2)}, None),
        (
            lambda *t, **o: RateLimitAlert(1, *t, **o),
            {"rate_limit": RateLimit(limit_tokens=0, remaining_tokens=0)},
            None,
        ),
        (
            lambda *t, **o: RateLimitAlert(1, *t, **o),
            {"rate_limit": RateLimit(limit_tokens=8, remaining_tokens=2, limit_requests=10, remaining_requests=1)},
            0.1,
        ),
        (lambda *t, **o: RateLimitAlert(1, *t, **o), {}, None),
    ],
)
def test_what_an_alert_reads_of_a_call(make, facts, value):
    """One call is enough here; what is unknown of it is no call at all."""
    alerts = []
    ended(make(alerts.append, min_calls=1), **facts)
    assert brief(alerts) == ([] if value is None else [("fired", value)])


def test_what_alerts_read_of_a_call_that_failed():
    """What had arrived before counts for chunks, tokens and cost; a failed call has no latency of its own."""
    limit = RateLimit(limit_tokens=8, remaining_tokens=2)
    made = [
        LatencyAlert,
        OutputSpeedAlert,
        FirstChunkAlert,
        GapAlert,
        lambda *t, **o: TokenRateAlert(*t, kind="input", window_s=10, **o),
        lambda *t, **o: CostRateAlert(*t, window_s=1800, **o),
        RateLimitAlert,
        ErrorRateAlert,
    ]
    found = {}
    for index, make in enumerate(made):
        alerts = []
        failed(make(0.5, alerts.append, min_calls=1) if index != 1 else make(1e6, alerts.append, min_calls=1))
        assert brief(alerts) == ([("fired", 1.0)] if make is ErrorRateAlert else [])
        threshold = 0.05 if index < 6 else 0.5
        failed(make(threshold, alerts.append, min_calls=1), partial=PARTIAL, rate_limit=limit)
        found[index] = [alert.value for alert in alerts[-1:]]
    assert found == {0: [], 1: [], 2: [1.5], 3: [], 4: [3.0], 5: [Decimal("0.2")], 6: [0.25], 7: [1.0]}


@pytest.mark.parametrize("outcome", ["completed", "closed_early", "abandoned"])
def test_early_close_is_never_an_error(outcome):
    """It counts as a call without one."""
    alerts = []
    alert = ErrorRateAlert(0, alerts.append, min_calls=1)
    for _ in range(30):
        ended(alert, outcome=outcome)
    assert alerts == []
    failed(alert)
    assert brief(alerts) == [("fired", 1 / 31)]


def test_cancelled_call_is_neither_an_error_nor_a_call():
    alerts = []
    alert = ErrorRateAlert(0.5, alerts.append, min_calls=2)
    for _ in range(30):
        failed(alert, outcome="cancelled")
    failed(alert)
    assert alerts == []
    failed(alert)
    assert brief(alerts) == [("fired", 1.0)]


# --- When it fires and clears: against a plain model ------------------------------------------------------------------


@dataclass
class Reference:
    """The rule in its plainest form: keep everything, compute all of it anew each time."""

    beyond: object
    measure: object
    threshold: float
    clear_at: float
    window_s: float
    min_calls: int
    max_calls: int
    cool_down_s: float
    seen: list = field(default_factory=list)
    firing: bool = False
    fired_s: float = -math.inf

    def look(self, now_s):
        return [value for at_s, value in self.seen[-self.max_calls :] if at_s > now_s - self.window_s]

    def judge(self, now_s):
        values = self.look(now_s)
        value = self.measure(values) if values else None
        enough = len(values) >= self.min_calls
        if self.firing:
            if not values or (enough and not self.beyond(value, self.clear_at)):
                self.firing = False
                return [("cleared", value)]
        elif enough and self.beyond(value, self.threshold) and now_s - self.fired_s >= self.cool_down_s:
            self.firing, self.fired_s = True, now_s
            return [("fired", value)]
        return []

    def event(self, now_s, value):
        told = self.judge(now_s) if self.firing else []
        self.seen.append((now_s, value))
        return told + self.judge(now_s)


def nearest_rank(percent):
    return lambda values: sorted(values)[max(1, math.ceil(Fraction(percent, 100) * len(values))) - 1]


def share_above(level):
    return lambda values: sum(value > level for value in values) / len(values)


steps = st.lists(
    st.tuples(st.sampled_from([0, 0.25, 1, 5, 40]), st.sampled_from([0, 1, 2, 3, 4, 5, None])), min_size=1, max_size=60
)
"""Seconds that pass, and what a call then measures; None for the clock alone."""

options = st.fixed_dictionaries(
    {
        "window_s": st.sampled_from([3, 10, 60]),
        "min_calls": st.integers(1, 4),
        "max_calls": st.integers(4, 8),
        "cool_down_s": st.sampled_from([0, 2, 20]),
    }
)


@given(steps=steps, options=options, clear_at=st.sampled_from([1, 2, 3]), percent=st.sampled_from([1, 50, 90, 100]))
@settings(max_examples=200)
def test_percentile_fires_as_the_model_says(steps, options, clear_at, percent):
    alerts, clock = [], Clock()
    alert = LatencyAlert(3, alerts.append, percentile=percent, clear_at=clear_at, clock=clock, **options)
    model = Reference(lambda v, level: v > level, nearest_rank(percent), 3, clear_at, **options)
    run(steps, clock, alert, model, alerts, lambda value: ended(alert, response_time_ms=value * 1000.0))


@given(steps=steps, options=options, clear_at=st.sampled_from([0, 0.3, 0.6]))
@settings(max_examples=200)
def test_share_fires_as_the_model_says(steps, options, clear_at):
    alerts, clock = [], Clock()
    alert = LatencyAlert(2, alerts.append, share=0.6, clear_at=clear_at, clock=clock, **options)
    model = Reference(lambda v, level: v > level, share_above(2), 0.6, clear_at, **options)
    run(steps, clock, alert, model, alerts, lambda value: ended(alert, response_time_ms=value * 1000.0))


@given(steps=steps, options=options, clear_at=st.sampled_from([0.5, 0.7, 1]))
@settings(max_examples=200)
def test_headroom_fires_below_as_the_model_says(steps, options, clear_at):
    alerts, clock = [], Clock()
    alert = RateLimitAlert(0.5, alerts.append, clear_at=clear_at, clock=clock, **options)
    model = Reference(lambda v, level: v < level, lambda values: values[-1] / 5, 0.5, clear_at, **options)
    run(
        steps,
        clock,
        alert,
        model,
        alerts,
        lambda value: ended(alert, rate_limit=RateLimit(limit_requests=5, remaining_requests=value)),
    )


def run(steps, clock, alert, model, alerts, end):
    """Step by step the alert says what the model says, and keeps the two promises about repetition."""
    said, fired_s = [], []
    for passes_s, value in steps:
        clock.now_s += passes_s
        before = len(alerts)
        if value is None:
            alert._look_again()
            expected = model.judge(clock.now_s) if model.firing else []
        else:
            end(value)
            expected = model.event(clock.now_s, value)
        assert brief(alerts[before:]) == expected
        said += [state for state, _ in expected]
        fired_s += [clock.now_s for state, _ in expected if state == "fired"]
        assert alert.firing == ((None,) if model.firing else ())
    assert said == list(itertools.islice(itertools.cycle(["fired", "cleared"]), len(said)))
    assert all(later - earlier >= model.cool_down_s for earlier, later in itertools.pairwise(fired_s))


@given(steps=steps, cool_down_s=st.sampled_from([0, 20]), clear_at=st.sampled_from(["0.01", "0.2"]))
@settings(max_examples=100)
def test_rate_fires_as_the_model_says_and_money_stays_exact(steps, cool_down_s, clear_at):
    """The window of a sum moves on in sixtieths; a sixtieth leaves it whole."""
    alerts, clock = [], Clock()
    alert = CostRateAlert("0.2", alerts.append, clear_at=clear_at, window_s=15, cool_down_s=cool_down_s, clock=clock)
    seen, firing, fired_s = [], False, -math.inf
    for passes_s, value in steps:
        clock.now_s += passes_s
        now = math.floor(clock.now_s * 4)
        before, expected = len(alerts), []
        for is_new in [False, True]:
            if is_new and value is not None:
                seen.append((now, Decimal(value) / 10000))
            within = [cost for part, cost in seen if part > now - 60]
            rate = sum(within) * 3600 / 15 if within else None
            if firing and (rate is None or rate <= Decimal(clear_at)):
                firing = False
                expected.append(("cleared", rate))
                continue
            may_fire = is_new and value is not None and not firing and clock.now_s - fired_s >= cool_down_s
            if may_fire and rate > Decimal("0.2"):
                firing, fired_s = True, clock.now_s
                expected.append(("fired", rate))
        if value is None:
            alert._look_again()
        else:
            ended(alert, cost=Decimal(value) / 10000)
        assert brief(alerts[before:]) == expected
        assert all(len(group.window._parts) <= 60 for group in alert._groups.values())


def test_memory_is_bounded_by_calls_and_by_groups():
    """A thousand sessions of a thousand calls: so many samples, so many groups, one for all the others."""
    alert = LatencyAlert(1, print, group_by="session", max_groups=3, max_calls=20, clock=Clock())
    for number in range(100):
        for _ in range(30):
            ended(alert, request=make_request(session_id=f"s-{number}"))
    assert {name: group.window.count for name, group in alert._groups.items()} == {
        "s-0": 20,
        "s-1": 20,
        "s-2": 20,
        "other": 20,
    }


def test_idle_group_makes_room_and_one_that_fired_is_not_forgotten():
    """Neither while it is on nor in its cool-down, or it could fire too early."""
    alerts, clock = [], Clock()
    alert = LatencyAlert(
        1, alerts.append, group_by="user", max_groups=2, min_calls=1, window_s=10, cool_down_s=50, clock=clock
    )
    ended(alert, request=make_request(user_id="ann"), response_time_ms=2000.0)
    ended(alert, request=make_request(user_id="bob"))
    clock.now_s += 20
    ended(alert, request=make_request(user_id="eve"))
    assert (list(alert._groups), [(a.group, a.state) for a in alerts]) == (
        ["ann", "eve"],
        [("ann", "fired"), ("ann", "cleared")],
    )
    ended(alert, request=make_request(user_id="dan"))
    assert list(alert._groups) == ["ann", "eve", "other"]
    clock.now_s += 50
    ended(alert, request=make_request(user_id="fay"))
    assert list(alert._groups) == ["fay"]


@pytest.mark.parametrize(
    ("group_by", "group"),
    [
        (None, None),
        ("model", "gpt-4o-mini"),
        ("provider", "openai"),
        ("operation", "chat"),
        ("session", "s-1"),
        ("user", "unknown"),
        (lambda request: request.server_port, "443"),
    ],
)
def test_groups_are_told_apart(group_by, group):
    alerts = []
    alert = LatencyAlert(0.01, alerts.append, min_calls=1, group_by=group_by)
    ended(alert, request=make_request(session_id="s-1"))
    assert [told.group for told in alerts] == [group]


def test_alert_names_the_worst_call():
    """Its ids lead to its trace: the slowest of the window, also when it fires upon a later one."""
    alerts, clock = [], Clock()
    alert = LatencyAlert(1, alerts.append, min_calls=3, percentile=50, clock=clock)
    worst = make_request(trace_id="a" * 32, span_id="b" * 16)
    ended(alert, request=worst, response_time_ms=9000.0)
    ended(alert, response_time_ms=2000.0)
    ended(alert, request=make_request(), response_time_ms=2500.0)
    [told] = alerts
    assert told == Alert(
        name="latency",
        state="fired",
        value=2.5,
        threshold=1,
        unit="s",
        statistic="p50",
        above=True,
        window_s=300.0,
        calls=3,
        group=None,
        call_id=worst.call_id,
        trace_id="a" * 32,
        span_id="b" * 16,
        at=told.at,
    )
    assert str(told) == "latency fired: p50 is 2.5 s, alert is above 1 s, 3 calls in 300 s"


def test_group_cannot_steer_a_terminal():
    alerts = []
    alert = LatencyAlert(0.01, alerts.append, min_calls=1, group_by="model")
    ended(alert, request=make_request(model="evil\x1b[2J\nmodel"))
    assert str(alerts[0]).startswith(r"latency of evil\x1b[2J\nmodel fired: p95 is 0.1 s")


# --- Mistakes ---------------------------------------------------------------------------------------------------------


async def awaited(alert):
    """A target that would have to be awaited."""


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (lambda: LatencyAlert(0), ValueError, "threshold=0 is not allowed; allowed: a number greater than 0"),
        (lambda: LatencyAlert(1, percentile=101), ValueError, "percentile=101 is not allowed"),
        (lambda: LatencyAlert(1, share=1), ValueError, "share=1 is not allowed; allowed: a number from 0, below 1"),
        (lambda: LatencyAlert(1, share=0.1, percentile=50), ValueError, "exclude one another"),
        (
            lambda: LatencyAlert(1, clear_at=2),
            ValueError,
            "clear_at=2 is not allowed; allowed: at most the threshold, 1",
        ),
        (lambda: RateLimitAlert(0.2, clear_at=0.1), ValueError, "at least the threshold"),
        (
            lambda: LatencyAlert(1, window_s=0),
            ValueError,
            "window_s=0 is not allowed; allowed: a number greater than 0",
        ),
        (
            lambda: LatencyAlert(1, min_calls=5, max_calls=4),
            ValueError,
            "max_calls=4 is not allowed; allowed: at least",
        ),
        (lambda: LatencyAlert(1, cool_down_s=-1), ValueError, "cool_down_s=-1"),
        (lambda: LatencyAlert(1, group_by="colour"), ValueError, "group_by='colour' is not allowed; allowed: `model`"),
        (lambda: LatencyAlert(1, "page me"), TypeError, "a target is a function"),
        (lambda: LatencyAlert(1, awaited), TypeError, "a target is a function"),
        (lambda: ErrorRateAlert(1), ValueError, "threshold=1 is not allowed; allowed: a number from 0, below 1"),
        (lambda: RateLimitAlert(0), ValueError, "threshold=0 is not allowed"),
        (lambda: TokenRateAlert(1, kind="paid"), ValueError, "kind='paid' is not allowed; allowed: `total`"),
        (lambda: CostRateAlert("much"), ValueError, "threshold='much' is not allowed; allowed: an amount"),
    ],
)
def test_mistake_raises_when_the_alert_is_made(wrong, error, text):
    with pytest.raises(error, match=text):
        wrong()


# --- Over real calls --------------------------------------------------------------------------------------------------


def test_error_rate_over_real_calls(server, client):
    """It fires at the failure that takes it over the threshold and clears when calls go well again."""
    alerts = []
    instrument(ErrorRateAlert(0.3, alerts.append, min_calls=3, max_calls=4, clear_at=0.25), telemetry=False)
    for fails in [False, False, True, True, False, False, False]:
        server.reply = (lambda _: JsonReply(error_body("no"), status=400)) if fails else None
        try:
            client.chat.completions.create(**ASKED)
        except openai.BadRequestError:
            assert fails
    assert flush()
    assert brief(alerts) == [("fired", 1 / 3), ("cleared", 0.25)]


def test_alert_clears_by_itself_when_no_call_comes_any_more(server, client):
    """The thread of its queue wakes up for it, also behind a filter."""
    alerts = []
    alert = LatencyAlert(0.000001, alerts.append, min_calls=1, window_s=0.2)
    instrument(only(alert, operation="chat"), telemetry=False)
    client.chat.completions.create(**ASKED)
    wait_until(lambda: [told.state for told in alerts] == ["fired", "cleared"])
    assert (alerts[1].value, alerts[1].calls) == (None, 0)
    assert abs((alerts[1].at - datetime.now(timezone.utc)).total_seconds()) < A_WHILE_S


def test_alert_may_be_inline(server, client):
    """It is told before the call returns."""
    alerts = []
    instrument(LatencyAlert(0.000001, alerts.append, min_calls=1), telemetry=False, delivery="inline")
    client.chat.completions.create(**ASKED)
    assert [told.state for told in alerts] == ["fired"]


def test_target_that_raises_hurts_no_other_and_is_counted(server, client, expected_logs):
    alerts = []

    def page(alert):
        raise ConnectionError

    registration = register(LatencyAlert(0.000001, page, alerts.append, min_calls=1))
    instrument(telemetry=False)
    client.chat.completions.create(**ASKED)
    assert flush()
    assert ([told.state for told in alerts], registration.failed) == (["fired"], 1)
    assert "callback LatencyAlert.on_response_received failed" in expected_logs[0].getMessage()


def test_target_may_ask_what_is_firing_and_call_the_api(server, client):
    """No lock is held while it runs, and its own call is not observed."""
    seen = []
    alert = LatencyAlert(
        0.000001,
        lambda told: seen.append((alert.firing, client.chat.completions.create(**ASKED).object)),
        min_calls=1,
        group_by="model",
    )
    instrument(alert, telemetry=False)
    client.chat.completions.create(**ASKED)
    assert flush()
    assert seen == [(("gpt-4o-mini",), "chat.completion")]


def test_one_thread_a_time_judges():
    """Many threads end calls at once: of one alert there is one fire."""
    alerts = []
    alert = LatencyAlert(0.01, alerts.append, min_calls=50, max_calls=100_000)
    threads = [threading.Thread(target=lambda: [ended(alert) for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ([told.state for told in alerts], alert._groups[None].window.count) == (["fired"], 1600)


@pytest.mark.skipif(not hasattr(sys.modules["os"], "fork"), reason="this system has no fork")
def test_forked_child_starts_with_nothing_on():
    program = """
        import os, sys
        from otel_llm_callback.callbacks import LatencyAlert
        from otel_llm_callback.testing import make_response
        alert = LatencyAlert(0.01, lambda alert: None, min_calls=1)
        alert.on_response_received(make_response(), "")
        if os.fork() == 0:
            print("child", alert.firing, flush=True)
            os._exit(0)
        os.wait()
        print("parent", alert.firing)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("child ()\nparent (None,)\n", "")


def test_without_a_target_it_is_a_warning_in_the_log(server, client, expected_logs):
    """The record carries the alert and the ids of the worst call's trace."""
    with session("s-1"):
        instrument(LatencyAlert(0.000001, min_calls=1, window_s=60), delivery="inline")
        client.chat.completions.create(**ASKED)
    [record] = expected_logs
    assert (record.name, record.levelname, record.getMessage()) == (
        "otel_llm_callback.alerts",
        "WARNING",
        str(record.alert),
    )
    assert (record.otelTraceID, record.otelSpanID) == (record.alert.trace_id or "0", record.alert.span_id or "0")


def test_cleared_is_information_and_the_logger_is_the_user_s(caplog):
    clock = Clock()
    alert = LatencyAlert(1, AlertLog("my.alerts"), min_calls=1, window_s=10, clock=clock)
    with caplog.at_level(logging.INFO, "my.alerts"):
        ended(alert, response_time_ms=2000.0)
        clock.now_s += 10
        alert._look_again()
    assert [(r.name, r.levelname) for r in caplog.records] == [("my.alerts", "WARNING"), ("my.alerts", "INFO")]
    assert caplog.records[1].getMessage() == "latency cleared: no calls left, alert is above 1 s, 0 calls in 10 s"


def test_status_names_the_alert():
    instrument(LatencyAlert(1, print), only(ErrorRateAlert(0.1, print), model="gpt-*"), telemetry=False)
    assert [shown.name for shown in status().callbacks] == ["LatencyAlert", "only(ErrorRateAlert)"]
