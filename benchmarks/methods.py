"""Methods at equal tokens on the laboratory: fine-tuning alone, preference pairs, a policy for wishes.

Every arm of a seed is charged the tokens of one round. Those with pairs spend SHARE of it on the
mixture, and go on from that one adapter with answers that were drawn once: the arms differ in which
two answers to a prompt make its pair, and a rewarded soup in that each objective ranks pairs for an
adapter of its own, whose updates are averaged. Only prompts that give a pair under every rule are
used, so that all have the same prompts and as many pairs. The policy spends its round as
`examples/levels.yaml` does. Scores are those of the audit suites, which nothing was tuned on: the
rates were chosen on selection with other seeds (docs/preferences.md).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from benchmarks.figures import Rows, compared, figure
from benchmarks.levels import EXAMPLE, trained
from benchmarks.world import World
from mosaic.app.config_file import load_config
from mosaic.core.types.evaluation import Prompt
from mosaic.core.types.runs import PAIRS, DpoRecipe
from mosaic.core.types.spending import Usage
from tools.effects.preference_pairs import PairTool
from training.methods.preference_rows import PreferenceRow, conversation, read_pairs, write_pairs
from training.models.chat_template import tokenise
from training.models.combine import combine_adapters
from training.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARE = 0.6
SEEDS = (1, 2, 3, 4, 5)
RECIPE = (
    "methods.dpo.learning_rate=3.0e-4",
    "methods.dpo.batch_size=4",
    "methods.dpo.epochs=4",
    "methods.dpo.beta=0.1",
    "methods.dpo.sft_weight=1.0",
)
OWN, INSTRUCTIONS = "ranked by the folder's own objective", "ranked by instruction following"
AGREEING, WEIGHTED = "reward consistency", "ranked by the mean"
BEFORE, GIVEN = "before the pairs", "pairs of given answers, one known to be better"
SOUP, POLICY = "rewarded soup", "one policy for stated wishes, asked for 5"
# Selected tokens of a round: the laboratory's, and those from which levels can be learnt.
SMALL, LARGE = 12_000, 110_000


@dataclass(frozen=True)
class Arm:
    """One way of spending a round's tokens with one seed: audit means by objective."""

    name: str
    seed: int
    means: dict[str, float]


def open_world(folder: Path, overrides: Sequence[str] = RECIPE) -> World:
    shares = (f"method_shares.sft={SHARE}", f"method_shares.dpo={1 - SHARE:.6g}")
    return World(load_config("lab", [*overrides, *shares]), folder)


def arms(
    world: World, seed: int, role: str = "audit", tokens: int | None = None
) -> tuple[list[Arm], dict[str, int]]:
    """All arms of a seed, and how many prompts were drawn and pairs taken.

    `tokens` is what drawing and training on pairs may take, by default the rest of a round.
    """
    context, steps = world.context, world.context.steps
    recipe = context.settings.stages["dpo"]
    assert isinstance(recipe, DpoRecipe)
    assert context.practice is not None
    selected = context.settings.tokens_per_round

    def measured(name: str, adapter: str | None) -> Arm:
        return Arm(name, seed, {n: world.evaluated(adapter, role).means[n] for n in traded})

    traded = [objective.name for objective in context.settings.traded]
    whole = world.measure(world.ratios, world.buckets, seed, role)
    part = world.measure(world.ratios, world.buckets, seed, role, round(SHARE * selected))
    found = [
        Arm("all tokens to the mixture", seed, {n: whole.means[n] for n in traded}),
        Arm(BEFORE, seed, {n: part.means[n] for n in traded}),
    ]
    if tokens is None:
        tokens = round((1 - SHARE) * context.settings.cost_per_round)
    pairing = PairTool(context.practice)
    batches = pairing.draw(steps, part.adapter, recipe, tokens, {}, seed)
    rules = {
        AGREEING: [recipe],
        OWN: [_ranked(recipe, name) for name in ("safety", "over_refusal")],
        INSTRUCTIONS: [_ranked(recipe, "instruction_following")],
        WEIGHTED: [recipe.model_copy(update={"rule": "weighted"})],
    }
    pairs: dict[str, dict[str, PreferenceRow]] = {}
    ranked: dict[str, dict[str, PreferenceRow]] = {}
    for name, recipes in rules.items():
        pairs[name] = {}
        for each in recipes:
            filed = pairing.form(steps, batches, each, tokens)
            rows = {row.id: row for row in read_pairs(steps.store.path(filed.pairs))}
            pairs[name] |= rows
            if each.objective is not None:
                ranked[each.objective] = rows
    shared = sorted(set.intersection(*(set(rows) for rows in pairs.values())))
    for name, rows in pairs.items():
        adapter = _trained(world, recipe, [rows[i] for i in shared], seed, part.adapter)
        found.append(measured(name, adapter))
    found.append(measured(SOUP, _soup(world, recipe, ranked, shared, seed, part.adapter)))
    prompts = sum(len(batch.prompts) for batch in batches)
    return found, {"prompts": prompts, "agreeing": len(pairs[AGREEING]), "pairs": len(shared)}


def _ranked(recipe: DpoRecipe, objective: str) -> DpoRecipe:
    return recipe.model_copy(update={"rule": "objective", "objective": objective})


def _trained(
    world: World,
    recipe: DpoRecipe,
    rows: Sequence[PreferenceRow],
    seed: int,
    start: str | None,
) -> str:
    """Digest of the adapter that some pairs make of another."""
    steps, trainer = world.context.steps, world.context.trainer
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.parquet"
        write_pairs(rows, path)
        digest = steps.store.put_file(path)
    job = trainer.stage_job(recipe, {PAIRS: digest}, seed, start)
    most = Usage(trained=recipe.epochs * sum(row.tokens for row in rows))
    return trainer.train(steps, job, most).digest


def _soup(
    world: World,
    recipe: DpoRecipe,
    ranked: Mapping[str, Mapping[str, PreferenceRow]],
    shared: Sequence[str],
    seed: int,
    start: str | None,
) -> str:
    """Digest of the average of one adapter per objective, each trained on pairs ranked by it alone.

    Each prompt goes to one of its objectives, by turns, so that all of them together see as many
    pairs as another arm.
    """
    own: dict[str, list[PreferenceRow]] = {name: [] for name in ranked}
    for turn, prompt in enumerate(shared):
        able = [name for name, rows in ranked.items() if prompt in rows]
        name = able[turn % len(able)]
        own[name].append(ranked[name][prompt])
    adapters = [_trained(world, recipe, rows, seed, start) for rows in own.values() if rows]
    store = world.context.steps.store
    weights = {store.path(digest): 1 / len(adapters) for digest in adapters}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "adapter"
        combine_adapters(weights, out)
        return store.put_folder(out)


def given(world: World, seed: int, role: str = "audit") -> Arm:
    """What pairs of the good and bad reference answers of the steering suites make of an adapter.

    The case with a known answer: if pairs move anything, these move every objective. They cost more
    than a round pays for, so they are not compared at equal tokens.
    """
    context = world.context
    recipe = context.settings.stages["dpo"]
    assert isinstance(recipe, DpoRecipe)
    part = round(SHARE * context.settings.tokens_per_round)
    start = world.measure(world.ratios, world.buckets, seed, role, part).adapter
    prompts = []
    for objective in context.settings.traded:
        prompts += context.evaluator.suites[objective.name]["steering"].prompts
    rows = given_pairs(prompts, load_tokenizer(Path(world.config.base_model)))
    means = world.evaluated(_trained(world, recipe, rows, seed, start), role).means
    names = [objective.name for objective in context.settings.traded]
    return Arm(GIVEN, seed, {name: means[name] for name in names})


def given_pairs(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase
) -> list[PreferenceRow]:
    """One pair for each prompt with reference answers: they differ in the last turn alone."""
    rows = []
    for prompt in prompts:
        if not prompt.good or not prompt.bad:
            continue
        asked, better = conversation(prompt, prompt.good)
        _, worse = conversation(prompt, [*prompt.good[:-1], prompt.bad[-1]])
        (chosen, rejected), _ = tokenise(tokenizer, [[*asked, *better], [*asked, *worse]])
        row = PreferenceRow(
            id=prompt.id,
            slice=prompt.slice,
            prompt=asked,
            chosen=better,
            rejected=worse,
            chosen_tokens=len(chosen),
            rejected_tokens=len(rejected),
            gap=0.0,
        )
        rows.append(row)
    return rows


def policy(world: World, seed: int) -> Arm:
    """A round's tokens spent on judged answers, a reward model and a policy that is told a wish."""
    stage, warm = trained(world, seed)
    assert stage.levels is not None
    adapter = stage.adapter.digest if stage.adapter else warm
    context = world.context
    evaluation = context.evaluator.evaluate(context.steps, adapter, ["audit"], stage.levels.wish)
    scores = evaluation.scores()
    names = [objective.name for objective in context.settings.traded]
    return Arm(POLICY, seed, {name: float(scores[name]["audit"].mean or 1.0) for name in names})


def differences(found: Sequence[Arm], arm: str, other: str) -> dict[str, list[float]]:
    """By how much an arm is ahead of another, seed by seed: for each objective, and for the mean."""
    ahead: dict[str, list[float]] = {}
    for one in found:
        for two in found:
            if (one.name, two.name) != (arm, other) or one.seed != two.seed:
                continue
            each = {name: one.means[name] - two.means[name] for name in one.means}
            for name, value in {**each, "mean": fmean(each.values())}.items():
                ahead.setdefault(name, []).append(value)
    return ahead


def methods(quick: bool) -> Rows:
    """Audit means of each arm over the seeds, and reward consistency against the others.

    Of a round of the laboratory's size; and of a larger one, beside the policy, unless quick.
    """
    seeds = SEEDS[:1] if quick else SEEDS
    rows = _of_size(SMALL, seeds)
    return rows if quick else [*rows, *_of_size(LARGE, seeds)]


def _of_size(size: int, seeds: Sequence[int]) -> Rows:
    budget = f"budget.tokens_per_round={size}"
    world = open_world(Path("runs") / f"methods-{size}", [*RECIPE, budget])
    charged = world.context.settings.cost_per_round
    found: list[Arm] = []
    rows: Rows = []
    for seed in seeds:
        made, counts = arms(world, seed)
        found += made
        share = counts["agreeing"] / max(1, counts["prompts"])
        rows.append(figure(f"seed {seed}: prompts drawn", counts["prompts"], "prompts"))
        rows.append(figure(f"seed {seed}: with a consistent pair", share, "", at_least=0.2))
        rows.append(figure(f"seed {seed}: pairs in every arm", counts["pairs"], "pairs"))
    if size == SMALL:
        found += [given(world, seed) for seed in seeds]
    if size == LARGE:
        config = load_config(str(EXAMPLE), [budget])
        wishing = World(config, Path("runs") / "methods-levels")
        assert wishing.context.settings.cost_per_round == charged
        found += [policy(wishing, seed) for seed in seeds]
    names = list(dict.fromkeys(arm.name for arm in found))
    for name in names:
        means = [arm.means for arm in found if arm.name == name]
        for objective in means[0]:
            mean = fmean(each[objective] for each in means)
            rows.append(figure(f"{name}, audit: {objective}", mean, "of 5"))
    for other in names:
        if other in (AGREEING, GIVEN):
            continue
        for objective, values in differences(found, AGREEING, other).items():
            rows.append(compared(f"{AGREEING} less {other}: {objective}", values))
    return [{**row, "what": f"{charged:,} tokens: {row['what']}"} for row in rows]
