"""Journal -> the report and the status of a run. Reads, never runs."""

from __future__ import annotations

from pathlib import Path

from agent.noise import believed_noise, mean_noise
from agent.ranking import ranked
from agent.state import RunState, fold
from mosaic.app.runs import config_of
from mosaic.app.shapes import (
    AuditOpening,
    AuditShape,
    BudgetShape,
    CalibrationShape,
    LooksShape,
    ModelCalls,
    NoiseShape,
    NoteShape,
    RankedShape,
    Report,
    ReportRound,
    RoundTokens,
    Status,
)
from mosaic.app.standing import standing_of
from mosaic.app.views.result import (
    compared,
    headline,
    independent_of,
    static_of,
    targets_of,
    unknowns,
    why_chosen,
)
from mosaic.app.views.spending import spending_of
from mosaic.core.errors import UsageError
from mosaic.core.journal import Journal
from mosaic.core.types.base import digest_of
from mosaic.core.types.data import BucketReport
from mosaic.core.types.evaluation import FailureProfile
from mosaic.core.types.events import NotedEvent
from mosaic.core.types.look_records import TakeLooks, look_of
from mosaic.core.types.plans import ObjectiveSpec
from mosaic.core.types.records import Audited, CloseRound, PlannerReplaced, ReplacePlanner
from mosaic.core.types.runs import Calibration, Round

PARTS = ("plan", "curate", "train", "generate", "judge")
# A part of those runs alone that estimate it.
INFLUENCE = "influence"


def load(folder: Path) -> tuple[Journal, RunState]:
    """The journal (the caller closes it) and its fold."""
    journal = Journal.open(folder)
    try:
        traded = config_of(journal).settings().traded
        return journal, fold(journal, [objective.name for objective in traded])
    except BaseException:
        journal.close()
        raise


def report_data(folder: Path) -> Report:
    """What `report --json` prints; see docs/run-directory.md."""
    journal, state = load(folder)
    try:
        return report_of(journal, state)
    finally:
        journal.close()


def report_of(journal: Journal, state: RunState) -> Report:
    """The report of a run whose journal is open."""
    config = config_of(journal)
    audit, seconds = state.audit, seconds_of(journal)
    replaced: dict[int, PlannerReplaced] = {}
    for step in journal.steps(ReplacePlanner):
        replaced[step.inputs.round] = step.result
    rounds = []
    for round_ in state.rounds:
        number = round_.round
        rounds.append(_round(round_, seconds.get(number, {}), replaced.get(number)))
    cap, held, spent = journal.ledger()
    standing = standing_of(journal, finished=audit is not None)
    audited = None if audit is None else _audit_shape(audit, state)
    targets = {name: o.target for name, o in config.objectives.items()}
    report = Report(
        run=journal.folder.name,
        config_digest=digest_of(config.json_data()),
        planner=config.planner.kind,
        objectives=list(config.objectives),
        traded=[o.name for o in config.settings().traded],
        targets=targets,
        floors={name: o.floor for name, o in config.objectives.items()},
        state=standing.state,
        why=standing.why,
        stop=audit.stop if audit and standing.state == "finished" else None,
        rounds=rounds,
        calibration=_calibration(state.calibration),
        static=static_of(journal.folder, state),
        looks=_looks(journal),
        archive=state.archive,
        ranking=_ranking(state, config.settings().traded),
        chosen=audit.chosen if audit else None,
        audit=audited,
        verdicts=targets_of(targets, audited),
        audits=openings(state),
        notes=notes_of(journal),
        hypervolume=state.hypervolumes,
        budget=BudgetShape(total=cap, spent=spent, reserved=held, left=cap - spent - held),
        model_calls=model_calls(journal),
        spending=spending_of(journal, config),
    )
    sentences = {
        "headline": headline(report),
        "why_chosen": why_chosen(report),
        "unknown": unknowns(report),
    }
    return report.model_copy(update=sentences)


def _audit_shape(audit: Audited, state: RunState) -> AuditShape:
    noise = believed_noise(state.calibration, {**audit.against_base, **audit.gain})
    changes = audit.against_base.items()
    return AuditShape(
        base=audit.base,
        static=audit.static,
        chosen=audit.scores,
        gain=audit.gain,
        against_base=audit.against_base,
        control=audit.control,
        fell=[name for name, change in changes if change.fell(noise[name])],
        against_static=compared(audit.gain, noise),
        compared_to_base=compared(audit.against_base, noise),
        independent=independent_of(audit.independent, state.calibration),
    )


def openings(state: RunState) -> list[AuditOpening]:
    """How often the audit suites were opened, and what was decided after each opening."""
    found = []
    for rounds_before, audit in state.audits:
        later = [r.round for r in state.rounds[rounds_before:]]
        opening = AuditOpening(
            after_round=rounds_before - 1,
            chosen=audit.chosen,
            stop=audit.stop,
            decided_after=later,
        )
        found.append(opening)
    return found


def notes_of(journal: Journal) -> list[NoteShape]:
    """What people asked of the planner, oldest first, and from which round on it was told."""
    observed = journal.events(kind="observed")
    found = []
    for event in journal.events(kind="noted"):
        if not isinstance(event.record, NotedEvent):
            continue
        note = event.record.note
        later = [seen.round for seen in observed if seen.seq > event.seq]
        found.append(NoteShape(by=note.by, text=note.text, told_from=min(later, default=None)))
    return found


def _ranking(state: RunState, objectives: list[ObjectiveSpec]) -> list[RankedShape]:
    """The archive by merit, under what is believed of the noise."""
    noise = {o.name: mean_noise(state.calibration, o.name) for o in objectives}
    shapes = []
    for one in ranked(state.archived, state.archive, objectives, noise, state.noise):
        ids = [trial.id for trial in state.rounds[one.round].trials]
        shape = RankedShape(
            round=one.round,
            shortfall=one.shortfall,
            volume=one.volume,
            best=one.best,
            trial=one.trial,
            candidate=ids.index(one.trial) + 1 if len(ids) > 1 else 0,
        )
        shapes.append(shape)
    return shapes


def _looks(journal: Journal) -> list[LooksShape]:
    """What was tried cheaply before each round."""
    found = []
    for step in journal.steps(TakeLooks):
        looks = [look_of(trial) for trial in step.result.trials]
        shape = LooksShape(round=step.inputs.round, looks=looks, note=step.result.note)
        found.append(shape)
    return found


def _calibration(calibration: Calibration | None) -> CalibrationShape | None:
    if calibration is None:
        return None
    return CalibrationShape(
        mixture=calibration.mixture,
        trials=[trial.id for trial in calibration.trials],
        scores=calibration.scores,
        noise=calibration.noise,
        believed={name: _believed(calibration, name) for name in calibration.noise},
    )


def _believed(calibration: Calibration, objective: str) -> NoiseShape:
    estimate = mean_noise(calibration, objective)
    low, high = estimate.interval()
    return NoiseShape(deviation=estimate.deviation, low=low, high=high)


def _round(
    round_: Round, seconds: dict[str, float], replaced: PlannerReplaced | None
) -> ReportRound:
    if len(round_.trials) > 1:
        ones = []
        for candidate, one in enumerate(round_.by_trial, 1):
            counts = one.trial.id == round_.trial.id
            told = _round(one, seconds if counts else {}, replaced)
            ones.append(told.model_copy(update={"candidate": candidate, "counts": counts}))
        (whole,) = (one for one in ones if one.counts)
        return whole.model_copy(update={"siblings": [one for one in ones if not one.counts]})
    return ReportRound(
        round=round_.round,
        trial=round_.trial.id,
        plan=round_.plan,
        planner=round_.planner,
        replaced=replaced,
        scores=round_.scores,
        tokens=tokens_of(round_),
        curation=round_.curation,
        seconds=seconds,
        accepted=round_.accepted,
        reason=round_.reason,
        dominated=round_.dominated,
        forecast=round_.forecast,
        adapter=round_.adapter,
        stages=round_.trial.stages,
        agreement=round_.trial.agreement,
    )


def tokens_of(round_: Round) -> RoundTokens:
    """Training tokens of the trial that stands for a round; all 0 for the base."""
    trial = round_.trial
    total = trial.curation.total if trial.curation else BucketReport()
    return RoundTokens(
        budget=trial.spec.tokens,
        selected=total.selected,
        trained=trial.usage.trained,
        supervised=trial.supervised,
        short=total.short,
        sampled=trial.usage.sampled,
    )


def seconds_of(journal: Journal) -> dict[int, dict[str, float]]:
    """Wall seconds of each closed round by part.

    Round 0 is the base's evaluation alone: calibration is not a round. A round's own clock starts
    again when it is resumed, while its parts keep what they took before.
    """
    found = {}
    for step in journal.steps(CloseRound):
        number, total = step.inputs.round, step.seconds
        parts = dict.fromkeys(PARTS, 0.0)
        base = step.result.round.trial.id if number == 0 else None
        for kind, _, seconds in journal.counts(number, base):
            name = "generate" if kind == "likelihood" else kind
            if name == INFLUENCE:
                parts.setdefault(INFLUENCE, 0.0)
            if name in parts:
                parts[name] += seconds
        known = sum(parts.values())
        whole = max(total, known)
        parts |= {"total": whole, "other": max(0.0, whole - known)}
        found[number] = {part: round(value, 4) for part, value in parts.items()}
    return found


def model_calls(journal: Journal) -> dict[str, ModelCalls]:
    """What planner and judges asked of language models, by who asked."""
    found: dict[str, ModelCalls] = {}
    for calls in journal.calls():
        found[calls.who] = ModelCalls(
            answers=calls.answers,
            requests=calls.requests,
            tokens=calls.tokens,
            from_cache=calls.cached,
        )
    return found


def status_data(folder: Path) -> Status:
    """Where a run stands: state, rounds done, open step, budget."""
    journal, state = load(folder)
    try:
        return status_of(journal, state)
    finally:
        journal.close()


def status_of(journal: Journal, state: RunState) -> Status:
    """The status of a run whose journal is open."""
    config = config_of(journal)
    cap, held, spent = journal.ledger()
    last, begun = journal.last_row(), journal.rows(state="intent")
    standing = standing_of(journal, finished=state.audit is not None)
    planned = [round_ for round_ in state.rounds if round_.plan]
    return Status(
        run=journal.folder.name,
        state=standing.state,
        standing=standing,
        rounds=f"{len(planned)} of {config.rounds}",
        calibrated=state.calibration is not None,
        archive=state.archive,
        last=last.kind if last else None,
        begun=begun[-1].kind if begun else None,
        tokens_spent=spent,
        tokens_left=cap - held - spent,
        spending=spending_of(journal, config),
    )


def pick_round(state: RunState, number: int | None) -> Round:
    """A recorded round, the last unless one is named. Raises UsageError naming those there are."""
    if not state.rounds:
        raise UsageError("no round is recorded yet")
    if number is None:
        return state.rounds[-1]
    if not 0 <= number < len(state.rounds):
        raise UsageError(f"--round {number}: recorded are 0 to {state.rounds[-1].round}")
    return state.rounds[number]


def profile_data(folder: Path, number: int | None) -> FailureProfile:
    """The failure profile of a round, worst slices first."""
    journal, state = load(folder)
    journal.close()
    return pick_round(state, number).profile
