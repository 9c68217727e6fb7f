"""How the client is called: functions of a scene that return what the caller saw, each as a sync and an async twin.

Forms know nothing of instrumentation, so the same form runs with it off and on.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import re
import socket
from collections import abc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any

import openai
import pydantic

from otel_llm_callback.testing import ScriptedServer

MODEL = "gpt-4o-mini"

# The HTTP library that this release of openai is built on.
http_library = getattr(openai._base_client, "httpx2", None) or openai._base_client.httpx

# Up to openai 3.0 what breaks a stream reaches the caller as the HTTP library's exception.
WRAPS_STREAM_ERRORS = hasattr(openai._streaming, "request_exceptions")
StreamCut = openai.APIConnectionError if WRAPS_STREAM_ERRORS else http_library.RemoteProtocolError
StreamTimeout = openai.APITimeoutError if WRAPS_STREAM_ERRORS else http_library.ReadTimeout


@dataclass
class Scene:
    """What a form has to work with."""

    client: Any
    arguments: dict[str, Any]
    server: ScriptedServer
    kept: Any = None

    @property
    def chat(self) -> Any:
        return self.client.chat.completions

    @property
    def typed_chat(self) -> Any:
        """Where ``parse`` and ``stream`` are; early releases call them a trial."""
        return self.chat if hasattr(self.chat, "parse") else self.client.beta.chat.completions


# --- Clients ----------------------------------------------------------------------------------------------------------

MakeClient = Callable[[str, bool], Any]
"""Base URL and whether it is to be an async client."""


def plain(url: str, asynchronous: bool, **options: Any) -> Any:
    kind = openai.AsyncOpenAI if asynchronous else openai.OpenAI
    return kind(api_key="test-key", base_url=url, **options)


def azure(url: str, asynchronous: bool) -> Any:
    kind = openai.AsyncAzureOpenAI if asynchronous else openai.AzureOpenAI
    return kind(api_key="test-key", azure_endpoint=url.removesuffix("/v1"), api_version="2024-10-21")


def azure_deployment(url: str, asynchronous: bool) -> Any:
    kind = openai.AsyncAzureOpenAI if asynchronous else openai.AzureOpenAI
    endpoint = url.removesuffix("/v1")
    return kind(api_key="k", azure_endpoint=endpoint, azure_deployment="mine", api_version="2024-10-21")


def legacy_httpx(url: str, asynchronous: bool) -> Any:
    import httpx  # what openai 1 and 2 are built on; openai 3 has a successor and still takes these

    return plain(url, asynchronous, http_client=httpx.AsyncClient() if asynchronous else httpx.Client())


def copied(url: str, asynchronous: bool) -> Any:
    return plain(url, asynchronous).with_options(timeout=20, max_retries=1)


def no_retries(url: str, asynchronous: bool) -> Any:
    return plain(url, asynchronous, max_retries=0)


def impatient(url: str, asynchronous: bool) -> Any:
    return plain(url, asynchronous, timeout=openai.Timeout(5, read=0.1), max_retries=1)


def refused(url: str, asynchronous: bool) -> Any:
    with socket.socket() as unused:  # bound once, so nobody else has it; never listening, so it refuses
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    return plain(f"http://127.0.0.1:{port}/v1", asynchronous, max_retries=1)


def strict(url: str, asynchronous: bool) -> Any:
    return plain(url, asynchronous, _strict_response_validation=True)


# --- Forms: not streamed ----------------------------------------------------------------------------------------------


def create(scene):
    return scene.chat.create(**scene.arguments)


async def acreate(scene):
    return await scene.chat.create(**scene.arguments)


class Person(pydantic.BaseModel):
    name: str


def parse(scene):
    return scene.typed_chat.parse(**scene.arguments)


async def aparse(scene):
    return await scene.typed_chat.parse(**scene.arguments)


def raw(scene):
    response = scene.chat.with_raw_response.create(**scene.arguments)
    return response, response.parse(), response.parse()


async def araw(scene):
    response = await scene.chat.with_raw_response.create(**scene.arguments)
    return response, response.parse(), response.parse()


def raw_unparsed(scene):
    response = scene.chat.with_raw_response.create(**scene.arguments)
    return response, response.text, response.http_response.json()


async def araw_unparsed(scene):
    response = await scene.chat.with_raw_response.create(**scene.arguments)
    return response, response.text, response.http_response.json()


def raw_parse(scene):
    return scene.typed_chat.with_raw_response.parse(**scene.arguments).parse()


async def araw_parse(scene):
    return (await scene.typed_chat.with_raw_response.parse(**scene.arguments)).parse()


def raw_parse_other_type(scene):
    response = scene.chat.with_raw_response.create(**scene.arguments)
    return response.parse(), response.parse(to=str), response.parse(to=object)


async def araw_parse_other_type(scene):
    response = await scene.chat.with_raw_response.create(**scene.arguments)
    return response.parse(), response.parse(to=str), response.parse(to=object)


def kept_raw(scene):
    return scene.kept.create(**scene.arguments).parse()


async def akept_raw(scene):
    return (await scene.kept.create(**scene.arguments)).parse()


def kept_create(scene):
    return scene.kept(**scene.arguments)


async def akept_create(scene):
    return await scene.kept(**scene.arguments)


def streaming_parse(scene):
    with scene.chat.with_streaming_response.create(**scene.arguments) as response:
        closed = response.is_closed
        return response, closed, response.parse()


async def astreaming_parse(scene):
    async with scene.chat.with_streaming_response.create(**scene.arguments) as response:
        closed = response.is_closed
        return response, closed, await response.parse()


def streaming_json(scene):
    with scene.chat.with_streaming_response.create(**scene.arguments) as response:
        return response.json(), response.text(), response.read()


async def astreaming_json(scene):
    async with scene.chat.with_streaming_response.create(**scene.arguments) as response:
        return await response.json(), await response.text(), await response.read()


def streaming_unread(scene):
    with scene.chat.with_streaming_response.create(**scene.arguments) as response:
        return response.headers.get("content-type"), response.http_response.is_stream_consumed


async def astreaming_unread(scene):
    async with scene.chat.with_streaming_response.create(**scene.arguments) as response:
        return response.headers.get("content-type"), response.http_response.is_stream_consumed


def post_for_http_response(scene):
    return scene.client.post("/chat/completions", cast_to=http_library.Response, body=scene.arguments)


async def apost_for_http_response(scene):
    return await scene.client.post("/chat/completions", cast_to=http_library.Response, body=scene.arguments)


def post_for_object(scene):
    return scene.client.post("/chat/completions", cast_to=object, body=scene.arguments)


async def apost_for_object(scene):
    return await scene.client.post("/chat/completions", cast_to=object, body=scene.arguments)


def post_for_text(scene):
    return scene.client.post("/chat/completions", cast_to=str, body=scene.arguments)


async def apost_for_text(scene):
    return await scene.client.post("/chat/completions", cast_to=str, body=scene.arguments)


def post_elsewhere(scene):
    return scene.client.post("/somewhere/else", cast_to=object, body={"a": 1})


async def apost_elsewhere(scene):
    return await scene.client.post("/somewhere/else", cast_to=object, body={"a": 1})


def list_models(scene):
    return list(scene.client.models.list())


async def alist_models(scene):
    return [model async for model in scene.client.models.list()]


def module_level(scene):
    openai.api_key, openai.base_url = "test-key", f"{scene.server.url}/"
    try:
        return openai.chat.completions.create(**scene.arguments)
    finally:
        openai._load_client().close()
        openai._reset_client()
        openai.api_key = openai.base_url = openai.http_client = None


@contextlib.contextmanager
def debug_logging():
    logger, kept = logging.getLogger("openai"), []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield kept
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)


def create_with_debug_log(scene):
    with debug_logging() as lines:
        return create(scene), len(lines) > 0


async def acreate_with_debug_log(scene):
    with debug_logging() as lines:
        return await acreate(scene), len(lines) > 0


def read_with_debug_log(scene):
    with debug_logging() as lines:
        return read(scene), len(lines) > 0


async def aread_with_debug_log(scene):
    with debug_logging() as lines:
        return await aread(scene), len(lines) > 0


def twenty(scene):
    def call(number):
        return scene.chat.create(model=MODEL, messages=[{"role": "user", "content": f"call-{number}"}]).id

    with ThreadPoolExecutor(20) as pool:
        return list(pool.map(call, range(20)))


async def atwenty(scene):
    async def call(number):
        answer = await scene.chat.create(model=MODEL, messages=[{"role": "user", "content": f"call-{number}"}])
        return answer.id

    return await asyncio.gather(*map(call, range(20)))


# --- Forms: streamed to the end ---------------------------------------------------------------------------------------


def read(scene):
    return list(scene.chat.create(stream=True, **scene.arguments))


async def aread(scene):
    return [chunk async for chunk in await scene.chat.create(stream=True, **scene.arguments)]


def read_in_with(scene):
    with scene.chat.create(stream=True, **scene.arguments) as chunks:
        return list(chunks)


async def aread_in_with(scene):
    async with await scene.chat.create(stream=True, **scene.arguments) as chunks:
        return [chunk async for chunk in chunks]


def read_by_next(scene):
    chunks = scene.chat.create(stream=True, **scene.arguments)
    taken = []
    with contextlib.suppress(StopIteration):
        while True:
            taken.append(next(chunks))
    return taken, next(chunks, "nothing more")


async def aread_by_next(scene):
    chunks = await scene.chat.create(stream=True, **scene.arguments)
    taken = []
    with contextlib.suppress(StopAsyncIteration):
        while True:
            taken.append(await chunks.__anext__())
    return taken, await anext(chunks, "nothing more")


def read_twice(scene):
    chunks = scene.chat.create(stream=True, **scene.arguments)
    return list(chunks), list(chunks)


async def aread_twice(scene):
    chunks = await scene.chat.create(stream=True, **scene.arguments)
    return [chunk async for chunk in chunks], [chunk async for chunk in chunks]


def peek_then_resume(scene):
    chunks = scene.chat.create(stream=True, **scene.arguments)
    first = next(iter(chunks))
    return first, list(chunks)


async def apeek_then_resume(scene):
    chunks = await scene.chat.create(stream=True, **scene.arguments)
    first = await anext(aiter(chunks))
    return first, [chunk async for chunk in chunks]


def break_then_resume(scene):
    chunks = scene.chat.create(stream=True, **scene.arguments)
    taken = []
    for chunk in chunks:
        taken.append(chunk)
        break
    return taken, list(chunks)


async def abreak_then_resume(scene):
    chunks = await scene.chat.create(stream=True, **scene.arguments)
    taken = []
    async for chunk in chunks:
        taken.append(chunk)
        break
    return taken, [chunk async for chunk in chunks]


def close_iterator_then_resume(scene):
    chunks = scene.chat.create(stream=True, **scene.arguments)
    iterator = iter(chunks)
    first = next(iterator)
    iterator.close()
    return first, list(chunks)


async def aclose_iterator_then_resume(scene):
    chunks = await scene.chat.create(stream=True, **scene.arguments)
    iterator = aiter(chunks)
    first = await anext(iterator)
    await iterator.aclose()
    return first, [chunk async for chunk in chunks]


def look(chunks):
    """What a program may ask of a stream before it reads it."""
    abstract = (getattr(abc, name) for name in abc.__all__ if name not in {"ByteString", "Callable"})
    kinds = (openai.Stream, openai.AsyncStream, AbstractContextManager, AbstractAsyncContextManager, *abstract)
    names = ("close", "aclose", "response", "__iter__", "__aiter__", "__next__", "__enter__", "__len__", "no_such_name")
    response = chunks.response
    return {
        "kinds": [kind.__name__ for kind in kinds if isinstance(chunks, kind)],
        "class": [chunks.__class__, chunks.__class__.__name__, chunks.__module__, chunks.__doc__],
        "names": [name for name in names if hasattr(chunks, name)],
        "dir": sorted(dir(chunks)),
        "printed": re.sub("0x[0-9a-f]+", "0x", f"{chunks!r} {chunks}"),
        "truth": bool(chunks),
        "response": [response.status_code, response.headers["x-request-id"], response.is_closed],
        "close": inspect.iscoroutinefunction(chunks.close),
    }


def look_at_stream(scene):
    chunks = scene.chat.create(stream=True, **scene.arguments)
    return look(chunks), list(chunks), chunks.response.is_closed


async def alook_at_stream(scene):
    chunks = await scene.chat.create(stream=True, **scene.arguments)
    return look(chunks), [chunk async for chunk in chunks], chunks.response.is_closed


def hand_over(scene):
    chunks = scene.chat.create(stream=True, **scene.arguments)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, chunks).result()
    with ThreadPoolExecutor(1) as pool:
        return first, pool.submit(list, chunks).result()


async def ahand_over(scene):
    chunks = await asyncio.create_task(scene.chat.create(stream=True, **scene.arguments))

    async def rest():
        return [chunk async for chunk in chunks]

    first = await asyncio.create_task(chunks.__anext__())
    return first, await asyncio.create_task(rest())


def use_helper(scene):
    with scene.typed_chat.stream(**scene.arguments) as helper:
        return list(helper), helper.get_final_completion()


async def ause_helper(scene):
    async with scene.typed_chat.stream(**scene.arguments) as helper:
        return [event async for event in helper], await helper.get_final_completion()


def helper_final_only(scene):
    with scene.typed_chat.stream(**scene.arguments) as helper:
        return helper.get_final_completion()


async def ahelper_final_only(scene):
    async with scene.typed_chat.stream(**scene.arguments) as helper:
        return await helper.get_final_completion()


def raw_read(scene):
    response = scene.chat.with_raw_response.create(stream=True, **scene.arguments)
    return response.status_code, response.headers["x-request-id"], list(response.parse())


async def araw_read(scene):
    response = await scene.chat.with_raw_response.create(stream=True, **scene.arguments)
    return response.status_code, response.headers["x-request-id"], [chunk async for chunk in response.parse()]


def raw_lines(scene):
    response = scene.chat.with_raw_response.create(stream=True, **scene.arguments)
    return list(response.http_response.iter_lines())


async def araw_lines(scene):
    response = await scene.chat.with_raw_response.create(stream=True, **scene.arguments)
    return [line async for line in response.http_response.aiter_lines()]


def streaming_read(scene):
    with scene.chat.with_streaming_response.create(stream=True, **scene.arguments) as response:
        return response.status_code, list(response.parse())


async def astreaming_read(scene):
    async with scene.chat.with_streaming_response.create(stream=True, **scene.arguments) as response:
        return response.status_code, [chunk async for chunk in await response.parse()]


def streaming_lines(scene):
    with scene.chat.with_streaming_response.create(stream=True, **scene.arguments) as response:
        return list(response.iter_lines())


async def astreaming_lines(scene):
    async with scene.chat.with_streaming_response.create(stream=True, **scene.arguments) as response:
        return [line async for line in response.iter_lines()]


def post_for_stream(scene):
    chunk_type = openai.types.chat.ChatCompletionChunk
    body = {**scene.arguments, "stream": True}
    kind = openai.Stream[chunk_type]
    return list(scene.client.post("/chat/completions", cast_to=chunk_type, body=body, stream=True, stream_cls=kind))


async def apost_for_stream(scene):
    chunk_type = openai.types.chat.ChatCompletionChunk
    body = {**scene.arguments, "stream": True}
    kind = openai.AsyncStream[chunk_type]
    chunks = await scene.client.post("/chat/completions", cast_to=chunk_type, body=body, stream=True, stream_cls=kind)
    return [chunk async for chunk in chunks]


def twenty_streams(scene):
    def call(number):
        messages = [{"role": "user", "content": f"call-{number}"}]
        return [chunk.id for chunk in scene.chat.create(model=MODEL, messages=messages, stream=True)]

    with ThreadPoolExecutor(20) as pool:
        return list(pool.map(call, range(20)))


async def atwenty_streams(scene):
    async def call(number):
        messages = [{"role": "user", "content": f"call-{number}"}]
        return [chunk.id async for chunk in await scene.chat.create(model=MODEL, messages=messages, stream=True)]

    return await asyncio.gather(*map(call, range(20)))


# --- Forms: streams left, closed, cancelled ---------------------------------------------------------------------------


def close_after_two(scene):
    chunks = scene.chat.create(stream=True, **scene.arguments)
    taken = [next(chunks), next(chunks)]
    chunks.close()
    return taken, chunks.response.is_closed


async def aclose_after_two(scene):
    chunks = await scene.chat.create(stream=True, **scene.arguments)
    taken = [await anext(chunks), await anext(chunks)]
    await chunks.close()
    return taken, chunks.response.is_closed


def break_in_with(scene):
    with scene.chat.create(stream=True, **scene.arguments) as chunks:
        taken = []
        for chunk in chunks:
            taken.append(chunk)
            if len(taken) == 2:
                break
    return taken, chunks.response.is_closed


async def abreak_in_with(scene):
    async with await scene.chat.create(stream=True, **scene.arguments) as chunks:
        taken = []
        async for chunk in chunks:
            taken.append(chunk)
            if len(taken) == 2:
                break
    return taken, chunks.response.is_closed


class MineError(Exception):
    """Raised by the caller's own code."""


def raise_in_with(scene):
    with scene.chat.create(stream=True, **scene.arguments) as chunks:
        next(chunks)
        next(chunks)
        raise MineError("mine", 1)


async def araise_in_with(scene):
    async with await scene.chat.create(stream=True, **scene.arguments) as chunks:
        await anext(chunks)
        await anext(chunks)
        raise MineError("mine", 1)


def close_while_handling(scene):
    chunks = scene.chat.create(stream=True, **scene.arguments)
    try:
        next(chunks)
        next(chunks)
        raise MineError("mine", 1)
    except MineError:
        chunks.close()
    return chunks.response.is_closed


async def aclose_while_handling(scene):
    chunks = await scene.chat.create(stream=True, **scene.arguments)
    try:
        await anext(chunks)
        await anext(chunks)
        raise MineError("mine", 1)
    except MineError:
        await chunks.close()
    return chunks.response.is_closed


def close_response(scene):
    chunks = scene.chat.create(stream=True, **scene.arguments)
    taken = [next(chunks), next(chunks)]
    chunks.response.close()
    return taken


async def aclose_response(scene):
    chunks = await scene.chat.create(stream=True, **scene.arguments)
    taken = [await anext(chunks), await anext(chunks)]
    await chunks.response.aclose()
    return taken


def drop_after_two(scene):
    chunks = scene.chat.create(stream=True, **scene.arguments)
    return [next(chunks), next(chunks)]


async def adrop_after_two(scene):
    chunks = await scene.chat.create(stream=True, **scene.arguments)
    return [await anext(chunks), await anext(chunks)]


def close_unread(scene):
    chunks = scene.chat.create(stream=True, **scene.arguments)
    chunks.close()
    return chunks.response.is_closed


async def aclose_unread(scene):
    chunks = await scene.chat.create(stream=True, **scene.arguments)
    await chunks.close()
    return chunks.response.is_closed


def drop_unread(scene):
    scene.chat.create(stream=True, **scene.arguments)


async def adrop_unread(scene):
    await scene.chat.create(stream=True, **scene.arguments)


def leave_helper(scene):
    with scene.typed_chat.stream(**scene.arguments) as helper:
        return next(helper).type


async def aleave_helper(scene):
    async with scene.typed_chat.stream(**scene.arguments) as helper:
        return (await anext(helper)).type


def never_enter_helper(scene):
    return scene.typed_chat.stream(**scene.arguments).__class__.__name__


def close_raw_unparsed(scene):
    response = scene.chat.with_raw_response.create(stream=True, **scene.arguments)
    response.http_response.close()
    return response.is_closed


async def aclose_raw_unparsed(scene):
    response = await scene.chat.with_raw_response.create(stream=True, **scene.arguments)
    await response.http_response.aclose()
    return response.is_closed


def close_raw_stream(scene):
    chunks = scene.chat.with_raw_response.create(stream=True, **scene.arguments).parse()
    taken = [next(chunks), next(chunks)]
    chunks.close()
    return taken


async def aclose_raw_stream(scene):
    chunks = (await scene.chat.with_raw_response.create(stream=True, **scene.arguments)).parse()
    taken = [await anext(chunks), await anext(chunks)]
    await chunks.close()
    return taken


def leave_streaming_response(scene):
    with scene.chat.with_streaming_response.create(stream=True, **scene.arguments) as response:
        chunks = response.parse()
        return [next(chunks), next(chunks)]


async def aleave_streaming_response(scene):
    async with scene.chat.with_streaming_response.create(stream=True, **scene.arguments) as response:
        chunks = await response.parse()
        return [await anext(chunks), await anext(chunks)]


def raise_in_streaming_response(scene):
    with scene.chat.with_streaming_response.create(**scene.arguments):
        raise MineError("mine", 2)


async def araise_in_streaming_response(scene):
    async with scene.chat.with_streaming_response.create(**scene.arguments):
        raise MineError("mine", 2)


async def seen(server):
    """Wait until the server has the request."""
    while not server.requests:  # noqa: ASYNC110 - the server has no event to wait for
        await asyncio.sleep(0.001)


async def cancel_before_headers(scene):
    task = asyncio.create_task(scene.chat.create(**scene.arguments))
    await seen(scene.server)
    task.cancel("enough")
    await task


async def cancel_mid_stream(scene):
    two = asyncio.Event()

    async def take():
        count = 0
        async for _ in await scene.chat.create(stream=True, **scene.arguments):
            count += 1
            if count == 2:
                two.set()

    task = asyncio.create_task(take())
    await two.wait()
    task.cancel("enough")
    await task


async def wait_for_answer(scene):
    await asyncio.wait_for(scene.chat.create(**scene.arguments), 0.5)  # by then the request is out


async def wait_for_stream(scene):
    async def take():
        return [chunk async for chunk in await scene.chat.create(stream=True, **scene.arguments)]

    await asyncio.wait_for(take(), 0.5)


class Stop(BaseException):
    """Not an Exception, as KeyboardInterrupt and SystemExit are not."""


def stop_in_with(scene):
    with scene.chat.create(stream=True, **scene.arguments) as chunks:
        next(chunks)
        next(chunks)
        raise Stop("now")
