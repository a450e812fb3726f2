"""What the agent may do, and what for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agent.fidelity import FidelityConfig, groups
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.plans import Limits, ObjectiveSpec
from mosaic.core.types.runs import Recipe
from mosaic.core.types.spending import Usage


class StopConfig(FrozenModel):
    """When to stop before the planned rounds are used up.

    `patience` stops after so many rounds in a row whose gain lies within the noise. `at_targets`
    stops as soon as the round that would be chosen reaches every target. `at_equilibrium` stops
    where the influence of buckets is lost in the noise. `hours` of wall-clock time after a start the
    run stops at the next safe point, as if somebody had stopped it; `resume` goes on.
    """

    patience: int | None = Field(default=None, ge=1)
    at_targets: bool = False
    # Left out of what is written if it is not asked for: the digests of other settings stay.
    at_equilibrium: bool = Field(default=False, exclude_if=lambda value: not value)
    hours: float | None = Field(default=None, gt=0, exclude_if=lambda value: value is None)


class CalibrationConfig(FrozenModel):
    """How often the static mixture is trained before round 1.

    The spread of the repeats' scores is the noise.
    """

    repeats: int = Field(default=3, ge=1, le=20)


class FailureConfig(FrozenModel):
    """What happens when a training fails.

    `train_retries` says how often a failure that may pass is tried again; `failed_round` whether
    the run stops then, or only its round is lost.
    """

    train_retries: int = Field(default=1, ge=0, le=10)
    failed_round: Literal["stop", "skip"] = "stop"


class Settings(FrozenModel):
    """The agent's part of a config.

    A round selects `tokens_per_round` tokens; the recipe says what training on them costs. `keep`
    keeps the adapters of archived rounds, or all; `keep_judge_requests` what judges were asked. What a
    planner was sent is always kept. With `ask_calibration` a person is asked before the calibration.

    With several methods `method_shares` has the shares of a plan that names none, in the order in
    which they run, and `stages` the recipes of those after the mixture's. A round has `candidates`
    plans, each of which is a trial.
    """

    rounds: int = Field(ge=1)
    seed: int
    objectives: list[ObjectiveSpec]
    limits: Limits
    tokens_per_round: int
    recipe: Recipe
    calibration: CalibrationConfig
    stop: StopConfig
    max_repairs: int
    failures: FailureConfig = FailureConfig()
    keep: Literal["archive", "all"] = "archive"
    # Left out of what is written if there is one method: the digests of other settings stay.
    method_shares: dict[str, float] = Field(default={}, exclude_if=lambda shares: not shares)
    stages: dict[str, Recipe] = Field(default={}, exclude_if=lambda stages: not stages)
    evaluate_stages: bool = Field(default=False, exclude_if=lambda value: not value)
    # Left out of what is written if they are kept: the digests of other settings stay.
    keep_judge_requests: bool = Field(default=True, exclude_if=lambda keep: keep)
    # Left out of what is written if nobody asks: the digests of other settings stay.
    ask_calibration: bool = Field(default=False, exclude_if=lambda ask: not ask)
    # Left out of what is written without looks: the digests of other settings stay.
    fidelity: FidelityConfig | None = Field(default=None, exclude_if=lambda looks: looks is None)
    # Left out of what is written if there is one: the digests of other settings stay.
    candidates: int = Field(default=1, ge=1, exclude_if=lambda candidates: candidates == 1)

    @property
    def usage_per_round(self) -> Usage:
        """What one trial takes: the same for a calibration repeat and a planned round."""
        return self.recipe.usage(self.tokens_per_round)

    @property
    def cost_per_round(self) -> int:
        """What one trial is charged, in training tokens."""
        return self.usage_per_round.cost

    @property
    def look_tokens(self) -> int:
        """Tokens that are selected for an expert, or for a look of kind `fraction`."""
        return round(self.fidelity.fraction * self.tokens_per_round) if self.fidelity else 0

    @property
    def summed(self) -> int:
        """So many adapters make one that answers: 1, or the experts of a look."""
        experts = self.fidelity is not None and self.fidelity.kind == "experts"
        return len(groups(self.objectives)) if experts else 1

    @property
    def cost_of_experts(self) -> int:
        """What all experts are charged together, in training tokens; 0 without experts."""
        if self.fidelity is None or self.fidelity.kind != "experts":
            return 0
        return self.summed * self.recipe.usage(self.look_tokens).cost

    @property
    def cost_of_look(self) -> int:
        """What one look before a round is charged; 0 for those that are added up of experts."""
        if self.fidelity is None or self.fidelity.kind == "experts":
            return 0
        return self.recipe.usage(self.look_tokens).cost

    @property
    def cost_of_looks(self) -> int:
        """What all looks of the run are charged, experts included."""
        if self.fidelity is None:
            return 0
        return self.cost_of_experts + self.rounds * self.fidelity.looks * self.cost_of_look

    @property
    def cost_of_candidates(self) -> int:
        """What the trials of a whole round are charged."""
        return self.cost_per_round * self.candidates

    @property
    def names(self) -> list[str]:
        """All objectives, constraints included."""
        return [o.name for o in self.objectives]

    @property
    def traded(self) -> list[ObjectiveSpec]:
        """Objectives that have data: those of dominance and hypervolume."""
        return [o for o in self.objectives if o.traded]
