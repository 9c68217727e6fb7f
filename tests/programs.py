"""Programs of the documentation: found by their marker, and run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from otel_llm_callback.testing import ScriptedServer

README = Path(__file__).parents[1] / "README.md"


def program_and_output(text):
    """The first two blocks of *text*: a program and what it prints."""
    program, output = re.findall(r"```(?:python|text)\n(.*?)```", text, flags=re.DOTALL)[:2]
    return program, output


def readme_program(marker):
    """The program below a marker of the README, and what it prints."""
    return program_and_output(README.read_text("utf-8").partition(f"<!-- {marker} -->")[2])


def write_app(directory):
    """Put the ``app.py`` of the README, which stands for the user's program, where programs find it."""
    (directory / "app.py").write_text(readme_program("app")[0], encoding="utf-8")


def run_program(program, reply, *, cwd=None, environment=None):
    """Run *program* with a server that answers as *reply* says behind ``OPENAI_BASE_URL``; warnings are errors."""
    with ScriptedServer(reply) as server:
        usual = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "unused", "COLUMNS": "80"}
        return subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", program],
            check=False,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
            env={**os.environ, **usual, **(environment or {})},
            cwd=cwd,
        )
