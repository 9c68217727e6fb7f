"""LangChain's ``ChatOpenAI``, over both APIs."""

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

QUESTION = "What is the weather in Paris?"
model = ChatOpenAI(model="gpt-4o-mini", stream_usage=True)
model_as_it_comes = ChatOpenAI(model="gpt-4o-mini", stream_usage=False)
over_responses = ChatOpenAI(model="gpt-4o-mini", use_responses_api=True)


@tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"Sunny in {city}."


def seen(message):
    return [type(message).__name__, message.text, message.tool_calls, message.usage_metadata, message.response_metadata]


def total(chunks):
    first, *rest = chunks
    for chunk in rest:
        first += chunk
    return [len(chunks), *seen(first)]


def plain():
    return seen(model.invoke(QUESTION))


def stream():
    return total(list(model.stream(QUESTION)))


def stream_without_usage():
    return total(list(model_as_it_comes.stream(QUESTION)))


def tool_call():
    bound = model.bind_tools([weather])
    asked = bound.invoke(QUESTION)
    answers = [weather.invoke(call) for call in asked.tool_calls]
    return seen(asked), seen(bound.invoke([("user", QUESTION), asked, *answers]))


def tool_call_streamed():
    return total(list(model.bind_tools([weather]).stream(QUESTION)))


async def awaited():
    return seen(await model.ainvoke(QUESTION))


async def awaited_stream():
    return total([chunk async for chunk in model.astream(QUESTION)])


async def awaited_stream_without_usage():
    return total([chunk async for chunk in model_as_it_comes.astream(QUESTION)])


def batch():
    return seen(model.batch([QUESTION])[0])


def responses():
    return seen(over_responses.invoke(QUESTION))


def responses_stream():
    return total(list(over_responses.stream(QUESTION)))


def responses_tool_call():
    return seen(over_responses.bind_tools([weather]).invoke(QUESTION))


async def responses_awaited_stream():
    return total([chunk async for chunk in over_responses.astream(QUESTION)])


def refused():
    try:
        ChatOpenAI(model="no-such-model").invoke(QUESTION)
    except Exception as error:
        return [type(error).__name__, str(error)]


STEPS = [
    plain,
    stream,
    stream_without_usage,
    tool_call,
    tool_call_streamed,
    awaited,
    awaited_stream,
    awaited_stream_without_usage,
    batch,
    responses,
    responses_stream,
    responses_tool_call,
    responses_awaited_stream,
    refused,
]
