"""What users can import: complete, in order, documented."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

import pytest

PUBLIC_MODULES = ["otel_llm_callback", "otel_llm_callback.callbacks", "otel_llm_callback.testing"]
PROMISED = {
    "OpenAIInstrumentor",
    "OpenTelemetryCallback",
    "TelemetryCallback",
    "flush",
    "instrument",
    "instrument_client",
    "observe",
    "register",
    "session",
    "shutdown",
    "status",
    "suppress",
    "uninstrument",
    "using",
}


def in_order(names: list[str]) -> list[str]:
    """Sort the way ruff's RUF022 does: constants, then classes, then the rest."""
    return sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


@pytest.fixture(params=PUBLIC_MODULES)
def module(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def test_exported_names_are_sorted_and_unique(module: ModuleType) -> None:
    assert list(module.__all__) == in_order(sorted(set(module.__all__)))


def test_exported_names_are_complete(module: ModuleType) -> None:
    """A public name that is one of ours is in ``__all__``; a submodule need not be."""
    ours = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and str(getattr(value, "__module__", "")).startswith("otel_llm_callback")
    }
    assert ours - set(module.__all__) == set()


def test_exported_names_can_be_completed(module: ModuleType) -> None:
    """An interactive prompt offers them, whether or not they were loaded yet."""
    assert set(module.__all__) - set(dir(module)) == set()


def test_exported_names_exist_and_are_documented(module: ModuleType) -> None:
    """Each name resolves; a class or function says what it is in words of its own."""
    undocumented = []
    for name in module.__all__:
        value = getattr(module, name)
        if (inspect.isclass(value) or inspect.isroutine(value)) and not (value.__doc__ or "").strip():
            undocumented.append(name)
    assert undocumented == []


def test_promised_names_are_there() -> None:
    """Programs are written against these."""
    package = importlib.import_module("otel_llm_callback")
    assert PROMISED - set(package.__all__) == set()


def test_unknown_name_is_an_attribute_error(module: ModuleType) -> None:
    """A lazy package must not answer to anything else, or ``hasattr`` would lie."""
    assert not hasattr(module, "no_such_name")
