"""``otel-llm-callback view`` as users run it: a process that can be stopped, killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from viewer._serving import SOURCES, Process, Watch
from viewer._spans import request, span

TOKEN = "a-token-that-is-long-enough"


def run(*arguments, **environment):
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "otel_llm_callback.cli", "view", *arguments],
        env={**os.environ, "PYTHONPATH": SOURCES, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_says_where_it_is_and_ends_in_order(tmp_path):
    """An open page does not hold it back, and Python's own warnings (-W error) find nothing."""
    path = tmp_path / "view.db"
    with Process("--store", str(path)) as viewer:
        assert viewer.said == [
            f"Live view  {viewer.url}\n",
            f"OTLP       {viewer.url}/v1/traces and /v1/metrics (HTTP, protobuf or JSON)\n",
            f"Store      {path}\n",
            "Ctrl-C ends it.\n",
        ]
        watch = Watch(viewer)
        viewer.send(request(span()))
        assert watch.wait_for("stored") == {"spans": 1}
        assert viewer.end() == (0, "")
        watch.close()


def test_the_readme_shows_what_is_printed(tmp_path):
    readme = Path(__file__).parents[2] / "README.md"
    shown = (
        readme.read_text(encoding="utf-8").partition("<!-- live-view -->")[2].split("```text\n")[1].partition("```")[0]
    )
    store = tmp_path / "live-view.db"
    with Process("--store", str(store)) as viewer:
        printed = "".join(viewer.said).replace(viewer.url, "http://localhost:4318")
    assert printed.replace(str(tmp_path), "/home/bob/.local/state/otel-llm-callback") == shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_a_signal(number):
    with Process("--memory") as viewer:
        code, stderr = viewer.end(number)
    assert (code, stderr) == (0 if number == signal.SIGINT else -signal.SIGTERM, "")


@pytest.mark.parametrize("kill_after", [0.4, 0.9])
def test_what_was_acknowledged_is_stored_after_kill_9(tmp_path, kill_after):
    """Four senders at full speed, the process killed while it writes: every span that got its answer is there."""
    store = str(tmp_path / "view.db")
    acknowledged: list[bytes] = []

    def send(viewer, stop):
        while not stop.is_set():
            spans = [span() for _ in range(40)]
            try:
                answer = viewer.send(request(*spans))
            except OSError:
                return
            if answer.status == 200:
                assert answer.body == b""
                acknowledged.extend(one.trace_id for one in spans)

    with Process("--store", store) as viewer:
        stop = threading.Event()
        senders = [threading.Thread(target=send, args=(viewer, stop)) for _ in range(4)]
        for sender in senders:
            sender.start()
        stop.wait(kill_after)
        viewer.process.kill()
        viewer.process.wait(30)
        stop.set()
        for sender in senders:
            sender.join(30)
    assert acknowledged
    with Process("--store", store) as viewer:
        stored, before = set(), ""
        while before is not None:
            page = viewer.get(f"/api/traces?before={before}")
            stored |= {bytes.fromhex(trace["trace_id"]) for trace in page["traces"]}
            before = page["next"]
        assert set(acknowledged) - stored == set()
        assert page["totals"]["spans"] >= len(acknowledged)
        assert viewer.send(request(span())).status == 200


def test_a_port_that_is_taken_is_said_to_be():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            result = run("--memory", "--host", host, "--port", str(port))
            assert (result.returncode, result.stdout) == (1, "")
            assert result.stderr.startswith(f"Port {port} of {host} is taken, by an OpenTelemetry Collector perhaps.\n")


def test_a_viewer_that_runs_already_is_pointed_at():
    with Process("--memory") as viewer:
        result = run("--memory", "--port", str(viewer.address.port))
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == f"A live view is running already: {viewer.url}\n"


def test_two_viewers_may_share_a_store(tmp_path):
    store = str(tmp_path / "view.db")
    with Process("--store", store) as one, Process("--store", store) as other:
        one.send(request(span()))
        other.send(request(span()))
        assert [viewer.get("/api/traces")["totals"]["spans"] for viewer in (one, other)] == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--host", "0.0.0.0"], 2, "give --token TEXT too, or listen on 127.0.0.1"),
        (["--token", "short"], 2, "--token must have at least 16 characters"),
        (["--port", "99999"], 2, "--port is 99999"),
        (["--host", "192.0.2.1", "--token", TOKEN], 1, "Cannot listen on 192.0.2.1"),
        (["--store", "/dev/null/x.db", "--port", "0"], 1, "the store /dev/null/x.db cannot be used"),
        (["--max-spans", "0"], 2, "--max-spans"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments, code, says):
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_the_token_can_come_from_the_environment_and_is_not_shown():
    result = run("--host", "192.0.2.1", OTEL_LLM_CALLBACK_VIEW_TOKEN=TOKEN)
    assert "Cannot listen" in result.stderr
    assert TOKEN not in result.stderr + result.stdout


def test_missing_packages_are_named(tmp_path):
    """As where only the base package is installed."""
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError(name='starlette')")
    result = run("--memory", PYTHONPATH=f"{tmp_path}{os.pathsep}{SOURCES}")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "The live view needs more packages (starlette): pip install 'otel-llm-callback[viewer]'\n"


def test_it_can_end_by_itself_when_nobody_uses_it():
    """An open page counts as use."""
    with Process("--memory", "--exit-after", "0.01") as viewer:
        watch = Watch(viewer)
        with pytest.raises(subprocess.TimeoutExpired):
            viewer.process.wait(2)
        watch.close()
        assert viewer.process.wait(20) == 0
