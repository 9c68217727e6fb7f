"""A LangChain application: the same callbacks and telemetry, nothing of it changed (needs ``langchain-openai``)."""

from _server import MODEL, api_in_environment
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

from otel_llm_callback import flush, instrument, session
from otel_llm_callback.callbacks import SessionAnalytics


def make_chain():
    prompt = ChatPromptTemplate.from_messages([("system", "Answer in {language}."), ("user", "{question}")])
    return prompt | ChatOpenAI(model=MODEL, stream_usage=True) | StrOutputParser()


if __name__ == "__main__":
    analytics = SessionAnalytics()
    instrument(analytics)
    with api_in_environment():
        chain = make_chain()
        with session("plain"):
            print("Bob:", chain.invoke({"language": "English", "question": "Who are you?"}))
        with session("streamed"):
            print("Bob: ", end="")
            for text in chain.stream({"language": "English", "question": "What is a trace?"}):
                print(text, end="", flush=True)
            print()
        with session("batch"):
            questions = [{"language": language, "question": "And a callback?"} for language in ("English", "French")]
            print(*[f"Bob: {text}" for text in chain.batch(questions)], sep="\n")
    flush()
    for name in ("plain", "streamed", "batch"):
        summary = analytics.summary(session_id=name)
        print(f"{name}: {summary.responses} responses, {summary.total_tokens} tokens")
