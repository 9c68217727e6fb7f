"""``otel-llm-callback doctor``: what it finds, what it says of it, and what it never shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest

import otel_llm_callback
from otel_llm_callback import cli, instrument, status, uninstrument
from otel_llm_callback._doctor import SettingFound, examine, render
from otel_llm_callback._operations import OPERATIONS
from otel_llm_callback._others import Instrumentation
from otel_llm_callback.config import CAPTURE_VARIABLE, SETTINGS

SOURCES = str(Path(otel_llm_callback.__file__).parent.parent)
ALLOWED = {setting.name: setting.allowed for setting in SETTINGS}
METHODS = tuple(
    f"{owner}.{name}"
    for owner in ("OpenAI", "AsyncOpenAI")
    for name in ("request", "_process_response", "_calculate_retry_timeout")
)
SECRET = "sk-live-51Hx"


def run(*arguments, cwd=None, **environment):
    """Run the doctor in an environment that says nothing but *environment*."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "OTEL_"))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "otel_llm_callback.cli", "doctor", *arguments],
        env={**inherited, "PYTHONPATH": SOURCES, "PYTHONUTF8": "1", **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        cwd=cwd,
    )


def covered():
    """What an instrumented process says of itself."""
    instrument(telemetry=False)
    found = status().covered
    uninstrument()
    return list(found)


def test_all_well_is_exit_code_zero_and_says_what_is_covered():
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert set(METHODS) - set(lines) == set()
    assert f"openai {openai.__version__}" in lines
    assert f"otel-llm-callback {otel_llm_callback.__version__}" in lines
    assert lines[-2:] == ["Problems", "none"]


def test_json_has_the_same_facts():
    done = run("--json", OTEL_LLM_CALLBACK_METRICS="next")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"], report["problems"]) == (0, True, [])
    assert (set(METHODS) - set(report["covered"]), report["missing"]) == (set(), [])
    assert report["operations"] == {route: row.name for route, row in OPERATIONS.items()}
    assert report["versions"]["openai"] == openai.__version__
    assert report["settings"] == [{"variable": "OTEL_LLM_CALLBACK_METRICS", "value": "next", "problem": None}]
    assert (report["tracer_provider"], report["exporters"]) == ("ProxyTracerProvider", [])


WRONG = {
    "OTEL_LLM_CALLBACK_CALLBACKS": f"nowhere:{SECRET}",
    "OTEL_LLM_CALLBACK_QUEUE_SIZE": SECRET,
    CAPTURE_VARIABLE: SECRET,
    "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN": SECRET,
    "OTEL_LLM_CALLBACK_REDACTOR": SECRET,
    "OTEL_LLM_CALLBACK_PRICES": SECRET,
    "OTEL_LLM_CALLBACK_METRICS": SECRET,
    "OTEL_LLM_CALLBACK_COLOUR": SECRET,
}
PROBLEMS = {
    "OTEL_LLM_CALLBACK_CALLBACKS": f"cannot be loaded; allowed: {ALLOWED['callbacks']}",
    "OTEL_LLM_CALLBACK_QUEUE_SIZE": "is not understood; allowed: a whole number from 2",
    CAPTURE_VARIABLE: f"is not understood and means off; allowed: {ALLOWED['capture_content']}",
    "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN": f"is not understood and ignored; allowed: {ALLOWED['exceptions']}",
    "OTEL_LLM_CALLBACK_REDACTOR": f"cannot be loaded; allowed: {ALLOWED['redactor']}",
    "OTEL_LLM_CALLBACK_PRICES": f"cannot be loaded; allowed: {ALLOWED['prices']}",
    "OTEL_LLM_CALLBACK_METRICS": "is not understood; allowed: `current`, `next`, `both`",
    "OTEL_LLM_CALLBACK_COLOUR": "is no setting; the README lists them",
}


def test_prices_are_shown_as_they_were_asked_for():
    report = examine({"OTEL_LLM_CALLBACK_PRICES": "library"})
    assert report.settings == (SettingFound("OTEL_LLM_CALLBACK_PRICES", "library"),)


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_wrong_settings_make_exit_code_one(arguments):
    """A right one beside them changes nothing, and what they say is not shown."""
    done = run(*arguments, **WRONG, OTEL_LLM_CALLBACK_CHUNK_EVENTS="3")
    assert (done.returncode, SECRET in done.stdout + done.stderr) == (1, False)


def test_wrong_settings_are_all_named():
    """Variable and allowed values, never what it said."""
    report = examine(WRONG)
    assert report.problems == tuple(f"{name}: {text}" for name, text in PROBLEMS.items())
    assert report.settings == tuple(SettingFound(name, None, text) for name, text in PROBLEMS.items())
    assert "OTEL_LLM_CALLBACK_METRICS WRONG" in render(report)
    assert SECRET not in f"{render(report)} {report}"


def test_no_secret_is_shown():
    """Keys, headers and passwords in URLs stay where they are."""
    environment = {
        "OPENAI_API_KEY": SECRET,
        "OPENAI_BASE_URL": f"https://user:{SECRET}@example.com/{SECRET}",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={SECRET}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://user:{SECRET}@collector.example:4318/{SECRET}?key={SECRET}",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://[{SECRET}",
        "OTEL_LLM_CALLBACK_PROVIDERS": f"{SECRET}=mine",
    }
    for arguments in ((), ("--json",)):
        done = run(*arguments, **environment)
        assert (done.returncode, SECRET in done.stdout + done.stderr) == (0, False)
    report = json.loads(done.stdout)
    assert report["endpoints"] == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "collector.example:4318",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "?",
    }
    assert report["settings"] == [{"variable": "OTEL_LLM_CALLBACK_PROVIDERS", "value": "1 hosts", "problem": None}]


def test_modules_beside_the_program_are_found(tmp_path):
    """A console script does not look in the working directory, a program does."""
    (tmp_path / "mine.py").write_text("class Watcher: pass\ndef hide(text): return ''\n", encoding="utf-8")
    done = run(
        "--json", cwd=tmp_path, OTEL_LLM_CALLBACK_CALLBACKS="mine:Watcher", OTEL_LLM_CALLBACK_REDACTOR="mine:hide"
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["settings"] == [
        {"variable": "OTEL_LLM_CALLBACK_CALLBACKS", "value": "mine:Watcher", "problem": None},
        {"variable": "OTEL_LLM_CALLBACK_REDACTOR", "value": "mine:hide", "problem": None},
    ]


def test_endpoint_is_shown_as_host_and_port():
    """User, password, path and query are left out; what is no address is not shown at all."""
    named = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://user:{SECRET}@one.example:4318/{SECRET}",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "two.example:4317",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"http://three.example:{SECRET}",
    }
    report = examine(named)
    assert list(report.endpoints.values()) == ["one.example:4318", "two.example:4317", "?"]
    assert SECRET not in render(report)


def test_other_instrumentation_in_this_process_is_named(tmp_path, monkeypatch):
    metadata = tmp_path / "other_openai-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other-openai\nVersion: 1.2\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text("[opentelemetry_instrumentor]\nopenai = other:It\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert examine({}).others == (Instrumentation("openai", "other-openai", "1.2"),)


def test_client_that_cannot_be_patched_is_a_problem(monkeypatch):
    """Whatever a future SDK does, the doctor says it in one line, without the text of the error."""
    monkeypatch.setattr("otel_llm_callback._openai.patch", lambda _: (_ for _ in ()).throw(RuntimeError(SECRET)))
    assert examine({}).problems == ("openai cannot be observed: RuntimeError",)


def test_other_instrumentations_are_named(tmp_path):
    """An installed one of the name ``openai``, with the ways to have one span per call."""
    metadata = tmp_path / "other_openai-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other-openai\nVersion: 1.2\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text("[opentelemetry_instrumentor]\nopenai = other:It\n", encoding="utf-8")
    path = os.pathsep.join((SOURCES, str(tmp_path)))
    done = run("--json", PYTHONPATH=path)
    report = json.loads(done.stdout)
    assert (done.returncode, report["wrappers"]) == (0, [])
    assert report["others"] == [{"name": "openai", "distribution": "other-openai", "version": "1.2"}]
    notice = (
        "other-openai instruments openai too, so calls may have two spans; OTEL_LLM_CALLBACK_TELEMETRY=false or "
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=openai leaves one"
    )
    assert report["notices"][0] == notice
    quiet = run("--json", PYTHONPATH=path, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="openai")
    assert notice not in json.loads(quiet.stdout)["notices"]


def test_being_switched_off_is_noticed():
    report = examine({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "redis, otel_llm_callback", "OTEL_SDK_DISABLED": "true"})
    assert report.notices[:2] == (
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS switches this instrumentation off",
        "OTEL_SDK_DISABLED switches telemetry off",
    )


def test_without_openai_it_says_so(monkeypatch):
    """The one thing that cannot be done without."""
    monkeypatch.setattr("otel_llm_callback._doctor.OPENAI_REQUIREMENT", "openai >= 999")
    report = examine({})
    assert (report.covered, len(report.problems)) == ((), 1)
    assert report.problems[0].startswith("openai cannot be observed: ")
    assert "Problems\n  openai cannot be observed: " in render(report)


def test_missing_method_is_a_problem(monkeypatch):
    """An SDK that lacks one degrades alone, and the doctor says which."""
    with monkeypatch.context() as patched:
        patched.delattr("openai._base_client.BaseClient._calculate_retry_timeout")
        report = examine({})
    assert report.missing == ("OpenAI._calculate_retry_timeout", "AsyncOpenAI._calculate_retry_timeout")
    assert report.problems == tuple(f"{name} is not there to be wrapped" for name in report.missing)


def test_it_leaves_no_trace():
    """Looking patches the client for a moment only."""
    assert list(examine({}).covered) == covered()
    assert "request" not in vars(openai.OpenAI)


def test_in_an_instrumented_process_it_tells_of_that(telemetry):
    instrument(tracer_provider=telemetry.tracer_provider)
    assert examine({}).covered == status().covered
    assert "request" in vars(openai.OpenAI)


def test_settings_are_shown_as_they_are_understood():
    found = examine({"OTEL_LLM_CALLBACK_ERROR_TEXT": "Yes", "OTEL_LLM_CALLBACK_EXIT_TIMEOUT": "2"}).settings
    assert found == (
        SettingFound("OTEL_LLM_CALLBACK_ERROR_TEXT", "true"),
        SettingFound("OTEL_LLM_CALLBACK_EXIT_TIMEOUT", "2.0"),
    )


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"]])
def test_command_prints_the_report(capsys, monkeypatch, arguments):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("{" if "--json" in arguments else "Versions\n")
