"""The table of API methods: a new method is a row here and a scenario in the tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, Literal, TypeAlias

from . import _agents, _media, _messages
from ._folds import ChatFold, Fold, chat_chunk_text
from ._readers import RequestFacts, ResponseFacts, chat_context_length, chat_request, chat_response
from ._responses import (
    RESPONSES,
    ResponsesFold,
    fetch_request,
    responses_chunk_text,
    responses_context_length,
    responses_request,
    responses_response,
    token_count_response,
)
from .content import ContentReaders
from .types import ChunkKind

Job: TypeAlias = Literal["start", "fetch"]


@dataclass(frozen=True, slots=True)
class Operation:
    """How to read one API method.

    Attributes:
        name: ``gen_ai.operation.name``, or a word of ours where the convention has none.
        api: The API family, such as ``chat_completions``.
        where: How a person names it, such as ``chat.completions``.
        request: Request body to facts.
        response: Parsed response to facts.
        fold: Makes the state that adds up its stream.
        chunk_text: A chunk's text and what it is.
        content: How to read messages, where the method has any.
        context_length: Request body to bytes of text.
        asks_usage: Whether its streams carry usage only on request, by ``stream_options.include_usage``.
        job: ``start`` if the answer may be made after the call, ``fetch`` if the call fetches such an answer.
    """

    name: str
    api: str
    where: str
    request: Callable[[Mapping[str, object]], RequestFacts]
    response: Callable[[object], ResponseFacts]
    fold: Callable[..., Fold]
    chunk_text: Callable[[Any], tuple[str, ChunkKind]]
    content: ContentReaders
    context_length: Callable[[Mapping[str, object]], int | None]
    job: Job | None = None
    asks_usage: bool = False


def _responses(name: str, where: str, *, job: Job | None = None) -> Operation:
    """A row of the Responses API."""
    return Operation(
        name=name,
        api="responses",
        where=where,
        request=fetch_request if job == "fetch" else responses_request,
        response=responses_response,
        fold=ResponsesFold,
        chunk_text=responses_chunk_text,
        content=RESPONSES,
        context_length=_media.unmeasured if job == "fetch" else responses_context_length,
        job=job,
    )


def _other(name: str, where: str, request: Callable[[Mapping[str, object]], RequestFacts]) -> Operation:
    """A row for an API whose content the conventions do not describe."""
    return Operation(
        name=name,
        api=where.partition(".")[0],
        where=where,
        request=request,
        response=_media.plain_response,
        fold=_media.EventFold,
        chunk_text=_media.event_chunk_text,
        content=_media.NO_CONTENT,
        context_length=_media.prompt_length,
    )


def _job(name: str, where: str) -> Operation:
    """A row for a call that starts something the server goes on with."""
    return replace(_other(name, where, _media.plain_request), response=_media.job_response)


def _agent(name: str, where: str) -> Operation:
    """A row for a managed agent, which works on the server while its session lives."""
    return Operation(
        name=name,
        api="agents",
        where=where,
        request=_agents.agent_request,
        response=_agents.agent_response,
        fold=_agents.AgentFold,
        chunk_text=_agents.agent_chunk_text,
        content=_media.NO_CONTENT,
        context_length=_agents.agent_context_length,
    )


OPERATIONS: Final[Mapping[str, Operation]] = {
    "POST /chat/completions": Operation(
        name="chat",
        api="chat_completions",
        where="chat.completions",
        request=chat_request,
        response=chat_response,
        fold=ChatFold,
        chunk_text=chat_chunk_text,
        content=_messages.CHAT,
        context_length=chat_context_length,
        asks_usage=True,
    ),
    "POST /responses": _responses("chat", "responses", job="start"),
    "GET /responses/{response_id}": _responses("fetch_response", "responses.retrieve", job="fetch"),
    "POST /responses/{response_id}/cancel": _responses("cancel_response", "responses.cancel", job="fetch"),
    "POST /responses/compact": _responses("compact_response", "responses.compact"),
    "POST /responses/input_tokens": replace(
        _responses("count_tokens", "responses.input_tokens"), response=token_count_response
    ),
    "POST /completions": Operation(
        name="text_completion",
        api="completions",
        where="completions",
        request=_media.completions_request,
        response=_media.completions_response,
        fold=_media.CompletionFold,
        chunk_text=_media.completion_chunk_text,
        content=_media.COMPLETIONS,
        context_length=_media.prompt_length,
        asks_usage=True,
    ),
    "POST /embeddings": _other("embeddings", "embeddings", _media.embeddings_request),
    "POST /images/generations": _other("image_generation", "images.generate", _media.image_request),
    "POST /images/edits": _other("image_edit", "images.edit", _media.image_request),
    "POST /images/variations": _other("image_variation", "images.create_variation", _media.image_request),
    "POST /audio/speech": _other("speech", "audio.speech", _media.speech_request),
    "POST /audio/transcriptions": _other("transcription", "audio.transcriptions", _media.plain_request),
    "POST /audio/translations": _other("translation", "audio.translations", _media.plain_request),
    "POST /moderations": _other("moderation", "moderations", _media.plain_request),
    "POST /decisions": _other("decision", "decisions", _media.plain_request),
    "POST /vector_stores/{vector_store_id}/search": _other("retrieval", "vector_stores.search", _media.search_request),
    "POST /videos": _job("video_generation", "videos.create"),
    "POST /videos/edits": _job("video_edit", "videos.edit"),
    "POST /videos/extensions": _job("video_extension", "videos.extend"),
    "POST /videos/{video_id}/remix": _job("video_remix", "videos.remix"),
    "POST /threads/runs": _job("thread_run", "threads.create_and_run"),
    "POST /threads/{thread_id}/runs": _job("thread_run", "threads.runs.create"),
    "POST /threads/{thread_id}/runs/{run_id}/submit_tool_outputs": _job(
        "thread_run", "threads.runs.submit_tool_outputs"
    ),
    "POST /agents/sessions": _agent("agent_session", "agents.sessions.create"),
    "POST /agents/sessions/{session_id}/events": _agent("agent_input", "agents.sessions.events.create"),
    "GET /agents/sessions/{session_id}/events": _agent("agent_events", "agents.sessions.events.stream"),
    "POST /agents/automations/{automation_id}/invocations": _job(
        "agent_invocation", "agents.automations.invocations.create"
    ),
    "POST /fine_tuning/alpha/graders/run": replace(
        _other("grader_run", "fine_tuning.alpha.graders.run", _media.grader_request), response=_media.grader_response
    ),
}

_NO_ARGUMENTS: Final[Mapping[str, str]] = {}


@cache
def _templates() -> Mapping[str, list[tuple[re.Pattern[str], Operation]]]:
    """The routes with arguments in their paths, by how they begin; compiling them takes too long for an import."""
    found: dict[str, list[tuple[re.Pattern[str], Operation]]] = {}
    for route, operation in OPERATIONS.items():
        if "{" in route:
            template = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route))
            found.setdefault(_beginning(route), []).append((template, operation))
    return found


def _beginning(route: str) -> str:
    """Method and first part of the path, such as ``GET /responses``; most routes nobody observes end here."""
    return "/".join(route.split("/", 2)[:2])


def find_operation(method: str, url: str) -> tuple[Operation, Mapping[str, str]] | None:
    """Return the row for a request and the arguments in its path, None if the method is not one we observe."""
    route = f"{method.upper()} {url}" if url.startswith("/") else f"{method.upper()} /{url}"
    operation = OPERATIONS.get(route)
    if operation is not None:
        return operation, _NO_ARGUMENTS
    route = route.partition("?")[0]
    if (operation := OPERATIONS.get(route)) is not None:
        return operation, _NO_ARGUMENTS
    for template, row in _templates().get(_beginning(route), ()):
        if (match := template.fullmatch(route)) is not None:
            return row, match.groupdict()
    return None


READERS: Final[Mapping[str, ContentReaders]] = {row.api: row.content for row in OPERATIONS.values()}
"""How to read content that comes as JSON text, by API."""
