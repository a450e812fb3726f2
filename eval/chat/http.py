"""The transport gate: one request to a chat endpoint, its body or a Fault within a given number of seconds.

The requests of all threads run in one event loop: there a time limit cancels a request wherever it stands, and its
connection is closed. A read timeout alone is no limit, since a server that drips byte by byte, headers or body, never
trips it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from functools import cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from eval.chat.reply import MAX_BODY, Fault, error_of
from mosaic.core.errors import UsageError

MAX_ERROR = 16 * 1024
ERROR_SECONDS = 1.0


def is_loopback(url: str) -> bool:
    """Whether an address is this machine's own. A proxy or a netrc entry has no business on the way there."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Http:
    """Posts to one endpoint over kept connections. Safe to share between threads."""

    def __init__(self, base_url: str, api_key_env: str) -> None:
        self._base_url = base_url
        self._api_key_env = api_key_env
        self._lock = threading.Lock()
        self._client: Any = None

    def post(self, body: dict[str, Any], seconds: float) -> bytes:
        """The body of a 200 reply, at most `MAX_BODY` bytes, all of it within `seconds`. Fault otherwise, UsageError
        for a key that cannot be sent."""
        return asyncio.run_coroutine_threadsafe(
            _fetch(self._open(), body, seconds), _loop()
        ).result()

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        with self._lock:
            if self._client is not None:
                asyncio.run_coroutine_threadsafe(self._client.close(), _loop()).result()
                self._client = None

    def _open(self) -> Any:
        import httpx2
        import openai

        with self._lock:
            if self._client is None:
                http = httpx2.AsyncClient(
                    follow_redirects=False,
                    trust_env=not is_loopback(self._base_url),
                    limits=httpx2.Limits(max_connections=256, max_keepalive_connections=64),
                    event_hooks={"response": [_refuse]},
                )
                omit: Any = openai.Omit()
                key = os.environ.get(self._api_key_env) or "none"
                # Not stripped: whoever set the variable must know that other programs will fail on it too.
                if not (key.isascii() and key.isprintable() and key == key.strip()):
                    raise UsageError(
                        f"{self._api_key_env}: the key in this environment variable holds a character that no HTTP "
                        "header takes (a line break, or not ASCII), or a space around it; set it without"
                    )
                self._client = openai.AsyncOpenAI(
                    base_url=self._base_url,
                    api_key=key,
                    max_retries=0,
                    http_client=http,
                    default_headers={"OpenAI-Organization": omit, "OpenAI-Project": omit},
                )
            return self._client


_starting = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    """The one loop of all endpoints, in a thread of its own."""
    with _starting:
        return _started()


@cache
def _started() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="chat", daemon=True).start()
    return loop


async def _fetch(client: Any, body: dict[str, Any], seconds: float) -> bytes:
    import httpx2
    import openai

    parts: list[bytes] = []
    size = 0
    try:
        streaming = client.chat.completions.with_streaming_response
        timeout = httpx2.Timeout(seconds, connect=min(5.0, seconds))
        async with asyncio.timeout(seconds), streaming.create(**body, timeout=timeout) as response:
            async for piece in response.http_response.aiter_bytes():
                parts.append(piece)
                size += len(piece)
                if size > MAX_BODY:
                    raise Fault("envelope", f"a body of more than {MAX_BODY} bytes")
    except Fault:
        raise
    except (TimeoutError, openai.APITimeoutError, httpx2.TimeoutException):
        raise Fault("timeout", f"no whole reply within {seconds:.0f} s") from None
    except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        kind = "connect" if isinstance(cause, httpx2.ConnectError) else "transport"
        raise Fault(kind, type(cause).__name__) from None
    return b"".join(parts)


async def _refuse(response: Any) -> None:
    """Judge the status before the body is read: an error page may be endless. Only of a request that was refused for
    what it is, or for want of money, is the beginning read: there the server may say why."""
    status = response.status_code
    if status == 200:
        return
    said, code = "", ""
    if 400 <= status < 500 and status not in (401, 403):
        said, code = error_of(await _beginning(response))
    raise Fault(
        f"http_{status}",
        f"HTTP {status}",
        status=status,
        retry_after=_seconds(response.headers),
        said=said,
        unpaid=status == 402 or (status == 429 and code == "insufficient_quota"),
    )


async def _beginning(response: Any) -> bytes:
    """What arrives of a body within limits of bytes and time; the status counts, whatever becomes of the body."""
    import httpx2

    got = b""
    with contextlib.suppress(
        TimeoutError, httpx2.HTTPError, httpx2.StreamError, OSError, ValueError
    ):
        async with asyncio.timeout(ERROR_SECONDS):
            async for piece in response.aiter_bytes():
                got += piece
                if len(got) >= MAX_ERROR:
                    break
    return got[:MAX_ERROR]


def _seconds(headers: Any) -> float | None:
    """Retry-After in seconds, from a number or a date; None where it is absent or nonsense."""
    from email.utils import parsedate_to_datetime

    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        number = float(text)
        return number if number == number else None
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
