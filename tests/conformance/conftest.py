"""What every implementation of a seam is tried on: the suites of the bundled laboratory."""

import pytest

from eval.references import pick, references
from mosaic.app.config_file import load_config
from mosaic.app.wiring import open_suites
from tests.agent.conftest import observe, trial
from tests.training.conftest import order, pair_order

# Fixtures that the suites share with the tests of one implementation.
__all__ = ["known", "lab", "observe", "order", "pair_order", "trial"]
SOME = 12


@pytest.fixture(scope="session")
def lab():
    """(objectives by name, all suites of each by role)"""
    return open_suites(load_config("lab"))


@pytest.fixture(scope="session")
def known(lab):
    """Objective -> some prompts with known answers, good and bad by turns."""
    found = {}
    for name, roles in lab[1].items():
        found[name] = pick(references(roles.values()), SOME, "conformance")
    return found
