"""What happens to the data, and to the program, when a part of the stack is killed, away, full or refuses.

Each test ends with a line of figures, which ``make e2e`` shows: spans sent, stored, duplicated, lost.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from native import running, wait_until
from stack._api import get, own_metrics, read_traces, sums
from stack._model import Model, environment

from otel_llm_callback.testing import ScriptedServer

pytestmark = pytest.mark.stack

PROGRAM = Path(__file__).with_name("_load.py")
CALLS = 200
PAUSE_S = 0.01
TOKENS = 'gen_ai_client_token_usage_sum{job="load"}'
HANG_MS = 2000  # a call takes some 25 ms; on a busy machine more, but nothing like an export that is waited for
EXIT_S = 10  # three seconds for the export, the rest for a busy machine


class Load:
    """A program that makes calls while the stack suffers."""

    def __init__(self, process, model):
        self.model = model
        self.errors = ""
        self._process = process

    def end(self):
        """Wait for its end; return the trace ids it sent."""
        output, errors = self._process.communicate(timeout=90)
        ended_at = time.time()
        assert self._process.returncode == 0, errors
        told = json.loads(output.splitlines()[-1])
        self.errors = errors
        print(f"calls took {told['usual_ms']} ms, at most {told['slowest_ms']} ms")
        assert told["slowest_ms"] < HANG_MS
        assert ended_at - told["at"] < EXIT_S
        assert len(told["traces"]) == self.model.served["answers"]
        return set(told["traces"])


@contextmanager
def load(stack, calls=CALLS, pause_s=PAUSE_S, answer_s=0.02, **more):
    """Start the program and yield it once its first call is made."""
    model = Model(answer_s)
    with ScriptedServer(model) as server:
        settings = {"OTEL_BSP_SCHEDULE_DELAY": "300", "OTEL_METRIC_EXPORT_INTERVAL": "500", **more}
        command = [sys.executable, str(PROGRAM), str(calls), str(pause_s)]
        with subprocess.Popen(
            command,
            env=environment(stack, server, **settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout.readline() == "started\n"
                yield Load(process, model)
            finally:
                process.kill()


def stored(stack):
    """Return how often Jaeger has each span of the program, by trace id."""
    return {trace_id: len(spans) for trace_id, spans in read_traces(stack, "load").items()}


def assert_nothing_lost(stack, sent, load):
    """All spans are in Jaeger once, and the tokens in Prometheus are those the model server counted."""
    wait_until(lambda: stored(stack).keys() >= sent, f"{len(sent)} traces in Jaeger; it has {len(stored(stack))}", 60)
    found = stored(stack)
    duplicated = sum(count - 1 for count in found.values())
    print(f"sent {len(sent)}, stored {len(found)}, duplicated {duplicated}, lost {len(sent - found.keys())}")
    assert found == dict.fromkeys(sent, 1)
    wait_until(
        lambda: sums(stack, TOKENS, "gen_ai_token_type") == load.model.tokens,
        f"{load.model.tokens} tokens in Prometheus; it has {sums(stack, TOKENS, 'gen_ai_token_type')}",
        60,
    )


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("collector", "http/protobuf"),
        ("collector", "grpc"),
        ("jaeger", "http/protobuf"),
        ("prometheus", "http/protobuf"),
    ],
)
def test_nothing_is_lost_when_a_part_is_killed_under_load_and_comes_back(new_stack, name, protocol):
    with running(new_stack()) as stack, load(stack, **_by(protocol, stack)) as program:
        time.sleep(1.5)
        stack.kill(name, signal.SIGKILL)
        time.sleep(1.5)
        stack.start_one(name)
        stack.wait_for(name)
        assert_nothing_lost(stack, program.end(), program)


def _by(protocol, stack):
    port = stack.ports.otlp_grpc if protocol == "grpc" else stack.ports.otlp_http
    return {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}


def test_nothing_is_lost_when_all_parts_are_killed_after_the_program_has_ended(new_stack):
    """The Collector took it over; both stores were away, so all of it is on its disk when it is killed."""
    stack = new_stack()
    stack.start_one("collector")
    stack.wait_for("collector")
    with load(stack) as program:
        sent = program.end()
    stack.kill("collector", signal.SIGKILL)
    stack.start()
    assert_nothing_lost(stack, sent, program)
    for name in stack.NAMES:
        stack.kill(name, signal.SIGKILL)
    stack.start()
    assert_nothing_lost(stack, sent, program)


def test_there_is_no_gap_in_prometheus_where_it_was_away(new_stack):
    with running(new_stack()) as stack, load(stack, calls=400) as program:
        time.sleep(1.5)
        stack.kill("prometheus", signal.SIGKILL)
        gone_at = time.time()
        time.sleep(5)
        back_at = time.time()
        stack.start_one("prometheus")
        stack.wait_for("prometheus")
        assert_nothing_lost(stack, program.end(), program)
        series = get(f"{stack.prometheus_url}/api/v1/query", query=f"{TOKENS}[5m]")["data"]["result"]
    for one in series:
        between = [at for at, _ in one["values"] if gone_at < at < back_at]
        assert len(between) >= 3  # of some ten


def test_nothing_is_lost_when_the_collector_comes_after_the_program(new_stack):
    stack = new_stack()
    with load(stack) as program:
        time.sleep(1)
        stack.start()
        assert_nothing_lost(stack, program.end(), program)


def test_a_program_whose_collector_never_comes_runs_at_full_speed_and_ends(new_stack):
    with load(new_stack(), calls=100) as program:
        sent = program.end()
    assert len(sent) == 100
    assert "export" in program.errors.lower()  # the SDK says that it could not


def test_a_full_queue_slows_no_program_and_what_it_refuses_is_counted(new_stack, monkeypatch):
    monkeypatch.setenv("COLLECTOR_QUEUE_SIZE", "512")
    stack = new_stack()
    for name in ("prometheus", "collector"):  # but not Jaeger
        stack.start_one(name)
        stack.wait_for(name)
    with load(stack, calls=2000, pause_s=0, answer_s=0) as program:
        sent = program.end()
    assert "Service Unavailable" in program.errors
    counted = own_metrics(stack)
    refused = counted['otelcol_exporter_enqueue_failed_spans_total{exporter="otlp_grpc/jaeger"}']
    accepted = counted['otelcol_receiver_accepted_spans_total{receiver="otlp",transport="http"}']
    assert refused > 0
    assert counted['otelcol_receiver_refused_spans_total{receiver="otlp",transport="http"}'] == refused
    size = 'otelcol_exporter_queue_size{data_type="traces",exporter="otlp_grpc/jaeger"}'
    assert counted[size] == accepted
    assert counted[size.replace("size", "capacity", 1)] == 512

    stack.start_one("jaeger")
    stack.wait_for("jaeger")
    wait_until(lambda: len(stored(stack)) >= accepted, f"{accepted:.0f} traces in Jaeger", 60)
    found = stored(stack)
    print(f"sent {len(sent)}, accepted {accepted:.0f}, stored {len(found)}, refused {refused:.0f} times")
    assert len(found) == accepted
    assert found.keys() <= sent


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """A folder with a token and a certificate for 127.0.0.1, and the file of the authority that signed it."""
    folder = tmp_path_factory.mktemp("secrets")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    (folder / "token").write_text("right-token", encoding="utf-8")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    (folder / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return folder


def test_with_a_wrong_token_nothing_is_stored_and_no_program_waits(new_stack, secrets, monkeypatch):
    for name, file in (("TLS_CERT", "tls.crt"), ("TLS_KEY", "tls.key"), ("TOKEN_FILE", "token")):
        monkeypatch.setenv(f"COLLECTOR_{name}", str(secrets / file))
    with running(new_stack(overlays=["secure"])) as stack:
        secure = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://127.0.0.1:{stack.ports.otlp_http}",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(secrets / "ca.pem"),
        }
        for wrong in ({}, {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20wrong-token"}):
            with load(stack, calls=50, **secure, **wrong) as program:
                program.end()
            assert "401" in program.errors or "nauthori" in program.errors
            assert "wrong-token" not in program.errors
        with load(
            stack, calls=50, **secure, OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20right-token"
        ) as program:
            assert_nothing_lost(stack, program.end(), program)
        assert "right-token" not in stack.log("collector").read_text(encoding="utf-8")
