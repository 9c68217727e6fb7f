"""The files for Kubernetes: made from those that are tested, and fitting together."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from native import read_versions

CHECKOUT = Path(__file__).parents[2]
FOLDER = CHECKOUT / "stack" / "kubernetes"
COLLECTORS = ("agent", "gateway")


def generator():
    spec = importlib.util.spec_from_file_location("kubernetes_generate", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def documents(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def test_values_are_those_the_generator_writes():
    made = generator()
    assert {f"{role}-values.yaml": made.render(role) for role in made.HEADS} == {
        path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*-values.yaml")
    }


def test_files_lie_over_each_other_as_the_collector_does_it():
    merge = generator().merge
    assert merge({"a": {"b": 1, "c": [1, 2]}, "d": 4}, {"a": {"c": [3]}, "e": None}) == {
        "a": {"b": 1, "c": [3]},
        "d": 4,
        "e": None,
    }


def test_images_are_pinned_to_the_versions_of_the_one_file():
    versions = read_versions()
    (jaeger, _, _) = documents("jaeger.yaml")
    (container,) = jaeger["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"jaegertracing/jaeger:{versions['JAEGER_VERSION']}"
    for role in COLLECTORS:
        (values,) = documents(f"{role}-values.yaml")
        assert values["image"]["tag"] == versions["COLLECTOR_VERSION"]
    (values,) = documents("prometheus-values.yaml")
    assert values["server"]["image"]["tag"] == f"v{versions['PROMETHEUS_VERSION']}"


@pytest.mark.parametrize("role", COLLECTORS)
def test_a_collector_is_told_only_what_its_configuration_reads(role):
    (values,) = documents(f"{role}-values.yaml")
    read = set(re.findall(r"\$\{env:(\w+)", yaml.safe_dump(values["alternateConfig"], width=10_000)))
    assert {setting["name"] for setting in values["extraEnvs"]} - read <= {"COLLECTOR_JAEGER_ENDPOINT"}
    assert values["extraVolumeMounts"] == [{"name": "queue", "mountPath": "/var/lib/otelcol"}]


def test_jaeger_is_told_only_what_its_configuration_reads():
    (jaeger, *_) = documents("jaeger.yaml")
    (container,) = jaeger["spec"]["template"]["spec"]["containers"]
    text = (CHECKOUT / "stack" / "scale-out" / "jaeger-opensearch.yaml").read_text(encoding="utf-8")
    assert {setting["name"] for setting in container["env"]} <= set(re.findall(r"\$\{env:(\w+)", text))


def test_names_that_one_part_looks_up_are_names_of_another():
    (agent,), (gateway,) = documents("agent-values.yaml"), documents("gateway-values.yaml")
    told = {role: {s["name"]: s["value"] for s in v["extraEnvs"]} for role, v in (("a", agent), ("g", gateway))}
    (service,) = documents("gateways-service.yaml")
    assert told["a"]["AGENT_GATEWAYS"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    (_, collector, _) = documents("jaeger.yaml")
    assert told["g"]["COLLECTOR_JAEGER_ENDPOINT"] == f"{collector['metadata']['name']}:4317"


@pytest.mark.stack
@pytest.mark.parametrize("role", COLLECTORS)
def test_the_collector_finds_the_configuration_in_the_values_valid(find_fault, tmp_path, role):
    (values,) = documents(f"{role}-values.yaml")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values["alternateConfig"]), encoding="utf-8")
    assert find_fault("otelcol", path) is None


@pytest.mark.stack
def test_promtool_finds_the_configuration_in_the_values_valid(programs, tmp_path):
    (values,) = documents("prometheus-values.yaml")
    rules = {name: content for name, content in values["serverFiles"].items() if name != "prometheus.yml"}
    for name, content in rules.items():
        (tmp_path / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    config = {
        **values["serverFiles"]["prometheus.yml"],
        "storage": {name: values["server"][name] for name in ("tsdb", "exemplars")},
        "rule_files": list(rules),
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = subprocess.run(
        [programs["promtool"], "check", "config", tmp_path / "prometheus.yml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "30 rules found" in done.stdout
