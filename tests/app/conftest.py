"""Runs on stand-ins for model and trainer; the controller is real."""

import pytest

from agent.approval import HumanApprover
from benchmarks.standins import StandIn, Witness
from benchmarks.waiting import waiting_run
from mosaic.app.decisions import approve, pending
from mosaic.core.errors import WaitingError
from mosaic.lab.server import ScriptedServer


@pytest.fixture(scope="module")
def standin():
    made = StandIn.make("rounds=2", per_slice=4)
    made.approver = HumanApprover()
    return made


@pytest.fixture
def asked(standin, tmp_path):
    return waiting_run(standin, tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a finished run: a model plans, a person approves, spans are asked for."""
    root = tmp_path_factory.mktemp("finished")
    folder, witness = root / "run", Witness(root / "witness")
    with ScriptedServer() as server:
        made = StandIn.make(
            "rounds=1",
            "planner.kind=llm",
            f"planner.chat.base_url={server.url}",
            "telemetry.spans=true",
            "objectives.safety.floor=null",
            "objectives.over_refusal.floor=null",
            per_slice=4,
        )
        made.approver = HumanApprover()
        made.create(folder)
        with pytest.raises(WaitingError):
            made.run(folder, witness)
        approve(folder, pending(folder).request, by="ann")
        made.run(folder, witness)
    return folder
