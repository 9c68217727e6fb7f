"""``make stack`` and ``make stack-down``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from ._binaries import CHECKOUT, UnavailableError, obtain, read_versions
from ._processes import CONFIGS, Ports, Stack, StackError


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = argparse.ArgumentParser(prog="make stack", description=__doc__)
    parser.add_argument("command", choices=("up", "down", "build"))
    overlays = sorted(path.name.partition(".")[0] for path in (CONFIGS / "overlays").glob("*.collector.yaml"))
    parser.add_argument("--overlay", action="append", default=[], choices=overlays, metavar="NAME")
    options = parser.parse_args()
    folder = Path(os.environ.get("STACK_FOLDER") or CHECKOUT / ".stack")
    try:
        return {"up": _up, "down": _down, "build": _build}[options.command](folder, options.overlay)
    except (UnavailableError, StackError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _build(_folder: Path, _overlays: list[str]) -> int:
    for program, path in obtain().items():
        print(f"{program:<11} {path}")
    return 0


def _up(folder: Path, overlays: list[str]) -> int:
    programs = obtain()
    stack = Stack(folder, programs, Ports.from_environment(), overlays=overlays)
    started = time.monotonic()
    if stack.is_up():
        print("The stack is up already.")
    else:
        stack.stop()
        stack.start()
        print(f"The stack is up after {time.monotonic() - started:.1f} s.")
    versions = read_versions()
    print(f"  OTLP        {stack.otlp_url} (gRPC: 127.0.0.1:{stack.ports.otlp_grpc})")
    print(f"  Jaeger      {stack.jaeger_url}, such as /api/traces?service=bob-demo")
    print(f"  Prometheus  {stack.prometheus_url}, such as /api/v1/query?query=gen_ai_client_token_usage_sum")
    print(f"  Data, logs  {stack.folder}")
    if stack.ports != Ports():
        print(f"export OTEL_EXPORTER_OTLP_ENDPOINT={stack.otlp_url} OTEL_LLM_CALLBACK_JAEGER_URL={stack.jaeger_url}")
    print("Built from Go modules they have all APIs but no web pages; those are in the images (docker compose up),")
    print(f"which have Jaeger {versions['JAEGER_VERSION']} and Prometheus {versions['PROMETHEUS_VERSION']}.")
    print("End it with: make stack-down")
    return 0


def _down(folder: Path, _overlays: list[str]) -> int:
    ended = Stack(folder, {}).stop()
    print(f"Ended: {', '.join(ended)}" if ended else "Nothing was running.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
