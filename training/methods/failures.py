"""What a library's exception in a training means: a full disk, or memory that ran out."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mosaic.core.errors import MosaicError, TrainingError

FULL = (errno.ENOSPC, errno.EDQUOT)
# safetensors and torch.save hide a failed write behind errors of their own. With less room than
# this, a full disk is the reason.
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
    """Raise OSError(ENOSPC) if the disk of `folder` is full, TrainingError if memory ran out.

    Libraries report both in words of their own, so that is what is looked at. Other exceptions
    pass as they are.
    """
    try:
        yield
    except MosaicError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        if _is_full_disk(error, folder):
            raise OSError(errno.ENOSPC, f"a write of the training failed: {error}") from error
        if isinstance(error, MemoryError) or says_no_memory(str(error)):
            first = (str(error).splitlines() or ["MemoryError"])[0]
            raise TrainingError(
                f"training: out of memory ({first}); lower methods.sft.batch_size and raise "
                "methods.sft.gradient_accumulation, or turn on methods.sft.gradient_checkpointing",
                "out_of_memory",
            ) from error
        raise


def says_no_memory(text: str) -> bool:
    """Whether a message tells that memory ran out.

    >>> says_no_memory("CUDA out of memory. Tried to allocate 2.00 GiB.")
    True
    """
    lowered = text.lower()
    return any(sign in lowered for sign in NO_MEMORY)


def _is_full_disk(error: Exception, folder: Path) -> bool:
    text = str(error).lower()
    if any(sign in text for sign in NO_ROOM):
        return True
    return "writ" in text and _room(folder) < LITTLE_ROOM


def _room(folder: Path) -> int:
    """Free bytes where a folder lies, or will."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
