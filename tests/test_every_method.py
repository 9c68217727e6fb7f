"""Every method of the installed SDK is observed, or left alone for a reason that is written down.

A new release of openai with a method that nobody has decided about fails here and names the method. The sources are
read, as nothing else tells which requests a method makes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from left_alone import LEFT_ALONE, SESSIONS_LEFT_ALONE

from otel_llm_callback._operations import OPERATIONS, find_operation
from otel_llm_callback._websockets import _MODULES

RESOURCES = Path(openai.__file__).parent / "resources"
VERBS = {
    "_delete": "DELETE",
    "_get": "GET",
    "_get_api_list": "GET",
    "_patch": "PATCH",
    "_post": "POST",
    "_put": "PUT",
}


def requests_of(source: str) -> Iterator[tuple[str, str]]:
    """Route and method of each request that a module of the SDK makes, as ``POST /threads/{}/runs``."""
    for owner in ast.parse(source).body:
        if not isinstance(owner, ast.ClassDef):
            continue
        for method in owner.body:
            if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for call in ast.walk(method):
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in VERBS:
                        yield route_of(call), f"{owner.name}.{method.name}"


def route_of(call: ast.Call) -> str:
    asked = next((ast.literal_eval(given.value) for given in call.keywords if given.arg == "method"), None)
    return f"{(asked or VERBS[call.func.attr]).upper()} {path_of(call.args[0])}"


def path_of(node: ast.expr) -> str:
    """The path, with ``{}`` for what is put into it and without a query."""
    if isinstance(node, ast.Call):  # path_template("/a/{b}", b=b)
        return path_of(node.args[0])
    if isinstance(node, ast.JoinedStr):
        pieces = [piece.value if isinstance(piece, ast.Constant) else "{}" for piece in node.values]
        return path_of(ast.Constant("".join(pieces)))
    assert isinstance(node, ast.Constant), f"a path that is made in a new way: {ast.unparse(node)}"
    return without_names(node.value).partition("?")[0]


def without_names(route: str) -> str:
    return re.sub(r"\{\w*\}", "{}", route)


MADE = {
    route: f"{path.relative_to(RESOURCES)}: {method}"
    for path in sorted(RESOURCES.rglob("*.py"))
    for route, method in requests_of(path.read_text("utf-8"))
}
ROWS = {without_names(route) for route in OPERATIONS}
REASONS = {route: reason for reason, routes in LEFT_ALONE.items() for route in routes}


def is_left_alone(route: str) -> bool:
    """Deleting runs no model; of the rest each route, or the family it begins with, has its reason."""
    return route.startswith("DELETE ") or any(
        route == known or (known.endswith("/*") and route.partition(" ")[2].startswith(known[:-1])) for known in REASONS
    )


def test_the_sources_are_understood():
    """The routes that everybody knows are among those found."""
    assert {"POST /chat/completions", "POST /responses", "GET /responses/{}", "POST /embeddings", "GET /files"} <= set(
        MADE
    )


@pytest.mark.parametrize("route", sorted(MADE), ids=lambda route: route.replace("/", "·"))
def test_each_method_is_observed_or_left_alone_for_a_reason(route):
    """If this fails after an update of openai: does the method run a model?

    Then it needs a row in ``_operations.py`` and a scenario; else add its route to ``left_alone.py``.
    """
    assert (route in ROWS) != is_left_alone(route), f"openai {openai.__version__}: nobody has decided on {MADE[route]}"


def test_no_route_has_two_reasons():
    """Each stands in one list only, and none of them has a row."""
    listed = [route for routes in LEFT_ALONE.values() for route in routes]
    assert sorted(listed) == sorted(set(listed))
    assert [route for route in listed if route in ROWS] == []


@pytest.mark.parametrize("route", list(OPERATIONS))
def test_each_row_is_found_by_the_path_of_a_call(route):
    """With any ids, and with a query behind it."""
    method, path = re.sub(r"\{\w+\}", "an-id", route).split(" ")
    for url in (path, f"{path}?beta=true", path.removeprefix("/")):
        found = find_operation(method, url)
        assert found is not None
        assert found[0] is OPERATIONS[route]


CONNECTS = {
    ".".join(("openai", "resources", *path.relative_to(RESOURCES).with_suffix("").parts))
    for path in RESOURCES.rglob("*.py")
    if "    def connect(" in path.read_text("utf-8")
}


def test_each_websocket_is_observed_or_left_alone_for_a_reason():
    """If this fails after an update of openai: the module needs a row in ``_websockets.py``."""
    observed = {module for module, _ in _MODULES}
    assert sorted(CONNECTS - observed - set(SESSIONS_LEFT_ALONE)) == [], f"openai {openai.__version__}"
