"""How much memory this process has had at most."""

from __future__ import annotations

from pathlib import Path

from benchmarks.figures import CannotRun


def peak_memory() -> float:
    """The most memory that this process has had at a time, in GB.

    What `getrusage` says is at least what the process that started this one had.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        raise CannotRun("memory is read from /proc, which Linux has") from None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024**2
    raise CannotRun("/proc/self/status has no VmHWM")
