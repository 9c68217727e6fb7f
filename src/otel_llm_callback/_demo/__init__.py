"""The demo: a chat agent that is observed, and what the observers saw. Not part of the public API.

It is the seed's example program: three questions, a custom telemetry logger, a session summary; and after that the
span tree and the metrics of the same calls.
"""

from __future__ import annotations

import sys
import webbrowser
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..callbacks._text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from ._agent import Bob

_PACKAGES: Final = {
    "openai": "openai",
    "rich": "otel-llm-callback[console]",
    "opentelemetry.sdk": "otel-llm-callback[otlp]",
}
_QUESTIONS: Final = (
    "Hello Bob, who are you?",
    "What is a trace, in one sentence?",
    "And what does a callback tell me that a trace does not?",
)
_SESSION: Final = "bob-demo"
_ERROR_LIMIT: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says.

    Attributes:
        model: The model to ask; None leaves it to ``OPENAI_MODEL`` and to what the server has.
        color: False for none; None means colours on a terminal, unless ``NO_COLOR`` is set.
        show_content: Whether to print the conversation, and to have the live view show it.
        starts_view: Whether to start the live view if nothing else is there to export to.
        opens_browser: Whether to open the trace in the browser.
    """

    model: str | None = None
    color: bool | None = None
    show_content: bool = False
    starts_view: bool = False
    opens_browser: bool = False


def run_demo(options: Options) -> int:
    """Run the demo and return the exit code: 0 if it went as intended, 1 if the server could not be used."""
    missing = _missing_packages()
    if missing:
        sys.stderr.write(f"The demo needs more packages: pip install {' '.join(map(repr, missing))}\n")
        return 1
    import openai

    try:
        with ExitStack() as stack:
            _run(options, stack)
    except openai.OpenAIError as error:
        sys.stderr.write(f"{_complaint(error)}\n")
        return 1
    return 0


def _missing_packages() -> list[str]:
    from importlib.util import find_spec

    def is_missing(module: str) -> bool:
        try:
            return find_spec(module) is None
        except ModuleNotFoundError:  # of a submodule: not even the package is there
            return True

    return [package for module, package in _PACKAGES.items() if is_missing(module)]


def _complaint(error: Exception) -> str:
    import openai

    from ._agent import without_password

    if isinstance(error, openai.APIConnectionError):
        address = without_password(str(error.request.url))
        return f"The server could not be reached at {address} ({type(error.__cause__ or error).__name__})."
    text = printable(str(error), limit=_ERROR_LIMIT)
    return f"The server did not do what the demo asked for: {type(error).__name__}: {text}"


def _run(options: Options, stack: ExitStack) -> None:
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    import otel_llm_callback
    from otel_llm_callback.callbacks import ConsoleLogger, LiveView, SessionAnalytics
    from otel_llm_callback.testing import TelemetryCollector

    from . import _export, _live, _view
    from ._agent import open_server

    screen = _view.open_screen(color=options.color)
    server = stack.enter_context(open_server(options.model))
    target = _live.recognised(_export.find_target()) or (_live.start() if options.starts_view else None)
    _view.heading(screen, "Bob, a chat agent with telemetry callbacks")
    screen.print(f"Server: {server.description}")
    screen.print(f"Model:  {printable(server.model)}", markup=False)
    screen.print(f"Export: {target.description if target else _export.NO_TARGET}")

    sums = InMemoryMetricReader()
    collector = TelemetryCollector(resource_attributes={"service.name": "bob-demo"}, metric_readers=[sums])
    analytics, logger = SessionAnalytics(), ConsoleLogger(sys.stdout, color=options.color)
    callbacks: list[object] = [analytics, logger]
    settings: dict[str, object] = {}
    if target is not None and target.view_url is not None:
        callbacks.append(LiveView(target.view_url, content="full" if options.show_content else "none"))
        if options.show_content:
            settings["capture_content"] = "span_only"
    stack.callback(otel_llm_callback.uninstrument)
    otel_llm_callback.instrument(
        *callbacks,
        tracer_provider=collector.tracer_provider,
        meter_provider=collector.meter_provider,
        delivery="inline",  # so that the notifications stand in the right place among the other lines
        **settings,
    )
    tracer = collector.tracer_provider.get_tracer("otel_llm_callback.demo")

    _view.heading(screen, "Live notifications")
    with tracer.start_as_current_span("Bob session"), otel_llm_callback.session(_SESSION, user="demo-user"):
        _converse(server.agent(), screen, show_content=options.show_content)
    otel_llm_callback.flush(timeout=5)

    screen.print()
    logger.print_summary(analytics.summary())
    _view.heading(screen, "Trace")
    screen.print(_view.span_tree(collector.spans()))
    _view.heading(screen, "Metrics")
    screen.print(_view.metric_table(collector.metrics()))
    screen.print()
    for line in _export.deliver(target, collector.spans(), sums):
        screen.print(line, markup=False, soft_wrap=True)
    if options.opens_browser and target is not None:
        webbrowser.open(_export.trace_address(target, collector.spans()))


def _converse(bob: Bob, screen: Console, *, show_content: bool) -> None:
    """Ask the questions, the last one streamed, and then make a call that fails."""
    for question in _QUESTIONS:
        answer = bob.ask_streamed(question) if question is _QUESTIONS[-1] else bob.ask(question)
        if show_content:
            screen.print(f"You: {question}\nBob: {printable(answer)}", markup=False, highlight=False)
    failure = bob.ask_unknown_model()
    if failure is None:
        screen.print("The server answers for any model name, so the call that was to fail did not.")
