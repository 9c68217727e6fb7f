"""SessionAnalytics: sums, percentiles, sessions, bounds."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import threading
from dataclasses import replace
from decimal import Decimal
from functools import reduce
from operator import add

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_callback.callbacks import CallSummary, Distribution, SessionAnalytics, SessionSummary
from otel_llm_callback.callbacks._distribution import ACCURACY, HIGHEST_MS, LOWEST_MS, Times
from otel_llm_callback.callbacks.sessions import OTHER
from otel_llm_callback.protocol import check_callback, find_hook
from otel_llm_callback.testing import make_error_context, make_request, make_response
from otel_llm_callback.types import Retry, Usage


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return round(self.now_s * 1e9)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def analytics(clock):
    return SessionAnalytics(clock_ns=clock)


def respond(analytics, request=None, **over):
    request = request or make_request()
    analytics.on_request_sent(request, "")
    analytics.on_response_received(make_response(request=request, **over), "")


def fail(analytics, request=None, **over):
    request = request or make_request()
    analytics.on_request_sent(request, "")
    analytics.on_error(ValueError(), make_error_context(request=request, **over))


def times(*values_ms):
    collected = Times()
    for value in values_ms:
        collected.add(value)
    return collected.distribution()


def test_it_is_a_callback_that_leaves_chunks_alone(analytics):
    check_callback(analytics)
    assert analytics.content == "none"
    assert find_hook(analytics, "on_stream_chunk") is None


def test_calls_are_counted_by_how_they_ended(analytics):
    respond(analytics)
    respond(analytics, outcome="closed_early")
    fail(analytics)
    fail(analytics, outcome="cancelled", error_type="CancelledError")
    analytics.on_request_sent(make_request(), "")
    summary = analytics.summary()
    assert (summary.requests, summary.responses, summary.errors, summary.cancelled, summary.open_calls) == (
        5,
        2,
        1,
        1,
        1,
    )
    assert summary.outcomes == {"completed": 1, "closed_early": 1, "abandoned": 0, "cancelled": 1, "error": 1}
    assert summary.error_types == {"RateLimitError": 1}


def test_nothing_reported_is_unknown_and_not_zero(analytics):
    respond(analytics, usage=None)
    summary = analytics.summary()
    assert (summary.total_tokens, summary.input_tokens, summary.cached_tokens, summary.cost) == (None,) * 4
    assert summary.average_tokens_per_response is None
    assert (summary.responses_with_usage, summary.responses_without_usage) == (0, 1)


def test_average_divides_by_responses_that_reported_usage(analytics):
    """Neither a response without usage nor the tokens of an error move the average; the totals have them all."""
    respond(analytics, usage=Usage(input_tokens=10, output_tokens=20))
    respond(analytics, usage=Usage(input_tokens=1, output_tokens=3, cached_tokens=1, reasoning_tokens=2))
    respond(analytics, usage=None)
    request = make_request()
    fail(analytics, request, partial=make_response(request=request, usage=Usage(input_tokens=100, output_tokens=1)))
    summary = analytics.summary()
    assert summary.average_tokens_per_response == 17.0
    assert (summary.input_tokens, summary.output_tokens, summary.total_tokens) == (111, 24, 135)
    assert (summary.cached_tokens, summary.reasoning_tokens, summary.cache_write_tokens) == (1, 2, None)


def test_estimates_are_counted_apart(analytics):
    respond(analytics, usage_source="estimated")
    assert analytics.summary().responses_with_estimated_usage == 1


def test_cost_adds_up_over_priced_calls_only(analytics):
    respond(analytics, cost=Decimal("0.1"))
    respond(analytics, cost=Decimal("0.2"))
    respond(analytics)
    assert (analytics.summary().cost, analytics.summary().priced_calls) == (Decimal("0.3"), 2)


def test_latency_is_of_completed_calls_with_and_without_waits(analytics):
    waits = (Retry(at_ns=0, delay_s=0.5, status_code=429), Retry(at_ns=0, delay_s=0.25))
    respond(analytics, response_time_ms=1000.0, retries=waits)
    respond(analytics, response_time_ms=5.0, outcome="closed_early", time_to_first_chunk_s=0.004)
    fail(analytics, response_time_ms=9000.0)
    summary = analytics.summary()
    assert (summary.latency.count, summary.latency.p50_ms) == (1, 1000.0)
    assert summary.latency_without_retry_wait.mean_ms == 250.0
    assert summary.time_to_first_chunk.p99_ms == 4.0
    assert (summary.retries, summary.retried_calls, summary.retry_wait_s) == (2, 1, 0.75)


def test_models_are_counted_apart_by_the_requested_name(analytics):
    respond(analytics, make_request(model="gpt-a"), model="gpt-a-2026-01-01")
    fail(analytics, make_request(model="gpt-a"))
    respond(analytics, make_request(model=None))
    models = analytics.summary().models
    assert {name: (calls.requests, calls.errors) for name, calls in models.items()} == {
        "gpt-a": (2, 1),
        "(unknown)": (1, 0),
    }


def test_model_and_error_names_are_bounded(analytics):
    for number in range(150):
        fail(analytics, make_request(model=f"m{number}"), error_type=f"e{number}")
    summary = analytics.summary()
    assert (len(summary.models), summary.models[OTHER].requests) == (101, 50)
    assert (len(summary.error_types), summary.error_types[OTHER]) == (101, 50)


def test_duration_is_from_first_send_to_last_end(analytics, clock):
    first, second = make_request(), make_request()
    analytics.on_request_sent(first, "")
    assert analytics.summary().duration_s is None
    clock.now_s += 2
    analytics.on_request_sent(second, "")
    clock.now_s += 3
    analytics.on_response_received(make_response(request=second, response_time_ms=3000.0), "")
    clock.now_s += 60
    assert analytics.summary().duration_s == 5.0


def test_duration_does_not_follow_the_wall_clock(analytics, clock):
    """Between two calls the wall clock is set back by a day."""
    respond(analytics, response_time_ms=0.0)
    clock.now_s += 10
    respond(analytics, make_request(started_ns=make_request().started_ns - 86_400 * 10**9), response_time_ms=0.0)
    assert analytics.summary().duration_s == 10.0


def test_duration_does_not_count_the_queue(analytics, clock):
    """Both events of a call of two seconds are delivered late, and together."""
    clock.now_s += 30
    respond(analytics, response_time_ms=2000.0)
    assert analytics.summary().duration_s == 2.0


def test_duration_counts_a_late_end_from_its_send(analytics, clock):
    request = make_request()
    analytics.on_request_sent(request, "")
    clock.now_s += 30
    analytics.on_response_received(make_response(request=request, response_time_ms=2000.0), "")
    assert analytics.summary().duration_s == 2.0


def test_a_session_has_its_own_totals(analytics):
    respond(analytics, make_request(session_id="a"))
    respond(analytics, make_request(session_id="b"))
    respond(analytics, make_request(session_id="b"))
    analytics.on_request_sent(make_request(session_id="b"), "")
    respond(analytics)
    assert analytics.session_ids() == ("a", "b")
    assert (analytics.summary().requests, analytics.summary().sessions) == (5, 2)
    session = analytics.summary(session_id="b")
    assert (session.session_id, session.requests, session.open_calls, session.total_tokens) == ("b", 3, 1, 30)


def test_an_unknown_session_is_an_error(analytics):
    with pytest.raises(KeyError, match="'nobody' was not seen or has expired"):
        analytics.summary(session_id="nobody")


def test_sessions_expire_by_time(clock):
    analytics = SessionAnalytics(clock_ns=clock, session_ttl_s=60)
    respond(analytics, make_request(session_id="old"))
    clock.now_s += 50
    respond(analytics, make_request(session_id="young"))
    clock.now_s += 11
    assert analytics.session_ids() == ("young",)
    summary = analytics.summary()
    assert (summary.requests, summary.sessions, summary.expired_sessions) == (2, 1, 1)


def test_an_expired_session_does_not_come_back_with_its_past(clock):
    analytics = SessionAnalytics(clock_ns=clock, session_ttl_s=60)
    respond(analytics, make_request(session_id="a"))
    clock.now_s += 61
    respond(analytics, make_request(session_id="a"))
    assert analytics.summary(session_id="a").requests == 1


def test_sessions_expire_by_number_the_idle_ones_first(clock):
    analytics = SessionAnalytics(clock_ns=clock, max_sessions=2)
    for session_id in ("a", "b", "a", "c"):
        respond(analytics, make_request(session_id=session_id))
    assert analytics.session_ids() == ("a", "c")


def test_calls_that_never_end_are_given_up(clock):
    analytics = SessionAnalytics(clock_ns=clock, call_ttl_s=60, max_open_calls=3)
    for _ in range(5):
        analytics.on_request_sent(make_request(), "")
    assert (analytics.summary().open_calls, analytics.summary().expired_calls) == (3, 2)
    clock.now_s += 61
    assert (analytics.summary().open_calls, analytics.summary().expired_calls) == (0, 5)


def test_reset_carries_open_calls_over(analytics, clock):
    request = make_request(session_id="a")
    respond(analytics)
    analytics.on_request_sent(request, "")
    analytics.reset()
    clock.now_s += 1
    analytics.on_response_received(make_response(request=request, response_time_ms=1000.0), "")
    summary = analytics.summary()
    assert (summary.requests, summary.responses, summary.open_calls, summary.duration_s) == (1, 1, 0, 1.0)
    assert analytics.summary(session_id="a").responses == 1


@pytest.mark.parametrize("limit", ["max_sessions", "session_ttl_s", "max_open_calls", "call_ttl_s"])
def test_limits_must_be_positive(limit):
    with pytest.raises(ValueError, match=f"{limit} is 0"):
        SessionAnalytics(**{limit: 0})


def test_threads_lose_nothing():
    analytics = SessionAnalytics()

    def work(number):
        for _ in range(200):
            respond(analytics, make_request(session_id=f"s{number % 3}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    summary = analytics.summary()
    assert (summary.requests, summary.responses, summary.total_tokens, summary.open_calls) == (1600, 1600, 24_000, 0)
    assert sum(analytics.summary(session_id=name).requests for name in analytics.session_ids()) == 1600


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_starts_from_zero_even_if_the_lock_was_held(analytics):
    respond(analytics)
    with analytics._lock:
        child = os.fork()
        if child == 0:
            respond(analytics)
            os._exit(analytics.summary().requests)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert analytics.summary().requests == 1


def test_the_final_summary_is_plain_and_aligned(analytics, clock):
    clock.now_s += 5
    respond(analytics, retries=(Retry(at_ns=0, delay_s=0.05, status_code=429),), time_to_first_chunk_s=0.01)
    fail(analytics)
    assert str(analytics).splitlines() == [
        "Session summary",
        "  Duration             100 ms",
        "  Requests             2",
        "  Responses            1",
        "  Errors               1 (1 RateLimitError)",
        "  Tokens               15 total",
        "                       10 input, 5 output",
        "  Tokens per response  15.0 on average over 1 response",
        "  Response time        p50 100 ms, p95 100 ms, p99 100 ms",
        "    without waits      p50 50 ms, p95 50 ms, p99 50 ms",
        "  First chunk after    p50 10 ms, p95 10 ms, p99 10 ms",
        "  Retries              1 retry in 1 call, 50 ms of waiting",
    ]


def test_the_final_summary_says_what_is_unusual(analytics):
    respond(analytics, make_request(model="a"), outcome="closed_early", cost=Decimal("0.0125"), usage=None)
    fail(analytics, make_request(model="b"), outcome="cancelled")
    fail(analytics, make_request(model="b"), error_type="APITimeoutError")
    analytics.on_request_sent(make_request(model="b"), "")
    shown = str(analytics)
    for line in [
        "  Requests             4 (1 open)",
        "  Responses            1 (1 closed_early)",
        "  Errors               1 (1 APITimeoutError)",
        "  Cancelled            1",
        "  Tokens               not reported",
        "  Tokens per response  not reported",
        "  Cost                 0.0125 USD for 1 call",
        "  Model                b",
        "                       3 requests, 1 error",
    ]:
        assert line in shown.splitlines()


def test_the_final_summary_has_the_cost_of_each_model(analytics):
    respond(analytics, make_request(model="a"), cost=Decimal("0.50"))
    respond(analytics, make_request(model="b"))
    shown = str(analytics).splitlines()
    assert [line.strip() for line in shown if "USD" in line or "Model" in line] == [
        "Cost                 0.5 USD for 1 call",
        "Model                a",
        "1 request, 15 tokens, 0.5 USD",
        "Model                b",
    ]


def test_the_final_summary_is_safe_for_a_terminal(analytics):
    hostile = "\x1b]0;title\x07\n\u202e"
    respond(analytics, make_request(model=hostile, session_id=hostile))
    fail(analytics, make_request(model="other", session_id=hostile), error_type=hostile)
    for line in str(analytics.summary(session_id=hostile)).split("\n"):
        assert line.isprintable()


def test_the_summary_of_nothing_says_so(analytics):
    assert "no call has ended" in str(analytics)
    assert "not reported" in str(analytics)


def test_a_summary_can_be_made_json(analytics):
    respond(analytics)
    assert json.loads(json.dumps(dataclasses.asdict(analytics.summary()), default=str))["latency"]["p50_ms"] == 100.0


# Properties: independent calls in any order, in any split, add up to the same.

usages = st.none() | st.builds(
    Usage,
    input_tokens=st.none() | st.integers(0, 10**6),
    output_tokens=st.none() | st.integers(0, 10**6),
    cached_tokens=st.none() | st.integers(0, 10**6),
)
ends = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["a", "b", None]),
        "session_id": st.sampled_from(["s", "t", None]),
        "outcome": st.sampled_from(["completed", "closed_early", "abandoned", "error", "cancelled"]),
        "usage": usages,
        "response_time_ms": st.floats(0, 1e7),
        "delays_s": st.lists(st.floats(0, 60), max_size=2),
        "first_s": st.none() | st.floats(0, 100),
        "started_s": st.integers(0, 10**6),
        "cost": st.none() | st.integers(0, 1000).map(lambda cents: Decimal(cents) / 100),
    }
)


def make_call(end):
    """Return the events of one call as functions of an analytics."""
    request = make_request(
        model=end["model"], session_id=end["session_id"], started_ns=10**18 + end["started_s"] * 10**9
    )
    retries = tuple(Retry(at_ns=0, delay_s=delay) for delay in end["delays_s"])
    failed = end["outcome"] in ("error", "cancelled")
    response = make_response(
        request=request,
        outcome=end["outcome"],
        usage=end["usage"],
        response_time_ms=end["response_time_ms"],
        retries=retries,
        time_to_first_chunk_s=end["first_s"],
        cost=end["cost"],
    )
    context = make_error_context(
        request=request,
        outcome=end["outcome"],
        partial=response,
        retries=retries,
        response_time_ms=end["response_time_ms"],
    )

    def finish(analytics):
        if failed:
            analytics.on_error(ValueError(), context)
        else:
            analytics.on_response_received(response, "")

    return [lambda analytics: analytics.on_request_sent(request, ""), finish]


def observed(events):
    analytics = SessionAnalytics(clock_ns=Clock())
    for event in events:
        event(analytics)
    return analytics.summary()


@given(st.lists(ends, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_independent_calls_does_not_matter(calls, chance: random.Random):
    """Interleaved in any way, as long as each call's own events stay in order."""
    made = [make_call(end) for end in calls]
    one_after_another = [event for call in made for event in call]
    waiting = [list(call) for call in made]
    mixed = []
    while any(waiting):
        mixed.append(chance.choice([call for call in waiting if call]).pop(0))
    assert observed(mixed) == observed(one_after_another)


@given(st.lists(ends, max_size=8), st.integers(0, 8))
def test_two_summaries_add_up_to_the_summary_of_all(calls, cut):
    made = [make_call(end) for end in calls]
    parts = [[event for call in part for event in call] for part in (made[:cut], made[cut:])]
    whole = observed([*parts[0], *parts[1]])
    both = observed(parts[0]) + observed(parts[1])
    # These two are not sums: the duration of a sum goes by the wall clock, and the parts may share a session.
    assert replace(both, duration_s=None, sessions=0) == replace(whole, duration_s=None, sessions=0)


@given(st.lists(st.lists(ends, max_size=3), min_size=3, max_size=3))
def test_addition_is_associative_and_commutative(parts):
    one, two, three = (observed(event for end in part for event in make_call(end)) for part in parts)
    assert (one + two) + three == one + (two + three)
    assert one + two == two + one
    assert one + SessionSummary() == one


def test_a_sum_lasts_from_the_first_send_to_the_last_end_of_both(clock):
    def at(started_s):
        analytics = SessionAnalytics(clock_ns=clock)
        respond(analytics, make_request(started_ns=started_s * 10**9), response_time_ms=2000.0)
        return analytics.summary()

    assert (at(100) + at(150)).duration_s == 52.0


def test_different_kinds_of_summary_do_not_add():
    with pytest.raises(TypeError):
        CallSummary() + SessionSummary()


# Percentiles.

milliseconds = st.floats(LOWEST_MS, HIGHEST_MS)


@given(st.lists(milliseconds, min_size=1), st.sampled_from([0, 0.01, 0.5, 0.9, 0.95, 0.99, 1]))
def test_a_percentile_is_within_one_per_cent(values, share):
    rank = max(1, math.ceil(round(share * len(values), 9)))
    exact = sorted(values)[rank - 1]
    assert times(*values).quantile_ms(share) == pytest.approx(exact, rel=ACCURACY * 1.000001)


@given(st.lists(st.floats(0, 1e12)), st.lists(st.floats(0, 1e12)))
def test_distributions_add_without_loss(some, others):
    assert times(*some) + times(*others) == times(*some, *others) == times(*others, *some)


def test_a_distribution_of_nothing_knows_nothing():
    assert (Distribution().count, Distribution().p50_ms, Distribution().quantile_ms(0.5)) == (0, None, None)
    assert reduce(add, [Distribution(), times(3.0), Distribution()]) == times(3.0)


def test_memory_for_percentiles_is_bounded():
    spread = times(*(10 ** (exponent / 500) for exponent in range(-2000, 6000)))
    assert len(spread.buckets) < 1100


@pytest.mark.parametrize(("count", "rank"), [(20, 19), (100, 95), (101, 96)])
def test_ranks_are_not_off_by_a_float(count, rank):
    """0.95 times 100 is more than 95 in floats."""
    assert times(*range(1000, 1000 + 100 * count, 100)).p95_ms == pytest.approx(900 + 100 * rank, rel=ACCURACY)


def test_a_share_is_between_zero_and_one():
    with pytest.raises(ValueError, match="share is 95"):
        Distribution().quantile_ms(95)
