"""When each step of a run took place, as well as the journal tells.

The journal knows how long a step took and, if it left an event, when it ended. A step without an
event is placed right before the step after it: answers and judgments lie before the event that
says what was measured.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mosaic.app.telemetry.span import Attributes
from mosaic.core.journal import Journal
from mosaic.core.rows import Step
from mosaic.core.types.events import (
    AuditedEvent,
    CalibratedEvent,
    CuratedEvent,
    FailedEvent,
    LookedEvent,
    MeasuredEvent,
    ObservedEvent,
    PairedEvent,
    PlannedEvent,
    TrainedEvent,
)
from mosaic.core.types.look_records import MergeAdapters, TakeLooks
from mosaic.core.types.practice_records import FormPairs, SamplePractice, ScorePractice
from mosaic.core.types.records import (
    AskVerdict,
    Audit,
    Calibrate,
    CloseRound,
    Curate,
    EstimateInfluence,
    Generate,
    JudgeSuite,
    MeasureLikelihood,
    Observe,
    ProposePlan,
    Train,
)

PLAN, EVALUATE, OTHER, MARK = "plan", "evaluate", "step", "mark"


@dataclass(frozen=True)
class Timed:
    """A step with its place in time. `group` is one of the four above; a `mark` shows no span."""

    seq: int
    round: int
    trial: str
    group: str
    name: str
    attributes: Attributes
    seconds: float
    ended: float | None = None
    start: float = 0.0
    end: float = 0.0
    failed: bool = False


def timeline(journal: Journal) -> list[Timed]:
    """All steps that take time, in the order in which they were first begun."""
    return _placed(sorted(_Steps(journal).all(), key=lambda step: step.seq))


def _placed(steps: list[Timed]) -> list[Timed]:
    """The same steps with start and end; those after the last known end are left out."""
    placed: list[Timed] = []
    limit: float | None = None
    for step in reversed(steps):
        end = step.ended if step.ended is not None else limit
        if end is None:
            continue
        limit = end - step.seconds
        placed.append(replace(step, start=limit, end=end))
    return placed[::-1]


class _Steps:
    """Reads the steps of one journal, kind by kind."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.ended = _ends(journal)
        self.roles: dict[str, str] = {}
        for digests in journal.recorded.inputs.suites.values():
            self.roles |= {digest: role for role, digest in digests.items()}

    def all(self) -> Iterable[Timed]:
        yield from self._planning()
        yield from self._making()
        yield from self._evaluating()
        yield from self._marks()

    def _timed(
        self, step: Step[Any], group: str, name: str, attributes: Attributes, *, event: str = ""
    ) -> Timed:
        """A step; `event` names the event that it left."""
        place, ended = step.place, self.ended.get(event)
        return Timed(
            step.seq, place.round, place.trial, group, name, attributes, step.seconds, ended
        )

    def _planning(self) -> Iterable[Timed]:
        for step in self.journal.steps(ProposePlan):
            told: Attributes = {
                "mosaic.plan": step.result.plan,
                "mosaic.attempt": step.inputs.attempt,
            }
            name = f"invoke_agent {step.inputs.planner}"
            event = f"planned {step.place.round} {step.result.plan}"
            yield self._timed(step, PLAN, name, told, event=event)
        for row in self.journal.rows(state="failed"):
            if row.kind == "plan":
                ended = self.ended.get(f"failed {row.place.round}")
                place = row.place
                yield Timed(
                    row.seq, place.round, place.trial, PLAN, "invoke_agent", {}, 0.0, ended,
                    failed=True,
                )  # fmt: skip

    def _making(self) -> Iterable[Timed]:
        for curated in self.journal.steps(Curate):
            total = curated.result.report.total
            rows: Attributes = {"mosaic.rows": total.rows, "mosaic.tokens": total.selected}
            event = f"curated {curated.result.training_set}"
            yield self._timed(curated, OTHER, "curate", rows, event=event)
        for drawn in self.journal.steps(SamplePractice):
            sampled: Attributes = {"mosaic.tokens": drawn.result.tokens}
            yield self._timed(drawn, OTHER, "sample practice", sampled)
        for judged in self.journal.steps(ScorePractice):
            of: Attributes = {"mosaic.objective": judged.inputs.objective}
            yield self._timed(judged, OTHER, "score practice", of)
        for paired in self.journal.steps(FormPairs):
            pairs: Attributes = {"mosaic.pairs": paired.result.report.pairs}
            event = f"paired {paired.result.pairs}"
            yield self._timed(paired, OTHER, "form pairs", pairs, event=event)
        for influence in self.journal.steps(EstimateInfluence):
            yield self._timed(influence, OTHER, "estimate influence", {})
        for merged in self.journal.steps(MergeAdapters):
            parts: Attributes = {"mosaic.adapters": len(merged.inputs.adapters)}
            yield self._timed(merged, OTHER, "merge adapters", parts)
        for trained in self.journal.steps(Train):
            job, adapter = trained.inputs.job, trained.result
            training: Attributes = {
                "mosaic.method": job.recipe.kind,
                "mosaic.seed": job.seed,
                "mosaic.tokens": adapter.tokens,
                "mosaic.steps": adapter.steps,
                "mosaic.loss": adapter.loss,
                "mosaic.adapter": adapter.digest,
            }
            event, name = f"trained {adapter.digest}", f"train {job.recipe.kind}"
            yield self._timed(trained, OTHER, name, training, event=event)

    def _evaluating(self) -> Iterable[Timed]:
        for made in self.journal.steps(Generate):
            answers: Attributes = {
                "mosaic.conversations": made.result.conversations,
                "gen_ai.usage.output_tokens": made.result.tokens,
                "mosaic.suite_role": self.roles.get(made.inputs.suite, "unknown"),
            }
            yield self._timed(made, EVALUATE, "generate", answers)
        for read in self.journal.steps(MeasureLikelihood):
            role: Attributes = {"mosaic.suite_role": self.roles.get(read.inputs.suite, "unknown")}
            yield self._timed(read, EVALUATE, "read likelihoods", role)
        verdicts = self.journal.steps(AskVerdict)
        numbers = [step.seq for step in verdicts]
        judgings = self.journal.steps(JudgeSuite)
        last = max(numbers, default=0) + 1
        ends = [step.seq for step in judgings[1:]] + [last]
        for judged, until in zip(judgings, ends, strict=bool(judgings)):
            about: Attributes = {
                "mosaic.objective": judged.inputs.objective,
                "mosaic.suite_role": self.roles.get(judged.inputs.suite, "unknown"),
            }
            # What a model was asked for this suite was filed between this step and the next.
            own = verdicts[bisect(numbers, judged.seq) : bisect(numbers, until)]
            if own:
                charged = sum(step.result.verdict.charged for step in own)
                about |= {"mosaic.verdicts": len(own), "mosaic.charged_tokens": charged}
            yield self._timed(judged, EVALUATE, f"judge {judged.inputs.objective}", about)

    def _marks(self) -> Iterable[Timed]:
        """Steps that take no time of their own and say when the ones before them ended."""
        for seen in self.journal.steps(Observe):
            event = f"observed {seen.result.observation}"
            yield self._timed(seen, OTHER, "observe", {}, event=event)
        for kind, event in (
            (CloseRound, "measured"),
            (Calibrate, "calibrated"),
            (TakeLooks, "looked"),
            (Audit, "audited"),
        ):
            for step in self.journal.steps(kind):
                mark = self._timed(step, MARK, event, {}, event=f"{event} {step.place.round}")
                yield replace(mark, seconds=0.0)


def _ends(journal: Journal) -> dict[str, float]:
    """What an event says -> when it was recorded. Of several that say the same, the last."""
    ends = {}
    for event in journal.events():
        match event.record:
            case PlannedEvent() as planned:
                ends[f"planned {event.round} {planned.plan_digest}"] = event.at
            case CuratedEvent() as curated:
                ends[f"curated {curated.training_set}"] = event.at
            case PairedEvent() as paired:
                ends[f"paired {paired.pairs}"] = event.at
            case TrainedEvent() as trained:
                ends[f"trained {trained.adapter.digest}"] = event.at
            case ObservedEvent() as observed:
                ends[f"observed {observed.observation}"] = event.at
            case MeasuredEvent():
                ends[f"measured {event.round}"] = event.at
            case CalibratedEvent():
                ends[f"calibrated {event.round}"] = event.at
            case LookedEvent():
                ends[f"looked {event.round}"] = event.at
            case AuditedEvent():
                ends[f"audited {event.round}"] = event.at
            case FailedEvent() as failed if failed.step == "plan":
                ends[f"failed {event.round}"] = event.at
    return ends
