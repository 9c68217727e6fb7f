"""Make calls of every kind the dashboards show, again and again: ``python _board.py SECONDS``.

Plain and streamed ones of two models, some refused at first, some cut at the token limit, some that fail; with prices,
and against a server that tells its rate limits.
"""

from __future__ import annotations

import contextlib
import sys
import time

import openai

import otel_llm_callback
from otel_llm_callback.callbacks import SessionAnalytics

PRICES = {"gpt-4o-mini": {"input": "0.15", "output": "0.6"}, "gpt-4o": {"input": "2.5", "output": "10"}}


def main():
    until = time.monotonic() + float(sys.argv[1])
    otel_llm_callback.configure(service_name="board")
    otel_llm_callback.instrument(SessionAnalytics(), include_usage=True, prices=otel_llm_callback.PriceTable(PRICES))
    client = openai.OpenAI(max_retries=1)
    ask = {"messages": [{"role": "user", "content": "hello"}]}
    print("started", flush=True)
    while time.monotonic() < until:
        for model in ("gpt-4o-mini", "gpt-4o", "cut", "refused-once"):
            client.chat.completions.create(**ask, model=model)
            for _ in client.chat.completions.create(**ask, model=model, stream=True):
                pass
        for model in ("no-such-model", "refused"):
            with contextlib.suppress(openai.APIStatusError):
                client.chat.completions.create(**ask, model=model)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
