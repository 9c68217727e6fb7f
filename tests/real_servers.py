"""Where the servers come from that ``test_real_servers.py`` talks to.

Run as a program it installs those that can be had here, into the user's cache. That of llama.cpp is compiled, which
takes minutes; pip keeps the wheel, so that it happens once. Its model is written on this machine: nothing is downloaded
but packages.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parents[2] / "shared" / "llm-server"
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otel-llm-callback"
NEEDS: Final = {"llama-server": ("bash", "c++", "cmake", "ninja"), "aimock": ("bash", "node", "npm")}


def lacks(name: str) -> str | None:
    """Return why *name* cannot be installed here, None if it can."""
    if not (FOLDER / "serve.sh").exists():
        return f"{name} needs {FOLDER}"
    absent = [program for program in NEEDS[name] if shutil.which(program) is None]
    return f"{name} needs {', '.join(absent)}" if absent else None


def is_installed(name: str) -> bool:
    return (CACHE / name / f".installed-{name}").exists()


def settings(name: str, port: int = 0) -> dict[str, str]:
    """Return the environment of ``serve.sh``."""
    return {**os.environ, "VENV": str(CACHE / name), "SERVER": name, "PORT": str(port)}


def install(name: str) -> int:
    """Install it once, however many ask at the same time, and return the exit code."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["bash", str(FOLDER / "serve.sh"), "install"]
        return subprocess.run(command, env=settings(name), timeout=3600, check=False).returncode


def _main() -> int:
    code = 0
    for name in NEEDS:
        if reason := lacks(name):
            print(f"left out: {reason}", flush=True)
        elif not is_installed(name):
            print(f"{name}: makes {CACHE / name}", flush=True)
            code = install(name) or code
    return code


if __name__ == "__main__":
    sys.exit(_main())
