"""The rounds as a LangGraph graph.

    base -> permit -> calibrate -> retain -> look -> observe -> plan -> check -> ask -> (approve)
    -> run -> retain -> look -> observe ... -> audit

LangGraph's checkpoint is never read: each start opens a fresh thread from the fold of the journal.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.context import RunContext
from agent.nodes import approving, closing, looks, planning, trials
from agent.nodes.state import State, fresh
from mosaic.core.errors import WaitingError
from mosaic.core.steps import MIN_ROOM
from mosaic.core.store import full_disk

CHECKPOINT = "graph.sqlite"
STEPS_PER_ROUND = 60
Node = Callable[[RunContext, State], State]
NODES: dict[str, Node] = {
    "base": trials.measure_base,
    "permit": approving.permit,
    "calibrate": trials.calibrate,
    "retain": closing.retain,
    "look": looks.look,
    "observe": planning.observe,
    "plan": planning.plan,
    "check": planning.check,
    "ask": approving.ask,
    "approve": approving.approve,
    "run": trials.run,
    "audit": closing.audit,
}


def build(context: RunContext) -> Any:
    """The uncompiled graph over one context."""
    from langgraph.graph import END, START, StateGraph

    graph = StateGraph(State)

    def add(name: str, node: Node) -> None:
        def bound(state: State) -> State:
            return node(context, state)

        graph.add_node(name, bound)

    for name, node in NODES.items():
        add(name, node)
    graph.add_conditional_edges(
        START, lambda state: begin_at(context), ["base", "permit", "retain"]
    )
    graph.add_edge("base", "permit")
    graph.add_edge("permit", "calibrate")
    graph.add_edge("calibrate", "retain")
    graph.add_edge("retain", "look")
    graph.add_edge("look", "observe")
    graph.add_conditional_edges("observe", after_observe, ["audit", "plan"])
    graph.add_conditional_edges("plan", after_plan, ["check", "plan", "audit"])
    graph.add_conditional_edges("check", after_check, ["ask", "run", "plan", "audit"])
    graph.add_conditional_edges("ask", after_ask, ["approve", "run", "plan", "audit"])
    graph.add_conditional_edges("approve", after_approve, ["check", "plan"])
    graph.add_edge("run", "retain")
    graph.add_edge("audit", END)
    return graph


def begin_at(context: RunContext) -> str:
    """Where a start takes up the run: the fold of the journal decides."""
    if not context.state.rounds:
        return "base"
    return "retain" if context.state.calibration else "permit"


def after_observe(state: State) -> str:
    """A reason to stop ends the rounds."""
    return "audit" if state.get("stop") else "plan"


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
    return "run" if state.get("decided") == state["plans"] else "ask"


def after_ask(state: State) -> str:
    """A person is asked where the approver had no decision of its own."""
    if state.get("stop"):
        return "audit"
    if state["request"]:
        return "approve"
    return "run" if state["decided"] else "plan"


def after_approve(state: State) -> str:
    """An approved plan runs, an edited one is checked like any other, a refused one is planned anew."""
    if not state["decided"]:
        return "plan"
    return "check"


def _open_checkpoints(path: Path) -> sqlite3.Connection:
    """The file of LangGraph's checkpoints. Nothing is read from it: a damaged one is begun anew."""
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


def run(context: RunContext, folder: Path, wait: Callable[[], None] | None = None) -> None:
    """Run to the end (or to an exception) from the fold of the journal. The journal's lock must be held.

    Where a person must decide it raises WaitingError, or with `wait` calls that until a decision is stored.
    """
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
    from langgraph.checkpoint.sqlite import SqliteSaver
    from langgraph.types import Command

    journal = context.steps.journal
    connection = _open_checkpoints(folder / CHECKPOINT)
    try:
        saver = SqliteSaver(connection, serde=JsonPlusSerializer(allowed_msgpack_modules=None))
        graph = build(context).compile(checkpointer=saver)
        config = {
            "configurable": {"thread_id": f"{journal.run}:{journal.fence}"},
            "recursion_limit": STEPS_PER_ROUND * (context.settings.rounds + 2),
        }
        value: Any = fresh(len(context.state.rounds))
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
