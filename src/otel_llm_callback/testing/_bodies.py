"""The bodies the other APIs answer with: responses, embeddings, images, audio, searches, jobs.

As plain as JSON; nothing here knows of sockets. Those of Chat Completions are beside the server.
"""

from __future__ import annotations

import array
import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

TEXT: Final = "Hello! I am a scripted server, and this is all I ever say."
"""What the server answers unless told otherwise."""

CREATED: Final = 1_767_225_600
"""The ``created`` of every answer, seconds since the epoch: fixed, so that two runs are alike."""

PNG: Final = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
"""The picture in every answer that has one: base64, and no more than the first bytes of a PNG file."""

SPEECH: Final = b"ID3" + bytes(range(256)) * 16
"""What speech sounds like here."""

Counts: TypeAlias = "Mapping[str, object] | tuple[int, int]"
"""A ``usage`` object as the API spells it, or just input and output tokens."""


def response_object(
    text: str | None = TEXT,
    *,
    model: str = "gpt-4o-mini",
    usage: Counts | None = (5, 7),
    status: str = "completed",
    response_id: str = "resp_1",
    output: Sequence[Mapping[str, object]] | None = None,
    error_code: str = "server_error",
    incomplete_reason: str = "max_output_tokens",
) -> dict[str, Any]:
    """Return the body of a response.

    Args:
        text: What the assistant says; None if it says nothing.
        model: The model that answered.
        usage: None says null, as the API does until the response is complete.
        status: Such as ``completed``, ``incomplete``, ``failed``, ``queued`` or ``cancelled``; what has not begun or
            has failed has no output unless *output* is given.
        response_id: The ``id`` of the body.
        output: Items as the API spells them, in place of the message.
        error_code: Of a response whose status is ``failed``.
        incomplete_reason: Of a response whose status is ``incomplete``.
    """
    if output is None:
        spoken = text is not None and status in {"completed", "incomplete"}
        output = [_message(text or "", response_id, status)] if spoken else []
    error = {"code": error_code, "message": "The server had an error."} if status == "failed" else None
    return {
        "id": response_id,
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "error": error,
        "incomplete_details": {"reason": incomplete_reason} if status == "incomplete" else None,
        "instructions": None,
        "metadata": {},
        "model": model,
        "output": [dict(item) for item in output],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": None if usage is None else _input_usage(usage),
    }


def response_events(
    text: str | Sequence[str] = TEXT,
    *,
    model: str = "gpt-4o-mini",
    usage: Counts | None = (5, 7),
    status: str | None = "completed",
    response_id: str = "resp_1",
    error_code: str = "server_error",
    incomplete_reason: str = "max_output_tokens",
) -> list[dict[str, Any]]:
    """Return the events of a streamed response: created, the message piece by piece, and how it ended.

    Args:
        text: Cut at the words, or pieces to be sent as they are.
        model: The model that answered.
        usage: Of the last event; None leaves it out.
        status: Of the last event: ``completed``, ``incomplete`` or ``failed``. None leaves the event out: a stream that
            breaks off.
        response_id: The ``id`` of the response.
        error_code: Of a response that failed.
        incomplete_reason: Of a response that is incomplete.
    """
    pieces = cut_at_words(text)
    said = "".join(pieces)
    begun = response_object(None, model=model, usage=None, status="in_progress", response_id=response_id)
    message = _message(said, response_id, "completed")
    place: dict[str, Any] = {"item_id": message["id"], "output_index": 0, "content_index": 0}
    item: dict[str, Any] = {"output_index": 0}
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {
            "type": "response.output_item.added",
            **item,
            "item": {**message, "status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", **place, "part": empty},
    ]
    events += [{"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []} for piece in pieces]
    if status is not None:
        whole = response_object(
            said,
            model=model,
            usage=usage,
            status=status,
            response_id=response_id,
            error_code=error_code,
            incomplete_reason=incomplete_reason,
        )
        if status != "failed":
            events += [
                {"type": "response.output_text.done", **place, "text": said, "logprobs": []},
                {"type": "response.content_part.done", **place, "part": message["content"][0]},
                {"type": "response.output_item.done", **item, "item": message},
            ]
        events.append({"type": f"response.{status}", "response": whole})
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def _message(text: str, response_id: str, status: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    message_id = f"msg_{response_id.removeprefix('resp_')}"
    return {"id": message_id, "type": "message", "role": "assistant", "status": status, "content": content}


def text_completion(
    text: str = TEXT,
    *,
    model: str = "gpt-3.5-turbo-instruct",
    usage: Counts | None = (5, 7),
    finish_reason: str | None = "stop",
    response_id: str = "cmpl-1",
    choices: int = 1,
) -> dict[str, Any]:
    """Return the body of a legacy completion.

    Args:
        text: How the model goes on.
        model: The model that answered.
        usage: None leaves it out.
        finish_reason: Of every choice.
        response_id: The ``id`` of the body.
        choices: How many, all alike.
    """
    body: dict[str, Any] = {
        "id": response_id,
        "object": "text_completion",
        "created": CREATED,
        "model": model,
        "choices": [
            {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason} for index in range(choices)
        ],
    }
    if usage is not None:
        body["usage"] = chat_usage(usage)
    return body


def text_completion_chunks(
    text: str | Sequence[str] = TEXT,
    *,
    model: str = "gpt-3.5-turbo-instruct",
    usage: Counts | None = None,
    response_id: str = "cmpl-1",
    choices: int = 1,
) -> list[dict[str, Any]]:
    """Return the chunks of a streamed legacy completion: pieces of text, finish reason, usage.

    Args:
        text: Cut at the words, or pieces to be sent as they are.
        model: The model that answered.
        usage: None leaves the usage chunk out, as the API does unless it is asked for.
        response_id: The ``id`` of every chunk.
        choices: How many, all alike, in turns.
    """
    head = {"id": response_id, "object": "text_completion", "created": CREATED, "model": model}
    steps: list[tuple[str, str | None]] = [*((piece, None) for piece in cut_at_words(text)), ("", "stop")]
    chunks: list[dict[str, Any]] = [
        {**head, "choices": [{"index": index, "text": piece, "logprobs": None, "finish_reason": reason}]}
        for piece, reason in steps
        for index in range(choices)
    ]
    if usage is not None:
        chunks.append({**head, "choices": [], "usage": chat_usage(usage)})
    return chunks


def embedding_list(
    vectors: Sequence[Sequence[float]] = ((0.25, -0.5, 1.0),),
    *,
    model: str = "text-embedding-3-small",
    tokens: int | None = 5,
    encoding_format: str = "float",
) -> dict[str, Any]:
    """Return the body of an answer with embeddings.

    Args:
        vectors: One for each input.
        model: The model that answered.
        tokens: Input tokens; None leaves the usage out.
        encoding_format: ``float``, or ``base64`` as the client asks on its own account.
    """

    def encoded(vector: Sequence[float]) -> object:
        if encoding_format != "base64":
            return list(vector)
        return base64.b64encode(array.array("f", vector).tobytes()).decode()

    body: dict[str, Any] = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encoded(vector)}
            for index, vector in enumerate(vectors)
        ],
        "model": model,
    }
    if tokens is not None:
        body["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return body


def image_list(*, images: int = 1, usage: Counts | None = (5, 7)) -> dict[str, Any]:
    """Return the body of an answer with images.

    Args:
        images: How many, all alike.
        usage: None leaves it out, as the older image models do.
    """
    body: dict[str, Any] = {"created": CREATED, "data": [{"b64_json": PNG} for _ in range(images)]}
    if usage is not None:
        body["usage"] = _image_usage(usage)
    return body


def image_events(*, edit: bool = False, partial_images: int = 1, usage: Counts = (5, 7)) -> list[dict[str, Any]]:
    """Return the events of a streamed image: the sketches, then the picture with the usage.

    Args:
        edit: Whether an image is edited; else it is made.
        partial_images: How many sketches.
        usage: Of the last event.
    """
    kind = "image_edit" if edit else "image_generation"
    common: dict[str, Any] = {
        "created_at": CREATED,
        "size": "1024x1024",
        "quality": "low",
        "background": "opaque",
        "output_format": "png",
        "b64_json": PNG,
    }
    sketches = [
        {"type": f"{kind}.partial_image", **common, "partial_image_index": index} for index in range(partial_images)
    ]
    return [*sketches, {"type": f"{kind}.completed", **common, "usage": _image_usage(usage)}]


def transcription(text: str = TEXT, *, usage: Counts | None = (5, 7)) -> dict[str, Any]:
    """Return the body of a transcription or translation.

    Args:
        text: What was heard.
        usage: None leaves it out, as translations do.
    """
    return {"text": text} if usage is None else {"text": text, "usage": _audio_usage(usage)}


def transcription_events(text: str | Sequence[str] = TEXT, *, usage: Counts | None = (5, 7)) -> list[dict[str, Any]]:
    """Return the events of a streamed transcription.

    Args:
        text: Cut at the words, or pieces to be sent as they are.
        usage: Of the last event; None leaves it out.
    """
    pieces = cut_at_words(text)
    events: list[dict[str, Any]] = [{"type": "transcript.text.delta", "delta": piece} for piece in pieces]
    return [*events, {"type": "transcript.text.done", **transcription("".join(pieces), usage=usage)}]


def moderation(*, flagged: bool = False, model: str = "omni-moderation-latest") -> dict[str, Any]:
    """Return the body of a moderation of one input.

    Args:
        flagged: Whether it is found wanting.
        model: The model that answered.
    """
    result = {
        "flagged": flagged,
        "categories": {"harassment": flagged, "violence": False},
        "category_scores": {"harassment": 0.99 if flagged else 0.01, "violence": 0.01},
        "category_applied_input_types": {"harassment": ["text"], "violence": ["text"]},
    }
    return {"id": "modr-1", "model": model, "results": [result]}


def search_page(*texts: str) -> dict[str, Any]:
    """Return the body of a search in a vector store, with one result for each of *texts*."""
    results = [
        {
            "file_id": f"file-{number}",
            "filename": f"{number}.txt",
            "score": 1 / number,
            "attributes": {},
            "content": [{"type": "text", "text": text}],
        }
        for number, text in enumerate(texts or (TEXT,), 1)
    ]
    return {
        "object": "vector_store.search_results.page",
        "search_query": ["?"],
        "data": results,
        "has_more": False,
        "next_page": None,
    }


def video(*, model: str = "sora-2", status: str = "queued", error_code: str = "server_error") -> dict[str, Any]:
    """Return the body of a video that is being made.

    Args:
        model: The model that makes it.
        status: ``queued``, ``in_progress``, ``completed`` or ``failed``.
        error_code: Of one that failed.
    """
    return {
        "id": "video_1",
        "object": "video",
        "created_at": CREATED,
        "model": model,
        "status": status,
        "progress": 100 if status == "completed" else 0,
        "seconds": "4",
        "size": "720x1280",
        "error": {"code": error_code, "message": "The server had an error."} if status == "failed" else None,
    }


def decision(*, model: str = "gpt-6-luna", usage: Counts = (5, 7)) -> dict[str, Any]:
    """Return the body of a decision: one question, answered with a probability.

    Args:
        model: The model that answered.
        usage: Input and output tokens.
    """
    answer = {"type": "predicate", "name": None, "probability": 0.75}
    return {"model": model, "answers": [answer], "usage": _input_usage(usage)}


def compaction(*, usage: Counts = (5, 7), response_id: str = "resp_1") -> dict[str, Any]:
    """Return the body of a compacted conversation.

    Args:
        usage: What compacting it took.
        response_id: The ``id`` of the body.
    """
    item = {"id": "cmp_1", "type": "compaction", "encrypted_content": "AAAA"}
    return {
        "id": response_id,
        "object": "response.compaction",
        "created_at": CREATED,
        "output": [item],
        "usage": _input_usage(usage),
    }


def thread_run(
    *,
    model: str = "gpt-4o-mini",
    status: str = "queued",
    usage: Counts | None = None,
    error_code: str = "server_error",
) -> dict[str, Any]:
    """Return the body of an assistant's run.

    Args:
        model: The model it runs on.
        status: Such as ``queued``, ``completed`` or ``failed``.
        usage: None says null, as the API does until the run is over.
        error_code: Of one that failed.
    """
    return {
        "id": "run_1",
        "object": "thread.run",
        "created_at": CREATED,
        "thread_id": "thread_1",
        "assistant_id": "asst_1",
        "status": status,
        "model": model,
        "instructions": "",
        "tools": [],
        "metadata": {},
        "parallel_tool_calls": True,
        "last_error": {"code": error_code, "message": "The server had an error."} if status == "failed" else None,
        "usage": None if usage is None else chat_usage(usage),
    }


def thread_run_events(
    text: str | Sequence[str] = TEXT,
    *,
    model: str = "gpt-4o-mini",
    status: str = "completed",
    usage: Counts | None = (5, 7),
) -> list[bytes]:
    """Return the events of a streamed run, as they go over the wire: their names are not in their data.

    Args:
        text: Cut at the words, or pieces to be sent as they are.
        model: The model it runs on.
        status: How it ends, such as ``completed``, ``failed`` or ``requires_action``.
        usage: Of the last event.
    """
    pieces = cut_at_words(text)
    message = {"id": "msg_1", "object": "thread.message", "created_at": CREATED, "thread_id": "thread_1"}
    events: list[tuple[str, dict[str, Any]]] = [("thread.run.created", thread_run(model=model))]
    events += [
        (
            "thread.message.delta",
            {
                "id": "msg_1",
                "object": "thread.message.delta",
                "delta": {"content": [{"index": 0, "type": "text", "text": {"value": piece}}]},
            },
        )
        for piece in pieces
    ]
    content = [{"type": "text", "text": {"value": "".join(pieces), "annotations": []}}]
    events += [
        ("thread.message.completed", {**message, "role": "assistant", "status": "completed", "content": content}),
        (f"thread.run.{status}", thread_run(model=model, status=status, usage=usage)),
    ]
    return [f"event: {name}\ndata: {json.dumps(data)}\n\n".encode() for name, data in events]


def agent_session(
    *, model: str = "gpt-6-luna", status: str = "in_progress", session_id: str = "sess_1"
) -> dict[str, Any]:
    """Return the body of a managed agent's session.

    Args:
        model: The model of its agent.
        status: Such as ``in_progress``, ``idle`` or ``failed``.
        session_id: Its id.
    """
    return {
        "id": session_id,
        "object": "agent.session",
        "created_at": CREATED,
        "last_active_at": CREATED,
        "agent": {"id": "agent_1", "model": model, "tools": [], "service_tier": "auto"},
        "environment": {"type": "none"},
        "error": "The server had an error." if status == "failed" else None,
        "metadata": {},
        "required_actions": [],
        "status": status,
        "usage": None,
        "vault_ids": [],
    }


def agent_session_events(
    text: str | Sequence[str] = TEXT,
    *,
    model: str = "gpt-6-luna",
    status: str = "completed",
    usage: Counts | None = (5, 7),
    turn_id: str = "turn_1",
    session_id: str = "sess_1",
    error_code: str = "server_error",
) -> list[dict[str, Any]]:
    """Return the events of one turn of a managed agent, from the beginning of its session until that is idle.

    Args:
        text: Cut at the words, or pieces to be sent as they are.
        model: The model of the agent.
        status: How the turn ends: ``completed``, ``failed`` or ``cancelled``.
        usage: Of the turn; None leaves it out.
        turn_id: Its id.
        session_id: Of the session.
        error_code: Of a turn that failed.
    """
    known = {"session_id": session_id, "turn_id": turn_id}
    turn: dict[str, Any] = {
        "id": turn_id,
        "object": "agent.session.turn",
        "agent_id": "agent_1",
        "created_at": CREATED,
        "session_id": session_id,
        "status": "in_progress",
    }
    done = {**turn, "status": status}
    if status == "failed":
        done["error"] = {"code": error_code, "message": "The server had an error."}
    if usage is not None:
        done["usage"] = _input_usage(usage)
    place = {**known, "item_id": "msg_1", "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {
            "type": "agent.session.created",
            "session": agent_session(model=model, status="in_progress", session_id=session_id),
        },
        {"type": "agent.session.turn.created", **known, "turn": turn},
        *({"type": "agent.session.turn.output_text.delta", **place, "delta": piece} for piece in cut_at_words(text)),
        {"type": f"agent.session.turn.{status}", **known, "turn": done, "usage": done.get("usage")},
        {"type": "agent.session.idle", "session": agent_session(model=model, status="idle", session_id=session_id)},
    ]
    return [{"event_id": f"event_{number}", **event} for number, event in enumerate(events, 1)]


def agent_invocation(*, status: str = "queued", error_code: str = "delivery_failed") -> dict[str, Any]:
    """Return the body of an attempt to have an automation's agent work.

    Args:
        status: ``queued``, ``completed``, ``failed`` or ``skipped``.
        error_code: Of one that failed.
    """
    return {
        "id": "invocation_1",
        "object": "agent.automation.invocation",
        "automation_id": "automation_1",
        "created_at": CREATED,
        "source": {"type": "manual"},
        "status": status,
        "error": {"code": error_code, "message": "It could not be delivered."} if status == "failed" else None,
    }


def grade(*, model: str = "gpt-4o-mini", total_tokens: int | None = 12) -> dict[str, Any]:
    """Return the body of a grader's answer.

    Args:
        model: The model it asked.
        total_tokens: None if it asked none.
    """
    return {
        "metadata": {
            "name": "grader",
            "type": "score_model",
            "errors": {},
            "execution_time": 0.1,
            "sampled_model_name": model,
            "scores": {},
            "token_usage": total_tokens,
        },
        "model_grader_token_usage_per_model": {},
        "reward": 1.0,
        "sub_rewards": {},
    }


def cut_at_words(text: str | Sequence[str]) -> Sequence[str]:
    """Return the words of a text with the space behind them; pieces stay as they are."""
    return re.findall(r"\S+\s*", text) if isinstance(text, str) else text


def chat_usage(counts: Counts) -> dict[str, object]:
    """Return a ``usage`` object in the spelling of Chat Completions."""
    if isinstance(counts, Mapping):
        return dict(counts)
    prompt, completion = counts
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _input_usage(counts: Counts, **details: object) -> dict[str, object]:
    if isinstance(counts, Mapping):
        return dict(counts)
    inputs, outputs = counts
    return {
        "input_tokens": inputs,
        "output_tokens": outputs,
        "total_tokens": inputs + outputs,
        **(
            details
            or {
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            }
        ),
    }


def _image_usage(counts: Counts) -> dict[str, object]:
    inputs = 0 if isinstance(counts, Mapping) else counts[0]
    return _input_usage(counts, input_tokens_details={"text_tokens": inputs, "image_tokens": 0})


def _audio_usage(counts: Counts) -> dict[str, object]:
    inputs = 0 if isinstance(counts, Mapping) else counts[0]
    details = {"text_tokens": 0, "audio_tokens": inputs}
    return {"type": "tokens", **_input_usage(counts, input_token_details=details)}
