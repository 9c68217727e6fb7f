"""What is published: the wheel and the sdist, and the wheel in an environment that has nothing else."""

from __future__ import annotations

import email
import email.message
import json
import os
import subprocess
import sys
import tarfile
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "otel_llm_callback"

pytestmark = pytest.mark.packaging


def run(*command: str | Path, cwd: Path) -> str:
    """Return what *command* printed; fail with everything it said."""
    # The checkout must not be importable, or the wheel would not be what is tried.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OTEL_", "COVERAGE"))
    }
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist and the wheel made from it, so that the sdist is known to be whole."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT, cwd=directory)
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def metadata(files: dict[str, bytes]) -> email.message.Message:
    (text,) = (content for name, content in files.items() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(text)


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and what it requires."""
    directory = tmp_path_factory.mktemp("empty")
    venv.create(directory, symlinks=os.name != "nt")
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", wheel, cwd=directory)
    return python


def test_wheel_holds_the_package_and_nothing_else(files: dict[str, bytes]) -> None:
    """Every source file and ``py.typed`` is in it; tests and project files are not."""
    info = next(name.partition("/")[0] for name in files if ".dist-info/" in name)
    sources = {
        path.relative_to(SOURCE.parent).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in files if not name.startswith(f"{info}/")} == sources
    assert "otel_llm_callback/py.typed" in files
    assert files[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    theirs = "src/otel_llm_callback/viewer/static/uPlot.LICENSE.txt"  # of the chart library, which is in the wheel
    assert files[f"{info}/licenses/{theirs}"] == (ROOT / theirs).read_bytes()


def test_sdist_can_be_tested(built: Path) -> None:
    """The tests, the licence and the changelog travel with the sources."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "noxfile.py", "tests/packaging/test_wheel.py"} <= names


def test_metadata_is_what_the_index_shows(metadata: email.message.Message) -> None:
    """Licence, Python range and readme are there, and no requirement has an upper bound."""
    assert metadata["License-Expression"] == "Apache-2.0 AND MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    extras = ["all", "console", "cost", "instruments", "otlp", "parquet", "prometheus", "sentry", "viewer"]
    assert metadata.get_all("Provides-Extra") == extras
    requirements = metadata.get_all("Requires-Dist", [])
    assert [line for line in requirements if any(sign in line.partition(";")[0] for sign in ("<", "==", "~="))] == []


def test_wheel_works_alone(python: Path, tmp_path: Path) -> None:
    """Without ``openai`` and without the SDK, switching on and off does no harm."""
    program = """
        import importlib.util
        for name in ("openai", "opentelemetry.sdk", "rich", "pytest"):
            try:
                found = importlib.util.find_spec(name)
            except ModuleNotFoundError:
                found = None
            assert found is None, name
        import otel_llm_callback as o
        o.instrument()
        o.uninstrument()
        print("done")
    """
    assert run(python, "-c", textwrap.dedent(program), cwd=tmp_path) == "done\n"


def test_entry_points_load(python: Path, tmp_path: Path) -> None:
    """``opentelemetry-instrument`` finds us under a name no other package has."""
    program = """
        import importlib.metadata, json
        found = {}
        for entry_point in importlib.metadata.distribution("otel-llm-callback").entry_points:
            assert callable(entry_point.load()), entry_point
            found[entry_point.group] = [entry_point.name, entry_point.value]
        print(json.dumps(found))
    """
    assert json.loads(run(python, "-c", textwrap.dedent(program), cwd=tmp_path)) == {
        "console_scripts": ["otel-llm-callback", "otel_llm_callback.cli:main"],
        "opentelemetry_instrumentor": ["otel_llm_callback", "otel_llm_callback.instrumentor:OpenAIInstrumentor"],
        "opentelemetry_pre_instrument": ["otel_llm_callback", "otel_llm_callback.zero_code:ensure_sdk"],
    }


def test_zero_code_start_runs_the_program(python: Path, tmp_path: Path) -> None:
    """A program under ``opentelemetry-instrument`` runs to its end where neither client nor SDK is installed."""
    output = run(python.parent / "opentelemetry-instrument", python, "-c", "print('ran')", cwd=tmp_path)
    assert output == "ran\n"


def test_command_explains_itself(python: Path, tmp_path: Path) -> None:
    """The command is installed and needs no extra to say what it can do."""
    assert "demo" in run(python.parent / "otel-llm-callback", "--help", cwd=tmp_path)


def test_version_is_that_of_the_wheel(python: Path, wheel: Path, tmp_path: Path) -> None:
    """One version, in one place."""
    version = run(python, "-c", "import otel_llm_callback as o; print(o.__version__)", cwd=tmp_path).strip()
    assert wheel.name.split("-")[1] == version
