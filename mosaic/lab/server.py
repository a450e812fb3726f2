"""A scripted OpenAI-compatible server on loopback: honest HTTP, no model, and every fault of a bad day on demand.

It serves `/v1/chat/completions`, `/v1/models` and `/health`. With `faults` above 0 that share of the chat requests gets
one of `FAULTS` instead of its answer, chosen by the seed and the request's number. Raw asyncio, because half a body and
a reset connection are no things that a web framework lets one send.
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
from typing import Any

from mosaic.core.errors import UsageError
from mosaic.lab.script import Script, reply

FAULTS = (
    "rate_limit", "rate_limit_absurd", "error_500", "error_503", "hang", "reset", "half_body", "html", "empty",
    "not_utf8", "no_choices", "cut_json", "drip", "twice_the_key", "no_model", "redirect",
)  # fmt: skip
ABSURD = ("-1", "1000000000", "Thu, 01 Jan 1970 00:00:00 GMT", "soon", "nan")
MOST_REQUEST = 8 * 1024 * 1024
DRIP_SECONDS = 0.05


class ScriptedServer:
    """A server in a thread of its own; a context manager. `url` is what a client's `base_url` takes.

    `script` makes the assistant's message of a request. `pick` may choose the fault of a request by its number (from 1)
    instead of `faults` and `seed`. `seen` counts what was served; `trapped` are the headers of requests that followed the
    redirect.
    UsageError for a port that is none or is in use.
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
        start = [
            asyncio.start_server(self._serve, sock=self._socket),
            asyncio.start_server(self._caught, sock=self._trap),
        ]
        servers = [self._loop.run_until_complete(s) for s in start]
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
        dice = random.Random(f"{self.seed}:{number}")
        return dice.choice(FAULTS) if dice.random() < self.faults else None

    # -- HTTP -----------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, TimeoutError):
            pass
        finally:
            writer.close()

    async def _caught(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.trapped.append((await reader.read(65536)).decode("latin-1"))
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False where the connection ends with it."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, path, _ = head.split("\r\n", 1)[0].split(" ", 2)
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])
        }
        length = int(headers.get("content-length", "0"))
        if length > MOST_REQUEST:
            await _send(writer, 413, b"{}")
            return False
        body = await reader.readexactly(length)
        if method == "GET" and path == "/health":
            await _send(writer, 200, b"{}")
        elif method == "GET" and path == "/v1/models":
            await _send(
                writer, 200, json.dumps({"object": "list", "data": [{"id": self.model}]}).encode()
            )
        elif method == "POST" and path == "/v1/chat/completions":
            return await self._chat(body, writer)
        else:
            await _send(writer, 404, b'{"error": {"message": "no such path"}}')
        return True

    async def _chat(self, body: bytes, writer: asyncio.StreamWriter) -> bool:
        self.requests += 1
        fault = self._pick(self.requests)
        self.seen[fault or "ok"] += 1
        try:
            request = json.loads(body)
            message = self.script(request)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            text = json.dumps({"error": {"message": f"no chat request: {type(error).__name__}"}})
            await _send(writer, 400, text.encode())
            return True
        answer = _envelope(request, message)
        return (
            await self._broken(fault, answer, writer)
            if fault
            else await _send(writer, 200, _json(answer))
        )

    async def _broken(
        self, fault: str, answer: dict[str, Any], writer: asyncio.StreamWriter
    ) -> bool:
        """One fault instead of the answer."""
        good = _json(answer)
        choice = answer["choices"][0]
        if fault == "rate_limit":
            return await _send(writer, 429, b"{}", {"retry-after": "1"})
        if fault == "rate_limit_absurd":
            return await _send(
                writer, 429, b"{}", {"retry-after": ABSURD[self.requests % len(ABSURD)]}
            )
        if fault in ("error_500", "error_503"):
            return await _send(writer, int(fault[-3:]), b"<html>sorry</html>")
        if fault == "redirect":
            there = f"http://127.0.0.1:{self._trap.getsockname()[1]}/v1/chat/completions"
            return await _send(writer, 307, b"", {"location": there})
        if fault == "html":
            return await _send(writer, 200, b"<html><body>Please log in</body></html>")
        if fault == "empty":
            return await _send(writer, 200, b"")
        if fault == "not_utf8":
            return await _send(writer, 200, good[:-2] + b"\xff\xfe" + good[-2:])
        if fault == "no_choices":
            return await _send(writer, 200, _json({**answer, "choices": []}))
        if fault == "no_model":
            return await _send(writer, 200, _json({**answer, "model": None}))
        if fault == "twice_the_key":
            return await _send(writer, 200, good[:-1] + b', "choices": []}')
        if fault == "cut_json":
            choice["finish_reason"] = "length"
            said = choice["message"]
            for call in said.get("tool_calls") or []:
                call["function"]["arguments"] = call["function"]["arguments"][:-5]
            said["content"] = said["content"][:-5] if said["content"] else said["content"]
            return await _send(writer, 200, _json(answer))
        if fault == "reset":
            raw: Any = writer.get_extra_info("socket")
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


def _listening(port: int) -> socket.socket:
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


def _envelope(request: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    """The completion around a message, with a count of tokens that is roughly right."""
    prompt, said = len(json.dumps(request["messages"])) // 4 + 1, len(json.dumps(message)) // 4 + 1
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": "tool_calls" if message.get("tool_calls") else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": said,
            "total_tokens": prompt + said,
        },
    }


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _head(status: int, length: int, more: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} x", "content-type: application/json", f"content-length: {length}"]
    return "\r\n".join([*lines, *(f"{k}: {v}" for k, v in more.items()), "", ""]).encode()


async def _send(
    writer: asyncio.StreamWriter, status: int, body: bytes, more: dict[str, str] | None = None
) -> bool:
    writer.write(_head(status, len(body), more or {}) + body)
    await writer.drain()
    return True
