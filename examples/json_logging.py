"""A log of JSON lines: what the program says and what its calls do, in one stream, joined by ids."""

import json
import logging
import sys

from _server import MODEL, NO_SUCH_MODEL, connect
from openai import NotFoundError

from otel_llm_callback import flush, instrument, session
from otel_llm_callback.callbacks import JsonLogger


class JsonLines(logging.Formatter):
    """One JSON object per record. Those about calls have their fields ready in `llm`, for other formatters too."""

    def format(self, record):
        shown = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        return json.dumps(shown | getattr(record, "llm", {}))


class RequestLogger:
    """The shortest debug log there is, and the whole prompt is in it: only where prompts may be read."""

    def on_request_sent(self, metadata, request_json):
        logging.getLogger("prompts").debug("REQUEST: %s", request_json)


if __name__ == "__main__":
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("app").setLevel(logging.INFO)
    if "--prompts" in sys.argv:
        logging.getLogger("prompts").setLevel(logging.DEBUG)

    instrument(JsonLogger("app.llm"), RequestLogger())
    with connect() as client, session("s-42", user="bob"):
        for model in (MODEL, NO_SUCH_MODEL):
            logging.getLogger("app").info("asks %s", model)
            try:
                client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello!"}])
            except NotFoundError as error:
                logging.getLogger("app").warning("does without: %s", type(error).__name__)
            flush()  # only so that the lines stand in order here; a service does not wait for its log
