"""Pydantic AI with its OpenAI models, over both APIs; a tool makes it two calls."""

import inspect

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel

QUESTION = "What is the weather in Paris?"
agent = Agent(OpenAIChatModel("gpt-4o-mini"), instructions="Be brief.")
agent_with_tool = Agent(OpenAIChatModel("gpt-4o-mini"))
responses_agent = Agent(OpenAIResponsesModel("gpt-4o-mini"))
responses_agent_with_tool = Agent(OpenAIResponsesModel("gpt-4o-mini"))


@agent_with_tool.tool_plain
@responses_agent_with_tool.tool_plain
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"Sunny in {city}."


def seen(result):
    usage = result.usage() if inspect.ismethod(result.usage) else result.usage  # a method until 2.0
    parts = [[part.part_kind for part in message.parts] for message in result.all_messages()]
    return [type(result).__name__, parts, [usage.requests, usage.input_tokens, usage.output_tokens]]


async def streamed(which):
    async with which.run_stream(QUESTION) as result:
        said = [text async for text in result.stream_text(delta=True, debounce_by=None)]
    return [said, *seen(result)]


async def ran(which):
    result = await which.run(QUESTION)
    return [result.output, *seen(result)]


def plain():
    result = agent.run_sync(QUESTION)
    return [result.output, *seen(result)]


def tool_call():
    result = agent_with_tool.run_sync(QUESTION)
    return [result.output, *seen(result)]


async def stream():
    return await streamed(agent)


async def tool_call_streamed():
    return await streamed(agent_with_tool)


async def awaited():
    return await ran(agent)


async def awaited_tool_call():
    return await ran(agent_with_tool)


async def responses():
    return await ran(responses_agent)


async def responses_stream():
    return await streamed(responses_agent)


async def responses_tool_call():
    return await ran(responses_agent_with_tool)


def refused():
    try:
        Agent(OpenAIChatModel("no-such-model")).run_sync(QUESTION)
    except Exception as error:
        return [type(error).__name__, str(error)]


STEPS = [
    plain,
    tool_call,
    stream,
    tool_call_streamed,
    awaited,
    awaited_tool_call,
    responses,
    responses_stream,
    responses_tool_call,
    refused,
]
