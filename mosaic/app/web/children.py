"""The `resume` processes that a page has started, one a run."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mosaic.core.errors import StopRequested, WaitingError

LOG = "logs/resume.log"
LINES = 8  # of the log, when a start has failed
ENDED_WELL = (0, WaitingError.exit_code, StopRequested.exit_code)


@dataclass(frozen=True)
class Child:
    """What the page says of the start it made last: whether it runs, or how it failed.

    `code` is None unless it failed; then `output` is the end of its log.
    """

    running: bool = False
    code: int | None = None
    output: str = ""


class Children:
    """The processes of one page, by the names of their runs."""

    def __init__(self) -> None:
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, folder: Path) -> None:
        """Start `resume` for a run, unless one that was started here still runs."""
        if self.running(folder):
            return
        log = folder / LOG
        log.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mosaic", "resume", str(folder)]
        with log.open("ab") as output:
            self._started[folder.name] = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C on the page's terminal is not meant for it
            )

    def running(self, folder: Path) -> bool:
        started = self._started.get(folder.name)
        return started is not None and started.poll() is None

    def of(self, folder: Path) -> Child:
        """The start that was made last for a run."""
        started = self._started.get(folder.name)
        if started is None:
            return Child()
        code = started.poll()
        if code is None:
            return Child(running=True)
        if code in ENDED_WELL:
            return Child()
        lines = (folder / LOG).read_text(errors="replace").strip().splitlines()
        return Child(code=code, output="\n".join(lines[-LINES:]))
