"""Endpoint habits: each ends as a value, or as a typed failure that quotes the provider.

A server on loopback has one habit of `benchmarks.habits` at a time. It is asked by the client, by
the judge and by the planner, over real HTTP.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

from agent.constraints import check_plan
from agent.planners.base import LlmPlannerConfig
from agent.planners.llm import LlmPlanner
from benchmarks.figures import Rows, figure, not_measured
from benchmarks.habit_table import HABITS
from benchmarks.habits import FAILURE, VALUE, Answer, Habit, Reply, Request
from benchmarks.hostile import world
from eval.chat.client import BadReply, ChatConfig, ChatModel, ChatUnavailable
from eval.judges.base import LlmJudgeConfig
from eval.judges.items import items_of
from eval.judges.llm import LlmJudge
from eval.objectives.safety import Safety
from mosaic.core.errors import BoundaryError, PausedError
from mosaic.core.types.data import Message
from mosaic.lab.script import ChatRequest
from mosaic.lab.script import reply as scripted
from tools.planning.toolbox import Toolbox

SECONDS = 20.0
ASK = [{"role": "user", "content": "Is it met? Reply with JSON."}]
SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": ["met"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}
START = "start the server"

Sleep = Callable[[float], None]
"""Waits between attempts."""


@dataclass(frozen=True)
class End:
    """How a call of one habit ended: `value` or `failure`, or an error that has no type."""

    kind: str
    text: str
    seconds: float
    requests: list[Request]


class HabitServer:
    """A server with one habit, while inside `with`. `say` makes the assistant's good message."""

    def __init__(self, habit: Habit, say: Callable[[Request], Reply]) -> None:
        self.requests: list[Request] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body)
                answer = habit.server(body, _good(body, say(body)), len(server.requests))
                self._send(answer)

            def _send(self, answer: Answer) -> None:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *arguments: object) -> None:
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> HabitServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()


def _good(request: Request, message: Reply) -> Reply:
    """The reply of a well-behaved server."""
    read, written = len(json.dumps(request)) // 4, len(json.dumps(message)) // 4
    calls = bool(message.get("tool_calls"))
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": "tool_calls" if calls else "stop",
    }
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    head = {"id": "r", "object": "chat.completion", "created": 0, "model": request["model"]}
    return {**head, "choices": [choice], "usage": usage}


# -- three who ask --------------------------------------------------------------------------------


def _chat(habit: Habit, url: str) -> ChatConfig:
    settings = {"base_url": url, "timeout_seconds": 5, "max_attempts": 3, **habit.chat}
    return ChatConfig.model_validate(settings)


def ask_client(habit: Habit, sleep: Sleep = time.sleep) -> End:
    """One call with a schema."""

    def work(chat: ChatConfig) -> None:
        got = ChatModel(chat, sleep).complete(ASK, schema=SCHEMA)
        assert json.loads(got.text) == {"verdict": "met"}

    return _ended(habit, lambda request: _says('{"verdict": "met"}'), work)


def ask_judge(habit: Habit, sleep: Sleep = time.sleep) -> End:
    """One verdict."""
    verdict: dict[str, object] = {"reason": "by rule"}
    for channel in Safety.answers:
        verdict[channel.name] = {i.name: "no" if i.most == 1 else "none" for i in channel.items}

    def say(request: Request) -> Reply:
        is_probe = "yes" in str(request["messages"][0]["content"]) and len(request["messages"]) == 1
        return _says("yes" if is_probe else json.dumps(verdict))

    def work(chat: ChatConfig) -> None:
        judge = LlmJudge(LlmJudgeConfig(chat=chat), ChatModel(chat, sleep))
        talk = [Message(role="user", content="hello"), Message(role="assistant", content="hi")]
        question = judge.ask_about(items_of(Safety(), "answers"), talk)
        made = judge.ask_afresh([question])[question.key]
        if made.status != "ok":
            raise BoundaryError(made.reason)

    return _ended(habit, say, work)


def ask_planner(habit: Habit, sleep: Sleep = time.sleep) -> End:
    """One whole conversation with tools."""
    seen, pool = world()

    def work(chat: ChatConfig) -> None:
        planner = LlmPlanner(LlmPlannerConfig(chat=chat), ChatModel(chat, sleep))
        shown = [{"label": {}, "score": 1.0, "failed": True}]
        toolbox = Toolbox(seen, lambda *wanted: shown, lambda p: check_plan(p, seen, pool))
        (plan,) = planner.propose(seen, toolbox)
        assert check_plan(plan, seen, pool) == []

    def say(request: Request) -> Reply:
        return dict(scripted(cast(ChatRequest, request)))

    return _ended(habit, say, work)


ASKERS = {"client": ask_client, "judge": ask_judge, "planner": ask_planner}


def _says(text: str) -> Reply:
    return {"role": "assistant", "content": text}


def _ended(
    habit: Habit, say: Callable[[Request], Reply], work: Callable[[ChatConfig], None]
) -> End:
    """How a call ends, and how long it takes."""
    with HabitServer(habit, say) as server:
        chat = _chat(habit, server.url)
        started = time.monotonic()
        kind, text = VALUE, ""
        try:
            work(chat)
        except (ChatUnavailable, BadReply, BoundaryError, PausedError) as error:
            kind, text = FAILURE, str(error)
        except Exception as error:  # what has no type is what this figure counts
            kind, text = f"untyped {type(error).__name__}", str(error)
        return End(kind, text, time.monotonic() - started, server.requests)


def wrong(habit: Habit, who: str, end: End) -> str:
    """What is wrong with the end of a call, "" if nothing is."""
    if end.kind != habit.ends:
        return f"{habit.name}, {who}: ended as {end.kind} ({end.text[:300]})"
    if end.kind == FAILURE and habit.quote not in end.text:
        return f"{habit.name}, {who}: does not say {habit.quote!r} ({end.text[:300]})"
    if START in end.text:
        return f"{habit.name}, {who}: says {START!r} of a server that answered"
    if end.seconds > SECONDS:
        return f"{habit.name}, {who}: took {end.seconds:.0f} s"
    if habit.words and _twice(end.requests):
        return f"{habit.name}, {who}: the same question was sent twice"
    return ""


def _twice(requests: list[Request]) -> bool:
    """Whether one conversation was sent twice with the same cap: the seed decides nothing."""
    asked: Counter[str] = Counter()
    for request in requests:
        same = {name: value for name, value in request.items() if "seed" not in name}
        asked[json.dumps(same, sort_keys=True)] += 1
    return max(asked.values(), default=0) > 1


def endpoints(quick: bool) -> Rows:
    """Every habit, asked by client, judge and planner. `quick` leaves out the planner."""
    askers = dict(ASKERS)
    if quick:
        del askers["planner"]
    # The first use imports for seconds on a busy machine, which no habit is to blame for.
    ask_client(HABITS[0])
    faults: list[str] = []
    untyped = started_again = 0
    longest = 0.0
    for habit in HABITS:
        for who, ask in askers.items():
            if who not in habit.askers:
                continue
            end = ask(habit)
            longest = max(longest, end.seconds)
            untyped += end.kind not in (VALUE, FAILURE)
            started_again += START in end.text
            fault = wrong(habit, who, end)
            if fault:
                faults.append(fault)
    rows = [
        figure("habits tried", len(HABITS), "habits", at_least=40),
        figure("calls that end otherwise than right", len(faults), "calls", at_most=0),
        figure("calls that end without a type", untyped, "calls", at_most=0),
        figure(f"{START!r} to a server that answered", started_again, "calls", at_most=0),
        figure("longest call", longest, "s", at_most=SECONDS),
    ]
    return [*rows, *(not_measured(f"  {fault}") for fault in faults)]
