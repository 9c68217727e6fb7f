"""Make traces of a root and two calls: ``python _traces.py SERVICE COUNT FAIL_EVERY CUT_EVERY PAUSE_S``.

Prints ``started`` and, before the exit that sends the rest, one JSON line: the trace ids by what is special of them.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time

import openai
from opentelemetry import trace

import otel_llm_callback


def main():
    service, (count, fail_every, cut_every), pause_s = sys.argv[1], map(int, sys.argv[2:5]), float(sys.argv[5])
    otel_llm_callback.configure(service_name=service)
    otel_llm_callback.instrument()
    client = openai.OpenAI(max_retries=0)
    made = {"failed": [], "cut": [], "usual": []}
    print("started", flush=True)
    for number in range(count):
        kind = "failed" if number % fail_every == 0 else "cut" if number % cut_every == 0 else "usual"
        with trace.get_tracer("app").start_as_current_span("request") as span:
            made[kind].append(f"{span.get_span_context().trace_id:032x}")
            second = {"failed": "no-such-model", "cut": "cut", "usual": "gpt-4o"}[kind]
            for model in ("gpt-4o-mini", second):
                with contextlib.suppress(openai.NotFoundError):
                    client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}])
        time.sleep(pause_s)
    print(json.dumps(made), flush=True)


if __name__ == "__main__":
    main()
