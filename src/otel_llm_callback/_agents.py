"""Read managed agents: sessions, what is put into them, and the events of their turns.

A session object adds up the tokens of all its turns, so only a turn that is seen to end tells how many it took.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ._jobs import TURNS
from ._readers import (
    RequestFacts,
    ResponseFacts,
    add_usage,
    all_fields,
    fields,
    integer,
    label,
    read_usage,
    text,
    utf8_length,
)
from .types import ChunkKind, Usage

_MAX_TURNS: Final = 1024

_TURN: Final = "agent.session.turn."
_TURN_STARTS: Final = _TURN + "created"
_TURN_ENDS: Final = frozenset(_TURN + end for end in ("completed", "failed", "cancelled"))
_SESSION_RESTS: Final = frozenset(f"agent.session.{state}" for state in ("idle", "requires_action", "failed"))
_DELTAS: Final[Mapping[str, ChunkKind]] = {
    _TURN + "output_text.delta": "text",
    _TURN + "reasoning_summary_text.delta": "reasoning",
}


def agent_request(body: Mapping[str, object]) -> RequestFacts:
    """Read the body of a new session, or path and body of what is sent to one."""
    facts: RequestFacts = {}
    agent = fields(body.get("agent"))
    if model := label(agent.get("model")):
        facts["model"] = model
    if tier := label(agent.get("service_tier")):
        facts["service_tier"] = tier
    if level := label(fields(agent.get("reasoning")).get("effort")):
        facts["reasoning_level"] = level
    if session := label(body.get("session_id")):
        facts["conversation_id"] = session
    return facts


def agent_context_length(body: Mapping[str, object]) -> int | None:
    """UTF-8 bytes of text in the messages to the agent, None if there are none."""
    events = body.get("events")
    inputs = [fields(event).get("input") for event in events] if isinstance(events, (list, tuple)) else []
    lengths = [_text_bytes(given) for given in (body.get("input"), *inputs)]
    known = [length for length in lengths if length is not None]
    return sum(known) if known else None


def _text_bytes(given: object) -> int | None:
    if isinstance(given, str):
        return utf8_length(given)
    if not isinstance(given, (list, tuple)):
        return None
    contents = [fields(message).get("content") for message in given]
    parts = [part for content in contents if isinstance(content, (list, tuple)) for part in content]
    return sum(utf8_length(said) for part in parts if isinstance(said := fields(part).get("text"), str))


def agent_response(parsed: object) -> ResponseFacts:
    """Read a session; what is sent to one has no answer."""
    data = all_fields(parsed)
    facts: ResponseFacts = {
        "id": label(data.get("id")),
        "created": integer(data.get("created_at")),
        "model": label(fields(data.get("agent")).get("model")),
        "status": label(data.get("status")),
    }
    if facts["status"] == "failed":
        facts["failure"] = "failed"  # its error is a text, no code
    return facts


class AgentFold:
    """Events of a session: any number of turns, each with usage at its end, until the caller has enough."""

    __slots__ = ("_failure", "_pieces", "_session", "_session_id", "_turns", "is_over", "saw_output")

    def __init__(self, *, keep_content: bool) -> None:
        self.saw_output = False
        self.is_over = False
        self._session: object = None
        self._session_id: str | None = None
        self._failure: str | None = None
        self._turns: dict[str, Usage | None] = {}
        self._pieces: list[str] | None = [] if keep_content else None

    def add(self, event: Any) -> None:
        """Take in an event."""
        data = event.__dict__
        kind = data["type"]
        if kind in _DELTAS:
            self.saw_output = True
            if self._pieces is not None and kind == _TURN + "output_text.delta":
                self._pieces.append(data["delta"])
        elif kind == "error":
            self._failure = _code(data.get("error"))
        elif kind.startswith(_TURN):
            self._add_turn(kind, data)
        elif (session := data.get("session")) is not None:
            self._session = session
            self.is_over = kind in _SESSION_RESTS
        self._session_id = self._session_id or label(data.get("session_id"))

    def _add_turn(self, kind: str, data: Mapping[str, Any]) -> None:
        turn = fields(data.get("turn"))
        is_own = turn.get("subagent_id") is None  # the session's own turn goes on when one of a subagent ends
        if kind == _TURN_STARTS and is_own:
            self._failure, self.is_over = None, False
        elif kind in _TURN_ENDS:
            self.saw_output = True
            if is_own:
                self.is_over = True
                self._failure = _code(turn.get("error")) if kind == _TURN + "failed" else None
            if (turn_id := label(data.get("turn_id"))) and len(self._turns) < _MAX_TURNS:
                usage = data.get("usage")
                self._turns[turn_id] = read_usage(turn.get("usage") if usage is None else usage)

    def facts(self, *, due: bool) -> ResponseFacts:  # noqa: ARG002 - turns have no finish reasons
        """Return what the events said so far; the tokens of a turn are told by the first stream that asks."""
        facts: ResponseFacts = agent_response(self._session) if self._session is not None else {"id": self._session_id}
        facts["truncated"] = not self.is_over
        facts["usage"] = add_usage(usage for turn, usage in self._turns.items() if usage and TURNS.is_new(turn))
        if self._failure is not None:
            facts["failure"] = self._failure
        return facts

    def body(self) -> object:
        """Return what the agent wrote."""
        if self._pieces is None:
            return None
        return {"id": self._session_id, "object": "agent.session", "text": "".join(self._pieces)}


def _code(error: object) -> str:
    data = fields(error)
    return label(data.get("code")) or label(data.get("type")) or "failed"


def agent_chunk_text(event: Any) -> tuple[str, ChunkKind]:
    """Return the text of an event and what it is."""
    data = fields(event)
    kind = data.get("type")
    found = _DELTAS.get(kind) if isinstance(kind, str) else None
    return ("", "event") if found is None else (text(data.get("delta")) or "", found)
