"""Is a journal's file what was written? The check that `verify` prints and that every start makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mosaic.core.errors import DamageError
from mosaic.core.tables import COLUMNS, FILE, checksum

if TYPE_CHECKING:
    from mosaic.core.journal import Journal


def problems(journal: Journal) -> list[str]:
    """What is broken in the file of a journal, a line each.

    SQLite's own check of the pages, every row of every table against its digest, the ledger
    against its reservations.
    """
    pages = journal.damaged_pages()
    if pages:
        return [f"{FILE}: {line}" for line in pages]
    found: list[str] = []
    for table in COLUMNS:
        found += _damaged_rows(journal, table)
    return found or _unsettled(journal)


def _damaged_rows(journal: Journal, table: str) -> list[str]:
    found = []
    try:
        for row, stored in journal.stored(table):
            if checksum(row) != stored:
                found.append(f"{FILE}: {table} row {row[0]!r} does not match its digest")
    except DamageError as error:
        found.append(f"{FILE}: {table}: {error}")
    return found


def _unsettled(journal: Journal) -> list[str]:
    """A ledger that holds other tokens than its reservations say."""
    _, held, _ = journal.ledger()
    reserved = journal.reserved()
    if held == reserved:
        return []
    return [f"{FILE}: the ledger holds {held} tokens, its reservations sum to {reserved}"]
