"""The seam of training: a job and a workplace in, an adapter out. Light to import.

The nouns are in `mosaic.core.types.runs`; each method has a module of its own beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

Event = Mapping[str, object]
"""A line of progress: `{"step", "steps", "loss"?}` per optimiser step, `{"stage"}` before them."""

Progress = Callable[[Event], None]
Stopping = Callable[[], bool]


def never() -> bool:
    """The answer of somebody who never asks a training to stop."""
    return False
