"""The one gate for everything that may carry content: what a person wrote or a model said, error text included.

Nothing that can hold content reaches a span, a metric, a log or a callback's JSON by another way. What is withheld is
absent, never an empty value. Redaction fails closed. Shortened JSON is still JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from . import _faults

if TYPE_CHECKING:
    from typing_extensions import Self

    from .types import Usage

Redactor: TypeAlias = Callable[[str], str]
"""Takes one piece of text and returns what may be shown of it; must be fast, and may be called from any thread."""

Estimator: TypeAlias = "Callable[[str | None, str, str], Usage | None]"
"""Takes the model, the request and the answer as JSON text and returns what was used, None if it cannot tell."""

CaptureMode: TypeAlias = Literal["no_content", "span_only", "event_only", "span_and_event"]

Message: TypeAlias = "dict[str, Any]"

REDACTED: Final = "[redacted]"
REDACTION_FAILED: Final = "[redaction_failed]"
DEFAULT_LIMIT: Final = 262_144
"""Characters of one content attribute; four of them stay far below the 4 MiB of an OTLP message."""

_MAX_DEPTH: Final = 32

# Values that say how a body is built rather than what was said. They stay only where the body's shape is known and only
# if they look like a word: a caller or a server may write anything anywhere.
_STRUCTURAL_KEYS: Final = frozenset(
    ("call_id", "finish_reason", "id", "model", "object", "role", "status", "tool_call_id", "type")
)
_WORD: Final = re.compile(r"[A-Za-z0-9][\w./:-]{0,127}")
_CONTAINERS: Final = frozenset(
    (
        "choices",
        "content",
        "custom",
        "delta",
        "function",
        "function_call",
        "input",
        "message",
        "messages",
        "output",
        "parts",
        "response_format",
        "server_tool_call",
        "tool_calls",
        "tool_choice",
        "tools",
    )
)
_JSON_TYPES: Final = frozenset(("array", "boolean", "integer", "null", "number", "object", "string"))
# A name is one of a tool, not of a person, below these keys or beside these types.
_NAMED_KEYS: Final = frozenset(("custom", "function", "function_call"))
_NAMED_TYPES: Final = frozenset(("custom", "function", "server_tool_call", "tool_call"))


@dataclass(frozen=True, slots=True)
class ContentReaders:
    """How to read the content of one API, in the shape of the GenAI conventions.

    Attributes:
        input_messages: Request body to messages.
        output_messages: Response fields to messages, one per choice.
        tool_definitions: Request body to tool definitions.
        system_instructions: Request body to parts, for APIs that take them outside the messages.
    """

    input_messages: Callable[[Mapping[str, Any]], list[Message]]
    output_messages: Callable[[object], list[Message]]
    tool_definitions: Callable[[Mapping[str, Any]], list[Message]]
    system_instructions: Callable[[Mapping[str, Any]], list[Message]]


class Payload(str):
    """The content of one request or response, made into text only when a callback takes it.

    As a ``str`` it is empty; the OpenTelemetry adapter is handed the payload itself and asks it for messages if the
    span is recorded and capture is on.
    """

    __slots__ = ("body", "readers", "redactor", "texts")

    body: Any
    readers: ContentReaders
    redactor: Redactor | None
    texts: dict[str, str]

    def __new__(cls, body: object, readers: ContentReaders, redactor: Redactor | None = None) -> Self:
        """Hold *body*, a request's mapping or a response object, unread."""
        payload = super().__new__(cls)
        payload.body = body
        payload.readers = readers
        payload.redactor = redactor
        payload.texts = {}
        return payload

    def at(self, level: str) -> str:
        """Return the body as JSON text at a content level, or the payload itself for ``lazy``."""
        if level == "lazy":
            return self
        text = self.texts.get(level)
        if text is None:
            text = self.texts[level] = self._text(level)
        return text

    def _text(self, level: str) -> str:
        try:
            text = json_text(self.body)
            return text if level == "full" else redact_json(text, self.redactor)
        except Exception as error:  # noqa: BLE001 - an odd body must not cost the callback its event
            _faults.report("content", error, "a body could not be made into JSON")
            return ""


@dataclass(frozen=True, slots=True)
class Gate:
    """What telemetry may show.

    Attributes:
        mode: Where messages go: ``no_content``, ``span_only``, ``event_only`` or ``span_and_event``.
        error_text: Whether exception messages may be shown.
        limit: Longest content attribute, in characters.
        redactor: Applied to every text that is shown.
        tool_details: Whether a tool is shown with its description and parameters, or by type and name only.
    """

    mode: CaptureMode = "no_content"
    error_text: bool = False
    limit: int = DEFAULT_LIMIT
    redactor: Redactor | None = None
    tool_details: bool = False

    @property
    def on_spans(self) -> bool:
        """True if messages go on spans."""
        return self.mode in ("span_only", "span_and_event")

    @property
    def on_events(self) -> bool:
        """True if messages go on log events."""
        return self.mode in ("event_only", "span_and_event")

    def messages(self, messages: list[Message]) -> str:
        """Return messages or parts as JSON text no longer than the limit."""
        if self.redactor is not None:
            messages = redact(messages, self.redactor)
        return fit(messages, self.limit)

    def tools(self, tools: list[Message]) -> str:
        """Return tool definitions as JSON text no longer than the limit."""
        if not self.tool_details:
            tools = [{key: tool[key] for key in ("type", "name") if key in tool} for tool in tools]
        if self.redactor is not None:
            tools = [_redact_tool(tool, self.redactor) for tool in tools]
        return fit(tools, self.limit)

    def text(self, text: str) -> str:
        """Return *text* redacted and no longer than the limit."""
        if self.redactor is not None:
            text = _redacted(text, self.redactor)
        return text if len(text) <= self.limit else text[: self.limit]


def json_text(body: object) -> str:
    """Return *body* as compact JSON; SDK objects as the server sent them."""
    to_json = getattr(body, "to_json", None)
    if to_json is not None:
        return str(to_json(indent=None, warnings=False))  # of an odd body the caller has been told enough
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), default=_plain)


def restrict(text: str, level: str) -> str:
    """Return JSON *text* lowered to a content level, for callbacks composed of others."""
    if level == "full" or not text:
        return text
    return redact_json(text, None) if level == "redacted" else ""


def redact_json(text: str, redactor: Redactor | None) -> str:
    """Return JSON *text* with every value that may be content passed through *redactor*.

    Without a redactor each becomes ``[redacted]``. Keys and numbers stay, and so do roles, types, ids, models and the
    names of tools where the body's shape is known.
    """
    value = redact(json.loads(text), redactor or _withhold)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def redact(value: Any, redactor: Redactor) -> Any:
    """Return a copy of *value* with its texts passed through *redactor*; the original is left alone."""
    return _redact(value, redactor, parent="", depth=0, known=True)


def _redact(value: Any, redactor: Redactor, *, parent: str, depth: int, known: bool) -> Any:
    if isinstance(value, str):
        return _redacted(value, redactor)
    if depth > _MAX_DEPTH:
        return REDACTED
    if isinstance(value, Mapping):
        shown = {}
        for key, item in value.items():
            if known and isinstance(item, str) and _is_structure(key, item, parent, value):
                shown[key] = item
            else:
                below = known and key in _CONTAINERS
                shown[key] = _redact(item, redactor, parent=key, depth=depth + 1, known=below)
        return shown
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_redact(item, redactor, parent=parent, depth=depth + 1, known=known) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else _redacted(str(value), redactor)


def _redact_tool(tool: Message, redactor: Redactor) -> Message:
    shown: Message = redact({key: value for key, value in tool.items() if key != "parameters"}, redactor)
    if "parameters" in tool:
        shown["parameters"] = _redact_schema(tool["parameters"], redactor, depth=0)
    return shown


def _redact_schema(schema: Any, redactor: Redactor, *, depth: int) -> Any:
    """A JSON Schema with its texts redacted that is still one: types and the names of properties stay."""
    if depth > _MAX_DEPTH or not isinstance(schema, (Mapping, list, tuple)):
        return redact(schema, redactor) if depth <= _MAX_DEPTH else REDACTED
    if not isinstance(schema, Mapping):
        return [_redact_schema(item, redactor, depth=depth + 1) for item in schema]
    return {
        key: item if _is_keyword(key, item, schema) else _redact_schema(item, redactor, depth=depth + 1)
        for key, item in schema.items()
    }


def _is_keyword(key: str, item: Any, schema: Mapping[str, Any]) -> bool:
    values = item if isinstance(item, (list, tuple)) else [item]
    if key == "type":
        return all(isinstance(value, str) and value in _JSON_TYPES for value in values)
    properties = schema.get("properties")
    return (
        key == "required"
        and isinstance(properties, Mapping)
        and all(isinstance(value, str) and value in properties for value in values)
    )


def _is_structure(key: str, item: str, parent: str, siblings: Mapping[str, Any]) -> bool:
    if key == "name":
        named = parent in _NAMED_KEYS or siblings.get("type") in _NAMED_TYPES
        return named and _WORD.fullmatch(item) is not None
    return key in _STRUCTURAL_KEYS and _WORD.fullmatch(item) is not None


def fit(messages: list[Message], limit: int) -> str:
    """Return *messages* as JSON text of at most *limit* characters.

    Long texts are cut first, each marked with the number of characters left out; then the oldest messages go, and a
    part of type ``omitted`` says how many. Below about 80 characters only ``[]`` may be left.
    """
    if (text := _dumps(messages, limit)) is not None:
        return text
    cap = limit // 2
    while cap >= 16:  # noqa: PLR2004 - below that a cut text says nothing
        if (text := _dumps(cut_texts(messages, cap), limit)) is not None:
            return text
        cap //= 8
    return _newest(cut_texts(messages, 16), limit)


def _newest(messages: list[Message], limit: int) -> str:
    kept: list[str] = []
    room = limit - 100  # for the brackets and the message that counts what is left out
    for message in reversed(messages):
        text = _to_json(message)
        room -= len(text) + 1
        if room < 0:
            break
        kept.append(text)
    omitted: Message = {"type": "omitted", "name": "omitted", "count": len(messages) - len(kept)}
    if "role" in messages[0]:  # tool definitions and instructions have none
        omitted = {"role": "system", "parts": [{"type": "omitted", "count": omitted["count"]}]}
    text = "[" + ",".join([json.dumps(omitted, separators=(",", ":")), *reversed(kept)]) + "]"
    return text if len(text) <= limit else "[]"


def _dumps(messages: list[Message], limit: int) -> str | None:
    """JSON text if it fits, else None; hopeless sizes are not serialised at all."""
    if _size(messages, limit) > limit:
        return None
    text = _to_json(messages)
    return text if len(text) <= limit else None


def _size(value: Any, limit: int) -> int:
    """A lower bound of the JSON length of *value*, given up once it passes *limit*: the length of its texts."""
    total, waiting = 0, [value]
    while waiting and total <= limit:
        item = waiting.pop()
        kind = type(item)  # nearly always one of three, and asking for Mapping is slow
        if kind is str:
            total += len(item)
        elif kind is dict:
            waiting += item.values()
        elif kind is list:
            waiting += item
        elif isinstance(item, Mapping):
            waiting += item.values()
    return total


def cut_texts(value: Any, cap: int) -> Any:
    """Return a copy of *value* with each text cut to *cap* characters and marked with how many were left out."""
    if isinstance(value, str):
        return value if len(value) <= cap else f"{value[:cap]}…[+{len(value) - cap}]"
    if isinstance(value, Mapping):
        return {key: cut_texts(item, cap) for key, item in value.items()}
    if isinstance(value, list):
        return [cut_texts(item, cap) for item in value]
    return value


def _to_json(value: object) -> str:
    try:
        # Comes with every openai; four times as fast as the standard library on long histories.
        from pydantic_core import to_json

        return to_json(value, fallback=_plain, inf_nan_mode="null").decode()
    except (ImportError, ValueError):  # half a surrogate pair, which some servers send, is JSON only when escaped
        return json.dumps(value, separators=(",", ":"), default=_plain)


def _redacted(text: str, redactor: Redactor) -> str:
    try:
        shown = redactor(text)
    except Exception as error:  # noqa: BLE001 - a redactor that fails must not show the text
        _faults.report("redact", error, "the redactor failed")
        return REDACTION_FAILED
    return shown if isinstance(shown, str) else REDACTION_FAILED


def _withhold(_: str) -> str:
    return REDACTED


def _plain(value: Any) -> object:
    """What the JSON encoder cannot write by itself: SDK objects, sets, dates; else the name of the type."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_unset=True, warnings=False)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    return value.isoformat() if hasattr(value, "isoformat") else f"<{type(value).__name__}>"
