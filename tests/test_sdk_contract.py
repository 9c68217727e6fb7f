"""What we rely on in the SDK: each name exists and behaves. Nothing of ours runs here.

If one of these fails on a new release of openai, `_openai.py` has to change before anything else is worth looking at.
"""

from __future__ import annotations

import inspect
import sys

import forms
import openai
import pytest
import scenarios as s
import wrapt
from openai._legacy_response import LegacyAPIResponse
from openai._models import FinalRequestOptions
from openai._response import APIResponse, AsyncAPIResponse
from scenarios import ANSWER, ENDLESS, PEOPLE, STREAM, Person

CLIENTS = [openai.OpenAI, openai.AsyncOpenAI]
both_clients = pytest.mark.parametrize("kind", CLIENTS)
ARGUMENTS = s.chat()()


def typed(client):
    """Where ``parse`` and ``stream`` are."""
    return forms.Scene(client, {}, None).typed_chat


def observe(client, parser):
    """Give every request of *client* this post-parser, the way we do; the caller's own parser still runs after it."""
    request = client.request

    def observed(cast_to, options, **more):
        own = options.post_parser if callable(options.post_parser) else lambda parsed: parsed
        options = options.model_copy(update={"post_parser": lambda parsed: own(parser(parsed))})
        return request(cast_to, options, **more)

    client.request = observed


@pytest.fixture
def parsed(client):
    """What the post-parser of `client` is given."""
    seen = []
    observe(client, lambda value: seen.append(value) or value)
    return seen


@pytest.fixture
def aparsed(aclient):
    """What the post-parser of `aclient` is given."""
    seen = []
    observe(aclient, lambda value: seen.append(value) or value)
    return seen


# --- The client classes -----------------------------------------------------------------------------------------------


@both_clients
def test_request_takes_the_type_the_options_and_stream(kind):
    parameters = inspect.signature(kind.request).parameters
    assert list(parameters)[:3] == ["self", "cast_to", "options"]
    assert parameters["stream"].kind is inspect.Parameter.KEYWORD_ONLY
    assert inspect.iscoroutinefunction(kind.request) is (kind is openai.AsyncOpenAI)


@both_clients
def test_process_response_is_told_by_keyword(kind):
    parameters = inspect.signature(kind._process_response).parameters
    keywords = {name for name, parameter in parameters.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
    assert {"options", "response", "stream"} <= keywords


@both_clients
def test_retry_delay_is_calculated_synchronously_from_the_options(kind):
    parameters = inspect.signature(kind._calculate_retry_timeout).parameters
    assert list(parameters)[:3] == ["self", "remaining_retries", "options"]
    assert not inspect.iscoroutinefunction(kind._calculate_retry_timeout)


@pytest.mark.parametrize("kind", [openai.AzureOpenAI, openai.AsyncAzureOpenAI])
def test_azure_clients_inherit_the_methods(kind):
    names = ("request", "_process_response", "_calculate_retry_timeout")
    assert [name for name in names if name in vars(kind)] == []


@both_clients
def test_base_url_has_scheme_host_port_and_path(kind):
    client = kind(api_key="k", base_url="https://example.com/v1")
    url = client.base_url
    assert (url.scheme, url.host, url.port, url.path, url is client.base_url) == (
        "https",
        "example.com",
        None,
        "/v1/",
        True,
    )


# --- The options ------------------------------------------------------------------------------------------------------


def test_options_carry_a_post_parser_through_a_copy():
    options = FinalRequestOptions.construct(method="post", url="/chat/completions", json_data={"model": "m"})
    assert not callable(options.post_parser)
    copy = options.model_copy(update={"post_parser": str})
    assert (copy.post_parser, copy.method, copy.url, copy.json_data) == (
        str,
        "post",
        "/chat/completions",
        {"model": "m"},
    )
    assert not callable(options.post_parser)


def test_every_method_ends_in_request_with_path_and_body(server, client):
    """A resource method calls ``client.request``, looked up at the time of the call, with the final body."""
    seen = []

    def request(cast_to, options, **more):
        seen.append((options.method, options.url, options.json_data["model"], more.get("stream", False)))
        return type(client).request(client, cast_to, options, **more)

    accessor = client.chat.completions.with_raw_response
    client.request = request
    server.reply = lambda request: STREAM if request.json.get("stream") else PEOPLE
    client.chat.completions.create(**ARGUMENTS)
    list(client.chat.completions.create(stream=True, **ARGUMENTS))
    typed(client).parse(response_format=Person, **ARGUMENTS)
    with typed(client).stream(**ARGUMENTS) as helper:
        helper.until_done()
    accessor.create(**ARGUMENTS)
    client.post("/chat/completions", cast_to=object, body={"model": forms.MODEL})
    expected = [False, True, False, True, False, False]
    assert seen == [("post", "/chat/completions", forms.MODEL, stream) for stream in expected]


def test_path_is_that_of_the_api_on_azure_too(server):
    """The deployment is put into the path after ``request`` was called."""
    seen = []
    with forms.azure(server.url, False) as client:
        original = client.request
        client.request = lambda cast_to, options, **more: seen.append(options.url) or original(cast_to, options, **more)
        client.chat.completions.create(**ARGUMENTS)
    assert seen == ["/chat/completions"]


# --- The post-parser --------------------------------------------------------------------------------------------------


def test_post_parser_sees_the_result_before_the_callers_own_parser(server, client, parsed):
    """``parse()`` puts its own parser into the options; ours runs before it, and so sees the completion it rejects."""
    server.reply = lambda request: PEOPLE
    result = typed(client).parse(response_format=Person, **ARGUMENTS)
    (completion,) = parsed
    assert isinstance(completion, openai.types.chat.ChatCompletion)
    assert not hasattr(completion.choices[0].message, "parsed")
    assert result.choices[0].message.parsed == Person(name="Ada")


def test_post_parser_survives_retries(server, client, parsed):
    """The options are copied for each attempt, and the copies carry it."""
    server.reply = s.after_retries(ANSWER)
    client.chat.completions.create(**ARGUMENTS)
    assert [value.id for value in parsed] == ["chatcmpl-1"]


def test_raw_response_calls_the_post_parser_once_per_type(server, client, parsed):
    """``LegacyAPIResponse.parse`` keeps what it parsed, so that parsing it ourselves costs the caller nothing."""
    server.reply = lambda request: ANSWER
    response = client.chat.completions.with_raw_response.create(**ARGUMENTS)
    assert (type(response), parsed) == (LegacyAPIResponse, [])
    first = response.parse()
    assert response.parse() is first
    assert parsed == [first]


async def test_async_raw_response_parses_synchronously(server, aclient, aparsed):
    """It is the same class for both clients."""
    server.reply = lambda request: ANSWER
    response = await aclient.chat.completions.with_raw_response.create(**ARGUMENTS)
    assert (type(response), aparsed, [response.parse()]) == (LegacyAPIResponse, aparsed, aparsed)


def test_streaming_response_calls_the_post_parser_when_parsed(server, client, parsed):
    """``APIResponse.parse`` does, with the body read then and not before."""
    server.reply = lambda request: ANSWER
    with client.chat.completions.with_streaming_response.create(**ARGUMENTS) as response:
        assert (type(response), parsed, response.http_response.is_closed) == (APIResponse, [], False)
        assert parsed == [response.parse()]
        assert response.http_response.is_closed


async def test_async_streaming_response_calls_the_post_parser_synchronously(server, aclient, aparsed):
    """``AsyncAPIResponse.parse`` does not await what the post-parser returns."""
    server.reply = lambda request: ANSWER
    async with aclient.chat.completions.with_streaming_response.create(**ARGUMENTS) as response:
        assert (type(response), aparsed) == (AsyncAPIResponse, [])
        assert [await response.parse()] == aparsed


# --- Streams ----------------------------------------------------------------------------------------------------------


def test_post_parser_may_replace_the_stream(server, client):
    """What it returns is what the caller, and the ``.stream()`` helper, iterate."""
    server.reply = lambda request: STREAM
    taken = []

    class Tap:
        def __init__(self, stream):
            self.stream = stream
            self.response = stream.response

        def __iter__(self):
            for chunk in self.stream:
                taken.append(chunk.id)
                yield chunk

    observe(client, Tap)
    assert isinstance(client.chat.completions.create(stream=True, **ARGUMENTS), Tap)
    with typed(client).stream(**ARGUMENTS) as helper:
        helper.until_done()
    assert taken == ["chatcmpl-1"] * 6


class Watched(wrapt.ObjectProxy):
    """A body that notes its closing, in the place of a response's own; the HTTP libraries check its type."""

    _self_closed = 0

    def __aiter__(self):
        return self.__wrapped__.__aiter__()

    def close(self):
        self._self_closed += 1
        self.__wrapped__.close()

    async def aclose(self):
        self._self_closed += 1
        await self.__wrapped__.aclose()


@pytest.mark.parametrize("leave", ["close", "response", "with", "helper"])
def test_closing_a_stream_closes_the_body_of_its_response(leave, server, client):
    """Whichever way a stream is left, it ends in ``response.stream.close``."""
    server.reply = lambda request: ENDLESS
    bodies = []

    def swap(stream):
        stream.response.stream = Watched(stream.response.stream)
        bodies.append(stream.response.stream)
        return stream

    observe(client, swap)
    if leave == "helper":
        with typed(client).stream(**ARGUMENTS) as helper:
            next(helper)
    else:
        stream = client.chat.completions.create(stream=True, **ARGUMENTS)
        next(stream)
        {"close": stream.close, "response": stream.response.close, "with": lambda: stream.__exit__(None, None, None)}[
            leave
        ]()
    assert [body._self_closed for body in bodies] == [1]


@pytest.mark.parametrize("leave", ["close", "response", "with", "helper"])
async def test_closing_an_async_stream_closes_the_body_of_its_response(leave, server, aclient):
    """The same for the async client."""
    server.reply = lambda request: ENDLESS
    bodies = []

    def swap(stream):
        stream.response.stream = Watched(stream.response.stream)
        bodies.append(stream.response.stream)
        return stream

    observe(aclient, swap)
    if leave == "helper":
        async with typed(aclient).stream(**ARGUMENTS) as helper:
            await anext(helper)
    else:
        stream = await aclient.chat.completions.create(stream=True, **ARGUMENTS)
        await anext(stream)
        if leave == "close":
            await stream.close()
        elif leave == "response":
            await stream.response.aclose()
        else:
            await stream.__aexit__(None, None, None)
    assert [body._self_closed for body in bodies] == [1]


def test_body_of_a_raw_answer_has_been_read(server, client):
    """So we may parse it at once; a raw stream has not, and is left alone."""
    server.reply = lambda request: STREAM if request.json.get("stream") else ANSWER
    accessor = client.chat.completions.with_raw_response
    whole, streamed = accessor.create(**ARGUMENTS), accessor.create(stream=True, **ARGUMENTS)
    assert (whole.http_response.is_closed, streamed.http_response.is_closed) == (True, False)


def test_headers_can_be_read_as_bytes(server, client):
    """``headers.raw`` gives names and values as they came, without decoding all of them."""
    raw = client.chat.completions.with_raw_response.create(**ARGUMENTS).http_response.headers.raw
    assert (b"x-request-id", b"req_000001") in [(name.lower(), value) for name, value in raw]


# --- Retries ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def scheduled(monkeypatch):
    """Delay, class of the exception being handled and its status, for each retry."""
    seen = []
    for kind in CLIENTS:

        def calculate(self, remaining, options, headers=None, *, _original=kind._calculate_retry_timeout):
            delay = _original(self, remaining, options, headers)
            cause = sys.exc_info()[1]
            status = getattr(getattr(cause, "response", None), "status_code", None)
            seen.append((delay, type(cause).__name__, status, callable(options.post_parser)))
            return delay

        monkeypatch.setattr(kind, "_calculate_retry_timeout", calculate)
    return seen


def test_retry_is_scheduled_while_its_cause_is_handled(server, client, parsed, scheduled):
    """The return value is the delay, ``sys.exc_info()`` the cause, and the options are the ones that carry us."""
    server.reply = s.after_retries(ANSWER)
    client.chat.completions.create(**ARGUMENTS)
    assert scheduled == [(0.001, "HTTPStatusError", 429, True)] * 2


async def test_async_retry_is_scheduled_while_its_cause_is_handled(server, aclient, aparsed, scheduled):
    """The same for the async client."""
    server.reply = s.after_retries(ANSWER)
    await aclient.chat.completions.create(**ARGUMENTS)
    assert scheduled == [(0.001, "HTTPStatusError", 429, True)] * 2
