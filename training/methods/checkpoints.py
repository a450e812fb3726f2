"""Checkpoints of a training: complete if they have a manifest, continued only by the same job."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from mosaic.core.types.runs import TrainJob

MANIFEST = "MANIFEST.json"


def write_manifest(checkpoint: Path, job: TrainJob) -> None:
    """Seal a checkpoint with its job and the digests of its files.

    The manifest is written last: a checkpoint without one was interrupted and is never loaded.
    """
    temporary = checkpoint / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(_contents(checkpoint, job)))
    temporary.rename(checkpoint / MANIFEST)


def last_checkpoint(job: TrainJob, work: Path) -> str | None:
    """The newest complete checkpoint of this very job under `work`, or None.

    Checkpoints that are incomplete, damaged or another job's are removed on the way. Only our own
    are loaded, and only after each file matched the manifest: transformers then reads them with
    `weights_only`.
    """
    found = sorted(work.glob("checkpoint-*"), key=_step, reverse=True)
    for checkpoint in found:
        if _is_complete(checkpoint, job):
            return str(checkpoint)
        shutil.rmtree(checkpoint)
    return None


def carry_over(job: TrainJob, source: Path, target: Path) -> int:
    """Link the newest complete checkpoint of a job from one folder into another; its step, or 0.

    Nothing in `source` is removed: somebody who was given up may still write there. What is linked
    is complete in `target` at once, or not there.
    """
    for checkpoint in sorted(source.glob("checkpoint-*"), key=_step, reverse=True):
        if not _is_complete(checkpoint, job):
            continue
        arrived = target / checkpoint.name
        if arrived.exists():
            return _step(checkpoint)
        target.mkdir(parents=True, exist_ok=True)
        incoming = target / f".{checkpoint.name}.tmp"
        shutil.rmtree(incoming, ignore_errors=True)
        try:
            shutil.copytree(checkpoint, incoming, copy_function=os.link)
        except (OSError, shutil.Error):  # its writer removed it meanwhile
            shutil.rmtree(incoming, ignore_errors=True)
            continue
        incoming.rename(arrived)
        return _step(checkpoint)
    return 0


def _step(checkpoint: Path) -> int:
    """The optimiser step in a checkpoint's name: 40 of `checkpoint-40`."""
    return int(checkpoint.name.rpartition("-")[2])


def _is_complete(checkpoint: Path, job: TrainJob) -> bool:
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        return bool(manifest == _contents(checkpoint, job))
    except (OSError, ValueError):
        return False


def _contents(checkpoint: Path, job: TrainJob) -> dict[str, object]:
    """What the manifest says: the job, and the SHA-256 of every file but the manifest itself."""
    files: dict[str, str] = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            relative = str(path.relative_to(checkpoint))
            files[relative] = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"job": job.content_digest, "files": files}
