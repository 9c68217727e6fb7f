"""Everything that must hold, on every Python and every ``openai`` we support. ``nox -l`` lists it.

``nox`` runs each Python and each release of ``openai`` at least once; ``nox -t full`` runs them all with one another.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
TEST = nox.project.dependency_groups(PROJECT, "test")
LINT = nox.project.dependency_groups(PROJECT, "lint")

OPENAI = {
    "1.66.5": "openai==1.66.5",
    "1.109.1": "openai==1.109.1",
    "2.0.1": "openai==2.0.1",
    "2.54.0": "openai==2.54.0",
    "3.0.0": "openai==3.0.0",
    "latest": "openai",
}

# Old with old and new with new, as they are met, and the newest client with the oldest Python.
PAIRS = [
    ("3.10", "1.66.5"),
    ("3.11", "1.109.1"),
    ("3.12", "2.0.1"),
    ("3.13", "2.54.0"),
    ("3.12", "3.0.0"),
    ("3.10", "latest"),
    ("3.13", "latest"),
    ("3.14", "latest"),
]


@nox.session(tags=["quick"])
def lint(session: nox.Session) -> None:
    """Check format and lint."""
    session.install(*LINT)
    session.run("ruff", "format", "--check")
    session.run("ruff", "check")


@nox.session(tags=["quick"])
def types(session: nox.Session) -> None:
    """Check the types with mypy and pyright, which may disagree."""
    session.install("--editable", ".[all]", *LINT, "pyright")
    session.run("mypy")
    session.run("pyright")


@nox.session
@nox.parametrize(("python", "openai"), PAIRS, ids=[f"{python}, {openai}" for python, openai in PAIRS])
def tests(session: nox.Session, openai: str) -> None:
    """Run the tests with one Python and one ``openai``."""
    _run_tests(session, OPENAI[openai])


@nox.session(python=PYTHONS, tags=["full"], default=False)
@nox.parametrize("openai", list(OPENAI.values()), ids=list(OPENAI))
def product(session: nox.Session, openai: str) -> None:
    """Run the tests with any Python and any ``openai``."""
    _run_tests(session, openai)


def _run_tests(session: nox.Session, openai: str) -> None:
    session.install("--upgrade", "--editable", ".[all]", openai, *TEST)  # a kept environment has last month's newest
    session.run("pytest", "-m", "not packaging", *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run the tests with the lower bound of each requirement."""
    project = PROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    constraints = Path(session.create_tmp()) / "lowest.txt"
    bounds = [line.replace(">=", "==") for group in groups for line in group if ">=" in line]
    constraints.write_text("\n".join(bounds), encoding="utf-8")
    session.install("--editable", ".[all]", *TEST, "--constraint", str(constraints))
    session.run("pytest", "-m", "not packaging", *session.posargs)


@nox.session(python=PYTHONS)
def packaging(session: nox.Session) -> None:
    """Build the package and try it where nothing else is installed."""
    session.install("--editable", ".[all]", *TEST)
    session.run("pytest", "-m", "packaging", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Show which lines and branches the tests do not reach."""
    session.install("--editable", ".[all]", *TEST)
    session.run("pytest", "-m", "not packaging", "--cov", "--cov-report", "term-missing", *session.posargs)
