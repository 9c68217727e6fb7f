"""A release of openai that lacks what we wrap: one warning names it, the rest is observed, the caller is unaffected.

Each program here imports the real SDK with its source rewritten as a release might have it: a method and whatever calls
it use another name, or a class is gone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import openai
import pytest

from otel_llm_callback.testing import JsonReply, error_body

CLIENTS = ("OpenAI", "AsyncOpenAI")
WRAPPED = ("request", "_process_response", "_calculate_retry_timeout")
ORDERS = ("instrument() first", "import openai first")

PROGRAM = """
import asyncio, importlib.machinery, json, logging, re, sys

class Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, name):
        source = self.get_source(name)
        edited = re.sub(PATTERN, REPLACEMENT, source)
        assert edited != source
        return compile(edited, self.path, "exec", dont_inherit=True)

class Finder:
    @staticmethod
    def find_spec(name, path, target=None):
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = Loader(name, spec.origin)
        return spec

class Kept(logging.Handler):
    def emit(self, record):
        logged.append([record.levelname, record.getMessage().splitlines()[0]])

sys.meta_path.insert(0, Finder)
logged = []
logging.getLogger().addHandler(Kept(logging.WARNING))

import otel_llm_callback as o
from otel_llm_callback.testing import RecordingCallback

recorder = RecordingCallback()
if ORDER == "import openai first":
    import openai
o.instrument(recorder, delivery="inline")
import openai

asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
streamed = {**asked, "stream": True}
results = []
with openai.OpenAI(api_key="any", base_url=URL) as client:
    results.append(client.chat.completions.create(**asked).choices[0].finish_reason)
    results.append([chunk.id for chunk in client.chat.completions.create(**streamed)][-1])

async def acalls():
    async with openai.AsyncOpenAI(api_key="any", base_url=URL) as client:
        results.append((await client.chat.completions.create(**asked)).choices[0].finish_reason)
        results.append([chunk.id async for chunk in await client.chat.completions.create(**streamed)][-1])

asyncio.run(acalls())
status = o.status()
ours = lambda names: [name for name in names if name.startswith(("OpenAI.", "AsyncOpenAI."))]
print(json.dumps({
    "logged": logged,
    "status": [status.instrumented, ours(status.covered), ours(status.missing), dict(status.errors)],
    "told": [
        [end.name, end.metadata.id, end.metadata.outcome, end.metadata.status_code, len(end.metadata.retries)]
        for end in (events[-1] for events in recorder.calls().values())
    ],
    "results": results,
}))
o.uninstrument()
assert not any(hasattr(value, "__wrapped__") for value in vars(openai.OpenAI).values())
"""


@pytest.fixture
def told_by(server):
    """Runs the program with *module* of the SDK rewritten; the server refuses each call once, then answers."""
    refusal = JsonReply(error_body("slow down"), status=429, headers={"retry-after-ms": "1"})
    server.reply = lambda request: refusal if request.attempt == 0 else None

    def run(module, pattern, replacement, order):
        values = {"MODULE": module, "PATTERN": pattern, "REPLACEMENT": replacement, "ORDER": order, "URL": server.url}
        settings = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", settings + textwrap.dedent(PROGRAM)],
            env={name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHON"))},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    return run


def ids(*numbers):
    """The ids the scripted server gives to the calls, which it refuses once each."""
    return [f"chatcmpl-{number:06}" for number in numbers]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", WRAPPED)
def test_a_missing_method_is_named_once_and_the_rest_is_observed(name, order, told_by):
    """Results are those of any other release; what is told lacks only what the missing method would have shown."""
    found = told_by("openai._base_client", rf"(?<=def |elf\.){name}\(", f"renamed_{name}(", order)
    missing = [f"{client}.{name}" for client in CLIENTS]
    covered = [f"{client}.{each}" for client in CLIENTS for each in WRAPPED if each != name]
    message = f"this version of openai lacks {', '.join(missing)}; what depends on it is not observed"
    status = None if name == "_process_response" else 200
    retries = 0 if name == "_calculate_retry_timeout" else 1
    calls = [] if name == "request" else ids(2, 4, 6, 8)
    assert found == {
        "logged": [["WARNING", message]],
        "status": [True, covered, missing, {}],
        "told": [["response_received", each, "completed", status, retries] for each in calls],
        "results": ["stop", ids(4)[0], "stop", ids(8)[0]],
    }


@pytest.mark.parametrize("order", ORDERS)
def test_a_missing_class_is_reported_and_never_raised(order, told_by):
    """If nothing can be wrapped, an error says so once and the program goes on as if we were not there."""
    found = told_by("openai", r"\Z", "\ndel AsyncStream\n", order)
    message = "this version of openai cannot be observed at all (stage patch): ImportError; the call is unaffected"
    assert found == {
        "logged": [["ERROR", message]],
        "status": [True, [], [], {"patch": 1}],
        "told": [],
        "results": ["stop", ids(4)[0], "stop", ids(8)[0]],
    }


@pytest.mark.parametrize("name", [f"{client}.{name}" for client in CLIENTS for name in WRAPPED])
def test_what_is_wrapped_exists_in_this_release(name):
    """The names that are removed above are those that are there."""
    client, method = name.split(".")
    assert callable(getattr(getattr(openai, client), method))
