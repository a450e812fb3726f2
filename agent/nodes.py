"""The steps of a round, each a thin function (services, state) -> update. State is plain JSON: ids and scalars."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from agent.approval import Approver
from agent.constraints import check_plan, mixture_of
from agent.observe import calibrate as calibration_of
from agent.observe import forecasts, observation, reference_means, static_plan, stop_reason
from agent.pareto import choose, verdict
from agent.planner import Planner
from agent.state import RunState, Settings, fold
from eval.profile import build_profile
from mosaic.errors import BoundaryError, UsageError
from mosaic.types import (
    ActionPlan,
    Adapter,
    CurationReport,
    FailureProfile,
    Mixture,
    Observation,
    Round,
    Scored,
    Violation,
    digest_of,
)
from tools.curate import TrainingSet, curate_step
from tools.evaluate import Evaluation, Evaluator
from tools.examine import examples_of
from tools.step import Outcome, Steps
from tools.toolbox import Toolbox
from tools.train import TrainTool
from training.pool import Pool

ROUND_ROLES = ("steering", "selection")
CALIBRATION_SEEDS = 7919


class State(TypedDict, total=False):
    """What travels between nodes. Digests point into the store; `fallback` says why the planner was replaced."""

    round: int
    attempt: int
    observation: str
    plan: str
    planner: str
    violations: list[dict[str, Any]]
    fallback: str | None
    training_set: str
    report: dict[str, Any]
    adapter: dict[str, Any]
    stop: str


@dataclass
class Services:
    """Everything a node may touch. Built in one place, `mosaic.app.wiring`."""

    steps: Steps
    pool: Pool
    evaluator: Evaluator
    trainer: TrainTool
    planner: Planner
    fallback: Planner | None
    approver: Approver
    settings: Settings
    notify: Callable[[str], None] = lambda text: None
    started: dict[int, float] = field(default_factory=dict)

    def state(self) -> RunState:
        return fold(self.steps.journal, self.settings.names)

    def budget_left(self) -> int:
        cap, held, spent = self.steps.journal.ledger()
        return cap - held - spent

    def check(self, seen: Observation) -> Callable[[ActionPlan], list[Violation]]:
        """The constraints, as a planner's tool asks them."""
        return lambda draft: check_plan(draft, seen, self.pool)

    def begin(self, round_: int) -> None:
        self.steps.round = round_
        self.started.setdefault(round_, time.monotonic())


def resume_at(services: Services) -> State:
    """The state to start from: the fold of the journal decides, never an old checkpoint."""
    rounds = services.state().rounds
    return {"round": len(rounds) if rounds else 0, "attempt": 0, "fallback": None, "violations": []}


def next_after_start(services: Services) -> str:
    state = services.state()
    if not state.rounds:
        return "measure"
    return "observe" if state.calibration else "calibrate"


def measure(services: Services, state: State) -> State:
    """Evaluate this round's model on steering and selection, and record the round."""
    number = state["round"]
    services.begin(number)
    adapter = state.get("adapter") if number else None
    digest = adapter["digest"] if adapter else None
    services.notify(f"round {number}: evaluating {'the base model' if digest is None else 'the adapter'}")
    evaluation = services.evaluator.evaluate(digest, ROUND_ROLES)
    before = services.state()
    previous = _steering(services, before.latest_files) if before.latest_files else None
    profile = _profile(services, number, evaluation, previous)
    scores = evaluation.scores()
    plan = ActionPlan.model_validate(services.steps.store.get_json(state["plan"])) if number else None
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
        forecast=forecasts(plan, reference_means(before, services.settings), scores) if plan else [],
    )
    accepted, reason = verdict(round_, services.settings.objectives)
    round_ = round_.model_copy(update={"accepted": accepted, "reason": reason})

    def effect() -> Outcome:
        seconds = time.monotonic() - services.started[number]
        result = {"round": round_.json_data(), "files": evaluation.digests}
        event = {"accepted": accepted, "reason": reason, "forecast": [f.json_data() for f in round_.forecast]}
        return Outcome(result, [("measured", event)], seconds=seconds)

    services.steps.run("record", {"round": number, "content": digest_of(round_.json_data())}, effect)
    means = ", ".join(f"{o} {m:.2f}" for o in services.settings.names if (m := scores[o]["selection"].mean) is not None)
    services.notify(f"round {number}: {means}" + ("" if accepted else f" (not accepted: {reason})"))
    return {"round": number + 1, "attempt": 0, "fallback": None, "violations": []}


def calibrate(services: Services, state: State) -> State:
    """Train the static mixture several times with other seeds: the noise, seen by every planner, charged like a round."""
    settings = services.settings
    plan = static_plan(services.pool, settings)
    services.begin(0)
    previous = _steering(services, services.state().files[0])
    scores, profiles, inputs, files = [], [], [], []
    for repeat in range(settings.calibration.repeats):
        services.notify(f"calibration {repeat + 1} of {settings.calibration.repeats}: the pools' own proportions")
        seed = settings.seed + CALIBRATION_SEEDS * (repeat + 1)
        mixture = Mixture(
            ratios=plan.ratios,
            bucket_weights=plan.bucket_weights,
            budget=settings.tokens_per_round,
            seed=seed,
            min_quality=settings.limits.min_quality,
            max_repeat=settings.limits.max_repeat,
        )
        training_set = curate_step(services.steps, services.pool, mixture)
        adapter = services.trainer.train(training_set, seed)
        evaluation = services.evaluator.evaluate(adapter.digest, ROUND_ROLES)
        scores.append(evaluation.scores())
        profiles.append(_profile(services, 0, evaluation, previous))
        inputs.append(adapter.digest)
        files.append(evaluation.digests)

    def effect() -> Outcome:
        found = calibration_of(scores, profiles, plan)
        event = {"noise": found.noise, "adapters": inputs}
        return Outcome({"calibration": found.json_data(), "files": files[0]}, [("calibrated", event)])

    services.steps.run("calibration", {"adapters": inputs, "mixture": plan.json_data()}, effect)
    return {}


def observe(services: Services, state: State) -> State:
    """File what the planner will be told, or decide to stop."""
    current = services.state()
    reason = stop_reason(current, services.settings, services.budget_left())
    if reason:
        return {"stop": reason}
    services.begin(state["round"])
    seen = observation(current, services.settings, services.pool, services.budget_left(), [])
    digest = services.steps.store.put_json(seen.json_data())
    services.steps.run("observe", {"observation": digest}, lambda: Outcome({}, [("observed", {"observation": digest})]))
    return {"observation": digest, "attempt": 0, "fallback": None, "violations": []}


def plan(services: Services, state: State) -> State:
    """Ask the planner, or its replacement where it failed; every attempt is a step and leaves its trace."""
    seen = _observation(services, state)
    planner = services.fallback if state.get("fallback") else services.planner
    assert planner is not None

    def effect() -> Outcome:
        files = services.state().latest_files or {}
        toolbox = Toolbox(seen, lambda *wanted: examples_of(services.steps.store, files, *wanted), services.check(seen))
        proposed = planner.propose(seen, toolbox)
        digest, calls = services.steps.store.put_json(proposed.json_data()), toolbox.trace()
        event = {"planner": planner.kind, "plan": proposed.json_data(), "plan_digest": digest, "calls": calls}
        return Outcome({"plan": digest}, [("planned", event)])

    inputs = {
        "run": services.steps.journal.run,
        "round": seen.round,
        "attempt": state["attempt"],
        "observation": state["observation"],
        "planner": planner.kind,
        "feedback": state.get("violations", []),
    }
    try:
        step = services.steps.run("plan", inputs, effect)
    except (BoundaryError, UsageError) as error:
        return _replace(services, state, f"{planner.kind} failed: {error}", planner)
    return {
        "plan": str((step.result or {})["plan"]),
        "planner": planner.kind,
        "violations": [],
        "attempt": state["attempt"] + 1,
    }


def check(services: Services, state: State) -> State:
    """Hold the plan against every constraint; violations go back to the planner a bounded number of times."""
    seen = _observation(services, state)
    proposed = _plan(services, state)

    def effect() -> Outcome:
        found = [v.json_data() for v in check_plan(proposed, seen, services.pool)]
        return Outcome({"violations": found}, [("checked", {"plan": state["plan"], "violations": found})])

    inputs = {"plan": state["plan"], "observation": state["observation"], "pool": services.pool.digest}
    step = services.steps.run("check", inputs, effect)
    violations = (step.result or {})["violations"]
    if not violations or state["attempt"] <= services.settings.max_repairs:
        return {"violations": violations}
    first = Violation.model_validate(violations[0])
    text = f"{first.path}: {first.rule}, {first.value} against {first.limit}"
    planner = services.fallback if state.get("fallback") else services.planner
    assert planner is not None
    return _replace(services, state, f"{planner.kind} kept violating constraints ({text})", planner)


def approve(services: Services, state: State) -> State:
    """Ask the approver; whatever is not an approval does not run."""
    proposed = _plan(services, state)
    decision = services.approver.decide(proposed, _observation(services, state))
    event = decision.json_data()
    inputs = {"run": services.steps.journal.run, "round": state["round"], "decision": event}
    services.steps.run("approve", inputs, lambda: Outcome(event, [("decided", event)]))
    if decision.kind != "approve" or decision.plan_digest != proposed.content_digest:
        return {"violations": [Violation(path="plan", rule="rejected", hint=decision.reason).json_data()]}
    return {"violations": []}


def curate(services: Services, state: State) -> State:
    services.notify(f"round {state['round']}: {state['planner']} planned; curating")
    mixture = mixture_of(_plan(services, state), _observation(services, state))
    training_set = curate_step(services.steps, services.pool, mixture)
    return {"training_set": training_set.digest, "report": training_set.report.json_data()}


def train(services: Services, state: State) -> State:
    services.notify(f"round {state['round']}: training a fresh adapter")
    training_set = TrainingSet(state["training_set"], CurationReport.model_validate(state["report"]))
    adapter: Adapter = services.trainer.train(training_set, services.settings.seed)
    return {"adapter": adapter.json_data()}


def audit(services: Services, state: State) -> State:
    """Open the audit suites, once: the base and the chosen round."""
    current = services.state()
    objectives = services.settings.objectives
    chosen = choose([r for r in current.rounds if r.plan], current.archive, objectives)
    services.notify(f"audit: the base and {'no round' if chosen is None else f'round {chosen}'}")
    base = services.evaluator.evaluate(None, ["audit"]).scores()
    adapter = next((r.adapter for r in current.rounds if r.round == chosen), None) if chosen is not None else None
    scores = services.evaluator.evaluate(adapter, ["audit"]).scores() if adapter else {}
    result = {
        "chosen": chosen,
        "stop": state["stop"],
        "base": {o: s["audit"].json_data() for o, s in base.items()},
        "scores": {o: s["audit"].json_data() for o, s in scores.items()},
    }
    inputs = {"chosen": chosen, "adapter": adapter, "stop": state["stop"]}
    services.steps.run("audit", inputs, lambda: Outcome(result, [("audited", result)]))
    return {}


def _replace(services: Services, state: State, reason: str, planner: Planner) -> State:
    """Put the fallback planner in, visibly; a fallback that fails ends the planning."""
    if services.fallback is None or state.get("fallback"):
        if services.fallback is None:
            raise BoundaryError(f"round {state['round']}: {reason} (planner.on_failure: stop)")
        return {"stop": f"no planner found an allowed plan: {reason}", "violations": []}
    services.notify(f"round {state['round']}: {reason}; {services.fallback.kind} plans this round")
    inputs = {"run": services.steps.journal.run, "round": state["round"], "reason": reason}
    event = {"planner": planner.kind, "by": services.fallback.kind, "reason": reason}
    services.steps.run("replace", inputs, lambda: Outcome(event, [("replaced", event)]))
    return {"fallback": reason, "attempt": 0, "violations": [{"path": "plan", "rule": "replaced", "hint": reason}]}


def _observation(services: Services, state: State) -> Observation:
    seen = Observation.model_validate(services.steps.store.get_json(state["observation"]))
    feedback = [Violation.model_validate(v) for v in state.get("violations", [])]
    return seen.model_copy(update={"feedback": feedback})


def _plan(services: Services, state: State) -> ActionPlan:
    return ActionPlan.model_validate(services.steps.store.get_json(state["plan"]))


def _tokens(services: Services, state: State) -> dict[str, int]:
    total = CurationReport.model_validate(state["report"]).total
    adapter = state["adapter"]
    return {
        "budget": services.settings.tokens_per_round,
        "selected": total.selected,
        "trained": adapter["tokens"],
        "supervised": adapter["supervised"],
        "short": total.short,
    }


def _steering(services: Services, files: Mapping[str, Any]) -> dict[str, list[Scored]]:
    store = services.steps.store
    return {
        objective: [Scored.model_validate(s) for s in store.get_json(roles["steering"]["scored"])]
        for objective, roles in files.items()
    }


def _profile(
    services: Services, number: int, evaluation: Evaluation, previous: Mapping[str, list[Scored]] | None
) -> FailureProfile:
    return build_profile(number, evaluation.of_role("steering"), services.evaluator.objectives, previous)
