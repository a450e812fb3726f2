"""Retain and audit: what is deleted after a round, and what ends a run."""

from __future__ import annotations

from agent.context import RunContext
from agent.nodes.state import State
from agent.pareto import choose
from agent.retention import spare_adapters
from mosaic.core.steps import Outcome
from mosaic.core.types.evaluation import Score
from mosaic.core.types.events import AuditedEvent, DroppedEvent
from mosaic.core.types.records import Audit, Audited, Retain, Retained


def retain(context: RunContext, state: State) -> State:
    """Delete the adapters that nothing will need again."""
    number = len(context.state.rounds) - 1
    if context.settings.keep == "all" or number < 1:
        return {}
    drop = spare_adapters(context.steps.journal, context.state, number)

    def effect() -> Outcome[Retained]:
        for digest in drop:
            context.steps.store.remove(digest)
        return Outcome(Retained(dropped=drop), [DroppedEvent(adapters=drop)])

    if drop:
        inputs = Retain(run=context.run, round=number, drop=drop)
        context.steps.at(number).run(inputs, effect)
    return {}


def audit(context: RunContext, state: State) -> State:
    """Open the audit suites for the base and the chosen round.

    A result stands until another round is measured.
    """
    current = context.state
    if current.audit is not None:
        context.notify("audited already: the result stands")
        return {}
    planned = [r for r in current.executed if r.plan]
    chosen = choose(planned, current.archive, context.settings.objectives, current.noise)
    context.notify(f"audit: the base and {'no round' if chosen is None else f'round {chosen}'}")
    trial = None if chosen is None else current.rounds[chosen].trial
    adapter = trial.adapter.digest if trial and trial.adapter else None
    last = current.rounds[-1].round
    base = _audited(context, last, current.rounds[0].trial.id, None)
    scores = _audited(context, last, trial.id, adapter) if trial else {}
    result = Audited(
        chosen=chosen,
        trial=trial.id if trial else None,
        stop=state["stop"],
        base=base,
        scores=scores,
    )
    inputs = Audit(chosen=chosen, adapter=adapter, stop=state["stop"], rounds=len(current.rounds))
    event = AuditedEvent(chosen=chosen, stop=state["stop"], base=base, scores=scores)
    stands = context.steps.at(last).run(inputs, lambda: Outcome(result, [event]))
    context.state = current.audited(stands)
    return {}


def _audited(context: RunContext, round_: int, trial: str, adapter: str | None) -> dict[str, Score]:
    """Scores of one model on the audit suites, by objective."""
    evaluation = context.evaluator.evaluate(context.steps.at(round_, trial), adapter, ["audit"])
    return {objective: roles["audit"] for objective, roles in evaluation.scores().items()}
