"""CostTracker: sums, owners, budgets, bounds."""

from __future__ import annotations

import os
import random
import re
import threading
from decimal import Decimal
from functools import reduce
from operator import add

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_callback import PriceTable, session
from otel_llm_callback.callbacks import BudgetUse, CostSummary, CostTotals, CostTracker
from otel_llm_callback.callbacks.sessions import OTHER
from otel_llm_callback.protocol import check_callback, find_hook
from otel_llm_callback.testing import make_error_context, make_request, make_response
from otel_llm_callback.types import Usage

TABLE = PriceTable({"m": {"input": "2", "output": "8"}, "n": {"input": "1", "output": "1"}, "free": {"input": 0}})
DOLLAR = Usage(input_tokens=500_000, output_tokens=0)  # of m


def tell(tracker, model="m", usage=DOLLAR, **over):
    facts = {name: over.pop(name) for name in ("session_id", "user_id", "operation", "background") if name in over}
    tracker.on_response_received(make_response(request=make_request(model=model, **facts), usage=usage, **over), "")


@pytest.fixture
def tracker():
    return CostTracker(TABLE)


def test_it_is_a_callback_that_leaves_chunks_and_requests_alone(tracker):
    check_callback(tracker)
    assert tracker.content == "none"
    assert [find_hook(tracker, hook) for hook in ("on_stream_chunk", "on_request_sent")] == [None, None]


def test_costs_add_up_by_process_model_session_and_user(tracker):
    tell(tracker, session_id="s", user_id="u")
    tell(tracker, session_id="s", user_id="v")
    tell(tracker, "n", user_id="u")
    m = CostTotals(cost=Decimal(2), priced_calls=2)
    n = CostTotals(cost=Decimal("0.5"), priced_calls=1)
    assert tracker.summary() == CostSummary(cost=Decimal("2.5"), priced_calls=3, models={"m": m, "n": n})
    assert tracker.summary(session_id="s") == CostSummary(
        cost=Decimal(2), priced_calls=2, session_id="s", models={"m": m}
    )
    assert tracker.summary(user_id="u").cost == Decimal("1.5")
    assert (tracker.session_ids(), tracker.user_ids()) == (("s",), ("v", "u"))


def test_a_call_that_the_process_has_priced_keeps_that_cost(tracker):
    """One price for span, metric and totals."""
    tell(tracker, cost=Decimal("0.07"))
    assert tracker.summary().cost == Decimal("0.07")


def test_unknown_models_are_counted_by_name_and_not_as_zero(tracker):
    tell(tracker, "x")
    tell(tracker, "x")
    tell(tracker, "y")
    total = tracker.summary()
    assert (total.cost, total.unpriced_calls, total.unpriced_models) == (None, 3, {"x": 2, "y": 1})


def test_a_zero_priced_model_is_priced(tracker):
    tell(tracker, "free", Usage(input_tokens=5, total_tokens=5))
    assert (tracker.summary().cost, tracker.summary().priced_calls) == (Decimal(0), 1)


def test_calls_whose_usage_is_unknown_are_counted_apart(tracker):
    tell(tracker, usage=None)
    tell(tracker, usage=None, operation="image_generation")
    assert tracker.summary() == CostSummary(calls_without_usage=2, models={"m": CostTotals(calls_without_usage=2)})


def test_calls_that_cost_nothing_are_not_missing(tracker):
    """Those that run no model, and those whose tokens another call counts."""
    for operation in ("fetch_response", "cancel_response", "count_tokens", "moderation"):
        tell(tracker, usage=None, operation=operation)
    tell(tracker, usage=None, background=True, status="queued")
    assert tracker.summary() == CostSummary()


def test_what_had_arrived_before_an_error_counts(tracker):
    partial = make_response(request=make_request(model="m"), usage=DOLLAR, outcome="error")
    tracker.on_error(ValueError(), make_error_context(partial=partial))
    tracker.on_error(ValueError(), make_error_context(partial=None))
    assert (tracker.summary().cost, tracker.summary().priced_calls) == (Decimal(1), 1)


def test_estimates_are_counted_as_such(tracker):
    tell(tracker, usage_source="estimated")
    tell(tracker)
    assert (tracker.summary().priced_calls, tracker.summary().estimated_calls) == (2, 1)


def test_a_failing_price_source_leaves_the_call_unpriced():
    """The dispatcher counts the failure; the call is not lost from the totals."""
    tracker = CostTracker(lambda metadata: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tell(tracker)
    assert tracker.summary().unpriced_models == {"m": 1}


# --- Budgets ----------------------------------------------------------------------------------------------------------


def test_each_share_of_a_budget_is_told_of_once():
    told = []
    tracker = CostTracker(TABLE, budget=4, on_budget=told.append)
    for _ in range(6):
        tell(tracker)
    assert told == [
        BudgetUse(scope="process", id=None, share=Decimal(share), budget=Decimal(4), cost=Decimal(cost))
        for share, cost in (("0.5", 2), ("0.8", 4), ("1", 4))
    ]


def test_sessions_and_users_have_budgets_of_their_own():
    told = []
    tracker = CostTracker(TABLE, session_budget="1", user_budget=2.0, on_budget=told.append, shares=[1])
    tell(tracker, session_id="a", user_id="u")
    tell(tracker, session_id="b", user_id="u")
    tell(tracker)
    assert [(use.scope, use.id, use.cost) for use in told] == [
        ("session", "a", Decimal(1)),
        ("session", "b", Decimal(1)),
        ("user", "u", Decimal(2)),
    ]


def test_a_failing_on_budget_is_raised_after_the_others_were_told():
    told = []

    def fail_first(use):
        told.append(use.share)
        raise ValueError(use.share)

    tracker = CostTracker(TABLE, budget=1, on_budget=fail_first)
    with pytest.raises(ValueError, match=r"0\.5"):
        tell(tracker)
    tell(tracker)
    assert told == [Decimal("0.5"), Decimal("0.8"), Decimal(1)]


def test_on_budget_may_ask_the_tracker():
    """No lock is held while it runs."""
    said = []
    tracker = CostTracker(TABLE, budget=1, shares=[1], on_budget=lambda use: said.append(str(tracker)))
    tell(tracker)
    assert said == ["Cost summary\n  Cost    1 USD for 1 call\n  Budget  100.0% of 1 USD"]


def test_a_budget_needs_nobody_to_be_told():
    """The summary shows how much of it is used."""
    tracker = CostTracker(TABLE, budget=1)
    tell(tracker)
    tell(tracker)
    assert "Budget  200.0% of 1 USD" in str(tracker)


def test_reset_starts_the_budget_over():
    told = []
    tracker = CostTracker(TABLE, budget=1, shares=[1], on_budget=told.append)
    tell(tracker, session_id="s")
    tracker.reset()
    assert (tracker.summary(), tracker.session_ids()) == (CostSummary(budget=Decimal(1)), ())
    tell(tracker)
    assert len(told) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0}, "the process budget is 0; it must be greater than 0"),
        ({"session_budget": -1}, "the session budget is -1; it must be a number that is not negative"),
        ({"user_budget": "much"}, "the user budget is 'much'; it must be a number that is not negative"),
        ({"budget": 1, "shares": [0]}, "a share is 0; it must be greater than 0"),
        ({"on_budget": print}, "on_budget needs a budget, session_budget or user_budget"),
        ({"max_sessions": 0}, "max_sessions is 0; it must be greater than 0"),
        ({"max_users": -1}, "max_users is -1; it must be greater than 0"),
        ({"prices": "libary"}, "'libary' is no price source"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        CostTracker(**{"prices": None, **arguments})


# --- Algebra, bounds, threads, forks ----------------------------------------------------------------------------------

calls = st.lists(
    st.tuples(
        st.sampled_from(["m", "n", "free", "x"]),
        st.none() | st.builds(Usage, input_tokens=st.integers(0, 10**9), output_tokens=st.integers(0, 10**9)),
        st.sampled_from([None, "s", "t"]),
    ),
    max_size=30,
)


def summary_of(told):
    tracker = CostTracker(TABLE)
    for model, usage, session_id in told:
        tell(tracker, model, usage, session_id=session_id)
    return tracker.summary()


@given(calls, st.randoms(use_true_random=False))
def test_the_order_of_calls_does_not_matter(told, random_source):
    shuffled = random_source.sample(told, len(told))
    assert summary_of(told) == summary_of(shuffled)


@given(calls, st.integers(0, 30))
def test_totals_can_be_added(told, at):
    """Those of several processes, for instance."""
    assert summary_of(told[:at]) + summary_of(told[at:]) == summary_of(told)


def test_totals_of_another_kind_cannot_be_added():
    with pytest.raises(TypeError):
        CostSummary() + CostTotals()


@given(calls)
def test_the_total_is_the_sum_over_models(told):
    total = summary_of(told)
    summed = reduce(add, total.models.values(), CostTotals())
    assert summed == CostTotals(**{name: getattr(total, name) for name in vars(summed)})


def test_memory_is_bounded():
    tracker = CostTracker(TABLE, max_sessions=3, max_users=2)
    for number in range(500):
        tell(tracker, f"made-up-{number}", session_id=f"s{number}", user_id=f"u{number}")
    total = tracker.summary()
    assert (tracker.session_ids(), tracker.user_ids()) == (("s497", "s498", "s499"), ("u498", "u499"))
    assert (len(total.models), len(total.unpriced_models)) == (101, 101)
    assert (total.unpriced_models[OTHER], total.unpriced_calls) == (400, 500)
    with pytest.raises(KeyError, match="session 's0' was not seen or is no longer remembered"):
        tracker.summary(session_id="s0")


def test_a_summary_is_of_one_owner(tracker):
    with pytest.raises(TypeError, match="not both"):
        tracker.summary(session_id="s", user_id="u")


def test_many_threads_lose_no_cent_and_tell_each_share_once():
    told = []
    tracker = CostTracker(TABLE, budget=1000, session_budget=100, on_budget=told.append, shares=["0.1", "0.5", "1"])
    start = threading.Barrier(8)

    def work(seed):
        order = [f"s{number}" for number in range(10) for _ in range(20)]
        random.Random(seed).shuffle(order)
        start.wait()
        for session_id in order:
            tell(tracker, session_id=session_id)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tracker.summary().cost == Decimal(1600)
    assert {tracker.summary(session_id=f"s{number}").cost for number in range(10)} == {Decimal(160)}
    expected = {("process", None, share) for share in ("0.1", "0.5", "1")}
    expected |= {("session", f"s{number}", share) for number in range(10) for share in ("0.1", "0.5", "1")}
    assert sorted(map(repr, [(use.scope, use.id, str(use.share)) for use in told])) == sorted(map(repr, expected))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_starts_from_zero():
    """The parent's calls are the parent's to count, and its budget is not used up twice."""
    tracker = CostTracker(TABLE)
    tell(tracker, session_id="s")
    child = os.fork()
    if not child:
        same = tracker.summary() == CostSummary() and tracker.session_ids() == ()
        tell(tracker)
        os._exit(0 if same and tracker.summary().cost == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert tracker.summary().cost == Decimal(1)


# --- Text -------------------------------------------------------------------------------------------------------------


def test_summary_prints_what_is_known_and_what_is_not(tracker):
    tell(tracker, usage=Usage(input_tokens=3, output_tokens=1), usage_source="estimated")
    tell(tracker, "free", Usage(input_tokens=5, total_tokens=5))
    tell(tracker, "x\x1b[31m")
    tell(tracker, usage=None)
    assert str(tracker) == (
        "Cost summary\n"
        "  Cost           0.000014 USD for 2 calls (1 estimated)\n"
        "  Unpriced       1 call (1 x\\x1b[31m)\n"
        "  Without usage  1 call\n"
        "  Model          m: 0.000014 USD for 1 call (1 estimated)\n"
        "  Model          free: 0 USD for 1 call\n"
        "  Model          x\\x1b[31m: unknown"
    )


def test_summary_of_nothing_is_unknown_not_zero(tracker):
    assert str(tracker) == "Cost summary\n  Cost  unknown"


def test_summary_of_a_session_says_how_much_of_its_budget_is_used():
    tracker = CostTracker(TABLE, session_budget=8)
    tell(tracker, session_id="s")
    assert str(tracker.summary(session_id="s")) == (
        "Cost summary: s\n  Cost    1 USD for 1 call\n  Budget  12.5% of 8 USD"
    )


def test_calls_of_a_session_count_for_it_and_its_user(client):
    """End to end: the ids come from the block that the call was made in."""
    from otel_llm_callback import instrument

    tracker = CostTracker(PriceTable({"m": {"input": "2", "output": "8"}}))
    instrument(tracker, delivery="inline", telemetry=False)
    with session("s-42", user="bob"):
        answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
    expected = Decimal(answer.usage.prompt_tokens * 2 + answer.usage.completion_tokens * 8) / 1_000_000
    assert [tracker.summary(session_id="s-42").cost, tracker.summary(user_id="bob").cost] == [expected, expected]
