"""An environment for each framework, made once and kept outside the tree.

Run as a program, as ``make frameworks`` does, it makes those that are missing. To have newer releases, remove
``~/.cache/otel-llm-callback/frameworks`` first.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

REQUIREMENTS: Final = {
    "dspy": ["dspy", "litellm[mcp]"],  # without ``mcp`` LiteLLM 1.106 fails at every call with tools
    "instructor": ["instructor"],
    "langchain": ["langchain-openai"],
    "litellm": ["litellm[mcp]"],  # as above
    "llama_index": ["llama-index-llms-openai"],
    "openai_agents": ["openai-agents"],
    "pydantic_ai": ["pydantic-ai-slim[openai]"],
}
"""What to install for each of ``programs``: the framework alone, which says itself which ``openai`` it takes."""


def home(framework: str) -> Path:
    """Return where the environment of *framework* is, or would be: another place for each Python and requirement."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    ours = sorted(importlib.metadata.requires("otel-llm-callback") or ())
    wanted = "\n".join([sys.version, str(ROOT), *ours, *REQUIREMENTS[framework]])
    return cache / "otel-llm-callback" / "frameworks" / hashlib.sha256(wanted.encode()).hexdigest()[:16]


def python(framework: str) -> Path | None:
    """Return the interpreter of the environment, None if it has not been made."""
    place = home(framework)
    path = _interpreter(place)
    return path if _stamp(place).exists() and path.exists() else None


def build(framework: str) -> Path:
    """Make the environment if nobody has, with this checkout in it as it stands at any time; return its interpreter.

    Raises:
        RuntimeError: It cannot be made; the message is what pip says.
    """
    place = home(framework)
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return python(framework) or _build(framework, place)


def _build(framework: str, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)  # left by a build that broke off
    _run(sys.executable, "-m", "venv", str(place))
    path = _interpreter(place)
    pip = [str(path), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _run(*pip, "--editable", f"{ROOT}[otlp]", *REQUIREMENTS[framework])
    _stamp(place).write_text("\n".join([framework, *REQUIREMENTS[framework], ""]), encoding="utf-8")
    return path


def _interpreter(place: Path) -> Path:
    return place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _stamp(place: Path) -> Path:
    return place / "ready.txt"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _main() -> None:
    for framework in REQUIREMENTS:
        if python(framework) is None:
            print(f"{framework}: makes {home(framework)}", flush=True)
            build(framework)


if __name__ == "__main__":
    _main()
