"""Each program in examples/ runs as it stands and prints what it promises.

A new example needs a row in ``EXAMPLES``; ``needs`` names what must be importable for it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from otel_llm_callback.testing import JsonReply, ScriptedServer, StreamReply, chat_chunks, chat_completion

DIRECTORY = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Example:
    """What a program prints, line by line, with times and ids taken out as `shape` does."""

    name: str
    prints: str
    needs: tuple[str, ...] = ()


EXAMPLES = [
    Example(
        "chat_agent",
        """
        You: Who are you?
        [request #1] gpt-4o-mini, plain, <n> characters of JSON
        [response] 12 tokens in <time>, finish reason stop
        [so far] 1 requests, 1 responses, 12 tokens
        Bob: Hello! I am a scripted server, and this is all I ever say.

        You: What is a trace?
        [request #2] gpt-4o-mini, plain, <n> characters of JSON
        [response] 12 tokens in <time>, finish reason stop
        [so far] 2 requests, 2 responses, 24 tokens
        Bob: Hello! I am a scripted server, and this is all I ever say.

        You: And a callback?
        [request #3] gpt-4o-mini, stream, <n> characters of JSON
        [first chunk]
        [response] 12 tokens in <time>, finish reason stop
        [so far] 3 requests, 3 responses, 36 tokens
        Bob: Hello! I am a scripted server, and this is all I ever say.

        === Session summary ===
        Duration: <time>
        Requests: 3, responses: 3, errors: 0
        Tokens: 36
        Average tokens per response: 12.0
        """,
    ),
    Example(
        "several_callbacks",
        """
        The caller sees the error as ever: NotFoundError
        Metrics: {'completed': 2, 'NotFoundError': 1}
        Audit:
        <clock> <id> <json>
        <clock> <id> <json>
        <clock> <id> <json>
        Cost: 0.0000096 USD
        """,
    ),
]


def run(name, **environment):
    """Return what the program printed; fail if it failed, warned or logged."""
    without = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "OTEL_"))}
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", f"{name}.py"],
        cwd=DIRECTORY,
        env={**without, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def shape(text):
    """The lines that are not empty, with what differs from run to run taken out."""
    text = re.sub(r"\d\d:\d\d:\d\d", "<clock>", text)
    text = re.sub(r"\b\d+(\.\d+)? (ms|s)\b", "<time>", text)
    text = re.sub(r"\b\d+ characters", "<n> characters", text)
    text = re.sub(r'\b[0-9a-f]{32} \{"\w.*\}', "<id> <json>", text)
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_prints_what_it_promises(example):
    for module in example.needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{example.name} needs {module}")
    assert shape(run(example.name)) == shape(example.prints)


def test_every_example_is_in_the_table_and_in_the_readme():
    programs = sorted(path.stem for path in DIRECTORY.glob("[!_]*.py"))
    listed = re.findall(
        r"^\| \[(\w+)\.py\]\(\1\.py\) \| .+ \|$", (DIRECTORY / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert sorted(example.name for example in EXAMPLES) == programs
    assert sorted(listed) == programs


def test_an_example_talks_to_the_server_in_the_environment():
    """The agent remembers what was said, and a server that reports no usage adds nothing to the average."""

    def reply(request):
        if request.json.get("stream"):
            return StreamReply(chat_chunks(["It ", "tells."], model="other"))
        return JsonReply(chat_completion("A story.", model="other", usage=(10, 2)))

    with ScriptedServer(reply) as server:
        printed = run("chat_agent", OPENAI_BASE_URL=server.url, OPENAI_MODEL="other")
        requests = [request.json for request in server.requests]
    assert [(request["model"], len(request["messages"])) for request in requests] == [
        ("other", 2),
        ("other", 4),
        ("other", 6),
    ]
    assert shape(printed)[-5:] == [
        "=== Session summary ===",
        "Duration: <time>",
        "Requests: 3, responses: 3, errors: 0",
        "Tokens: 24",
        "Average tokens per response: 12.0",
    ]
