"""The programs in ``docs/`` run as they stand and print what the page says, but for times."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from programs import program_and_output, run_program

from otel_llm_callback.testing import JsonReply, ReceivedRequest, chat_completion, error_body

DOCS = Path(__file__).parent.parent / "docs"


def programs() -> list[tuple[str, str, str]]:
    """Page, program and output of each pair of blocks that is marked as a program."""
    found = []
    for page in sorted(DOCS.glob("*.md")):
        for after in page.read_text(encoding="utf-8").split("<!-- program -->\n")[1:]:
            found.append((page.name, *program_and_output(after)))
    return found


def reply(request: ReceivedRequest) -> JsonReply | None:
    """Know two models, as the server behind the output did."""
    if request.path != "/chat/completions":
        return None
    model = request.json["model"]
    if model not in {"tiny-chat", "big-chat"}:
        return JsonReply(error_body(f"no model {model}"), status=400)
    return JsonReply(chat_completion("Goethe", model=model))


def shape(text: str) -> list[str]:
    """The lines with measured times taken out."""
    return [re.sub(r"\d+(\.\d+)? (ms|s)\b", "<time>", line).rstrip() for line in text.splitlines()]


@pytest.mark.parametrize(("page", "program", "output"), programs(), ids=lambda value: value if len(value) < 30 else "")
def test_program_prints_what_the_page_shows(page: str, program: str, output: str) -> None:
    done = run_program(program, reply)
    assert (done.returncode, done.stderr, shape(done.stdout)) == (0, "", shape(output))


def test_there_are_programs() -> None:
    """The marker is still the one that is looked for."""
    assert {page for page, _, _ in programs()} >= {"callback-alerts.md", "filters.md"}
