"""Is everything that a run stored still what was stored, and its pool what was built? Reads all, changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from agent.retention import dropped_adapters
from mosaic.core.errors import DamageError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import FOLDER, Store
from mosaic.core.tables import FILE
from mosaic.core.types.records import (
    MAKERS,
    RecordDecision,
    artifacts_of,
)
from mosaic.core.types.runs import RunRecord
from training.data.pool import Pool

DIGEST = re.compile(r"[0-9a-f]{64}")


def verify(folder: Path) -> list[dict[str, Any]]:
    """What is broken, a `{"where", "what"}` each: journal pages and rows, artifacts that are missing or altered,
    files of its pool. Leftovers of interrupted writers are not damage, nor is a pool that is not at hand any more. An
    empty list is a sound run."""
    try:
        journal = Journal.open(folder)
    except DamageError as error:
        return [{"where": FILE, "what": str(error)}]
    try:
        found = [{"where": FILE, "what": line} for line in journal.check()]
        if found:
            return found + _objects(folder, set(), set())
        named = _named(journal)
        dropped = dropped_adapters(journal)
        needed = named.keys() - dropped
        return _pool(journal.recorded) + _objects(folder, needed, dropped, named)
    finally:
        journal.close()


def _named(journal: Journal) -> dict[str, str]:
    """Artifact -> which step made it. Other digests in the journal name inputs elsewhere."""
    named = {}
    for kind in MAKERS:
        for step in journal.steps(kind):
            for digest in artifacts_of(step.stored):
                named[digest] = f"{step.inputs.kind}, step {step.seq}"
    for decided in journal.steps(RecordDecision):
        for plan in decided.result.edited:
            named[plan.content_digest] = f"{decided.inputs.kind}, step {decided.seq}"
    return named


def _pool(recorded: RunRecord) -> list[dict[str, Any]]:
    """Files of the run's pool that are not as they were built, if that pool is still there."""
    path = Path(str(recorded.run.get("pool", "")))
    try:
        pool = Pool.open(path)
    except UsageError:
        return []
    if pool.digest != recorded.inputs.pool:
        return []
    try:
        pool.verify()
    except UsageError as error:
        return [{"where": str(path), "what": str(error)}]
    return []


def _objects(
    folder: Path, needed: set[str], dropped: set[str], named: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """Missing and altered artifacts."""
    store, found = Store(folder), []
    present = {p.name for p in store.root.iterdir() if DIGEST.fullmatch(p.name)}
    for digest in sorted(needed - present):
        found.append(
            {"where": f"{FOLDER}/{digest}", "what": f"missing (made by {(named or {})[digest]})"}
        )
    for digest in sorted(present):
        try:
            store.path(digest)
        except (DamageError, OSError) as error:
            found.append({"where": f"{FOLDER}/{digest}", "what": str(error)})
    return found
