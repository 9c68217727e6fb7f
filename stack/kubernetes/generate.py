"""Write the values for the charts: ``python stack/kubernetes/generate.py``.

Charts want whole configurations in their values. That of the Collector is collector-config.yaml with the files of
stack/scale-out laid over it, as the Collector itself would do it, and the rules of Prometheus are those of the stack. A
test holds what is written equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).parent
CHECKOUT: Final = FOLDER.parents[1]
VERSIONS: Final = dict(
    line.split("=", 1)
    for line in (CHECKOUT / "stack" / "versions.env").read_text(encoding="utf-8").splitlines()
    if "=" in line and not line.startswith("#")
)
RULES: Final = sorted((CHECKOUT / "stack" / "prometheus" / "rules").glob("*.yml"))
QUEUE: Final = "/var/lib/otelcol"
HARDENED: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
# Pods are reached from other pods: everything listens on the pod's own address.
LISTENS: Final = {
    "COLLECTOR_OTLP_GRPC_ENDPOINT": "0.0.0.0:4317",
    "COLLECTOR_OTLP_HTTP_ENDPOINT": "0.0.0.0:4318",
    "COLLECTOR_HEALTH_ENDPOINT": "0.0.0.0:13133",
    "COLLECTOR_METRICS_HOST": "0.0.0.0",
    "COLLECTOR_QUEUE_DIRECTORY": QUEUE,
}
STORES: Final = {
    "COLLECTOR_JAEGER_ENDPOINT": "jaeger-collector:4317",
    "COLLECTOR_PROMETHEUS_ENDPOINT": "http://prometheus-server/api/v1/otlp",
}
HEADS: Final = {
    "agent": """\
# One Collector on each node, which programs reach at the node's address:
#
#   helm install otel-agent open-telemetry/opentelemetry-collector -f agent-values.yaml
#
# Its queue is on the node's disk, and survives a restart of the pod there. The folder belongs to root at first; give it
# to user 10001 once on each node, or use the pod's own disk (`emptyDir`) and lose the queue with the pod.
# Written by generate.py; change that, or lay values of your own over these.
""",
    "gateway": """\
# The gateways, each with a disk of its own:
#
#   helm install otel-gateway open-telemetry/opentelemetry-collector -f gateway-values.yaml
#   kubectl apply -f gateways-service.yaml
#
# Written by generate.py; change that, or lay values of your own over these.
""",
    "prometheus": """\
# Prometheus, which takes metrics over OTLP, with the rules of the stack:
#
#   helm install prometheus prometheus-community/prometheus -f prometheus-values.yaml
#
# Written by generate.py; change that, or lay values of your own over these.
""",
}


def _read(path: str) -> Any:
    return yaml.safe_load((CHECKOUT / path).read_text(encoding="utf-8"))


def merge(base: Any, over: Any) -> Any:
    """Lay one configuration over another as the Collector does: mappings by key, all else replaced."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return {name: merge(base.get(name), over[name]) if name in over else base[name] for name in {**base, **over}}


def values(role: str) -> dict[str, Any]:
    """Return the values for one role, ``agent``, ``gateway`` or ``prometheus``."""
    return _prometheus() if role == "prometheus" else _collector(role)


def _prometheus() -> dict[str, Any]:
    config = _read("stack/prometheus/prometheus.yml")
    files = {path.stem: _read(f"stack/prometheus/rules/{path.name}") for path in RULES}
    return {
        "server": {
            "image": {"tag": f"v{VERSIONS['PROMETHEUS_VERSION']}"},
            "retention": "15d",
            "extraFlags": ["web.enable-otlp-receiver", "enable-feature=exemplar-storage"],
            **{name: config["storage"][name] for name in ("tsdb", "exemplars")},
        },
        "serverFiles": {
            "prometheus.yml": {"otlp": config["otlp"]},
            # Both names are among the rule files of the chart.
            "recording_rules.yml": files["llm"],
            "alerting_rules.yml": files["pipeline"],
        },
    }


def _collector(role: str) -> dict[str, Any]:
    settings = {**LISTENS, **STORES}
    if role == "agent":
        settings |= {"AGENT_GATEWAYS": "otel-gateways"}
    ports = {name: {"enabled": False} for name in ("jaeger-compact", "jaeger-thrift", "jaeger-grpc", "zipkin")}
    made: dict[str, Any] = {
        "mode": {"agent": "daemonset", "gateway": "statefulset"}[role],
        "image": {"repository": "otel/opentelemetry-collector-contrib", "tag": VERSIONS["COLLECTOR_VERSION"]},
        "command": {"name": "otelcol-contrib"},
        "podSecurityContext": {"runAsUser": 10001, "runAsNonRoot": True, "fsGroup": 10001},
        "securityContext": HARDENED,
        "resources": {
            "requests": {"cpu": "100m", "memory": {"agent": "256Mi", "gateway": "1Gi"}[role]},
            "limits": {"memory": {"agent": "512Mi", "gateway": "2Gi"}[role]},
        },
        "extraEnvs": [{"name": name, "value": value} for name, value in settings.items()],
        "extraVolumeMounts": [{"name": "queue", "mountPath": QUEUE}],
        "ports": {**ports, "metrics": {"enabled": True}},
    }
    if role == "agent":
        folder = {"path": "/var/lib/otelcol-llm", "type": "DirectoryOrCreate"}
        made["extraVolumes"] = [{"name": "queue", "hostPath": folder}]
        made["service"] = {"enabled": True}
    else:
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}
        made["replicaCount"] = 2
        made["statefulset"] = {"volumeClaimTemplates": [{"metadata": {"name": "queue"}, "spec": claim}]}
        made["podDisruptionBudget"] = {"enabled": True, "minAvailable": 1}
    # In the place of the chart's own configuration, which has a `batch` processor.
    made["alternateConfig"] = merge(_read("collector-config.yaml"), _read(f"stack/scale-out/{role}.yaml"))
    return made


def render(role: str) -> str:
    """Return the text of the file of a role."""
    body = yaml.dump(values(role), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=1000)
    return f"{HEADS[role]}\n{body}"


class _Plain(yaml.SafeDumper):
    """Writes everything out; references from one place to another are hard to read in values."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - as the base class has it
        return True


def main() -> None:
    """Write all files."""
    for role in HEADS:
        (FOLDER / f"{role}-values.yaml").write_text(render(role), encoding="utf-8")


if __name__ == "__main__":
    main()
