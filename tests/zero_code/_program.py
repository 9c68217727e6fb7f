"""Run a program in a process of its own, with or without ``opentelemetry-instrument``, and tell how it went."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WRAPPER: Final = Path(sys.executable).with_name("opentelemetry-instrument")


@dataclass(frozen=True)
class Run:
    """How a program went.

    Attributes:
        lines: What it printed.
        errors: What came on standard error.
        code: Its exit code.
        ended_s: When it was gone, in seconds since the epoch.
    """

    lines: list[str]
    errors: str
    code: int
    ended_s: float


def write(directory: Path, name: str, source: str) -> Path:
    """Write a source file, taking the indentation off."""
    path = directory / name
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    return path


def run(program: Path, environment: Mapping[str, str], *, wrapped: bool = True) -> Run:
    """Run *program* in its directory, with nothing of ours in the environment but *environment*."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "OPENAI_", "PYTHON", "COVERAGE", "GRPC_"))
        and not name.lower().endswith("_proxy")
    }
    command = [str(WRAPPER), sys.executable] if wrapped else [sys.executable]
    done = subprocess.run(
        [*command, program.name],
        cwd=program.parent,
        env={**inherited, "NO_PROXY": "*", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return Run(done.stdout.splitlines(), done.stderr, done.returncode, time.time())
