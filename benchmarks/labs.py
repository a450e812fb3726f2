"""The laboratories that benchmarks measure on: the bundled one, and two with other seeds."""

from __future__ import annotations

import shutil
from pathlib import Path

from mosaic.lab.build import DATA, build

LABS = Path("runs/benchmark-labs")
OTHER_SEEDS = (101, 202)


def labs(quick: bool) -> dict[str, Path]:
    """The default laboratory and, unless quick, the others, which are built when first needed."""
    found = {"default": DATA}
    for seed in () if quick else OTHER_SEEDS:
        folder = LABS / str(seed)
        if not (folder / "manifest.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            build(folder, seed)
        found[str(seed)] = folder
    return found
