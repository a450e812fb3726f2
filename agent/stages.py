"""The stages of a trial after its mixture: each goes on from the adapter of the one before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.context import RunContext
from mosaic.core.errors import TrainingError
from mosaic.core.steps import Steps
from mosaic.core.types.evaluation import Score
from mosaic.core.types.preferences import PairReport
from mosaic.core.types.runs import (
    Adapter,
    DpoRecipe,
    Stage,
    StageSpec,
    TrainJob,
    TrialSpec,
    Usage,
)
from training.data.preferences import LOW_YIELD

# Trains a job, as often as the config allows.
Training = Callable[[TrainJob, Usage], Adapter]


@dataclass
class Progress:
    """Stages that are over, and the adapter of the last that trained one."""

    stages: list[Stage]
    adapter: Adapter | None = None

    @property
    def usage(self) -> Usage:
        total = Usage()
        for stage in self.stages:
            total = total + stage.usage
        return total


def run_stages(
    context: RunContext, steps: Steps, spec: TrialSpec, first: Stage | None, train: Training
) -> Progress:
    """Run the later stages of a trial; `first` is that of its mixture, None if it had none.

    Raises TrainingError if nothing was trained at all.
    """
    done = Progress([first] if first else [], first.adapter if first else None)
    for stage in spec.stages:
        _measure_last(context, steps, done)
        done.stages.append(_preference_stage(context, steps, spec, stage, done.adapter, train))
        done.adapter = done.stages[-1].adapter or done.adapter
    if done.adapter is None:
        notes = "; ".join(stage.note for stage in done.stages if stage.note)
        raise TrainingError(f"no stage trained anything: {notes or 'no tokens'}", "no_adapter")
    return done


def _measure_last(context: RunContext, steps: Steps, done: Progress) -> None:
    """Score the last stage's adapter on steering, if the config asks for it."""
    if not (context.settings.evaluate_stages and done.stages and done.stages[-1].adapter):
        return
    last = done.stages[-1]
    assert last.adapter is not None
    context.notify(f"round {steps.place.round}: evaluating the adapter after {last.method}")
    evaluation = context.evaluator.evaluate(steps, last.adapter.digest, ("steering",))
    scores: dict[str, Score] = {}
    for objective, roles in evaluation.scores().items():
        scores[objective] = roles["steering"]
    done.stages[-1] = last.model_copy(update={"steering": scores})


def _preference_stage(
    context: RunContext,
    steps: Steps,
    spec: TrialSpec,
    stage: StageSpec,
    adapter: Adapter | None,
    train: Training,
) -> Stage:
    """Draw answers from the model so far, pair them, and train on the pairs."""
    recipe = stage.recipe
    assert isinstance(recipe, DpoRecipe)
    assert spec.plan is not None
    assert context.practice is not None
    number = steps.place.round
    digest = adapter.digest if adapter else None
    context.notify(f"round {number}: {recipe.kind}: drawing and judging answers to practise on")
    weights = spec.plan.practice_weights
    filed = context.practice.gather(steps, digest, recipe, stage.tokens, weights, spec.seed)
    report = filed.report
    for line in warnings(report):
        context.notify(f"round {number}: {recipe.kind}: {line}")
    drawn = Stage(
        method=recipe.kind,
        tokens=stage.tokens,
        usage=Usage(sampled=report.sampled),
        pairs=report,
        pairs_file=filed.pairs,
    )
    if not report.pairs:
        note = f"{recipe.kind}: none of {report.prompts} practice prompts gave a pair"
        return drawn.model_copy(update={"note": note})
    context.notify(f"round {number}: {recipe.kind}: training on {report.pairs} pairs")
    job = context.trainer.pair_job(recipe, filed.pairs, spec.seed, digest)
    trained = train(job, Usage(trained=report.trained))
    usage = drawn.usage + Usage(trained=trained.tokens)
    return drawn.model_copy(update={"usage": usage, "adapter": trained})


def warnings(report: PairReport) -> list[str]:
    """What a person should know of the pairs of a stage."""
    lines = []
    if report.prompts == 0:
        lines.append("its tokens do not pay for the answers to a single practice prompt")
    elif report.share < LOW_YIELD:
        lines.append(
            f"only {report.pairs} of {report.prompts} practice prompts gave a pair: the objectives "
            "hardly ever agree on these answers, or they are all alike"
        )
    if report.cut:
        lines.append(
            f"{report.cut} of {report.answers} answers reached max_new_tokens and were left out"
        )
    if report.unscored:
        lines.append(f"{report.unscored} of {report.answers} answers could not be scored")
    for reason, count in report.unlearnable.items():
        lines.append(f"{count} answers cannot be learnt from: {reason}")
    return lines
