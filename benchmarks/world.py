"""Mixtures measured on a laboratory outside of any run, by the same steps, and kept in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.pareto import hypervolume
from agent.weights import proportions
from mosaic.app.config import RunConfig
from mosaic.app.wiring import build_context, open_inputs, run_digests
from mosaic.core.journal import Journal
from mosaic.core.tables import FILE
from mosaic.core.types.data import Mixture
from mosaic.core.types.evaluation import Score
from mosaic.core.types.inputs import RunRecord
from tools.effects.curate import curate_step

UNLIMITED = 10**12


@dataclass(frozen=True)
class Measured:
    """Selection scores of one mixture: means per objective and per slice."""

    scores: dict[str, Score]
    slices: dict[str, list[float]]
    traded: tuple[str, ...]
    adapter: str | None = None

    @property
    def means(self) -> dict[str, float]:
        return {name: float(score.mean or 1.0) for name, score in self.scores.items()}

    @property
    def volume(self) -> float:
        """Of the objectives with data: a constraint has no axis."""
        return hypervolume([self.point])

    @property
    def point(self) -> list[float]:
        return [self.means[name] for name in self.traded]


class World:
    """One laboratory. What was measured once is read from its folder from then on."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        inputs = open_inputs(config)
        if not (folder / FILE).exists():
            record = RunRecord(run=config.json_data(), inputs=run_digests(config, inputs))
            Journal.create(folder, "world", record, UNLIMITED).close()
        journal = Journal.open(folder)
        journal.acquire()
        self.config = config
        self.context = build_context(config, folder, journal, inputs)
        self.stock = inputs.pool.stock(config.limits.min_quality)
        self.ratios, self.buckets = proportions(self.stock)

    def base(self, role: str = "selection") -> Measured:
        return self.evaluated(None, role)

    def adapter_folder(self, digest: str) -> Path:
        """Where an adapter that was measured lies."""
        return self.context.steps.store.path(digest)

    def measure(
        self,
        ratios: Mapping[str, float],
        buckets: Mapping[str, Mapping[str, float]],
        seed: int = 1,
        role: str = "selection",
        tokens: int | None = None,
    ) -> Measured:
        """Curate, train and evaluate one mixture of so many tokens, else as many as a round has."""
        mixture = Mixture(
            ratios=dict(ratios),
            bucket_weights={d: dict(w) for d, w in buckets.items()},
            budget=tokens or self.config.budget.tokens_per_round,
            seed=seed,
            min_quality=self.config.limits.min_quality,
        )
        steps, trainer = self.context.steps, self.context.trainer
        curated = curate_step(steps, self.context.pool, mixture)
        job = trainer.job(curated.training_set, seed)
        reserve = self.config.recipe.usage(curated.report.total.selected)
        return self.evaluated(trainer.train(steps, job, reserve).digest, role)

    def evaluated(self, adapter: str | None, role: str = "selection") -> Measured:
        """What an adapter scores, given by its digest; the base without one."""
        evaluation = self.context.evaluator.evaluate(self.context.steps, adapter, [role])
        slices: dict[str, list[float]] = {}
        for objective, items in evaluation.of_role(role).items():
            values: dict[str, list[float]] = {}
            for item in items:
                if item.score is not None and item.slice is not None:
                    values.setdefault(item.slice, []).append(item.score)
            slices[objective] = []
            for _, scores in sorted(values.items()):
                slices[objective].append(round(sum(scores) / len(scores), 2))
        means = {objective: roles[role] for objective, roles in evaluation.scores().items()}
        traded = tuple(name for name in means if self.config.objectives[name].datasets)
        return Measured(means, slices, traded, adapter)
