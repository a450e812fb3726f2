"""How often one prompt gives a pair of answers of which one is better under two objectives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from benchmarks.figures import Rows, figure
from benchmarks.world import World
from eval.suite import Suite
from mosaic.app.wiring import open_inputs
from mosaic.core.types.runs import Sampling

SAMPLING = Sampling(n=8, temperature=1.0, seed=1)


def pairs(world: World) -> Rows:
    """The practice prompts with such a pair, drawn from an adapter of the pools' proportions.

    A pair is strictly consistent if one answer scores higher than the other under both objectives.
    """
    adapter = world.measure(world.ratios, world.buckets).adapter
    rows: Rows = []
    for name, suite in sorted(open_inputs(world.config).practice.items()):
        share = consistent(_scores(world, suite, adapter))
        rows.append(figure(f"prompts of {name} with a consistent pair", share, "", at_least=0.2))
    return rows


def consistent(scores: Sequence[Sequence[tuple[float, ...]]]) -> float:
    """The share of prompts of which some two answers are ordered alike, strictly, by all scores.

    >>> consistent([[(5, 1), (1, 5)], [(5, 5), (1, 1)]])
    0.5
    """
    found = 0
    for answers in scores:
        found += any(
            all(left > right for left, right in zip(one, other, strict=True))
            for one, other in itertools.permutations(answers, 2)
        )
    return found / len(scores)


def _scores(world: World, suite: Suite, adapter: str | None) -> list[list[tuple[float, ...]]]:
    """For each prompt and each of its answers the score under each of its objectives.

    An answer that some objective cannot score is left out of the pairs.
    """
    evaluator, steps = world.context.evaluator, world.context.steps
    folder = world.adapter_folder(adapter) if adapter else None
    responses = evaluator.generator.generate(suite.prompts, folder, SAMPLING)
    asked = [prompt for prompt in suite.prompts for _ in range(SAMPLING.n)]
    judge = evaluator.judge.at(steps)
    columns = []
    for name in suite.prompts[0].objectives or ():
        objective = evaluator.objectives[name]
        judgments = judge.judge(objective, asked, responses)
        column = []
        for prompt, judgment in zip(asked, judgments, strict=True):
            scored = objective.score({"id": prompt.id, **judgment.items})
            column.append(scored.score)
        columns.append(column)
    found: list[list[tuple[float, ...]]] = []
    for start in range(0, len(asked), SAMPLING.n):
        rows = zip(*(column[start : start + SAMPLING.n] for column in columns), strict=True)
        whole = []
        for row in rows:
            known = tuple(score for score in row if score is not None)
            if len(known) == len(row):
                whole.append(known)
        found.append(whole)
    return found
