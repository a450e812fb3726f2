"""Places that a command is told to write to, checked before it works for hours."""

from __future__ import annotations

import os
from pathlib import Path

from mosaic.core.errors import UsageError


def check_place(out: Path, option: str = "--out") -> None:
    """Check that a file or folder can be made at `out`.

    Raises UsageError if it lies below a file, or in a folder that one may not write to.
    """
    place = out.absolute()
    above = next(folder for folder in (place, *place.parents) if folder.exists())
    if above == place:
        return
    if not above.is_dir():
        raise UsageError(f"{option} {out}: {above} is a file, not a folder; name another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {out}: no permission to write in {above}; name another place")


def check_absent(*paths: Path) -> None:
    """Raise UsageError if one of the files is there already."""
    for path in paths:
        if path.exists():
            raise UsageError(f"{path} exists; name another --out")
