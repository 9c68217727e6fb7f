"""Run one program of ``programs`` and print as JSON what came of it: ``python _launch.py off|on|asking NAME``.

In the framework's environment, which has neither pytest nor the tests. A program is a list of steps, ``STEPS``: plain
functions and coroutine functions that call the API through a framework and return what their caller would see. The mode
``asking`` is ``on`` with the setting ``include_usage``.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import json
import logging
import runpy
import sys
from pathlib import Path
from typing import Any

LOCAL = {"127.0.0.1", "::1", "localhost", b"127.0.0.1", b"localhost", None, ""}


def stay_here(outside: list[str]) -> None:
    """Let no connection leave this machine, and note those that were tried."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            host = arguments[0]
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            host = arguments[1][0]
        else:
            return
        if host not in LOCAL:
            outside.append(str(host))
            raise PermissionError(f"{host} is not this machine")

    sys.addaudithook(watch)


def run_steps(name: str) -> dict[str, Any]:
    """Run the steps one after the other, all coroutines in one event loop, and return what they returned."""
    program = runpy.run_path(str(Path(__file__).with_name("programs") / f"{name}.py"))
    results: dict[str, Any] = {}
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)  # a framework's own ``run_sync`` takes it too, for its client cannot change loops
    for step in program["STEPS"]:
        result = loop.run_until_complete(step()) if inspect.iscoroutinefunction(step) else step()
        results[step.__name__] = result
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    return results


def versions() -> dict[str, str]:
    """Return what is installed here."""
    return {dist.metadata["Name"].lower(): dist.version for dist in importlib.metadata.distributions()}


def observed(name: str, *, include_usage: bool) -> dict[str, Any]:
    """Run the steps with everything on, content included, and return also what we told of them."""
    import otel_llm_callback
    from otel_llm_callback.testing import RecordingCallback, TelemetryCollector, check_grammar

    reports: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: reports.append(record.getMessage())  # type: ignore[method-assign]
    for logger in ("otel_llm_callback", "opentelemetry"):
        logging.getLogger(logger).addHandler(handler)
    recorder = RecordingCallback()
    with TelemetryCollector() as collector:
        otel_llm_callback.instrument(
            recorder,
            delivery="inline",
            capture_content="span_only",
            include_usage=include_usage,
            tracer_provider=collector.tracer_provider,
            meter_provider=collector.meter_provider,
        )
        results = run_steps(name)
        otel_llm_callback.shutdown()
    check_grammar(recorder.events)
    spans = [
        {"name": span.name, "status": span.status.status_code.name, "attributes": dict(span.attributes or {})}
        for span in sorted(collector.spans(), key=lambda span: span.start_time or 0)
    ]
    told = [[event.name for event in events] for events in recorder.calls().values()]
    return {"results": results, "spans": spans, "told": told, "reports": reports}


def main() -> None:
    mode, name = sys.argv[1:]
    outside: list[str] = []
    stay_here(outside)
    found = {"results": run_steps(name)} if mode == "off" else observed(name, include_usage=mode == "asking")
    found |= {"outside": outside, "versions": versions(), "loaded": "otel_llm_callback" in sys.modules}
    print(f"\n{json.dumps(found)}")  # on a line of its own, whatever the framework printed


main()
