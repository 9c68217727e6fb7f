"""Make chat calls at an even pace and say what was made of them: one JSON line before the exit that sends the rest.

``python _load.py CALLS PAUSE_S``. Each call is a trace of its own. The line has the trace ids of all spans that ended,
how long the median and the slowest call took, and when the line was printed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import openai
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor

import otel_llm_callback


class Ended(SpanProcessor):
    def __init__(self):
        self.traces = []

    def on_end(self, span):
        self.traces.append(f"{span.context.trace_id:032x}")


def main():
    calls, pause_s = int(sys.argv[1]), float(sys.argv[2])
    otel_llm_callback.configure(service_name="load")
    ended = Ended()
    trace.get_tracer_provider().add_span_processor(ended)
    otel_llm_callback.instrument()
    client = openai.OpenAI(max_retries=0)
    ask = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
    client.chat.completions.create(**ask)  # the first one of a process loads modules
    print("started", flush=True)
    took_s = []
    for _ in range(calls - 1):
        started = time.perf_counter()
        client.chat.completions.create(**ask)
        took_s.append(time.perf_counter() - started)
        time.sleep(pause_s)
    told = {
        "traces": ended.traces,
        "usual_ms": round(statistics.median(took_s) * 1000),
        "slowest_ms": round(max(took_s) * 1000),
        "at": time.time(),
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
