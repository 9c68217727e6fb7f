"""DSPy, which calls the client through LiteLLM."""

import dspy

QUESTION = "What is the weather in Paris?"
dspy.configure(lm=dspy.LM("openai/gpt-4o-mini", cache=False), track_usage=True)
answer = dspy.Predict("question -> answer")


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"Sunny in {city}."


class Ask(dspy.Signature):
    """Answer with the help of tools."""

    question: str = dspy.InputField()
    tools: list[dspy.Tool] = dspy.InputField()
    calls: dspy.ToolCalls = dspy.OutputField()


def seen(prediction):
    return [prediction.toDict(), prediction.get_lm_usage()]


def plain():
    return seen(answer(question=QUESTION))


def tool_call():
    with dspy.context(adapter=dspy.ChatAdapter(use_native_function_calling=True)):
        prediction = dspy.Predict(Ask)(question=QUESTION, tools=[dspy.Tool(weather)])
    return [[call.name, call.args] for call in prediction.calls.tool_calls]


async def awaited():
    return seen(await answer.acall(question=QUESTION))


async def stream():
    listeners = [dspy.streaming.StreamListener(signature_field_name="answer")]
    program = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=listeners)
    return [
        [type(item).__name__, item.toDict() if isinstance(item, dspy.Prediction) else getattr(item, "chunk", None)]
        async for item in program(question=QUESTION)
    ]


def refused():
    try:
        with dspy.context(lm=dspy.LM("openai/no-such-model", cache=False)):
            answer(question=QUESTION)
    except Exception as error:
        return [type(error).__name__, str(error)]


STEPS = [plain, tool_call, awaited, stream, refused]
