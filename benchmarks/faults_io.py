"""Faults below the store and the journal, injected from outside: kills, lost power, a full disk.

Functions of `os` and the journal's SQLite connection are wrapped in a forked child; the product
has no hook for it. Each wrapped call is a numbered point. A write is split in two, with a point
between the halves, so that torn files occur.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from mosaic.core.tables import FILE

REAL = {
    name: getattr(os, name)
    for name in ("open", "write", "fsync", "rename", "replace", "mkdir", "close")
}
CHANGES = ("begin immediate", "insert", "update", "delete", "commit")


class Points:
    """Counts points and kills the process at one of them, after `before_kill`."""

    def __init__(self, kill_at: int = 0, before_kill: Callable[[], None] = lambda: None) -> None:
        self.count = 0
        self.kill_at = kill_at
        self.before_kill = before_kill
        # What is done before a kill may pass by points itself.
        self._turn = threading.RLock()

    def pass_by(self) -> None:
        with self._turn:
            self.count += 1
            if self.count == self.kill_at:
                self.before_kill()
                os.kill(os.getpid(), signal.SIGKILL)


def install(
    points: Points, disk: Disk | None = None, room: int | None = None, pages: int | None = None
) -> None:
    """Wrap the file operations of this process until it ends.

    `room` is how many bytes may still be written, `pages` limits the journal: beyond them the disk
    is full.
    """
    left = [room]

    def open_(path: object, flags: int, *rest: object, **named: object) -> int:
        points.pass_by()
        descriptor = int(REAL["open"](path, flags, *rest, **named))
        if disk:
            disk.opened(descriptor, path, flags)
        return descriptor

    def write(descriptor: int, data: object) -> int:
        points.pass_by()
        # The witness stands outside of the run and does not fill its disk.
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if left[0] is not None and not path.endswith("witness"):
            left[0] -= len(data)
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        half = len(data) // 2
        REAL["write"](descriptor, data[:half])
        points.pass_by()
        return half + int(REAL["write"](descriptor, data[half:]))

    def fsync(descriptor: int) -> None:
        points.pass_by()
        REAL["fsync"](descriptor)
        if disk:
            disk.synced(descriptor)

    def rename(source: object, target: object, **named: object) -> None:
        points.pass_by()
        REAL["rename"](source, target, **named)
        if disk:
            disk.renamed(Path(source), Path(target))

    def mkdir(path: object, *rest: object, **named: object) -> None:
        points.pass_by()
        REAL["mkdir"](path, *rest, **named)
        if disk:
            disk.created(Path(path))

    def close(descriptor: int) -> None:
        if disk:
            disk.paths.pop(descriptor, None)
        REAL["close"](descriptor)

    wrapped = {
        "open": open_,
        "write": write,
        "fsync": fsync,
        "rename": rename,
        "replace": rename,
        "mkdir": mkdir,
        "close": close,
    }
    for name, function in wrapped.items():
        setattr(os, name, function)

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
            changes = sql.startswith(CHANGES)
            if changes:
                points.pass_by()
            cursor = super().execute(sql, *values)
            if changes and sql == "commit":
                points.pass_by()
            return cursor

    real = sqlite3.connect

    def connect(path: object, *rest: object, **named: object) -> sqlite3.Connection:
        if Path(str(path)).name != FILE:
            return real(path, *rest, **named)
        connection = real(path, *rest, factory=Connection, **named)
        if pages is not None:
            sqlite3.Connection.execute(connection, f"pragma max_page_count={pages}")
        return connection

    patch.object(sqlite3, "connect", connect).start()  # until the process ends


class Disk:
    """What a disk has promised: bytes of a file at its last fsync, entries of a folder at its own.

    `forget` takes the rest away, as a loss of power may. By `variant` it drops all that was not
    promised (`drop`), keeps half of the bytes that were not synced (`half`), or keeps the entries
    and drops the bytes (`names`). The files of SQLite are not watched.
    """

    def __init__(self, root: Path, variant: str, seed: int) -> None:
        self.root = root
        self.variant = variant
        self.random = random.Random(seed)
        self.paths: dict[int, Path] = {}
        self.durable: dict[Path, bytes] = {}
        self.volatile: set[Path] = set()
        self.pending: list[tuple[str, Path, Path]] = []

    def _mine(self, path: Path) -> bool:
        return self.root in path.parents or path == self.root

    def opened(self, descriptor: int, path: object, flags: int) -> None:
        if not isinstance(path, str | Path) or not self._mine(Path(path)):
            return
        self.paths[descriptor] = Path(path)
        if flags & os.O_CREAT:
            self.volatile.add(Path(path))
            self.pending.append(("create", Path(path), Path(path)))

    def synced(self, descriptor: int) -> None:
        path = self.paths.get(descriptor)
        if path is None:
            return
        if path.is_dir():
            self.pending = [entry for entry in self.pending if entry[2].parent != path]
        else:
            self.volatile.discard(path)
            self.durable[path] = path.read_bytes()

    def created(self, path: Path) -> None:
        if self._mine(path):
            self.pending.append(("create", path, path))

    def renamed(self, source: Path, target: Path) -> None:
        if not self._mine(source):
            return

        def moved(path: Path) -> Path:
            if path == source or source in path.parents:
                return target / path.relative_to(source)
            return path

        self.durable = {moved(path): data for path, data in self.durable.items()}
        self.volatile = {moved(path) for path in self.volatile}
        self.pending = [(kind, moved(old), moved(new)) for kind, old, new in self.pending]
        self.pending.append(("rename", source, target))

    def forget(self) -> None:
        for path in self.volatile:
            if path.is_file():
                data = path.read_bytes()
                keep = len(data) // 2 if self.variant == "half" else 0
                path.write_bytes(data[:keep])
        if self.variant == "names":
            return
        for kind, source, target in reversed(self.pending):
            if kind == "rename" and target.exists():
                if source.parent.exists():
                    REAL["rename"](target, source)
            elif kind == "create" and target.exists() and target.parent != self.root:
                shutil.rmtree(target) if target.is_dir() else target.unlink()


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked child; its exit code.

    0 if it came to its end, that of the error if it was an expected one, 1 for any other error, -9
    if it was killed.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            from mosaic.core.errors import MosaicError

            try:
                work()
                code = 0
            except MosaicError as error:
                code = error.exit_code
        except BaseException:  # a child that fails must say so and never return
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)
