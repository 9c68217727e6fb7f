"""Draw collected spans and metrics in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, Final

from ..callbacks._text import milliseconds, plural, printable, seconds

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from rich.console import Console, RenderableType
    from rich.text import Text
    from rich.tree import Tree

    from ..testing import MetricPoint

_WIDEST: Final = 110
_NS_PER_MS: Final = 1_000_000
_METRIC_PREFIX: Final = "gen_ai.client."
_OWN_PREFIX: Final = "llm_callback."
_POINT_ATTRIBUTES: Final = (
    "gen_ai.token.type",
    "gen_ai.request.model",
    "error.type",
    "llm_callback.callback.name",
    "llm_callback.callback.result",
)


def open_screen(*, color: bool | None) -> Console:
    """Return where to print: standard output, in lines that are comfortable to read."""
    from rich.console import Console

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a model may say what the terminal has no letters for
    screen = Console(file=sys.stdout, color_system=None if color is False else "auto", highlight=False)
    screen.width = min(screen.width, _WIDEST)
    return screen


def heading(screen: Console, title: str) -> None:
    """Print a heading."""
    screen.print()
    screen.rule(title, align="left", style="dim")


def span_tree(spans: Sequence[ReadableSpan]) -> RenderableType:
    """Return the spans as a tree with their events."""
    from rich.console import Group

    ids = {span.context.span_id for span in spans if span.context}
    roots = [span for span in spans if span.parent is None or span.parent.span_id not in ids]
    return Group(*(_branch(root, spans) for root in _by_start(roots)))


def _branch(span: ReadableSpan, spans: Sequence[ReadableSpan]) -> Tree:
    from rich.tree import Tree

    tree = Tree(_span_title(span), guide_style="dim")
    facts = list(_span_facts(span.attributes or {}))
    if facts:
        tree.add(_line(", ".join(facts)))
    for event in span.events:
        tree.add(_event_line(event, span))
    for child in _by_start(other for other in spans if _is_parent(span, other)):
        tree.children.append(_branch(child, spans))
    return tree


def _by_start(spans: Iterable[ReadableSpan]) -> list[ReadableSpan]:
    return sorted(spans, key=lambda span: span.start_time or 0)


def _is_parent(span: ReadableSpan, other: ReadableSpan) -> bool:
    return other.parent is not None and span.context is not None and other.parent.span_id == span.context.span_id


def _span_title(span: ReadableSpan) -> Text:
    from rich.text import Text

    took_ms = ((span.end_time or 0) - (span.start_time or 0)) / _NS_PER_MS
    title = Text(printable(span.name), style="bold").append(f"  {milliseconds(took_ms)}", style="not bold cyan")
    if not span.status.is_ok and span.status.status_code.name == "ERROR":
        title.append("  error", style="bold red")
    return title


def _span_facts(attributes: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the attributes say, in words: the whole list is for a trace viewer."""
    answered = attributes.get("gen_ai.response.model")
    if answered not in (None, attributes.get("gen_ai.request.model")):
        yield f"answered by {printable(str(answered), limit=60)}"
    tokens = [
        f"{attributes[f'gen_ai.usage.{kind}_tokens']:,} {kind}"
        for kind in ("input", "output")
        if f"gen_ai.usage.{kind}_tokens" in attributes
    ]
    if tokens:
        yield f"tokens {' + '.join(tokens)}"
    if (first_s := attributes.get("gen_ai.response.time_to_first_chunk")) is not None:
        yield f"first chunk {seconds(first_s)}"
    if (chunks := attributes.get(f"{_OWN_PREFIX}chunk_count")) is not None:
        yield plural(chunks, "chunk")
    for name in (f"{_OWN_PREFIX}outcome", "error.type"):
        if name in attributes:
            yield f"{name.removeprefix(_OWN_PREFIX)} {printable(str(attributes[name]))}"


def _event_line(event: Event, span: ReadableSpan) -> Text:
    after_ms = (event.timestamp - (span.start_time or 0)) / _NS_PER_MS
    facts = ", ".join(_event_facts(event.attributes or {}))
    name = event.name.removeprefix(_OWN_PREFIX)
    return _line(f"{milliseconds(after_ms):>8}  {name}" + (f" ({facts})" if facts else ""))


def _event_facts(attributes: Mapping[str, Any]) -> Iterator[str]:
    for name, value in attributes.items():
        short = name.removeprefix(f"{_OWN_PREFIX}retry.").removeprefix(_OWN_PREFIX).removeprefix("exception.")
        if short != "stacktrace":
            yield f"{short} {seconds(value) if short == 'delay' else printable(str(value), limit=60)}"


def _line(text: str) -> Text:
    from rich.text import Text

    return Text(text)


def metric_table(points: Iterable[MetricPoint]) -> RenderableType:
    """Return the metrics as a table, one line for each set of attributes."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("metric", no_wrap=True)
    table.add_column("attributes")
    for name in ("count", "sum", "average"):
        table.add_column(name, justify="right", no_wrap=True)
    told = [point for point in points if point.value != 0]  # what never happened would only fill the screen
    group = previous = None
    for point in sorted(told, key=lambda point: (point.name, _point_attributes(point))):
        prefix = next((prefix for prefix in (_METRIC_PREFIX, _OWN_PREFIX) if point.name.startswith(prefix)), "")
        if prefix != group:
            table.add_row(Text(f"{prefix}*", style="dim"))
        name = "" if point.name == previous else "  " + printable(point.name.removeprefix(prefix))
        group, previous = prefix, point.name
        table.add_row(Text(name), Text(_point_attributes(point)), *_point_figures(point))
    return table


def _point_attributes(point: MetricPoint) -> str:
    return ", ".join(printable(str(point.attributes[name])) for name in _POINT_ATTRIBUTES if name in point.attributes)


def _point_figures(point: MetricPoint) -> tuple[str, str, str]:
    if point.count is None or point.sum is None:
        return "", _figure(point.value or 0, point.unit), ""
    return f"{point.count:,}", _figure(point.sum, point.unit), _figure(point.sum / point.count, point.unit)


def _figure(value: float, unit: str) -> str:
    if unit == "s":
        return seconds(value)
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
