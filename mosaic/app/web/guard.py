"""Who may ask: this machine's browser, with the token, from the page itself.

Every request needs a known Host and, except for the log-in link, the cookie; every POST needs our
Origin and the CSRF token as well. The checks stand in one middleware before all routes, so that a
new route has them too.

The token outlives the server, so that a link to a page, a bookmark or an open form still works after a
restart. It is kept as a private file beside the runs, which whoever can read it can read as well, and
is replaced after `KEPT_DAYS`, or as soon as the file is deleted.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from pathlib import Path
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mosaic.core.errors import UsageError

LOGIN = "/login"
TOKEN_FILE = ".view-token"
TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
KEPT_DAYS = 30
DAY = 24 * 3600
LARGEST_BODY = 256 * 1024
LINK = (
    "open the link that `python -m mosaic view` printed, which stays the same for 30 days, and then "
    "this address again"
)
METHODS = ("GET", "HEAD", "POST")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # `no-referrer` makes browsers send `Origin: null` with forms
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def token_of(folder: Path) -> str:
    """The 256-bit token of the pages over a folder: the kept one while it is good, else a new one."""
    return _kept_token(folder / TOKEN_FILE) or new_token(folder)


def _kept_token(path: Path) -> str | None:
    """The token of an earlier start. None if it is too old, or the file is not this user's alone."""
    try:
        # A link could lead to a text that somebody else knows.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        private = stat.S_ISREG(found.st_mode) and not found.st_mode & 0o077
        recent = 0 <= time.time() - found.st_mtime < KEPT_DAYS * DAY
        if not private or not recent or found.st_uid != os.geteuid():
            return None
        text = os.read(descriptor, 100).decode("ascii", errors="replace")
    finally:
        os.close(descriptor)
    return text if TOKEN.fullmatch(text) else None


def new_token(folder: Path) -> str:
    """A fresh 256-bit token, kept in a file that only this user can read."""
    token = secrets.token_urlsafe(32)
    path = folder / TOKEN_FILE
    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}; remove it") from None
    os.write(descriptor, token.encode())
    os.close(descriptor)
    return token


def cookie_of(token: str) -> str:
    """The cookie's name. Browsers keep cookies by host, not by port: each server has its own."""
    return "mosaic-" + hmac.new(token.encode(), b"cookie", hashlib.sha256).hexdigest()[:8]


def csrf_of(token: str) -> str:
    return hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()


class Guard:
    """The middleware. `hosts` are the Host headers that are answered."""

    def __init__(self, app: ASGIApp, token: str, hosts: set[str]) -> None:
        self.app = app
        self.token = token
        self.hosts = hosts
        self.cookie = cookie_of(token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                for name, value in HEADERS.items():
                    if name.encode() not in own:
                        message["headers"].append((name.encode(), value.encode()))
            await send(message)

        refused = self._refuse(request)
        if refused is not None:
            await refused(scope, receive, with_headers)
            return
        if request.method == "POST":
            body = await _body(request)
            if body is None:
                await PlainTextResponse("too large", 413)(scope, receive, with_headers)
                return
            given = request.headers.get("x-csrf-token") or (form_of(body).get("csrf") or "")
            if not hmac.compare_digest(given.encode(), csrf_of(self.token).encode()):
                await PlainTextResponse("no CSRF token", 403)(scope, receive, with_headers)
                return
            receive = _replay(body)
        await self.app(scope, receive, with_headers)

    def _refuse(self, request: Request) -> Response | None:
        """The answer to a request that may not go on, or to the log-in link; None if it may."""
        if request.headers.get("host") not in self.hosts:
            return PlainTextResponse("unknown host", 421)
        if request.method not in METHODS:
            return PlainTextResponse("method not allowed", 405)
        if request.url.path == LOGIN and request.method == "GET":
            return self._log_in(request)
        cookie = request.cookies.get(self.cookie, "")
        if not hmac.compare_digest(cookie.encode(), self.token.encode()):
            return PlainTextResponse(f"no token; {LINK}", 401)
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return PlainTextResponse("asked from another site", 403)
        if request.method == "POST":
            origin, host = request.headers.get("origin", ""), request.headers.get("host")
            if origin != f"http://{host}":
                return PlainTextResponse("asked from another origin", 403)
        return None

    def _log_in(self, request: Request) -> Response:
        given = request.query_params.get("token", "")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return PlainTextResponse(f"wrong token; {LINK}", 403)
        answer = RedirectResponse("/", 303)
        # Gone with the browser: it is sent to whatever else listens on this machine.
        answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
        return answer


async def _body(request: Request) -> bytes | None:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            return None
    return body


def form_of(body: bytes) -> dict[str, str]:
    """The fields of a form, the last of each name; none if it cannot be read.

    >>> form_of(b"a=1&a=2&b=")
    {'a': '2', 'b': ''}
    """
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True)
    except (UnicodeDecodeError, ValueError):
        return {}
    return {name: values[-1] for name, values in fields.items()}


def _replay(body: bytes) -> Receive:
    """The body again, for the route behind the check."""
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
