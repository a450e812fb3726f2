"""What has happened: adapters, rounds, calibration, and the observation that a planner is given."""

from __future__ import annotations

from pydantic import Field

from mosaic.core.types.base import Attribute, FrozenModel
from mosaic.core.types.data import CurationReport, Stock
from mosaic.core.types.evaluation import FailureProfile, Score
from mosaic.core.types.plans import ActionPlan, Forecast, Limits, ObjectiveSpec, Violation


class Adapter(FrozenModel):
    """A trained LoRA adapter, filed in the store under `digest`."""

    digest: str
    base: str
    tokens: int
    supervised: int
    steps: int
    loss: float
    seconds: float


class Round(FrozenModel):
    """One finished round, folded from the journal. Round 0 is the base; `scores` is objective -> role -> Score."""

    round: int
    plan: ActionPlan | None = None
    planner: str = ""
    fallback: str | None = None
    scores: dict[str, dict[str, Score]]
    profile: FailureProfile
    curation: CurationReport | None = None
    tokens: dict[str, int] = {}
    adapter: str | None = None
    accepted: bool = False
    reason: str = ""
    dominated: bool = False
    forecast: list[Forecast] = []
    failure: str | None = Field(
        default=None, description="why nothing was trained; such a round scores nothing"
    )

    def point(self, objectives: list[str]) -> list[float] | None:
        """Selection means in the given order, or None where one is not scored."""
        means = [self.scores[o]["selection"].mean for o in objectives]
        return None if any(m is None for m in means) else [float(m) for m in means if m is not None]


class Calibration(FrozenModel):
    """The static mixture trained several times: means per repeat, and the noise that follows from them.

    `noise` is objective -> standard deviation of one selection mean.
    """

    scores: list[dict[str, dict[str, Score]]]
    noise: dict[str, float]
    profiles: list[FailureProfile] = []
    mixture: ActionPlan


class Observation(FrozenModel):
    """All that a planner is told. A planner is a function of this and of what the tools answer."""

    round: int = Field(ge=1, description="the round to be planned")
    rounds: int
    seed: int
    objectives: list[ObjectiveSpec]
    profile: FailureProfile
    history: list[Round]
    archive: list[int]
    calibration: Calibration | None
    proportions: dict[str, float]
    bucket_proportions: dict[str, dict[str, float]]
    stock: dict[str, dict[str, Stock]]
    attributes: dict[str, dict[str, list[Attribute]]] = {}
    last_plan: ActionPlan
    limits: Limits
    budget_per_round: int = Field(description="tokens a mixture selects")
    cost_per_round: int = Field(
        description="tokens a round is charged: those selected, times epochs"
    )
    budget_left: int
    feedback: list[Violation] = []
    below_floor: list[str] = []
