"""Settings: what may be given, by argument and by variable, and what is said of anything else."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import fields
from pathlib import Path

import pytest
from readme_table import settings_table

import otel_llm_callback
from otel_llm_callback import config
from otel_llm_callback.config import ARGUMENTS, SETTINGS, Settings, defaults, load_object, load_settings
from otel_llm_callback.prices import LibraryPrices, PriceChain

README = Path(__file__).parent.parent / "README.md"
PREFIX = "OTEL_LLM_CALLBACK_"
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
EMIT_EVENT = "OTEL_INSTRUMENTATION_GENAI_EMIT_EVENT"
EXCEPTIONS = "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN"

BY_NAME = {setting.name: setting for setting in SETTINGS}

TRUTHS = [(True, "true", True), (True, "YES", True), (True, " on ", True), (False, "0", False), (False, "Off", False)]

# Setting: argument, text of the variable, value of both.
GOOD = {
    "telemetry": TRUTHS,
    "callbacks": [(["a:b", "c:d.e"], " a:b ,c:d.e,", ("a:b", "c:d.e")), ((), ",", ())],
    "delivery": [("inline", "INLINE", "inline"), (" Queued ", "queued", "queued")],
    "overflow": [("drop_new", "drop_new", "drop_new"), ("block", "Block", "block")],
    "queue_size": [(2, "2", 2), (10_000, " 10000 ", 10_000)],
    "callback_content": [("none", "none", "none"), ("redacted", "REDACTED", "redacted")],
    "capture_content": [
        ("span_only", "SPAN_ONLY", "span_only"),
        ("span_and_event", "span_and_event", "span_and_event"),
    ],
    "emit_event": TRUTHS,
    "exceptions": [("logs", "LOGS", "logs"), ("both", "logs/dup", "both")],
    "error_text": TRUTHS,
    "tool_details": TRUTHS,
    "content_limit": [(2, "2", 2), (1000, "1000", 1000)],
    "redactor": [(re.escape, "re:escape", re.escape), (os.path.basename, "os:path.basename", os.path.basename)],
    "include_usage": TRUTHS,
    "usage_estimator": [(re.escape, "re:escape", re.escape), (os.path.basename, "os:path.basename", os.path.basename)],
    "prices": [
        ("library", "Library", LibraryPrices()),
        ("re:escape", "re:escape", re.escape),
        (["re:escape", "library"], "re:escape, library", PriceChain((re.escape, LibraryPrices()))),
    ],
    "metrics": [("next", "next", "next"), ("BOTH", "Both", "both")],
    "chunk_timing": [("off", "off", "off"), ("all", "ALL", "all")],
    "chunk_events": [(0, "0", 0), (64, "64", 64)],
    "providers": [
        ({"LLM.example": "mine", "a.b": "c"}, " LLM.example = mine,a.b=c,", {"llm.example": "mine", "a.b": "c"})
    ],
    "exit_timeout": [(0, "0", 0.0), (2.5, "2.5", 2.5), (3600, "3600", 3600.0)],
    "configure": TRUTHS,
}

# Setting: arguments and texts that are refused.
BAD = {
    "telemetry": ([1, "true", 0.0], ["maybe", "2"]),
    "callbacks": (["a:b", ["ab"], {"a:b": 1}, 3], ["ab", "a:b,cd"]),
    "delivery": (["sync", 1, ["queued"]], ["sync"]),
    "overflow": (["drop", 1], ["drop"]),
    "queue_size": ([1, -5, 2.5, "10", True], ["1", "many", "2.5"]),
    "callback_content": (["all", False], ["all"]),
    "capture_content": (["true", True, "spans"], []),
    "emit_event": (["true", 1], []),
    "exceptions": (["logs/dup", True], []),
    "error_text": (["true", 1], ["perhaps"]),
    "tool_details": (["true", 1], ["perhaps"]),
    "content_limit": ([1, 0, "5", 3.0], ["1", "big"]),
    "redactor": (["re:escape", 3], ["re", "re:nothing", "no_such_module:f", "re:purge.nothing", "sys:version"]),
    "include_usage": (["true", 1], ["perhaps"]),
    "usage_estimator": (["re:escape", 3], ["re", "re:nothing", "no_such_module:f", "re:purge.nothing", "sys:version"]),
    "prices": (
        [3, {"m": 1}, "free", ["library", 3], "re:nothing", b"library"],
        ["free", "re:nothing", "sys:version", "no/such/file.json", "library,free"],
    ),
    "metrics": (["old", 1], ["old"]),
    "chunk_timing": (["on", True], ["on"]),
    "chunk_events": ([-1, 65, True, "1"], ["-1", "65", "x"]),
    "providers": (["a=b", {"a": 1}, {"": "b"}, {"a": ""}, [("a", "b")]], ["a", "a=b,c", "a=", "=b"]),
    "exit_timeout": ([-1, 3601, "3", True, float("nan"), float("inf")], ["-1", "3601", "soon", "nan", "inf"]),
    "configure": (["true", 1], ["perhaps"]),
}


def rows(table):
    return [pytest.param(name, *row, id=f"{name}-{number}") for name in table for number, row in enumerate(table[name])]


def changed(settings):
    """The settings that are not at their default."""
    return {
        name: getattr(settings, name) for name, value in vars_of(Settings()).items() if getattr(settings, name) != value
    }


def vars_of(settings):
    return {field.name: getattr(settings, field.name) for field in fields(settings)}


def test_the_tables_of_this_module_are_complete():
    """Every setting has good and bad values here."""
    names = [setting.name for setting in SETTINGS]
    assert (list(GOOD), list(BAD)) == (names, names)


def test_defaults():
    """With neither arguments nor variables everything is at its default, and content is off."""
    assert load_settings({}, {}) == Settings()
    assert vars_of(Settings()) == {
        "telemetry": True,
        "callbacks": (),
        "delivery": "queued",
        "overflow": "drop_chunks",
        "queue_size": 2048,
        "callback_content": "full",
        "capture_content": "no_content",
        "emit_event": None,
        "exceptions": "span",
        "error_text": False,
        "tool_details": False,
        "content_limit": 262_144,
        "redactor": None,
        "include_usage": False,
        "usage_estimator": None,
        "prices": None,
        "metrics": "current",
        "chunk_timing": "bounded",
        "chunk_events": 0,
        "providers": {},
        "exit_timeout": 3.0,
        "configure": True,
        "tracer_provider": None,
        "meter_provider": None,
        "logger_provider": None,
    }


@pytest.mark.parametrize(("name", "argument", "text", "value"), rows(GOOD))
def test_argument_and_variable_mean_the_same(name, argument, text, value):
    """What the argument does the variable does, whatever its case and the spaces around it."""
    expected = {name: value} if defaults()[name] != value else {}
    assert changed(load_settings({name: argument}, {})) == expected
    assert changed(load_settings({}, {BY_NAME[name].variable: text})) == expected


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, (arguments, _) in BAD.items() for argument in arguments], ids=str
)
def test_bad_argument_is_refused_with_what_is_allowed(name, argument):
    """The message names the argument, what was given and what may be given."""
    hidden = name in ("redactor", "usage_estimator") or (name == "prices" and not isinstance(argument, str))
    shown = f"<{type(argument).__name__}>" if hidden else repr(argument)
    with pytest.raises(ValueError, match="is not allowed") as raised:
        load_settings({name: argument}, {})
    message = f"{name}={shown} is not allowed; allowed: {BY_NAME[name].allowed}"
    detail = str(raised.value).removeprefix(message)
    assert re.fullmatch(r"; .*(no price source|cannot be loaded).*" if name == "prices" else "", detail)


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, (_, texts) in BAD.items() for text in texts], ids=str
)
def test_bad_variable_is_refused_with_what_is_allowed(name, text):
    """The message names the variable, what it holds and what it may hold."""
    setting = BY_NAME[name]
    with pytest.raises(ValueError, match="is not allowed") as raised:
        load_settings({}, {setting.variable: text})
    message = f"{setting.variable}={text!r} is not allowed; allowed: {setting.allowed}"
    assert str(raised.value).startswith(message)
    detail = str(raised.value)[len(message) :]
    details = r"(; .+ (is not of the form|cannot be loaded|is no price source|cannot be read).*)?"
    assert re.fullmatch(details if name in ("redactor", "usage_estimator", "prices") else "", detail)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("re", "'re' is not of the form module:object"),
        (":f", "':f' is not of the form module:object"),
        ("re:", "'re:' is not of the form module:object"),
        ("no_such_module:f", "'no_such_module:f' cannot be loaded: No module named 'no_such_module'"),
        ("re:nothing", "'re:nothing' cannot be loaded: module 're' has no attribute 'nothing'"),
    ],
)
def test_reference_that_leads_nowhere(reference, message):
    """A reference says which part of it is wrong."""
    with pytest.raises(ValueError, match=r"of the form|cannot be loaded") as raised:
        load_object(reference)
    assert str(raised.value) == message


def test_reference_to_an_attribute_of_an_attribute():
    """What follows the colon may have dots."""
    assert load_object("os:path.join") is os.path.join


def test_argument_wins_over_the_variable():
    """Code knows better than the environment, but for the hard off."""
    environment = {PREFIX + "METRICS": "next", PREFIX + "DELIVERY": "inline"}
    assert changed(load_settings({"metrics": "both"}, environment)) == {"metrics": "both", "delivery": "inline"}


def test_none_as_an_argument_is_not_given():
    """So a wrapper can pass its own optional arguments on; only a redactor can be taken back."""
    environment = {PREFIX + "METRICS": "next", PREFIX + "REDACTOR": "re:escape"}
    assert changed(load_settings({"metrics": None}, environment)) == {"metrics": "next", "redactor": re.escape}
    assert changed(load_settings({"redactor": None}, environment)) == {"metrics": "next"}


def test_empty_variable_is_not_given():
    """As the OpenTelemetry specification wants it."""
    assert load_settings({}, {setting.variable: "  " for setting in SETTINGS}) == Settings()


def test_unknown_argument_is_refused_with_those_that_exist():
    """A misspelt setting must not be ignored."""
    with pytest.raises(TypeError) as raised:
        load_settings({"metric": "next", "capture": True}, {})
    assert str(raised.value) == f"unknown setting capture, metric; the settings are {', '.join(sorted(ARGUMENTS))}"


def test_instrument_refuses_what_is_not_allowed():
    """Bad settings are loud at the start, and leave nothing switched on."""
    with pytest.raises(ValueError, match="metrics='old' is not allowed; allowed: `current`, `next`, `both`"):
        otel_llm_callback.instrument(metrics="old")
    with pytest.raises(TypeError, match="unknown setting metric;"):
        otel_llm_callback.instrument(metric="next")
    assert otel_llm_callback.status().instrumented is False


def test_unknown_variable_of_ours_is_warned_of(expected_logs):
    """A misspelt variable is named, with those that exist; other prefixes are none of our business."""
    assert load_settings({}, {PREFIX + "METRIC": "next", PREFIX + "JAEGER_URL": "x", "OTEL_OTHER": "1"}) == Settings()
    known = ", ".join(sorted(setting.variable for setting in SETTINGS))
    assert [(record.levelno, record.getMessage()) for record in expected_logs] == [
        (logging.WARNING, f"unknown variable {PREFIX}METRIC; known are {known}")
    ]


@pytest.mark.parametrize("text", ["true", "spans", "1"])
def test_foreign_value_of_the_shared_capture_variable_means_off(expected_logs, text):
    """Other packages understand other values; an error would break them, a guess would show content."""
    assert load_settings({"capture_content": "span_only"}, {CAPTURE: text}) == Settings()
    assert [record.getMessage() for record in expected_logs] == [
        f"{CAPTURE}={text!r} is not understood and means off here; allowed: {BY_NAME['capture_content'].allowed}"
    ]


@pytest.mark.parametrize("name", ["emit_event", "exceptions"])
def test_foreign_value_of_another_shared_variable_is_ignored(expected_logs, name):
    """An error would break the other package; nothing is at stake but an event."""
    setting = BY_NAME[name]
    assert load_settings({}, {setting.variable: "sometimes"}) == Settings()
    assert [record.getMessage() for record in expected_logs] == [
        f"{setting.variable}='sometimes' is not understood and ignored here; allowed: {setting.allowed}"
    ]


def test_callbacks_may_be_objects():
    """In code there is no need for a name."""
    callback = object()
    assert changed(load_settings({"callbacks": [callback, "a:b"]}, {})) == {"callbacks": (callback, "a:b")}


@pytest.mark.parametrize("argument", ["span_only", "event_only", "span_and_event"])
def test_hard_off_in_the_environment_beats_code(argument):
    """Whoever runs the program can rule content out."""
    arguments = {"capture_content": argument, "error_text": True}
    assert load_settings(arguments, {CAPTURE: "No_Content", PREFIX + "ERROR_TEXT": "true"}) == Settings()


def test_content_limit_is_never_above_that_of_the_sdk():
    """The smallest limit counts, wherever it is set."""
    variables = ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT")
    for variable in variables:
        assert load_settings({}, {variable: "500"}).content_limit == 500
        assert load_settings({"content_limit": 400}, {variable: "500"}).content_limit == 400
        assert load_settings({"content_limit": 600}, {variable: "500"}).content_limit == 500
        assert load_settings({}, {variable: "nonsense"}).content_limit == 262_144
    assert load_settings({}, {variables[0]: "500", variables[1]: "300"}).content_limit == 300


def test_environment_of_the_process_is_read(monkeypatch):
    """`load_settings` without an environment takes that of the process."""
    monkeypatch.setenv(PREFIX + "METRICS", "both")
    assert load_settings().metrics == "both"


def test_providers_go_through_as_they_are():
    """They have no variable and no check: whatever the SDK takes."""
    provider = object()
    settings = load_settings({"tracer_provider": provider, "meter_provider": provider, "logger_provider": provider}, {})
    assert changed(settings) == dict.fromkeys(("tracer_provider", "meter_provider", "logger_provider"), provider)


def test_settings_cannot_be_changed():
    """They are built once."""
    with pytest.raises(AttributeError):
        Settings().metrics = "next"


def test_each_setting_has_one_field_and_one_variable():
    """The table and the dataclass agree, and a variable is ours or one of the conventions."""
    names = [setting.name for setting in SETTINGS]
    assert [*names, "tracer_provider", "meter_provider", "logger_provider"] == [
        field.name for field in fields(Settings)
    ]
    shared = {"capture_content": CAPTURE, "emit_event": EMIT_EVENT, "exceptions": EXCEPTIONS}
    expected = {name: PREFIX + name.upper() for name in names} | shared
    assert {setting.name: setting.variable for setting in SETTINGS} == expected


def test_allowed_values_are_those_that_are_taken():
    """Every single value the table quotes is taken by the setting."""
    for setting in SETTINGS:
        if re.fullmatch(r"(`\w+`(, )?)+", setting.allowed):
            for text in re.findall(r"`(\w+)`", setting.allowed):
                assert str(setting.check(setting.parse(text))).lower() == text


def test_readme_has_the_table_of_settings():
    """The README's table is what `python tests/readme_table.py` prints."""
    text = README.read_text("utf-8")
    between = re.search(r"<!-- settings -->\n(.*?)\n?<!-- /settings -->", text, re.DOTALL)
    assert between is not None, "README.md has no <!-- settings --> … <!-- /settings -->"
    assert between[1].strip() == settings_table()


def test_table_of_settings_has_a_row_for_each():
    """Name, variable, allowed, default and meaning, none of them empty."""
    lines = settings_table().splitlines()
    assert lines[0] == "| Argument | Variable | Allowed | Default | What |"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[0] for row in cells] == [f"`{setting.name}`" for setting in SETTINGS]
    assert {len(row) for row in cells} == {5}
    assert all(cell for row in cells for cell in row)
    assert config.PREFIX == PREFIX
