"""Who gets in: no other site's page, nobody without the token where one is needed; and the headers on every answer."""

from __future__ import annotations

import json

import pytest
from viewer._serving import JSON, PROTOBUF, serving
from viewer._spans import request, span

from otel_llm_callback.viewer import Options, OptionsError

TOKEN = "a-token-that-is-long-enough"


@pytest.fixture(scope="module")
def open_viewer():
    with serving(Options(port=0, store=None)) as client:
        yield client


@pytest.fixture(scope="module")
def locked():
    with serving(Options(port=0, store=None, token=TOKEN, names=("viewer.example",))) as client:
        yield client


PATHS = [
    ("GET", "/"),
    ("GET", "/static/view.js"),
    ("GET", "/api/traces"),
    ("GET", "/api/events"),
    ("POST", "/v1/traces"),
    ("POST", "/v1/live"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "192.0.2.1", "127.0.0.1.nip.example", "", "[", "@localhost:x"]
)
def test_a_name_that_is_not_ours_is_turned_away(open_viewer, method, path, host):
    """A page of evil.example whose name now leads to this machine (DNS rebinding) is not our page."""
    answer = open_viewer(method, path, b"" if method == "POST" else None, host=host)
    assert answer.status in (400, 403)
    assert b"{" not in answer.body


def test_two_names_are_none(open_viewer):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", open_viewer.address.port)
    connection.putrequest("GET", "/api/traces", skip_host=True)
    connection.putheader("host", "localhost")
    connection.putheader("host", "evil.example")
    connection.endheaders()
    assert connection.getresponse().status in (400, 403)
    connection.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "localhost:1", "127.0.0.2:4318"])
def test_every_name_of_this_machine_will_do(open_viewer, host):
    assert open_viewer("GET", "/api/traces", host=host).status == 200


STRANGERS = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:1"},
    {"origin": ""},
    {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"},
    {"sec_fetch_site": "same-site", "sec_fetch_mode": "cors"},
    {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"},
]


@pytest.mark.parametrize(("method", "path"), PATHS[2:])
@pytest.mark.parametrize("headers", STRANGERS, ids=str)
def test_another_sites_page_neither_reads_nor_writes(open_viewer, method, path, headers):
    body = request(span()).SerializeToString() if method == "POST" else None
    answer = open_viewer(method, path, body, content_type=PROTOBUF, **headers)
    assert answer.status == 403
    assert not any(name.startswith("access-control-") for name in answer.headers)


def test_no_other_site_is_ever_allowed_to_ask(open_viewer):
    """There is no CORS: the question before the question gets no yes."""
    headers = {"origin": "https://evil.example", "access_control_request_method": "POST"}
    for path in ("/v1/traces", "/api/traces"):
        answer = open_viewer("OPTIONS", path, **headers)
        assert answer.status in (403, 405)
        assert not any(name.startswith("access-control-") for name in answer.headers)


def test_our_own_page_and_a_link_to_it_get_in(open_viewer):
    own = f"localhost:{open_viewer.address.port}"
    assert open_viewer("GET", "/api/traces", host=own, origin=f"http://{own}").status == 200
    assert open_viewer("GET", "/api/traces", sec_fetch_site="same-origin").status == 200
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert open_viewer("GET", "/", **link).status == 200
    assert open_viewer("GET", f"/trace/{'a' * 32}", **link).status == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/static/view.js", 200), ("/api/traces", 200), ("/none", 404), ("/api/traces/zz", 404)],
)
def test_every_answer_carries_the_rules(open_viewer, path, status):
    answer = open_viewer("GET", path)
    assert answer.status == status
    policy = dict(part.partition(" ")[::2] for part in answer.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    expected = {
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
    }
    assert {name: answer.headers[name] for name in expected} == expected
    assert "server" not in answer.headers


def test_a_refusal_carries_the_rules_too(open_viewer):
    answer = open_viewer("GET", "/", host="evil.example")
    assert (answer.status, answer.headers["x-content-type-options"]) == (403, "nosniff")


@pytest.mark.parametrize(("method", "path"), PATHS[2:])
@pytest.mark.parametrize("token", [None, "wrong", "", TOKEN[:-1], TOKEN + "x", "ü"])
def test_without_the_token_nothing_is_told_and_nothing_taken(token, method, path):
    with serving(Options(port=0, store=None, token=TOKEN)) as locked:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        answer = locked(method, path, b"" if method == "POST" else None, content_type=PROTOBUF, **headers)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_with_the_token_senders_and_the_page_get_in(locked):
    assert locked.send(request(span()), authorization=f"Bearer {TOKEN}").status == 200
    assert locked("GET", "/").status == 200
    assert locked.get("/api/about")["needs_token"] is True
    answer = locked("POST", "/api/login", json.dumps({"token": TOKEN}).encode(), content_type=JSON)
    cookie, *flags = answer.headers["set-cookie"].split("; ")
    assert (answer.status, {flag.lower() for flag in flags}) == (204, {"httponly", "path=/", "samesite=strict"})
    assert TOKEN not in cookie
    assert len(locked.get("/api/traces", cookie=cookie)["traces"]) == 1
    assert locked("GET", "/api/traces", cookie=cookie[:-1]).status == 401


def test_a_further_name_is_one_of_ours(locked):
    assert locked("GET", "/api/about", host="viewer.example:80").status == 200
    assert locked("GET", "/api/about", host="other.example").status == 403


def test_guessing_is_stopped():
    """After twenty wrong tokens in a minute not even the right one is believed."""
    with serving(Options(port=0, store=None, token=TOKEN)) as viewer:
        wrong = json.dumps({"token": "wrong"}).encode()
        assert [viewer("POST", "/api/login", wrong).status for _ in range(20)] == [401] * 20
        assert viewer("POST", "/api/login", json.dumps({"token": TOKEN}).encode()).status == 401


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "can be reached from other machines"),
        ({"host": "::"}, "can be reached from other machines"),
        ({"host": "box.example"}, "can be reached from other machines"),
        ({"token": "short"}, "at least 16 characters"),
        ({"port": 70_000}, "must be from 0 to 65535"),
    ],
)
def test_unsafe_options_are_refused_at_once(options, message):
    with pytest.raises(OptionsError, match=message):
        Options(**options)


def test_reachable_from_elsewhere_addresses_will_do_but_names_must_be_given():
    options = Options(host="0.0.0.0", port=0, store=None, token=TOKEN, names=("box.example",))
    with serving(options) as viewer:
        hosts = {"192.0.2.7:4318": 200, "box.example": 200, "localhost": 200, "evil.example": 403}
        assert {host: viewer("GET", "/api/about", host=host).status for host in hosts} == hosts


def test_the_token_is_in_no_repr():
    assert TOKEN not in repr(Options(token=TOKEN))
