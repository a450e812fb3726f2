"""The shapes of what commands print: `report --json`, `status --json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from mosaic.core.types.base import FrozenModel
from mosaic.core.types.data import CurationReport
from mosaic.core.types.evaluation import Difference, LevelAgreement, Score
from mosaic.core.types.look_records import Look
from mosaic.core.types.plans import ActionPlan, Floor, Forecast
from mosaic.core.types.records import PlannerReplaced
from mosaic.core.types.runs import Stage

State = Literal[
    "not started",
    "running",
    "waiting for approval",
    "decided",
    "paused",
    "stopped",
    "failed",
    "dead",
    "finished",
]


class StageProgress(FrozenModel):
    """What a controller does just now: so many of so many, in so many seconds.

    `rate` is per second, `left` in seconds; both are None while nothing is done yet.
    """

    what: str
    done: int
    total: int
    seconds: float
    loss: float | None = None

    @property
    def rate(self) -> float | None:
        return self.done / self.seconds if self.done and self.seconds > 0 else None

    @property
    def left(self) -> float | None:
        return None if self.rate is None else (self.total - self.done) / self.rate


class Standing(FrozenModel):
    """Where a run stands.

    `running`: a controller holds it. `waiting for approval`: a person must decide. `decided`: a
    person has, and no controller has taken it up. `paused`: an endpoint or the disk failed.
    `stopped`: somebody asked for it. `failed`: an error ended it. `dead`: its controller is gone
    without a word. `by` is who runs it, stopped it or decided; `since` is in seconds since 1970;
    `next` is the command to give.
    """

    state: State
    by: str = ""
    since: float | None = None
    why: str = ""
    next: str = ""
    stage: StageProgress | None = None


class Finding(FrozenModel):
    """One line of `validate --json`: what was checked, and what was found.

    Lines about cost also hold numbers: `hours` (None if a speed is unknown), the `speed` they
    follow from, counts of tokens and calls, and `money` in the currency of the prices.
    """

    check: str
    result: str
    hours: float | None = None
    speed: float | None = None
    tokens: int | None = None
    calls: int | None = None
    tokens_read: int | None = None
    tokens_written: int | None = None
    money: float | None = None

    def json_data(self) -> dict[str, Any]:
        """What is known of it."""
        return self.model_dump(mode="json", exclude_unset=True)


class RoundTokens(FrozenModel):
    """Training tokens of a round: the budget, what was selected and trained, what was short.

    `supervised` are those of the selected ones that the loss counts, in one epoch. `sampled` were
    drawn from the model to practise on, and are charged like those trained.
    """

    budget: int = 0
    selected: int = 0
    trained: int = 0
    supervised: int = 0
    short: int = 0
    sampled: int = 0


class ReportRound(FrozenModel):
    """One round; round 0 is the base.

    `trial` is the id of the trial that stands for the round, `scores` is objective -> role ->
    score, `seconds` is by part. `stages` has what each method cost and brought, if there are
    several.

    If the round has several trials, `siblings` are the others, each as a round of its own whose
    `counts` is false and whose seconds are among the round's. `candidate` is a trial's place among
    them, from 1.
    """

    round: int
    trial: str
    plan: ActionPlan | None
    planner: str
    replaced: PlannerReplaced | None
    scores: dict[str, dict[str, Score]]
    tokens: RoundTokens
    curation: CurationReport | None
    seconds: dict[str, float]
    accepted: bool
    reason: str
    dominated: bool
    forecast: list[Forecast]
    adapter: str | None
    stages: list[Stage] = []
    agreement: list[LevelAgreement] = []
    candidate: int = Field(default=0, exclude_if=lambda candidate: candidate == 0)
    counts: bool = Field(default=True, exclude_if=lambda counts: counts)
    siblings: list[ReportRound] = Field(default=[], exclude_if=lambda found: not found)

    @property
    def name(self) -> str:
        """What a table calls it: `base`, `3`, or `3.2` for the second of several trials."""
        return trial_name(self.round, self.candidate)

    @property
    def by_trial(self) -> list[ReportRound]:
        """All trials of the round in their order."""
        return sorted([self, *self.siblings], key=lambda one: one.candidate)


def trial_name(number: int, candidate: int = 0) -> str:
    """What a trial is called: by its round, and by its place there if the round has several.

    >>> trial_name(0), trial_name(3), trial_name(3, 2)
    ('base', '3', '3.2')
    """
    if not number:
        return "base"
    return f"{number}.{candidate}" if candidate else str(number)


class NoiseShape(FrozenModel):
    """What is believed of a training's noise, drawn toward what is usual, with its 95 % interval.

    In points, a standard deviation of one selection mean.
    """

    deviation: float
    low: float
    high: float


class CalibrationShape(FrozenModel):
    """Scores of each repeat of the static mixture, and the noise per objective.

    `noise` is what the repeats show, `believed` what follows from so few of them.
    """

    mixture: ActionPlan
    trials: list[str]
    scores: list[dict[str, dict[str, Score]]]
    noise: dict[str, float]
    believed: dict[str, NoiseShape]


class LooksShape(FrozenModel):
    """Looks of a run, in the order in which they were taken.

    `round` is the round that was planned next, 0 for experts. `note` says what was left out.
    """

    round: int
    looks: list[Look]
    note: str = ""


class StaticShape(FrozenModel):
    """The pools' own proportions on the selection suites: the mean of the calibration's trainings.

    `hypervolume` is that of its means, None if one is not scored.
    """

    trainings: int
    plan: ActionPlan
    selection: dict[str, Score]
    hypervolume: float | None


Compared = Literal["better", "worse", "not told apart"]
Met = Literal["met", "missed", "not shown to be met"]


class Comparison(FrozenModel):
    """How one objective of a result stands against something else, on equal prompts."""

    objective: str
    verdict: Compared
    change: Difference


class TargetShape(FrozenModel):
    """A target held against the chosen round's audit: met or missed by the whole interval."""

    objective: str
    target: float
    verdict: Met
    score: Score


class IndependentShape(FrozenModel):
    """An independent suite, opened at the end alone and read by no decision.

    `objective` names what judged it. `static` and `chosen` are None where no such model was audited.
    `against_static` and `against_base` say of the chosen round's differences what may be read from
    them.
    """

    objective: str
    base: Score
    static: Score | None
    chosen: Score | None
    against_static: Comparison | None
    against_base: Comparison | None


class AuditShape(FrozenModel):
    """Audit scores by objective; `chosen` is empty if no round was chosen.

    `static` are those of the pools' own proportions and `gain` is the chosen round less them; both
    are empty if nothing was calibrated. `against_base` is the chosen round less the base, and `fell`
    names the objectives in which that is a fall. `against_static` and `compared_to_base` say of both
    differences what may be read from them.
    """

    base: dict[str, Score]
    static: dict[str, Score]
    chosen: dict[str, Score]
    gain: dict[str, Difference]
    against_base: dict[str, Difference]
    fell: list[str]
    control: dict[str, dict[int, Score]] = Field(
        default={}, description="objective -> requested level -> score of the chosen round"
    )
    against_static: list[Comparison] = []
    compared_to_base: list[Comparison] = []
    independent: dict[str, IndependentShape] = Field(
        default={}, description="independent suite -> scores, apart from those that decisions read"
    )


class RankedShape(FrozenModel):
    """An archived trial by merit: expected shortfall below targets, volume, chance of being best.

    `shortfall` is in points, summed over objectives; `volume` and `best` are in 0-1. Round 0 is the
    base.
    """

    round: int
    shortfall: float
    volume: float
    best: float
    trial: str = ""
    candidate: int = Field(default=0, exclude_if=lambda candidate: candidate == 0)

    @property
    def name(self) -> str:
        """As `ReportRound.name`."""
        return trial_name(self.round, self.candidate)


class AuditOpening(FrozenModel):
    """One opening of the audit suites: after which round, what was chosen, what came later.

    `decided_after` are rounds that were planned after this opening: decisions that may have seen
    what the audit said.
    """

    after_round: int
    chosen: int | None
    stop: str
    decided_after: list[int]


class NoteShape(FrozenModel):
    """A person's guidance to the planner. `told_from` is the first round whose planner was told it.

    None if none was planned since.
    """

    by: str
    text: str
    told_from: int | None


class BudgetShape(FrozenModel):
    """Training tokens."""

    total: int
    spent: int
    reserved: int
    left: int


class Limit(FrozenModel):
    """One limit on what models take: what is used, the limit and what is left of it.

    `used` counts what requests under way may take. `limit` and `left` are None without a limit.
    """

    used: float
    limit: float | None
    left: float | None


class ModelCalls(FrozenModel):
    """What planner or judges asked of language models: answers, requests with retries, tokens.

    Gold checks and what an outage left without an answer count as requests and tokens.
    `from_cache` are verdicts that another run had paid for.
    """

    answers: int
    requests: int
    tokens: int
    from_cache: int = 0


class Report(FrozenModel):
    """`report --json`, `run --json`, `resume --json`.

    `state` and `why` are those of `status`; `stop` is the rule that ended a finished run.

    `traded` are the objectives that have data: those of dominance and hypervolume. The others are
    constraints. `ranking` is the archive by merit, the best first. `hypervolume` is of all accepted
    rounds after each round, on the selection suites. `verdicts` are the targets, `headline`,
    `why_chosen` and `unknown` sentences about the result. `notes` is what people asked of the planner.
    """

    run: str
    config_digest: str
    planner: str
    objectives: list[str]
    traded: list[str]
    targets: dict[str, float | None]
    floors: dict[str, Floor | None]
    state: State
    why: str = ""
    stop: str | None
    rounds: list[ReportRound]
    calibration: CalibrationShape | None
    static: StaticShape | None = None
    looks: list[LooksShape] = Field(default=[], exclude_if=lambda looks: not looks)
    archive: list[int]
    ranking: list[RankedShape]
    chosen: int | None
    audit: AuditShape | None
    verdicts: list[TargetShape] = []
    headline: list[str] = []
    why_chosen: str = ""
    unknown: list[str] = []
    audits: list[AuditOpening]
    notes: list[NoteShape] = []
    hypervolume: list[float]
    budget: BudgetShape
    model_calls: dict[str, ModelCalls]
    spending: dict[str, Limit] = Field(default={}, exclude_if=lambda limits: not limits)

    @property
    def trials(self) -> list[ReportRound]:
        """Every trial of every round, in order."""
        return [one for round_ in self.rounds for one in round_.by_trial]

    @property
    def several(self) -> bool:
        """Whether a round has more than one trial."""
        return len(self.trials) > len(self.rounds)

    @property
    def chosen_name(self) -> str:
        """What the chosen trial is called; empty if none is."""
        names = {one.round: one.name for one in self.rounds}
        return "" if self.chosen is None else names.get(self.chosen, str(self.chosen))


class Status(FrozenModel):
    """`status --json`: where a run stands."""

    run: str
    state: State
    standing: Standing
    rounds: str
    calibrated: bool
    archive: list[int]
    last: str | None
    begun: str | None
    tokens_spent: int
    tokens_left: int
    spending: dict[str, Limit] = Field(default={}, exclude_if=lambda limits: not limits)
