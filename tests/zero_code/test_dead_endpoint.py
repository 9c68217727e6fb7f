"""A Collector that is not there, or is there and says nothing: the program must not notice.

The programs run side by side, once, for most of what they do is wait; the tests look at different sides of it.
"""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest
from zero_code._program import WRAPPER, run, write
from zero_code._receiver import HttpReceiver

from otel_llm_callback.testing import ScriptedServer

pytestmark = pytest.mark.skipif(not WRAPPER.exists(), reason=f"there is no {WRAPPER}")

# What a program may take to be gone once it has said its last, beyond what it takes by itself.
EXIT_BOUND_S: Final = 5.0

# What twenty calls may take longer than without telemetry; an exporter that is waited for takes seconds per call.
SLOWER_BOUND_S: Final = 2.0

SYNC = """
    import os, time
    import openai

    asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
    with openai.OpenAI(api_key="any", base_url=os.environ["API"]) as client:
        client.chat.completions.create(**asked)  # the first call opens the connection
        began = time.monotonic()
        for _ in range(10):
            client.chat.completions.create(**asked)
            for _ in client.chat.completions.create(**asked, stream=True):
                pass
        took = time.monotonic() - began
    print(took)
    print(time.time(), flush=True)
"""

ASYNC = """
    import asyncio, os, time
    import openai

    asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}

    async def main():
        async with openai.AsyncOpenAI(api_key="any", base_url=os.environ["API"]) as client:
            await client.chat.completions.create(**asked)  # the first call opens the connection
            began = time.monotonic()
            for _ in range(10):
                await client.chat.completions.create(**asked)
                async for _ in await client.chat.completions.create(**asked, stream=True):
                    pass
            return time.monotonic() - began

    print(asyncio.run(main()))
    print(time.time(), flush=True)
"""

HANGING = """
    import threading

    class Hanging:
        def on_request_sent(self, metadata, request_json):
            threading.Event().wait()
"""

PROGRAMS: Final = {"sync": SYNC, "async": ASYNC}

# Each program meets each protocol and each kind of death, and each protocol each kind of death.
DEAD: Final = [
    ("sync", "http/protobuf", "black hole"),
    ("async", "http/protobuf", "refused"),
    ("async", "grpc", "black hole"),
    ("sync", "grpc", "refused"),
]

every_dead_end = pytest.mark.parametrize("case", DEAD, ids=", ".join)


@pytest.fixture(scope="module")
def dead():
    """URLs by what happens there."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as gone:
        refused = gone.getsockname()[1]
    with contextlib.closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as hole:
        yield {"refused": f"http://127.0.0.1:{refused}", "black hole": f"http://127.0.0.1:{hole.getsockname()[1]}"}


@pytest.fixture(scope="module")
def runs(dead, tmp_path_factory):
    """How all the programs went, by name; four at once."""
    directory = tmp_path_factory.mktemp("programs")
    programs = {name: write(directory, f"{name}.py", source) for name, source in PROGRAMS.items()}
    write(directory, "hooks.py", HANGING)
    with ScriptedServer() as server, HttpReceiver() as alive, ThreadPoolExecutor(max_workers=4) as pool:
        api = {"API": server.url}
        started = {
            (program, protocol, endpoint): pool.submit(
                run,
                programs[program],
                {**api, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_EXPORTER_OTLP_ENDPOINT": dead[endpoint]},
            )
            for program, protocol, endpoint in DEAD
        }
        started["one dead"] = pool.submit(
            run,
            programs["sync"],
            {
                **api,
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{dead['black hole']}/v1/traces",
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{alive.url}/v1/metrics",
            },
        )
        started["hanging callback too"] = pool.submit(
            run,
            programs["sync"],
            {
                **api,
                "OTEL_EXPORTER_OTLP_ENDPOINT": dead["black hole"],
                "OTEL_LLM_CALLBACK_CALLBACKS": "hooks:Hanging",
            },
        )
        for program in PROGRAMS:
            started[program] = pool.submit(run, programs[program], api, wrapped=False)
        done = {name: future.result() for name, future in started.items()}
        done["arrived"] = {point.name for point in alive.points()}
    return done


def took_s(done):
    return float(done.lines[0])


def exit_s(done):
    return done.ended_s - float(done.lines[1])


def bound_s(runs):
    """The bound; a machine that is busy with other things is slow to end any program, those without telemetry too."""
    return EXIT_BOUND_S + 3 * max(exit_s(runs[program]) for program in PROGRAMS)


@every_dead_end
def test_program_ends_well(runs, case):
    """Its exit code is its own, and what exporters say of their trouble is all that is said."""
    assert (runs[case].code, "otel_llm_callback" in runs[case].errors) == (0, False)


@every_dead_end
def test_calls_run_at_full_speed(runs, case):
    """No call waits for an exporter."""
    assert took_s(runs[case]) < took_s(runs[case[0]]) + SLOWER_BOUND_S


@every_dead_end
def test_program_is_gone_soon_after_its_last_line(runs, case):
    """The exit waits for a dead endpoint, but not for long."""
    assert exit_s(runs[case]) < bound_s(runs)


def test_dead_endpoint_of_one_signal_does_not_cost_the_other(runs):
    """Metrics arrive although the endpoint for spans never answers."""
    assert runs["one dead"].code == 0
    assert "gen_ai.client.operation.duration" in runs["arrived"]


def test_hanging_callback_and_dead_endpoint_do_not_add_up(runs):
    """One deadline holds for all that is waited for at exit."""
    assert runs["hanging callback too"].code == 0
    assert exit_s(runs["hanging callback too"]) < bound_s(runs)
