"""Whom the examples talk to: the server in ``OPENAI_BASE_URL``, or a scripted one on this machine."""

import os
from contextlib import contextmanager

from openai import OpenAI

from otel_llm_callback.testing import JsonReply, ScriptedServer, error_body

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
NO_SUCH_MODEL = "no-such-model"


@contextmanager
def connect():
    """Give a client. The scripted server needs no account, says always the same and does not know ``NO_SUCH_MODEL``."""
    if "OPENAI_BASE_URL" in os.environ:
        with OpenAI(api_key=os.environ.get("OPENAI_API_KEY", "none")) as client:
            yield client
    else:
        with ScriptedServer(_reply) as server, OpenAI(api_key="scripted", base_url=server.url) as client:
            yield client


def _reply(request):
    if request.json.get("model") == NO_SUCH_MODEL:
        return JsonReply(error_body(f"The model `{NO_SUCH_MODEL}` does not exist."), status=404)
    return None  # the server's usual answer
