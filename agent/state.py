"""What a run is, folded from its journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.pareto import MIN_NOISE, archive, archived, dominated, hypervolume
from mosaic.core.journal import Journal
from mosaic.core.types.look_records import TakeLooks
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.records import Audit, Audited, Calibrate, CloseRound
from mosaic.core.types.runs import Calibration, Round, Trial, each_trial

# Adapters of one mixture that influence is estimated around: the error covers the seed with two.
INFLUENCE_REPEATS = 2


@dataclass(frozen=True)
class RunState:
    """All that has happened.

    `objectives` are those that have data. `audits` are all openings of the audit suites, each with
    the number of rounds before it; `audit` is the one that stands: a run that was extended after
    its audit is unfinished until the next.
    """

    objectives: tuple[str, ...]
    rounds: tuple[Round, ...] = ()
    calibration: Calibration | None = None
    looks: tuple[Trial, ...] = ()
    audits: tuple[tuple[int, Audited], ...] = ()

    @property
    def audit(self) -> Audited | None:
        if not self.audits:
            return None
        opened_after, found = self.audits[-1]
        return found if opened_after == len(self.rounds) else None

    @property
    def experts(self) -> list[Trial]:
        """The looks that others are added up of: those taken before any round."""
        return [look for look in self.looks if look.profile.round == 0]

    @property
    def executed(self) -> list[Round]:
        """The base and every round that left a model."""
        return [r for r in self.rounds if r.failure is None]

    @property
    def trials(self) -> dict[str, Trial]:
        """Every trial of the run by its id."""
        found = {}
        for round_ in self.rounds:
            for trial in round_.trials:
                found[trial.id] = trial
        for trial in self.calibration.trials if self.calibration else ():
            found[trial.id] = trial
        return found

    @property
    def latest(self) -> Trial | None:
        """The trial executed last: a planned round's, the first calibration repeat, or the base."""
        if not self.rounds:
            return None
        last = self.executed[-1]
        if last.plan is None and self.calibration:
            return self.calibration.trials[0]
        return last.trial

    @property
    def latest_repeats(self) -> list[Trial]:
        """The trial executed last, with a second repeat of its plan where the calibration has one."""
        latest, calibration = self.latest, self.calibration
        assert latest is not None
        repeats = calibration.trials if calibration else []
        if latest in repeats:
            return repeats[:INFLUENCE_REPEATS]
        return [latest]

    @property
    def first_trials(self) -> list[Trial]:
        """The base and the calibration: what is measured before anything is planned."""
        repeats = self.calibration.trials if self.calibration else []
        return [self.rounds[0].trial, *repeats]

    @property
    def reward_model(self) -> str | None:
        """Digest of the reward model of the trial executed last, None if it trained none."""
        latest = self.latest
        models = [stage.reward_model for stage in latest.stages] if latest else []
        return next((model for model in reversed(models) if model), None)

    @property
    def last_plan(self) -> ActionPlan | None:
        """The plan executed last: of the last round, or the calibration's."""
        latest = self.latest
        return latest.plan if latest else None

    @property
    def noise(self) -> dict[str, float]:
        return self.calibration.noise if self.calibration else {}

    @property
    def archive(self) -> list[int]:
        """Numbers of the rounds that have a trial in the archive."""
        return archive(self.rounds, self.objectives, self.noise)

    @property
    def archived(self) -> list[Round]:
        """The archive's trials, each as a round of its own."""
        return archived(self.rounds, self.objectives, self.noise)

    @property
    def hypervolumes(self) -> list[float]:
        """Hypervolume of all accepted trials after each round."""
        names = list(self.objectives)
        values, points = [], []
        for round_ in self.rounds:
            for one in round_.by_trial:
                point = one.point(names) if one.accepted else None
                if point is not None:
                    points.append(point)
            values.append(hypervolume(points))
        return values

    # -- what happens next -------------------------------------------------------------------------

    def closed(self, round_: Round) -> RunState:
        """This state after one more round; the same if the round was recorded before."""
        if round_.round < len(self.rounds):
            return self
        return replace(self, rounds=self._marked((*self.rounds, round_), self.noise))

    def calibrated(self, calibration: Calibration) -> RunState:
        """This state once the noise is known."""
        rounds = self._marked(self.rounds, calibration.noise)
        return replace(self, calibration=calibration, rounds=rounds)

    def looked(self, looks: Sequence[Trial]) -> RunState:
        """This state after more looks; those that are known already are not taken twice."""
        known = {look.id for look in self.looks}
        return replace(self, looks=(*self.looks, *(k for k in looks if k.id not in known)))

    def audited(self, audit: Audited) -> RunState:
        """This state after the audit suites were opened."""
        return replace(self, audits=_with(self.audits, len(self.rounds), audit))

    def _marked(self, rounds: Sequence[Round], noise: dict[str, float]) -> tuple[Round, ...]:
        return tuple(mark_dominated(rounds, list(self.objectives), noise))


def _with(
    audits: tuple[tuple[int, Audited], ...], rounds: int, audit: Audited
) -> tuple[tuple[int, Audited], ...]:
    """One more opening. One that adds independent suites takes the place of that after equal rounds.

    What was measured on other independent suites stands.
    """
    if audits and audits[-1][0] == rounds:
        *earlier, (_, before) = audits
        independent = {**before.independent, **audit.independent}
        return (*earlier, (rounds, audit.model_copy(update={"independent": independent})))
    return (*audits, (rounds, audit))


def fold(journal: Journal, objectives: Sequence[str]) -> RunState:
    """Read a run from its journal: only finished steps count."""
    names = tuple(objectives)
    closed = journal.steps(CloseRound)
    rounds = tuple(step.result.round for step in closed)
    calibrations = journal.steps(Calibrate)
    calibration = calibrations[0].result.calibration if calibrations else None
    audits: tuple[tuple[int, Audited], ...] = ()
    for step in journal.steps(Audit):
        before = sum(1 for earlier in closed if earlier.seq < step.seq)
        audits = _with(audits, before, step.result)
    state = RunState(objectives=names, rounds=rounds, audits=audits)
    for taken in journal.steps(TakeLooks):
        state = state.looked(taken.result.trials)
    if calibration is not None:
        return state.calibrated(calibration)
    return replace(state, rounds=state._marked(rounds, {}))


def mark_dominated(
    rounds: Sequence[Round], objectives: list[str], noise: dict[str, float]
) -> list[Round]:
    """The same rounds, saying of each trial whether an accepted one dominates it or it failed.

    Missing a floor is not yet being dominated.
    """
    tolerance = [noise.get(o, MIN_NOISE) for o in objectives]
    scored, points, accepted = [], [], []
    beaten: set[tuple[int, str]] = set()
    for one in each_trial(rounds):
        point = one.point(objectives)
        if one.failure is not None:
            beaten.add((one.round, one.trial.id))
        elif point is not None:
            scored.append((one.round, one.trial.id))
            points.append(point)
            if one.accepted:
                accepted.append(point)
    for known, is_beaten in zip(scored, dominated(points, accepted, tolerance), strict=True):
        if is_beaten:
            beaten.add(known)
    marked = []
    for round_ in rounds:
        siblings = {}
        for trial in round_.trials:
            if trial.id in round_.siblings:
                verdict = round_.siblings[trial.id]
                is_beaten = (round_.round, trial.id) in beaten
                siblings[trial.id] = verdict.model_copy(update={"dominated": is_beaten})
        is_beaten = (round_.round, round_.trial.id) in beaten
        update = {"dominated": is_beaten, "siblings": siblings}
        marked.append(round_.model_copy(update=update))
    return marked
