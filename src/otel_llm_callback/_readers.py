"""Read SDK objects and request bodies into facts: pure functions, one place per API.

Bodies are read as mappings of unknown values and narrowed here; a value of the wrong type is left out, never an error:
what a server or a caller writes there is not ours to judge. A missing count stays None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields as fields_of
from typing import Any, Final, TypedDict, cast

from .types import Usage, new_usage

_NO_FIELDS: Final[Mapping[str, Any]] = {}
_TWO_63: Final = 2**63


class RequestFacts(TypedDict, total=False):
    """Fields of ``RequestMetadata`` that a body tells."""

    model: str
    temperature: float
    max_tokens: int
    top_p: float
    top_k: int
    frequency_penalty: float
    presence_penalty: float
    stop_sequences: tuple[str, ...]
    seed: int
    choice_count: int
    reasoning_level: str
    output_type: str
    service_tier: str
    conversation_id: str
    previous_response_id: str
    prompt_name: str
    prompt_version: str
    background: bool
    response_id: str
    stream_cursor: str
    dimension_count: int
    encoding_formats: tuple[str, ...]
    data_source_id: str


class ResponseFacts(TypedDict, total=False):
    """Fields of ``ResponseMetadata`` that a response tells."""

    id: str | None
    created: int | None
    model: str | None
    finish_reasons: tuple[str, ...]
    truncated: bool
    usage: Usage | None
    service_tier: str | None
    system_fingerprint: str | None
    status: str | None
    failure: str | None


def fields(value: object) -> Mapping[str, Any]:
    """Return the fields of an SDK object or mapping; empty for anything else.

    Asking a pydantic object, or its class, for an attribute it lacks costs microseconds, its ``__dict__`` next to
    nothing; an ``isinstance`` check against ``Mapping`` costs more than the rest of this function. So objects are told
    by what every pydantic object has.
    """
    if type(value) is dict:
        return value
    if hasattr(value, "__pydantic_fields_set__"):
        return value.__dict__
    if hasattr(type(value), "keys"):
        return value if isinstance(value, Mapping) else {}
    return getattr(value, "__dict__", _NO_FIELDS)


def all_fields(value: object) -> Mapping[str, Any]:
    """`fields`, and those this version of the SDK does not know, which pydantic keeps elsewhere."""
    if value is None:
        return _NO_FIELDS
    extra = getattr(value, "__pydantic_extra__", None) if type(value) is not dict else None
    return {**fields(value), **extra} if extra else fields(value)


def text(value: object) -> str | None:
    """*value* if it is non-empty text."""
    return value if isinstance(value, str) and value else None


def label(value: object) -> str | None:
    """*value* if it is non-empty text; half a surrogate pair, which would fail a whole export, becomes ``?``."""
    known = text(value)
    return known if known is None or known.isascii() else known.encode("utf-8", "replace").decode()


def number(value: object) -> float | None:
    """*value* as a float if it is a number."""
    return float(value) if isinstance(value, float) or integer(value) is not None else None  # type: ignore[arg-type]


def integer(value: object) -> int | None:
    """*value* if it is a whole number of 64 bits; one more would fail a whole export."""
    if isinstance(value, int) and not isinstance(value, bool) and -_TWO_63 <= value < _TWO_63:
        return value
    return None


def count(value: object) -> int | None:
    """*value* if it is a whole number that is not negative."""
    return value if type(value) is int and 0 <= value < _TWO_63 else None


def stop_sequences(value: object) -> tuple[str, ...] | None:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (list, tuple)):
        return tuple(item for item in value if isinstance(item, str)) or None
    return None


_OUTPUT_TYPES: Final = {"json_object": "json", "json_schema": "json", "text": "text"}


def output_type(value: object) -> str | None:
    """``gen_ai.output.type`` for a response format."""
    return _OUTPUT_TYPES.get(str(fields(value).get("type")))


def _modalities(value: object) -> str | None:
    return "speech" if isinstance(value, (list, tuple)) and "audio" in value else None


_CHAT_REQUEST: Final[Mapping[str, tuple[str, Callable[[object], object]]]] = {
    "model": ("model", label),
    "temperature": ("temperature", number),
    "max_tokens": ("max_tokens", count),
    "max_completion_tokens": ("max_tokens", count),
    "top_p": ("top_p", number),
    "top_k": ("top_k", integer),
    "frequency_penalty": ("frequency_penalty", number),
    "presence_penalty": ("presence_penalty", number),
    "stop": ("stop_sequences", stop_sequences),
    "seed": ("seed", integer),
    "n": ("choice_count", count),
    "reasoning_effort": ("reasoning_level", label),
    "response_format": ("output_type", output_type),
    "modalities": ("output_type", _modalities),
    "service_tier": ("service_tier", label),
}


def read_request(
    body: Mapping[str, object], table: Mapping[str, tuple[str, Callable[[object], object]]]
) -> RequestFacts:
    """Read the keys of *body* that *table* knows, as ``key: (field, narrowing function)``."""
    facts: dict[str, object] = {}
    for key, value in body.items():
        if value is not None and (row := table.get(key)) is not None:
            name, narrow = row
            if (narrowed := narrow(value)) is not None:
                facts[name] = narrowed
    return cast("RequestFacts", facts)


def chat_request(body: Mapping[str, object]) -> RequestFacts:
    """Read a Chat Completions request body."""
    facts = read_request(body, _CHAT_REQUEST)
    if (limit := count(body.get("max_completion_tokens"))) is not None:
        facts["max_tokens"] = limit  # wins over the older name, wherever it stands
    return facts


def chat_context_length(body: Mapping[str, object]) -> int | None:
    """UTF-8 bytes of text in the messages, None if there are no messages to measure."""
    messages = body.get("messages")
    return sum(_message_bytes(message) for message in messages) if isinstance(messages, (list, tuple)) else None


def _message_bytes(message: object) -> int:
    content = fields(message).get("content")
    if isinstance(content, str):
        return utf8_length(content)
    if isinstance(content, (list, tuple)):
        texts = (fields(part).get("text") for part in content)
        return sum(utf8_length(part) for part in texts if isinstance(part, str))
    return 0


def utf8_length(value: str) -> int:
    """Bytes of *value* in UTF-8; free for ASCII."""
    return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))


def chat_response(parsed: object) -> ResponseFacts:
    """Read a Chat Completions response."""
    data = fields(parsed)
    choices = data.get("choices")
    reasons = [fields(choice).get("finish_reason") for choice in choices] if isinstance(choices, list) else []
    return {
        "id": label(data.get("id")),
        "created": integer(data.get("created")),
        "model": label(data.get("model")),
        "finish_reasons": tuple([reason if isinstance(reason, str) else "error" for reason in reasons]),
        "usage": read_usage(data.get("usage")),
        "service_tier": label(data.get("service_tier")),
        "system_fingerprint": label(data.get("system_fingerprint")),
    }


def _either(data: Mapping[str, Any], name: str, other: str) -> Any:
    value = data.get(name)
    return data.get(other) if value is None else value


def read_usage(usage: object) -> Usage | None:
    """Return the token counts the API reported.

    Args:
        usage: The ``usage`` object, in the spelling of Chat (``prompt_tokens``) or Responses (``input_tokens``).

    Returns:
        Counts in tokens; a field is None where the API was silent. None if there was no usage at all. Neither ever
        becomes zero. Reasoning tokens are part of the output count.

    Source: GenAI conventions sheet, usage attributes.
    """
    data = all_fields(usage)
    inputs = count(_either(data, "prompt_tokens", "input_tokens"))
    outputs = count(_either(data, "completion_tokens", "output_tokens"))
    total = count(data.get("total_tokens"))
    if inputs is None and outputs is None and total is None:
        return None
    prompt = _either(data, "prompt_tokens_details", "input_tokens_details")
    if prompt is None:
        prompt = data.get("input_token_details")  # transcriptions
    completion = _either(data, "completion_tokens_details", "output_tokens_details")
    if prompt is None and completion is None:
        return new_usage(input_tokens=inputs, output_tokens=outputs, total_tokens=total)
    prompt, completion = all_fields(prompt), all_fields(completion)
    cached = all_fields(prompt.get("cached_tokens_details"))  # realtime
    return new_usage(
        input_tokens=inputs,
        output_tokens=outputs,
        total_tokens=total,
        cached_tokens=count(prompt.get("cached_tokens")),
        cache_write_tokens=count(prompt.get("cache_write_tokens")),
        reasoning_tokens=count(completion.get("reasoning_tokens")),
        text_input_tokens=count(prompt.get("text_tokens")),
        text_output_tokens=count(completion.get("text_tokens")),
        image_input_tokens=count(prompt.get("image_tokens")),
        image_output_tokens=count(completion.get("image_tokens")),
        audio_input_tokens=count(prompt.get("audio_tokens")),
        audio_output_tokens=count(completion.get("audio_tokens")),
        cached_audio_tokens=count(cached.get("audio_tokens")),
        cached_image_tokens=count(cached.get("image_tokens")),
    )


def add_usage(usages: Iterable[Usage]) -> Usage | None:
    """Return the sum, each count of those that report it; None if there are none."""
    known = list(usages)
    if len(known) <= 1:
        return known[0] if known else None
    return Usage(**{field.name: _sum(getattr(usage, field.name) for usage in known) for field in fields_of(Usage)})


def _sum(counts: Iterable[int | None]) -> int | None:
    known = [one for one in counts if one is not None]
    return sum(known) if known else None
