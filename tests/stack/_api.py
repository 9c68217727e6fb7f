"""What Jaeger and Prometheus say over HTTP, in the words of the tests."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url, **query):
    """Return the JSON at *url*."""
    with _OPENER.open(f"{url}?{urllib.parse.urlencode(query, doseq=True)}", timeout=20) as response:
        return json.load(response)


def get_text(url):
    with _OPENER.open(url, timeout=20) as response:
        return response.read().decode()


@dataclass(frozen=True)
class Span:
    """A span as Jaeger gives it out."""

    id: str
    parent: str | None
    name: str
    attributes: dict
    events: list = field(repr=False)  # of (name, attributes)
    service: str
    resource: dict = field(repr=False)


def read_trace(stack, trace_id):
    """Return the spans of a trace by start time; none if Jaeger does not have it."""
    try:
        (trace,) = get(f"{stack.jaeger_url}/api/traces/{trace_id}")["data"]
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return []
        raise
    return _spans(trace)


def read_traces(stack, service, limit=20_000):
    """Return all traces of a service, as spans by trace id."""
    answer = get(f"{stack.jaeger_url}/api/traces", service=service, limit=limit, lookback="1h")
    return {trace["traceID"]: _spans(trace) for trace in answer["data"]}


def _spans(trace):
    return [
        Span(
            id=span["spanID"],
            parent=next((one["spanID"] for one in span["references"] if one["refType"] == "CHILD_OF"), None),
            name=span["operationName"],
            attributes=_values(span["tags"]),
            events=[_event(log["fields"]) for log in span["logs"]],
            service=trace["processes"][span["processID"]]["serviceName"],
            resource=_values(trace["processes"][span["processID"]]["tags"]),
        )
        for span in sorted(trace["spans"], key=lambda span: span["startTime"])
    ]


def _values(tags):
    return {tag["key"]: tag["value"] for tag in tags}


def _event(fields):
    values = _values(fields)
    return values.pop("event"), values


def query(stack, expression):
    """Return what Prometheus says now, as pairs of labels and number."""
    answer = get(f"{stack.prometheus_url}/api/v1/query", query=expression)["data"]["result"]
    return [(sample["metric"], float(sample["value"][1])) for sample in answer]


def sums(stack, expression, label):
    """Return the numbers of an expression by one label."""
    return {labels.get(label): number for labels, number in query(stack, f"sum by ({label}) ({expression})")}


def exemplars(stack, expression):
    """Return the labels of the exemplars of the last hour."""
    now = time.time()
    answer = get(f"{stack.prometheus_url}/api/v1/query_exemplars", query=expression, start=now - 3600, end=now)
    return [exemplar["labels"] for series in answer["data"] for exemplar in series["exemplars"]]


def own_metrics(stack):
    """Return what the Collector counts about itself, by the text before the number."""
    text = get_text(f"http://127.0.0.1:{stack.ports.collector_metrics}/metrics")
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(number) for name, number in lines}
