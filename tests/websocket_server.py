"""A real websocket server on the loopback, and what tests of the sockets of any API share."""

from __future__ import annotations

import contextlib
import inspect
import json
import threading

import openai

DROP, CLOSE = "drop", "close"


class Server:
    """A websocket server; `script` holds what it does for each event it answers, `greeting` what it opens with."""

    def __init__(self, *answers):
        from websockets.sync import server as sync_server

        self.script = []
        self.greeting = []
        self.received = []
        self._answers = answers or ("response.create",)
        self._server = sync_server.serve(self._serve, "127.0.0.1", 0)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.port = self._server.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def _serve(self, peer):
        self._play(peer, self.greeting)
        with contextlib.suppress(Exception):  # the client may close at any time
            for message in peer:
                event = json.loads(message)
                self.received.append(event)
                if event["type"] in self._answers:
                    self._play(peer, self.script.pop(0))

    def _play(self, peer, steps):
        for step in steps:
            if step == DROP:
                peer.socket.shutdown(2)
                return
            if step == CLOSE:
                peer.close()
                return
            peer.send(json.dumps(step))

    def stop(self):
        self._server.shutdown()
        self._thread.join(10)


async def done(value):
    """The result, whichever client it is of."""
    return await value if inspect.isawaitable(value) else value


def make_client(server, is_async):
    return (openai.AsyncOpenAI if is_async else openai.OpenAI)(api_key="k", base_url=server.url)


def told(recorder):
    """Of each call, in the order of their beginnings: operation, names of its events, and how it ended."""
    return [
        (calls[0].request.operation, [event.name for event in calls], outcome_of(calls[-1]))
        for calls in recorder.calls().values()
    ]


def outcome_of(end):
    return end.context.outcome if end.name == "error" else end.metadata.outcome
