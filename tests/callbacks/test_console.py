"""ConsoleLogger: what it shows, what it never shows, and that lines stay whole."""

from __future__ import annotations

import builtins
import io
import re
import threading
from decimal import Decimal

import pytest
from rich.cells import cell_len

from otel_llm_callback.callbacks import ConsoleLogger, SessionAnalytics
from otel_llm_callback.callbacks._text import milliseconds, printable
from otel_llm_callback.protocol import check_callback
from otel_llm_callback.testing import make_chunk, make_error_context, make_request, make_response
from otel_llm_callback.types import Retry, Usage

HOSTILE = "\x1b[2J\x1b]0;gotcha\x07\r\n\u202e[bold red]\x9b31m"
SECRET = "canary-4711"


class Ascii(io.StringIO):
    encoding = "ascii"


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file():
    return io.StringIO()


def lines(file):
    """What was printed, without the time of day."""
    return [re.sub(r"^\d\d:\d\d:\d\d", "HH:MM:SS", line.rstrip()) for line in file.getvalue().splitlines()]


def stream(logger, pieces, *, gap_s=0.0, request=None, **over):
    request = request or make_request(stream=True)
    logger.on_request_sent(request, "")
    for index, piece in enumerate(pieces):
        at_ns = request.started_ns + 50_000_000 + round(index * gap_s * 1e9)
        logger.on_stream_chunk(make_chunk(piece, request=request, at_ns=at_ns), index)
    logger.on_response_received(make_response(request=request, chunk_count=len(pieces), **over), "")


def test_it_is_a_callback_that_asks_for_no_content(file):
    check_callback(ConsoleLogger(file))
    assert ConsoleLogger(file).content == "none"


def test_a_call_is_shown_with_its_figures(file):
    logger = ConsoleLogger(file)
    request = make_request(temperature=0.7, max_tokens=200)
    logger.on_request_sent(request, "")
    logger.on_response_received(
        make_response(
            request=request,
            response_time_ms=412.0,
            usage=Usage(input_tokens=41, output_tokens=23, total_tokens=64, cached_tokens=12, reasoning_tokens=0),
            retries=(Retry(at_ns=0, delay_s=0.05, status_code=429),),
        ),
        "",
    )
    assert lines(file) == [
        "HH:MM:SS #1   request   chat gpt-4o-mini · 42 bytes · temperature 0.7",
        "                        at most 200 tokens",
        "HH:MM:SS #1   response  64 tokens (41 in, 23 out, 12 cached) · 412 ms · stop",
        "                        1 retry (429; waited 50 ms) · req-1",
        "                        so far 1 request, 1 response, 64 tokens",
    ]


def test_cost_is_shown_where_it_is_known_and_as_an_estimate_where_it_is_one(file):
    logger = ConsoleLogger(file)
    for usage_source in ("reported", "estimated"):
        request = make_request()
        logger.on_request_sent(request, "")
        answer = make_response(request=request, cost=Decimal("0.00004200"), usage_source=usage_source)
        logger.on_response_received(answer, "")
    partial = make_response(request=request, cost=Decimal(2), chunk_count=1)
    logger.on_error(ValueError(), make_error_context(request=request, partial=partial))
    assert [line[24:] for line in lines(file) if "USD" in line] == [
        "15 tokens (10 in, 5 out) · 0.000042 USD · 100 ms · stop",
        "about 15 tokens (10 in, 5 out) · about 0.000042 USD",
        "after 100 ms · 1 chunk · 2 USD · no retries · req-1",
    ]


def test_a_stream_is_shown_by_its_first_chunk_and_its_figures(file):
    stream(ConsoleLogger(file), ["a", "b"], time_to_first_chunk_s=0.05, longest_gap_s=0.01)
    assert lines(file) == [
        "HH:MM:SS #1   request   chat gpt-4o-mini · 42 bytes · stream",
        "HH:MM:SS #1   chunk     first after 50 ms",
        "HH:MM:SS #1   response  15 tokens (10 in, 5 out) · 100 ms · stop · 2 chunks",
        "                        first after 50 ms · longest gap 10 ms · req-1",
        "                        so far 1 request, 1 response, 15 tokens",
    ]


def test_a_long_stream_is_counted_once_a_second_at_most(file):
    stream(ConsoleLogger(file), ["x"] * 11, gap_s=0.3)
    assert [line[24:] for line in lines(file) if "so far" in line and "chunk" in line] == [
        "5 chunks so far",
        "9 chunks so far",
    ]


def test_an_error_is_shown_without_its_text(file):
    logger = ConsoleLogger(file)
    request = make_request()
    logger.on_request_sent(request, "")
    logger.on_error(ValueError(SECRET), make_error_context(request=request))
    assert lines(file)[1:] == [
        "HH:MM:SS #1   error     RateLimitError · chat.completions · status 429",
        "                        after 100 ms · no retries · req-1",
        "                        so far 1 request, 0 responses, 1 error, 0 tokens",
    ]


def test_an_error_in_a_stream_says_how_far_it_came(file):
    logger = ConsoleLogger(file)
    request = make_request(stream=True)
    partial = make_response(request=request, chunk_count=3, usage=Usage(input_tokens=5, output_tokens=2))
    logger.on_error(ValueError(), make_error_context(request=request, partial=partial, outcome="cancelled"))
    shown = file.getvalue()
    assert "cancelled" in shown
    assert "3 chunks" in shown
    assert "7 tokens" in shown


@pytest.mark.parametrize(
    ("over", "text"),
    [
        ({"usage": None}, "no usage reported"),
        ({"usage": Usage(input_tokens=3)}, "tokens 3 in"),
        ({"usage_source": "estimated"}, "about 15 tokens"),
        ({"outcome": "closed_early"}, "closed early"),
        ({"truncated": True}, "truncated"),
        ({"finish_reasons": ("stop", "length", "stop")}, "stop, length"),
    ],
)
def test_what_is_unusual_is_said(file, over, text):
    logger = ConsoleLogger(file)
    logger.on_response_received(make_response(**over), "")
    assert text in file.getvalue()


def test_no_content_is_printed_by_default(file):
    """Even if it is handed some."""
    logger = ConsoleLogger(file)
    stream(logger, [SECRET, SECRET], gap_s=2)
    logger.on_error(ValueError(SECRET), make_error_context())
    assert SECRET not in file.getvalue()


def test_redacted_content_does_not_include_the_text_of_errors(file):
    logger = ConsoleLogger(file, content="redacted")
    logger.on_error(ValueError(SECRET), make_error_context())
    assert SECRET not in file.getvalue()


def test_content_is_printed_if_asked_for(file):
    logger = ConsoleLogger(file, content="full")
    request = make_request()
    logger.on_request_sent(request, '{"messages": [{"role": "user", "content": "Who are\\nyou?"}]}')
    logger.on_response_received(make_response(request=request), '{"choices": [{"message": {"content": "I am Bob."}}]}')
    logger.on_error(ValueError("no such thing"), make_error_context())
    texts = [line.strip() for line in lines(file)]
    assert "user: Who are you?" in texts
    assert "I am Bob." in texts
    assert "no such thing" in texts


@pytest.mark.parametrize(
    "request_json",
    ['{"input": "plain"}', '{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "[1]", "not json", "{}"],
)
def test_content_of_any_shape_is_printed(file, request_json, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    logger = ConsoleLogger(file, content="full")
    logger.on_request_sent(make_request(), request_json)
    logger.on_response_received(make_response(), '{"choices": []}')
    assert ("plain" if "plain" in request_json else request_json) in file.getvalue()


def test_streamed_text_is_printed_line_by_line_and_not_repeated(file):
    logger = ConsoleLogger(file, content="full")
    request = make_request(stream=True)
    pieces = ["One ", "two", ".\n", "    indented ", "three " * 12, "end"]
    for index, piece in enumerate(pieces):
        logger.on_stream_chunk(make_chunk(piece, request=request), index)
    logger.on_response_received(make_response(request=request), '{"choices": [{"message": {"content": "One two."}}]}')
    said = [line[24:] for line in lines(file)[1:] if " chunk " in line]
    assert said == ["One two.", "    indented " + " ".join(["three"] * 7), "three three three three three end"]
    assert file.getvalue().count("One two.") == 1


def test_kinds_of_output_are_told_apart(file):
    logger = ConsoleLogger(file, content="full")
    request = make_request(stream=True)
    for index, kind in enumerate(["event", "reasoning", "reasoning", "text", "tool_call"]):
        logger.on_stream_chunk(make_chunk(f"{kind} ", request=request, kind=kind), index)
    logger.on_response_received(make_response(request=request), "")
    assert [line[14:].rstrip() for line in lines(file)[1:4]] == [
        "reasoning reasoning reasoning",
        "chunk     text",
        "tool call tool_call",
    ]


@pytest.mark.parametrize("content", ["none", "full"])
@pytest.mark.parametrize("color", [None, False])
def test_hostile_strings_cannot_steer_the_terminal(file, content, color):
    """Model names, texts, ids, reasons and errors: no control character and no markup takes effect."""
    logger = ConsoleLogger(file, content=content, color=color)
    request = make_request(stream=True, model=HOSTILE, session_id=HOSTILE, operation=HOSTILE)
    logger.on_request_sent(request, f'{{"input": "{HOSTILE}"}}')
    for index, kind in enumerate(["text", "reasoning", "tool_call"]):
        logger.on_stream_chunk(make_chunk(HOSTILE, request=request, kind=kind), index)
    retries = (Retry(at_ns=0, delay_s=1, error=HOSTILE),)
    response = make_response(request=request, request_id=HOSTILE, finish_reasons=(HOSTILE,), retries=retries)
    logger.on_response_received(response, HOSTILE)
    logger.on_error(ValueError(HOSTILE), make_error_context(HOSTILE, error_type=HOSTILE, request_id=HOSTILE))
    analytics = SessionAnalytics()
    analytics.on_request_sent(request, "")
    analytics.on_error(ValueError(), make_error_context(request=request, error_type=HOSTILE))
    logger.print_summary(analytics.summary(session_id=HOSTILE))
    assert [line for line in file.getvalue().split("\n") if not line.isprintable()] == []
    assert "[bold red]" in file.getvalue()


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_no_line_is_wider_than_the_terminal(file, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    logger = ConsoleLogger(file, content="full")
    stream(logger, ["日本語" * 30, "word " * 50, "x" * 300], request=make_request(stream=True, model="m" * 500))
    logger.on_error(ValueError("e" * 1000), make_error_context())
    assert max(map(cell_len, file.getvalue().split("\n"))) <= max(44, min(int(columns), 120))


def test_a_terminal_without_unicode_gets_plain_characters():
    file = Ascii()
    stream(ConsoleLogger(file, content="full"), ["Grüße 日本 "], request=make_request(stream=True, model="mögel"))
    assert file.getvalue().isascii()
    assert "m\\xf6gel | 42 bytes" in file.getvalue()


@pytest.mark.parametrize(
    ("color", "environment", "colored"),
    [
        (None, {}, False),
        (False, {"FORCE_COLOR": "1"}, False),
        (True, {}, True),
        (True, {"NO_COLOR": "1"}, True),
        (None, {"FORCE_COLOR": "1", "TERM": "xterm"}, True),
        (None, {"FORCE_COLOR": "1", "TERM": "xterm", "NO_COLOR": "1"}, False),
    ],
)
def test_colors_are_for_terminals_unless_decided(file, monkeypatch, color, environment, colored):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ConsoleLogger(file, color=color).on_request_sent(make_request(), "")
    assert ("\x1b[36m" in file.getvalue()) is colored


def test_standard_error_is_the_usual_place(capsys):
    ConsoleLogger().on_request_sent(make_request(), "")
    assert "request" in capsys.readouterr().err


def test_lines_of_threads_do_not_mix():
    class Pieces(io.StringIO):
        written: list[str] = []  # noqa: RUF012

        def write(self, text):
            self.written.append(text)
            return len(text)

    file = Pieces()
    logger = ConsoleLogger(file)
    threads = [threading.Thread(target=stream, args=(logger, ["x"] * 5)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(file.written) == 20 * 3
    assert all(piece.endswith("\n") for piece in file.written)


def test_calls_whose_end_is_lost_are_forgotten(file, monkeypatch):
    monkeypatch.setattr("otel_llm_callback.callbacks.console._OPEN_CALLS_LIMIT", 3)
    logger = ConsoleLogger(file)
    for _ in range(5):
        logger.on_request_sent(make_request(), "")
    assert len(logger._calls) == 3


def test_the_final_summary_is_that_of_the_analytics(file):
    analytics = SessionAnalytics()
    request = make_request()
    analytics.on_request_sent(request, "")
    analytics.on_response_received(make_response(request=request), "")
    ConsoleLogger(file).print_summary(analytics.summary())
    assert file.getvalue().rstrip("\n") == str(analytics)


def test_content_must_be_one_of_three(file):
    with pytest.raises(ValueError, match="allowed are 'full', 'redacted', 'none'"):
        ConsoleLogger(file, content="some")


def test_without_rich_the_extra_is_named(monkeypatch):
    find = builtins.__import__

    def no_rich(name, *rest):
        if name.startswith("rich"):
            raise ImportError(name)
        return find(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_rich)
    with pytest.raises(ImportError, match=r"pip install otel-llm-callback\[console\]"):
        ConsoleLogger()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("日本語 ü", "日本語 ü"),
        ("a\tb\nc", "a\\tb\\nc"),
        ("\x1b[31m\x9b", "\\x1b[31m\\x9b"),
        ("\u202e\u2066\u200b\ufeff\u2028", "\\u202e\\u2066\\u200b\\ufeff\\u2028"),
        ("👩\u200d👩", "👩\u200d👩"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable_spells_out_what_steers_a_terminal(text, shown):
    assert printable(text) == shown


def test_printable_cuts_what_is_long():
    assert printable("abcdef", limit=3) == "abc..."


@pytest.mark.parametrize(("value", "text"), [(0.04, "0.0 ms"), (4.25, "4.2 ms"), (412.4, "412 ms"), (2410.0, "2.41 s")])
def test_times_are_short(value, text):
    assert milliseconds(value) == text
