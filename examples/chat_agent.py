"""A chat agent with a telemetry logger of its own: three questions, live notifications, a summary at the end."""

import time

from _server import MODEL, connect

from otel_llm_callback import instrument


class CustomTelemetryLogger:
    """Count requests, responses, errors and tokens, and say so as it happens. No base class is needed."""

    def __init__(self):
        self.requests = self.responses = self.errors = self.tokens = self.with_usage = 0
        self.started = time.monotonic()

    def on_request_sent(self, metadata, request_json):
        self.requests += 1
        how = "stream" if metadata.stream else "plain"
        print(f"[request #{self.requests}] {metadata.model}, {how}, {len(request_json)} characters of JSON")

    def on_stream_chunk(self, chunk, index):
        if index == 0:
            print("[first chunk]")

    def on_response_received(self, metadata, response_json):
        self.responses += 1
        if metadata.total_tokens is not None:  # None means that the server did not say, which is not zero
            self.with_usage += 1
            self.tokens += metadata.total_tokens
        took = f"{metadata.response_time_ms:.0f} ms"
        print(f"[response] {metadata.total_tokens} tokens in {took}, finish reason {metadata.finish_reason}")
        print(f"[so far] {self.requests} requests, {self.responses} responses, {self.tokens} tokens")

    def on_error(self, error, context):
        self.errors += 1
        print(f"[error #{self.errors}] {context.error_type} in {context}")

    def summary(self):
        print("=== Session summary ===")
        print(f"Duration: {time.monotonic() - self.started:.2f} s")
        print(f"Requests: {self.requests}, responses: {self.responses}, errors: {self.errors}")
        print(f"Tokens: {self.tokens}")
        if self.with_usage:
            print(f"Average tokens per response: {self.tokens / self.with_usage:.1f}")


class ChatAgent:
    """Remembers what was said."""

    def __init__(self, client):
        self.client = client
        self.messages = [{"role": "system", "content": "You are Bob, a friendly agent. Answer in one sentence."}]

    def ask(self, question, *, stream=False):
        self.messages.append({"role": "user", "content": question})
        answer = self.client.chat.completions.create(model=MODEL, messages=self.messages, stream=stream)
        if stream:
            text = "".join(choice.delta.content or "" for chunk in answer for choice in chunk.choices)
        else:
            text = answer.choices[0].message.content or ""
        self.messages.append({"role": "assistant", "content": text})
        return text


if __name__ == "__main__":
    logger = CustomTelemetryLogger()
    # Inline, so that each notification comes before the answer; the default never makes a caller wait for a callback.
    instrument(logger, delivery="inline", include_usage=True)
    with connect() as client:
        bob = ChatAgent(client)
        for question, stream in (("Who are you?", False), ("What is a trace?", False), ("And a callback?", True)):
            print(f"\nYou: {question}")
            print(f"Bob: {bob.ask(question, stream=stream)}")
    print()
    logger.summary()
