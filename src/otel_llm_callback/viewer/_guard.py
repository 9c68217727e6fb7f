"""What every request passes: who may ask, from which page, with which token; and the headers of every answer.

Prompts are hostile and so may be any page the user has open: a page elsewhere must neither read what is stored here
(Host and Origin are checked, there is no CORS) nor be able to frame it, and text that gets into the page must not run
(the policy allows no script and no style but the files of the package).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import time
from collections import deque
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._options import Options, is_loopback

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}

_HOST: Final = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(:[0-9]{1,5})?")
_ATTEMPTS: Final = 20
_ATTEMPTS_S: Final = 60


class Door:
    """Who may come in: knows the token, and the cookie of a page that has shown it.

    Attributes:
        cookie: Its name; other viewers on this machine have others.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._pass = secrets.token_urlsafe(32)
        self._failures: deque[float] = deque(maxlen=_ATTEMPTS)
        self.cookie = f"otel-llm-callback-view-{secrets.token_hex(4)}"

    @property
    def cookie_value(self) -> str:
        """What the cookie of a page holds that has shown the token."""
        return self._pass

    def knows_host(self, host: str) -> bool:
        """Whether *host*, the header, names this viewer; a name somebody else's page was served under does not."""
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found["name"].lower().strip("[]")
        if is_loopback(name) or name in {self._options.host, *self._options.names}:
            return True
        return not self._options.is_loopback and _is_address(name)

    def is_own_page(self, headers: Headers) -> bool:
        """Whether the request comes from no page at all, or from one of this viewer's."""
        origin = headers.get("origin")
        if origin is not None:
            return urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != ""
        return headers.get("sec-fetch-site", "none") in ("none", "same-origin")

    def admits(self, headers: Headers) -> bool:
        """Whether the request shows the token, or the cookie that was given for it."""
        if self._options.token is None:
            return True
        cookies = cookie_parser(headers.get("cookie", ""))
        if _same(cookies.get(self.cookie, ""), self._pass):
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.opens_with(token.strip())

    def opens_with(self, token: str) -> bool:
        """Whether *token* is the right one; after many wrong ones nobody is believed for a while."""
        now_s = time.monotonic()
        if len(self._failures) == _ATTEMPTS and now_s - self._failures[0] < _ATTEMPTS_S:
            return False
        if self._options.token is not None and _same(token, self._options.token):
            return True
        self._failures.append(now_s)
        return False


class Guard:
    """Middleware that turns away whom :class:`Door` does not admit, and adds the headers to every answer.

    Args:
        app: What it guards.
        door: See there.
        public: Paths without stored content, for which no token is asked.
    """

    def __init__(self, app: ASGIApp, door: Door, public: Iterable[str]) -> None:
        self._app = app
        self._door = door
        self._public = tuple(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        await (self._app if refusal is None else refusal)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        if len(headers.getlist("host")) != 1 or not self._door.knows_host(headers["host"]):
            return PlainTextResponse("The live view is not known under this host name.\n", 403)
        is_navigation = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        is_page = not scope["path"].startswith(("/api/", "/v1/"))
        if not self._door.is_own_page(headers) and not (is_navigation and is_page):
            return PlainTextResponse("Not from another site's page.\n", 403)
        if is_page or scope["path"] in self._public or self._door.admits(headers):
            return None
        return PlainTextResponse("A token is needed.\n", 401, {"www-authenticate": "Bearer"})


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode(), right.encode())


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
