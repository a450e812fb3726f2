"""Which adapters nothing will need again, and which requests to judges nobody wants to keep."""

from __future__ import annotations

from agent.state import RunState
from mosaic.core.journal import Journal
from mosaic.core.types.look_records import MergeAdapters, TakeLooks
from mosaic.core.types.records import (
    AskVerdict,
    ChargeCalls,
    CheckGold,
    Retain,
    Train,
    artifacts_of,
)
from mosaic.core.types.runs import JUDGED_ANSWERS, TRAINING_SET


def dropped(journal: Journal) -> set[str]:
    """Digests of artifacts that were deleted: adapters, and what judges were asked."""
    digests: set[str] = set()
    for step in journal.steps(Retain):
        digests |= set(step.result.dropped)
    return digests


def spare_requests(journal: Journal, last: int) -> list[str]:
    """What judges were asked up to the round `last`, as it is filed. Verdicts do not depend on it."""
    asked: set[str] = set()
    for kind in (AskVerdict, CheckGold, ChargeCalls):
        for step in journal.steps(kind):
            if step.place.round <= last:
                asked |= set(artifacts_of(step.stored))
    return sorted(asked - dropped(journal))


def spare_adapters(journal: Journal, state: RunState, last: int) -> list[str]:
    """Adapters of calibrations and of trials outside of the archive, up to the round `last`.

    The trial that counts in the last round is kept: the next is compared with it. So is the first
    calibration trial, which the audit measures. With several methods all that were trained on a
    mixture are kept, and all reward models. Experts are kept, since later looks are added up of them;
    looks are not.
    """
    kept: set[str | None] = set()
    trials = [state.calibration.trials[0]] if state.calibration else []
    trials += [one.trial for one in state.archived]
    trials += [round_.trial for round_ in state.executed if round_.round == last]
    for trial in trials:
        # Influence is estimated around what the mixture trained, exports hold the last.
        for adapter in (trial.adapter, trial.mixture_adapter):
            kept.add(adapter.digest if adapter else None)
        kept |= {stage.reward_model for stage in trial.stages}
    kept.add(state.reward_model)
    kept |= {expert.adapter.digest for expert in state.experts if expert.adapter}
    several = any(trial.spec.stages for trial in state.trials.values())
    experts = journal.steps(TakeLooks, 0)
    trained = set()
    for step in journal.steps(Train):
        # A later plan may share a mixture with an earlier one, and go on from its adapter.
        job = step.inputs.job
        shared = TRAINING_SET in job.inputs and job.start_from is None
        # One that trains the same again reads what its reward model tells apart.
        needed = several and (shared or JUDGED_ANSWERS in job.inputs)
        # Experts that are added to a run under way are of round 0, and are known when all are taken.
        unknown = step.place.round == 0 and not experts and step.place.trial not in state.trials
        if step.place.round <= last and not needed and not unknown:
            trained.add(step.result.digest)
    for merged in journal.steps(MergeAdapters):
        if merged.place.round <= last:
            trained.add(merged.result.adapter)
    return sorted(trained - kept - dropped(journal))
