"""Predicted against measured: what happens to the steering losses if a domain gets a little more.

The pools' own mixture is trained with several seeds, and once more for every domain and seed with
that domain's share of the tokens raised by `MORE` and all others lowered in proportion: the budget
stays. Influence is estimated around two of the first adapters. Compared are the changes of each
objective's steering loss, over all pairs of domain and objective.

    predicted change = -100 MORE (effect of the domain - mean effect of the others by their shares)

How well a perfect prediction could do with so few seeds, the noise ceiling, is the root of the
measured changes' reliability: 1 - mean squared error / variance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from agent.weights import Cell, cell_shares, normalize
from benchmarks.figures import Rows, figure
from benchmarks.world import World
from eval.steering_loss import contrasts, mean_loss
from mosaic.app.config_file import load_config
from mosaic.app.wiring import build_influence, open_inputs
from mosaic.core.types.data import Mixture
from mosaic.core.types.influence import Influence, combine
from mosaic.core.types.runs import Adapter
from tools.effects.curate import curate_step
from tools.effects.influence import InfluenceTool, TrainedAdapter, delivered_shares, trainable
from training.models.tokenizer import load_tokenizer

MORE = 0.1
FOLDER = Path("runs/influence")
# Name of a domain -> its buckets.
Domains = Mapping[str, list[Cell]]


@dataclass
class _Bench:
    """A laboratory whose mixtures are trained and read by their steering losses."""

    world: World
    tool: InfluenceTool

    @classmethod
    def open(cls) -> _Bench:
        config = load_config("lab", ["influence={}"])
        tool = build_influence(config, open_inputs(config))
        assert tool is not None
        return cls(World(config, FOLDER), tool)

    @property
    def objectives(self) -> list[str]:
        """Those that have data: a constraint may have no answers to tell apart."""
        return [objective.name for objective in self.world.context.settings.traded]

    @property
    def own(self) -> dict[Cell, float]:
        """Bucket -> its share in the pools' own mixture."""
        return cell_shares(self.world.ratios, self.world.buckets)

    def trained(self, shares: Mapping[Cell, float], seed: int) -> tuple[Adapter, dict[Cell, float]]:
        """The adapter of a mixture, and the shares that curation delivered."""
        world = self.world
        ratios: dict[str, float] = {}
        buckets: dict[str, dict[str, float]] = {}
        for (dataset, bucket), share in shares.items():
            ratios[dataset] = ratios.get(dataset, 0.0) + share
            buckets.setdefault(dataset, {})[bucket] = share
        mixture = Mixture(
            ratios=normalize(ratios),
            bucket_weights={d: normalize(weights) for d, weights in buckets.items()},
            budget=world.config.budget.tokens_per_round,
            seed=seed,
            min_quality=world.config.limits.min_quality,
        )
        context = world.context
        curated = curate_step(context.steps, context.pool, mixture)
        job = context.trainer.job(curated.training_set, seed)
        reserve = world.config.recipe.usage(curated.report.total.selected)
        adapter = context.trainer.train(context.steps, job, reserve)
        return adapter, delivered_shares(curated.report)

    def losses(self, adapter: Adapter) -> list[float]:
        """The steering loss of every objective that has data, in nats."""
        import torch

        folder = self.world.context.steps.store.path(adapter.digest)
        tokenizer = load_tokenizer(self.tool.base_model, self.tool.template)
        found = []
        with (
            trainable(self.tool.base_model, folder, self.world.config.recipe) as model,
            torch.no_grad(),
        ):
            model.eval()
            for objective in self.objectives:
                usable = contrasts(tokenizer, self.tool.suites[objective].prompts).usable
                found.append(float(mean_loss(model, usable)))
        return found

    def influence(self, adapters: list[tuple[Adapter, dict[Cell, float]]]) -> Influence:
        store = self.world.context.steps.store
        estimates = []
        for adapter, shares in adapters:
            trained = TrainedAdapter(adapter.digest, self.world.config.recipe, shares)
            folder = store.path(adapter.digest)
            estimates.append(self.tool.estimate_around(folder, trained, self.tool.given))
        return combine(estimates)


def influence_prediction(quick: bool) -> Rows:
    """Rank correlations by data set, and by bucket unless quick."""
    bench = _Bench.open()
    seeds = range(1, 3 if quick else 11)
    before = [bench.trained(bench.own, seed) for seed in seeds]
    influence = bench.influence(before[:2])
    losses = np.array([bench.losses(adapter) for adapter, _ in before])
    datasets: dict[str, list[Cell]] = {}
    buckets: dict[str, list[Cell]] = {}
    for cell in bench.own:
        datasets.setdefault(cell[0], []).append(cell)
        buckets[" ".join(cell)] = [cell]
    rows = []
    for objective, mean in zip(bench.objectives, losses.mean(axis=0), strict=True):
        rows.append(figure(f"steering loss of {objective} before", float(mean), "nats"))
    rows += _compared(bench, "data set", datasets, influence, losses, 0.7)
    if not quick:
        rows += _compared(bench, "bucket", buckets, influence, losses, 0.5)
    return rows


def _compared(
    bench: _Bench,
    what: str,
    domains: Domains,
    influence: Influence,
    before: np.ndarray,
    goal: float,
) -> Rows:
    """The noise ceiling, then the rank correlation, then each data set's changes."""
    measured, errors, predicted = [], [], []
    for members in domains.values():
        predicted.append(_predicted(bench, members, influence))
        after = []
        for seed in range(1, len(before) + 1):
            adapter, _ = bench.trained(_raised(bench.own, members), seed)
            after.append(bench.losses(adapter))
        # One seed selects and shuffles alike on both sides, so changes are paired.
        change = np.array(after) - before
        measured.append(change.mean(axis=0))
        errors.append(change.std(axis=0, ddof=1) / len(before) ** 0.5)
    found, noise, expected = np.array(measured), np.array(errors), np.array(predicted)
    reliability = max(0.0, 1 - float((noise**2).mean()) / float(found.var()))
    count = len(before)
    rows = [figure(f"by {what}, {count} seeds: noise ceiling", reliability**0.5, "correlation")]
    rank = float(spearmanr(expected.ravel(), found.ravel()).statistic)
    name = f"by {what}: rank correlation of predicted and measured changes"
    rows.append(figure(name, rank, "correlation", at_least=goal))
    for column, objective in enumerate(bench.objectives):
        alone = float(spearmanr(expected[:, column], found[:, column]).statistic)
        rows.append(figure(f"by {what}: the same for {objective} alone", alone, "correlation"))
    if what == "data set":
        for number, domain in enumerate(domains):
            for column, objective in enumerate(bench.objectives):
                told = f"{expected[number, column]:+.4f} predicted, +- {noise[number, column]:.4f}"
                label = f"loss of {objective} with more {domain} ({told})"
                rows.append(figure(label, float(found[number, column]), "nats"))
    return rows


def _raised(own: Mapping[Cell, float], members: list[Cell]) -> dict[Cell, float]:
    """The mixture with `MORE` of the tokens given to a domain's buckets, in their proportions."""
    share = sum(own[cell] for cell in members)
    raised = {}
    for cell, before in own.items():
        factor = (share + MORE) / share if cell in members else (1 - share - MORE) / (1 - share)
        raised[cell] = before * factor
    return raised


def _predicted(bench: _Bench, members: list[Cell], influence: Influence) -> list[float]:
    """The change of every objective's steering loss, in nats."""
    raised = _raised(bench.own, members)
    changes = []
    for objective in bench.objectives:
        fall = 0.0
        for found in influence.buckets:
            cell = (found.dataset, found.bucket)
            fall += 100 * (raised[cell] - bench.own[cell]) * found.effects[objective].value
        changes.append(-fall)
    return changes
