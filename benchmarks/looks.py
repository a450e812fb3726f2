"""Cheap looks on a laboratory: how a look ranks mixtures, against training each of them in full.

Twelve mixtures are drawn around the pools' proportions, buckets included. A look of kind `experts`
adds up three adapters that were trained at the corners; one of kind `fraction` is trained on a
quarter of the tokens. Looks are measured on steering, full trainings on steering and on selection.
What was measured is kept under `runs/looks`, so that a second call goes on where the first ended.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from agent.fidelity import ExpertsConfig, FractionConfig, affine_weights, corners, groups
from agent.weights import Weights, normalize
from benchmarks.figures import Rows, figure
from benchmarks.labs import labs
from benchmarks.world import Measured, World
from mosaic.app.config_file import load_config
from training.models.combine import combine_adapters

MIXTURES = 12
# Standard deviations of log-ratios, of data sets and of the buckets within each.
SPREAD, BUCKET_SPREAD = 0.8, 0.5
SEED = 1


@dataclass(frozen=True)
class Looked:
    """A mixture in full and each look at it, on steering."""

    full: Measured
    looks: Mapping[str, Measured]


def looks(quick: bool) -> Rows:
    """Rank correlations and errors of both kinds of look, by objective and of the volume."""
    rows: Rows = []
    for lab, folder in labs(True).items():
        world = World(load_config(str(folder / "config.yaml")), Path("runs/looks") / lab)
        found = [_looked(world, mixture) for mixture in drawn(world, 4 if quick else MIXTURES)]
        selection = [world.evaluated(one.full.adapter).volume for one in found]
        for kind in found[0].looks:
            what = f"lab {lab}: look of kind {kind}"
            rows += _compared(what, kind, found)
            seen = [one.looks[kind].volume for one in found]
            what = f"{what}: its volume on steering and that of the training on selection"
            rows.append(figure(f"{what}, rank correlation", _ranks(selection, seen), ""))
    return rows


def drawn(world: World, count: int) -> list[Weights]:
    """Mixtures around the pools' proportions: log-ratios of data sets and of buckets are normal."""
    draws = np.random.default_rng(20261129)
    found = []
    for _ in range(count):
        ratios = _moved(world.ratios, SPREAD, draws)
        buckets = {d: _moved(each, BUCKET_SPREAD, draws) for d, each in world.buckets.items()}
        found.append(Weights(ratios, buckets))
    return found


def _moved(
    weights: Mapping[str, float], spread: float, draws: np.random.Generator
) -> dict[str, float]:
    moved = {name: weight * np.exp(spread * draws.normal()) for name, weight in weights.items()}
    return normalize(moved)


def _looked(world: World, mixture: Weights) -> Looked:
    tokens = world.config.budget.tokens_per_round
    full = world.measure(mixture.ratios, mixture.buckets, SEED, "steering")
    part = round(FractionConfig().fraction * tokens)
    made = {
        "experts": world.evaluated(_merged(world, mixture), "steering"),
        "fraction": world.measure(mixture.ratios, mixture.buckets, SEED, "steering", part),
    }
    return Looked(full, made)


def _merged(world: World, mixture: Weights) -> str:
    """Digest of the sum of the corners' adapters that stands for a mixture."""
    settings = world.context.settings
    grouped = groups(settings.objectives)
    tokens = round(ExpertsConfig().fraction * settings.tokens_per_round)
    points = corners(ExpertsConfig().corner, grouped, world.ratios)
    experts = []
    for ratios in points:
        digest = world.measure(ratios, world.buckets, SEED, "steering", tokens).adapter
        assert digest is not None
        experts.append(world.adapter_folder(digest))
    weights = affine_weights(mixture.ratios, points, grouped)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "adapter"
        combine_adapters(dict(zip(experts, weights, strict=True)), out)
        digest = world.context.steps.store.put_folder(out)
        shutil.rmtree(out, ignore_errors=True)
    return digest


def _compared(what: str, kind: str, found: Sequence[Looked]) -> Rows:
    """Looks against full trainings, both on steering."""
    rows: Rows = []
    for name in found[0].full.traded:
        full = [one.full.means[name] for one in found]
        look = [one.looks[kind].means[name] for one in found]
        spread = statistics.pstdev(full)
        rows.append(figure(f"{what}: {name}, spread of full trainings", spread, "points"))
        rows.append(figure(f"{what}: {name}, rank correlation", _ranks(full, look), ""))
        bias = statistics.fmean(np.subtract(look, full).tolist())
        error = float(np.std(np.subtract(look, full)))
        rows.append(figure(f"{what}: {name}, bias", bias, "points"))
        rows.append(figure(f"{what}: {name}, error without the bias", error, "points"))
    volumes = [one.looks[kind].volume for one in found]
    full = [one.full.volume for one in found]
    rows.append(figure(f"{what}: volume, rank correlation", _ranks(full, volumes), ""))
    return rows


def _ranks(full: Sequence[float], look: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 where either is the same everywhere."""
    if len(set(full)) < 2 or len(set(look)) < 2:
        return 0.0
    return float(spearmanr(full, look).statistic)
