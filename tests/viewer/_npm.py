"""What the tests need of npm, installed once in the user's cache; never a part of the package."""

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


def packages() -> Path:
    """Return a directory with ``node_modules``; skip where it cannot be had, but not in CI."""
    if NODE is None or NPM is None:
        _give_up("node and npm are not here")
    wanted = (PROGRAM / "package.json").read_bytes()
    place = platformdirs.user_cache_path("otel-llm-callback-tests") / f"npm-{hashlib.sha256(wanted).hexdigest()[:12]}"
    if not (place / "ready").exists():
        place.mkdir(parents=True, exist_ok=True)
        (place / "package.json").write_bytes(wanted)
        command = [str(NPM), "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
        result = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, check=False)
        if result.returncode != 0:
            _give_up(f"npm could not install what this test needs: {result.stderr.strip()}")
        (place / "ready").touch()
    for program in PROGRAM.glob("*.mjs"):
        shutil.copy(program, place)
    return place


def _give_up(why: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"in CI this must run, but {why}")
    pytest.skip(why)
