"""The truth of a run: steps, events, the token ledger and decisions, in one SQLite file.

One transaction records that a step is about to happen and reserves what it may cost; the effect follows; a
second transaction records its result, settles the cost and appends its events. A step that is `done` is read,
never run again. Order comes from integers assigned here, never from a clock; wall time is only a label.

There is one writer: whoever holds the lock file of the run directory. Each acquisition bumps a fencing number
that every write compares, so that a controller which lost the lock without noticing cannot commit. Every stored
payload carries its SHA-256 and is checked when read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic.errors import BudgetError, DamageError, HeldError, UsageError
from mosaic.types import canonical_json, digest_of

VERSION = 1
FILE = "journal.sqlite"
LOCK = "lock"

SCHEMA = """
create table meta (name text primary key, value text not null);
create table steps (
  seq integer primary key autoincrement, key text not null unique, round integer not null, kind text not null,
  inputs text not null, state text not null check (state in ('intent', 'done', 'failed')),
  result text, digest text, seconds real, fence integer not null);
create table events (
  seq integer primary key autoincrement, id text not null unique, round integer not null, kind text not null,
  payload text not null, digest text not null, at real not null);
create table ledger (id integer primary key check (id = 0), cap integer not null, held integer not null,
  spent integer not null, check (held >= 0 and spent >= 0 and held + spent <= cap));
create table holds (key text primary key, amount integer not null);
create table decisions (
  seq integer primary key autoincrement, run text not null, round integer not null, request text not null,
  payload text not null, digest text not null, unique (run, round, request));
"""


@dataclass(frozen=True)
class Event:
    """One line of the trace."""

    seq: int
    round: int
    kind: str
    payload: dict[str, Any]


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


def _sealed(value: Any) -> tuple[str, str]:
    text = canonical_json(value)
    return text, hashlib.sha256(text.encode()).hexdigest()


def _opened(text: str, digest: str, where: str) -> Any:
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise DamageError(f"{where}: the stored text does not match its digest {digest[:12]}")
    return json.loads(text)


class Journal:
    """The journal of one run directory. Use `create` for a new run, `open` for an existing one."""

    def __init__(self, connection: sqlite3.Connection, folder: Path) -> None:
        self._db = connection
        self._lock_fd: int | None = None
        self.folder = folder
        self.fence = 0

    @classmethod
    def create(cls, folder: Path, run: str, config: dict[str, Any], cap: int) -> Journal:
        """Make a journal with a token budget of `cap`. Refuses a folder that has one (UsageError)."""
        path = folder / FILE
        if path.exists():
            raise UsageError(f"{path} exists already; continue it with `python -m mosaic resume {folder}`")
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{FILE}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        db = cls._connect(temporary)
        db.executescript(SCHEMA)
        text = json.dumps(config, allow_nan=False)  # keys in their own order, which is how people wrote them
        digest = hashlib.sha256(text.encode()).hexdigest()
        meta = {"version": str(VERSION), "run": run, "config": text, "config_digest": digest, "fence": "0"}
        with db:
            db.executemany("insert into meta values (?, ?)", meta.items())
            db.execute("insert into ledger values (0, ?, 0, 0)", (cap,))
        db.close()
        os.replace(temporary, path)
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Journal:
        """Open an existing journal; without `acquire` it is for reading. UsageError where there is none."""
        path = folder / FILE
        if not path.is_file():
            raise UsageError(f"{folder} is no run directory (no {FILE} in it); `python -m mosaic run CONFIG` makes one")
        try:
            journal = cls(cls._connect(path), folder)
            version = int(journal.meta("version"))
        except sqlite3.DatabaseError as error:
            raise DamageError(f"{path}: {error}") from error
        if version != VERSION:
            raise UsageError(f"{path} has journal version {version}; this release reads {VERSION}")
        return journal

    @staticmethod
    def _connect(path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        db.execute("pragma journal_mode=delete")
        db.execute("pragma synchronous=full")
        db.execute("pragma foreign_keys=on")
        return db

    def close(self) -> None:
        self._db.close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    # -- identity -------------------------------------------------------------------------------------------------

    def meta(self, name: str) -> str:
        row = self._db.execute("select value from meta where name = ?", (name,)).fetchone()
        if row is None:
            raise DamageError(f"{self.folder / FILE}: no meta value {name!r}")
        return str(row[0])

    @property
    def run(self) -> str:
        return self.meta("run")

    @property
    def config(self) -> dict[str, Any]:
        return _opened(self.meta("config"), self.meta("config_digest"), "config")

    def acquire(self) -> int:
        """Become the one writer; the fencing number. HeldError at once where another process is it."""
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "an unknown process"
            os.close(descriptor)
            raise HeldError(f"{self.folder} is held by {holder}; stop it or wait for it") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)
        self._lock_fd = descriptor
        with self._transaction(fenced=False):
            self.fence = int(self.meta("fence")) + 1
            self._db.execute("update meta set value = ? where name = 'fence'", (str(self.fence),))
        return self.fence

    @contextmanager
    def _transaction(self, fenced: bool = True) -> Iterator[None]:
        self._db.execute("begin immediate")
        try:
            if fenced and int(self.meta("fence")) != self.fence:
                raise HeldError(f"{self.folder}: another controller took over (fence {self.meta('fence')})")
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("rollback")
            raise
        self._db.execute("commit")

    # -- steps ----------------------------------------------------------------------------------------------------

    def begin(self, kind: str, inputs: dict[str, Any], round_: int, reserve: int = 0) -> Step:
        """The step for these inputs: a `done` one to read, or a fresh `intent` with `reserve` tokens held.

        Raises BudgetError where the reservation does not fit. A failed or interrupted step begins again.
        """
        text = canonical_json(inputs)
        key = digest_of({"kind": kind, "inputs": inputs})
        with self._transaction():
            found = self.step(key)
            if found and found.state == "done":
                return found
            if found:
                self._db.execute("update steps set state = 'intent', fence = ? where key = ?", (self.fence, key))
                self._release(key)
            else:
                self._db.execute(
                    "insert into steps (key, round, kind, inputs, state, fence) values (?, ?, ?, ?, 'intent', ?)",
                    (key, round_, kind, text, self.fence),
                )
            if reserve:
                admitted = self._db.execute(
                    "update ledger set held = held + :n where id = 0 and held + spent + :n <= cap", {"n": reserve}
                )
                if admitted.rowcount != 1:
                    cap, held, spent = self.ledger()
                    raise BudgetError(
                        f"{kind} needs {reserve:,} tokens; of {cap:,} are {spent:,} spent and {held:,} reserved, "
                        f"{cap - held - spent:,} left (budget.tokens_total)"
                    )
                self._db.execute("insert into holds values (?, ?)", (key, reserve))
            step = self.step(key)
        assert step is not None
        return step

    def finish(
        self,
        step: Step,
        result: dict[str, Any],
        events: Sequence[tuple[str, dict[str, Any]]] = (),
        spent: int = 0,
        seconds: float = 0.0,
    ) -> Step:
        """Record the result, settle the reservation at what was spent, append the events: one transaction."""
        text, digest = _sealed(result)
        with self._transaction():
            self._db.execute(
                "update steps set state = 'done', result = ?, digest = ?, seconds = ? where key = ?",
                (text, digest, seconds, step.key),
            )
            self._release(step.key)
            if spent:
                self._db.execute("update ledger set spent = spent + ? where id = 0", (spent,))
            for index, (kind, payload) in enumerate(events):
                self._append(f"{step.key}:{index}", step.round, kind, payload)
        done = self.step(step.key)
        assert done is not None
        return done

    def fail(self, step: Step, reason: str) -> None:
        """Record that the effect failed; its reservation is released, and its key may begin again."""
        with self._transaction():
            self._db.execute("update steps set state = 'failed' where key = ?", (step.key,))
            self._release(step.key)
            count = self._db.execute("select count(*) from events where id like ?", (f"{step.key}:failed:%",))
            number = int(count.fetchone()[0])
            self._append(f"{step.key}:failed:{number}", step.round, "failed", {"step": step.kind, "reason": reason})

    def _release(self, key: str) -> None:
        row = self._db.execute("select amount from holds where key = ?", (key,)).fetchone()
        if row:
            self._db.execute("update ledger set held = held - ? where id = 0", (row[0],))
            self._db.execute("delete from holds where key = ?", (key,))

    def step(self, key: str) -> Step | None:
        row = self._db.execute(f"select {_STEP} from steps where key = ?", (key,)).fetchone()
        return _step(row) if row else None

    def steps(self, kind: str | None = None, round_: int | None = None) -> list[Step]:
        """Steps in the order in which they were first begun."""
        rows = self._db.execute(
            f"select {_STEP} from steps where (?1 is null or kind = ?1) and (?2 is null or round = ?2) order by seq",
            (kind, round_),
        )
        return [_step(row) for row in rows]

    # -- events, ledger -------------------------------------------------------------------------------------------

    def _append(self, id_: str, round_: int, kind: str, payload: dict[str, Any]) -> None:
        text, digest = _sealed(payload)
        self._db.execute(
            "insert or ignore into events (id, round, kind, payload, digest, at) values (?, ?, ?, ?, ?, ?)",
            (id_, round_, kind, text, digest, time.time()),
        )

    def events(self, round_: int | None = None, kind: str | None = None, after: int = 0) -> list[Event]:
        """Events in order, each checked against its digest (DamageError)."""
        rows = self._db.execute(
            "select seq, round, kind, payload, digest from events where seq > ?1 and (?2 is null or round = ?2) "
            "and (?3 is null or kind = ?3) order by seq",
            (after, round_, kind),
        )
        return [Event(seq, r, k, _opened(text, digest, f"event {seq}")) for seq, r, k, text, digest in rows]

    def ledger(self) -> tuple[int, int, int]:
        """(cap, held, spent) in tokens."""
        cap, held, spent = self._db.execute("select cap, held, spent from ledger where id = 0").fetchone()
        return int(cap), int(held), int(spent)


_STEP = "seq, key, round, kind, inputs, state, result, digest, seconds"


def _step(row: tuple[Any, ...]) -> Step:
    seq, key, round_, kind, inputs, state, result, digest, seconds = row
    value = _opened(result, digest, f"step {seq} ({kind})") if result is not None else None
    loaded = json.loads(inputs)
    if digest_of({"kind": kind, "inputs": loaded}) != key:
        raise DamageError(f"step {seq} ({kind}): its inputs do not match its key {key[:12]}")
    return Step(seq, key, round_, kind, loaded, state, value, seconds)
