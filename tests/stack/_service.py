"""A web service of several workers, forked before they serve, each with its own SDK: how most services run.

``python _service.py WORKERS PORT`` listens on a port, prints ``ready``, and answers ``GET /ask?n=7`` with the trace id
after a plain and a streamed chat call; each fifth request also makes a call that fails. SIGTERM ends it, after what was
collected is sent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

import openai
from opentelemetry import trace

import otel_llm_callback

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": os.environ.get("SERVICE_PROMPT", "hello")}]}


class Handler(BaseHTTPRequestHandler):
    client: openai.OpenAI

    def do_GET(self):
        number = int(parse_qs(urlsplit(self.path).query)["n"][0])
        with trace.get_tracer("service").start_as_current_span("GET /ask", kind=trace.SpanKind.SERVER) as span:
            self.client.chat.completions.create(**ASK)
            for _ in self.client.chat.completions.create(**ASK, stream=True):
                pass
            if number % 5 == 0:
                with contextlib.suppress(openai.NotFoundError):
                    self.client.chat.completions.create(**{**ASK, "model": "no-such-model"})
        body = f"{span.get_span_context().trace_id:032x} {os.getpid()}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(HTTPServer):
    def __init__(self, listener):
        super().__init__(listener.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener


def work(listener):
    # Each worker says who it is; series of two workers under one identity would overwrite each other.
    os.environ["OTEL_RESOURCE_ATTRIBUTES"] = f"service.instance.id={uuid.uuid4()}"
    otel_llm_callback.configure(service_name="shop")
    otel_llm_callback.instrument(include_usage=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Handler.client = openai.OpenAI(api_key="test-key", max_retries=0)
    Server(listener).serve_forever(poll_interval=0.05)


def main():
    workers, port = int(sys.argv[1]), int(sys.argv[2])
    listener = socket.create_server(("127.0.0.1", port))
    children = []
    for _ in range(workers):
        child = os.fork()
        if child == 0:
            work(listener)
            return
        children.append(child)
    signal.signal(signal.SIGTERM, lambda *_: [os.kill(child, signal.SIGTERM) for child in children])
    print("ready", flush=True)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
