"""An observation over the small pool: two objectives, two data sets of three buckets."""

import pytest

from agent.weights import proportions
from mosaic.core.types.evaluation import FailureProfile, Score, SliceProfile
from mosaic.core.types.influence import BucketInfluence, Effect, Influence, SteeringPrompts
from mosaic.core.types.plans import ActionPlan, Limits, ObjectiveSpec
from mosaic.core.types.runs import Calibration, Observation, Round, Trial, TrialSpec

MEANS = {"safety": (5.0, 3.0, 1.2), "over_refusal": (5.0, 4.0, 2.0)}


def score(mean, n=40):
    return Score(mean=mean, low=mean - 0.2, high=mean + 0.2, n_scored=n)


def profile(means=MEANS, reliability="high"):
    slices = [
        SliceProfile(
            objective=o, slice=b, score=score(m), failure_rate=(5 - m) / 4, reliability=reliability
        )
        for o, values in means.items()
        for b, m in zip("xyz", values, strict=True)
    ]
    return FailureProfile(round=0, slices=sorted(slices, key=lambda s: s.score.mean))


def influence(effects=(0.3, 0.1, -0.2), error=0.02):
    """Influence of the buckets of both data sets: three effects on every objective."""
    buckets = []
    for dataset in "ab":
        for bucket, value in zip("xyz", effects, strict=True):
            effect = Effect(value=value, standard_error=error)
            found = BucketInfluence(
                dataset=dataset,
                bucket=bucket,
                share=1 / 6,
                rows=20,
                tokens=400,
                effects=dict.fromkeys(MEANS, effect),
                mean=effect,
            )
            buckets.append(found)
    prompts = dict.fromkeys(MEANS, SteeringPrompts(used=40, loss=0.5))
    return Influence(adapters=["0" * 64], prompts=prompts, buckets=buckets)


@pytest.fixture
def trial():
    """Makes the trial of a plan, or of nothing, with what was measured."""

    def make(plan, scores, profile, **changes):
        spec = TrialSpec(plan=plan, base="base")
        return Trial(id=spec.id, spec=spec, scores=scores, profile=profile, **changes)

    return make


@pytest.fixture
def observe(small_pool, trial):
    stock = small_pool.stock(2)
    ratios, buckets = proportions(stock)
    static = ActionPlan(rationale="static", ratios=ratios, bucket_weights=buckets)
    scores = {o: {"selection": score(sum(m) / 3)} for o, m in MEANS.items()}

    def make(**changes):
        values = {
            "round": 1,
            "rounds": 5,
            "seed": 1,
            "objectives": [
                ObjectiveSpec(name="safety", datasets=["a"], target=4.5),
                ObjectiveSpec(name="over_refusal", datasets=["b"], target=4.5),
            ],
            "profile": profile(),
            "history": [
                Round(
                    round=0,
                    trials=[trial(None, scores, profile(dict.fromkeys(MEANS, (1.5,) * 3)))],
                    accepted=True,
                )
            ],
            "archive": [0],
            "calibration": Calibration(
                trials=[trial(static, scores, profile())], noise=dict.fromkeys(MEANS, 0.1)
            ),
            "proportions": ratios,
            "bucket_proportions": buckets,
            "stock": stock,
            "last_plan": static,
            "influence": influence(),
            "limits": Limits(min_quality=2),
            "budget_per_round": 400,
            "cost_per_round": 400,
            "budget_left": 4000,
        }
        return Observation(**{**values, **changes})

    return make
