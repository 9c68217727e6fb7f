"""Frameworks that call ``openai`` for their users, each in an environment of its own, without us and with us.

Slow and big, so ``make test`` runs them only in CI and where ``make frameworks`` has made the environment before. All
runs talk to the same script; what their caller gets and what the API is sent must not differ, and what we tell must be
what happened. The programs print what their caller sees, and know nothing of us.
"""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from frameworks import _environments
from frameworks._replies import Replied, Replies
from missing import give_up

from otel_llm_callback.testing import ReceivedRequest, ScriptedServer

pytestmark = pytest.mark.frameworks

SHOWN = {"openai", *(line.partition("[")[0] for lines in _environments.REQUIREMENTS.values() for line in lines)}
MODES = ("off", "on", "asking")
LAUNCHER = Path(__file__).with_name("_launch.py")

# Nothing is to be sent anywhere but to the server, nor asked for; the launcher holds them to it.
OPT_OUT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "SCARF_NO_ANALYTICS": "true",
}
INHERITED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")

FACTS = (
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.response.id",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "error.type",
)

# Of the headers of a request, these differ between any two runs.
PASSING = {"host", "content-length", "x-request-id", "x-client-request-id"}


@dataclass(frozen=True)
class Run:
    """One run of a program.

    Attributes:
        found: What the launcher printed.
        errors: What came on standard error.
        requests: What arrived at the API.
        replied: What it answered.
    """

    found: dict[str, Any]
    errors: str
    requests: list[ReceivedRequest]
    replied: list[Replied]


def run(framework: str, python: Path, mode: str, directory: Path) -> Run:
    replies = Replies()
    directory.mkdir()
    with ScriptedServer(replies) as server:
        done = subprocess.run(
            [python, LAUNCHER, mode, framework],
            cwd=directory,
            env={
                **{name: os.environ[name] for name in INHERITED if name in os.environ},
                **OPT_OUT,
                "HOME": str(directory),
                "PYTHONHASHSEED": "0",
                "PYTHONDONTWRITEBYTECODE": "1",
                "OPENAI_API_KEY": "test-key",
                "OPENAI_API_BASE": server.url,
                "OPENAI_BASE_URL": server.url,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, f"{framework} {mode}\n{done.stdout}\n{done.stderr}"
        return Run(json.loads(done.stdout.splitlines()[-1]), done.stderr, server.requests, replies.given)


@pytest.fixture(scope="module", params=list(_environments.REQUIREMENTS))
def framework(request):
    return request.param


@pytest.fixture(scope="module")
def python(framework):
    """The interpreter of the framework's environment."""
    found = _environments.python(framework)
    if found is None:  # not made here: it takes longer than a test may
        give_up("its environment has not been made; `make frameworks` does it")
    return found


@pytest.fixture(scope="module")
def runs(framework, python, tmp_path_factory):
    """The three runs by mode, made side by side because most of their time is imports."""
    directory = tmp_path_factory.mktemp(framework)
    with ThreadPoolExecutor() as pool:
        started = {mode: pool.submit(run, framework, python, mode, directory / mode) for mode in MODES}
        return {mode: future.result() for mode, future in started.items()}


@pytest.fixture
def off(runs):
    return runs["off"]


@pytest.fixture
def on(runs):
    return runs["on"]


@pytest.fixture
def asking(runs):
    """The run with us on, and asking for the usage of streams where the framework does not."""
    return runs["asking"]


def sent(run):
    """Return what the API was sent: paths, bodies, and headers but for what differs between any two runs."""
    return [
        (
            request.method,
            request.path,
            request.json,
            {name: value for name, value in request.headers.items() if name not in PASSING},
        )
        for request in run.requests
    ]


def test_results_are_the_same_with_us(framework, off, on):
    """What the framework hands its caller does not depend on us, in any form of call."""
    versions = on.found["versions"]
    print(framework, {name: versions[name] for name in sorted(versions) if name in SHOWN})
    assert on.found["results"] == off.found["results"]
    assert (off.found["loaded"], on.found["loaded"]) == (False, True)


def test_requests_are_the_same_with_us(off, on):
    """What the framework sends does not depend on us: the same calls in the same order, headers included."""
    assert sent(on) == sent(off)
    assert on.replied == off.replied


def expected(replied):
    """Return what the span of a call must say."""
    facts: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": replied.model,
        "gen_ai.response.id": replied.response_id,
        "gen_ai.usage.input_tokens": replied.usage and replied.usage[0],
        "gen_ai.usage.output_tokens": replied.usage and replied.usage[1],
        "error.type": "NotFoundError" if replied.refused else None,
        "said": replied.text or replied.tool or "",
    }
    return f"chat {replied.model}", "ERROR" if replied.refused else "UNSET", facts


def told(run):
    """Return the same of each span, as far as it says it."""
    facts = []
    for span in run.found["spans"]:
        attributes = span["attributes"]
        messages = json.loads(attributes.get("gen_ai.output.messages", "[]"))
        parts = [part for message in messages for part in message["parts"]]
        said = "".join(part.get("content") or part.get("name") for part in parts)
        found = {name: attributes.get(name) for name in FACTS}
        facts.append((span["name"], span["status"], {**found, "said": said}))
    return facts


def test_each_call_of_the_api_makes_one_span(on):
    """A span for each request that arrived, none more, with the id, tokens and words of its own answer."""
    assert told(on) == [expected(replied) for replied in on.replied]


def test_usage_we_ask_for_is_seen_by_nobody_else(off, asking):
    """With ``include_usage`` every answered call has its tokens, and the framework's caller none of that chunk."""
    assert asking.found["results"] == off.found["results"]
    assert told(asking) == [expected(replied) for replied in asking.replied]
    assert [replied for replied in asking.replied if replied.usage is None and not replied.refused] == []
    assert (asking.found["reports"], asking.found["outside"]) == ([], [])


def test_callbacks_are_told_each_call_to_its_end(on):
    """One request and one response or error for each call, with chunks in between if and only if it is streamed."""
    calls = [[name for name in names if name != "stream_chunk"] for names in on.found["told"]]
    ends = ["error" if replied.refused else "response_received" for replied in on.replied]
    assert calls == [["request_sent", end] for end in ends]
    assert ["stream_chunk" in names for names in on.found["told"]] == [replied.stream for replied in on.replied]


def test_nobody_complains(off, on):
    """Neither we nor the SDK report anything, and on standard error there is no more than without us."""
    assert on.found["reports"] == []
    assert len(on.errors.splitlines()) <= len(off.errors.splitlines()), on.errors


def test_nothing_is_asked_of_anybody_else(off, on):
    """No run tries to reach another machine."""
    assert (off.found["outside"], on.found["outside"]) == ([], [])


def test_every_form_of_call_is_there(framework, off):
    """A plain, a streamed, an awaited, a tool and a refused call: nobody took a step out and left the rest green."""
    assert {"plain", "stream", "tool_call", "awaited", "refused"} <= set(off.found["results"])
    assert {replied.stream for replied in off.replied} == {True, False}
    assert any(replied.tool for replied in off.replied)
    assert off.found["results"]["refused"]
    assert [replied.refused for replied in off.replied].count(True) == 1
