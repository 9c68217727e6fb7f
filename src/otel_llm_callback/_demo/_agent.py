"""Bob, who chats, and the server he talks to: the one in the environment, or a scripted one on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ..callbacks._text import printable
from ..testing import (
    JsonReply,
    ReceivedRequest,
    Reply,
    ScriptedServer,
    StreamReply,
    chat_chunks,
    chat_completion,
    error_body,
)

if TYPE_CHECKING:
    from openai import OpenAI

_DEFAULT_MODEL: Final = "gpt-4o-mini"
_NO_SUCH_MODEL: Final = "no-such-model"
_INSTRUCTIONS: Final = "You are Bob, a friendly agent who answers in one or two short sentences."
_MAX_TOKENS: Final = 200
_ANSWERS: Final = (
    "I am Bob, a small chat agent. Every call I make is watched by two callbacks and an OpenTelemetry adapter.",
    "A trace is the story of one request: every step it took, in which order, and how long each of them was.",
    "It tells you while it happens. A span is written down when all is over; a callback sees each chunk as it comes.",
)
_RETRY_AFTER_MS: Final = 150
_ANSWER_DELAY_S: Final = 0.2
_CHUNK_DELAY_S: Final = 0.02


class Bob:
    """A chat agent that remembers what was said."""

    def __init__(self, client: OpenAI, model: str) -> None:
        self._client = client
        self._model = model
        self._history: list[Any] = [{"role": "system", "content": _INSTRUCTIONS}]

    def ask(self, question: str) -> str:
        """Return the answer to a question."""
        self._history.append({"role": "user", "content": question})
        response = self._client.chat.completions.create(
            model=self._model, messages=self._history, temperature=0.7, max_tokens=_MAX_TOKENS
        )
        return self._remember(response.choices[0].message.content or "")

    def ask_streamed(self, question: str) -> str:
        """Return the answer to a question, read chunk by chunk."""
        self._history.append({"role": "user", "content": question})
        stream = self._client.chat.completions.create(
            model=self._model,
            messages=self._history,
            temperature=0.7,
            max_tokens=_MAX_TOKENS,
            stream=True,
            stream_options={"include_usage": True},
        )
        pieces = [choice.delta.content or "" for chunk in stream for choice in chunk.choices]
        return self._remember("".join(pieces))

    def ask_unknown_model(self) -> str | None:
        """Ask a model that does not exist; return the class of the error, or None if the server answered anyway."""
        import openai

        try:
            self._client.chat.completions.create(model=_NO_SUCH_MODEL, messages=self._history, max_tokens=1)
        except openai.APIStatusError as error:
            return type(error).__name__
        return None

    def _remember(self, answer: str) -> str:
        self._history.append({"role": "assistant", "content": answer})
        return answer


@dataclass(frozen=True, slots=True)
class Server:
    """Whom Bob talks to."""

    client: OpenAI
    model: str
    description: str

    def agent(self) -> Bob:
        """Return an agent without memories."""
        return Bob(self.client, self.model)


@contextmanager
def open_server(model: str | None) -> Iterator[Server]:
    """Connect to ``OPENAI_BASE_URL`` if that is set; else start a scripted server for as long as the block lasts.

    Raises:
        openai.APIConnectionError: The server in the environment cannot be reached.
    """
    from openai import DefaultHttpxClient, OpenAI

    model = model or os.environ.get("OPENAI_MODEL")
    base_url = os.environ.get("OPENAI_BASE_URL")
    if base_url:
        with OpenAI(api_key=os.environ.get("OPENAI_API_KEY") or "none") as client:
            yield Server(client, _reachable_model(client, model), f"{without_password(base_url)} (OPENAI_BASE_URL)")
        return
    with ScriptedServer(_reply) as server:
        # A proxy for the internet, set in the environment, does not know of this machine's ports.
        http_client = DefaultHttpxClient(trust_env=False)
        with OpenAI(api_key="scripted", base_url=server.url, http_client=http_client) as client:
            about = f"{server.url}, scripted; set OPENAI_BASE_URL for a real one"
            yield Server(client, model or _DEFAULT_MODEL, about)


def _reachable_model(client: OpenAI, model: str | None) -> str:
    """Return *model*, else one the server has. Asks it in any case, to fail early and at once if it is not there."""
    import openai

    try:
        models = [m.id for m in client.with_options(max_retries=0, timeout=10).models.list()]
    except openai.APIStatusError:  # not every compatible server has a list
        models = []
    if model is not None or client.base_url.host.endswith("openai.com"):
        return model or _DEFAULT_MODEL
    return next((name for name in models if "embed" not in name.lower()), _DEFAULT_MODEL)


def without_password(url: str) -> str:
    """Return *url* without user, password and query, safe to print."""
    parts = urlsplit(url)
    return printable(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl())


def _reply(request: ReceivedRequest) -> Reply | None:
    """Answer as the API would, with one rate limit error on the way."""
    asked = request.json
    if request.path != "/chat/completions":
        return None
    if asked.get("model") == _NO_SUCH_MODEL:
        message = f"The model `{_NO_SUCH_MODEL}` does not exist or you do not have access to it."
        return JsonReply(error_body(message, code="model_not_found"), status=404)
    number = sum(message.get("role") == "user" for message in asked["messages"]) - 1
    if number == 1 and request.attempt == 0:
        headers = {"retry-after-ms": str(_RETRY_AFTER_MS)}
        return JsonReply(error_body("Rate limit reached.", "rate_limit_error"), status=429, headers=headers)
    return _answer(asked, _ANSWERS[number % len(_ANSWERS)])


def _answer(asked: Mapping[str, Any], text: str) -> Reply:
    usage = (_tokens(message["content"] for message in asked["messages"]), _tokens([text]))
    if asked.get("stream"):
        return StreamReply(chat_chunks(text, model=asked["model"], usage=usage), delay_s=_CHUNK_DELAY_S)
    return JsonReply(chat_completion(text, model=asked["model"], usage=usage), delay_s=_ANSWER_DELAY_S)


def _tokens(texts: Iterable[str]) -> int:
    """Return about as many tokens as the texts would have."""
    return sum(3 + len(text) // 4 for text in texts)
