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
    with api_in_environment(), OpenAI() as client:
        yield client


@contextmanager
def api_in_environment():
    """Have a server where ``OpenAI()`` looks for it, in this process and in those that it starts."""
    if "OPENAI_BASE_URL" in os.environ:
        os.environ.setdefault("OPENAI_API_KEY", "none")
        yield
    else:
        with ScriptedServer(_reply) as server:
            os.environ |= {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "scripted"}
            yield


def _reply(request):
    if request.json.get("model") == NO_SUCH_MODEL:
        return JsonReply(error_body(f"The model `{NO_SUCH_MODEL}` does not exist."), status=404)
    return None  # the server's usual answer
