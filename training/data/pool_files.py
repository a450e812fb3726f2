"""Are the files of a pool those that were built? Large ones are read again only if they changed.

`seen.json` in the pool's folder holds size and time of each large file as it was when it was last
read whole and found right. It is written beside the pool and never part of it.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from mosaic.core.errors import UsageError
from training.data.pool_format import MANIFEST, FileFacts, Manifest, file_facts

SEEN = "seen.json"
# Smaller files are read in less time than a person notices, every time.
LARGE = 64 << 20


def check_files(path: Path, manifest: Manifest, read_all: bool = False) -> None:
    """Check the files of the pool at `path` against its manifest.

    With `read_all` every file is read whole; otherwise a large file is trusted while its size and
    time are as they were. Raises UsageError naming the first that is not what was built.
    """
    files = manifest.get("files")
    if not files:
        raise UsageError(
            f"pool {path}: its {MANIFEST} holds no digests of its files; build the pool again "
            "with `python -m mosaic pool build`"
        )
    seen = _seen(path)
    found: dict[str, list[object]] = {}
    for name, facts in files.items():
        try:
            mark = _mark(path / name, facts)
            if read_all or mark != seen.get(name):
                _check_file(path, name, facts)
        except OSError as error:
            raise UsageError(
                f"pool {path}: {name}: {error.strerror}; build the pool again"
            ) from None
        if facts["bytes"] >= LARGE:
            found[name] = mark
    if found and found != seen:
        _remember(path, found)


def _check_file(path: Path, name: str, facts: FileFacts) -> None:
    if file_facts(path / name) != facts:
        raise UsageError(
            f"pool {path}: {name} is not the file that was built (size or digest "
            f"differ from {MANIFEST}); restore it, or build the pool again"
        )


def _mark(file: Path, facts: FileFacts) -> list[object]:
    """What shows that a file was written to, and what it ought to hold."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, facts["xxh3_128"]]


def _seen(path: Path) -> dict[str, list[object]]:
    """File -> its mark when it was last read; nothing if that is not known."""
    try:
        seen = json.loads((path / SEEN).read_text())
    except (OSError, ValueError):
        return {}
    return seen if isinstance(seen, dict) else {}


def _remember(path: Path, found: dict[str, list[object]]) -> None:
    """Write the marks. A pool that others own is read whole each time instead."""
    part = path / f".{SEEN}.{os.getpid()}"
    with contextlib.suppress(OSError):
        part.write_text(json.dumps(found) + "\n")
        part.replace(path / SEEN)
