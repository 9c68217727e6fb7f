"""What was measured, as text for a terminal and as Markdown for the README."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
LATEST: Final = HERE / "results" / "latest.json"
README: Final = HERE.parent / "README.md"
BEGIN: Final = "<!-- benchmarks -->\n"
END: Final = "<!-- /benchmarks -->"

NAMES: Final = {
    "bare": "client alone",
    "floor": "by hand",
    "same": "by hand, ours",
    "ours": "otel-llm-callback",
    "official": "official",
    "openllmetry": "OpenLLMetry",
    "openinference": "OpenInference",
}
TITLES: Final = {
    "call": "a call",
    "chunk": "a chunk of a stream",
    "async_chunk": "a chunk, 100 async streams at once",
    "content": "a call with 100 kB of messages, content on",
    "history": "the same, content off",
    "unsampled_call": "a call that is not sampled, no metrics",
    "unsampled_chunk": "a chunk of it",
    "no_sdk_call": "a call without an SDK",
    "no_sdk_chunk": "a chunk of it",
    "untraced": "a call nobody observes (`models.retrieve`)",
    "late_chunk": "a chunk after the thousandth",
}
SHOWN: Final = ("call", "chunk", "async_chunk", "content", "unsampled_call", "no_sdk_call", "untraced")
"""The rows of the README."""

# What a setting or callbacks of ours add: to which row of which variant, and per how many.
ADDED: Final = {
    "all_gaps_chunk": ('a chunk with `chunk_timing="all"`', "ours_all_gaps", "official", 0),
    "inline_chunk": ("a callback that takes chunks, inline, per chunk", "ours_chunks_inline", "ours", 1),
    "queued_chunk": ("the same, queued", "ours_chunks_queued", "ours", 1),
    "ten_inline_call": ("each of ten callbacks, inline, per call", "ours_ten_inline", "ours", 10),
    "ten_queued_call": ("the same, queued", "ours_ten_queued", "ours", 10),
}


def as_text(found: Mapping[str, Any]) -> str:
    """Return all that was measured, for a terminal."""
    machine = found["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    lines = [
        f"Python {machine['python']}, {machine['cores']} cores, load {machine['load']}, {machine['day']}",
        libraries,
    ]
    times, counts = found.get("cpu_us") or {}, found.get("instructions") or {}
    if times:
        lines += ["", "CPU microseconds added, median and quartiles; of the client alone: what it takes"]
        lines += [_text_row(TITLES.get(name, name), row, _spread) for name, row in times.items()]
    if counts:
        lines += ["", "Thousands of instructions added; of the client alone: what it takes"]
        lines += [_text_row(TITLES.get(name, name), row, _thousands) for name, row in counts.items()]
        lines += ["", "Ratios of instructions"]
        lines += [line for name, row in counts.items() if (line := _ratios(name, row))]
    for name, (title, variant, base, parts) in ADDED.items():
        if parts and variant in times.get(name, {}):
            row = times[name]
            lines.append(f"{title}: {(row[variant][0] - row[base][0]) / parts:.2f} us")
    if "import_ms" in found:
        lines += ["", _text_row("CPU milliseconds of import and instrument()", found["import_ms"], _spread)]
    for name, grown in (found.get("memory") or {}).items():
        shown = ", ".join(f"{value:.1f} bytes per {what}" for what, value in grown.items())
        lines.append(f"memory kept by {NAMES.get(name, name)}: {shown}")
    if "seconds" in found:
        lines.append(f"measured in {found['seconds']} s")
    return "\n".join(lines)


def _text_row(title: str, row: Mapping[str, Any], show: Any) -> str:
    cells = [f"  {NAMES.get(name, name):<22}{show(value)}" for name, value in row.items()]
    return "\n".join([title, *cells])


def _spread(value: list[float]) -> str:
    middle, low, high = value
    return f"{_short(middle):>10}  {_short(low)} to {_short(high)}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _thousands(value: float) -> str:
    return f"{value / 1000:>12,.2f}"


def _ratios(name: str, row: Mapping[str, float]) -> str:
    ours = row.get("ours") or row.get("ours_all_gaps")
    if ours is None or (name in ADDED and name != "all_gaps_chunk"):
        return ""
    shown = [f"{ours / row[other]:.2f} x {NAMES[other]}" for other in ("floor", "same", "official") if row.get(other)]
    return f"  {TITLES.get(name, name):<44}{', '.join(shown)}"


def as_markdown(found: Mapping[str, Any]) -> str:
    """Return the README's table: medians and quartiles, and how many times the hand-written instructions it takes."""
    times, counts = found["cpu_us"], found.get("instructions") or {}
    names = [name for name in NAMES if name not in ("bare", "same") and name in times["call"]]
    head = ("Added to", *(NAMES[name] for name in names))
    rows = [
        (TITLES[row], *(_markdown_cell(times[row], counts.get(row, {}), name) for name in names))
        for row in SHOWN
        if row in times
    ]
    if "import_ms" in found:
        taken = found["import_ms"]
        rows.append(
            ("import and `instrument()`", *(f"{taken[name][0]:.0f} ms" if name in taken else "" for name in names))
        )
    table = "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))
    machine = found["machine"]
    libraries = machine["libraries"]
    bare = times["call"]["bare"][0], times["chunk"]["bare"][0]
    note = (
        f"CPU time on the caller's thread, in microseconds: the median of interleaved rounds, its quartiles"
        f"{', and instructions as a multiple of those written by hand' if counts else ''}. The client itself takes"
        f" {_short(bare[0])} µs per call and {_short(bare[1])} µs per chunk. Python {machine['python']},"
        f" `openai` {libraries['openai']}, SDK {libraries['opentelemetry-sdk']}, {machine['day']}."
    )
    return f"{table}\n\n{note}"


def _markdown_cell(times: Mapping[str, list[float]], counts: Mapping[str, float], name: str) -> str:
    if name not in times:
        return ""
    middle, low, high = times[name]
    text = f"{_short(middle)} µs ({_short(low)} to {_short(high)})"
    if name in counts and counts.get("floor", 0) > 0:
        text += f", {counts[name] / counts['floor']:.2f} \N{MULTIPLICATION SIGN}"
    return text


def write_readme(found: Mapping[str, Any]) -> None:
    """Put the table between the markers in README.md."""
    before, _, rest = README.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"README.md has no {BEGIN.strip()} … {END}")
    README.write_text(f"{before}{BEGIN}{as_markdown(found)}\n{END}{after}", "utf-8")


def stored() -> Mapping[str, Any]:
    """Return the results that are kept in the repository."""
    return json.loads(LATEST.read_text("utf-8"))  # type: ignore[no-any-return]


if __name__ == "__main__":
    if sys.argv[1:] == ["--readme"]:
        write_readme(stored())
    else:
        print(as_markdown(stored()))
