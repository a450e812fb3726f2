"""The rounds as a LangGraph graph. The checkpoint is a bookmark: each start opens a fresh thread from the journal.

measure -> calibrate -> observe -> plan -> check -> approve -> curate -> train -> measure ... audit
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent import nodes
from agent.nodes import Services, State

BOOKMARK = "graph.sqlite"
STEPS_PER_ROUND = 40


def build(services: Services) -> Any:
    """The uncompiled graph over one set of services."""
    from langgraph.graph import END, START, StateGraph

    graph = StateGraph(State)

    def add(name: str, node: Callable[[Services, State], State]) -> None:
        def run(state: State) -> State:
            return node(services, state)

        graph.add_node(name, run)

    for name in ("measure", "calibrate", "observe", "plan", "check", "approve", "curate", "train", "audit"):
        add(name, getattr(nodes, name))
    graph.add_conditional_edges(
        START, lambda state: nodes.next_after_start(services), ["measure", "calibrate", "observe"]
    )
    graph.add_conditional_edges("measure", lambda state: nodes.next_after_start(services), ["calibrate", "observe"])
    graph.add_edge("calibrate", "observe")
    graph.add_conditional_edges("observe", lambda s: "audit" if s.get("stop") else "plan", ["audit", "plan"])
    graph.add_conditional_edges("plan", after_plan, ["check", "plan", "audit"])
    graph.add_conditional_edges("check", after_check, ["approve", "plan", "audit"])
    graph.add_conditional_edges("approve", lambda s: "plan" if s["violations"] else "curate", ["plan", "curate"])
    graph.add_edge("curate", "train")
    graph.add_edge("train", "measure")
    graph.add_edge("audit", END)
    return graph


def after_plan(state: State) -> str:
    """A failed planner leaves violations: its replacement plans next, or the run stops."""
    if state.get("stop"):
        return "audit"
    return "plan" if state["violations"] else "check"


def after_check(state: State) -> str:
    if state.get("stop"):
        return "audit"
    return "plan" if state["violations"] else "approve"


def run(services: Services, folder: Path) -> None:
    """Run to the end (or to an exception) from the fold of the journal. The journal's lock must be held."""
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
    from langgraph.checkpoint.sqlite import SqliteSaver

    journal = services.steps.journal
    connection = sqlite3.connect(folder / BOOKMARK, check_same_thread=False)
    try:
        saver = SqliteSaver(connection, serde=JsonPlusSerializer(allowed_msgpack_modules=None))
        graph = build(services).compile(checkpointer=saver)
        config = {
            "configurable": {"thread_id": f"{journal.run}:{journal.fence}"},
            "recursion_limit": STEPS_PER_ROUND * (services.settings.rounds + 2),
        }
        graph.invoke(nodes.resume_at(services), config, durability="sync")
    finally:
        connection.close()
