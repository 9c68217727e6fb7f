"""The command ``otel-llm-callback``: from arguments to one function for each subcommand."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_Subcommands: TypeAlias = "_SubParsersAction[argparse.ArgumentParser]"

_CANNOT_TELL: Final = 2


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
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would flush and fail once more
        return 1
    return code


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
    parser.add_argument(
        "--show-content", action="store_true", help="print the conversation, and show it in the live view"
    )
    parser.add_argument("--view", action="store_true", help="start the live view if no OTLP receiver is there")
    parser.add_argument("--open", action="store_true", help="open the trace in the browser; implies --view")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from ._demo import Options, run_demo

    color = False if arguments.no_color else None
    options = Options(
        model=arguments.model,
        color=color,
        show_content=arguments.show_content,
        starts_view=arguments.view or arguments.open,
        opens_browser=arguments.open,
    )
    return run_demo(options)


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


def _add_audit(subcommands: _Subcommands) -> None:
    audit = subcommands.add_parser("audit", help="check audit logs", description="Work with the files of AuditLog.")
    parser = audit.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "verify",
        help="find lines that were changed, removed, inserted or moved",
        description="Find lines of audit logs that were changed, removed, inserted or moved, and say what cannot be "
        "told. Exit code 0 if nothing is wrong, 1 if something is, 2 if that could not be found out.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="all files of the chains to check, in any order")
    parser.add_argument("--key-file", metavar="FILE", help="the file with the key of the chain")
    parser.add_argument("--key-variable", metavar="NAME", help="the environment variable with the key of the chain")
    parser.add_argument(
        "--head", action="extend", nargs="+", default=[], metavar="FILE", help="the heads that are kept elsewhere"
    )
    parser.add_argument("--partial", action="store_true", help="accept that the first files of a chain are not given")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_audit_verify)


def _audit_verify(arguments: argparse.Namespace) -> int:
    from .callbacks import verify_audit
    from .callbacks._audit_chain import load_key
    from .callbacks._text import printable

    try:
        key = load_key(key_file=arguments.key_file, key_variable=arguments.key_variable)
        report = verify_audit(*arguments.files, key=key, heads=arguments.head, partial=arguments.partial)
    except (OSError, ValueError) as error:
        print(f"cannot verify: {printable(str(error))}", file=sys.stderr)
        return _CANNOT_TELL
    print(json.dumps(report.as_json(), indent=2) if arguments.json else report)
    return 0 if report.ok else 1


def _add_view(subcommands: _Subcommands) -> None:
    parser = subcommands.add_parser(
        "view",
        help="a page in the browser where each call appears while it streams",
        description="Receive OTLP over HTTP (protobuf or JSON), keep it in a bounded store, and show it on a page. It "
        "listens on this machine only, unless told otherwise, and then needs a token.",
    )
    parser.add_argument(
        "--port", type=int, default=4318, help="the port; 0 for any free one (default: 4318, OTLP's own)"
    )
    parser.add_argument("--host", default="localhost", help="the address to listen on (default: localhost)")
    parser.add_argument(
        "--token",
        default=os.environ.get("OTEL_LLM_CALLBACK_VIEW_TOKEN") or None,
        help="what senders and the page must present (default: OTEL_LLM_CALLBACK_VIEW_TOKEN, else none)",
    )
    parser.add_argument(
        "--name", action="append", default=[], metavar="HOST", help="a further host name by which it is addressed"
    )
    parser.add_argument(
        "--store", type=Path, metavar="PATH", help="the database (default: in the user's state directory)"
    )
    parser.add_argument("--memory", action="store_true", help="keep everything in memory")
    parser.add_argument("--max-spans", type=int, metavar="N", help="spans the store keeps (default: 1,000,000)")
    parser.add_argument("--max-mib", type=int, metavar="N", help="MiB the store keeps (default: 2048)")
    parser.add_argument(
        "--exit-after", type=float, metavar="MINUTES", help="end by itself after so long without a request or a page"
    )
    parser.add_argument("--open", action="store_true", help="open the browser")
    parser.set_defaults(run=_view)


def _view(arguments: argparse.Namespace) -> int:
    try:
        from .viewer import Limits, Options, OptionsError, default_store
        from .viewer._server import run
    except ImportError as error:
        sys.stderr.write(f"The live view needs more packages ({error.name}): pip install 'otel-llm-callback[viewer]'\n")
        return 1
    given = {
        "spans": arguments.max_spans,
        "stored_bytes": None if arguments.max_mib is None else arguments.max_mib * 1024 * 1024,
    }
    try:
        options = Options(
            host=arguments.host,
            port=arguments.port,
            store=None if arguments.memory else arguments.store or default_store(),
            token=arguments.token,
            exit_after_s=None if arguments.exit_after is None else arguments.exit_after * 60,
            names=tuple(arguments.name),
            limits=Limits(**{name: value for name, value in given.items() if value is not None}),
        )
    except OptionsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return run(options, opens_browser=arguments.open)


_SUBCOMMANDS: Final[tuple[Callable[[_Subcommands], None], ...]] = (_add_demo, _add_doctor, _add_audit, _add_view)

if __name__ == "__main__":
    raise SystemExit(main())
