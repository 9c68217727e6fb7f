"""One instrumentation in one situation, in a process of its own, since each changes the client's classes.

The processes are forked from one that has imported the client and the SDK, so starting one costs next to nothing, under
valgrind too. They do what the parent asks for: so many calls, measured one way or the other.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import re
import resource
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import workloads
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

_CAPTURE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_NEVER_MS: Final = 3_600_000
_FORK: Final = multiprocessing.get_context("fork")

SITUATIONS: Final = ("sdk", "content", "unsampled", "no_sdk")
"""Traces and metrics go to exporters that drop them; the same with content; nothing is sampled and there are no
metrics; no SDK is configured."""


@dataclass(frozen=True)
class Variant:
    """An instrumentation.

    Attributes:
        name: How results call it.
        set_up: Instruments this process.
        module: What must be importable.
        content_on: Environment that turns message content on.
        content_off: Environment that turns it off.
    """

    name: str
    set_up: Callable[[], object]
    module: str = "openai"
    content_on: dict[str, str] = field(default_factory=lambda: {_CAPTURE: "span_only"})
    content_off: dict[str, str] = field(default_factory=dict)

    def is_installed(self) -> bool:
        try:
            return importlib.util.find_spec(self.module) is not None
        except ImportError:
            return False


def _floor(name: str) -> Callable[[], object]:
    def set_up() -> object:
        return getattr(importlib.import_module("floor"), name)()  # imported where it is measured, not before

    return set_up


def _instrumentor(module: str) -> Callable[[], object]:
    return lambda: importlib.import_module(module).OpenAIInstrumentor().instrument()


def _ours(callbacks: str = "", **settings: Any) -> Callable[[], object]:
    def set_up() -> None:
        made = getattr(importlib.import_module("listeners"), callbacks)() if callbacks else ()
        importlib.import_module("otel_llm_callback").instrument(*made, **settings)

    return set_up


OURS: Final = "ours"
PEERS: Final = (
    Variant(
        "official",
        _instrumentor("opentelemetry.instrumentation.genai.openai"),
        "opentelemetry.instrumentation.genai.openai",
    ),
    Variant(
        "openllmetry",
        _instrumentor("opentelemetry.instrumentation.openai"),
        "opentelemetry.instrumentation.openai",
        {"TRACELOOP_TRACE_CONTENT": "true"},
        {"TRACELOOP_TRACE_CONTENT": "false"},
    ),
    Variant(
        "openinference",
        _instrumentor("openinference.instrumentation.openai"),
        "openinference.instrumentation.openai",
        {},
        {"OPENINFERENCE_HIDE_INPUTS": "true", "OPENINFERENCE_HIDE_OUTPUTS": "true"},
    ),
)
MAIN: Final = (
    Variant("bare", lambda: None),
    Variant("floor", _floor("setup_floor")),
    Variant("same", _floor("setup_same")),
    Variant(OURS, _ours()),
    *PEERS,
)
EXTRA: Final = (
    Variant("ours_all_gaps", _ours(chunk_timing="all")),
    Variant("ours_ten_inline", _ours("ten", delivery="inline")),
    Variant("ours_ten_queued", _ours("ten", delivery="queued", queue_size=200_000)),
    Variant("ours_chunks_inline", _ours("chunks", delivery="inline")),
    Variant("ours_chunks_queued", _ours("chunks", delivery="queued", queue_size=200_000)),
)
VARIANTS: Final = {variant.name: variant for variant in (*MAIN, *EXTRA)}


def installed() -> list[str]:
    return [variant.name for variant in MAIN if variant.is_installed()]


class Cell:
    """A process in which one variant is on."""

    def __init__(self, variant: str, situation: str) -> None:
        self.variant = variant
        self.situation = situation
        self._pipe, theirs = _FORK.Pipe()
        self._process = _FORK.Process(target=_serve, args=(theirs, variant, situation), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, what: str, workload: str, size: int) -> float:
        """Run a workload of that size; return what *what* measures of it."""
        self._pipe.send((what, workload, size))
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise RuntimeError(f"{self.variant}, {self.situation}, {workload}: {answer}")
        return answer

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


def _serve(pipe: Connection, variant: str, situation: str) -> None:
    warnings.simplefilter("ignore")
    _prepare(variant, situation)
    made: dict[str, Callable[[int], None]] = {}
    while True:
        try:
            what, name, size = pipe.recv()
        except EOFError:
            os._exit(0)
        try:
            if name not in made:
                made[name] = workloads.make(name)
                made[name](10)  # plans, caches and what the client loads on its first call
                gc.collect()
                gc.freeze()
            pipe.send(MEASURES[what](made[name], size))
        except Exception as error:
            pipe.send(repr(error))


def _prepare(name: str, situation: str) -> None:
    variant = VARIANTS[name]
    os.environ.update(variant.content_on if situation == "content" else variant.content_off)
    if situation != "no_sdk":
        tracers = TracerProvider(sampler=ALWAYS_OFF if situation == "unsampled" else ALWAYS_ON)
        tracers.add_span_processor(
            BatchSpanProcessor(_DropSpans(), max_queue_size=4096, schedule_delay_millis=_NEVER_MS)
        )
        trace.set_tracer_provider(tracers)
    if situation in ("sdk", "content"):
        metrics.set_meter_provider(
            MeterProvider([PeriodicExportingMetricReader(_DropMetrics(), export_interval_millis=_NEVER_MS)])
        )
    variant.set_up()


class _DropSpans(SpanExporter):
    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class _DropMetrics(MetricExporter):
    def export(self, metrics_data: object, timeout_millis: float = 0, **kwargs: object) -> MetricExportResult:
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **kwargs: object) -> None:
        pass


def _cpu_ns(run: Callable[[int], None], size: int) -> float:
    """CPU time of this thread: what a caller pays, without what exporters and queues do elsewhere."""
    started = time.thread_time_ns()
    run(size)
    return time.thread_time_ns() - started


def _instructions(run: Callable[[int], None], size: int) -> float:
    """Instructions executed, which only works below callgrind.

    Its `--dump-before=getloadavg` writes and resets its counts whenever that function, which nothing else calls, is
    entered; so the last file holds what the workload executed.
    """
    os.getloadavg()
    run(size)
    os.getloadavg()
    folder = Path(os.environ["BENCHMARK_COUNTS"])
    dumps = sorted(folder.glob(f"counts.{os.getpid()}.*"), key=lambda path: int(path.suffix[1:]))
    found = re.search(r"^(?:totals|summary): (\d+)", dumps[-1].read_text("utf-8"), re.MULTILINE)
    for dump in dumps:
        dump.write_text("")
    if found is None:
        raise RuntimeError("callgrind wrote no count")
    return int(found[1])


def _growth_bytes(run: Callable[[int], None], size: int) -> float:
    """Bytes of resident memory by which the process grows."""
    gc.collect()
    before = _resident()
    run(size)
    gc.collect()
    return _resident() - before


def _resident() -> int:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text("ascii").split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


MEASURES: Final = {"cpu_ns": _cpu_ns, "instructions": _instructions, "growth_bytes": _growth_bytes}
