"""The OpenAI Agents SDK, over both APIs; a tool makes it two calls."""

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool
from openai import AsyncOpenAI

QUESTION = "What is the weather in Paris?"


@function_tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"Sunny in {city}."


USAGE = ModelSettings(include_usage=True)
over_chat = OpenAIChatCompletionsModel(model="gpt-4o-mini", openai_client=AsyncOpenAI())
agent = Agent(name="plain", instructions="Be brief.", model="gpt-4o-mini")
agent_with_tool = Agent(name="tool", model="gpt-4o-mini", tools=[weather])
chat_agent = Agent(name="chat", model=over_chat, model_settings=USAGE)
chat_agent_without_usage = Agent(name="without usage", model=over_chat)
chat_agent_with_tool = Agent(name="chat tool", model=over_chat, model_settings=USAGE, tools=[weather])


def seen(result):
    usage = result.context_wrapper.usage
    return [
        type(result).__name__,
        result.final_output,
        [item.type for item in result.new_items],
        [usage.requests, usage.input_tokens, usage.output_tokens],
    ]


async def streamed(which):
    result = Runner.run_streamed(which, QUESTION)
    events = [event.type async for event in result.stream_events()]
    return [events, *seen(result)]


def plain():
    return seen(Runner.run_sync(agent, QUESTION))


async def stream():
    return await streamed(agent)


async def tool_call():
    return seen(await Runner.run(agent_with_tool, QUESTION))


async def tool_call_streamed():
    return await streamed(agent_with_tool)


async def awaited():
    return seen(await Runner.run(agent, QUESTION))


async def chat():
    return seen(await Runner.run(chat_agent, QUESTION))


async def chat_stream():
    return await streamed(chat_agent)


async def chat_stream_without_usage():
    return await streamed(chat_agent_without_usage)


async def chat_tool_call():
    return seen(await Runner.run(chat_agent_with_tool, QUESTION))


async def chat_tool_call_streamed():
    return await streamed(chat_agent_with_tool)


async def refused():
    try:
        await Runner.run(Agent(name="refused", model="no-such-model"), QUESTION)
    except Exception as error:
        return [type(error).__name__, str(error)]


STEPS = [
    plain,
    stream,
    tool_call,
    tool_call_streamed,
    awaited,
    chat,
    chat_stream,
    chat_stream_without_usage,
    chat_tool_call,
    chat_tool_call_streamed,
    refused,
]
