"""The live view beside the demo: the one that runs already, or one that is started and ends when nobody looks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from typing import Final

from ..viewer._probe import about
from ._export import Target

_PORT: Final = 4318
_IDLE_MINUTES: Final = 15
_START_S: Final = 10.0
_LOOK_S: Final = 0.1


def recognised(target: Target | None) -> Target | None:
    """Return *target*, marked as what it is if that is a live view without a token."""
    if target is None or target.protocol == "grpc":
        return target
    url = (target.endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")).strip().rstrip("/")
    told = about(url) if url.startswith("http://") else None
    if told is None or told.get("needs_token"):
        return target
    return replace(target, description="the live view that is running", view_url=url)


def start(port: int = _PORT) -> Target | None:
    """Start a live view in a process of its own that outlives the demo; None if it could not be started.

    It keeps its store in memory, and ends by itself once nobody has looked at it or sent to it for a while.
    """
    if find_spec("uvicorn") is None or find_spec("starlette") is None:
        return None
    url = f"http://localhost:{port}"
    options = ["--port", str(port), "--memory", "--exit-after", str(_IDLE_MINUTES)]
    process = subprocess.Popen(  # noqa: S603 - this very interpreter
        [sys.executable, "-m", "otel_llm_callback.cli", "view", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        if about(url) is not None:
            process.returncode = 0  # it is meant to go on when this program has ended
            about_it = f"the live view (process {process.pid}, ends after {_IDLE_MINUTES} unused minutes)"
            return Target("http/protobuf", url, about_it, view_url=url)
        time.sleep(_LOOK_S)
    process.kill()
    process.wait()
    return None
