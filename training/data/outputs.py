"""Places that a command is told to write to, checked before it works for hours."""

from __future__ import annotations

import os
from pathlib import Path

from mosaic.core.errors import UsageError


def check_place(out: Path, option: str = "--out") -> None:
    """UsageError where nothing can be made at `out`: it lies below a file, or in a folder that takes no files."""
    above = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if above == out.absolute():
        return
    if not above.is_dir():
        raise UsageError(f"{option} {out}: {above} is a file, not a folder; name another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {out}: no permission to write in {above}; name another place")
