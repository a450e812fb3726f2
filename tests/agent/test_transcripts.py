"""What was sent to a planner's model is filed before it is sent: whole, once, and without the key."""

import json
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.constraints import check_plan
from agent.planners.base import LlmPlannerConfig
from agent.planners.llm import LlmPlanner
from eval.chat.client import ChatConfig, ChatModel, ChatUnavailable, Completion
from mosaic.app.verify import verify
from mosaic.core.errors import BoundaryError, DamageError
from mosaic.core.steps import Steps
from mosaic.core.store import Store
from mosaic.core.tables import FILE, checksum
from mosaic.core.types.base import canonical_json
from mosaic.core.types.calls import SentMessage
from mosaic.core.types.plans import Violation
from mosaic.core.types.records import AskPlanner
from mosaic.lab.script import reply
from mosaic.lab.server import ScriptedServer
from tools.effects.model_calls import journaled
from tools.effects.transcripts import file_messages, read_messages
from tools.planning.toolbox import Toolbox

KEY = "sk-canary-0123456789abcdef"
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()}),
    max_size=6,
)


@pytest.fixture
def journal(new_journal, tmp_path):
    return new_journal(tmp_path / "run")


@pytest.fixture
def propose(observe, small_pool, journal):
    """Proposes the plan of the first round through the journal."""

    def run(server, seen=None, **changes):
        seen = seen or observe()
        chat = ChatConfig(base_url=server.url, timeout_seconds=5)
        ask = journaled(Steps(journal, Store(journal.folder)))
        config = LlmPlannerConfig(chat=chat, **changes)
        planner = LlmPlanner(config, ChatModel(chat, lambda seconds: None), ask)
        box = Toolbox(seen, lambda *wanted: [], lambda p: check_plan(p, seen, small_pool))
        return planner.propose(seen, box)

    return run


class Listener(ScriptedServer):
    """A scripted server that keeps what it is sent."""

    def __init__(self, script=reply, **more):
        self.heard = []

        def listening(request):
            self.heard.append(request)
            return script(request)

        super().__init__(script=listening, **more)


def garbled(request):
    """A tool call whose arguments are no JSON."""
    function = {"name": "past_rounds", "arguments": "{round 1"}
    call = {"id": "c", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@settings(deadline=None, max_examples=50)
@given(beginning=MESSAGES, first=MESSAGES, second=MESSAGES)
def test_what_two_requests_begin_with_is_stored_once(tmp_path_factory, beginning, first, second):
    store = Store(tmp_path_factory.mktemp("run"))
    requests = [[*beginning, *first], [*beginning, *second]]
    digests = [file_messages(store, messages) for messages in requests]
    assert [read_messages(store, digest) for digest in digests] == requests
    prefixes = set()
    for messages in requests:
        prefixes |= {canonical_json(messages[: i + 1]) for i in range(len(messages))}
    assert len(list(store.root.iterdir())) == len(prefixes)


def test_every_request_is_read_back_as_the_server_heard_it(propose, journal):
    with Listener() as server:
        propose(server)
    store, calls = Store(journal.folder), journal.steps(AskPlanner)
    assert len(calls) == len(server.heard) > 2
    for call, heard in zip(calls, server.heard, strict=True):
        assert read_messages(store, call.result.sent) == heard["messages"]
        assert store.get_json(call.result.offered) == {"tools": heard["tools"]}
    messages = [p for p in store.root.iterdir() if b'"message"' in p.read_bytes()]
    assert len(messages) == len(server.heard[-1]["messages"])


def test_a_request_without_tools_is_filed_with_the_schema_of_its_answer(propose, journal):
    with Listener() as server:
        propose(server, tool_calls=False)
    (call, *_) = journal.steps(AskPlanner)
    offered = Store(journal.folder).get_json(call.result.offered)
    assert offered["schema"] == server.heard[0]["response_format"]["json_schema"]["schema"]


def test_words_that_could_not_be_read_are_kept_with_what_was_said_about_them(propose, journal):
    def script(request):
        return garbled(request) if len(request["messages"]) == 2 else reply(request)

    with Listener(script) as server:
        propose(server)
    told = Completion.model_validate(journal.steps(AskPlanner)[0].result.completion).told
    assert [message["role"] for message in told] == ["assistant", "user"]
    assert told == server.heard[1]["messages"][2:]
    assert "could not be read" in told[1]["content"]


def test_what_was_said_in_a_call_that_failed_is_kept_too(propose, journal):
    with (
        ScriptedServer(script=garbled) as server,
        pytest.raises(BoundaryError, match="no usable reply"),
    ):
        propose(server)
    told = journal.steps(AskPlanner)[0].result.told
    assert [message["role"] for message in told] == ["assistant", "user"] * 2 + ["assistant"]


def test_the_key_is_in_no_file_of_the_run_wherever_it_was_said(
    propose, journal, observe, monkeypatch
):
    monkeypatch.setenv("MOSAIC_API_KEY", KEY)
    refused = observe().last_plan.json_data()
    said = Violation(path="plan", rule="rejected", value=refused, hint=f"use {KEY} here")
    with Listener() as server:
        propose(server, observe(feedback=[said]))
    assert KEY in json.dumps(server.heard[0]["messages"])
    sent = read_messages(Store(journal.folder), journal.steps(AskPlanner)[0].result.sent)
    assert "use (the key) here" in sent[1]["content"]
    files = [path for path in journal.folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_request_is_filed_before_it_is_sent_and_an_outage_files_nothing_twice(propose, journal):
    with (
        Listener(pick=lambda n: "error_500") as server,
        pytest.raises(ChatUnavailable),
    ):
        propose(server)
    filed = {path.name for path in Store(journal.folder).root.iterdir()}
    assert len(filed) == 3  # system, task, tools
    with Listener() as server:
        propose(server)
    first = journal.steps(AskPlanner)[0].result
    assert {first.sent, first.offered} <= filed


def test_a_missing_or_altered_message_is_damage(propose, journal):
    with ScriptedServer() as server:
        propose(server)
    store, last = Store(journal.folder), journal.steps(AskPlanner)[-1]
    assert verify(journal.folder) == []
    before = SentMessage.model_validate(store.get_json(last.result.sent)).before
    store.remove(before)
    (found,) = verify(journal.folder)
    assert found.where.endswith(before)
    assert "missing" in found.what
    with pytest.raises(DamageError, match="missing"):
        read_messages(Store(journal.folder), last.result.sent)


def test_answers_that_were_filed_before_requests_were_are_still_read(propose, journal):
    """A journal of an earlier release: its results know neither `sent` nor `offered` nor `told`."""
    with ScriptedServer() as server:
        first = propose(server)
    with closing(sqlite3.connect(journal.folder / FILE)) as db:
        rows = db.execute("select * from steps where kind = 'plan_call'").fetchall()
        for *row, _ in rows:
            result = json.loads(row[7])
            for name in ("sent", "offered", "told"):
                del result[name]
            for attempt in result["completion"]["attempts"]:
                del attempt["written"]
            row[7] = json.dumps(result)
            db.execute(
                "update steps set result = ?, checksum = ? where seq = ?",
                (row[7], checksum(row), row[0]),
            )
        db.commit()
    assert len(rows) > 2
    assert journal.check() == []
    with ScriptedServer() as server:
        assert propose(server) == first
        assert server.requests == 0
    assert {step.result.sent for step in journal.steps(AskPlanner)} == {""}
