"""Run the viewer: the sockets, the server, and what is said on the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
import time
import webbrowser
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn

from ._app import Viewer
from ._database import StoreError
from ._options import Options
from ._probe import about

_BACKLOG: Final = 256
_GRACE_S: Final = 5


def run(options: Options, *, opens_browser: bool = False) -> int:
    """Serve until interrupted; return the exit code.

    Returns:
        0 also if a live view is running there already, whose address is printed; 1 if the port or the store cannot be
        used.
    """
    try:
        sockets = listen(options)
    except OSError as error:
        return _cannot_listen(options, error, opens_browser=opens_browser)
    try:
        viewer = Viewer(options)
    except StoreError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    url = f"http://{options.address}:{sockets[0].getsockname()[1]}"

    def announce() -> None:
        _announce(options, url)
        if opens_browser:
            _open_browser(options, url)

    _Server(viewer, announce).run(sockets)
    return 0


def listen(options: Options) -> list[socket.socket]:
    """Return sockets that listen; ``localhost`` is both of this machine's addresses, if it has both.

    Raises:
        OSError: The port is taken, or the host is not this machine.
    """
    if options.host != "localhost":
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        return [socket.create_server((options.host, options.port), family=family, backlog=_BACKLOG)]
    first = socket.create_server(("127.0.0.1", options.port), backlog=_BACKLOG)
    port = first.getsockname()[1]
    try:
        return [first, socket.create_server(("::1", port), family=socket.AF_INET6, backlog=_BACKLOG)]
    except OSError as error:
        if error.errno == errno.EADDRINUSE and options.port:
            first.close()
            raise
        return [first]


class _Server(uvicorn.Server):
    """Ends the streams of events when told to stop, which would otherwise hold the server open.

    Args:
        viewer: What is served.
        announce: Called once it is, and once a signal ends it in order.
    """

    def __init__(self, viewer: Viewer, announce: Callable[[], None] = lambda: None) -> None:
        self._viewer = viewer
        self._announce = announce
        self._loop: asyncio.AbstractEventLoop | None = None
        self._used_s = time.monotonic()
        self._requests = 0
        super().__init__(
            uvicorn.Config(
                viewer.app,
                log_level="warning",
                access_log=False,
                server_header=False,
                limit_concurrency=viewer.options.limits.connections,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=_GRACE_S,
                ws="none",
                lifespan="on",
                proxy_headers=False,
            )
        )

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self._announce()

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, whether it is time to end."""
        state, idle_s = self.server_state, self._viewer.options.exit_after_s
        if state.connections or state.total_requests != self._requests:
            self._used_s, self._requests = time.monotonic(), state.total_requests
        is_unused = idle_s is not None and time.monotonic() - self._used_s > idle_s
        return await super().on_tick(counter) or is_unused

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; told by a signal."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._viewer.watchers.close)
        super().handle_exit(sig, frame)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop; an interrupt is an orderly end."""
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again once all is closed
            super().run(sockets)


def _cannot_listen(options: Options, error: OSError, *, opens_browser: bool) -> int:
    url = f"http://{options.address}:{options.port}"
    if error.errno != errno.EADDRINUSE:
        sys.stderr.write(f"Cannot listen on {options.host}: {error.strerror or error}\n")
        return 1
    if about(url) is not None:
        sys.stdout.write(f"A live view is running already: {url}\n")
        if opens_browser:
            webbrowser.open(url)
        return 0
    sys.stderr.write(
        f"Port {options.port} of {options.host} is taken, by an OpenTelemetry Collector perhaps.\n"
        "Stop that one, or take another port: otel-llm-callback view --port 4320\n"
        "Senders then need OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4320\n"
    )
    return 1


def _announce(options: Options, url: str) -> None:
    store = "in memory, gone when this ends" if options.store is None else str(options.store)
    lines = [
        f"Live view  {url}",
        f"OTLP       {url}/v1/traces and /v1/metrics (HTTP, protobuf or JSON)",
        f"Store      {store}",
    ]
    if options.token is not None:
        lines.append("Senders    OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer%20TOKEN', with your token")
    if not options.is_loopback:
        lines.append(
            "Other machines can reach it, over plain HTTP: put TLS in front of it where the network is not yours."
        )
    sys.stdout.write("\n".join([*lines, "Ctrl-C ends it.", ""]))
    sys.stdout.flush()


def _open_browser(options: Options, url: str) -> None:
    """The token goes in the fragment, which browsers do not send; the page takes it out of the address at once."""
    webbrowser.open(url if options.token is None else f"{url}/#token={options.token}")
