"""How the other APIs are called: each form is made for a method of the client, as a sync and an async twin.

As in `forms.py`, a form returns what the caller saw and knows nothing of instrumentation.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from operator import attrgetter

import openai
from forms import Scene

NO_URL = "http://127.0.0.1:9/v1"


@functools.cache
def exists(path: str) -> bool:
    """True if this release of openai has the method."""
    with openai.OpenAI(api_key="none", base_url=NO_URL) as client, contextlib.suppress(AttributeError):
        return attrgetter(path)(client) is not None
    return False


def takes(path: str, argument: str) -> bool:
    """True if the method in this release of openai has the argument."""
    with openai.OpenAI(api_key="none", base_url=NO_URL) as client:
        return exists(path) and argument in inspect.signature(attrgetter(path)(client)).parameters


@contextlib.contextmanager
def no_deprecation():
    """Some methods are marked as deprecated and called all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def method(scene, path, mode=None):
    return method_of(scene.client, path, mode)


def method_of(client, path, mode=None):
    """The method of a client, or of one of its two other faces."""
    owner, _, name = path.rpartition(".")
    resource = attrgetter(owner)(client)
    return getattr(getattr(resource, mode) if mode else resource, name)


def called(path, **more):
    """The plain call."""

    def form(scene: Scene):
        with no_deprecation():
            return method(scene, path)(**scene.arguments, **more)

    async def aform(scene: Scene):
        with no_deprecation():
            return await method(scene, path)(**scene.arguments, **more)

    return form, aform


def raw(path):
    """``with_raw_response``, parsed twice."""

    def form(scene):
        with no_deprecation():
            response = method(scene, path, "with_raw_response")(**scene.arguments)
        return response, response.parse(), response.parse()

    async def aform(scene):
        with no_deprecation():
            response = await method(scene, path, "with_raw_response")(**scene.arguments)
        return response, response.parse(), response.parse()

    return form, aform


def streaming(path):
    """``with_streaming_response``, parsed."""

    def form(scene):
        with no_deprecation(), method(scene, path, "with_streaming_response")(**scene.arguments) as response:
            return response, response.is_closed, response.parse()

    async def aform(scene):
        with no_deprecation():
            async with method(scene, path, "with_streaming_response")(**scene.arguments) as response:
                return response, response.is_closed, await response.parse()

    return form, aform


def read(path):
    """Streamed to the end."""

    def form(scene):
        with no_deprecation():
            return list(method(scene, path)(stream=True, **scene.arguments))

    async def aform(scene):
        with no_deprecation():
            return [chunk async for chunk in await method(scene, path)(stream=True, **scene.arguments)]

    return form, aform


def raw_read(path):
    """``with_raw_response``, streamed to the end."""

    def form(scene):
        response = method(scene, path, "with_raw_response")(stream=True, **scene.arguments)
        return response.status_code, list(response.parse())

    async def aform(scene):
        response = await method(scene, path, "with_raw_response")(stream=True, **scene.arguments)
        return response.status_code, [chunk async for chunk in response.parse()]

    return form, aform


def streaming_read(path):
    """``with_streaming_response``, streamed to the end."""

    def form(scene):
        with method(scene, path, "with_streaming_response")(stream=True, **scene.arguments) as response:
            return response.status_code, list(response.parse())

    async def aform(scene):
        async with method(scene, path, "with_streaming_response")(stream=True, **scene.arguments) as response:
            return response.status_code, [chunk async for chunk in await response.parse()]

    return form, aform


def closed_after_two(path):
    """A stream of which two chunks are taken."""

    def form(scene):
        with no_deprecation():
            chunks = method(scene, path)(stream=True, **scene.arguments)
        taken = [next(chunks), next(chunks)]
        chunks.close()
        return taken, chunks.response.is_closed

    async def aform(scene):
        with no_deprecation():
            chunks = await method(scene, path)(stream=True, **scene.arguments)
        taken = [await anext(chunks), await anext(chunks)]
        await chunks.close()
        return taken, chunks.response.is_closed

    return form, aform


def helper(path):
    """``stream`` of Responses: its events, then the final response."""

    def form(scene):
        with method(scene, path)(**scene.arguments) as stream:
            return list(stream), stream.get_final_response()

    async def aform(scene):
        async with method(scene, path)(**scene.arguments) as stream:
            return [event async for event in stream], await stream.get_final_response()

    return form, aform


def final_only(path):
    """The helper, asked for nothing but the final response."""

    def form(scene):
        with method(scene, path)(**scene.arguments) as stream:
            return stream.get_final_response()

    async def aform(scene):
        async with method(scene, path)(**scene.arguments) as stream:
            return await stream.get_final_response()

    return form, aform


def helper_left(path):
    """The helper, left after its first event."""

    def form(scene):
        with method(scene, path)(**scene.arguments) as stream:
            return next(stream).type

    async def aform(scene):
        async with method(scene, path)(**scene.arguments) as stream:
            return (await anext(stream)).type

    return form, aform


def iterated(path):
    """A list, page by page."""

    def form(scene):
        return list(method(scene, path)(**scene.arguments))

    async def aform(scene):
        return [item async for item in method(scene, path)(**scene.arguments)]

    return form, aform


def one_page(path):
    """A list, of which the first page is enough."""

    def look(page):
        return type(page).__name__, page, page.has_next_page(), page.next_page_info()

    def form(scene):
        return look(method(scene, path)(**scene.arguments))

    async def aform(scene):
        pages = method(scene, path)(**scene.arguments)
        return type(pages).__name__, hasattr(pages, "__aiter__"), look(await pages)

    return form, aform


def all_bytes(path):
    """Speech, read whole."""

    def form(scene):
        answer = method(scene, path)(**scene.arguments)
        return type(answer).__name__, answer.read(), answer.content, answer.response.status_code

    async def aform(scene):
        answer = await method(scene, path)(**scene.arguments)
        return type(answer).__name__, answer.read(), answer.content, answer.response.status_code

    return form, aform


def bytes_in_parts(path):
    """Speech, read as it comes."""

    def form(scene):
        with method(scene, path, "with_streaming_response")(**scene.arguments) as answer:
            return answer.is_closed, b"".join(answer.iter_bytes(512)), answer.is_closed

    async def aform(scene):
        async with method(scene, path, "with_streaming_response")(**scene.arguments) as answer:
            return answer.is_closed, b"".join([part async for part in answer.iter_bytes(512)]), answer.is_closed

    return form, aform


def bytes_left(path):
    """Speech, of which only the beginning is wanted."""

    def form(scene):
        with method(scene, path, "with_streaming_response")(**scene.arguments) as answer:
            return next(answer.iter_bytes(64))

    async def aform(scene):
        async with method(scene, path, "with_streaming_response")(**scene.arguments) as answer:
            return await anext(answer.iter_bytes(64))

    return form, aform


def in_background():
    """A response that is made later: asked for, looked at twice, fetched, and fetched again."""

    def form(scene):
        response = scene.client.responses.create(**scene.arguments)
        return response, *[scene.client.responses.retrieve(response.id) for _ in range(4)]

    async def aform(scene):
        response = await scene.client.responses.create(**scene.arguments)
        return response, *[await scene.client.responses.retrieve(response.id) for _ in range(4)]

    return form, aform


def all_events(path):
    """A method that only streams, read to the end."""

    def form(scene):
        return list(method(scene, path)(**scene.arguments))

    async def aform(scene):
        return [event async for event in await method(scene, path)(**scene.arguments)]

    return form, aform


def agent_turn(path):
    """One turn of an agent by the SDK's helper, which listens first and then says what is to be done."""

    def form(scene):
        with method(scene, path)(**scene.arguments) as stream:
            return list(stream)

    async def aform(scene):
        async with method(scene, path)(**scene.arguments) as stream:
            return [event async for event in stream]

    return form, aform
