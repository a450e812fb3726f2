"""Whatever a model says, only a plan inside the bounds is executed; and the test would notice if it were not so."""

import random
from collections import Counter

from agent.constraints import check_plan
from agent.planners.base import LlmPlannerConfig
from agent.planners.llm import LlmPlanner
from benchmarks.bounds import broken
from benchmarks.hostile import hostile_message, hostile_replies, world
from eval.chat.client import ChatConfig
from mosaic.core.errors import MosaicError
from mosaic.lab.server import ScriptedServer
from tools.planning.toolbox import Toolbox


def test_hostile_replies_and_injections_execute_nothing_out_of_bounds():
    rows = hostile_replies(quick=True)
    assert [r["what"] for r in rows if r["met"] is False] == []


def test_without_the_limits_the_same_replies_do_break_the_bounds():
    seen, _ = world()
    dice = random.Random(5)
    messages = iter([hostile_message(dice, seen) for _ in range(120)])
    found = Counter()
    with ScriptedServer(script=lambda request: next(messages)) as server:
        chat = ChatConfig(base_url=server.url, max_attempts=1)
        planner = LlmPlanner(LlmPlannerConfig(chat=chat, max_calls=1, max_repairs=0))
        for _ in range(120):
            try:
                [plan] = planner.propose(seen, Toolbox(seen, lambda *wanted: [], lambda p: []))
                found.update(broken(plan.json_data(), seen.json_data()))
            except MosaicError:
                found["refused"] += 1
    assert {"floor", "reliability", "bucket step", "ratio step"} <= set(found)


def test_the_second_writing_of_the_bounds_agrees_with_the_first_on_the_last_plan():
    seen, pool = world()
    first = {v.rule for v in check_plan(seen.last_plan, seen, pool)}
    assert first == {"near_repeat"}
    assert broken(seen.last_plan.json_data(), seen.json_data()) == ["near repeat"]
