"""A model server that counts what it reports, and the environment for programs that use it."""

from __future__ import annotations

import os
import threading
from collections import Counter

from otel_llm_callback.testing import JsonReply, StreamReply, chat_chunks, chat_completion, error_body

ANSWER = "canary answer 0815"


class Model:
    """A model server that keeps its own count."""

    def __init__(self, answer_s=0.02):
        self._answer_s = answer_s
        self.served = Counter()
        self._lock = threading.Lock()

    def __call__(self, request):
        if request.path != "/chat/completions":
            return None
        asked = request.json
        if asked["model"] == "no-such-model":
            return JsonReply(error_body(f"no model for {asked['messages'][0]['content']}"), status=404)
        usage = (sum(len(message["content"]) for message in asked["messages"]), 7)
        with self._lock:
            self.served.update(input=usage[0], output=usage[1], answers=1)
        if asked.get("stream"):
            return StreamReply(chat_chunks(ANSWER, model=asked["model"], usage=usage), delay_s=0.005)
        return JsonReply(chat_completion(ANSWER, model=asked["model"], usage=usage), delay_s=self._answer_s)

    @property
    def tokens(self):
        return {"input": self.served["input"], "output": self.served["output"]}


def environment(stack, server, **more):
    """Return what a program needs to use *server* and send to *stack*, without what only this machine has set."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        # Python's requests prefers the first of these to the certificate that OpenTelemetry is told.
        if not name.startswith(("OTEL_", "OPENAI_")) and name not in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    }
    return {
        **inherited,
        "NO_PROXY": "*",
        "OPENAI_BASE_URL": server.url,
        "OPENAI_API_KEY": "test-key",
        "OTEL_EXPORTER_OTLP_ENDPOINT": stack.otlp_url,
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        **more,
    }


LIMITS = {
    "x-ratelimit-limit-requests": "200",
    "x-ratelimit-remaining-requests": "150",
    "x-ratelimit-limit-tokens": "1000",
    "x-ratelimit-remaining-tokens": "900",
}


def answer_for_boards(request):
    """Answer the calls of ``_board.py``."""
    if request.path != "/chat/completions":
        return None
    model = request.json["model"]
    if model == "no-such-model":
        return JsonReply(error_body("no such model"), status=404)
    if model == "refused" or (model == "refused-once" and request.attempt == 0):
        return JsonReply(error_body("slow down"), status=429, headers={"retry-after-ms": "20", **LIMITS})
    reason = "length" if model == "cut" else "stop"
    if request.json.get("stream"):
        chunks = chat_chunks(["one ", "two ", "three"], model=model, usage=(20, 7), finish_reason=reason)
        return StreamReply(chunks, delay_s=0.005, headers=LIMITS)
    return JsonReply(chat_completion("one", model=model, usage=(20, 7), finish_reason=reason), headers=LIMITS)
