"""A web service of two workers that streams its answers; each worker has its own telemetry.

``python fastapi_service.py``, then ``curl -N 'localhost:8000/chat?question=Hello!' -H 'x-session-id: s-42'``.
Spans and metrics go to a collector on this machine, or where ``OTEL_EXPORTER_OTLP_ENDPOINT`` says.
"""

import os
from contextlib import asynccontextmanager
from typing import Annotated

import uvicorn
from _server import MODEL, api_in_environment
from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import StreamingResponse
from openai import APIError, AsyncOpenAI

from otel_llm_callback import aflush, configure, instrument, session


@asynccontextmanager
async def lifespan(app):
    """Each worker runs this for itself: its own SDK, its own threads, its own ``service.instance.id``."""
    configure(service_name="chat-service")
    instrument(include_usage=True)
    async with AsyncOpenAI() as app.state.client:
        yield
    await aflush()  # sends the rest: a worker ends without running what `atexit` was given


app = FastAPI(lifespan=lifespan)


@app.get("/chat")
async def chat(question: str, x_session_id: Annotated[str | None, Header()] = None, model: str = MODEL):
    """Answer as the model writes. The call belongs to the session in which it was made, to the end of its stream."""
    messages = [{"role": "user", "content": question}]
    try:
        with session(x_session_id):
            answer = await app.state.client.chat.completions.create(model=model, messages=messages, stream=True)
    except APIError as error:
        raise HTTPException(502, f"The model does not answer: {type(error).__name__}") from error
    return StreamingResponse(words(answer), media_type="text/plain")


async def words(answer):
    async with answer:  # closed also when the client goes away: the call is then told as `closed_early`
        async for chunk in answer:
            for choice in chunk.choices:
                yield choice.delta.content or ""


if __name__ == "__main__":
    with api_in_environment():
        uvicorn.run("fastapi_service:app", port=int(os.environ.get("PORT", "8000")), workers=2)
