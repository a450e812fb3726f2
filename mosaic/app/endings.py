"""What the error that ended a controller means for its run."""

from __future__ import annotations

from typing import Literal

from mosaic.core.errors import MosaicError, PausedError, StopRequested, WaitingError

Ending = Literal["finished", "waiting", "paused", "stopped", "failed"]


def ending_of(error: BaseException | None) -> tuple[Ending, str]:
    """What an error means for a run, and its words.

    >>> ending_of(PausedError("the judge does not answer"))
    ('paused', 'the judge does not answer')
    """
    if error is None:
        return "finished", ""
    if isinstance(error, WaitingError):
        return "waiting", ""
    if isinstance(error, PausedError):
        return "paused", str(error)
    if isinstance(error, StopRequested):
        return "stopped", str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "interrupted at the terminal"
    if isinstance(error, MosaicError):
        return "failed", str(error)
    return "failed", f"{type(error).__name__}: {error}"
