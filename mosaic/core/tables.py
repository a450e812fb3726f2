"""The file of a journal: its tables, the digest of a row, and what SQLite's refusals mean."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from mosaic.core.errors import HeldError, MosaicError, PausedError, UsageError
from mosaic.core.lock import other_holder

VERSION = 4
FILE = "journal.sqlite"
UNFINISHED = f".{FILE}."
WAIT = 30  # seconds for another process to finish what it writes
MILLION = 1024 * 1024

SCHEMA = """
create table meta (name text primary key, value text not null, checksum text not null);
create table steps (
  seq integer primary key, key text not null unique, round integer not null, trial text not null,
  kind text not null, inputs text not null,
  state text not null check (state in ('intent', 'done', 'failed')),
  result text, seconds real, fence integer not null, checksum text not null);
create index steps_by_kind on steps (kind, seq);
create index steps_by_round on steps (round, state, kind, trial, seconds);
create table events (
  seq integer primary key, id text not null unique, round integer not null, trial text not null,
  kind text not null, payload text not null, at real not null, checksum text not null);
create index events_by_round on events (round, seq);
create index events_by_kind on events (kind, seq);
create table ledger (
  id integer primary key check (id = 0), cap integer not null, held integer not null,
  spent integer not null, checksum text not null,
  check (held >= 0 and spent >= 0 and held + spent <= cap));
create table holds (key text primary key, amount integer not null, checksum text not null);
create table calls (
  who text primary key, answers integer not null, requests integer not null,
  tokens integer not null, cached integer not null, checksum text not null);
create table decisions (
  seq integer primary key, run text not null, round integer not null, request text not null,
  payload text not null, checksum text not null, unique (run, round, request));
"""
COLUMNS = {
    "meta": "name, value",
    "steps": "seq, key, round, trial, kind, inputs, state, result, seconds, fence",
    "events": "seq, id, round, trial, kind, payload, at",
    "ledger": "id, cap, held, spent",
    "holds": "key, amount",
    "calls": "who, answers, requests, tokens, cached",
    "decisions": "seq, run, round, request, payload",
}


def checksum(values: Sequence[object]) -> str:
    """SHA-256 of a row's columns.

    A damaged row may hold bytes where text was: they give another checksum.
    """
    text = json.dumps(list(values), ensure_ascii=False, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def connect(path: Path) -> sqlite3.Connection:
    """A connection in rollback mode with a flush per transaction, for threads that take turns.

    SQLite's own check for a connection that threads share is off: it does not know of the turns.
    """
    db = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
    db.execute("pragma journal_mode=delete")
    db.execute("pragma synchronous=full")
    db.execute("pragma foreign_keys=on")
    return db


def make_file(folder: Path, meta: Mapping[str, str], cap: int) -> None:
    """Make a journal without steps: its meta values, and a budget of `cap` tokens.

    The file appears whole or not at all. Raises UsageError if the folder has a journal already.
    """
    path = folder / FILE
    taken = f"{path} exists already; continue it with `python -m mosaic resume {folder}`"
    if path.exists():
        raise UsageError(taken)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{UNFINISHED}{os.getpid()}"
    temporary.unlink(missing_ok=True)
    try:
        with closing(connect(temporary)) as db:
            _fill(db, meta, cap)
        os.link(temporary, path)  # unlike a rename, never over a faster process's journal
    except FileExistsError:
        raise UsageError(taken) from None
    except sqlite3.OperationalError as error:
        raise expected_failure(folder, error) or error from error
    finally:
        temporary.unlink(missing_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _fill(db: sqlite3.Connection, meta: Mapping[str, str], cap: int) -> None:
    db.executescript(SCHEMA)
    db.execute("begin")
    rows = [(name, value, checksum([name, value])) for name, value in meta.items()]
    db.executemany("insert into meta values (?, ?, ?)", rows)
    ledger = (0, cap, 0, 0)
    db.execute("insert into ledger values (?, ?, ?, ?, ?)", (*ledger, checksum(ledger)))
    db.execute("commit")


def change_counter(folder: Path) -> str:
    """A text that changes whenever something is recorded in a run; reads four bytes.

    SQLite counts the transactions that changed a file in its header, bytes 24 to 27
    (sqlite.org/fileformat2.html, "File change counter").
    """
    with (folder / FILE).open("rb") as file:
        return file.read(28)[24:].hex()


def other_release(folder: Path, version: str) -> str:
    """What a person is told whose journal another release of MOSAIC wrote."""
    return (
        f"{folder / FILE} was written by another release of MOSAIC (journal version {version}, this "
        f"one reads {VERSION}). Its finished work cannot be continued here without paying "
        "for it again. Finish, read or export it with the release that made it, or start a "
        f"new run: python -m mosaic run {folder / 'config.json'} --run-dir NEW"
    )


def expected_failure(folder: Path, error: sqlite3.OperationalError) -> MosaicError | None:
    """What the machine's refusal means to a person, or None if it means nothing that we know.

    A full disk and a long wait are pauses; a missing permission is a usage error. A controller that
    was frozen while it wrote keeps every other process waiting: it is named as the holder.
    """
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return PausedError(
            f"the disk of {folder} is full: the journal needs at least {MILLION:,} bytes; make "
            f"room, then: python -m mosaic resume {folder}"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return UsageError(
            f"{folder / FILE}: {error}; reading takes read permission on it, deciding and running "
            "write permission on it and its folder"
        )
    if code == sqlite3.SQLITE_BUSY:
        holder = other_holder(folder)
        if holder is not None:
            return HeldError(
                f"{folder} is held by {holder}, which has been writing for {WAIT} s; stop it or "
                "wait for it"
            )
        return PausedError(
            f"{folder / FILE}: another process has been writing for {WAIT} s; give the command "
            "again"
        )
    return None
