"""Recipes of what is trained for stated wishes: a reward model, and a policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mosaic.core.types.base import StrictInt
from mosaic.core.types.runs import SHARED, LoraRecipe, SftRecipe
from mosaic.core.types.spending import Usage


class RewardModelRecipe(LoraRecipe):
    """How a reward model is trained. `held_out` is the share of prompts kept for calibration."""

    trains_on: ClassVar[Literal["mixture", "practice"]] = "practice"

    kind: Literal["reward_model"] = "reward_model"
    held_out: float = Field(default=0.15, gt=0, lt=1)

    @model_validator(mode="after")
    def _one_answer_a_row(self) -> RewardModelRecipe:
        if self.packing:
            raise ValueError("packing: a reward model reads each answer in a row of its own")
        return self


class RlRecipe(LoraRecipe):
    """Policy optimisation of a LoRA adapter for levels that prompts ask for.

    `n` answers of at most `max_new_tokens` are drawn per prompt at `temperature`; `batch_size`
    counts answers, and a step takes whole groups of n. `kl` is the KL coefficient b: larger values
    hold the policy closer to where it began. A learning rate for LoRA.

    Of the tokens of a stage, `judged_share` draws answers and trains the reward model on them and on
    the pool; `warm_share` fine-tunes on judged answers below the levels that they were given,
    before any answer is rewarded. The rest optimises the policy.

    `reward_model` and `warm` say how those two are trained; what they leave out of `SHARED` is as
    here. `wish` is objective -> level, stated wherever the adapter is measured; an objective that it
    does not name is wished for at level 5. `graded` is data set -> the objective whose levels the
    qualities of its rows are: such rows are judged answers too.
    """

    trains_on: ClassVar[Literal["mixture", "practice"]] = "practice"

    kind: Literal["rl"] = "rl"
    learning_rate: float = Field(default=5e-5, gt=0)
    algorithm: Literal["rloo", "grpo"] = "rloo"
    kl: float = Field(default=0.05, ge=0)
    n: int = Field(default=4, ge=2, le=64)
    temperature: float = Field(default=1.0, gt=0, le=2)
    max_new_tokens: int = Field(default=64, ge=1)
    judged_share: float = Field(default=0.4, gt=0, lt=1)
    warm_share: float = Field(default=0.3, ge=0, lt=1)
    reward_model: RewardModelRecipe = Field(default_factory=RewardModelRecipe)
    warm: SftRecipe = Field(default_factory=SftRecipe)
    wish: dict[str, StrictInt] = {}
    graded: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _said_once(cls, data: object) -> object:
        """Trainings within the stage take what an adapter is made of from it."""
        if not isinstance(data, dict):
            return data
        shared = {name: data[name] for name in SHARED if name in data}
        filled = dict(data)
        for name in ("reward_model", "warm"):
            own = data.get(name, {})
            if isinstance(own, dict):
                filled[name] = {**shared, **own}
        return filled

    @field_validator("wish")
    @classmethod
    def _on_the_scale(cls, wish: dict[str, int]) -> dict[str, int]:
        for objective, level in wish.items():
            if level not in range(1, 6):
                raise ValueError(f"{objective}: {level} is not a level from 1 to 5")
        return wish

    @model_validator(mode="after")
    def _whole_groups(self) -> RlRecipe:
        answers = self.batch_size * self.gradient_accumulation
        if answers % self.n:
            raise ValueError(
                f"batch_size x gradient_accumulation is {answers} answers a step, which is not a "
                f"multiple of n ({self.n})"
            )
        if self.packing:
            raise ValueError("packing: sampled answers are never packed; leave it out")
        if self.lora_dropout:
            raise ValueError(
                "lora_dropout: answers are drawn and learned without dropout; set it to 0"
            )
        for name in SHARED:
            if getattr(self.warm, name) != getattr(self, name):
                raise ValueError(
                    f"warm.{name} differs from {name}: both train one adapter; leave it out of warm"
                )
        if self.judged_share + self.warm_share >= 1:
            raise ValueError(
                "judged_share and warm_share leave nothing to optimise the policy with; their sum "
                "is below 1"
            )
        return self

    @property
    def prompts_per_step(self) -> int:
        return self.batch_size * self.gradient_accumulation // self.n

    def usage(self, selected: int) -> Usage:
        """What a stage of `selected` tokens takes; `worst_case` says which prompts fit."""
        return Usage(trained=selected)


def worst_case(recipe: RlRecipe, lengths: Sequence[int]) -> Usage:
    """The most that training on prompts of these lengths (in tokens) can take.

    Every answer is drawn once, and trained on once with its prompt. Two prompts of 10 and 20
    tokens with n = 4 and answers of up to 8: 4 (10 + 20 + 2 x 8) = 184 trained, 64 sampled.

    >>> worst_case(RlRecipe(n=4, max_new_tokens=8), [10, 20]).cost
    248
    """
    drawn = recipe.n * recipe.epochs
    longest = len(lengths) * recipe.max_new_tokens
    return Usage(trained=drawn * (sum(lengths) + longest), sampled=drawn * longest)
