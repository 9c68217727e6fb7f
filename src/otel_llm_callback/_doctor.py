"""Examine an installation: what is covered and what is not, and which settings are wrong.

The report names variables, versions and classes. It never shows the value of a variable that is not understood, and of
an endpoint only host and port.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final
from urllib.parse import urlsplit

from opentelemetry import metrics, trace
from opentelemetry.instrumentation.dependencies import get_dependency_conflicts

from ._dispatch import Dispatcher
from ._operations import OPERATIONS
from ._others import Instrumentation, find_installed, find_wrappers
from ._status import exporters_of, status
from ._version import __version__
from .config import _FUNCTIONS, NULLABLE, PREFIX, SETTINGS, Setting, load_object, unknown_variables
from .instrumentor import OPENAI_REQUIREMENT

_DISTRIBUTIONS: Final = (
    "openai",
    "opentelemetry-api",
    "opentelemetry-sdk",
    "opentelemetry-instrumentation",
    "opentelemetry-semantic-conventions",
    "opentelemetry-exporter-otlp",
    "wrapt",
)
_DISABLED: Final = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
_ENDPOINTS: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)


@dataclass(frozen=True, slots=True)
class SettingFound:
    """A setting that stands in the environment.

    Attributes:
        variable: Its name.
        value: What it says, None if it is wrong.
        problem: What is wrong with it.
    """

    variable: str
    value: str | None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found.

    Attributes:
        problems: What is not covered or wrong; empty if all is well.
        notices: What one should know and may well be meant.
        versions: Distribution to version, None if it is not installed.
        covered: SDK methods that are wrapped, or would be.
        missing: SDK methods that this version lacks.
        operations: API method to operation name.
        tracer_provider: Class of the global tracer provider.
        meter_provider: Class of the global meter provider.
        exporters: Classes of the exporters behind them, as far as they can be seen.
        endpoints: Variable to host and port.
        settings: Those that stand in the environment.
        others: Other instrumentations of ``openai`` that are installed.
        wrappers: Packages whose wrappers are around it now.
    """

    problems: tuple[str, ...]
    notices: tuple[str, ...]
    versions: Mapping[str, str | None]
    covered: tuple[str, ...]
    missing: tuple[str, ...]
    operations: Mapping[str, str]
    tracer_provider: str
    meter_provider: str
    exporters: tuple[str, ...]
    endpoints: Mapping[str, str]
    settings: tuple[SettingFound, ...]
    others: tuple[Instrumentation, ...]
    wrappers: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Return it as what JSON can say, with ``ok`` in front."""
        return {"ok": not self.problems, **asdict(self)}


def examine(environment: Mapping[str, str] | None = None) -> Report:
    """Look at this process and its environment; ``openai`` is patched for a moment if it is not yet.

    Args:
        environment: None for that of the process.
    """
    environment = os.environ if environment is None else environment
    covered, missing, troubles = _coverage()
    settings = tuple(_settings(environment))
    providers = (trace.get_tracer_provider(), metrics.get_meter_provider())
    others, wrappers = find_installed(), find_wrappers()
    wrong = [f"{one.variable}: {one.problem}" for one in settings if one.problem is not None]
    return Report(
        problems=(*troubles, *(f"{name} is not there to be wrapped" for name in missing), *wrong),
        notices=tuple(_notices(environment, others, wrappers)),
        versions=_versions(),
        covered=covered,
        missing=missing,
        operations={route: row.name for route, row in OPERATIONS.items()},
        tracer_provider=type(providers[0]).__name__,
        meter_provider=type(providers[1]).__name__,
        exporters=tuple(name for provider in providers for name in exporters_of(provider)),
        endpoints={name: _host(environment[name]) for name in _ENDPOINTS if environment.get(name)},
        settings=settings,
        others=others,
        wrappers=wrappers,
    )


def _coverage() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Covered names, missing names, and what keeps ``openai`` from being observed at all."""
    conflict = get_dependency_conflicts([OPENAI_REQUIREMENT])
    if conflict is not None:
        return (), (), (f"openai cannot be observed: {conflict}",)
    now = status()
    if now.covered:
        return now.covered, now.missing, ()
    try:
        from . import _openai

        patch = _openai.patch(_openai.Seam(Dispatcher(()), lambda: True))
        patch.undo()
    except Exception as error:  # noqa: BLE001 - whatever this version of the SDK does is the finding
        return (), (), (f"openai cannot be observed: {type(error).__name__}",)
    return patch.covered, patch.missing, ()


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"otel-llm-callback": __version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _settings(environment: Mapping[str, str]) -> Iterator[SettingFound]:
    for setting in SETTINGS:
        if text := environment.get(setting.variable, "").strip():
            yield _setting(setting, text)
    for name in unknown_variables(environment):
        yield SettingFound(name, None, "is no setting; the README lists them")


def _setting(setting: Setting, text: str) -> SettingFound:
    try:
        if setting.name in _FUNCTIONS:
            setting.check(_load(text))
            return SettingFound(setting.variable, text)
        if setting.name == "prices":
            with _working_directory():
                setting.check(setting.parse(text))
            return SettingFound(setting.variable, text)
        value = setting.check(setting.parse(text))
        if setting.name == "callbacks":
            for reference in value:
                _load(reference)
            return SettingFound(setting.variable, ", ".join(value))
    except ValueError:
        return SettingFound(setting.variable, None, f"{_trouble(setting)}; allowed: {setting.allowed}")
    if setting.name == "providers":
        return SettingFound(setting.variable, f"{len(value)} hosts")
    return SettingFound(setting.variable, str(value).lower() if isinstance(value, bool) else str(value))


def _trouble(setting: Setting) -> str:
    if setting.name in ("callbacks", *NULLABLE):
        return "cannot be loaded"
    if setting.name == "capture_content":
        return "is not understood and means off"
    return "is not understood" if setting.variable.startswith(PREFIX) else "is not understood and ignored"


def _load(reference: str) -> object:
    with _working_directory():
        return load_object(reference)


@contextmanager
def _working_directory() -> Iterator[None]:
    """Let modules beside the program be found, as they are when it is run; a console script does not see them."""
    here = os.getcwd()  # noqa: PTH109 - sys.path takes text
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _host(url: str) -> str:
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        port = parts.port
    except ValueError:
        return "?"
    return f"{parts.hostname or '?'}:{port}" if port else parts.hostname or "?"


def _notices(
    environment: Mapping[str, str], others: tuple[Instrumentation, ...], wrappers: tuple[str, ...]
) -> Iterator[str]:
    disabled = {name.strip() for name in environment.get(_DISABLED, "").split(",")}
    if disabled & {"otel_llm_callback", "*"}:
        yield f"{_DISABLED} switches this instrumentation off"
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield "OTEL_SDK_DISABLED switches telemetry off"
    for other in others:
        if not disabled & {other.name, "*"}:
            yield (
                f"{other.distribution} instruments openai too, so calls may have two spans; "
                f"{PREFIX}TELEMETRY=false or {_DISABLED}={other.name} leaves one"
            )
    for name in wrappers:
        yield f"{name} has wrapped openai in this process"
    if _is_unset(trace.get_tracer_provider()):
        yield "no SDK is set up in this process; 'opentelemetry-instrument otel-llm-callback doctor' looks at yours"


def _is_unset(provider: object) -> bool:
    return type(provider).__module__.startswith("opentelemetry.trace")


def render(report: Report) -> str:
    """Return the report for a person to read."""
    providers = f"{report.tracer_provider}, {report.meter_provider}"
    names = sorted(set(report.operations.values()))
    sections = {
        "Versions": [f"{name} {known or 'not installed'}" for name, known in report.versions.items()],
        "Covered": [*report.covered, *(f"{name} MISSING" for name in report.missing)] or ["nothing"],
        "Operations": [f"{len(report.operations)} API methods: {', '.join(names)}"],
        "Telemetry": [
            f"providers {providers}",
            f"exporters {', '.join(report.exporters) or 'none'}",
            *(f"{variable} {host}" for variable, host in report.endpoints.items()),
        ],
        "Settings in the environment": [_setting_line(one) for one in report.settings] or ["none; all are as preset"],
        "Other instrumentations of openai": [f"{one.distribution} {one.version}" for one in report.others] or ["none"],
        "Notices": list(report.notices),
        "Problems": list(report.problems) or ["none"],
    }
    blocks = [f"{title}\n" + "\n".join(f"  {line}" for line in lines) for title, lines in sections.items() if lines]
    return "\n".join(blocks)


def _setting_line(found: SettingFound) -> str:
    return f"{found.variable} WRONG" if found.problem is not None else f"{found.variable} = {found.value}"
