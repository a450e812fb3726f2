"""Is everything that a run stored still what was stored, and its pool what was built?

Reads all, changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from pathlib import Path

from agent.retention import dropped
from mosaic.core.errors import DamageError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import FOLDER, Store
from mosaic.core.tables import FILE
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.calls import FiledExchange, SentMessage
from mosaic.core.types.inputs import RunRecord
from mosaic.core.types.records import (
    MAKERS,
    AskPlanner,
    AskVerdict,
    ChargeCalls,
    CheckGold,
    RecordDecision,
    artifacts_of,
)
from training.data.pool import Pool

DIGEST = re.compile(r"[0-9a-f]{64}")


class Damage(FrozenModel):
    """Something that is not as it was written: the file or artifact, and what is wrong with it."""

    where: str
    what: str


def verify(folder: Path) -> list[Damage]:
    """What is broken in a run; an empty list is a sound run.

    Checks the journal's pages and rows, artifacts that are missing or altered, and the files of the
    run's pool. What interrupted writers left behind is not damage, and neither is a pool that is
    not at hand any more.
    """
    try:
        journal = Journal.open(folder)
    except DamageError as error:
        return [Damage(where=FILE, what=str(error))]
    try:
        found = [Damage(where=FILE, what=line) for line in journal.check()]
        if found:
            return found + _altered(Store(folder))
        makers = _makers(journal)
        deleted = dropped(journal)
        store = Store(folder)
        makers |= _messages(journal, store, deleted)
        needed = {digest: maker for digest, maker in makers.items() if digest not in deleted}
        return _pool(journal.recorded) + _missing(store, needed) + _altered(store)
    finally:
        journal.close()


def _makers(journal: Journal) -> dict[str, str]:
    """Artifact -> the step that made it. Other digests in the journal name inputs elsewhere."""
    named = {}
    for kind in MAKERS:
        for step in journal.steps(kind):
            for digest in artifacts_of(step.stored):
                named[digest] = f"{step.inputs.kind}, step {step.seq}"
    for decided in journal.steps(RecordDecision):
        for plan in decided.result.edited:
            named[plan.content_digest] = f"{decided.inputs.kind}, step {decided.seq}"
    return named


def _messages(journal: Journal, store: Store, deleted: Set[str]) -> dict[str, str]:
    """Message that was sent to a model -> the step that sent it, as far as they can be read."""
    named: dict[str, str] = {}
    for step in journal.steps(AskPlanner):
        maker = f"{step.inputs.kind}, step {step.seq}"
        named |= dict.fromkeys(_chain(store, step.result.sent), maker)
    for kind in (AskVerdict, CheckGold, ChargeCalls):
        for asked in journal.steps(kind):
            maker = f"{asked.inputs.kind}, step {asked.seq}"
            for digest in set(artifacts_of(asked.stored)) - deleted - named.keys():
                named[digest] = maker
                for first in _first_messages(store, digest):
                    named[first] = maker
    return named


def _chain(store: Store, digest: str) -> list[str]:
    """The artifacts of a request. It ends at one that cannot be read, which is named."""
    found = []
    at: str | None = digest or None
    while at:
        found.append(at)
        try:
            at = SentMessage.model_validate(store.get_json(at)).before
        except (DamageError, ValueError):
            break
    return found


def _first_messages(store: Store, digest: str) -> set[str]:
    """What the exchanges of a group begin with; nothing if the group cannot be read."""
    try:
        return {FiledExchange.model_validate(data).begins for data in store.get_json(digest)}
    except (DamageError, ValueError):
        return set()


def _pool(recorded: RunRecord) -> list[Damage]:
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
        return [Damage(where=str(path), what=str(error))]
    return []


def _present(store: Store) -> list[str]:
    """Digests of the artifacts that are there, in order."""
    return sorted(p.name for p in store.root.iterdir() if DIGEST.fullmatch(p.name))


def _missing(store: Store, needed: Mapping[str, str]) -> list[Damage]:
    """Artifacts that a step made and that are not there. `needed` is artifact -> its step."""
    gone = sorted(needed.keys() - set(_present(store)))
    return [_damage(digest, f"missing (made by {needed[digest]})") for digest in gone]


def _altered(store: Store) -> list[Damage]:
    """Artifacts whose content is not what their name says, or which cannot be read."""
    found = []
    for digest in _present(store):
        try:
            store.path(digest)
        except (DamageError, OSError) as error:
            found.append(_damage(digest, str(error)))
    return found


def _damage(digest: str, what: str) -> Damage:
    return Damage(where=f"{FOLDER}/{digest}", what=what)
