"""LiteLLM, whose ``openai/`` models go through the client."""

import litellm

MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
ASKED = {"model": "openai/gpt-4o-mini", "messages": MESSAGES}
USAGE = {"stream_options": {"include_usage": True}}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tell the weather.", "parameters": CITY}}


def seen(answer):
    message = answer.choices[0].message
    calls = [[call.id, call.function.name, call.function.arguments] for call in message.tool_calls or []]
    return [answer.id, answer.model, message.content, calls, answer.choices[0].finish_reason, answer.usage.model_dump()]


def total(chunks):
    answer = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    return [said, *seen(answer)]


def plain():
    return seen(litellm.completion(**ASKED))


def stream():
    return total(list(litellm.completion(**ASKED, **USAGE, stream=True)))


def stream_without_usage():
    chunks = list(litellm.completion(**ASKED, stream=True))
    return [chunk.choices[0].delta.content for chunk in chunks]


def tool_call():
    asked = litellm.completion(**ASKED, tools=[TOOL]).choices[0].message
    answers = [{"role": "tool", "tool_call_id": call.id, "content": "Sunny."} for call in asked.tool_calls]
    messages = [*MESSAGES, asked.model_dump(), *answers]
    return asked.model_dump(), seen(litellm.completion(**{**ASKED, "messages": messages}, tools=[TOOL]))


def tool_call_streamed():
    return total(list(litellm.completion(**ASKED, **USAGE, tools=[TOOL], stream=True)))


async def awaited_stream_without_usage():
    chunks = [chunk async for chunk in await litellm.acompletion(**ASKED, stream=True)]
    return [chunk.choices[0].delta.content for chunk in chunks]


async def awaited():
    return seen(await litellm.acompletion(**ASKED))


async def awaited_stream():
    return total([chunk async for chunk in await litellm.acompletion(**ASKED, **USAGE, stream=True)])


def refused():
    try:
        litellm.completion(model="openai/no-such-model", messages=MESSAGES)
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
    refused,
]
