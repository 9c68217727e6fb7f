"""Several callbacks at once, each with a purpose of its own: what one of them does never reaches the others."""

from collections import Counter
from decimal import Decimal

from _server import MODEL, NO_SUCH_MODEL, connect
from openai import APIStatusError

from otel_llm_callback import MultiCallback, flush, instrument

USD_PER_MILLION_TOKENS = Decimal("0.40")


class MetricsCollector:
    """Counts ends by outcome. It needs no content, and says so: then none is prepared for it."""

    content = "none"

    def __init__(self):
        self.outcomes = Counter()

    def on_response_received(self, metadata, response_json):
        self.outcomes[metadata.outcome] += 1

    def on_error(self, error, context):
        self.outcomes[context.error_type] += 1


class AuditLogger:
    """Keeps who asked what, word for word."""

    def __init__(self):
        self.lines = []

    def on_request_sent(self, metadata, request_json):
        self.lines.append(f"{metadata.timestamp:%H:%M:%S} {metadata.call_id} {request_json}")


class CostTracker:
    """Adds up what the calls cost. Its hooks are coroutines, as they may be."""

    content = "none"

    def __init__(self):
        self.usd = Decimal(0)

    async def on_response_received(self, metadata, response_json):
        if metadata.total_tokens is not None:
            self.usd += metadata.total_tokens * USD_PER_MILLION_TOKENS / 1_000_000


if __name__ == "__main__":
    metrics, audit, cost = MetricsCollector(), AuditLogger(), CostTracker()
    instrument(MultiCallback(metrics, audit, cost))
    with connect() as client:
        for model in (MODEL, MODEL, NO_SUCH_MODEL):
            try:
                client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello!"}])
            except APIStatusError as error:
                print("The caller sees the error as ever:", type(error).__name__)
    flush()  # callbacks are told on threads of their own; wait for them before reading what they know
    print("Metrics:", dict(metrics.outcomes))
    print("Audit:", *audit.lines, sep="\n  ")
    print(f"Cost: {cost.usd:f} USD")
