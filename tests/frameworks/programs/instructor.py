"""Instructor, which patches ``create`` of the client it is given and gets objects out of tool calls."""

import instructor
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
ASKED = {"model": "gpt-4o-mini", "messages": MESSAGES}


class Weather(BaseModel):
    """The weather in a city."""

    city: str
    degrees: int


client = instructor.from_openai(OpenAI())
aclient = instructor.from_openai(AsyncOpenAI())


def seen(weather):
    raw = weather._raw_response
    return [type(raw).__name__, raw.id, raw.usage.model_dump(), weather.model_dump()]


def plain():
    answer = client.chat.completions.create(**ASKED, response_model=None)
    return answer.model_dump()


def stream():
    found = client.chat.completions.create_partial(**ASKED, response_model=Weather)
    return [partial.model_dump() for partial in found]


def tool_call():
    return seen(client.chat.completions.create(**ASKED, response_model=Weather))


def tool_call_with_completion():
    weather, completion = client.chat.completions.create_with_completion(**ASKED, response_model=Weather)
    return [weather.model_dump(), completion.model_dump()]


async def awaited():
    return seen(await aclient.chat.completions.create(**ASKED, response_model=Weather))


async def awaited_plain():
    answer = await aclient.chat.completions.create(**ASKED, response_model=None)
    return answer.model_dump()


async def awaited_stream():
    found = aclient.chat.completions.create_partial(**ASKED, response_model=Weather)
    return [partial.model_dump() async for partial in found]


def refused():
    try:
        client.chat.completions.create(messages=MESSAGES, model="no-such-model", response_model=Weather)
    except Exception as error:
        return [type(error).__name__, str(error)]


STEPS = [plain, stream, tool_call, tool_call_with_completion, awaited, awaited_plain, awaited_stream, refused]
