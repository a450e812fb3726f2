"""Retain and audit: what is deleted after a round, and what ends a run."""

from __future__ import annotations

from collections.abc import Mapping

from agent.context import RunContext
from agent.nodes.state import State
from agent.pareto import choose
from agent.retention import dropped, spare_adapters, spare_requests
from eval.statistics import paired_interval, summarise
from mosaic.core.steps import Outcome
from mosaic.core.types.evaluation import Difference, IndependentScores, Score, Scored
from mosaic.core.types.events import AuditedEvent, DroppedEvent
from mosaic.core.types.records import Audit, Audited, Retain, Retained
from mosaic.core.types.runs import Trial
from tools.effects.evaluate import BOOTSTRAP_SEED, AuditAnswers

NOT_MEASURED = AuditAnswers({}, {})
Answers = Mapping[str, list[Scored]]


def retain(context: RunContext, state: State) -> State:
    """Delete the adapters that nothing will need again, and what judges were asked."""
    number = len(context.state.rounds) - 1
    adapters: list[str] = []
    if context.settings.keep != "all" and number >= 1:
        adapters = spare_adapters(context.steps.journal, context.state, number)
    _drop(context, number, adapters)
    return {}


def _drop(context: RunContext, number: int, adapters: list[str]) -> None:
    """Delete adapters, and what judges were asked up to a round if the config does not keep it."""
    requests: list[str] = []
    if not context.settings.keep_judge_requests:
        requests = spare_requests(context.steps.journal, number)
    drop = [*adapters, *requests]

    def effect() -> Outcome[Retained]:
        for digest in drop:
            context.steps.store.remove(digest)
        return Outcome(
            Retained(dropped=drop), [DroppedEvent(adapters=adapters, requests=len(requests))]
        )

    if drop:
        inputs = Retain(run=context.run, round=number, drop=drop)
        context.steps.at(number).run(inputs, effect)


def audit(context: RunContext, state: State) -> State:
    """Open the audit suites, and independent ones, for the base, the static mixture and the chosen round.

    A result stands until another round is measured, or another independent suite is named.
    """
    current = context.state
    tests = {name: test.suite.digest for name, test in context.evaluator.independent.items()}
    if current.audit is not None and _opened(context, tests):
        context.notify("audited already: the result stands")
        _drop(context, current.rounds[-1].round, [])
        return {}
    planned = [r for r in current.executed if r.plan]
    chosen = choose(planned, current.archive, context.settings.traded, current.noise)
    audited = ["the base"]
    if current.calibration:
        audited.append("the pools' own proportions")
    audited.append("no round" if chosen is None else f"round {chosen}")
    context.notify(f"audit: {', '.join(audited)}")
    trial = None if chosen is None else current.rounds[chosen].trial
    last = current.rounds[-1].round
    base = _audited(context, last, current.rounds[0].trial)
    found = _audited(context, last, trial) if trial else NOT_MEASURED
    static = _static(context, last)
    control = control_of(context, last, trial) if trial else {}
    result = Audited(
        chosen=chosen,
        trial=trial.id if trial else None,
        stop=state["stop"],
        base=_scores(base.audit),
        scores=_scores(found.audit),
        static=_scores(static.audit),
        gain=_gains(static.audit, found.audit),
        against_base=_gains(base.audit, found.audit),
        control=control,
        independent=_independent(context, base.independent, static.independent, found.independent),
    )
    adapter = trial.adapter.digest if trial and trial.adapter else None
    inputs = Audit(
        chosen=chosen,
        adapter=adapter,
        stop=state["stop"],
        rounds=len(current.rounds),
        independent=tests,
    )
    event = AuditedEvent(
        chosen=chosen,
        stop=state["stop"],
        base=result.base,
        scores=result.scores,
        independent=result.independent,
    )
    stands = context.steps.at(last).run(inputs, lambda: Outcome(result, [event]))
    context.state = current.audited(stands)
    _drop(context, last, [])
    return {}


def _opened(context: RunContext, tests: Mapping[str, str]) -> bool:
    """Whether the audit that stands opened these independent suites: name -> digest."""
    opened = context.steps.journal.steps(Audit)[-1].inputs.independent
    return all(opened.get(name) == digest for name, digest in tests.items())


def _audited(context: RunContext, round_: int, trial: Trial) -> AuditAnswers:
    """Scored answers of one model to the audit suites and the independent ones."""
    adapter = trial.adapter.digest if trial.adapter else None
    steps = context.steps.at(round_, trial.id)
    return context.evaluator.audit(steps, adapter, trial.wish)


def _independent(
    context: RunContext, base: Answers, static: Answers, chosen: Answers
) -> dict[str, IndependentScores]:
    """The independent suites by name; each is reported for itself."""
    scores = [_scores(answers) for answers in (base, static, chosen)]
    gain, against_base = _gains(static, chosen), _gains(base, chosen)
    found = {}
    for name, test in context.evaluator.independent.items():
        found[name] = IndependentScores(
            objective=test.objective.name,
            base=scores[0][name],
            static=scores[1].get(name),
            chosen=scores[2].get(name),
            gain=gain.get(name),
            against_base=against_base.get(name),
        )
    return found


def control_of(context: RunContext, round_: int, trial: Trial) -> dict[str, dict[int, Score]]:
    """What a trial scores on audit if its prompts ask for other levels, one objective at a time.

    Empty for a trial that was not trained for such wishes.
    """
    if trial.adapter is None or not trial.wish:
        return {}
    levels = trial.stages[-1].levels
    steps = context.steps.at(round_, trial.id)
    found: dict[str, dict[int, Score]] = {}
    for head in levels.heads if levels else []:
        name = head.objective
        context.notify(f"audit: levels of {name}")
        found[name] = {}
        for level in head.classes:
            wish = {**trial.wish, name: level}
            evaluation = context.evaluator.evaluate(
                steps, trial.adapter.digest, ["audit"], wish, [name]
            )
            found[name][level] = evaluation.scores()[name]["audit"]
    return found


def _static(context: RunContext, round_: int) -> AuditAnswers:
    """Those of the first calibration trial, the pools' own proportions; none without calibration.

    None either if an earlier release has deleted its adapter, which is said.
    """
    calibration = context.state.calibration
    trial = calibration.trials[0] if calibration else None
    if trial is None or trial.adapter is None:
        return NOT_MEASURED
    if trial.adapter.digest in dropped(context.steps.journal):
        context.notify("audit: the adapter of the static mixture was deleted; it is not measured")
        return NOT_MEASURED
    return _audited(context, round_, trial)


def _scores(answers: Answers) -> dict[str, Score]:
    """Their means with intervals, by objective."""
    return {name: summarise(items, BOOTSTRAP_SEED) for name, items in answers.items()}


def _gains(other: Answers, chosen: Answers) -> dict[str, Difference]:
    """By how much the chosen model is ahead of another one, prompt by prompt."""
    gains = {}
    for name, before in other.items():
        if name not in chosen:
            continue
        gain = paired_interval(before, chosen[name], BOOTSTRAP_SEED)
        if gain is not None:
            gains[name] = gain
    return gains
