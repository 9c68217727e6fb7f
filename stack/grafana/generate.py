"""Write the dashboards of Grafana: ``python stack/grafana/generate.py``.

The tables below say what is shown; what Grafana wants besides is made from them. Change them here, not in the JSON,
which a test holds equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).with_name("dashboards")
PROMETHEUS: Final = {"type": "prometheus", "uid": "prometheus"}
JAEGER: Final = {"type": "jaeger", "uid": "jaeger"}
WIDTH: Final = 24
HEIGHT: Final = 8

Query = tuple[str, str]  # PromQL and the legend


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: What it shows.
        help: What to read from it, shown on its corner.
        queries: PromQL and legends.
        unit: As Grafana names it.
        kind: Grafana's name of the panel.
        width: Of 24.
        exemplars: Whether its points lead to traces.
    """

    title: str
    help: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    exemplars: bool = False


@dataclass(frozen=True)
class Board:
    """One dashboard: rows of panels under their titles, and variables as (name, label, query, multi)."""

    uid: str
    title: str
    description: str
    variables: tuple[tuple[str, str, str, bool], ...]
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]


DURATION: Final = "gen_ai_client_operation_duration_seconds"
FIRST_CHUNK: Final = "gen_ai_client_operation_time_to_first_chunk_seconds"
PER_CHUNK: Final = "gen_ai_client_operation_time_per_output_chunk_seconds"
TOKENS: Final = "gen_ai_client_token_usage"
COST: Final = "gen_ai_usage_cost_USD"
NET: Final = "llm_callback_duration_without_retry_wait_seconds"
SPANS: Final = "traces_span_metrics_calls_total"
FAILED: Final = 'error_type!="",llm_callback_outcome!="cancelled"'
WELL: Final = 'error_type=""'
RETRIED: Final = 'llm_callback_retried="true"'
NOT_RETRIED: Final = 'error_type="",llm_callback_retried=""'
TOLD_REASONS: Final = 'gen_ai_response_finish_reasons!=""'
ANSWERED: Final = 'gen_ai_response_model!=""'
OUTPUT: Final = 'gen_ai_token_type="output"'
CHOSEN: Final = 'job=~"$job",gen_ai_request_model=~"$model"'


def _of(metric: str, more: str = "") -> str:
    return f"{metric}{{{CHOSEN}{',' if more else ''}{more}}}"


def _rate(metric: str, more: str = "") -> str:
    return f"rate({_of(metric, more)}[$__rate_interval])"


def _total(metric: str, more: str = "") -> str:
    return f"sum(increase({_of(metric, more)}[$__range]))"


def _quantiles(buckets: str, *shares: float) -> tuple[Query, ...]:
    return tuple((f"histogram_quantile({share}, sum by (le) ({buckets}))", f"p{share * 100:.0f}") for share in shares)


ALL_SHARES: Final = (0.5, 0.95, 0.99)
NET_BUCKETS: Final = f"{_rate(DURATION + '_bucket', NOT_RETRIED)} or {_rate(NET + '_bucket', WELL)}"

OVERVIEW: Final = Board(
    uid="llm-overview",
    title="LLM overview",
    description="Calls of LLMs as programs see them: how many, how well, how fast, for how much.",
    variables=(
        ("job", "Service", f"label_values({DURATION}_count, job)", True),
        ("model", "Model", f'label_values({DURATION}_count{{job=~"$job"}}, gen_ai_request_model)', True),
        ("service", "Service of the slowest calls", f"label_values({DURATION}_count, job)", False),
    ),
    rows=(
        (
            "In the time shown",
            (
                Panel("Calls", "", ((_total(DURATION + "_count"), ""),), kind="stat", width=4),
                Panel(
                    "Failed",
                    "Share of calls that ended with an exception; those the program cancelled do not count.",
                    (
                        (
                            (
                                f"({_total(DURATION + '_count', FAILED)} or 0 * {_total(DURATION + '_count')})"
                                f" / {_total(DURATION + '_count')}"
                            ),
                            "",
                        ),
                    ),
                    "percentunit",
                    "stat",
                    4,
                ),
                Panel(
                    "Latency p95",
                    "Of calls that ended well, retries included.",
                    (
                        (
                            (
                                "histogram_quantile(0.95, sum by (le) "
                                f"(increase({_of(DURATION + '_bucket', WELL)}[$__range])))"
                            ),
                            "",
                        ),
                    ),
                    "s",
                    "stat",
                    4,
                ),
                Panel("Tokens", "Input and output.", ((_total(TOKENS + "_sum"), ""),), kind="stat", width=4),
                Panel(
                    "Cost",
                    "Of calls that have a price; set `prices` to have any.",
                    ((_total(COST + "_sum"), ""),),
                    "currencyUSD",
                    "stat",
                    4,
                ),
                Panel(
                    "Rate-limit headroom",
                    "The least of all limits; none if the server does not say.",
                    ((f"min({_of('llm_callback_rate_limit_headroom')})", ""),),
                    "percentunit",
                    "stat",
                    4,
                ),
            ),
        ),
        (
            "Calls",
            (
                Panel(
                    "Calls by model",
                    "",
                    ((f"sum by (gen_ai_request_model) ({_rate(DURATION + '_count')})", "{{gen_ai_request_model}}"),),
                    "reqps",
                ),
                Panel(
                    "Errors by type",
                    "The exception's class, or the provider's code.",
                    ((f"sum by (error_type) ({_rate(DURATION + '_count', FAILED)})", "{{error_type}}"),),
                    "reqps",
                ),
                Panel(
                    "Error ratio by service",
                    "",
                    (
                        (
                            (
                                f"(sum by (job) ({_rate(DURATION + '_count', FAILED)})"
                                f" or 0 * sum by (job) ({_rate(DURATION + '_count')}))"
                                f" / sum by (job) ({_rate(DURATION + '_count')})"
                            ),
                            "{{job}}",
                        ),
                    ),
                    "percentunit",
                ),
                Panel(
                    "How answers ended",
                    "Finish reasons, one per choice: `length` was cut at the token limit.",
                    (
                        (
                            f"sum by (gen_ai_response_finish_reasons) ({_rate(SPANS, TOLD_REASONS)})",
                            "{{gen_ai_response_finish_reasons}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel(
                    "Repeated by the client",
                    "Share of calls with at least one retry, whether it helped or not.",
                    (
                        (
                            (
                                f"(sum by (job) ({_rate(DURATION + '_count', RETRIED)})"
                                f" or 0 * sum by (job) ({_rate(DURATION + '_count')}))"
                                f" / sum by (job) ({_rate(DURATION + '_count')})"
                            ),
                            "{{job}}",
                        ),
                    ),
                    "percentunit",
                ),
                Panel(
                    "Models asked for and models that answered",
                    "",
                    (
                        (
                            (
                                "sum by (gen_ai_request_model, gen_ai_response_model) "
                                f"(increase({_of(DURATION + '_count', ANSWERED)}[$__range]))"
                            ),
                            "{{gen_ai_request_model}} → {{gen_ai_response_model}}",
                        ),
                    ),
                    kind="bargauge",
                ),
            ),
        ),
        (
            "Latency",
            (
                Panel(
                    "With retry waits",
                    "What programs waited, of calls that ended well. Points lead to traces.",
                    _quantiles(_rate(DURATION + "_bucket", WELL), *ALL_SHARES),
                    "s",
                    exemplars=True,
                ),
                Panel(
                    "Without retry waits",
                    "The same without the waits between attempts: what servers and networks took.",
                    _quantiles(NET_BUCKETS, *ALL_SHARES),
                    "s",
                ),
                Panel(
                    "All calls",
                    "Points lead to traces.",
                    ((f"sum by (le) ({_rate(DURATION + '_bucket')})", "{{le}}"),),
                    "s",
                    "heatmap",
                    exemplars=True,
                ),
                Panel(
                    "Time to first chunk",
                    "Of streams.",
                    _quantiles(_rate(FIRST_CHUNK + "_bucket"), 0.5, 0.95),
                    "s",
                    exemplars=True,
                ),
                Panel("Between chunks", "Of streams.", _quantiles(_rate(PER_CHUNK + "_bucket"), 0.5, 0.95), "s"),
                Panel(
                    "Latency p95 by model",
                    "Of calls that ended well, retries included.",
                    (
                        (
                            (
                                "histogram_quantile(0.95, sum by (le, gen_ai_request_model) "
                                f"({_rate(DURATION + '_bucket', WELL)}))"
                            ),
                            "{{gen_ai_request_model}}",
                        ),
                    ),
                    "s",
                ),
            ),
        ),
        (
            "Tokens",
            (
                Panel(
                    "Tokens per second",
                    "",
                    ((f"sum by (gen_ai_token_type) ({_rate(TOKENS + '_sum')})", "{{gen_ai_token_type}}"),),
                ),
                Panel(
                    "Tokens per call",
                    "Median and p95.",
                    tuple(
                        (
                            (
                                f"histogram_quantile({share}, sum by (le, gen_ai_token_type) "
                                f"({_rate(TOKENS + '_bucket')}))"
                            ),
                            f"{{{{gen_ai_token_type}}}} p{share * 100:.0f}",
                        )
                        for share in (0.5, 0.95)
                    ),
                ),
                Panel(
                    "Output tokens per second of a call",
                    "All output tokens by all the time that calls took which ended well.",
                    (
                        (
                            (
                                "sum by (gen_ai_request_model) "
                                f"({_rate(TOKENS + '_sum', OUTPUT)})"
                                f" / sum by (gen_ai_request_model) ({_rate(DURATION + '_sum', WELL)})"
                            ),
                            "{{gen_ai_request_model}}",
                        ),
                    ),
                ),
                Panel(
                    "Top models by tokens",
                    "",
                    (
                        (
                            f"topk(10, sum by (gen_ai_request_model) (increase({_of(TOKENS + '_sum')}[$__range])))",
                            "{{gen_ai_request_model}}",
                        ),
                    ),
                    kind="bargauge",
                    width=12,
                ),
                Panel(
                    "Top services by tokens",
                    "",
                    ((f"topk(10, sum by (job) (increase({_of(TOKENS + '_sum')}[$__range])))", "{{job}}"),),
                    kind="bargauge",
                    width=12,
                ),
            ),
        ),
        (
            "Cost and limits",
            (
                Panel(
                    "Cost per hour by model",
                    "US dollars, of calls that have a price.",
                    ((f"3600 * sum by (gen_ai_request_model) ({_rate(COST + '_sum')})", "{{gen_ai_request_model}}"),),
                    "currencyUSD",
                ),
                Panel(
                    "Cost per call",
                    "Mean of the calls that have a price.",
                    (
                        (
                            (
                                f"sum by (gen_ai_request_model) ({_rate(COST + '_sum')})"
                                f" / sum by (gen_ai_request_model) ({_rate(COST + '_count')})"
                            ),
                            "{{gen_ai_request_model}}",
                        ),
                    ),
                    "currencyUSD",
                ),
                Panel(
                    "Rate-limit headroom",
                    "Share of the limit that was left at the last call, as the server said.",
                    (
                        (
                            (
                                "min by (gen_ai_request_model, llm_callback_rate_limit_kind) "
                                f"({_of('llm_callback_rate_limit_headroom')})"
                            ),
                            "{{gen_ai_request_model}} {{llm_callback_rate_limit_kind}}",
                        ),
                    ),
                    "percentunit",
                ),
            ),
        ),
    ),
)

HERE: Final = 'job="otel-collector"'
# Counters of what went wrong appear with the first failure; until then the Collector says zero by being there.
NONE_YET: Final = f"0 * sum(up{{{HERE}}})"


def _counted(metric: str) -> str:
    return f"sum(rate({metric}{{{HERE}}}[$__rate_interval])) or {NONE_YET}"


PIPELINE: Final = Board(
    uid="llm-pipeline",
    title="Pipeline health",
    description="Whether what programs send arrives: callbacks, Collector, Jaeger, Prometheus.",
    variables=(),
    rows=(
        (
            "Collector",
            (
                Panel("Parts that answer", "", (("up", "{{job}}"),), kind="stat", width=6),
                Panel(
                    "Received per second",
                    "Spans and metric points that were taken over.",
                    (
                        (_counted("otelcol_receiver_accepted_spans_total"), "spans"),
                        (_counted("otelcol_receiver_accepted_metric_points_total"), "metric points"),
                    ),
                    "cps",
                    width=6,
                ),
                Panel(
                    "Refused per second",
                    "Senders try these again, for some time.",
                    (
                        (_counted("otelcol_receiver_refused_spans_total"), "spans"),
                        (_counted("otelcol_receiver_refused_metric_points_total"), "metric points"),
                        (_counted("otelcol_exporter_enqueue_failed_spans_total"), "spans, for want of room"),
                    ),
                    "cps",
                    width=6,
                ),
                Panel(
                    "Stored per second",
                    "",
                    (
                        (_counted("otelcol_exporter_sent_spans_total"), "spans"),
                        (_counted("otelcol_exporter_sent_metric_points_total"), "metric points"),
                    ),
                    "cps",
                    width=6,
                ),
                Panel(
                    "Lost per second",
                    "What a store refused for good; always zero on a good day.",
                    (
                        (_counted("otelcol_exporter_send_failed_spans_total"), "spans"),
                        (_counted("otelcol_exporter_send_failed_metric_points_total"), "metric points"),
                    ),
                    "cps",
                ),
                Panel(
                    "Queues",
                    "How full they are. They are on disk and grow while a store is away.",
                    (
                        (
                            (
                                f"max by (exporter) (otelcol_exporter_queue_size{{{HERE}}})"
                                f" / max by (exporter) (otelcol_exporter_queue_capacity{{{HERE}}})"
                            ),
                            "{{exporter}}",
                        ),
                    ),
                    "percentunit",
                ),
                Panel(
                    "Memory",
                    "",
                    (
                        (f"otelcol_process_memory_rss_bytes{{{HERE}}}", "Collector {{instance}}"),
                        ('process_resident_memory_bytes{job="prometheus"}', "Prometheus"),
                    ),
                    "bytes",
                ),
            ),
        ),
        (
            "Stores",
            (
                Panel("Series in Prometheus", "", (("prometheus_tsdb_head_series", "{{instance}}"),)),
                Panel(
                    "Samples that come too late",
                    "What waited for longer than Prometheus takes it.",
                    (("sum(rate(prometheus_tsdb_too_old_samples_total[$__rate_interval]))", "samples"),),
                    "cps",
                ),
                Panel(
                    "Rules that fail",
                    "",
                    (("sum(rate(prometheus_rule_evaluation_failures_total[$__rate_interval]))", "failures"),),
                    "cps",
                ),
            ),
        ),
        (
            "In the programs",
            (
                Panel(
                    "Events told to callbacks",
                    "",
                    (
                        (
                            (
                                "sum by (llm_callback_callback_name) (rate(llm_callback_callback_events_total"
                                '{llm_callback_callback_result="delivered"}[$__rate_interval]))'
                            ),
                            "{{llm_callback_callback_name}}",
                        ),
                    ),
                    "cps",
                ),
                Panel(
                    "Events that callbacks missed",
                    "`dropped` for want of room, `failed` with an exception.",
                    (
                        (
                            (
                                "sum by (llm_callback_callback_name, llm_callback_callback_result) "
                                '(rate(llm_callback_callback_events_total{llm_callback_callback_result!="delivered"}'
                                "[$__rate_interval]))"
                            ),
                            "{{llm_callback_callback_name}} {{llm_callback_callback_result}}",
                        ),
                    ),
                    "cps",
                ),
                Panel(
                    "Answers whose tokens are unknown",
                    "Streams that were not asked for usage, mostly: see `include_usage`.",
                    (
                        (
                            (
                                "sum by (job) (rate(llm_callback_usage_missing_total[$__rate_interval]))"
                                f" or 0 * sum by (job) (rate({DURATION}_count[$__rate_interval]))"
                            ),
                            "{{job}}",
                        ),
                    ),
                    "cps",
                ),
            ),
        ),
    ),
)

BOARDS: Final = (OVERVIEW, PIPELINE)


def build(board: Board) -> dict[str, Any]:
    """Return a dashboard as Grafana reads it."""
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": ["llm", "opentelemetry"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_variable(*variable) for variable in board.variables]},
        "panels": list(_laid_out(board)),
    }


def _variable(name: str, label: str, query: str, multi: bool) -> dict[str, Any]:  # noqa: FBT001 - a column of a table
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": PROMETHEUS,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": multi,
        "includeAll": multi,
        **({"allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}} if multi else {}),
    }


def _laid_out(board: Board) -> Iterable[dict[str, Any]]:
    number, y = 1, 0
    for title, panels in board.rows:
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": _at(0, y)}
        number, y, x = number + 1, y + 1, 0
        height = HEIGHT // 2 if all(panel.kind == "stat" for panel in panels) else HEIGHT
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + height
            yield {"id": number, **_panel(panel), "gridPos": _at(x, y, panel.width, height)}
            number, x = number + 1, x + panel.width
        y += height
    if board is OVERVIEW:
        yield {
            "id": number,
            "type": "row",
            "title": "Slowest calls",
            "collapsed": False,
            "panels": [],
            "gridPos": _at(0, y),
        }
        yield {"id": number + 1, **_slowest_calls(), "gridPos": _at(0, y + 1, WIDTH, HEIGHT)}


def _at(x: int, y: int, width: int = WIDTH, height: int = 1) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel) -> dict[str, Any]:
    instant = panel.kind in ("stat", "bargauge")
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": PROMETHEUS,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": PROMETHEUS,
                "expr": expression,
                "legendFormat": legend or panel.title,
                "instant": instant,
                "range": not instant,
                "exemplar": panel.exemplars,
                "format": "heatmap" if panel.kind == "heatmap" else "time_series",
            }
            for index, (expression, legend) in enumerate(panel.queries)
        ],
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"], "values": False}, "colorMode": "none", "graphMode": "none"}
    if panel.kind == "bargauge":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "values": False},
            "orientation": "horizontal",
            "displayMode": "basic",
        }
    if panel.kind == "heatmap":
        return {"calculate": False, "yAxis": {"unit": panel.unit}, "exemplars": {"color": "rgba(255,0,255,0.7)"}}
    return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}


def _slowest_calls() -> dict[str, Any]:
    """A search of Jaeger's, whose rows open the trace."""
    return {
        "type": "table",
        "title": "Calls of $service that took longer than five seconds",
        "description": "The trace opens with a click on its id.",
        "datasource": JAEGER,
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {"sortBy": [{"displayName": "Duration", "desc": True}]},
        "targets": [
            {
                "refId": "A",
                "datasource": JAEGER,
                "queryType": "search",
                "service": "$service",
                "tags": "gen_ai.operation.name=chat",
                "minDuration": "5s",
                "limit": 20,
            }
        ],
    }


def render(board: Board) -> str:
    """Return the text of a dashboard's file."""
    return json.dumps(build(board), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all files."""
    for board in BOARDS:
        (FOLDER / f"{board.uid}.json").write_text(render(board), encoding="utf-8")


if __name__ == "__main__":
    main()
