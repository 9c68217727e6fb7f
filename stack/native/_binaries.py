"""Build the programs of the stack from Go modules, or find the ones that were built before."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import string
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
_MANIFEST: Final = Path(__file__).with_name("collector.yaml")
_BUILD_TIMEOUT_S: Final = 60 * 60
_STRIP: Final = "-s -w"

Say = Callable[[str], None]


class UnavailableError(Exception):
    """The programs cannot be had on this machine; the text says why and what helps."""


def read_versions() -> dict[str, str]:
    """Return the names and values of ``stack/versions.env``."""
    lines = (CHECKOUT / "stack" / "versions.env").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("=", 1) for line in lines if line.strip() and not line.startswith("#"))
    return {name.strip(): value.strip() for name, value in pairs}


@dataclass(frozen=True)
class _Part:
    """What one build makes.

    Attributes:
        name: For messages and the folder in the cache.
        programs: The names of the files it makes.
        module: A module that must be in each of them.
        version: In which version.
        recipe: Everything else the result depends on; a change of it means another build.
        build: Makes the programs; given an empty folder to work in and the folder for the programs.
    """

    name: str
    programs: tuple[str, ...]
    module: str
    version: str
    recipe: str
    build: Callable[[Path, Path], None]

    @property
    def folder(self) -> Path:
        digest = hashlib.sha256(self.recipe.encode()).hexdigest()[:8]
        return cache_folder() / f"{self.name}-{self.version}-{digest}"

    def is_built(self) -> bool:
        return all(_has_module(self.folder / program, self.module, self.version) for program in self.programs)


def cache_folder() -> Path:
    """Return where programs are kept: outside the checkout, for all checkouts of this user."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "otel-llm-callback" / "stack"


def obtain(say: Say = print) -> dict[str, Path]:
    """Return the paths of ``otelcol``, ``jaeger``, ``prometheus`` and ``promtool``, building what is not there.

    The first time takes some minutes and needs Go; after that nothing but the files.

    Raises:
        UnavailableError: Go is missing, or a build failed; the message has its last lines.
    """
    paths: dict[str, Path] = {}
    for part in _parts(read_versions()):
        if not part.is_built():
            _build(part, say)
        paths |= {program: part.folder / program for program in part.programs}
    return paths


def _parts(versions: Mapping[str, str]) -> list[_Part]:
    manifest = string.Template(_MANIFEST.read_text(encoding="utf-8")).substitute(versions)
    jaeger = f"github.com/jaegertracing/jaeger/cmd/jaeger@{versions['JAEGER_MODULE']}"
    prometheus = [
        f"github.com/prometheus/prometheus/cmd/{program}@{versions['PROMETHEUS_MODULE']}"
        for program in ("prometheus", "promtool")
    ]
    return [
        _Part(
            "collector",
            ("otelcol",),
            "github.com/open-telemetry/opentelemetry-collector-contrib/processor/transformprocessor",
            versions["COLLECTOR_MODULE"],
            manifest,
            lambda work, out: _build_collector(manifest, versions["COLLECTOR_MODULE"], work, out),
        ),
        _Part(
            "jaeger",
            ("jaeger",),
            "github.com/jaegertracing/jaeger",
            versions["JAEGER_MODULE"],
            jaeger,
            lambda work, out: _build_tools([jaeger], work, out),
        ),
        _Part(
            "prometheus",
            ("prometheus", "promtool"),
            "github.com/prometheus/prometheus",
            versions["PROMETHEUS_MODULE"],
            " ".join(prometheus),
            # Without the discovery of other people's clouds, which is most of what there is to compile.
            lambda work, out: _build_tools(
                prometheus,
                work,
                out,
                tags="netgo,remove_all_sd",
                replace="cloud.google.com/go=cloud.google.com/go@v0.123.0",
            ),
        ),
    ]


def _build(part: _Part, say: Say) -> None:
    """Build a part and put it in its place, all of it or nothing; waits for another process that builds the same."""
    if shutil.which("go") is None:
        raise UnavailableError(
            f"{part.name} {part.version} has not been built on this machine, and Go is not installed.\n"
            "Install Go 1.26 or newer and try again, or use the images: docker compose up"
        )
    part.folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(part.folder.with_suffix(part.folder.suffix + ".lock")):
        if part.is_built():
            return
        say(f"Building {part.name} {part.version}; this takes some minutes, once …")
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=part.folder.parent, prefix=f".{part.name}-") as scratch:
            work, out = Path(scratch, "work"), Path(scratch, "out")
            work.mkdir()
            out.mkdir()
            part.build(work, out)
            shutil.rmtree(part.folder, ignore_errors=True)
            out.rename(part.folder)
        if not part.is_built():
            raise UnavailableError(f"What was built as {part.name} is not {part.module} {part.version}.")
        say(f"Built {part.name} {part.version} in {time.monotonic() - started:.0f} s")


def _build_collector(manifest: str, version: str, work: Path, out: Path) -> None:
    _go(["install", f"go.opentelemetry.io/collector/cmd/builder@{version}"], work, {"GOBIN": str(work)})
    (work / "collector.yaml").write_text(manifest, encoding="utf-8")
    _run([str(work / "builder"), "--config", "collector.yaml"], work)
    (work / "sources" / "otelcol").rename(out / "otelcol")


def _build_tools(packages: list[str], work: Path, out: Path, *, tags: str = "", replace: str | None = None) -> None:
    """Build programs as tools of an empty module, which Go allows also where theirs has ``replace`` lines."""
    _go(["mod", "init", "stack.invalid/tools"], work)
    if replace:
        _go(["mod", "edit", "-replace", replace], work)
    _go(["get", "-tool", *packages], work)
    names = [package.partition("@")[0] for package in packages]
    _go(["build", "-tags", tags, "-ldflags", _STRIP, "-o", f"{out}{os.sep}", *names], work)


def _go(arguments: list[str], folder: Path, settings: Mapping[str, str] | None = None) -> None:
    _run(["go", *arguments], folder, settings)


def _run(command: list[str], folder: Path, settings: Mapping[str, str] | None = None) -> None:
    """Run a build step in the background of whatever else this machine does."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", **(settings or {})}
    if shutil.which("nice"):
        command = ["nice", "-n", "10", *command]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_BUILD_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{' '.join(command)}: {type(error).__name__}") from error
    if done.returncode:
        last = "\n".join(line for line in done.stdout.splitlines() if "downloading" not in line)[-2000:]
        raise UnavailableError(f"{' '.join(command)} failed:\n{last}")


def _has_module(program: Path, module: str, version: str) -> bool:
    """Whether *program* was built from that version, as Go wrote into it; without Go its place in the cache must do."""
    if not program.is_file():
        return False
    if shutil.which("go") is None:
        return True
    listing = subprocess.run(
        ["go", "version", "-m", str(program)], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    return any(line.split()[1:3] == [module, version] for line in listing.splitlines() if line.startswith("\t"))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
