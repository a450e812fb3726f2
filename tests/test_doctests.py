"""Worked examples in docstrings are run, so that they cannot go stale."""

import doctest
import importlib
from pathlib import Path

import pytest

from benchmarks.house import PACKAGES

ROOT = Path(__file__).resolve().parents[1]
PROMPT = ">>> "


def modules_with_examples():
    """Names of the modules of the product and its benchmarks that hold at least one example."""
    names = []
    for folder in (*PACKAGES, "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if PROMPT in path.read_text():
                dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                names.append(dotted.removesuffix(".__init__"))
    return names


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_hold(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0, f"{name} holds {PROMPT!r}, but no docstring has an example"
    assert found.failed == 0
