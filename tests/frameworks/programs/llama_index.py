"""LlamaIndex's ``OpenAI``, over both APIs."""

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI, OpenAIResponses

QUESTION = [ChatMessage(role="user", content="What is the weather in Paris?")]
model = OpenAI(model="gpt-4o-mini", additional_kwargs={"stream_options": {"include_usage": True}})
plain_model = OpenAI(model="gpt-4o-mini")
over_responses = OpenAIResponses(model="gpt-4o-mini")


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"Sunny in {city}."


TOOLS = [FunctionTool.from_defaults(weather)]


def seen(response):
    message = response.message
    return [type(response).__name__, message.role.value, message.content, response.delta, usage(response.raw)]


def usage(raw):
    found = raw.get("usage") if isinstance(raw, dict) else getattr(raw, "usage", None)
    return found.model_dump() if hasattr(found, "model_dump") else found


def plain():
    return seen(plain_model.chat(QUESTION))


def complete():
    response = plain_model.complete("Say hello.")
    return [response.text, usage(response.raw)]


def stream():
    return [seen(response) for response in model.stream_chat(QUESTION)]


def stream_without_usage():
    return [seen(response) for response in plain_model.stream_chat(QUESTION)]


def tool_call():
    response = plain_model.predict_and_call(TOOLS, user_msg=QUESTION[0])
    return [response.response, [source.raw_output for source in response.sources]]


async def awaited():
    return seen(await plain_model.achat(QUESTION))


async def awaited_stream():
    return [seen(response) async for response in await model.astream_chat(QUESTION)]


async def awaited_stream_without_usage():
    return [seen(response) async for response in await plain_model.astream_chat(QUESTION)]


async def awaited_tool_call():
    response = await plain_model.apredict_and_call(TOOLS, user_msg=QUESTION[0])
    return [response.response, [source.raw_output for source in response.sources]]


def responses():
    return seen(over_responses.chat(QUESTION))


def responses_stream():
    return [seen(response) for response in over_responses.stream_chat(QUESTION)]


def responses_tool_call():
    response = over_responses.predict_and_call(TOOLS, user_msg=QUESTION[0])
    return [response.response, [source.raw_output for source in response.sources]]


async def responses_awaited_stream():
    return [seen(response) async for response in await over_responses.astream_chat(QUESTION)]


def refused():
    try:
        OpenAI(model="gpt-4o-mini", additional_kwargs={"model": "no-such-model"}).chat(QUESTION)
    except Exception as error:
        return [type(error).__name__, str(error)]


STEPS = [
    plain,
    complete,
    stream,
    stream_without_usage,
    tool_call,
    awaited,
    awaited_stream,
    awaited_stream_without_usage,
    awaited_tool_call,
    responses,
    responses_stream,
    responses_tool_call,
    responses_awaited_stream,
    refused,
]
