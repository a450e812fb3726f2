"""Where a run stands: what its controllers note of themselves, and what follows for a reader.

A controller writes down that it began, and at its end how it ended. Whoever reads compares both with
the lock: a run whose controller is gone without a word is dead, whatever it was doing. All of this
is for people; nothing in the loop reads it.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from pydantic import ValidationError

from mosaic.app.decisions import waiting_question
from mosaic.app.endings import Ending, ending_of
from mosaic.app.shapes import Standing
from mosaic.app.stage import read_stage
from mosaic.core.errors import MosaicError
from mosaic.core.journal import Journal
from mosaic.core.lock import other_holder
from mosaic.core.types.base import FrozenModel

BEGAN, ENDED = "controller", "ended"


class Began(FrozenModel):
    """A controller: its process and machine, and when it took the run, in seconds since 1970."""

    fence: int
    process: int
    host: str
    at: float


class Ended(FrozenModel):
    """How a controller ended, and why."""

    fence: int
    kind: Ending
    why: str = ""
    at: float


@contextmanager
def noted(journal: Journal) -> Iterator[None]:
    """While inside, this process is the run's controller; how it ends is noted."""
    began = Began(fence=journal.fence, process=os.getpid(), host=platform.node(), at=time.time())
    _keep(journal, BEGAN, began)
    try:
        yield
    except BaseException as error:
        note_end(journal, error)
        raise
    note_end(journal, None)


def note_end(journal: Journal, error: BaseException | None) -> None:
    """Note that the controller ended, by an error or without one."""
    kind, why = ending_of(error)
    _keep(journal, ENDED, Ended(fence=journal.fence, kind=kind, why=why, at=time.time()))


def _keep(journal: Journal, name: str, note: FrozenModel) -> None:
    """A note that cannot be written must not hide what the run ended with."""
    with suppress(MosaicError, OSError, sqlite3.Error):
        journal.keep(name, json.dumps(note.json_data()))


def _note(journal: Journal, name: str) -> str:
    return journal.note(name) or "null"


def standing_of(journal: Journal, *, finished: bool) -> Standing:
    """Where a run stands. `finished` says whether its audit stands."""
    folder = journal.folder
    began, ended = _began(journal), _ended(journal)
    resume = f"python -m mosaic resume {folder}"
    holder = other_holder(folder)
    if holder is not None:
        stage = read_stage(folder)
        doing = f"{holder} on {began.host}" if began else holder
        question = waiting_question(journal)
        if question is not None and question.decision is None:
            return Standing(
                state="waiting for approval",
                by=doing,
                since=began.at if began else None,
                why=f"round {question.request.round} asks for a decision",
                next=f"python -m mosaic pending {folder}",
            )
        since = began.at if began else None
        stop = f"python -m mosaic stop {folder}"
        return Standing(state="running", by=doing, since=since, stage=stage, next=stop)
    question = waiting_question(journal)
    if question is not None and question.decision is None:
        return Standing(
            state="waiting for approval",
            since=ended.at if ended else None,
            why=f"round {question.request.round} asks for a decision",
            next=f"python -m mosaic pending {folder}",
        )
    if question is not None and question.decision is not None:
        made = question.decision
        why = f"round {made.round}: {made.kind} by {made.by}; no controller has taken it up yet"
        return Standing(state="decided", by=made.by, why=why, next=resume)
    if finished and not _went_on(journal, began, ended):
        since = ended.at if ended else None
        return Standing(state="finished", since=since, next=f"python -m mosaic report {folder}")
    if ended is not None and ended.fence == int(journal.meta("fence")):
        state = _STATES[ended.kind]
        return Standing(state=state, since=ended.at, why=ended.why, next=resume)
    if began is None and int(journal.meta("fence")) == 0:
        return Standing(state="not started", next=resume)
    return Standing(
        state="dead",
        by=f"process {began.process} on {began.host}" if began else "",
        since=began.at if began else None,
        why="its controller is gone and has not said how it ended; nothing finished is lost",
        next=resume,
    )


def _went_on(journal: Journal, began: Began | None, ended: Ended | None) -> bool:
    """Whether a run that was finished was extended since: the audit stands until a round closes."""
    if began is None or ended is None:
        return False
    if ended.fence == int(journal.meta("fence")):
        return ended.kind != "finished"
    return began.fence > ended.fence  # a later one is gone without a word


_STATES: dict[Ending, Literal["stopped", "paused", "failed"]] = {
    "finished": "stopped",  # it ended, and more rounds were asked for since
    "waiting": "stopped",  # it waited for a decision that was withdrawn
    "paused": "paused",
    "stopped": "stopped",
    "failed": "failed",
}


def _began(journal: Journal) -> Began | None:
    with suppress(ValidationError):
        return Began.model_validate_json(_note(journal, BEGAN))
    return None


def _ended(journal: Journal) -> Ended | None:
    with suppress(ValidationError):
        return Ended.model_validate_json(_note(journal, ENDED))
    return None
