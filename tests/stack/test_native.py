"""`make stack` and `make stack-down`, run as the Makefile runs them."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from native import Ports, Stack, StackError
from stack._api import get

CHECKOUT = Path(__file__).parents[2]
OVERLAYS = sorted(path.name.partition(".")[0] for path in (CHECKOUT / "stack" / "overlays").glob("*.collector.yaml"))


def run(command, folder, ports=None, **more):
    """Run a command line of the stack; return its exit code, output and errors."""
    named = {
        f"STACK_{name.upper()}_PORT": str(port) for name, port in dataclasses.asdict(ports or Ports.free()).items()
    }
    done = subprocess.run(
        [sys.executable, "-m", "native", *command],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "stack"), "STACK_FOLDER": str(folder), **named, **more},
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "stack"
    Stack(tmp_path / "stack", {}).stop()


def test_without_go_and_without_programs_it_says_what_helps(tmp_path):
    code, _, errors = run(["up"], tmp_path / "stack", PATH="/nowhere", XDG_CACHE_HOME=str(tmp_path))
    assert code == 1
    assert "Go is not installed" in errors
    assert "docker compose up" in errors
    assert "Traceback" not in errors


def test_a_port_that_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("STACK_JAEGER_PORT", "http")
    with pytest.raises(StackError, match="STACK_JAEGER_PORT='http' is not a port"):
        Ports.from_environment()


def test_ending_what_does_not_run_does_no_harm(tmp_path):
    assert run(["down"], tmp_path / "stack") == (0, "Nothing was running.\n", "")


def test_a_process_that_only_has_the_id_of_an_old_one_is_left_alone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        folder = tmp_path / "stack"
        folder.mkdir()
        (folder / "state.json").write_text(
            f'{{"processes": {{"jaeger": {{"pid": {bystander.pid}, "identity": "1"}}}}}}', encoding="utf-8"
        )
        assert Stack(folder, {}).stop() == []
        assert bystander.poll() is None
        bystander.communicate(b"\n")


@pytest.mark.stack
def test_up_again_finds_it_up_and_down_ends_all_of_it(programs, folder):
    ports = Ports.free()
    code, printed, errors = run(["up"], folder, ports)
    assert (code, errors) == (0, "")
    stack = Stack(folder, {}, ports)
    assert f"{stack.otlp_url} " in printed
    pids = [stack.pid(name) for name in Stack.NAMES]
    assert None not in pids

    code, printed, _ = run(["up"], folder, ports)
    assert code == 0
    assert "up already" in printed
    assert [stack.pid(name) for name in Stack.NAMES] == pids

    code, printed, _ = run(["up", "--overlay", "content"], folder, ports)
    assert code == 0
    assert "up after" in printed
    assert not {stack.pid(name) for name in Stack.NAMES} & set(pids)

    assert run(["down"], folder, ports) == (0, "Ended: collector, jaeger, prometheus\n", "")
    for port in dataclasses.asdict(ports).values():
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.stack
def test_a_port_in_use_is_named_with_the_way_out_and_nothing_stays_behind(programs, folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = dataclasses.replace(Ports.free(), otlp_http=taken.getsockname()[1])
        code, _, errors = run(["up"], folder, ports)
        assert code == 1
        assert f"127.0.0.1:{ports.otlp_http}" in errors
        assert "STACK_OTLP_HTTP_PORT=" in errors
        assert [Stack(folder, {}).pid(name) for name in Stack.NAMES] == [None, None, None]


@pytest.mark.stack
def test_a_program_that_fails_is_told_with_the_end_of_its_log(programs, folder, monkeypatch):
    monkeypatch.setenv("COLLECTOR_QUEUE_SIZE", "many")
    stack = Stack(folder, programs, Ports.free())
    with pytest.raises(StackError, match=r"collector ended; the end of [\s\S]*queue_size"):
        stack.start()
    assert [stack.pid(name) for name in Stack.NAMES] == [None, None, None]


@pytest.mark.stack
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux lists sockets this way")
def test_everything_listens_on_loopback_alone(stack):
    listening = {
        port for address, port in _listeners() if address not in ("0100007F", "00000000000000000000000001000000")
    }
    assert listening & set(dataclasses.asdict(stack.ports).values()) == set()


def _listeners():
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                address, port = fields[1].split(":")
                yield address, int(port, 16)


@pytest.mark.stack
def test_prometheus_scrapes_every_part_of_the_stack(stack):
    deadline = time.monotonic() + 40
    wanted = {"otel-collector": "up", "jaeger": "up", "prometheus": "up"}
    while True:
        targets = get(f"{stack.prometheus_url}/api/v1/targets")["data"]["activeTargets"]
        health = {target["labels"]["job"]: target["health"] for target in targets}
        if health == wanted or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert health == wanted


@pytest.mark.stack
@pytest.mark.parametrize("overlays", [[], *([overlay] for overlay in OVERLAYS), OVERLAYS], ids="+".join)
def test_the_collector_finds_every_file_valid(find_fault, overlays):
    files = [CHECKOUT / "collector-config.yaml"]
    files += [CHECKOUT / "stack" / "overlays" / f"{overlay}.collector.yaml" for overlay in overlays]
    assert find_fault("otelcol", *files) is None


@pytest.mark.stack
def test_promtool_finds_the_configuration_of_prometheus_valid(programs):
    path = CHECKOUT / "stack" / "prometheus" / "prometheus.yml"
    done = subprocess.run(
        [programs["promtool"], "check", "config", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.stack
def test_the_programs_end_on_a_signal_without_being_killed(new_stack):
    stack = new_stack()
    stack.start()
    for name in reversed(Stack.NAMES):
        started = time.monotonic()
        stack.kill(name, signal.SIGTERM)
        assert time.monotonic() - started < 15, name


@pytest.mark.stack
def test_the_collector_finds_the_file_in_the_docs_valid(find_fault, tmp_path):
    page = (CHECKOUT / "docs" / "stack.md").read_text(encoding="utf-8")
    (written,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    path = tmp_path / "elsewhere.yaml"
    path.write_text(written, encoding="utf-8")
    settings = {"ELSEWHERE_ENDPOINT": "https://elsewhere.example", "ELSEWHERE_AUTHORIZATION": "Basic bm90aGluZw=="}
    assert find_fault("otelcol", CHECKOUT / "collector-config.yaml", path, **settings) is None
