"""Limits on money and on tokens of planner and judge: never passed, never begun anew, whatever ends the process."""

import json
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.endpoints import HabitServer
from benchmarks.habits import Habit, body_as
from eval.chat.client import ChatConfig, ChatModel
from eval.chat.failures import LimitReached
from eval.chat.metering import Tokens
from eval.chat.prices import Prices
from eval.judges.asking import Asking
from eval.judges.base import LlmJudgeConfig
from eval.judges.items import items_of
from eval.judges.llm import LlmJudge
from eval.objectives.safety import Safety
from mosaic.app.config_file import load_config
from mosaic.app.views.spending import spending_lines, spending_of
from mosaic.core.errors import PausedError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.rows import Calls, Place
from mosaic.core.types.data import Message
from mosaic.core.types.spending import Usage
from tools.effects.spending import Limits, Purse, recorded_spending

# Each example writes to the disk: shrinking one would take minutes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
PRICES = Prices(input=1, output=2)
BOTH = {"planner": PRICES, "judge": PRICES}


@pytest.fixture
def journal(new_journal, tmp_path):
    return new_journal(tmp_path / "run")


def again(journal):
    """The same journal, as the process after a kill opens it."""
    folder = journal.folder
    journal.close()
    journal = Journal.open(folder)
    journal.acquire()
    return journal


def test_an_attempt_holds_its_worst_case_and_is_charged_what_it_took(journal):
    meter = Purse(journal, Limits(money=1000), BOTH).meter("judge")
    meter.reserve(Tokens(100, 100))
    held = recorded_spending(journal)
    assert held.judge.held.money >= 300
    assert held.money <= 1000
    meter.settle(Tokens(100, 100), Tokens(90, 10))
    settled = recorded_spending(journal)
    assert settled.judge.used == Usage(judged=100, money=110)
    assert settled.money == 110


def test_a_limit_names_itself_with_use_and_remainder_and_how_to_go_on(journal):
    meter = Purse(journal, Limits(money=1_000_000), BOTH).meter("planner")
    meter.reserve(Tokens(400_000, 100_000))
    meter.settle(Tokens(400_000, 100_000), Tokens(400_000, 100_000))
    with pytest.raises(LimitReached) as caught:
        meter.reserve(Tokens(400_000, 1))
    said = str(caught.value)
    assert "budget.money: the next request of the planner may take 0.400002" in said
    assert "of 1 are 0.6 used, 0.4 left" in said
    assert "--set budget.money=MORE --accept-changes" in said
    assert isinstance(caught.value, PausedError)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("who", ["planner", "judge"])
def test_tokens_have_limits_of_their_own_by_who_asks(journal, who):
    other = "judge" if who == "planner" else "planner"
    purse = Purse(journal, Limits(tokens={who: 100}), {})
    purse.meter(other).reserve(Tokens(10_000, 0))
    purse.meter(other).settle(Tokens(10_000, 0), Tokens(10_000, 0))
    purse.meter(who).reserve(Tokens(60, 0))
    purse.meter(who).settle(Tokens(60, 0), Tokens(60, 0))
    with pytest.raises(LimitReached, match=rf"budget\.{who}_tokens: .* 41 tokens; of 100 are 60 used, 40 left"):  # fmt: skip
        purse.meter(who).reserve(Tokens(41, 0))


def test_planner_and_judge_share_the_money(journal):
    purse = Purse(journal, Limits(money=100), BOTH)
    purse.meter("planner").reserve(Tokens(60, 0))
    purse.meter("planner").settle(Tokens(60, 0), Tokens(60, 0))
    with pytest.raises(LimitReached, match="of the judge"):
        purse.meter("judge").reserve(Tokens(41, 0))
    purse.meter("judge").reserve(Tokens(40, 0))


def test_a_kill_counts_what_was_held_and_a_resume_does_not_begin_anew(journal):
    meter = Purse(journal, Limits(money=10**6), BOTH).meter("judge")
    meter.reserve(Tokens(100, 0))
    meter.settle(Tokens(100, 0), Tokens(70, 0))
    meter.reserve(Tokens(50, 0))
    journal = again(journal)
    spent = recorded_spending(journal)
    purse = Purse(journal, Limits(money=10**6), BOTH)
    now = recorded_spending(journal)
    assert now.judge.held == Usage()
    assert now.judge.used == spent.judge.used + spent.judge.held
    assert now.money >= 120
    with pytest.raises(LimitReached):
        purse.meter("judge").reserve(Tokens(10**6 - 119, 0))


def test_what_was_charged_before_anybody_counted_money_counts_at_the_dearer_price(journal):
    journal.record([], Place(0), [Calls("judge", requests=3, tokens=500)])
    Purse(journal, Limits(money=2000), BOTH)
    assert recorded_spending(journal).judge.used == Usage(judged=500, money=1000)
    Purse(journal, Limits(money=2000), BOTH)
    assert recorded_spending(journal).judge.used == Usage(judged=500, money=1000)


def test_those_who_find_no_room_wait_for_attempts_under_way(journal):
    meter = Purse(journal, Limits(money=100), BOTH).meter("judge")
    meter.reserve(Tokens(80, 0))
    entered = threading.Event()

    def second():
        meter.reserve(Tokens(80, 0))
        entered.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not entered.wait(0.2)
    meter.settle(Tokens(80, 0), Tokens(10, 0))
    assert entered.wait(3)
    thread.join()
    assert recorded_spending(journal).money <= 100


ATTEMPT = st.tuples(st.integers(1, 60), st.integers(0, 30), st.floats(0, 1), st.sampled_from(["planner", "judge"]))  # fmt: skip
ACTS = st.lists(st.tuples(st.sampled_from(["begin", "begin", "end", "kill"]), ATTEMPT), max_size=25)


@settings(max_examples=15, deadline=None, phases=PHASES, suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(acts=ACTS)
def test_the_journal_never_says_less_than_was_taken_nor_more_than_the_limit(acts, new_journal, tmp_path_factory):  # fmt: skip
    journal = new_journal(tmp_path_factory.mktemp("run") / "run")
    limit = 600
    purse, paid, under_way = Purse(journal, Limits(money=limit), BOTH), 0, []
    for act, (read, written, share, who) in acts:
        if act == "kill":  # all that was under way may have been paid for
            paid += sum(PRICES.cost(most) for _, most, _ in under_way)
            under_way = []
            journal = again(journal)
            purse = Purse(journal, Limits(money=limit), BOTH)
        elif act == "end" and under_way:
            who, most, taken = under_way.pop()
            purse.meter(who).settle(most, taken)
            paid += PRICES.cost(taken)
        elif act == "begin":
            most = Tokens(read, written)
            cost = sum(PRICES.cost(other) for _, other, _ in under_way)
            if recorded_spending(journal).money + PRICES.cost(most) <= limit or not under_way:
                try:
                    purse.meter(who).reserve(most)
                except LimitReached:
                    continue
                under_way.append((who, most, Tokens(int(read * share), int(written * share))))
                cost += PRICES.cost(most)
            assert recorded_spending(journal).money >= paid + cost
        assert paid <= recorded_spending(journal).money <= limit
    journal.close()


def test_a_judge_stops_at_its_limit_with_every_verdict_that_it_made(journal):
    verdict = {"reason": "by rule"}
    for channel in Safety.answers:
        verdict[channel.name] = {i.name: "no" if i.most == 1 else "none" for i in channel.items}
    message = {"role": "assistant", "content": json.dumps(verdict)}
    counted = body_as(
        lambda reply: {**reply, "usage": {"prompt_tokens": 900, "completion_tokens": 100}}
    )
    purse = Purse(journal, Limits(tokens={"judge": 12_000}), {})
    made = []
    with HabitServer(Habit("", counted), lambda request: message) as server:
        chat = ChatConfig(base_url=server.url, max_tokens=512)
        judge = LlmJudge(LlmJudgeConfig(chat=chat), ChatModel(chat, meter=purse.meter("judge")))
        items = items_of(Safety(), "answers")
        questions = []
        for number in range(20):
            talk = [
                Message(role="user", content=f"q{number}"),
                Message(role="assistant", content="a"),
            ]
            questions.append(judge.ask_about(items, talk))
        asking = Asking(judge.exchange, lambda attempts: True, 3)

        def judge_all():
            for entries in asking.run(questions, lambda: False):
                made.extend(entries)

        with pytest.raises(LimitReached, match=r"budget\.judge_tokens"):
            judge_all()
        assert len(server.requests) == len(made)
    assert 5 <= len(made) <= 12
    assert {entry.verdict.status for entry in made} == {"ok"}
    assert recorded_spending(journal).judge.used == Usage(judged=1000 * len(made))


# -- the config -----------------------------------------------------------------------------------

MODEL = ["planner.kind=llm", "planner.chat.model=m"]


def test_money_wants_the_prices_of_every_model():
    with pytest.raises(UsageError, match=r"budget\.money: planner\.prices is not set"):
        load_config("lab", [*MODEL, "budget.money=3"])
    with pytest.raises(UsageError, match=r"neither planner nor judge is a model"):
        load_config("lab", ["budget.money=3"])
    priced = [*MODEL, "planner.prices={input: 0.1, output: 2}", "budget.money=3"]
    assert load_config("lab", priced).planner.prices == Prices(input=0.1, output=2)


def test_configs_without_limits_are_written_as_before():
    data = load_config("lab", MODEL).json_data()
    assert set(data["budget"]) == {"tokens_per_round", "tokens_total"}
    assert "prices" not in data["planner"]
    assert set(Usage(judged=3).json_data()) == {"trained", "sampled", "judged"}


def test_status_and_report_show_use_limit_and_what_is_left(journal):
    config = load_config(
        "lab",
        [*MODEL, "planner.prices={input: 1, output: 2}", "budget.money=0.5", "budget.planner_tokens=9000"],
    )  # fmt: skip
    assert spending_of(journal, config) == {}
    meter = Purse(journal, Limits(money=500_000), BOTH).meter("planner")
    meter.reserve(Tokens(2000, 100))
    meter.settle(Tokens(2000, 100), Tokens(2000, 100))
    assert spending_lines(spending_of(journal, config)) == [
        "money: 0.0022 used of 0.5, 0.4978 left (budget.money)",
        "planner tokens: 2,100 used of 9,000, 6,900 left (budget.planner_tokens)",
    ]


CHILD = """
import sys
from pathlib import Path
from eval.chat.client import ChatConfig, ChatModel
from eval.judges.base import LlmJudgeConfig
from eval.judges.items import items_of
from eval.judges.llm import LlmJudge
from eval.objectives.safety import Safety
from mosaic.core.journal import Journal
from mosaic.core.types.data import Message
from tools.effects.spending import Limits, Purse

journal = Journal.open(Path(sys.argv[1]))
journal.acquire()
meter = Purse(journal, Limits(tokens={"judge": 100_000}), {}).meter("judge")
chat = ChatConfig(base_url=sys.argv[2], max_tokens=512)
judge = LlmJudge(LlmJudgeConfig(chat=chat, concurrency=4), ChatModel(chat, meter=meter))
questions = []
for number in range(60):
    talk = [Message(role="user", content=f"q{number}"), Message(role="assistant", content="a")]
    questions.append(judge.ask_about(items_of(Safety(), "answers"), talk))
judge.ask_afresh(questions)
"""


def test_what_was_paid_before_a_kill_counts_whether_or_not_a_verdict_came_of_it(journal):
    message = {"role": "assistant", "content": "{}"}
    counted = body_as(
        lambda reply: {**reply, "usage": {"prompt_tokens": 900, "completion_tokens": 100}}
    )
    journal.close()
    with HabitServer(Habit("", counted), lambda request: message) as server:
        command = [sys.executable, "-c", CHILD, str(journal.folder), server.url]
        child = subprocess.Popen(command)
        while len(server.requests) < 20 and child.poll() is None:
            time.sleep(0.005)
        child.kill()
        child.wait()
        paid = 1000 * len(server.requests)
    assert paid >= 20_000
    journal = Journal.open(journal.folder)
    journal.acquire()
    Purse(journal, Limits(tokens={"judge": 100_000}), {})
    counted_now = recorded_spending(journal).judge.used.judged
    journal.close()
    assert paid <= counted_now <= 100_000
