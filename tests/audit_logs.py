"""What the tests of the audit log share: logs that are written, and the command that verifies them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import otel_llm_callback
from otel_llm_callback.callbacks import AuditLog
from otel_llm_callback.testing import make_error_context, make_request, make_response

SOURCES = str(Path(otel_llm_callback.__file__).parent.parent)
KEY = b"a key of at least sixteen bytes"


def tell(log: AuditLog, calls: int = 1, request_json: str = "{}", response_json: str = "{}") -> list[str]:
    """Tell *log* of that many calls and return their ids."""
    ids = []
    for _ in range(calls):
        request = make_request()
        log.on_request_sent(request, request_json)
        log.on_response_received(make_response(request=request), response_json)
        ids.append(request.call_id)
    return ids


def tell_error(log: AuditLog, error: BaseException, **over: object) -> None:
    request = make_request()
    log.on_request_sent(request, "{}")
    log.on_error(error, make_error_context(request=request, **over))


def records(*files: Path) -> list[dict]:
    """What the lines of *files* hold, in that order."""
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def kinds(*files: Path) -> list[str]:
    return [record["kind"] for record in records(*files)]


def ended(*files: Path) -> set[str]:
    """Ids of the calls that have a request and an end in *files*."""
    read = records(*files)
    requests = {record["call_id"] for record in read if record["kind"] == "request"}
    return requests & {record["call_id"] for record in read if record["kind"] in ("response", "error")}


def run_verify(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``otel-llm-callback audit verify``."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "otel_llm_callback.cli", "audit", "verify", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": SOURCES, "PYTHONUTF8": "1", **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
