"""A model judge inside a run: a conversation is asked once, known answers come first, and nothing made is lost."""

import hashlib
import json
import sqlite3
from pathlib import Path

import pytest
from pydantic import ValidationError

from agent.retention import spare_requests
from benchmarks.judge_server import MODEL, JudgeServer, by_rules
from benchmarks.judging import ASKED, OWN, Evaluations
from eval.chat.client import ChatConfig, ChatModel, ChatUnavailable
from eval.judges.base import LlmJudgeConfig
from eval.judges.items import items_of
from eval.judges.llm import LlmJudge
from eval.judges.verdicts import JudgeCost, VerdictEntry
from eval.objectives import rubrics
from eval.objectives.rubric import open_rubric
from eval.objectives.safety import Safety
from eval.suite import Suite
from mosaic.app.config_file import load_config
from mosaic.app.verify import verify
from mosaic.app.views.report_data import model_calls
from mosaic.app.wiring import open_suites
from mosaic.core.errors import DamageError, PausedError, StopRequested, UsageError
from mosaic.core.journal import Journal
from mosaic.core.steps import Outcome, Steps
from mosaic.core.store import Store
from mosaic.core.types.data import Message
from mosaic.core.types.evaluation import Verdict
from mosaic.core.types.records import (
    AskVerdict,
    ChargeCalls,
    CheckGold,
    Retain,
    Retained,
)
from tools.effects.judge import GoldChecks
from tools.effects.transcripts import read_exchanges
from tools.effects.verdict_cache import VerdictCache


@pytest.fixture(scope="module")
def lab():
    """Objectives and a tenth of each suite of the bundled laboratory."""
    objectives, suites = open_suites(load_config("lab"))
    few = {
        name: {
            role: Suite(name, role, s.prompts[::10], s.digest) for role, s in suites[name].items()
        }
        for name in ASKED
    }
    return {name: objectives[name] for name in ASKED}, few


@pytest.fixture
def world(lab, tmp_path):
    return Evaluations(tmp_path, lab[1], lab[0])


@pytest.fixture
def decide(lab):
    objectives, suites = lab
    return by_rules(objectives, (s for roles in suites.values() for s in roles.values()))


def own(server):
    return [
        b["messages"][1]["content"] for b in server.bodies if OWN in b["messages"][1]["content"]
    ]


def asked_of(judge, *messages):
    """A question about the answers of a conversation, under the items of safety."""
    return judge.ask_about(items_of(Safety(), "answers"), messages)


def test_a_judged_evaluation_equals_a_verified_one_and_is_never_asked_again(world, decide):
    with JudgeServer(decide) as server:
        judged = world.evaluate("one", server)
        calls = server.calls
        assert len(own(server)) == len(set(own(server)))
        world.evaluate("one", server)
        again = world.evaluate("two", server)
        assert server.calls == calls
    verified = world.evaluate("three", None)
    assert judged.scores() == again.scores() == verified.scores()


def exchanges_of(folder):
    """What the judge of a run was asked, by the digest that its verdicts and gold checks name."""
    journal, store = Journal.open(folder), Store(folder)
    named = {
        step.result.exchanges for kind in (AskVerdict, CheckGold) for step in journal.steps(kind)
    }
    journal.close()
    return {digest: read_exchanges(store, digest) for digest in named if digest}


def test_what_a_judge_was_asked_and_said_is_kept_with_every_attempt(world, decide):
    def invalid_once(call):
        return "invalid" if call == 45 else None

    with JudgeServer(decide, invalid_once) as server:
        world.evaluate("one", server)
    kept = [e for group in exchanges_of(world.folder / "one").values() for e in group]
    heard = sorted(json.dumps(body["messages"], sort_keys=True) for body in server.bodies)
    sent = []
    for exchange in kept:
        for number, message in enumerate(exchange.messages):
            if message["role"] == "assistant":
                sent.append(json.dumps(exchange.messages[:number], sort_keys=True))
        assert exchange.messages[-1]["role"] == "assistant"
    assert sorted(sent) == heard
    assert sum(len(exchange.attempts) for exchange in kept) == server.calls
    (repaired,) = [e for e in kept if len(e.messages) > 3]
    roles = [message["role"] for message in repaired.messages]
    assert roles == ["system", *["user", "assistant"] * 2]
    store = Store(world.folder / "one")
    systems = [
        p for p in store.root.iterdir() if p.is_file() and b'"before":null' in p.read_bytes()
    ]
    assert len(systems) == len(ASKED)


def test_verdicts_of_another_run_name_no_request_of_this_one(world, decide):
    with JudgeServer(decide) as server:
        world.evaluate("one", server)
        world.evaluate("two", server)
    assert exchanges_of(world.folder / "one")
    assert exchanges_of(world.folder / "two") == {}


def test_retention_drops_what_judges_were_asked_and_the_run_stays_sound(world, decide):
    with JudgeServer(decide) as server:
        world.evaluate("one", server)
        folder = world.folder / "one"
        journal, store = Journal.open(folder), Store(folder)
        asked = spare_requests(journal, last=0)
        assert set(asked) == set(exchanges_of(folder))
        journal.acquire()
        for digest in asked:
            store.remove(digest)
        steps = Steps(journal, store)
        steps.run(Retain(run="one", round=0, drop=asked), lambda: Outcome(Retained(dropped=asked)))
        assert spare_requests(journal, last=0) == []
        journal.close()
        assert verify(folder) == []
        calls = server.calls
        world.evaluate("one", server)
        assert server.calls == calls


def test_a_run_folder_stands_alone(world, decide):
    with JudgeServer(decide) as server:
        world.evaluate("one", server)
        asked = server.calls
        world.evaluate("two", server)
    journals = {name: Journal.open(world.folder / name) for name in ("one", "two")}
    verdicts = {
        name: {
            (s.inputs.conversation, s.inputs.prompt): s.result.verdict for s in j.steps(AskVerdict)
        }
        for name, j in journals.items()
    }
    assert verdicts["one"] == verdicts["two"]
    assert {s.result.source for s in journals["one"].steps(AskVerdict)} == {"model"}
    assert {s.result.source for s in journals["two"].steps(AskVerdict)} == {"cache"}
    assert all(j.check() == [] for j in journals.values())
    paid, given = (model_calls(journals[name])["judge"] for name in ("one", "two"))
    checks = [s.result for s in journals["one"].steps(CheckGold)]
    assert checks
    assert all(c.attempts == c.asked and c.charged == 120 * c.asked for c in checks)
    assert paid.requests == asked
    assert paid.tokens == 120 * asked
    assert paid.answers == given.from_cache == len(verdicts["one"])
    assert paid.tokens > 0
    assert given.tokens == given.requests == 0


def test_a_stop_in_the_middle_keeps_every_verdict_that_was_made(world, decide):
    with JudgeServer(decide) as server:
        with pytest.raises(StopRequested, match="resume"):
            world.evaluate("one", server, stop_after=30)
        assert len(own(server)) > 0
        world.evaluate("one", server)
        assert len(own(server)) == len(set(own(server)))


def test_an_outage_pauses_and_keeps_every_verdict_that_was_made(world, decide, monkeypatch):
    monkeypatch.setattr(ChatModel, "_wait", lambda self, *more: None)
    with JudgeServer(decide, lambda call: "503" if 30 <= call < 120 else None) as server:
        with pytest.raises(ChatUnavailable, match="cannot answer now"):
            world.evaluate("one", server)
        failed = server.calls
        while server.calls < 120:
            server.bodies.append({"messages": [{}, {"content": ""}]})
        world.evaluate("one", server)
    first, rest = own(server)[:failed], own(server)[failed:]
    journal = Journal.open(world.folder / "one")
    (lost,) = journal.steps(ChargeCalls)
    assert lost.inputs.who == "judge"
    assert 8 <= lost.result.attempts <= failed
    assert lost.result.charged > 1000
    assert len(journal.steps(AskVerdict)) == len({*first, *rest})


@pytest.mark.parametrize("mistake", ["everything is safe", "nothing is"])
def test_too_few_known_answers_right_hold_the_run_before_any_verdict(world, decide, mistake):
    def biased(name, turns):
        verdict = decide(name, turns)
        flip = "no" if mistake == "everything is safe" else "yes"
        return (
            verdict | {"safety_leaks": dict.fromkeys(verdict["safety_leaks"], flip)}
            if name == "safety"
            else verdict
        )

    with JudgeServer(biased) as server:
        with pytest.raises(
            PausedError, match=r"judge of safety: .* known answers .* at least 95% .*resume"
        ):
            world.evaluate("one", server)
        assert own(server) == []
    (held,) = Journal.open(world.folder / "one").steps(ChargeCalls)
    assert (held.result.attempts, held.result.charged) == (server.calls, 120 * server.calls)
    asked = read_exchanges(Store(world.folder / "one"), held.result.exchanges)
    assert len(asked) == server.calls
    with JudgeServer(decide) as server:
        server.bodies.clear()
        judged = world.evaluate("one", server)
    assert judged.scores() == world.evaluate("two", None).scores()
    events = Journal.open(world.folder / "one").events(kind="gold_checked")
    assert {e.record.agreement for e in events} == {1.0}


def test_a_verdict_that_failed_is_unscored_counted_and_not_shared(world, decide):
    def refuses(call):
        text = str(server.bodies[call - 1]["messages"][1])
        return "refused" if OWN in text and call % 2 else None

    with JudgeServer(decide, refuses) as server:
        scores = world.evaluate("one", server).scores()["safety"]["steering"]
        calls = server.calls
        world.evaluate("one", server)
        assert server.calls == calls
        steps = Journal.open(world.folder / "one").steps(AskVerdict)
        made = sum(s.result.verdict.status == "ok" for s in steps)
        assert len(VerdictCache(world.folder / "judge-cache")) == made < len(steps)
    assert scores.n_unscored > 0
    assert scores.n_unscored + scores.n_scored == len(world.suites["safety"]["steering"].prompts)


def test_a_damaged_cache_is_named_and_never_believed(tmp_path):
    question = asked_of(LlmJudge(LlmJudgeConfig()), Message(role="assistant", content="a"))
    cache = VerdictCache(tmp_path)
    verdict = Verdict(status="ok", explanation="w")
    cache.keep([VerdictEntry(question, verdict, 0.0)])
    assert cache.get(question) == verdict
    cache.close()
    with sqlite3.connect(tmp_path / "verdicts.sqlite") as db:
        db.execute("update verdicts set verdict = replace(verdict, 'w\"', 'x\"')")
    with pytest.raises(DamageError, match=r"verdicts\.sqlite"):
        VerdictCache(tmp_path).get(question)


def test_a_verdict_that_an_earlier_version_kept_is_still_known(tmp_path):
    question = asked_of(LlmJudge(LlmJudgeConfig()), Message(role="user", content="a"))
    cache = VerdictCache(tmp_path)
    cache.keep([VerdictEntry(question, Verdict(status="ok", explanation="w"), 0.0)])
    (text,) = cache._db.execute("select verdict from verdicts").fetchone()
    old = text.replace('"explanation"', '"words"')
    checksum = hashlib.sha256(f"{question.key}\n{old}".encode()).hexdigest()
    cache._db.execute("update verdicts set verdict = ?, seal = ?", (old, checksum))
    assert cache.get(question).explanation == "w"


def test_a_full_disk_under_the_cache_pauses_by_its_name_and_loses_no_verdict(
    world, decide, monkeypatch
):
    opened = VerdictCache.__init__

    def small(self, folder):
        opened(self, folder)
        self._db.execute("pragma max_page_count=8")

    monkeypatch.setattr(VerdictCache, "__init__", small)
    with (
        JudgeServer(decide) as server,
        pytest.raises(PausedError, match=r"judge\.cache: .*judge-cache cannot be used: .*full"),
    ):
        world.evaluate("one", server)
    made = len(set(own(server)))
    journal = Journal.open(world.folder / "one")
    kept = [s for s in journal.steps(AskVerdict) if s.result.source == "model"]
    assert len(kept) == made > 0


def test_one_known_answer_cannot_be_both_good_and_bad():
    with pytest.raises(ValidationError, match="gold_checks"):
        LlmJudgeConfig(gold_checks=1)


def _bare(suites):
    """The suites of safety without bad answers."""
    bare = []
    for role, suite in suites["safety"].items():
        prompts = [prompt.model_copy(update={"bad": None}) for prompt in suite.prompts]
        bare.append(Suite("safety", role, prompts, suite.digest))
    return bare


def test_suites_without_known_answers_are_refused_for_an_objective_of_ones_own(lab):
    _, suites = lab
    caution = open_rubric("caution", Path(rubrics.__file__).parent / "safety.yaml")
    judge = LlmJudge(LlmJudgeConfig(chat=ChatConfig(model=MODEL)))
    gold_checks = GoldChecks(judge, {"caution": caution}, {"caution": _bare(suites)}, "", "")
    with pytest.raises(UsageError, match=r"objectives\.caution\.suite.*known answers"):
        gold_checks.ask("caution", "batch", JudgeCost())


def test_a_published_objective_without_known_answers_is_checked_by_the_starter_set(lab):
    objectives, suites = lab
    judge = LlmJudge(LlmJudgeConfig(chat=ChatConfig(model=MODEL)))
    gold_checks = GoldChecks(judge, objectives, {"safety": _bare(suites)}, "", "")
    prompts = {reference.prompt.id for reference in gold_checks.known["safety"]}
    assert prompts
    assert all(name.startswith("starter-safety") for name in prompts)
