"""Who imports whom, read from the sources: the shape of the package, kept true.

A new module needs a row in ``OWN``; a new dependency needs one in ``FOREIGN``. A row names modules relative to the
package; a package (``telemetry``) stands for all modules in it, and these may import one another.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

NAME = "otel_llm_callback"
PACKAGE = Path(__file__).parent.parent / "src" / NAME

ANYTHING = frozenset({"*"})

OWN = {
    "__init__": ANYTHING,
    "types": set(),
    "protocol": {"types"},
    "prices": {"types"},
    "config": {"content", "prices", "types"},
    "content": {"_faults", "types"},
    "_faults": set(),
    "_sampling": set(),
    "_timers": {"_dispatch", "_faults"},
    "_dispatch": {"_faults", "content", "protocol", "types"},
    "_scope": {"_dispatch", "types"},
    "_readers": {"types"},
    "_messages": {"_readers", "content"},
    "_folds": {"_readers", "types"},
    "_responses": {"_messages", "_readers", "content", "types"},
    "_media": {"_readers", "content", "types"},
    "_jobs": {"types"},
    "_agents": {"_jobs", "_readers", "types"},
    "_operations": {"_agents", "_folds", "_media", "_messages", "_readers", "_responses", "content", "types"},
    "_exchange": {
        "_dispatch",
        "_faults",
        "_folds",
        "_headers",
        "_jobs",
        "_operations",
        "_readers",
        "_sampling",
        "content",
        "prices",
        "types",
    },
    "_headers": {"types"},
    "_background": {"_dispatch", "_exchange", "_faults", "_timers", "config", "protocol", "types"},
    "_registry": {
        "_background",
        "_dispatch",
        "_scope",
        "callbacks",
        "config",
        "content",
        "prices",
        "protocol",
        "telemetry",
        "types",
    },
    "_status": {"_background", "_client", "_faults", "_operations", "instrumentor"},
    "_observe": {
        "_dispatch",
        "_exchange",
        "_faults",
        "_operations",
        "_readers",
        "_registry",
        "_sampling",
        "_scope",
        "instrumentor",
        "types",
    },
    "_client": {
        "_background",
        "_dispatch",
        "_faults",
        "_openai",
        "_registry",
        "_scope",
        "config",
        "instrumentor",
        "telemetry",
    },
    "_others": set(),
    "_doctor": ANYTHING,
    "_version": set(),
    "_streams": {"_exchange"},
    "_providers": set(),
    "_realtime": {"_media", "_messages", "_operations", "_readers", "_responses", "content", "types"},
    "_websockets": {
        "_exchange",
        "_faults",
        "_jobs",
        "_openai",
        "_operations",
        "_readers",
        "_realtime",
        "_sampling",
        "_scope",
        "types",
    },
    "_openai": {
        "_dispatch",
        "_exchange",
        "_faults",
        "_headers",
        "_operations",
        "_providers",
        "_sampling",
        "_scope",
        "_streams",
        "_websockets",
        "content",
        "prices",
        "types",
    },
    "telemetry": {"_faults", "_jobs", "_messages", "_operations", "_version", "config", "content", "protocol", "types"},
    "callbacks": {
        "_background",  # a webhook has a queue
        "_dispatch",  # MultiCallback guards as the dispatcher does
        "_faults",  # a sink's batch or an audit log's head that could not be written is no hook's failure
        "_timers",
        "_version",  # an audit log says what wrote it
        "content",
        "prices",
        "protocol",
        "types",
    },
    "testing": {"protocol", "types"},
    "instrumentor": ANYTHING,
    # It reads what others send: of ours only the names on the wire, and how sums and percentiles are made and told.
    "viewer": {"_version", "callbacks", "telemetry", "types"},
    "sdk": {"_background", "_exchange", "config"},
    "zero_code": {"config", "sdk"},
    "_demo": ANYTHING,
    "cli": ANYTHING,
}


@dataclass(frozen=True)
class Import:
    """One import statement, or a call of ``import_module`` with a literal name."""

    where: str
    line: int
    target: str
    level: Literal["at_top", "in_function", "for_types"]

    def __str__(self) -> str:
        return f"{self.where}:{self.line} imports {self.target} ({self.level})"

    @property
    def library(self) -> str:
        return self.target.partition(".")[0]


def covers(modules: AbstractSet[str], module: str) -> bool:
    return "*" in modules or module in modules or module.partition(".")[0] in modules


@dataclass(frozen=True)
class Allowed:
    """Which modules may import a library, and when at the earliest."""

    at_top: AbstractSet[str] = frozenset()
    in_function: AbstractSet[str] = frozenset()
    for_types: AbstractSet[str] = frozenset()

    def permits(self, found: Import) -> bool:
        so_far = {
            "at_top": self.at_top,
            "in_function": {*self.at_top, *self.in_function},
            "for_types": {*self.at_top, *self.in_function, *self.for_types},
        }
        return covers(so_far[found.level], found.where)


FOREIGN = {
    "anyio": Allowed({"viewer"}),
    "genai_prices": Allowed(in_function={"prices"}),
    "google": Allowed({"viewer"}),  # protobuf, and its Status message
    "httpx": Allowed(),
    "httpx2": Allowed(),
    "openai": Allowed({"_openai"}, in_function={"_demo", "_doctor", "cli", "testing"}),
    "opentelemetry": Allowed(
        {
            "_client",
            "_demo",
            "_doctor",
            "_status",
            "cli",
            "instrumentor",
            "sdk",
            "telemetry",
            "testing",
            "viewer",
            "zero_code",
        },
        in_function={"callbacks"},
        for_types={"callbacks"},
    ),
    "platformdirs": Allowed(in_function={"viewer"}),
    "pyarrow": Allowed(in_function={"callbacks"}),
    "prometheus_client": Allowed(in_function={"sdk"}),
    "pydantic_core": Allowed(in_function={"content"}),  # comes with openai, so it may be missing
    "rich": Allowed(in_function={"_demo", "callbacks", "cli"}),
    "sentry_sdk": Allowed(in_function={"callbacks"}),
    "starlette": Allowed({"viewer"}),
    "typing_extensions": Allowed(for_types=ANYTHING),  # no requirement of ours: missing at the lower bounds
    "uvicorn": Allowed({"viewer"}),
    "wrapt": Allowed({"_openai", "_streams", "_websockets", "instrumentor"}),
}


def find_modules() -> dict[str, Path]:
    """Dotted names relative to the package, and their files."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


MODULES = find_modules()


def row_of(module: str) -> str:
    """The row that covers *module*: its own, or that of the package it is in."""
    return module if module in OWN else module.partition(".")[0]


def walk(node: ast.AST, level: str = "at_top") -> Iterator[tuple[ast.AST, str]]:
    """Yield *node* and all below it, with when it is run."""
    yield node, level
    if level == "at_top" and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        level = "in_function"
    only_types = isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from walk(child, "for_types" if only_types and field == "body" else level)


def targets(node: ast.AST, package: list[str]) -> Iterator[str]:
    """Yield the modules *node* imports, if it is an import; *package* is where a relative name starts."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*start, *filter(None, [node.module])])
        for alias in node.names:  # `from . import types` names a module, `from .types import Usage` a name in one
            full = f"{base}.{alias.name}"
            yield full if full.partition(".")[2] in MODULES else base
    elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {"import_module", "__import__"}:
        name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
        yield f"{NAME}{name}" if name.startswith(".") else name


def read_imports(module: str) -> list[Import]:
    path = MODULES[module]
    package = [NAME, *path.relative_to(PACKAGE).parts[:-1]]
    return [
        Import(module, getattr(node, "lineno", 0), target, level)
        for node, level in walk(ast.parse(path.read_text(encoding="utf-8")))
        for target in targets(node, package)
        if target
    ]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_row_allows(module: str) -> None:
    """Dependencies point one way, and callbacks never reach back."""
    row = row_of(module)
    assert row in OWN, f"{module} has no row in OWN"
    allowed = OWN[row] | {row}
    assert [
        str(found)
        for found in read_imports(module)
        if found.library == NAME and not covers(allowed, found.target.partition(".")[2] or "__init__")
    ] == []


@pytest.mark.parametrize("module", MODULES)
def test_a_library_is_imported_only_where_it_belongs(module: str) -> None:
    """Only the row's modules know a library, and a library without a row is not imported at all."""
    assert [
        str(found)
        for found in read_imports(module)
        if found.library not in sys.stdlib_module_names | {NAME}
        and not FOREIGN.get(found.library, Allowed()).permits(found)
    ] == []


def test_the_viewer_needs_no_sdk() -> None:
    """Of OpenTelemetry it knows the messages on the wire: whoever only looks at spans need not be able to make them."""
    modules = [name for name in MODULES if row_of(name) == "viewer"]
    found = {i.target for name in modules for i in read_imports(name) if i.library == "opentelemetry"}
    assert {target for target in found if not target.startswith("opentelemetry.proto.")} == set()


def test_every_row_is_about_a_module_there_is() -> None:
    """The table does not outlive what it describes."""
    there = {row_of(module) for module in MODULES}
    assert set(OWN) - there == set()


def test_importing_us_is_light() -> None:
    """The import loads no client, no SDK and no display library, and starts no thread."""
    program = """
        import sys, threading
        before = set(sys.modules)
        import otel_llm_callback
        new = {name for name in set(sys.modules) - before}
        heavy = ("openai", "genai_prices", "httpx", "httpx2", "pyarrow", "rich", "sqlite3")
        heavy += ("opentelemetry.sdk", "opentelemetry.exporter")
        print(sorted(name for name in new if name.startswith(tuple(f"{h}." for h in heavy)) or name in heavy))
        print([thread.name for thread in threading.enumerate()])
    """
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (result.stdout.splitlines(), result.stderr) == (["[]", "['MainThread']"], "")


def test_the_rules_see_every_way_to_import() -> None:
    """The reader of sources is itself held to an example, or an import it misses would pass."""
    source = """
        import openai.types as a
        from . import types
        from .types import Usage
        from .. import b
        if TYPE_CHECKING:
            from openai import c
        else:
            import d
        def function():
            import e
            importlib.import_module("f")
            importlib.import_module(".types")
    """
    found = [
        (target, level)
        for node, level in walk(ast.parse(textwrap.dedent(source)))
        for target in targets(node, [NAME, "telemetry"])
    ]
    assert found == [
        ("openai.types", "at_top"),
        (f"{NAME}.telemetry", "at_top"),
        (f"{NAME}.telemetry.types", "at_top"),
        (NAME, "at_top"),
        ("openai", "for_types"),
        ("d", "at_top"),
        ("e", "in_function"),
        ("f", "in_function"),
        (f"{NAME}.types", "in_function"),
    ]
