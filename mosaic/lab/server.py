"""A scripted mock server for the OpenAI API on loopback: real HTTP, no model, faults on demand.

It serves `/v1/chat/completions`, `/v1/models` and `/health`. If `faults` is above 0, that share of
the chat requests gets one of `FAULTS` instead of its answer, chosen by the seed and the number of
the request. It is plain asyncio, because a web framework does not let one send half a body or
reset a connection.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import NotRequired, TypedDict

from mosaic.core.errors import UsageError
from mosaic.lab.script import ChatRequest, Message, Script, reply

FAULTS = (
    "rate_limit", "rate_limit_absurd", "error_500", "error_503", "hang", "reset", "half_body",
    "html", "empty", "not_utf8", "no_choices", "cut_json", "drip", "twice_the_key", "no_model",
    "redirect",
)  # fmt: skip
# Values of `retry-after` that no client should believe.
ABSURD = ("-1", "1000000000", "Thu, 01 Jan 1970 00:00:00 GMT", "soon", "nan")
MAX_REQUEST = 8 * 1024 * 1024
DRIP_SECONDS = 0.05


class Choice(TypedDict):
    """The only choice of a completion."""

    index: int
    message: Message
    finish_reason: str


class Completion(TypedDict):
    """A chat completion, as far as clients read it."""

    id: NotRequired[str]
    object: NotRequired[str]
    created: NotRequired[int]
    model: str
    choices: list[Choice]
    usage: NotRequired[dict[str, int]]


class ScriptedServer:
    """A scripted mock server in a thread of its own; a context manager.

    `url` is what a client's `base_url` takes.

    `script` makes the assistant's message that answers a request. `pick` may choose the fault of a
    request by its number (from 1), in place of `faults` and `seed`. `seen` counts what was served.
    `trapped` holds the heads of requests that followed the redirect. Raises UsageError for a port
    that is out of range or in use.
    """

    def __init__(
        self,
        port: int = 0,
        faults: float = 0.0,
        seed: int = 1,
        script: Script = reply,
        pick: Callable[[int], str | None] | None = None,
        hang_seconds: float = 30.0,
        model: str = "mosaic",
    ) -> None:
        self.faults = faults
        self.seed = seed
        self.script = script
        self.hang_seconds = hang_seconds
        self.model = model
        self.requests = 0
        self.seen: Counter[str] = Counter()
        self.trapped: list[str] = []
        self._pick = pick or self._draw
        self._socket = _listening(port)
        self._trap = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> ScriptedServer:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread:
            self._thread.join()

    def forever(self) -> None:
        """Serve in this thread until it is interrupted."""
        self._run(threading.Event())

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        servers = [
            self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._socket)),
            self._loop.run_until_complete(asyncio.start_server(self._caught, sock=self._trap)),
        ]
        ready.set()
        try:
            self._loop.run_forever()
        finally:
            for server in servers:
                server.close()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    def _draw(self, number: int) -> str | None:
        """The fault of a request, by the seed and its number."""
        dice = random.Random(f"{self.seed}:{number}")
        return dice.choice(FAULTS) if dice.random() < self.faults else None

    # -- HTTP -------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, until it ends."""
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, TimeoutError):
            pass
        finally:
            writer.close()

    async def _caught(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Note the head of a request that followed the redirect."""
        self.trapped.append((await reader.read(65536)).decode("latin-1"))
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False if the connection ends with it."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *fields = head.split("\r\n")
        method, path, _ = first.split(" ", 2)
        length = _content_length(fields)
        if length > MAX_REQUEST:
            await _send(writer, 413, b"{}")
            return False
        body = await reader.readexactly(length)
        if method == "GET" and path == "/health":
            await _send(writer, 200, b"{}")
        elif method == "GET" and path == "/v1/models":
            models = {"object": "list", "data": [{"id": self.model}]}
            await _send(writer, 200, _json(models))
        elif method == "POST" and path == "/v1/chat/completions":
            return await self._chat(body, writer)
        else:
            await _send(writer, 404, b'{"error": {"message": "no such path"}}')
        return True

    async def _chat(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer a chat request, or break its answer; False if the connection ends with it."""
        self.requests += 1
        fault = self._pick(self.requests)
        self.seen[fault or "ok"] += 1
        try:
            request: ChatRequest = json.loads(body)
            message = self.script(request)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            said = f"not a chat request: {type(error).__name__}"
            return await _send(writer, 400, _json({"error": {"message": said}}))
        answer = _envelope(request, message)
        if fault in ("reset", "half_body", "drip", "hang"):
            return await self._interrupted(fault, _json(answer), writer)
        if fault:
            return await self._broken(fault, answer, writer)
        return await _send(writer, 200, _json(answer))

    async def _broken(self, fault: str, answer: Completion, writer: asyncio.StreamWriter) -> bool:
        """Send another answer in place of this one, or a damaged one."""
        good = _json(answer)
        if fault == "rate_limit":
            return await _send(writer, 429, b"{}", {"retry-after": "1"})
        if fault == "rate_limit_absurd":
            wait = ABSURD[self.requests % len(ABSURD)]
            return await _send(writer, 429, b"{}", {"retry-after": wait})
        if fault in ("error_500", "error_503"):
            return await _send(writer, int(fault[-3:]), b"<html>sorry</html>")
        if fault == "redirect":
            there = f"http://127.0.0.1:{self._trap.getsockname()[1]}/v1/chat/completions"
            return await _send(writer, 307, b"", {"location": there})
        if fault == "cut_json":
            return await _send(writer, 200, _json(_cut_short(answer)))
        bodies = {
            "html": b"<html><body>Please log in</body></html>",
            "empty": b"",
            "not_utf8": good[:-2] + b"\xff\xfe" + good[-2:],
            "no_choices": _json({**answer, "choices": []}),
            "no_model": _json({**answer, "model": None}),
            "twice_the_key": good[:-1] + b', "choices": []}',
        }
        return await _send(writer, 200, bodies[fault])

    async def _interrupted(self, fault: str, good: bytes, writer: asyncio.StreamWriter) -> bool:
        """Reset the connection, stop half way, send a byte at a time, or send a head and then
        wait.
        """
        if fault == "reset":
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        writer.write(_head(200, len(good), {}))
        if fault == "half_body":
            writer.write(good[: len(good) // 2])
            await writer.drain()
            return False
        if fault == "drip":
            end = time.monotonic() + self.hang_seconds
            for byte in good:
                if time.monotonic() > end:
                    return False
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(DRIP_SECONDS)
            return True
        await asyncio.sleep(self.hang_seconds)
        return False


def _cut_short(answer: Completion) -> Completion:
    """The same answer, ended by the token limit before its JSON was complete."""
    choice = answer["choices"][0]
    choice["finish_reason"] = "length"
    said = choice["message"]
    for call in said.get("tool_calls") or []:
        call["function"]["arguments"] = call["function"]["arguments"][:-5]
    if said["content"]:
        said["content"] = said["content"][:-5]
    return answer


def _content_length(fields: list[str]) -> int:
    """The length of the body by the header fields; 0 if they do not say."""
    length = 0
    for field in fields:
        name, _, value = field.partition(":")
        if name.strip().lower() == "content-length":
            length = int(value.strip())
    return length


def _listening(port: int) -> socket.socket:
    """A listening socket on loopback. Raises UsageError if the port cannot be had."""
    try:
        return socket.create_server(("127.0.0.1", port), backlog=256)
    except OverflowError:
        raise UsageError(
            f"--port {port}: a port is a number from 1 to 65535; 0 takes a free one"
        ) from None
    except OSError as error:
        raise UsageError(
            f"--port {port}: {error.strerror}; choose another, 0 takes a free one"
        ) from None


def _envelope(request: ChatRequest, message: Message) -> Completion:
    """The completion around a message, with a count of tokens that is roughly right."""
    prompt = len(json.dumps(request["messages"])) // 4 + 1
    said = len(json.dumps(message)) // 4 + 1
    usage = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
    ended = "tool_calls" if message.get("tool_calls") else "stop"
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": ended}],
        "usage": usage,
    }


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _head(status: int, length: int, more: dict[str, str]) -> bytes:
    """Status line and header fields."""
    lines = [f"HTTP/1.1 {status} x", "content-type: application/json", f"content-length: {length}"]
    for name, value in more.items():
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode()


async def _send(
    writer: asyncio.StreamWriter, status: int, body: bytes, more: dict[str, str] | None = None
) -> bool:
    """Send a whole answer; True, since the connection stays open."""
    writer.write(_head(status, len(body), more or {}) + body)
    await writer.drain()
    return True
