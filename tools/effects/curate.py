"""Curation as a step: a mixture and a pool become a filed training set."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.data import CurationReport, Mixture
from training.data.curate import curate, write_training_set
from training.data.pool import Pool


@dataclass(frozen=True)
class TrainingSet:
    """A filed training set: digest of its Parquet file, asked against delivered."""

    digest: str
    report: CurationReport


def curate_step(steps: Steps, pool: Pool, mixture: Mixture) -> TrainingSet:
    """Select rows by the mixture and file them in training order. UsageError where the mixture does not fit the pool."""

    def effect() -> Outcome:
        curated = curate(pool, mixture)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "training_set.parquet"
            write_training_set(pool, curated, path)
            digest = steps.store.put_file(path)
        report = curated.report.json_data()
        event = {"training_set": digest, "total": report["total"]}
        return Outcome({"training_set": digest, "report": report}, [("curated", event)])

    done = steps.run("curate", {"pool": pool.digest, "mixture": mixture.json_data()}, effect)
    assert done.result is not None
    return TrainingSet(
        done.result["training_set"], CurationReport.model_validate(done.result["report"])
    )
