"""The files of the stack, read without running anything: what must hold in them whoever edits them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from native import Ports, Stack, read_versions

CHECKOUT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
ONE_SHOT = {"volume-init", "collector-ready"}
IMAGES = {
    "volume-init": "prom/prometheus:v${PROMETHEUS_VERSION:-%(PROMETHEUS_VERSION)s}",
    "otel-collector": "otel/opentelemetry-collector-contrib:${COLLECTOR_VERSION:-%(COLLECTOR_VERSION)s}",
    "collector-ready": "prom/prometheus:v${PROMETHEUS_VERSION:-%(PROMETHEUS_VERSION)s}",
    "jaeger": "jaegertracing/jaeger:${JAEGER_VERSION:-%(JAEGER_VERSION)s}",
    "prometheus": "prom/prometheus:v${PROMETHEUS_VERSION:-%(PROMETHEUS_VERSION)s}",
    "grafana": "grafana/grafana:${GRAFANA_VERSION:-%(GRAFANA_VERSION)s}",
}
OVERLAYS = sorted(path.name for path in (CHECKOUT / "stack" / "overlays").glob("*.collector.yaml"))
MEMBERS = ("receivers", "processors", "exporters")


def _load(*parts):
    return yaml.safe_load(CHECKOUT.joinpath(*parts).read_text(encoding="utf-8"))


def _merged(overlay=None):
    """The Collector's configuration as it merges files: mappings by key, everything else replaced."""
    config = _load("collector-config.yaml")
    return _merge(config, _load("stack", "overlays", overlay)) if overlay else config


def _merge(base, over):
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return {name: _merge(base.get(name), over[name]) if name in over else base[name] for name in {**base, **over}}


def test_images_are_pinned_to_the_versions_of_the_one_file():
    assert {name: service["image"] for name, service in SERVICES.items()} == {
        name: image % read_versions() for name, image in IMAGES.items()
    }


def test_ports_are_published_on_loopback_alone():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 5
    assert [port for port in published if not re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port)] == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_few_rights_and_limited_memory(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert (service["user"] == "0:0") is (name == "volume-init")
    assert service.get("privileged") is None


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - ONE_SHOT))
def test_a_service_that_stays_is_restarted_and_watched(name):
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert ("healthcheck" in service) is (name != "otel-collector")  # which collector-ready asks from outside


def test_every_name_a_service_uses_is_defined():
    volumes, networks = set(), set()
    for service in SERVICES.values():
        assert service.get("depends_on", {}).keys() <= SERVICES.keys()
        networks.update(service.get("networks", []))
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (CHECKOUT / source).exists(), source
                assert volume.endswith(":ro"), volume
            else:
                volumes.add(source)
    assert volumes == COMPOSE["volumes"].keys()
    assert networks == COMPOSE["networks"].keys()


def test_each_dependency_waits_for_what_its_service_can_show():
    for service in SERVICES.values():
        for name, wish in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if name in ONE_SHOT else "service_healthy"
            if name == "otel-collector":
                expected = "service_started"
            assert wish == {"condition": expected}


def test_every_volume_is_given_to_the_user_who_writes_there():
    init = SERVICES["volume-init"]
    owners = {
        folder: owner
        for owner, folders in re.findall(r"chown (\S+) ((?:/\w+ ?)+)", init["command"][0])
        for folder in folders.split()
    }
    volumes = dict(volume.split(":") for volume in init["volumes"])
    writers = {
        volume.split(":")[0]: service["user"]
        for name, service in SERVICES.items()
        if name != "volume-init"
        for volume in service.get("volumes", [])
        if not volume.startswith(".")
    }
    assert {name: owners[folder] for name, folder in volumes.items()} == writers


@pytest.mark.parametrize("path", sorted((CHECKOUT / "stack" / "overlays").glob("*.compose.yml")), ids=lambda p: p.name)
def test_a_compose_overlay_changes_services_that_exist_with_files_that_exist(path):
    for name, service in yaml.safe_load(path.read_text(encoding="utf-8"))["services"].items():
        assert name in SERVICES
        mounted = {*SERVICES[name]["volumes"], *service["volumes"]}
        targets = {volume.split(":")[-2] for volume in mounted}
        for argument in service["command"]:
            assert argument.removeprefix("--config=") in targets
        for volume in service["volumes"]:
            assert volume.startswith("${") or (CHECKOUT / volume.split(":")[0]).is_file()
        assert "ports" not in service


@pytest.mark.parametrize("overlay", [None, *OVERLAYS])
def test_every_member_of_a_pipeline_is_defined_and_used(overlay):
    config = _merged(overlay)
    service = config["service"]
    connectors = config["connectors"].keys()
    used = {kind: set() for kind in MEMBERS}
    for pipeline in service["pipelines"].values():
        for kind in MEMBERS:
            used[kind].update(pipeline[kind])
    assert used["receivers"] == config["receivers"].keys() | connectors
    assert used["exporters"] == config["exporters"].keys() | connectors
    assert used["processors"] <= config["processors"].keys()
    assert set(service["extensions"]) == config["extensions"].keys()


@pytest.mark.parametrize("overlay", [None, *OVERLAYS])
def test_what_the_collector_accepts_is_on_disk_until_a_store_has_it(overlay):
    config = _merged(overlay)
    for pipeline in config["service"]["pipelines"].values():
        assert not [name for name in pipeline["processors"] if name.split("/")[0] == "batch"]
    for exporter in config["exporters"].values():
        assert exporter["sending_queue"]["storage"] == "file_storage/queue"
        assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s"


def test_only_the_overlay_lets_content_through():
    lock = "transform/drop_content"
    having = {
        overlay: lock in _merged(overlay)["service"]["pipelines"]["traces/received"]["processors"]
        for overlay in [None, *OVERLAYS]
    }
    assert having == {overlay: overlay != "content.collector.yaml" for overlay in [None, *OVERLAYS]}


def test_redaction_knows_secrets_and_leaves_token_counts_alone():
    redaction = _load("collector-config.yaml")["processors"]["redaction"]
    (names,) = [re.compile(pattern) for pattern in redaction["blocked_key_patterns"]]
    for name in ("http.request.header.authorization", "openai.api_key", "x-api-key", "db.password", "access_token"):
        assert names.search(name), name
    for name in ("gen_ai.usage.input_tokens", "gen_ai.token.type", "llm_callback.rate_limit.tokens.remaining"):
        assert not names.search(name), name


def test_error_texts_are_masked_by_the_patterns_for_attributes():
    processors = _load("collector-config.yaml")["processors"]
    (statement,) = processors["transform/mask_status"]["trace_statements"][0]["statements"]
    pattern = "|".join(processors["redaction"]["blocked_values"]).replace("\\", "\\\\")
    assert statement == f'replace_pattern(status.message, "{pattern}", "****")'


@pytest.mark.parametrize("overlay", [None, *OVERLAYS])
def test_everything_that_comes_in_is_masked(overlay):
    for name, pipeline in _merged(overlay)["service"]["pipelines"].items():
        if "otlp" in pipeline["receivers"]:
            assert pipeline["processors"][0] == "memory_limiter"
            assert pipeline["processors"][-1] == "redaction"
            assert ("transform/mask_status" in pipeline["processors"]) is name.startswith("traces")


def test_addresses_of_the_collector_are_loopback_unless_the_environment_says_otherwise():
    text = (CHECKOUT / "collector-config.yaml").read_text(encoding="utf-8")
    assert "0.0.0.0" not in text
    addresses = re.findall(r"\$\{env:COLLECTOR_\w+(?:ENDPOINT|HOST):-(?:http://)?([^:}]+)", text)
    assert set(addresses) == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("path", "given"),
    [("collector-config.yaml", "collector_environment"), ("stack/jaeger/jaeger.yaml", "jaeger_environment")],
)
def test_the_stack_without_containers_sets_only_what_the_files_read(tmp_path, path, given):
    read = set(re.findall(r"\$\{env:(\w+)", (CHECKOUT / path).read_text(encoding="utf-8")))
    assert getattr(Stack(tmp_path, {}), given).keys() <= read


@pytest.mark.parametrize("name", ["otel-collector", "jaeger"])
def test_compose_sets_only_what_the_files_read(name):
    path = {"otel-collector": "collector-config.yaml", "jaeger": "stack/jaeger/jaeger.yaml"}[name]
    read = set(re.findall(r"\$\{env:(\w+)", (CHECKOUT / path).read_text(encoding="utf-8")))
    assert SERVICES[name]["environment"].keys() <= read | {"GOMEMLIMIT"}


def test_prometheus_is_started_alike_with_containers_and_without(tmp_path):
    own = ("--config.file", "--storage.tsdb.path", "--web.listen-address", "--log.level")
    (_, *flags) = Stack(tmp_path, {"prometheus": Path("prometheus")})._program("prometheus").command
    assert {flag for flag in flags if not flag.startswith(own)} == {
        flag for flag in SERVICES["prometheus"]["command"] if not flag.startswith(own)
    }


def test_prometheus_is_told_this_stacks_addresses(tmp_path):
    stack = Stack(tmp_path, {}, Ports(prometheus=1, collector_metrics=2, jaeger_metrics=3))
    written = yaml.safe_load(stack.write_prometheus_config().read_text(encoding="utf-8"))
    original = _load("stack", "prometheus", "prometheus.yml")
    assert [job["static_configs"][0]["targets"] for job in written["scrape_configs"]] == [
        ["127.0.0.1:2"],
        ["127.0.0.1:3"],
        ["127.0.0.1:1"],
    ]
    assert written["rule_files"] == [str(CHECKOUT / "stack" / "prometheus" / "rules" / "*.yml")]
    changed = {"scrape_configs", "rule_files"}
    assert {name: written[name] for name in written if name not in changed} == {
        name: original[name] for name in original if name not in changed
    }
