"""Habits of chat endpoints, from public bug reports: what each takes, and how each replies.

A habit is given a request and the reply that a well-behaved server would send. It sends what it
sends, or refuses the request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

VALUE, FAILURE = "value", "failure"

Request = dict[str, Any]
Reply = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What goes over the wire."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Server = Callable[[Request, Reply, int], Answer]
"""Answers request number n, given the reply of a well-behaved server."""


@dataclass(frozen=True)
class Habit:
    """One habit. `chat` are the settings that suit it.

    `ends` is how a call must end; `quote` stands in the failure. `words` is a habit of the model's
    words at temperature 0: the same question would be answered in the same way. `askers` are those
    who meet it.
    """

    name: str
    server: Server
    ends: str = VALUE
    quote: str = ""
    chat: Mapping[str, object] = field(default_factory=dict)
    words: bool = False
    askers: tuple[str, ...] = ("client", "judge", "planner")


def plain(reply: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(json.dumps(reply).encode(), status, headers or {})


def refusal(sentence: str, status: int = 400, **more: object) -> Answer:
    return plain({"error": {"message": sentence, **more}}, status)


# -- changes of one part of a reply ---------------------------------------------------------------


def choice_with(**changes: object) -> Server:
    """The choice of the reply with these fields."""

    def answer(request: Request, reply: Reply, number: int) -> Answer:
        choice = {**reply["choices"][0], **changes}
        return plain({**reply, "choices": [choice]})

    return answer


def message_with(change: Callable[[Reply], object]) -> Server:
    """The message of the reply after `change`, which returns it or changes it."""

    def answer(request: Request, reply: Reply, number: int) -> Answer:
        message = reply["choices"][0]["message"]
        reply["choices"][0]["message"] = change(message) or message
        return plain(reply)

    return answer


def text_with(before: str, after: str) -> Server:
    """The text of the reply, or the arguments of its calls, with something round it."""

    def change(message: Reply) -> None:
        for call in message.get("tool_calls") or []:
            call["function"]["arguments"] = before + call["function"]["arguments"] + after
        if message.get("content"):
            message["content"] = before + message["content"] + after

    return message_with(change)


def content_with(before: str, after: str = "") -> Server:
    """Something round the content alone."""

    def change(message: Reply) -> None:
        message["content"] = before + (message.get("content") or "") + after

    return message_with(change)


def each_function(change: Callable[[dict[str, Any]], object]) -> Server:
    """Each called function after `change`."""

    def all_of(message: Reply) -> None:
        for call in message.get("tool_calls") or []:
            change(call["function"])

    return message_with(all_of)


def body_as(make: Callable[[Reply], object]) -> Server:
    """A body made of the reply: bytes as they are, or JSON."""

    def answer(request: Request, reply: Reply, number: int) -> Answer:
        made = make(reply)
        return Answer(made) if isinstance(made, bytes) else plain(made)

    return answer


def refusing(check: Callable[[Request], str], status: int = 400, **more: object) -> Server:
    """Refuses a request that `check` has a sentence about."""

    def answer(request: Request, reply: Reply, number: int) -> Answer:
        sentence = check(request)
        return refusal(sentence, status, **more) if sentence else plain(reply)

    return answer


def always(answer: Answer) -> Server:
    return lambda request, reply, number: answer


def first(answer: Answer) -> Server:
    """This answer to the first request, and good ones after it."""
    return lambda request, reply, number: answer if number == 1 else plain(reply)


# -- streams --------------------------------------------------------------------------------------


def stream(reply: Reply, done: bool = True) -> bytes:
    """The reply as a stream of events, its texts in pieces."""
    message = reply["choices"][0]["message"]
    head = {name: reply[name] for name in ("id", "model") if name in reply}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    text = message.get("content") or ""
    for start in range(0, len(text), 11):
        deltas.append({"content": text[start : start + 11]})
    for index, call in enumerate(message.get("tool_calls") or []):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        begun = {**call, "index": index, "function": {"name": name, "arguments": ""}}
        deltas.append({"tool_calls": [begun]})
        for start in range(0, len(arguments), 17):
            piece = {"index": index, "function": {"arguments": arguments[start : start + 17]}}
            deltas.append({"tool_calls": [piece]})
    lines = [": connected"]
    for delta in deltas:
        event = {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        lines += [f"data: {json.dumps(event)}", ""]
    if done:
        last = {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        usage = {**head, "choices": [], "usage": reply.get("usage")}
        lines += [f"data: {json.dumps(last)}", "", f"data: {json.dumps(usage)}", ""]
        lines += ["data: [DONE]", ""]
    return "\n".join(lines).encode()


# -- what a request must be -----------------------------------------------------------------------


def keeps(field_name: str, value: object) -> Server:
    """Puts a field into each message with calls, and refuses a conversation that lost it."""

    def answer(request: Request, reply: Reply, number: int) -> Answer:
        for message in request["messages"]:
            if message.get("tool_calls") and message.get(field_name) != value:
                return refusal(f"The {field_name} must be passed back to the API.")
        message = reply["choices"][0]["message"]
        message[field_name] = value
        return plain(reply)

    return answer


def signs_calls(request: Request, reply: Reply, number: int) -> Answer:
    """A signature in each call, which must come back with it."""
    signature = {"google": {"thought_signature": "c2lnbmVk"}}
    for message in request["messages"]:
        for call in message.get("tool_calls") or []:
            if call.get("extra_content") != signature:
                return refusal("Function call is missing a thought_signature.")
    for call in reply["choices"][0]["message"].get("tool_calls") or []:
        call["extra_content"] = signature
    return plain(reply)


def one_id(identifier: object) -> Server:
    """One id for all calls; the server refuses a conversation in which two are alike."""

    def answer(request: Request, reply: Reply, number: int) -> Answer:
        ids = []
        for message in request["messages"]:
            ids += [call.get("id") for call in message.get("tool_calls") or []]
        told = [m.get("tool_call_id") for m in request["messages"] if m["role"] == "tool"]
        if len(ids) > len(set(ids)) or not all(ids) or set(told) > set(ids):
            return refusal("Duplicate value for 'tool_call_id'")
        for call in reply["choices"][0]["message"].get("tool_calls") or []:
            if identifier is None:
                del call["id"]
            else:
                call["id"] = identifier
        return plain(reply)

    return answer


def fields_of(*allowed: str) -> Callable[[Request], str]:
    """A sentence about the first field of a request that is not allowed."""

    def check(request: Request) -> str:
        for name in request:
            if name not in allowed:
                return f"Invalid JSON payload received. Unknown name {name!r}: cannot find field."
        return ""

    return check


def without(name: str, sentence: str) -> Callable[[Request], str]:
    """This sentence about a request that has this field."""
    return lambda request: sentence if name in request else ""


def cut_at_cap(reason: object) -> Server:
    """Cuts the reply at a small cap, with a finish reason that does not say so."""

    def answer(request: Request, reply: Reply, number: int) -> Answer:
        cap = request.get("max_tokens", 10**6)
        if cap > 3000:
            return plain(reply)
        message = reply["choices"][0]["message"]
        for call in message.get("tool_calls") or []:
            call["function"]["arguments"] = call["function"]["arguments"][:-1]
        if message.get("content"):
            message["content"] = message["content"][:-1]
        reply["choices"][0]["finish_reason"] = reason
        return plain({**reply, "usage": {"prompt_tokens": 9, "completion_tokens": cap}})

    return answer


def as_text(names: Sequence[str]) -> Callable[[dict[str, Any]], object]:
    """Nested objects of a call's arguments as JSON text."""

    def change(function: dict[str, Any]) -> None:
        arguments = json.loads(function["arguments"])
        for name in names:
            if name in arguments:
                arguments[name] = json.dumps(arguments[name])
        function["arguments"] = json.dumps(arguments)

    return change
