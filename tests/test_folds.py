"""Folding a stream: however an answer is cut into chunks, they add up to what it would have been in one piece."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._models import construct_type
from openai.types import Completion
from openai.types.beta import AssistantStreamEvent
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent

from otel_llm_callback._folds import ChatFold, chat_chunk_text
from otel_llm_callback._media import CompletionFold, EventFold, completions_output, completions_response
from otel_llm_callback._messages import chat_output
from otel_llm_callback._readers import chat_response
from otel_llm_callback._responses import ResponsesFold, responses_chunk_text, responses_output, responses_response
from otel_llm_callback.testing import chat_chunk, thread_run
from otel_llm_callback.types import Usage


def chunk(body):
    """A chunk as the SDK makes it."""
    return ChatCompletionChunk.construct(**body)


def delta(index=0, reason=None, **fields):
    """A chunk with this delta in one choice."""
    return chunk(chat_chunk(fields, choice=index, finish_reason=reason))


def folded(chunks, *, keep_content=True):
    fold = ChatFold(keep_content=keep_content)
    for each in chunks:
        fold.add(each)
    return fold


# --- The law ----------------------------------------------------------------------------------------------------------

pieces = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4)
TEXTS = ("content", "refusal", "reasoning_content")


@st.composite
def choices(draw, index):
    """A choice, and the deltas it is streamed as."""
    streams = []
    message = {"role": "assistant", "content": None}
    for name in draw(st.lists(st.sampled_from(TEXTS), unique=True, max_size=3)):
        cut = draw(pieces)
        message[name] = "".join(cut)
        streams.append([{name: piece} for piece in cut])
    calls = []
    for number in range(draw(st.integers(0, 3))):
        call, deltas = draw(tool_calls(number, is_custom=draw(st.booleans())))
        calls.append(call)
        streams.append(deltas)
    if calls:
        message["tool_calls"] = calls
    reason = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
    # Whatever the model says at once comes in any order, but a tool call never begins before the one ahead of it.
    deltas = draw(interleaved(streams, begins_in_order=True))
    deltas = [({"role": "assistant"}, None), *((each, None) for each in deltas), ({}, reason)]
    return {"index": index, "message": message, "finish_reason": reason}, deltas


@st.composite
def tool_calls(draw, index, *, is_custom):
    """A tool call, and the deltas it is streamed as: the arguments may be cut anywhere."""
    kind, argument = ("custom", "input") if is_custom else ("function", "arguments")
    text = json.dumps(draw(st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=2)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    first, *rest = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    call = {"id": f"call-{index}", "type": kind, kind: {"name": f"tool-{index}", argument: text}}
    deltas = [{**call, "index": index, kind: {"name": f"tool-{index}", argument: first}}]
    deltas += [{"index": index, kind: {argument: piece}} for piece in rest]
    return call, [{"tool_calls": [each]} for each in deltas]


@st.composite
def interleaved(draw, streams, *, begins_in_order=False):
    """One list of what is in all *streams*, each in its own order."""
    waiting, merged, begun = [list(stream) for stream in streams], [], set()
    while any(waiting):
        ready = [number for number, stream in enumerate(waiting) if stream]
        if begins_in_order:
            fresh = [number for number in ready if number not in begun]
            ready = [number for number in ready if number in begun or number == fresh[0]]
        number = draw(st.sampled_from(ready))
        begun.add(number)
        merged.append(waiting[number].pop(0))
    return merged


counts = st.integers(0, 2**40)
usages = st.none() | st.fixed_dictionaries(
    {"prompt_tokens": counts, "completion_tokens": counts, "total_tokens": counts},
    optional={
        "prompt_tokens_details": st.fixed_dictionaries({}, optional={"cached_tokens": counts, "audio_tokens": counts}),
        "completion_tokens_details": st.fixed_dictionaries({}, optional={"reasoning_tokens": counts}),
    },
)


@st.composite
def streams(draw):
    """A whole answer, and the chunks it is streamed as."""
    head = {"id": "chatcmpl-1", "created": 1_767_225_600, "model": "gpt-4o-mini"}
    head |= draw(
        st.fixed_dictionaries({}, optional={"service_tier": st.just("flex"), "system_fingerprint": st.just("f")})
    )
    made = [draw(choices(index)) for index in range(draw(st.integers(1, 3)))]
    parts = [
        [{"index": choice["index"], "delta": each, "finish_reason": reason} for each, reason in deltas]
        for choice, deltas in made
    ]
    chunks = [{**head, "object": "chat.completion.chunk", "choices": [part]} for part in draw(interleaved(parts))]
    usage = draw(usages)
    if usage is not None:
        place = draw(st.integers(0, len(chunks)))
        if draw(st.booleans()) and place < len(chunks):
            chunks[place]["usage"] = usage
        else:
            chunks.insert(place, {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    if draw(st.booleans()):  # as Azure does
        chunks.insert(
            0, {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": []}
        )
    whole = {"object": "chat.completion", **head, "choices": [choice for choice, _ in made]}
    return (whole if usage is None else {**whole, "usage": usage}), chunks


@settings(max_examples=100, deadline=None)
@given(streamed=streams())
def test_chunks_add_up_to_the_whole(streamed):
    """Facts, body and messages of a stream are those of the answer in one piece, wherever it was cut."""
    whole, chunks = streamed
    fold = folded(map(chunk, chunks))
    answer = ChatCompletion.construct(**whole)
    assert fold.body() == whole
    assert fold.facts(due=True) == {**chat_response(answer), "truncated": False}
    assert chat_output(fold.body()) == chat_output(answer)


@settings(max_examples=50, deadline=None)
@given(streamed=streams())
def test_facts_need_no_content(streamed):
    """Without content the facts are the same, and there is no body."""
    _, chunks = streamed
    kept, bare = folded(map(chunk, chunks)), folded(map(chunk, chunks), keep_content=False)
    assert (bare.facts(due=True), bare.body(), bare.saw_output) == (kept.facts(due=True), None, kept.saw_output)


@settings(max_examples=50, deadline=None)
@given(cut=pieces)
def test_texts_of_the_chunks_are_the_text(cut):
    """What callbacks are told chunk by chunk is the answer."""
    chunks = [delta(role="assistant", content=""), *(delta(content=piece) for piece in cut), delta(reason="stop")]
    told = [chat_chunk_text(each) for each in chunks]
    assert told == [("", "event"), *((piece, "text") for piece in cut), ("", "event")]


# --- The law, for Responses and legacy completions --------------------------------------------------------------------


def event(body):
    """An event of the Responses API as the SDK makes it."""
    return construct_type(type_=ResponseStreamEvent, value=body)


@st.composite
def response_items(draw, index):
    """An output item, and the deltas it is streamed as."""
    cut = draw(pieces)
    said, place = "".join(cut), {"output_index": index, "item_id": f"item-{index}"}
    match draw(st.sampled_from(["message", "function_call", "reasoning"])):
        case "message":
            content = [{"type": "output_text", "text": said, "annotations": []}]
            item = {"type": "message", "role": "assistant", "status": "completed", "content": content}
            kind = "response.output_text.delta"
        case "function_call":
            item = {"type": "function_call", "call_id": f"call-{index}", "name": "look_up", "arguments": said}
            kind = "response.function_call_arguments.delta"
        case _:
            item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": said}]}
            kind = "response.reasoning_summary_text.delta"
    return {"id": f"item-{index}", **item}, [{"type": kind, **place, "delta": piece} for piece in cut]


@st.composite
def response_streams(draw):
    """A whole response, and the events it is streamed as: all but the last, and the last."""
    head = {"id": "resp_1", "object": "response", "created_at": 1_767_225_600.0, "model": "gpt-4o-mini"}
    head |= draw(st.fixed_dictionaries({}, optional={"service_tier": st.just("flex")}))
    events, output = [{"type": "response.created", "response": {**head, "status": "in_progress", "output": []}}], []
    for index in range(draw(st.integers(0, 3))):
        item, deltas = draw(response_items(index))
        output.append(item)
        done = {"type": "response.output_item.done", "output_index": index, "item": item}
        events += [*draw(interleaved([deltas, draw(noise)])), done]
    status = draw(st.sampled_from(["completed", "incomplete", "failed"]))
    whole = {**head, "status": status, "output": output, "usage": draw(response_usages)}
    if status == "incomplete":
        whole["incomplete_details"] = {"reason": draw(st.sampled_from(["max_output_tokens", "content_filter"]))}
    if status == "failed":
        whole["error"] = {"code": "server_error", "message": "no"}
    return whole, events, {"type": f"response.{status}", "response": whole}


noise = st.lists(st.sampled_from([{"type": "response.in_keeping"}, {"type": "keepalive"}, {"no": "type"}]), max_size=2)
response_usages = st.none() | st.fixed_dictionaries(
    {"input_tokens": counts, "output_tokens": counts, "total_tokens": counts},
    optional={
        "input_tokens_details": st.fixed_dictionaries({}, optional={"cached_tokens": counts}),
        "output_tokens_details": st.fixed_dictionaries({}, optional={"reasoning_tokens": counts}),
    },
)


def folded_events(events, *, keep_content=True):
    fold = ResponsesFold(keep_content=keep_content)
    for each in events:
        with contextlib.suppress(KeyError):  # what has no type, which the exchange looks after
            fold.add(event(each))
    return fold


@settings(max_examples=100, deadline=None)
@given(streamed=response_streams())
def test_events_add_up_to_the_whole_response(streamed):
    """Facts, body and message of a streamed response are those of the response in one piece, wherever it was cut."""
    whole, events, last = streamed
    fold, bare = folded_events([*events, last]), folded_events([*events, last], keep_content=False)
    answer = construct_type(type_=Response, value=whole)
    assert fold.body().model_dump(exclude_unset=True) == answer.model_dump(exclude_unset=True)
    assert responses_output(fold.body()) == responses_output(answer)
    assert fold.facts(due=True) == bare.facts(due=True) == {**responses_response(answer), "truncated": False}
    assert bare.body() is None


@settings(max_examples=100, deadline=None)
@given(streamed=response_streams())
def test_response_that_breaks_off_has_what_had_arrived(streamed):
    """Without its last event a stream still has its items, no usage, and no reason that nobody gave."""
    whole, events, _ = streamed
    fold = folded_events(events)
    said = [message["parts"] for message in responses_output(fold.body())]
    assert said == [message["parts"] for message in responses_output(whole)]
    found = [fold.facts(due=due) for due in (True, False)]
    assert [(facts["finish_reasons"], facts["usage"], facts["truncated"]) for facts in found] == [
        (("error",), None, True),
        ((), None, True),
    ]


@settings(max_examples=50, deadline=None)
@given(cut=pieces)
def test_text_of_an_unfinished_item_is_kept(cut):
    """A message that was never done has the text that came of it."""
    deltas = [{"type": "response.output_text.delta", "output_index": 0, "delta": piece} for piece in cut]
    (message,) = responses_output(folded_events(deltas).body())
    assert message["parts"] == [{"type": "text", "content": "".join(cut)}]
    assert [responses_chunk_text(event(each)) for each in deltas] == [(piece, "text") for piece in cut]


@settings(max_examples=50, deadline=None)
@given(streamed=response_streams())
def test_items_count_although_the_last_event_leaves_them_out(streamed):
    """Some servers end with a response that has no output; what was said in between is the answer all the same."""
    whole, events, last = streamed
    bare = {**last, "response": {**whole, "output": []}}
    fold = folded_events([*events, bare])
    assert fold.facts(due=True) == {**responses_response(whole), "truncated": False}
    assert [message["parts"] for message in responses_output(fold.body())] == [
        message["parts"] for message in responses_output(whole)
    ]


@st.composite
def completion_streams(draw):
    """A whole legacy completion, and the chunks it is streamed as."""
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1_767_225_600, "model": "m"}
    parts, made = [], []
    for index in range(draw(st.integers(1, 3))):
        cut, reason = draw(pieces), draw(st.sampled_from(["stop", "length", "content_filter"]))
        made.append({"index": index, "text": "".join(cut), "finish_reason": reason})
        steps = [*((piece, None) for piece in cut), ("", reason)]
        parts.append([{"index": index, "text": piece, "finish_reason": why} for piece, why in steps])
    chunks = [{**head, "choices": [part]} for part in draw(interleaved(parts))]
    whole = {**head, "choices": made}
    if (usage := draw(usages)) is not None:
        whole["usage"] = usage
        chunks.insert(draw(st.integers(0, len(chunks))), {**head, "choices": [], "usage": usage})
    return whole, chunks


@settings(max_examples=100, deadline=None)
@given(streamed=completion_streams())
def test_chunks_add_up_to_the_whole_completion(streamed):
    """The same for legacy completions."""
    whole, chunks = streamed
    kept, bare = CompletionFold(keep_content=True), CompletionFold(keep_content=False)
    for each in chunks:
        kept.add(Completion.construct(**each))
        bare.add(Completion.construct(**each))
    answer = Completion.construct(**whole)
    assert Completion.construct(**kept.body()) == answer
    assert kept.facts(due=True) == bare.facts(due=True) == {**completions_response(answer), "truncated": False}
    assert completions_output(kept.body()) == completions_output(answer)
    assert bare.body() is None


def test_run_ends_in_many_ways_and_messages_are_no_end():
    """The last state of a run counts; what is said in between has an id of its own, which is not that of the run."""
    events = [
        construct_type(type_=AssistantStreamEvent, value={"event": f"thread.{name}", "data": data})
        for name, data in (
            ("run.created", thread_run()),
            ("message.completed", {"id": "msg_1", "object": "thread.message"}),
            ("run.step.completed", {"id": "step_1", "object": "thread.run.step"}),
            ("run.failed", thread_run(status="failed", usage=(1, 2), error_code="rate_limit_exceeded")),
        )
    ]
    fold = EventFold(keep_content=True)
    found = []
    for each in events:
        fold.add(each)
        facts = fold.facts(due=True)
        found.append((facts["id"], facts["truncated"], facts["status"], facts.get("failure")))
    assert found == [("run_1", True, "queued", None)] * 3 + [("run_1", False, "failed", "rate_limit_exceeded")]


# --- Single rules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"content": "a"}, ("a", "text")),
        ({"refusal": "a"}, ("a", "refusal")),
        ({"reasoning_content": "a"}, ("a", "reasoning")),
        ({"reasoning": "a"}, ("a", "reasoning")),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, ("{", "tool_call")),
        ({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]}, ("", "tool_call")),
        (
            {"tool_calls": [{"index": i, "function": {"arguments": str(i)}} for i in range(2)]},
            ("01", "tool_call"),
        ),
        ({"function_call": {"name": "f", "arguments": "{"}}, ("{", "tool_call")),
        ({"audio": {"id": "a", "transcript": "hi"}}, ("hi", "audio")),
        ({"audio": {"data": "AAAA"}}, ("", "audio")),
        ({"content": "a", "refusal": "b"}, ("a", "text")),
        ({"role": "assistant", "content": ""}, ("", "event")),
        ({"content": ["odd"]}, ("", "event")),
        ({}, ("", "event")),
    ],
    ids=str,
)
def test_text_and_kind_of_a_chunk(fields, expected):
    """Each kind of output has its name; what carries none is an event."""
    each = delta(**fields)
    assert chat_chunk_text(each) == expected
    assert folded([each]).saw_output == (expected[1] != "event")


def test_first_choice_with_output_gives_the_text():
    """A chunk for several choices has the text of the first that says something."""
    body = chat_chunk({"content": ""})
    body["choices"] += chat_chunk({"content": "b"}, choice=1)["choices"]
    assert chat_chunk_text(chunk(body)) == ("b", "text")


def test_chunk_without_choices_is_an_event():
    """Such as the one that carries the usage."""
    assert chat_chunk_text(chunk(chat_chunk(None, usage=(1, 2)))) == ("", "event")


def test_nothing_at_all():
    """No chunk, no facts, and a stream that says nothing is truncated."""
    assert folded([]).facts(due=True) == {
        "id": None,
        "created": None,
        "model": None,
        "finish_reasons": (),
        "truncated": True,
        "usage": None,
        "service_tier": None,
        "system_fingerprint": None,
    }
    assert folded([]).body() == {"id": None, "object": "chat.completion", "choices": []}


def test_missing_reason_reads_error_only_where_it_was_due():
    """Who stops reading gets no invented reason; who read to the end is told that one never came."""
    fold = folded([delta(0, content="a"), delta(1, "stop", content="b")])
    assert [fold.facts(due=due)["finish_reasons"] for due in (True, False)] == [("error", "stop"), ("stop",)]
    assert fold.facts(due=True)["truncated"] is True


def test_reasons_are_in_the_order_of_the_index():
    """Whichever choice ends first."""
    fold = folded([delta(2, "stop"), delta(0, "length"), delta(1, "content_filter")])
    assert fold.facts(due=True)["finish_reasons"] == ("length", "content_filter", "stop")
    assert [choice["index"] for choice in fold.body()["choices"]] == [0, 1, 2]


def test_reason_of_an_odd_type_never_came():
    """What is no text is no reason."""
    assert folded([delta(0, 3), delta(1, ["stop"])]).facts(due=True)["finish_reasons"] == ("error", "error")


def test_last_usage_counts():
    """Servers that report as they go report sums."""
    fold = folded([chunk(chat_chunk({"content": "a"}, usage=(5, number))) for number in (1, 2, 3)])
    usage = fold.facts(due=True)["usage"]
    assert (usage.input_tokens, usage.output_tokens) == (5, 3)


def test_usage_null_after_usage_does_not_take_it_back():
    """Annotation chunks may trail behind with a null."""
    trailing = {**chat_chunk({}, finish_reason="stop"), "usage": None}
    fold = folded([chunk(chat_chunk(None, usage={"prompt_tokens": 5})), chunk(trailing)])
    assert fold.facts(due=True)["usage"] == Usage(input_tokens=5)


def test_tool_calls_without_an_index():
    """Some servers leave it out: a new id begins a call, anything else goes on with the last one."""

    def part(call_id, arguments, name=None):
        return delta(tool_calls=[{"index": None, "id": call_id, "function": {"name": name, "arguments": arguments}}])

    fold = folded([part("a", "{", "f"), part(None, "}"), part("b", "[", "g"), part(None, "]"), part(None, None)])
    assert fold.body()["choices"][0]["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "[]"}},
    ]


def test_legacy_function_call():
    """The predecessor of tool calls is kept under its own name."""
    fold = folded([delta(function_call={"name": "f", "arguments": "{"}), delta(function_call={"arguments": "}"})])
    message = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    assert fold.body()["choices"] == [{"index": 0, "message": message, "finish_reason": None}]


def test_audio_leaves_its_transcript():
    """The sound itself is not kept."""
    fold = folded([delta(audio={"data": "AAAA", "transcript": "h"}), delta(audio={"data": "AAAA", "transcript": "i"})])
    assert fold.body()["choices"][0]["message"]["audio"] == {"transcript": "hi"}


def test_indices_of_a_server_do_not_become_our_memory():
    """Choices and tool calls beyond a bound are left out."""
    chunks = [delta(number, content="a") for number in range(1000)] + [delta(1000, "stop"), delta(127, "stop")]
    chunks += [delta(0, tool_calls=[{"index": number, "function": {"arguments": "a"}}]) for number in range(1000)]
    fold = folded(chunks)
    body = fold.body()
    assert len(body["choices"]) == 128
    assert len(body["choices"][0]["message"]["tool_calls"]) == 256
    assert fold.facts(due=True)["finish_reasons"] == ("error",) * 127 + ("stop",)


@pytest.mark.parametrize("odd", [{"choices": [{"index": []}]}, {"choices": [None]}, {"choices": 3}])
def test_odd_chunk_takes_nothing_back(odd):
    """It may raise, which the exchange looks after; what came before and after it counts."""
    fold = folded([delta(content="a")])
    with pytest.raises((TypeError, KeyError, AttributeError)):
        fold.add(chunk({**chat_chunk({}), **odd}))
    fold.add(delta(0, "stop", content="b"))
    assert fold.body()["choices"][0]["message"]["content"] == "ab"
    assert fold.facts(due=True)["finish_reasons"] == ("stop",)
