"""What PromQL expressions ask for, read with Prometheus's grammar."""

from __future__ import annotations

import json
from pathlib import Path

import promql_parser as promql
import yaml

STACK = Path(__file__).parents[2] / "stack"
DASHBOARDS = sorted((STACK / "grafana" / "dashboards").glob("*.json"))
RULES = sorted((STACK / "prometheus" / "rules").glob("*.yml"))
VARIABLES = {"$__rate_interval": "4m", "$__range": "1h", "$job": ".*", "$model": ".*"}


def filled_in(expression):
    """The expression as Grafana sends it, with nothing chosen."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def dashboard_queries():
    """Every query of every dashboard, as (where, expression)."""
    return [
        (f"{path.stem}: {panel['title']}", filled_in(target["expr"]))
        for path in DASHBOARDS
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
        for target in panel.get("targets", ())
        if "expr" in target
    ]


def rules():
    """Every rule, as Prometheus has them in its files."""
    return [
        rule
        for path in RULES
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    ]


def asked_for(expression):
    """Return the labels an expression wants of each metric: those it selects by, and those it groups or joins by."""
    found = {}
    _collect(promql.parse(expression), frozenset(), found)
    return found


def _collect(node, labels, found):
    """Add what *node* asks for; *labels* are those that the expressions around it need of it."""
    if isinstance(node, promql.AggregateExpr):
        if node.modifier is not None and "by" in str(node.modifier.type).lower():
            labels = frozenset(node.modifier.labels)
        _collect(node.expr, labels, found)
    elif isinstance(node, promql.BinaryExpr):
        matching = node.modifier.matching if node.modifier is not None else None
        joined = labels | frozenset(matching.labels) if matching is not None else labels
        _collect(node.lhs, joined, found)
        _collect(node.rhs, joined if matching is None else frozenset(matching.labels), found)
    elif isinstance(node, promql.Call):
        for argument in node.args:
            _collect(argument, labels, found)
    elif isinstance(node, (promql.ParenExpr, promql.SubqueryExpr, promql.UnaryExpr)):
        _collect(node.expr, labels, found)
    elif isinstance(node, promql.MatrixSelector):
        _collect(node.vector_selector, labels, found)
    elif isinstance(node, promql.VectorSelector):
        selected = {matcher.name for matcher in node.matchers.matchers}
        found.setdefault(node.name, set()).update(labels | selected)
