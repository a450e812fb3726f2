"""The truth of a run: steps, events, the token ledger and decisions, in one SQLite file.

One transaction records that a step is about to happen and reserves what it may cost. The effect
follows. A second transaction records its result, settles the cost and appends its events. A step
that is `done` is read, never run again. Order comes from integers assigned here, never from a
clock; wall time is only a label.

There is one writing process: whoever holds the lock file of the run directory. Each acquisition
bumps a fencing number that every write compares, so that a controller which lost the lock without
noticing cannot commit. Others may write a person's decision or note. Threads of one process take
turns at the connection. Every row carries a SHA-256 over all its columns, checked when the row is
read.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from mosaic.core.errors import BudgetError, DamageError, HeldError, UsageError
from mosaic.core.lock import take_lock
from mosaic.core.rows import (
    Calls,
    Event,
    Place,
    SmallStep,
    Step,
    StepRow,
    event_of,
    kind_of,
    step_row,
)
from mosaic.core.soundness import problems
from mosaic.core.tables import (
    COLUMNS,
    FILE,
    VERSION,
    checksum,
    connect,
    expected_failure,
    make_file,
    other_release,
)
from mosaic.core.types.base import FrozenModel, canonical_json
from mosaic.core.types.events import EventRecord
from mosaic.core.types.inputs import RunRecord
from mosaic.core.types.plans import Decision
from mosaic.core.types.step_inputs import StepInputs

WAITING = "waiting"

S = TypeVar("S", bound=StepInputs[Any])


class Journal:
    """The journal of one run directory. Use `create` for a new run, `open` for an existing one.

    Safe to share between the threads of one process.
    """

    def __init__(self, connection: sqlite3.Connection, folder: Path) -> None:
        self._db = connection
        self._turn = threading.RLock()
        self._lock_fd: int | None = None
        self.folder = folder
        self.fence = 0

    @classmethod
    def create(cls, folder: Path, run: str, record: RunRecord, cap: int) -> Journal:
        """Make a journal with a budget of `cap` tokens. `run` must be unlike any other run's.

        Raises UsageError if the folder has a journal already.
        """
        # Config keys stay in their own order, which is how people wrote them.
        written = record.model_dump_json()
        meta = {"version": str(VERSION), "run": run, "config": written, "fence": "0", WAITING: ""}
        make_file(folder, meta, cap)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Journal:
        """Open an existing journal; without `acquire` it is for reading.

        Raises UsageError if there is none or another release made it, DamageError if SQLite cannot
        read it. Whether the whole file is sound is asked by `acquire` and `check`.
        """
        path = folder / FILE
        if not path.is_file():
            raise UsageError(
                f"{folder} is not a run directory (no {FILE} in it); `python -m mosaic run CONFIG` "
                "makes one"
            )
        try:
            journal = cls(connect(path), folder)
            row = journal._db.execute("select value from meta where name = 'version'").fetchone()
        except sqlite3.OperationalError as error:
            raise expected_failure(folder, error) or DamageError(f"{path}: {error}") from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise DamageError(f"{path}: {error}") from error
        version = row[0] if row else "?"
        if version != str(VERSION):
            journal.close()
            raise UsageError(other_release(folder, version))
        return journal

    def close(self) -> None:
        with self._turn:
            self._db.close()
            if self._lock_fd is not None:
                os.close(self._lock_fd)
                self._lock_fd = None

    # -- reading rows, each against its checksum ---------------------------------------------------

    def _select(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows as they are stored. What SQLite refuses becomes the error a person can act on."""
        try:
            with self._turn:
                return self._db.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            raise expected_failure(self.folder, error) or error from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise DamageError(f"{self.folder / FILE}: {error}") from error

    def _rows(
        self, table: str, where: str = "1", values: Sequence[object] = ()
    ) -> list[tuple[Any, ...]]:
        """Rows of a table whose checksums were compared (DamageError)."""
        found = self._select(
            f"select {COLUMNS[table]}, checksum from {table} where {where}", values
        )
        for *row, stored in found:
            if checksum(row) != stored:
                raise DamageError(
                    f"{self.folder / FILE}: {table} row {row[0]!r} does not match its digest"
                )
        return [row[:-1] for row in found]

    def _update_checksum(self, table: str, where: str, value: object) -> None:
        """Compute a row's checksum again after a change inside the same transaction."""
        query = f"select {COLUMNS[table]} from {table} where {where} = ?"
        row = self._db.execute(query, (value,)).fetchone()
        self._db.execute(
            f"update {table} set checksum = ? where {where} = ?", (checksum(row), value)
        )

    def _next(self, table: str) -> int:
        query = f"select coalesce(max(seq), 0) + 1 from {table}"
        return int(self._db.execute(query).fetchone()[0])

    def check(self) -> list[str]:
        """What is broken in this file, a line each: every page, every row, the ledger's sums."""
        with self._turn:
            return problems(self)

    def damaged_pages(self) -> list[str]:
        """What SQLite's own check of the file finds, a line each; nothing if the pages are sound."""
        try:
            rows = self._db.execute("pragma integrity_check(3)").fetchall()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            return [str(error)]
        return [] if rows == [("ok",)] else [str(row[0]) for row in rows]

    def stored(self, table: str) -> Iterator[tuple[list[object], object]]:
        """Every row of a table beside the checksum stored with it, uncompared: for `check`.

        Raises DamageError for what SQLite cannot read.
        """
        try:
            for *row, found in self._db.execute(f"select {COLUMNS[table]}, checksum from {table}"):
                yield row, found
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise DamageError(str(error)) from error

    def reserved(self) -> int:
        """The sum of all reservations, in tokens."""
        return int(self._select("select coalesce(sum(amount), 0) from holds")[0][0])

    # -- identity ----------------------------------------------------------------------------------

    def meta(self, name: str) -> str:
        rows = self._rows("meta", "name = ?", (name,))
        if not rows:
            raise DamageError(f"{self.folder / FILE}: no meta value {name!r}")
        return str(rows[0][1])

    def note(self, name: str) -> str | None:
        """What `keep` kept under this name, None if nothing was."""
        rows = self._rows("meta", "name = ?", (name,))
        return str(rows[0][1]) if rows else None

    def keep(self, name: str, value: str) -> None:
        """Keep a text in place of what was kept under this name before."""
        with self._transaction():
            row = (name, value, checksum([name, value]))
            self._db.execute("insert or replace into meta values (?, ?, ?)", row)

    @property
    def run(self) -> str:
        return self.meta("run")

    @property
    def recorded(self) -> RunRecord:
        """The config that the run was started with, and the digests of what it names."""
        text = self.meta("config")
        try:
            return RunRecord.model_validate_json(text)
        except ValidationError as error:
            raise DamageError(f"{self.folder / FILE}: its config: {error}") from error

    def _set_meta(self, name: str, value: str) -> None:
        self._db.execute(
            "update meta set value = ?, checksum = ? where name = ?",
            (value, checksum([name, value]), name),
        )

    def acquire(self) -> int:
        """Become the one writing process; the fencing number.

        Raises HeldError at once if another process is it, DamageError if the file is not sound.
        """
        self._lock_fd = take_lock(self.folder)
        broken = self.check()
        if broken:
            raise DamageError(
                "; ".join(broken[:3])
                + f"; `python -m mosaic verify {self.folder}` lists everything"
            )
        with self._transaction(fenced=False):
            self.fence = int(self.meta("fence")) + 1
            self._set_meta("fence", str(self.fence))
            # What an earlier controller reserved and never settled belongs to effects that will
            # begin again.
            self._db.execute("delete from holds")
            self._db.execute("update ledger set held = 0 where id = 0")
            self._update_checksum("ledger", "id", 0)
        return self.fence

    @contextmanager
    def _transaction(self, fenced: bool = True) -> Iterator[None]:
        with self._turn:
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
                if isinstance(error, sqlite3.OperationalError):
                    known = expected_failure(self.folder, error)
                    if known:
                        raise known from error
                raise

    def change(self, record: RunRecord, event: EventRecord, cap: int) -> None:
        """Replace config, inputs and token budget; `event`, in the same transaction, says how.

        Raises UsageError if more than `cap` is spent and reserved already.
        """
        with self._transaction():
            _, held, spent = self.ledger()
            if held + spent > cap:
                raise UsageError(
                    f"budget.tokens_total: {spent + held:,} tokens are spent already, more than "
                    f"{cap:,}"
                )
            self._db.execute("update ledger set cap = ? where id = 0", (cap,))
            self._update_checksum("ledger", "id", 0)
            self._set_meta("config", record.model_dump_json())
            # What was asked before does not stand any more: the next start asks again.
            self._set_meta(WAITING, "")
            self._append(f"change:{self.fence}", Place(0), event)

    # -- steps -------------------------------------------------------------------------------------

    def find(self, inputs: S) -> Step[S] | None:
        """The finished step of these inputs, if there is one."""
        rows = self._rows("steps", "key = ? and state = 'done'", (inputs.key,))
        return self._step(inputs, rows[0]) if rows else None

    def begin(self, inputs: StepInputs[Any], place: Place, reserve: int = 0) -> None:
        """Record that a step is about to happen, and hold `reserve` tokens for it.

        A failed or interrupted step begins again. Raises BudgetError if the tokens do not fit,
        ValueError if the step is finished.
        """
        self.begin_many([(inputs, place, reserve)])

    def begin_many(self, begun: Sequence[tuple[StepInputs[Any], Place, int]]) -> None:
        """`begin` for several steps, each with its place and reservation: all of them or none."""
        with self._transaction():
            for inputs, place, reserve in begun:
                key, kind = inputs.key, inputs.kind
                found = self._rows("steps", "key = ?", (key,))
                if found and found[0][6] == "done":
                    raise ValueError(f"{kind} step {key[:12]} is finished")
                if found:
                    again = "update steps set state = 'intent', fence = ? where key = ?"
                    self._db.execute(again, (self.fence, key))
                    self._release(key)
                else:
                    text, number = canonical_json(inputs.json_data()), self._next("steps")
                    row = (number, key, place.round, place.trial, kind, text)
                    values = "(?, ?, ?, ?, ?, ?, 'intent', null, null, ?, '')"
                    self._db.execute(f"insert into steps values {values}", (*row, self.fence))
                self._update_checksum("steps", "key", key)
                if reserve:
                    self._reserve(key, kind, reserve)

    def record(self, items: Sequence[SmallStep], place: Place, calls: Sequence[Calls] = ()) -> None:
        """Write small effects as finished steps, all in one transaction.

        For effects that are safe to repeat, such as a verdict of a judge: the step around them
        carries the intent, and a batch does not wait for the disk twice per item. A step that
        stands already is left alone.
        """
        with self._transaction():
            number = self._next("steps")
            for item in items:
                kind, text = item.inputs.kind, canonical_json(item.inputs.json_data())
                begun = (number, item.inputs.key, place.round, place.trial, kind, text)
                text = canonical_json(item.result.json_data())
                row = (*begun, "done", text, item.seconds, self.fence)
                insert = "insert or ignore into steps values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                number += self._db.execute(insert, (*row, checksum(row))).rowcount
            self._count(calls)

    def _reserve(self, key: str, kind: str, tokens: int) -> None:
        admitted = self._db.execute(
            "update ledger set held = held + :n where id = 0 and held + spent + :n <= cap",
            {"n": tokens},
        )
        if admitted.rowcount != 1:
            cap, held, spent = self.ledger()
            raise BudgetError(
                f"{kind} needs {tokens:,} tokens; of {cap:,} are {spent:,} spent and {held:,} "
                f"reserved, {cap - held - spent:,} left (budget.tokens_total)"
            )
        self._update_checksum("ledger", "id", 0)
        hold = (key, tokens, checksum([key, tokens]))
        self._db.execute("insert into holds values (?, ?, ?)", hold)

    def finish(
        self,
        inputs: StepInputs[Any],
        result: FrozenModel,
        events: Sequence[EventRecord] = (),
        spent: int = 0,
        seconds: float = 0.0,
        calls: Sequence[Calls] = (),
    ) -> None:
        """Record the result, settle the reservation and append the events: one transaction.

        Raises ValueError if more tokens were spent than reserved, or if the step was not begun.
        """
        key, text = inputs.key, canonical_json(result.json_data())
        with self._transaction():
            done = self._db.execute(
                "update steps set state = 'done', result = ?, seconds = ? where key = ?",
                (text, seconds, key),
            )
            if done.rowcount != 1:
                raise ValueError(f"{inputs.kind} step {key[:12]} was not begun")
            self._update_checksum("steps", "key", key)
            reserved = self._release(key)
            if spent > reserved:
                raise ValueError(
                    f"{inputs.kind} spent {spent:,} tokens, {reserved:,} were reserved"
                )
            if spent:
                self._db.execute("update ledger set spent = spent + ? where id = 0", (spent,))
                self._update_checksum("ledger", "id", 0)
            self._count(calls)
            place = self._place(key)
            for index, event in enumerate(events):
                self._append(f"{key}:{index}", place, event)

    def fail(self, inputs: StepInputs[Any], event: EventRecord) -> None:
        """Record that the effect failed; its reservation is released, and it may begin again."""
        key = inputs.key
        with self._transaction():
            self._db.execute("update steps set state = 'failed' where key = ?", (key,))
            self._update_checksum("steps", "key", key)
            self._release(key)
            self._append(f"{key}:failed:{self._next('events')}", self._place(key), event)

    def _place(self, key: str) -> Place:
        row = self._db.execute("select round, trial from steps where key = ?", (key,)).fetchone()
        return Place(int(row[0]), str(row[1]))

    def _release(self, key: str) -> int:
        """Give a step's reservation back; how many tokens it was."""
        rows = self._rows("holds", "key = ?", (key,))
        if not rows:
            return 0
        amount = int(rows[0][1])
        self._db.execute("update ledger set held = held - ? where id = 0", (amount,))
        self._update_checksum("ledger", "id", 0)
        self._db.execute("delete from holds where key = ?", (key,))
        return amount

    def _count(self, calls: Sequence[Calls]) -> None:
        """Add to what was asked of language models."""
        for more in calls:
            row = (more.who, more.answers, more.requests, more.tokens, more.cached)
            self._db.execute(
                "insert into calls values (?, ?, ?, ?, ?, '') on conflict (who) do update set "
                "answers = answers + excluded.answers, requests = requests + excluded.requests, "
                "tokens = tokens + excluded.tokens, cached = cached + excluded.cached",
                row,
            )
            self._update_checksum("calls", "who", more.who)

    def calls(self) -> list[Calls]:
        """What planner and judges asked of language models, in all."""
        return [Calls(*row) for row in self._rows("calls", "1 order by who desc")]

    def _step(self, inputs: S, row: tuple[Any, ...]) -> Step[S]:
        seq, _, round_, trial, _, _, _, result, seconds, _ = row
        try:
            stored = inputs.result_type.model_validate_json(result)
        except ValidationError as error:
            raise DamageError(f"{self.folder / FILE}: steps row {seq}: {error}") from error
        return Step(seq, Place(round_, trial), inputs, stored, seconds or 0.0)

    def steps(self, kind: type[S], round_: int | None = None, after: int = 0) -> list[Step[S]]:
        """Finished steps of one kind in the order in which they were first begun.

        `after` leaves out those up to that number.
        """
        where, values = "kind = ? and state = 'done' and seq > ?", [kind_of(kind), after]
        if round_ is not None:
            where, values = where + " and round = ?", [*values, round_]
        found = []
        for row in self._rows("steps", where + " order by seq", values):
            try:
                inputs = kind.model_validate_json(row[5])
            except ValidationError as error:
                raise DamageError(f"{self.folder / FILE}: steps row {row[0]}: {error}") from error
            found.append(self._step(inputs, row))
        return found

    def rows(self, *, state: str | None = None, round_: int | None = None) -> list[StepRow]:
        """Steps without their contents, in order; each was compared with its checksum."""
        clauses, values = ["1"], list[object]()
        if state is not None:
            # The inner query reads an index alone, not the contents of every step.
            clauses.append("seq in (select seq from steps where state = ?)")
            values.append(state)
        if round_ is not None:
            clauses.append("round = ?")
            values.append(round_)
        found = self._rows("steps", " and ".join(clauses) + " order by seq", values)
        return [step_row(row) for row in found]

    def begun_rounds(self) -> list[int]:
        """The rounds that a step or an event stands in, in order."""
        query = "select distinct round from steps union select distinct round from events"
        return sorted(int(round_) for (round_,) in self._select(query))

    def finished(self, kind: type[StepInputs[Any]]) -> tuple[int, int]:
        """How many steps of a kind are done, and the number of the newest (0 if there is none)."""
        query = (
            "select count(*), coalesce(max(seq), 0) from steps where kind = ? and state = 'done'"
        )
        ((count, newest),) = self._select(query, [kind_of(kind)])
        return int(count), int(newest)

    def last_row(self) -> StepRow | None:
        """The step that was begun last."""
        rows = self._rows("steps", "1 order by seq desc limit 1")
        return step_row(rows[0]) if rows else None

    def counts(
        self, round_: int | None = None, trial: str | None = None
    ) -> list[tuple[str, int, float]]:
        """(kind, how many, seconds) of finished steps, by kind; labels, summed by SQLite.

        Of all rounds or of one; `trial` counts only the steps of one trial and those of none.
        """
        where, values = "state = 'done'", list[object]()
        if round_ is not None:
            where, values = where + " and round = ?", [*values, round_]
        if trial is not None:
            where, values = where + " and trial in (?, '')", [*values, trial]
        query = (
            f"select kind, count(*), coalesce(sum(seconds), 0) from steps where {where} "
            "group by kind order by kind"
        )
        return [(str(k), int(n), float(s)) for k, n, s in self._select(query, values)]

    # -- events, ledger, decisions -----------------------------------------------------------------

    def _append(self, id_: str, place: Place, event: EventRecord) -> None:
        payload = event.json_data()
        kind = payload.pop("kind")
        number = self._next("events")
        row = (number, id_, place.round, place.trial, kind, canonical_json(payload), time.time())
        insert = "insert or ignore into events values (?, ?, ?, ?, ?, ?, ?, ?)"
        self._db.execute(insert, (*row, checksum(row)))

    def events(
        self,
        round_: int | None = None,
        kind: str | None = None,
        after: int = 0,
        before: int | None = None,
        newest: int | None = None,
    ) -> list[Event]:
        """Events in order, each checked against its digest and its class (DamageError).

        Those with numbers above `after` and below `before`; of these the last `newest`.
        """
        where, values = "seq > ?", list[object]([after])
        for clause, wanted in (("round = ?", round_), ("kind = ?", kind), ("seq < ?", before)):
            if wanted is not None:
                where += f" and {clause}"
                values.append(wanted)
        where += " order by seq"
        if newest is not None:
            where += f" desc limit {int(newest)}"
        found = []
        for row in self._rows("events", where, values):
            try:
                found.append(event_of(row))
            except ValidationError as error:
                raise DamageError(f"{self.folder / FILE}: events row {row[0]}: {error}") from error
        return found[::-1] if newest is not None else found

    def event_count(self, round_: int, before: int | None = None) -> int:
        """How many events a round has, all or those with numbers below `before`."""
        query, values = "select count(*) from events where round = ?", [round_]
        if before is not None:
            query, values = query + " and seq < ?", [*values, before]
        return int(self._select(query, values)[0][0])

    def ledger(self) -> tuple[int, int, int]:
        """(cap, held, spent) in tokens."""
        ((_, cap, held, spent),) = self._rows("ledger", "id = 0")
        return int(cap), int(held), int(spent)

    def wait_for(self, request: str) -> None:
        """Name the one request that may be decided on; with "" none may."""
        if self.meta(WAITING) != request:
            with self._transaction():
                self._set_meta(WAITING, request)

    def decide(self, decision: Decision) -> None:
        """Record a person's decision on the request that waits: the first one wins. Needs no lock.

        Raises UsageError for a second decision, for one of another run, and for one on a request
        that does not wait (any more).
        """
        with self._transaction(fenced=False):
            if self.meta(WAITING) != decision.request or self.run != decision.run:
                raise UsageError(
                    f"the plan of round {decision.round} does not wait any more; nothing was "
                    "recorded"
                )
            earlier = self.decision(decision.round, decision.request)
            if earlier is not None:
                raise UsageError(
                    f"round {decision.round} was decided already: {earlier.kind} by {earlier.by}"
                )
            where = (self._next("decisions"), self.run, decision.round, decision.request)
            row = (*where, canonical_json(decision.json_data()))
            insert = "insert into decisions values (?, ?, ?, ?, ?, ?)"
            self._db.execute(insert, (*row, checksum(row)))

    def tell(self, event: EventRecord) -> int:
        """Record what a person tells a run, in the round that it is in. Needs no lock."""
        with self._transaction(fenced=False):
            ((number,),) = self._select("select coalesce(max(round), 0) from steps", [])
            self._append(f"note:{self._next('events')}", Place(number), event)
        return int(number)

    def decision(self, round_: int, request: str) -> Decision | None:
        """The decision on a request of this run, if there is one."""
        wanted = "run = ? and round = ? and request = ?"
        rows = self._rows("decisions", wanted, (self.run, round_, request))
        if not rows:
            return None
        try:
            return Decision.model_validate_json(rows[0][4])
        except ValidationError as error:
            what = f"{self.folder / FILE}: the decision of round {round_}: {error}"
            raise DamageError(what) from error
