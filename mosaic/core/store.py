"""Content-addressed artifacts: a file under its SHA-256, a folder under the SHA-256 of its sorted manifest.

Written to a temporary name in the same folder, flushed to disk, renamed, the folder flushed, read back. Nothing
is ever overwritten. What is read is checked first; a mismatch is a DamageError, never other data.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from mosaic.core.errors import DamageError, PausedError, UsageError
from mosaic.core.types.base import canonical_json, digest_of

MANIFEST = "MANIFEST.json"
FOLDER = "objects"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_manifest(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below a folder, sorted; the store's own manifest is left out."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in files}


def path_digest(path: Path) -> str:
    """Digest of a file or of a folder, as the store files it. Raises UsageError if there is none."""
    if path.is_dir():
        return digest_of(folder_manifest(path))
    if path.is_file():
        return file_digest(path)
    raise UsageError(f"{path}: no such file or folder")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes) -> None:
    """A new file with these bytes, on the disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


class Store:
    """The artifacts of one run directory."""

    def __init__(self, run: Path) -> None:
        self.root = run / FOLDER
        if not self.root.is_dir():
            self.root.mkdir(parents=True, exist_ok=True)
            _sync(run)
        self._checked: set[str] = set()

    def put_bytes(self, data: bytes) -> str:
        """File bytes; their digest. Raises PausedError if the disk is full, as the others do."""
        digest = hashlib.sha256(data).hexdigest()
        self._file(digest, {None: data}, len(data))
        return digest

    def put_json(self, value: Any) -> str:
        """File a plain JSON value; its digest."""
        return self.put_bytes(canonical_json(value).encode())

    def put_file(self, source: Path) -> str:
        """File a copy of a file; its digest."""
        digest = file_digest(source)
        self._file(digest, {None: source}, source.stat().st_size)
        return digest

    def put_folder(self, source: Path) -> str:
        """File a copy of a folder, its manifest written last; its digest."""
        manifest = folder_manifest(source)
        digest = digest_of(manifest)
        content: dict[str | None, bytes | Path] = {name: source / name for name in manifest}
        content[MANIFEST] = canonical_json(manifest).encode()
        self._file(digest, content, sum((source / name).stat().st_size for name in manifest))
        return digest

    def _file(self, digest: str, content: dict[str | None, bytes | Path], size: int) -> None:
        """Write what is not there yet: a single file (its name is None), or a folder's files; check what stands there."""
        target = self.root / digest
        if not target.exists():
            temporary = self.root / f".{os.getpid()}-{uuid.uuid4().hex}.tmp"
            try:
                if None not in content:
                    os.mkdir(temporary)
                for name, data in content.items():
                    copy = temporary / name if name else temporary
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    _write(copy, data if isinstance(data, bytes) else data.read_bytes())
                if None not in content:
                    for folder in sorted(
                        {(temporary / name).parent for name in content if name}, reverse=True
                    ):
                        _sync(folder)
                try:
                    os.rename(temporary, target)
                except OSError as error:
                    # Another process filed the same folder meanwhile: what stands there is checked below.
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    _remove(temporary)
                _sync(self.root)
            except OSError as error:
                _remove(temporary)
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise full_disk(self.root.parent, size) from error
                raise
        self.path(digest)

    def sweep(self) -> None:
        """Remove what interrupted writers left behind; what a process is still writing stays."""
        for left in self.root.glob(".*.tmp"):
            if not _being_written(left):
                _remove(left)

    def remove(self, digest: str) -> None:
        """Delete an artifact that nothing will need again (retention)."""
        _remove(self.root / digest)
        self._checked.discard(digest)

    def path(self, digest: str) -> Path:
        """Where an artifact lies, once its bytes were checked against its digest (DamageError)."""
        target = self.root / digest
        if digest in self._checked:
            return target
        if not target.exists():
            raise DamageError(f"{target}: the artifact is missing")
        try:
            actual = path_digest(target)
            if target.is_dir() and file_digest(target / MANIFEST) != digest:
                actual = file_digest(target / MANIFEST)
        except (OSError, UsageError) as error:
            raise DamageError(f"{target}: not readable: {error}") from None
        if actual != digest:
            raise DamageError(
                f"{target}: its content has digest {actual[:12]}, not the one it is filed under"
            )
        self._checked.add(digest)
        return target

    def get_json(self, digest: str) -> Any:
        return json.loads(self.path(digest).read_bytes())

    def size(self, digest: str) -> int:
        """Bytes of an artifact."""
        target = self.root / digest
        files = [p for p in target.rglob("*") if p.is_file()] if target.is_dir() else [target]
        return sum(p.stat().st_size for p in files)


def full_disk(run: Path, size: int) -> PausedError:
    """What a full disk is to a run: a pause that says how much room it needs."""
    return PausedError(
        f"the disk of {run} is full: {size:,} bytes are needed, {free_bytes(run):,} are free; make room, "
        f"then: python -m mosaic resume {run}"
    )


def _being_written(temporary: Path) -> bool:
    """Whether the process that a temporary name begins with is still alive."""
    writer = temporary.name[1:].partition("-")[0]
    if not writer.isdecimal():
        return False
    try:
        os.kill(int(writer), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
