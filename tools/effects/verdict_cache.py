"""Verdicts that runs share: an SQLite file, keyed by judge, prompts and conversation.

A cache is not the truth: a run copies what it takes into its own journal, and the file may be
deleted at any time. Only verdicts that were made (`ok`) are kept; what failed is asked again by
another run.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from eval.judges.verdicts import Question, Source, VerdictEntry
from mosaic.core.errors import DamageError, PausedError, UsageError
from mosaic.core.types.base import canonical_json
from mosaic.core.types.evaluation import Verdict

FILE = "verdicts.sqlite"
FOLDER = "judge-cache"
# The checksum's column is called `seal` in the files that there are.
SCHEMA = (
    "create table if not exists verdicts "
    "(key text primary key, verdict text not null, seal text not null)"
)


class VerdictCache:
    """The cache of one folder. Several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        """Open the cache, or make it. UsageError if the folder cannot be written."""
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            # Losing the last verdicts at a power cut costs a few calls; waiting for the disk at
            # each would cost more.
            self._db.execute("pragma synchronous=normal")
            self._db.execute(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise UsageError(
                f"judge.cache: {folder} cannot be used as a folder of verdicts: {error}"
            ) from None

    def get(self, question: Question) -> Verdict | None:
        """The verdict of a question, or None.

        DamageError if it does not match its digest, PausedError if the file cannot be read.
        """
        try:
            row = self._db.execute(
                "select verdict, seal from verdicts where key = ?", (question.key,)
            ).fetchone()
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error
        if row is None:
            return None
        text, checksum = row
        if _checksum(question.key, text) != checksum:
            raise DamageError(
                f"{self.path}: verdict {question.key[:12]} does not match its digest; "
                "delete the file"
            )
        return Verdict.model_validate_json(text)

    def keep(self, entries: Sequence[VerdictEntry], source: Source = "model") -> None:
        """Keep the verdicts that are `ok`, in one transaction; what is there already stays.

        PausedError if the disk is full, or the file is locked or cannot be written. The source
        makes no difference.
        """
        rows = []
        for question, verdict, *_ in entries:
            if verdict.status == "ok":
                text = canonical_json(verdict.json_data())
                rows.append((question.key, text, _checksum(question.key, text)))
        if not rows:
            return
        try:
            self._db.execute("begin immediate")
            self._db.executemany("insert or ignore into verdicts values (?, ?, ?)", rows)
            self._db.execute("commit")
        except sqlite3.OperationalError as error:
            if self._db.in_transaction:
                self._db.execute("rollback")
            raise self._unusable(error) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def _unusable(self, error: sqlite3.Error) -> PausedError:
        return PausedError(
            f"judge.cache: {self.path.parent} cannot be used: {error}; make room there or name "
            "another folder, then give the same command again, or `python -m mosaic resume` for a run"
        )

    def _damaged(self, error: sqlite3.Error) -> DamageError:
        return DamageError(f"{self.path}: {error}; delete it, and verdicts are asked for again")

    def __len__(self) -> int:
        return int(self._db.execute("select count(*) from verdicts").fetchone()[0])

    def close(self) -> None:
        self._db.close()


def _checksum(key: str, text: str) -> str:
    return hashlib.sha256(f"{key}\n{text}".encode()).hexdigest()
