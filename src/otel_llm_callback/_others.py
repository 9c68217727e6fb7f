"""Find other instrumentations of ``openai``: those installed, and those that have wrapped it already.

Only what is loaded is looked at; nothing is imported.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Final

_OURS: Final = "otel_llm_callback"
_GROUP: Final = "opentelemetry_instrumentor"
_MAX_WRAPPERS: Final = 16

# Where instrumentations take hold: the door of the client, and the methods people call.
_CLIENTS: Final = ("OpenAI", "AsyncOpenAI")
_METHODS: Final = {
    "openai._client": (_CLIENTS, ("request", "post")),
    "openai._base_client": (("SyncAPIClient", "AsyncAPIClient"), ("request", "post")),
    "openai.resources.chat.completions": (("Completions", "AsyncCompletions"), ("create",)),
    "openai.resources.responses": (("Responses", "AsyncResponses"), ("create",)),
    "openai.resources.embeddings": (("Embeddings", "AsyncEmbeddings"), ("create",)),
}


@dataclass(frozen=True, slots=True)
class Instrumentation:
    """An installed distribution that instruments ``openai``.

    Attributes:
        name: The name of its entry point, as ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`` takes it.
        distribution: The name of the distribution.
        version: Its version.
    """

    name: str
    distribution: str
    version: str


def find_installed() -> tuple[Instrumentation, ...]:
    """Return the other distributions that ``opentelemetry-instrument`` would have instrument ``openai``."""
    found = {_describe(one) for one in entry_points(group=_GROUP) if _is_other(one)}
    return tuple(sorted(found, key=lambda one: (one.distribution, one.name)))


def _is_other(entry: EntryPoint) -> bool:
    module = entry.value.partition(":")[0]
    return module.partition(".")[0] != _OURS and "openai" in f"{entry.name} {module}"


def _describe(entry: EntryPoint) -> Instrumentation:
    if entry.dist is None:
        return Instrumentation(entry.name, entry.value.partition(":")[0], "unknown")
    return Instrumentation(entry.name, entry.dist.metadata["Name"], entry.dist.version)


def find_wrappers() -> tuple[str, ...]:
    """Return the names of the packages whose wrappers are around methods of ``openai`` now, sorted."""
    names = {_package(module) for method in _methods() for module in _wrapping(method)}
    return tuple(sorted(names - {""}))


def _methods() -> Iterator[object]:
    for module_name, (owners, names) in _METHODS.items():
        known = vars(sys.modules[module_name]) if module_name in sys.modules else {}
        for owner in owners:
            if isinstance(known.get(owner), type):
                yield from (inspect.getattr_static(known[owner], name, None) for name in names)


def _wrapping(method: object) -> Iterator[str]:
    """The modules that the layers around a method come from, outermost first."""
    for _ in range(_MAX_WRAPPERS):
        if method is None:
            return
        yield _module(method)
        method = getattr(method, "__wrapped__", None)


def _module(layer: object) -> str:
    # wrapt and functools.wraps make a wrapper look like what it wraps; its code does not lie.
    wrapper = getattr(layer, "_self_wrapper", layer)
    scope = getattr(wrapper, "__globals__", None)
    return str(scope.get("__name__", "")) if isinstance(scope, dict) else type(wrapper).__module__


def _package(module: str) -> str:
    """The package a person knows by this name; empty for ``openai`` itself and for us."""
    parts = module.split(".")
    if parts[0] in ("openai", _OURS, "builtins"):
        return ""
    last = next((index for index, part in enumerate(parts) if "openai" in part), len(parts) - 1)
    return ".".join(parts[: last + 1])
