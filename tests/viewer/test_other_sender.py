"""A sender that is none of ours: the OpenTelemetry exporters for JavaScript, over both of their encodings."""

from __future__ import annotations

import subprocess

import pytest
from viewer import _npm


@pytest.fixture(scope="module")
def packages():
    return _npm.packages()


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("kind", ["json", "proto"])
def test_a_javascript_program_is_shown(viewer, packages, kind, compression):
    command = [_npm.NODE, "send.mjs", viewer.url, kind, compression]
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
