"""What was estimated about buckets: the effect of a little more of each on every objective."""

from __future__ import annotations

import math

from pydantic import Field

from mosaic.core.types.base import FrozenModel

# A standard normal variable lies within this of its mean in 95 of 100 cases.
TWO_SIDED_95 = 1.96


class Effect(FrozenModel):
    """How much a steering loss falls per percent of the round's tokens; positive means it helps.

    The loss is the mean of log(1 + exp(-margin)) over a steering suite, in nats.
    """

    value: float
    standard_error: float = Field(ge=0)

    @property
    def is_clear(self) -> bool:
        """Whether it can be told from zero, with 95 % confidence."""
        return abs(self.value) > TWO_SIDED_95 * self.standard_error


class BucketInfluence(FrozenModel):
    """What a little more of one bucket would do.

    `share` is the bucket's share of the tokens that the adapter was trained on. `rows` and `tokens`
    count the rows that the estimate is made of. `effects` is objective -> effect; `mean` is the
    effect on the mean loss of all objectives that have data.
    """

    dataset: str
    bucket: str
    share: float = Field(ge=0, le=1)
    rows: int
    tokens: int
    effects: dict[str, Effect]
    mean: Effect


class SteeringPrompts(FrozenModel):
    """How many prompts of a steering suite the estimate reads, and why it does not read others.

    `dropped` is reason -> number of prompts. `loss` is the steering loss of the adapter, in nats.
    """

    used: int
    dropped: dict[str, int] = {}
    loss: float | None = None


class Influence(FrozenModel):
    """Bucket x objective: effect of a little more, around the adapters that were trained last.

    `adapters` are digests. `without_rows` names buckets that have no row to estimate from. `tokens`
    passed through the model, each pass counted; none of them was trained on.
    """

    adapters: list[str] = Field(min_length=1)
    prompts: dict[str, SteeringPrompts]
    buckets: list[BucketInfluence]
    without_rows: list[tuple[str, str]] = []
    tokens: int = 0

    @property
    def unread(self) -> list[str]:
        """Objectives without an estimate: too few of their prompts have references that differ."""
        return [name for name, read in self.prompts.items() if read.loss is None]


def combine(estimates: list[Influence]) -> Influence:
    """One estimate of several adapters of the same mixture, from the same rows and prompts.

    The rows and prompts are the same, so their error stays; that of the adapters is averaged away:

        standard error^2 = mean of the estimates' squared errors + variance between them / number

    >>> one, other = Effect(value=1.0, standard_error=0.3), Effect(value=1.4, standard_error=0.3)
    >>> combined_effect([one, other])
    Effect(value=1.2, standard_error=0.360555128)
    """
    first = estimates[0]
    if len(estimates) == 1:
        return first
    buckets = []
    for number, bucket in enumerate(first.buckets):
        same = [estimate.buckets[number] for estimate in estimates]
        effects = {}
        for objective in bucket.effects:
            effects[objective] = combined_effect([one.effects[objective] for one in same])
        mean = combined_effect([one.mean for one in same])
        buckets.append(bucket.model_copy(update={"effects": effects, "mean": mean}))
    adapters = []
    for estimate in estimates:
        adapters += estimate.adapters
    prompts = {}
    for objective, read in first.prompts.items():
        losses = [loss for e in estimates if (loss := e.prompts[objective].loss) is not None]
        loss = math.fsum(losses) / len(losses) if losses else None
        prompts[objective] = read.model_copy(update={"loss": loss})
    together = {
        "adapters": adapters,
        "prompts": prompts,
        "buckets": buckets,
        "tokens": sum(estimate.tokens for estimate in estimates),
    }
    return first.model_copy(update=together)


def combined_effect(effects: list[Effect]) -> Effect:
    """The mean of several adapters' effects; see `combine`."""
    count = len(effects)
    mean = math.fsum(effect.value for effect in effects) / count
    sampling = math.fsum(effect.standard_error**2 for effect in effects) / count
    between = math.fsum((effect.value - mean) ** 2 for effect in effects) / (count - 1)
    error = math.sqrt(sampling + between / count)
    return Effect(value=round(mean, 9), standard_error=round(error, 9))
