"""Whether a gradient has something to say: steering losses of adapters, and what moves them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from agent.weights import normalize
from benchmarks.figures import Rows, figure
from benchmarks.world import World
from eval.rendering.tokenizer import load_tokenizer
from eval.steering_loss import contrasts, mean_loss

SEEDS = (1, 2, 3, 4)
MIXTURES = 30


def losses(world: World, adapter: str | None) -> dict[str, float]:
    """The steering loss of each objective with data, with an adapter or with the base."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = Path(world.config.base_model)
    tokenizer = load_tokenizer(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, world.adapter_folder(adapter))
    model.eval()
    found = {}
    with torch.inference_mode():
        for name, settings in world.config.objectives.items():
            if settings.datasets:
                prompts = world.context.evaluator.suites[name]["steering"].prompts
                made = contrasts(tokenizer, prompts)
                found[name] = float(mean_loss(model, made.usable))
    return found


def signal(
    world: World, ratios: Mapping[str, float], buckets: Mapping[str, Mapping[str, float]]
) -> Rows:
    """The loss follows the score over random mixtures; doubling a bucket moves it beyond noise."""
    return [*_follows(world, ratios, buckets), *_moves(world, ratios, buckets)]


def _follows(
    world: World, ratios: Mapping[str, float], buckets: Mapping[str, Mapping[str, float]]
) -> Rows:
    generator = np.random.default_rng(11)
    scores: dict[str, list[float]] = {}
    found: dict[str, list[float]] = {}
    for _ in range(MIXTURES):
        factors = np.exp(generator.standard_normal(len(ratios)))
        drawn = {n: r * float(f) for (n, r), f in zip(ratios.items(), factors, strict=True)}
        measured = world.measure(normalize(drawn), buckets, role="steering")
        for name, loss in losses(world, measured.adapter).items():
            scores.setdefault(name, []).append(measured.means[name])
            found.setdefault(name, []).append(loss)
    rows = []
    for name in found:
        rank = -float(spearmanr(found[name], scores[name]).statistic)
        what = f"rank correlation of steering loss and score, {name}"
        rows.append(figure(what, rank, "", at_least=0.8))
    return rows


def _moves(
    world: World, ratios: Mapping[str, float], buckets: Mapping[str, Mapping[str, float]]
) -> Rows:
    """The share of buckets of which twice as much moves some loss by three deviations of a seed."""
    before = [_of_seed(world, ratios, buckets, seed) for seed in SEEDS]
    moved, total = 0, 0
    for dataset, weights in buckets.items():
        for bucket in weights:
            share = ratios[dataset] * weights[bucket]
            other = _doubled(ratios, buckets, dataset, bucket, share)
            after = [_of_seed(world, *other, seed) for seed in SEEDS]
            total += 1
            moved += any(_beyond(before, after, name) for name in before[0])
    return [
        figure("buckets of which twice as much moves a loss", moved / total, "", at_least=1 / 3)
    ]


def _of_seed(
    world: World,
    ratios: Mapping[str, float],
    buckets: Mapping[str, Mapping[str, float]],
    seed: int,
) -> dict[str, float]:
    return losses(world, world.measure(ratios, buckets, seed=seed).adapter)


def _doubled(
    ratios: Mapping[str, float],
    buckets: Mapping[str, Mapping[str, float]],
    dataset: str,
    bucket: str,
    share: float,
) -> tuple[dict[str, float], dict[str, Mapping[str, float]]]:
    """The mixture in which one bucket has twice its share of all tokens, others what is left."""
    kept = (1 - 2 * share) / (1 - share)
    scaled = {name: ratio * kept for name, ratio in ratios.items()}
    own = dict(buckets[dataset])
    inside = {name: ratios[dataset] * weight * kept for name, weight in own.items()}
    inside[bucket] = 2 * share
    scaled[dataset] = sum(inside.values())
    return normalize(scaled), {**buckets, dataset: normalize(inside)}


def _beyond(
    before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]], name: str
) -> bool:
    """Whether a loss moved by more than three deviations of a seed, paired over seeds."""
    noise = statistics.stdev(one[name] for one in before)
    change = statistics.fmean(b[name] - a[name] for a, b in zip(before, after, strict=True))
    return abs(change) > 3 * noise
