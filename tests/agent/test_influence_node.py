"""Influence in a run: estimated before each round around what was executed last, and an end of its own."""

import pytest

from agent.context import silent
from agent.graph import run as run_graph
from benchmarks.standins import StandIn, Witness
from mosaic.app.views.report_data import report_data
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.influence import SteeringPrompts
from mosaic.core.types.records import Observe
from tests.agent.conftest import influence


class Known:
    """An estimate that is known beforehand; keeps whose adapters it was asked about."""

    def __init__(self, estimate):
        self.estimate = estimate
        self.asked = []
        self.judged = []

    def influence(self, steps, trials, judged):
        self.asked.append([trial.id for trial in trials])
        self.judged.append([trial.id for trial in judged])
        return self.estimate


@pytest.fixture(scope="module")
def standin():
    return StandIn.make("rounds=2", "calibration.repeats=3", per_slice=2)


@pytest.fixture
def ran(standin, tmp_path):
    """Runs to the end with what is known of influence; the report, the context and observations."""

    def run(known, notify=silent, **stop):
        folder = tmp_path / "run"
        standin.create(folder)
        journal = Journal.open(folder)
        try:
            journal.acquire()
            context = standin.context(folder, journal, Witness(tmp_path / "witness"))
            context.influence = known
            context.notify = notify
            changed = context.settings.stop.model_copy(update=stop)
            context.settings = context.settings.model_copy(update={"stop": changed})
            run_graph(context, folder)
            store = Store(folder)
            told = [store.get_json(s.result.observation) for s in journal.steps(Observe)]
        finally:
            journal.close()
        return report_data(folder), context, told

    return run


def test_it_is_estimated_around_two_repeats_first_and_then_around_the_last_round(ran):
    known = Known(influence())
    _, context, told = ran(known)
    repeats = [trial.id for trial in context.state.calibration.trials]
    assert known.asked == [repeats[:2], [context.state.rounds[1].trial.id]]
    assert [one["influence"] for one in told] == [known.estimate.json_data()] * 2


def test_references_come_from_the_base_and_the_calibration_in_every_round(ran):
    known = Known(influence())
    _, context, _ = ran(known)
    base = context.state.rounds[0].trial.id
    assert known.judged == [[base, *(t.id for t in context.state.calibration.trials)]] * 2


def test_an_objective_without_influence_is_said_in_every_round(ran):
    known = influence()
    prompts = {**known.prompts, "safety": SteeringPrompts(used=1)}
    said = []
    ran(Known(known.model_copy(update={"prompts": prompts})), notify=said.append)
    assert sum("no influence on safety: too few" in line for line in said) == 2


def test_a_run_that_asks_for_none_files_its_observations_without(ran):
    _, _, told = ran(None)
    assert all("influence" not in one for one in told)


def test_a_run_ends_at_equilibrium_only_if_it_is_asked_to(ran):
    report, _, told = ran(Known(influence(error=0.9)), at_equilibrium=True)
    assert report.stop == "at equilibrium: the influence of buckets is lost in the noise"
    assert told == []
    assert report.state == "finished"


@pytest.mark.parametrize(("error", "stop"), [(0.9, {}), (0.02, {"at_equilibrium": True})])
def test_it_goes_on_otherwise(ran, error, stop):
    report, _, told = ran(Known(influence(error=error)), **stop)
    assert report.stop == "all 2 planned rounds ran"
    assert len(told) == 2
