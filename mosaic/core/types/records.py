"""What the journal holds: a class for every kind of step.

A step is written as its inputs and its result. The inputs name everything the result depends on,
by value or by digest, and their digest is the step's key. Writers and readers share these classes,
so that a renamed field fails the type checker and not a person's export.

    adapter = steps.run(Train(job=job), effect)       # the result of a Train step is an Adapter
    for step in journal.steps(Train):
        step.inputs.job.seed, step.result.digest
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from mosaic.core.types.base import FrozenModel, JsonObject
from mosaic.core.types.data import CurationReport, Mixture
from mosaic.core.types.evaluation import (
    Difference,
    IndependentScores,
    Score,
    SuiteFiles,
    Verdict,
)
from mosaic.core.types.look_records import AdapterMerged, ChooseLooks, MergeAdapters, TakeLooks
from mosaic.core.types.plans import (
    ActionPlan,
    ApprovalRequest,
    Decision,
    Violation,
)
from mosaic.core.types.practice_records import (
    FormJudged,
    FormPairs,
    FormWishes,
    JudgedFiled,
    PairsFiled,
    PracticeScored,
    SamplePractice,
    ScorePractice,
    WishesFiled,
)
from mosaic.core.types.runs import Adapter, Calibration, Round, Sampling, TrainJob
from mosaic.core.types.step_inputs import Generated, StepInputs


def artifacts_of(result: FrozenModel) -> list[str]:
    """Digests of the artifacts in the store that a step's result names."""
    named = ARTIFACTS.get(type(result))
    if named is None:
        return []
    found: list[str] = []
    for field in named:
        value = getattr(result, field)
        found += value if isinstance(value, list) else [value] if value else []
    return found


# -- measuring ------------------------------------------------------------------------------------


class Generate(StepInputs[Generated]):
    """Answers to the prompts `shard[0]` up to `shard[1]` of a suite. `adapter` None is the base."""

    result_type: ClassVar[type[FrozenModel]] = Generated
    kind: Literal["generate"] = "generate"
    base: str
    generator: JsonObject
    sampling: Sampling
    adapter: str | None
    suite: str
    shard: tuple[int, int]
    # The levels that every prompt states; left out of the key of those that state none.
    wish: dict[str, int] = Field(default={}, exclude_if=lambda wish: not wish)


class LikelihoodMeasured(FrozenModel):
    """Filed judgments that hold one log likelihood per held-out text."""

    responses: str


class MeasureLikelihood(StepInputs[LikelihoodMeasured]):
    """Log likelihoods of the texts of a suite."""

    result_type: ClassVar[type[FrozenModel]] = LikelihoodMeasured
    kind: Literal["likelihood"] = "likelihood"
    base: str
    generator: JsonObject
    adapter: str | None
    suite: str


class JudgeSuite(StepInputs[SuiteFiles]):
    """Judgments and scores of all responses to one suite."""

    result_type: ClassVar[type[FrozenModel]] = SuiteFiles
    kind: Literal["judge"] = "judge"
    responses: list[str]
    suite: str
    objective: str
    judge: str
    rules: str


class VerdictFiled(FrozenModel):
    """A verdict, and whether the model was asked or another run's cache held it.

    `exchanges` is the digest of what was asked and said, filed together with others'.
    """

    verdict: Verdict
    source: Literal["model", "cache"]
    exchanges: str = ""


class AskVerdict(StepInputs[VerdictFiled]):
    """One conversation judged under one set of items: digests of judge, prompt and conversation."""

    result_type: ClassVar[type[FrozenModel]] = VerdictFiled
    kind: Literal["verdict"] = "verdict"
    judge: str
    prompt: str
    conversation: str


class GoldChecked(FrozenModel):
    """How a judge did on answers whose verdict is known. `agreement` is 0-1.

    `exchanges` is the digest of what was asked and said.
    """

    objective: str
    asked: int
    agreement: float
    attempts: int
    charged: int
    exchanges: str = ""


class CheckGold(StepInputs[GoldChecked]):
    """The gold checks that go before one batch of questions."""

    result_type: ClassVar[type[FrozenModel]] = GoldChecked
    kind: Literal["gold_checks"] = "gold_checks"
    judge: str
    objective: str
    batch: str


# -- making ---------------------------------------------------------------------------------------


class Curated(FrozenModel):
    """A filed training set, and what was asked against what was delivered."""

    training_set: str
    report: CurationReport


class Curate(StepInputs[Curated]):
    """Rows selected from a pool by a mixture."""

    result_type: ClassVar[type[FrozenModel]] = Curated
    kind: Literal["curate"] = "curate"
    pool: str
    mixture: Mixture


class Train(StepInputs[Adapter]):
    """One training."""

    result_type: ClassVar[type[FrozenModel]] = Adapter
    kind: Literal["train"] = "train"
    version: int = 3
    job: TrainJob


class InfluenceEstimated(FrozenModel):
    """The digest of a filed `Influence`."""

    influence: str


class EstimateInfluence(StepInputs[InfluenceEstimated]):
    """The effect of a little more of each bucket around an adapter.

    `sample` selects the rows to estimate from; `shares` is data set -> bucket -> share of the tokens
    that the adapter was trained on; `references` are digests of the steering prompts with their
    reference answers, by objective.
    """

    result_type: ClassVar[type[FrozenModel]] = InfluenceEstimated
    kind: Literal["influence"] = "influence"
    base: str
    adapter: str
    pool: str
    sample: Mixture
    shares: dict[str, dict[str, float]]
    references: dict[str, str]
    traded: list[str]
    settings: JsonObject


# -- deciding -------------------------------------------------------------------------------------


class Observed(FrozenModel):
    """The digest of a filed observation."""

    observation: str


class Observe(StepInputs[Observed]):
    """What the planner of a round is told, filed once. `settings` and `pool` are digests."""

    result_type: ClassVar[type[FrozenModel]] = Observed
    kind: Literal["observe"] = "observe"
    run: str
    round: int
    settings: str
    pool: str


class PlanProposed(FrozenModel):
    """The digest of a filed plan, and of the others if the round wants several."""

    plan: str
    siblings: list[str] = Field(default=[], exclude_if=lambda found: not found)

    @property
    def plans(self) -> list[str]:
        """All digests, in the planner's order."""
        return [self.plan, *self.siblings]


class ProposePlan(StepInputs[PlanProposed]):
    """One attempt of a planner. `feedback` is what it is told about earlier attempts."""

    result_type: ClassVar[type[FrozenModel]] = PlanProposed
    kind: Literal["plan"] = "plan"
    run: str
    round: int
    attempt: int
    observation: str
    planner: str
    feedback: list[Violation]


class PlannerAnswer(FrozenModel):
    """A reply of a planner's model, or how the call failed.

    `completion` and `records` are the endpoint's own, handed on unread. `attempts` are requests
    that reached a server, `charged` is in model tokens. `sent` is the digest of the filed messages,
    `offered` of the tools or of the schema that went with them; `told` are messages that were added
    within a call that failed. All three are empty in records of earlier releases.
    """

    completion: JsonObject | None = None
    failed: str | None = None
    reason: str | None = None
    records: list[JsonObject] = []
    attempts: int
    charged: int
    seconds: float
    sent: str = ""
    offered: str = ""
    told: list[JsonObject] = []


class AskPlanner(StepInputs[PlannerAnswer]):
    """One call of a planner's model. `session` counts conversations that gave up before."""

    result_type: ClassVar[type[FrozenModel]] = PlannerAnswer
    kind: Literal["plan_call"] = "plan_call"
    run: str = ""
    round: int = 0
    session: int = 0
    conversation: str
    call: int
    closing: bool
    model: JsonObject
    observation: str
    prompts: dict[str, str]
    shapes: str
    messages: str


class MarkChosen(FrozenModel):
    """The mark that closes an envelope round other people's text."""

    mark: str


class ChooseMark(StepInputs[MarkChosen]):
    """A random mark, drawn once for each observation so that a resumed conversation is the same."""

    result_type: ClassVar[type[FrozenModel]] = MarkChosen
    kind: Literal["plan_mark"] = "plan_mark"
    run: str = ""
    round: int = 0
    session: int = 0
    observation: str


class GivenUp(FrozenModel):
    """The run was paused."""

    paused: Literal[True] = True


class GiveUp(StepInputs[GivenUp]):
    """A model that found no plan, and what it had spent: the next start begins another session."""

    result_type: ClassVar[type[FrozenModel]] = GivenUp
    kind: Literal["plan_given_up"] = "plan_given_up"
    run: str = ""
    round: int = 0
    session: int = 0
    reason: str
    spent: JsonObject


class CallsCharged(FrozenModel):
    """Requests and model tokens that led to no answer which a step could hold.

    `exchanges` is the digest of what a judge was asked about known answers.
    """

    attempts: int
    charged: int
    seconds: float
    exchanges: str = ""


class ChargeCalls(StepInputs[CallsCharged]):
    """An outage, or gold checks that held a judge back. `number` tells one from the next."""

    result_type: ClassVar[type[FrozenModel]] = CallsCharged
    kind: Literal["charge"] = "charge"
    who: Literal["planner", "judge"]
    run: str
    number: int
    round: int | None = None
    session: int | None = None
    conversation: str | None = None
    call: int | None = None
    objective: str | None = None
    batch: str | None = None
    known: bool | None = None


class PlanChecked(FrozenModel):
    """Every reason why a plan may not run; none lets it pass."""

    violations: list[Violation]


class CheckPlan(StepInputs[PlanChecked]):
    """A plan held against all constraints. `rejected` is the digest of the plans refused before,
    `siblings` are the plans of the same round that it must differ from."""

    result_type: ClassVar[type[FrozenModel]] = PlanChecked
    kind: Literal["check"] = "check"
    plan: str
    observation: str
    pool: str
    rejected: str
    siblings: list[str] = Field(default=[], exclude_if=lambda found: not found)


class PlannerReplaced(FrozenModel):
    """Who plans instead of whom, and why."""

    planner: str
    by: str
    reason: str


class ReplacePlanner(StepInputs[PlannerReplaced]):
    """A planner that failed is replaced for the rest of its round."""

    result_type: ClassVar[type[FrozenModel]] = PlannerReplaced
    kind: Literal["replace"] = "replace"
    run: str
    round: int
    attempt: int
    reason: str


class AskApproval(StepInputs[ApprovalRequest]):
    """A question to a person, filed before it can be answered."""

    result_type: ClassVar[type[FrozenModel]] = ApprovalRequest
    kind: Literal["ask"] = "ask"
    run: str
    round: int
    request: str


class RecordDecision(StepInputs[Decision]):
    """A decision that the run acts on, whoever made it."""

    result_type: ClassVar[type[FrozenModel]] = Decision
    kind: Literal["decide"] = "decide"
    run: str
    round: int
    attempt: int
    decision: Decision


# -- closing --------------------------------------------------------------------------------------


class RoundClosed(FrozenModel):
    """A finished round with its trials."""

    round: Round


class CloseRound(StepInputs[RoundClosed]):
    """The end of a round. `content` is the digest of what is recorded."""

    result_type: ClassVar[type[FrozenModel]] = RoundClosed
    kind: Literal["round"] = "round"
    round: int
    content: str


class Calibrated(FrozenModel):
    """The calibration's trials and the noise that follows from them."""

    calibration: Calibration


class Calibrate(StepInputs[Calibrated]):
    """Repeats of one mixture with other seeds, named by the ids of their trials."""

    result_type: ClassVar[type[FrozenModel]] = Calibrated
    kind: Literal["calibrate"] = "calibrate"
    trials: list[str]
    mixture: ActionPlan


class Audited(FrozenModel):
    """Scores on the audit suites: objective -> Score, of the base and of the chosen trial.

    `static` are those of the first calibration trial, the pools' own proportions, and `gain` is by
    how much the chosen trial is ahead of it; both are empty if it was not measured. `against_base`
    is by how much it is ahead of the base. `control` is objective -> requested level -> Score, if the chosen
    adapter was trained for levels that prompts ask for. `independent` is suite -> scores of the suites
    that `audit_also` names. `chosen` is the number of the round that counts as the result, `trial` the id
    of its trial; both are None if no round could be chosen.
    """

    chosen: int | None
    trial: str | None
    stop: str
    base: dict[str, Score]
    scores: dict[str, Score]
    static: dict[str, Score] = {}
    gain: dict[str, Difference] = {}
    against_base: dict[str, Difference] = {}
    control: dict[str, dict[int, Score]] = Field(default={}, exclude_if=lambda found: not found)
    independent: dict[str, IndependentScores] = Field(
        default={}, exclude_if=lambda found: not found
    )


class Audit(StepInputs[Audited]):
    """The audit suites, opened after so many rounds. `independent` is name -> digest of its suite."""

    result_type: ClassVar[type[FrozenModel]] = Audited
    kind: Literal["audit"] = "audit"
    chosen: int | None
    adapter: str | None
    stop: str
    rounds: int
    # Left out of the key where there are none: audits of earlier releases stay.
    independent: dict[str, str] = Field(default={}, exclude_if=lambda suites: not suites)


class Retained(FrozenModel):
    """Adapters that were deleted."""

    dropped: list[str]


class Retain(StepInputs[Retained]):
    """Adapters that nothing will need again, by digest."""

    result_type: ClassVar[type[FrozenModel]] = Retained
    kind: Literal["retain"] = "retain"
    run: str
    round: int
    drop: list[str]


ARTIFACTS: Mapping[type[FrozenModel], tuple[str, ...]] = {
    Generated: ("responses",),
    LikelihoodMeasured: ("responses",),
    SuiteFiles: ("responses", "judgments", "scored"),
    Curated: ("training_set",),
    PracticeScored: ("scores",),
    PairsFiled: ("pairs",),
    JudgedFiled: ("answers",),
    WishesFiled: ("warm", "chats"),
    Adapter: ("digest",),
    AdapterMerged: ("adapter",),
    InfluenceEstimated: ("influence",),
    Observed: ("observation",),
    PlanProposed: ("plan", "siblings"),
    PlannerAnswer: ("sent", "offered"),
    VerdictFiled: ("exchanges",),
    GoldChecked: ("exchanges",),
    CallsCharged: ("exchanges",),
}

STEPS: tuple[type[StepInputs[Any]], ...] = (
    Generate,
    MeasureLikelihood,
    JudgeSuite,
    AskVerdict,
    CheckGold,
    Curate,
    SamplePractice,
    ScorePractice,
    FormPairs,
    FormJudged,
    FormWishes,
    Train,
    EstimateInfluence,
    Observe,
    ProposePlan,
    AskPlanner,
    ChooseMark,
    GiveUp,
    ChargeCalls,
    CheckPlan,
    ReplacePlanner,
    AskApproval,
    RecordDecision,
    CloseRound,
    Calibrate,
    MergeAdapters,
    ChooseLooks,
    TakeLooks,
    Audit,
    Retain,
)
# Steps whose results name artifacts.
MAKERS = tuple(step for step in STEPS if step.result_type in ARTIFACTS)
