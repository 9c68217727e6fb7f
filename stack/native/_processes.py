"""Start, watch and end the programs of the stack on loopback, with the files that docker-compose.yml uses."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ._binaries import CHECKOUT

CONFIGS: Final = CHECKOUT / "stack"
_START_S: Final = 60.0
_STOP_S: Final = 20.0
_POLL_S: Final = 0.05
_LOG_TAIL: Final = 2000
_FREE_PORTS: Final = range(18_000, 30_000)
_SETTING: Final = "STACK_{}_PORT"


class StackError(Exception):
    """A program did not start, or something is in the way; the text says what."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the programs listen, all on 127.0.0.1. ``STACK_OTLP_HTTP_PORT=14318`` and the like change one."""

    otlp_grpc: int = 4317
    otlp_http: int = 4318
    collector_health: int = 13133
    collector_metrics: int = 8888
    jaeger: int = 16686
    jaeger_grpc: int = 16685
    jaeger_otlp: int = 14317
    jaeger_health: int = 13134
    jaeger_metrics: int = 8889
    prometheus: int = 9090

    @classmethod
    def from_environment(cls) -> Ports:
        """Return the usual ports, but for those that the environment names.

        Raises:
            StackError: One is not a port.
        """
        changed = {}
        for field in dataclasses.fields(cls):
            name = _SETTING.format(field.name.upper())
            text = os.environ.get(name, "").strip()
            if not text:
                continue
            if not text.isdecimal() or not 0 < int(text) < 2**16:
                raise StackError(f"{name}={text!r} is not a port; allowed: 1 to 65535")
            changed[field.name] = int(text)
        return cls(**changed)

    @classmethod
    def free(cls) -> Ports:
        """Return ports that nothing listens on now, below those that systems give to connections on their own."""
        names = [field.name for field in dataclasses.fields(cls)]
        candidates = random.SystemRandom().sample(_FREE_PORTS, len(_FREE_PORTS))
        return cls(**dict(zip(names, filter(_is_free, candidates), strict=False)))


@dataclass(frozen=True, slots=True)
class _Program:
    """How to start one program.

    Attributes:
        command: With all arguments.
        environment: Added to ours.
        health: A URL that answers 200 once it works.
        ports: Names of the fields of `Ports` it listens on.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    health: str
    ports: Sequence[str]


class Stack:
    """The three programs, their data and their state, in one folder.

    Any process may end what another one started: who runs is in ``state.json``, and a process id that has since
    gone to another program is left alone.

    Attributes:
        folder: Data, logs and state.
        ports: Where they listen.
    """

    NAMES: Final = ("prometheus", "jaeger", "collector")  # a store is there before what is sent to it

    def __init__(
        self, folder: Path, programs: Mapping[str, Path], ports: Ports | None = None, *, overlays: Sequence[str] = ()
    ) -> None:
        self.folder = folder.resolve()
        self.ports = ports or Ports()
        self._programs = programs
        self._overlays = tuple(overlays)
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def otlp_url(self) -> str:
        """The endpoint for programs that send over HTTP."""
        return f"http://127.0.0.1:{self.ports.otlp_http}"

    @property
    def jaeger_url(self) -> str:
        """Jaeger's page and API."""
        return f"http://127.0.0.1:{self.ports.jaeger}"

    @property
    def prometheus_url(self) -> str:
        """Prometheus's page and API."""
        return f"http://127.0.0.1:{self.ports.prometheus}"

    def is_up(self) -> bool:
        """Whether all programs run and are healthy, with these ports and overlays."""
        state = self._state()
        if state.get("overlays") != list(self._overlays) or state.get("ports") != dataclasses.asdict(self.ports):
            return False
        return all(self.pid(name) and _answers(self._program(name).health) for name in self.NAMES)

    def start(self) -> None:
        """Start all programs and return when they are healthy.

        Raises:
            StackError: One does not start; those that did are ended again.
        """
        try:
            for name in self.NAMES:
                self.start_one(name)
            for name in self.NAMES:
                self.wait_for(name)
        except BaseException:
            self.stop()
            raise

    def start_one(self, name: str) -> None:
        """Start one program without waiting for it."""
        program = self._program(name)
        for port in program.ports:
            _require_free(port, getattr(self.ports, port))
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                program.command,
                env={**_clean_environment(), **program.environment},
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt at the keyboard is for make, not for it
            )
        self._children[name] = child
        self._remember(name, child.pid)

    def wait_for(self, name: str) -> None:
        """Return when the program is healthy.

        Raises:
            StackError: It ended, or is not healthy after a minute; with the end of its log.
        """
        health = self._program(name).health
        deadline = time.monotonic() + _START_S
        while not _answers(health):
            if self.pid(name) is None or time.monotonic() > deadline:
                state = "ended" if self.pid(name) is None else "does not answer"
                text = self.log(name).read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:]
                raise StackError(f"{name} {state}; the end of {self.log(name)}:\n{text}")
            time.sleep(_POLL_S)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to one program and return when it has ended, killed after some time if need be."""
        pid = self.pid(name)
        if pid is not None:
            os.kill(pid, number)
            deadline = time.monotonic() + _STOP_S
            while self.pid(name) is not None:
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(_POLL_S)
        child = self._children.pop(name, None)
        if child is not None:
            child.wait()  # it has ended; this takes note

    def stop(self, number: int = signal.SIGTERM) -> list[str]:
        """End what runs, senders before stores; return the names of the programs that were ended."""
        ended = [name for name in reversed(self.NAMES) if self.pid(name) is not None]
        for name in reversed(self.NAMES):
            self.kill(name, number)
        self._state_file.unlink(missing_ok=True)
        return ended

    def pid(self, name: str) -> int | None:
        """Return the process id of a program, None if it does not run."""
        if name in self._children:
            self._children[name].poll()  # takes note of its end, if it has ended
        known = self._state().get("processes", {}).get(name)
        if known is None or _identity(known["pid"]) != known["identity"]:
            return None
        return int(known["pid"])

    def log(self, name: str) -> Path:
        """Return the file with what a program wrote."""
        return self.folder / f"{name}.log"

    @property
    def queue_folder(self) -> Path:
        """Where the Collector keeps what it has not yet sent."""
        return self.folder / "queue"

    @property
    def collector_environment(self) -> dict[str, str]:
        """The variables of collector-config.yaml, for this stack."""
        return {
            "COLLECTOR_OTLP_GRPC_ENDPOINT": f"127.0.0.1:{self.ports.otlp_grpc}",
            "COLLECTOR_OTLP_HTTP_ENDPOINT": f"127.0.0.1:{self.ports.otlp_http}",
            "COLLECTOR_HEALTH_ENDPOINT": f"127.0.0.1:{self.ports.collector_health}",
            "COLLECTOR_METRICS_HOST": "127.0.0.1",
            "COLLECTOR_METRICS_PORT": str(self.ports.collector_metrics),
            "COLLECTOR_QUEUE_DIRECTORY": str(self.queue_folder),
            "COLLECTOR_JAEGER_ENDPOINT": f"127.0.0.1:{self.ports.jaeger_otlp}",
            "COLLECTOR_PROMETHEUS_ENDPOINT": f"{self.prometheus_url}/api/v1/otlp",
            "COLLECTOR_SPAN_METRICS_INTERVAL": "5s",
        }

    @property
    def jaeger_environment(self) -> dict[str, str]:
        """The variables of stack/jaeger/jaeger.yaml, for this stack."""
        return {
            "JAEGER_HTTP_ENDPOINT": f"127.0.0.1:{self.ports.jaeger}",
            "JAEGER_GRPC_ENDPOINT": f"127.0.0.1:{self.ports.jaeger_grpc}",
            "JAEGER_OTLP_ENDPOINT": f"127.0.0.1:{self.ports.jaeger_otlp}",
            "JAEGER_HEALTH_ENDPOINT": f"127.0.0.1:{self.ports.jaeger_health}",
            "JAEGER_METRICS_HOST": "127.0.0.1",
            "JAEGER_METRICS_PORT": str(self.ports.jaeger_metrics),
            "JAEGER_STORAGE_DIRECTORY": str(self.folder / "jaeger"),
            "JAEGER_PROMETHEUS_URL": self.prometheus_url,
            "JAEGER_UI_CONFIG": str(CONFIGS / "jaeger" / "ui.json"),
        }

    def write_prometheus_config(self) -> Path:
        """Write stack/prometheus/prometheus.yml with this stack's addresses and return where it is."""
        text = (CONFIGS / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
        for there, here in (
            ("rules/*.yml", str(CONFIGS / "prometheus" / "rules" / "*.yml")),
            ("otel-collector:8888", f"127.0.0.1:{self.ports.collector_metrics}"),
            ("jaeger:8889", f"127.0.0.1:{self.ports.jaeger_metrics}"),
            ("127.0.0.1:9090", f"127.0.0.1:{self.ports.prometheus}"),
        ):
            if there not in text:
                raise StackError(f"stack/prometheus/prometheus.yml no longer has {there!r}")
            text = text.replace(there, here)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "prometheus.yml"
        path.write_text(text, encoding="utf-8")
        return path

    def _program(self, name: str) -> _Program:
        if name == "collector":
            files = [CHECKOUT / "collector-config.yaml"]
            files += [CONFIGS / "overlays" / f"{overlay}.collector.yaml" for overlay in self._overlays]
            return _Program(
                [str(self._programs["otelcol"]), *(f"--config={file}" for file in files)],
                self.collector_environment,
                f"http://127.0.0.1:{self.ports.collector_health}/",
                ("otlp_grpc", "otlp_http", "collector_health", "collector_metrics"),
            )
        if name == "jaeger":
            return _Program(
                [str(self._programs["jaeger"]), f"--config={CONFIGS / 'jaeger' / 'jaeger.yaml'}"],
                self.jaeger_environment,
                f"http://127.0.0.1:{self.ports.jaeger_health}/status",
                ("jaeger", "jaeger_grpc", "jaeger_otlp", "jaeger_health", "jaeger_metrics"),
            )
        return _Program(
            [
                str(self._programs["prometheus"]),
                f"--config.file={self.write_prometheus_config()}",
                f"--storage.tsdb.path={self.folder / 'prometheus'}",
                "--storage.tsdb.retention.time=15d",
                f"--web.listen-address=127.0.0.1:{self.ports.prometheus}",
                "--web.enable-otlp-receiver",
                "--enable-feature=exemplar-storage",
                "--log.level=warn",
            ],
            {},
            f"{self.prometheus_url}/-/ready",
            ("prometheus",),
        )

    @property
    def _state_file(self) -> Path:
        return self.folder / "state.json"

    def _state(self) -> dict[str, Any]:
        try:
            state = json.loads(self._state_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def _remember(self, name: str, pid: int) -> None:
        state = self._state()
        state["ports"] = dataclasses.asdict(self.ports)
        state["overlays"] = list(self._overlays)
        state.setdefault("processes", {})[name] = {"pid": pid, "identity": _identity(pid)}
        written = self._state_file.with_suffix(".new")
        written.write_text(json.dumps(state, indent=2), encoding="utf-8")
        written.replace(self._state_file)


@contextlib.contextmanager
def running(stack: Stack) -> Iterator[Stack]:
    """Start *stack* and kill it at the end of the block, for tests that have seen what they wanted."""
    stack.start()
    try:
        yield stack
    finally:
        stack.stop(signal.SIGKILL)


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """Return the first truthy result of *condition*.

    Raises:
        StackError: There is none in time; the message names *what* was waited for.
    """
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise StackError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(_POLL_S)
    return result


def _answers(url: str) -> bool:
    # A proxy for the internet, set in the environment, does not know of this machine's ports.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)  # noqa: PLR2004 - the one that says it works
    except OSError:
        return False


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _require_free(name: str, port: int) -> None:
    if not _is_free(port):
        raise StackError(
            f"Something else listens on 127.0.0.1:{port}; end it, or name another port: "
            f"{_SETTING.format(name.upper())}={port + 10000 if port < 2**15 else port - 10000}"
        )


def _clean_environment() -> dict[str, str]:
    """Return our environment without the settings of OpenTelemetry, which are for the programs that are observed."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}


def _identity(pid: int) -> str | None:
    """Return when a process started, which tells it from a later one with its id; None if there is none."""
    try:
        # After the name, which may hold anything: the state first, and the time of start as the twentieth.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        listing = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(listing, capture_output=True, text=True, check=False).stdout.strip() or None
    return None if fields[0] in "ZX" else fields[19]
