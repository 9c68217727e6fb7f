"""Agents and gateways: the files are valid, and an agent with two gateways keeps traces whole and loses nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml
from native import Ports, wait_until
from stack._api import get_text, query, read_traces
from stack._model import answer_for_boards, environment

from otel_llm_callback.testing import ScriptedServer

CHECKOUT = Path(__file__).parents[2]
SCALE_OUT = CHECKOUT / "stack" / "scale-out"
COMBINATIONS = [
    ["agent"],
    ["gateway"],
    ["agent", "remote-write"],
    ["gateway", "remote-write"],
]
KAFKA = [["agent", "kafka-agent"], ["gateway", "kafka-gateway"]]
STORES = sorted(path.name for path in SCALE_OUT.glob("jaeger-*.yaml"))
TRACES = 100
PER_TRACE = 3
SERVICES = ("first", "second")
DECIDED = re.compile(r"otelcol_processor_tail_sampling_global_count_traces_sampled_total\{[^}]*\} (\d+)")
BACKENDS = re.compile(r"otelcol_loadbalancer_num_backends\{[^}]*\} (\d+)")
ACCEPTED = "otelcol_receiver_accepted_spans_total"


def files(*names):
    return [CHECKOUT / "collector-config.yaml", *(SCALE_OUT / f"{name}.yaml" for name in names)]


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# --- The files --------------------------------------------------------------------------------------------------------


def test_every_file_of_the_folder_is_held_by_a_test():
    used = {f"{name}.yaml" for combination in COMBINATIONS + KAFKA for name in combination} | set(STORES)
    assert {path.name for path in SCALE_OUT.iterdir()} == used


@pytest.mark.parametrize("names", COMBINATIONS + KAFKA, ids="+".join)
def test_every_queue_is_on_disk_and_never_gives_up(names):
    exporters = {}
    for path in files(*names)[1:]:
        exporters |= load(path).get("exporters", {})
    for name, exporter in exporters.items():
        kept = exporter["wal"] if name == "prometheus_remote_write" else exporter["sending_queue"]["storage"]
        assert kept
        assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s"


@pytest.mark.parametrize("path", sorted(SCALE_OUT.glob("*.yaml")), ids=lambda path: path.stem)
def test_files_hold_no_secret_and_batch_nothing_that_is_already_acknowledged(path):
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"(?i)(?:password|token): (?!\$\{env:)\S+", text) == []
    assert not [
        pipeline
        for pipeline in load(path)["service"]["pipelines"].values()
        if "batch" in pipeline.get("processors", ())
    ]


@pytest.mark.stack
@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_the_collector_finds_every_file_valid(find_fault, names):
    assert find_fault("otelcol", *files(*names)) is None


@pytest.mark.stack
@pytest.mark.parametrize("name", STORES)
def test_jaeger_finds_the_files_of_its_stores_valid(find_fault, name):
    password = {f"JAEGER_{name[len('jaeger-') : -len('.yaml')].upper()}_PASSWORD": "for-the-test"}
    assert find_fault("jaeger", SCALE_OUT / name, **password) is None


@pytest.mark.stack
def test_jaeger_which_has_kafka_finds_those_parts_valid(find_fault, tmp_path):
    """The Collector that can be built from modules has no Kafka; Jaeger has, with one older name."""
    exporter = load(SCALE_OUT / "kafka-agent.yaml")["exporters"]["kafka"]
    receiver = load(SCALE_OUT / "kafka-gateway.yaml")["receivers"]["kafka"]
    del exporter["sending_queue"]["storage"]  # which Jaeger has not
    (receiver["traces"]["topic"],) = receiver["traces"].pop("topics")
    config = {
        "receivers": {"kafka": receiver},
        "exporters": {"kafka": exporter},
        "service": {"pipelines": {"traces": {"receivers": ["kafka"], "exporters": ["kafka"]}}},
    }
    path = tmp_path / "kafka.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert find_fault("jaeger", path) is None
    exporter["no_such_setting"] = True
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert "no_such_setting" in find_fault("jaeger", path)


# --- One agent, two gateways ------------------------------------------------------------------------------------------


class Collector:
    """A Collector with ports, queue and log of its own."""

    def __init__(self, program, folder, stack, configs, **more):
        self.ports = Ports.free()
        self.otlp_url = f"http://127.0.0.1:{self.ports.otlp_http}"
        self.grpc = f"127.0.0.1:{self.ports.otlp_grpc}"
        self._command = [program, *(f"--config={path}" for path in configs)]
        self._folder = folder
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
            **stack.collector_environment,
            "COLLECTOR_OTLP_GRPC_ENDPOINT": self.grpc,
            "COLLECTOR_OTLP_HTTP_ENDPOINT": f"127.0.0.1:{self.ports.otlp_http}",
            "COLLECTOR_HEALTH_ENDPOINT": f"127.0.0.1:{self.ports.collector_health}",
            "COLLECTOR_METRICS_PORT": str(self.ports.collector_metrics),
            "COLLECTOR_QUEUE_DIRECTORY": str(folder / "queue"),
            "COLLECTOR_SPAN_METRICS_INTERVAL": "1s",
            **more,
        }
        self._process = None

    def start(self):
        self._folder.mkdir(exist_ok=True)
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        wait_until(self._answers, f"the Collector of {self._folder}")

    def _answers(self):
        assert self._process.poll() is None, (self._folder / "log").read_text(encoding="utf-8")[-2000:]
        try:
            return bool(get_text(f"http://127.0.0.1:{self.ports.collector_health}/"))
        except OSError:
            return False

    def reread(self):
        """Have it read its files again."""
        self._process.send_signal(signal.SIGHUP)

    def stop(self, number=signal.SIGTERM):
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(timeout=30)

    def metrics(self):
        """What it says of itself; nothing while it reads its files again."""
        try:
            return get_text(f"http://127.0.0.1:{self.ports.collector_metrics}/metrics")
        except OSError:
            return ""

    def decided(self):
        """How many traces it has chosen to keep or not to keep."""
        return sum(int(count) for count in DECIDED.findall(self.metrics()))


class Tier:
    """One agent, two gateways, Jaeger and Prometheus."""

    def __init__(self, programs, folder, stack, ended, **settings):
        def collector(name, *configs, **more):
            made = Collector(programs["otelcol"], folder / name, stack, configs, **more)
            ended.callback(made.stop, signal.SIGKILL)
            return made

        self.stack = stack
        self._written = folder / "gateways.yaml"
        self.gateways = [collector(f"gateway-{n}", *files("gateway"), **settings) for n in (1, 2)]
        self.route_to(self.gateways)
        self.agent = collector("agent", *files("agent"), self._written)
        for part in (*self.gateways, self.agent):
            part.start()

    def route_to(self, gateways):
        """Write down the gateways, which the agent's own file finds by a name."""
        resolver = {"dns": None, "static": {"hostnames": [gateway.grpc for gateway in gateways]}}
        config = {"exporters": {"load_balancing": {"resolver": resolver}}}
        self._written.write_text(yaml.safe_dump(config), encoding="utf-8")

    @contextmanager
    def programs(self, pause_s):
        """Run two programs; yield a function that waits for them and returns their trace ids by kind."""
        with ExitStack() as running:
            server = running.enter_context(ScriptedServer(answer_for_boards))
            settings = {"OTEL_BSP_SCHEDULE_DELAY": "200", "OTEL_METRIC_EXPORT_INTERVAL": "1000"}
            started = [
                running.enter_context(
                    subprocess.Popen(
                        [
                            *(sys.executable, str(Path(__file__).with_name("_traces.py"))),
                            *(service, str(TRACES), "5", "3", str(pause_s)),
                        ],
                        env=environment(self.agent, server, **settings),
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
                for service in SERVICES
            ]
            for program in started:
                running.callback(program.kill)
                assert program.stdout.readline() == "started\n"

            def finish():
                made = {"failed": set(), "cut": set(), "usual": set()}
                for program in started:
                    output, _ = program.communicate(timeout=120)
                    for kind, traces in json.loads(output.splitlines()[-1]).items():
                        made[kind].update(traces)
                return made

            yield finish

    def stored(self):
        """How many spans of each trace Jaeger has."""
        return {
            trace_id: len(spans) for service in SERVICES for trace_id, spans in read_traces(self.stack, service).items()
        }


@pytest.fixture
def tier(programs, new_stack, tmp_path):
    with ExitStack() as ended:

        def make(**settings):
            stack = new_stack()
            for name in ("prometheus", "jaeger"):
                stack.start_one(name)
                stack.wait_for(name)
            return Tier(programs, tmp_path, stack, ended, **settings)

        yield make


@pytest.mark.stack
def test_traces_are_whole_errors_and_cut_answers_are_kept_and_of_the_rest_a_share(tier):
    tier = tier(GATEWAY_DECISION_WAIT="4s", GATEWAY_KEPT_PERCENT="30")
    with tier.programs(pause_s=0.02) as finish:
        made = finish()
    total = sum(map(len, made.values()))
    assert total == TRACES * len(SERVICES)
    wait_until(lambda: sum(gateway.decided() for gateway in tier.gateways) == total, "a choice for every trace", 60)
    always = made["failed"] | made["cut"]
    wait_until(lambda: tier.stored().keys() >= always, "failed and cut traces in Jaeger", 60)
    found = tier.stored()
    kept = made["usual"] & found.keys()
    per_gateway = [gateway.decided() for gateway in tier.gateways]
    print(
        f"traces {total}, by gateway {per_gateway}; failed {len(made['failed'])} and cut {len(made['cut'])}, all kept; "
        f"of {len(made['usual'])} others {len(kept)}"
    )
    assert set(found.values()) == {PER_TRACE}
    assert min(per_gateway) > total / 5
    assert 0.1 < len(kept) / len(made["usual"]) < 0.5  # more than four deviations on either side of 0.3
    calls = 'sum(traces_span_metrics_calls_total{gen_ai_operation_name="chat"})'
    wait_until(lambda: query(tier.stack, calls) == [({}, 2 * total)], "all calls in the span metrics", 30)


@pytest.mark.stack
@pytest.mark.parametrize("rerouted", [False, True], ids=["and waited for", "and left out"])
def test_nothing_is_lost_when_one_gateway_is_stopped_under_load(tier, rerouted):
    """What is for it waits for it, or goes to the other one; what it had is on its disk, and sent when it starts."""
    tier = tier(GATEWAY_DECISION_WAIT="2s", GATEWAY_KEPT_PERCENT="100")
    gone, stays = tier.gateways
    with tier.programs(pause_s=0.05) as finish:
        wait_until(lambda: ACCEPTED in gone.metrics(), "traffic at the gateway")
        gone.stop()
        made = set().union(*finish().values())
    spans = PER_TRACE * len(made)
    assert sum(tier.stored().values()) < spans  # the rest waits on the agent's disk
    if rerouted:
        tier.route_to([stays])
        tier.agent.reread()
        wait_until(lambda: BACKENDS.findall(tier.agent.metrics()) == ["1"], "an agent with one gateway")
    gone.start()
    try:
        wait_until(lambda: sum(tier.stored().values()) >= spans, "all spans in Jaeger", 90)
    finally:
        found = tier.stored()
        lost = spans - sum(min(PER_TRACE, found.get(trace_id, 0)) for trace_id in made)
        duplicated = sum(max(0, count - PER_TRACE) for count in found.values())
        print(f"sent {spans} spans, stored {sum(found.values())}, duplicated {duplicated}, lost {lost}")
    assert lost == 0
    assert (ACCEPTED in gone.metrics()) is not rerouted
