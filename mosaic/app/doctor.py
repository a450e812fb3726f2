"""Is this machine and installation fit for a run? Versions, threads, memory, disk, and whose packages these are."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sqlite3
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
MIN_DISK = 2 * 1024**3


def examine() -> list[dict[str, str]]:
    """A row per check: name, what was found, verdict (`ok`, `missing: ...`, `warning: ...`, `broken: ...`)."""
    rows = [
        _row(
            "python",
            platform.python_version(),
            "ok" if sys.version_info >= (3, 11) else "broken: needs 3.11",
        )
    ]
    home = Path(__file__).resolve().parents[2]
    for name in NAMES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        ours = origin is not None and origin.parent == home / name
        verdict = "ok" if ours else f"broken: another package of this name shadows ours ({origin})"
        rows.append(_row(f"package {name}", "this installation" if ours else str(origin), verdict))
    for name in LIBRARIES:
        try:
            rows.append(_row(name, version(name), "ok"))
        except PackageNotFoundError:
            verdict = (
                "missing: only needed with generator.kind vllm"
                if name == "vllm"
                else "missing: pip install -e '.[train]'"
            )
            rows.append(_row(name, "-", verdict))
    rows.append(_row("sqlite", sqlite3.sqlite_version, "ok"))
    threads = os.environ.get("OMP_NUM_THREADS", "-")
    verdict = "ok" if threads != "-" else "warning: set OMP_NUM_THREADS=1 on CPU"
    rows.append(_row("OMP_NUM_THREADS", threads, verdict))
    free = shutil.disk_usage(Path.cwd()).free
    rows.append(
        _row(
            "free disk",
            f"{free / 1024**3:.1f} GiB",
            "ok" if free > MIN_DISK else "warning: under 2 GiB",
        )
    )
    rows.append(_row("gpu", *_gpu()))
    return rows


def _gpu() -> tuple[str, str]:
    if importlib.util.find_spec("torch") is None:
        return "-", "missing: torch is not installed"
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0), "ok"
    return "none", "ok: everything runs on CPU; models above some 100 M parameters will be slow"


def _row(check: str, found: str, verdict: str) -> dict[str, str]:
    return {"check": check, "found": found, "verdict": verdict}
