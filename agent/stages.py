"""The stages of a trial after its mixture: each goes on from the adapter of the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from agent.context import RunContext
from eval.reward_model import read_card
from mosaic.core.errors import TrainingError
from mosaic.core.steps import Steps
from mosaic.core.types.evaluation import Score
from mosaic.core.types.preferences import HeadReport, LevelReport, PairReport
from mosaic.core.types.recipes import RlRecipe, worst_case
from mosaic.core.types.runs import (
    JUDGED_ANSWERS,
    PAIRS,
    REWARD_MODEL,
    TRAINING_SET,
    WISHED_CHATS,
    Adapter,
    DpoRecipe,
    Stage,
    StageSpec,
    TrainJob,
    TrialSpec,
    wish_of,
)
from mosaic.core.types.spending import Usage
from prompts.levels import HIGHEST
from tools.effects.practice import PracticeTool
from tools.effects.preference_pairs import PairTool
from tools.effects.wishes import WishTool
from training.data.judged_rows import graded_doubts, graded_levels
from training.data.preferences import LOW_YIELD
from training.methods.level_reward import RewardScale, read_scale

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


@dataclass(frozen=True)
class _Task:
    """A later stage of a trial: what it may use, and the adapter of the stage before."""

    context: RunContext
    steps: Steps
    spec: TrialSpec
    stage: StageSpec
    adapter: Adapter | None
    train: Training

    @property
    def start(self) -> str | None:
        return self.adapter.digest if self.adapter else None

    @property
    def practice(self) -> PracticeTool:
        assert self.context.practice is not None
        return self.context.practice

    @property
    def weights(self) -> Mapping[str, float]:
        """Those of the plan's practice slices."""
        assert self.spec.plan is not None
        return self.spec.plan.practice_weights

    def say(self, text: str) -> None:
        self.context.notify(f"round {self.steps.place.round}: {self.stage.recipe.kind}: {text}")


def run_stages(
    context: RunContext, steps: Steps, spec: TrialSpec, first: Stage | None, train: Training
) -> Progress:
    """Run the later stages of a trial; `first` is that of its mixture, None if it had none.

    Raises TrainingError if nothing was trained at all.
    """
    done = Progress([first] if first else [], first.adapter if first else None)
    for stage in spec.stages:
        _measure_last(context, steps, done)
        task = _Task(context, steps, spec, stage, done.adapter, train)
        done.stages.append(LATER[type(stage.recipe)](task))
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
    wish = wish_of(done.stages)
    evaluation = context.evaluator.evaluate(steps, last.adapter.digest, ("steering",), wish)
    scores: dict[str, Score] = {}
    for objective, roles in evaluation.scores().items():
        scores[objective] = roles["steering"]
    done.stages[-1] = last.model_copy(update={"steering": scores})


def _preference_stage(task: _Task) -> Stage:
    """Draw answers from the model so far, pair them, and train on the pairs."""
    recipe, tokens, seed = task.stage.recipe, task.stage.tokens, task.spec.seed
    assert isinstance(recipe, DpoRecipe)
    task.say("drawing and judging answers to practise on")
    filed = PairTool(task.practice).gather(
        task.steps, task.start, recipe, tokens, task.weights, seed
    )
    report = filed.report
    for line in warnings(report):
        task.say(line)
    drawn = Stage(
        method=recipe.kind,
        tokens=tokens,
        usage=Usage(sampled=report.sampled),
        pairs=report,
        pairs_file=filed.pairs,
    )
    if not report.pairs:
        note = f"{recipe.kind}: none of {report.prompts} practice prompts gave a pair"
        return drawn.model_copy(update={"note": note})
    task.say(f"training on {report.pairs} pairs")
    job = task.context.trainer.stage_job(recipe, {PAIRS: filed.pairs}, seed, task.start)
    trained = task.train(job, Usage(trained=report.trained))
    usage = drawn.usage + Usage(trained=trained.tokens)
    return drawn.model_copy(update={"usage": usage, "adapter": trained})


def _level_stage(task: _Task) -> Stage:
    """Judge answers, train a reward model on them, and a policy for levels that prompts ask for."""
    context, steps, stage, train = task.context, task.steps, task.stage, task.train
    recipe, seed = stage.recipe, task.spec.seed
    assert isinstance(recipe, RlRecipe)
    tool = WishTool(task.practice, context.pool, recipe.graded)
    task.say("drawing and judging answers to practise on")
    tokens, start = int(recipe.judged_share * stage.tokens), task.start
    batches = tool.draw(steps, start, recipe, tokens, task.weights, seed)
    judged = tool.judged(steps, batches, recipe, tokens, seed)
    usage = Usage(sampled=judged.report.sampled)
    declared = {o.name: o.datasets for o in context.settings.objectives}
    levels = graded_levels(context.pool, recipe.graded)
    doubts = graded_doubts(recipe.graded, declared, levels)
    for line in doubts:
        task.say(line)
    done = Stage(
        method=recipe.kind,
        tokens=stage.tokens,
        usage=usage,
        levels=LevelReport(judged=judged.report, doubts=doubts),
    )
    if not judged.report.prompts:
        return _ended(done, "its tokens do not pay for the answers to a single practice prompt")
    if not judged.report.levels:
        return _ended(done, "none of the answers could be judged and learnt from")

    task.say("training a reward model")
    data = {JUDGED_ANSWERS: judged.answers}
    job = context.trainer.stage_job(recipe.reward_model, data, seed)
    try:
        model = train(job, Usage(trained=tokens - usage.cost))
    except TrainingError as error:
        if error.failure != "no_heads":
            raise
        return _ended(done, str(error))
    card = read_card(steps.store.path(model.digest))
    usage = usage + model.usage
    classes = {head.objective: head.classes for head in card.heads}
    heads = [HeadReport.model_validate(head.model_dump(include=HEAD)) for head in card.heads]
    flat = flat_levels(read_scale(steps.store.path(model.digest)))
    for line in flat:
        task.say(line)
    report = LevelReport(
        judged=judged.report,
        doubts=[*doubts, *flat],
        heads=heads,
        left_out=card.left_out,
        reward_model=model.tokens,
        wish=wish_within(recipe.wish, classes),
    )
    done = done.model_copy(update={"usage": usage, "reward_model": model.digest, "levels": report})

    left = stage.tokens - usage.cost
    warm = min(left, int(recipe.warm_share * stage.tokens))
    filed = tool.wishes(steps, batches, judged.answers, recipe, classes, warm, left, seed)
    if filed.warm is not None:
        task.say(f"fine-tuning on {filed.rows} answers below their levels")
        job = context.trainer.stage_job(recipe.warm, {TRAINING_SET: filed.warm}, seed, start)
        adapter = train(job, recipe.warm.usage(filed.tokens))
        usage, start = usage + adapter.usage, adapter.digest
        report = report.model_copy(update={"warm_rows": filed.rows, "warm": adapter.tokens})
        done = done.model_copy(update={"usage": usage, "adapter": adapter, "levels": report})
    chats = len(filed.prompts)
    if filed.chats is None or chats < recipe.prompts_per_step:
        return _ended(done, f"its tokens pay for {chats} prompts, which do not fill one step")
    task.say(f"rewarding answers to {chats} prompts")
    data = {WISHED_CHATS: filed.chats, REWARD_MODEL: model.digest}
    job = context.trainer.stage_job(recipe, data, seed, start)
    policy = train(job, worst_case(recipe, filed.prompts))
    update = {"chats": chats, "policy": policy.tokens, "policy_sampled": policy.sampled}
    return done.model_copy(
        update={
            "usage": usage + policy.usage,
            "adapter": policy,
            "levels": report.model_copy(update=update),
        }
    )


def flat_levels(scale: RewardScale) -> list[str]:
    """The levels that earn nothing since no answer was likelier to have them; a sentence each."""
    return [
        f"level {level} of {objective} has one probability for all {scale.answers[objective]:,} "
        "reference answers: prompts that ask for it earn no reward for it"
        for objective, level in scale.flat()
    ]


def wish_within(wished: Mapping[str, int], classes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The nearest level that can be asked for of each objective, the higher one of two as near.

    >>> wish_within({"care": 2}, {"care": [1, 3], "brevity": [1, 2, 4]})
    {'care': 3, 'brevity': 4}
    """
    found = {}
    for name, levels in classes.items():
        level = wished.get(name, HIGHEST)
        found[name] = min(levels, key=lambda one: (abs(one - level), -one))
    return found


def _ended(stage: Stage, note: str) -> Stage:
    """A stage that went no further, and why."""
    return stage.model_copy(update={"note": f"{stage.method}: {note}"})


LATER = {DpoRecipe: _preference_stage, RlRecipe: _level_stage}
# What of a head's card is reported.
HEAD = {"objective", "classes", "held_out", "balanced_accuracy", "calibration_error"}


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
