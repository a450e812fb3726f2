"""Steps of cheap looks: adapters added up, mixtures chosen to be looked at, and what was seen."""

from __future__ import annotations

from typing import ClassVar, Literal

from mosaic.core.types.base import FrozenModel
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Trial
from mosaic.core.types.step_inputs import StepInputs


class AdapterMerged(FrozenModel):
    """The digest of a filed adapter that nothing trained."""

    adapter: str


class MergeAdapters(StepInputs[AdapterMerged]):
    """The sum of adapters' updates: digest of an adapter -> its weight."""

    result_type: ClassVar[type[FrozenModel]] = AdapterMerged
    kind: Literal["merge"] = "merge"
    adapters: dict[str, float]


class LooksChosen(FrozenModel):
    """Mixtures to be looked at; `note` says why there are fewer than the config asks for."""

    plans: list[ActionPlan]
    note: str = ""


class ChooseLooks(StepInputs[LooksChosen]):
    """Which mixtures are looked at before a round is planned."""

    result_type: ClassVar[type[FrozenModel]] = LooksChosen
    kind: Literal["choose_looks"] = "choose_looks"
    run: str
    round: int
    settings: str
    pool: str


class LooksTaken(FrozenModel):
    """Trials that cannot be chosen: they tell the surrogate what mixtures do, for less."""

    trials: list[Trial]
    note: str = ""


class TakeLooks(StepInputs[LooksTaken]):
    """The looks taken before a round is planned; before round 1 also the experts. Ids of trials."""

    result_type: ClassVar[type[FrozenModel]] = LooksTaken
    kind: Literal["looks"] = "looks"
    run: str
    round: int
    trials: list[str]


class Look(FrozenModel):
    """A look in short.

    `means` are steering means by objective, 1-5, null where nothing was scored. `experts` is digest
    of an adapter -> its weight in a look that was added up, which trained no tokens.
    """

    trial: str
    ratios: dict[str, float]
    trained: int
    means: dict[str, float | None]
    experts: dict[str, float] = {}


def look_of(trial: Trial) -> Look:
    """A trial that was a look, in short."""
    means = {name: roles["steering"].mean for name, roles in trial.scores.items()}
    return Look(
        trial=trial.id,
        ratios=trial.plan.ratios if trial.plan else {},
        trained=trial.usage.trained,
        means=means,
        experts=trial.spec.merged,
    )
