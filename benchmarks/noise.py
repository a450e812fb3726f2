"""How much of the difference between two rounds is luck: of the seed, of the prompts, of the judge.

The pools' own proportions are trained with several seeds, which decide the rows that are drawn and
the order and start of training, and measured on audit suites. With greedy answers a score is

    score of prompt p by the training with seed s = mean + seed_s + prompt_p + rest_sp

and the variances of the three follow from the mean squares of the table of seeds and prompts
(two-way analysis of variance, random effects). Two trainings of one mixture then differ in their
means over n prompts by luck alone with a variance of

    2 (seed + rest / n)              on the same prompts
    2 (seed + (prompt + rest) / n)   on other prompts of the same kind

The judge's share is that of scores that change when the same answers are judged again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Rows, figure
from benchmarks.world import World
from eval.scoring import judge_and_score
from mosaic.app.config_file import load_config
from mosaic.core.types.evaluation import Response, Scored

SEEDS = (1, 2, 3, 4, 5)
ROLE = "audit"


@dataclass(frozen=True)
class Parts:
    """Variances of the scores of one suite, over `prompts` prompts."""

    seed: float
    prompt: float
    rest: float
    prompts: int

    @property
    def same_prompts(self) -> float:
        """Standard deviation of the difference of two trainings' means, on the same prompts."""
        return float(np.sqrt(2 * (self.seed + self.rest / self.prompts)))

    @property
    def other_prompts(self) -> float:
        """The same where each training is measured on prompts of its own."""
        return float(np.sqrt(2 * (self.seed + (self.prompt + self.rest) / self.prompts)))


def parts(scores: NDArray[np.float64]) -> Parts:
    """Variance components of scores of shape (seeds, prompts), at least two of each.

    A component that comes out negative is 0.

    >>> parts(np.array([[1.0, 3.0], [2.0, 4.0]]))  # the second seed is one point better everywhere
    Parts(seed=0.5, prompt=2.0, rest=0.0, prompts=2)
    """
    seeds, prompts = scores.shape
    by_seed, by_prompt = scores.mean(axis=1), scores.mean(axis=0)
    left = scores - by_seed[:, None] - by_prompt[None, :] + scores.mean()
    rest = float((left**2).sum()) / ((seeds - 1) * (prompts - 1))
    seed = (prompts * float(by_seed.var(ddof=1)) - rest) / prompts
    prompt = (seeds * float(by_prompt.var(ddof=1)) - rest) / seeds
    return Parts(max(0.0, seed), max(0.0, prompt), rest, prompts)


def noise(quick: bool) -> Rows:
    """Standard deviations by objective: of seed, prompts and rest, and of a difference."""
    world = World(load_config("lab"), Path("runs") / "noise")
    seeds = SEEDS[:3] if quick else SEEDS
    adapters = [world.measure(world.ratios, world.buckets, seed, ROLE).adapter for seed in seeds]
    rows: Rows = []
    for name in world.config.objectives:
        measured = [_scored(world, adapter, name) for adapter in adapters]
        common = set.intersection(*(set(one) for one in measured))
        table = np.array([[one[id_] for id_ in sorted(common)] for one in measured])
        found = parts(table)
        for what in ("seed", "prompt", "rest"):
            spread = float(np.sqrt(getattr(found, what)))
            rows.append(figure(f"{name}: deviation of {what}", spread, "points"))
        what = f"{name}: deviation of a difference"
        rows.append(figure(f"{what}, same {found.prompts} prompts", found.same_prompts, "points"))
        rows.append(figure(f"{what}, other prompts", found.other_prompts, "points"))
        rows.append(
            figure(f"{name}: scores that change when judged again", _again(world, name), "share")
        )
    return rows


def _scored(world: World, adapter: str | None, name: str) -> dict[str, float]:
    """Prompt -> score, of those that could be scored."""
    evaluation = world.context.evaluator.evaluate(
        world.context.steps, adapter, [ROLE], names=[name]
    )
    return {one.id: one.score for one in evaluation.scored[name][ROLE] if one.score is not None}


def _again(world: World, name: str) -> float:
    """The share of the base's scores that another pass of the judge gives differently."""
    context = world.context
    objective, suite = context.evaluator.objectives[name], context.evaluator.suites[name][ROLE]
    if objective.evidence == "likelihood":
        return 0.0  # measured, not judged
    evaluation = context.evaluator.evaluate(context.steps, None, [ROLE], names=[name])
    files = evaluation.files[name][ROLE]
    lines = context.steps.store.get_json(files.responses)
    responses = [Response.model_validate(line) for line in lines]
    judge = context.evaluator.judge.at(context.steps)
    _, again = judge_and_score(objective, suite, responses, judge)
    first: list[Scored] = evaluation.scored[name][ROLE]
    changed = [one.score != two.score for one, two in zip(first, again, strict=True)]
    return sum(changed) / len(changed)
