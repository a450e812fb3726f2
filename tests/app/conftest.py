"""A run in human mode on stand-ins for model and trainer; the controller is real."""

import pytest

from agent.approval import HumanApprover
from benchmarks.standins import StandIn
from benchmarks.waiting import waiting_run


@pytest.fixture(scope="module")
def standin():
    made = StandIn.make("rounds=2", per_slice=4)
    made.approver = HumanApprover()
    return made


@pytest.fixture
def asked(standin, tmp_path):
    return waiting_run(standin, tmp_path)
