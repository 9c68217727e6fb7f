"""The table of API methods: a new method is a row here and a scenario in the tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from . import _messages
from ._folds import ChatFold, Fold, chat_chunk_text
from ._readers import RequestFacts, ResponseFacts, chat_context_length, chat_request, chat_response
from .content import ContentReaders
from .types import ChunkKind


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
    ),
}

_TEMPLATES: Final = tuple(
    (re.compile(re.sub(r"\{\w+\}", "[^/]+", route)), operation)
    for route, operation in OPERATIONS.items()
    if "{" in route
)


def find_operation(method: str, url: str) -> Operation | None:
    """Return the row for a request, None if the method is not one we observe."""
    route = f"{method.upper()} {url}" if url.startswith("/") else f"{method.upper()} /{url}"
    operation = OPERATIONS.get(route)
    if operation is not None:
        return operation
    route = route.partition("?")[0]
    return OPERATIONS.get(route) or next((row for template, row in _TEMPLATES if template.fullmatch(route)), None)
