"""What `validate` says of methods that draw answers to practice prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from eval.judges.base import SuiteJudge
from eval.objectives.base import Malformed, Objective, by_code, labels_of
from mosaic.app.config import RunConfig
from mosaic.app.estimate import PracticeSize
from mosaic.app.shapes import Finding
from mosaic.app.training_plan import WARNING
from mosaic.app.wiring import Inputs, build_judge
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt
from mosaic.core.types.recipes import RlRecipe
from mosaic.core.types.runs import DpoRecipe
from tools.effects.practice import PracticePrompt, practice_prompts
from training.data.judged_rows import graded_doubts, graded_levels
from training.data.preferences import expected_pairs, opposed


def method_findings(config: RunConfig, inputs: Inputs) -> list[Finding]:
    """How methods share a round, and how often answers can be expected to agree."""
    if not config.later_recipes:
        return []
    prompts = practice_prompts(inputs.practice)
    shares = ", ".join(f"{method} {share:.0%}" for method, share in config.default_shares.items())
    result = f"{shares} of a round unless its plan says otherwise; {len(prompts)} practice prompts"
    opposing = opposed(practised.objectives for practised in prompts)
    if opposing:
        named = "; ".join(" and ".join(pair) for pair in opposing)
        result += f"; none of them is judged under both {named}"
    _check_scorable(config, inputs, prompts)
    findings = [Finding(check="methods", result=result)]
    declared = {name: objective.datasets for name, objective in config.objectives.items()}
    for recipe in config.later_recipes.values():
        if isinstance(recipe, RlRecipe) and recipe.graded:
            levels = graded_levels(inputs.pool, recipe.graded)
            for doubt in graded_doubts(recipe.graded, declared, levels):
                findings.append(Finding(check=WARNING, result=f"methods.rl.{doubt}"))
    most = max(len(practised.objectives) for practised in prompts)
    for method, recipe in config.later_recipes.items():
        if not isinstance(recipe, DpoRecipe) or recipe.rule != "consistent":
            continue
        expected = expected_pairs(recipe.n, most)
        if expected < 1:
            text = (
                f"methods.{method}.n: of {recipe.n} answers under {most} objectives that do not "
                f"depend on each other {expected:.2g} pairs agree; draw more"
            )
            findings.append(Finding(check=WARNING, result=text))
    return findings


def _check_scorable(config: RunConfig, inputs: Inputs, prompts: Sequence[PracticePrompt]) -> None:
    """Raise UsageError with the practice prompts that the judge could never score as they ask."""
    judge = build_judge(config)
    faults: dict[str, list[str]] = {}
    for practised in prompts:
        for name in practised.objectives:
            reason = _unscorable(judge, inputs.objectives[name], practised.prompt)
            if reason is not None:
                faults.setdefault(f"{name}: {reason}", []).append(practised.prompt.id)
    if faults:
        lines = [f"  {reason} ({len(ids)}, such as {ids[0]})" for reason, ids in faults.items()]
        raise UsageError(
            "practice prompts whose answers would be paid for and not scored; take the objective "
            "out of their `objectives`, or mend them:\n" + "\n".join(lines)
        )


def _unscorable(judge: SuiteJudge, objective: Objective, prompt: Prompt) -> str | None:
    """Why no answer to a prompt can be scored under an objective, or None.

    The prompt has the slice of its folder's objective; another one gives it a slice of its own.
    """
    try:
        slice_, weight, valid = labels_of(objective, prompt)
    except Malformed as error:
        return str(error)
    own = {"slice": slice_, "weight": weight, "valid": valid}
    return judge.unscorable(objective, prompt.model_copy(update=own))


def practice_sizes(
    config: RunConfig, inputs: Inputs, count: Callable[[str], int]
) -> list[PracticeSize]:
    """Sizes of the practice prompts that are drawn from; `count` gives the tokens of a text."""
    if not config.later_recipes:
        return []
    sizes = []
    for practised in practice_prompts(inputs.practice):
        prompt = practised.prompt
        tokens = sum(count(text) for text in [prompt.system or "", *prompt.turns])
        judged = sum(not by_code(inputs.objectives[name]) for name in practised.objectives)
        sizes.append(PracticeSize(len(prompt.turns), tokens, judged))
    return sizes
