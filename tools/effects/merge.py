"""Adding adapters up as a step: filed adapters become one that nothing trained."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.look_records import AdapterMerged, MergeAdapters
from training.models.combine import combine_adapters

WORK = "work"


def merge_step(steps: Steps, adapters: Mapping[str, float]) -> str:
    """Digest of the sum of filed adapters, digest -> weight. It costs no training tokens."""
    inputs = MergeAdapters(adapters=dict(adapters))
    work = steps.journal.folder / WORK / inputs.key[:16]

    def effect() -> Outcome[AdapterMerged]:
        shutil.rmtree(work, ignore_errors=True)
        parts = {steps.store.path(digest): weight for digest, weight in adapters.items()}
        combine_adapters(parts, work)
        return Outcome(AdapterMerged(adapter=steps.store.put_folder(work)))

    digest = steps.run(inputs, effect).adapter
    shutil.rmtree(work, ignore_errors=True)
    return digest
