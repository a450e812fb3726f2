"""Content-addressed artifacts: a file under its SHA-256, a folder under the SHA-256 of its sorted manifest.

Written to a temporary name in the same folder, flushed to disk, renamed, the folder flushed, read back. Nothing
is ever overwritten. What is read is checked first; a mismatch is a DamageError, never other data.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from mosaic.errors import DamageError, UsageError
from mosaic.types import canonical_json, digest_of

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
    """Digest of a file or of a folder, as the store files it. UsageError where there is nothing."""
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


class Store:
    """The artifacts of one run directory."""

    def __init__(self, run: Path) -> None:
        self.root = run / FOLDER
        self.root.mkdir(parents=True, exist_ok=True)
        self._checked: set[str] = set()

    def put_bytes(self, data: bytes) -> str:
        """File bytes; their digest."""
        digest = hashlib.sha256(data).hexdigest()
        target = self.root / digest
        if not target.exists():
            temporary = self._temporary()
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            self._commit(temporary, target)
        self.path(digest)
        return digest

    def put_json(self, value: Any) -> str:
        """File a plain JSON value; its digest."""
        return self.put_bytes(canonical_json(value).encode())

    def put_file(self, source: Path) -> str:
        """File a copy of a file; its digest."""
        digest = file_digest(source)
        target = self.root / digest
        if not target.exists():
            temporary = self._temporary()
            shutil.copyfile(source, temporary)
            _sync(temporary)
            self._commit(temporary, target)
        self.path(digest)
        return digest

    def put_folder(self, source: Path) -> str:
        """File a copy of a folder, its manifest written last; its digest."""
        manifest = folder_manifest(source)
        digest = digest_of(manifest)
        target = self.root / digest
        if not target.exists():
            temporary = self._temporary()
            temporary.mkdir()
            for name in manifest:
                copy = temporary / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, copy)
                _sync(copy)
            (temporary / MANIFEST).write_text(canonical_json(manifest))
            _sync(temporary / MANIFEST)
            for folder in sorted({p.parent for p in temporary.rglob("*")}, reverse=True):
                _sync(folder)
            self._commit(temporary, target)
        self.path(digest)
        return digest

    def path(self, digest: str) -> Path:
        """Where an artifact lies, once its bytes were checked against its digest (DamageError)."""
        target = self.root / digest
        if digest in self._checked:
            return target
        if not target.exists():
            raise DamageError(f"{target}: the artifact is missing")
        actual = path_digest(target)
        if actual != digest:
            raise DamageError(f"{target}: its content has digest {actual[:12]}, not the one it is filed under")
        self._checked.add(digest)
        return target

    def get_json(self, digest: str) -> Any:
        return json.loads(self.path(digest).read_bytes())

    def _temporary(self) -> Path:
        return self.root / f".{uuid.uuid4().hex}.tmp"

    def _commit(self, temporary: Path, target: Path) -> None:
        os.rename(temporary, target)
        _sync(self.root)
