"""Settings: built once, from arguments and environment, and frozen.

One table says what there is; the README's table is checked against it.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, TypeAlias, get_args

from .content import DEFAULT_LIMIT, CaptureMode, Estimator, Redactor
from .prices import PriceSource, price_source
from .types import Content, Delivery, Overflow

logger: Final = logging.getLogger("otel_llm_callback")

MetricFamily: TypeAlias = Literal["current", "next", "both"]
ExceptionSignal: TypeAlias = Literal["span", "logs", "both"]
ChunkTiming: TypeAlias = Literal["bounded", "all", "off"]

MAX_CHUNK_EVENTS: Final = 64
"""Span events for chunks at most; the SDK drops everything beyond 128 events."""

PREFIX: Final = "OTEL_LLM_CALLBACK_"
CAPTURE_VARIABLE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
EMIT_EVENT_VARIABLE: Final = "OTEL_INSTRUMENTATION_GENAI_EMIT_EVENT"
_LIMIT_VARIABLES: Final = ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to observe; every field is an argument of ``instrument()`` and, but for providers, a variable.

    Attributes:
        telemetry: Make spans and metrics; off leaves only callbacks.
        callbacks: Further callbacks; of a ``module:object`` that is a class or function, what it returns.
        delivery: How callbacks are told that were not registered with a delivery of their own.
        overflow: What gives way when a callback's queue is full.
        queue_size: Events one callback's queue holds.
        callback_content: The most content any callback is given, whatever it declares.
        capture_content: Where message content goes in telemetry.
        emit_event: Write the convention's log event; None for: if ``capture_content`` names events.
        exceptions: Where exceptions are recorded: as span events, as log events, or as both.
        error_text: Show exception messages in telemetry; they may quote prompts.
        tool_details: Show description and parameters of tools too where tool definitions are shown.
        content_limit: Characters of one content attribute.
        redactor: Applied to every text that may be content; fails closed.
        include_usage: Have chat and completion streams carry usage; the extra chunk stays hidden from the caller.
        usage_estimator: Makes usage up, marked ``estimated``, of model, request and answer, where none was reported.
        prices: What calls cost: on spans, on the metric ``gen_ai.usage.cost``, in ``ResponseMetadata.cost``.
        metrics: Which metric names.
        chunk_timing: Which waits between chunks go on the metric.
        chunk_events: How many chunks of a stream become span events.
        providers: Host or parent domain to ``gen_ai.provider.name``; wins over the built-in table.
        exit_timeout: Seconds the exit of the program waits for callbacks.
        configure: Set the SDK up under ``opentelemetry-instrument`` if nothing else does.
        tracer_provider: Instead of the global one.
        meter_provider: Instead of the global one.
        logger_provider: Instead of the global one.
    """

    telemetry: bool = True
    callbacks: tuple[Any, ...] = ()
    delivery: Delivery = "queued"
    overflow: Overflow = "drop_chunks"
    queue_size: int = 2048
    callback_content: Content = "full"
    capture_content: CaptureMode = "no_content"
    emit_event: bool | None = None
    exceptions: ExceptionSignal = "span"
    error_text: bool = False
    tool_details: bool = False
    content_limit: int = DEFAULT_LIMIT
    redactor: Redactor | None = None
    include_usage: bool = False
    usage_estimator: Estimator | None = None
    prices: PriceSource | None = None
    metrics: MetricFamily = "current"
    chunk_timing: ChunkTiming = "bounded"
    chunk_events: int = 0
    providers: Mapping[str, str] = field(default_factory=dict)
    exit_timeout: float = 3.0
    configure: bool = True
    tracer_provider: Any = None
    meter_provider: Any = None
    logger_provider: Any = None


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table.

    Attributes:
        name: The argument.
        variable: The environment variable.
        allowed: What may be given, for people.
        check: Takes an argument and returns the value to use; raises ValueError.
        parse: Takes the variable's text and returns what ``check`` takes; raises ValueError.
    """

    name: str
    variable: str
    allowed: str
    check: Callable[[Any], Any]
    parse: Callable[[str], Any] = str


def _choice(*allowed: str) -> Callable[[Any], Any]:
    def check(value: Any) -> str:
        if isinstance(value, str) and value.strip().lower() in allowed:
            return value.strip().lower()
        raise ValueError

    return check


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError


def _parse_truth(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if text.strip().lower() in known:
        return known[text.strip().lower()]
    raise ValueError


def _integer(low: int, high: int | None = None) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            raise ValueError
        return value

    return check


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 3600:  # noqa: PLR2004
        raise ValueError
    return float(value)


def _function(value: Any) -> Any:
    if value is None or callable(value):
        return value
    raise ValueError


def _prices(value: Any) -> PriceSource | None:
    try:
        return price_source(value, load_object)
    except ImportError as error:
        raise ValueError(str(error)) from error


def _hosts(value: Any) -> Mapping[str, str]:
    if isinstance(value, Mapping) and all(
        isinstance(k, str) and isinstance(v, str) and k and v for k, v in value.items()
    ):
        return {host.lower(): provider for host, provider in value.items()}
    raise ValueError


def _parse_hosts(text: str) -> Mapping[str, str]:
    pairs = [item.partition("=") for item in text.split(",") if item.strip()]
    if not all(sign for _, sign, _ in pairs):
        raise ValueError
    return {host.strip(): provider.strip() for host, _, provider in pairs}


def _callbacks(value: Any) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple)) and all(not isinstance(item, str) or ":" in item for item in value):
        return tuple(value)
    raise ValueError


def _parse_exceptions(text: str) -> str:
    known = {"logs": "logs", "logs/dup": "both"}
    if text.strip().lower() in known:
        return known[text.strip().lower()]
    raise ValueError


def _names(allowed: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in allowed)


_OVERFLOWS: Final = get_args(Overflow)
_FAMILIES: Final = get_args(MetricFamily)
_TIMINGS: Final = get_args(ChunkTiming)
_CAPTURES: Final = get_args(CaptureMode)
_TRUTH: Final = "`true`, `false`"

SETTINGS: Final[tuple[Setting, ...]] = (
    Setting("telemetry", PREFIX + "TELEMETRY", _TRUTH, _truth, _parse_truth),
    Setting(
        "callbacks",
        PREFIX + "CALLBACKS",
        "objects; in the environment `module:object`, separated by commas",
        _callbacks,
        lambda text: [item.strip() for item in text.split(",") if item.strip()],
    ),
    Setting("delivery", PREFIX + "DELIVERY", "`queued`, `inline`", _choice("queued", "inline")),
    Setting("overflow", PREFIX + "OVERFLOW", _names(_OVERFLOWS), _choice(*_OVERFLOWS)),
    Setting("queue_size", PREFIX + "QUEUE_SIZE", "a whole number from 2", _integer(2), int),
    Setting(
        "callback_content",
        PREFIX + "CALLBACK_CONTENT",
        "`full`, `redacted`, `none`",
        _choice("full", "redacted", "none"),
    ),
    Setting("capture_content", CAPTURE_VARIABLE, _names(_CAPTURES), _choice(*_CAPTURES)),
    Setting("emit_event", EMIT_EVENT_VARIABLE, _TRUTH, _truth, _parse_truth),
    Setting(
        "exceptions",
        "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN",
        "`span`, `logs`, `both`; in the environment `logs`, `logs/dup`",
        _choice("span", "logs", "both"),
        _parse_exceptions,
    ),
    Setting("error_text", PREFIX + "ERROR_TEXT", _TRUTH, _truth, _parse_truth),
    Setting("tool_details", PREFIX + "TOOL_DETAILS", _TRUTH, _truth, _parse_truth),
    Setting("content_limit", PREFIX + "CONTENT_LIMIT", "a whole number from 2", _integer(2), int),
    Setting("redactor", PREFIX + "REDACTOR", "a function; in the environment `module:object`", _function),
    Setting("include_usage", PREFIX + "INCLUDE_USAGE", _TRUTH, _truth, _parse_truth),
    Setting("usage_estimator", PREFIX + "USAGE_ESTIMATOR", "a function; in the environment `module:object`", _function),
    Setting(
        "prices",
        PREFIX + "PRICES",
        "`library`, the path of a `.json` file, `module:object`, a price source, or several of them, separated by "
        "commas in the environment",
        _prices,
        lambda text: [item.strip() for item in text.split(",") if item.strip()],
    ),
    Setting("metrics", PREFIX + "METRICS", _names(_FAMILIES), _choice(*_FAMILIES)),
    Setting("chunk_timing", PREFIX + "CHUNK_TIMING", _names(_TIMINGS), _choice(*_TIMINGS)),
    Setting(
        "chunk_events",
        PREFIX + "CHUNK_EVENTS",
        f"a whole number from 0 to {MAX_CHUNK_EVENTS}",
        _integer(0, MAX_CHUNK_EVENTS),
        int,
    ),
    Setting(
        "providers",
        PREFIX + "PROVIDERS",
        "a mapping; in the environment `host=provider`, separated by commas",
        _hosts,
        _parse_hosts,
    ),
    Setting("exit_timeout", PREFIX + "EXIT_TIMEOUT", "seconds from 0 to 3600", _seconds, float),
    Setting("configure", PREFIX + "CONFIGURE", _TRUTH, _truth, _parse_truth),
)

_BY_NAME: Final = {setting.name: setting for setting in SETTINGS}
_FUNCTIONS: Final = ("redactor", "usage_estimator")
NULLABLE: Final = (*_FUNCTIONS, "prices")
"""What can be taken back by None, although the environment has it; what is wrong with it needs saying."""
_PROVIDER_NAMES: Final = ("tracer_provider", "meter_provider", "logger_provider")
ARGUMENTS: Final = (*_BY_NAME, *_PROVIDER_NAMES)


def load_settings(arguments: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Return the settings: arguments win over the environment, the environment over defaults.

    With one exception: where the environment says ``no_content``, no argument turns content on.

    Raises:
        TypeError: An argument is not a setting; the message names those that are.
        ValueError: A value is not allowed; the message names the argument or variable and what is.
    """
    environment = os.environ if environment is None else environment
    arguments = arguments or {}
    if unknown := sorted(set(arguments) - set(ARGUMENTS)):
        raise TypeError(f"unknown setting {', '.join(unknown)}; the settings are {', '.join(sorted(ARGUMENTS))}")
    values = _from_environment(environment)
    hard_off = is_hard_off(environment)
    for name, value in arguments.items():
        if value is not None or name in NULLABLE:
            values[name] = checked(name, value)
    if hard_off:
        values.update(capture_content="no_content", error_text=False)
    values["content_limit"] = min([values.get("content_limit", DEFAULT_LIMIT), *_sdk_limits(environment)])
    return Settings(**values)


def is_hard_off(environment: Mapping[str, str] | None = None) -> bool:
    """True if the environment forbids content, whatever the code says; so does a value that is not understood."""
    environment = os.environ if environment is None else environment
    mode = environment.get(CAPTURE_VARIABLE, "").strip().lower()
    return mode == "no_content" or (mode != "" and mode not in _CAPTURES)


def checked(name: str, value: Any, *, shown_as: str | None = None) -> Any:
    """Return *value* as the setting *name* holds it.

    Raises:
        ValueError: It is not allowed; the message names the argument, *shown_as* if that is given, and what is.
    """
    if name in _PROVIDER_NAMES:
        return value
    setting = _BY_NAME[name]
    try:
        return setting.check(value)
    except ValueError as error:
        given = f"{shown_as or name}={_shown(name, value)}"
        detail = f"; {error}" if name == "prices" and str(error) else ""
        raise ValueError(f"{given} is not allowed; allowed: {setting.allowed}{detail}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        text = environment.get(setting.variable, "").strip()
        if not text:
            continue
        try:
            value = load_object(text) if setting.name in _FUNCTIONS else setting.parse(text)
            values[setting.name] = setting.check(value)
        except ValueError as error:
            if setting.variable.startswith(PREFIX):
                detail = f"; {error}" if setting.name in NULLABLE and str(error) else ""
                raise ValueError(
                    f"{setting.variable}={text!r} is not allowed; allowed: {setting.allowed}{detail}"
                ) from None
            # Shared with other packages, some of which take other values: off is the only safe reading.
            is_capture = setting.name == "capture_content"
            logger.warning(
                "%s=%r is not understood and %s here; allowed: %s",
                setting.variable,
                text,
                "means off" if is_capture else "ignored",
                setting.allowed,
            )
            if is_capture:
                values[setting.name] = "no_content"
    if unknown := unknown_variables(environment):
        known = sorted(setting.variable for setting in SETTINGS)
        logger.warning("unknown variable %s; known are %s", ", ".join(unknown), ", ".join(known))
    return values


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the variables that look like ours and are none, sorted."""
    known = {setting.variable for setting in SETTINGS} | _OTHER_VARIABLES
    ours = (name for name in environment if name.startswith(PREFIX) and not name.startswith(_TEST_PREFIX))
    return sorted(name for name in ours if name not in known)


_OTHER_VARIABLES: Final = {PREFIX + "JAEGER_URL"}
_TEST_PREFIX: Final = PREFIX + "TEST_"  # where our own tests find servers


def _sdk_limits(environment: Mapping[str, str]) -> list[int]:
    # Cutting to the SDK's own limit would leave half a JSON text.
    texts = [environment.get(name, "").strip() for name in _LIMIT_VARIABLES]
    return [int(text) for text in texts if text.isdecimal()]


def _shown(name: str, value: Any) -> str:
    is_plain = name not in NULLABLE or (name == "prices" and isinstance(value, str))
    return repr(value) if is_plain else f"<{type(value).__name__}>"


def load_object(reference: str) -> Any:
    """Return the object that ``module:object`` names.

    Raises:
        ValueError: The text is not of that form, the module cannot be imported or has no such object.
    """
    module_name, colon, path = reference.partition(":")
    if not colon or not module_name or not path:
        raise ValueError(f"{reference!r} is not of the form module:object")
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{reference!r} cannot be loaded: {error}") from None
    except Exception as error:  # a module may raise anything while it is imported
        raise ValueError(f"{reference!r} cannot be loaded: {type(error).__name__}") from error
    return found


def defaults() -> dict[str, Any]:
    """Return the default of each setting that is in the table."""
    blank = Settings()
    return {f.name: getattr(blank, f.name) for f in fields(Settings) if f.name in _BY_NAME}
