"""Many small finished steps in one transaction of the journal.

For effects that are paid for elsewhere and safe to repeat (a verdict of a judge): the step around them carries the
intent, and a batch of thousands does not wait for the disk twice per item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mosaic.journal import Journal, _seal
from mosaic.types import canonical_json, digest_of

Item = tuple[dict[str, Any], dict[str, Any], float]


def key_of(kind: str, inputs: dict[str, Any]) -> str:
    """The key of a step, as the journal makes it."""
    return digest_of({"kind": kind, "inputs": inputs})


def record(journal: Journal, kind: str, items: Sequence[Item], round_: int) -> None:
    """Write `(inputs, result, seconds)` each as a done step of its own; a step that stands already is left alone."""
    with journal._transaction():
        number = journal._next("steps")
        for inputs, result, seconds in items:
            key = key_of(kind, inputs)
            row = (
                number, key, round_, kind, canonical_json(inputs), "done", canonical_json(result), seconds, journal.fence,
            )  # fmt: skip
            written = journal._db.execute(
                "insert or ignore into steps values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, _seal(row))
            )
            number += written.rowcount
