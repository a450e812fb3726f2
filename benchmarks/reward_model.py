"""How well one reward model tells the levels of answers that adapters gave which it never saw.

On the bundled laboratory. It learns from the judged answers of the base and of some adapters to
steering and practice prompts, and from the pool's qualities; it is asked about answers of other
adapters to selection prompts. Those adapters were trained on mixtures drawn apart.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.weights import normalize
from benchmarks.figures import Rows, figure
from benchmarks.world import World
from eval.calibration import balanced_accuracy, calibration_error
from eval.judges.reward_model import chat_of
from eval.rendering.render import plain_chat
from eval.reward_model import Probabilities, RewardModel
from eval.suite import Suite
from mosaic.app.config_file import load_config
from mosaic.app.wiring import open_inputs
from mosaic.core.types.data import JudgedAnswer, Message
from mosaic.core.types.runs import BASE, GREEDY, Sampling, TrainJob, Workplace
from prompts.levels import HIGHEST, wish
from training.data.pool import Pool
from training.methods.level_reward import read_scale, reward
from training.methods.reward_model import (
    JUDGED_ANSWERS,
    RewardModelRecipe,
    train,
)
from training.models.adapter import model_digest

FOLDER = Path("runs/reward_model")
# Nothing grades `lessons`: their qualities do not judge an answer.
POOL = {"guard": "safety", "benign": "over_refusal", "tasks": "instruction_following"}
LEARNED_FROM, UNSEEN = 2, 3
LEAST_ANSWERS = 30
RECIPE = RewardModelRecipe(
    learning_rate=2e-3,
    batch_size=16,
    epochs=2,
    lora_r=32,
    lora_alpha=32,
    weight_decay=0.0,
    max_length=512,
)


def reward_model(quick: bool) -> Rows:
    """Balanced accuracy and calibration error of each head; what repeating a wish earns."""
    world = World(load_config("lab"), FOLDER)
    mixtures = _mixtures(world, LEARNED_FROM + UNSEEN)
    learned = _answers(world, None, "steering", 0)
    for seed in range(1, LEARNED_FROM + 1):
        learned += _answers(world, mixtures[seed - 1], "steering", seed)
    unseen = []
    for seed in range(LEARNED_FROM + 1, LEARNED_FROM + UNSEEN + 1):
        unseen += _answers(world, mixtures[seed - 1], "selection", seed)
    inputs = open_inputs(world.config)
    recipe = RECIPE.model_copy(update={"epochs": 1}) if quick else RECIPE
    base = Path(world.config.base_model)
    with tempfile.TemporaryDirectory() as folder:
        answers = [*learned, *pool_answers(inputs.pool, POOL)]
        model, tokens = trained(base, answers, recipe, Path(folder))
        rows = [
            figure("judged answers of models to learn from", len(learned), "answers"),
            figure("pool rows to learn from", len(answers) - len(learned), "answers"),
            figure("tokens trained on", tokens, "tokens"),
        ]
        readings = [reading.probabilities for reading in model.read(_chats(unseen))]
        for head in model.card.heads:
            rows += _figures(head.objective, unseen, readings)
        rows += _repeating(model, unseen)
    return rows


def _mixtures(world: World, count: int) -> list[dict[str, float]]:
    """The pools' own proportions, each factor drawn log-normally."""
    generator = np.random.default_rng(5)
    mixtures = []
    for _ in range(count):
        factors = np.exp(generator.standard_normal(len(world.ratios)))
        drawn = {n: r * float(f) for (n, r), f in zip(world.ratios.items(), factors, strict=True)}
        mixtures.append(normalize(drawn))
    return mixtures


def _answers(
    world: World, mixture: Mapping[str, float] | None, role: str, seed: int
) -> list[JudgedAnswer]:
    """Judged answers of the base, or of an adapter of a mixture: greedy ones, and two drawn each.

    With the steering prompts come the practice prompts, judged under every objective they name.
    """
    adapter = None
    if mixture is not None:
        adapter = world.measure(mixture, world.buckets, seed=seed, role=role).adapter
    evaluator = world.context.evaluator
    suites = [(evaluator.suites[objective][role], [objective]) for objective in POOL.values()]
    if role == "steering":
        for name, suite in open_inputs(world.config).practice.items():
            suites.append((suite, [name, "instruction_following"]))
    found: list[JudgedAnswer] = []
    for sampling in (GREEDY, Sampling(n=2, temperature=1.0, seed=seed)):
        for suite, names in suites:
            found += _judged(world, adapter, suite, names, sampling)
    return found


def _judged(
    world: World, adapter: str | None, suite: Suite, names: Sequence[str], sampling: Sampling
) -> list[JudgedAnswer]:
    """An adapter's answers to a suite under these objectives; those without any score are left out."""
    evaluator, steps = world.context.evaluator, world.context.steps
    folder = world.adapter_folder(adapter) if adapter else None
    responses = evaluator.generator.generate(suite.prompts, folder, sampling)
    asked = [prompt for prompt in suite.prompts for _ in range(sampling.n)]
    judge = evaluator.judge.at(steps)
    levels: list[dict[str, int]] = [{} for _ in asked]
    for name in names:
        objective = evaluator.objectives[name]
        for own, judgment in zip(levels, judge.judge(objective, asked, responses), strict=True):
            score = objective.score({"id": judgment.id, **judgment.items}).score
            if score is not None:
                own[name] = int(score)
    made = []
    for number, own in enumerate(levels):
        if own:
            chat = chat_of(asked[number], responses[number])
            messages = [Message.model_validate(message) for message in chat]
            made.append(JudgedAnswer(id=f"{number}", messages=messages, levels=own))
    return made


def pool_answers(pool: Pool, objectives: Mapping[str, str]) -> list[JudgedAnswer]:
    """The rows of these data sets, their qualities as levels of the objective named beside each."""
    qualities = pool.column("quality")
    made = []
    for dataset, objective in objectives.items():
        for bucket in pool.buckets(dataset).values():
            places = np.arange(bucket.start, bucket.end)
            rows = pool.rows(places).to_pylist()
            for row, quality in zip(rows, qualities[places].tolist(), strict=True):
                messages = []
                for message in row["messages"]:
                    messages.append(Message(role=message["role"], content=message["content"]))
                levels = {objective: int(quality)}
                made.append(JudgedAnswer(id=row["id"], messages=messages, levels=levels))
    return made


def trained(
    base: Path, answers: Sequence[JudgedAnswer], recipe: RewardModelRecipe, folder: Path
) -> tuple[RewardModel, int]:
    """A reward model of these answers, and the tokens that it was trained on."""
    path = folder / "judged.jsonl"
    path.write_text("".join(json.dumps(answer.json_data()) + "\n" for answer in answers))
    job = TrainJob(
        recipe=recipe,
        inputs={BASE: model_digest(base), JUDGED_ANSWERS: "of this benchmark"},
        seed=1,
    )
    place = Workplace(
        paths={BASE: str(base), JUDGED_ANSWERS: str(path)},
        out=str(folder / "model"),
        work=str(folder / "work"),
    )
    result = train(job, place)
    return RewardModel(Path(result.adapter), base), result.tokens


def _chats(answers: Sequence[JudgedAnswer]) -> list[list[dict[str, str]]]:
    return [plain_chat(one.messages) for one in answers]


@dataclass(frozen=True)
class _Told:
    """True levels, the likeliest ones, and the probabilities of those."""

    true: list[int]
    said: list[int]
    confidence: list[float]


def _told(
    objective: str, answers: Sequence[JudgedAnswer], readings: Sequence[Probabilities]
) -> _Told:
    true, said, confidence = [], [], []
    for answer, probabilities in zip(answers, readings, strict=True):
        level = answer.levels.get(objective)
        if level is None or not probabilities:
            continue
        own = probabilities[objective]
        best = max(own, key=lambda one: own[one])
        true.append(level)
        said.append(best)
        confidence.append(own[best])
    return _Told(true, said, confidence)


def _figures(
    objective: str, answers: Sequence[JudgedAnswer], readings: Sequence[Probabilities]
) -> Rows:
    """Of one head: balanced accuracy, that of the commonest level, and the calibration error."""
    told = _told(objective, answers, readings)
    counts = {level: told.true.count(level) for level in sorted(set(told.true))}
    common = max(counts, key=lambda level: counts[level])
    accuracy = balanced_accuracy(told.true, told.said, LEAST_ANSWERS) or 0.0
    majority = balanced_accuracy(told.true, [common] * len(told.true), LEAST_ANSWERS) or 0.0
    right = [true == said for true, said in zip(told.true, told.said, strict=True)]
    error = calibration_error(told.confidence, right)
    shown = ", ".join(f"level {level}: {count}" for level, count in counts.items())
    rows = [
        figure(f"{objective}: unseen answers ({shown})", len(right), "answers", at_least=500),
        figure(f"{objective}: balanced accuracy", accuracy, "", at_least=0.85),
        figure(f"{objective}: the same of always saying {common}", majority, ""),
        figure(f"{objective}: accuracy", sum(right) / len(right), ""),
        figure(f"{objective}: calibration error", error, "", at_most=0.08),
    ]
    for level, count in counts.items():
        if count >= LEAST_ANSWERS:
            own = [said for true, said in zip(told.true, told.said, strict=True) if true == level]
            recall = own.count(level) / count
            rows.append(figure(f"  {objective}: recall of level {level}", recall, ""))
    return rows


def _repeating(model: RewardModel, answers: Sequence[JudgedAnswer]) -> Rows:
    """What the model alone would pay for a wish for level 5 behind an answer that has a lower one.

    In training such an answer earns least (`training.methods.rl.LevelReward`).
    """
    scale = read_scale(model.folder)
    rows: Rows = []
    for head in model.card.heads:
        low = [a for a in answers if a.levels.get(head.objective, HIGHEST) < HIGHEST]
        if HIGHEST not in head.classes or not low:
            continue
        wished = {head.objective: HIGHEST}
        plain = _chats(low)
        repeating = _chats(low)
        for chat in repeating:
            chat[-1]["content"] += f" {wish(wished)}"
        gains = []
        for before, after in zip(model.read(plain), model.read(repeating), strict=True):
            if before.probabilities and after.probabilities:
                gain = reward(after.probabilities, wished, scale)
                gains.append(gain - reward(before.probabilities, wished, scale))
        what = f"{head.objective}: reward that repeating the wish would gain"
        rows.append(figure(what, float(np.mean(gains)), "standard deviations"))
    return rows
