"""The steps of a round, each a thin function (services, state) -> update. State is plain JSON: ids and scalars."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from agent.approval import Approver, check_decision, request_of
from agent.constraints import check_plan
from agent.observe import calibrate as calibration_of
from agent.observe import forecasts, observation, reference_means, static_plan, stop_reason
from agent.pareto import choose, verdict
from agent.planners.base import Planner
from agent.planners.toolbox import open_toolbox
from agent.state import Records, RunState, Settings, fold
from eval.profile import build_profile
from mosaic.core.errors import BoundaryError, DamageError, PausedError, TrainingError, UsageError
from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.base import digest_of
from mosaic.core.types.data import CurationReport
from mosaic.core.types.evaluation import FailureProfile, Score, Scored
from mosaic.core.types.plans import ActionPlan, Decision, Violation
from mosaic.core.types.runs import Adapter, Observation, Round
from tools.effects.curate import TrainingSet, curate_step
from tools.effects.evaluate import Evaluation, Evaluator
from tools.effects.train import TrainTool
from training.data.curate import mixture_of
from training.data.pool import Pool

ROUND_ROLES = ("steering", "selection")
CALIBRATION_SEEDS = 7919
NO_PLAN = "no planner found an allowed plan"


class State(TypedDict, total=False):
    """What travels between nodes. Digests point into the store; `fallback` says why the planner was replaced.

    `attempt` counts plans of the round, `repairs` those in a row that broke a constraint; `rejected` are the plans
    that a person or a rule refused, with the reason; `decided` is the digest of the plan that was approved, or
    given in its place, and `approval` the key of the step that says so.
    """

    round: int
    attempt: int
    repairs: int
    rejected: list[dict[str, Any]]
    request: str | None
    decided: str | None
    failure: str | None
    observation: str
    plan: str
    approval: str
    planner: str
    violations: list[dict[str, Any]]
    fallback: str | None
    training_set: str
    report: dict[str, Any]
    adapter: dict[str, Any]
    stop: str


@dataclass
class RunContext:
    """Everything a node may touch. Built in one place, `mosaic.app.wiring`. `experiment` is the digest of base, recipe,
    generator, judge and suites: what an approval of a plan takes for granted. `pause`: where the planner fails and nobody
    plans instead, the run pauses rather than fails."""

    steps: Steps
    pool: Pool
    evaluator: Evaluator
    trainer: TrainTool
    planner: Planner
    fallback: Planner | None
    approver: Approver
    settings: Settings
    experiment: str
    pause: bool = False
    notify: Callable[[str], None] = lambda text: None
    started: dict[int, float] = field(default_factory=dict)
    _records: Records = field(default_factory=dict)

    def state(self) -> RunState:
        return fold(self.steps.journal, self.settings.names, self._records)

    def budget_left(self) -> int:
        cap, held, spent = self.steps.journal.ledger()
        return cap - held - spent

    def begin(self, round_: int) -> None:
        self.steps.round = round_
        self.started.setdefault(round_, time.monotonic())


def resume_at(services: RunContext) -> State:
    """The state to start from: the fold of the journal decides, never an old checkpoint."""
    return _fresh(len(services.state().rounds))


def _fresh(number: int) -> State:
    """The state at the start of a round."""
    return {
        "round": number,
        "attempt": 0,
        "repairs": 0,
        "fallback": None,
        "violations": [],
        "rejected": [],
        "request": None,
        "decided": None,
        "failure": None,
    }


def next_after_start(services: RunContext) -> str:
    state = services.state()
    if not state.rounds:
        return "measure"
    return "observe" if state.calibration else "calibrate"


def measure(services: RunContext, state: State) -> State:
    """Evaluate this round's model on steering and selection, and record the round."""
    number = state["round"]
    services.begin(number)
    adapter = state.get("adapter") if number else None
    digest = adapter["digest"] if adapter else None
    services.notify(
        f"round {number}: evaluating {'the base model' if digest is None else 'the adapter'}"
    )
    evaluation = services.evaluator.evaluate(digest, ROUND_ROLES)
    before = services.state()
    previous = _steering(services, before.latest_files) if before.latest_files else None
    profile = _profile(services, number, evaluation, previous)
    scores = evaluation.scores()
    plan = (
        ActionPlan.model_validate(services.steps.store.get_json(state["plan"])) if number else None
    )
    round_ = Round(
        round=number,
        plan=plan,
        planner=state.get("planner", "") if number else "",
        fallback=state.get("fallback"),
        scores=scores,
        profile=profile,
        curation=CurationReport.model_validate(state["report"]) if number else None,
        tokens=_tokens(services, state) if number else {},
        adapter=digest,
        forecast=forecasts(plan, reference_means(before, services.settings), scores)
        if plan
        else [],
    )
    accepted, reason = verdict(round_, services.settings.objectives)
    round_ = round_.model_copy(update={"accepted": accepted, "reason": reason})

    def effect() -> Outcome:
        seconds = time.monotonic() - services.started[number]
        result = {"round": round_.json_data(), "files": evaluation.digests}
        event = {
            "accepted": accepted,
            "reason": reason,
            "forecast": [f.json_data() for f in round_.forecast],
        }
        return Outcome(result, [("measured", event)], seconds=seconds)

    services.steps.run(
        "record", {"round": number, "content": digest_of(round_.json_data())}, effect
    )
    means = ", ".join(
        f"{o} {m:.2f}"
        for o in services.settings.names
        if (m := scores[o]["selection"].mean) is not None
    )
    services.notify(f"round {number}: {means}" + ("" if accepted else f" (not accepted: {reason})"))
    return _fresh(number + 1)


def calibrate(services: RunContext, state: State) -> State:
    """Train the static mixture several times with other seeds: the noise, seen by every planner, charged like a round."""
    settings = services.settings
    plan = static_plan(services.pool, settings)
    services.begin(0)
    previous = _steering(services, services.state().files[0])
    scores, profiles, inputs, files = [], [], [], []
    for repeat in range(settings.calibration.repeats):
        services.notify(
            f"calibration {repeat + 1} of {settings.calibration.repeats}: the pools' own proportions"
        )
        seed = settings.seed + CALIBRATION_SEEDS * (repeat + 1)
        mixture = mixture_of(plan, settings.tokens_per_round, seed, settings.limits)
        training_set = curate_step(services.steps, services.pool, mixture)
        adapter = _trained(services, training_set, seed)
        evaluation = services.evaluator.evaluate(adapter.digest, ROUND_ROLES)
        scores.append(evaluation.scores())
        profiles.append(_profile(services, 0, evaluation, previous))
        inputs.append(adapter.digest)
        files.append(evaluation.digests)

    def effect() -> Outcome:
        found = calibration_of(scores, profiles, plan)
        event = {"noise": found.noise, "adapters": inputs}
        return Outcome(
            {"calibration": found.json_data(), "files": files[0]}, [("calibrated", event)]
        )

    services.steps.run("calibration", {"adapters": inputs, "mixture": plan.json_data()}, effect)
    return {}


def observe(services: RunContext, state: State) -> State:
    """File what the planner will be told, or decide to stop. What was filed once is read again after a restart."""
    _retain(services, state["round"] - 1)
    inputs = {
        "run": services.steps.journal.run,
        "round": state["round"],
        "settings": digest_of(services.settings.json_data()),
        "pool": services.pool.digest,
    }
    current = services.state()
    reason = stop_reason(current, services.settings, services.budget_left())
    # A round that was begun goes on: its own training may have used the budget up.
    if reason and not services.steps.finished("observe", inputs):
        return {"stop": reason}
    services.begin(state["round"])

    def effect() -> Outcome:
        seen = observation(current, services.settings, services.pool, services.budget_left(), [])
        digest = services.steps.store.put_json(seen.json_data())
        return Outcome({"observation": digest}, [("observed", {"observation": digest})])

    step = services.steps.run("observe", inputs, effect)
    return {"observation": str((step.result or {})["observation"])}


def plan(services: RunContext, state: State) -> State:
    """Ask the planner, or its replacement where it failed; every attempt is a step and leaves its trace."""
    seen = _observation(services, state)
    planner = services.fallback if state.get("fallback") else services.planner
    assert planner is not None

    def effect() -> Outcome:
        files = services.state().latest_files
        toolbox = open_toolbox(seen, services.pool, services.steps.store, files)
        try:
            proposed = planner.propose(seen, toolbox)[0]
        except (BoundaryError, UsageError, PausedError) as error:
            error.details = {"planner": planner.kind, "calls": toolbox.trace()}
            raise
        digest, calls = services.steps.store.put_json(proposed.json_data()), toolbox.trace()
        event = {
            "planner": planner.kind,
            "plan": proposed.json_data(),
            "plan_digest": digest,
            "calls": calls,
        }
        return Outcome({"plan": digest}, [("planned", event)])

    inputs = {
        "run": services.steps.journal.run,
        "round": seen.round,
        "attempt": state["attempt"],
        "observation": state["observation"],
        "planner": planner.kind,
        "feedback": _feedback(state),
    }
    if not state.get("fallback") and not services.steps.finished("plan", inputs):
        # Before a restart this very attempt may have failed and been replaced: what came of that may be paid for.
        replaced = _replaced(services, state)
        if replaced:
            return _replace(services, state, replaced, planner)
    try:
        step = services.steps.run("plan", inputs, effect)
    except (BoundaryError, UsageError) as error:
        return _replace(services, state, f"{planner.kind} failed: {error}", planner)
    return {
        "plan": str((step.result or {})["plan"]),
        "planner": planner.kind,
        "violations": [],
        "decided": None,
        "attempt": state["attempt"] + 1,
    }


def check(services: RunContext, state: State) -> State:
    """Hold the plan against every constraint; violations go back to the planner a bounded number of times."""
    seen = _observation(services, state)
    proposed = _plan(services, state)

    if state.get("decided") == state["plan"]:
        # What was decided on is held against the limits, not against the plans that were refused before.
        seen = seen.model_copy(update={"feedback": []})

    def effect() -> Outcome:
        found = [v.json_data() for v in check_plan(proposed, seen, services.pool)]
        return Outcome(
            {"violations": found}, [("checked", {"plan": state["plan"], "violations": found})]
        )

    refused = [v.value for v in seen.feedback if v.rule == "rejected"]
    inputs = {
        "plan": state["plan"],
        "observation": state["observation"],
        "pool": services.pool.digest,
        "rejected": digest_of(refused),
    }
    step = services.steps.run("check", inputs, effect)
    violations = (step.result or {})["violations"]
    if not violations:
        return {"violations": [], "repairs": 0}
    repairs = state["repairs"] + 1
    if repairs <= services.settings.max_repairs:
        return {"violations": violations, "repairs": repairs}
    first = Violation.model_validate(violations[0])
    text = f"{first.path}: {first.rule}, {first.value} against {first.limit}"
    planner = services.fallback if state.get("fallback") else services.planner
    assert planner is not None
    return _replace(services, state, f"{planner.kind} kept violating constraints ({text})", planner)


def ask(services: RunContext, state: State) -> State:
    """Decide by rule, or file the question that a person must answer.

    A person's answer to this very question counts, even where the rules changed after it was given.
    """
    proposed, seen = _plan(services, state), _observation(services, state)
    run, journal = services.steps.journal.run, services.steps.journal
    asked = (state["observation"], run, state["attempt"], state["planner"], services.experiment)
    request = request_of(proposed, seen, *asked)
    decision = services.approver.decide(proposed, seen)
    if decision is not None:
        journal.wait_for("")  # from here on nobody can answer any more
    if decision is not None and journal.decision(seen.round, request["request"]) is None:
        update: State = {"request": None, **_decided(services, state, decision)}
        if decision.kind == "reject" and len(update["rejected"]) > services.settings.max_repairs:
            update |= _replace(
                services, state, f"{decision.by} kept refusing plans ({decision.reason})", None
            )
        return update
    inputs = {"run": run, "round": seen.round, "request": request["request"]}
    event = {"request": request["request"], "plan_digest": request["plan_digest"]}
    services.steps.run("ask", inputs, lambda: Outcome(request, [("asked", event)]))
    return {"request": request["request"]}


def approve(services: RunContext, state: State) -> State:
    """Wait for a person at an interrupt; whatever is not an approval of this very plan does not run."""
    journal = services.steps.journal
    asked = {"run": journal.run, "round": state["round"], "request": state["request"]}
    stored = journal.decision(state["round"], str(state["request"]))
    if stored is None:
        from langgraph.types import interrupt

        journal.wait_for(str(state["request"]))
        interrupt(asked)
        raise BoundaryError(f"round {state['round']}: the run was woken without a decision")
    step = services.steps.run("ask", asked, _never_asked)
    try:
        check_decision(stored, step.result or {})
    except ValueError as error:
        raise DamageError(
            f"the stored decision of round {state['round']} does not fit its request: {error}"
        ) from None
    edited = None
    if stored["kind"] == "edit":
        edited = services.steps.store.put_json(
            ActionPlan.model_validate(stored["plan"]).json_data()
        )
    decision = Decision(
        kind=stored["kind"],
        by=stored["by"],
        plan_digest=stored["plan_digest"],
        reason=stored.get("reason", ""),
        executes=edited,
    )
    return _decided(services, state, decision)


def _never_asked() -> Outcome:
    raise DamageError("a decision stands on a request that was never made")


def _decided(services: RunContext, state: State, decision: Decision) -> State:
    """Journal a decision: an approved plan runs, an edited one is checked first, a refused one goes back."""
    inputs = {
        "run": services.steps.journal.run,
        "round": state["round"],
        "attempt": state["attempt"],
    }
    event = decision.json_data()
    step = services.steps.run(
        "approve", {**inputs, "decision": event}, lambda: Outcome(event, [("decided", event)])
    )
    if decision.kind == "reject":
        entry = refusal(services, event).json_data()
        return {
            "violations": [],
            "rejected": [*state["rejected"], entry],
            "decided": None,
            "plan": "",
            "approval": "",
        }
    runs = decision.executes or decision.plan_digest
    return {"plan": runs, "decided": runs, "violations": [], "approval": step.key}


def refusal(services: RunContext, decision: Mapping[str, Any]) -> Violation:
    """What the planner is told of a plan that was refused."""
    refused = services.steps.store.get_json(decision["plan_digest"])
    return Violation(path="plan", rule="rejected", value=refused, hint=decision["reason"])


def curate(services: RunContext, state: State) -> State:
    """Build the training set of the plan that was approved, and of no other."""
    proposed = _plan(services, state)
    step = services.steps.journal.step(state.get("approval", ""))
    said = step.result if step and step.state == "done" and step.result else {"kind": "reject"}
    if (
        said["kind"] == "reject"
        or (said.get("executes") or said.get("plan_digest")) != proposed.content_digest
    ):
        raise BoundaryError(
            f"round {state['round']}: the plan {proposed.content_digest[:12]} was not approved"
        )
    services.notify(f"round {state['round']}: {state['planner']} planned; curating")
    seen = _observation(services, state)
    mixture = mixture_of(proposed, seen.budget_per_round, seen.seed, seen.limits)
    training_set = curate_step(services.steps, services.pool, mixture)
    return {"training_set": training_set.digest, "report": training_set.report.json_data()}


def train(services: RunContext, state: State) -> State:
    """Train a fresh adapter; a training that keeps failing fails the run, or only the round where the config says so."""
    services.notify(f"round {state['round']}: training a fresh adapter")
    training_set = TrainingSet(
        state["training_set"], CurationReport.model_validate(state["report"])
    )
    try:
        adapter = _trained(services, training_set, services.settings.seed)
    except TrainingError as error:
        if services.settings.failures.failed_round == "stop":
            raise
        return {"failure": f"{error.failure}: {error}"}
    return {"adapter": adapter.json_data()}


def _trained(services: RunContext, training_set: TrainingSet, seed: int) -> Adapter:
    """An adapter, after as many failures as the config allows."""
    for left in range(services.settings.failures.train_retries, 0, -1):
        try:
            return services.trainer.train(training_set, seed)
        except TrainingError as error:
            services.notify(f"round {services.steps.round}: {error} ({left} tries left)")
    return services.trainer.train(training_set, seed)


def skip(services: RunContext, state: State) -> State:
    """Record a round whose training failed: it scores nothing, and the next plan starts from the round before."""
    number, current = state["round"], services.state()
    nothing = Score(mean=None, low=None, high=None, n_scored=0)
    round_ = Round(
        round=number,
        plan=_plan(services, state),
        planner=state["planner"],
        fallback=state.get("fallback"),
        scores={o: dict.fromkeys(ROUND_ROLES, nothing) for o in services.settings.names},
        profile=FailureProfile(round=number, slices=[]),
        curation=CurationReport.model_validate(state["report"]),
        tokens=_tokens(services, {**state, "adapter": {"tokens": 0, "supervised": 0}}),
        reason=f"training failed: {state['failure']}",
        failure=state["failure"],
    )
    seconds = time.monotonic() - services.started[number]
    result = {"round": round_.json_data(), "files": {}}
    event = {"accepted": False, "reason": round_.reason, "forecast": []}
    outcome = Outcome(result, [("measured", event)], seconds=seconds)
    services.steps.run(
        "record", {"round": number, "content": digest_of(round_.json_data())}, lambda: outcome
    )
    services.notify(f"round {number}: failed, {len(current.executed) - 1} rounds stand")
    return _fresh(number + 1)


def audit(services: RunContext, state: State) -> State:
    """Open the audit suites, once: the base and the chosen round. A result stands until another round is measured."""
    current = services.state()
    if current.audit is not None:
        services.notify("audited already: the result stands")
        return {}
    services.steps.round = current.rounds[-1].round
    objectives = services.settings.objectives
    chosen = choose(
        [r for r in current.executed if r.plan], current.archive, objectives, current.noise
    )
    services.notify(f"audit: the base and {'no round' if chosen is None else f'round {chosen}'}")
    base = services.evaluator.evaluate(None, ["audit"]).scores()
    adapter = (
        next((r.adapter for r in current.rounds if r.round == chosen), None)
        if chosen is not None
        else None
    )
    scores = services.evaluator.evaluate(adapter, ["audit"]).scores() if adapter else {}
    result = {
        "chosen": chosen,
        "stop": state["stop"],
        "base": {o: s["audit"].json_data() for o, s in base.items()},
        "scores": {o: s["audit"].json_data() for o, s in scores.items()},
    }
    inputs = {
        "chosen": chosen,
        "adapter": adapter,
        "stop": state["stop"],
        "rounds": len(current.rounds),
    }
    services.steps.run("audit", inputs, lambda: Outcome(result, [("audited", result)]))
    return {}


def _retain(services: RunContext, number: int) -> None:
    """Delete the adapters that nothing will need again: of calibrations and of rounds outside of the archive."""
    if services.settings.keep == "all" or number < 1:
        return
    services.steps.round = number
    current, journal = services.state(), services.steps.journal
    kept = {r.adapter for r in current.executed if r.round in current.archive or r.round == number}
    done = [s for s in journal.steps("train") if s.state == "done" and s.round <= number]
    trained = [str(s.result["digest"]) for s in done if s.result]
    dropped = {str(d) for s in journal.steps("retain") if s.result for d in s.result["dropped"]}
    drop = sorted({*trained} - kept - dropped)

    def effect() -> Outcome:
        for digest in drop:
            services.steps.store.remove(digest)
        return Outcome({"dropped": drop}, [("dropped", {"adapters": drop})])

    if drop:
        services.steps.run("retain", {"run": journal.run, "round": number, "drop": drop}, effect)


def _replace(services: RunContext, state: State, reason: str, planner: Planner | None) -> State:
    """Put the fallback planner in, visibly; a fallback that fails ends the planning."""
    if services.fallback is None or state.get("fallback"):
        if services.fallback is None:
            kind, word = (PausedError, "pause") if services.pause else (BoundaryError, "stop")
            raise kind(f"round {state['round']}: {reason} (planner.on_failure: {word})")
        return {"stop": f"{NO_PLAN}: {reason}", "violations": []}
    services.notify(f"round {state['round']}: {reason}; {services.fallback.kind} plans this round")
    at = {"round": state["round"], "attempt": state["attempt"]}
    inputs = {"run": services.steps.journal.run, **at, "reason": reason}
    event = {
        "planner": planner.kind if planner else state["planner"],
        "by": services.fallback.kind,
        "reason": reason,
    }
    services.steps.run("replace", inputs, lambda: Outcome(event, [("replaced", event)]))
    entry = Violation(path="plan", rule="replaced", hint=reason).json_data()
    return {"fallback": reason, "repairs": 0, "violations": [entry]}


def _replaced(services: RunContext, state: State) -> str | None:
    """Why this attempt's planner was replaced already, by whom it would be replaced now; or None."""
    if services.fallback is None:
        return None
    asked = (
        services.steps.journal.run,
        state["attempt"],
        services.planner.kind,
        services.fallback.kind,
    )
    for step in services.steps.journal.steps("replace", state["round"]):
        inputs, result = step.inputs, step.result or {}
        if asked == (inputs["run"], inputs.get("attempt"), result.get("planner"), result.get("by")):
            return str(inputs["reason"])
    return None


def _feedback(state: State) -> list[dict[str, Any]]:
    """What the planner is told about earlier attempts: plans that were refused, violations of the last one."""
    return [*state["rejected"], *state.get("violations", [])]


def _observation(services: RunContext, state: State) -> Observation:
    seen = Observation.model_validate(services.steps.store.get_json(state["observation"]))
    return seen.model_copy(
        update={"feedback": [Violation.model_validate(v) for v in _feedback(state)]}
    )


def _plan(services: RunContext, state: State) -> ActionPlan:
    return ActionPlan.model_validate(services.steps.store.get_json(state["plan"]))


def _tokens(services: RunContext, state: State) -> dict[str, int]:
    """Training tokens of a round; `supervised` are those of the selected ones that the loss counts, in one epoch."""
    total = CurationReport.model_validate(state["report"]).total
    adapter = state["adapter"]
    return {
        "budget": services.settings.tokens_per_round,
        "selected": total.selected,
        "trained": adapter["tokens"],
        "supervised": adapter["supervised"] * total.selected // max(1, adapter["tokens"]),
        "short": total.short,
    }


def _steering(services: RunContext, files: Mapping[str, Any]) -> dict[str, list[Scored]]:
    store = services.steps.store
    return {
        objective: [Scored.model_validate(s) for s in store.get_json(roles["steering"]["scored"])]
        for objective, roles in files.items()
    }


def _profile(
    services: RunContext,
    number: int,
    evaluation: Evaluation,
    previous: Mapping[str, list[Scored]] | None,
) -> FailureProfile:
    return build_profile(
        number, evaluation.of_role("steering"), services.evaluator.objectives, previous
    )
