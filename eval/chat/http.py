"""All HTTP requests to model servers: each gives its body or a `Fault` within a number of seconds.

Chat completions go through the `openai` client, anything else that a server offers through the
connections beneath it. Two classes share one implementation. `AsyncHttp` lives in the event loop of its user; `Http` is for
threads, and runs the requests of all of them in one loop of its own. In an event loop a time limit
can cancel a request wherever it stands and close its connection. A read timeout is not enough: a
server that drips its reply byte by byte, headers or body, never trips it.

No redirect is followed, since it would take the key to another host. Requests to this machine never
go through a proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import threading
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast
from urllib.parse import urlsplit

from eval.chat.fault import MAX_BODY, TLS, Fault
from eval.chat.refusals import Refusal, refusal_of
from mosaic.core.errors import UsageError

if TYPE_CHECKING:
    import httpx2
    import openai

CHAT = "/chat/completions"
# What is read of the body of an error, in bytes and in seconds.
MAX_ERROR = 16 * 1024
ERROR_SECONDS = 1.0
# As many as `generator.concurrency` may have conversations in flight.
MAX_CONNECTIONS = 1000
KEPT_CONNECTIONS = 100

# Statuses under which a provider may say that it wants money first.
MAY_WANT_MONEY = (400, 402, 403, 429)

Method = Literal["GET", "POST"]
Result = TypeVar("Result")


def is_loopback(url: str) -> bool:
    """Whether an address belongs to this machine.

    Proxies and netrc entries are not used for such an address.

    >>> is_loopback("http://127.8.9.1:80/v1"), is_loopback("http://127.evil.example/v1")
    (True, False)
    """
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Endpoint:
    """Where requests go, and what they may take.

    `url` is the root of the API, which usually ends in /v1. The key is `key`, or else the value of
    the environment variable `key_variable` at the moment of each request. The variable's name
    appears in errors, the key never does. `key_header` is a second header that takes the key.
    `connect_seconds` limits the time to open a connection. `max_body` is in bytes. With
    `keep_alive` connections are kept for the next request.
    """

    url: str
    key_variable: str
    key: str | None = field(default=None, repr=False)
    connect_seconds: float | None = None
    max_body: int = MAX_BODY
    keep_alive: bool = True
    key_header: str | None = None

    def headers(self) -> dict[str, str]:
        """The headers of one request. UsageError for a key that no header can hold."""
        key = os.environ.get(self.key_variable, "") if self.key is None else self.key
        # Not stripped: whoever set the variable must know that other programs will fail on it too.
        if not (key.isascii() and key.isprintable() and key == key.strip()):
            raise UsageError(
                f"{self.key_variable}: the key in this environment variable holds a character "
                "that no HTTP header takes (a line break, or not ASCII), or a space around it; "
                "set it without"
            )
        headers = {"Authorization": f"Bearer {key or 'none'}", "Accept": "application/json"}
        if self.key_header:
            headers[self.key_header] = key or "none"
        return headers


class AsyncHttp:
    """Requests to one endpoint, all from one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._lock = threading.Lock()
        self._client: tuple[openai.AsyncOpenAI, httpx2.AsyncClient] | None = None

    async def request(
        self, method: Method, path: str, body: Mapping[str, object] | None, seconds: float
    ) -> bytes:
        """The body of a reply with a status of success, all of it within `seconds`.

        Raises Fault for anything else, and UsageError for a key that cannot be sent.
        """
        import httpx2
        import openai

        headers = self.endpoint.headers()
        client, connections = self.open()
        # Without a limit of its own, opening a connection may take as long as the request.
        connect = min(self.endpoint.connect_seconds or seconds, seconds)
        timeout = httpx2.Timeout(seconds, connect=connect)
        try:
            async with asyncio.timeout(seconds):
                if path == CHAT and body is not None:
                    return await self._chat(client, body, headers, timeout)
                url = self.endpoint.url.rstrip("/") + path
                streaming = connections.stream(
                    method, url, json=body, headers=headers, timeout=timeout
                )
                async with streaming as response:
                    return await self._whole_body(response)
        except Fault:
            raise
        except (TimeoutError, openai.APITimeoutError, httpx2.TimeoutException):
            raise Fault("timeout", f"no whole reply within {seconds:.0f} s") from None
        except (
            openai.OpenAIError,
            httpx2.HTTPError,
            httpx2.StreamError,
            OSError,
            ValueError,
            RuntimeError,  # the interpreter or the connections are being closed
        ) as error:
            cause = error.__cause__ or error
            if isinstance(cause, Fault):
                raise cause from None
            kind = "connect" if isinstance(cause, httpx2.ConnectError) else "transport"
            raise Fault(kind, _insecure(cause) or type(cause).__name__) from None

    async def _chat(
        self,
        client: openai.AsyncOpenAI,
        body: Mapping[str, object],
        headers: Mapping[str, str],
        timeout: httpx2.Timeout,
    ) -> bytes:
        """The body of a chat completion. Fields that the client does not know go along unread."""
        more = {name: value for name, value in body.items() if name not in ("model", "messages")}
        streaming = client.chat.completions.with_streaming_response.create(
            model=cast(str, body["model"]),
            messages=cast(Any, body["messages"]),
            extra_body=more,
            extra_headers=headers,
            timeout=timeout,
        )
        async with streaming as response:
            return await self._whole_body(response.http_response)

    async def _whole_body(self, response: httpx2.Response) -> bytes:
        limit = self.endpoint.max_body
        parts: list[bytes] = []
        size = 0
        async for piece in response.aiter_bytes():
            parts.append(piece)
            size += len(piece)
            if size > limit:
                raise Fault("envelope", f"a body of more than {limit} bytes")
        return b"".join(parts)

    def open(self) -> tuple[openai.AsyncOpenAI, httpx2.AsyncClient]:
        """The client and its connections, made at the first use."""
        import httpx2
        import openai

        with self._lock:
            if self._client is None:
                kept = KEPT_CONNECTIONS if self.endpoint.keep_alive else 0
                connections = httpx2.AsyncClient(
                    follow_redirects=False,
                    trust_env=not is_loopback(self.endpoint.url),
                    limits=httpx2.Limits(
                        max_connections=MAX_CONNECTIONS, max_keepalive_connections=kept
                    ),
                    event_hooks={"response": [_refuse]},
                )
                omit: Any = openai.Omit()
                client = openai.AsyncOpenAI(
                    base_url=self.endpoint.url,
                    api_key="none",  # each request brings its own
                    max_retries=0,
                    http_client=connections,
                    default_headers={"OpenAI-Organization": omit, "OpenAI-Project": omit},
                )
                self._client = client, connections
            return self._client

    async def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            await client[0].close()


class Http:
    """Requests to one endpoint from any thread."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._http = AsyncHttp(endpoint)

    def request(
        self, method: Method, path: str, body: Mapping[str, object] | None, seconds: float
    ) -> bytes:
        """See `AsyncHttp.request`."""
        self.open()  # in this thread: the shared loop must not wait for an import
        return _in_shared_loop(self._http.request(method, path, body, seconds))

    def open(self) -> None:
        """Get ready for requests, so that the first one has all of its time."""
        self._http.open()

    def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        _in_shared_loop(self._http.close())


_starting = threading.Lock()


def _in_shared_loop(work: Coroutine[None, None, Result]) -> Result:
    """Run in the one event loop that serves all threads, and wait for the result."""
    with _starting:
        loop = _shared_loop()
    return asyncio.run_coroutine_threadsafe(work, loop).result()


@cache
def _shared_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="chat", daemon=True).start()
    return loop


def _insecure(error: BaseException | None) -> str:
    """Why a server that is there could not be spoken to over TLS, "" if that was not the matter."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            why = getattr(error, "verify_message", "") or error.reason or type(error).__name__
            return f"{TLS}: {why}"
        error = error.__cause__ or error.__context__
    return ""


async def _refuse(response: httpx2.Response) -> None:
    """Raise a Fault for a status without success, before the body is read: it may be endless.

    A server that refuses a request may say why at the beginning of its body. Some gateways answer
    with another success than 200.
    """
    status = response.status_code
    if response.is_success:
        return
    refusal = Refusal()
    if status >= 400:
        refusal = refusal_of(await _beginning(response))
    retry_after = _retry_after(response.headers)
    filtered = status == 400 and refusal.code == "content_filter"  # Azure, of one conversation
    raise Fault(
        "refused" if filtered else f"http_{status}",
        f"HTTP {status}",
        status=None if filtered else status,
        retry_after=retry_after,
        said=refusal.sentence,
        param=refusal.param,
        unpaid=status in MAY_WANT_MONEY and refusal.unpaid(status, retry_after),
    )


async def _beginning(response: httpx2.Response) -> bytes:
    """What arrives of a body within limits of bytes and time.

    The status counts, whatever becomes of the body.
    """
    import httpx2

    beginning = b""
    with contextlib.suppress(
        TimeoutError, httpx2.HTTPError, httpx2.StreamError, OSError, ValueError
    ):
        async with asyncio.timeout(ERROR_SECONDS):
            async for piece in response.aiter_bytes():
                beginning += piece
                if len(beginning) >= MAX_ERROR:
                    break
    return beginning[:MAX_ERROR]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """What the header Retry-After says in seconds from now, given as a number or a date.

    None if it is absent, nonsense, or not in the future: then it says nothing about how long.
    """
    from email.utils import parsedate_to_datetime

    text, thousand = headers.get("retry-after"), headers.get("retry-after-ms")
    if text is None and thousand is None:
        return None
    text = text or ""
    try:
        seconds = float(text) if thousand is None else float(thousand) / 1000
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return seconds if seconds > 0 else None
