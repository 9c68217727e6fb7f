"""Programs run against the real stack: what Jaeger and Prometheus answer is what happened.

The model server counts the tokens it reports, so that sums in Prometheus are held against a second witness.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from native import wait_until
from stack._api import exemplars, get, query, read_trace, sums
from stack._model import ANSWER, Model, environment

from otel_llm_callback.testing import ScriptedServer

pytestmark = pytest.mark.stack

HERE = Path(__file__).parent
WORKERS = 4
REQUESTS = 40
QUESTION = "canary-question-4711"
SECRET = "sk-" + "canarycanarycanary"
TOKENS = re.compile(r"Trace id ([0-9a-f]{32})")
TOKEN_SUMS = 'gen_ai_client_token_usage_sum{{job="{}"}}'


@contextmanager
def service(stack, server, **more):
    """Run the service of four workers; yield a function that asks it and returns trace id and worker."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, str(HERE / "_service.py"), str(WORKERS), str(port)]
    with subprocess.Popen(
        command, env=environment(stack, server, **more), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

            def ask(number):
                with opener.open(f"http://127.0.0.1:{port}/ask?n={number}", timeout=30) as response:
                    return tuple(response.read().decode().split())

            yield ask
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0


def ask_many(ask, numbers):
    with ThreadPoolExecutor(2 * WORKERS) as pool:
        return list(pool.map(ask, numbers))


def whole_trace(stack, trace_id, spans):
    return wait_until(
        lambda: len(found := read_trace(stack, trace_id)) >= spans and found, f"{spans} spans of {trace_id} in Jaeger"
    )


@pytest.fixture(scope="module")
def demo(stack):
    """The demo's trace as Jaeger has it, the counts of its model server, and what the demo printed."""
    model = Model()
    with ScriptedServer(model) as server:
        done = subprocess.run(
            [sys.executable, "-m", "otel_llm_callback.cli", "demo"],
            env=environment(stack, server, OTEL_LLM_CALLBACK_JAEGER_URL=stack.jaeger_url, COLUMNS="120"),
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=True,
        )
    (trace_id,) = TOKENS.findall(done.stdout)
    return whole_trace(stack, trace_id, 5), model, done.stdout


def test_the_demo_prints_where_its_trace_is(stack, demo):
    _, _, printed = demo
    (trace_id,) = TOKENS.findall(printed)
    assert f"Jaeger: {stack.jaeger_url}/trace/{trace_id}" in printed
    assert "Traces: sent" in printed
    assert "Metrics: sent" in printed


def test_the_demos_span_tree_is_in_jaeger(demo):
    (root, *calls), _, _ = demo
    assert (root.name, root.parent, root.service) == ("Bob session", None, "bob-demo")
    assert [(call.name, call.parent) for call in calls] == [
        ("chat gpt-4o-mini", root.id),
        ("chat gpt-4o-mini", root.id),
        ("chat gpt-4o-mini", root.id),
        ("chat no-such-model", root.id),
    ]


def test_attributes_are_those_that_jaegers_genai_tab_reads(demo):
    (_, plain, _, streamed, _), _, _ = demo
    for call in (plain, streamed):
        read = {
            name: value
            for name, value in call.attributes.items()
            if name.startswith(("gen_ai.provider", "gen_ai.operation", "gen_ai.request.model", "gen_ai.response.model"))
        }
        assert read == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o-mini",
            "gen_ai.response.model": "gpt-4o-mini",
        }
        assert call.attributes["span.kind"] == "client"
        assert call.attributes["gen_ai.usage.output_tokens"] == 7
        assert call.attributes["session.id"] == "bob-demo"
        assert isinstance(call.attributes["gen_ai.usage.input_tokens"], int)
        for detail in ("cache_read.input_tokens", "reasoning.output_tokens"):
            assert isinstance(call.attributes[f"gen_ai.usage.{detail}"], int), detail
    assert streamed.attributes["llm_callback.chunk.count"] > 1
    assert plain.attributes["llm_callback.outcome"] == streamed.attributes["llm_callback.outcome"] == "completed"


def test_events_are_in_jaeger_in_their_order(demo):
    (_, plain, _, streamed, failed), _, _ = demo
    assert [name for name, _ in plain.events] == ["llm_callback.request_sent", "llm_callback.response_received"]
    assert [name for name, _ in streamed.events] == [
        "llm_callback.request_sent",
        "llm_callback.first_chunk",
        "llm_callback.response_received",
    ]
    assert failed.events == [
        ("llm_callback.request_sent", {}),
        ("exception", {"exception.type": "openai.NotFoundError"}),
    ]


def test_the_error_is_an_error_in_jaeger(demo):
    (*_, failed), _, _ = demo
    names = ("error", "otel.status_code", "error.type", "http.response.status_code", "llm_callback.outcome")
    assert {name: failed.attributes[name] for name in names} == {
        "error": True,
        "otel.status_code": "ERROR",
        "error.type": "NotFoundError",
        "http.response.status_code": 404,
        "llm_callback.outcome": "error",
    }


def test_the_demos_tokens_in_prometheus_are_those_the_server_counted(stack, demo):
    spans, model, _ = demo
    assert model.served["answers"] == 3
    expression = TOKEN_SUMS.format("bob-demo")
    found = wait_until(lambda: sums(stack, expression, "gen_ai_token_type"), "the demo's tokens in Prometheus")
    assert found == model.tokens
    on_spans = {kind: sum(span.attributes.get(f"gen_ai.usage.{kind}_tokens", 0) for span in spans) for kind in found}
    assert on_spans == model.tokens


@pytest.fixture(scope="module")
def shop(stack):
    """Requests that a service of four workers answered, as (trace id, worker), and its model server."""
    model = Model()
    with ScriptedServer(model) as server, service(stack, server) as ask:
        first = ask_many(ask, range(REQUESTS // 2))
        calls = 'traces_span_metrics_calls_total{service_name="shop",span_kind="SPAN_KIND_CLIENT"}'
        wait_until(lambda: query(stack, calls), "span metrics in Prometheus")
        answered = first + ask_many(ask, range(REQUESTS // 2, REQUESTS))
    return answered, model


def test_each_request_of_four_workers_has_its_whole_trace(stack, shop):
    answered, _ = shop
    for number, (trace_id, _) in enumerate(answered):
        fails = number % 5 == 0
        root, *calls = whole_trace(stack, trace_id, 4 if fails else 3)
        assert (root.name, root.parent) == ("GET /ask", None)
        assert [(call.name, call.parent) for call in calls] == [
            ("chat gpt-4o-mini", root.id),
            ("chat gpt-4o-mini", root.id),
            *([("chat no-such-model", root.id)] if fails else []),
        ]


def test_each_worker_has_series_of_its_own_and_their_sum_is_what_the_server_counted(stack, shop):
    answered, model = shop
    workers = {worker for _, worker in answered}
    assert len(workers) == WORKERS
    expression = TOKEN_SUMS.format("shop")
    wait_until(
        lambda: sums(stack, expression, "gen_ai_token_type") == model.tokens,
        f"{model.tokens} tokens in Prometheus, which has {sums(stack, expression, 'gen_ai_token_type')}",
    )
    assert len(sums(stack, expression, "instance")) == WORKERS
    assert sums(stack, 'gen_ai_client_operation_duration_seconds_count{job="shop"}', "error_type") == {
        None: 2 * REQUESTS,
        "NotFoundError": REQUESTS / 5,
    }


def test_an_exemplar_leads_to_its_trace(stack, shop):
    answered, _ = shop
    for metric in ("gen_ai_client_operation_duration_seconds_bucket", "gen_ai_client_token_usage_bucket"):
        found = wait_until(lambda metric=metric: exemplars(stack, f'{metric}{{job="shop"}}'), f"exemplars of {metric}")
        for labels in found:
            spans = {span.id: span for span in read_trace(stack, labels["trace_id"])}
            assert spans[labels["span_id"]].name.startswith("chat ")
        assert {labels["trace_id"] for labels in found} <= {trace_id for trace_id, _ in answered}


def test_jaegers_monitor_has_rates_errors_and_latencies_of_calls(stack, shop):
    def points(kind, **more):
        answer = get(
            f"{stack.jaeger_url}/api/metrics/{kind}",
            service="shop",
            spanKind="client",
            endTs=int(time.time() * 1000),
            lookback=300_000,
            step=5_000,
            ratePer=60_000,
            groupByOperation="true",
            **more,
        )
        return {
            next(label["value"] for label in metric["labels"] if label["name"] == "operation"): value
            for metric in answer["metrics"]
            for point in metric["metricPoints"]
            if (value := float(point["gaugeValue"]["doubleValue"])) > 0  # neither NaN
        }

    names = {"chat gpt-4o-mini", "chat no-such-model"}
    assert wait_until(lambda: points("calls").keys() == names, "call rates in Jaeger's Monitor")
    latencies = points("latencies", quantile=0.95)
    assert latencies.keys() == names
    assert 0.001 < latencies["chat gpt-4o-mini"] < 30  # seconds
    assert points("errors").keys() == {"chat no-such-model"}


def test_span_metrics_count_what_happened(stack, shop):
    calls = 'traces_span_metrics_calls_total{service_name="shop",gen_ai_operation_name="chat"}'
    expected = {"STATUS_CODE_UNSET": 2 * REQUESTS, "STATUS_CODE_ERROR": REQUESTS / 5}
    wait_until(lambda: sums(stack, calls, "status_code") == expected, f"{expected} in {calls}")


def _capturing():
    return {
        "SERVICE_PROMPT": f"{QUESTION} {SECRET}",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "span_only",
        "OTEL_LLM_CALLBACK_ERROR_TEXT": "true",
    }


def _captured(stack):
    """Run a request with content captured in the program; return the spans of its calls and the whole JSON of it."""
    with ScriptedServer(Model()) as server, service(stack, server, **_capturing()) as ask:
        trace_id, _ = ask(0)
    _, *calls = whole_trace(stack, trace_id, 4)
    return calls, json.dumps(get(f"{stack.jaeger_url}/api/traces/{trace_id}"))


def test_content_does_not_pass_the_collector_though_the_program_captures_it(stack):
    calls, text = _captured(stack)
    assert [name for call in calls for name in call.attributes if "messages" in name] == []
    assert [word for word in (QUESTION, "canary answer", SECRET, "no model for") if word in text] == []


def test_content_is_not_on_the_collectors_disk_either(new_stack):
    stack = new_stack()
    stack.start_one("collector")  # no store takes anything over
    stack.wait_for("collector")
    with ScriptedServer(Model()) as server, service(stack, server, **_capturing()) as ask:
        trace_id, _ = ask(0)

    def waiting():
        return b"".join(file.read_bytes() for file in stack.queue_folder.rglob("*") if file.is_file())

    wait_until(lambda: bytes.fromhex(trace_id) in waiting(), "the trace in the queue")
    wait_until(lambda: waiting().count(b"gen_ai.request.model") >= 3, "three calls in the queue")
    assert [word for word in (QUESTION, ANSWER, SECRET, "no model for") if word.encode() in waiting()] == []


def test_content_passes_with_the_overlay_and_secrets_in_it_are_masked(new_stack):
    stack = new_stack(overlays=["content"])
    stack.start()
    calls, text = _captured(stack)
    (plain, streamed, _) = calls
    for call in (plain, streamed):
        assert json.loads(call.attributes["gen_ai.input.messages"]) == [
            {"role": "user", "parts": [{"type": "text", "content": f"{QUESTION} ****"}]}
        ]
        (message,) = json.loads(call.attributes["gen_ai.output.messages"])
        assert message["role"] == "assistant"
        assert message["parts"] == [{"type": "text", "content": ANSWER}]
        assert call.attributes["gen_ai.usage.output_tokens"] == 7
    assert "no model for" in text  # error texts are content too
    assert SECRET not in text
