"""The rounds as a LangGraph graph. The checkpoint is a bookmark: each start opens a fresh thread from the journal.

measure -> calibrate -> observe -> plan -> check -> ask -> (approve) -> curate -> train -> measure ... audit
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.nodes import all as nodes
from agent.nodes.all import RunContext, State
from mosaic.core.errors import WaitingError
from mosaic.core.steps import MIN_ROOM
from mosaic.core.store import full_disk

CHECKPOINT = "graph.sqlite"
STEPS_PER_ROUND = 60
NODES = (
    "measure",
    "calibrate",
    "observe",
    "plan",
    "check",
    "ask",
    "approve",
    "curate",
    "train",
    "skip",
    "audit",
)


def build(services: RunContext) -> Any:
    """The uncompiled graph over one set of services."""
    from langgraph.graph import END, START, StateGraph

    graph = StateGraph(State)

    def add(name: str, node: Callable[[RunContext, State], State]) -> None:
        def run(state: State) -> State:
            return node(services, state)

        graph.add_node(name, run)

    for name in NODES:
        add(name, getattr(nodes, name))
    graph.add_conditional_edges(
        START, lambda state: nodes.next_after_start(services), ["measure", "calibrate", "observe"]
    )
    graph.add_edge("calibrate", "observe")
    graph.add_conditional_edges(
        "observe", lambda s: "audit" if s.get("stop") else "plan", ["audit", "plan"]
    )
    graph.add_conditional_edges("plan", after_plan, ["check", "plan", "audit"])
    graph.add_conditional_edges("check", after_check, ["ask", "curate", "plan", "audit"])
    graph.add_conditional_edges("ask", after_ask, ["approve", "curate", "plan", "audit"])
    graph.add_conditional_edges("approve", after_approve, ["check", "curate", "plan"])
    graph.add_edge("curate", "train")
    graph.add_conditional_edges(
        "train", lambda s: "skip" if s.get("failure") else "measure", ["skip", "measure"]
    )
    graph.add_conditional_edges(
        "measure", lambda state: nodes.next_after_start(services), ["calibrate", "observe"]
    )
    graph.add_edge("skip", "observe")
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
    if state["violations"]:
        return "plan"
    return "curate" if state.get("decided") == state["plan"] else "ask"


def after_ask(state: State) -> str:
    """A person is asked where the approver had no decision of its own."""
    if state.get("stop"):
        return "audit"
    if state["request"]:
        return "approve"
    return "curate" if state["decided"] else "plan"


def after_approve(state: State) -> str:
    """An approved plan runs, an edited one is checked like any other, a refused one is planned anew."""
    if not state["decided"]:
        return "plan"
    return "check"


def _checkpoint_file(path: Path) -> sqlite3.Connection:
    """The file of checkpoints. Nothing is ever read from it, so that a damaged one is begun anew."""
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        sound = connection.execute("pragma quick_check").fetchone() == ("ok",)
    except sqlite3.OperationalError:
        return connection  # in use or without room: its first write says which
    except sqlite3.DatabaseError:
        sound = False
    if sound:
        return connection
    connection.close()
    path.unlink()
    return sqlite3.connect(path, check_same_thread=False)


def run(services: RunContext, folder: Path, wait: Callable[[], None] | None = None) -> None:
    """Run to the end (or to an exception) from the fold of the journal. The journal's lock must be held.

    Where a person must decide it raises WaitingError, or with `wait` calls that until a decision is stored.
    """
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
    from langgraph.checkpoint.sqlite import SqliteSaver
    from langgraph.types import Command

    journal = services.steps.journal
    connection = _checkpoint_file(folder / CHECKPOINT)
    try:
        saver = SqliteSaver(connection, serde=JsonPlusSerializer(allowed_msgpack_modules=None))
        graph = build(services).compile(checkpointer=saver)
        config = {
            "configurable": {"thread_id": f"{journal.run}:{journal.fence}"},
            "recursion_limit": STEPS_PER_ROUND * (services.settings.rounds + 2),
        }
        value: Any = nodes.resume_at(services)
        while interrupts := graph.invoke(value, config, durability="sync").get("__interrupt__"):
            asked = interrupts[0].value
            while journal.decision(asked["round"], asked["request"]) is None:
                if wait is None:
                    raise WaitingError(
                        f"round {asked['round']} waits for approval; see it: python -m mosaic pending {folder}"
                    )
                wait()
            value = Command(resume={interrupts[0].id: True})
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise full_disk(folder, MIN_ROOM) from error
        raise
    finally:
        connection.close()
