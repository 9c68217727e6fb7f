"""Managed agents: a stream of events may show any number of turns, and the tokens of each are counted once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from api_forms import exists
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_callback._agents import AgentFold, agent_chunk_text, agent_context_length, agent_request
from otel_llm_callback._jobs import TURNS, Once
from otel_llm_callback._readers import add_usage
from otel_llm_callback.testing import StreamReply, agent_session_events
from otel_llm_callback.types import Usage

needs_agents = pytest.mark.skipif(not exists("beta.agents.sessions.create"), reason="this openai has no agents")


@pytest.fixture(autouse=True)
def nothing_was_counted():
    TURNS._seen.clear()


def event(kind, **fields):
    return SimpleNamespace(type=f"agent.session.{kind}", **fields)


def ended(turn, usage=None, *, how="completed", error=None, subagent=None):
    own = {"id": turn, "subagent_id": subagent, "usage": usage, "error": error}
    return event(f"turn.{how}", turn_id=turn, session_id="s", turn=own, usage=None)


def begun(turn, subagent=None):
    return event("turn.created", turn_id=turn, session_id="s", turn={"id": turn, "subagent_id": subagent})


def folded(*events, keep_content=False):
    fold = AgentFold(keep_content=keep_content)
    for each in events:
        fold.add(each)
    return fold


counts = st.none() | st.integers(0, 10**6)


@given(st.lists(st.builds(Usage, input_tokens=counts, output_tokens=counts, cached_tokens=counts), max_size=5))
def test_sum_of_usages_has_what_any_of_them_reports(usages):
    """A count that none of them has stays unknown."""
    total = add_usage(iter(usages))
    if not usages:
        assert total is None
        return
    for name in ("input_tokens", "output_tokens", "cached_tokens", "total_tokens"):
        known = [getattr(usage, name) for usage in usages if getattr(usage, name) is not None]
        assert getattr(total, name) == (sum(known) if known else None)


def test_usage_of_a_stream_is_that_of_its_turns():
    """Those of subagents too; a turn shown twice, or in two streams, counts once."""
    one, two = {"input_tokens": 3, "output_tokens": 4}, {"input_tokens": 5, "output_tokens": 6}
    events = [
        begun("a"),
        begun("sub", subagent="x"),
        ended("sub", two, subagent="x"),
        ended("a", one),
        ended("a", one),
        ended("b"),
    ]
    first, second = folded(*events), folded(*events)
    assert first.facts(due=True)["usage"] == Usage(input_tokens=8, output_tokens=10)
    assert second.facts(due=True)["usage"] is None


def test_failure_is_that_of_the_last_turn():
    """A session survives a turn that failed; one of a subagent is that agent's affair."""
    failed = ended("a", how="failed", error={"code": "rate_limit_exceeded"})
    assert folded(begun("a"), failed).facts(due=True)["failure"] == "rate_limit_exceeded"
    assert "failure" not in folded(begun("a"), failed, begun("b")).facts(due=True)
    assert "failure" not in folded(begun("a"), ended("x", how="failed", subagent="x")).facts(due=True)
    assert folded(ended("a", how="failed")).facts(due=True)["failure"] == "failed"
    assert folded(event("failed", session={"status": "failed"})).facts(due=True)["failure"] == "failed"


def test_a_stream_is_over_between_turns():
    """And not while one is under way, also if only one of a subagent has ended."""
    assert [
        folded(*events).is_over
        for events in (
            [],
            [begun("a")],
            [begun("a"), ended("x", subagent="x")],
            [begun("a"), ended("a")],
            [begun("a"), ended("a"), begun("b")],
            [event("idle", session={"status": "idle"})],
            [event("in_progress", session={"status": "in_progress"})],
        )
    ] == [False, False, False, True, False, True, False]


def test_text_is_kept_only_if_somebody_takes_it():
    said = event("turn.output_text.delta", delta="Hi", session_id="s", turn_id="a")
    assert folded(said).body() is None
    assert folded(said, keep_content=True).body() == {"id": "s", "object": "agent.session", "text": "Hi"}
    assert agent_chunk_text(said) == ("Hi", "text")
    assert agent_chunk_text(event("turn.reasoning_summary_text.delta", delta="hm")) == ("hm", "reasoning")
    assert agent_chunk_text(SimpleNamespace(type="agent.output.command_execution_output.delta", delta="$")) == (
        "",
        "event",
    )


def test_what_is_asked_of_an_agent():
    """Model and effort of a new session, the session's id of what is sent to one, and the length of either."""
    agent = {"model": "m", "service_tier": "flex", "reasoning": {"effort": "low"}}
    assert agent_request({"agent": agent}) == {"model": "m", "service_tier": "flex", "reasoning_level": "low"}
    assert agent_request({"session_id": "s"}) == {"conversation_id": "s"}
    message = {"role": "user", "content": [{"type": "input_text", "text": "é"}, {"type": "input_image"}]}
    assert agent_context_length({"input": "abc"}) == 3
    assert agent_context_length({"input": [message]}) == 2
    assert agent_context_length({"events": [{"input": [message, message]}, {"type": "cancel"}]}) == 4
    assert agent_context_length({}) is None


def test_what_was_counted_is_remembered_to_a_limit():
    """Programs that run for months must not grow."""
    once = Once()
    assert [once.is_new(str(number)) for number in range(5000)] == [True] * 5000
    assert len(once._seen) == 4096
    assert (once.is_new("4999"), once.is_new("0")) == (False, True)


@needs_agents
@pytest.mark.parametrize("take", [3, 99])
def test_closing_a_stream_of_events_between_turns_is_its_end(server, client, recorder, instrumented, take):
    """It goes on for as long as the session lives, so closing it is early only while a turn is under way."""
    server.reply = lambda request: StreamReply(agent_session_events("a b c"), done=False, named=True)
    stream = client.beta.agents.sessions.events.stream("sess_1")
    kinds = []
    for seen in stream:
        kinds.append(seen.type)
        if len(kinds) == take or seen.type == "agent.session.idle":
            break
    stream.close()
    (end,) = recorder.responses
    used = None if end.usage is None else (end.usage.input_tokens, end.usage.output_tokens)
    assert (end.outcome, used) == (("closed_early", None) if take == 3 else ("completed", (5, 7)))
    assert (end.request.conversation_id, end.id) == ("sess_1", "sess_1")


@needs_agents
def test_tool_handlers_work_as_ever(server, client, recorder, instrumented):
    """The SDK runs them while the stream is read, and what they send is a call of its own."""
    item = {
        "id": "i",
        "type": "function_call",
        "call_id": "c",
        "turn_id": "turn_1",
        "name": "add",
        "arguments": {"a": 1},
        "status": "in_progress",
    }
    events = agent_session_events("a")
    asks = {
        "type": "agent.session.turn.item.added",
        "event_id": "x",
        "session_id": "sess_1",
        "turn_id": "turn_1",
        "output_index": 0,
        "item": item,
    }
    server.reply = lambda request: (
        None
        if request.path.endswith("/events")
        else StreamReply([*events[:2], asks, *events[2:]], done=False, named=True)
    )
    took = []
    stream = client.beta.agents.sessions.create(
        environment={"type": "none"},
        agent={"model": "m"},
        input="a",
        stream=True,
        tool_handlers={"add": lambda arguments: took.append(arguments) or "1"},
    )
    assert len(list(stream)) == len(events) + 1
    names = [request.operation for request in recorder.requests]
    assert (took, names) == ([{"a": 1}], ["agent_session", "agent_input"])
