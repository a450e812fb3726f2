"""Landscapes without models: a public table of mixtures, and families that are drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from agent.weights import Cell
from benchmarks.drive import Means
from benchmarks.surface import Surface, Table, read_table
from mosaic.core.types.plans import ObjectiveSpec

# Three objectives over the table: the domains of each, which are buckets of one data set. A domain
# without a loss of its own is a bucket that no slice measures.
GROUPS = {
    "science": [
        "arxiv",
        "dm_mathematics",
        "nih_exporter",
        "philpapers",
        "pubmed_abstracts",
        "pubmed_central",
        "uspto_backgrounds",
    ],
    "code": ["github", "hackernews", "stackexchange", "ubuntu_irc"],
    "prose": ["enron_emails", "europarl", "freelaw", "gutenberg_pg_19", "pile_cc", "wikipedia_en"],
}
# Losses at these quantiles of the table are scored 1 and 5.
WORST, BEST = 0.9, 0.0
SCALE_TARGETS = 3.7
# Skew of the pools: the standard deviation of a bucket's log share, and how many rounds' tokens
# they hold together.
SKEW, POOL = 1.0, 20.0


class TableLandscape:
    """A table of losses as a landscape.

    `declared` is objective -> data sets; by default each objective names its own.
    """

    def __init__(
        self,
        table: Table,
        surface: Surface,
        groups: Mapping[str, Sequence[str]] = GROUPS,
        declared: Mapping[str, Sequence[str]] | None = None,
        target: float | None = SCALE_TARGETS,
    ) -> None:
        self._table, self._surface = table, surface
        self.groups = groups
        self._worst = np.quantile(table.losses, WORST, axis=0)
        self._best = np.quantile(table.losses, BEST, axis=0)
        names = declared or {name: [f"{name}_data"] for name in groups}
        self.objectives = [
            ObjectiveSpec(name=name, datasets=list(names[name]), target=target) for name in groups
        ]

    def pool(self, seed: int) -> dict[str, dict[str, float]]:
        draws = np.random.default_rng([seed, 7])
        tokens: dict[str, dict[str, float]] = {}
        for name, domains in self.groups.items():
            drawn = np.exp(SKEW * draws.standard_normal(len(domains)))
            tokens[f"{name}_data"] = dict(zip(domains, drawn.tolist(), strict=True))
        total = sum(sum(per.values()) for per in tokens.values())
        scaled = {}
        for dataset, per in tokens.items():
            scaled[dataset] = {bucket: POOL * amount / total for bucket, amount in per.items()}
        return scaled

    def means(self, shares: Mapping[Cell, float]) -> Means:
        found = {}
        scores = self._scores(shares)
        for name, domains in self.groups.items():
            for domain in domains:
                if domain in scores:
                    found[name, domain] = scores[domain]
        return found

    def _scores(self, shares: Mapping[Cell, float]) -> dict[str, float]:
        if not shares:
            return dict.fromkeys(self._table.targets, 1.0)
        row = np.zeros(len(self._table.domains))
        for (_, bucket), share in shares.items():
            row[self._table.domains.index(bucket)] += share
        losses = self._surface.predict(row[None])[0]
        scores = 1 + 4 * (self._worst - losses) / (self._worst - self._best)
        return dict(zip(self._table.targets, np.clip(scores, 1, 5).tolist(), strict=True))


def table_landscapes(folder: Path) -> dict[str, TableLandscape]:
    """The table declared rightly, and with two data sets declared for each other's objective."""
    table = read_table(folder)
    surface = Surface(table.shares, table.losses)
    wrong = {"science": ["code_data"], "code": ["science_data"], "prose": ["prose_data"]}
    return {
        "table": TableLandscape(table, surface),
        "table, wrong declarations": TableLandscape(table, surface, declared=wrong),
    }
