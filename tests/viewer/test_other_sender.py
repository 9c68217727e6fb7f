"""A sender that is none of ours: the OpenTelemetry exporters for JavaScript, over both of their encodings."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import platformdirs
import pytest

PROGRAM = Path(__file__).parent / "javascript"
NODE, NPM = shutil.which("node"), shutil.which("npm")


@pytest.fixture(scope="module")
def packages():
    """The exporters, installed once in the user's cache."""
    if NODE is None or NPM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs node and npm for the sender in another language")
        pytest.skip("node and npm are not here, so no sender in another language is tried")
    wanted = (PROGRAM / "package.json").read_bytes()
    digest = hashlib.sha256(wanted).hexdigest()[:12]
    place = platformdirs.user_cache_path("otel-llm-callback-tests") / f"javascript-{digest}"
    if not (place / "ready").exists():
        place.mkdir(parents=True, exist_ok=True)
        (place / "package.json").write_bytes(wanted)
        command = [NPM, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
        result = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, check=False)
        if result.returncode != 0:
            if os.environ.get("CI") == "true":
                pytest.fail(f"npm could not install the exporters:\n{result.stdout}{result.stderr}")
            pytest.skip("npm could not install the exporters, so no sender in another language is tried")
        (place / "ready").touch()
    shutil.copy(PROGRAM / "send.mjs", place)
    return place


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("kind", ["json", "proto"])
def test_a_javascript_program_is_shown(viewer, packages, kind, compression):
    command = [NODE, "send.mjs", viewer.url, kind, compression]
    result = subprocess.run(command, cwd=packages, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    [row] = viewer.traces()
    assert row["trace_id"] == result.stdout
    told = {
        name: row[name]
        for name in ("name", "service", "spans", "calls", "errors", "models", "input_tokens", "output_tokens")
    }
    assert told == {
        "name": "turn",
        "service": "from-javascript",
        "spans": 2,
        "calls": 1,
        "errors": 1,
        "models": ["some-model"],
        "input_tokens": 7,
        "output_tokens": 9,
    }
    bars = viewer.get(f"/api/traces/{row['trace_id']}")["span_list"]
    call = next(bar for bar in bars if bar["name"] == "chat some-model")
    span = viewer.get(f"/api/traces/{row['trace_id']}/spans/{call['id']}")
    assert (span["kind"], span["status"], span["status_message"]) == ("client", "error", "as told")
    assert span["attributes"]["gen_ai.response.finish_reasons"] == ["stop"]
    assert [(event["name"], event["attributes"]) for event in span["events"]] == [("first", {"at": 1})]
    assert span["scope"] == {"name": "sender", "version": "1.0"}
