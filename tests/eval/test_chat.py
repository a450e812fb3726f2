"""One call of a chat model over real HTTP: five gates, bounded attempts, and one of two failures."""

import asyncio
import contextlib
import json
import os
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.faults import faults
from eval.chat.client import BadReply, ChatConfig, ChatModel, ChatUnavailable
from eval.chat.reply import Fault, gates
from eval.chat.strict_json import Invalid, NotStrict, parse_strict, strict_json
from eval.generators.base import VllmGeneratorConfig
from mosaic.app.files import parse_plan
from mosaic.core.errors import UsageError
from mosaic.lab.server import FAULTS, ScriptedServer

ASK = [{"role": "user", "content": "Is it met?"}]
SCHEMA = {"type": "object", "properties": {"verdict": {"enum": ["met"]}}, "required": ["verdict"]}


class Point(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    x: int
    y: list[float]


def chat(server, waits=None, **config):
    sleep = (lambda s: None) if waits is None else waits.append
    made = ChatModel(
        ChatConfig(base_url=server.url, **{"timeout_seconds": 5, **config}), sleep=sleep
    )
    made._http.open()  # the first import takes longer than some limits here
    return made


@pytest.mark.parametrize("fault", FAULTS)
def test_after_one_fault_of_any_kind_the_next_attempt_succeeds_and_both_are_charged(fault):
    waits = []
    slow = {"timeout_seconds": 0.6} if fault in ("hang", "drip") else {}
    with ScriptedServer(pick=lambda n: fault if n == 1 else None, hang_seconds=1.5) as server:
        got = chat(server, waits, **slow).complete(ASK, schema=SCHEMA)
        assert server.trapped == []
    assert strict_json(got.text) == {"verdict": "met"}
    bad, good = got.attempts
    assert bad.error
    assert (bad.charged > 0) is not fault.startswith("rate_limit")
    assert good.error is None
    assert got.charged == bad.charged + good.charged
    assert 0 <= waits[0] <= 120


# Faults of a server that answers, though not as one should: how many attempts each is worth.
STRANGE = {"html": 8, "empty": 8, "not_utf8": 8, "twice_the_key": 8, "no_choices": 3, "no_model": 3, "cut_json": 3}  # fmt: skip


@pytest.mark.parametrize("fault", [f for f in FAULTS if f not in ("hang", "drip")])
def test_a_server_that_is_never_well_ends_in_one_typed_failure_after_at_most_eight_attempts(fault):
    with ScriptedServer(pick=lambda n: fault) as server:
        with pytest.raises((ChatUnavailable, BadReply)) as caught:
            chat(server).complete(ASK, schema=SCHEMA)
        assert server.requests == len(caught.value.attempts) == STRANGE.get(fault, 8)
    assert isinstance(caught.value, BadReply) is (fault in STRANGE)
    assert "start the server" not in str(caught.value)


def test_a_hang_or_a_drip_ends_at_the_time_limit_and_a_deadline_ends_the_call():
    with ScriptedServer(pick=lambda n: "hang" if n % 2 else "drip", hang_seconds=3) as server:
        started = time.monotonic()
        with pytest.raises(ChatUnavailable, match="timeout"):
            chat(server, timeout_seconds=0.4).complete(ASK, deadline=1.0)
        assert time.monotonic() - started < 2.5
        assert 2 <= server.requests <= 3


@pytest.mark.parametrize("limits", [{}, {"deadline": 0.5}])
def test_headers_that_drip_end_at_the_time_limit_too(limits, monkeypatch):
    async def drip(self, body, writer):
        self.requests += 1
        with contextlib.suppress(ConnectionError):
            for byte in b"HTTP/1.1 200 ok\r\nx-slow: " + b"a" * 60:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.1)
        return False

    monkeypatch.setattr(ScriptedServer, "_chat", drip)
    with ScriptedServer() as server:
        slow = chat(server, timeout_seconds=0.5, max_attempts=1)
        started = time.monotonic()
        with pytest.raises(ChatUnavailable, match="timeout"):
            slow.complete(ASK, **limits)
        assert time.monotonic() - started < 4
        assert server.requests == 1


def test_limits_on_tokens_are_checked_before_each_attempt():
    with ScriptedServer(pick=lambda n: "html") as server:
        with pytest.raises(BadReply, match="of 5000 allowed") as caught:
            chat(server).complete(ASK, allowance=5000)
        assert server.requests == 2
        with pytest.raises(BadReply, match="no time left") as late:
            chat(server).complete(ASK, deadline=0.0)
    assert (caught.value.kind, late.value.kind) == ("allowance", "deadline")


@pytest.mark.parametrize("fault", ["error_503", "rate_limit", "reset", "redirect", "hang"])
@pytest.mark.parametrize("limits", [{}, {"allowance": 12_000}])
def test_an_endpoint_that_goes_down_after_a_bad_reply_is_down_and_not_a_bad_model(fault, limits):
    with ScriptedServer(pick=lambda n: "cut_json" if n == 1 else fault, hang_seconds=1) as server:
        with pytest.raises(ChatUnavailable, match="resume") as caught:
            chat(server, timeout_seconds=0.5).complete(ASK, schema=SCHEMA, **limits)
        assert server.requests > 1
    assert "start the server" not in str(caught.value)
    server = ScriptedServer(pick=lambda n: fault if n == 1 else "cut_json", hang_seconds=1)
    with server, pytest.raises(BadReply, match="truncated"):
        chat(server, timeout_seconds=0.5).complete(ASK, schema=SCHEMA)


@pytest.mark.parametrize(
    ("status", "free"), [(401, True), (403, True), (404, True), (429, True), (500, False)]
)
def test_a_server_that_turns_a_request_away_spends_nothing(status, free, monkeypatch):
    async def refuse(self, body, writer):
        from mosaic.lab.server import _send

        return await _send(writer, status, b"{}")

    monkeypatch.setattr(ScriptedServer, "_chat", refuse)
    with ScriptedServer() as server, pytest.raises(ChatUnavailable) as caught:
        chat(server).complete(ASK)
    assert {a.charged == 0 for a in caught.value.attempts} == {free}


@pytest.mark.parametrize(
    ("named", "same"),
    [("gpt-4o", True), ("gpt-4o-2026-08-06", True), ("gpt-4o-v1.2", True), ("gpt-4o-20260806", True),
     ("gpt-4o-mini", False), ("gpt-4o-mini-2026-07-18", False), ("gpt-4o-", False), ("gpt-4", False), (None, False)],
)  # fmt: skip
def test_a_reply_of_another_model_is_no_reply_but_a_dated_name_is_the_same(named, same):
    reply = {"model": named, "choices": [{"finish_reason": "stop", "message": {"content": "a"}}]}
    if same:
        assert (
            gates(json.dumps(reply).encode(), "gpt-4o", json_text=False, tools=False).model == named
        )
    else:
        with pytest.raises(Fault, match="another model" if named else "names no model"):
            gates(json.dumps(reply).encode(), "gpt-4o", json_text=False, tools=False)


def test_a_key_in_the_name_of_the_model_does_not_reach_the_record(monkeypatch):
    monkeypatch.setenv("MOSAIC_API_KEY", "0123456789")
    monkeypatch.setattr("mosaic.lab.server._envelope", lambda request, said: {
        "model": "mosaic-0123456789", "choices": [{"finish_reason": "stop", "message": said}]})  # fmt: skip
    with (
        ScriptedServer() as server,
        pytest.raises(BadReply, match="a reply that holds the key"),
    ):
        chat(server).complete(ASK)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_what_a_model_thought_is_kept_apart_from_what_it_said(field):
    message = {"role": "assistant", "content": '{"x": 1}', field: "first {unbalanced"}
    reply = {"model": "m", "choices": [{"finish_reason": "stop", "message": message}]}
    got = gates(json.dumps(reply).encode(), "m", json_text=True, tools=False)
    assert (got.text, got.reasoning) == ('{"x": 1}', "first {unbalanced")
    message[field] = ["not", "text"]
    assert gates(json.dumps(reply).encode(), "m", json_text=True, tools=False).reasoning == ""


@pytest.mark.parametrize(
    ("status", "failure", "word"),
    [
        (401, ChatUnavailable, "MOSAIC_API_KEY"),
        (404, ChatUnavailable, "base_url"),
        (400, BadReply, "http_400"),
    ],
)
def test_what_no_repetition_can_mend_is_tried_once(status, failure, word, monkeypatch):
    async def refuse(self, body, writer):
        from mosaic.lab.server import _send

        self.requests += 1
        return await _send(writer, status, b'{"error": "your key sk-canary-0123456789 is bad"}')

    monkeypatch.setenv("MOSAIC_API_KEY", "sk-canary-0123456789")
    monkeypatch.setattr(ScriptedServer, "_chat", refuse)
    with ScriptedServer() as server:
        with pytest.raises(failure, match=word) as caught:
            chat(server).complete(ASK)
        assert server.requests == 1
    assert "sk-canary" not in str(caught.value) + repr(caught.value.__context__)


KEY = "sk-canary-0123456789"


@pytest.fixture
def answering(monkeypatch):
    """A server that gives one status and body to every request; called with them, it yields
    (server, chat).
    """
    monkeypatch.setenv("MOSAIC_API_KEY", KEY)

    @contextlib.contextmanager
    def serve(status, body, **config):
        async def answer(self, _, writer):
            from mosaic.lab.server import _send

            self.requests += 1
            return await _send(
                writer, status, body if isinstance(body, bytes) else json.dumps(body).encode()
            )

        monkeypatch.setattr(ScriptedServer, "_chat", answer)
        with ScriptedServer() as server:
            yield server, chat(server, **config)

    return serve


@pytest.mark.parametrize(
    "key", [f"{KEY}\n", f"{KEY}\r", f" {KEY}", f"{KEY} ", f"\u201c{KEY}\u201d", f"{KEY}\x00", "\n"]
)
def test_a_key_that_no_header_takes_is_named_by_its_variable_and_nothing_is_sent(key, monkeypatch):
    monkeypatch.setattr(
        "os.environ", {**os.environ, "THE_KEY": key}
    )  # a real variable holds no NUL
    with ScriptedServer() as server:
        with pytest.raises(
            UsageError, match=r"THE_KEY: .* no HTTP header takes \(a line break, or not ASCII\)"
        ) as caught:
            ChatModel(ChatConfig(base_url=server.url, api_key_env="THE_KEY")).complete(ASK)
        assert server.requests == 0
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("status", [400, 404, 413, 422])
@pytest.mark.parametrize(
    "body",
    [{"error": {"message": "max_tokens\x1b[2J is\nnot supported", "code": "x"}}, {"error": "max_tokens is not supported"},
     {"detail": "max_tokens is not supported"}, {"detail": [{"msg": "max_tokens is not supported"}]},
     b"max_tokens is not supported " + b"\xff" * 100_000],
)  # fmt: skip
def test_what_the_server_says_of_a_refused_request_is_passed_on_in_one_short_line(
    status, body, answering
):
    with answering(status, body) as (server, model):
        with pytest.raises(
            (ChatUnavailable, BadReply), match=rf"refuses the request \(HTTP {status}\)"
        ) as caught:
            model.complete(ASK)
        assert server.requests == 1
    said = str(caught.value).split(f"(HTTP {status}): ")[1]
    assert "max_tokens" in said
    assert "not supported" in said
    assert str(caught.value).isprintable()
    assert len(said) < 300 + 120


def test_an_error_that_says_nothing_or_never_ends_is_still_that_error(answering, monkeypatch):
    for body in (b"", {}, {"error": None}, [], b"\xff\xfe", {"error": {"message": ["\ud800"]}}):
        with (
            answering(400, body) as (server, model),
            pytest.raises(BadReply, match=r"HTTP 400\)") as caught,
        ):
            model.complete(ASK)
        str(caught.value).encode()

    async def drip(self, body, writer):
        self.requests += 1
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 400 x\r\ncontent-length: 999\r\n\r\nwhy")
            for _ in range(100):
                writer.write(b"y")
                await writer.drain()
                await asyncio.sleep(0.05)
        return False

    monkeypatch.setattr(ScriptedServer, "_chat", drip)
    with ScriptedServer() as server:
        with pytest.raises(BadReply, match=r"HTTP 400\): whyy"):
            chat(server).complete(ASK)
        assert server.requests == 1


@pytest.mark.parametrize("status", [400, 402, 404, 422])
@pytest.mark.parametrize("before", ["", "a" * 290])
def test_the_key_is_in_no_message_of_a_refused_request(status, before, answering):
    body = json.dumps({"error": {"message": f"{before}{KEY} is bad"}}).replace("sk-", "\\u0073k-")
    with (
        answering(status, body.encode()) as (_, model),
        pytest.raises((ChatUnavailable, BadReply)) as caught,
    ):
        model.complete(ASK)
    assert "holds the key" in str(caught.value)
    masked = f"bad key {KEY[:12]}****".encode()
    with (
        answering(status, masked) as (_, model),
        pytest.raises((ChatUnavailable, BadReply), match="holds the key"),
    ):
        model.complete(ASK)
    assert "sk-c" not in str(caught.value) + repr(caught.value.__context__) + repr(
        vars(caught.value)
    )


@pytest.mark.parametrize(
    ("status", "body"),
    [(402, {"error": "no credit"}), (429, {"error": {"message": "no credit", "code": "insufficient_quota"}}),
     (429, {"error": {"message": "no credit", "type": "insufficient_quota", "code": None}})],
)  # fmt: skip
def test_a_provider_that_wants_payment_pauses_at_once_and_says_so(status, body, answering):
    with answering(status, body) as (server, model):
        with pytest.raises(
            ChatUnavailable, match=r"wants payment, or the quota .*no credit"
        ) as caught:
            model.complete(ASK)
        assert server.requests == 1
    assert "start the server" not in str(caught.value)
    assert [a.charged for a in caught.value.attempts] == [0]


def test_a_server_that_answers_under_another_name_is_asked_once_and_the_name_is_told(answering):
    def reply(name):
        choice = {"finish_reason": "stop", "message": {"content": "a"}}
        return {
            "model": name,
            "choices": [choice],
            "usage": {"prompt_tokens": 9, "completion_tokens": 1},
        }

    with answering(200, reply("/models/my.gguf")) as (server, model):
        with pytest.raises(
            ChatUnavailable, match=r"answers as /models/my\.gguf; write `model: /models/my\.gguf`"
        ) as caught:
            model.complete(ASK)
        assert server.requests == 1
    assert "start the server" not in str(caught.value)
    assert [a.charged for a in caught.value.attempts] == [10]
    with (
        answering(200, reply(f"{KEY}-model")) as (_, model),
        pytest.raises(ChatUnavailable) as caught,
    ):
        model.complete(ASK)
    assert KEY not in str(caught.value)


def test_a_key_does_not_belong_into_the_address():
    urls = ["http://user:key@127.0.0.1/v1", "http://127.0.0.1/v1?key=1", "http://127.0.0.1/v1#key", "ftp://127.0.0.1/",
            "localhost", "http://a b/v1"]  # fmt: skip
    for url in urls:
        with pytest.raises(ValidationError, match="base_url"):
            ChatConfig(base_url=url)


@pytest.mark.parametrize("port", ["abc", "99999", "0", "-1"])
def test_a_port_that_is_none_is_refused_by_the_config(port):
    with pytest.raises(ValidationError, match="port from 1 to 65535"):
        ChatConfig(base_url=f"http://127.0.0.1:{port}/v1")
    with pytest.raises(ValidationError, match="port from 1 to 65535"):
        VllmGeneratorConfig(base_url=f"http://127.0.0.1:{port}/v1")


def test_a_server_without_a_grammar_may_fence_its_json():
    message = {"role": "assistant", "content": '```json\n{"verdict": "met"}\n```'}
    with ScriptedServer(
        script=lambda request: message if "response_format" not in request else 1
    ) as server:
        got = chat(server, structured="none").complete(ASK, schema=SCHEMA)
    assert got.text == '{"verdict": "met"}'


@pytest.mark.parametrize(
    "text",
    ['{"x": 1, "x": 2}', "[NaN]", "[1e999]", "[-Infinity]", "[" * 17 + "]" * 17, '"' + "a" * 70000 + '"', '"\\ud800"',
     "{}{}", "", "[" + "9" * 5000 + "]", "[" * 100000, '{"a": 1,}'],
)  # fmt: skip
def test_text_that_two_readers_could_read_differently_is_refused(text):
    with pytest.raises(NotStrict):
        strict_json(text)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_brackets_inside_of_a_string_are_no_depth():
    for text in ("[" * 50, '\\"' + "[" * 50, "{" * 50 + "\\"):
        assert strict_json(json.dumps({"rationale": text}))["rationale"] == text
        plan = {"rationale": text, "ratios": {"a": 1.0}, "bucket_weights": {}, "expected": {}}
        assert parse_plan(json.dumps(plan), "plan.json").rationale == text
    with pytest.raises(UsageError, match="nested deeper"):
        parse_plan("[" * 100, "plan.json")


@settings(max_examples=150, deadline=None)
@given(values)
@example({'"[[[\\': '{"{{{'})
def test_strict_json_reads_back_what_was_written(value):
    assert strict_json(json.dumps(value)) == value


@settings(max_examples=150, deadline=None)
@given(st.text() | values.map(json.dumps))
def test_any_text_is_a_model_or_one_of_two_refusals(text):
    with contextlib.suppress(NotStrict, Invalid):
        assert isinstance(parse_strict(text, Point), Point)


def test_problems_name_the_field_and_nothing_is_coerced():
    with pytest.raises(Invalid) as caught:
        parse_strict('{"x": "1", "y": [1, true], "z": 0}', Point)
    assert [p.split(":")[0] for p in caught.value.problems] == ["x", "y.1", "z"]


def test_a_port_that_cannot_be_served_is_named():
    with (
        ScriptedServer() as server,
        pytest.raises(UsageError, match=rf"--port {server.port}: .*in use"),
    ):
        ScriptedServer(server.port)
    for port in (99999, -1):
        with pytest.raises(UsageError, match=f"--port {port}: .* 1 to 65535"):
            ScriptedServer(port)


def test_against_thirty_percent_bad_replies_every_call_ends_well():
    rows = faults(quick=True)
    assert [r["what"] for r in rows if r["met"] is False] == []
