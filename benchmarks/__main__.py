"""Measure what instrumentations add to the client, and print it as a table.

`python benchmarks` measures CPU time and, where valgrind is there, instructions; `--quick` for a first look, `--only`
for some rows, `--readme` puts the table into README.md. `make bench` and `make bench-readme` run it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
RESULTS: Final = HERE / "results"
LIBRARIES: Final = (
    "openai",
    "opentelemetry-sdk",
    "opentelemetry-instrumentation-genai-openai",
    "opentelemetry-instrumentation-openai",
    "openinference-instrumentation-openai",
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: How results call it.
        workload: What is run.
        situation: In which situation.
        small: Times, or chunks of a stream, of the first block; 0 for none.
        large: Those of the second; the row tells the difference, per one.
        per: How many of what is told a block of 1 is.
        variants: Only these, and those they are compared with; empty for all.
    """

    name: str
    workload: str
    situation: str = "sdk"
    small: int = 0
    large: int = 40
    per: int = 1
    variants: tuple[str, ...] = ()


COMPARED: Final = ("bare", "floor", "ours")
ROWS: Final = (
    Row("call", "call"),
    Row("chunk", "stream", small=20, large=720),
    Row("async_chunk", "async_streams", small=3, large=13, per=100),
    Row("content", "history", "content", large=2),
    Row("history", "history", large=2, variants=("bare", "floor", "ours", "official")),
    Row("unsampled_call", "call", "unsampled"),
    Row("unsampled_chunk", "stream", "unsampled", small=20, large=720),
    Row("no_sdk_call", "call", "no_sdk"),
    Row("no_sdk_chunk", "stream", "no_sdk", small=20, large=720),
    Row("untraced", "untraced"),
    Row("late_chunk", "stream", small=1000, large=3000, variants=COMPARED),
    Row("all_gaps_chunk", "stream", small=20, large=420, variants=("bare", "official", "ours_all_gaps")),
    Row("inline_chunk", "stream", small=20, large=720, variants=("bare", "ours", "ours_chunks_inline")),
    Row("queued_chunk", "stream", small=20, large=720, variants=("bare", "ours", "ours_chunks_queued")),
    Row("ten_inline_call", "call", variants=("bare", "ours", "ours_ten_inline")),
    Row("ten_queued_call", "call", variants=("bare", "ours", "ours_ten_queued")),
)


def main() -> None:
    arguments = _arguments()
    if arguments.counts is not None:  # this process runs below valgrind
        counts = count_instructions(arguments.rows, arguments.variants)
        arguments.counts.write_text(json.dumps(counts), "utf-8")
        return
    started = time.monotonic()
    found: dict[str, object] = {"machine": _machine()}
    if arguments.measure in ("all", "time"):
        found["cpu_us"] = measure_time(arguments.rows, arguments.variants, arguments.rounds)
        found["import_ms"] = measure_import(arguments.variants, max(3, arguments.rounds // 2))
    if arguments.measure in ("all", "memory"):
        found["memory"] = measure_memory(arguments.variants, quick=arguments.quick)
    if arguments.measure in ("all", "instructions"):
        found["instructions"] = run_below_valgrind(arguments)
    found["seconds"] = round(time.monotonic() - started)

    import tables

    text = tables.as_text(found)
    print(text)
    if arguments.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "latest.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "utf-8")
        (RESULTS / "latest.txt").write_text(text + "\n", "utf-8")
    if arguments.readme:
        tables.write_readme(found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="rows, separated by commas: " + ", ".join(row.name for row in ROWS))
    parser.add_argument("--variants", default="", help="variants, separated by commas; default: all that are installed")
    parser.add_argument("--measure", choices=("all", "time", "instructions", "memory"), default="all")
    parser.add_argument("--rounds", type=int, default=21, help="interleaved rounds of timed blocks")
    parser.add_argument("--quick", action="store_true", help="5 rounds, small memory runs")
    parser.add_argument("--save", action="store_true", help="write results/latest.json and .txt")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md; implies --save")
    parser.add_argument("--counts", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.rounds = 5 if arguments.quick else arguments.rounds
    arguments.save = arguments.save or arguments.readme
    only = [name for name in arguments.only.split(",") if name]
    if unknown := set(only) - {row.name for row in ROWS}:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    arguments.rows = [row for row in ROWS if not only or row.name in only]
    arguments.variants = [name for name in arguments.variants.split(",") if name]
    return arguments


def _machine() -> dict[str, object]:
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            continue
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": round(load, 1),
        "day": time.strftime("%Y-%m-%d"),
        "libraries": libraries,
    }


def _variants_of(row: Row, asked: list[str]) -> list[str]:
    import cells

    wanted = row.variants or cells.installed()
    allowed = {"bare", *asked} if asked else set(wanted)
    return [name for name in wanted if name in allowed and cells.VARIANTS[name].is_installed()]


def measure_time(rows: list[Row], asked: list[str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return, by row and variant, the quartiles of added microseconds; of ``bare`` those of the client alone.

    Every round runs each variant once, in turn and back the next time, so that a slow phase of the machine meets all;
    what counts is the difference to the bare client of the same round.
    """
    import cells

    open_cells: dict[tuple[str, str], cells.Cell] = {}
    samples: dict[str, dict[str, list[float]]] = {row.name: {} for row in rows}
    for number in range(rounds):
        for row in rows:
            names = _variants_of(row, asked)
            taken = {}
            for name in names if number % 2 else reversed(names):
                key = (name, "sdk" if name == "bare" else row.situation)
                if key not in open_cells:
                    open_cells[key] = cells.Cell(*key)
                taken[name] = _one(open_cells[key], row, "cpu_ns") / 1000
            for name, value in taken.items():
                added = value if name == "bare" else value - taken["bare"]
                samples[row.name].setdefault(name, []).append(added)
        _tell(f"round {number + 1} of {rounds}")
    for cell in open_cells.values():
        cell.close()
    return {row: {name: _quartiles(values) for name, values in found.items()} for row, found in samples.items()}


def _one(cell: object, row: Row, what: str) -> float:
    small = cell.ask(what, row.workload, row.small) if row.small else 0.0  # type: ignore[attr-defined]
    large = cell.ask(what, row.workload, row.large)  # type: ignore[attr-defined]
    return (large - small) / (row.large - row.small) / row.per


def _quartiles(values: list[float]) -> list[float]:
    """Median, lower and upper quartile."""
    if len(values) < 2:
        return [values[0]] * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [middle, low, high]


_IMPORT: Final = """
import sys, time
sys.path.insert(0, {here!r})
import cells
variant = cells.VARIANTS[{variant!r}]
started = time.process_time_ns()
variant.set_up()
print(time.process_time_ns() - started, file=sys.__stdout__)
"""


def measure_import(asked: list[str], rounds: int) -> dict[str, list[float]]:
    """Return the quartiles of CPU milliseconds of import and instrumenting, after client and SDK were imported."""
    import cells

    names = [name for name in cells.installed() if name not in ("bare", "same") and (not asked or name in asked)]
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            program = _IMPORT.format(here=str(HERE), variant=name)
            result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
            samples[name].append(int(result.stdout.split()[-1]) / 1e6)
        _tell(f"import {number + 1} of {rounds}")
    return {name: _quartiles(values) for name, values in samples.items()}


def measure_memory(asked: list[str], *, quick: bool) -> dict[str, dict[str, float]]:
    """Return the bytes a process grows by per chunk of one long stream and per call."""
    import cells

    chunks, calls = (5_000, 1_000) if quick else (100_000, 50_000)
    found = {}
    for name in ("bare", "ours", "official"):
        if not cells.VARIANTS[name].is_installed() or (asked and name not in asked):
            continue
        cell = cells.Cell(name, "sdk")
        cell.ask("growth_bytes", "stream", 2_000)  # pools that are filled once
        per_chunk = cell.ask("growth_bytes", "stream", chunks) / chunks
        found[name] = {"chunk": per_chunk}
        if name == "ours":
            cell.ask("growth_bytes", "call", 5_000)
            found[name]["call"] = cell.ask("growth_bytes", "call", calls) / calls
        cell.close()
        _tell(f"memory of {name}")
    return found


def run_below_valgrind(arguments: argparse.Namespace) -> dict[str, dict[str, float]] | None:
    """Return instructions as `count_instructions` does, None without valgrind."""
    if shutil.which("valgrind") is None:
        _tell("valgrind is not installed: no instruction counts")
        return None
    with tempfile.TemporaryDirectory() as folder:
        halves = _halves(arguments.rows)
        running = [
            _start_below_valgrind(rows, arguments.variants, Path(folder) / f"half{number}")
            for number, rows in enumerate(halves)
        ]
        for process in running:
            if process.wait():
                raise SystemExit("counting instructions failed")
        found: dict[str, dict[str, float]] = {}
        for number in range(len(halves)):
            found.update(json.loads((Path(folder) / f"half{number}.json").read_text("utf-8")))
    return {row.name: found[row.name] for row in arguments.rows}


def _halves(rows: list[Row]) -> list[list[Row]]:
    """Two shares of the rows, since counts do not mind a busy second core; rows of one situation stay together."""
    first = [row for row in rows if row.situation == "sdk" and not row.variants]
    second = [row for row in rows if row not in first]
    return [half for half in (first, second) if half]


def _start_below_valgrind(rows: list[Row], variants: list[str], place: Path) -> subprocess.Popen[bytes]:
    place.mkdir()
    command = [
        "valgrind",
        "-q",
        "--tool=callgrind",
        "--dump-before=getloadavg",
        f"--callgrind-out-file={place}/counts.%p",
    ]
    command += [sys.executable, str(HERE), "--counts", f"{place}.json", "--only", ",".join(row.name for row in rows)]
    command += ["--variants", ",".join(variants)] if variants else []
    environment = {**os.environ, "PYTHONHASHSEED": "0", "BENCHMARK_COUNTS": str(place)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL if not sys.stderr.isatty() else None)


def count_instructions(rows: list[Row], asked: list[str]) -> dict[str, dict[str, float]]:
    """Return added instructions by row and variant; of ``bare`` those of the client alone."""
    import cells

    found: dict[str, dict[str, float]] = {}
    open_cells: dict[tuple[str, str], cells.Cell] = {}
    for row in rows:
        taken = {}
        for name in _variants_of(row, asked):
            key = (name, "sdk" if name == "bare" else row.situation)
            if key not in open_cells:
                open_cells[key] = cells.Cell(*key)
            taken[name] = _one(open_cells[key], _counted(row), "instructions")
        found[row.name] = {name: value - (name != "bare") * taken["bare"] for name, value in taken.items()}
    for cell in open_cells.values():
        cell.close()
    return found


def _counted(row: Row) -> Row:
    """The same in fewer steps: what is counted has no noise."""
    small, large = {"call": (4, 14), "untraced": (4, 14), "history": (1, 3), "async_streams": (2, 4)}.get(
        row.workload, (20, 220)
    )
    if row.name == "late_chunk":
        small, large = 1000, 1200
    return Row(**{**asdict(row), "small": small, "large": large})


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
