"""The README's programs for a use case run as they stand and print what the README says."""

from __future__ import annotations

import pytest
from programs import readme_program, run_program, write_app

from otel_llm_callback.testing import JsonReply, StreamReply, chat_chunks, chat_completion


def reply(request):
    """Answer as the server behind the README's output did: usage only where it was asked for."""
    asked = request.json
    if not asked.get("stream"):
        return JsonReply(chat_completion("Goethe", model="tiny-chat", usage=(16, 71)))
    usage = (16, 71) if asked.get("stream_options", {}).get("include_usage") else None
    return StreamReply(chat_chunks(["Goethe"], model="tiny-chat", usage=usage), delay_s=0.01)


@pytest.mark.parametrize("name", ["dashboard", "analytics"])
def test_a_program_of_the_readme_prints_what_it_shows(name, tmp_path):
    program, shown = readme_program(name)
    write_app(tmp_path)
    done = run_program(program, reply, cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", shown)
