"""Files of text as streams, unpacked if their name says that they are packed."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from mosaic.core.errors import UsageError

COMPRESSED = (".gz", ".zst")


def bare_suffix(path: Path) -> str:
    """The ending of a file's name, without that of its compression.

    >>> bare_suffix(Path("rows.JSONL.gz")), bare_suffix(Path("rows.csv"))
    ('.jsonl', '.csv')
    """
    if path.suffix.lower() in COMPRESSED:
        path = path.with_suffix("")
    return path.suffix.lower()


@contextmanager
def binary(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked.

    Raises UsageError if it is packed and cut short or damaged.
    """
    suffix = path.suffix.lower()
    if suffix not in COMPRESSED:
        with path.open("rb") as plain:
            yield plain
        return
    try:
        if suffix == ".gz":
            with gzip.open(path, "rb") as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            with _zstandard(path) as stream:
                yield cast(IO[bytes], stream)
    except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
        raise UsageError(f"{path}: cannot be unpacked ({error}); fetch it again") from None


def _zstandard(path: Path) -> io.BufferedIOBase:
    """The codec is Arrow's, which is there in any case."""
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))


@contextmanager
def text_of(path: Path, newline: str | None = None) -> Iterator[IO[str]]:
    """The text of a file, without a byte order mark. Raises UsageError unless it is UTF-8."""
    with binary(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)
        try:
            yield text
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None
        finally:
            text.detach()
