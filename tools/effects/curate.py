"""Curation as a step: a mixture and a pool become a filed training set."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.data import Mixture
from mosaic.core.types.events import CuratedEvent
from mosaic.core.types.records import Curate, Curated
from training.data.curate import curate, write_training_set
from training.data.pool import Pool


def curate_step(steps: Steps, pool: Pool, mixture: Mixture) -> Curated:
    """Select rows by the mixture and file them in training order.

    Raises UsageError if the mixture does not fit the pool.
    """

    def effect() -> Outcome[Curated]:
        selected = curate(pool, mixture)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "training_set.parquet"
            write_training_set(pool, selected, path)
            digest = steps.store.put_file(path)
        result = Curated(training_set=digest, report=selected.report)
        event = CuratedEvent(training_set=digest, total=selected.report.total)
        return Outcome(result, [event])

    return steps.run(Curate(pool=pool.digest, mixture=mixture), effect)
