"""Where alerts go: a webhook that never holds anybody up, and a span of their own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
import threading
import time
from datetime import datetime, timezone
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from otel_llm_callback import flush, instrument, status
from otel_llm_callback.callbacks import Alert, AlertSpan, CostRateAlert, LatencyAlert, Webhook
from otel_llm_callback.testing import make_request, make_response

ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
A_WHILE_S = 10.0
SECRET = "sec" + "ret"


def make_alert(**over):
    facts = {
        "name": "latency",
        "state": "fired",
        "value": 2.5,
        "threshold": 1,
        "unit": "s",
        "statistic": "p95",
        "above": True,
        "window_s": 300.0,
        "calls": 40,
        "group": "gpt-4o",
        "call_id": "call-1",
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
        "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
    }
    return Alert(**{**facts, **over})


class Receiver:
    """An HTTP server that notes what is posted and answers as told: a status, or None to leave without an answer."""

    def __init__(self, *answers, gate=None):
        self.posted = []
        self.reached = threading.Event()
        receiver = self
        left = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.posted.append((self.path, dict(self.headers), body))
                receiver.reached.set()
                if gate is not None:
                    gate.wait(A_WHILE_S)
                answer = left.pop(0) if left else 200
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer)
                if 300 <= answer < 400:
                    self.send_header("Location", f"http://127.0.0.1:{receiver.port}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self):
                receiver.posted.append((self.path, dict(self.headers), b"followed"))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hooks/{SECRET}"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def webhook():
    """Make webhooks, and have their threads end with the test."""
    made = []

    def make(url, **options):
        made.append(Webhook(url, **{"backoff_s": 0.01, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


def counts(webhook):
    return webhook.delivered, webhook.failed, webhook.dropped


def test_webhook_posts_the_alert_as_json(webhook):
    """All fields and a line for people; nothing of what was asked or answered can be in it."""
    with Receiver() as receiver:
        hook = webhook(receiver.url, headers={"Authorization": "Bearer t"})
        hook(make_alert())
        assert flush()
    [(path, headers, body)] = receiver.posted
    assert (path, headers["Content-Type"], headers["Authorization"]) == (
        f"/hooks/{SECRET}",
        "application/json",
        "Bearer t",
    )
    assert json.loads(body) == {
        "name": "latency",
        "state": "fired",
        "value": 2.5,
        "threshold": 1,
        "unit": "s",
        "statistic": "p95",
        "above": True,
        "window_s": 300.0,
        "calls": 40,
        "group": "gpt-4o",
        "call_id": "call-1",
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
        "at": "2026-01-02T03:04:05+00:00",
        "text": "latency of gpt-4o fired: p95 is 2.5 s, alert is above 1 s, 40 calls in 300 s",
    }
    assert counts(hook) == (1, 0, 0)


def test_money_is_posted_exactly(webhook):
    with Receiver() as receiver:
        alert = CostRateAlert("0.10", webhook(receiver.url), window_s=3600)
        alert.on_response_received(make_response(cost=Decimal("0.123456789012345678")), "")
        assert flush()
    assert json.loads(receiver.posted[0][2])["value"] == "0.123456789012345678"


@pytest.mark.parametrize("answer", [500, 503, 408, 429, None])
def test_passing_trouble_is_tried_again(webhook, answer):
    """A server error, a limit, or no answer at all: the same body again until it is taken."""
    with Receiver(answer, answer) as receiver:
        hook = webhook(receiver.url)
        hook(make_alert())
        assert flush()
    assert counts(hook) == (1, 0, 0)
    assert [body for _, _, body in receiver.posted] == [receiver.posted[0][2]] * 3


@pytest.mark.parametrize("answer", [400, 401, 404, 302, 307])
def test_a_no_is_a_no(webhook, answer, expected_logs):
    """It is not tried again and no redirect is followed; the loss is counted and logged without the address."""
    with Receiver(*[answer] * 5) as receiver:
        hook = webhook(receiver.url)
        hook(make_alert())
        assert flush()
    assert (counts(hook), len(receiver.posted)) == ((0, 1, 0), 1)
    assert status().errors == {"webhook": 1}
    assert SECRET not in expected_logs[0].getMessage() + repr(hook)


def test_it_gives_up_after_so_many_attempts(webhook, expected_logs):
    with Receiver(*[500] * 9) as receiver:
        hook = webhook(receiver.url, attempts=3)
        hook(make_alert())
        assert flush()
    assert (counts(hook), len(receiver.posted)) == ((0, 1, 0), 3)


def test_nobody_listening_is_counted_and_harms_nobody(webhook, expected_logs):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        hook = webhook(f"http://127.0.0.1:{unused.getsockname()[1]}", attempts=2)
        hook(make_alert())
        assert flush()
    assert counts(hook) == (0, 1, 0)


def test_slow_server_holds_up_neither_caller_nor_callback(server, client, webhook, expected_logs):
    """While the first post hangs, calls return, alerts go on, and what does not fit is dropped and counted."""
    gate = threading.Event()
    with Receiver(gate=gate) as receiver:
        hook = webhook(receiver.url, queue_size=2)
        told = []
        instrument(LatencyAlert(0.000001, told.append, hook, min_calls=1, max_calls=1), telemetry=False)
        client.chat.completions.create(**ASKED)
        assert receiver.reached.wait(A_WHILE_S)
        for _ in range(5):
            hook(make_alert())
        client.chat.completions.create(**ASKED)
        assert (len(told), hook.dropped, status().errors) == (1, 3, {"webhook": 3})
        gate.set()
        assert flush()
        assert counts(hook) == (3, 0, 3)


def test_answer_that_does_not_come_in_time_is_given_up(webhook, expected_logs):
    gate = threading.Event()
    with Receiver(gate=gate) as receiver:
        hook = webhook(receiver.url, timeout_s=0.1, attempts=2)
        hook(make_alert())
        assert flush()
        assert (counts(hook), len(receiver.posted)) == ((0, 1, 0), 2)
        gate.set()


def test_closed_webhook_sends_what_waits_and_takes_no_more(webhook, expected_logs):
    with Receiver() as receiver:
        hook = webhook(receiver.url)
        hook(make_alert())
        hook.close()
        hook.close()
        hook(make_alert())
        deadline = time.monotonic() + A_WHILE_S
        while hook.delivered < 1:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    assert (counts(hook), len(receiver.posted)) == ((1, 0, 1), 1)


@pytest.mark.parametrize(("answers", "posts"), [((), 1), ((None,) * 99, None)], ids=["well", "dead"])
def test_exit_sends_what_waits_within_its_budget(server, answers, posts):
    """A webhook that takes it gets it; one that never does costs no more than ``exit_timeout``."""
    with Receiver(*answers) as receiver:
        program = f"""
            import openai, otel_llm_callback
            from otel_llm_callback.callbacks import LatencyAlert, Webhook
            hook = Webhook({receiver.url!r}, attempts=1000, backoff_s=0.2)
            otel_llm_callback.instrument(LatencyAlert(0.000001, hook, min_calls=1), telemetry=False, exit_timeout=1)
            openai.OpenAI(api_key="none", base_url={server.url!r}).chat.completions.create(model="m", messages=[])
        """
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(program)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(receiver.posted) == posts if posts else len(receiver.posted) >= 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"url": "file:///etc/passwd"}, "url is not allowed; allowed: one that begins with http"),
        ({"url": "https://"}, "names a host"),
        ({"url": "http://a", "timeout_s": 0}, "timeout_s=0 is not allowed"),
        ({"url": "http://a", "attempts": 0}, "attempts=0 is not allowed"),
        ({"url": "http://a", "queue_size": 0}, "queue_size=0 is not allowed"),
        ({"url": "http://a", "backoff_s": -1}, "backoff_s=-1 is not allowed"),
    ],
)
def test_mistake_raises_when_the_webhook_is_made(arguments, text):
    with pytest.raises(ValueError, match=text):
        Webhook(**arguments)


def test_alert_span_is_its_own_and_links_to_the_worst_call(server, client, telemetry):
    """The call's span has ended before; it is not touched, and nothing else of the trace is."""
    instrument(
        LatencyAlert(0.000001, AlertSpan(telemetry.tracer_provider), min_calls=1, group_by="model"),
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
    )
    client.chat.completions.create(**ASKED)
    assert flush()
    call, alert = sorted(telemetry.spans(), key=lambda span: span.name == "alert latency")
    assert (alert.name, alert.parent, [link.context.span_id for link in alert.links]) == (
        "alert latency",
        None,
        [call.context.span_id],
    )
    assert [event.name for event in alert.events] == ["llm_callback.alert.fired"]
    assert "llm_callback.alert.fired" not in [event.name for event in call.events]
    expected = {
        "name": "latency",
        "state": "fired",
        "value": alert.attributes["llm_callback.alert.value"],
        "threshold": 0.000001,
        "unit": "s",
        "statistic": "p95",
        "above": True,
        "window_s": 300.0,
        "calls": 1,
        "group": "gpt-4o-mini",
        "call_id": alert.attributes["llm_callback.alert.call_id"],
    }
    assert dict(alert.attributes) == {f"llm_callback.alert.{name}": value for name, value in expected.items()}
    assert dict(alert.events[0].attributes) == dict(alert.attributes)


def test_alert_span_takes_money_and_calls_without_a_trace(telemetry):
    alert = CostRateAlert("0.1", AlertSpan(telemetry.tracer_provider), window_s=3600)
    alert.on_response_received(make_response(request=make_request(), cost=Decimal("0.25")), "")
    [span] = telemetry.spans()
    assert (span.attributes["llm_callback.alert.value"], span.links) == (0.25, ())


def test_targets_show_no_secret():
    assert [repr(AlertSpan()), repr(Webhook(f"https://hooks.example.com/{SECRET}"))] == [
        "AlertSpan()",
        "<Webhook to hooks.example.com: 0 delivered>",
    ]
