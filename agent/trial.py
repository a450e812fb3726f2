"""Trials from beginning to end: curate, train, evaluate, profile. The one path that does so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from agent.context import RunContext
from agent.methods import mixture_tokens, part_of, shares_of
from agent.noise import slice_noise
from agent.stages import run_stages
from eval.profile import build_profile
from eval.statistics import paired_interval
from mosaic.core.errors import TrainingError
from mosaic.core.steps import Steps
from mosaic.core.types.data import CurationReport
from mosaic.core.types.evaluation import Difference, FailureProfile, Score, Scored
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.practice_records import SamplePractice
from mosaic.core.types.records import Curated, Train
from mosaic.core.types.runs import Adapter, Stage, StageSpec, TrainJob, Trial, TrialSpec, wish_of
from mosaic.core.types.spending import Usage
from tools.effects.curate import curate_step
from tools.effects.evaluate import BOOTSTRAP_SEED, Asked, Evaluation, read_scored
from tools.effects.merge import merge_step
from tools.effects.train import TrainWork
from training.data.curate import mixture_of

ROUND_ROLES = ("steering", "selection")
NOT_SCORED = Score(mean=None, low=None, high=None, n_scored=0)


def base_spec(context: RunContext) -> TrialSpec:
    """The trial of nothing: the base as it is."""
    return TrialSpec(base=context.trainer.base_digest)


def plan_spec(context: RunContext, plan: ActionPlan, seed: int) -> TrialSpec:
    """The trial of a plan with one seed, at the budget of a round."""
    settings = context.settings
    selected = mixture_tokens(plan, settings.method_shares, settings.tokens_per_round)
    left = settings.cost_per_round - settings.recipe.usage(selected).cost
    stages = []
    for method, share in shares_of(plan, settings.method_shares).items():
        # Shares sum to 1 within rounding, and a round's tokens are all there are.
        tokens = min(left, part_of(share, settings.cost_per_round))
        if method in settings.stages and tokens > 0:
            stages.append(StageSpec(recipe=settings.stages[method], tokens=tokens))
            left -= tokens
    return TrialSpec(
        plan=plan,
        tokens=selected,
        recipe=settings.recipe,
        seed=seed,
        base=context.trainer.base_digest,
        pool=context.pool.digest,
        stages=stages,
        practice=context.practice.digest if stages and context.practice else None,
    )


def run_trial(
    context: RunContext,
    spec: TrialSpec,
    round_: int,
    previous: Trial | None,
    saying: str = "",
    roles: Sequence[str] = ROUND_ROLES,
) -> Trial:
    """Execute a trial and measure it on `roles`, by default steering and selection.

    `previous` is the trial that the profile's changes are measured against. Raises TrainingError
    if its training keeps failing.
    """
    (mixture,) = _mixtures(context, [spec], round_, saying)
    if isinstance(mixture, TrainingError):
        raise mixture
    return _measured(context, spec, round_, previous, mixture, saying, roles)


def run_trials(
    context: RunContext, specs: Sequence[TrialSpec], round_: int, previous: Trial | None
) -> list[Trial | TrainingError]:
    """Execute the trials of a round; how its training failed in place of one that kept failing.

    Their mixtures are trained side by side, as far as the executor does so, and then answer side by
    side if workers draw the answers. What follows goes one trial after the other: later stages,
    judging, and answers by a generator of which there is one.
    """
    mixtures = _mixtures(context, specs, round_, "")
    _answer_ahead(context, specs, round_, mixtures)
    found: list[Trial | TrainingError] = []
    for number, mixture in enumerate(mixtures, 1):
        saying = f", candidate {number} of {len(specs)}" if len(specs) > 1 else ""
        outcome: Trial | TrainingError
        try:
            if isinstance(mixture, TrainingError):
                raise mixture
            outcome = _measured(context, specs[number - 1], round_, previous, mixture, saying)
        except TrainingError as error:
            outcome = error
        found.append(outcome)
    return found


@dataclass(frozen=True)
class _Mixture:
    """What the mixture of a trial came to; neither for a plan that spends nothing on it."""

    report: CurationReport | None = None
    adapter: Adapter | None = None


def _mixtures(
    context: RunContext, specs: Sequence[TrialSpec], round_: int, saying: str
) -> list[_Mixture | TrainingError]:
    """The mixtures of some trials, curated and then trained side by side."""
    reports: dict[str, CurationReport] = {}
    works = []
    for spec in specs:
        if spec.plan is not None and spec.tokens:
            steps = context.steps.at(round_, spec.id)
            curated = _curated(context, steps, spec)
            reports[spec.id] = curated.report
            job = context.trainer.job(curated.training_set, spec.seed, spec.start_from)
            reserve = context.settings.recipe.usage(curated.report.total.selected)
            works.append(TrainWork(spec.id, job, reserve))
    if works:
        what = f"{len(works)} fresh adapters" if len(works) > 1 else "a fresh adapter"
        context.notify(f"round {round_}: training {what}{saying}")
    trained = dict(zip(reports, _train_all(context, round_, works), strict=True))
    found: list[_Mixture | TrainingError] = []
    for spec in specs:
        adapter = trained.get(spec.id)
        if isinstance(adapter, TrainingError):
            found.append(adapter)
        else:
            found.append(_Mixture(reports.get(spec.id), adapter))
    return found


def _train_all(
    context: RunContext, round_: int, works: Sequence[TrainWork]
) -> list[Adapter | TrainingError]:
    """Adapters in the order of the jobs, those that fail tried as often as the config allows.

    A failure that the same job would meet again is not tried again.
    """
    steps = context.steps.at(round_)
    found = context.trainer.train_many(steps, works)
    for left in range(context.settings.failures.train_retries, 0, -1):
        again = []
        for place, outcome in enumerate(found):
            if isinstance(outcome, TrainingError) and not outcome.repeats:
                again.append(place)
                context.notify(f"round {round_}: {outcome} ({left} tries left)")
        if not again:
            break
        tried = context.trainer.train_many(steps, [works[place] for place in again])
        for place, outcome in zip(again, tried, strict=True):
            found[place] = outcome
    return found


def _answer_ahead(
    context: RunContext,
    specs: Sequence[TrialSpec],
    round_: int,
    mixtures: Sequence[_Mixture | TrainingError],
) -> None:
    """Have all adapters that are complete answer at once; one with later stages is not yet."""
    models = []
    for spec, mixture in zip(specs, mixtures, strict=True):
        if isinstance(mixture, _Mixture) and mixture.adapter is not None and not spec.stages:
            models.append(Asked(spec.id, mixture.adapter.digest, ROUND_ROLES))
    if len(models) > 1:
        context.evaluator.answer_ahead(context.steps.at(round_), models)


def _measured(
    context: RunContext,
    spec: TrialSpec,
    round_: int,
    previous: Trial | None,
    mixture: _Mixture,
    saying: str,
    roles: Sequence[str] = ROUND_ROLES,
) -> Trial:
    """The later stages of a trial whose mixture is trained, and what all of it scores."""
    steps = context.steps.at(round_, spec.id)
    report, adapter = mixture.report, mixture.adapter
    usage = Usage(trained=adapter.tokens) if adapter is not None else Usage()
    stages: list[Stage] = []
    if spec.stages:
        first = None
        if adapter is not None:
            method = context.settings.recipe.kind
            first = Stage(method=method, tokens=usage.cost, usage=usage, adapter=adapter)
        done = run_stages(context, steps, spec, first, partial(_trained, context, steps))
        stages, adapter, usage = done.stages, done.adapter, done.usage
    what = "the adapter" if adapter or spec.merged else "the base model"
    context.notify(f"round {round_}: evaluating {what}{saying}")
    digest = adapter.digest if adapter else None
    if spec.merged:
        digest = merge_step(steps, spec.merged)
    evaluation = context.evaluator.evaluate(
        steps, digest, roles, wish_of(stages), reward_model=context.state.reward_model
    )
    trial = Trial(
        id=spec.id,
        spec=spec,
        curation=report,
        adapter=adapter,
        usage=usage,
        scores=evaluation.scores(),
        profile=FailureProfile(round=round_, slices=[]),
        files=evaluation.files,
        stages=stages,
        against_base=_against_base(context, steps, spec, evaluation),
    )
    repeats = context.state.calibration.trials if context.state.calibration else []
    return profiled(context, trial, evaluation.of_role("steering"), previous, repeats)


def _against_base(
    context: RunContext, steps: Steps, spec: TrialSpec, evaluation: Evaluation
) -> dict[str, Difference]:
    """By how much each objective is ahead of the base, over equal selection prompts."""
    if spec.plan is None or not context.state.rounds or "selection" not in evaluation.roles:
        return {}
    base = context.state.rounds[0].trial
    found = {}
    for objective, items in evaluation.of_role("selection").items():
        before = read_scored(steps, base.files[objective]["selection"])
        change = paired_interval(before, items, BOOTSTRAP_SEED)
        if change is not None:
            found[objective] = change
    return found


def profiled(
    context: RunContext,
    trial: Trial,
    measured: Mapping[str, Sequence[Scored]],
    previous: Trial | None,
    repeats: Sequence[Trial],
) -> Trial:
    """A trial with its profile, whose changes count from the trial `previous`.

    `measured` is what it scored on the steering suites. How far a training moves a slice by luck is
    learnt from the `repeats` of one mixture.
    """
    earlier = None
    if previous is not None:
        earlier = steering_scores(context.steps.at(trial.profile.round, trial.id), previous)
    trainings = sum(one is not None and one.adapter is not None for one in (trial, previous))
    noise = {}
    for objective, estimate in slice_noise(repeats, trial.scores).items():
        noise[objective] = estimate.of_difference(trainings)
    profile = build_profile(
        trial.profile.round, measured, context.evaluator.objectives, earlier, noise
    )
    return trial.model_copy(update={"profile": profile})


def failed_trial(context: RunContext, spec: TrialSpec, round_: int, error: TrainingError) -> Trial:
    """What is recorded of a trial whose training failed: it scores nothing.

    What was paid before it failed is counted: its mixture's training, answers that were drawn.
    """
    steps = context.steps.at(round_, spec.id)
    scores = {}
    for objective in context.settings.names:
        scores[objective] = dict.fromkeys(ROUND_ROLES, NOT_SCORED)
    report: CurationReport | None = _curated(context, steps, spec).report if spec.tokens else None
    return Trial(
        id=spec.id,
        spec=spec,
        curation=report,
        scores=scores,
        profile=FailureProfile(round=round_, slices=[]),
        usage=_paid(steps),
        failure=f"{error.failure}: {error}",
    )


def _curated(context: RunContext, steps: Steps, spec: TrialSpec) -> Curated:
    assert spec.plan is not None
    mixture = mixture_of(spec.plan, spec.tokens, spec.seed, context.settings.limits)
    return curate_step(steps, context.pool, mixture)


def _paid(steps: Steps) -> Usage:
    """What the steps of a trial were charged."""
    paid = Usage()
    for trained in steps.journal.steps(Train, steps.place.round):
        if trained.place == steps.place:
            paid = paid + trained.result.usage
    for sampled in steps.journal.steps(SamplePractice, steps.place.round):
        if sampled.place == steps.place:
            paid = paid + Usage(sampled=sampled.result.tokens)
    return paid


def _trained(context: RunContext, steps: Steps, job: TrainJob, reserve: Usage) -> Adapter:
    """The adapter of a later stage, after as many failures as the config allows."""
    work = TrainWork(steps.place.trial, job, reserve)
    (found,) = _train_all(context, steps.place.round, [work])
    if isinstance(found, TrainingError):
        raise found
    return found


def steering_scores(steps: Steps, trial: Trial) -> dict[str, list[Scored]]:
    """What a trial scored on the steering suites."""
    found = {}
    for objective, roles in trial.files.items():
        found[objective] = read_scored(steps, roles["steering"])
    return found
