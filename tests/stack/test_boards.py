"""Dashboards, recording rules and alerts: they ask for what there is, and what they are meant to catch they catch."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import openai
import promql_parser
import pytest
import yaml
from native import wait_until
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry
from stack._api import exemplars, get, query, read_trace
from stack._model import answer_for_boards, environment
from stack._promql import DASHBOARDS, RULES, STACK, asked_for, dashboard_queries, rules

import otel_llm_callback
from otel_llm_callback import Retry
from otel_llm_callback.callbacks import SessionAnalytics
from otel_llm_callback.telemetry import OpenTelemetryCallback
from otel_llm_callback.testing import ScriptedServer, make_error_context, make_request, make_response

CHECKOUT = Path(__file__).parents[2]
ALERTS = [rule for rule in rules() if "alert" in rule]
QUERIES = dashboard_queries()
EXPRESSIONS = [expression for _, expression in QUERIES] + [rule["expr"] for rule in rules()]
OF_THE_TARGET = {"job", "instance", "service_name"}
OURS = ("gen_ai_", "llm_callback_")
RECORDED = {rule["record"] for rule in rules() if "record" in rule}

# What appears with the first trouble of its kind; tests/stack/test_loss.py makes that of the queue.
LATE = {
    "otelcol_exporter_enqueue_failed_spans_total",
    "otelcol_exporter_send_failed_metric_points_total",
    "llm_callback_usage_missing_total",
}


def generator():
    spec = importlib.util.spec_from_file_location("generate", STACK / "grafana" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# --- Without running anything -----------------------------------------------------------------------------------------


def test_the_dashboards_are_those_the_generator_writes():
    made = generator()
    assert {f"{board.uid}.json": made.render(board) for board in made.BOARDS} == {
        path.name: path.read_text(encoding="utf-8") for path in DASHBOARDS
    }


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_do_not_overlap_and_use_data_sources_that_are_provisioned(path):
    provisioned = yaml.safe_load(
        (STACK / "grafana" / "provisioning" / "datasources" / "stack.yaml").read_text(encoding="utf-8")
    )
    sources = {(source["type"], source["uid"]) for source in provisioned["datasources"]}
    taken = set()
    for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert (target["datasource"]["type"], target["datasource"]["uid"]) in sources


def left_out(written, read, where="dashboard"):
    """The places of fields that are written and not read; what was read may have more, which are defaults."""
    if isinstance(written, dict):
        for name, value in written.items():
            if isinstance(read, dict) and name in read:
                yield from left_out(value, read[name], f"{where}.{name}")
            else:
                yield f"{where}.{name}"
    elif isinstance(written, list):
        assert len(written) == len(read), where
        for one, other in zip(written, read, strict=True):
            yield from left_out(one, other, f"{where}[]")
    elif written != read:
        yield where


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_grafanas_own_models_know_every_field(path):
    """They leave out what they do not know, but for queries of data sources that are not built in."""
    sdk = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="needs Python 3.11")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder").JSONEncoder()
    pytest.importorskip("grafana_foundation_sdk.cog.plugins").register_default_plugins()

    def read_back(written):
        return json.loads(encoder.encode(sdk.Dashboard.from_json(written)))

    written = json.loads(path.read_text(encoding="utf-8"))
    assert list(left_out(written, read_back(written))) == []
    written["panels"][1]["options"]["no_such_field"] = True
    assert list(left_out(written, read_back(written))) == ["dashboard.panels[].options.no_such_field"]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_is_promql(expression):
    promql_parser.parse(expression)


@pytest.fixture
def emitted():
    """The label names of each series of ours, as the package emits them and Prometheus's client translates them."""
    registry = CollectorRegistry()
    provider = MeterProvider([PrometheusMetricReader(registry=registry)])
    prices = otel_llm_callback.PriceTable({"m": {"input": 1, "output": 1}})
    otel_llm_callback.instrument(
        SessionAnalytics(), meter_provider=provider, include_usage=True, prices=prices, delivery="inline"
    )
    with ScriptedServer(answer_for_boards) as server, openai.OpenAI(api_key="unused", base_url=server.url) as client:
        for model in ("m", "refused-once"):
            client.chat.completions.create(model=model, messages=[])
            list(client.chat.completions.create(model=model, messages=[], stream=True))
    adapter = OpenTelemetryCallback(meter_provider=provider)
    for outcome in ("error", "cancelled", None):
        request = make_request()
        adapter.on_request_sent(request, "")
        if outcome is None:
            adapter.on_response_received(make_response(request=request, usage=None), "")
        else:
            adapter.on_error(
                ValueError(),
                make_error_context(request=request, outcome=outcome, retries=(Retry(at_ns=0, delay_s=0.0),)),
            )
    labels = {}
    for family in registry.collect():
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    yield labels
    provider.shutdown()


@pytest.mark.parametrize("expression", [text for text in EXPRESSIONS if any(name in text for name in OURS)])
def test_names_and_labels_of_calls_are_those_the_package_emits(emitted, expression):
    for metric, labels in asked_for(expression).items():
        if metric.startswith(OURS):
            assert metric in emitted
            assert labels - OF_THE_TARGET <= emitted[metric], metric


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_metrics_made_here_are_recorded_here(expression):
    assert {metric for metric in asked_for(expression) if ":" in metric} <= RECORDED


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert):
    page = (CHECKOUT / "docs" / "alerts.md").read_text(encoding="utf-8")
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["annotations"]["runbook"] == f"docs/alerts.md#{alert['alert'].lower()}"
    assert len(re.findall(rf"^### {alert['alert']}$", page, re.MULTILINE)) == 1


def test_the_runbook_has_no_alert_that_is_gone():
    page = (CHECKOUT / "docs" / "alerts.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == [alert["alert"] for alert in ALERTS]


def test_each_alert_is_fired_by_a_test():
    fired = set()
    for path in (STACK / "prometheus" / "tests").glob("*.yml"):
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            fired |= {case["alertname"] for case in test.get("alert_rule_test", ()) if case["exp_alerts"]}
    assert fired == {alert["alert"] for alert in ALERTS}


# --- With the real programs -------------------------------------------------------------------------------------------


@pytest.mark.stack
@pytest.mark.parametrize("command", [["check", "rules", "--lint=all", "--lint-fatal"], ["test", "rules"]], ids=" ".join)
def test_promtool_finds_the_rules_right(programs, command):
    files = RULES if command[0] == "check" else sorted((STACK / "prometheus" / "tests").glob("*.yml"))
    done = subprocess.run(
        [programs["promtool"], *command, *files], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def busy_stack(stack):
    """A stack that a program sends calls of every kind to, for as long as the tests take."""
    with (
        ScriptedServer(answer_for_boards) as server,
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("_board.py")), "300"],
            env=environment(stack, server),
            stdout=subprocess.PIPE,
            text=True,
        ) as program,
    ):
        try:
            assert program.stdout.readline() == "started\n"
            yield stack
        finally:
            program.kill()


@pytest.mark.stack
@pytest.mark.parametrize(("where", "expression"), QUERIES, ids=[f"{n}-{where}" for n, (where, _) in enumerate(QUERIES)])
def test_every_query_of_a_dashboard_has_an_answer(busy_stack, where, expression):
    """Scrapes are 15 seconds apart, and a rate needs two of them."""
    found = wait_until(lambda: query(busy_stack, expression), f"an answer to {expression}", 75)
    assert [number for _, number in found if number != number] == []  # noqa: PLR0124 - NaN is not itself


@pytest.mark.stack
def test_every_rule_is_evaluated_and_no_alert_of_the_pipeline_fires(busy_stack):
    def groups():
        return get(f"{busy_stack.prometheus_url}/api/v1/rules")["data"]["groups"]

    def all_evaluated():
        return all(rule["health"] != "unknown" for group in groups() for rule in group["rules"])

    wait_until(all_evaluated, "all rules evaluated", 90)
    found = {rule["name"]: rule for group in groups() for rule in group["rules"]}
    assert {name: rule["lastError"] for name, rule in found.items() if rule["health"] != "ok"} == {}
    assert found.keys() == RECORDED | {alert["alert"] for alert in ALERTS}
    of_the_pipeline = {
        rule["name"] for group in groups() if group["name"] == "pipeline-alerts" for rule in group["rules"]
    }
    assert {name for name in of_the_pipeline if found[name]["state"] != "inactive"} == set()


@pytest.mark.stack
def test_every_name_and_label_of_rules_and_dashboards_is_one_that_prometheus_has(busy_stack):
    wanted = {}
    for expression in EXPRESSIONS:
        for metric, labels in asked_for(expression).items():
            wanted.setdefault(metric, set()).update(labels)
    wanted = {metric: labels for metric, labels in wanted.items() if metric not in LATE}
    wanted["gen_ai_client_operation_duration_seconds_count"].discard("llm_callback_outcome")  # nobody cancels here

    def missing():
        found = {}
        for metric, labels in wanted.items():
            there = set(get(f"{busy_stack.prometheus_url}/api/v1/labels", **{"match[]": metric})["data"])
            if labels - there or "__name__" not in there:
                found[metric] = labels - there
        return found

    wait_until(lambda: not missing(), "names and labels", 75)
    assert missing() == {}


@pytest.mark.stack
def test_the_latency_panels_points_lead_to_traces(busy_stack):
    panels = json.loads((STACK / "grafana" / "dashboards" / "llm-overview.json").read_text(encoding="utf-8"))["panels"]
    (latency,) = [panel for panel in panels if panel["title"] == "With retry waits"]
    assert latency["targets"][0]["exemplar"] is True
    found = wait_until(lambda: exemplars(busy_stack, "gen_ai_client_operation_duration_seconds_bucket"), "exemplars")
    assert wait_until(lambda: read_trace(busy_stack, found[-1]["trace_id"]), "the trace of an exemplar")
