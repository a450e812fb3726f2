"""Is everything that a run stored still what was stored, and its pool what was built? Reads all, changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mosaic.core.errors import DamageError, UsageError
from mosaic.core.journal import FILE, Journal
from mosaic.core.store import FOLDER, Store
from training.data.pool import Pool

DIGEST = re.compile(r"[0-9a-f]{64}")
# Results that name artifacts of the store; other digests in the journal name inputs that live elsewhere.
ARTIFACTS = {
    "curate": ("training_set",),
    "train": ("digest",),
    "generate": ("responses",),
    "likelihood": ("responses",),
    "judge": ("responses", "judgments", "scored"),
    "observe": ("observation",),
    "plan": ("plan",),
    "approve": ("executes",),
}


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
        steps = [s for s in journal.steps() if s.state == "done" and s.result]
        named = {
            str(s.result[field]): f"{s.kind}, step {s.seq}"
            for s in steps
            for field in ARTIFACTS.get(s.kind, ())
            if s.result and s.result.get(field)
        }
        dropped = {d for s in steps if s.kind == "retain" and s.result for d in s.result["dropped"]}
        return _pool(journal.config) + _objects(folder, named.keys() - dropped, dropped, named)
    finally:
        journal.close()


def _pool(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Files of the run's pool that are not as they were built, where the folder still holds that pool."""
    path = Path(config.get("run", {}).get("pool", ""))
    try:
        pool = Pool.open(path)
    except UsageError:
        return []
    if pool.digest != config.get("inputs", {}).get("pool"):
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
