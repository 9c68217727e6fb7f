"""The real programs of the stack, built before the first test that needs them."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from native import Ports, Stack, UnavailableError, obtain, running

_PROGRAMS = pytest.StashKey[object]()


def pytest_collection_finish(session):
    """Have the programs ready before any test is timed: the first build takes minutes."""
    if session.config.option.collectonly or not any(item.get_closest_marker("stack") for item in session.items):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    try:
        session.config.stash[_PROGRAMS] = obtain(lambda line: reporter.write_line(line) if reporter else None)
    except UnavailableError as error:
        session.config.stash[_PROGRAMS] = error


@pytest.fixture(scope="session")
def programs(pytestconfig):
    """Paths of otelcol, jaeger, prometheus and promtool."""
    found = pytestconfig.stash[_PROGRAMS]
    if isinstance(found, UnavailableError):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            f"no real programs: {' '.join(str(found).split())}"
        )
    return found


@pytest.fixture
def find_fault(programs, tmp_path):
    """Have a program validate files, as ``find_fault("otelcol", *files, NAME="value")``; return what it finds wrong."""

    def find(program, *files, **settings):
        done = subprocess.run(
            [programs[program], "validate", *(f"--config={file}" for file in files)],
            env={**os.environ, "COLLECTOR_QUEUE_DIRECTORY": str(tmp_path), **settings},
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        if done.returncode:
            return done.stderr or f"exit code {done.returncode}"
        return (done.stderr or None) if program == "otelcol" else None  # it warns; Jaeger says its version there

    return find


@pytest.fixture(scope="module")
def stack(programs, tmp_path_factory):
    """A stack with its own ports and empty stores, for the tests of a module."""
    with running(Stack(tmp_path_factory.mktemp("stack"), programs, Ports.free())) as stack:
        yield stack


@pytest.fixture
def new_stack(programs, tmp_path):
    """Make a stack for one test, which starts it; it is ended in any case."""
    made = []

    def make(**options):
        made.append(Stack(tmp_path / "stack", programs, Ports.free(), **options))
        return made[-1]

    yield make
    for stack in made:
        stack.stop(signal.SIGKILL)
