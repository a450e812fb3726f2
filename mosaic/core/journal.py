"""The truth of a run: steps, events, the token ledger and decisions, in one SQLite file.

One transaction records that a step is about to happen and reserves what it may cost; the effect follows; a
second transaction records its result, settles the cost and appends its events. A step that is `done` is read,
never run again. Order comes from integers assigned here, never from a clock; wall time is only a label.

There is one writer: whoever holds the lock file of the run directory. Each acquisition bumps a fencing number
that every write compares, so that a controller which lost the lock without noticing cannot commit. The one thing
that others may write is a person's decision. Every row carries a SHA-256 over all its columns, checked when read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic.core.errors import (
    BudgetError,
    DamageError,
    HeldError,
    MosaicError,
    PausedError,
    UsageError,
)
from mosaic.core.types.base import canonical_json, digest_of

VERSION = 4
FILE = "journal.sqlite"
WAIT = 30  # seconds for another process to finish what it writes
LOCK = "lock"
UNFINISHED = f".{FILE}."
WAITING = "waiting"

Item = tuple[dict[str, Any], dict[str, Any], float]  # inputs, result, seconds

SCHEMA = """
create table meta (name text primary key, value text not null, checksum text not null);
create table steps (
  seq integer primary key, key text not null unique, round integer not null, kind text not null,
  inputs text not null, state text not null check (state in ('intent', 'done', 'failed')),
  result text, seconds real, fence integer not null, checksum text not null);
create index steps_by_kind on steps (kind, seq);
create table events (
  seq integer primary key, id text not null unique, round integer not null, kind text not null,
  payload text not null, at real not null, checksum text not null);
create table ledger (id integer primary key check (id = 0), cap integer not null, held integer not null,
  spent integer not null, checksum text not null, check (held >= 0 and spent >= 0 and held + spent <= cap));
create table holds (key text primary key, amount integer not null, checksum text not null);
create table decisions (
  seq integer primary key, run text not null, round integer not null, request text not null,
  payload text not null, checksum text not null, unique (run, round, request));
"""
COLUMNS = {
    "meta": "name, value",
    "steps": "seq, key, round, kind, inputs, state, result, seconds, fence",
    "events": "seq, id, round, kind, payload, at",
    "ledger": "id, cap, held, spent",
    "holds": "key, amount",
    "decisions": "seq, run, round, request, payload",
}


@dataclass(frozen=True)
class Event:
    """One line of the trace. `at` is wall time in seconds since 1970: a label, never an order."""

    seq: int
    round: int
    kind: str
    payload: dict[str, Any]
    at: float


@dataclass(frozen=True)
class Step:
    """One effect. `state` is intent (begun, unknown outcome), done or failed; `seconds` is a label, not an input."""

    seq: int
    key: str
    round: int
    kind: str
    inputs: dict[str, Any]
    state: str
    result: dict[str, Any] | None
    seconds: float | None


def key_of(kind: str, inputs: dict[str, Any]) -> str:
    """The key of a step."""
    return digest_of({"kind": kind, "inputs": inputs})


def _checksum(values: Sequence[Any]) -> str:
    """SHA-256 of a row's columns. A damaged row may hold bytes where text was: they give another checksum."""
    return hashlib.sha256(
        json.dumps(list(values), ensure_ascii=False, default=repr).encode()
    ).hexdigest()


def _expected(folder: Path, error: sqlite3.OperationalError) -> MosaicError | None:
    """What the machine's refusals are to a person: a full disk or a long wait is a pause, a lacking permission usage."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return PausedError(
            f"the disk of {folder} is full: the journal needs at least 1,048,576 bytes; make room, "
            f"then: python -m mosaic resume {folder}"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return UsageError(
            f"{folder / FILE}: {error}; reading takes read permission on it, deciding and running write permission on it "
            "and its folder"
        )
    if code == sqlite3.SQLITE_BUSY:
        return PausedError(
            f"{folder / FILE}: another process has been writing for {WAIT} s; give the command again"
        )
    return None


class Journal:
    """The journal of one run directory. Use `create` for a new run, `open` for an existing one."""

    def __init__(self, connection: sqlite3.Connection, folder: Path) -> None:
        self._db = connection
        self._lock_fd: int | None = None
        self.folder = folder
        self.fence = 0

    @classmethod
    def create(cls, folder: Path, run: str, config: dict[str, Any], cap: int) -> Journal:
        """Make a journal with a token budget of `cap`. `run` must be unlike any other run's. Refuses a folder that
        has a journal (UsageError)."""
        path = folder / FILE
        if path.exists():
            raise UsageError(
                f"{path} exists already; continue it with `python -m mosaic resume {folder}`"
            )
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{UNFINISHED}{os.getpid()}"
        temporary.unlink(missing_ok=True)
        # Config keys stay in their own order, which is how people wrote them.
        meta = {
            "version": str(VERSION),
            "run": run,
            "config": json.dumps(config, allow_nan=False),
            "fence": "0",
        }
        try:
            db = cls._connect(temporary)
            with closing(db):
                db.executescript(SCHEMA)
                db.execute("begin")
                rows = [(n, v, _checksum([n, v])) for n, v in {**meta, WAITING: ""}.items()]
                db.executemany("insert into meta values (?, ?, ?)", rows)
                db.execute(
                    "insert into ledger values (0, ?, 0, 0, ?)", (cap, _checksum([0, cap, 0, 0]))
                )
                db.execute("commit")
            os.link(
                temporary, path
            )  # unlike a rename, never over the journal of somebody who was faster
        except FileExistsError:
            raise UsageError(
                f"{path} exists already; continue it with `python -m mosaic resume {folder}`"
            ) from None
        except sqlite3.OperationalError as error:
            raise _expected(folder, error) or error from error
        finally:
            temporary.unlink(missing_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Journal:
        """Open an existing journal; without `acquire` it is for reading. UsageError where there is none, DamageError
        where SQLite finds the file inconsistent."""
        path = folder / FILE
        if not path.is_file():
            raise UsageError(
                f"{folder} is no run directory (no {FILE} in it); `python -m mosaic run CONFIG` makes one"
            )
        try:
            journal = cls(cls._connect(path), folder)
            row = journal._db.execute("select value from meta where name = 'version'").fetchone()
            version = row[0] if row else "?"
            found = journal._db.execute("pragma integrity_check(3)").fetchall()
        except sqlite3.OperationalError as error:
            raise _expected(folder, error) or DamageError(f"{path}: {error}") from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise DamageError(f"{path}: {error}") from error
        if version != str(VERSION):
            raise UsageError(f"{path} has journal version {version}; this release reads {VERSION}")
        if found != [("ok",)]:
            raise DamageError(f"{path}: " + "; ".join(str(row[0]) for row in found))
        return journal

    @staticmethod
    def _connect(path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
        db.execute("pragma journal_mode=delete")
        db.execute("pragma synchronous=full")
        db.execute("pragma foreign_keys=on")
        return db

    def close(self) -> None:
        self._db.close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    # -- reading rows, each against its checksum ------------------------------------------------------------------------

    def _rows(
        self, table: str, where: str = "1", values: Sequence[Any] = ()
    ) -> list[tuple[Any, ...]]:
        try:
            rows = self._db.execute(
                f"select {COLUMNS[table]}, checksum from {table} where {where}", values
            ).fetchall()
        except sqlite3.OperationalError as error:
            raise _expected(self.folder, error) or error from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise DamageError(f"{self.folder / FILE}: {error}") from error
        for *row, checksum in rows:
            if _checksum(row) != checksum:
                raise DamageError(
                    f"{self.folder / FILE}: {table} row {row[0]!r} does not match its digest"
                )
        return [tuple(row[:-1]) for row in rows]

    def _checksum_again(self, table: str, where: str, value: Any) -> None:
        """Seal a row again after a change inside the same transaction."""
        row = self._db.execute(
            f"select {COLUMNS[table]} from {table} where {where} = ?", (value,)
        ).fetchone()
        self._db.execute(
            f"update {table} set checksum = ? where {where} = ?", (_checksum(row), value)
        )

    def _next(self, table: str) -> int:
        return int(self._db.execute(f"select coalesce(max(seq), 0) + 1 from {table}").fetchone()[0])

    def check(self) -> list[str]:
        """What is broken in this file, a line each: every row of every table against its digest, the ledger's sums."""
        found = []
        for table in COLUMNS:
            try:
                cursor = self._db.execute(f"select {COLUMNS[table]}, checksum from {table}")
                for *row, checksum in cursor:
                    if _checksum(row) != checksum:
                        found.append(f"{FILE}: {table} row {row[0]!r} does not match its digest")
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                found.append(f"{FILE}: {table}: {error}")
        if not found:
            held = self._db.execute("select coalesce(sum(amount), 0) from holds").fetchone()[0]
            if held != self.ledger()[1]:
                found.append(
                    f"{FILE}: the ledger holds {self.ledger()[1]} tokens, its reservations sum to {held}"
                )
        return found

    # -- identity -------------------------------------------------------------------------------------------------

    def meta(self, name: str) -> str:
        rows = self._rows("meta", "name = ?", (name,))
        if not rows:
            raise DamageError(f"{self.folder / FILE}: no meta value {name!r}")
        return str(rows[0][1])

    @property
    def run(self) -> str:
        return self.meta("run")

    @property
    def config(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.meta("config"))
        return loaded

    def _set_meta(self, name: str, value: str) -> None:
        self._db.execute(
            "update meta set value = ?, checksum = ? where name = ?",
            (value, _checksum([name, value]), name),
        )

    def acquire(self) -> int:
        """Become the one writer; the fencing number. HeldError at once where another process is it, DamageError where
        a stored row does not match its digest."""
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = (
                os.read(descriptor, 200).decode(errors="replace").strip() or "an unknown process"
            )
            os.close(descriptor)
            raise HeldError(f"{self.folder} is held by {holder}; stop it or wait for it") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)
        self._lock_fd = descriptor
        broken = self.check()
        if broken:
            raise DamageError(
                "; ".join(broken[:3])
                + f"; `python -m mosaic verify {self.folder}` lists everything"
            )
        with self._transaction(fenced=False):
            self.fence = int(self.meta("fence")) + 1
            self._set_meta("fence", str(self.fence))
            # What an earlier controller reserved and never settled belongs to effects that will begin again.
            self._db.execute("delete from holds")
            self._db.execute("update ledger set held = 0 where id = 0")
            self._checksum_again("ledger", "id", 0)
        return self.fence

    @contextmanager
    def _transaction(self, fenced: bool = True) -> Iterator[None]:
        try:
            self._db.execute("begin immediate")
            if fenced and int(self.meta("fence")) != self.fence:
                raise HeldError(
                    f"{self.folder}: another controller took over (fence {self.meta('fence')})"
                )
            yield
            self._db.execute("commit")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("rollback")
            if isinstance(error, sqlite3.OperationalError) and (
                known := _expected(self.folder, error)
            ):
                raise known from error
            raise

    def change(self, config: dict[str, Any], event: dict[str, Any], cap: int) -> None:
        """Replace the recorded config, inputs and token budget; what changed is an event of the same transaction.

        UsageError where more than `cap` is spent and reserved already.
        """
        with self._transaction():
            _, held, spent = self.ledger()
            if held + spent > cap:
                raise UsageError(
                    f"budget.tokens_total: {spent + held:,} tokens are spent already, more than {cap:,}"
                )
            self._db.execute("update ledger set cap = ? where id = 0", (cap,))
            self._checksum_again("ledger", "id", 0)
            self._set_meta("config", json.dumps(config, allow_nan=False))
            self._set_meta(
                WAITING, ""
            )  # what was asked before does not stand any more; the next start asks again
            self._append(f"change:{self.fence}", 0, "changed", event)

    # -- steps ----------------------------------------------------------------------------------------------------

    def begin(self, kind: str, inputs: dict[str, Any], round_: int, reserve: int = 0) -> Step:
        """The step for these inputs: a `done` one to read, or a fresh `intent` with `reserve` tokens held.

        Raises BudgetError where the reservation does not fit. A failed or interrupted step begins again.
        """
        text = canonical_json(inputs)
        key = key_of(kind, inputs)
        found = self.step(key)
        if found and found.state == "done":
            return found
        with self._transaction():
            if found:
                self._db.execute(
                    "update steps set state = 'intent', fence = ? where key = ?", (self.fence, key)
                )
                self._release(key)
            else:
                self._db.execute(
                    "insert into steps values (?, ?, ?, ?, ?, 'intent', null, null, ?, '')",
                    (self._next("steps"), key, round_, kind, text, self.fence),
                )
            self._checksum_again("steps", "key", key)
            if reserve:
                self._reserve(key, kind, reserve)
        step = self.step(key)
        assert step is not None
        return step

    def record(self, kind: str, items: Sequence[Item], round_: int) -> None:
        """Write each `(inputs, result, seconds)` as a done step of its own, all in one transaction.

        For small effects that are safe to repeat (a verdict of a judge): the step around them carries the intent, and
        a batch does not wait for the disk twice per item. A step that stands already is left alone.
        """
        with self._transaction():
            number = self._next("steps")
            for inputs, result, seconds in items:
                row = (
                    number, key_of(kind, inputs), round_, kind, canonical_json(inputs), "done", canonical_json(result),
                    seconds, self.fence,
                )  # fmt: skip
                insert = "insert or ignore into steps values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                number += self._db.execute(insert, (*row, _checksum(row))).rowcount

    def _reserve(self, key: str, kind: str, tokens: int) -> None:
        admitted = self._db.execute(
            "update ledger set held = held + :n where id = 0 and held + spent + :n <= cap",
            {"n": tokens},
        )
        if admitted.rowcount != 1:
            cap, held, spent = self.ledger()
            raise BudgetError(
                f"{kind} needs {tokens:,} tokens; of {cap:,} are {spent:,} spent and {held:,} reserved, "
                f"{cap - held - spent:,} left (budget.tokens_total)"
            )
        self._checksum_again("ledger", "id", 0)
        self._db.execute(
            "insert into holds values (?, ?, ?)", (key, tokens, _checksum([key, tokens]))
        )

    def finish(
        self,
        step: Step,
        result: dict[str, Any],
        events: Sequence[tuple[str, dict[str, Any]]] = (),
        spent: int = 0,
        seconds: float = 0.0,
    ) -> Step:
        """Record the result, settle the reservation at what was spent, append the events: one transaction.

        What was spent is at most what was reserved (ValueError).
        """
        text = canonical_json(result)
        with self._transaction():
            self._db.execute(
                "update steps set state = 'done', result = ?, seconds = ? where key = ?",
                (text, seconds, step.key),
            )
            self._checksum_again("steps", "key", step.key)
            reserved = self._release(step.key)
            if spent > reserved:
                raise ValueError(f"{step.kind} spent {spent:,} tokens, {reserved:,} were reserved")
            if spent:
                self._db.execute("update ledger set spent = spent + ? where id = 0", (spent,))
                self._checksum_again("ledger", "id", 0)
            for index, (kind, payload) in enumerate(events):
                self._append(f"{step.key}:{index}", step.round, kind, payload)
        done = self.step(step.key)
        assert done is not None
        return done

    def fail(self, step: Step, reason: str, details: dict[str, Any] | None = None) -> None:
        """Record that the effect failed; its reservation is released, and its key may begin again."""
        with self._transaction():
            self._db.execute("update steps set state = 'failed' where key = ?", (step.key,))
            self._checksum_again("steps", "key", step.key)
            self._release(step.key)
            payload = {"step": step.kind, "reason": reason, **(details or {})}
            self._append(f"{step.key}:failed:{self._next('events')}", step.round, "failed", payload)

    def _release(self, key: str) -> int:
        """Give a step's reservation back; how many tokens it was."""
        rows = self._rows("holds", "key = ?", (key,))
        if not rows:
            return 0
        self._db.execute("update ledger set held = held - ? where id = 0", (rows[0][1],))
        self._checksum_again("ledger", "id", 0)
        self._db.execute("delete from holds where key = ?", (key,))
        return int(rows[0][1])

    def step(self, key: str) -> Step | None:
        rows = self._rows("steps", "key = ?", (key,))
        return _step(rows[0]) if rows else None

    def steps(
        self, kind: str | None = None, round_: int | None = None, after: int = 0
    ) -> list[Step]:
        """Steps in the order in which they were first begun; `after` leaves out those up to that number."""
        clauses: list[str] = ["seq > ?"]
        values: list[Any] = [after]
        for column, wanted in (("kind", kind), ("round", round_)):
            if wanted is not None:
                clauses.append(f"{column} = ?")
                values.append(wanted)
        return [
            _step(row)
            for row in self._rows("steps", " and ".join(clauses) + " order by seq", values)
        ]

    # -- events, ledger, decisions ----------------------------------------------------------------------------------

    def _append(self, id_: str, round_: int, kind: str, payload: dict[str, Any]) -> None:
        row = (self._next("events"), id_, round_, kind, canonical_json(payload), time.time())
        self._db.execute(
            "insert or ignore into events values (?, ?, ?, ?, ?, ?, ?)", (*row, _checksum(row))
        )

    def events(
        self, round_: int | None = None, kind: str | None = None, after: int = 0
    ) -> list[Event]:
        """Events in order, each checked against its digest (DamageError)."""
        clauses: list[str] = ["seq > ?"]
        values: list[Any] = [after]
        for column, wanted in (("round", round_), ("kind", kind)):
            if wanted is not None:
                clauses.append(f"{column} = ?")
                values.append(wanted)
        rows = self._rows("events", " and ".join(clauses) + " order by seq", values)
        return [
            Event(seq, number, what, json.loads(text), at)
            for seq, _, number, what, text, at in rows
        ]

    def ledger(self) -> tuple[int, int, int]:
        """(cap, held, spent) in tokens."""
        ((_, cap, held, spent),) = self._rows("ledger", "id = 0")
        return int(cap), int(held), int(spent)

    def wait_for(self, request: str) -> None:
        """Name the one request that may be decided on; with "" none may."""
        if self.meta(WAITING) != request:
            with self._transaction():
                self._set_meta(WAITING, request)

    def decide(self, round_: int, request: str, payload: dict[str, Any]) -> None:
        """Record a person's decision on the request that waits: the first one wins. Needs no lock.

        UsageError for a second decision, and for one on a request that does not wait (any more).
        """
        with self._transaction(fenced=False):
            if self.meta(WAITING) != request:
                raise UsageError(
                    f"the plan of round {round_} does not wait any more; nothing was recorded"
                )
            row = (self._next("decisions"), self.run, round_, request, canonical_json(payload))
            try:
                self._db.execute(
                    "insert into decisions values (?, ?, ?, ?, ?, ?)", (*row, _checksum(row))
                )
            except sqlite3.IntegrityError:
                earlier = self.decision(round_, request) or {}
                raise UsageError(
                    f"round {round_} was decided already: {earlier.get('kind')} by {earlier.get('by')}"
                ) from None

    def decision(self, round_: int, request: str) -> dict[str, Any] | None:
        """The decision on a request of this run, if there is one."""
        rows = self._rows(
            "decisions", "run = ? and round = ? and request = ?", (self.run, round_, request)
        )
        loaded: dict[str, Any] | None = json.loads(rows[0][4]) if rows else None
        return loaded


def _step(row: tuple[Any, ...]) -> Step:
    seq, key, round_, kind, inputs, state, result, seconds, _ = row
    value = json.loads(result) if result is not None else None
    return Step(seq, key, round_, kind, json.loads(inputs), state, value, seconds)
