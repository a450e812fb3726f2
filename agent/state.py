"""What a run is, folded from its journal, and the settings its agent works under."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from agent.pareto import MIN_NOISE, archive, dominates, hypervolume
from mosaic.core.journal import Journal
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.evaluation import Score
from mosaic.core.types.plans import ActionPlan, Limits, ObjectiveSpec
from mosaic.core.types.runs import Calibration, Round


class StopConfig(FrozenModel):
    """When to stop before the planned rounds are used up.

    `patience`: after so many rounds in a row whose gain lies within the noise. `at_targets`: as soon as the
    round that would be chosen reaches every target.
    """

    patience: int | None = Field(default=None, ge=1)
    at_targets: bool = False


class CalibrationConfig(FrozenModel):
    """How often the static mixture is trained before round 1; the spread of its scores is the noise."""

    repeats: int = Field(default=3, ge=1, le=20)


class FailureConfig(FrozenModel):
    """What happens when a training fails: how often it is tried again, then whether the run stops or only its round."""

    train_retries: int = Field(default=1, ge=0, le=10)
    failed_round: Literal["stop", "skip"] = "stop"


class Settings(FrozenModel):
    """What the agent may do, and what for. A round selects `tokens_per_round` and costs `epochs` times as many.

    `keep`: the adapters of archived rounds, or all.
    """

    rounds: int = Field(ge=1)
    seed: int
    objectives: list[ObjectiveSpec]
    limits: Limits
    tokens_per_round: int
    epochs: int = Field(default=1, ge=1)
    calibration: CalibrationConfig
    stop: StopConfig
    max_repairs: int
    failures: FailureConfig = FailureConfig()
    keep: Literal["archive", "all"] = "archive"

    @property
    def cost_per_round(self) -> int:
        return self.tokens_per_round * self.epochs

    @property
    def names(self) -> list[str]:
        return [o.name for o in self.objectives]


@dataclass(frozen=True)
class Audit:
    """Scores on the audit suites: of the base and, where a round was chosen, of that round."""

    chosen: int | None
    stop: str
    base: dict[str, Score]
    scores: dict[str, Score]


@dataclass(frozen=True)
class RunState:
    """All that has happened. `files` is round -> objective -> role -> digests of responses, judgments, scores."""

    rounds: list[Round]
    calibration: Calibration | None
    audit: Audit | None
    files: dict[int, dict[str, Any]] = field(default_factory=dict)
    calibration_files: dict[str, Any] | None = None
    objectives: tuple[str, ...] = ()

    @property
    def executed(self) -> list[Round]:
        """The base and every round that left a model."""
        return [r for r in self.rounds if r.failure is None]

    @property
    def latest_files(self) -> dict[str, Any] | None:
        """What the model executed last left: the last planned round's, the first calibration repeat's, the base's."""
        if not self.rounds:
            return None
        last = self.executed[-1]
        if last.plan is None and self.calibration_files:
            return self.calibration_files
        return self.files[last.round]

    @property
    def last_plan(self) -> ActionPlan | None:
        """The plan executed last: of the last round, or the calibration's."""
        plans = [r.plan for r in self.executed if r.plan]
        return plans[-1] if plans else self.calibration.mixture if self.calibration else None

    @property
    def noise(self) -> dict[str, float]:
        return self.calibration.noise if self.calibration else {}

    @property
    def archive(self) -> list[int]:
        return archive(self.rounds, self.objectives, self.noise)

    @property
    def hypervolumes(self) -> list[float]:
        """Hypervolume of all accepted rounds after each round."""
        values = []
        for end in range(1, len(self.rounds) + 1):
            points = [r.point(list(self.objectives)) for r in self.rounds[:end] if r.accepted]
            values.append(hypervolume([p for p in points if p is not None]))
        return values


Records = dict[int, tuple[Round, dict[str, Any]]]


def fold(journal: Journal, objectives: list[str], known: Records | None = None) -> RunState:
    """Read a run from its journal: only finished steps count. `known` (step number -> round and files) is filled and
    saves reading old rounds again: a finished step never changes."""
    known = {} if known is None else known
    for step in journal.steps("record", after=max(known, default=0)):
        if step.state == "done" and step.result:
            known[step.seq] = Round.model_validate(step.result["round"]), step.result["files"]
    rounds = [round_ for _, (round_, _) in sorted(known.items())]
    files = {round_.round: found for round_, found in known.values()}
    calibration = next((s.result for s in journal.steps("calibration") if s.state == "done"), None)
    # A run that was extended after its audit is unfinished until it is audited again.
    audits = [
        s.result for s in journal.steps("audit", after=max(known, default=0)) if s.state == "done"
    ]
    audit = audits[-1] if audits else None
    measured = Calibration.model_validate(calibration["calibration"]) if calibration else None
    rounds = mark_dominated(rounds, objectives, measured.noise if measured else {})
    return RunState(
        rounds=rounds,
        calibration=measured,
        calibration_files=calibration["files"] if calibration else None,
        audit=None
        if audit is None
        else Audit(
            chosen=audit["chosen"],
            stop=audit["stop"],
            base={o: Score.model_validate(s) for o, s in audit["base"].items()},
            scores={o: Score.model_validate(s) for o, s in audit["scores"].items()},
        ),
        files=files,
        objectives=tuple(objectives),
    )


def mark_dominated(
    rounds: list[Round], objectives: list[str], noise: dict[str, float]
) -> list[Round]:
    """The same rounds, each saying whether an accepted one dominates it, or whether its training failed; a floor missed
    is not yet dominance."""
    tolerance = [noise.get(o, MIN_NOISE) for o in objectives]
    points = {r.round: r.point(objectives) for r in rounds}
    accepted = [p for r in rounds if r.accepted and (p := points[r.round])]

    def beaten(point: list[float] | None) -> bool:
        return point is not None and any(dominates(other, point, tolerance) for other in accepted)

    return [
        r.model_copy(update={"dominated": r.failure is not None or beaten(points[r.round])})
        for r in rounds
    ]
