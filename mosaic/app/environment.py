"""What a process needs in its environment before torch and langgraph are imported."""

from __future__ import annotations

import os

DEFAULTS = {
    # Two OpenMP threads waiting for each other make work on small models many times slower
    # (docs/architecture.md).
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "LANGGRAPH_STRICT_MSGPACK": "true",
}


def prepare() -> None:
    """Set what is not set yet. Threads of a torch that is imported already stay as they are."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
