"""What a library's exception in a training means: a full disk, or memory that ran out. The rest passes as it is."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mosaic.core.errors import MosaicError, TrainingError

FULL = (errno.ENOSPC, errno.EDQUOT)
# safetensors and torch.save raise errors of their own where a write fails; with this little room a full disk is why.
LITTLE_ROOM = 16 * 1024 * 1024
NO_ROOM = ("no space left", "quota exceeded", "os error 28", "os error 122")
NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
)


@contextmanager
def classify_failure(folder: Path) -> Iterator[None]:
    """OSError(ENOSPC) where the disk of `folder` is full, TrainingError of kind `out_of_memory` where memory ran out."""
    try:
        yield
    except MosaicError:
        raise
    except Exception as error:  # told apart by what it says; raised again where it says neither
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        text = str(error).lower()
        if any(sign in text for sign in NO_ROOM) or (
            "writ" in text and _room(folder) < LITTLE_ROOM
        ):
            raise OSError(errno.ENOSPC, f"a write of the training failed: {error}") from error
        if isinstance(error, MemoryError) or any(sign in text for sign in NO_MEMORY):
            first = (str(error).splitlines() or ["MemoryError"])[0]
            raise TrainingError(
                f"training: out of memory ({first}); lower methods.sft.batch_size and raise "
                "methods.sft.gradient_accumulation, or turn on methods.sft.gradient_checkpointing",
                "out_of_memory",
            ) from error
        raise


def _room(folder: Path) -> int:
    """Free bytes where a folder lies, or will."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
