"""A mock judge that is a real HTTP server and decides by rule, for tests and figures.

It reads what a judge is sent (the name of the schema, the turns in their envelopes), looks the
prompt up in its suites and answers by the rules of that suite. A judged evaluation must therefore
equal a verified one. It counts its calls, and can be told to misbehave.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from eval.judges.items import REQUEST
from eval.judges.rules import holds
from eval.objectives.base import Item, Objective
from eval.suite import Suite
from mosaic.core.types.base import JsonObject
from mosaic.core.types.evaluation import Prompt

BLOCK = re.compile(r'^<data-[0-9a-f]{16} source="([^"]+)">\n(.*)\n</data-[0-9a-f]{16}>$', re.M)
MODEL = "rule-judge"

Turns = list[tuple[str, str]]
Verdict = dict[str, dict[str, str]]
Decide = Callable[[str, Turns], Verdict]
Fault = Callable[[int], str | None]


def by_rules(objectives: Mapping[str, Objective], suites: Iterable[Suite]) -> Decide:
    """Decides as the verifier does, by the rules of the prompt that has these user turns."""
    known: dict[tuple[str, tuple[str, ...]], Prompt] = {}
    for suite in suites:
        for prompt in suite.prompts:
            known[suite.objective, tuple(prompt.turns)] = prompt

    def decide(name: str, turns: Turns) -> Verdict:
        users = tuple(text for source, text in turns if source.startswith("user"))
        answers = [text for source, text in turns if source.startswith("assistant")]
        objective = objectives[name.removesuffix(REQUEST)]
        prompt = known[objective.name, users]
        if name == objective.name:
            return _of_answers(objective, prompt, answers)
        return _of_request(objective, prompt)

    return decide


def said(item: Item, value: int) -> str:
    """A value of an item in the words of the schema.

    >>> said(Item("hard"), 1), said(Item("rejection_votes", 2), 1)
    ('yes', 'some')
    """
    words = ("no", "yes") if item.most == 1 else ("none", "some", "most")
    return words[value]


def _of_request(objective: Objective, prompt: Prompt) -> Verdict:
    """The prompt-side items of a prompt, in the words of the schema."""
    verdict: Verdict = {}
    for channel in objective.request:
        values = prompt.prompt_items[channel.name]
        verdict[channel.name] = {i.name: said(i, values[i.name]) for i in channel.items}
    return verdict


def _of_answers(objective: Objective, prompt: Prompt, answers: Sequence[str]) -> Verdict:
    """Which rules of the prompt hold in the turns that each channel is read from."""
    verdict: Verdict = {}
    for channel in objective.answers:
        judged = answers if channel.turns == "all" else answers[-1:]
        verdict[channel.name] = {}
        for item in channel.items:
            rule = prompt.rules[channel.name][item.name]
            met = any(holds(rule, answer) for answer in judged)
            verdict[channel.name][item.name] = said(item, int(met))
    return verdict


class _Server(ThreadingHTTPServer):
    """Room for the connections of a judge that asks all at once: the usual five are too few."""

    request_queue_size = 128
    daemon_threads = True


class JudgeServer:
    """Serves on a free loopback port while inside `with`.

    `fault(n)` names what the n-th call (from 1) suffers: a status as text, `garbage`, `truncated`,
    `refused`, `invalid`, or None. `bodies` are the requests, in order.
    """

    def __init__(
        self, decide: Decide, fault: Fault = lambda call: None, seconds: float = 0.0
    ) -> None:
        self.decide = decide
        self.fault = fault
        self.seconds = seconds
        self.bodies: list[JsonObject] = []
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

            def log_message(self, format: str, *arguments: object) -> None:
                return

        self._http = _Server(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def calls(self) -> int:
        return len(self.bodies)

    def answer(self, body: JsonObject, fault: str | None) -> tuple[int, JsonObject]:
        """(status, reply) to one request."""
        if fault and fault.isdigit():
            return int(fault), {"error": {"message": "told to"}}
        if "response_format" in body:
            schema = body["response_format"]["json_schema"]["schema"]
            blocks = BLOCK.findall(body["messages"][1]["content"])
            turns = [(source, json.loads(text)) for source, text in blocks]
            verdict: JsonObject = {"reason": "by rule", **self.decide(schema["title"], turns)}
            if fault == "invalid":
                verdict["score"] = 10
            text = "I would say 5 out of 5." if fault == "garbage" else json.dumps(verdict)
        else:
            text = "yes"
        if fault == "truncated":
            text = text[: len(text) // 2]
        message: JsonObject = {"role": "assistant", "content": text}
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
