"""Failed calls in Sentry: one event each, grouped by what failed, without a word of what was said.

With ``SENTRY_DSN`` they are sent; without it they stay here and are shown.
"""

import os
from contextlib import suppress

import sentry_sdk
from _server import MODEL, NO_SUCH_MODEL, connect
from openai import NotFoundError
from sentry_sdk.integrations.openai import OpenAIIntegration
from sentry_sdk.transport import Transport

from otel_llm_callback import flush, instrument
from otel_llm_callback.callbacks import SentryCallback


class InMemory(Transport):
    """Keeps what would be sent."""

    def capture_envelope(self, envelope):
        EVENTS.append(envelope.get_event())


EVENTS = []


def start_sentry():
    own = {"disabled_integrations": [OpenAIIntegration()]}  # it would send the error's text, which may quote the prompt
    if "SENTRY_DSN" in os.environ:
        sentry_sdk.init(**own)
    else:
        sentry_sdk.init(dsn="https://nobody@sentry.invalid/1", transport=InMemory, **own)
    sentry_sdk.set_tag("team", "search")  # the program's scope is on each event


if __name__ == "__main__":
    start_sentry()
    instrument(SentryCallback())
    with connect() as client:
        for model in (MODEL, NO_SUCH_MODEL):
            with suppress(NotFoundError):
                client.chat.completions.create(model=model, messages=[{"role": "user", "content": "A secret!"}])
    flush()
    sentry_sdk.flush()
    for event in EVENTS:
        print("What:", event["exception"]["values"][-1]["value"])
        print("Group:", *event["fingerprint"])
        print("Team:", event["tags"]["team"])
        print("Request id:", event["contexts"]["llm"]["request_id"])
        print("Says what was said:", "secret" in str(event))
