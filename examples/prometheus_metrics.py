"""Metrics for Prometheus in both ways: a few counters of your own, and all metrics of the package."""

import os
import urllib.request

from _server import MODEL, connect
from prometheus_client import Counter, Histogram

from otel_llm_callback import configure, flush, instrument

PORT = os.environ.setdefault("OTEL_EXPORTER_PROMETHEUS_PORT", "9464")
tokens = Counter("chat_tokens", "Tokens used, input and output.", ["model"])
latency = Histogram("chat_latency_seconds", "Time to the end of the answer.", ["model"])
unknown = Counter("chat_answers_without_usage", "Answers whose tokens are unknown.", ["model"])


class TelemetryLogger:
    """The first way: names and labels of your own. Models are labels; users and sessions would be too many."""

    content = "none"

    def on_response_received(self, metadata, response_json):
        model = metadata.request.model
        latency.labels(model).observe(metadata.response_time_ms / 1000)
        if metadata.total_tokens is None:  # which is not zero
            unknown.labels(model).inc()
        else:
            tokens.labels(model).inc(metadata.total_tokens)


def scrape():
    """What Prometheus would get."""
    with urllib.request.urlopen(f"http://localhost:{PORT}/metrics") as page:
        return page.read().decode().splitlines()


if __name__ == "__main__":
    # The second way needs no callback: spans go nowhere here, metrics to the page that Prometheus scrapes.
    os.environ |= {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "prometheus"}
    configure()
    instrument(TelemetryLogger())
    ask = {"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}]}
    with connect() as client:
        client.chat.completions.create(**ask)
        for _ in client.chat.completions.create(**ask, stream=True):
            pass  # a stream without `include_usage` does not tell its tokens
    flush()
    page = scrape()
    print("Of your own:")
    print(*[line for line in page if line.startswith(("chat_tokens_total", "chat_latency_seconds_count"))], sep="\n")
    print(*[line for line in page if line.startswith("chat_answers_without_usage_total")], sep="\n")
    print("Of the package:")
    print(*[line for line in page if line.startswith("# TYPE gen_ai")], sep="\n")
