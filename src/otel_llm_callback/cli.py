"""The command ``otel-llm-callback``: from arguments to one function for each subcommand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_Subcommands: TypeAlias = "_SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The arguments without the program's name; None takes them from the command line.
    """
    parser = argparse.ArgumentParser(
        prog="otel-llm-callback", description="OpenTelemetry and callbacks for the openai client."
    )
    subcommands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in _SUBCOMMANDS:
        add(subcommands)
    arguments = parser.parse_args(argv)
    return int(arguments.run(arguments))


def _add_demo(subcommands: _Subcommands) -> None:
    parser = subcommands.add_parser(
        "demo",
        help="a chat agent, observed: live events, summary, trace, metrics",
        description="Let a chat agent answer three questions and show what the callbacks and OpenTelemetry see. It "
        "talks to OPENAI_BASE_URL if that is set, else to a scripted server that it starts on this machine.",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="the model to ask (default: OPENAI_MODEL, else what the server has)"
    )
    parser.add_argument("--no-color", action="store_true", help="print without colours")
    parser.add_argument("--show-content", action="store_true", help="print the conversation")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from ._demo import Options, run_demo

    color = False if arguments.no_color else None
    return run_demo(Options(model=arguments.model, color=color, show_content=arguments.show_content))


def _add_doctor(subcommands: _Subcommands) -> None:
    parser = subcommands.add_parser(
        "doctor",
        help="what is covered, which settings are in force, what is wrong",
        description="Look at this installation and its environment. Exit code 0 if all is well, 1 if something is not "
        "covered or a setting is wrong. No content and no secret is shown.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from ._doctor import examine, render

    report = examine()
    print(json.dumps(report.as_json(), indent=2) if arguments.json else render(report))
    return 1 if report.problems else 0


_SUBCOMMANDS: Final[tuple[Callable[[_Subcommands], None], ...]] = (_add_demo, _add_doctor)

if __name__ == "__main__":
    raise SystemExit(main())
