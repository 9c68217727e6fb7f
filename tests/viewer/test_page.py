"""The page, in a real browser."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from urllib.parse import quote

import openai
import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from viewer import _browser, _npm
from viewer._serving import serving
from viewer._spans import CALL, MS, request, span, trace_id

import otel_llm_callback
from otel_llm_callback.callbacks import LiveView
from otel_llm_callback.testing import ScriptedServer, StreamReply, chat_chunks
from otel_llm_callback.viewer import Options

WAIT_S = 30
HOSTILE = (
    """<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'"`${window.pwned=1}</title>&amp;</pre>"""
)
CONVERSATION = {
    **CALL,
    "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "You are Bob."}]),
    "gen_ai.input.messages": json.dumps(
        [
            {"role": "user", "parts": [{"type": "text", "content": "How warm is it?"}]},
            {
                "role": "assistant",
                "parts": [{"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Berlin"}}],
            },
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "12 degrees"}]},
        ]
    ),
    "gen_ai.output.messages": json.dumps(
        [
            {
                "role": "assistant",
                "parts": [
                    {"type": "reasoning", "content": "The tool says 12."},
                    {"type": "text", "content": "It is 12 degrees in Berlin."},
                ],
                "finish_reason": "stop",
            }
        ]
    ),
    "gen_ai.tool.definitions": json.dumps([{"type": "function", "name": "weather"}]),
    "gen_ai.usage.input_tokens": 140,
    "gen_ai.usage.output_tokens": 60,
    "gen_ai.usage.cache_read.input_tokens": 64,
    "gen_ai.usage.reasoning.output_tokens": 18,
    "llm_callback.cost": 0.0123,
    "gen_ai.request.temperature": 0.7,
    "llm_callback.chunk.count": 35,
    "llm_callback.chunk.longest_gap": 0.021,
    "llm_callback.retry.count": 1,
    "llm_callback.retry.wait": 0.15,
    "llm_callback.rate_limit.requests.limit": 500,
    "llm_callback.rate_limit.requests.remaining": 491,
    "session.id": "s-42",
}


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if _browser.find() is None:
        why = "Chromium and its driver are not here: apt-get install chromium chromium-driver"
        if os.environ.get("CI") == "true":
            pytest.fail(f"in CI the page must be tested, but {why}")
        pytest.skip(why)
    with _browser.browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(chromium, viewer):
    """A browser that looks at `viewer`. Nothing may be wrong in its console at the end."""
    page = Page(chromium, viewer.url.replace("127.0.0.1", "localhost"))
    chromium.get_log("browser")
    yield page
    complaints = [entry["message"] for entry in chromium.get_log("browser")]
    chromium.get("about:blank")
    assert complaints == []


class Page:
    def __init__(self, driver, url):
        self.driver = driver
        self.url = url
        _browser.look(driver)

    def open(self, path="/"):
        self.driver.get(self.url + path)
        self.until(lambda: self.driver.find_element(By.ID, "link").text == "live")
        return self

    def until(self, condition):
        wait = WebDriverWait(self.driver, WAIT_S, 0.05, ignored_exceptions=[StaleElementReferenceException, IndexError])
        return wait.until(lambda _: condition())

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.until(lambda: self.all(selector))[0]

    def texts(self, selector):
        script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)"
        return self.driver.execute_script(script, selector)

    def text(self):
        return self.driver.execute_script("return document.body.innerText")

    def press(self, *keys):
        self.driver.switch_to.active_element.send_keys(*keys)

    def focused(self):
        return self.driver.switch_to.active_element


@pytest.fixture
def instrumented_app(viewer):
    """The package at work beside the viewer: LiveView with content, and spans by an exporter."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{viewer.url}/v1/traces")))
    live = LiveView(viewer.url, content="full")
    otel_llm_callback.instrument(live, tracer_provider=provider, meter_provider=None, capture_content="span_only")
    yield live
    otel_llm_callback.uninstrument()
    provider.shutdown()


def test_a_streamed_call_appears_and_grows_before_it_ends(page, viewer, instrumented_app):
    """The seed's point: it is seen while it happens. The test holds the stream until the page has shown its start."""
    words = [f"word{number} " for number in range(12)]
    half = threading.Event()

    def held():
        """The chunks, the second half of them once the test says so."""
        for number, chunk in enumerate(chat_chunks(words, model="tiny-chat")):
            if number == 7:
                half.wait(WAIT_S)
            yield chunk

    page.open()
    with (
        ScriptedServer(lambda _: StreamReply(held())) as server,
        openai.OpenAI(api_key="k", base_url=server.url) as client,
    ):

        def ask():
            messages = [{"role": "user", "content": f"Tell me {HOSTILE}"}]
            for _ in client.chat.completions.create(model="tiny-chat", messages=messages, stream=True):
                pass

        asking = threading.Thread(target=ask)
        asking.start()
        page.until(lambda: "word5" in "".join(page.texts(".flight-text")))
        begun = page.texts(".flight-text")[0]
        assert viewer.traces() == []  # there is no span yet
        assert "word11" not in begun
        assert page.texts(".flight .mark") == ["streaming"]
        assert page.texts(".flight-prompt") == [f"user: Tell me {HOSTILE}"]
        half.set()
        asking.join(WAIT_S)
    page.until(lambda: page.texts("tbody a.row") == ["chat tiny-chat"])
    page.until(lambda: not page.all(".flight"))
    assert page.driver.execute_script("return window.pwned") is None


def test_filters_narrow_the_list(page, viewer):
    viewer.send(
        request(
            span(
                "chat gpt-4o", attributes={**CALL, "gen_ai.request.model": "gpt-4o", "session.id": "s-1"}, took_ms=2000
            ),
            span("chat tiny", attributes={**CALL, "gen_ai.request.model": "tiny", "user.id": "bob needle"}),
            span(
                "chat bad",
                failed=True,
                attributes={**CALL, "error.type": "RateLimitError", "llm_callback.outcome": "error"},
            ),
        )
    )
    page.open()
    every = ["chat gpt-4o", "chat tiny", "chat bad"]
    page.until(lambda: sorted(page.texts("tbody a.row")) == sorted(every))
    for name, shown, expected in (
        ("model", "tiny", "chat tiny"),
        ("error", "all errors", "chat bad"),
        ("error", "RateLimitError", "chat bad"),
        ("outcome", "error", "chat bad"),
        ("session", "s-1", "chat gpt-4o"),
        ("slower_ms", "over 1 s", "chat gpt-4o"),
    ):
        Select(page.one(f"select[name={name}]")).select_by_visible_text(shown)
        page.until(lambda expected=expected: page.texts("tbody a.row") == [expected])
        assert f"{name}=" in page.driver.current_url
        page.until(lambda: page.all(".filters button:not([hidden])"))
        page.one(".filters button").click()
        page.until(lambda: len(page.texts("tbody a.row")) == 3)
    page.one("#text").send_keys("NEEDLE", Keys.ENTER)
    page.until(lambda: page.texts("tbody a.row") == ["chat tiny"])
    page.driver.back()
    page.until(lambda: len(page.texts("tbody a.row")) == 3)
    page.open("/?model=none-such")
    page.until(lambda: "No trace matches these filters." in page.text())


def test_a_trace_shows_waterfall_conversation_and_facts(page, viewer):
    one, began = trace_id(), time.time_ns() - 1000 * MS
    turn = span("turn", trace=one, started_ns=began, took_ms=900, attributes={})
    call = span(
        trace=one,
        parent=turn.span_id,
        started_ns=began + 100 * MS,
        took_ms=600,
        attributes=CONVERSATION,
        events={"llm_callback.first_chunk": 200},
    )
    viewer.send(request(turn, call))
    page.open(f"/trace/{one.hex()}")
    page.until(lambda: page.all(".conversation"))
    assert page.texts(".wf-name") == ["turn", "chat gpt-4o-mini"]
    assert [node.get_attribute("title") for node in page.all(".wf-tick")] == ["llm_callback.first_chunk at 300 ms"]
    assert page.texts(".message h4") == ["system", "user", "assistant", "tool", "assistant stop"]
    said = page.texts(".message pre")
    assert said == [
        "You are Bob.",
        "How warm is it?",
        '{\n  "city": "Berlin"\n}',
        "12 degrees",
        "The tool says 12.",
        "It is 12 degrees in Berlin.",
    ]
    text = page.text()
    for line in (
        "140, of which 64 cached",
        "60, of which 18 reasoning",
        "Longest gap\t21 ms",
        "Retries\t1",
        "Waited between them\t150 ms",
        "491 of 500 left",
        "$0.01",
        "Temperature\t0.7",
    ):
        assert line in text, line


def test_what_is_copied_is_what_was_sent(page, viewer, tmp_path):
    """The curl command, run by a real shell, hands over the request and does nothing else, whatever was asked."""
    prompt = "it's $(touch pwned) `touch pwned` \\ \" ; touch pwned \n\x1b[201~ ü \u202e"
    messages = json.dumps([{"role": "user", "parts": [{"type": "text", "content": prompt}]}])
    call = span(attributes={**CALL, "gen_ai.input.messages": messages, "gen_ai.request.model": "m'$(touch pwned)"})
    viewer.send(request(call))
    permissions = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": page.url}
    page.driver.execute_cdp_cmd("Browser.grantPermissions", permissions)
    page.driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    page.open(f"/trace/{call.trace_id.hex()}")

    def copied(label):
        button = next(b for b in page.until(lambda: page.all(".detail button")) if b.text == label)
        button.click()
        page.until(lambda: button.text == "Copied")
        return page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")

    stored = json.loads(copied("Copy as JSON"))
    assert stored["attributes"]["gen_ai.input.messages"] == messages
    command = copied("Copy as curl")
    assert command.isascii()
    assert "\x1b" not in command
    program = 'curl() { for argument; do last=$argument; done; printf %s "$last"; }\n' + command
    result = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == {"model": "m'$(touch pwned)", "messages": [{"role": "user", "content": prompt}]}
    assert [item.name for item in tmp_path.iterdir() if not item.name.startswith("view.db")] == []


def hostile_spans():
    """Every text that a sender chooses, chosen to run."""
    one = trace_id()
    part = {"type": "text", "content": HOSTILE}
    odd = [
        {
            "role": HOSTILE,
            "name": HOSTILE,
            "parts": [part, {"type": HOSTILE, "x": HOSTILE}, HOSTILE, None, 1],
            "finish_reason": HOSTILE,
        },
        {"role": "assistant", "parts": [{"type": "tool_call", "name": HOSTILE, "arguments": HOSTILE}]},
        HOSTILE,
        None,
        {"parts": {"deep": HOSTILE}},
    ]
    told = {
        **CALL,
        **dict.fromkeys(
            ("gen_ai.request.model", "gen_ai.response.model", "gen_ai.response.id", "session.id", "server.address"),
            HOSTILE,
        ),
        **dict.fromkeys(("error.type", "llm_callback.outcome", "gen_ai.operation.name", "user.id", HOSTILE), HOSTILE),
        "gen_ai.input.messages": json.dumps(odd),
        "gen_ai.output.messages": HOSTILE,
        "gen_ai.system_instructions": json.dumps([part]),
        "gen_ai.tool.definitions": json.dumps([{"name": HOSTILE}]),
        "__proto__": HOSTILE,
        "list": [HOSTILE, {HOSTILE: HOSTILE}],
    }
    made = span(HOSTILE, trace=one, failed=True, attributes=told, events={HOSTILE: 10})
    made.status.message = HOSTILE
    return made


def test_a_hostile_sender_gets_text_on_the_page_and_nothing_else(page, viewer):
    """On every page, in every place: nothing runs, nothing becomes an element, nothing is cut away either."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    made = hostile_spans()
    viewer.send(request(made, service=HOSTILE))
    meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(f"{viewer.url}/v1/metrics"))])
    meters.get_meter("m").create_counter("c", unit="1").add(1, {HOSTILE: HOSTILE})
    meters.shutdown()
    live = {
        "events": [
            {
                "event": "request",
                "call_id": "c",
                "at_ms": 1.0,
                **dict.fromkeys(("model", "operation", "prompt", "process", "session_id"), HOSTILE),
            },
            {"event": "chunk", "call_id": "c", "at_ms": 2.0, "text": HOSTILE},
        ]
    }
    assert viewer("POST", "/v1/live", json.dumps(live).encode(), content_type="application/json").status == 204
    paths = (
        "/",
        "/charts",
        "/metrics",
        f"/trace/{made.trace_id.hex()}",
        f"/session/{quote(HOSTILE, safe='')}",
        f"/?model={quote(HOSTILE)}",
    )
    for path in paths:
        page.open(path)
        page.until(lambda: HOSTILE in page.driver.execute_script("return document.querySelector('main').textContent"))
        time.sleep(0.2)  # an image that fails to load would have said so by then
        counts = page.driver.execute_script(
            "const count = (selector) => document.querySelectorAll(selector).length;"
            "return [window.pwned ?? null, count('main script, main img, main iframe, main style'), count('[onerror]'),"
            " document.title.includes('<')]"
        )
        assert counts == [None, 0, 0, False], path
    page.open(paths[3])
    page.until(lambda: page.all(".conversation"))
    assert HOSTILE in page.texts(".message pre")
    assert page.texts("h1") == [HOSTILE]


def test_the_charts_move(page, viewer):
    page.open("/charts")
    label = "return document.querySelector('#chart-calls .plot').getAttribute('aria-label')"
    pixels = "return document.querySelector('#chart-calls canvas').toDataURL()"
    page.until(lambda: page.all("#chart-calls canvas"))
    before = page.driver.execute_script(label), page.driver.execute_script(pixels)
    viewer.send(request(*(span() for _ in range(50))))
    page.until(lambda: page.driver.execute_script(label) != before[0])
    page.until(lambda: page.driver.execute_script(pixels) != before[1])
    page.one("#chart-latency summary").click()
    page.until(lambda: "100 ms" in page.one("#chart-latency table").text)


def test_ten_thousand_spans_open(page, viewer):
    """Only the rows in sight are elements, and the last one is a key away."""
    one, began = trace_id(), time.time_ns() - 20_000 * MS
    root = span("root", trace=one, started_ns=began, took_ms=20_000, attributes={})
    children = [
        span(f"chat {n}", trace=one, parent=root.span_id, started_ns=began + n * MS, took_ms=5) for n in range(9999)
    ]
    for start in range(0, len(children), 2000):
        viewer.send(request(*children[start : start + 2000], more=[root] if start == 0 else []))
    page.open(f"/trace/{one.hex()}")
    body = page.one(".wf-body")
    page.until(lambda: body.get_attribute("aria-rowcount") == "10000")
    assert 0 < len(page.all(".wf-row")) < 100
    body.send_keys(Keys.END)
    page.until(lambda: page.texts(".wf-row.chosen .wf-name") == ["chat 9998"])
    page.until(lambda: page.texts(".detail h2") == ["chat 9998"])


def test_the_keyboard_is_enough(page, viewer):
    began = time.time_ns() - 1000 * MS
    for number in range(3):
        viewer.send(request(span(f"chat {number}", started_ns=began + number * MS)))
    page.open()
    page.until(lambda: page.texts("tbody a.row") == ["chat 2", "chat 1", "chat 0"])
    page.press("/")
    assert page.focused().get_attribute("id") == "text"
    page.press(Keys.ESCAPE)
    page.press("j")
    page.press("j")
    assert page.focused().text == "chat 1"
    page.press("k")
    page.press(Keys.ENTER)
    page.until(lambda: page.texts("h1") == ["chat 2"])
    page.press("?")
    page.until(lambda: page.all("dialog[open]"))
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.all("dialog"))
    page.driver.find_element(By.TAG_NAME, "body").send_keys("h")
    page.until(lambda: page.driver.current_url.endswith("/charts"))
    page.press(Keys.ESCAPE)
    page.until(lambda: page.texts("tbody a.row")[:1] == ["chat 2"])


def test_the_list_grows_by_itself_and_keeps_the_focus(page, viewer):
    page.open()
    viewer.send(request(span("chat one")))
    page.until(lambda: page.texts("tbody a.row") == ["chat one"])
    page.press("j")
    viewer.send(request(span("chat two", started_ns=time.time_ns())))
    page.until(lambda: page.texts("tbody a.row") == ["chat two", "chat one"])
    assert page.focused().text == "chat one"


def test_a_session_is_shown_as_the_terminal_prints_it(page, viewer):
    viewer.send(request(span(attributes={**CALL, "session.id": "s/42 ?"})))
    page.open()
    page.one("td a.chip").click()
    page.until(lambda: page.texts("h1") == ["Session s/42 ?"])
    page.until(lambda: "Tokens per response 15.0 on average over 1 response" in page.one("table.summary").text)
    page.one("a.button").click()
    page.until(lambda: page.texts("tbody a.row") == ["chat gpt-4o-mini"])


def test_a_token_is_asked_for_and_leaves_the_address(chromium, tmp_path):
    token = "a-token-that-is-long-enough"
    with serving(Options(port=0, store=None, token=token)) as locked:
        locked.send(request(span("chat secret")), authorization=f"Bearer {token}")
        page = Page(chromium, locked.url.replace("127.0.0.1", "localhost"))
        chromium.get(page.url)
        page.one("dialog input").send_keys("wrong", Keys.ENTER)
        page.until(lambda: page.texts("dialog p") == ["That is not the token."])
        assert "chat secret" not in page.text()
        page.one("dialog input").clear()
        page.one("dialog input").send_keys(token, Keys.ENTER)
        page.until(lambda: page.texts("tbody a.row") == ["chat secret"])
        chromium.delete_all_cookies()
        chromium.get("about:blank")
        chromium.get(f"{page.url}/#token={token}")
        page.until(lambda: page.texts("tbody a.row") == ["chat secret"])
        assert token not in chromium.current_url
        chromium.get("about:blank")
        chromium.get_log("browser")


def fill(viewer):
    """Something of everything."""
    one, began = trace_id(), time.time_ns() - 3000 * MS
    turn = span("turn", trace=one, started_ns=began, took_ms=900, attributes={})
    call = span(
        trace=one,
        parent=turn.span_id,
        started_ns=began + 100 * MS,
        took_ms=600,
        attributes=CONVERSATION,
        events={"first": 200},
    )
    bad = span(
        trace=one,
        parent=turn.span_id,
        started_ns=began + 700 * MS,
        failed=True,
        attributes={**CALL, "error.type": "RateLimitError"},
    )
    viewer.send(request(turn, call, bad))
    live = {
        "events": [{"event": "request", "call_id": "c", "at_ms": time.time() * 1000, "model": "m", "operation": "chat"}]
    }
    viewer("POST", "/v1/live", json.dumps(live).encode(), content_type="application/json")
    return one.hex()


@pytest.fixture(scope="module")
def axe():
    return (_npm.packages() / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_accessibility_checker_finds_nothing(page, viewer, axe, dark):
    """Contrast, names, roles, landmarks, order of headings: axe-core on every page, in both themes, wide and narrow."""
    one = fill(viewer)
    for size in ({"width": 1360, "height": 860}, {"width": 390, "height": 800, "mobile": True}):
        _browser.look(page.driver, dark=dark, **size)
        for path in ("/", "/charts", "/metrics", f"/trace/{one}?span=none", "/session/s-42", "/?model=none"):
            page.open(path)
            page.until(lambda: page.all("main > *"))
            time.sleep(0.5)
            page.driver.execute_script(axe)
            found = page.driver.execute_async_script(
                "axe.run(document, {resultTypes: ['violations']}).then((r) => arguments[0](r.violations.map("
                "(v) => [v.id, v.nodes.map((n) => n.html.slice(0, 160) + ' ' + n.failureSummary)])))"
            )
            assert found == [], path
    _browser.look(page.driver)


def test_a_phone_needs_no_sideways_scrolling(page, viewer):
    one = fill(viewer)
    _browser.look(page.driver, width=360, height=740, mobile=True)
    for path in ("/", "/charts", "/metrics", f"/trace/{one}", "/session/s-42"):
        page.open(path)
        page.until(lambda: page.all("main > *"))
        time.sleep(0.3)
        widths = page.driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert widths == [360, 360], path
    _browser.look(page.driver)


def test_the_theme_can_be_switched_and_is_remembered(page, viewer):
    page.open()
    background = "return getComputedStyle(document.body).backgroundColor"
    light = page.driver.execute_script(background)
    page.one("#theme").click()
    dark = page.driver.execute_script(background)
    assert dark != light
    page.open("/charts")
    assert page.driver.execute_script(background) == dark
    page.one("#theme").click()
    assert page.driver.execute_script(background) == light
