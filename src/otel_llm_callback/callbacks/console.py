"""Show each event in the terminal as it happens: the seed's custom telemetry logger, its live notifications."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final

from ..types import Content, ErrorContext, RequestMetadata, ResponseMetadata, StreamChunk
from . import _event_text
from ._lock import ForkSafeLock
from ._summary import SessionSummary
from ._text import milliseconds, plural, printable

__all__ = ["ConsoleLogger"]

_CONTENT_LEVELS: Final[tuple[Content, ...]] = ("full", "redacted", "none")
_TEXT_LIMIT: Final = 400
_WIDEST: Final = 120
_NARROWEST_TEXT: Final = 20
_HEAD_WIDTH: Final = 24
_PROGRESS_NS: Final = 1_000_000_000
_OPEN_CALLS_LIMIT: Final = 10_000

# Named colours only: the terminal's theme keeps them readable on light and on dark.
_STYLES: Final[Mapping[str, str]] = {
    "request": "cyan",
    "chunk": "magenta",
    "response": "green",
    "error": "bold red",
    "cancelled": "bold red",
}
_CHUNK_LABELS: Final[Mapping[str, str]] = {"text": "chunk", "tool_call": "tool call"}


class ConsoleLogger:
    """Print requests, streams, responses and errors as they happen, with running totals.

    Each event is written in one piece, so that threads do not mix within a line. What comes from outside (model names,
    text) is printed with its control characters spelt out. By default no content is printed: of a stream only how many
    chunks have come.

    Args:
        file: Where to print; None is standard error, looked up at each event.
        color: True or False decides; None means colours on a terminal, unless ``NO_COLOR`` is set.
        content: ``full`` also prints what was said, and the text of errors; ``redacted`` prints it as the redactor
            leaves it, without the text of errors.

    Raises:
        ImportError: ``rich`` is not installed.
        ValueError: *content* is not one of the three.
    """

    content: Content

    def __init__(self, file: IO[str] | None = None, *, color: bool | None = None, content: Content = "none") -> None:
        try:
            from rich.console import Console
        except ImportError as error:
            raise ImportError("ConsoleLogger needs rich: pip install otel-llm-callback[console]") from error
        if content not in _CONTENT_LEVELS:
            raise ValueError(f"content is {content!r}; allowed are {', '.join(map(repr, _CONTENT_LEVELS))}")
        self.content = content
        self._console = Console(
            file=file,
            stderr=file is None,
            force_terminal=color or None,
            color_system={None: "auto", True: "standard", False: None}[color],
            no_color=False if color else None,
        )
        self._lock = ForkSafeLock()
        self._calls: dict[str, _Call] = {}
        self._begun = self._responses = self._errors = self._tokens = 0

    def on_request_sent(self, metadata: RequestMetadata, request_json: str) -> None:
        """Print what is asked for."""
        with self._lock:
            call = self._call(metadata)
            paragraphs = [_Paragraph(_event_text.of_request(metadata))]
            if request_json:
                paragraphs.append(_quoted(_event_text.last_message(request_json)))
            self._print(call, "request", paragraphs, at_ns=metadata.started_ns)

    def on_stream_chunk(self, chunk: StreamChunk, index: int) -> None:
        """Print the first chunk's delay, then text as its lines fill up, or now and then how many chunks have come."""
        with self._lock:
            call = self._call(chunk.request)
            call.chunks += 1
            if index == 0:
                after_ms = max(0, chunk.at_ns - chunk.request.started_ns) / 1e6
                self._print_chunk(call, chunk, f"first after {milliseconds(after_ms)}")
            elif chunk.at_ns - call.shown_ns >= _PROGRESS_NS and self.content == "none":
                self._print_chunk(call, chunk, f"{plural(call.chunks, 'chunk')} so far")
            if chunk and chunk.kind != "event" and self.content != "none":
                self._say(call, chunk)

    def on_response_received(self, metadata: ResponseMetadata, response_json: str) -> None:
        """Print what came back, and the totals so far."""
        with self._lock:
            call = self._ended(metadata.request)
            self._responses += 1
            self._tokens += metadata.total_tokens or 0
            paragraphs = [_Paragraph(_event_text.of_response(metadata)), self._totals()]
            if response_json and not call.said:
                paragraphs.insert(1, _quoted(_event_text.answer(response_json)))
            self._print(call, "response", paragraphs, at_ns=metadata.ended_ns)

    def on_error(self, error: BaseException, context: ErrorContext) -> None:
        """Print what failed and where; the exception's own text only if ``content`` is ``full``."""
        with self._lock:
            call = self._ended(context.request)
            self._errors += 1
            self._tokens += (context.partial.total_tokens or 0) if context.partial else 0
            paragraphs = [_Paragraph(_event_text.of_error(context)), self._totals()]
            if self.content == "full":
                paragraphs.insert(1, _quoted(str(error)))
            label = "cancelled" if context.outcome == "cancelled" else "error"
            self._print(call, label, paragraphs, at_ns=context.ended_ns)

    def print_summary(self, summary: SessionSummary) -> None:
        """Print the final summary of :class:`SessionAnalytics`."""
        from rich.text import Text

        rows = list(summary.rows())
        width = max(len(name) for name, _ in rows)
        page = Text().append(self._printable(summary.title), style="bold")
        for name, text in rows:
            page.append(f"\n  {name:<{width}}  ", style="dim").append(self._printable(text))
        with self._lock:
            self._console.print(page, soft_wrap=True)

    def _call(self, request: RequestMetadata) -> _Call:
        call = self._calls.get(request.call_id)
        if call is None:
            self._begun += 1
            call = self._calls[request.call_id] = _Call(self._begun)
            if len(self._calls) > _OPEN_CALLS_LIMIT:  # an end is lost where a delivery queue overflows
                del self._calls[next(iter(self._calls))]
        return call

    def _ended(self, request: RequestMetadata) -> _Call:
        call = self._call(request)
        del self._calls[request.call_id]
        self._print_said(call, [call.unprinted] if call.unprinted.strip() else [])
        return call

    def _print_chunk(self, call: _Call, chunk: StreamChunk, news: str) -> None:
        call.shown_ns = chunk.at_ns
        self._print(call, "chunk", [_Paragraph([news])], at_ns=chunk.at_ns)

    def _say(self, call: _Call, chunk: StreamChunk) -> None:
        """Print the lines that are full and keep the rest: pieces of a line would mix with other calls."""
        label = _CHUNK_LABELS.get(chunk.kind, chunk.kind)
        if label != call.label:
            self._print_said(call, [call.unprinted] if call.unprinted.strip() else [])
            call.unprinted = ""
        call.label = label
        lines = [
            line
            for row in (call.unprinted + chunk).expandtabs(4).split("\n")
            for line in _wrapped(self._printable(row).split(" "), " ", self._text_width())
        ]
        call.unprinted = lines.pop()
        self._print_said(call, lines)

    def _print_said(self, call: _Call, lines: Iterable[str]) -> None:
        for line in lines:
            call.said = True
            self._print(call, call.label, [_Paragraph([line])])

    def _totals(self) -> _Paragraph:
        counts = [plural(self._begun, "request"), plural(self._responses, "response")]
        if self._errors:
            counts.append(plural(self._errors, "error"))
        return _Paragraph([f"so far {', '.join(counts)}, {plural(self._tokens, 'token')}"], style="dim")

    def _printable(self, text: str, *, limit: int | None = None) -> str:
        return printable(text, limit=limit, encoding=self._console.encoding)

    def _text_width(self) -> int:
        return max(_NARROWEST_TEXT, min(self._console.width, _WIDEST) - _HEAD_WIDTH)

    def _print(self, call: _Call, label: str, paragraphs: Iterable[_Paragraph], *, at_ns: int | None = None) -> None:
        """Write one event: time, call and label, then the paragraphs to the right of them."""
        from rich.text import Text

        clock = "" if at_ns is None else time.strftime("%H:%M:%S", time.localtime(at_ns / 1e9))
        block = Text().append(f"{clock:<8} ", style="dim").append(f"#{call.number:<3} ")
        block.append(f"{label:<9} ", style=_STYLES.get(label, "magenta"))
        margin = ""
        for paragraph in paragraphs:
            for line in self._lines(paragraph):
                block.append(margin).append(line, style=paragraph.style)
                margin = "\n" + " " * _HEAD_WIDTH
        self._console.print(block, soft_wrap=True)

    def _lines(self, paragraph: _Paragraph) -> list[str]:
        separator = (
            paragraph.separator if self._console.encoding.startswith("utf") else paragraph.separator.replace("·", "|")
        )
        pieces = [self._printable(piece, limit=_TEXT_LIMIT) for piece in paragraph.pieces]
        return _wrapped(pieces, separator, self._text_width())


@dataclass(slots=True)
class _Call:
    """What is known of a call while it is open.

    Attributes:
        number: Counted from 1, shown instead of the long id.
        chunks: Seen so far.
        shown_ns: When the last chunk that made a line arrived.
        label: Of the text that is coming in.
        unprinted: Text that does not fill a line yet, printable.
        said: True if text was printed, so that the response need not repeat it.
    """

    number: int
    chunks: int = 0
    shown_ns: int = 0
    label: str = "chunk"
    unprinted: str = ""
    said: bool = False


@dataclass(frozen=True, slots=True)
class _Paragraph:
    """Pieces to be laid out in lines, broken only between pieces while they fit."""

    pieces: Sequence[str]
    separator: str = " · "
    style: str = ""


def _quoted(text: str) -> _Paragraph:
    words = (text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "...").split()
    return _Paragraph(words, separator=" ", style="italic")


def _wrapped(pieces: Iterable[str], separator: str, width: int) -> list[str]:
    """Return at least one line; none is wider than *width* cells."""
    from rich.cells import cell_len, chop_cells

    lines: list[str] = []
    line: str | None = None
    for piece in pieces:
        longer = piece if line is None else line + separator + piece
        if cell_len(longer) <= width:
            line = longer
            continue
        if line is not None:
            lines.append(line)
        *full, line = chop_cells(piece, width) or [""]
        lines += full
    return [*lines, line or ""]
