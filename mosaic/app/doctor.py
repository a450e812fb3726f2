"""Is this machine and installation fit for a run?

Versions, threads, memory, disk, and whether the six packages are those of this installation.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sqlite3
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mosaic.core.types.base import FrozenModel

NAMES = ("mosaic", "agent", "tools", "training", "eval", "prompts")
LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "langgraph",
    "openai",
    "pydantic",
    "lm_eval",
    "vllm",
)
GIB = 1024**3
MIN_DISK = 2 * GIB


class Examined(FrozenModel):
    """One check. `verdict` is `ok`, or begins with `missing:`, `warning:` or `broken:`."""

    check: str
    found: str
    verdict: str


def examine() -> list[Examined]:
    """Every check of machine and installation; nothing is changed."""
    rows = [_python()]
    rows += [_package(name) for name in NAMES]
    rows += [_library(name) for name in LIBRARIES]
    sqlite = Examined(check="sqlite", found=sqlite3.sqlite_version, verdict="ok")
    rows += [sqlite, _threads(), _disk(), _gpu()]
    return rows


def _python() -> Examined:
    fit = sys.version_info >= (3, 11)
    verdict = "ok" if fit else "broken: needs 3.11"
    return Examined(check="python", found=platform.python_version(), verdict=verdict)


def _package(name: str) -> Examined:
    """Whether the package that `import name` finds is the one of this installation."""
    home = Path(__file__).resolve().parents[2]
    spec = importlib.util.find_spec(name)
    origin = Path(spec.origin).resolve() if spec and spec.origin else None
    if origin is not None and origin.parent == home / name:
        return Examined(check=f"package {name}", found="this installation", verdict="ok")
    verdict = f"broken: another package of this name shadows ours ({origin})"
    return Examined(check=f"package {name}", found=str(origin), verdict=verdict)


def _library(name: str) -> Examined:
    try:
        return Examined(check=name, found=version(name), verdict="ok")
    except PackageNotFoundError:
        verdict = "missing: pip install -e '.[train]'"
        if name == "vllm":
            verdict = "missing: only needed with generator.kind vllm"
        return Examined(check=name, found="-", verdict=verdict)


def _threads() -> Examined:
    threads = os.environ.get("OMP_NUM_THREADS", "-")
    verdict = "ok" if threads != "-" else "warning: set OMP_NUM_THREADS=1 on CPU"
    return Examined(check="OMP_NUM_THREADS", found=threads, verdict=verdict)


def _disk() -> Examined:
    free = shutil.disk_usage(Path.cwd()).free
    verdict = "ok" if free > MIN_DISK else "warning: under 2 GiB"
    return Examined(check="free disk", found=f"{free / GIB:.1f} GiB", verdict=verdict)


def _gpu() -> Examined:
    if importlib.util.find_spec("torch") is None:
        return Examined(check="gpu", found="-", verdict="missing: torch is not installed")
    import torch

    if torch.cuda.is_available():
        return Examined(check="gpu", found=torch.cuda.get_device_name(0), verdict="ok")
    verdict = "ok: everything runs on CPU; models above some 100 M parameters will be slow"
    return Examined(check="gpu", found="none", verdict=verdict)
