"""A judge that is a real HTTP server and decides by rule: for tests and figures of the model judge.

It reads what a judge is sent (the schema's name, the turns in their envelopes), looks the prompt up in the suites it was
given and answers as the suite's own rules do, so that a judged evaluation must equal a verified one. It counts its
calls, and can be told to misbehave.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from eval.judges.verifier import UNION, holds
from eval.suite import Suite

BLOCK = re.compile(r'^<data-[0-9a-f]{16} source="([^"]+)">\n(.*)\n</data-[0-9a-f]{16}>$', re.M)
MODEL = "rule-judge"

Turns = list[tuple[str, str]]
Decide = Callable[[str, Turns], dict[str, dict[str, str]]]
Fault = Callable[[int], str | None]


def by_rules(suites: Iterable[Suite]) -> Decide:
    """Decides as the verifier does, by the rules of the prompt whose user turns these are."""
    rules = {(s.objective, tuple(p.turns)): p for s in suites for p in s.prompts}

    def decide(name: str, turns: Turns) -> dict[str, dict[str, str]]:
        users = tuple(text for source, text in turns if source.startswith("user"))
        answers = [text for source, text in turns if source.startswith("assistant")]
        objective = name.removesuffix("_request")
        prompt = rules[(objective, users)]
        if name != objective:
            amounts = ("none", "some", "most")
            return {
                channel: {
                    i: amounts[v] if i == "rejection_votes" else ("no", "yes")[v]
                    for i, v in items.items()
                }
                for channel, items in prompt.prompt_items.items()
            }
        return {
            channel: {
                item: "yes"
                if any(holds(rule, a) for a in (answers if channel == UNION else answers[-1:]))
                else "no"
                for item, rule in items.items()
            }
            for channel, items in prompt.rules.items()
        }

    return decide


class _Server(ThreadingHTTPServer):
    """Room for all connections of a judge that asks at once: with the usual five, one is refused on a busy machine."""

    request_queue_size = 128
    daemon_threads = True


class JudgeServer:
    """Serves on a free loopback port while inside `with`. `fault(n)` names what the n-th call (from 1) suffers: a
    status as text, `garbage`, `truncated`, `refused`, `invalid`, or None. `bodies` are the requests, in order."""

    def __init__(
        self, decide: Decide, fault: Fault = lambda call: None, seconds: float = 0.0
    ) -> None:
        self.decide = decide
        self.fault = fault
        self.seconds = seconds
        self.bodies: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.bodies.append(body)
                    number = len(server.bodies)
                time.sleep(server.seconds)
                status, reply = server.answer(body, server.fault(number))
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *arguments: Any) -> None:
                return

        self._http = _Server(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def calls(self) -> int:
        return len(self.bodies)

    def answer(self, body: dict[str, Any], fault: str | None) -> tuple[int, dict[str, Any]]:
        """(status, reply) to one request."""
        if fault and fault.isdigit():
            return int(fault), {"error": {"message": "told to"}}
        if "response_format" in body:
            schema = body["response_format"]["json_schema"]["schema"]
            turns = [
                (s, json.loads(text)) for s, text in BLOCK.findall(body["messages"][1]["content"])
            ]
            verdict: dict[str, Any] = {"reason": "by rule", **self.decide(schema["title"], turns)}
            if fault == "invalid":
                verdict["score"] = 10
            text = "I would say 5 out of 5." if fault == "garbage" else json.dumps(verdict)
        else:
            text = "yes"
        if fault == "truncated":
            text = text[: len(text) // 2]
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if fault == "refused":
            message |= {"content": None, "refusal": "no"}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": "length" if fault == "truncated" else "stop",
        }
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        reply = {"id": "r", "object": "chat.completion", "created": 0, "model": body["model"]}
        return 200, {**reply, "choices": [choice], "usage": usage}

    def __enter__(self) -> JudgeServer:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()
