"""The README's programs run and print what the README says."""

from __future__ import annotations

import re
import socket

import pytest
from programs import README, readme_program, run_program, write_app

from otel_llm_callback.testing import (
    JsonReply,
    ReceivedRequest,
    StreamReply,
    chat_chunks,
    chat_completion,
    error_body,
)


def reply(request: ReceivedRequest) -> JsonReply | StreamReply | None:
    """Answer as the server behind the README's output did: usage only where it was asked for."""
    if request.path != "/chat/completions":
        return None
    if request.json["model"] == "no-such-model":
        return JsonReply(error_body("There is no such model."), status=404)
    if request.json.get("stream"):
        return StreamReply(chat_chunks(["Goethe"], model="tiny-chat"))
    usage = {
        "prompt_tokens": 16,
        "completion_tokens": 71,
        "total_tokens": 87,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    delay_s = 0.3 if request.json["model"] == "slow-chat" else 0
    return JsonReply(chat_completion("Goethe", model=request.json["model"], usage=usage), delay_s=delay_s)


def shape(text: str) -> list[str]:
    """The text with what differs from run to run taken out: times, chunk counts, request ids, line breaks."""
    text = re.sub(r'"time":"[^"]+"', "<clock>", re.sub(r"\d\d:\d\d:\d\d\b", "<clock>", text))
    text = re.sub(r'"(call_id|request_id|duration_ms|processing_ms|server_port)":("\w+"|[\d.]+)', r'"\1":<any>', text)
    text = re.sub(r"\d+(\.\d+)? (ms|s)\b", "<time>", text)
    text = re.sub(r"\d+ chunks", "<n> chunks", text)
    text = re.sub(r"( ·)? req_\w+", "", re.sub(r"\s+", " ", text))
    return [line.strip() for line in text.replace("<clock>", "\n<clock>").splitlines()]


@pytest.mark.parametrize("marker", ["quickstart", "cost", "alerts", "monitoring", "debug log", "errors"])
def test_program_prints_what_the_readme_shows(marker, tmp_path):
    """It runs as it stands and prints the lines below it, but for times and ids."""
    program, output = readme_program(marker)
    write_app(tmp_path)
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    environment = {"OTEL_EXPORTER_PROMETHEUS_PORT": str(port), "SENTRY_DSN": "https://key@sentry.invalid/1"}
    done = run_program(program, reply, cwd=tmp_path, environment=environment)
    assert (done.returncode, shape(done.stderr + done.stdout)) == (0, shape(output))


def test_links_within_the_project_lead_somewhere():
    """Each anchor is a heading's, each path a file's."""
    text = re.sub(r"^```.*?^```", "", README.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    assert len(links) > 10
    assert {link for link in links if link.startswith("#")} <= {f"#{anchor}" for anchor in anchors}
    assert [link for link in links if not link.startswith("#") and not (README.parent / link).exists()] == []
