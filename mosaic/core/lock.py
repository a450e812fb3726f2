"""The lock file of a run directory: at most one process at a time may write its journal."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from mosaic.core.errors import HeldError

LOCK = "lock"
GLANCES, GLANCE = 3, 0.02  # how often and how long, in seconds, a reader's glance is waited for


def other_holder(folder: Path) -> str | None:
    """Which other process has the lock of a run directory, as it wrote itself down; None if none."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        return None if holder == _name() else holder or "an unknown process"
    finally:
        os.close(descriptor)
    return None


def _name() -> str:
    return f"process {os.getpid()}"


def _lock(descriptor: int) -> None:
    """Lock an open file. Raises BlockingIOError if another process keeps it.

    Somebody who looks who has the lock (`other_holder`) has it for an instant: that is waited for.
    """
    for _ in range(GLANCES):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(GLANCE)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def take_lock(folder: Path) -> int:
    """Lock a run directory and return the open descriptor: closing it gives the lock back.

    The system gives it back as well when the process ends, however it ends. Raises HeldError
    within a tenth of a second, naming the holder, if another process has the lock.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise HeldError(
            f"{folder} is held by {holder or 'an unknown process'}; stop it or wait for it"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{_name()}\n".encode(), 0)
    return descriptor
